"""How much GPU memory the largest trial of a study needs: a few steps of that trial, on random weights.

A trial's memory does not depend on what it learns, so that the weights may be random; every backbone of the study is tried,
since a small one may keep more activations than a large one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from raystudy.data import PreparedData
from raystudy.factors import PROBE_DEPTH, SELF_SUPERVISED, SUPERVISED, Scalar
from raystudy.finetune.backbone import build_backbone
from raystudy.finetune.batches import evaluation_batch_size
from raystudy.finetune.compute import Compute
from raystudy.finetune.model import BackboneFactory
from raystudy.finetune.probe import HARMLESS, few_images, measuring_plan
from raystudy.finetune.trial import TrialRun
from raystudy.space import Dimension, Space
from raystudy.spec import StudySpec
from raystudy.spec.sources import is_registered

_EPOCHS = 2
"""The second one has the optimiser's state in memory from its first step on."""
_STEPS = 3
_LARGEST_COST_MORE = ("batch_size", "mixup", "cutmix", "l2_sp", "dropout", "clip_grad_norm", "data_fraction")
"""Factors whose largest value needs the most memory."""


@dataclass(frozen=True, slots=True)
class GpuNeed:
    """What the largest trial of a study needs of a GPU.

    Attributes:
        need: bytes, those of the process itself (its CUDA context) included.
        total: bytes that the GPU has.
        gpu_name: which one.
    """

    need: int
    total: int
    gpu_name: str = ""


class Meter(Protocol):
    """What is asked of a GPU's memory."""

    def start(self) -> None:
        """Forget the highest reservation so far."""

    def peak(self) -> int:
        """Return the bytes that torch has reserved at most since `start`."""

    def context(self) -> int:
        """Return the bytes that the process holds on the GPU beside those that torch reserves."""

    def total(self) -> int:
        """Return the bytes that the GPU has."""

    def name(self) -> str:
        """Return what the GPU is called."""


class CudaMeter:
    """Asks torch and the driver, for one GPU that no other process uses meanwhile."""

    def __init__(self, device: torch.device) -> None:
        """Measure on `device`."""
        self._device = device

    def start(self) -> None:
        """Forget the highest reservation so far, and what is reserved for nothing."""
        torch.cuda.init()  # the first statistics of a process need it
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Return the bytes that torch has reserved at most since `start`; pieces that are freed stay reserved."""
        return int(torch.cuda.max_memory_reserved(self._device))

    def context(self) -> int:
        """Return what the driver counts beyond torch's reservations: the context, and the libraries' own memory."""
        free, total = torch.cuda.mem_get_info(self._device)
        return max(int(total - free) - int(torch.cuda.memory_reserved(self._device)), 0)

    def total(self) -> int:
        """Return the bytes that the GPU has."""
        return int(torch.cuda.mem_get_info(self._device)[1])

    def name(self) -> str:
        """Return what the GPU is called."""
        return torch.cuda.get_device_name(self._device)


def measure_need(
    spec: StudySpec,
    space: Space,
    data: PreparedData,
    *,
    device: str = "cuda",
    backbone: BackboneFactory = build_backbone,
    meter: Meter | None = None,
) -> GpuNeed:
    """Train the largest trial for a few steps and a validation batch, and say what it needed.

    Args:
        spec: the study.
        space: its search space.
        data: its images.
        device: where to measure.
        backbone: what builds backbones.
        meter: what is asked; by default the GPU.

    Raises:
        OutOfMemory: the trial does not fit even alone.
        BackboneError: a backbone cannot be built.
    """
    compute = Compute.choose(device, spec.resources.precision)
    meter = meter or CudaMeter(compute.device)
    config = largest(spec, space)
    side = int(config["resolution"]) or int(data.images.shape[1])
    some = few_images(data, train=_STEPS * int(config["batch_size"]), validation=evaluation_batch_size(side))
    need, measured = 0, set[str]()
    with torch.random.fork_rng(), tempfile.TemporaryDirectory(prefix="raystudy-memory-") as folder:
        for number, name in enumerate(spec.backbones):
            meter.start()
            network = backbone(name, pretrained=False, seed=0, image_size=side)
            # Registered models of one architecture differ in their weights only.
            kind = network.info.architecture if is_registered(name) else name
            if kind in measured:
                continue
            measured.add(kind)
            plan = measuring_plan(spec, {**config, "backbone": name}, compute, epochs=_EPOCHS)
            run = TrialRun(plan, some, Path(folder) / str(number), backbone=network)
            try:
                for _ in islice(run.epochs(), _EPOCHS):
                    pass
                need = max(need, meter.peak() + meter.context())
            finally:
                run.close()
    return GpuNeed(need, meter.total(), meter.name())


def largest(spec: StudySpec, space: Space) -> dict[str, Scalar]:
    """Return the configuration of the space that needs most memory, but for its backbone.

    Factors are taken one by one, whether or not their conditions allow them together: that errs on the safe side.
    """
    values = {name: [value] for name, value in spec.full_config(space.at([0.5] * len(space.dimensions))).items()}
    values |= {dimension.name: _ends(dimension) for dimension in space.dimensions}
    chosen: dict[str, Scalar] = {name: found[0] for name, found in values.items()}
    chosen |= {name: max(values[name], key=float) for name in _LARGEST_COST_MORE}
    chosen["resolution"] = max(values["resolution"], key=lambda value: int(value) or spec.data.image_size)
    chosen["optimizer"] = "adamw" if "adamw" in values["optimizer"] else values["optimizer"][0]
    chosen["frozen_depth"] = _least_frozen(values["frozen_depth"])
    chosen["tuned_unit"] = min(values["tuned_unit"], key=int)  # -1: none, all units train
    objectives = values["training_objective"]
    chosen["training_objective"] = SELF_SUPERVISED if SELF_SUPERVISED in objectives else SUPERVISED  # two views an image
    return {**chosen, **HARMLESS}  # `ft` is what the strategies come to in the end


def _ends(dimension: Dimension) -> list[Scalar]:
    """Return a factor's choices, or its lowest and highest value."""
    distribution: Any = dimension.distribution
    choices = getattr(distribution, "choices", None)
    return list(choices) if choices is not None else [distribution.low, distribution.high]


def _least_frozen(depths: Iterable[Scalar]) -> Scalar:
    numbers = [int(depth) for depth in depths if depth != PROBE_DEPTH]
    return min(numbers) if numbers else PROBE_DEPTH
