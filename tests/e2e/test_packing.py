"""Trials that share a GPU on a real Ray, and run out of its memory; the GPU is a number in Ray's books only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from rays import local_ray
from toys import direct, ends, score, toy_spec

from raystudy.errors import OutOfMemory
from raystudy.finetune.gpu_memory import GpuNeed
from raystudy.finetune.source_models import Sources
from raystudy.records import Event, StudyPlaced, StudyState, TrialRetried, TrialState
from raystudy.search import remote_probe
from raystudy.search.capacity import Slots, cluster_slots
from raystudy.search.director import Director
from raystudy.search.packing import pack
from raystudy.search.remote_probe import gpu_need_on_cluster
from raystudy.search.tune import run_on_tune
from raystudy.spec import StudySpec
from raystudy.work import Ticket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with local_ray(4, num_gpus=1):
        yield


@dataclass(frozen=True)
class Hungry:
    """Opens trials some of which have too little memory where they share.

    Attributes:
        folder: where trials checkpoint, and note who runs.
        large: the numbers of the trials that need a GPU to themselves.
        impossible: those that do not fit even then.
        epochs: the budget.
    """

    folder: Path
    large: tuple[int, ...] = ()
    impossible: tuple[int, ...] = ()
    epochs: int = 3

    def open(self, ticket: Ticket) -> HungryTraining:
        """Prepare a trial."""
        return HungryTraining(self, ticket)


class HungryTraining:
    """One such trial."""

    def __init__(self, trainer: Hungry, ticket: Ticket) -> None:
        self._trainer, self._ticket = trainer, ticket
        self._file = trainer.folder / f"{ticket.trial_id}.json"

    def epochs(self) -> Iterator[Mapping[str, float]]:
        """Yield the rows, with the share of the GPU that Ray has given."""
        trainer, number = self._trainer, self._ticket.number
        share = _share()
        with (trainer.folder / "runs.jsonl").open("a") as runs:
            runs.write(json.dumps([self._ticket.trial_id, share, os.getpid()]) + "\n")
        done = json.loads(self._file.read_text()) if self._file.exists() else 0
        for epoch in range(max(done, 1), trainer.epochs + 1):
            if epoch == 2 and (number in trainer.impossible or (number in trainer.large and share < 1)):
                raise OutOfMemory("CUDA out of memory. Tried to allocate 20 GiB")
            time.sleep(0.05)
            self._file.write_text(json.dumps(epoch))
            value = score(self._ticket.config, number, epoch)
            yield {"epoch": epoch, "train_loss": 1 - value, "val_loss": 1 - value, "val_accuracy": value, "share": share}

    def close(self) -> None:
        """Be closed."""


def _share() -> float:
    resources = ray.get_runtime_context().get_assigned_resources()
    return float(max((amount for name, amount in resources.items() if name.startswith("GPU")), default=0.0))


def weigh(spec: StudySpec, box: str, sources: Sources) -> GpuNeed:  # noqa: ARG001
    """Stand in for the measurement on a GPU."""
    return GpuNeed(int(_share() * 30), 100, spec.name)


def no_room(spec: StudySpec, box: str, sources: Sources) -> GpuNeed:  # noqa: ARG001
    """Stand in for one that finds the GPU too small."""
    raise OutOfMemory(f"CUDA out of memory in {spec.name}, {len(box)}")


def test_the_largest_trial_is_measured_in_a_process_with_a_whole_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, said = toy_spec(), list[str]()
    slots = cluster_slots(1, "auto", "auto", 2)
    assert slots == Slots(1, 1.0, 1, 2)
    monkeypatch.setattr(remote_probe, "_measure_memory", weigh)
    packed = pack(spec, slots, lambda: gpu_need_on_cluster(spec, slots, said.append))
    assert packed == Slots(1, 1 / 3, 3, 2, learns=True)
    monkeypatch.setattr(remote_probe, "_measure_memory", no_room)
    with pytest.raises(OutOfMemory):
        gpu_need_on_cluster(spec, slots, said.append)
    assert pack(spec, slots, lambda: gpu_need_on_cluster(spec, slots, said.append)) == slots
    assert gpu_need_on_cluster(spec, slots, said.append, lambda: True) is None  # the study is to stop


def run(trainer: Hungry, slots: Slots, trials: int = 6) -> tuple[Director, list[Event], list[tuple[str, float, int]]]:
    """Run a study; return its director, its journal and who ran with which share in which process."""
    spec = toy_spec(budget={"trials": trials, "epochs": trainer.epochs}, early_stopping="none")
    director, events = direct(spec)
    assert run_on_tune(director, trainer, slots) is StudyState.COMPLETED
    lines = (trainer.folder / "runs.jsonl").read_text().splitlines()
    return director, events, [(str(who), float(share), int(pid)) for who, share, pid in map(json.loads, lines)]


def test_a_trial_that_runs_out_of_memory_where_it_shares_is_retried_alone_and_later_ones_get_more(tmp_path: Path) -> None:
    director, events, runs = run(Hungry(tmp_path, large=(1,)), Slots(1, 1 / 3, 3, retries=0, learns=True))
    trial = director.record.trials["t0001"]
    assert (trial.state, trial.retries, trial.epochs) == (TrialState.COMPLETED, 1, 3)
    assert [round(share, 2) for who, share, _ in runs if who == "t0001"] == [0.33, 1.0]
    retried = [event for event in events if isinstance(event, TrialRetried)]
    assert [event.trial_id for event in retried] == ["t0001"]
    assert retried[0].reason.startswith("out of memory: CUDA out of memory")
    assert "a GPU that it shared" in retried[0].reason
    assert [(round(event.gpu, 2), event.concurrent) for event in events if isinstance(event, StudyPlaced)] == [
        (0.33, 3),
        (0.5, 2),
    ]
    assert {trial.state for trial in director.record.trials.values()} == {TrialState.COMPLETED}
    assert {len(found) for found in ends(events).values()} == {1}
    assert runs[-1][1] == pytest.approx(0.5)  # handed out after the study had learnt
    # It kept what it had: its first epoch was not trained again in another order.
    assert sorted(trial.reports) == [1, 2, 3]


def test_one_that_does_not_fit_alone_has_failed_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    director, events, runs = run(Hungry(tmp_path, impossible=(0,)), Slots(1, 0.5, 2, retries=2, learns=True), trials=4)
    trial = director.record.trials["t0000"]
    assert (trial.state, trial.retries) == (TrialState.FAILED, 1)
    assert trial.reason == "out of memory: CUDA out of memory. Tried to allocate 20 GiB"
    assert [share for who, share, _ in runs if who == "t0000"] == [0.5, 1.0]
    assert [trial.state for trial in director.record.trials.values()].count(TrialState.COMPLETED) == 3
    assert [event.gpu for event in events if isinstance(event, StudyPlaced)] == [0.5, 1.0]


def test_a_share_that_the_study_file_gives_stays(tmp_path: Path) -> None:
    director, events, runs = run(Hungry(tmp_path, large=(0,)), Slots(1, 0.5, 2, retries=0), trials=4)
    assert {trial.state for trial in director.record.trials.values()} == {TrialState.COMPLETED}
    assert [share for who, share, _ in runs if who == "t0000"] == [0.5, 1.0]
    assert {share for who, share, _ in runs if who != "t0000"} == {0.5}
    assert [event.gpu for event in events if isinstance(event, StudyPlaced)] == [0.5]


def test_trials_with_a_gpu_to_themselves_are_not_retried_and_processes_are_kept(tmp_path: Path) -> None:
    director, _, runs = run(Hungry(tmp_path, large=(), impossible=(1,)), Slots(1, 1.0, 1, retries=2), trials=4)
    trial = director.record.trials["t0001"]
    assert (trial.state, trial.retries) == (TrialState.FAILED, 0)
    assert len({pid for *_, pid in runs}) == 1
