"""A table of reports, checked and turned into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raystudy.errors import InputError, Problem
from raystudy.findings.curves import Floats, Ints
from raystudy.findings.design import Bools
from raystudy.findings.measure import Measure

STATE, KEPT = "state", "kept"
"""Optional columns: how the trial ended, and whether it is a hold-out of early stopping."""
_TROUBLE = ("diverged", "failed")


@dataclass(frozen=True, slots=True)
class Observations:
    """What the trials reported.

    Attributes:
        trials: ids, in ascending order.
        x: encoded configurations, shape (trials, width).
        active: which factors are active, shape (trials, factors).
        trial: index of each report's trial, shape (reports,).
        epochs: of each report, shape (reports,).
        values: the metric, finite, shape (reports,).
        troubled: which trials diverged or failed, shape (trials,).
        kept: which trials early stopping would have stopped but let go on, shape (trials,).
        configs: values of each factor, one per trial, None where it is not active, by name.
    """

    trials: tuple[Any, ...]
    x: Floats
    active: Bools
    trial: Ints
    epochs: Floats
    values: Floats
    troubled: Bools
    kept: Bools
    configs: dict[str, list[Any]]

    @property
    def varied(self) -> dict[str, int]:
        """How many different values each factor has among the trials in which it is active, by name."""
        return {name: len({value for value in values if value is not None}) for name, values in self.configs.items()}

    @property
    def reporting(self) -> Ints:
        """The trials with a report, ascending."""
        return np.unique(self.trial)

    def of(self, trials: Ints) -> Observations:
        """Return what some trials reported, numbered in the order given."""
        position = np.full(len(self.trials), -1)
        position[trials] = np.arange(len(trials))
        chosen = position[self.trial] >= 0
        return Observations(
            tuple(self.trials[index] for index in trials),
            self.x[trials],
            self.active[trials],
            position[self.trial[chosen]],
            self.epochs[chosen],
            self.values[chosen],
            self.troubled[trials],
            self.kept[trials],
            {name: [values[index] for index in trials] for name, values in self.configs.items()},
        )


def observe(reports: pa.Table, measure: Measure, *, metric: str, budget: int, extra: str = "") -> Observations:
    """Check a table of reports.

    Args:
        reports: one row per trial and epoch; see `raystudy.importance`.
        measure: the factors, of which each is a column.
        metric: the column that is explained.
        budget: the last epoch.
        extra: a factor of `measure` that is no column: its values are drawn here, the same for equal trials.

    Raises:
        InputError: with every problem: missing columns, epochs out of range, two reports of one epoch, a trial with two
            values of one factor, values that the factors do not have.
    """
    names = [name for name in measure.names if name != extra]
    _check_columns(reports, ["trial_id", "epoch", metric, *names], metric)
    ids = reports.column("trial_id").to_pylist()
    first: dict[Any, int] = {}
    for row, trial_id in enumerate(ids):
        first.setdefault(trial_id, row)
    # In the order of ids, so that the order of the rows changes nothing.
    first = dict(sorted(first.items(), key=lambda item: str(item[0])))
    index = {trial_id: number for number, trial_id in enumerate(first)}
    trial = np.array([index[trial_id] for trial_id in ids], dtype=np.int64)
    epochs = _epochs(reports, ids, trial, budget)
    rows = list(first.values())
    columns = {name: reports.column(name).to_pylist() for name in names}
    _check_constant(columns, ids, trial, rows)
    configs = {name: [values[row] for row in rows] for name, values in columns.items()}
    if extra:
        configs[extra] = list(np.random.default_rng(len(rows)).random(len(rows)))
    x, active = measure.encode(configs, list(first))
    values = np.array([np.nan if value is None else value for value in reports.column(metric).to_pylist()], dtype=float)
    finite = np.isfinite(values) & np.isfinite(epochs)
    states = _per_trial(reports, STATE, rows, "")
    troubled = np.array([state in _TROUBLE for state in states], dtype=bool)
    if STATE not in reports.column_names:  # then a metric that is not a number is all there is to tell by
        troubled[trial[~np.isfinite(values)]] = True
    kept = np.array([bool(value) for value in _per_trial(reports, KEPT, rows, False)], dtype=bool)
    for number, name in enumerate(measure.names):
        configs[name] = [value if on else None for value, on in zip(configs[name], active[:, number], strict=True)]
    return Observations(tuple(first), x, active, trial[finite], epochs[finite], values[finite], troubled, kept, configs)


def _check_columns(reports: pa.Table, needed: Sequence[str], metric: str) -> None:
    missing = [name for name in needed if name not in reports.column_names]
    if missing:
        have = ", ".join(reports.column_names) or "none"
        raise InputError([Problem("reports", f"has no column {name!r}", f"the columns are {have}") for name in missing])
    kind = reports.schema.field(metric).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InputError(Problem(f"reports.{metric}", f"holds {kind}", "a metric is a number"))


def _per_trial(reports: pa.Table, column: str, rows: Sequence[int], otherwise: Any) -> list[Any]:
    if column not in reports.column_names:
        return [otherwise] * len(rows)
    values = reports.column(column).to_pylist()
    return [values[row] for row in rows]


def _epochs(reports: pa.Table, ids: Sequence[Any], trial: Ints, budget: int) -> Floats:
    raw = reports.column("epoch").to_pylist()
    problems = []
    seen: set[tuple[int, int]] = set()
    for row, epoch in enumerate(raw):
        # A trial that failed before its first report still has a configuration: its row has no epoch.
        if epoch is None:
            continue
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 1 <= epoch <= budget:
            problems.append(
                Problem("reports.epoch", f"trial {ids[row]}: got {epoch!r}", f"a whole number from 1 to {budget}, the budget")
            )
        elif (int(trial[row]), epoch) in seen:
            problems.append(
                Problem("reports.epoch", f"trial {ids[row]} reports epoch {epoch} twice", "one row per trial and epoch")
            )
        seen.add((int(trial[row]), epoch))
        if len(problems) >= 10:
            break
    if problems:
        raise InputError(problems)
    return np.array([np.nan if epoch is None else epoch for epoch in raw], dtype=float)


def _check_constant(columns: dict[str, list[Any]], ids: Sequence[Any], trial: Ints, rows: Sequence[int]) -> None:
    problems = []
    for name, values in columns.items():
        for row, value in enumerate(values):
            first = values[rows[trial[row]]]
            if value != first:
                what = f"trial {ids[row]} has {first!r} and {value!r}"
                problems.append(Problem(f"reports.{name}", what, "a factor has one value throughout a trial"))
                break
    if problems:
        raise InputError(problems)
