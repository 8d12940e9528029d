"""The search space: factors as Optuna distributions with conditions, written once for every sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from raystudy.errors import SpecError
from raystudy.factors import Scalar
from raystudy.spec import Factor, StudySpec
from raystudy.spec.depths import check_depths, resolved
from raystudy.spec.factor import after_steps, last_step


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
        """Build the space of `spec`; `n_units` is what `max` stands for, needed where the study says `max`.

        Raises:
            SpecError: something is said of units that the backbone does not have.
        """
        factors = spec.all_factors
        sections = {"factors": factors, "fixed": spec.fixed, "search": spec.search}
        if n_units is not None and (problems := check_depths(sections, n_units)):
            raise SpecError(problems)
        dimensions = tuple(
            Dimension(name, _distribution(name, factors[name], n_units), _condition(factors[name], factors, n_units))
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
        return self._walk(lambda dimension: values[dimension.name])

    def grid(self) -> Iterator[dict[str, Scalar]]:
        """Yield every combination of the active factors' levels once; the last factor varies fastest."""
        return self._completions({})

    def _completions(self, config: dict[str, Scalar], position: int = 0) -> Iterator[dict[str, Scalar]]:
        """Yield `config`, which holds the active factors before `position`, with all that may follow."""
        if position == len(self.dimensions):
            yield config
            return
        dimension = self.dimensions[position]
        if not dimension.is_active({**self.constants, **config}):
            yield from self._completions(config, position + 1)
            return
        for value in levels(dimension.distribution):
            yield from self._completions({**config, dimension.name: value}, position + 1)

    def distributions(self, config: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
        """Return the distributions of the factors that are active in `config`."""
        return {dimension.name: dimension.distribution for dimension in self.dimensions if dimension.name in config}

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
            value: Scalar = choices[choices.index(trial.suggest_categorical(name, choices))]  # a point may say 1 for 1.0
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
            return float(min(low + u * (high - low), high))
        case FloatDistribution(low=low, high=high, step=step):
            count = round((high - low) / step)
            return after_steps(low, step, min(int(u * (count + 1)), count))
    raise AssertionError(distribution)


def levels(distribution: BaseDistribution) -> Sequence[Scalar]:
    """Return the values of a distribution that has few."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, IntDistribution), "the study file is checked: a grid has listed values only"
    return range(distribution.low, distribution.high + 1, distribution.step)


def _distribution(name: str, factor: Factor, n_units: int | None) -> BaseDistribution:
    if factor.choice is not None:
        return CategoricalDistribution([resolved(name, value, n_units) for value in factor.choice])
    low, high = (resolved(name, bound, n_units) for bound in factor.bounds)
    # Optuna shrinks the upper end onto the step with a warning; the study file means just that.
    if factor.form == "int":
        step = int(factor.step or 1)
        return IntDistribution(int(low), int(low) + (int(high) - int(low)) // step * step, step=step)
    if factor.form == "log_int":
        return IntDistribution(int(low), int(high), log=True)
    if factor.step is None:
        return FloatDistribution(float(low), float(high), log=factor.form == "log_uniform")
    return FloatDistribution(float(low), last_step(float(low), float(high), factor.step), step=factor.step)


def _condition(factor: Factor, factors: Mapping[str, Factor], n_units: int | None) -> dict[str, tuple[Scalar, ...]]:
    """Return the values of other factors under which `factor` is active; what is fixed stays as the study file says it."""
    condition = {name: value if isinstance(value, tuple) else (value,) for name, value in (factor.when or {}).items()}
    return {
        name: tuple(resolved(name, value, n_units) for value in values) if name in factors else values
        for name, values in condition.items()
    }


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
