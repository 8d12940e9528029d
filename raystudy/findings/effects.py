"""How the metric depends on factors: marginal curves, tuned comparisons, two-way surfaces, courses over epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Literal

import numpy as np

from raystudy.findings.answer import AtEpoch, Effect, Interval, Level, Share, Surface
from raystudy.findings.curves import Floats
from raystudy.findings.design import Design
from raystudy.findings.fitting import Fitted, Posterior, weightiest
from raystudy.findings.indices import Drawn, draw_indices, interaction, put_together, surface, values_along
from raystudy.findings.measure import Measure
from raystudy.findings.verdict import interval, pair_share

MOST_FACTORS = 8
"""Factors among which interactions are looked at: those with the largest total indices."""
_SURFACES = 3
_TUNINGS, _QUESTIONS = 64, 8
"""Values of the nuisance factors that are tried for each of so many combinations of the other scientific factors."""


def effects(
    fitted: Fitted,
    posterior: Posterior,
    measure: Measure,
    drawn: Drawn,
    design: Design,
    names: list[str],
    roles: Mapping[str, str],
    mode: str,
) -> list[Effect]:
    """Return each factor's effect, in the order of `names`.

    Args:
        fitted: the surrogate.
        posterior: functions drawn from it.
        measure: the distribution that is averaged over.
        drawn: the marginal curves.
        design: where they were read.
        names: the factors.
        roles: scientific or nuisance, where known; without any, all other factors are tuned for a factor's value.
        mode: `max` or `min`.
    """
    posterior = weightiest(posterior, 8)
    scientific = [name for name in measure.names if roles.get(name) == "scientific"]
    tuned = _tuning_design(measure, scientific, fitted.seed)
    return [_effect(fitted, measure, drawn, design, tuned, posterior, name, roles.get(name, ""), mode) for name in names]


def _effect(
    fitted: Fitted,
    measure: Measure,
    drawn: Drawn,
    design: Design,
    tuned: Design,
    posterior: Posterior,
    name: str,
    role: str,
    mode: str,
) -> Effect:
    nodes, main = design.nodes[name], drawn.along[name].main
    profile, weights = _profile(fitted, tuned, posterior, name, 1.0 if mode == "max" else -1.0)
    best = (profile if mode == "max" else -profile).argmax(axis=1)
    levels = [
        Level(
            value=label,
            mean=interval(main[:, node], drawn.weights),
            profile=interval(profile[:, node], weights),
            probability_best=float(weights[best == node].sum()),
        )
        for node, label in enumerate(nodes.labels)
    ]
    return Effect(factor=name, role=role, scale=scale_of(measure, name), levels=tuple(levels))


def scale_of(measure: Measure, name: str) -> Literal["log", "linear", "ordered", "categorical"]:
    """Return the scale on which a factor's values are shown."""
    axis = measure.axis(name)
    if axis.kind == "categorical":
        return "categorical"
    return "log" if axis.log else ("linear" if axis.kind == "continuous" else "ordered")


def _tuning_design(measure: Measure, scientific: list[str], seed: int) -> Design:
    """Return base configurations in groups of `_TUNINGS`: the scientific factors are the same within a group."""
    design = Design.of(measure, _TUNINGS * _QUESTIONS, seed + 1)
    u = design.u.reshape(_QUESTIONS, _TUNINGS, -1).copy()
    for name in scientific:
        u[:, :, design.index(name)] = u[:, :1, design.index(name)]
    return Design(measure, u.reshape(_QUESTIONS * _TUNINGS, -1), design.nodes)


def _profile(fitted: Fitted, design: Design, posterior: Posterior, name: str, better: float) -> tuple[Floats, Floats]:
    """Return the best of a group's functions at each value of a factor, averaged over groups, (draws, nodes), and weights."""
    coefficients = fitted.coefficients(fitted.budget)
    active = design.active(name).reshape(_QUESTIONS, _TUNINGS)
    found, weights = [], []
    for weight, draws in posterior:
        values = fitted.response.inverse(values_along(draws, design, draws.points(design.x), name, coefficients))
        grouped = better * values.reshape(draws.size, _QUESTIONS, _TUNINGS, -1)
        grouped = np.where(active[None, :, :, None], grouped, -np.inf).max(axis=2)
        found.append(better * grouped[:, active.any(axis=1)].mean(axis=1))
        weights.append(np.full(draws.size, weight / draws.size))
    return np.concatenate(found), np.concatenate(weights)


def pairs(
    fitted: Fitted, posterior: Posterior, measure: Measure, drawn: Drawn, epoch: int, floor: float, names: list[str]
) -> tuple[list[Share], list[Surface]]:
    """Return the interactions of two factors, the largest first, and the surfaces of the strongest.

    Args:
        fitted: the surrogate.
        posterior: functions drawn from it.
        measure: the distribution that is averaged over.
        drawn: the variance, and the factors' total indices.
        epoch: the epoch that is asked about.
        floor: share that is not told from none.
        names: the factors.
    """
    ranked = sorted(names, key=lambda name: -float(drawn.total(name) @ drawn.weights))[:MOST_FACTORS]
    design = Design.of(measure, 64, fitted.seed + 2, nodes=8)
    posterior = weightiest(posterior, 6)
    found = []
    for pair in combinations([name for name in names if name in ranked], 2):
        if _related(measure, *pair):
            continue
        values, weights = _surfaces(fitted, design, posterior, pair, epoch)
        first, second = (design.nodes[name].weights for name in pair)
        both = float((design.active(pair[0]) & design.active(pair[1])).mean())
        index = both * interaction(values, first, second) / float(drawn.variance @ drawn.weights)
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


def _surfaces(fitted: Fitted, design: Design, posterior: Posterior, pair: tuple[str, str], epoch: int) -> tuple[Floats, Floats]:
    coefficients = fitted.coefficients(epoch)
    each = [surface(draws, design, pair, coefficients, fitted.response.inverse) for _, draws in posterior]
    weights = np.concatenate([np.full(draws.size, weight / draws.size) for weight, draws in posterior])
    return np.concatenate(each), weights


def _surface(design: Design, pair: tuple[str, str], values: Floats, weights: Floats) -> Surface:
    rows, columns = (design.nodes[name].labels for name in pair)
    mean = np.einsum("s,sab->ab", weights, values)
    return Surface(factors=pair, rows=rows, columns=columns, mean=tuple(tuple(float(v) for v in row) for row in mean))


def along_epochs(
    fitted: Fitted, posterior: Posterior, measure: Measure, names: list[str], last: int, final: list[Share], floor: float
) -> list[AtEpoch]:
    """Return the first-order indices at epochs that grow by about three, the last one being `last` with the indices given."""
    design = Design.of(measure, 128, fitted.seed + 3)
    posterior = weightiest(posterior, 6)
    course = []
    for epoch in milestones(last)[:-1]:
        coefficients = fitted.coefficients(epoch)
        each = [draw_indices(draws, design, coefficients, fitted.response.inverse) for _, draws in posterior]
        drawn = put_together(each, np.array([weight for weight, _ in posterior]))
        shares = {name: interval(drawn.first(name), drawn.weights, floor=floor) for name in names}
        course.append(AtEpoch(epoch=epoch, first_order=shares))
    at_last: dict[str, Interval] = {share.name: share.first_order for share in final if share.first_order}
    return [*course, AtEpoch(epoch=last, first_order=at_last)]


def milestones(last: int) -> list[int]:
    """Return epochs from 1 to `last`, each about three times the one before: 1, 3, 9, 27."""
    steps = max(round(np.log(last) / np.log(3)), 1) if last > 1 else 0
    return sorted({round(last ** (step / steps)) for step in range(steps + 1)} if steps else {1})
