"""An answer in words: first what a reader must know, then what matters, what does not, what is not known, what is best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from raystudy.factors import Scalar
from raystudy.findings.answer import Effect, Importance, Interval, Plan, SelfCheck, Share
from raystudy.findings.guidelines_wording import settings

_MOST = 3
"""Interactions, fading factors and proposals that are named; tables have all of them."""
_FADING = 0.1
"""Share of the variance that a factor has to lose along training to be called one that acts early."""
_ENOUGH = 0.8
"""Probability with which the best value lies in the range that is named."""
_FEW = 4
"""Levels of which the best is named instead of a range."""
_NOTABLE = 0.005
"""Share of the variance from which on interactions are mentioned."""
_NUMERICAL = 0.01
"""Numerical error of the indices from which on it is mentioned."""


def sentences(answer: Importance) -> Iterator[str]:
    """Yield the answer in words: `cautions`, `statements`, then `advice`."""
    return chain(cautions(answer), statements(answer), advice(answer))


def headline(answer: Importance) -> list[str]:
    """Return the answer in at most three sentences: the first caution, if there is any, and what matters or is not known."""
    first = list(islice(cautions(answer), 1))
    return first + list(islice(chain(_importance(answer), _unknown(answer)), _MOST - len(first)))


def cautions(answer: Importance) -> Iterator[str]:
    """Yield what a reader must know first: the notes, and a self-check that failed."""
    yield from answer.notes
    if answer.check and not answer.check.passed:
        told = " ".join(answer.notes)
        findings = [text for text in answer.check.sentences if text not in told]
        if findings or not answer.notes:
            yield " ".join(["The self-check failed: doubt what follows.", *findings])


def statements(answer: Importance) -> Iterator[str]:
    """Yield everything else."""
    yield from _importance(answer)
    yield from _interactions(answer)
    yield from _conditions(answer)
    yield from _harmless(answer)
    yield from _unknown(answer)
    yield from _fading(answer)
    yield from _best_levels(answer)
    yield from _noise(answer)
    yield from _trouble(answer)
    if answer.plan:
        yield from _plan(answer.plan)
    yield from _basis(answer)
    if answer.check and answer.check.passed:
        yield _check(answer.check)


def percent(share: float) -> str:
    """Return a share in per cent; what would round to 0 without being 0 is `under 1 %`."""
    return f"{amount(share)} %"


def percent_range(interval: Interval) -> str:
    """Return the ends of an interval in per cent."""
    return f"{amount(interval.low)} to {amount(interval.high)} %"


def amount(share: float) -> str:
    """Return a share in per cent, without the sign."""
    rounded = f"{100 * share:.0f}"
    return "under 1" if rounded == "0" and share > 0 else rounded


def text_of(value: Scalar) -> str:
    """Return a factor's value with the digits that matter."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _shown(interval: Interval) -> str:
    return f"{percent(interval.value)} ({percent_range(interval)})"


def measured(interval: Interval) -> str:
    """Return a value of the metric with its interval, to the digits that its width leaves any meaning."""
    decimals = min(max(0, 1 - math.floor(math.log10(interval.width))), 6) if interval.width > 0 else 4
    return f"{interval.value:.{decimals}f} ({interval.low:.{decimals}f} to {interval.high:.{decimals}f})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _where(answer: Importance) -> str:
    return f" where {answer.region}" if answer.region else ""


# What matters


def _importance(answer: Importance) -> Iterator[str]:
    important = [share for share in answer.shares if share.verdict == "important"]
    about = f"the variance of {answer.metric} at epoch {answer.at}{_where(answer)}"
    if answer.of_best:
        about = f"what sets the {answer.region} of the configurations apart in {answer.metric} at epoch {answer.at}"
    for index, share in enumerate(important):
        yield f"{share.name} explains {_explained(share, f' of {about}' if index == 0 else '')}{_rank(answer, share, index)}."
    if important or (answer.notes and not answer.shares):
        return
    if any(share.verdict != "not identified" for share in answer.shares):
        yield f"No factor is known to be important for {about}."
    else:
        yield f"Which factors explain {about} is not identified."


def _explained(share: Share, about: str) -> str:
    """Return how much a factor explains, `about` what."""
    first, total = share.first_order, share.total
    parts = []
    if first is not None:
        parts.append(f"{_shown(first)}{about}")
    if total is not None and first is None:
        parts.append(f"{_shown(total)}{about}, interactions included")
    elif total is not None and first is not None and total.value - first.value >= _NOTABLE:
        parts.append(f"with its interactions {_shown(total)}")
    return "; ".join(parts) or f"an important part{about}"


def _rank(answer: Importance, share: Share, index: int) -> str:
    """Return how sure it is that the first factor is the first, where there are others."""
    if index or share.probability_first is None or len(answer.shares) == 1:
        return ""
    return f"; it is the most important factor with probability {_probability(share.probability_first)}"


def _probability(probability: float) -> str:
    return "over 99 %" if probability > 0.99 else percent(probability)


def _interactions(answer: Importance) -> Iterator[str]:
    worth = [pair for pair in answer.pairs if pair.verdict == "important" and pair.first_order is not None]
    for pair in worth[:_MOST]:
        assert pair.first_order is not None
        yield f"The interaction of {_listed(pair.factors)} explains {_shown(pair.first_order)}."
    if len(worth) > _MOST:
        yield f"{len(worth) - _MOST} more interactions are important; --interactions lists them."


def _conditions(answer: Importance) -> Iterator[str]:
    for share in answer.shares:
        if share.active < 1 and share.within_active is not None and share.verdict != "not identified":
            where, inside = percent(share.active), _shown(share.within_active)
            yield f"{share.name} has an effect in {where} of the configurations; among those it explains {inside}."


def _harmless(answer: Importance) -> Iterator[str]:
    minor = [share for share in answer.shares if share.verdict == "minor"]
    ends = [interval.high for share in minor if (interval := share.total or share.first_order) is not None]
    if not minor:
        return
    most = f": {'it explains' if len(minor) == 1 else 'each explains'} at most {percent(max(ends))}" if ends else ""
    included = ", interactions included" if ends and all(share.total for share in minor) else ""
    yield f"{_listed([share.name for share in minor])} hardly matter{'s' if len(minor) == 1 else ''}{most}{included}."


def _unknown(answer: Importance) -> Iterator[str]:
    unknown = [share for share in answer.shares if share.verdict == "not identified"]
    told = " ".join(answer.notes)
    for reason in dict.fromkeys(share.reason for share in unknown):
        why = f": {reason}" if reason and reason not in told else ""
        if not why and len(unknown) == len(answer.shares):
            continue  # that nothing is identified has been said
        yield _sentence(f"Not identified: {_listed([share.name for share in unknown if share.reason == reason])}{why}")


def _fading(answer: Importance) -> Iterator[str]:
    """Name the factors that matter early and not at the end: they make training faster, not better."""
    final = {share.name: share.first_order for share in answer.shares}
    losses = []
    for name, last in final.items():
        course = [(row.first_order[name], row.epoch) for row in answer.epochs if name in row.first_order]
        if last is None or not course:
            continue
        peak, epoch = max(course, key=lambda row: row[0].value)
        if epoch < answer.at and peak.low > last.high and peak.value - last.value >= _FADING:
            losses.append((peak.value - last.value, name, peak, epoch, last))
    for _, name, peak, epoch, last in sorted(losses, key=lambda row: -row[0])[:_MOST]:
        less = "makes training faster rather than better" if last.low == 0 else "matters less and less"
        yield f"{name} {less}: {percent(peak.value)} at epoch {epoch}, {percent(last.value)} at epoch {answer.at}."


# What is best


def _best_levels(answer: Importance) -> Iterator[str]:
    important = {share.name for share in answer.shares if share.verdict == "important"}
    for effect in answer.effects:
        if effect.factor in important and effect.levels:
            tuned = any(other.role != "scientific" for other in answer.effects if other is not effect)
            yield _best(effect, answer.metric, " with the nuisance factors tuned for it" if tuned else "")


def _best(effect: Effect, metric: str, how: str) -> str:
    best = effect.best
    result = f"{metric} {measured(best.profile)}{how}"
    if effect.scale == "categorical" or len(effect.levels) <= _FEW:
        sure = f"with probability {_probability(best.probability_best)}"
        return f"The best {effect.factor} is {text_of(best.value)} {sure}: {result}."
    low, high, probability = _range(effect)
    place = f"at {low}" if low == high else f"between {low} and {high}"
    sure = f"with probability {_probability(probability)}"
    return f"The best {effect.factor} lies {place} {sure}; at {text_of(best.value)}: {result}."


def _range(effect: Effect) -> tuple[str, str, float]:
    """Return the shortest stretch of levels around the best one that holds the best with enough probability."""
    levels = effect.levels
    first = last = levels.index(effect.best)
    total = levels[first].probability_best
    while total < _ENOUGH and (first > 0 or last < len(levels) - 1):
        left = levels[first - 1].probability_best if first > 0 else -1.0
        right = levels[last + 1].probability_best if last < len(levels) - 1 else -1.0
        first, last = (first - 1, last) if left >= right else (first, last + 1)
        total += max(left, right)
    return text_of(levels[first].value), text_of(levels[last].value), min(total, 1.0)


def advice(answer: Importance) -> Iterator[str]:
    """Yield what to do, below a line that says how to read it."""
    if answer.guidelines:
        yield f"Guidelines, with 90 % intervals and the number n of trials near the values compared{_where(answer)}:"
        yield from (guideline.sentence for guideline in answer.guidelines)
    if answer.recommended:
        expected = f"{answer.metric} {measured(answer.recommended.predicted)} expected"
        yield f"Recommended: {settings(answer.recommended.config)}: {expected}."


# How sure, and what else


def _noise(answer: Importance) -> Iterator[str]:
    if answer.noise_share is not None:
        yield f"{percent(answer.noise_share)} of the variance is noise: what the seed and the last report decide."
    if answer.integration_error is not None and answer.integration_error >= _NUMERICAL:
        yield f"Computing these shares adds an error of up to {percent(answer.integration_error)}."


def _trouble(answer: Importance) -> Iterator[str]:
    if not answer.n_diverged:
        return
    trials = f"{answer.n_diverged} trial{'' if answer.n_diverged == 1 else 's'} diverged or failed"
    important = [share for share in answer.trouble.shares if share.verdict == "important"] if answer.trouble else []
    if not important:
        yield f"{trials}; the trials do not say which factors decide that." if answer.trouble else f"{trials}."
    for index, share in enumerate(important):
        about = " of whether a trial does" if index == 0 else ""
        yield f"{f'{trials}; ' if index == 0 else 'Of that, '}{share.name} explains {_explained(share, about)}."


def _plan(plan: Plan) -> Iterator[str]:
    for settling in plan.open:
        if settling.trials is None:
            yield f"Open: {settling.question}; more trials of this kind would not settle it."
        else:
            yield f"Open: {settling.question}; about {settling.trials} more trials would settle it."
    if not plan.open:
        yield "Nothing is open that more trials would settle."
    for proposal in plan.proposals[:_MOST]:
        config = ", ".join(f"{name}={text_of(value)}" for name, value in proposal.config.items())
        yield f"A trial that would say much: {config} (the prediction there is uncertain by {proposal.uncertainty:.2g})."


def _basis(answer: Importance) -> Iterator[str]:
    if answer.n_trials:
        whole = f"{answer.n_completed or 'none'} of which reached epoch {answer.budget}"
        yield f"This rests on {_counted(answer.n_reports, 'report')} of {_counted(answer.n_trials, 'trial')}, {whole}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _check(check: SelfCheck) -> str:
    """Return a self-check that was passed, in one line."""
    parts = []
    if check.loo_error is not None:
        r2 = f" (R² {check.loo_r2:.2f})" if check.loo_r2 is not None else ""
        parts.append(f"{_counted(check.n_loo, 'left-out trial')} predicted to within {check.loo_error:.2g}{r2}")
    if check.holdout_error is not None:
        parts.append(f"{_counted(check.n_holdout, 'hold-out')} to within {check.holdout_error:.2g}")
    if check.coverage_90 is not None:
        parts.append(f"{percent(check.coverage_90)} inside their 90 % bands")
    if check.null_factor is not None:
        parts.append(f"a factor that does nothing gets {percent_range(check.null_factor)}")
    return f"The self-check passed{': ' if parts else ''}{', '.join(parts)}."
