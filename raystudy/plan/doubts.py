"""Why a study may not answer its question: said in words, before anything is spent."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from raystudy.factors import FACTORS, Scalar
from raystudy.plan.contents import Plan
from raystudy.plan.words import hours_in_words
from raystudy.space import Space
from raystudy.spec import StudySpec

_FEW_TRIALS_PER_LEVEL = 3
_FEW_ACTIVE_TRIALS = 10
_FEW_VALIDATION_IMAGES = 100
_SAMPLED_CONFIGURATIONS = 2000


def find_doubts(plan: Plan, spec: StudySpec, space: Space) -> Plan:
    """Return the plan with its warnings."""
    kinds: tuple[Callable[[Plan, StudySpec, Space], Iterator[str]], ...] = (
        _budget_doubts,
        _sampler_doubts,
        _grid_doubts,
        _stopping_doubts,
        _question_doubts,
        _backbone_doubts,
        _effect_doubts,
        _data_doubts,
        _time_doubts,
        _gpu_hour_doubts,
    )
    return dataclasses.replace(plan, warnings=tuple(doubt for kind in kinds for doubt in kind(plan, spec, space)))


def _budget_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    if plan.search.points > spec.budget.trials:
        yield (
            f"search.points has {plan.search.points} configurations, but budget.trials is {spec.budget.trials}: "
            "the last ones are never tried"
        )
    if plan.stopping and not plan.stopping.rungs:
        yield (
            f"early stopping has no rung below budget.epochs = {plan.epochs}: every trial runs to the end; "
            "give more epochs, or say early_stopping: none"
        )


def _sampler_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    startup = plan.search.startup_trials
    if startup is not None and plan.trials <= startup:
        yield (
            f"all {plan.trials} trials are random: {plan.search.sampler} begins to model after "
            f"search.startup_trials = {startup}; give more trials or a smaller startup_trials"
        )


def _grid_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    points = plan.search.grid_points
    if points is None:
        return
    room = max(spec.budget.trials - plan.search.points, 0)
    if points > room:
        yield (
            f"the grid has {points:,} points, but budget.trials leaves room for {room:,}: the first factors' last levels are "
            f"tried too rarely or not at all; set budget.trials to {points + plan.search.points}"
        )
    elif points < room:
        yield f"the grid has {points:,} points: the study ends after {plan.trials:,} of {spec.budget.trials:,} trials"


def _stopping_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    stopping = plan.stopping
    if not stopping or not stopping.rungs:
        return
    fewest, most = stopping.trials_per_cell
    if fewest < stopping.reduction:
        where = f"each of the {stopping.cells:,} cells" if math.isclose(fewest, most) else "the smallest cell"
        yield (
            f"only {fewest:.1f} trials are expected in {where} of {' × '.join(stopping.within) or 'the study'}, fewer than "
            f"reduction = {stopping.reduction}: early stopping compares almost nothing there; "
            "give more trials, or compare within fewer factors (early_stopping.within)"
        )


def _question_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:
    """Yield what makes the effect of a scientific factor hard to see."""
    random = np.random.default_rng(spec.search.seed)
    points = random.random((_SAMPLED_CONFIGURATIONS, len(space.dimensions)))
    configs = [space.at(point.tolist()) for point in points]
    for factor in plan.factors:
        if factor.role != "scientific":
            continue
        counts = Counter(config[factor.name] for config in configs if factor.name in config)
        active = plan.trials * counts.total() / _SAMPLED_CONFIGURATIONS
        if active < min(_FEW_ACTIVE_TRIALS, plan.trials):
            yield f"{factor.name} is in question, but active in about {active:.1f} of {plan.trials} trials only"
        elif levels := spec.all_factors[factor.name].choice:
            yield from _level_doubts(factor.name, levels, active)


def _backbone_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    counts = {backbone.name: backbone.n_units for backbone in plan.backbones}
    if "frozen_depth" in spec.factors and len(set(counts.values())) > 1:
        units = ", ".join(f"{name} {n_units}" for name, n_units in counts.items())
        yield (
            f"the backbones have different numbers of units ({units}): one frozen_depth freezes different shares of them, "
            f"and max is {min(counts.values())}, so that the larger ones are never linear probes"
        )


def _level_doubts(name: str, levels: tuple[Scalar, ...], active: float) -> Iterator[str]:
    if active / len(levels) < _FEW_TRIALS_PER_LEVEL:
        yield (
            f"{name} is in question and has {len(levels)} levels: {active / len(levels):.1f} trials a level cannot tell "
            f"them apart; give at least {_FEW_TRIALS_PER_LEVEL * len(levels)} trials, or fewer levels"
        )


def _effect_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:
    """Yield the factors that vary where they change nothing, which dilutes what is found of them."""
    constants, varying = spec.constants(), spec.all_factors
    for dimension in space.dimensions:
        for parent, value in FACTORS[dimension.name].applies.items():
            if parent in constants and constants[parent] != value:
                yield f"{dimension.name} varies but has no effect: it needs {parent}: {value}, which is {constants[parent]}"
            elif parent in varying and set(dimension.when.get(parent, ())) != {value}:
                yield (
                    f"{dimension.name} also varies where it has no effect, which blurs its importance; "
                    f"add when: {{{parent}: {value}}}"
                )
    if {"frozen_depth", "tuned_unit"} <= {factor.name for factor in plan.factors}:
        yield "frozen_depth has no effect wherever tuned_unit is 0 or more; add when: {tuned_unit: -1} to frozen_depth"


def _data_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    n = plan.data.validation
    if n < _FEW_VALIDATION_IMAGES:
        # The standard error of a share of 0.9, of which two make the usual 95 % interval.
        margin = 2 * math.sqrt(0.9 * 0.1 / n)
        yield (
            f"{n} validation images: an accuracy of 90 % is known to within about {100 * margin:.0f} points only; "
            "smaller differences between trials are chance"
        )
    if plan.steps_per_epoch[0] < 2:
        yield (
            "an epoch is a single optimiser step at the largest batch size: "
            "reports and rungs then say little; use smaller batches"
        )


def _time_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    if plan.time is None or plan.hours is None:
        return
    hours = plan.time.seconds / 3600
    if hours > plan.hours:
        where = "the cluster" if plan.time.node else "this machine"
        yield (
            f"the study needs about {hours:.1f} h on {where} and budget.hours is {plan.hours:g}: "
            f"about {100 * plan.hours / hours:.0f} % of it will be done"
        )


def _gpu_hour_doubts(plan: Plan, spec: StudySpec, space: Space) -> Iterator[str]:  # noqa: ARG001
    if plan.gpu_hours is None:
        return
    if spec.resources.gpu == 0:
        yield "budget.gpu_hours limits nothing: trials use no GPU (resources.gpu is 0)"
    elif plan.cost is not None and plan.cost.unit == "GPU-hours" and plan.cost.hours > plan.gpu_hours:
        yield (
            f"the study needs about {hours_in_words(plan.cost.hours)} GPU-hours and budget.gpu_hours is {plan.gpu_hours:g}: "
            f"about {100 * plan.gpu_hours / plan.cost.hours:.0f} % of it will be done"
        )
