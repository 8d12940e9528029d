"""The director: the one place where a study is decided, whoever runs the trials.

Ray Tune, the inline loop and a resume all ask the same three questions: what next (`next_trial`), does it go on
(`report`), and it ended like this (`end`). Every answer is an event in the journal before anybody acts on it (rule 1),
and the director's whole state is rebuilt from those events.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping, Sequence

from raystudy.factors import Scalar
from raystudy.records import (
    Decided,
    Event,
    Observer,
    Reported,
    StudyEnded,
    StudyPaused,
    StudyPlaced,
    StudyRecord,
    StudyState,
    TrialEnded,
    TrialRecord,
    TrialResumed,
    TrialRetried,
    TrialStarted,
    TrialState,
)
from raystudy.search.asha import Asha
from raystudy.search.sampler import Sampler
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.storage import Pause


class Director:
    """Proposes, judges and ends trials. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        spec: StudySpec,
        space: Space,
        *,
        append: Callable[[Event], Pause | None],
        history: Sequence[Event],
        observers: Sequence[Observer] = (),
        now: Callable[[], float] = clock.time,
    ) -> None:
        """Take over a study.

        Args:
            spec: the study.
            space: its search space.
            append: writes an event to the journal, however long that takes; raises if it cannot.
            history: the events that are in the journal already, `StudyStarted` first.
            observers: told of every new event.
            now: the time in seconds since 1970.
        """
        self.spec, self.space = spec, space
        self.record = StudyRecord()
        self.sampler = Sampler(spec, space)
        self.asha = Asha(spec)
        self.stop_reason = self.failure = ""
        self._append, self._observers, self._now = append, observers, now
        self._exhausted = False
        self._running: set[str] = set()
        self._repeating: dict[str, float] = {}
        for event in history:
            self._replay(event)
        self._close_decided()
        self._unfinished = [trial for trial in self.record.trials.values() if not trial.state.is_over]

    # What runs next

    def next_trial(self) -> TrialRecord | None:
        """Hand out a trial, one left unfinished by an earlier driver first; None if there is none to hand out."""
        if self.is_exhausted:
            return None
        if self._unfinished:
            trial = self._unfinished.pop(0)
            self._emit(TrialResumed(self._now(), trial.trial_id))
        else:
            started = self._propose()
            if started is None:
                return None
            trial = started
        self._running.add(trial.trial_id)
        return trial

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial will ever be handed out again (running ones may still report)."""
        if self.must_stop:
            return True
        return not self._unfinished and (self._exhausted or len(self.record.trials) >= self.spec.budget.trials)

    @property
    def must_stop(self) -> bool:
        """Whether the study has been asked to stop, or has used up its time."""
        self.stop_reason = self.stop_reason or self._spent()
        return bool(self.stop_reason)

    @property
    def running(self) -> int:
        """How many trials are handed out and not over."""
        return len(self._running)

    @property
    def left(self) -> int:
        """How many trials could still be handed out."""
        if self.is_exhausted:
            return 0
        return len(self._unfinished) + max(0, self.spec.budget.trials - len(self.record.trials))

    def config(self, trial: TrialRecord) -> dict[str, Scalar]:
        """Return every hyperparameter of a trial."""
        return self.spec.full_config(trial.config)

    # What became of it

    def report(self, trial_id: str, metrics: Mapping[str, float], *, node: str = "", seconds: float = 0.0) -> bool:
        """Take in the metrics of an epoch; return whether the trial goes on.

        A report that the journal holds already (repeated after a crash) changes nothing, but is still answered.
        """
        trial = self.record.trials[trial_id]
        if trial.state.is_over:
            return False
        epoch = int(metrics["epoch"])
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            self.end(trial_id, TrialState.DIVERGED, f"{broken[0]} is {values[broken[0]]} at epoch {epoch}")
            return False
        if self.spec.metric not in values:
            self.end(trial_id, TrialState.FAILED, f"it reported no {self.spec.metric} at epoch {epoch}")
            return False
        seconds += self._repeating.pop(trial_id, 0.0)
        if epoch in trial.reports:
            self._repeating[trial_id] = seconds  # it counts with the next report
        else:
            self._emit(Reported(self._now(), trial_id, epoch, values, node, seconds))
        return self._judge(trial, epoch)

    def place(self, *, cpu: int, gpu: float, concurrent: int) -> None:
        """Record what a trial gets on the machines at hand, and how many run at a time."""
        self._emit(StudyPlaced(self._now(), cpu, gpu, concurrent))

    def retry(self, trial_id: str, reason: str) -> None:
        """Record that a trial's process died and the trial is handed out again."""
        self._emit(TrialRetried(self._now(), trial_id, reason))

    def end(self, trial_id: str, state: TrialState, reason: str) -> None:
        """End a trial; the first end counts."""
        if not self.record.trials[trial_id].state.is_over:
            self._emit(TrialEnded(self._now(), trial_id, state, reason))
        self._running.discard(trial_id)

    # The study as a whole

    def request_stop(self, reason: str) -> None:
        """Ask the study to stop as soon as it can; safe to call from a signal handler."""
        self.stop_reason = self.stop_reason or reason

    def fail(self, reason: str) -> None:
        """Stop the study as failed: it cannot go on."""
        self.failure = self.stop_reason = reason

    def finish(self) -> StudyState:
        """End the study, interrupt what still runs, and say how it went."""
        for trial in list(self.record.trials.values()):
            if trial.state is TrialState.RUNNING:
                self.end(trial.trial_id, TrialState.INTERRUPTED, self.stop_reason or "the study ended")
        state, reason = self._outcome()
        self._emit(StudyEnded(self._now(), state, reason))
        return state

    def _outcome(self) -> tuple[StudyState, str]:
        if self.failure:
            return StudyState.FAILED, self.failure
        if self.stop_reason and not self._spent():
            return StudyState.INTERRUPTED, self.stop_reason
        if not any(trial.state.ranks for trial in self.record.trials.values()):
            reasons = sorted({trial.reason for trial in self.record.trials.values() if trial.reason})
            return StudyState.FAILED, "no trial gave a result" + (f": {reasons[0]}" if reasons else "")
        return StudyState.COMPLETED, self.stop_reason

    def _spent(self) -> str:
        """Say which budget is used up, nothing if there is some left of each."""
        budget, record = self.spec.budget, self.record
        if budget.gpu_hours is not None and record.gpu_seconds >= budget.gpu_hours * 3600:
            return f"the budget of {budget.gpu_hours:g} GPU-hours is used up"
        if budget.hours is None or not record.last_time:
            return ""
        seconds = record.busy_seconds + (self._now() - record.last_time)
        return f"the time budget of {budget.hours:g} hours is used up" if seconds > budget.hours * 3600 else ""

    def _propose(self) -> TrialRecord | None:
        number = len(self.record.trials)
        trial_id = f"t{number:04d}"
        config = self.sampler.propose(number, trial_id)
        if config is None:
            self._exhausted = True
            return None
        self._emit(TrialStarted(self._now(), trial_id, number, config))
        return self.record.trials[trial_id]

    def _judge(self, trial: TrialRecord, epoch: int) -> bool:
        decision = trial.decisions.get(epoch)
        if decision is None:
            value = trial.reports[epoch].metrics[self.spec.metric]
            decision = self.asha.decide(trial, epoch=epoch, value=value, time=self._now())
            if decision is not None:
                self._emit(decision)
        if decision is not None and decision.stop:
            self.end(trial.trial_id, TrialState.PRUNED, decision.reason)
        elif epoch >= self.spec.budget.epochs:
            self.end(trial.trial_id, TrialState.COMPLETED, "")
        return not trial.state.is_over

    def _close_decided(self) -> None:
        """End the trials whose fate was in the journal when the last driver died."""
        for trial in list(self.record.trials.values()):
            # A last report that has no decision yet is judged when the trial, handed out again, repeats it.
            if not trial.state.is_over and (trial.epochs in trial.decisions or trial.epochs >= self.spec.budget.epochs):
                self._judge(trial, trial.epochs)

    # Events

    def _emit(self, event: Event) -> None:
        pause = self._append(event)
        self._take_in(event)
        for observer in self._observers:
            observer(event)
        if pause is not None and not isinstance(event, StudyEnded):  # that one is the last
            self._emit(StudyPaused(self._now(), pause.seconds, pause.reason))

    def _replay(self, event: Event) -> None:
        if isinstance(event, TrialStarted):
            self.sampler.adopt(event.number, event.trial_id, event.config)
        self._take_in(event)

    def _take_in(self, event: Event) -> None:
        """Let an event that is in the journal take effect."""
        match event:
            case Reported() if event.epoch not in self.record.trials[event.trial_id].reports:
                self.sampler.report(event.trial_id, event.epoch, event.metrics[self.spec.metric])
            case Decided():
                self.asha.record(event)
            case TrialEnded() if event.state.is_over:
                value = self.record.trials[event.trial_id].last.get(self.spec.metric)
                self.sampler.tell(event.trial_id, event.state, value)
            case _:
                pass
        self.record.apply(event)
