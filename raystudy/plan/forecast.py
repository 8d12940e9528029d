"""How many epochs a study will train: the real scheduler, played with trials of which nothing is known beforehand.

Each simulated trial has one random quality, which orders it at every rung, and trials come one after another. A sampler that
learns, or ranks that change from rung to rung, shift the numbers a little; they are a forecast, not a promise.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raystudy.factors import Scalar
from raystudy.plan.contents import Forecast
from raystudy.records import TrialRecord
from raystudy.search.asha import Asha, Cell
from raystudy.space import Dimension, Space, levels
from raystudy.spec import StudySpec

Shares = Mapping[Cell, float]
"""Every cell of a study with the share of the trials that is expected in it."""

Known = frozenset[tuple[str, Scalar]]
"""Values of some factors, by name."""

_MOST_SIMULATED = 800
"""Trials per repetition. A decision looks at the whole table of its rung, so the work grows with the square."""

_WORK = 5_000_000
_REPETITIONS = (12, 50)
_MOST_CONFIGURATIONS = 20_000


def expected_trials(spec: StudySpec, grid_points: int | None) -> int:
    """Return how many trials will be started: a grid ends with its last point."""
    if grid_points is None:
        return spec.budget.trials
    return min(spec.budget.trials, len(spec.search.points) + grid_points)


def count_grid(space: Space) -> int:
    """Return the number of points of the grid, without listing them.

    Ways through the factors are counted together as long as no later condition can tell them apart: conditions name a few
    values, and all other values of a factor are alike.
    """
    ways: Counter[Known] = Counter({frozenset(space.constants.items()): 1})
    for position, dimension in enumerate(space.dimensions):
        named = _named_values(space.dimensions[position + 1 :])
        onward: Counter[Known] = Counter()
        for known, count in ways.items():
            for follower, times in _followers(dimension, dict(known), named):
                onward[follower] += count * times
        ways = onward
    return ways.total()


def _named_values(dimensions: Iterable[Dimension]) -> dict[str, set[Scalar]]:
    """Return the values that conditions of `dimensions` name, by factor."""
    named: dict[str, set[Scalar]] = {}
    for dimension in dimensions:
        for name, values in dimension.when.items():
            named.setdefault(name, set()).update(values)
    return named


def _followers(dimension: Dimension, known: dict[str, Scalar], named: Mapping[str, set[Scalar]]) -> Iterator[tuple[Known, int]]:
    """Yield what is known after `dimension`, as far as it will be asked for, and in how many ways."""
    kept = {name: value for name, value in known.items() if name in named}
    if not dimension.is_active(known):
        yield frozenset(kept.items()), 1
        return
    values = levels(dimension.distribution)
    asked = [value for value in named.get(dimension.name, ()) if value in values]
    for value in asked:
        yield frozenset({**kept, dimension.name: value}.items()), 1
    if others := len(values) - len(asked):
        yield frozenset(kept.items()), others


def cell_shares(spec: StudySpec, space: Space, trials: int) -> dict[Cell, float]:
    """Return every cell of the study with the share of the trials that is expected in it; together 1.

    Exact under the declared distribution and for a grid, unless there are very many cells: then they are sampled.
    """
    asha = Asha(spec)
    counts = Counter(asha.cell(config) for config in _configurations(spec, space, trials))
    return {cell: count / counts.total() for cell, count in counts.items()}


def _configurations(spec: StudySpec, space: Space, trials: int) -> Iterable[Mapping[str, Scalar]]:
    """Return configurations, equally probable, of whatever decides a trial's cell."""
    if spec.search.sampler == "grid":
        return itertools.islice(space.grid(), min(trials, _MOST_CONFIGURATIONS))
    dimensions = _deciding(space.dimensions, spec.cells)
    small = Space(dimensions, space.constants)
    if math.prod(_count_levels(dimension) for dimension in dimensions) > _MOST_CONFIGURATIONS:
        random = np.random.default_rng(spec.search.seed)
        return (small.at(random.random(len(dimensions)).tolist()) for _ in range(_MOST_CONFIGURATIONS))
    middles = [[(k + 0.5) / n for k in range(n)] for n in map(_count_levels, dimensions)]
    return (small.at(point) for point in itertools.product(*middles))


def _deciding(dimensions: Sequence[Dimension], names: Iterable[str]) -> tuple[Dimension, ...]:
    """Return the dimensions that are named, and those that their conditions speak of, in their order."""
    wanted = set(names)
    for dimension in reversed(dimensions):  # a condition speaks of dimensions before it only
        if dimension.name in wanted:
            wanted |= dimension.when.keys()
    return tuple(dimension for dimension in dimensions if dimension.name in wanted)


def _count_levels(dimension: Dimension) -> int:
    return len(levels(dimension.distribution))


def forecast(spec: StudySpec, shares: Shares, trials: int) -> Forecast:
    """Play the study's scheduler, seeded by the study, and return what to expect of `trials` trials."""
    budget = spec.budget.epochs
    rungs = Asha(spec).rungs
    if not rungs:
        total = float(trials * budget)
        return Forecast(total, (total, total), (), float(trials), 0.0)
    simulated = min(trials, _MOST_SIMULATED)
    few, many = _REPETITIONS
    repetitions = min(max(_WORK // simulated**2, few), many)
    runs = [_play(spec, shares, simulated, repetition) for repetition in range(repetitions)]
    ends = np.array([ends for ends, _ in runs])
    kept = np.array([kept for _, kept in runs])
    epochs = _totals(ends, trials)
    low, high = np.quantile(epochs, [0.05, 0.95])
    return Forecast(
        epochs=float(epochs.mean()),
        epochs_range=(float(low), float(high)),
        arrivals=tuple(float(_totals(ends >= rung, trials).mean()) for rung in rungs),
        completed=float(_totals(ends == budget, trials).mean()),
        hold_outs=float(_totals(kept, trials).mean()),
    )


def _play(spec: StudySpec, shares: Shares, trials: int, repetition: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the last epoch of each trial, and whether it is a hold-out, both (trials,)."""
    random = np.random.default_rng([spec.search.seed, repetition])
    asha, cells = Asha(spec), list(shares)
    drawn = random.choice(len(cells), size=trials, p=list(shares.values()))
    qualities = random.random(trials)
    records = []
    for index, (cell, quality) in enumerate(zip(drawn.tolist(), qualities.tolist(), strict=True)):
        # Hold-outs are drawn by the trial's number: other numbers in every repetition, so that the draws differ.
        number = repetition * trials + index
        records.append(TrialRecord(str(number), number, dict(zip(spec.cells, cells[cell], strict=True)), 0.0))
        _run_up(asha, records[-1], quality)
    ends = [next((epoch for epoch, made in r.decisions.items() if made.stop), spec.budget.epochs) for r in records]
    return np.array(ends), np.array([record.kept for record in records])


def _run_up(asha: Asha, trial: TrialRecord, quality: float) -> None:
    """Take a trial from rung to rung until it is stopped, or until nothing is decided about it any more."""
    for epoch in asha.rungs:
        decision = asha.decide(trial, epoch=epoch, value=quality, time=0.0)
        if decision is None:
            return
        asha.record(decision)
        trial.decisions[epoch] = decision
        if decision.stop:
            return


def _totals(values: NDArray[np.generic], trials: int) -> NDArray[np.float64]:
    """Return the totals over all trials of each repetition, (repetitions,).

    Where fewer trials were simulated, (repetitions, simulated), the others are taken to be like the second half of those:
    by then the rungs are filled. Deviations grow with the root of the number of trials.
    """
    numbers = values.astype(np.float64)
    simulated = numbers.shape[1]
    totals: NDArray[np.float64] = numbers.sum(axis=1)
    missing = trials - simulated
    if not missing:
        return totals
    mean = totals.mean()
    expected = mean + missing * numbers[:, simulated // 2 :].mean()
    return expected + (totals - mean) * math.sqrt(trials / simulated)
