"""One factor of the measure: where its values lie, with which probability, and what columns stand for them.

The distribution is uniform on a scale: the logarithm for the log forms, the number of the level where all are equally
probable. So a restriction only keeps some stretches of that scale.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raystudy.errors import InputError, Problem
from raystudy.factors import Scalar
from raystudy.spec import Factor
from raystudy.spec.factor import after_steps, last_step
from raystudy.spec.messages import shown

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = Literal["continuous", "ordered", "categorical"]
Runs = tuple[tuple[float, float], ...]

_ROUNDING = 1e-7
"""Relative difference between a value and its declaration that a passage through 32-bit numbers makes."""
_MOST_WORDS = 20
"""Levels that a message lists one by one."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One factor: where u in [0, 1) lies among its values, and what columns stand for a value.

    A *position* is what both have in common: the number of the level, or the place on the scale of a continuous factor.

    Attributes:
        name: the factor.
        kind: ordered and categorical factors have levels.
        levels: the values in declared order, a `range` for whole numbers; empty if continuous.
        columns: its columns of the encoded matrix.
        when: the values of other factors under which it is active; empty if always.
        bounds: lowest and highest value if continuous, else (0, number of levels).
        log: whether the distribution is uniform on the logarithm.
        runs: the stretches of the scale that are drawn from, (start, end) each; all of it unless restricted.
        numbers: shape (n_levels,), the levels as numbers where they are listed and all are numbers, else (0,).
        codes: shape (n_levels, n_columns), the columns of each level where levels are listed, else (0, 1).
    """

    name: str
    kind: Kind
    levels: Sequence[Scalar]
    columns: slice
    when: Mapping[str, tuple[Scalar, ...]]
    bounds: tuple[float, float]
    log: bool
    runs: Runs = ()
    numbers: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    codes: Floats = field(default_factory=lambda: np.empty((0, 1)), repr=False, compare=False)

    @classmethod
    def of(cls, name: str, factor: Factor, start: int) -> Axis:
        """Build the axis of `factor`, whose bounds are numbers, with its columns from `start` on."""
        when = {parent: value if isinstance(value, tuple) else (value,) for parent, value in (factor.when or {}).items()}
        log = factor.form.startswith("log_")
        levels = _levels(factor)
        numbers, codes = _table(levels, is_ordered=_is_ordered(factor))
        kind: Kind = "continuous" if not levels else "ordered" if _is_ordered(factor) else "categorical"
        bounds = (0.0, float(len(levels))) if levels else (float(factor.bounds[0]), float(factor.bounds[1]))
        axis = cls(name, kind, levels, slice(start, start + codes.shape[1]), when, bounds, log, (), numbers, codes)
        return replace(axis, runs=(axis.scale,))

    @property
    def scale(self) -> tuple[float, float]:
        """What the ends of the whole distribution are on the scale on which it is uniform."""
        if self.levels:
            return self._edge(0), self._edge(len(self.levels))
        low, high = self.bounds
        return (math.log(low), math.log(high)) if self.log else (low, high)

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers, so that one can be below another."""
        return not self.levels or isinstance(self.levels, range) or self.numbers.size > 0

    @property
    def only(self) -> Scalar | None:
        """The value, if there is only one that can be drawn."""
        low, high = self.positions(np.array([0.0, 1.0]))
        if low != high:
            return None
        value = self.at(low)
        return float(f"{value:.12g}") if self.kind == "continuous" else value  # 0.01 again, after exp(log(0.01))

    @property
    def accepted(self) -> str:
        """What values there are, in words."""
        if not self.levels:
            return f"expected a number from {self.bounds[0]} to {self.bounds[1]}"
        if isinstance(self.levels, range):
            step = f" in steps of {self.levels.step}" if self.levels.step > 1 else ""
            return f"expected a whole number from {self.levels[0]} to {self.levels[-1]}{step}"
        listed = self.levels if len(self.levels) <= _MOST_WORDS else (*self.levels[:3], "...", self.levels[-1])
        return f"expected one of {', '.join(map(str, listed))}"

    def value(self, u: float) -> Scalar:
        """Return the value below which the share `u` (0 to 1) of what can be drawn lies."""
        return self.at(self.positions(np.array([u]))[0])

    def encode(self, value: Scalar) -> Floats:
        """Return the columns, shape (n_columns,), of `value`; raise InputError if it is none of the factor's."""
        return self.code(np.array([self._found(value)]))[0]

    def positions(self, u: Floats) -> Floats:
        """Return the positions, shape (n,), at the shares `u`, shape (n,), of what can be drawn."""
        starts, ends = np.array(self.runs).T
        run, inside = _spread(u, ends - starts)
        first, last = starts[run], ends[run]
        place = first + inside * (last - first)
        if not self.levels:
            return np.clip(place, first, last)
        if not self.log:
            return np.clip(np.floor(place), first, last - 1)
        # The ends of a run are halfway between whole numbers: rounding must not lead beyond them.
        whole = np.clip(np.rint(np.exp(place)), np.rint(np.exp(first) + 0.5), np.rint(np.exp(last) - 0.5))
        return whole - float(self.levels[0])

    def code(self, positions: Floats) -> Floats:
        """Return the columns, shape (n, n_columns), of `positions`, shape (n,)."""
        if self.codes.size:
            return self.codes[positions.astype(np.intp)]
        if not self.levels:
            place = positions
        elif self.log:
            value = positions + float(self.levels[0])
            place = (np.log(value - 0.5) + np.log(value + 0.5)) / 2
        else:
            place = positions + 0.5
        low, high = self.scale
        return ((place - low) / (high - low))[:, None]

    @property
    def neutral(self) -> Floats:
        """The columns, shape (n_columns,), where the factor is not active: the middle of its values."""
        return self.codes.mean(axis=0) if self.codes.size else np.array([0.5])

    def at(self, position: float) -> Scalar:
        """Return the value at a position."""
        if self.levels:
            return self.levels[int(position)]
        low, high = self.bounds
        return float(min(max(math.exp(position) if self.log else position, low), high))

    def position(self, value: object) -> float:
        """Return the position of `value`, nan if it is none of the declared values (a restriction does not count)."""
        value = value.item() if isinstance(value, np.generic) else value
        if not self.is_numeric:
            return next((k for k, level in enumerate(self.levels) if _is_same(level, value)), math.nan)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            return math.nan
        if not self.levels:
            return self._place(value)
        if isinstance(self.levels, range):
            is_level = abs(value - round(value)) <= _ROUNDING and round(value) in self.levels
            return float(self.levels.index(round(value))) if is_level else math.nan
        distances = np.abs(self.numbers - value)
        nearest_one = int(np.argmin(distances))
        gap = float(np.partition(distances, 1)[1]) if distances.size > 1 else 0.0
        return float(nearest_one) if distances[nearest_one] <= _ROUNDING * max(abs(value), gap) else math.nan

    def between(self, low: float, high: float) -> Axis:
        """Keep the values from `low` to `high`; raise InputError if that leaves none, or the values have no order."""
        if not self.is_numeric:
            raise InputError(Problem(self.name, "has no order", self.accepted))
        if math.isnan(low) or math.isnan(high):
            raise InputError(Problem(self.name, "got nan", self.accepted))
        if isinstance(self.levels, range):
            return self._kept(self._runs(range(bisect_left(self.levels, low), bisect_right(self.levels, high))))
        if self.levels:
            return self._kept(self._runs(np.flatnonzero((self.numbers >= low) & (self.numbers <= high)).tolist()))
        low, high = max(low, self.bounds[0]), min(high, self.bounds[1])
        return self._kept(((self._place(low), self._place(high)),) if low <= high else ())

    def among(self, values: Iterable[object]) -> Axis:
        """Keep `values`, a single one if the factor is continuous; raise InputError if one is none of the factor's."""
        positions = sorted({self._found(value) for value in values})
        if self.levels:
            return self._kept(self._runs([int(position) for position in positions]))
        if len(positions) > 1:
            raise InputError(Problem(self.name, "is continuous: single values have no probability", "expected one, or a range"))
        return self._kept(tuple((position, position) for position in positions))

    def without(self, value: object) -> Axis:
        """Leave out the level `value`; raise InputError if it is none, or the only one."""
        if not self.levels:
            raise InputError(Problem(self.name, "is continuous: leaving out one value changes nothing", "expected < or >"))
        position = int(self._found(value))
        return self._kept(((self._edge(0), self._edge(position)), (self._edge(position + 1), self._edge(len(self.levels)))))

    def share(self, positions: Sequence[int]) -> float:
        """Return the probability, of what can be drawn, that the level is one of the `positions`, ascending."""
        total = sum(end - start for start, end in self.runs)
        return sum(end - start for start, end in self._overlap(self._runs(positions))) / total

    def _found(self, value: object) -> float:
        position = self.position(value)
        if math.isnan(position):
            raise InputError(Problem(self.name, f"got {shown(value)}", self.accepted))
        return position

    def _place(self, value: float) -> float:
        """Return where a value of a continuous factor lies on the scale, nan beyond its ends."""
        low, high = self.bounds
        width = 0.0 if self.log else high - low  # below the end of a logarithmic range, only relative differences are small
        if value < low - _ROUNDING * max(abs(low), width) or value > high + _ROUNDING * max(abs(high), width):
            return math.nan
        inside = min(max(value, low), high)
        return math.log(inside) if self.log else inside

    def _edge(self, k: int) -> float:
        """Return where level `k` begins on the scale; Optuna widens whole numbers on a logarithm by a half at both ends."""
        return math.log(float(self.levels[0]) + k - 0.5) if self.log else float(k)

    def _runs(self, positions: Sequence[int]) -> Runs:
        """Return the stretches that the levels at `positions`, ascending, take on the scale."""
        if isinstance(positions, range):  # of consecutive levels, perhaps billions
            return ((self._edge(positions[0]), self._edge(positions[-1] + 1)),) if positions else ()
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        groups = np.split(np.array(positions, dtype=np.intp), breaks)
        return tuple((self._edge(int(group[0])), self._edge(int(group[-1]) + 1)) for group in groups if group.size)

    def _overlap(self, runs: Runs) -> Runs:
        both = ((max(a, c), min(b, d)) for a, b in self.runs for c, d in runs)
        return tuple((start, end) for start, end in both if start < end or (start == end and not self.levels))

    def _kept(self, runs: Runs) -> Axis:
        if not (kept := self._overlap(runs)):
            raise InputError(Problem(self.name, "the region is empty, no value is left", self.accepted))
        return replace(self, runs=kept)


def _levels(factor: Factor) -> Sequence[Scalar]:
    """Return the values of a factor that has levels, as the study's space has them; empty if it is continuous."""
    if factor.choice is not None:
        return factor.choice
    low, high = factor.bounds
    if factor.form in ("int", "log_int"):
        return range(low, high + 1, int(factor.step or 1))
    if factor.step is None:
        return ()
    low, high = float(low), float(high)
    count = round((last_step(low, high, factor.step) - low) / factor.step)
    return tuple(after_steps(low, factor.step, k) for k in range(count + 1))


def _table(levels: Sequence[Scalar], *, is_ordered: bool) -> tuple[Floats, Floats]:
    """Return listed levels as numbers, shape (n,), if all are, and their columns, shape (n, n_columns)."""
    if not levels or isinstance(levels, range):  # computed where they are needed: a seed has billions of levels
        return np.empty(0), np.empty((0, 1))
    numbers = np.array(levels, dtype=float) if all(map(_is_number, levels)) else np.empty(0)
    if is_ordered:
        ranks = np.argsort(np.argsort(numbers))
        return numbers, ((ranks + 0.5) / len(levels))[:, None]
    if len(levels) <= 2:
        return numbers, np.arange(float(len(levels)))[:, None]
    return numbers, np.eye(len(levels)) / math.sqrt(2)  # any two levels are 1 apart, as those of a factor of two are


def _is_ordered(factor: Factor) -> bool:
    return factor.choice is None or (len(factor.choice) > 2 and all(map(_is_number, factor.choice)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_same(level: Scalar, value: object) -> bool:
    return isinstance(level, bool) is isinstance(value, bool) and level == value


def _spread(u: Floats, lengths: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return in which of stretches of these lengths the shares `u` of the whole lie, and how far inside, both shape (n,)."""
    if len(lengths) == 1:  # exactly u, as in the study's space
        return np.zeros(u.shape, dtype=np.intp), u
    shares = lengths / lengths.sum()
    ends = np.cumsum(shares)
    run = np.minimum(np.searchsorted(ends, u, side="right"), len(lengths) - 1)
    return run, (u - (ends - shares)[run]) / shares[run]
