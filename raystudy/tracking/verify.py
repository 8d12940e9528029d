"""Does MLflow hold exactly what the journal says? And if not, make it so.

What should be there comes from `content`, the same that the writer writes by; what is there is read value by value, every
row of every metric's history. Repair removes what is too much and lets the writer write what is missing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from filelock import FileLock, Timeout

from raystudy.errors import NotFoundError, StudyBusyError, UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import StudyRecord
from raystudy.tracking import names
from raystudy.tracking.address import redact, study_uri
from raystudy.tracking.content import Point, RunContent, journal_id, spec_of, study_content, trial_content
from raystudy.tracking.feeder import Feeder
from raystudy.tracking.journal import read_journal
from raystudy.tracking.reader import ReadableStore, connect
from raystudy.tracking.store import Store, StoredRun

_THREADS = 8
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What MLflow has that differs from the journal.

    Attributes:
        name: the study.
        tracking_uri: the store, without user name and password.
        trials: how many trials the journal holds.
        values: how many values of metrics were compared.
        lost: trials without a run; the study's name if its own run is missing.
        duplicate: runs beyond the first of a trial, as TRIAL: RUN.
        orphan: runs of this study that belong to no trial of the journal, as TRIAL: RUN.
        unfinished: trials that are over but RUNNING in MLflow.
        wrong: params, metrics, tags or statuses that differ, in words.
    """

    name: str
    tracking_uri: str
    trials: int
    values: int
    lost: tuple[str, ...] = ()
    duplicate: tuple[str, ...] = ()
    orphan: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether MLflow holds exactly what the journal says."""
        return not (self.lost or self.duplicate or self.orphan or self.unfinished or self.wrong)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what `raystudy verify --json` prints."""
        return {
            "name": self.name,
            "ok": self.ok,
            "tracking_uri": self.tracking_uri,
            "trials": self.trials,
            "values": self.values,
            **{kind: list(found) for kind, found in self._findings().items()},
        }

    def __str__(self) -> str:
        """Return what `raystudy verify` prints."""
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in self._findings().items())
        lines = [f"{self.name} at {self.tracking_uri}: {self.trials} trials, {self.values} values of metrics compared", counts]
        for kind, found in self._findings().items():
            lines += [f"  {kind}: {item}" for item in found[:_SHOWN]]
            if len(found) > _SHOWN:
                lines.append(f"  {kind}: ... and {len(found) - _SHOWN} more")
        if not self.ok:
            lines.append(f"`raystudy verify {self.name} --repair` makes MLflow hold what the journal says")
        return "\n".join(lines)

    def _findings(self) -> Mapping[str, tuple[str, ...]]:
        return {
            "lost": self.lost,
            "duplicate": self.duplicate,
            "orphan": self.orphan,
            "unfinished": self.unfinished,
            "wrong": self.wrong,
        }


def verify(name: str, *, tracking_uri: str | None = None, repair: bool = False) -> Verification:
    """Compare MLflow with the journal of the study `name`, which must have been run on this machine.

    Args:
        name: the study.
        tracking_uri: where MLflow is; by default as `raystudy.tracking.address.study_uri` says.
        repair: make MLflow hold what the journal says, then compare.

    Raises:
        NotFoundError: there is no journal of that name here.
        UnreachableError: the store does not answer.
        StudyBusyError: a repair while the study runs, or while its writer still writes.
    """
    files = StudyPaths.of(name)
    if not files.journal.exists():
        raise NotFoundError(f"there is no journal of a study {name!r} here ({files.journal})")
    uri = study_uri(name, tracking_uri)
    record = StudyRecord.fold(read_journal(files.journal))
    if repair:
        repair_study(files, uri, record)
    try:
        store = connect(uri)
    except NotFoundError:
        return Verification(name, redact(uri), len(record.trials), 0, lost=(name, *record.trials))
    return compare(store, record)


def compare(store: ReadableStore, record: StudyRecord) -> Verification:
    """Compare the runs in `store` with `record`, value by value."""
    runs = _Runs.of(store, record)
    if runs.parent is None:
        return Verification(record.name, redact(store.uri), len(record.trials), 0, lost=(record.name, *record.trials))
    spec = spec_of(record)
    pairs = [(None, runs.parent, study_content(record))] + [
        (trial_id, runs.trials[trial_id], trial_content(trial, parent=runs.parent.run_id, metric=spec.metric, mode=spec.mode))
        for trial_id, trial in record.trials.items()
        if trial_id in runs.trials
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        histories = list(pool.map(lambda pair: _histories(store, pair[1]), pairs))
    unfinished, wrong = [], []
    for (trial_id, run, content), points in zip(pairs, histories, strict=True):
        what = trial_id or f"study {record.name}"
        if run.status == "RUNNING" != content.status:
            unfinished.append(what)
        wrong += [f"{what}: {difference}" for difference in _differences(run, content, points)]
    return Verification(
        name=record.name,
        tracking_uri=redact(store.uri),
        trials=len(record.trials),
        values=sum(len(points) for points in histories),
        lost=tuple(trial_id for trial_id in record.trials if trial_id not in runs.trials),
        duplicate=tuple(f"{run.tags.get(names.TRIAL_ID, run.name)}: {run.run_id}" for run in runs.duplicates),
        orphan=tuple(f"{run.tags.get(names.TRIAL_ID, run.name)}: {run.run_id}" for run in runs.orphans),
        unfinished=tuple(unfinished),
        wrong=tuple(wrong),
    )


def repair_study(files: StudyPaths, uri: str, record: StudyRecord, *, write: Callable[[], object] | None = None) -> None:
    """Make the store hold what the journal in `files` says.

    Args:
        files: the study.
        uri: the tracking store.
        record: what the journal adds up to.
        write: writes what is missing; by default a writer process.

    Raises:
        StudyBusyError: the study is running.
        UnreachableError: the store does not answer, or does not take something.
    """
    try:
        with FileLock(files.lock, timeout=0):
            _delete_wrong_runs(uri, record)
            (write or partial(_write, files, uri))()
    except Timeout as error:
        raise StudyBusyError(f"the study {record.name!r} is running: its own writer completes MLflow") from error


def _write(files: StudyPaths, uri: str) -> None:
    feeder = Feeder.start(files, uri)
    feeder.wait_ready()
    if not feeder.finish():
        raise UnreachableError(f"the MLflow writer could not write everything; see {files.writer_log}")


@dataclass(frozen=True, slots=True)
class _Runs:
    """The runs of a study's experiment: the parent, the fullest run of each trial, and what is too much."""

    parent: StoredRun | None
    trials: Mapping[str, StoredRun]
    duplicates: tuple[StoredRun, ...]
    orphans: tuple[StoredRun, ...]

    @classmethod
    def of(cls, store: ReadableStore, record: StudyRecord) -> _Runs:
        experiment = store.experiment(record.name)
        if experiment is None:
            return cls(None, {}, (), ())
        own = journal_id(record)
        parents = [run for run in store.runs([experiment], names.STUDY_KIND) if run.tags.get(names.JOURNAL_ID) == own]
        by_trial: dict[str, list[StoredRun]] = defaultdict(list)
        for run in store.runs([experiment], names.TRIAL_KIND):
            by_trial[run.tags.get(names.TRIAL_ID, "")].append(run)
        for found in by_trial.values():
            found.sort(key=lambda run: -int(run.tags.get(names.EPOCHS, "0")))
        known = {trial_id: found for trial_id, found in by_trial.items() if trial_id in record.trials}
        return cls(
            parent=parents[0] if parents else None,
            trials={trial_id: found[0] for trial_id, found in known.items()},
            duplicates=tuple(run for found in known.values() for run in found[1:]) + tuple(parents[1:]),
            orphans=tuple(run for trial_id, found in by_trial.items() if trial_id not in known for run in found),
        )


def _delete_wrong_runs(uri: str, record: StudyRecord) -> None:
    """Delete duplicate and orphan runs, and those that hold what no writing can correct: params and values of metrics."""
    try:
        connect(uri)
    except NotFoundError:
        return
    store = Store(uri)
    runs = _Runs.of(store, record)
    for run in (*runs.duplicates, *runs.orphans):
        store.delete_run(run.run_id)
    if runs.parent is None:
        return
    spec = spec_of(record)
    for trial_id, run in runs.trials.items():
        content = trial_content(record.trials[trial_id], parent=runs.parent.run_id, metric=spec.metric, mode=spec.mode)
        if _is_beyond_repair(run, content, _histories(store, run)):
            store.delete_run(run.run_id)


def _is_beyond_repair(run: StoredRun, content: RunContent, points: list[Point]) -> bool:
    held = int(run.tags.get(names.EPOCHS, "0"))
    missing = {point for point in content.points if point.step <= held} - set(points)
    extra = Counter(points) - Counter(content.points)
    other_params = any(content.params.get(key) != value for key, value in run.params.items())
    return bool(missing or extra) or other_params or run.started != content.started


def _histories(store: ReadableStore, run: StoredRun) -> list[Point]:
    """Return what the run holds of reports, which are what the journal knows."""
    return [point for metric in filter(names.is_report, run.latest) for point in store.history(run.run_id, metric)]


def _differences(run: StoredRun, content: RunContent, points: list[Point]) -> Iterator[str]:
    if run.status != content.status:
        yield f"status is {run.status}, expected {content.status}"
    yield from _different("param", run.params, content.params)
    ours = {key: value for key, value in run.tags.items() if key.startswith("raystudy.") or key == names.PARENT}
    yield from _different("tag", ours, content.tags)
    if run.started != content.started or (content.ended is not None and run.ended != content.ended):
        yield f"ran from {run.started} to {run.ended}, expected {content.started} to {content.ended} (milliseconds since 1970)"
    found, expected = Counter(points), Counter(content.points)
    yield from (f"{_text(point)} is missing" for point in expected - found)
    for point, count in (found - expected).items():
        known = f"is there {count + expected[point]} times" if point in expected else "was never reported"
        yield f"{_text(point)} {known}"


def _different(what: str, found: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            yield f"{what} {key} is {found.get(key)!r}, expected {expected.get(key)!r}"


def _text(point: Point) -> str:
    return f"{point.key} = {point.value!r} at epoch {point.step} (time {point.time})"
