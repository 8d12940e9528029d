"""Which checkpoints a study keeps while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress

from raystudy.paths import StudyPaths
from raystudy.records import Event, StudyRecord, TrialEnded, TrialRecord
from raystudy.spec import StudySpec


class CheckpointKeeper:
    """Deletes the checkpoints of trials that are over and not among the best, so that disk use does not grow with the study."""

    def __init__(self, spec: StudySpec, files: StudyPaths, history: Sequence[Event]) -> None:
        """Take over a study that has come as far as `history`."""
        self._spec, self._files, self._record = spec, files, StudyRecord.fold(history)
        self._best = self._record.ranking(spec.metric, spec.mode)[: spec.keep_models]
        for trial in self._record.trials.values():  # the last driver may have died before it deleted them
            if trial.state.is_over and trial not in self._best:
                self._delete(trial)

    def __call__(self, event: Event) -> None:
        """Delete what the end of a trial makes superfluous."""
        self._record.apply(event)
        if not isinstance(event, TrialEnded) or not event.state.is_over:
            return
        trial = self._record.trials[event.trial_id]
        if not trial.state.ranks:
            self._delete(trial)
            return
        contest = StudyRecord(trials={one.trial_id: one for one in (*self._best, trial)})
        ranking = contest.ranking(self._spec.metric, self._spec.mode)
        self._best = ranking[: self._spec.keep_models]
        for loser in ranking[self._spec.keep_models :]:
            self._delete(loser)

    def _delete(self, trial: TrialRecord) -> None:
        shutil.rmtree(self._files.checkpoints(trial.trial_id), ignore_errors=True)
        with suppress(OSError):  # on a disk that is read-only for a while; the next driver deletes what is left
            self._files.checkpoints(trial.trial_id).with_suffix(".lock").unlink(missing_ok=True)
