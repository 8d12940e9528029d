"""Values and distributions as people write them."""

from __future__ import annotations

from typing import Any

from raystudy.factors import Scalar
from raystudy.spec import Factor


def show(value: Scalar | None) -> str:
    """Return a value as a study file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(factor: Factor, distribution: Any) -> str:
    """Describe a factor's distribution in words.

    Args:
        factor: what the study file says.
        distribution: the same for the sampler, with `max` resolved.
    """
    if factor.choice is not None:
        return "one of " + ", ".join(map(show, distribution.choices))
    low, high = show(distribution.low), show(distribution.high)
    words = {
        "log_uniform": f"{low} to {high}, uniform on the logarithm",
        "uniform": f"{low} to {high}, uniform",
        "int": f"{low} to {high}, whole numbers",
        "log_int": f"{low} to {high}, whole numbers, uniform on the logarithm",
    }[factor.form]
    return words if factor.step in (None, 1) else f"{words}, in steps of {show(factor.step)}"


def hours_in_words(hours: float) -> str:
    """Return GPU-hours or CPU-hours with about three digits: 0.0417, 27.3, 1,234."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
