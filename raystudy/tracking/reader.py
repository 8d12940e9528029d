"""Reads studies back from MLflow: with its address alone, no journal and no cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystudy.errors import NotFoundError
from raystudy.records import StudyState, TrialState
from raystudy.spec import StudySpec
from raystudy.spec.messages import nearest
from raystudy.tracking import names
from raystudy.tracking.address import check_reachable, database, redact
from raystudy.tracking.content import param_value
from raystudy.tracking.rest import RestStore, is_plain_server
from raystudy.tracking.rows import ReportRow, TrialRow
from raystudy.tracking.store import Store, StoredRun, StoreRefused

if TYPE_CHECKING:
    import pyarrow as pa

    from raystudy.findings.answer import Importance
    from raystudy.tracking.models import KeptModel

_THREADS = 8


ReadableStore = Store | RestStore
"""What studies can be read from."""


def connect(uri: str) -> ReadableStore:
    """Open the tracking store at `uri` for reading, a server without MLflow's own client, which takes a second to import.

    Raises:
        NotFoundError: a local store that does not exist, so that nothing can be in it.
        UnreachableError: the store does not answer, known within seconds.
    """
    file = database(uri)
    if file is not None and not file.exists():
        raise NotFoundError(f"there are no studies yet in {redact(uri)}")
    if is_plain_server(uri):
        return RestStore(uri)  # whose first question says what is wrong
    check_reachable(uri)
    return Store(uri)


def study_runs(store: ReadableStore) -> dict[str, StoredRun]:
    """Return the parent runs of all studies in the store by study name."""
    found = store.runs(list(store.experiments()), names.STUDY_KIND)
    return {run.name: run for run in found}


class StudyReader:
    """One study in MLflow. What may change is read anew at each call."""

    def __init__(self, store: ReadableStore, name: str) -> None:
        """Find the study.

        Raises:
            NotFoundError: there is none of that name; near misses are named.
        """
        self.store, self.name = store, name
        self._spec: StudySpec | None = None
        experiment = store.experiment(name)
        runs = store.runs([experiment], names.STUDY_KIND) if experiment is not None else []
        if experiment is None or not runs:
            raise NotFoundError(_not_found(store, name))
        self.experiment_id, self.run_id = experiment, runs[0].run_id

    def parent(self) -> StoredRun:
        """Return the study's run as it is now."""
        return self.store.run(self.run_id)

    def spec(self) -> StudySpec:
        """Return the study file."""
        if self._spec is None:
            with tempfile.TemporaryDirectory() as scratch:
                self._spec = StudySpec.from_yaml(self.store.download(self.run_id, names.STUDY_FILE, Path(scratch)))
        return self._spec

    def n_units(self) -> int | None:
        """Return what `max` stands for in frozen depths; None where it was not recorded."""
        recorded = self.parent().tags.get(names.UNITS)
        return int(recorded) if recorded else None

    def rows(self) -> list[TrialRow]:
        """Return all trials by number."""
        return sorted(map(trial_row_of, self._runs()), key=lambda row: row.number)

    def ranked(self, metric: str, mode: str) -> Iterator[TrialRow]:
        """Yield the trials that rank, best `metric` first, in no particular order among equals; read as far as asked for."""
        for run in self.store.runs_by(self.experiment_id, names.BEST_PREFIX + metric, ascending=mode == "min"):
            row = trial_row_of(run)
            if metric not in row.best:
                return
            if TrialState(row.state).ranks:
                yield row

    def trials(self) -> pa.Table:
        """Return the table of trials."""
        from raystudy.tracking.tables import trials_table_of

        return trials_table_of(self.rows(), tuple(self.spec().all_factors))

    def reports(self) -> pa.Table:
        """Return the table of reports: of a study that is over from its artifact, else from every trial's histories."""
        if self.parent().tags.get(names.STATE) != StudyState.RUNNING:
            try:
                return self.stored_reports()
            except StoreRefused:
                pass  # it is being stored at this moment, or somebody removed it
        return self.collected_reports()

    def stored_reports(self) -> pa.Table:
        """Return the table of reports that was stored when the study ended.

        Raises:
            StoreRefused: there is none.
        """
        import pyarrow.parquet as pq

        with tempfile.TemporaryDirectory() as scratch:
            return pq.read_table(self.store.download(self.run_id, names.REPORTS_FILE, Path(scratch)), memory_map=False)

    def collected_reports(self) -> pa.Table:
        """Return the table of reports as the runs themselves hold it: one request per run and metric."""
        runs = self._runs()
        with ThreadPoolExecutor(_THREADS) as pool:
            rows = [row for found in pool.map(self._report_rows, runs) for row in found]
        from raystudy.tracking.tables import reports_table_of

        return reports_table_of(rows, tuple(self.spec().all_factors))

    def importance(self, **question: Any) -> Importance:
        """Return what matters; the arguments are those of `raystudy.tracking.findings.ask`."""
        from raystudy.tracking.findings import ask

        return ask(self.spec(), self.rows(), self.reports(), n_units=self.n_units(), **question)

    def record_importance(self, answer: Importance) -> None:
        """Store an answer in the place of the one that the study's run holds, and a page that tells of it."""
        from raystudy.tracking.findings import store_files, write_files
        from raystudy.tracking.report import page_of_reader, write_page

        with tempfile.TemporaryDirectory() as scratch:
            write_files(answer, Path(scratch))
            write_page(page_of_reader(self, answer), Path(scratch))
            store_files(Store(self.store.uri), self.run_id, Path(scratch))

    def model(self, run_id: str) -> KeptModel:
        """Return the model that was kept of a trial, with what is known about it.

        Raises:
            NotFoundError: the trial's model was not kept.
        """
        from raystudy.tracking.models import fetch_model

        return fetch_model(Store(self.store.uri), self.experiment_id, run_id)

    def _runs(self) -> list[StoredRun]:
        """Return one run per trial; of two that a lost answer made (until the writer removes one) the fuller."""
        fullest: dict[str, StoredRun] = {}
        for run in self.store.runs([self.experiment_id], names.TRIAL_KIND):
            other = fullest.get(run.tags[names.TRIAL_ID])
            if other is None or epochs_of(run) > epochs_of(other):
                fullest[run.tags[names.TRIAL_ID]] = run
        return list(fullest.values())

    def _report_rows(self, run: StoredRun) -> list[ReportRow]:
        metrics: dict[int, dict[str, float]] = {}
        times: dict[int, int] = {}
        for name in _without_best(run.latest):
            for point in self.store.history(run.run_id, name):
                metrics.setdefault(point.step, {})[name] = point.value
                times[point.step] = point.time
        row = trial_row_of(run)
        return [
            ReportRow(row.trial_id, row.number, epoch, times[epoch], values, row.config) for epoch, values in metrics.items()
        ]


def trial_row_of(run: StoredRun) -> TrialRow:
    """Return the row of a trial from its run."""
    tags = run.tags
    prefix = names.BEST_PREFIX
    return TrialRow(
        trial_id=tags[names.TRIAL_ID],
        number=int(tags[names.NUMBER]),
        state=tags[names.STATE],
        reason=tags.get(names.REASON, ""),
        epochs=epochs_of(run),
        run_id=run.run_id,
        started=run.started,
        # MLflow keeps the end of an interrupted run that runs again.
        ended=None if tags[names.STATE] == TrialState.RUNNING else run.ended,
        node=tags.get(names.NODE, ""),
        config={name: param_value(name, text) for name, text in run.params.items()},
        last=_without_best(run.latest),
        best={name.removeprefix(prefix): value for name, value in run.latest.items() if name.startswith(prefix)},
        kept=tags.get(names.KEPT) == "true",
    )


def epochs_of(run: StoredRun) -> int:
    """Return how many epochs a run says it holds."""
    return int(run.tags.get(names.EPOCHS, "0"))


def _without_best(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(names.BEST_PREFIX) and names.is_report(name)}


def _not_found(store: ReadableStore, name: str) -> str:
    known: Iterable[Any] = sorted(study_runs(store))
    hint = nearest(name, known) if known else "there are no studies there"
    return f"there is no study {name!r} at {redact(store.uri)}; {hint}"
