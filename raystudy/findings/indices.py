"""Sobol indices of functions drawn from the posterior, on the metric's own scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from raystudy.findings.curves import Floats
from raystudy.findings.design import Bools, Design
from raystudy.findings.draws import Draws, Points

Inverse = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Along:
    """What one factor does, in each of a number of functions.

    Attributes:
        main: E[f | x_j], for a conditional factor where it is active, shape (draws, nodes).
        first: numerator of the first-order index, shape (draws,).
        total: numerator of the total index, shape (draws,).
        inside: the first-order index among the configurations where the factor is active, shape (draws,).
        parts: numerators of the first-order index from each replicate alone, shape (replicates, draws).
    """

    main: Floats
    first: Floats
    total: Floats
    inside: Floats
    parts: Floats


@dataclass(slots=True)
class Drawn:
    """The factors' parts in the variance of a number of functions.

    Attributes:
        variance: of each function, shape (draws,).
        noise: variance of a trial's result about its function, averaged over configurations, shape (draws,).
        values: the functions at the base configurations, shape (draws, n).
        along: by factor.
        weights: importance weights of the functions, shape (draws,), sum 1 over all that are put together.
    """

    variance: Floats
    noise: Floats
    values: Floats
    along: dict[str, Along] = field(default_factory=dict)
    weights: Floats = field(default_factory=lambda: np.ones(1))

    def first(self, factor: str) -> Floats:
        """Return the first-order index in each function; 0 where the function does not vary at all."""
        return _share(self.along[factor].first, self.variance)

    def total(self, factor: str) -> Floats:
        """Return the total index in each function."""
        return _share(self.along[factor].total, self.variance)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def draw_indices(draws: Draws, design: Design, coefficients: Floats, inverse: Inverse) -> Drawn:
    """Take apart the variance of the functions at one set of hyperparameters.

    Args:
        draws: the functions.
        design: where they are read.
        coefficients: the learning curve's features at the epoch asked for.
        inverse: from the surrogate's scale to the metric's.
    """
    base = draws.points(design.x)
    values = inverse(draws.at(base, coefficients))
    found = {name: _along(draws, design, base, values, name, coefficients, inverse) for name in design.nodes}
    # Each factor's grid is one more estimate of the variance, of many more configurations than the base alone.
    variance = np.mean([spread for _, spread in found.values()], axis=0) if found else values.var(axis=1)
    noise = _noise(draws, design, base, coefficients, inverse)
    return Drawn(variance, noise, values, {name: along for name, (along, _) in found.items()})


def _along(
    draws: Draws, design: Design, base: Points, plain: Floats, factor: str, coefficients: Floats, inverse: Inverse
) -> tuple[Along, Floats]:
    """Return what a factor does, and the variance of the functions as its grid shows it; `plain` are they at the base."""
    nodes, active = design.nodes[factor], design.active(factor)
    values = inverse(values_along(draws, design, base, factor, coefficients))  # (draws, n, nodes)
    weights = nodes.weights
    inside = values[:, active]
    main = inside.mean(axis=1)
    share = float(active.mean())
    first = _variance(main, weights)
    parts = [
        share * _variance(values[:, part][:, active[part]].mean(axis=1), weights)
        for part in design.parts()
        if active[part].any()
    ]
    within = (inside**2 @ weights).mean(axis=1) - (inside.mean(axis=1) @ weights) ** 2
    everything = np.where(active[None, :, None], values, plain[:, :, None])
    spread = (everything**2 @ weights).mean(axis=1) - (everything @ weights).mean(axis=1) ** 2
    along = Along(
        main=main,
        first=share * first,
        total=share * _variance(inside, weights).mean(axis=1),
        inside=_share(first, within),
        parts=np.array(parts),
    )
    return along, spread


def values_along(draws: Draws, design: Design, base: Points, factor: str, coefficients: Floats) -> Floats:
    """Return the functions at the base with a factor at each of its nodes, on the surrogate's scale, (draws, n, nodes)."""
    nodes, j = design.nodes[factor], design.index(factor)
    if design.is_gate(factor):
        each = [draws.at(Points(design.replaced(factor, node)), coefficients) for node in range(len(nodes.u))]
        return np.stack(each, axis=2)
    return draws.along(base, [j], nodes.x, coefficients)


def _variance(values: Floats, weights: Floats) -> Floats:
    """Return the weighted variance over the last axis."""
    centred = values - (values @ weights)[..., None]
    return centred**2 @ weights


def _noise(draws: Draws, design: Design, base: Points, coefficients: Floats, inverse: Inverse) -> Floats:
    """Return the mean variance of a result about its function: seed and report noise, through the scale's slope there."""
    values = draws.at(base, coefficients)
    seed, report = draws.variances(design.x)
    step = np.sqrt(seed + report)
    # Gauss-Hermite with three nodes: exact for a quadratic response.
    ends = [inverse(values + sign * np.sqrt(3) * step) for sign in (-1.0, 1.0)]
    middle = inverse(values)
    mean = (ends[0] + 4 * middle + ends[1]) / 6
    square = (ends[0] ** 2 + 4 * middle**2 + ends[1] ** 2) / 6
    return np.maximum(square - mean**2, 0).mean(axis=1)


def surface(draws: Draws, design: Design, factors: tuple[str, str], coefficients: Floats, inverse: Inverse) -> Floats:
    """Return the functions over two factors, averaged over all others, shape (draws, nodes of the first, nodes of the second).

    Where one of the two gates the other there is no such surface: ask for others. Factors of which one is conditional are
    averaged over the configurations in which both are active.
    """
    if any(design.is_gate(factor) for factor in factors):
        return _surface_of_gate(draws, design, factors, coefficients, inverse)
    rows, columns = (design.nodes[factor].x for factor in factors)
    both = np.repeat(rows, len(columns), axis=0)
    own = draws.surrogate.columns[design.index(factors[1])]
    both[:, own] = np.tile(columns[:, own], (len(rows), 1))
    base = Points(design.x[design.active(factors[0]) & design.active(factors[1])])
    values = draws.along(base, [design.index(factor) for factor in factors], both, coefficients)
    return np.asarray(inverse(values).mean(axis=1).reshape(-1, len(rows), len(columns)))


def _surface_of_gate(draws: Draws, design: Design, factors: tuple[str, str], coefficients: Floats, inverse: Inverse) -> Floats:
    """Return the same for a gate and another factor: it takes the columns of the factors that it gates with it."""
    gate, other = sorted(factors, key=design.is_gate, reverse=True)
    active, ends = design.active(gate) & design.active(other), design.nodes[other].x
    slices = []
    for node in range(len(design.nodes[gate].u)):
        points = Points(design.replaced(gate, node)[active])
        slices.append(inverse(draws.along(points, [design.index(other)], ends, coefficients)).mean(axis=1))
    found = np.stack(slices, axis=1)
    return found if (gate, other) == factors else found.transpose(0, 2, 1)


def interaction(values: Floats, first: Floats, second: Floats) -> Floats:
    """Return the variance of the interaction of two factors from their surfaces, shape (draws,).

    Args:
        values: surfaces, shape (draws, a, b).
        first: probabilities of the nodes of the first factor, shape (a,).
        second: of the second, shape (b,).
    """
    rows, columns = values @ second, np.einsum("sab,a->sb", values, first)
    mean = rows @ first
    rest = values - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    return np.einsum("sab,a,b->s", rest**2, first, second)


def put_together(found: Iterable[Drawn], weights: Floats) -> Drawn:
    """Put the functions of several sets of hyperparameters together, weighted by those."""
    every = list(found)
    sizes = [len(one.variance) for one in every]
    spread = np.concatenate([np.full(size, weight / size) for size, weight in zip(sizes, weights, strict=True)])
    along = {}
    for name in every[0].along:
        each = [one.along[name] for one in every]
        along[name] = Along(
            main=np.concatenate([one.main for one in each]),
            first=np.concatenate([one.first for one in each]),
            total=np.concatenate([one.total for one in each]),
            inside=np.concatenate([one.inside for one in each]),
            parts=np.concatenate([one.parts for one in each], axis=1),
        )
    return Drawn(
        np.concatenate([one.variance for one in every]),
        np.concatenate([one.noise for one in every]),
        np.concatenate([one.values for one in every]),
        along,
        spread / spread.sum(),
    )


__all__ = ["Along", "Bools", "Drawn", "draw_indices", "interaction", "put_together", "surface", "values_along"]
