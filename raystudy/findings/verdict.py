"""From posterior draws to numbers that can be printed: intervals, probabilities, verdicts."""

from __future__ import annotations

import numpy as np

from raystudy.findings.answer import Interval, Share, Verdict
from raystudy.findings.curves import Floats
from raystudy.findings.indices import Drawn

MASS = 0.9
"""Probability of an interval."""
MATTERS = 0.05
"""The total index from which on a factor counts as important."""
WIDEST = 0.3
"""Width of a first-order interval above which nothing is said of a factor."""
MOST_OPEN = 0.1
"""Share of the metric's variance that may be left open: above, too few trials got near the end in too much of the space."""
RESOLUTION = 0.005
"""Share that is not told from none even where the null factor's is smaller: the integration error of a typical design."""


def interval(values: Floats, weights: Floats, *, floor: float = -np.inf) -> Interval:
    """Return mean and shortest interval of weighted draws.

    Args:
        values: shape (draws,).
        weights: shape (draws,), sum 1.
        floor: a low end below this is 0: the share of a factor that does nothing reaches up to here.
    """
    order = np.argsort(values)
    x, cumulated = values[order], np.cumsum(weights[order])
    before = np.concatenate([[0.0], cumulated[:-1]])
    # The interval from draw i ends at the first draw up to which it holds the mass.
    ends = np.searchsorted(cumulated, before + MASS - 1e-12)
    starts = np.flatnonzero(ends < len(x))
    chosen = starts[np.argmin(x[ends[starts]] - x[starts])]
    mean, low, high = float(values @ weights), float(x[chosen]), float(x[ends[chosen]])
    if low <= floor:
        # From 0 on the interval holds its mass up to the quantile.
        low, high = 0.0, quantile(values, weights, MASS)
    return Interval(value=mean, low=min(low, mean), high=max(high, mean))


def quantile(values: Floats, weights: Floats, share: float) -> float:
    """Return a weighted quantile."""
    order = np.argsort(values)
    position = int(np.searchsorted(np.cumsum(weights[order]), share - 1e-12))
    return float(values[order][min(position, len(values) - 1)])


def noise_floor(drawn: Drawn, null_factor: str) -> tuple[float, float]:
    """Return the first-order and total shares that a factor which does nothing reaches with 5 % probability."""
    both = (drawn.first(null_factor), drawn.total(null_factor))
    first, total = (max(quantile(values, drawn.weights, 0.95), RESOLUTION) for values in both)
    return first, total


def shares(drawn: Drawn, names: list[str], active: dict[str, float], floor: tuple[float, float]) -> list[Share]:
    """Return each factor's share, the largest first-order index first.

    Args:
        drawn: the functions.
        names: the factors to speak of.
        active: for conditional factors, how much of the declared distribution they are active in.
        floor: first-order and total share that are not told from none.
    """
    leaders = np.argmax([drawn.along[name].first for name in names], axis=0)
    found = [
        _share(drawn, name, float(drawn.weights[leaders == number].sum()), active.get(name), floor)
        for number, name in enumerate(names)
    ]
    return sorted(found, key=lambda share: -(share.first_order.value if share.first_order else 0.0))


def _share(drawn: Drawn, name: str, probability_first: float, active: float | None, floor: tuple[float, float]) -> Share:
    first = interval(drawn.first(name), drawn.weights, floor=floor[0])
    totals = drawn.total(name)
    total = interval(totals, drawn.weights, floor=floor[1])
    verdict, reason = _verdict(first, float(drawn.weights[totals >= MATTERS].sum()))
    return Share(
        factors=(name,),
        first_order=first,
        total=total,
        probability_first=probability_first,
        verdict=verdict,
        active=1.0 if active is None else active,
        within_active=None if active is None else interval(drawn.along[name].inside, drawn.weights, floor=floor[0]),
        reason=reason,
    )


def _verdict(first: Interval, probability: float) -> tuple[Verdict, str]:
    if first.width > WIDEST:
        return "not identified", f"its share is anywhere from {first.low:.0%} to {first.high:.0%}"
    return ("important" if probability >= 0.5 else "minor"), ""


def open_share(drawn: Drawn) -> float:
    """Return the mean variance between the functions at a configuration, as a share of the variance of a function.

    Intervals rest on the surrogate's idea of how effects carry over from where trials got to the end to where none did. Where
    this share is large, much of the answer is that idea: replaying ASHA on whole curves, errors beyond the intervals were seen
    from about 0.12 on.
    """
    mean = drawn.weights @ drawn.values
    between = float((drawn.weights @ (drawn.values - mean) ** 2).mean())
    whole = float(drawn.variance @ drawn.weights)
    return between / whole if whole > 0 else 0.0


def doubted(share: Share, reason: str) -> Share:
    """Return a share with the verdict that nothing is known, for a reason that concerns the whole answer."""
    return share.model_copy(update={"verdict": "not identified", "reason": reason})


def pair_share(factors: tuple[str, str], values: Floats, weights: Floats, floor: float) -> Share:
    """Return the share of an interaction from its index in each draw."""
    found = interval(values, weights, floor=floor)
    verdict, reason = _verdict(found, float(weights[values >= MATTERS].sum()))
    return Share(factors=factors, first_order=found, total=None, probability_first=None, verdict=verdict, reason=reason)
