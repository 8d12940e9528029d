"""What is known about a factor of fine-tuning: its type, its range, its role, and where it is described."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Scalar = bool | int | float | str
Role = Literal["scientific", "nuisance", "fixed"]
Kind = Literal["float", "int", "categorical", "bool"]

PROBE_DEPTH = "max"
"""The word that stands for "all units frozen" in bounds and values of `frozen_depth`."""


@dataclass(frozen=True, slots=True)
class FactorInfo:
    """What is known about one factor.

    Attributes:
        name: the name used in study files, tables and MLflow params.
        kind: the type of a value.
        doc: what it does, in one sentence.
        default: the value where a study neither varies nor fixes it.
        low: smallest value allowed (inclusive), for numbers.
        high: largest value allowed (inclusive); None where the data or the backbone decides.
        positive: whether `low` itself is excluded (a learning rate of 0 trains nothing).
        off: a value below `low` that switches the factor off; allowed as a value, not as the end of a range.
        choices: the values allowed, for categoricals.
        role: the role where the study file does not say one.
        applies: other factors' values without which this one has no effect.
        source: where the factor is described.
    """

    name: str
    kind: Kind
    doc: str
    default: Scalar
    low: float | None = None
    high: float | None = None
    positive: bool = False
    off: int | None = None
    choices: tuple[Scalar, ...] = ()
    role: Role = "nuisance"
    applies: Mapping[str, Scalar] = field(default_factory=dict)
    source: str = ""

    def refusal(self, value: object) -> str | None:
        """Say why `value` cannot be a value of this factor, or None if it can."""
        if self.name == "frozen_depth" and value == PROBE_DEPTH:
            return None
        if self.kind in ("categorical", "bool"):
            return None if self._is_choice(value) else f"got {value!r}, expected {self.accepted()}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"got {value!r} ({type(value).__name__}), expected {self.accepted()}"
        fits = math.isfinite(value) if isinstance(value, float) else True
        if not fits or not self._in_range(value) or (self.kind == "int" and value != int(value)):
            return f"got {value!r}, expected {self.accepted()}"
        return None

    def accepted(self) -> str:
        """Describe in words what values are accepted."""
        if self.kind == "bool":
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if not self.choices and self.kind == "categorical":
            return "a name"
        noun = "a whole number" if self.kind == "int" else "a number"
        low = "" if self.low is None else f" {'above' if self.positive else 'from'} {_plain(self.low)}"
        high = "" if self.high is None else f" {'and at most' if self.positive else 'to'} {_plain(self.high)}"
        word = PROBE_DEPTH if self.name == "frozen_depth" else self.off
        return noun + low + high + ("" if word is None else f" (or {word})")

    def _is_choice(self, value: object) -> bool:
        if self.kind == "bool":
            return isinstance(value, bool)
        if not self.choices:
            return isinstance(value, str) and bool(value)
        return any(type(choice) is type(value) and choice == value for choice in self.choices)

    def _in_range(self, value: float) -> bool:
        if self.off is not None and value == self.off:
            return True
        if self.low is not None and (value < self.low or (self.positive and value == self.low)):
            return False
        return self.high is None or value <= self.high


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:g}"
