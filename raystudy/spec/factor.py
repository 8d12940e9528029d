"""One factor of a study: the values it may take, with which measure, and under which condition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from raystudy.factors import PROBE_DEPTH, Role, Scalar

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Number = StrictInt | StrictFloat
Bound = StrictInt | Literal["max"]
_MOST_STEPS = 1_000_000
FORMS = ("log_uniform", "uniform", "int", "log_int", "choice")


class Factor(BaseModel):
    """What a study file says about one factor; exactly one of the five forms is given.

    Attributes:
        log_uniform: [low, high], uniform on the logarithm.
        uniform: [low, high].
        int: [low, high], whole numbers, both ends included; `max` stands for the backbone's number of units.
        log_int: [low, high], whole numbers, uniform on the logarithm.
        choice: the values, each equally probable.
        role: scientific (the question), nuisance (tuned away) or fixed; the catalogue's role where absent.
        when: other factors' values (one or a list) without which this one has no effect and is not sampled.
        step: distance between values, for `int` and `uniform`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    log_uniform: tuple[Number, Number] | None = None
    uniform: tuple[Number, Number] | None = None
    int_: tuple[Bound, Bound] | None = Field(default=None, alias="int")
    log_int: tuple[StrictInt, StrictInt] | None = None
    choice: tuple[Value, ...] | None = None
    role: Role | None = None
    when: Mapping[str, Value | tuple[Value, ...]] | None = None
    step: Number | None = None

    @property
    def form(self) -> str:
        """Which of the five forms is given."""
        return next(name for name in FORMS if self._value(name) is not None)

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The [low, high] of the form given; not for `choice`."""
        value: tuple[Any, Any] = self._value(self.form)
        return value

    def _value(self, form: str) -> Any:
        return getattr(self, "int_" if form == "int" else form)

    @model_validator(mode="after")
    def _check(self) -> Factor:
        if faults := list(self._faults()):
            # One line a fault, each with its place: `messages` makes a problem of each.
            raise ValueError("\n".join(f"@{place}: {text}" for place, text in faults))
        return self

    def _faults(self) -> Iterator[tuple[str, str]]:
        given = [name for name in FORMS if self._value(name) is not None]
        if len(given) != 1:
            got = "none of them" if not given else " and ".join(given)
            yield "", f"needs exactly one of {', '.join(FORMS)}, got {got}"
        elif self.choice is not None:
            yield from self._choice_faults(self.choice)
        else:
            yield from self._bound_faults()
            yield from self._step_faults()

    def _choice_faults(self, values: tuple[Scalar, ...]) -> Iterator[tuple[str, str]]:
        if not values:
            yield "choice", "is empty, expected at least one value"
        seen: set[tuple[bool, Scalar]] = set()
        for index, value in enumerate(values):
            key = (isinstance(value, bool), value)  # 1 and 1.0 are the same choice, 1 and true are not
            if key in seen:
                yield f"choice[{index}]", f"{value!r} is given twice"
            if isinstance(value, float) and not math.isfinite(value):
                yield f"choice[{index}]", f"got {value}, expected a finite number"
            seen.add(key)
        if self.step is not None:
            yield "step", "goes with int and uniform, not with choice"

    def _bound_faults(self) -> Iterator[tuple[str, str]]:
        form, (low, high) = self.form, self.bounds
        for index, bound in enumerate((low, high)):
            if isinstance(bound, float) and not math.isfinite(bound):
                yield f"{form}[{index}]", f"got {bound}, expected a finite number"
        if low == PROBE_DEPTH:
            yield f"{form}[0]", f"got {PROBE_DEPTH!r}, which goes second: [low, {PROBE_DEPTH}]"
            return
        if high != PROBE_DEPTH and low >= high:
            yield form, f"[{low}, {high}] is an empty range, expected the lower end first and below the upper"
        if form.startswith("log_") and low <= 0:
            yield f"{form}[0]", f"got {low}, a logarithmic range must begin above 0"

    def _step_faults(self) -> Iterator[tuple[str, str]]:
        form, (low, high) = self.form, self.bounds
        if self.step is None:
            return
        if form not in ("int", "uniform"):
            yield "step", f"goes with int and uniform, not with {form}"
        elif not 0 < self.step < math.inf or (form == "int" and not isinstance(self.step, int)):
            yield "step", f"got {self.step}, expected a {'whole ' if form == 'int' else ''}number above 0"
        elif PROBE_DEPTH in (low, high) or not -math.inf < low < high < math.inf:
            return  # nothing to compare with: open, or at fault already
        elif _decimal(self.step) > _decimal(high) - _decimal(low):
            yield "step", f"got {self.step}, which is more than the whole range [{low}, {high}]"
        elif form == "uniform" and not _can_count(low, high, self.step):
            yield "step", f"got {self.step}, with which [{low}, {high}] cannot be counted exactly; expected a rounder number"


def last_step(low: float, high: float, step: float) -> float:
    """Return the greatest value up to `high` that steps from `low` reach, as people count: 0.3 after three steps of 0.1."""
    return after_steps(low, step, int((_decimal(high) - _decimal(low)) // _decimal(step)))


def after_steps(low: float, step: float, count: int) -> float:
    """Return `low + count * step`, counted in decimals."""
    return float(_decimal(low) + count * _decimal(step))


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))


def _can_count(low: float, high: float, step: float) -> bool:
    """Whether the last step is a number that can be written down: what Optuna, which counts in decimals too, relies on."""
    if (high - low) / step > _MOST_STEPS:
        return False
    return (_decimal(last_step(low, high, step)) - _decimal(low)) % _decimal(step) == 0
