"""What a study is made of: states, events, and the records that events add up to.

The events are the study. The journal stores them in order; the director, the MLflow writer, the progress display and
every query fold the same events into the same records with `StudyRecord.apply`, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from raystudy.errors import JournalError
from raystudy.factors import Scalar

Config = Mapping[str, Scalar]
"""The active factors of one trial, by name."""


class TrialState(StrEnum):
    """Where a trial is in its life."""

    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_over(self) -> bool:
        """Whether the trial will never report again (an interrupted one may, after a resume)."""
        return self not in (TrialState.RUNNING, TrialState.INTERRUPTED)

    @property
    def ranks(self) -> bool:
        """Whether the trial can be the best one (rule 3: a diverged trial never ranks)."""
        return self in (TrialState.COMPLETED, TrialState.PRUNED)


class StudyState(StrEnum):
    """Where a study is in its life."""

    RUNNING = "running"
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    QUEUED = "queued"
    """Submitted to a cluster and not started yet; no journal holds this state."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, at `time` (seconds since 1970, UTC)."""

    kind: ClassVar[str] = ""
    time: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the journal."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class StudyStarted(Event):
    """The first event of every journal.

    Attributes:
        name: the study's name.
        spec: the whole study file, as plain data.
        fingerprint: identifies what decides the results; a resume must match it.
        version: of raystudy.
        data: what was found in the images and the backbones: classes, counts, skipped images, fingerprint, units.
        owner: who submitted it.
    """

    kind: ClassVar[str] = "study_started"
    name: str
    spec: Mapping[str, Any]
    fingerprint: str
    version: str
    data: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""


@dataclass(frozen=True, slots=True)
class StudyResumed(Event):
    """A new driver took over; `spec` may extend the budget but keeps the fingerprint."""

    kind: ClassVar[str] = "study_resumed"
    spec: Mapping[str, Any]
    version: str


@dataclass(frozen=True, slots=True)
class StudyPlaced(Event):
    """What `auto` came to on the machines at hand: CPUs and GPUs per trial, trials at a time at most."""

    kind: ClassVar[str] = "study_placed"
    cpu: int
    gpu: float
    concurrent: int


@dataclass(frozen=True, slots=True)
class StudyPaused(Event):
    """The storage could not be written for `seconds`, which are over; they are no part of the study's time."""

    kind: ClassVar[str] = "study_paused"
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class TrialStarted(Event):
    """A trial was proposed and handed out."""

    kind: ClassVar[str] = "trial_started"
    trial_id: str
    number: int
    config: Config


@dataclass(frozen=True, slots=True)
class TrialResumed(Event):
    """A trial that an earlier driver left unfinished was handed out again, under its old id."""

    kind: ClassVar[str] = "trial_resumed"
    trial_id: str


@dataclass(frozen=True, slots=True)
class TrialRetried(Event):
    """The trial's process died and the trial was handed out again."""

    kind: ClassVar[str] = "trial_retried"
    trial_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reported(Event):
    """One row of metrics at the end of an epoch, and the host it was made on. All values are finite (rule 3).

    `seconds`: how long the trial has held its CPUs and GPUs since the report before, or since it was handed out.
    """

    kind: ClassVar[str] = "reported"
    trial_id: str
    epoch: int
    metrics: Mapping[str, float]
    node: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Decided(Event):
    """What the scheduler decided at a rung, with the table it saw.

    Attributes:
        trial_id: the trial.
        epoch: the rung.
        cell: values of the factors within which trials are compared (rule 4).
        value: what the trial reported there.
        table: the values already in this rung of this cell, in order of arrival, without `value`; empty where they are many,
            as they are then the first `seen` values decided in this rung and cell before.
        stop: whether the trial ends here.
        kept: whether it would have been stopped but goes on as a hold-out (rule 5).
        keep_probability: probability with which a would-be-stopped trial is kept.
        reason: the decision in words.
        seen: how many values the table has.
    """

    kind: ClassVar[str] = "decided"
    trial_id: str
    epoch: int
    cell: tuple[Scalar | None, ...]
    value: float
    table: tuple[float, ...]
    stop: bool
    kept: bool
    keep_probability: float
    reason: str
    seen: int = 0


@dataclass(frozen=True, slots=True)
class TrialEnded(Event):
    """The trial is over, or interrupted; `reason` says why in words."""

    kind: ClassVar[str] = "trial_ended"
    trial_id: str
    state: TrialState
    reason: str


@dataclass(frozen=True, slots=True)
class StudyEnded(Event):
    """The study is over, or interrupted."""

    kind: ClassVar[str] = "study_ended"
    state: StudyState
    reason: str


EVENTS: Mapping[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        StudyStarted,
        StudyResumed,
        StudyPlaced,
        StudyPaused,
        TrialStarted,
        TrialResumed,
        TrialRetried,
        Reported,
        Decided,
        TrialEnded,
        StudyEnded,
    )
}


def event_from_json(data: Mapping[str, Any]) -> Event:
    """Rebuild an event from the journal's plain data; raise JournalError for an unknown or incomplete one."""
    values = dict(data)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in EVENTS:
        raise JournalError(f"unknown event {kind!r}: the journal was written by a newer version of raystudy")
    try:
        if kind == Decided.kind:
            values["cell"], values["table"] = tuple(values["cell"]), tuple(values["table"])
        if kind == TrialEnded.kind:
            values["state"] = TrialState(values["state"])
        if kind == StudyEnded.kind:
            values["state"] = StudyState(values["state"])
        return EVENTS[kind](**values)
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"event {kind!r} does not fit this version of raystudy: {error}") from error


@dataclass(slots=True)
class TrialRecord:
    """Everything known about one trial. `reports` is ordered by epoch, one row an epoch."""

    trial_id: str
    number: int
    config: Config
    started: float
    state: TrialState = TrialState.RUNNING
    reason: str = ""
    ended: float | None = None
    node: str = ""
    retries: int = 0
    gpu_seconds: float = 0.0
    """GPUs held times seconds, up to the last report."""
    reports: dict[int, Reported] = field(default_factory=dict)
    decisions: dict[int, Decided] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """The last epoch reported, 0 before the first."""
        return max(self.reports, default=0)

    @property
    def last(self) -> Mapping[str, float]:
        """The metrics of the last report, empty before the first."""
        return self.reports[self.epochs].metrics if self.reports else {}

    def best_epoch(self, metric: str, mode: str) -> int | None:
        """Return the epoch with the best `metric`, the earliest of equals; None without a report."""
        rows = [(epoch, report.metrics[metric]) for epoch, report in self.reports.items() if metric in report.metrics]
        if not rows:
            return None
        sign = 1.0 if mode == "max" else -1.0
        return max(rows, key=lambda row: (sign * row[1], -row[0]))[0]

    def best_value(self, metric: str, mode: str) -> float | None:
        """Return the best `metric` over the epochs; None without a report."""
        epoch = self.best_epoch(metric, mode)
        return None if epoch is None else self.reports[epoch].metrics[metric]

    @property
    def kept(self) -> bool:
        """Whether the trial goes on only as a hold-out (rule 5)."""
        return any(decision.kept for decision in self.decisions.values())


@dataclass(slots=True)
class StudyRecord:
    """A study as its events so far tell it."""

    name: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    version: str = ""
    owner: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    gpus_per_trial: float = 0.0
    state: StudyState = StudyState.RUNNING
    reason: str = ""
    started: float = 0.0
    ended: float | None = None
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    busy_seconds: float = 0.0
    """Wall time during which a driver was at work, over all resumes."""
    gpu_seconds: float = 0.0
    """GPUs held times seconds, over all trials."""
    last_time: float = 0.0

    @property
    def n_units(self) -> int | None:
        """The number of units of the smallest backbone; None in journals of earlier versions."""
        return self.data.get("units")

    @classmethod
    def fold(cls, events: Iterable[Event]) -> StudyRecord:
        """Return the record that `events` add up to."""
        record = cls()
        for event in events:
            record.apply(event)
        return record

    def apply(self, event: Event) -> None:
        """Take in one event, in journal order."""
        if self.last_time and not isinstance(event, StudyResumed):
            self.busy_seconds += max(0.0, event.time - self.last_time)
        self.last_time = event.time
        match event:
            case StudyStarted():
                self.name, self.spec, self.fingerprint = event.name, event.spec, event.fingerprint
                self.version, self.data, self.started = event.version, event.data, event.time
                self.owner = event.owner
            case StudyPlaced():
                self.gpus_per_trial = event.gpu
            case StudyResumed():
                self.spec, self.version = event.spec, event.version
                self.state, self.ended, self.reason = StudyState.RUNNING, None, ""
            case StudyPaused():
                self.busy_seconds = max(0.0, self.busy_seconds - event.seconds)
            case StudyEnded():
                self.state, self.reason, self.ended = event.state, event.reason, event.time
            case TrialStarted():
                self.trials[event.trial_id] = TrialRecord(event.trial_id, event.number, event.config, event.time)
            case _:
                self._apply_to_trial(event)

    def _apply_to_trial(self, event: Event) -> None:
        match event:
            case TrialResumed():
                trial = self.trials[event.trial_id]
                trial.state, trial.ended, trial.reason = TrialState.RUNNING, None, ""
            case TrialRetried():
                self.trials[event.trial_id].retries += 1
            case Reported():
                trial = self.trials[event.trial_id]
                trial.gpu_seconds += event.seconds * self.gpus_per_trial
                self.gpu_seconds += event.seconds * self.gpus_per_trial
                trial.reports.setdefault(event.epoch, event)
                trial.node = event.node or trial.node
            case Decided():
                self.trials[event.trial_id].decisions[event.epoch] = event
            case TrialEnded():
                trial = self.trials[event.trial_id]
                trial.state, trial.reason, trial.ended = event.state, event.reason, event.time

    def count(self, state: TrialState) -> int:
        """Return how many trials are in `state`."""
        return sum(trial.state is state for trial in self.trials.values())

    def counts(self) -> dict[str, int]:
        """Return the number of trials by state, states without trials left out."""
        return {state.value: count for state in TrialState if (count := self.count(state))}

    def ranking(self, metric: str, mode: str) -> list[TrialRecord]:
        """Return the trials that rank, best first; of equals the earlier trial first."""
        sign = -1.0 if mode == "max" else 1.0
        scored = [
            (sign * value, trial.number, trial)
            for trial in self.trials.values()
            if trial.state.ranks and (value := trial.best_value(metric, mode)) is not None
        ]
        return [trial for *_, trial in sorted(scored, key=lambda row: row[:2])]


class Observer(Protocol):
    """Somebody who is told of every event after it is in the journal; must not raise, must not block."""

    def __call__(self, event: Event) -> None:
        """Take notice of `event`."""
