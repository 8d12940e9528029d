"""Builds the plan from the study, its space, its images and its backbones."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raystudy.data import PreparedData, summarise
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.plan.contents import BackbonePlan, DepthPlan, FactorPlan, Plan, SearchPlan, StoppingPlan
from raystudy.plan.cost import Counts, Room, estimate, local_room, steps_per_epoch
from raystudy.plan.doubts import find_doubts
from raystudy.plan.forecast import Shares, cell_shares, count_grid, expected_trials, forecast
from raystudy.plan.words import describe, show
from raystudy.search.asha import Asha
from raystudy.space import Dimension, Space, levels
from raystudy.spec import StudySpec

if TYPE_CHECKING:
    from raystudy.finetune.backbone import BackboneInfo
    from raystudy.finetune.probe import Probe


def make_plan(
    spec: StudySpec,
    space: Space,
    data: PreparedData,
    *,
    probe: Probe | None = None,
    backbones: Sequence[BackboneInfo] | None = None,
    cores: int | None = None,
    room: Room | None = None,
) -> Plan:
    """Say what a checked study is going to do.

    Args:
        spec: the study.
        space: its search space.
        data: its images.
        probe: a measurement of where trials run; without one no time and no cost are estimated.
        backbones: what is known of the study's backbones, in their order; by default they are built for it.
        cores: the cores that trials may use on this machine; by default those of this process.
        room: what trials get on a cluster; None: they run on this machine.

    Raises:
        BackboneError: a backbone cannot be built.
    """
    grid_points = count_grid(space) if spec.search.sampler == "grid" else None
    trials = expected_trials(spec, grid_points)
    shares = cell_shares(spec, space, trials)
    outlook = forecast(spec, shares, trials)
    counts = Counts(len(data.splits.train), len(data.splits.validation))
    time, cost = None, None
    if probe is not None:
        room = room or local_room(spec, probe, cores=cores)
        time, cost = estimate(spec, space, probe, counts=counts, trials=trials, forecast=outlook, room=room)
    plan = Plan(
        name=spec.name,
        source=spec.data.source,
        data=summarise(data),
        backbones=_backbones(spec, space, infos=backbones or _build(spec), n_classes=len(data.class_names)),
        factors=tuple(_factor(spec, dimension) for dimension in space.dimensions),
        fixed=dict(spec.fixed),
        objective=(spec.metric, spec.mode),
        search=_search(spec, grid_points),
        stopping=_stopping(spec, shares, trials),
        trials=trials,
        epochs=spec.budget.epochs,
        steps_per_epoch=_steps(spec, space, counts.train),
        epochs_without_stopping=trials * spec.budget.epochs,
        forecast=outlook,
        hours=spec.budget.hours,
        gpu_hours=spec.budget.gpu_hours,
        time=time,
        cost=cost,
        warnings=(),
    )
    return find_doubts(plan, spec, space)


def _build(spec: StudySpec) -> list[BackboneInfo]:
    from raystudy.finetune.backbone import build_backbone  # imports torch

    return [build_backbone(name, image_size=_input_side(spec)).info for name in spec.backbones]


def _input_side(spec: StudySpec) -> int:
    return int(spec.constants().get("resolution") or spec.data.image_size)


def _backbones(spec: StudySpec, space: Space, *, infos: Sequence[BackboneInfo], n_classes: int) -> tuple[BackbonePlan, ...]:
    return tuple(
        BackbonePlan(
            name=name,
            weights=info.weights,
            pretrained_size=info.input_size,
            image_size=_input_side(spec),
            n_units=info.n_units,
            parameters=sum(info.unit_parameters),
            head_parameters=(head := (info.n_features + 1) * n_classes),
            depths=tuple(_depths(info, head, _depths_in_study(spec, space, info.n_units))),
        )
        for name, info in zip(spec.backbones, infos, strict=True)
    )


def _depths(info: BackboneInfo, head: int, in_study: Collection[Scalar]) -> Iterator[DepthPlan]:
    total = sum(info.unit_parameters)
    frozen = itertools.accumulate(info.unit_parameters, initial=0)
    names, sizes = ("", *info.unit_names), (0, *info.unit_parameters)
    for depth, (name, size, below) in enumerate(zip(names, sizes, frozen, strict=True)):
        yield DepthPlan(depth, name, size, below, below / max(total, 1), total - below + head, depth in in_study)


def _depths_in_study(spec: StudySpec, space: Space, n_units: int) -> Collection[Scalar]:
    """Return the frozen depths that trials may have; one that `tuned_unit` overrides counts as one."""
    constant = spec.constants().get("frozen_depth")
    if constant is not None:
        return (n_units,) if constant == PROBE_DEPTH else (constant,)
    return levels(next(d.distribution for d in space.dimensions if d.name == "frozen_depth"))


def _factor(spec: StudySpec, dimension: Dimension) -> FactorPlan:
    factor = spec.all_factors[dimension.name]
    condition = " and ".join(f"{name} is {' or '.join(map(show, values))}" for name, values in dimension.when.items())
    return FactorPlan(dimension.name, describe(factor, dimension.distribution), spec.role(dimension.name), condition)


def _search(spec: StudySpec, grid_points: int | None) -> SearchPlan:
    search = spec.search
    startup, explore = (search.startup_trials, search.explore) if search.sampler in ("tpe", "gp") else (None, None)
    return SearchPlan(search.sampler, search.seed, startup, explore, len(search.points), grid_points)


def _stopping(spec: StudySpec, shares: Shares, trials: int) -> StoppingPlan | None:
    stopping = spec.early_stopping
    if stopping.scheduler == "none":
        return None
    return StoppingPlan(
        rungs=Asha(spec).rungs,
        reduction=stopping.reduction,
        keep=float(stopping.keep),
        within=spec.cells,
        cells=len(shares),
        trials_per_cell=(trials * min(shares.values()), trials * max(shares.values())),
    )


def _steps(spec: StudySpec, space: Space, n_train: int) -> tuple[int, int]:
    """Return the fewest and the most optimiser steps that an epoch may have."""
    low_batch, high_batch = ends(spec, space, "batch_size")
    low_share, high_share = ends(spec, space, "data_fraction")
    unit = spec.budget.unit
    return (
        steps_per_epoch(n_train, int(high_batch), low_share, unit=unit),
        steps_per_epoch(n_train, int(low_batch), high_share, unit=unit),
    )


def ends(spec: StudySpec, space: Space, name: str) -> tuple[float, float]:
    """Return the smallest and the largest value that a numeric factor takes in the study."""
    constants: Mapping[str, Scalar] = spec.constants()
    if name in constants:
        return float(constants[name]), float(constants[name])
    distribution: Any = next(d.distribution for d in space.dimensions if d.name == name)
    values = getattr(distribution, "choices", None) or (distribution.low, distribution.high)
    return float(min(values)), float(max(values))
