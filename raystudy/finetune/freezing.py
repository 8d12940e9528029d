"""Which units train in which epoch, and what frozen means.

A frozen unit is in eval mode (its batch-norm statistics do not move, nothing in it is dropped), needs no gradient and is
not in the optimiser, so its weights and buffers come out bit-identical.

Freezing is total: every parameter of the backbone belongs to exactly one unit, the rest is the head, and `summarize`
shows what trains.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from raystudy.errors import BackboneError, Problem
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import Network


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of epochs in which the same units train. The head trains in every phase.

    Attributes:
        first_epoch: its first epoch, counted from 1.
        trained_units: the units that train, ascending.
        n_units: how many units the backbone has.
    """

    first_epoch: int
    trained_units: tuple[int, ...]
    n_units: int

    @property
    def prefix_depth(self) -> int:
        """How many leading units are frozen, so that they can run without recording gradients."""
        return self.trained_units[0] if self.trained_units else self.n_units


@dataclass(frozen=True, slots=True)
class UnitSummary:
    """One row of a `FreezeSummary`: a unit or the head, with its parameter count."""

    name: str
    n_parameters: int
    trained: bool


@dataclass(frozen=True, slots=True)
class FreezeSummary:
    """What trains and what does not, for display: the units in order, then the head."""

    units: tuple[UnitSummary, ...]

    @property
    def n_trained(self) -> int:
        """Number of parameters that train."""
        return sum(unit.n_parameters for unit in self.units if unit.trained)

    @property
    def n_frozen(self) -> int:
        """Number of parameters that do not."""
        return sum(unit.n_parameters for unit in self.units if not unit.trained)


def trainable_units(hyper: Hyperparameters, n_units: int) -> tuple[int, ...]:
    """Return the units that train in the end, ascending: one with `tuned_unit`, otherwise all from `frozen_depth` on."""
    if hyper.tuned_unit >= 0:
        return (hyper.tuned_unit,)
    depth = hyper.frozen_depth if isinstance(hyper.frozen_depth, int) else n_units
    return tuple(range(depth, n_units))


def phases(hyper: Hyperparameters, n_units: int, epochs: int) -> tuple[Phase, ...]:
    """Return the phases of a trial of `epochs` epochs, in order; the first begins with epoch 1.

    `ft` has one phase. `lp_ft` trains the head alone for the first `floor(lp_share * epochs)` epochs. `gradual` spreads
    the unfreezing over that many epochs: after `e` of `E` of them, the last `floor(units * e / E)` trainable units train.
    """
    units = trainable_units(hyper, n_units)
    if hyper.strategy == "ft":
        return (Phase(1, units, n_units),)
    # The small addition keeps shares that have no exact binary form, such as 0.29 of 100, from losing an epoch.
    # It may not make a share below 1 the whole.
    early = min(math.floor(hyper.lp_share * epochs + 1e-9), epochs - (hyper.lp_share < 1))
    counts = [0 if hyper.strategy == "lp_ft" else len(units) * done // early for done in range(early)]
    counts += [len(units)] * (epochs - early)
    return tuple(
        Phase(epoch, units[len(units) - count :], n_units)
        for epoch, count in enumerate(counts, start=1)
        if epoch == 1 or count != counts[epoch - 2]
    )


def phase_at(plan: Sequence[Phase], epoch: int) -> Phase:
    """Return the phase that `epoch` (from 1) belongs to."""
    return next(phase for phase in reversed(plan) if phase.first_epoch <= epoch)


def check_units(model: Network) -> None:
    """Make sure that every parameter of the backbone belongs to exactly one unit.

    Raises:
        BackboneError: naming each parameter outside the units, or shared by several of them.
    """
    owners = Counter(id(parameter) for unit in model.backbone.units for parameter in unit.parameters())
    problems = [
        Problem(name, f"belongs to {owners[id(parameter)]} units", "each parameter must belong to exactly one unit")
        for name, parameter in model.backbone.named_parameters()
        if owners[id(parameter)] != 1
    ]
    if problems:
        raise BackboneError(problems, title=f"backbone {model.backbone.info.name}")


def freeze(model: Network, phase: Phase, *, batch_norm: str = "train") -> None:
    """Make exactly the units of `phase` and the head trainable, and put every module into the mode it trains in.

    Args:
        model: the model; called again after anything that changes modes, such as an evaluation.
        phase: says which units train.
        batch_norm: `train`: trained units normalise by the batch and update their statistics; `eval`: by the statistics.
    """
    model.eval()
    for index, unit in enumerate(model.backbone.units):
        trained = index in phase.trained_units
        unit.requires_grad_(trained)
        unit.train(trained)
        if batch_norm == "eval":
            for layer in _batch_norms(unit):
                layer.eval()
    model.dropout.train()
    model.head.train().requires_grad_(True)


def set_batch_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Set the weight of a new batch in the running statistics of every batch-norm layer."""
    for layer in _batch_norms(model):
        layer.momentum = momentum


def summarize(model: Network, phase: Phase) -> FreezeSummary:
    """Say which units train in `phase`, with names and parameter counts."""
    rows = [
        UnitSummary(name, _count(unit), index in phase.trained_units)
        for index, (name, unit) in enumerate(zip(model.backbone.info.unit_names, model.backbone.units, strict=True))
    ]
    return FreezeSummary((*rows, UnitSummary("head", _count(model.head), trained=True)))


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
