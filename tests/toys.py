"""Trials that need no training: learning curves by formula, mishaps on demand. At module level, so that they pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raystudy.factors import Scalar
from raystudy.records import Event, Observer, StudyRecord, StudyResumed, StudyStarted, TrialEnded, TrialRecord, TrialState
from raystudy.search.director import Director
from raystudy.search.inline import run_inline
from raystudy.search.worker import Worker
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.work import Ticket

N_UNITS = 6
START = 1_700_000_000.0

Mishap = Literal[
    "nan",
    "raise",
    "kill",
    "kill_once",
    "kill_at_close",
    "hold_once",
    "memory",
    "allocate",
    "early_end",
    "unopenable",
    "unclosable",
    "interrupt",
]


def toy_spec(**changes: Any) -> StudySpec:
    """Return a small study; `changes` replace whole sections of the study file."""
    return StudySpec.from_dict(
        {
            "name": "toy",
            "data": {"source": "sklearn:digits", "image_size": 32},
            "backbone": "efficientnet_lite0",
            "factors": {
                "learning_rate": {"log_uniform": [1e-4, 1e-1]},
                "optimizer": {"choice": ["sgd", "adamw"]},
                "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
                "data_fraction": {"choice": [0.5, 1.0]},
            },
            "budget": {"trials": 8, "epochs": 4},
            "search": {"sampler": "random", "seed": 1, "startup_trials": 3},
            "early_stopping": {"grace": 1, "reduction": 2, "keep": 0.2},
            **changes,
        }
    )


def score(config: Mapping[str, Scalar], number: int, epoch: int) -> float:
    """Return a made-up validation accuracy: a curve over epochs, a hill over learning rates, noise that the inputs decide."""
    rate = math.log10(float(config["learning_rate"]))
    noise = hashlib.sha256(json.dumps([sorted(config.items()), number, epoch]).encode()).digest()[0] / 255
    share = float(config.get("data_fraction", 1.0))
    return 0.3 + 0.4 * share * (1 - 0.6**epoch) - 0.05 * (rate + 2.5) ** 2 + 0.05 * noise


@dataclass(frozen=True)
class ToyTrainer:
    """Opens toy trials.

    Attributes:
        epochs: the budget of a trial.
        mishaps: what happens to a trial, by its number.
        at_epoch: the epoch in which it happens.
        folder: where trials checkpoint; None: they begin again from the first epoch.
        tells_pid: report the process id as a metric.
        stores: as if the output of frozen units were stored: note in `folder` on which node of Ray each trial began.
    """

    epochs: int
    mishaps: Mapping[int, Mishap] = field(default_factory=dict)
    at_epoch: int = 2
    folder: Path | None = None
    tells_pid: bool = False
    stores: bool = False

    def open(self, ticket: Ticket) -> ToyTraining:
        """Prepare a trial."""
        if self.mishaps.get(ticket.number) == "unopenable":
            raise ValueError("boom")
        return ToyTraining(self, ticket)

    def checkpoint(self, trial_id: str) -> Path:
        """Return the file with the last epoch of a trial."""
        assert self.folder is not None
        return self.folder / trial_id / "last.json"


class ToyTraining:
    """One toy trial."""

    def __init__(self, trainer: ToyTrainer, ticket: Ticket) -> None:
        self._trainer, self._ticket = trainer, ticket
        self.is_closed = False

    def epochs(self) -> Iterator[Mapping[str, float]]:
        """Yield the rows; the one of the last checkpoint comes again."""
        done = self._last_epoch()
        if self._trainer.stores:
            self._note_node("began")
        if done:
            yield self._row(done)
        for epoch in range(done + 1, self._trainer.epochs + 1):
            if epoch == self._trainer.at_epoch and (mishap := self._trainer.mishaps.get(self._ticket.number)):
                if mishap == "early_end":
                    return
                if mishap == "nan":
                    yield {**self._row(epoch), "val_loss": math.nan}
                self._suffer(mishap)
            self._save(epoch)
            yield self._row(epoch)

    def close(self) -> None:
        """Be closed."""
        self.is_closed = True
        if self._trainer.mishaps.get(self._ticket.number) == "kill_at_close":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._trainer.mishaps.get(self._ticket.number) == "unclosable":
            raise RuntimeError("the device is gone")

    def _row(self, epoch: int) -> dict[str, float]:
        value = score(self._ticket.config, self._ticket.number, epoch)
        row = {"epoch": epoch, "train_loss": 2 - value, "val_loss": 1 - value, "val_accuracy": value}
        if self._trainer.stores:
            row["stored_units"] = int(self._ticket.config["frozen_depth"])
        return {**row, "pid": os.getpid()} if self._trainer.tells_pid else row

    def _suffer(self, mishap: Mishap) -> None:
        match mishap:
            case "raise":
                raise ValueError("boom")
            case "memory":
                raise MemoryError("no room for 12 tensors")
            case "allocate":
                bytearray(1 << 62)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill_once":
                if _is_first_time(self._trainer.checkpoint(self._ticket.trial_id).with_name("killed")):
                    os.kill(os.getpid(), signal.SIGKILL)
            case "hold_once":
                if _is_first_time(self._trainer.checkpoint(self._ticket.trial_id).with_name("held")):
                    self._hold()
            case "interrupt":
                if _is_first_time(self._trainer.checkpoint(self._ticket.trial_id).with_name("interrupted")):
                    os.kill(os.getpid(), signal.SIGINT)

    def _hold(self) -> None:
        """Say on which node of Ray this is, and wait for its end, or until the file `release` is there."""
        place = self._note_node("node")
        deadline = time.monotonic() + 300
        while not place.with_name("release").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nobody ended the node")
            time.sleep(0.05)

    def _note_node(self, name: str) -> Path:
        import ray

        place = self._trainer.checkpoint(self._ticket.trial_id).with_name(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".tmp").write_text(ray.get_runtime_context().get_node_id())
        place.with_suffix(".tmp").rename(place)
        return place

    def _last_epoch(self) -> int:
        if self._trainer.folder is None:
            return 0
        file = self._trainer.checkpoint(self._ticket.trial_id)
        return int(json.loads(file.read_text())) if file.exists() else 0

    def _save(self, epoch: int) -> None:
        if self._trainer.folder is not None:
            file = self._trainer.checkpoint(self._ticket.trial_id)
            file.parent.mkdir(parents=True, exist_ok=True)
            scratch = file.with_name(f"{os.getpid()}.tmp")  # as real checkpoints do: others may read at any moment
            scratch.write_text(json.dumps(epoch))
            scratch.replace(file)


def _is_first_time(mark: Path) -> bool:
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Clock:
    """A time that goes on by `step` seconds whenever it is asked."""

    def __init__(self, start: float = START, step: float = 1.0) -> None:
        self.now, self.step = start, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def started(spec: StudySpec) -> StudyStarted:
    """Return the first event of the study's journal."""
    return StudyStarted(START, spec.name, spec.to_dict(), spec.fingerprint, "0.1.0")


def resumed(spec: StudySpec, history: Sequence[Event]) -> list[Event]:
    """Return what a new driver finds and adds at its start."""
    return [*history, StudyResumed(history[-1].time + 1000, spec.to_dict(), "0.1.0")]


def direct(
    spec: StudySpec, history: Sequence[Event] = (), *, clock: Clock | None = None, observers: Sequence[Observer] = ()
) -> tuple[Director, list[Event]]:
    """Return a director, and the journal that it appends to, which begins with `history`."""
    journal = [*history] or [started(spec)]
    clock = clock or Clock(journal[-1].time)
    director = Director(
        spec, Space.of(spec, n_units=N_UNITS), append=journal.append, history=tuple(journal), observers=observers, now=clock
    )
    return director, journal


def conduct(spec: StudySpec, trainer: ToyTrainer, history: Sequence[Event] = ()) -> tuple[Director, list[Event]]:
    """Run a study with one worker to its end, from `history` on."""
    director, journal = direct(spec, history)
    run_inline(director, Worker(trainer))
    return director, journal


def run_on(director: Director, trainer: ToyTrainer, *, trials: int) -> None:
    """Run at most `trials` trials, one after another, and leave the study open."""
    worker = Worker(trainer)
    for _ in range(trials):
        trial = director.next_trial()
        if trial is None:
            return
        worker.start(Ticket(trial.trial_id, trial.number, director.config(trial)))
        while (step := worker.step()).metrics is not None:
            if not director.report(trial.trial_id, step.metrics):
                break
        else:
            director.end(trial.trial_id, step.state or TrialState.FAILED, step.reason)


def epochs_of(trainer: ToyTrainer, director: Director, trial: TrialRecord) -> Iterator[Mapping[str, float]]:
    """Yield what a trial reports."""
    return trainer.open(Ticket(trial.trial_id, trial.number, director.config(trial))).epochs()


def timeless(event: Event) -> dict[str, Any]:
    """Return an event as plain data without its time, its host and how long that took."""
    return {name: value for name, value in event.to_json().items() if name not in ("time", "node", "seconds")}


def stream(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return events without times and hosts."""
    return [timeless(event) for event in events]


def table(record: StudyRecord) -> dict[str, dict[str, Any]]:
    """Return the final table of a study: all that counts, without times and hosts."""
    return {trial_id: _row_of(trial) for trial_id, trial in record.trials.items()}


def _row_of(trial: TrialRecord) -> dict[str, Any]:
    return {
        "number": trial.number,
        "config": dict(trial.config),
        "state": trial.state,
        "reason": trial.reason,
        "reports": {epoch: dict(report.metrics) for epoch, report in trial.reports.items()},
        "decisions": {epoch: timeless(decision) for epoch, decision in trial.decisions.items()},
    }


def ends(events: Iterable[Event]) -> dict[str, list[TrialEnded]]:
    """Return the ends of each trial, interruptions left out."""
    found: dict[str, list[TrialEnded]] = {}
    for event in events:
        if isinstance(event, TrialEnded) and event.state.is_over:
            found.setdefault(event.trial_id, []).append(event)
    return found
