"""What is shown while a study runs: a live table on a terminal, plain lines elsewhere.

First everything to be shown is computed into an immutable `Snapshot`, in the thread that owns the study; then it is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raystudy.event_lines import event_to_text
from raystudy.factors import Scalar
from raystudy.records import (
    Decided,
    Event,
    Reported,
    StudyEnded,
    StudyRecord,
    TrialEnded,
    TrialRecord,
    TrialResumed,
    TrialState,
)
from raystudy.spec import StudySpec
from raystudy.watcher import Watcher

if TYPE_CHECKING:
    from raystudy.search.director import Director

STATE_STYLES: Mapping[str, str] = {
    "running": "cyan",
    "completed": "green",
    "pruned": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "interrupted": "dim",
}


_REFRESH_S = 0.25
_COST_FACTOR = 20
"""A snapshot of thousands of trials takes tens of milliseconds: it is taken so rarely that this is a twentieth of the time."""


def duration(seconds: float) -> str:
    """Return a duration as people say it: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def value(number: Scalar) -> str:
    """Return a factor's value with the digits that matter."""
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def configuration(config: Mapping[str, Scalar]) -> str:
    """Return a configuration on one line."""
    return ", ".join(f"{name}={value(number)}" for name, number in config.items())


@dataclass(frozen=True, slots=True)
class Best:
    """The best trial so far."""

    trial_id: str
    score: float
    epoch: int
    state: str
    config: str


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the scheduler: how many trials reached it, went on, were stopped, were kept as hold-outs."""

    epoch: int
    reached: int
    stopped: int
    kept: int
    best: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is shown, at one moment."""

    name: str
    metric: str
    trials: int
    over: int
    counts: Mapping[str, int]
    epochs: int
    rungs: tuple[Rung, ...]
    best: Best | None
    started: float
    seconds_left: float | None

    @classmethod
    def of(cls, record: StudyRecord, spec: StudySpec, started: float, done_before: int) -> Snapshot:
        """Take a snapshot; `done_before` trials were over before the driver began at `started`."""
        over = sum(trial.state.is_over for trial in record.trials.values())
        return cls(
            name=spec.name,
            metric=spec.metric,
            trials=spec.budget.trials,
            over=over,
            counts=record.counts(),
            epochs=sum(len(trial.reports) for trial in record.trials.values()),
            rungs=_rungs(record, spec),
            best=_best(record, spec),
            started=started,
            seconds_left=_seconds_left(spec, over, started, done_before),
        )


def _seconds_left(spec: StudySpec, over: int, started: float, done_before: int) -> float | None:
    here = over - done_before
    rest = max(0, spec.budget.trials - over)  # a resume may have lowered the budget
    return (time.time() - started) / here * rest if here > 0 else None


def _best(record: StudyRecord, spec: StudySpec) -> Best | None:
    scored = [
        (rank, trial) for trial in record.trials.values() if _may_lead(trial) and (rank := _rank(trial, spec)) is not None
    ]
    return _as_best(max(scored, key=lambda row: row[0])[1], spec) if scored else None


def _may_lead(trial: TrialRecord) -> bool:
    return trial.state.ranks or trial.state is TrialState.RUNNING


def _rank(trial: TrialRecord, spec: StudySpec) -> tuple[float, int] | None:
    """Return what the best trial has most of, of equals the earlier one; None without a report."""
    score = trial.best_value(spec.metric, spec.mode)
    return None if score is None else (score if spec.mode == "max" else -score, -trial.number)


def _as_best(trial: TrialRecord, spec: StudySpec) -> Best:
    epoch = trial.best_epoch(spec.metric, spec.mode) or 0
    score = trial.reports[epoch].metrics[spec.metric]
    return Best(trial.trial_id, score, epoch, trial.state.value, configuration(trial.config))


class Lead:
    """The best trial so far, kept up event by event: to look through all trials at the end of each costs their square.

    Attributes:
        best: None before the first report.
    """

    def __init__(self, record: StudyRecord, spec: StudySpec) -> None:
        """Look through what there is; `record` goes on growing."""
        self._record, self._spec = record, spec
        self.best: Best | None = None
        self._rank: tuple[float, int] | None = None
        self._look_through()

    def take(self, event: Event) -> None:
        """Take notice of an event that is in the record already."""
        if isinstance(event, (Reported, TrialResumed)):
            trial = self._record.trials[event.trial_id]
            rank = _rank(trial, self._spec)
            if rank is not None and (self._rank is None or rank >= self._rank):
                self.best, self._rank = _as_best(trial, self._spec), rank
        elif isinstance(event, TrialEnded) and self.best is not None and event.trial_id == self.best.trial_id:
            self._look_through()

    def _look_through(self) -> None:
        self.best = _best(self._record, self._spec)
        self._rank = _rank(self._record.trials[self.best.trial_id], self._spec) if self.best is not None else None


def _rungs(record: StudyRecord, spec: StudySpec) -> tuple[Rung, ...]:
    by_epoch: dict[int, list[Decided]] = {}
    for trial in record.trials.values():
        for epoch, decision in trial.decisions.items():
            by_epoch.setdefault(epoch, []).append(decision)
    better = max if spec.mode == "max" else min
    return tuple(
        Rung(
            epoch,
            reached=len(decisions),
            stopped=sum(decision.stop for decision in decisions),
            kept=sum(decision.kept for decision in decisions),
            best=better(decision.value for decision in decisions),
        )
        for epoch, decisions in sorted(by_epoch.items())
    )


def draw(snapshot: Snapshot) -> RenderableType:
    """Draw a snapshot for a terminal."""
    elapsed = duration(time.time() - snapshot.started)
    left = "" if snapshot.seconds_left is None else f", about {duration(snapshot.seconds_left)} left"
    head = Text.assemble(
        (snapshot.name, "bold"), f"  {snapshot.over}/{snapshot.trials} trials, {snapshot.epochs} epochs, {elapsed}{left}"
    )
    parts: list[RenderableType] = [head, _bar(snapshot), _state_line(snapshot)]
    if snapshot.rungs:
        parts.append(_rung_table(snapshot))
    if snapshot.best:
        best = snapshot.best
        parts.append(
            Text.assemble(
                ("best ", "bold"),
                (f"{snapshot.metric} {best.score:.4f}", "bold green"),
                f"  {best.trial_id} at epoch {best.epoch}, {best.state}: {best.config}",
            )
        )
    return Group(*parts)


def _bar(snapshot: Snapshot, width: int = 60) -> Text:
    text, drawn = Text(), 0
    for state, style in STATE_STYLES.items():
        length = round(width * snapshot.counts.get(state, 0) / max(snapshot.trials, 1)) if state != "running" else 0
        text.append("━" * length, style=style)
        drawn += length
    text.append("━" * max(0, width - drawn), style="grey30")
    return text


def _state_line(snapshot: Snapshot) -> Text:
    return Text("  ").join(Text(f"{count} {state}", style=STATE_STYLES[state]) for state, count in snapshot.counts.items())


def _rung_table(snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("rung", "reached", "stopped", "held out", f"best {snapshot.metric}"):
        table.add_column(title, justify="right")
    for rung in snapshot.rungs:
        table.add_row(f"epoch {rung.epoch}", str(rung.reached), str(rung.stopped), str(rung.kept), f"{rung.best:.4f}")
    return table


class Drawing:
    """Redraws the latest snapshot whenever the terminal is refreshed, so that the clock runs on."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def __rich__(self) -> RenderableType:
        return draw(self.snapshot) if self.snapshot else Text("starting")


class LiveProgress(Watcher):
    """A table that stays in place."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._console, self._drawing = console, Drawing()
        self._live = Live(self._drawing, console=console, refresh_per_second=1 / _REFRESH_S)
        self._next = 0.0
        self._director: Director | None = None
        self._started = time.time()
        self._done_before = 0

    def say(self, text: str) -> None:
        """Show a line above the table."""
        self._console.print(Text(text, style="dim"))

    def begin(self, director: Director) -> None:
        """Show the table."""
        self._director, self._started = director, time.time()
        self._done_before = sum(trial.state.is_over for trial in director.record.trials.values())
        self._drawing.snapshot = Snapshot.of(director.record, director.spec, self._started, self._done_before)
        self._live.start()

    def __call__(self, event: Event) -> None:
        """Take a new snapshot, as often as it can be seen."""
        if self._director is None or not isinstance(event, (Reported, TrialEnded, Decided, StudyEnded)):
            return
        now = time.monotonic()
        if now > self._next or isinstance(event, StudyEnded):
            self._drawing.snapshot = Snapshot.of(self._director.record, self._director.spec, self._started, self._done_before)
            self._next = now + max(_REFRESH_S, _COST_FACTOR * (time.monotonic() - now))

    def end(self) -> None:
        """Leave the table as it is."""
        self._live.stop()


class PlainProgress(Watcher):
    """A line for each trial that ends: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        """Print on `console`."""
        self._console = console
        self._director: Director | None = None
        self._started = time.time()
        self._over = self._done_before = 0

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, director: Director) -> None:
        """Say what begins."""
        spec = director.spec
        self._director, self._started = director, time.time()
        self._over = self._done_before = sum(trial.state.is_over for trial in director.record.trials.values())
        self._lead = Lead(director.record, spec)
        rungs = ", ".join(map(str, director.asha.rungs)) or "none"
        self.say(f"{spec.name}: {spec.budget.trials} trials of up to {spec.budget.epochs} epochs, rungs at {rungs}")

    def __call__(self, event: Event) -> None:
        """Print trials that end."""
        if self._director is None:
            return
        self._lead.take(event)
        if isinstance(event, TrialEnded):
            self._over += event.state.is_over
            self._trial_line(self._director.record.trials[event.trial_id])
        elif isinstance(event, StudyEnded):
            self.say(f"study {event.state.value}" + (f": {event.reason}" if event.reason else ""))

    def _trial_line(self, trial: TrialRecord) -> None:
        assert self._director is not None
        spec, lead = self._director.spec, self._lead.best
        seconds_left = _seconds_left(spec, self._over, self._started, self._done_before)
        score = trial.last.get(spec.metric)
        scored = "" if score is None else f", {spec.metric} {score:.4f}"
        reason = f" ({trial.reason})" if trial.reason else ""
        left = "" if seconds_left is None else f", about {duration(seconds_left)} left"
        best = f"; best {lead.score:.4f} ({lead.trial_id})" if lead else ""
        place = f"[{self._over}/{spec.budget.trials}] {trial.trial_id}"
        self.say(f"{place} {trial.state.value} after epoch {trial.epochs}{scored}{reason}{best}{left}")


class EventStream(Watcher):
    """Every event as a line of JSON on standard output, and what is said as lines on standard error: for other programs."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        """Print to two files."""
        self._out, self._err = out, err

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._err, flush=True)

    def recount(self, history: Sequence[Event]) -> None:
        """Print what was before, so that whoever reads only this knows everything."""
        for event in history:
            print(event_to_text(event), file=self._out)
        self._out.flush()

    def __call__(self, event: Event) -> None:
        """Print an event."""
        print(event_to_text(event), file=self._out, flush=True)


def event_line(event: Event) -> str:
    """Return an event as one line of a log."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    data = event.to_json()
    for noise in ("kind", "time", "spec", "data", "table"):
        data.pop(noise, None)
    shown = []
    for name, part in data.items():
        if isinstance(part, dict):
            shown.append(configuration(part))
        elif part not in ("", None):
            shown.append(f"{name}={part}")
    return f"{moment}  {event.kind:<14} {'  '.join(shown)}"
