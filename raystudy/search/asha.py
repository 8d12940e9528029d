"""Asynchronous successive halving in cells, with survivors.

Notation (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): r the grace period, η the reduction factor,
T the budget, rungs at r·η^k < T epochs. The stopping variant: at a rung a trial goes on if its value is among the best
floor(n/η), at least one, of the n values that the rung holds with its own.

Two rules are raystudy's own. Trials are compared only within a *cell*, the trials with equal values of the factors named in
`within`: else the arms that the study is about (little data, a far source) are deleted and their effect at T is unknown
(rule 4). And of the trials that would be stopped a known share goes on as a hold-out, drawn by the seed, so that the
findings can check themselves (rule 5); from then on such a trial is not compared and not entered in any table, because
its value would flatter those it is compared with.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Mapping

from raystudy.factors import Scalar
from raystudy.records import Decided, TrialRecord
from raystudy.search.sampler import derived_seed
from raystudy.spec import StudySpec

Cell = tuple[Scalar | None, ...]


def rungs(*, grace: int, reduction: int, budget: int) -> tuple[int, ...]:
    """Return the epochs at which trials are compared: grace·reduction^k below the budget."""
    epochs = []
    epoch = grace
    while epoch < budget:
        epochs.append(epoch)
        epoch *= reduction
    return tuple(epochs)


TABLE_SHOWN = 256
"""The longest table that a decision spells out. A longer one is the first `seen` values decided before in the same rung and
cell, in journal order: written out each time, the journal of a large study would grow with the square of its trials."""


class Asha:
    """Decides at rungs; its only state is the tables, which the decisions in the journal restore."""

    def __init__(self, spec: StudySpec) -> None:
        """Start with empty rungs."""
        stopping = spec.early_stopping
        self._names, self._mode, self._seed = spec.cells, spec.mode, spec.search.seed
        self._reduction, self._keep = stopping.reduction, float(stopping.keep)
        self.rungs: tuple[int, ...] = ()
        if stopping.scheduler == "asha":
            self.rungs = rungs(grace=stopping.grace, reduction=stopping.reduction, budget=spec.budget.epochs)
        self.tables: dict[tuple[int, Cell], list[float]] = {}
        self._sorted: dict[tuple[int, Cell], list[float]] = {}

    def cell(self, config: Mapping[str, Scalar]) -> Cell:
        """Return the cell of a configuration; None stands for a factor that is not active in it."""
        return tuple(config.get(name) for name in self._names)

    def decide(self, trial: TrialRecord, *, epoch: int, value: float, time: float) -> Decided | None:
        """Return the decision on `trial` at `epoch`, or None where nothing is decided. Changes no table."""
        if epoch not in self.rungs or trial.kept:
            return None
        cell = self.cell(trial.config)
        table = self.tables.get((epoch, cell), [])
        rank = 1 + self._number_better((epoch, cell), value)
        quota = max(1, (len(table) + 1) // self._reduction)
        would_stop = rank > quota
        kept = would_stop and self._survives(trial.number)
        reason = f"rank {rank} of {len(table) + 1} at epoch {epoch}{self._place(cell)}, the best {quota} go on"
        return Decided(
            time=time,
            trial_id=trial.trial_id,
            epoch=epoch,
            cell=cell,
            value=value,
            table=tuple(table) if len(table) <= TABLE_SHOWN else (),
            seen=len(table),
            stop=would_stop and not kept,
            kept=kept,
            keep_probability=self._keep,
            reason=f"{reason}; kept as a hold-out" if kept else reason,
        )

    def record(self, decision: Decided) -> None:
        """Enter a decision that is in the journal into the table of its rung."""
        place = (decision.epoch, decision.cell)
        self.tables.setdefault(place, []).append(decision.value)
        bisect.insort(self._sorted.setdefault(place, []), decision.value)

    def _number_better(self, place: tuple[int, Cell], value: float) -> int:
        """Return how many values of a rung are strictly better than `value`."""
        values = self._sorted.get(place, [])
        if self._mode == "max":
            return len(values) - bisect.bisect_right(values, value)
        return bisect.bisect_left(values, value)

    def _survives(self, number: int) -> bool:
        """Draw once per trial whether it is a hold-out; the draw depends on the seed and the trial only."""
        return random.Random(derived_seed(self._seed, number, "keep")).random() < self._keep  # noqa: S311

    def _place(self, cell: Cell) -> str:
        named = [f"{name}={value}" for name, value in zip(self._names, cell, strict=True) if value is not None]
        return f" with {', '.join(named)}" if named else ""
