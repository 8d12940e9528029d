"""One factor of a study: the values it may take, with which measure, and under which condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from raystudy.factors import PROBE_DEPTH, Role, Scalar

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Number = StrictInt | StrictFloat
Bound = StrictInt | Literal["max"]
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

    def levels(self) -> tuple[Scalar, ...] | None:
        """Return all values where they are few and finite (choices, and ranges of int), else None."""
        if self.choice is not None:
            return self.choice
        if self.int_ is not None and PROBE_DEPTH not in self.int_:
            low, high = self.int_
            return tuple(range(int(low), int(high) + 1, int(self.step or 1)))
        return None

    def _value(self, form: str) -> Any:
        return getattr(self, "int_" if form == "int" else form)

    @model_validator(mode="after")
    def _check(self) -> Factor:
        given = [name for name in FORMS if self._value(name) is not None]
        if len(given) != 1:
            got = "none of them" if not given else " and ".join(given)
            raise ValueError(f"needs exactly one of {', '.join(FORMS)}, got {got}")
        if self.choice is not None:
            self._check_choice(self.choice)
        else:
            self._check_bounds()
        return self

    def _check_choice(self, values: tuple[Scalar, ...]) -> None:
        if not values:
            raise ValueError("@choice: is empty, expected at least one value")
        seen: list[tuple[type, Scalar]] = []
        for index, value in enumerate(values):
            if (type(value), value) in seen:
                raise ValueError(f"@choice[{index}]: {value!r} is given twice")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"@choice[{index}]: got {value}, expected a finite number")
            seen.append((type(value), value))
        if self.step is not None:
            raise ValueError("@step: goes with int and uniform, not with choice")

    def _check_bounds(self) -> None:
        form, (low, high) = self.form, self.bounds
        for index, bound in enumerate((low, high)):
            if isinstance(bound, float) and not math.isfinite(bound):
                raise ValueError(f"@{form}[{index}]: got {bound}, expected a finite number")
        if low == PROBE_DEPTH:
            raise ValueError(f"@{form}[0]: got {PROBE_DEPTH!r}, which goes second: [low, {PROBE_DEPTH}]")
        if high != PROBE_DEPTH and not low < high:
            raise ValueError(f"@{form}: [{low}, {high}] is an empty range, expected the lower end first and below the upper")
        if form.startswith("log_") and low <= 0:
            raise ValueError(f"@{form}[0]: got {low}, a logarithmic range must begin above 0")
        self._check_step(form)

    def _check_step(self, form: str) -> None:
        if self.step is None:
            return
        if form not in ("int", "uniform"):
            raise ValueError(f"@step: goes with int and uniform, not with {form}")
        if self.step <= 0 or (form == "int" and not isinstance(self.step, int)):
            raise ValueError(f"@step: got {self.step}, expected a {'whole ' if form == 'int' else ''}number above 0")
