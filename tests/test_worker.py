from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from toys import ToyTrainer, ToyTraining

from raystudy.errors import Diverged, OutOfMemory
from raystudy.records import TrialState
from raystudy.search.worker import Step, Worker
from raystudy.work import Ticket

CONFIG = {"learning_rate": 0.01}


def ticket(number: int) -> Ticket:
    return Ticket(f"t{number:04d}", number, CONFIG)


def steps(worker: Worker, number: int, *, at_most: int = 10) -> list[Step]:
    """Step until the trial ends by itself."""
    worker.start(ticket(number))
    found: list[Step] = []
    while len(found) < at_most and (not found or found[-1].state is None):
        found.append(worker.step())
    return found


class Raising:
    """A trainer whose trials raise what they are given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def open(self, ticket: Ticket) -> Any:  # noqa: ARG002
        return self

    def epochs(self) -> Iterator[Mapping[str, float]]:
        raise self.error
        yield {}

    def close(self) -> None:
        pass


class Remembering(ToyTrainer):
    """Remembers the trials that it opened."""

    opened: list[ToyTraining]

    def open(self, ticket: Ticket) -> ToyTraining:
        training = super().open(ticket)
        self.opened.append(training)
        return training


def remembering(**options: Any) -> Remembering:
    trainer = Remembering(3, **options)
    object.__setattr__(trainer, "opened", [])
    return trainer


def test_a_step_is_an_epoch() -> None:
    found = steps(Worker(ToyTrainer(3)), 0, at_most=3)
    assert [step.metrics and step.metrics["epoch"] for step in found] == [1, 2, 3]
    assert all(step.state is None for step in found)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("boom"), TrialState.FAILED, "ValueError: boom"),
        (ValueError(), TrialState.FAILED, "ValueError:"),
        (MemoryError("no room"), TrialState.FAILED, "out of memory: no room"),
        (OutOfMemory("CUDA out of memory"), TrialState.FAILED, "out of memory: CUDA out of memory"),
        (Diverged("train_loss is nan in step 7"), TrialState.DIVERGED, "train_loss is nan in step 7"),
        (RuntimeError("two\n  lines"), TrialState.FAILED, "RuntimeError: two lines"),
        (AssertionError(), TrialState.FAILED, "AssertionError:"),
    ],
)
def test_every_way_to_end_has_its_state_and_a_reason_on_one_line(error: Exception, state: TrialState, reason: str) -> None:
    worker = Worker(Raising(error))
    worker.start(ticket(0))
    ended = Step(state=state, reason=reason, is_out_of_memory=reason.startswith("out of memory"))
    assert worker.step() == ended
    assert worker.step() == ended  # and stays so: whoever asks again is told the same


def test_a_reason_is_never_longer_than_a_tag_may_be() -> None:
    worker = Worker(Raising(ValueError("x" * 10_000)))
    worker.start(ticket(0))
    assert len(worker.step().reason) == 500


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interruption_is_not_the_trials_fault(interruption: BaseException) -> None:
    worker = Worker(Raising(interruption))
    worker.start(ticket(0))
    with pytest.raises(type(interruption)):
        worker.step()


def test_a_real_allocation_failure_is_out_of_memory() -> None:
    last = steps(Worker(ToyTrainer(3, {0: "allocate"})), 0)[-1]
    assert last.state is TrialState.FAILED
    assert last.reason.startswith("out of memory")


def test_a_trial_that_cannot_be_opened_fails_in_its_first_step() -> None:
    assert steps(Worker(ToyTrainer(3, {0: "unopenable"})), 0) == [Step(state=TrialState.FAILED, reason="ValueError: boom")]


def test_training_that_ends_before_its_budget_has_failed() -> None:
    last = steps(Worker(ToyTrainer(3, {0: "early_end"})), 0)[-1]
    assert last == Step(state=TrialState.FAILED, reason="training ended before its budget")


def test_nothing_is_opened_before_the_first_step() -> None:
    trainer = remembering()
    worker = Worker(trainer)
    worker.start(ticket(0))
    assert trainer.opened == []
    worker.step()
    assert len(trainer.opened) == 1


def test_the_trial_before_is_freed_before_the_next_one_starts() -> None:
    trainer = remembering()
    worker = Worker(trainer)
    worker.start(ticket(0))
    worker.step()
    worker.start(ticket(1))
    assert trainer.opened[0].is_closed
    worker.step()
    worker.close()
    worker.close()
    assert trainer.opened[1].is_closed


def test_a_trial_that_cannot_be_freed_does_not_harm_the_next_one(tmp_path: Path) -> None:
    worker = Worker(ToyTrainer(3, {0: "unclosable"}), logs=tmp_path)
    steps(worker, 0)
    metrics = steps(worker, 1, at_most=1)[0].metrics
    assert metrics is not None
    assert metrics["epoch"] == 1
    worker.close()
    assert "the device is gone" in (tmp_path / "t0000.log").read_text()


def test_a_failed_trial_does_not_harm_the_next_one() -> None:
    worker = Worker(ToyTrainer(3, {0: "raise"}))
    assert steps(worker, 0)[-1].state is TrialState.FAILED
    assert [step.state for step in steps(worker, 1, at_most=3)] == [None, None, None]


def test_a_step_needs_a_trial() -> None:
    with pytest.raises(RuntimeError, match="only after start"):
        Worker(ToyTrainer(3))._iterator()


def test_each_trial_has_its_own_log_with_its_configuration_and_the_traceback_of_its_end(tmp_path: Path) -> None:
    worker = Worker(ToyTrainer(3, {1: "raise"}), logs=tmp_path / "logs")
    steps(worker, 0, at_most=3)
    steps(worker, 1)
    worker.close()
    first, second = (tmp_path / "logs" / f"t000{number}.log" for number in (0, 1))
    assert "'learning_rate': 0.01" in first.read_text()
    assert "boom" not in first.read_text()
    assert "Traceback" in second.read_text()
    assert "trial ended: failed, ValueError: boom" in second.read_text()


def test_after_close_no_log_is_open(tmp_path: Path) -> None:
    before = list(logging.getLogger("raystudy").handlers)
    worker = Worker(ToyTrainer(3), logs=tmp_path)
    steps(worker, 0, at_most=1)
    assert logging.getLogger("raystudy").handlers != before
    worker.close()
    assert logging.getLogger("raystudy").handlers == before


def test_the_log_of_a_trial_that_is_handed_out_again_goes_on(tmp_path: Path) -> None:
    worker = Worker(ToyTrainer(3), logs=tmp_path)
    for _ in range(2):
        steps(worker, 0, at_most=1)
    worker.close()
    assert (tmp_path / "t0000.log").read_text().count("trial t0000 on") == 2


def test_the_worker_knows_its_host() -> None:
    assert Worker(ToyTrainer(1)).node == socket.gethostname()
