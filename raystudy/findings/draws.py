"""Functions drawn from the surrogate's posterior, cheap to evaluate at very many configurations.

By Matheron's rule (Wilson et al. 2020, "Efficiently sampling functions from Gaussian process posteriors") a draw is a draw
from the prior plus a kernel-weighted correction towards the data. The prior part uses random Fourier features: an ANOVA
kernel Π_j (1 + w_j κ_j) / (1 + w_j) is the mean over random sets of factors, each in the set with probability
w_j / (1 + w_j), of the product of their κ_j; so its spectral measure has each factor's frequency 0 with probability
1 / (1 + w_j), else distributed as that of κ_j (for a Matérn kernel a Student t with 2ν degrees of freedom, over the length).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raystudy.findings.curves import Floats
from raystudy.findings.surrogate import LEVEL_VARIANCE, SLOPE_VARIANCE, TREND_VARIANCE, Hyperparameters, Surrogate

FEATURES = 512
"""Number of random Fourier features of one function."""


@dataclass(frozen=True, slots=True)
class _Component:
    """Draws of one coefficient (the final value, or a bend) as a function of the configuration.

    Attributes:
        weight: w_j of its ANOVA kernel, shape (factors,).
        frequencies: shape (features, width).
        phases: shape (features,).
        amplitudes: shape (features, draws).
        updates: of the kernel between a configuration and each trial, shape (trials, draws).
        constant: shape (draws,).
        slopes: of the trends, shape (width, draws).
    """

    weight: Floats
    frequencies: Floats
    phases: Floats
    amplitudes: Floats
    updates: Floats
    constant: Floats
    slopes: Floats

    def anova(self, tables: Floats) -> Floats:
        """Return (1 + w_j κ_j) / (1 + w_j), shape of `tables`."""
        w = self.weight[:, None, None]
        return (1 + w * tables) / (1 + w)


@dataclass(frozen=True, slots=True)
class Points:
    """Configurations with the kernel tables between them and the trials, at one set of hyperparameters.

    Attributes:
        x: encoded, shape (n, width).
        tables: κ_j between each and each trial, shape (factors, n, trials).
    """

    x: Floats
    tables: Floats

    def replaced(self, factor: int, columns: slice, nodes: Points, node: int) -> Points:
        """Return the same configurations with one factor as in one of `nodes`, without computing any kernel."""
        x, tables = self.x.copy(), self.tables.copy()
        x[:, columns] = nodes.x[node, columns]
        tables[factor] = nodes.tables[factor, node]
        return Points(x, tables)

    def where(self, chosen: NDArray[np.bool_]) -> Points:
        """Return some of the configurations."""
        return Points(self.x[chosen], self.tables[:, chosen])


def _flat_variances(k: int) -> tuple[float, float]:
    """Return the prior variances of the constant and of the trends of coefficient `k`: 0 is the final value."""
    return (LEVEL_VARIANCE, 0.0) if k == 0 else (SLOPE_VARIANCE, TREND_VARIANCE)


class Draws:
    """Several functions drawn jointly from the posterior at one set of hyperparameters."""

    def __init__(self, surrogate: Surrogate, vector: Floats, size: int, seed: int) -> None:
        """Draw.

        Args:
            surrogate: the fitted model.
            vector: hyperparameters.
            size: number of functions.
            seed: of the draw.
        """
        self.surrogate, self.vector, self.size = surrogate, vector, size
        self.hyper: Hyperparameters = surrogate.hyperparameters(vector)
        self._random = np.random.default_rng(seed)
        prior = [self._prior(k) for k in range(1 + surrogate.n_bends)]
        self._components = tuple(self._corrected(prior))
        self._points: dict[int, Points] = {}

    def _scale(self, k: int) -> float:
        return self.hyper.final_scale if k == 0 else float(self.hyper.speed_scale[k - 1])

    def _prior(self, k: int) -> _Component:
        """Draw the prior of coefficient `k`: 0 is the final value."""
        hyper, random = self.hyper, self._random
        weight = hyper.final_weight if k == 0 else hyper.speed_weight
        freedom = 2 * self.surrogate.smoothness
        frequencies = np.zeros((FEATURES, self.surrogate.x.shape[1]))
        for j, columns in enumerate(self.surrogate.columns):
            width = columns.stop - columns.start
            included = random.random(FEATURES) < weight[j] / (1 + weight[j])
            tails = np.sqrt(freedom / random.chisquare(freedom, FEATURES))
            normal = random.standard_normal((FEATURES, width))
            frequencies[:, columns] = normal * (included * tails / hyper.lengths[j])[:, None]
        flat, sloping = _flat_variances(k)
        return _Component(
            weight=weight,
            frequencies=frequencies,
            phases=random.uniform(0, 2 * np.pi, FEATURES),
            amplitudes=random.standard_normal((FEATURES, self.size)) * self._scale(k) * np.sqrt(2 / FEATURES),
            updates=np.zeros((len(self.surrogate.x), self.size)),
            constant=random.standard_normal(self.size) * np.sqrt(flat),
            slopes=random.standard_normal((frequencies.shape[1], self.size)) * np.sqrt(sloping),
        )

    def _corrected(self, prior: list[_Component]) -> Iterator[_Component]:
        """Yield the components with the corrections that the data ask for."""
        rows, trends = self.surrogate.rows, self.surrogate.trends
        residual = rows.target[:, None] - self._simulated(prior)
        solved = self.surrogate.solve(self.vector, residual)
        for k, component in enumerate(prior):
            updates = np.zeros_like(component.updates)
            np.add.at(updates, rows.trial, rows.weights[:, k : k + 1] * solved)
            flat, sloping = _flat_variances(k)
            yield _Component(
                weight=component.weight,
                frequencies=component.frequencies,
                phases=component.phases,
                amplitudes=component.amplitudes,
                updates=updates * self._scale(k) ** 2,
                constant=component.constant + flat * updates.sum(0),
                slopes=component.slopes + sloping * trends.T @ updates,
            )

    def _simulated(self, prior: list[_Component]) -> Floats:
        """Return the rows that the prior draws would have given, noise included, shape (rows, draws)."""
        surrogate, hyper, random = self.surrogate, self.hyper, self._random
        rows, spread = surrogate.rows, hyper.spread(surrogate.x)[:, None]
        simulated = np.zeros((len(rows.target), self.size))
        for k, component in enumerate(prior):
            phases = surrogate.x @ component.frequencies.T + component.phases
            values = np.cos(phases) @ component.amplitudes + surrogate.trends @ component.slopes + component.constant
            own = hyper.seed * spread if k == 0 else hyper.speed_rest
            values = values + own * random.standard_normal(values.shape)
            simulated += rows.weights[:, k : k + 1] * values[rows.trial]
        noise = np.sqrt((hyper.noise * spread[rows.trial]) ** 2 + 1e-8)
        return simulated + noise * random.standard_normal(simulated.shape)

    def first(self, size: int) -> Draws:
        """Return the first `size` of the functions."""
        fewer = copy.copy(self)
        fewer.size = size
        fewer._components = tuple(
            replace(
                one,
                amplitudes=one.amplitudes[:, :size],
                updates=one.updates[:, :size],
                constant=one.constant[:size],
                slopes=one.slopes[:, :size],
            )
            for one in self._components
        )
        return fewer

    def points(self, x: Floats) -> Points:
        """Return encoded configurations, shape (n, width), prepared for evaluation; the same array is prepared once."""
        known = self._points.get(id(x))
        if known is None or known.x is not x:
            known = self._points[id(x)] = Points(x, self.surrogate.tables(self.vector, x))
        return known

    def forget(self) -> None:
        """Free what was prepared."""
        self._points.clear()

    def at(self, points: Points, coefficients: Floats) -> Floats:
        """Return the functions at configurations, on the surrogate's scale, shape (draws, n).

        Args:
            points: where.
            coefficients: of the curve at the epoch asked for, shape (1 + K,); see `curves.features`.
        """
        total, trend = np.zeros((len(points.x), self.size)), self.surrogate.trend(points.x)
        for component, coefficient in self._needed(coefficients):
            phases = points.x @ component.frequencies.T + component.phases
            kernel = component.anova(points.tables).prod(0)
            smooth = np.cos(phases) @ component.amplitudes + kernel @ component.updates
            total += coefficient * (smooth + trend @ component.slopes + component.constant)
        return total.T

    def along(self, points: Points, factor: int, nodes: Points, coefficients: Floats) -> Floats:
        """Return the functions at configurations with one factor's columns replaced, shape (draws, n, nodes).

        Args:
            points: the n configurations.
            factor: index of the factor.
            nodes: configurations of which only the columns of `factor` are used.
            coefficients: of the curve at the epoch asked for, shape (1 + K,).
        """
        out = np.zeros((self.size, len(points.x), len(nodes.x)))
        columns = self.surrogate.columns[factor]
        trend, steps = self.surrogate.trend(points.x), self.surrogate.trend(nodes.x)[:, columns]
        trend[:, columns] = 0
        for component, coefficient in self._needed(coefficients):
            tables = component.anova(points.tables)
            others = np.delete(tables, factor, axis=0).prod(0)
            own = component.anova(nodes.tables)[factor].T
            mine = component.frequencies[:, columns]
            rest = points.x @ component.frequencies.T + component.phases - points.x[:, columns] @ mine.T
            angle = nodes.x[:, columns] @ mine.T
            # cos(a + b) = cos a cos b - sin a sin b: the draws at all pairs of configuration and node are one matrix product.
            left = np.concatenate([others, np.cos(rest), -np.sin(rest)], axis=1)
            right = np.concatenate([own, np.cos(angle).T, np.sin(angle).T], axis=0)
            level, step = trend @ component.slopes + component.constant, steps @ component.slopes[columns]
            weights = np.concatenate([component.updates, component.amplitudes, component.amplitudes])
            weighted = (weights[:, :, None] * right[:, None, :]).reshape(len(right), -1)
            smooth = (left @ weighted).reshape(len(points.x), self.size, len(nodes.x)).transpose(1, 0, 2)
            out += coefficient * (smooth + level.T[:, :, None] + step.T[:, None, :])
        return out

    def _needed(self, coefficients: Floats) -> Iterator[tuple[_Component, float]]:
        return ((component, float(c)) for component, c in zip(self._components, coefficients, strict=True) if c != 0)

    def variances(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the variances of the seed's effect on the final value and of a report, on the surrogate's scale; both (n,)."""
        spread = self.hyper.spread(x) ** 2
        return self.hyper.seed**2 * spread, self.hyper.noise**2 * spread
