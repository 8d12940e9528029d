"""What to do, from what was found: which value of a factor gains how much over which other, under which condition.

Everything is read from functions drawn from the posterior, so that each effect has an interval of its own: the difference of
two values is taken within each function, in which most of what is not known about either cancels. A scientific factor's
values are compared with the nuisance factors tuned for each, others averaged over all configurations.

Nothing is said where little is known: of a factor that is not important, of an effect whose interval holds 0, or where too
few trials came near the values compared; and nothing at all where the answer is in doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from raystudy.factors import Scalar
from raystudy.findings.answer import Guideline, Interval, Share
from raystudy.findings.axis import Axis
from raystudy.findings.curves import Floats
from raystudy.findings.design import Bools, Design, Nodes
from raystudy.findings.effects import Marginal, Reading, marginal, scale_of, tuning_design
from raystudy.findings.guidelines_tuning import tuned_at
from raystudy.findings.guidelines_wording import Wording
from raystudy.findings.indices import Drawn
from raystudy.findings.observations import Observations
from raystudy.findings.verdict import MASS, quantile

MOST = 8
"""Guidelines: more than that nobody follows."""
FEWEST_TRIALS = 8
"""Trials near the two values compared below which nothing is said."""
_FEWEST_EACH = 4
"""Of those near each value: with fewer, the comparison is with what was hardly seen."""
_FAR, _FEWEST_FAR = 1 / 3, 2
"""Share of the epochs that some of them have to have reached, and how many: where all were stopped at once, the model only
guesses how they would have ended (in benchmarks/curves.py, most of the effects outside their intervals were such)."""
_NEAR = 1 / 8
"""How much of a factor's distribution to each side counts as near a value."""
_POINTS, _SAME = 129, 1e-9
"""Values that stand for a part of a factor's distribution, and the difference of encoded values that are the same."""
_MOST_PAIRS, _MOST_CONDITIONS = 2, 3
"""Interactions that are told as conditions, and levels of the factor that is the condition."""
_GIVEN = ("data_fraction", "source", "source_categories", "source_images_per_category", "source_objective", "backbone")
"""What people have rather than choose: in an interaction, the condition."""


@dataclass(frozen=True)
class Evidence:
    """What guidelines are drawn from.

    Attributes:
        reading: the functions, and what they are asked.
        observed: the trials with a report.
        drawn: the marginal curves of all factors.
        design: where they were read.
        tuned: the profiles, by factor.
    """

    reading: Reading
    observed: Observations
    drawn: Drawn
    design: Design
    tuned: Mapping[str, Marginal]

    @cached_property
    def reached(self) -> Floats:
        """The last epoch of each trial, shape (trials,)."""
        last = np.zeros(len(self.observed.trials))
        np.maximum.at(last, self.observed.trial, self.observed.epochs)
        return last

    def is_scientific(self, factor: str) -> bool:
        """Whether values of a factor are compared with the nuisance factors tuned for each."""
        return self.reading.roles.get(factor) == "scientific"

    def curve(self, factor: str) -> Marginal:
        """Return the functions along a factor, over all configurations."""
        if self.is_scientific(factor):
            return self.tuned[factor]
        return Marginal(self.drawn.along[factor].main, self.drawn.weights)


def guidelines(evidence: Evidence, shares: Sequence[Share], pairs: Sequence[Share], metric: str) -> tuple[Guideline, ...]:
    """Return what to do, the largest effect first.

    Args:
        evidence: what it is drawn from.
        shares: of the factors; only those that are important are spoken of.
        pairs: the interactions, largest first.
        metric: its name.
    """
    is_share = bool(evidence.observed.values.min() >= 0 and evidence.observed.values.max() <= 1)
    wording = Wording(metric, evidence.reading.mode, in_points=is_share and _is_accuracy(metric))
    important = [share.name for share in shares if share.verdict == "important"]
    found = [*_alone(evidence, important, wording), *_conditional(evidence, important, pairs, wording)]
    return tuple(sorted(found, key=lambda one: -abs(one.effect.value))[:MOST])


def _is_accuracy(metric: str) -> bool:
    return "accuracy" in metric.lower() or "f1" in metric.lower()


def _alone(evidence: Evidence, important: Sequence[str], wording: Wording) -> Iterator[Guideline]:
    design = tuning_design(evidence.reading)
    for factor in important:
        yield from _compared(evidence, evidence.reading, design, factor, evidence.curve(factor), {}, wording)


def _conditional(evidence: Evidence, important: Sequence[str], pairs: Sequence[Share], wording: Wording) -> Iterator[Guideline]:
    """Yield what holds at each end, or level, of the other factor of an interaction."""
    strong = [pair for pair in pairs if pair.verdict == "important" and set(pair.factors) <= set(important)]
    for pair in strong[:_MOST_PAIRS]:
        subject, other = _ordered(evidence, pair, important)
        for value in _ends(evidence.reading.measure.axis(other), evidence.design.nodes[other]):
            reading = replace(evidence.reading, measure=evidence.reading.measure.given({other: value}))
            design = tuning_design(reading)
            if subject in design.nodes:
                curve = marginal(reading, design, subject, is_tuned=evidence.is_scientific(subject))
                yield from _compared(evidence, reading, design, subject, curve, {other: value}, wording)


def _ordered(evidence: Evidence, pair: Share, important: Sequence[str]) -> tuple[str, str]:
    """Return which factor of an interaction is spoken of, and which is the condition."""

    def rank(factor: str) -> tuple[bool, bool, int]:
        # What one has is a condition rather than what the question is about, and that rather than what is tuned anyway.
        return factor in _GIVEN, evidence.is_scientific(factor), important.index(factor)

    subject, other = sorted(pair.factors, key=rank)
    return subject, other


def _ends(axis: Axis, nodes: Nodes) -> tuple[Scalar, ...]:
    """Return the values at which a factor is taken as a condition."""
    if axis.kind == "categorical":
        return nodes.labels[:_MOST_CONDITIONS]
    return nodes.labels[0], nodes.labels[-1]


def _compared(
    evidence: Evidence,
    reading: Reading,
    design: Design,
    factor: str,
    curve: Marginal,
    condition: dict[str, Scalar],
    wording: Wording,
) -> Iterator[Guideline]:
    """Yield the comparison of a factor's best value with its worst, or its worse end; none where the evidence is thin.

    Args:
        evidence: the trials.
        reading: the functions, where `condition` holds.
        design: of `tuning_design`, likewise.
        factor: the factor.
        curve: the functions along it.
        condition: values of other factors.
        wording: how it is said.
    """
    nodes, better = design.nodes[factor], reading.better
    mean = better * (curve.weights @ curve.values)
    best, scale = int(mean.argmax()), scale_of(reading.measure, factor)
    near = [_trials_near(evidence, {factor: value, **condition}) for value in nodes.labels]
    known = [node for node, trials in enumerate(near) if _is_enough(evidence, trials)]
    if best not in known:
        return
    # Of values in order, the worse end; where no trial says what it leads to, the last value before it of which some do.
    worst = min(known if scale == "categorical" else (known[0], known[-1]), key=lambda node: mean[node])
    n = int((near[best] | near[worst]).sum())
    if worst == best or n < FEWEST_TRIALS:
        return
    ends = Marginal(curve.values[:, [best, worst]], curve.weights)
    if evidence.is_scientific(factor):  # the profile is tuned well enough to see its course, not for a difference
        ends = tuned_at(reading, design, factor, nodes.u[[best, worst]])
    difference = ends.values[:, 0] - ends.values[:, 1]
    effect = _interval(difference, ends.weights)
    if effect.low <= 0 <= effect.high:
        return
    level, reference = nodes.labels[best], nodes.labels[worst]
    if scale in ("log", "linear"):
        within = _range(curve, nodes, reading, factor, best)
        sentence = wording.place(factor, level, within, reference, effect, condition, n)
    else:
        sentence = wording.gain(factor, level, reference, effect, condition, n)
    yield Guideline(
        factor=factor,
        condition=condition,
        level=level,
        reference=reference,
        effect=effect,
        probability=float(ends.weights[np.sign(difference) == np.sign(effect.value)].sum()),
        n_trials=n,
        sentence=sentence,
    )


def _interval(values: Floats, weights: Floats) -> Interval:
    """Return mean and central interval: the shortest one, of few draws, would be too short."""
    mean, tail = float(values @ weights), (1 - MASS) / 2
    low, high = -quantile(-values, weights, 1 - tail), quantile(values, weights, 1 - tail)
    return Interval(value=mean, low=min(low, mean), high=max(high, mean))


def _range(curve: Marginal, nodes: Nodes, reading: Reading, factor: str, best: int) -> tuple[Scalar, Scalar]:
    """Return between which values of a continuous factor the best lies with 90 % probability; node `best` is one of them."""
    places = (reading.better * curve.values).argmax(axis=1).astype(float)
    tail = (1 - MASS) / 2
    low = min(int(-quantile(-places, curve.weights, 1 - tail)), best)
    high = max(int(quantile(places, curve.weights, 1 - tail)), best)
    # A node stands for the values halfway to those beside it.
    axis, half = reading.measure.axis(factor), nodes.weights / 2
    return axis.value(nodes.u[low] - half[low]), axis.value(nodes.u[high] + half[high])


# How many trials


def _is_enough(evidence: Evidence, trials: Bools) -> bool:
    """Whether trials, shape (trials,), say how a configuration ends: several, of which some got at least some of the way."""
    far = evidence.reached[trials] >= _FAR * evidence.reading.epoch
    return len(far) >= _FEWEST_EACH and int(far.sum()) >= _FEWEST_FAR


def _trials_near(evidence: Evidence, values: Mapping[str, Scalar]) -> Bools:
    """Return which trials came near a value of each factor, inside the region that is asked about, shape (trials,)."""
    observed = evidence.observed
    near = np.ones(len(observed.trials), dtype=bool)
    for number, axis in enumerate(evidence.reading.measure.axes):
        found, active = observed.x[:, axis.columns], observed.active[:, number]
        if axis.name in values:
            near &= active & _is_near(axis, found, axis.encode(values[axis.name])[None, :])
        elif axis.only is not None:
            near &= ~active | _is_near(axis, found, axis.code(axis.positions(np.zeros(1))))
        elif axis.runs != (axis.scale,):
            inside = axis.code(axis.positions(np.linspace(0, 1, _POINTS)))
            near &= ~active | (_distance(found, inside) <= 1 / _POINTS)
    return near


def _is_near(axis: Axis, found: Floats, wanted: Floats) -> Bools:
    """Return which of the encoded values, shape (trials, columns), are near the one wanted, shape (1, columns)."""
    has_few = bool(axis.levels) and len(axis.levels) <= round(1 / _NEAR)
    if axis.kind == "categorical" or has_few:
        return _distance(found, wanted) < _SAME
    start, end = axis.scale
    kept = sum(last - first for first, last in axis.runs) / (end - start)  # 0 where one value is given
    return _distance(found, wanted) <= _NEAR * (kept or 1.0) + _SAME


def _distance(found: Floats, wanted: Floats) -> Floats:
    """Return how far encoded values, shape (trials, columns), are from the nearest of those wanted, shape (trials,)."""
    return np.asarray(np.abs(found[:, None, :] - wanted[None, :, :]).max(axis=2).min(axis=1))
