"""Studies on a real Ray: those that end before their budget, and trials that end badly, each with its reason."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from disks import Disk
from rays import local_ray
from toys import N_UNITS, START, Clock, Mishap, ToyTrainer, conduct, direct, ends, resumed, started, stream, table, toy_spec

from raystudy.records import Event, Reported, StudyRecord, StudyState, TrialState
from raystudy.search.capacity import Slots
from raystudy.search.director import Director
from raystudy.search.inline import run_inline
from raystudy.search.tune import run_on_tune
from raystudy.search.worker import Worker
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.storage import StoppedWaiting, attended
from raystudy.tracking.journal import Journal, read_journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MISHAPS: dict[int, Mishap] = {1: "nan", 2: "raise", 3: "kill", 4: "memory", 5: "kill_once"}
SPEC = toy_spec(budget={"trials": 9, "epochs": 4}, early_stopping={"grace": 2, "reduction": 3, "keep": 0})


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with local_ray(2):
        yield


def slots(concurrent: int = 1, retries: int = 0) -> Slots:
    return Slots(cpu=1, gpu=0, concurrent=concurrent, retries=retries)


class StopAfter:
    """Asks a study to stop as a signal would, once it has seen some reports."""

    def __init__(self, reports: int) -> None:
        self.left = reports
        self.director: Director | None = None

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, Reported)
        if self.left == 0 and self.director is not None:
            self.director.request_stop("enough")


def stopped(spec: StudySpec, trainer: ToyTrainer, *, after: int, concurrent: int) -> list[Event]:
    """Run a study until it has reported `after` times, and return its journal."""
    journal: list[Event] = list(direct(spec)[1])
    stop = StopAfter(after)
    director = Director(spec, Space.of(spec), append=journal.append, history=tuple(journal), observers=[stop], now=Clock(START))
    stop.director = director
    assert run_on_tune(director, trainer, slots(concurrent)) is StudyState.INTERRUPTED
    assert director.record.reason == "enough"
    assert director.record.count(TrialState.RUNNING) == 0
    return journal


def finish_on_ray(spec: StudySpec, trainer: ToyTrainer, history: Sequence[Event], **options: int) -> Director:
    director, journal = direct(spec, resumed(spec, history))
    assert run_on_tune(director, trainer, slots(**options)) is StudyState.COMPLETED
    assert all(len(once) == 1 for once in ends(journal).values())
    return director


# Ends before the budget


def test_a_study_that_is_stopped_and_resumed_on_ray_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    spec = toy_spec(search={"sampler": "tpe", "seed": 4, "startup_trials": 2})
    trainer = ToyTrainer(4, folder=tmp_path)
    journal = stopped(spec, trainer, after=7, concurrent=1)
    again = finish_on_ray(spec, trainer, journal)
    assert table(again.record) == table(conduct(spec, ToyTrainer(4))[0].record)


def test_two_workers_that_are_stopped_and_resumed_finish_every_trial_once(tmp_path: Path) -> None:
    spec = toy_spec(budget={"trials": 8, "epochs": 3}, early_stopping="none")
    trainer = ToyTrainer(3, folder=tmp_path)
    again = finish_on_ray(spec, trainer, stopped(spec, trainer, after=6, concurrent=2), concurrent=2)
    assert again.record.counts() == {"completed": 8}
    assert all(list(trial.reports) == [1, 2, 3] for trial in again.record.trials.values())


def test_tunes_loop_waits_for_events_and_does_not_turn_round_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    def wait(*futures: Any, timeout: float | None = None, **options: Any) -> Any:
        waits.append(timeout)
        return ray.wait(*futures, timeout=timeout, **options)

    monkeypatch.setattr("ray.air.execution._internal.actor_manager.ray", SimpleNamespace(**vars(ray) | {"wait": wait}))
    director, _ = direct(toy_spec(budget={"trials": 3, "epochs": 2}, early_stopping="none"))
    assert run_on_tune(director, ToyTrainer(2), slots(concurrent=2)) is StudyState.COMPLETED
    assert len(waits) >= 3 * 2
    assert all(timeout is None or timeout >= 1 for timeout in waits)


def test_a_grid_that_is_used_up_ends_the_study() -> None:
    spec = toy_spec(
        factors={"learning_rate": {"choice": [0.1, 0.01, 0.001]}},
        search={"sampler": "grid"},
        budget={"trials": 50, "epochs": 1},
    )
    director, _ = direct(spec)
    assert run_on_tune(director, ToyTrainer(1), slots(concurrent=2)) is StudyState.COMPLETED
    assert director.record.counts() == {"completed": 3}


def test_a_used_up_time_budget_ends_the_study() -> None:
    spec = toy_spec(budget={"trials": 50, "epochs": 4, "hours": 1}, early_stopping="none")
    clock = Clock(START, step=0.0)  # that goes on by itself would run through the hour before anything comes up

    def reported(event: Event) -> None:
        clock.now += 60.0 * isinstance(event, Reported)

    director, _ = direct(spec, clock=clock, observers=[reported])
    assert run_on_tune(director, ToyTrainer(4), slots(2)) is StudyState.COMPLETED
    assert director.record.reason == "the time budget of 1 hours is used up"
    assert len(director.record.trials) < 50
    assert director.record.count(TrialState.RUNNING) == 0


def test_trials_that_fail_in_every_way_are_as_inline_and_harm_no_other() -> None:
    mishaps: dict[int, Mishap] = {0: "unopenable", 1: "allocate", 2: "early_end", 3: "unclosable"}
    spec = toy_spec(budget={"trials": 6, "epochs": 3}, early_stopping="none")
    director, journal = direct(spec)
    run_on_tune(director, ToyTrainer(3, mishaps), slots())
    assert stream(journal) == stream(conduct(spec, ToyTrainer(3, mishaps))[1])
    assert director.record.counts() == {"completed": 3, "failed": 3}


def test_a_study_whose_every_process_dies_fails_with_the_reason_in_words() -> None:
    spec = toy_spec(budget={"trials": 2, "epochs": 2})
    director, _ = direct(spec)
    trainer = ToyTrainer(2, {0: "kill", 1: "kill"}, at_epoch=1)
    assert run_on_tune(director, trainer, slots()) is StudyState.FAILED
    assert director.record.reason.startswith("no trial gave a result: its process died")
    assert {trial.retries for trial in director.record.trials.values()} == {0}


# Mishaps


def test_each_mishap_has_its_state_and_reason_and_the_study_completes(tmp_path: Path) -> None:
    director, events = direct(SPEC)
    trainer = ToyTrainer(4, MISHAPS, folder=tmp_path)
    state = run_on_tune(director, trainer, slots(concurrent=2, retries=1))

    assert state is StudyState.COMPLETED
    trials = {trial.number: trial for trial in director.record.trials.values()}
    assert [len(ended) for ended in ends(events).values()] == [1] * 9
    assert (trials[1].state, trials[1].reason) == (TrialState.DIVERGED, "val_loss is nan at epoch 2")
    assert (trials[2].state, trials[2].reason) == (TrialState.FAILED, "ValueError: boom")
    assert trials[3].state is TrialState.FAILED
    assert trials[3].reason.startswith("its process died")
    assert trials[3].retries == 1
    assert trials[4].state is TrialState.FAILED
    assert trials[4].reason.startswith("out of memory")
    assert trials[5].retries == 1
    assert trials[5].state in (TrialState.COMPLETED, TrialState.PRUNED)
    best = director.record.ranking("val_accuracy", "max")
    assert {trial.number for trial in best} == set(trials) - {1, 2, 3, 4}
    assert {trial.state.name for trial in director.sampler.study.trials} <= {"COMPLETE", "PRUNED", "FAIL"}


def test_ray_and_the_inline_loop_take_the_same_steps() -> None:
    mishaps: dict[int, Mishap] = {1: "nan", 2: "raise"}
    on_ray, ray_events = direct(SPEC)
    run_on_tune(on_ray, ToyTrainer(4, mishaps), slots(retries=1))
    inline, inline_events = direct(SPEC)
    run_inline(inline, Worker(ToyTrainer(4, mishaps)))
    assert stream(ray_events) == stream(inline_events)


@pytest.mark.parametrize("stops", [False, True], ids=["room is made", "stopped"])
def test_a_full_disk_holds_up_the_study_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    disk = Disk(tmp_path, monkeypatch, "write", "ftruncate")
    said: list[str] = []

    def fill(event: Event) -> None:
        if isinstance(event, Reported) and (event.trial_id, event.epoch) == ("t0002", 1) and not said:
            disk.errors = [errno.ENOSPC] * 10_000

    def relieve(text: str) -> None:
        said.append(text)
        if stops:
            director.request_stop("terminated")
        else:
            disk.errors = []

    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(started(SPEC))
        director = Director(
            SPEC,
            Space.of(SPEC, n_units=N_UNITS),
            append=journal.append_patiently,
            history=read_journal(journal.path),
            observers=[fill],
        )
        with attended(relieve, lambda: bool(director.stop_reason)):
            if stops:
                with pytest.raises(StoppedWaiting, match="the storage is full"):
                    run_on_tune(director, ToyTrainer(4), slots())
            else:
                assert run_on_tune(director, ToyTrainer(4), slots()) is StudyState.COMPLETED
    disk.errors = []
    assert "Paused" in said[0]
    events: list[Event] = read_journal(tmp_path / "journal.jsonl")
    if stops:
        _, events = conduct(SPEC, ToyTrainer(4), resumed(SPEC, events))
    undisturbed, _ = conduct(SPEC, ToyTrainer(4))
    assert table(StudyRecord.fold(events)) == table(undisturbed.record)


def test_processes_are_kept_from_trial_to_trial() -> None:
    spec = toy_spec(budget={"trials": 6, "epochs": 2}, early_stopping="none")
    director, _ = direct(spec)
    run_on_tune(director, ToyTrainer(2, tells_pid=True), slots())
    pids = {report.metrics["pid"] for trial in director.record.trials.values() for report in trial.reports.values()}
    assert len(pids) == 1
