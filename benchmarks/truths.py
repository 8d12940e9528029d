"""Functions of factors whose Sobol indices are known exactly, to measure importance against.

Notation: Var f = Σ_A V_A is the functional ANOVA over sets A of factors, which are independent and distributed as declared.
First-order index S_i = V_i / Var f, total index T_i = Σ_{A∋i} V_A / Var f, interaction S_ij = V_ij / Var f (that of the two
alone, without their first-order parts). A conditional factor j, active with probability p_j, is asked about where it is
active: S_j = p_j Var(E[f | x_j, active]) / Var f and T_j = p_j E[Var(f | all but x_j, active)] / Var f.

Nothing here uses raystudy: neither its measures nor its estimators may vouch for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import eval_legendre
from scipy.stats import qmc

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]
Value = Callable[[Columns], Floats]
Factors = dict[str, dict[str, Any]]
Parts = Mapping[tuple[str, ...], float]
Key = tuple[tuple[str, int], ...]

METRIC = "score"
"""The metric's column in every table of reports made here."""


@dataclass(frozen=True)
class Indices:
    """Sobol indices.

    Attributes:
        first_order: S_i by factor.
        total: T_i by factor.
        pairs: S_ij, the factors in declared order; none for a factor and its condition.
    """

    first_order: dict[str, float]
    total: dict[str, float]
    pairs: dict[tuple[str, str], float]

    @classmethod
    def of(cls, factors: Factors, parts: Parts) -> Indices:
        """Return the indices of a function with variances V_A = `parts`, A in declared order; sets left out have none."""
        whole = sum(parts.values())
        return cls(
            {name: parts.get((name,), 0.0) / whole for name in factors},
            {name: sum(part for names, part in parts.items() if name in names) / whole for name in factors},
            {pair: parts.get(pair, 0.0) / whole for pair in combinations(factors, 2)},
        )


@dataclass(frozen=True, eq=False)
class Truth:
    """A function of factors with its exact indices.

    Attributes:
        name: what it is called in the literature.
        factors: in the study file's form.
        value: the function, of n values per factor (nan where one is inactive), shape (n,).
        first_order: S_i by factor.
        total: T_i by factor.
        pairs: S_ij.
    """

    name: str
    factors: Factors
    value: Value
    first_order: dict[str, float]
    total: dict[str, float]
    pairs: dict[tuple[str, str], float]

    @classmethod
    def of(cls, name: str, factors: Factors, value: Value, indices: Indices) -> Truth:
        """Put a function and its indices together."""
        return cls(name, factors, value, indices.first_order, indices.total, indices.pairs)

    def sample(self, n: int, seed: int, design: Literal["sobol", "random"] = "sobol") -> pa.Table:
        """Return noiseless reports at epoch 1 of `n` trials; if all factors are choices, of every combination instead."""
        if all("choice" in form for form in self.factors.values()):
            shape = [len(form["choice"]) for form in self.factors.values()]
            u = (np.indices(shape).reshape(len(shape), -1).T + 0.5) / shape
        elif design == "sobol":
            u = sobol(n, len(self.factors), seed)
        else:
            u = np.random.default_rng(seed).random((n, len(self.factors)))
        columns = columns_at(self.factors, u)
        return reports(columns, np.arange(len(u)), {"epoch": np.ones(len(u), np.int64), METRIC: self.value(columns)})


def sobol(n: int, d: int, seed: int) -> Floats:
    """Return the first `n` points of a scrambled Sobol sequence in the unit cube, shape (n, d)."""
    return np.asarray(qmc.Sobol(d, scramble=True, rng=seed).random_base2(math.ceil(math.log2(n)))[:n])


def levels(form: Mapping[str, Any]) -> NDArray[Any]:
    """Return the values of an `int` or `choice` factor."""
    return np.arange(form["int"][0], form["int"][1] + 1) if "int" in form else np.array(form["choice"])


def columns_at(factors: Factors, u: Floats) -> dict[str, NDArray[Any]]:
    """Return the factors' values at points of the unit cube, shape (n, factors); nan where a condition does not hold."""
    columns: dict[str, NDArray[Any]] = {}
    for (name, form), share in zip(factors.items(), u.T, strict=True):
        column = _quantile(form, share)
        for parent, wanted in form.get("when", {}).items():
            column = np.where(np.isin(columns[parent], wanted), column, np.nan)
        columns[name] = column
    return columns


def _quantile(form: Mapping[str, Any], u: Floats) -> NDArray[Any]:
    if "uniform" in form:
        low, high = form["uniform"]
        return np.asarray(low + u * (high - low))
    if "log_uniform" in form:
        low, high = form["log_uniform"]
        return np.asarray(np.clip(low * (high / low) ** u, low, high))
    found = levels(form)
    return np.asarray(found[np.minimum((u * len(found)).astype(int), len(found) - 1)])


def place(form: Mapping[str, Any], values: NDArray[Any]) -> Floats:
    """Return the share of a continuous factor's distribution that lies below each of `values`."""
    if "uniform" in form:
        low, high = form["uniform"]
        return np.asarray((values - low) / (high - low))
    low, high = form["log_uniform"]
    return np.asarray(np.log(values / low) / np.log(high / low))


def level_of(form: Mapping[str, Any], values: NDArray[Any]) -> NDArray[np.intp]:
    """Return the number of the level of each of `values`, for `int` and `choice`."""
    return np.asarray((values[:, None] == levels(form)).argmax(axis=1))


def reports(columns: Columns, trials: NDArray[np.int64], values: Mapping[str, Any]) -> pa.Table:
    """Return a table of reports: the trials' ids, `values` column by column, the factors (nan becomes null)."""
    ids = pa.array([f"t{trial:04d}" for trial in trials.tolist()])
    masked = {n: pa.array(c, mask=np.isnan(c) if c.dtype.kind == "f" else None) for n, c in columns.items()}
    return pa.table({"trial_id": ids, **values, **masked})


def indices_by_qmc(value: Value, factors: Factors, *, n: int = 2**16, seed: int = 0) -> Indices:
    """Estimate indices by pick-freeze on a Sobol sequence (Saltelli et al. 2010: first order; Jansen 1999: total).

    With A and B independent designs and A_i equal to A but for column i, which is B's:
    V_i = mean f(B) (f(A_i) - f(A)), V_i T_i-numerator = mean (f(A) - f(A_i))² / 2; V_ij from two columns, less V_i and V_j.
    """
    names = list(factors)
    a, b = np.split(sobol(n, 2 * len(names), seed), 2, axis=1)
    centre = float(value(columns_at(factors, a)).mean())

    def at(*picked: str) -> Floats:
        chosen = np.isin(names, picked)
        return value(columns_at(factors, np.where(chosen, b, a))) - centre

    f_a, f_b = at(), at(*names)
    variance = float(np.concatenate([f_a, f_b]).var())
    each = {name: at(name) for name in names}
    first = {name: float(np.mean(f_b * (f - f_a))) / variance for name, f in each.items()}
    total = {name: float(np.mean((f_a - f) ** 2)) / 2 / variance for name, f in each.items()}
    closed = {pair: float(np.mean(f_b * (at(*pair) - f_a))) / variance for pair in combinations(names, 2)}
    return Indices(first, total, {(i, j): part - first[i] - first[j] for (i, j), part in closed.items()})


@dataclass(frozen=True, eq=False)
class Expansion:
    """f = Σ_k c_k Π_{i in k} φ_i, orthonormal φ_i: V_A is the sum of the c_k² of the terms whose factors are A.

    φ of degree d is the normalised Legendre polynomial of the place in the distribution for continuous factors (u = √12 (p - ½)
    for d = 1, q = √180 ((p - ½)² - 1/12) for d = 2), the polynomial made orthonormal over the levels for `int`, and for
    `choice` the d-th contrast: level d against those after it, the ones before it left out.

    Attributes:
        factors: in the study file's form, without conditions.
        terms: c_k by the factors and degrees of the term; () is the constant.
    """

    factors: Factors
    terms: Mapping[Key, float]

    @classmethod
    def of(cls, factors: Factors, terms: Mapping[str, float]) -> Expansion:
        """Build an expansion from terms written like "learning_rate^2 optimizer"."""
        return cls(factors, {_key(text): coefficient for text, coefficient in terms.items()})

    @classmethod
    def of_shares(cls, factors: Factors, shares: Mapping[str, float], *, sd: float = 1.0) -> Expansion:
        """Build an expansion whose terms have these shares of the variance `sd`²; the sign of a share is its coefficient's."""
        return cls.of(factors, {text: math.copysign(sd * math.sqrt(abs(share)), share) for text, share in shares.items()})

    @classmethod
    def indicator(cls, factors: Factors, name: str, level: Any) -> Expansion:
        """Return the expansion of "`name` has this level": with L levels, c_d = φ_d(level) / L."""
        (row,) = _level_basis(len(levels(factors[name])), "int" in factors[name])[level_of(factors[name], np.array([level]))]
        return cls(factors, {((name, d),) if d else (): float(phi) / len(row) for d, phi in enumerate(row)})

    def plus(self, other: Expansion, weight: float) -> Expansion:
        """Return this + `weight` · `other`."""
        keys = dict.fromkeys([*self.terms, *other.terms])
        return Expansion(self.factors, {key: self.terms.get(key, 0.0) + weight * other.terms.get(key, 0.0) for key in keys})

    def __call__(self, columns: Columns) -> Floats:
        """Return the function at n values per factor, shape (n,)."""
        needed = dict.fromkeys(chain.from_iterable(self.terms))
        basis = {(name, d): _basis(self.factors[name], d, columns[name]) for name, d in needed}
        n = len(next(iter(columns.values())))
        total = np.zeros(n)
        for key, coefficient in self.terms.items():
            total += coefficient * np.prod([basis[one] for one in key], axis=0)
        return total

    def indices(self) -> Indices:
        """Return the exact indices."""
        order = list(self.factors)
        parts: dict[tuple[str, ...], float] = {}
        for key, coefficient in self.terms.items():
            if names := tuple(sorted((name for name, _ in key), key=order.index)):
                parts[names] = parts.get(names, 0.0) + coefficient**2
        return Indices.of(self.factors, parts)


def _key(text: str) -> Key:
    words = (word.partition("^") for word in text.split())
    return tuple(sorted((name, int(degree or 1)) for name, _, degree in words))


def _basis(form: Mapping[str, Any], degree: int, values: NDArray[Any]) -> Floats:
    if "int" in form or "choice" in form:
        number = level_of(form, values)
        return np.asarray(_level_basis(len(levels(form)), "int" in form)[number, degree])
    return np.asarray(math.sqrt(2 * degree + 1) * eval_legendre(degree, 2 * place(form, values) - 1))


@cache
def _level_basis(count: int, is_ordered: bool) -> Floats:
    """Return functions of `count` equally probable levels, orthonormal, the first constant; shape (levels, degrees)."""
    polynomials = np.vander(np.linspace(-1, 1, count), increasing=True)
    contrasts = np.column_stack([np.ones(count), np.eye(count)[:, :-1]])
    q, r = np.linalg.qr(polynomials if is_ordered else contrasts)
    return np.asarray(math.sqrt(count) * q * np.sign(np.diag(r)))


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield all subsets but the empty one, the small ones first."""
    return chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))


def _uniform(names: Sequence[str], low: float = 0.0, high: float = 1.0) -> Factors:
    return {name: {"uniform": [low, high]} for name in names}


def ishigami(a: float = 7.0, b: float = 0.1) -> Truth:
    """Sin x1 + a sin² x2 + b x3⁴ sin x1 on [-π, π]³: x3 acts through its interaction with x1 only."""
    factors = _uniform(["x1", "x2", "x3"], -math.pi, math.pi)
    parts = {
        ("x1",): (1 + b * math.pi**4 / 5) ** 2 / 2,
        ("x2",): a**2 / 8,
        ("x1", "x3"): 8 * b**2 * math.pi**8 / 225,
    }

    def value(x: Columns) -> Floats:
        return np.asarray(np.sin(x["x1"]) * (1 + b * x["x3"] ** 4) + a * np.sin(x["x2"]) ** 2)

    return Truth.of("Ishigami", factors, value, Indices.of(factors, parts))


def sobol_g(a: Sequence[float] = (0, 1, 4.5, 9, 99, 99, 99, 99)) -> Truth:
    """Π (|4 x_i - 2| + a_i) / (1 + a_i) on the unit cube: V_A = Π_{i in A} 1 / (3 (1 + a_i)²)."""
    factors = _uniform([f"x{i + 1}" for i in range(len(a))])
    own = {name: 1 / (3 * (1 + one) ** 2) for name, one in zip(factors, a, strict=True)}
    parts = {names: math.prod(own[name] for name in names) for names in _subsets(list(factors))}

    def value(x: Columns) -> Floats:
        parts_of = [(np.abs(4 * x[name] - 2) + one) / (1 + one) for name, one in zip(factors, a, strict=True)]
        return np.asarray(np.prod(parts_of, axis=0))

    return Truth.of("Sobol g", factors, value, Indices.of(factors, parts))


def linear(c: Sequence[float] = (5, 4, 3, 2, 1)) -> Truth:
    """Σ c_i x_i on the unit cube: V_i = c_i² / 12 and no interaction."""
    slopes = {f"x{i + 1}": slope for i, slope in enumerate(c)}
    factors = _uniform(list(slopes))
    parts: Parts = {(name,): slope**2 / 12 for name, slope in slopes.items()}

    def value(x: Columns) -> Floats:
        return np.asarray(np.sum([slope * x[name] for name, slope in slopes.items()], axis=0))

    return Truth.of("linear", factors, value, Indices.of(factors, parts))


def friedman(dummies: int = 2) -> Truth:
    """10 sin(π x1 x2) + 20 (x3 - ½)² + 10 x4 + 5 x5 on the unit cube, and factors that nothing reads (Friedman 1991).

    The sine's variances by Gauss-Legendre quadrature, the others are those of a square and of straight lines.
    """
    factors = _uniform([*(f"x{i}" for i in range(1, 6)), *(f"dummy{i + 1}" for i in range(dummies))])
    nodes, weights = np.polynomial.legendre.leggauss(64)
    nodes, weights = (nodes + 1) / 2, weights / 2
    surface = 10 * np.sin(math.pi * np.outer(nodes, nodes))
    main = surface @ weights
    mean = float(main @ weights)
    own = float((main - mean) ** 2 @ weights)
    both = float(weights @ (surface - mean) ** 2 @ weights)
    parts = {
        ("x1",): own,
        ("x2",): own,
        ("x1", "x2"): both - 2 * own,
        ("x3",): 20**2 / 180,
        ("x4",): 10**2 / 12,
        ("x5",): 5**2 / 12,
    }

    def value(x: Columns) -> Floats:
        sine = 10 * np.sin(math.pi * x["x1"] * x["x2"])
        return np.asarray(sine + 20 * (x["x3"] - 0.5) ** 2 + 10 * x["x4"] + 5 * x["x5"])

    return Truth.of("Friedman 1", factors, value, Indices.of(factors, parts))


def orthonormal(factors: Factors, shares: Mapping[str, float], *, sd: float = 1.0, name: str = "orthonormal") -> Truth:
    """Any indices over factors of any form, exactly: see `Expansion`."""
    expansion = Expansion.of_shares(factors, shares, sd=sd)
    return Truth.of(name, factors, expansion, expansion.indices())


def mixed() -> Truth:
    """Factors of every form, two interactions, and one factor that nothing reads."""
    factors: Factors = {
        "learning_rate": {"log_uniform": [1e-5, 1e-1]},
        "frozen_depth": {"int": [0, 18]},
        "optimizer": {"choice": ["sgd", "adam", "adamw"]},
        "dropout": {"uniform": [0.0, 0.5]},
        "null": {"uniform": [0.0, 1.0]},
    }
    shares = {
        "learning_rate": 0.15,
        "learning_rate^2": -0.25,
        "frozen_depth": -0.2,
        "frozen_depth^2": -0.05,
        "optimizer": 0.1,
        "optimizer^2": -0.05,
        "dropout^2": -0.05,
        "learning_rate optimizer^2": 0.1,
        "learning_rate frozen_depth": -0.05,
    }
    return orthonormal(factors, shares, name="mixed forms")


def log_measure() -> Truth:
    """1(lr < 1e-3) + x: lr is uniform on the logarithm, so that the step is at its median; V = ¼ and 1/12."""
    factors: Factors = {"learning_rate": {"log_uniform": [1e-5, 1e-1]}, "x": {"uniform": [0.0, 1.0]}}
    below = float(place(factors["learning_rate"], np.array([1e-3]))[0])
    parts: Parts = {("learning_rate",): below * (1 - below), ("x",): 1 / 12}

    def value(x: Columns) -> Floats:
        return np.asarray((x["learning_rate"] < 1e-3) + x["x"])

    return Truth.of("log measure", factors, value, Indices.of(factors, parts))


def conditional() -> Truth:
    """F = x in [-5, -2] where c is a, f = y in [2, 5] where c is b; c is a or b with probability ½ each.

    Var f = d²/4 + 3²/12 with d = 7 the distance of the two means. First-order: c has d²/4, x and y the other half each. Total
    of c, all three drawn independently: E[(x - y)²] / 4 = (d² + 2 · 3²/12) / 4. No pairs: x and y are never active together.
    """
    low, high = (-5.0, -2.0), (2.0, 5.0)
    factors: Factors = {
        "c": {"choice": ["a", "b"]},
        "x": {"uniform": list(low), "when": {"c": ["a"]}},
        "y": {"uniform": list(high), "when": {"c": ["b"]}},
    }
    within = (low[1] - low[0]) ** 2 / 12
    between = (sum(high) / 2 - sum(low) / 2) ** 2 / 4
    whole = between + within
    leaf = within / 2 / whole
    first = {"c": between / whole, "x": leaf, "y": leaf}
    total = {"c": (between + within / 2) / whole, "x": leaf, "y": leaf}

    def value(x: Columns) -> Floats:
        return np.where(x["c"] == "a", x["x"], x["y"])

    return Truth.of("conditional", factors, value, Indices(first, total, {}))


PUBLISHED = """
17.20 14.85 23.76 18.10  9.10 17.55 3.12
17.41 14.51 24.59 18.42  9.60 17.40 3.33
14.14 13.42 24.59 17.24  9.08 18.21 3.50
14.80 13.67 22.79 17.54  9.31 17.82 3.53
11.00 12.11 21.14 17.41 11.07 20.58 5.48
10.87 12.16 21.29 17.21 10.65 20.46 5.25
10.21 11.86 21.96 18.24 13.22 24.39 7.03
10.12 11.61 20.76 18.40 13.11 23.91 6.78
"""
"""Top-1 error of a fine-tuned ResNet-101 (Li et al., ICLR 2020, table 2): 2 momenta x 2 learning rates x 2 weight decays in the
order of `published`, the last varying fastest, by 7 targets."""


def published() -> Truth:
    """The 56 errors of `PUBLISHED`: momentum's pooled main effect is nought, its interaction with the target is not."""
    factors: Factors = {
        "target": {"choice": ["dogs", "caltech", "indoor", "birds", "cars", "aircraft", "flowers"]},
        "momentum": {"choice": [0.9, 0.0]},
        "learning_rate": {"choice": [0.01, 0.005]},
        "weight_decay": {"choice": [1e-4, 0.0]},
    }
    cells = np.moveaxis(np.array(PUBLISHED.split(), float).reshape(2, 2, 2, 7), -1, 0)

    def value(x: Columns) -> Floats:
        return np.asarray(cells[tuple(level_of(form, x[name]) for name, form in factors.items())])

    return Truth.of("published table", factors, value, Indices.of(factors, _anova(cells, list(factors))))


def _anova(cells: Floats, names: Sequence[str]) -> Parts:
    """Return the variances of a complete table, one axis per factor: effect_A = mean over all others - Σ_{B in A} effect_B."""
    effects: dict[tuple[str, ...], Floats] = {(): cells.mean(keepdims=True)}
    for subset in _subsets(names):
        others = tuple(axis for axis, name in enumerate(names) if name not in subset)
        smaller = [effect for names_of, effect in effects.items() if set(names_of) < set(subset)]
        effects[subset] = cells.mean(axis=others, keepdims=True) - sum(smaller)
    return {subset: float(np.mean(effect**2)) for subset, effect in effects.items() if subset}


def truths() -> tuple[Truth, ...]:
    """Return every function of this module."""
    return ishigami(), sobol_g(), linear(), friedman(), mixed(), log_measure(), conditional(), published()
