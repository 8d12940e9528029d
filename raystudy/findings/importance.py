"""Which factors matter, by how much, and how sure we are: the whole way from a table of reports to the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raystudy.factors import Scalar
from raystudy.findings.advice import plan as advise
from raystudy.findings.answer import Importance, Share
from raystudy.findings.best_region import divergences
from raystudy.findings.curves import Floats, Ints
from raystudy.findings.design import Design
from raystudy.findings.effects import Reading, along_epochs, effects, pairs, profiles
from raystudy.findings.fitting import Fitted, Posterior, fit
from raystudy.findings.guidelines import Evidence, guidelines
from raystudy.findings.guidelines_tuning import recommended
from raystudy.findings.indices import Drawn, draw_indices, put_together
from raystudy.findings.left_out import leave_one_out
from raystudy.findings.observations import Observations, observe
from raystudy.findings.question import NULL_FACTOR, Question, asked
from raystudy.findings.selfcheck import jumps, self_check
from raystudy.findings.threads import one_pool
from raystudy.findings.verdict import MOST_OPEN, RESOLUTION, doubted, interval, noise_floor, open_share, shares
from raystudy.spec import Factor

FEWEST_TRIALS = 12
"""Trials with a report below which nothing is said."""
FEWEST_AT_END = 3
"""Trials that must have reached the epoch asked about: from fewer, everything there is extrapolated."""
_BASE, _LARGE = 256, 2048
"""Base configurations for all draws, and for one function that corrects their integration error."""
_FEWEST_TROUBLED = 3


@one_pool
def importance(
    reports: pa.Table,
    factors: Mapping[str, Factor | Mapping[str, Any]],
    *,
    metric: str,
    budget: int,
    mode: str = "max",
    at: int | None = None,
    seed: int = 0,
    given: Mapping[str, Scalar] | None = None,
    within: str | None = None,
    roles: Mapping[str, str] | None = None,
    plan: bool = False,
    details: bool = True,
) -> Importance:
    """Say which factors matter for a metric at an epoch, from all reports of all trials, stopped ones included.

    Sobol indices of the metric on its own scale under the declared distribution of the factors, with 90 % intervals. The
    trials may have been chosen and stopped by any rule that looked at nothing but the reports in the table.

    Args:
        reports: one row per trial and epoch with the columns trial_id, epoch (from 1), the metric, and one per factor, null
            where a conditional factor is inactive. Optional columns: `state` (`diverged` and `failed` count as trouble; without
            it a metric that is not a number does), `kept` (true for trials that early stopping would have stopped).
        factors: the declared factors, as in a study file: {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}.
        metric: the column that is explained.
        budget: T, the last epoch of a trial that is not stopped.
        mode: whether `max` or `min` of the metric is wanted.
        at: the epoch asked about, by default the budget.
        seed: of the integration design and the posterior draws: the same seed, the same answer.
        given: factors that are fixed at a value.
        within: a region such as `learning_rate<0.01, optimizer=sgd`, or `top 10%` for what sets the best configurations apart.
        roles: `scientific` or `nuisance` by factor; nuisance factors are tuned away in the profile effects.
        plan: whether to say what would settle what is not settled.
        details: whether to compute interactions, effects and the course over epochs too, about half of the time.

    Returns:
        The answer; where the trials do not allow one, the reason and the verdict `not identified`.

    Raises:
        InputError: wrong arguments, or a table that does not hold what it must.
    """
    question = asked(factors, metric, budget, mode, at, seed, given, within, roles or {}, plan, details)
    observed = observe(reports, question.whole, metric=metric, budget=budget, extra=NULL_FACTOR)
    answer = _answer(question, observed)
    return answer.model_copy(update={"trouble": _trouble(question, observed)})


def _answer(question: Question, observed: Observations) -> Importance:
    """Return the answer without the second outcome."""
    if reason := _hopeless(question, observed):
        return question.empty(observed, (reason,))
    constant = _never_varied(question, observed)
    if all(name in constant for name in question.varying):
        return question.empty(observed, ("No factor has more than one value among the trials: nothing can be compared.",))
    # What never varied is taken as it was: the shares of the others are those at its value.
    narrowed = replace(question, measure=question.measure.given(constant)) if constant else question
    return _explained(narrowed, observed, constant)


def _hopeless(question: Question, observed: Observations) -> str:
    """Return why nothing can be said, empty if something can."""
    reporting, values, at = len(observed.reporting), observed.values, question.at
    if not len(observed.trials):
        return "There are no trials yet."
    if not question.varying:
        return "No factor varies: there is nothing to compare."
    if not reporting:
        what = "diverged or failed before a report" if observed.troubled.all() else "has reported yet"
        return f"{'All trials' if observed.troubled.all() else 'No trial'} {what}: {question.metric} is not known for any."
    if float(np.ptp(values)) == 0:
        return f"{question.metric} is {values[0]:g} in every report: there is no variance to explain."
    if reporting < FEWEST_TRIALS:
        return f"{reporting} trials are too few to tell factors apart: it takes at least {FEWEST_TRIALS}, better 100."
    reached = len(np.unique(observed.trial[observed.epochs >= at]))
    if reached < FEWEST_AT_END:
        furthest = int(observed.epochs.max())
        who = "No trial" if not reached else f"Only {reached} trial{'' if reached == 1 else 's'}"
        return f"{who} reached epoch {at} (the furthest got to {furthest}): what matters there would be guessed."
    return ""


def _never_varied(question: Question, observed: Observations) -> dict[str, Scalar]:
    """Return the factors that have one value only among the reporting trials, with that value."""
    seen = observed.of(observed.reporting)
    found: dict[str, Scalar] = {}
    for number, axis in enumerate(question.whole.axes):
        if axis.name not in question.varying or seen.varied[axis.name] > 1:
            continue
        rows = np.flatnonzero(seen.active[:, number])
        if len(rows):
            found[axis.name] = seen.configs[axis.name][rows[0]]
    return found


def _explained(question: Question, observed: Observations, constant: Mapping[str, Scalar]) -> Importance:
    reporting = observed.of(observed.reporting)
    fitted = fit(reporting, tuple(axis.columns for axis in question.whole.axes), question.budget, question.seed)
    design = Design.of(question.measure, _BASE, question.seed)
    posterior = fitted.draws()
    drawn, error = _drawn(fitted, posterior, question, design)
    floor = noise_floor(drawn, NULL_FACTOR)
    found = _shares(question, fitted, posterior, design, drawn, floor)
    left_open = open_share(drawn)
    left_out, first = leave_one_out(fitted, reporting)
    doubt = _doubt(question, left_open, is_jumping=jumps(first))
    if doubt:
        found = [doubted(share, doubt) for share in found]
    check = self_check(left_out, first, _null_share(drawn), question.metric)
    names = [share.name for share in found]
    unknown = [
        Share(
            factors=(name,),
            first_order=None,
            total=None,
            probability_first=None,
            verdict="not identified",
            reason=_same(name, value),
        )
        for name, value in constant.items()
    ]
    noise = drawn.noise / (drawn.noise + drawn.variance)
    answer = Importance(
        **question.frame(observed),
        notes=(*([doubt] if doubt else []), *_notes(question, reporting, fitted, constant)),
        shares=(*found, *unknown),
        check=check,
        noise_share=float(noise @ drawn.weights),
        open_share=left_open,
        integration_error=error,
        scale=fitted.response.scale,
        plan=advise(drawn, found, design, len(reporting.trials), NULL_FACTOR) if question.plan else None,
    )
    if not question.details:
        return answer
    reading = Reading(fitted, posterior, question.measure, question.at, question.mode, question.roles)
    tuned = profiles(reading, names)
    effects_of = tuple(effects(reading, drawn, design, tuned, names))
    if question.top:
        return answer.model_copy(update={"effects": effects_of})
    interactions, surfaces = pairs(reading, drawn, floor[1], names)
    if doubt:
        interactions, surfaces = [doubted(share, doubt) for share in interactions], []
    course = along_epochs(reading, found, floor[0])
    more = {"effects": effects_of, "pairs": tuple(interactions), "surfaces": tuple(surfaces), "epochs": tuple(course)}
    answer = answer.model_copy(update=more)
    if doubt or not check.passed or not any(share.verdict == "important" for share in found):
        return answer
    told = guidelines(Evidence(reading, reporting, drawn, design, tuned), found, interactions, question.metric)
    best = recommended(reading, drawn, design, NULL_FACTOR)
    return answer.model_copy(update={"guidelines": told, "recommended": best})


def _doubt(question: Question, left_open: float, *, is_jumping: bool) -> str:
    """Return why no share is identified although each has a narrow enough interval, empty if all is well."""
    if is_jumping:
        what = f"{question.metric} jumps somewhere (a cliff in a learning rate?), which the model smooths over"
        return f"{what}: shares can be off by more than their intervals. `within` asks about one side of the jump."
    if left_open <= MOST_OPEN:
        return ""
    what = f"The trials leave {left_open:.0%} of the variance of {question.metric} at epoch {question.at} open"
    return f"{what}: in too much of the space none got there; more trials or a larger early_stopping.keep help."


def _drawn(fitted: Fitted, posterior: Posterior, question: Question, design: Design) -> tuple[Drawn, float]:
    """Return the posterior draws of everything, corrected for the integration error, and the error that is left.

    All draws are read at the same few configurations; one of them also at many more. The difference that this makes to its
    indices is taken from all: the draws are much alike.
    """
    coefficients, inverse = fitted.coefficients(question.at), fitted.response.inverse
    each = [draw_indices(draws, design, coefficients, inverse) for _, draws in posterior]
    drawn = put_together(each, np.array([weight for weight, _ in posterior]))
    one = posterior[0][1].first(1)
    large = draw_indices(one, Design.of(question.measure, _LARGE, question.seed + 4), coefficients, inverse)
    small = draw_indices(one, design, coefficients, inverse)
    errors = [0.0]
    for name, along in drawn.along.items():
        along.first[:] = np.maximum(along.first + drawn.variance * (large.first(name) - small.first(name)), 0)
        along.total[:] = np.maximum(along.total + drawn.variance * (large.total(name) - small.total(name)), 0)
        errors.append(_standard_error(large.along[name].parts[:, 0] / large.variance[0]))
    return drawn, max(errors)


def _standard_error(parts: Floats) -> float:
    return float(parts.std(ddof=1) / np.sqrt(len(parts))) if len(parts) > 1 else 0.0


def _shares(
    question: Question, fitted: Fitted, posterior: Posterior, design: Design, drawn: Drawn, floor: tuple[float, float]
) -> list[Share]:
    active = {name: question.measure.share_active(name) for name in question.varying if question.whole.axis(name).when}
    found = shares(drawn, question.varying, active, floor)
    if question.top is None:
        return found
    better = 1.0 if question.mode == "max" else -1.0
    coefficients, inverse = fitted.coefficients(question.at), fitted.response.inverse
    each = [divergences(draws, design, coefficients, inverse, question.top, better) for _, draws in posterior]
    for name, along in drawn.along.items():
        # From here on the "index" of a factor is its share of the divergences.
        along.first[:] = np.concatenate([one[name] for one in each]) * drawn.variance
        along.total[:] = along.first
    apart = shares(drawn, question.varying, active, noise_floor(drawn, NULL_FACTOR))
    return [share.model_copy(update={"total": None, "within_active": None}) for share in apart]


def _null_share(drawn: Drawn) -> Any:
    return interval(drawn.total(NULL_FACTOR), drawn.weights, floor=RESOLUTION)


def _same(name: str, value: Scalar) -> str:
    return f"all trials have {name}={value}"


def _notes(question: Question, observed: Observations, fitted: Fitted, constant: Mapping[str, Scalar]) -> Iterator[str]:
    for name, value in constant.items():
        yield f"All trials have {name}={value}: its share is not known, and the others' are those at this value."
    if len(fitted.trials) < len(observed.trials):
        yield f"An approximation: computed from {len(fitted.trials)} trials drawn at random from {len(observed.trials)}."
    yield from _unsupported(question, observed)


def _unsupported(question: Question, observed: Observations) -> Iterator[str]:
    """Yield the values that no trial has, or none that got near the epoch asked about: there the answer is extrapolated."""
    furthest = np.zeros(len(observed.trials))
    np.maximum.at(furthest, observed.trial, observed.epochs)
    for name in question.varying:
        axis = question.measure.axis(name)
        if axis.kind != "categorical":
            continue
        for level in (level for level in axis.levels if question.measure.axis(name).share([axis.levels.index(level)]) > 0):
            having = np.array([value == level for value in observed.configs[name]])
            if not having.any():
                yield f"No trial has {name}={level}: what is said of it is a guess."
            elif (reached := furthest[having].max()) < question.at / 3:
                yield f"No trial with {name}={level} got beyond epoch {reached:.0f}: what it would reach is extrapolated."


def _known_outcomes(observed: Observations) -> Ints:
    """Return the trials whose outcome is known: those that ran into trouble, and those past the epochs where it comes.

    A trial that was stopped before might still have diverged; to count it as sound would make what gets trials stopped look
    as if it kept them from diverging.
    """
    reached = np.zeros(len(observed.trials))
    np.maximum.at(reached, observed.trial, observed.epochs)
    if not observed.troubled.any():
        return np.arange(len(observed.trials))
    usual = np.quantile(reached[observed.troubled], 0.9)
    return np.flatnonzero(observed.troubled | (reached > usual))


def _trouble(question: Question, observed: Observations) -> Importance | None:
    """Return which factors decide whether a trial diverges or fails; None where too few did, or did not, to say."""
    observed = observed.of(_known_outcomes(observed))
    troubled = int(observed.troubled.sum())
    total = len(observed.trials)
    if troubled < _FEWEST_TROUBLED or total - troubled < _FEWEST_TROUBLED or total < FEWEST_TRIALS:
        return None
    outcome = replace(
        observed,
        trial=np.arange(total),
        epochs=np.ones(total),
        values=observed.troubled.astype(float),
        troubled=np.zeros(total, dtype=bool),
    )
    second = replace(question, metric="trouble", mode="min", budget=1, at=1, top=None, plan=False)
    constant = _never_varied(second, outcome)
    if all(name in constant for name in second.varying):
        return None
    second = replace(second, measure=second.measure.given(constant)) if constant else second
    fitted = fit(outcome, tuple(axis.columns for axis in second.whole.axes), 1, second.seed, scale="identity")
    design = Design.of(second.measure, _BASE, second.seed)
    posterior = fitted.draws()
    drawn, error = _drawn(fitted, posterior, second, design)
    found = _shares(second, fitted, posterior, design, drawn, noise_floor(drawn, NULL_FACTOR))
    return Importance(**second.frame(outcome), shares=tuple(found), integration_error=error)
