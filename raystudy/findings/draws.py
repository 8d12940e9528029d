"""Functions drawn from the surrogate's posterior, cheap to evaluate at very many configurations.

By Matheron's rule (Wilson et al. 2020, "Efficiently sampling functions from Gaussian process posteriors") a draw is a draw
from the prior plus a kernel-weighted correction towards the data. The prior part uses random Fourier features: an ANOVA
kernel Π_j (1 + w_j κ_j) / (1 + w_j) is the mean over random sets of factors, each in the set with probability
w_j / (1 + w_j), of the product of their κ_j; so its spectral measure has each factor's frequency 0 with probability
1 / (1 + w_j), else distributed as that of κ_j (for a Matérn kernel a Student t with 2ν degrees of freedom, over the length).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raystudy.findings.curves import Floats, Ints
from raystudy.findings.surrogate import LEVEL_VARIANCE, SLOPE_VARIANCE, TREND_VARIANCE, Hyperparameters, Surrogate

FEATURES = 512
"""Number of random Fourier features of one function."""
_CACHED = 1 << 16
"""Elements of a kernel that are computed together, so that they stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Points:
    """Configurations, and what functions drawn at one set of hyperparameters share there, once it was asked for.

    Attributes:
        x: encoded, shape (n, width).
        kernels: between the configurations and the trials, shape (n, trials), by whether it is that of the final value.
        waves: phases of the features and their cosines, shape (n, features) each, by coefficient.
    """

    x: Floats
    kernels: dict[bool, Floats] = field(default_factory=dict)
    waves: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Component:
    """Draws of one coefficient of the curve as a function of the configuration.

    Attributes:
        number: which coefficient it is; 0 is the final value, the others are bends.
        weight: w_j of its ANOVA kernel, shape (factors,).
        frequencies: shape (features, width).
        phases: shape (features,).
        amplitudes: shape (features, draws).
        updates: of the kernel between a configuration and each trial, shape (trials, draws).
        constant: shape (draws,).
        slopes: of the trends, shape (width, draws).
    """

    number: int
    weight: Floats
    frequencies: Floats
    phases: Floats
    amplitudes: Floats
    updates: Floats
    constant: Floats
    slopes: Floats

    def waves(self, points: Points) -> tuple[Floats, Floats]:
        """Return the phases of the features at configurations and their cosines, shape (n, features) each."""
        if self.number not in points.waves:
            phases = points.x @ self.frequencies.T + self.phases
            points.waves[self.number] = phases, np.cos(phases)
        return points.waves[self.number]


def _outer(weights: Floats, ends: Floats) -> Floats:
    """Return the products of each draw's weights, shape (k, draws), with each node's, (k, nodes); shape (k, draws * nodes)."""
    return np.asarray((weights[:, :, None] * ends[:, None, :]).reshape(len(weights), weights.shape[1] * ends.shape[1]))


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
            number=k,
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
            yield replace(
                component,
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
        """Return encoded configurations, shape (n, width), for evaluation; for the same array always the same."""
        known = self._points.get(id(x))
        if known is None or known.x is not x:
            known = self._points[id(x)] = Points(x)
        return known

    def forget(self) -> None:
        """Free what was computed at points."""
        self._points.clear()

    def at(self, points: Points, coefficients: Floats) -> Floats:
        """Return the functions at configurations, on the surrogate's scale, shape (draws, n).

        Args:
            points: where.
            coefficients: of the curve at the epoch asked for, shape (1 + K,); see `curves.features`.
        """
        total, trend = np.zeros((len(points.x), self.size)), self.surrogate.trend(points.x)
        for component, coefficient in self._needed(coefficients):
            smooth = component.waves(points)[1] @ component.amplitudes + self._kernel(component, points) @ component.updates
            total += coefficient * (smooth + trend @ component.slopes + component.constant)
        return total.T

    def along(self, points: Points, factors: Sequence[int], nodes: Floats, coefficients: Floats) -> Floats:
        """Return the functions at configurations with some factors' columns replaced, shape (draws, n, nodes).

        Args:
            points: the n configurations.
            factors: indices of the factors.
            nodes: encoded configurations of which only the columns of `factors` are used, shape (nodes, width).
            coefficients: of the curve at the epoch asked for, shape (1 + K,).
        """
        out = np.zeros((len(points.x), self.size, len(nodes)))
        columns = np.concatenate([np.arange(nodes.shape[1])[self.surrogate.columns[factor]] for factor in factors])
        trend, steps = self.surrogate.trend(points.x), self.surrogate.trend(nodes)[:, columns]
        trend[:, columns] = 0
        for component, coefficient in self._needed(coefficients):
            level, step = trend @ component.slopes + component.constant, steps @ component.slopes[columns]
            smooth = self._smooth_along(component, points, factors, columns, nodes)
            smooth += level[:, :, None] + step.T
            out += coefficient * smooth
        return out.transpose(1, 0, 2)

    def _smooth_along(
        self, component: _Component, points: Points, factors: Sequence[int], columns: Ints, nodes: Floats
    ) -> Floats:
        """Return what `along` does of one component without constant and trends, shape (n, draws, nodes)."""
        mine = component.frequencies[:, columns]
        moves = mine.any(axis=1)  # a feature of frequency 0 in the factors is the same at all nodes
        mine, amplitudes = mine[moves], component.amplitudes[moves]
        phases, cosines = component.waves(points)
        rest, angle = phases[:, moves] - points.x[:, columns] @ mine.T, mine @ nodes[:, columns].T
        others = self._kernel(component, points) / self._parts(component, factors, points.x)
        own = self._parts(component, factors, nodes)
        # cos(a + b) = cos a cos b - sin a sin b: the draws at all pairs of configuration and node are matrix products.
        found = others @ _outer(component.updates, own.T)
        found += np.cos(rest) @ _outer(amplitudes, np.cos(angle))
        found -= np.sin(rest) @ _outer(amplitudes, np.sin(angle))
        still = cosines[:, ~moves] @ component.amplitudes[~moves]
        return np.asarray(found.reshape(len(points.x), self.size, len(nodes)) + still[:, :, None])

    def _kernel(self, component: _Component, points: Points) -> Floats:
        """Return the ANOVA kernel between configurations and the trials, shape (n, trials)."""
        is_final, every = component.number == 0, range(len(component.weight))
        if is_final not in points.kernels:
            size = max(_CACHED // len(self.surrogate.x), 1)
            blocks = [points.x[start : start + size] for start in range(0, len(points.x), size)]
            points.kernels[is_final] = np.concatenate([self._parts(component, every, block) for block in blocks])
        return points.kernels[is_final]

    def _parts(self, component: _Component, factors: Sequence[int], x: Floats) -> Floats:
        """Return some factors' parts of it, Π_j (1 + w_j κ_j) / (1 + w_j), never 0; shape (n, trials)."""
        product = np.ones((len(x), len(self.surrogate.x)))
        for factor in factors:
            share = component.weight[factor] / (1 + component.weight[factor])
            part = self.surrogate.table(factor, self.hyper.lengths[factor], x)
            part *= share
            part += 1 - share
            product *= part
        return product

    def _needed(self, coefficients: Floats) -> Iterator[tuple[_Component, float]]:
        return ((component, float(c)) for component, c in zip(self._components, coefficients, strict=True) if c != 0)

    def variances(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the variances of the seed's effect on the final value and of a report, on the surrogate's scale; both (n,)."""
        spread = self.hyper.spread(x) ** 2
        return self.hyper.seed**2 * spread, self.hyper.noise**2 * spread
