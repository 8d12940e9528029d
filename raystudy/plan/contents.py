"""The plan as plain values, computed once; the renderer and `--json` only show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raystudy.data import DataSummary
from raystudy.factors import Scalar


@dataclass(frozen=True, slots=True)
class DepthPlan:
    """What one frozen depth of a backbone means.

    Attributes:
        depth: the number of leading units that are frozen.
        unit: the last unit that it freezes; empty at depth 0.
        unit_parameters: that unit's parameters.
        frozen: the parameters of all frozen units.
        frozen_share: their share of the backbone's parameters, 0 to 1.
        trained: the parameters that train, the head's included.
        in_study: whether trials of the study may have this depth.
    """

    depth: int
    unit: str
    unit_parameters: int
    frozen: int
    frozen_share: float
    trained: int
    in_study: bool


@dataclass(frozen=True, slots=True)
class BackbonePlan:
    """One backbone with its new head.

    Attributes:
        name: as in the study file.
        weights: where the pretrained weights came from.
        pretrained_size: the image size of its pretraining, in pixels.
        image_size: the image size in this study, in pixels.
        n_units: the number of units.
        parameters: of the backbone, without head.
        head_parameters: of the new head.
        depths: one row for each frozen depth, 0 to `n_units`.
    """

    name: str
    weights: str
    pretrained_size: int
    image_size: int
    n_units: int
    parameters: int
    head_parameters: int
    depths: tuple[DepthPlan, ...]


@dataclass(frozen=True, slots=True)
class FactorPlan:
    """One factor: its distribution in words, its role, and the condition under which it is active (or empty)."""

    name: str
    values: str
    role: str
    condition: str


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How configurations are proposed.

    Attributes:
        sampler: its name.
        seed: the study's seed.
        startup_trials: random trials before the sampler models; None where it never does.
        explore: share of the later trials that it leaves to chance; None where it never models.
        points: configurations of the study file that are tried first.
        grid_points: the size of the grid; None without one.
    """

    sampler: str
    seed: int
    startup_trials: int | None
    explore: float | None
    points: int
    grid_points: int | None


@dataclass(frozen=True, slots=True)
class StoppingPlan:
    """How bad trials are stopped.

    Attributes:
        rungs: the epochs at which trials are compared.
        reduction: of so many trials one goes on.
        keep: the share of the would-be-stopped trials that goes on as a hold-out.
        within: the factors that make up cells.
        cells: the number of cells, 1 where `within` is empty.
        trials_per_cell: the expected number of trials in the smallest and the largest cell.
    """

    rungs: tuple[int, ...]
    reduction: int
    keep: float
    within: tuple[str, ...]
    cells: int
    trials_per_cell: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long trials are expected to run, if no configuration is known to be better than another beforehand.

    Attributes:
        epochs: the expected number of epochs of all trials together.
        epochs_range: the 90 % range of that number.
        arrivals: how many trials are expected to finish the epoch of each rung, first rung first.
        completed: how many are expected to reach the budget, hold-outs included.
        hold_outs: how many of those would have been stopped.
    """

    epochs: float
    epochs_range: tuple[float, float]
    arrivals: tuple[float, ...]
    completed: float
    hold_outs: float


@dataclass(frozen=True, slots=True)
class TimePlan:
    """An estimate of the wall time on this machine or on the cluster, from a short measurement.

    Attributes:
        node: the machine of the cluster that was measured; empty where it was this one.
        device: what was measured.
        precision: `float32` or `bf16`.
        batch_size: images per step in the measurement.
        measured_seconds: how long the measurement took.
        epoch_seconds: of an average trial.
        fastest_epoch_seconds: of the cheapest configurations (5 % are cheaper).
        slowest_epoch_seconds: of the dearest configurations (5 % are dearer).
        concurrent: trials that run at a time.
        seconds: the expected wall time of the study.
        seconds_range: the same for the ends of the range of epochs.
    """

    node: str
    device: str
    precision: str
    batch_size: int
    measured_seconds: float
    epoch_seconds: float
    fastest_epoch_seconds: float
    slowest_epoch_seconds: float
    concurrent: int
    seconds: float
    seconds_range: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What the trials are expected to use, and what that costs.

    Attributes:
        unit: `GPU-hours`, or `CPU-hours` where trials use no GPU.
        per_trial: the GPUs (or CPUs) that a trial holds.
        hours: those of all trials, times the hours for which they are held.
        hours_range: the same for the ends of the range of epochs.
        hours_without_stopping: the same if no trial were stopped.
        price: of a GPU-hour; None where none is given or no GPU is used, and so are the next three.
        money: `hours` at that price.
        money_range: `hours_range` at that price.
        money_without_stopping: `hours_without_stopping` at that price.
    """

    unit: str
    per_trial: float
    hours: float
    hours_range: tuple[float, float]
    hours_without_stopping: float
    price: float | None
    money: float | None
    money_range: tuple[float, float] | None
    money_without_stopping: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study is going to do.

    Attributes:
        name: the study's name.
        source: where the images are.
        data: what was found there.
        backbones: the pretrained networks.
        factors: what varies.
        fixed: what the study file fixes.
        objective: metric and mode.
        search: how configurations are proposed.
        stopping: how bad trials are stopped; None where nothing is.
        trials: how many trials will be started.
        epochs: the budget T of one trial.
        steps_per_epoch: optimiser steps per epoch, at the largest and the smallest batch size (and data fraction, where
            an epoch is a pass over the trial's own subset).
        epochs_without_stopping: of all trials together.
        forecast: how many epochs are expected with stopping.
        hours: the time budget, if there is one.
        gpu_hours: the budget of GPU-hours, if there is one.
        time: the estimated wall time; None without a measurement.
        cost: the estimated GPU-hours and money; None without a measurement.
        warnings: in words, why the study may not answer its question.
    """

    name: str
    source: str
    data: DataSummary
    backbones: tuple[BackbonePlan, ...]
    factors: tuple[FactorPlan, ...]
    fixed: Mapping[str, Scalar]
    objective: tuple[str, str]
    search: SearchPlan
    stopping: StoppingPlan | None
    trials: int
    epochs: int
    steps_per_epoch: tuple[int, int]
    epochs_without_stopping: int
    forecast: Forecast
    hours: float | None
    gpu_hours: float | None
    time: TimePlan | None
    cost: CostPlan | None
    warnings: tuple[str, ...]
