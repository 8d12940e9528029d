"""The declared distribution of all factors, and configurations as rows of numbers for a surrogate.

A `Measure` is a product: every factor has its own distribution (an `Axis`) and its own coordinate u in [0, 1), and a
conditional factor counts only where it is active. A restriction changes what u means, never how a value is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.stats import qmc

from raystudy.errors import InputError, Problem
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.findings.axis import Axis, Bools, Floats
from raystudy.findings.region import comparisons, terms
from raystudy.spec import Factor
from raystudy.spec.messages import nearest, problems_of, shown

__all__ = ["Axis", "Measure", "parse_region", "sobol_points"]

_MOST_LISTED = 1000
"""Levels beyond which a factor is shown like a continuous one."""
_MOST_SHOWN = 3
"""Rows of one factor whose faults are spelled out."""


@dataclass(frozen=True, slots=True)
class Measure:
    """All factors, each after those that its condition speaks of, and how configurations are drawn.

    Attributes:
        axes: one per factor.
    """

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, factors: Mapping[str, Factor | Mapping[str, Any]]) -> Measure:
        """Build the measure that `factors` declare, of any names.

        Args:
            factors: by name; a mapping is the study file's form, {"log_uniform": [1e-5, 1e-1]} for instance.

        Raises:
            InputError: with every problem: a factor that is not well-formed, `max` as a bound, a condition that cannot hold.
        """
        declared = _declared(factors)
        axes: list[Axis] = []
        for name in _parents_first(declared):
            axes.append(Axis.of(name, declared[name], axes[-1].columns.stop if axes else 0))
        measure = cls(tuple(axes))
        if problems := [problem for axis in axes for problem in measure._condition_faults(axis)]:
            raise InputError(problems)
        return measure

    @property
    def names(self) -> tuple[str, ...]:
        """The factors, in the order of the axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def width(self) -> int:
        """The number of encoded columns."""
        return int(self.axes[-1].columns.stop)

    @property
    def fixed(self) -> dict[str, Scalar]:
        """The factors that have one value only, declared so or restricted to it, with that value."""
        return {axis.name: value for axis in self.axes if (value := axis.only) is not None}

    @property
    def varying(self) -> tuple[str, ...]:
        """The factors that make a difference between configurations: more than one value, and not never active."""
        return tuple(axis.name for axis in self.axes if axis.only is None and self.share_active(axis.name) > 0)

    def axis(self, name: str) -> Axis:
        """Return the axis of a factor; raise InputError if there is none."""
        if name not in self.names:
            raise InputError(Problem(name, "is not a factor here", nearest(name, self.names)))
        return self.axes[self.names.index(name)]

    def share_active(self, name: str) -> float:
        """Return the probability that the factor is active: that all its ancestors have values that let it be."""
        needed: dict[str, set[int]] = {}
        frontier = [name]
        while frontier:
            for parent, positions in self._gates(self.axis(frontier.pop())):
                needed[parent] = needed.get(parent, set(positions)) & set(positions)
                frontier.append(parent)
        return math.prod(self.axis(parent).share(sorted(positions)) for parent, positions in needed.items())

    def encode(self, columns: Mapping[str, Iterable[Any]], trials: Sequence[object] | None = None) -> tuple[Floats, Bools]:
        """Encode configurations that were run, whether or not they lie in a restricted region.

        Args:
            columns: n values per factor, None or nan where there is none; other columns are ignored, and so are the values of
                factors that are not active.
            trials: the n trials' ids, for messages.

        Returns:
            The matrix, shape (n, width), and where each factor is active, shape (n, n_factors).

        Raises:
            InputError: a column is missing, an active factor has no value, or one that was not declared.
        """
        values = _listed(columns, self.names)
        positions = np.full((len(values[self.names[0]]), len(self.axes)), np.nan)
        problems: list[Problem] = []
        for index, axis in enumerate(self.axes):
            active = np.flatnonzero(self._is_active(positions, index))
            given = [values[axis.name][row] for row in active]
            positions[active, index] = found = _positions(axis, given)
            rows = [(int(active[k]), given[k]) for k in np.flatnonzero(np.isnan(found))]
            problems += _faults(
                axis, {f"row {row}" if trials is None else f"trial {trials[row]}": value for row, value in rows}
            )
        if problems:
            raise InputError(problems)
        return self._encoded(positions)

    def points(self, u: Floats) -> tuple[Floats, Bools]:
        """Return the encoded configurations at points of the unit cube.

        Args:
            u: shape (n, n_factors), in the order of `names`; the columns of fixed factors have no effect.

        Returns:
            The matrix, shape (n, width), and where each factor is active, shape (n, n_factors).
        """
        return self._encoded(self._drawn(u))

    def values(self, u: Floats) -> list[dict[str, Scalar]]:
        """Return the configurations, active factors only, at points `u` of the unit cube, shape (n, n_factors)."""
        return [
            {axis.name: axis.at(position) for axis, position in zip(self.axes, row, strict=True) if not math.isnan(position)}
            for row in self._drawn(u)
        ]

    def grid(self, name: str, size: int) -> tuple[Floats, Floats, list[Scalar]]:
        """Return values of one factor that stand for all that can be drawn, numbers in ascending order.

        Args:
            name: the factor.
            size: how many at equal probabilities, for a continuous factor; every level is given of one that has up to 1000.

        Returns:
            The points u, shape (n,), their probabilities, shape (n,), and the values.
        """
        axis = self.axis(name)
        if not axis.levels or len(axis.levels) > _MOST_LISTED:
            u = (np.arange(size) + 0.5) / size
            positions, first, counts = np.unique(axis.positions(u), return_index=True, return_counts=True)
            return u[first], counts / size, [axis.at(position) for position in positions]
        shares = np.array([axis.share([k]) for k in range(len(axis.levels))])
        kept = np.flatnonzero(shares > 0)
        u = (np.cumsum(shares) - shares / 2)[kept]
        order = np.argsort(axis.numbers[kept]) if axis.numbers.size else np.arange(kept.size)
        return u[order], shares[kept][order], [axis.levels[k] for k in kept[order]]

    def given(self, values: Mapping[str, Scalar]) -> Measure:
        """Fix factors: encoded columns stay, and every u of such a factor means the value given, where it is active.

        Raises:
            InputError: a name is no factor, or a value none of the factor's.
        """
        return self._restricted((name, partial(Axis.among, values=[value])) for name, value in values.items())

    def within(self, region: Mapping[str, Any]) -> Measure:
        """Restrict factors, each by itself: the distribution among the values kept is the declared one.

        Args:
            region: by factor; a tuple of two numbers is a range with both ends, None where it is open, if the factor's values
                are numbers; any other collection lists levels; a single value fixes the factor.

        Raises:
            InputError: a name is no factor, a value none of the factor's, or nothing is left.
        """
        return self._restricted((name, partial(_narrowed, wanted=wanted)) for name, wanted in region.items())

    def _restricted(self, steps: Iterable[tuple[str, Callable[[Axis], Axis]]]) -> Measure:
        axes = {axis.name: axis for axis in self.axes}
        problems: list[Problem] = []
        for name, cut in steps:
            try:
                self.axis(name)
                axes[name] = cut(axes[name])
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(problems)
        return replace(self, axes=tuple(axes.values()))

    def _gates(self, axis: Axis) -> Iterator[tuple[str, list[int]]]:
        """Yield each factor of an axis' condition with the positions at which it holds, ascending."""
        for parent, wanted in axis.when.items():
            yield parent, sorted(int(self.axis(parent).position(value)) for value in wanted)

    def _is_active(self, positions: Floats, index: int) -> Bools:
        """Return where a factor is active, shape (n,), from the positions of those before it, nan where they are not active."""
        active = np.ones(len(positions), dtype=bool)
        for parent, wanted in self._gates(self.axes[index]):
            active &= np.isin(positions[:, self.names.index(parent)], wanted)
        return active

    def _drawn(self, u: Floats) -> Floats:
        """Return the positions, shape (n, n_factors), at points `u`; nan where a factor is not active."""
        positions = np.empty(u.shape)
        for index, axis in enumerate(self.axes):
            positions[:, index] = np.where(self._is_active(positions, index), axis.positions(u[:, index]), np.nan)
        return positions

    def _encoded(self, positions: Floats) -> tuple[Floats, Bools]:
        active = ~np.isnan(positions)
        matrix = np.empty((len(positions), self.width))
        for index, axis in enumerate(self.axes):
            matrix[:, axis.columns] = axis.neutral
            matrix[active[:, index], axis.columns] = axis.code(positions[active[:, index], index])
        return matrix, active

    def _condition_faults(self, axis: Axis) -> Iterator[Problem]:
        for name, wanted in axis.when.items():
            place, parent = f"factors.{axis.name}.when.{name}", self.axis(name)
            if not parent.levels:
                yield Problem(place, f"{name} is continuous", "a condition needs a factor with levels")
            elif not wanted:
                yield Problem(place, "is an empty list: the factor would never be active")
            else:
                for value in wanted:
                    if math.isnan(parent.position(value)):
                        yield Problem(place, f"{name} never is {value!r}", parent.accepted)


def parse_region(text: str, measure: Measure) -> Measure:
    """Restrict `measure` as a text says, such as `learning_rate<0.01, 0.1<=data_fraction, optimizer=sgd, batch_size in 32|64`.

    Raises:
        InputError: with every comparison that cannot be understood, or that leaves nothing.
    """
    problems: list[Problem] = []
    for term in terms(text):
        try:
            measure = measure._restricted(comparisons(term, measure.names))
        except InputError as error:
            problems += error.problems
    if problems:  # a name that is unknown is so in both comparisons of 0.1<=NAME<=0.5
        unlike = dict.fromkeys(problems)
        raise InputError([replace(problem, where=f"region: {problem.where}".removesuffix(": ")) for problem in unlike])
    return measure


def sobol_points(n: int, d: int, seed: int) -> Floats:
    """Return `n` (a power of two) points of a scrambled Sobol sequence in the unit cube, shape (n, d)."""
    points: Floats = qmc.Sobol(d, scramble=True, rng=seed).random_base2(n.bit_length() - 1)
    assert len(points) == n, "a Sobol sequence is balanced after powers of two only"
    return points


def _declared(factors: Mapping[str, Factor | Mapping[str, Any]]) -> dict[str, Factor]:
    declared: dict[str, Factor] = {}
    problems: list[Problem] = [] if factors else [Problem("factors", "is empty", "expected at least one factor")]
    for name, given in factors.items():
        place = f"factors.{name}"
        try:
            factor = declared[name] = given if isinstance(given, Factor) else Factor.model_validate(given)
        except ValidationError as error:
            problems += problems_of(error, place, Factor)
            continue
        # In other factors of choice the word is a value like any other, of a pooling for instance.
        listed = (factor.choice if name == "frozen_depth" else ()) if factor.choice is not None else factor.bounds
        if PROBE_DEPTH in listed:
            problems.append(Problem(f"{place}.{factor.form}", f"got {PROBE_DEPTH!r}", "write the backbone's number of units"))
    for name, factor in declared.items():
        for parent in factor.when or {}:
            if parent not in factors:
                place = f"factors.{name}.when.{parent}"
                problems.append(Problem(place, f"there is no factor {parent!r}", nearest(parent, factors)))
    if problems:
        raise InputError(problems)
    return declared


def _parents_first(factors: Mapping[str, Factor]) -> list[str]:
    """Order the names so that each comes after those its condition speaks of, and otherwise as given."""
    order: list[str] = []

    def visit(name: str, children: tuple[str, ...]) -> None:
        if name in children:
            raise InputError(Problem(f"factors.{name}.when", "the conditions go round in a circle"))
        if name not in order:
            for parent in factors[name].when or {}:
                visit(parent, (*children, name))
            order.append(name)

    for name in factors:
        visit(name, ())
    return order


def _listed(columns: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns as lists of plain values, checked to be there and equally long."""
    listed: dict[str, list[Any]] = {}
    problems: list[Problem] = []
    for name in names:
        if name not in columns:
            problems.append(Problem(name, "there is no column of this factor", f"the columns are {', '.join(columns)}"))
            continue
        column = columns[name]
        plain = getattr(column, "to_pylist", None) or getattr(column, "tolist", None)  # of pyarrow, of numpy and pandas
        listed[name] = plain() if plain else list(column)
        if len(listed[name]) != (expected := len(next(iter(listed.values())))):
            problems.append(
                Problem(name, f"has {len(listed[name])} values", f"expected {expected}, as for {next(iter(listed))}")
            )
    if problems:
        raise InputError(problems)
    return listed


def _positions(axis: Axis, values: Sequence[Any]) -> Floats:
    """Return the positions of `values`, shape (n,), nan for what is no value; each is looked up once."""
    known: dict[tuple[type, Any], float] = {}
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, (bool, int, float, str, np.generic)):
            key = (type(value), value)
            if key not in known:
                known[key] = axis.position(value)
            found[row] = known[key]
    return found


def _faults(axis: Axis, wrong: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of an active factor in rows, by label, whose values are none of its own."""
    for label, value in list(wrong.items())[:_MOST_SHOWN]:
        is_missing = value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))
        what = "has no value, but is active here" if is_missing else f"got {shown(value)}"
        yield Problem(f"{label}: {axis.name}", what, axis.accepted)
    if len(wrong) > _MOST_SHOWN:
        yield Problem(axis.name, f"{len(wrong) - _MOST_SHOWN} more like these")


def _narrowed(axis: Axis, *, wanted: Any) -> Axis:
    if isinstance(wanted, tuple) and len(wanted) == 2 and axis.is_numeric and all(map(_is_end, wanted)):
        low, high = wanted
        return axis.between(-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return axis.among(wanted if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted])


def _is_end(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))
