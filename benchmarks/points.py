"""Acceptance points: a figure beside its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One acceptance point: what it is about, the figure, its limits."""

    what: str
    figure: float
    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        limits = [f"{word} {end:g}" for word, end in (("at least", self.low), ("at most", self.high)) if math.isfinite(end)]
        met = "met" if self.low <= self.figure <= self.high else "NOT MET"  # a figure that is not a number is not met
        return f"{met} | {self.what} | {self.figure:.3f} | {' and '.join(limits)}"
