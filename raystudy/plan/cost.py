"""From a measured probe to the wall time of a study on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.plan.contents import Forecast, TimePlan
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


def estimate_time(
    spec: StudySpec, space: Space, probe: Probe, *, counts: Counts, trials: int, forecast: Forecast, cores: int | None = None
) -> TimePlan:
    """Estimate the wall time of a study whose trials share this machine; `cores` defaults to those that it may use."""
    random = np.random.default_rng(spec.search.seed)
    points = random.random((_SAMPLED_CONFIGURATIONS, len(space.dimensions)))
    configs = [spec.full_config(space.at(point.tolist())) for point in points]
    seconds = np.array([epoch_seconds(config, spec, probe, counts) for config in configs])
    setup = float(np.mean([probe.speed(str(config["backbone"])).setup_seconds for config in configs]))
    concurrent = local_concurrency(spec, probe, cores=cores)
    mean = float(seconds.mean())
    # However many run at a time, somebody trains a whole trial.
    longest = setup + spec.budget.epochs * mean

    def wall(epochs: float) -> float:
        return max((epochs * mean + trials * setup) / concurrent, longest)

    low, high = forecast.epochs_range
    fastest, slowest = np.quantile(seconds, [0.05, 0.95])
    return TimePlan(
        device=probe.device_name,
        precision=probe.precision,
        batch_size=probe.batch_size,
        measured_seconds=probe.seconds,
        epoch_seconds=mean,
        fastest_epoch_seconds=float(fastest),
        slowest_epoch_seconds=float(slowest),
        concurrent=concurrent,
        seconds=wall(forecast.epochs),
        seconds_range=(wall(low), wall(high)),
    )


def epoch_seconds(config: Mapping[str, Scalar], spec: StudySpec, probe: Probe, counts: Counts) -> float:
    """Return how long an epoch of a trial takes, in seconds: training, validation and checkpoint.

    Steps are taken to cost in proportion to their images and to the pixels of an image.
    """
    speed = probe.speed(str(config["backbone"]))
    side = float(config["resolution"]) or spec.data.image_size
    pixels = (side / probe.side) ** 2
    batch_size = int(config["batch_size"])
    depth = _depth(config, speed.n_units)
    steps = steps_per_epoch(counts.train, batch_size, float(config["data_fraction"]), unit=spec.budget.unit)
    training = steps * _step_seconds(config, depth, speed) * batch_size / probe.batch_size
    validation = counts.validation / speed.validation_images_per_second
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


def local_concurrency(spec: StudySpec, probe: Probe, *, cores: int | None = None) -> int:
    """Return how many trials progress at a time on this machine; those that share a GPU also share its speed."""
    resources = spec.resources
    fit = (cores or _available_cores()) // resources.cpu
    if probe.gpus and resources.gpu != 0:
        per_trial = 1.0 if resources.gpu == "auto" else max(1.0, float(resources.gpu))
        fit = min(fit, int(probe.gpus // per_trial))
    wanted = fit if resources.concurrent == "auto" else min(int(resources.concurrent), fit)
    return max(1, wanted)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
