"""A study's trials and reports as Arrow tables: the same whether they come from the journal or back from MLflow.

Both sides are brought to `TrialRow` and `ReportRow` first, with times in MLflow's whole milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from raystudy.factors import Scalar
from raystudy.records import Config, StudyRecord, TrialRecord
from raystudy.tracking import names
from raystudy.tracking.content import factor_kind, milliseconds, spec_of, typed
from raystudy.tracking.rows import ReportRow, TrialRow

_TIME = pa.timestamp("ms", tz="UTC")
_TYPES = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}


def trials_table(record: StudyRecord, run_ids: Mapping[str, str]) -> pa.Table:
    """Return one row per trial, by number; see `trials_table_of` for the columns.

    Args:
        record: the study.
        run_ids: MLflow's run ids by trial id.
    """
    spec = spec_of(record)
    rows = [trial_row(trial, run_ids.get(trial.trial_id, ""), spec.metric, spec.mode) for trial in record.trials.values()]
    return trials_table_of(rows, tuple(spec.all_factors))


def reports_table(record: StudyRecord) -> pa.Table:
    """Return one row per trial and epoch, by number and epoch; see `reports_table_of` for the columns."""
    rows = [row for trial in record.trials.values() for row in report_rows(trial)]
    return reports_table_of(rows, tuple(spec_of(record).all_factors))


def trial_row(trial: TrialRecord, run_id: str, metric: str, mode: str) -> TrialRow:
    """Return the row of a trial."""
    best_epoch = trial.best_epoch(metric, mode)
    return TrialRow(
        trial_id=trial.trial_id,
        number=trial.number,
        state=trial.state.value,
        reason=trial.reason,
        epochs=trial.epochs,
        run_id=run_id,
        started=milliseconds(trial.started),
        ended=None if trial.ended is None else milliseconds(trial.ended),
        node=trial.node,
        config=trial.config,
        last=trial.last,
        best={} if best_epoch is None else trial.reports[best_epoch].metrics,
        kept=trial.kept,
    )


def report_rows(trial: TrialRecord) -> list[ReportRow]:
    """Return the rows of a trial's reports."""
    return [
        ReportRow(trial.trial_id, trial.number, epoch, milliseconds(report.time), report.metrics, trial.config)
        for epoch, report in trial.reports.items()
    ]


def trials_table_of(rows: Iterable[TrialRow], factors: Sequence[str]) -> pa.Table:
    """Return a table of trials, by number.

    Columns: trial_id, number, state, reason, epochs, run_id, started, ended, wall_seconds, node; each of `factors`, null where
    it is not active; every metric at the trial's last epoch; every metric at its best epoch, with `best_` before its name.
    """
    trials = sorted(rows, key=lambda row: row.number)
    metrics = _metric_names(name for row in trials for name in (*row.last, *row.best))
    columns = {
        "trial_id": pa.array([row.trial_id for row in trials], pa.string()),
        "number": pa.array([row.number for row in trials], pa.int64()),
        "state": pa.array([row.state for row in trials], pa.string()),
        "reason": pa.array([row.reason for row in trials], pa.string()),
        "epochs": pa.array([row.epochs for row in trials], pa.int64()),
        "run_id": pa.array([row.run_id or None for row in trials], pa.string()),
        "started": pa.array([row.started for row in trials], _TIME),
        "ended": pa.array([row.ended for row in trials], _TIME),
        "wall_seconds": pa.array([row.wall_seconds for row in trials], pa.float64()),
        "node": pa.array([row.node for row in trials], pa.string()),
    }
    columns |= _factor_columns([row.config for row in trials], factors)
    columns |= {name: pa.array([row.last.get(name) for row in trials], pa.float64()) for name in metrics}
    columns |= {names.BEST_PREFIX + name: pa.array([row.best.get(name) for row in trials], pa.float64()) for name in metrics}
    return pa.table(columns)


def reports_table_of(rows: Iterable[ReportRow], factors: Sequence[str]) -> pa.Table:
    """Return a table of reports, by trial number and epoch: trial_id, epoch, time, every metric, each of `factors`."""
    reports = sorted(rows, key=lambda row: (row.number, row.epoch))
    metrics = _metric_names(name for row in reports for name in row.metrics)
    columns = {
        "trial_id": pa.array([row.trial_id for row in reports], pa.string()),
        "epoch": pa.array([row.epoch for row in reports], pa.int64()),
        "time": pa.array([row.time for row in reports], _TIME),
    }
    columns |= {name: pa.array([row.metrics.get(name) for row in reports], pa.float64()) for name in metrics}
    return pa.table(columns | _factor_columns([row.config for row in reports], factors))


def _factor_columns(configs: Sequence[Config], factors: Sequence[str]) -> dict[str, pa.Array]:
    return {
        factor: pa.array([_value(config, factor) for config in configs], _TYPES.get(factor_kind(factor), pa.string()))
        for factor in factors
    }


def _value(config: Config, factor: str) -> Scalar | None:
    return typed(factor, config[factor]) if factor in config else None


def _metric_names(found: Iterable[str]) -> list[str]:
    return sorted(set(found), key=names.metric_rank)
