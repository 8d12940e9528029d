"""Journals as a study would write them, with times and metrics that are made up but fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raystudy.factors import Scalar
from raystudy.records import (
    Decided,
    Event,
    Reported,
    StudyEnded,
    StudyResumed,
    StudyStarted,
    StudyState,
    TrialEnded,
    TrialResumed,
    TrialRetried,
    TrialStarted,
    TrialState,
)
from raystudy.spec import StudySpec
from raystudy.tracking.journal import Journal

START = 1_700_000_000.0
SPEC: Mapping[str, Any] = {
    "name": "digits",
    "data": {"source": "sklearn:digits", "image_size": 32},
    "backbone": "efficientnet_lite0",
    "factors": {
        "learning_rate": {"log_uniform": [1e-4, 1e-1]},
        "optimizer": {"choice": ["sgd", "adamw"]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
        "frozen_depth": {"int": [0, 16]},
        "data_fraction": {"choice": [0.25, 1]},
        "pretrained": {"choice": [True, False]},
    },
    "budget": {"trials": 6, "epochs": 9},
    "keep_models": 1,
}


def spec_dict(**changes: Any) -> dict[str, Any]:
    """Return the study file as plain data, with `changes`."""
    return {**SPEC, **changes}


def config_of(number: int) -> dict[str, Scalar]:
    """Return the active factors of a trial."""
    config: dict[str, Scalar] = {
        "learning_rate": 10 ** -(1 + number / 7),
        "optimizer": "sgd" if number % 2 else "adamw",
        "frozen_depth": number % 17,
        "data_fraction": 1 if number % 3 else 0.25,
        "pretrained": number % 4 != 0,
    }
    if number % 2:
        config["momentum"] = 0.8 + number / 100
    return config


def metrics_of(number: int, epoch: int) -> dict[str, float]:
    """Return the metrics of an epoch; the best one is neither the first nor the last."""
    accuracy = 0.5 + 0.01 * (number * 7 % 11) + 0.03 * epoch - 0.004 * epoch * epoch
    return {
        "train_loss": 2.0 / (epoch + 1) + number / 100,
        "val_loss": 1 - accuracy / 3,
        "val_accuracy": accuracy,
        "val_macro_f1": accuracy - 0.01,
        "val_balanced_accuracy": accuracy - 0.005,
        "images_per_second": 200.0 + number + epoch / 3,
        "epoch_seconds": 4.25,
    }


class Clock:
    """A time that goes on by a bit more than a second whenever it is asked."""

    def __init__(self) -> None:
        self._now = START

    def __call__(self) -> float:
        self._now += 1.0137
        return self._now


def started(clock: Clock, spec: Mapping[str, Any] = SPEC) -> StudyStarted:
    """Return the first event."""
    fingerprint = StudySpec.from_dict(spec).fingerprint
    classes = [str(digit) for digit in range(10)]
    return StudyStarted(clock(), spec["name"], spec, fingerprint, "0.1.0", {"classes": classes})


def trial_events(
    clock: Clock, number: int, *, epochs: int = 9, state: TrialState = TrialState.COMPLETED, reason: str = ""
) -> Iterator[Event]:
    """Yield the life of a trial; it is left running if `state` says so."""
    trial_id = f"t{number:04d}"
    yield TrialStarted(clock(), trial_id, number, config_of(number))
    for epoch in range(1, epochs + 1):
        yield Reported(clock(), trial_id, epoch, metrics_of(number, epoch), "node-1")
        if epoch in (1, 3):
            value = metrics_of(number, epoch)["val_accuracy"]
            yield Decided(clock(), trial_id, epoch, (1.0,), value, (0.5,), False, number == 2, 0.05, "goes on")
    if state is not TrialState.RUNNING:
        yield TrialEnded(clock(), trial_id, state, reason)


def study_events(n_trials: int = 6, *, epochs: int = 9, spec: Mapping[str, Any] = SPEC) -> Iterator[Event]:
    """Yield a study in which trials end in every state, one is interrupted and goes on after a resume, one is retried."""
    clock = Clock()
    yield started(clock, spec)
    for number in range(n_trials):
        match number % 6:
            case 1:
                yield from trial_events(clock, number, epochs=3, state=TrialState.PRUNED, reason="below the cutoff 0.6")
            case 2:
                yield from trial_events(clock, number, epochs=1, state=TrialState.DIVERGED, reason="val_loss is nan")
            case 3:
                yield from _interrupted(clock, number, epochs, spec)
            case 4:
                yield from trial_events(clock, number, epochs=0, state=TrialState.FAILED, reason="RuntimeError: no «luck»")
            case _:
                yield from trial_events(clock, number, epochs=epochs)
    yield StudyEnded(clock(), StudyState.COMPLETED, "")


def _interrupted(clock: Clock, number: int, epochs: int, spec: Mapping[str, Any]) -> Iterator[Event]:
    trial_id = f"t{number:04d}"
    yield from trial_events(clock, number, epochs=2, state=TrialState.INTERRUPTED, reason="Ctrl-C")
    yield StudyEnded(clock(), StudyState.INTERRUPTED, "Ctrl-C")
    yield StudyResumed(clock(), spec, "0.1.0")
    yield TrialResumed(clock(), trial_id)
    yield TrialRetried(clock(), trial_id, "its process died")
    # After a crash the last known epoch comes again, with another time of day: it does not count.
    yield Reported(clock(), trial_id, 2, {**metrics_of(number, 2), "epoch_seconds": 99.0}, "node-2")
    for epoch in range(3, epochs + 1):
        yield Reported(clock(), trial_id, epoch, metrics_of(number, epoch), "node-2")
    yield TrialEnded(clock(), trial_id, TrialState.COMPLETED, "")


def write_journal(path: Path, events: Iterator[Event] | list[Event]) -> list[Event]:
    """Append `events` to the journal at `path` and return them."""
    written = list(events)
    with Journal(path) as journal:
        for event in written:
            journal.append(event)
    return written
