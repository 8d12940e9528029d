"""The self-check of every answer: predict trials that were left out, and see what a factor that does nothing gets."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, norm

from raystudy.findings.answer import Interval, SelfCheck
from raystudy.findings.left_out import FEWEST, FirstReports, LeftOut

DOUBT = 0.01
"""Probability below which fewer left-out results in their bands than promised are no accident."""
NULL_MOST = 0.02
"""Lower end of the null factor's share above which something is wrong."""
MOST_UNFORESEEN = 0.01
"""Share of the first reports' variance in unforeseen ones from which on the metric jumps: measured on curves that ASHA stopped
(benchmarks/curves.py), 0.01 to 0.06 where a cliff is not followed, at most 0.002 where there is none."""
_FEWEST_UNFORESEEN = 2


def jumps(first: FirstReports) -> bool:
    """Whether the metric jumps between configurations that the surrogate takes for alike, by how trials began."""
    return int(first.unforeseen.sum()) >= _FEWEST_UNFORESEEN and first.unforeseen_share > MOST_UNFORESEEN


def self_check(left_out: LeftOut, first: FirstReports, null_factor: Interval, metric: str) -> SelfCheck:
    """Judge the predictions of trials left out, and the share of a factor that nothing reads.

    Args:
        left_out: the predictions of how completed trials end.
        first: those of how all trials begin.
        null_factor: total index of the null factor.
        metric: its name, for the sentences.
    """
    number, holdouts = len(left_out.seen), int(left_out.kept.sum())
    good: list[str] = []
    bad: list[str] = []
    if number:
        covered = left_out.coverage(0.9)
        text = f"{round(covered * number)} of {number} left-out results lie inside their 90 % bands"
        failed = number >= FEWEST and binom.cdf(round(covered * number), number, 0.9) < DOUBT
        (bad if failed else good).append(f"{text}, too few: the model of {metric} does not fit" if failed else text)
    if holdouts >= FEWEST:
        inside = int((np.abs(left_out.scores[left_out.kept]) <= norm.ppf(0.95)).sum())
        text = f"{inside} of {holdouts} trials that early stopping would have stopped end inside their 90 % bands"
        failed = binom.cdf(inside, holdouts, 0.9) < DOUBT
        (bad if failed else good).append(f"{text}, too few: bad trials are not what the model thinks" if failed else text)
    if jumps(first):
        odd, of = int(first.unforeseen.sum()), len(first.errors)
        who = f"{odd} of {of} trials begin far from what all others foresee and were stopped"
        bad.append(f"{who}: {metric} jumps between configurations that the model takes for alike")
    text = f"a factor that does nothing gets {null_factor.low:.1%} to {null_factor.high:.1%} of the variance"
    failed = null_factor.low > NULL_MOST
    (bad if failed else good).append(f"{text}: shares of that size mean nothing" if failed else text)
    return SelfCheck(
        passed=not bad,
        sentences=tuple(f"{text[0].upper()}{text[1:]}." for text in (*bad, *good)),
        loo_r2=left_out.r2 if number else None,
        loo_error=left_out.error() if number else None,
        n_loo=number,
        holdout_error=left_out.error(left_out.kept) if holdouts else None,
        n_holdout=holdouts,
        coverage_50=left_out.coverage(0.5) if number else None,
        coverage_90=left_out.coverage(0.9) if number else None,
        null_factor=null_factor,
        unforeseen_share=first.unforeseen_share,
    )
