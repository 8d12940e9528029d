"""Brings the runs in MLflow to what the records say, writing only what is missing.

Every run carries the number of epochs that it holds as a tag that is written after them. So a writer that starts anew
needs one search to know what is there, and a write that was cut off is repeated: equal rows count once in MLflow.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from raystudy.errors import StudyBusyError
from raystudy.records import StudyRecord, TrialRecord, TrialState
from raystudy.tracking import names
from raystudy.tracking.address import redact
from raystudy.tracking.content import RunContent, journal_id, study_content, trial_content
from raystudy.tracking.store import Store, StoreDown, StoredRun, StoreRefused

_log = logging.getLogger(__name__)

_REFUSALS_ALLOWED = 3


@dataclass(slots=True)
class _Run:
    """What is known to be in MLflow of one run."""

    run_id: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    epochs: int = 0
    status: str = ""
    ended: int | None = None

    @classmethod
    def of(cls, stored: StoredRun) -> _Run:
        epochs = int(stored.tags.get(names.EPOCHS, "0"))
        return cls(stored.run_id, dict(stored.params), dict(stored.tags), epochs, stored.status, stored.ended)


class Mirror:
    """The runs of one study in one store."""

    def __init__(self, store: Store, record: StudyRecord) -> None:
        """Find or create the experiment and the parent run, and find the trials' runs.

        Raises:
            StoreDown: the store does not answer.
            StoreRefused: the experiment was deleted.
            StudyBusyError: the experiment holds a study of the same name from another journal.
        """
        self._store = store
        self.experiment_id = store.experiment_or_new(record.name)
        self._parent = self._find_parent(record)
        self._trials: dict[str, _Run] = {}
        self._refusals: dict[str, int] = {}
        self._maybe_created: set[str] = set()
        self.adopt()

    @property
    def run_id(self) -> str:
        """The id of the parent run."""
        return self._parent.run_id

    @property
    def run_ids(self) -> dict[str, str]:
        """The ids of the trials' runs by trial id."""
        return {trial_id: run.run_id for trial_id, run in self._trials.items()}

    @property
    def given_up(self) -> tuple[str, ...]:
        """The trials whose runs the store refused too often."""
        return tuple(trial_id for trial_id, count in self._refusals.items() if count >= _REFUSALS_ALLOWED)

    def adopt(self) -> None:
        """Learn which runs there are; delete those that a lost answer made double, keeping the fullest."""
        self._trials.clear()
        for stored in self._store.runs([self.experiment_id], names.TRIAL_KIND):
            trial_id, run = stored.tags.get(names.TRIAL_ID, ""), _Run.of(stored)
            other = self._trials.get(trial_id)
            if other is not None:
                run, double = (run, other) if run.epochs > other.epochs else (other, run)
                _log.warning("trial %s has two runs: deleting %s", trial_id, double.run_id)
                self._store.delete_run(double.run_id)
            self._trials[trial_id] = run
        self._maybe_created.clear()

    def write_trial(self, trial: TrialRecord, metric: str, mode: str) -> None:
        """Bring a trial's run to what `trial` says; on StoreDown it may be half done, and is to be repeated."""
        if trial.trial_id in self.given_up:
            return
        content = trial_content(trial, parent=self.run_id, metric=metric, mode=mode)
        try:
            self._write(self._run_of(trial.trial_id, content), content)
        except StoreRefused as error:
            self._refusals[trial.trial_id] = self._refusals.get(trial.trial_id, 0) + 1
            _log.error("trial %s: %s", trial.trial_id, error)
            # It may have been deleted by hand: look again, and write it anew if it is not there.
            self._maybe_created.add(trial.trial_id)
            self._trials.pop(trial.trial_id, None)
            self.write_trial(trial, metric, mode)

    def write_study(self, record: StudyRecord) -> None:
        """Bring the parent run to what `record` says."""
        self._write(self._parent, study_content(record))

    def _find_parent(self, record: StudyRecord) -> _Run:
        own = journal_id(record)
        parents = self._store.runs([self.experiment_id], names.STUDY_KIND)
        ours = sorted((run for run in parents if run.tags.get(names.JOURNAL_ID) == own), key=lambda run: run.run_id)
        for double in ours[1:]:
            self._store.delete_run(double.run_id)
        if ours:
            return _Run.of(ours[0])
        if parents:
            raise StudyBusyError(
                f"the tracking store {redact(self._store.uri)} already holds another study named {record.name!r}; "
                "give this one another name, or delete that experiment for good"
            )
        content = study_content(record)
        return _Run.of(self._store.create_run(self.experiment_id, content, content.tags))

    def _run_of(self, trial_id: str, content: RunContent) -> _Run:
        if trial_id in self._maybe_created:
            found = self._store.runs([self.experiment_id], names.TRIAL_KIND, trial_id=trial_id)
            if found:
                self._trials[trial_id] = _Run.of(max(found, key=lambda run: int(run.tags.get(names.EPOCHS, "0"))))
            self._maybe_created.discard(trial_id)
        if trial_id not in self._trials:
            self._trials[trial_id] = self._create(trial_id, content)
        return self._trials[trial_id]

    def _create(self, trial_id: str, content: RunContent) -> _Run:
        first = {tag: content.tags[tag] for tag in (names.PARENT, names.KIND, names.TRIAL_ID, names.NUMBER)}
        try:
            # Running whatever it is: nobody shall see a trial that is over and has no metrics yet.
            return _Run.of(self._store.create_run(self.experiment_id, content, first | {names.STATE: TrialState.RUNNING.value}))
        except StoreDown:
            # The answer may have been lost, not the request.
            self._maybe_created.add(trial_id)
            raise

    def _write(self, run: _Run, content: RunContent) -> None:
        params = {key: value for key, value in content.params.items() if run.params.get(key) != value}
        tags = {key: value for key, value in content.tags.items() if run.tags.get(key) != value}
        points = [point for point in content.points if point.step > run.epochs]
        if params or tags or points:
            self._store.write(run.run_id, points=points, params=params, tags=tags)
            run.params |= params
            run.tags |= tags
            run.epochs = int(content.tags.get(names.EPOCHS, "0"))
        if (run.status, run.ended) != (content.status, content.ended) and not _is_only_reopened(run, content):
            self._store.set_status(run.run_id, content.status, content.ended)
            run.status, run.ended = content.status, content.ended if content.ended is not None else run.ended


def _is_only_reopened(run: _Run, content: RunContent) -> bool:
    """Whether all that differs is the end of a run that runs again: MLflow cannot take an end back."""
    return content.ended is None and run.status == content.status
