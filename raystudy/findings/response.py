"""The scale on which the surrogate works: where effects add up better than on the metric's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit

from raystudy.findings.curves import Floats

Scale = Literal["identity", "logit", "log"]
_NEAREST = 1e-3
"""How near to 0 or 1 a share is taken to be at most: an accuracy of 1 on a few hundred images is not infinitely good."""


@dataclass(frozen=True, slots=True)
class Response:
    """A monotone map between the metric's scale and one with mean 0 and variance 1.

    Attributes:
        scale: the map before it is standardised.
        centre: mean on that scale.
        spread: standard deviation on that scale.
        nearest: for `logit`, the distance to 0 and 1 below which values are not told apart.
    """

    scale: Scale
    centre: float
    spread: float
    nearest: float = _NEAREST

    @classmethod
    def of(cls, values: Floats, scale: Scale) -> Response:
        """Standardise `values` on a scale, one of `scales(values)`."""
        raw = _forward(values, scale, _NEAREST)
        return cls(scale, float(raw.mean()), float(raw.std()) or 1.0)

    def forward(self, values: Floats) -> Floats:
        """Return metric values on the surrogate's scale."""
        return (_forward(values, self.scale, self.nearest) - self.centre) / self.spread

    def inverse(self, values: Floats) -> Floats:
        """Return values of the surrogate's scale on the metric's."""
        raw = values * self.spread + self.centre
        if self.scale == "logit":
            return np.asarray(expit(raw))
        return np.exp(raw) if self.scale == "log" else raw

    def log_slope(self, values: Floats) -> float:
        """Return Σ log dz/dy over metric values: what makes likelihoods of different scales comparable."""
        flat = -len(values) * np.log(self.spread)
        if self.scale == "logit":
            share = np.clip(values, self.nearest, 1 - self.nearest)
            return float(flat - np.log(share * (1 - share)).sum())
        return float(flat - np.log(values).sum()) if self.scale == "log" else float(flat)


def scales(values: Floats) -> tuple[Scale, ...]:
    """Return the scales that the values of a metric admit: a share has a logit, what is positive a logarithm."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return ("identity", "logit")
    return ("identity", "log") if low > 0 else ("identity",)


def _forward(values: Floats, scale: Scale, nearest: float) -> Floats:
    if scale == "logit":
        return np.asarray(logit(np.clip(values, nearest, 1 - nearest)))
    return np.log(values) if scale == "log" else values
