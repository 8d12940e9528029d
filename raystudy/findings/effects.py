"""How the metric depends on factors: marginal curves, tuned comparisons, two-way surfaces, courses over epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from raystudy.findings import tuning
from raystudy.findings.answer import AtEpoch, Effect, Interval, Level, Share, Surface
from raystudy.findings.curves import Floats
from raystudy.findings.design import Design
from raystudy.findings.fitting import Fitted, Posterior, fewer
from raystudy.findings.indices import Drawn, draw_indices, interaction, put_together, surface, values_along
from raystudy.findings.measure import Measure
from raystudy.findings.verdict import interval, pair_share

MOST_FACTORS = 8
"""Factors among which interactions are looked at: those with the largest total indices."""
_SURFACES = 3
_SETS, _SETS_TO_CHOOSE = 8, 3
"""Sets of hyperparameters whose functions an effect is read from, and those that say where tuned nuisance factors lie."""


@dataclass(frozen=True)
class Reading:
    """What is read from a fitted surrogate.

    Attributes:
        fitted: the surrogate.
        posterior: functions drawn from it.
        measure: the distribution of configurations that is asked about.
        epoch: the epoch that is asked about.
        mode: `max` or `min`.
        roles: scientific or nuisance, where known; without any, all other factors are tuned for a factor's value.
    """

    fitted: Fitted
    posterior: Posterior
    measure: Measure
    epoch: int
    mode: str
    roles: Mapping[str, str]

    @property
    def coefficients(self) -> Floats:
        """The learning curve's features at the epoch, shape (1 + K,)."""
        return self.fitted.coefficients(self.epoch)

    @property
    def scientific(self) -> list[str]:
        """The factors that are not tuned."""
        return [name for name in self.measure.names if self.roles.get(name) == "scientific"]

    @property
    def better(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if self.mode == "max" else -1.0


@dataclass(frozen=True, slots=True)
class Marginal:
    """The functions along one factor.

    Attributes:
        values: on the metric's scale, shape (draws, nodes).
        weights: of the draws, shape (draws,), sum 1.
    """

    values: Floats
    weights: Floats


def effects(reading: Reading, drawn: Drawn, design: Design, tuned: Mapping[str, Marginal], names: list[str]) -> list[Effect]:
    """Return each factor's effect, in the order of `names`.

    Args:
        reading: what is read.
        drawn: the marginal curves.
        design: where they were read.
        tuned: the profiles, by factor; see `profiles`.
        names: the factors.
    """
    return [_effect(reading, drawn, design, tuned[name], name) for name in names]


def profiles(reading: Reading, names: list[str]) -> dict[str, Marginal]:
    """Return by factor what the functions are at its nodes with the nuisance factors tuned for each."""
    design = tuning_design(reading)
    return {name: marginal(reading, design, name) for name in names}


def _effect(reading: Reading, drawn: Drawn, design: Design, tuned: Marginal, name: str) -> Effect:
    nodes, main = design.nodes[name], drawn.along[name].main
    profile, weights = tuned.values, tuned.weights
    best = (reading.better * profile).argmax(axis=1)
    levels = [
        Level(
            value=label,
            mean=interval(main[:, node], drawn.weights),
            profile=interval(profile[:, node], weights),
            probability_best=float(weights[best == node].sum()),
        )
        for node, label in enumerate(nodes.labels)
    ]
    scale = scale_of(reading.measure, name)
    return Effect(factor=name, role=reading.roles.get(name, ""), scale=scale, levels=tuple(levels))


def scale_of(measure: Measure, name: str) -> Literal["log", "linear", "ordered", "categorical"]:
    """Return the scale on which a factor's values are shown."""
    axis = measure.axis(name)
    if axis.kind == "categorical":
        return "categorical"
    return "log" if axis.log else ("linear" if axis.kind == "continuous" else "ordered")


def tuning_design(reading: Reading) -> Design:
    """Return the configurations at which `marginal` reads: see `tuning.tuning_design`."""
    return tuning.tuning_design(reading.measure, reading.scientific, reading.fitted.seed + 1)


def marginal(reading: Reading, design: Design, name: str, *, is_tuned: bool = True) -> Marginal:
    """Return the functions at each value of a factor, the others tuned for it or averaged.

    Args:
        reading: what is read.
        design: of `tuning_design`.
        name: the factor.
        is_tuned: whether the best of each group counts, averaged over the groups; else the mean of all configurations.
    """
    active = design.active(name)
    few = fewer(reading.posterior, _SETS)
    weights = np.concatenate([np.full(draws.size, weight / draws.size) for weight, draws in few])
    if not is_tuned:
        return Marginal(_along(reading, few, design, name)[:, active].mean(axis=1), weights)
    values = _along(reading, fewer(reading.posterior, _SETS_TO_CHOOSE), design, name)
    best = tuning.chosen(reading.better * values, active)
    u = design.u[best]
    u[:, :, design.index(name)] = design.nodes[name].u
    x = reading.measure.points(u.reshape(best.size, -1))[0]
    there = [reading.fitted.response.inverse(draws.at(draws.points(x), reading.coefficients)) for _, draws in few]
    return Marginal(np.concatenate(there).reshape(-1, *best.shape).mean(axis=1), weights)


def _along(reading: Reading, posterior: Posterior, design: Design, name: str) -> Floats:
    """Return functions at a design with one factor at each of its nodes, shape (draws, n, nodes)."""
    inverse, coefficients = reading.fitted.response.inverse, reading.coefficients
    each = (values_along(draws, design, draws.points(design.x), name, coefficients) for _, draws in posterior)
    return np.concatenate([inverse(values) for values in each])


def pairs(reading: Reading, drawn: Drawn, floor: float, names: list[str]) -> tuple[list[Share], list[Surface]]:
    """Return the interactions of two factors, the largest first, and the surfaces of the strongest.

    Args:
        reading: what is read.
        drawn: the variance, and the factors' total indices.
        floor: share that is not told from none.
        names: the factors.
    """
    ranked = sorted(names, key=lambda name: -float(drawn.total(name) @ drawn.weights))[:MOST_FACTORS]
    design = Design.of(reading.measure, 64, reading.fitted.seed + 2, nodes=8)
    variance = float(drawn.variance @ drawn.weights)
    found = []
    for pair in combinations([name for name in names if name in ranked], 2):
        if _related(reading.measure, *pair):
            continue
        values, weights = _surfaces(reading, design, pair)
        first, second = (design.nodes[name].weights for name in pair)
        both = float((design.active(pair[0]) & design.active(pair[1])).mean())
        index = both * interaction(values, first, second) / variance
        found.append((pair_share(pair, index, weights, floor), _surface(design, pair, values, weights)))
    found.sort(key=lambda one: -(one[0].first_order.value if one[0].first_order else 0.0))
    strong = [shown for share, shown in found if share.verdict == "important"]
    return [share for share, _ in found], strong[:_SURFACES]


def _related(measure: Measure, one: str, other: str) -> bool:
    """Whether one of two factors decides, directly or not, whether the other is active, or both are never active together."""

    def above(name: str) -> Iterator[str]:
        for parent in measure.axis(name).when:
            yield parent
            yield from above(parent)

    if one in above(other) or other in above(one):
        return True
    shared = set(measure.axis(one).when) & set(measure.axis(other).when)
    return any(not set(measure.axis(one).when[gate]) & set(measure.axis(other).when[gate]) for gate in shared)


def _surfaces(reading: Reading, design: Design, pair: tuple[str, str]) -> tuple[Floats, Floats]:
    posterior = fewer(reading.posterior, 6)
    inverse = reading.fitted.response.inverse
    each = [surface(draws, design, pair, reading.coefficients, inverse) for _, draws in posterior]
    weights = np.concatenate([np.full(draws.size, weight / draws.size) for weight, draws in posterior])
    return np.concatenate(each), weights


def _surface(design: Design, pair: tuple[str, str], values: Floats, weights: Floats) -> Surface:
    rows, columns = (design.nodes[name].labels for name in pair)
    mean = np.einsum("s,sab->ab", weights, values)
    return Surface(factors=pair, rows=rows, columns=columns, mean=tuple(tuple(float(v) for v in row) for row in mean))


def along_epochs(reading: Reading, final: list[Share], floor: float) -> list[AtEpoch]:
    """Return the first-order indices at epochs that grow by about three, up to the one asked about, whose are `final`."""
    design = Design.of(reading.measure, 128, reading.fitted.seed + 3)
    posterior = fewer(reading.posterior, 6)
    inverse = reading.fitted.response.inverse
    course = []
    for epoch in milestones(reading.epoch)[:-1]:
        coefficients = reading.fitted.coefficients(epoch)
        each = [draw_indices(draws, design, coefficients, inverse) for _, draws in posterior]
        drawn = put_together(each, np.array([weight for weight, _ in posterior]))
        shares = {share.name: interval(drawn.first(share.name), drawn.weights, floor=floor) for share in final}
        course.append(AtEpoch(epoch=epoch, first_order=shares))
    at_last: dict[str, Interval] = {share.name: share.first_order for share in final if share.first_order}
    return [*course, AtEpoch(epoch=reading.epoch, first_order=at_last)]


def milestones(last: int) -> list[int]:
    """Return epochs from 1 to `last`, each about three times the one before: 1, 3, 9, 27."""
    steps = max(round(np.log(last) / np.log(3)), 1) if last > 1 else 0
    return sorted({round(last ** (step / steps)) for step in range(steps + 1)} if steps else {1})
