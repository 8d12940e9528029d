"""How fast trials of a study train here: a few steps of real trials on a few of the study's images.

What is timed is `TrialRun` itself, so that whatever makes trials faster or slower shows in the measurement too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from raystudy.data import PreparedData, Splits
from raystudy.factors import PROBE_DEPTH, SUPERVISED, Scalar
from raystudy.finetune.backbone import Backbone, build_backbone
from raystudy.finetune.checkpoint import Row
from raystudy.finetune.compute import Compute
from raystudy.finetune.model import BackboneFactory
from raystudy.finetune.trial import TrialPlan, TrialRun
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.spec.sources import is_registered

_PILOT_BATCH = 4
_LONGEST_STEP_S = 1.0
"""A full batch is measured if its step is likely to be faster than this; else a pilot batch is scaled up."""

_SECONDS_PER_DEPTH = 0.5
_SLOW_S = 1.0
"""Where the first epoch of a timing takes this long it is the measurement: warming up is a small part of it."""

_FEWEST_TIMED, _MOST_TIMED = 2, 20
_GPU_STEPS = 20
"""Steps per timed epoch on a GPU, which is fast only while work is queued; one step does on a CPU."""


HARMLESS: Mapping[str, Scalar] = {
    "strategy": "ft",
    "pretrained": True,
    "reinit_units": 0,
    "learning_rate": 1e-6,
    "head_lr_multiplier": 1.0,
    "schedule": "constant",
}
"""What a trial that is run for what it costs is set to: every step computes the same, and nothing diverges."""


@dataclass(frozen=True, slots=True)
class BackboneSpeed:
    """How fast one backbone trains.

    Attributes:
        n_units: its number of units.
        depths: the frozen depths that were measured, ascending.
        seconds: of one optimiser step with the probe's batch size, at each of `depths`.
        saving: the seconds that the checkpoint of an epoch takes, at each of `depths`: less is saved where more is frozen.
        validation_images_per_second: throughput of evaluation.
        setup_seconds: between a trial's start and its first step.
        measured_batch_size: the images of a step that was timed: fewer than the probe's where that would have taken long.
    """

    n_units: int
    depths: tuple[int, ...]
    seconds: tuple[float, ...]
    saving: tuple[float, ...]
    validation_images_per_second: float
    setup_seconds: float
    measured_batch_size: int

    def step_seconds(self, depth: int) -> float:
        """Return the seconds of a step at any frozen depth: interpolated, and constant beyond what was measured."""
        return float(np.interp(depth, self.depths, self.seconds))

    def save_seconds(self, depth: int) -> float:
        """Return the seconds that an epoch's checkpoint takes at any frozen depth, likewise."""
        return float(np.interp(depth, self.depths, self.saving))


@dataclass(frozen=True, slots=True)
class Probe:
    """A measurement of a study's speed on this machine, one trial at a time.

    Attributes:
        speeds: by the backbone's name.
        batch_size: the images of a step that `seconds` of a speed are for.
        side: the side of the images that entered the network, in pixels.
        device_name: the GPU's name, or the CPU with its number of threads.
        gpus: how many GPUs there are; 0 where the CPU was measured.
        precision: `float32` or `bf16`.
        seconds: how long the measurement took, the building of the backbones included.
    """

    speeds: Mapping[str, BackboneSpeed]
    batch_size: int
    side: int
    device_name: str
    gpus: int
    precision: str
    seconds: float

    def speed(self, backbone: str) -> BackboneSpeed:
        """Return how fast the backbone of that name is."""
        return self.speeds[backbone]


@dataclass(frozen=True, slots=True)
class _Timing:
    """Medians over the timed epochs of one trial, in seconds; and what they depend on."""

    setup: float
    step: float
    validation_per_image: float
    save: float


@dataclass(frozen=True, slots=True)
class _Bench:
    """Where trials are timed: everything but what varies from one timing to the next."""

    spec: StudySpec
    data: PreparedData
    compute: Compute
    config: Mapping[str, Scalar]
    folder: Path

    def time(self, backbone: Backbone, depth: int, batch_size: int, *, seconds: float) -> _Timing:
        """Train a trial for about `seconds` after a first, untimed epoch."""
        steps = _GPU_STEPS if self.compute.is_gpu else 1
        data = few_images(self.data, train=steps * batch_size, validation=steps * batch_size)
        workdir = Path(tempfile.mkdtemp(dir=self.folder))
        config = {**self.config, "frozen_depth": depth, "batch_size": batch_size}
        plan = measuring_plan(self.spec, config, self.compute, epochs=_MOST_TIMED + 1)
        run = TrialRun(plan, data, workdir, backbone=backbone)
        try:
            rows = _timed_rows(run, seconds)
        finally:
            run.close()
        return _summarise(rows, steps=steps, batch_size=batch_size, n_validation=len(data.splits.validation))


def probe(
    spec: StudySpec,
    space: Space,
    data: PreparedData,
    *,
    device: str = "auto",
    backbone: BackboneFactory = build_backbone,
) -> Probe:
    """Time training and validation for a few seconds per backbone; the process is left as it was.

    The backbones have random weights, which compute as fast as pretrained ones.

    Args:
        spec: the study; a configuration in the middle of its factors is measured.
        space: its search space.
        data: its images.
        device: `auto`, `cpu`, `cuda`, ...
        backbone: what builds backbones.

    Raises:
        OutOfMemory: a typical trial does not fit into memory.
        BackboneError: a backbone cannot be built.
    """
    started = time.perf_counter()
    compute = Compute.choose("cpu" if spec.resources.gpu == 0 and device == "auto" else device, spec.resources.precision)
    typical = spec.full_config(space.at([0.5] * len(space.dimensions)))
    side = int(typical["resolution"]) or int(data.images.shape[1])
    batch_size = int(typical["batch_size"])
    with _process_left_alone(), tempfile.TemporaryDirectory(prefix="raystudy-probe-") as folder:
        bench = _Bench(spec, data, compute, _harmless(typical), Path(folder))
        speeds, known = {}, dict[str, BackboneSpeed]()
        for name in spec.backbones:
            network = backbone(name, pretrained=False, seed=0, image_size=side)
            # Registered models of one architecture differ in their weights only.
            kind = network.info.architecture if is_registered(name) else name
            if kind not in known:
                depths = probe_depths(spec, typical, network.info.n_units)
                known[kind] = _measure(bench, network, batch_size, depths)
            speeds[name] = known[kind]
    return Probe(
        speeds=speeds,
        batch_size=batch_size,
        side=side,
        device_name=_device_name(compute, spec.resources.cpu),
        gpus=torch.cuda.device_count() if compute.is_gpu else 0,
        precision=compute.precision,
        seconds=time.perf_counter() - started,
    )


def probe_depths(spec: StudySpec, typical: Mapping[str, Scalar], n_units: int) -> tuple[int, ...]:
    """Return the frozen depths to measure: the ends and the middle, or the only one where nothing about depth varies."""
    varying = {"frozen_depth", "tuned_unit", "strategy"} & spec.all_factors.keys()
    if varying or typical["strategy"] != "ft" or int(typical["tuned_unit"]) >= 0:
        return tuple(sorted({0, n_units // 2, n_units}))
    depth = typical["frozen_depth"]
    return (n_units if depth == PROBE_DEPTH else int(depth),)


def _measure(bench: _Bench, backbone: Backbone, batch_size: int, depths: tuple[int, ...]) -> BackboneSpeed:
    """Time trials at `depths`; where a step takes long, with a pilot batch and at the ends of `depths` only."""
    batch, timings = batch_size, dict[int, _Timing]()
    if not bench.compute.is_gpu and batch_size > _PILOT_BATCH:
        pilot = bench.time(backbone, depths[0], _PILOT_BATCH, seconds=0.0)
        if pilot.step * batch_size / _PILOT_BATCH > _LONGEST_STEP_S:
            batch, timings = _PILOT_BATCH, {depths[0]: pilot}
            depths = tuple(sorted({depths[0], depths[-1]}))
    timings |= {
        depth: bench.time(backbone, depth, batch, seconds=_SECONDS_PER_DEPTH) for depth in depths if depth not in timings
    }
    last = timings[depths[-1]]  # what warms up (caches, kernels) has done so by now
    return BackboneSpeed(
        n_units=backbone.info.n_units,
        depths=depths,
        seconds=tuple(timings[depth].step * batch_size / batch for depth in depths),
        saving=tuple(timings[depth].save for depth in depths),
        validation_images_per_second=1 / last.validation_per_image,
        setup_seconds=last.setup,
        measured_batch_size=batch,
    )


def _harmless(typical: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the configuration changed so that every step of the probe computes the same and nothing diverges."""
    return {**typical, **HARMLESS, "tuned_unit": -1, "data_fraction": 1.0, "training_objective": SUPERVISED}


def measuring_plan(spec: StudySpec, config: Mapping[str, Scalar], compute: Compute, *, epochs: int) -> TrialPlan:
    """Return a trial of the study that is run for what it costs."""
    return TrialPlan(
        trial_id="probe",
        number=0,
        config=config,
        epochs=epochs,
        study_seed=spec.search.seed,
        metric=spec.metric,
        mode=spec.mode,
        device=str(compute.device),
        threads=spec.resources.cpu,
        precision=compute.precision,
    )


def few_images(data: PreparedData, *, train: int, validation: int) -> PreparedData:
    """Return splits of so many images; the pixels stay all of them, as a GPU may hold them all."""
    splits = Splits(data.splits.train[:train], data.splits.validation[:validation], None)
    # One label for all: it changes no speed, and so few images need not hold every class.
    return replace(data, splits=splits, labels=np.zeros_like(data.labels))


def _timed_rows(run: TrialRun, seconds: float) -> list[tuple[Row, float]]:
    """Return the rows of a trial, each with the wall time since the one before; the first one's includes the setup."""
    rows: list[tuple[Row, float]] = []
    last = time.perf_counter()
    for row in run.epochs():
        now = time.perf_counter()
        rows.append((row, now - last))
        last = now
        if _is_enough(rows, seconds):
            break
    return rows


def _is_enough(rows: Sequence[tuple[Row, float]], seconds: float) -> bool:
    timed = [wall for _, wall in rows[1:]]
    return rows[0][0]["epoch_seconds"] >= _SLOW_S or (len(timed) >= _FEWEST_TIMED and sum(timed) >= seconds)


def _summarise(rows: Sequence[tuple[Row, float]], *, steps: int, batch_size: int, n_validation: int) -> _Timing:
    """Take medians over all rows but the first, which warms up unless it is the only one."""
    timed = rows[1:] or rows
    steps_s = [batch_size / row["images_per_second"] for row, _ in timed]
    validation_s = [row["epoch_seconds"] - steps * step for (row, _), step in zip(timed, steps_s, strict=True)]
    saving = max(median(wall - row["epoch_seconds"] for row, wall in rows[1:]), 0.0) if len(rows) > 1 else 0.0
    return _Timing(
        setup=max(rows[0][1] - rows[0][0]["epoch_seconds"] - saving, 0.0),
        step=median(steps_s),
        validation_per_image=max(median(validation_s), 1e-9) / n_validation,
        save=saving,
    )


@contextmanager
def _process_left_alone() -> Iterator[None]:
    """Put torch's threads and random state back."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _device_name(compute: Compute, threads: int) -> str:
    if compute.is_gpu:
        return torch.cuda.get_device_name(compute.device)
    return f"CPU, {threads} thread{'s' if threads != 1 else ''} a trial"
