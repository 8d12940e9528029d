"""Configurations that are best by all trials together: the one to recommend, and those with which values are compared.

What is looked for is where the posterior mean is best, along one factor at a time from the best of quasi-random
configurations. The functions drawn from the posterior are then read there: so what is not known about the place is no gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raystudy.factors import Scalar
from raystudy.findings.answer import Recommended
from raystudy.findings.curves import Floats
from raystudy.findings.design import Design
from raystudy.findings.effects import Marginal, Reading
from raystudy.findings.fitting import fewer
from raystudy.findings.indices import Drawn
from raystudy.findings.tuning import QUESTIONS
from raystudy.findings.verdict import interval

_STARTS, _ROUNDS = 4, 3
"""Configurations from which the search for the best goes on, and how often each factor is tried at its values."""
_QUESTIONS, _TUNINGS, _TUNING_ROUNDS = 4, 64, 2
"""Combinations of the other scientific factors for which a value is tuned, tunings to begin with, rounds of that."""
_SETS, _TUNING_SETS = 12, 4
"""Sets of hyperparameters whose functions a search looks at; what is read in the end, is read from all."""
_MOST_TRIED = 8
"""Values of one factor that are tried in a round."""
_DIGITS = 3
"""Of a continuous factor's value: more say nothing, and are tedious to type."""


@dataclass(frozen=True)
class _Search:
    """Looks for the best configurations.

    Attributes:
        reading: the functions that are looked at.
        design: whose nodes are tried.
        moved: the factors that may change.
        active: index of a factor that has to be active, None for none.
    """

    reading: Reading
    design: Design
    moved: Sequence[str]
    active: int | None = None

    def scores(self, points: Floats) -> Floats:
        """Return how good the functions are on average at points of the unit cube, shape (n,); -inf where out of question."""
        values, weights = _functions(self.reading, points)
        score = self.reading.better * (weights @ values)
        if self.active is None:
            return score
        return np.where(self.reading.measure.points(points)[1][:, self.active], score, -np.inf)

    def climbed(self, starts: Floats, rounds: int) -> Floats:
        """Return for each start, shape (k, factors), the best of what differs from it in one factor, again and again."""
        points = starts
        for _ in range(rounds):
            around = np.stack([points, *self._moves(points)], axis=1)
            scores = self.scores(around.reshape(-1, points.shape[1])).reshape(around.shape[:2])
            points = around[np.arange(len(points)), scores.argmax(axis=1)]
        return points

    def _moves(self, points: Floats) -> list[Floats]:
        found = []
        for name in self.moved:
            u = self.design.nodes[name].u
            for place in u[:: -(-len(u) // _MOST_TRIED)]:
                moved = points.copy()
                moved[:, self.design.index(name)] = place
                found.append(moved)
        return found


def recommended(reading: Reading, drawn: Drawn, design: Design, hidden: str) -> Recommended:
    """Return the best configuration.

    Args:
        reading: the functions.
        drawn: what they are at the configurations of `design`.
        design: where they were read.
        hidden: the null factor, which nobody is told of.
    """
    starts = design.u[np.argsort(-reading.better * (drawn.weights @ drawn.values))[:_STARTS]]
    search = _Search(replace(reading, posterior=fewer(reading.posterior, _SETS)), design, [*design.nodes])
    points = search.climbed(starts, _ROUNDS)
    best = points[[int(search.scores(points).argmax())]]
    values, weights = _functions(reading, best)
    return Recommended(
        config={
            name: _rounded(reading, name, value) for name, value in reading.measure.values(best)[0].items() if name != hidden
        },
        predicted=interval(values[:, 0], weights),
    )


def tuned_at(reading: Reading, design: Design, factor: str, places: Floats) -> Marginal:
    """Return the functions at values of a scientific factor, each with the nuisance factors tuned for it.

    Args:
        reading: the functions.
        design: of `effects.tuning_design`.
        factor: the factor.
        places: its values, as points u of the unit interval, shape (k,).

    Returns:
        One column per value, averaged over the other scientific factors.
    """
    scientific = [name for name in design.nodes if name in reading.scientific]
    groups = design.u.reshape(QUESTIONS, -1, design.u.shape[1])[: _QUESTIONS if len(scientific) > 1 else 1, :_TUNINGS]
    free = [name for name in design.nodes if name not in scientific and name != factor]
    few = replace(reading, posterior=fewer(reading.posterior, _TUNING_SETS))
    search = _Search(few, design, free, design.index(factor))
    columns, weights = [], np.zeros(0)
    for place in places:
        pinned = groups.copy()
        pinned[:, :, design.index(factor)] = place
        scores = search.scores(pinned.reshape(-1, pinned.shape[2])).reshape(pinned.shape[:2])
        kept = np.isfinite(scores).any(axis=1)
        starts = pinned[kept, scores[kept].argmax(axis=1)]
        values, weights = _functions(reading, search.climbed(starts, _TUNING_ROUNDS))
        columns.append(values.mean(axis=1))
    return Marginal(np.stack(columns, axis=1), weights)


def _functions(reading: Reading, points: Floats) -> tuple[Floats, Floats]:
    """Return the functions at points of the unit cube, shape (draws, n), and the weights of the draws, shape (draws,)."""
    x = reading.measure.points(points)[0]
    inverse = reading.fitted.response.inverse
    each = [inverse(draws.at(draws.points(x), reading.coefficients)) for _, draws in reading.posterior]
    weights = [np.full(draws.size, weight / draws.size) for weight, draws in reading.posterior]
    return np.concatenate(each), np.concatenate(weights)


def _rounded(reading: Reading, name: str, value: Scalar) -> Scalar:
    """Return a continuous factor's value with few digits, unless that would lead out of what was declared."""
    axis = reading.measure.axis(name)
    if axis.levels or not isinstance(value, float):
        return value
    low, high = axis.bounds
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)
