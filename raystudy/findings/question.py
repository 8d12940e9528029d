"""The question that is put: which metric, at which epoch, over which part of the declared distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystudy.errors import InputError, Problem
from raystudy.factors import Scalar
from raystudy.findings.answer import Importance, Share
from raystudy.findings.best_region import top_share
from raystudy.findings.measure import Measure, parse_region
from raystudy.findings.observations import Observations
from raystudy.spec import Factor

NULL_FACTOR = "(null factor)"
"""The name of the built-in factor that nothing reads."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, checked.

    Attributes:
        metric: what is explained.
        mode: max or min.
        budget: T.
        at: the epoch.
        seed: of everything drawn.
        region: the part of the distribution, in words.
        top: the share of best configurations that is asked about, None for shares of the variance.
        roles: of the factors, where known.
        plan: whether to say what would settle what is open.
        details: whether interactions, effects and the course over epochs are wanted.
        whole: all declared factors and the null factor.
        measure: the part of their distribution that is asked about.
    """

    metric: str
    mode: str
    budget: int
    at: int
    seed: int
    region: str
    top: float | None
    roles: Mapping[str, str]
    plan: bool
    details: bool
    whole: Measure
    measure: Measure

    @property
    def factors(self) -> list[str]:
        """The declared factors."""
        return [name for name in self.whole.names if name != NULL_FACTOR]

    @property
    def varying(self) -> list[str]:
        """The factors whose shares are asked for."""
        return [name for name in self.measure.varying if name != NULL_FACTOR]

    def empty(self, observed: Observations, notes: tuple[str, ...]) -> Importance:
        """Return the answer that has no numbers."""
        unknown = [
            Share(
                factors=(name,), first_order=None, total=None, probability_first=None, verdict="not identified", reason=notes[0]
            )
            for name in self.factors
        ]
        return Importance(**self.frame(observed), notes=notes, shares=tuple(unknown))

    def frame(self, observed: Observations) -> dict[str, Any]:
        """Return what every answer says: the question, and what there is to answer it from."""
        completed = np.unique(observed.trial[observed.epochs == self.budget])
        return {
            "metric": self.metric,
            "mode": self.mode,
            "budget": self.budget,
            "at": self.at,
            "region": self.region,
            "of_best": self.top is not None,
            "n_trials": len(observed.reporting),
            "n_completed": len(completed),
            "n_reports": len(observed.values),
            "n_diverged": int(observed.troubled.sum()),
        }


def asked(
    factors: Mapping[str, Factor | Mapping[str, Any]],
    metric: str,
    budget: int,
    mode: str,
    at: int | None,
    seed: int,
    given: Mapping[str, Scalar] | None,
    within: str | None,
    roles: Mapping[str, str],
    plan: bool,
    details: bool,
) -> Question:
    """Check what is asked; raise InputError with every problem."""
    problems = []
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        problems.append(Problem("budget", f"got {budget!r}", "a whole number of epochs, at least 1"))
    elif at is not None and not 1 <= at <= budget:
        problems.append(Problem("at", f"got {at!r}", f"an epoch from 1 to {budget}, the budget"))
    if mode not in ("max", "min"):
        problems.append(Problem("mode", f"got {mode!r}", "max or min"))
    if not factors:
        problems.append(Problem("factors", "is empty", "at least one factor"))
    if problems:
        raise InputError(problems)
    whole = Measure.of({**factors, NULL_FACTOR: {"uniform": [0.0, 1.0]}})
    top = top_share(within)
    measure = whole.given(given) if given else whole
    measure = parse_region(within, measure) if within and top is None else measure
    words = [f"{name}={value}" for name, value in (given or {}).items()] + ([within] if within else [])
    return Question(metric, mode, budget, at or budget, seed, ", ".join(words), top, roles, plan, details, whole, measure)
