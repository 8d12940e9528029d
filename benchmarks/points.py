"""Acceptance points: a figure beside its limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One acceptance point: what it is about, the figure, its limits."""

    what: str
    figure: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the limits; one that is not a number is not."""
        return self.low <= self.figure <= self.high

    def __str__(self) -> str:
        limits = [f"{word} {end:g}" for word, end in (("at least", self.low), ("at most", self.high)) if math.isfinite(end)]
        return f"{'met' if self.is_met else 'NOT MET'} | {self.what} | {self.figure:.3f} | {' and '.join(limits)}"


def judge(points: Sequence[Point]) -> None:
    """Print every point; exit with code 1 if one is not met."""
    for point in points:
        print(point)
    if not all(point.is_met for point in points):
        raise SystemExit(1)
