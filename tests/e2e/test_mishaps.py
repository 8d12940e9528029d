"""Trials that end badly on a real Ray: each in its state with its reason, and the study goes on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from disks import Disk
from toys import N_UNITS, Mishap, ToyTrainer, conduct, direct, ends, resumed, started, stream, table, toy_spec

from raystudy.records import Event, Reported, StudyRecord, StudyState, TrialState
from raystudy.search.capacity import Slots
from raystudy.search.director import Director
from raystudy.search.inline import run_inline
from raystudy.search.tune import run_on_tune
from raystudy.search.worker import Worker
from raystudy.space import Space
from raystudy.storage import StoppedWaiting, attended
from raystudy.tracking.journal import Journal, read_journal

pytestmark = pytest.mark.slow

MISHAPS: dict[int, Mishap] = {1: "nan", 2: "raise", 3: "kill", 4: "memory", 5: "kill_once"}
SPEC = toy_spec(budget={"trials": 9, "epochs": 4}, early_stopping={"grace": 2, "reduction": 3, "keep": 0})


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    here = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        log_to_driver=False,
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize("concurrent", [1, 2])
def test_each_mishap_has_its_state_and_reason_and_the_study_completes(tmp_path: Path, concurrent: int) -> None:
    director, events = direct(SPEC)
    trainer = ToyTrainer(4, MISHAPS, folder=tmp_path)
    state = run_on_tune(director, trainer, Slots(1, 0, concurrent, retries=1))

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
    run_on_tune(on_ray, ToyTrainer(4, mishaps), Slots(1, 0, 1, retries=1))
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
                    run_on_tune(director, ToyTrainer(4), Slots(1, 0, 1, retries=0))
            else:
                assert run_on_tune(director, ToyTrainer(4), Slots(1, 0, 1, retries=0)) is StudyState.COMPLETED
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
    run_on_tune(director, ToyTrainer(2, tells_pid=True), Slots(1, 0, 1, retries=0))
    pids = {report.metrics["pid"] for trial in director.record.trials.values() for report in trial.reports.values()}
    assert len(pids) == 1
