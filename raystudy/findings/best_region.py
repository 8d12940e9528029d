"""What the best configurations have in common: another question than what explains the variance, with another answer.

`--within "top 10%"`: for each factor the Pearson divergence of its distribution among the best share of configurations from
the declared one, as a share of all factors' (PED-ANOVA, Watanabe et al. 2023, equation 8), here of functions drawn from the
posterior at the budget instead of the values at which trials happened to stop.
"""

from __future__ import annotations

import re

import numpy as np

from raystudy.errors import InputError, Problem
from raystudy.findings.curves import Floats
from raystudy.findings.design import Design
from raystudy.findings.draws import Draws
from raystudy.findings.indices import Inverse, values_along

_TOP = re.compile(r"top\s+(\d+(?:\.\d+)?)\s*%", re.IGNORECASE)


def top_share(text: str | None) -> float | None:
    """Return the share that a region like `top 10%` names, None if it is of another kind; InputError if it is no share."""
    found = _TOP.fullmatch((text or "").strip())
    if found is None:
        return None
    share = float(found[1]) / 100
    if not 0 < share <= 0.5:
        raise InputError(Problem("within", f"got {text!r}", "the best share is above 0 % and at most 50 %: top 10%"))
    return share


def divergences(
    draws: Draws, design: Design, coefficients: Floats, inverse: Inverse, top: float, better: float
) -> dict[str, Floats]:
    """Return each factor's share of the divergences between the best configurations and all, shape (draws,) each.

    Args:
        draws: functions drawn from the posterior.
        design: where they are read.
        coefficients: the learning curve's features at the epoch asked for.
        inverse: from the surrogate's scale to the metric's.
        top: the share of the configurations that counts as best.
        better: 1 where more is better, -1 where less is.
    """
    base = draws.points(design.x)
    plain = better * inverse(draws.at(base, coefficients))
    threshold = np.quantile(plain, 1 - top, axis=1)
    raw = {}
    for name, nodes in design.nodes.items():
        active = design.active(name)
        values = better * inverse(values_along(draws, design, base, name, coefficients))[:, active]
        among = (values >= threshold[:, None, None]).mean(axis=1)  # P(best | node), (draws, nodes)
        overall = among @ nodes.weights
        ratio = np.divide(among, overall[:, None], out=np.ones_like(among), where=overall[:, None] > 0)
        raw[name] = ((ratio - 1) ** 2 @ nodes.weights) * active.mean()
    total = sum(raw.values(), np.zeros(draws.size))
    return {name: np.divide(value, total, out=np.zeros_like(value), where=total > 0) for name, value in raw.items()}
