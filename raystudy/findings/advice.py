"""What would settle what is not settled: how many more trials, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from raystudy.findings.answer import Plan, Proposal, Settling, Share
from raystudy.findings.design import Design
from raystudy.findings.indices import Drawn
from raystudy.findings.verdict import WIDEST

SURE = 0.95
"""Probability from which on one factor counts as more important than another."""
_Z = 1.645
"""The standard normal quantile of `SURE`."""
_NO_DIFFERENCE = 0.1
"""Standardised difference below which two factors may well be equal: no number of trials would tell them apart."""
_PROPOSALS = 5


def plan(drawn: Drawn, shares: Sequence[Share], design: Design, n_trials: int, hidden: str) -> Plan:
    """Return the open questions with the trials that they need, and configurations that would say most.

    The width of an interval falls as one over the square root of the number of trials; so does the standard deviation of the
    difference of two factors.

    Args:
        drawn: posterior draws.
        shares: the factors, the largest first.
        design: where the functions were read.
        n_trials: how many trials there are.
        hidden: the null factor, which nobody is told of.
    """
    return Plan(open=tuple(_open(drawn, shares, n_trials)), proposals=tuple(_proposals(drawn, design, hidden)))


def _open(drawn: Drawn, shares: Sequence[Share], n_trials: int) -> Iterator[Settling]:
    for share in shares:
        if share.verdict == "not identified" and share.first_order is not None:
            times = (share.first_order.width / (0.9 * WIDEST)) ** 2 - 1
            yield Settling(question=f"how much {share.name} matters", trials=_rounded(n_trials * max(times, 0.1)))
    known = [share for share in shares if share.verdict == "important" and share.first_order is not None]
    for one, other in pairwise(known):
        difference = drawn.first(one.name) - drawn.first(other.name)
        mean = float(difference @ drawn.weights)
        deviation = math.sqrt(float((difference - mean) ** 2 @ drawn.weights))
        if float(drawn.weights[difference > 0].sum()) >= SURE or deviation == 0:
            continue
        score = abs(mean) / deviation
        trials = None if score < _NO_DIFFERENCE else _rounded(n_trials * max((_Z / score) ** 2 - 1, 0.1))
        yield Settling(question=f"whether {one.name} matters more than {other.name}", trials=trials)


def _rounded(trials: float) -> int:
    """Return a number of trials with the digits that such an estimate has."""
    digits = max(math.floor(math.log10(max(trials, 1))), 0)
    return max(int(math.ceil(trials / 10**digits) * 10**digits), 1)


def _proposals(drawn: Drawn, design: Design, hidden: str) -> Iterator[Proposal]:
    """Yield configurations where the prediction is least certain, each at some distance from those before it."""
    mean = drawn.weights @ drawn.values
    deviation = np.sqrt(drawn.weights @ (drawn.values - mean) ** 2)
    distance = np.full(len(deviation), np.inf)
    for _ in range(_PROPOSALS):
        # Near a proposal the uncertainty would be gone once it is run.
        gain = deviation * (1 - np.exp(-(distance**2) / 0.18))
        chosen = int(gain.argmax())
        config = design.measure.values(design.u[chosen : chosen + 1])[0]
        yield Proposal(config={k: v for k, v in config.items() if k != hidden}, uncertainty=float(deviation[chosen]))
        distance = np.minimum(distance, np.linalg.norm(design.x - design.x[chosen], axis=1))
