"""The search space: factors as Optuna distributions with conditions, written once for every sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from raystudy.errors import Problem, SpecError
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.spec import Factor, StudySpec


@dataclass(frozen=True, slots=True)
class Dimension:
    """One factor as a distribution, and the values of other factors under which it is active."""

    name: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Scalar, ...]]

    def is_active(self, config: Mapping[str, Scalar]) -> bool:
        """Whether the factor has an effect in `config` (which holds the factors before it, and the fixed values)."""
        return all(name in config and config[name] in values for name, values in self.when.items())


@dataclass(frozen=True, slots=True)
class Space:
    """The factors of a study, each after those that its condition speaks of.

    Attributes:
        dimensions: one per factor that varies.
        constants: the values of everything that does not vary.
    """

    dimensions: tuple[Dimension, ...]
    constants: Mapping[str, Scalar]

    @classmethod
    def of(cls, spec: StudySpec, *, n_units: int | None = None) -> Space:
        """Build the space of `spec`; `n_units` is what `max` stands for in bounds of frozen_depth.

        Raises:
            SpecError: a frozen depth is beyond the backbone, or `max` is used and `n_units` is not given.
        """
        factors = spec.all_factors
        dimensions = tuple(
            Dimension(name, _distribution(name, factors[name], n_units), _condition(factors[name]))
            for name in _parents_first(factors)
        )
        return cls(dimensions, spec.constants())

    def suggest(self, trial: Trial) -> dict[str, Scalar]:
        """Ask `trial` for every active factor, in order; return the active factors only."""
        return self._walk(lambda dimension: _ask(trial, dimension))

    def at(self, point: Sequence[float]) -> dict[str, Scalar]:
        """Return the active factors at a point of the unit cube, shape (n_dimensions,), under the declared distributions."""
        values = {
            dimension.name: quantile(dimension.distribution, u) for dimension, u in zip(self.dimensions, point, strict=True)
        }
        return self._pick(values)

    def grid(self) -> Iterator[dict[str, Scalar]]:
        """Yield every combination of the factors' levels once; the last factor varies fastest."""
        seen: set[tuple[tuple[str, Scalar], ...]] = set()
        for values in itertools.product(*(levels(dimension.distribution) for dimension in self.dimensions)):
            by_name = dict(zip((dimension.name for dimension in self.dimensions), values, strict=True))
            config = self._pick(by_name)
            key = tuple(config.items())
            if key not in seen:
                seen.add(key)
                yield config

    def distributions(self, config: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
        """Return the distributions of the factors that are active in `config`."""
        return {dimension.name: dimension.distribution for dimension in self.dimensions if dimension.name in config}

    def _pick(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return those of `values` whose factor is active."""
        return self._walk(lambda dimension: values[dimension.name])

    def _walk(self, value_of: Callable[[Dimension], Scalar]) -> dict[str, Scalar]:
        config: dict[str, Scalar] = {}
        known = dict(self.constants)
        for dimension in self.dimensions:
            if dimension.is_active(known):
                known[dimension.name] = config[dimension.name] = value_of(dimension)
        return config


def _ask(trial: Trial, dimension: Dimension) -> Scalar:
    name = dimension.name
    match dimension.distribution:
        case CategoricalDistribution(choices=choices):
            value: Scalar = trial.suggest_categorical(name, choices)
            return value
        case IntDistribution(low=low, high=high, step=step, log=log):
            return int(trial.suggest_int(name, low, high, step=step, log=log))
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return float(trial.suggest_float(name, low, high, step=step, log=log))
    raise AssertionError(dimension)


def quantile(distribution: BaseDistribution, u: float) -> Scalar:
    """Return the value below which the share `u` (0 to 1) of the distribution lies."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            value: Scalar = choices[min(int(u * len(choices)), len(choices) - 1)]
            return value
        case IntDistribution(low=low, high=high, log=True):
            # Optuna's measure: uniform on the logarithm of the interval widened by a half at both ends.
            raw = math.exp(math.log(low - 0.5) + u * (math.log(high + 0.5) - math.log(low - 0.5)))
            return int(min(max(round(raw), low), high))
        case IntDistribution(low=low, high=high, step=step):
            return int(low + step * min(int(u * ((high - low) // step + 1)), (high - low) // step))
        case FloatDistribution(low=low, high=high, log=True):
            return float(min(max(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low), high))
        case FloatDistribution(low=low, high=high, step=None):
            return float(low + u * (high - low))
        case FloatDistribution(low=low, high=high, step=step):
            count = int((high - low) / step + 1e-9)
            return float(low + step * min(int(u * (count + 1)), count))
    raise AssertionError(distribution)


def levels(distribution: BaseDistribution) -> tuple[Scalar, ...]:
    """Return the values of a distribution that has few."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, IntDistribution), "the study file is checked: a grid has listed values only"
    return tuple(range(distribution.low, distribution.high + 1, distribution.step))


def _distribution(name: str, factor: Factor, n_units: int | None) -> BaseDistribution:
    if factor.choice is not None:
        return CategoricalDistribution([_depth(name, value, n_units, f"choice[{i}]") for i, value in enumerate(factor.choice)])
    low, high = (_depth(name, bound, n_units, f"{factor.form}[{i}]") for i, bound in enumerate(factor.bounds))
    if factor.form in ("int", "log_int"):
        step = int(factor.step or 1)
        # Optuna shrinks the upper end onto the step with a warning; the study file means just that.
        top = int(low) + (int(high) - int(low)) // step * step
        return IntDistribution(int(low), top, log=factor.form == "log_int", step=1 if factor.form == "log_int" else step)
    return FloatDistribution(float(low), float(high), log=factor.form == "log_uniform", step=factor.step)


def _depth(name: str, value: Scalar, n_units: int | None, place: str) -> Scalar:
    """Resolve `max`, and refuse a frozen depth beyond the backbone."""
    if name not in ("frozen_depth", "reinit_units", "tuned_unit") or n_units is None:
        assert value != PROBE_DEPTH, "max needs the number of units"
        return value
    if value == PROBE_DEPTH:
        return n_units
    top = n_units - 1 if name == "tuned_unit" else n_units
    if isinstance(value, (int, float)) and value > top:
        raise SpecError(
            Problem(f"factors.{name}.{place}", f"got {value}, but the backbone has {n_units} units", f"expected at most {top}")
        )
    return value


def _condition(factor: Factor) -> dict[str, tuple[Scalar, ...]]:
    return {name: value if isinstance(value, tuple) else (value,) for name, value in (factor.when or {}).items()}


def _parents_first(factors: Mapping[str, Factor]) -> list[str]:
    """Order the names so that each comes after those its condition speaks of, and otherwise as in the file."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for parent in factors[name].when or {}:
                if parent in factors:
                    visit(parent)
            order.append(name)

    for name in factors:
        visit(name)
    return order
