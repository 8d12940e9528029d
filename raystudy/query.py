"""Asking about studies: the same for Python and the command line. Needs MLflow only, no cluster, no Ray.

Nothing heavy is imported before a study is opened.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raystudy.errors import NotFoundError
from raystudy.factors import Scalar
from raystudy.records import StudyState, TrialState
from raystudy.results import StudyStatus, Trial, by_state
from raystudy.tracking import address, names

if TYPE_CHECKING:
    import pyarrow as pa

    from raystudy.findings.answer import Importance
    from raystudy.finetune.export import ExportedModel
    from raystudy.spec import StudySpec
    from raystudy.tracking.reader import StudyReader
    from raystudy.tracking.rows import TrialRow
    from raystudy.tracking.store import StoredRun
    from raystudy.tracking.where import Where

_POLL_S = 1.0


class Control(Protocol):
    """Whoever can do something about a study's driver."""

    def state(self, name: str, journal: str | None) -> StudyState | None:
        """Return `queued` or `running` while a driver waits or runs, how it was left if none does; None if that is not known.

        Args:
            name: the study.
            journal: identifies its journal; None where MLflow does not know the study yet.
        """

    def stop(self, name: str) -> None:
        """Ask the driver to end cleanly."""

    def resume(self, name: str) -> None:
        """Start another driver."""


class Study:
    """A study in MLflow, running or over. What may change is read anew at each call."""

    def __init__(self, name: str, opening: Callable[[], StudyReader], control: Control | None = None) -> None:
        """Prepare; `raystudy.open_study` is the way to get one.

        Args:
            name: the study.
            opening: finds it in MLflow; called when it is first asked for, since a submitted study is not there at once.
            control: what can stop and resume it.
        """
        self.name = name
        self._opening, self._control = opening, control

    def __repr__(self) -> str:
        return f"Study({self.name!r})"

    @cached_property
    def _reader(self) -> StudyReader:
        return self._opening()

    @cached_property
    def _objective(self) -> tuple[str, str]:
        tags = self._reader.parent().tags
        return tags[names.METRIC], tags[names.MODE]

    @property
    def metric(self) -> str:
        """The objective's metric."""
        return self._objective[0]

    @property
    def mode(self) -> str:
        """`max` or `min`."""
        return self._objective[1]

    @property
    def state(self) -> StudyState:
        """Where the study is in its life, as its driver last said; where it runs is asked too whether there still is one."""
        try:
            tags = self._reader.parent().tags
        except NotFoundError:
            driver = self._control.state(self.name, None) if self._control else None
            if driver is None:
                raise
            return driver
        recorded = StudyState(tags[names.STATE])
        driver = self._control.state(self.name, tags[names.JOURNAL_ID]) if self._control else None
        # A driver that was killed said nothing; one that has just been started has said nothing yet.
        if driver in (StudyState.QUEUED, StudyState.RUNNING) or (driver and recorded is StudyState.RUNNING):
            return driver
        return recorded

    @property
    def is_recorded(self) -> bool:
        """Whether MLflow has heard of the study: one that was just submitted may have to wait for its driver."""
        try:
            return bool(self._reader)
        except NotFoundError:
            return False

    def wait(self, timeout: float | None = None) -> StudyState:
        """Wait until no driver waits or runs any more; return how the study ended.

        Raises:
            TimeoutError: after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (state := self.state) in (StudyState.QUEUED, StudyState.RUNNING):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"the study {self.name!r} is still {state.value} after {timeout:g} s")
            time.sleep(_POLL_S)
        return state

    def stop(self) -> None:
        """Ask the study's driver to end cleanly; returns at once.

        Raises:
            NotFoundError: no driver runs, or it is not known where.
        """
        self._controlled().stop(self.name)

    def resume(self) -> None:
        """Start another driver: on a cluster returns when it has begun, on this machine when the study has ended.

        Raises:
            StudyBusyError: one is running.
            NotFoundError: it is not known where the study runs.
        """
        self._controlled().resume(self.name)

    def _controlled(self) -> Control:
        if self._control is None:
            raise NotFoundError(
                f"the study {self.name!r} was not run on this machine: open it with address=, its cluster's dashboard"
            )
        return self._control

    @property
    def spec(self) -> StudySpec:
        """The study file."""
        return self._reader.spec()

    def trials(self) -> pa.Table:
        """Return one row per trial, by number.

        Columns: trial_id, number, state, reason, epochs, run_id, started, ended, wall_seconds, node, every factor (null where
        it is not active), every metric at the last epoch, and with `best_` before its name at the best epoch.
        """
        return self._reader.trials()

    def reports(self) -> pa.Table:
        """Return one row per trial and epoch: trial_id, epoch, time, every metric, every factor."""
        return self._reader.reports()

    def best(self, k: int = 1, where: Mapping[str, Scalar] | str | None = None) -> list[Trial]:
        """Return the `k` best trials, best first; of equals the earlier one first.

        Only completed and pruned trials rank, each by the objective at its best epoch.

        Args:
            k: how many at most.
            where: only trials with these values, or that meet an expression such as `data_fraction=0.1, learning_rate<0.01`.

        Raises:
            InputError: `where` names what is neither a factor nor a metric of this study, or cannot be understood.
        """
        ranked = self._reader.ranked(self.metric, self.mode)
        first = list(islice(ranked, 1))
        matches = self._predicate(where, first)
        found: list[TrialRow] = []
        for row in chain(first, ranked):
            # Those equal to the last one are read too: the earliest of them is the better one.
            if found and len(found) >= k and row.best[self.metric] != found[-1].best[self.metric]:
                break
            if matches(row):
                found.append(row)
        return [self._trial(row) for row in self._ranked(found)[:k]]

    def importance(
        self,
        at: int | None = None,
        *,
        given: Mapping[str, Scalar] | None = None,
        within: str | None = None,
        plan: bool = False,
        seed: int = 0,
    ) -> Importance:
        """Return which factors matter for the objective, by how much, and how sure that is.

        All trials count, also those that were stopped; a running study may be asked too. It takes seconds, and the answer may
        be that the trials do not say: then it says why.

        Args:
            at: the epoch that is asked about, by default the last one of the budget.
            given: factors that are taken as fixed, e.g. `{"data_fraction": 0.1}`.
            within: a region of the factors, e.g. `learning_rate<0.01, optimizer=sgd`; by default all that the study declares.
            plan: also say what would settle what is open.
            seed: of the computation; another one gives the same answer to within its intervals.

        Raises:
            InputError: the study has no such epoch, factor or value.
        """
        return self._reader.importance(at=at, given=given, within=within, plan=plan, seed=seed)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page about the study, for people, and return where it is.

        Raises:
            InputError: the file cannot be written.
        """
        from raystudy.errors import InputError, Problem
        from raystudy.tracking.report import page_of_reader

        page, file = page_of_reader(self._reader), Path(path)
        try:
            file.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InputError(Problem(str(file), f"cannot be written: {error.strerror or error}")) from error
        return file

    def record(self, answer: Importance) -> None:
        """Put an answer of `importance` into MLflow, in the place of the one that the study's end left there."""
        self._reader.record_importance(answer)

    def trial(self, trial_id: str) -> Trial:
        """Return a trial in whatever state it is.

        Raises:
            NotFoundError: the study has no such trial.
        """
        rows = {row.trial_id: row for row in self._reader.rows()}
        if trial_id not in rows:
            known = f"they are called {min(rows)} to {max(rows)}" if rows else "it has none yet"
            raise NotFoundError(f"the study {self.name!r} has no trial {trial_id!r}; {known}")
        return self._trial(rows[trial_id])

    def export(self, folder: str | Path, trial_id: str | None = None) -> ExportedModel:
        """Write the model of the best trial, or of the one given, to `folder` so that it is usable without raystudy.

        Raises:
            NotFoundError: no trial ranks yet, there is no such trial, or its model was not kept.
            InputError: the folder is not empty, or cannot be written.
        """
        from raystudy.finetune.export import export_model

        found = [self.trial(trial_id)] if trial_id is not None else self.best()
        if not found:
            raise NotFoundError(f"no trial of the study {self.name!r} has a result yet")
        kept = self._reader.model(found[0].run_id)
        return export_model(
            kept.classifier,
            folder=Path(folder),
            class_names=kept.class_names,
            image_size=kept.card["image_size"],
            backbone=kept.card["backbone"]["name"],
            provenance={**kept.card["provenance"], "run_id": found[0].run_id},
        )

    def status(self) -> StudyStatus:
        """Return where the study is, by MLflow alone; `state` is its driver's last word here."""
        parent, rows = self._reader.parent(), self._reader.rows()
        ranked = self._ranked(rows)
        state = StudyState(parent.tags[names.STATE])
        return StudyStatus(
            name=self.name,
            state=state,
            reason=parent.tags.get(names.REASON, ""),
            trials=by_state(Counter(row.state for row in rows)),
            budget_trials=int(parent.tags[names.TRIALS]),
            epochs_trained=sum(row.epochs for row in rows),
            metric=self.metric,
            mode=self.mode,
            best=self._trial(ranked[0]) if ranked else None,
            started=moment(parent.started),
            ended=ended(parent, state),
            tracking_uri=address.redact(self._reader.store.uri),
            experiment_id=self._reader.experiment_id,
            run_id=self._reader.run_id,
        )

    def _predicate(self, where: Mapping[str, Scalar] | str | None, rows: list[TrialRow]) -> Where:
        from raystudy.tracking.where import Where, equal_to, parse_where

        if where is None:
            return Where(())
        factors = list(self.spec.all_factors)
        metrics = sorted({name for row in rows for name in row.best} | {self.metric}, key=names.metric_rank)
        return parse_where(where, factors, metrics) if isinstance(where, str) else equal_to(where, factors, metrics)

    def _ranked(self, rows: list[TrialRow]) -> list[TrialRow]:
        sign = -1.0 if self.mode == "max" else 1.0
        ranking = [row for row in rows if TrialState(row.state).ranks and self.metric in row.best]
        return sorted(ranking, key=lambda row: (sign * row.best[self.metric], row.number))

    def _trial(self, row: TrialRow) -> Trial:
        return Trial(
            trial_id=row.trial_id,
            number=row.number,
            run_id=row.run_id,
            state=TrialState(row.state),
            epochs=row.epochs,
            config=row.config,
            metrics=dict(sorted(row.best.items(), key=lambda item: names.metric_rank(item[0]))),
            _reader=self._reader,
        )


def lazy_study(name: str, tracking_uri: str | None = None, control: Control | None = None) -> Study:
    """Return a study that is looked for when it is first asked for."""

    def opening() -> StudyReader:
        from raystudy.tracking.reader import StudyReader, connect

        return StudyReader(connect(address.study_uri(name, tracking_uri)), name)

    return Study(name, opening, control)


def ended(parent: StoredRun, state: StudyState) -> datetime | None:
    """Return when a study's last driver ended, None while one runs."""
    return None if state is StudyState.RUNNING or parent.ended is None else moment(parent.ended)


def moment(milliseconds: int) -> datetime:
    """Return MLflow's milliseconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
