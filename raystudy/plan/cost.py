"""From a measured probe to the wall time of a study, its GPU-hours and what they cost."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raystudy.factors import PROBE_DEPTH, SELF_SUPERVISED, Scalar
from raystudy.plan.contents import CostPlan, Forecast, TimePlan
from raystudy.space import Space
from raystudy.spec import StudySpec

if TYPE_CHECKING:
    from raystudy.finetune.probe import BackboneSpeed, Probe

_SAMPLED_CONFIGURATIONS = 500


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images train and validate."""

    train: int
    validation: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a trial gets and how many run at a time.

    Attributes:
        cpu: CPUs per trial.
        gpu: GPUs (or a share of one) per trial; 0 where trials use none.
        concurrent: trials that run at a time.
        abreast: as many as `concurrent` ones together progress like, each at the measured speed: trials that share a GPU also
            share its speed.
        node: the machine of the cluster that was measured; empty where trials run on this one.
    """

    cpu: int
    gpu: float
    concurrent: int
    abreast: int
    node: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    """What the trials take if they run one after the other.

    Attributes:
        trials: their number.
        setup_seconds: of one trial.
        epoch_seconds: of an epoch, for 500 configurations.
    """

    trials: int
    setup_seconds: float
    epoch_seconds: NDArray[np.float64]

    @property
    def mean_seconds(self) -> float:
        """The seconds of an average epoch."""
        return float(self.epoch_seconds.mean())

    def seconds(self, epochs: float) -> float:
        """Return the seconds of all trials if they train for so many epochs together."""
        return epochs * self.mean_seconds + self.trials * self.setup_seconds


def estimate(
    spec: StudySpec, space: Space, probe: Probe, *, counts: Counts, trials: int, forecast: Forecast, room: Room
) -> tuple[TimePlan, CostPlan]:
    """Estimate the wall time of a study and what it uses, from the speed of one trial that has what `room` gives."""
    random = np.random.default_rng(spec.search.seed)
    points = random.random((_SAMPLED_CONFIGURATIONS, len(space.dimensions)))
    configs = [spec.full_config(space.at(point.tolist())) for point in points]
    work = _Work(
        trials=trials,
        setup_seconds=float(np.mean([probe.speed(str(config["backbone"])).setup_seconds for config in configs])),
        epoch_seconds=np.array([epoch_seconds(config, spec, probe, counts) for config in configs]),
    )
    room = replace(room, concurrent=min(room.concurrent, trials), abreast=min(room.abreast, trials))
    return _time(spec, probe, work, forecast, room), _cost(spec, work, forecast, room)


def _time(spec: StudySpec, probe: Probe, work: _Work, forecast: Forecast, room: Room) -> TimePlan:
    # However many run at a time, somebody trains a whole trial.
    longest = work.setup_seconds + spec.budget.epochs * work.mean_seconds

    def wall(epochs: float) -> float:
        return max(work.seconds(epochs) / room.abreast, longest)

    low, high = forecast.epochs_range
    fastest, slowest = np.quantile(work.epoch_seconds, [0.05, 0.95])
    return TimePlan(
        node=room.node,
        device=probe.device_name,
        precision=probe.precision,
        batch_size=probe.batch_size,
        measured_seconds=probe.seconds,
        epoch_seconds=work.mean_seconds,
        fastest_epoch_seconds=float(fastest),
        slowest_epoch_seconds=float(slowest),
        concurrent=room.concurrent,
        seconds=wall(forecast.epochs),
        seconds_range=(wall(low), wall(high)),
    )


def _cost(spec: StudySpec, work: _Work, forecast: Forecast, room: Room) -> CostPlan:
    per_trial = room.gpu or float(room.cpu)
    # Trials that share a GPU hold their parts of it for longer than the measured one, which had it to itself.
    held = per_trial * room.concurrent / room.abreast
    price = None if spec.resources.gpu_hour_price is None or not room.gpu else float(spec.resources.gpu_hour_price)

    def hours(epochs: float) -> float:
        return held * work.seconds(epochs) / 3600

    low, high = map(hours, forecast.epochs_range)
    expected, whole = hours(forecast.epochs), hours(work.trials * spec.budget.epochs)
    return CostPlan(
        unit="GPU-hours" if room.gpu else "CPU-hours",
        per_trial=per_trial,
        hours=expected,
        hours_range=(low, high),
        hours_without_stopping=whole,
        price=price,
        money=None if price is None else expected * price,
        money_range=None if price is None else (low * price, high * price),
        money_without_stopping=None if price is None else whole * price,
    )


def epoch_seconds(config: Mapping[str, Scalar], spec: StudySpec, probe: Probe, counts: Counts) -> float:
    """Return how long an epoch of a trial takes, in seconds: training, validation and checkpoint.

    Steps are taken to cost in proportion to their images and to the pixels of an image. Self-supervised ones see two views of
    each image, and class means are taken of all training images, as fast as validation goes; speeds are supervised ones.
    """
    speed = probe.speed(str(config["backbone"]))
    side = float(config["resolution"]) or spec.data.image_size
    pixels = (side / probe.side) ** 2
    batch_size = int(config["batch_size"])
    depth = _depth(config, speed.n_units)
    steps = steps_per_epoch(counts.train, batch_size, float(config["data_fraction"]), unit=spec.budget.unit)
    training = steps * _step_seconds(config, depth, speed) * batch_size / probe.batch_size
    evaluated = float(counts.validation)
    if config["training_objective"] == SELF_SUPERVISED:
        training *= 2
        evaluated += math.ceil(counts.train * float(config["data_fraction"]))
    validation = evaluated / speed.validation_images_per_second
    return (training + validation) * pixels + speed.save_seconds(depth)


def steps_per_epoch(n_train: int, batch_size: int, data_fraction: float, *, unit: str) -> int:
    """Return the optimiser steps of an epoch, which is a pass over the full training split unless `unit` says otherwise."""
    images = math.ceil(n_train * data_fraction) if unit == "subset_epoch" else n_train
    return math.ceil(images / batch_size)


def _depth(config: Mapping[str, Scalar], n_units: int) -> int:
    """Return how many leading units of a trial need no gradients in the end."""
    if int(config["tuned_unit"]) >= 0:
        return int(config["tuned_unit"])
    return n_units if config["frozen_depth"] == PROBE_DEPTH else int(config["frozen_depth"])


def _step_seconds(config: Mapping[str, Scalar], depth: int, speed: BackboneSpeed) -> float:
    """Return the seconds of an average step of a trial."""
    final = speed.step_seconds(depth)
    if config["strategy"] == "ft":
        return final
    head_only = speed.step_seconds(speed.n_units)
    early = head_only if config["strategy"] == "lp_ft" else (head_only + final) / 2
    share = float(config["lp_share"])
    return share * early + (1 - share) * final


def local_room(spec: StudySpec, probe: Probe, *, cores: int | None = None) -> Room:
    """Return what trials get on this machine; `cores` defaults to those that this process may use."""
    resources = spec.resources
    wanted = 1.0 if resources.gpu == "auto" else float(resources.gpu)
    gpu = wanted if probe.gpus else 0.0

    def fit(gpu: float) -> int:
        fit = (cores or _available_cores()) // resources.cpu
        if gpu:
            fit = min(fit, int(probe.gpus // gpu) if gpu >= 1 else probe.gpus * int(1 / gpu))
        return max(1, fit if resources.concurrent == "auto" else min(int(resources.concurrent), fit))

    return Room(resources.cpu, gpu, concurrent=fit(gpu), abreast=fit(max(gpu, 1.0) if gpu else 0.0))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
