"""Guidelines in words: what a value gains over another, with the interval, and the number of trials that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raystudy.factors import Scalar
from raystudy.findings.answer import Interval

_MOST_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Wording:
    """How effects on one metric are said.

    Attributes:
        metric: its name.
        mode: `max` or `min`.
        in_points: whether it is a share of right answers, of which people speak in points.
    """

    metric: str
    mode: str
    in_points: bool

    def gain(
        self, factor: str, level: Scalar, reference: Scalar, effect: Interval, condition: Mapping[str, Scalar], n: int
    ) -> str:
        """Return what one of a few values gains over another.

        Args:
            factor: the factor.
            level: the better value.
            reference: the other one.
            effect: the metric at `level` less that at `reference`.
            condition: values of other factors.
            n: number of trials behind it.
        """
        size, ends = self._size(effect)
        if self.in_points and self.mode == "max":
            result = f"gains {size} of {self.metric} {ends}"
        else:
            result = f"{'raises' if effect.value > 0 else 'lowers'} {self.metric} by {size} {ends}"
        return _sentence(condition, f"{_change(factor, level, reference)} {result}, n = {n}")

    def place(
        self,
        factor: str,
        level: Scalar,
        within: tuple[Scalar, Scalar],
        reference: Scalar,
        effect: Interval,
        condition: Mapping[str, Scalar],
        n: int,
    ) -> str:
        """Return near which value a continuous factor is best, and what its worse end costs.

        Args:
            factor: the factor.
            level: the best value.
            within: between which values the best one lies.
            reference: the worse end.
            effect: the metric at `level` less that at `reference`.
            condition: values of other factors.
            n: number of trials behind it.
        """
        size, ends = self._size(effect)
        direction = "lower" if effect.value > 0 else "higher"
        where = f"{factor} is best near {_short(level)} [{_short(within[0])}, {_short(within[1])}]"
        return _sentence(condition, f"{where}; at {_short(reference)} {self.metric} is {size} {direction} {ends}, n = {n}")

    def _size(self, effect: Interval) -> tuple[str, str]:
        """Return the size of an effect and the ends of its interval, to the digits that its width leaves any meaning."""
        scale = 100.0 if self.in_points else 1.0
        value, *ends = (scale * abs(number) for number in (effect.value, *sorted((effect.low, effect.high), key=abs)))
        width = ends[1] - ends[0]
        decimals = min(max(0, 1 - math.floor(math.log10(width))), _MOST_DECIMALS) if width > 0 else 4
        unit = " points" if self.in_points else ""
        return f"{value:.{decimals}f}{unit}", f"[{ends[0]:.{decimals}f}, {ends[1]:.{decimals}f}]"


def settings(values: Mapping[str, Scalar]) -> str:
    """Return values of factors as people write them: `learning_rate=0.004, optimizer=sgd`."""
    return ", ".join(f"{name}={_short(value, 3)}" for name, value in values.items())


def _sentence(condition: Mapping[str, Scalar], text: str) -> str:
    if condition:
        return f"With {settings(condition)}, {text}."
    # A factor's name is not changed for standing first.
    return f"{text[0].upper()}{text[1:]}." if text.startswith("freezing ") else f"{text}."


def _change(factor: str, level: Scalar, reference: Scalar) -> str:
    if factor == "frozen_depth":
        units = f"{_short(level) if level else 'no'} unit{'' if level == 1 else 's'}"
        return f"freezing {units} instead of {_short(reference)}"
    return f"{factor}={_short(level, 3)} instead of {_short(reference, 3)}"


def _short(value: Scalar, digits: int = 2) -> str:
    """Return a value of a factor; of a continuous one, `digits` say all that an estimate knows."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
