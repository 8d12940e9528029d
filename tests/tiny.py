"""A random backbone of four units and images that it can learn in a second, for tests of everything around training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raystudy.data import PreparedData, Splits
from raystudy.factors import Scalar
from raystudy.finetune.backbone import Backbone, BackboneInfo
from raystudy.finetune.checkpoint import Row
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import BackboneFactory, FineTuneModel, build_model
from raystudy.finetune.seeds import TrialSeeds
from raystudy.finetune.trial import TrialPlan, TrialRun

TIME_METRICS = ("images_per_second", "epoch_seconds", "prefix_seconds", "stored_units")
N_UNITS = 4
_WIDTHS = (3, 6, 8, 8)
_PRETRAINED_SEED = 2024


class ConvUnit(nn.Module):
    """Convolution, batch norm, dropout: every kind of state and randomness that a unit can have."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(width_out)
        self.drop = nn.Dropout2d(0.05)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(torch.relu(self.norm(self.conv(x))))
        return y


class PoolUnit(nn.Module):
    """A linear layer over pooled features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.mean((2, 3))))


def build_tiny_backbone(
    name: str = "tiny",  # noqa: ARG001
    *,
    pretrained: bool = True,
    seed: int = 0,
    image_size: int | None = None,  # noqa: ARG001
) -> Backbone:
    """Return a new backbone; a pretrained one always has the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_PRETRAINED_SEED if pretrained else seed)
        convs = [ConvUnit(a, b) for a, b in itertools.pairwise(_WIDTHS)]
        units = {"stem": convs[0], "block1": convs[1], "block2": convs[2], "pool": PoolUnit(_WIDTHS[-1])}
    info = BackboneInfo(
        name="tiny",
        architecture="tiny",
        n_units=N_UNITS,
        unit_names=tuple(units),
        unit_parameters=tuple(sum(p.numel() for p in unit.parameters()) for unit in units.values()),
        n_features=_WIDTHS[-1],
        input_size=8,
        min_size=1,
        image_size=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        weights="tiny" if pretrained else "none",
    )
    return Backbone(units, info)


def tiny_data(*, n_train: int = 30, n_validation: int = 14, side: int = 8, n_classes: int = 3) -> PreparedData:
    """Return images of noisy colours, one per class (at most five)."""
    random = np.random.default_rng(7)
    n = n_train + n_validation
    labels = np.arange(n) % n_classes
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60], [60, 200, 200]])[:n_classes]
    noisy = colours[labels][:, None, None, :] + random.normal(0, 60, (n, side, side, 3))
    return PreparedData(
        images=noisy.clip(0, 255).astype(np.uint8),
        labels=labels.astype(np.int64),
        names=[str(index) for index in range(n)],
        class_names=tuple(f"class {index}" for index in range(n_classes)),
        splits=Splits(train=np.arange(n_train), validation=np.arange(n_train, n), test=None),
        bad=(),
        warnings=(),
        fingerprint="tiny",
    )


def tiny_plan(
    config: Mapping[str, Scalar] | None = None, *, epochs: int = 3, number: int = 0, study_seed: int = 0
) -> TrialPlan:
    """Return a plan for the CPU with small batches."""
    values = {"batch_size": 8, "learning_rate": 0.01, **(config or {})}
    return TrialPlan("t0", number, values, epochs, study_seed, device="cpu", threads=1)


def tiny_run(
    workdir: Path,
    config: Mapping[str, Scalar] | None = None,
    *,
    epochs: int = 3,
    number: int = 0,
    data: PreparedData | None = None,
    backbone: Backbone | BackboneFactory = build_tiny_backbone,
) -> TrialRun:
    """Return a trial on the tiny data, not started."""
    return TrialRun(tiny_plan(config, epochs=epochs, number=number), data or tiny_data(), workdir, backbone=backbone)


def tiny_hyper(**config: Scalar) -> Hyperparameters:
    """Return the defaults with `config` over them."""
    return Hyperparameters.from_config(config)


def tiny_model(hyper: Hyperparameters | None = None, *, n_classes: int = 3, number: int = 0) -> FineTuneModel:
    """Return the model at its starting weights."""
    seeds = TrialSeeds(0, number)
    return build_model(hyper or tiny_hyper(), n_classes, image_size=8, seeds=seeds, backbone=build_tiny_backbone)


def conv_unit(model: FineTuneModel, index: int) -> ConvUnit:
    """Return one of the first three units, as what it is."""
    unit = model.backbone.units[index]
    assert isinstance(unit, ConvUnit)
    return unit


def without_time(row: Row) -> Row:
    """Return `row` without the metrics that measure time."""
    return {name: value for name, value in row.items() if name not in TIME_METRICS}
