"""A Gaussian process over configurations and time, fitted to all reports of all trials; the one place that needs torch.

The coefficients of a trial's learning curve (see `curves`) are functions of its configuration x:

    a(x)   = m   + f(x)           + ρ_x e         the final value
    b_k(x) = c_k + s_k·x + h_k(x) + δ e_k         how the curve gets there; all r_k(T) = 0

f and the h_k have ANOVA kernels, products over the factors of 1 + w_j κ_j, with κ_j a Matérn kernel on the factor's encoded
columns: a factor with small w_j acts additively, one with w_j near 0 not at all, and the smoothness of one (a cliff in the
learning rate) does not touch that of the others. s_k are trends over the ordered factors: where an adaptive sampler went
little, every trial was stopped early, and what its curve would have done is extrapolated. Without a trend the h_k fall back
there to their mean over the region that was searched, which credits the final value with less than it owes and says so with
too much confidence (measured: docs/importance.md). e is what a configuration's seed does to its final value. Noise and seed
effect may grow with the factors: σ_x = σ exp(g·x), ρ_x = ρ exp(g·x).

That a scheduler stopped most trials does no harm: it looked at nothing but reports, all of which are in the likelihood, so
the missing rest of the curves is missing at random (Rubin 1976).

Hyperparameters have weakly informative normal priors on their logarithms. Their uncertainty is kept: the posterior is
sampled from Laplace's approximation at the mode, corrected by importance resampling and Monte Carlo steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Positive
from gpytorch.functions import MaternCovariance
from gpytorch.kernels import MaternKernel
from gpytorch.priors import NormalPrior
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import Parameter

from raystudy.findings.curves import Floats, Ints, Rows

LEVEL_VARIANCE = 100.0
"""Prior variance of m, on the scale on which the reports have variance 1: as good as flat."""
SLOPE_VARIANCE = 9.0
"""Prior variance of the c_k."""
TREND_VARIANCE = 1.0
"""Prior variance of each s_k: over the whole range of a factor a bend changes by about the spread of all reports."""
CANDIDATES, MOVES, STRIDE = 4, 6, 0.4
"""Draws from Laplace's approximation for each set of hyperparameters wanted; steps that each is moved by, and how far."""
_JITTER = 1e-8
_UNSOLVABLE = (RuntimeError, NotPSDError, NanError)
"""What hyperparameters far off the mark bring about; torch's own error is a RuntimeError."""
_LOG_PRIORS = {
    "final_weight": (math.log(0.5), 1.5),
    "final_scale": (0.0, 1.0),
    "speed_weight": (math.log(0.5), 1.5),
    "speed_scale": (math.log(0.5), 1.0),
    "speed_rest": (math.log(0.1), 1.5),
    "seed": (math.log(0.05), 1.5),
    "noise": (math.log(0.1), 1.5),
    "growth": (0.0, 0.7),
}
"""Mean and standard deviation of the normal priors on the logarithms; `growth`, which is no scale, as it is."""
_LENGTH_PRIOR = (math.log(0.6), 0.8)


class _Covariance(gpytorch.Module):
    """The hyperparameters, their priors, and the kernels between trials."""

    def __init__(self, n_factors: int, width: int, n_bends: int, smoothness: float) -> None:
        super().__init__()
        exact = Positive(transform=torch.exp, inv_transform=torch.log)
        self.shape = MaternKernel(nu=smoothness, batch_shape=torch.Size([n_factors]), lengthscale_constraint=exact)
        self.shape.raw_lengthscale.data.fill_(_LENGTH_PRIOR[0])
        self._prior("length", _LENGTH_PRIOR, lambda module: module.shape.raw_lengthscale)
        sizes = {"final_weight": n_factors, "final_scale": 1, "seed": 1, "noise": 1, "growth": width}
        if n_bends:
            sizes |= {"speed_weight": n_factors, "speed_scale": n_bends, "speed_rest": 1}
        for name, size in sizes.items():
            self.register_parameter(f"log_{name}", Parameter(torch.full((size,), _LOG_PRIORS[name][0])))
            self._prior(name, _LOG_PRIORS[name], lambda module, name=name: module._parameters[f"log_{name}"])

    def _prior(self, name: str, prior: tuple[float, float], closure: object) -> None:
        self.register_prior(f"{name}_prior", NormalPrior(*(torch.tensor(number) for number in prior)), closure, None)

    def log_prior(self) -> Tensor:
        """Return the log density of the hyperparameters."""
        return sum(
            (prior.log_prob(closure(module)).sum() for _, module, prior, closure, _ in self.named_priors()), torch.zeros(())
        )

    def tables(self, distances: Tensor) -> Tensor:
        """Return κ_j at distances along each factor, shape (factors, ..., n)."""
        return _matern(distances, self.shape.lengthscale, self.shape.nu)

    def anova(self, tables: Tensor, log_weight: Tensor) -> Tensor:
        """Return Π_j (1 + w_j κ_j) / (1 + w_j), κ of shape (factors, n): variance 1."""
        w = log_weight.exp()[:, None]
        # In one pass: a table is larger than a processor's cache.
        return torch.addcmul(1 / (1 + w), tables, w / (1 + w)).prod(0)


def _matern(distances: Tensor, length: Tensor, smoothness: float) -> Tensor:
    """Return the Matérn kernel at distances, which never change: gpytorch's module would compute them again for each length."""
    nowhere = distances.new_zeros(1, 1, 1)
    found: Tensor = MaternCovariance.apply(nowhere, nowhere, length, smoothness, lambda *_: distances / length)
    return found


class _Pairs:
    """The pairs of trials, each once: kernels are symmetric."""

    def __init__(self, n: int, trial: Tensor) -> None:
        """Number them: of `n` trials, for rows that belong to `trial`, shape (rows,)."""
        self.larger, self.smaller = torch.tril_indices(n, n)
        self._n, self._trial = n, trial
        number = torch.zeros(n, n, dtype=torch.long)
        number[self.larger, self.smaller] = number[self.smaller, self.larger] = torch.arange(len(self.larger))
        self._of_rows = number[trial][:, trial]
        self._times = torch.where(self.larger == self.smaller, 1.0, 2.0).double()

    def expanded(self, values: Tensor) -> Tensor:
        """Return values of pairs of trials, shape (pairs,), as those of pairs of rows, shape (rows, rows)."""
        return values.take(self._of_rows)

    def collapsed(self, matrix: Tensor) -> Tensor:
        """Return the sums over each pair of trials of a symmetric matrix over rows, shape (pairs,)."""
        half = torch.zeros(self._n, matrix.shape[1], dtype=matrix.dtype).index_add_(0, self._trial, matrix)
        whole = torch.zeros(self._n, self._n, dtype=matrix.dtype).index_add_(1, self._trial, half)
        return whole[self.larger, self.smaller] * self._times


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """One set of hyperparameters as plain arrays.

    Attributes:
        lengths: of each factor's kernel, shape (factors,).
        final_weight: w_j of f, shape (factors,).
        final_scale: standard deviation of f.
        speed_weight: w_j of the h_k, shape (factors,).
        speed_scale: standard deviation of each h_k, shape (K,).
        speed_rest: δ.
        seed: ρ at the centre.
        noise: σ at the centre.
        growth: g, shape (width,).
    """

    lengths: Floats
    final_weight: Floats
    final_scale: float
    speed_weight: Floats
    speed_scale: Floats
    speed_rest: float
    seed: float
    noise: float
    growth: Floats

    def spread(self, x: Floats) -> Floats:
        """Return exp(g·x): by how much noise and seed effect are larger at the encoded configurations `x`, (n, width)."""
        return np.exp((x - 0.5) @ self.growth)


class Surrogate:
    """The model of one study's reports."""

    def __init__(self, x: Floats, columns: tuple[slice, ...], rows: Rows, *, smoothness: float = 2.5) -> None:
        """Prepare.

        Args:
            x: encoded configurations, shape (trials, width), each factor's columns within [0, 1].
            columns: the columns of each factor.
            rows: the compressed reports, of values with mean 0 and variance 1.
            smoothness: ν of the Matérn kernels.
        """
        self.x, self.columns, self.rows, self.smoothness = x, columns, rows, smoothness
        self.n_bends = rows.weights.shape[1] - 1
        self._covariance = _Covariance(len(columns), x.shape[1], self.n_bends, smoothness).double()
        # A category has no order that a trend could follow.
        self._is_ordered = np.concatenate([np.full(c.stop - c.start, c.stop - c.start == 1) for c in columns])
        self.trends = self.trend(x)
        self._trial = torch.as_tensor(rows.trial)
        self._target = torch.as_tensor(rows.target)
        self._squares, self._freedom = torch.as_tensor(rows.squares), torch.as_tensor(rows.freedom)
        self._pairs = _Pairs(len(x), self._trial)
        between = np.stack([self._distance(factor, x) for factor in range(len(columns))])
        self._distances = torch.as_tensor(between)[:, None, self._pairs.larger, self._pairs.smaller]
        self._prepare(torch.as_tensor(rows.weights))
        self.mode = self._vector()
        self.value = math.inf

    def _prepare(self, weights: Tensor) -> None:
        """Compute the parts of the covariance of the rows that hold at all hyperparameters, shape (rows, rows) each.

        Args:
            weights: of the rows, shape (rows, p).
        """
        same = (self._trial[:, None] == self._trial[None, :]).double()
        trends = torch.as_tensor(self.trends)[self._trial]
        level, self._bends = weights[:, :1], weights[:, 1:]
        bends = self._bends @ self._bends.T
        self._level = level @ level.T
        self._flat = LEVEL_VARIANCE * self._level + (SLOPE_VARIANCE + TREND_VARIANCE * (trends @ trends.T)) * bends
        self._own_level, self._own_bends = same * self._level, same * bends

    def _distance(self, factor: int, x: Floats) -> Floats:
        """Return the distances along a factor between encoded configurations and the trials, shape (n, trials)."""
        columns = self.columns[factor]
        return np.asarray(cdist(x[:, columns], self.x[:, columns]))

    def _vector(self) -> Floats:
        return torch.nn.utils.parameters_to_vector(self._covariance.parameters()).detach().numpy().copy()

    def _set(self, vector: Floats) -> None:
        torch.nn.utils.vector_to_parameters(torch.as_tensor(vector), self._covariance.parameters())

    def fit(self, steps: int = 120) -> None:
        """Find the posterior mode of the hyperparameters."""
        found = minimize(
            self.loss_and_gradient,
            self.mode,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "ftol": 1e-6, "gtol": 1e-2},
        )
        self.mode, self.value = found.x, float(found.fun)

    def loss(self, vector: Floats) -> float:
        """Return the negative log posterior density, up to a constant, of hyperparameters."""
        self._set(vector)
        with torch.no_grad():
            try:
                return float(self._evaluate(with_gradient=False)[0])
            except _UNSOLVABLE:
                return math.inf

    def loss_and_gradient(self, vector: Floats) -> tuple[float, Floats]:
        """Return the negative log posterior density and its gradient."""
        self._set(vector)
        self._covariance.zero_grad()
        try:
            value, slope = self._evaluate(with_gradient=True)
        except _UNSOLVABLE:
            return 1e10, np.zeros_like(vector)
        slope.backward()
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._covariance.parameters()]
        return float(value), torch.nn.utils.parameters_to_vector(gradient).numpy()

    def _evaluate(self, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Return the loss, and a function with the same gradient.

        The gradient of the likelihood is that of Σ G ∘ C with G = (C⁻¹ - αα') / 2 held fixed: so no derivative goes through
        the Cholesky factor, and G is summed up over each trial's rows before it meets the kernels.
        """
        final, speed, seed, noise = self._parts()
        with torch.no_grad():
            matrix = self._assemble(final, speed, seed, noise)
            lower = psd_safe_cholesky(matrix)
            alpha = torch.cholesky_solve(self._target[:, None], lower)[:, 0]
            likelihood = 0.5 * (self._target @ alpha) + lower.diagonal().log().sum()
        rest = 0.5 * (self._squares / noise + self._freedom * noise.log()).sum() - self._covariance.log_prior()
        if not with_gradient:
            return likelihood + rest, rest
        with torch.no_grad():
            g = torch.cholesky_inverse(lower).addr_(alpha, alpha, alpha=-1).mul_(0.5)
        return likelihood + rest.detach(), rest + self._slope(g, final, speed, seed, noise)

    def _slope(self, g: Tensor, final: Tensor, speed: Tensor | None, seed: Tensor, noise: Tensor) -> Tensor:
        """Return Σ G ∘ C with the gradient of the likelihood, for G of shape (rows, rows); its value says nothing."""
        hyper, pairs = self._covariance._parameters, self._pairs
        with torch.no_grad():
            g_final = pairs.collapsed(g * self._level)
            g_seed = torch.zeros_like(seed).index_add_(0, self._trial, (g * self._own_level).sum(0))
        slope = g_final @ final + g_seed @ seed + g.diagonal() @ noise[self._trial]
        if speed is None:
            return slope
        variance = (2 * hyper["log_speed_scale"]).exp()
        with torch.no_grad():
            g_speed = pairs.collapsed(g * ((self._bends * variance) @ self._bends.T))
            g_variance = (self._bends * ((g * pairs.expanded(speed)) @ self._bends)).sum(0)
            g_own = (g * self._own_bends).sum()
        return slope + g_speed @ speed + g_variance @ variance + g_own * (2 * hyper["log_speed_rest"]).exp()[0]

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return the kernel of f and that of the h_k with variance 1 by pair of trials; seed and noise variances by trial."""
        hyper = self._covariance._parameters
        tables = self._covariance.tables(self._distances)[:, 0]
        final = (2 * hyper["log_final_scale"]).exp() * self._covariance.anova(tables, hyper["log_final_weight"])
        speed = self._covariance.anova(tables, hyper["log_speed_weight"]) if self.n_bends else None
        spread = (2 * (torch.as_tensor(self.x) - 0.5) @ hyper["log_growth"]).exp()
        return final, speed, (2 * hyper["log_seed"]).exp() * spread, (2 * hyper["log_noise"]).exp() * spread

    def _assemble(self, final: Tensor, speed: Tensor | None, seed: Tensor, noise: Tensor) -> Tensor:
        """Return the covariance of the rows, of the parts that `_parts` returns."""
        hyper = self._covariance._parameters
        matrix = torch.addcmul(self._flat, self._level, self._pairs.expanded(final))
        matrix.addcmul_(self._own_level, seed[self._trial])
        if speed is not None:
            variance = (2 * hyper["log_speed_scale"]).exp()
            matrix.addcmul_((self._bends * variance) @ self._bends.T, self._pairs.expanded(speed))
            matrix.addcmul_(self._own_bends, (2 * hyper["log_speed_rest"]).exp())
        matrix.diagonal().add_(noise[self._trial] + _JITTER)
        return matrix

    def covariance(self, vector: Floats) -> Floats:
        """Return the covariance of the rows at hyperparameters, shape (rows, rows)."""
        self._set(vector)
        with torch.no_grad():
            return self._assemble(*self._parts()).numpy()

    def solve(self, vector: Floats, right: Floats) -> Floats:
        """Return C⁻¹ B for the covariance C of the rows at hyperparameters and B, shape (rows, columns)."""
        lower = psd_safe_cholesky(torch.as_tensor(self.covariance(vector)))
        return torch.cholesky_solve(torch.as_tensor(right), lower).numpy()

    def hyperparameters(self, vector: Floats) -> Hyperparameters:
        """Return hyperparameters as plain arrays."""
        self._set(vector)
        hyper = {name: p.detach().numpy().copy() for name, p in self._covariance._parameters.items() if p is not None}
        scales = {name.removeprefix("log_"): np.exp(log) for name, log in hyper.items() if name != "log_growth"}
        empty = np.zeros(0)
        return Hyperparameters(
            lengths=np.exp(self._covariance.shape.raw_lengthscale.detach().numpy().ravel()),
            final_weight=scales["final_weight"],
            final_scale=float(scales["final_scale"][0]),
            speed_weight=scales.get("speed_weight", empty),
            speed_scale=scales.get("speed_scale", empty),
            speed_rest=float(scales["speed_rest"][0]) if "speed_rest" in scales else 0.0,
            seed=float(scales["seed"][0]),
            noise=float(scales["noise"][0]),
            growth=hyper["log_growth"],
        )

    def trend(self, x: Floats) -> Floats:
        """Return what the trends are linear in at encoded configurations `x`, shape (n, width); 0 for what has no order."""
        return (x - 0.5) * self._is_ordered

    def table(self, factor: int, length: float, x: Floats) -> Floats:
        """Return κ_j of a factor with a length, between encoded configurations and the trials, shape (n, trials)."""
        distances = torch.as_tensor(self._distance(factor, x))
        with torch.no_grad():
            table: Floats = _matern(distances, torch.full((1, 1), length, dtype=distances.dtype), self.smoothness).numpy()
        return table

    def sample_hyperparameters(self, size: int, seed: int) -> Floats:
        """Draw hyperparameters from their posterior, shape (size, parameters).

        Draws from Laplace's approximation are resampled by their importance and then moved by preconditioned Crank-Nicolson
        steps, which leave the posterior as it is (Cotter et al. 2013): the weights alone would leave a handful of them.
        """
        random = np.random.default_rng(seed)
        eigenvalues, eigenvectors = np.linalg.eigh(self._hessian())
        # Nothing is less certain than its prior; numerical Hessians say otherwise at times.
        widths = 1 / np.sqrt(np.maximum(eigenvalues, 0.1))

        def importance(z: Floats) -> Floats:
            return np.array([-self.loss(self.mode + (one * widths) @ eigenvectors.T) for one in z]) + 0.5 * (z**2).sum(1)

        z = random.standard_normal((CANDIDATES * size, len(self.mode)))
        weight = importance(z)
        chosen = _resampled(np.exp(weight - weight.max()), size, random)
        z, weight = z[chosen], weight[chosen]
        for _ in range(MOVES):
            moved = math.sqrt(1 - STRIDE**2) * z + STRIDE * random.standard_normal(z.shape)
            other = importance(moved)
            accepted = np.log(random.random(size)) < other - weight
            z, weight = np.where(accepted[:, None], moved, z), np.where(accepted, other, weight)
        return self.mode + (z * widths) @ eigenvectors.T

    def _hessian(self, step: float = 1e-2) -> Floats:
        base = self.loss_and_gradient(self.mode)[1]
        columns = [(self.loss_and_gradient(self.mode + step * unit)[1] - base) / step for unit in np.eye(len(self.mode))]
        matrix = np.array(columns)
        return 0.5 * (matrix + matrix.T)


def _resampled(weights: Floats, size: int, random: np.random.Generator) -> Ints:
    """Return `size` indices, each as often as its weight asks for, up to one (systematic resampling)."""
    places = (random.random() + np.arange(size)) / size
    return np.minimum(np.searchsorted(np.cumsum(weights / weights.sum()), places), len(weights) - 1)


def thinned(rows: Rows, most: int, seed: int) -> Ints:
    """Return trials drawn uniformly, whatever they reported, whose rows are at most about `most`; all of them if they fit.

    A choice by what trials reported would undo what makes stopped trials harmless.
    """
    order = np.random.default_rng(seed).permutation(rows.n_trials)
    counts = np.bincount(rows.trial, minlength=rows.n_trials)[order]
    fits = np.cumsum(counts) <= most
    return np.sort(order[: max(int(fits.sum()), 1)])
