"""The training loop of one trial: epochs of optimiser steps, and all state that they change."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raystudy.errors import Diverged
from raystudy.finetune.batches import Activations, Batch, TrainingBatches
from raystudy.finetune.compute import Compute
from raystudy.finetune.cpu_convolutions import fast_convolutions
from raystudy.finetune.freezing import Phase, freeze, phase_at, phases, set_batch_norm_momentum
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import FineTuneModel
from raystudy.finetune.objectives import objective_of
from raystudy.finetune.optim import GroupedOptimizer, StartingPoint, learning_rate_factor, parameter_groups
from raystudy.finetune.seeds import Purpose, TrialSeeds

_GPU_CHECK_STEPS = 20
"""How many steps' losses a GPU may owe: reading one waits for the device, which then idles until new work arrives."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long a trial is.

    Attributes:
        epochs: the budget T, which the schedule spans even if the trial is stopped before.
        steps_per_epoch: optimiser steps per epoch.
    """

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Number of steps of the whole budget."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True, slots=True)
class TrainedEpoch:
    """What training for an epoch gave.

    Attributes:
        loss: mean of the training criterion over all images, as each was seen, without L2-SP's penalty.
        images_per_second: training throughput.
    """

    loss: float
    images_per_second: float


class Fitter:
    """Trains a model epoch by epoch; `state` and `load_state` carry it over an interruption.

    Args:
        model: at its starting weights; what trains it is in the attribute `optimizer`, rebuilt in every phase.
        batches: the training batches, addressed by step.
        hyper: the configuration.
        length: the budget.
        seeds: dropout in an epoch derives from it and the epoch, and so do layers that train and that `model` has not.
        compute: the device and the precision.
    """

    def __init__(
        self,
        model: FineTuneModel,
        batches: TrainingBatches,
        *,
        hyper: Hyperparameters,
        length: Length,
        seeds: TrialSeeds,
        compute: Compute,
    ) -> None:
        self._objective = objective_of(model, hyper, seeds)
        self._network = self._objective.network
        self._batches = batches
        self._hyper = hyper
        self._length = length
        self._seeds = seeds
        self._compute = compute
        self._phases = phases(hyper, model.backbone.info.n_units, length.epochs)
        self._start = StartingPoint(self._network, hyper.l2_sp)
        self._phase = self._phases[0]
        self.optimizer = self._build_optimizer()
        set_batch_norm_momentum(model, hyper.batch_norm_momentum)

    def prefix_depth(self, epoch: int) -> int:
        """Return how many leading units do not train in `epoch`."""
        return phase_at(self._phases, epoch).prefix_depth

    def train(self, epoch: int, stored: Activations | None = None) -> TrainedEpoch:
        """Train for `epoch` (from 1), which must follow the one before.

        Args:
            epoch: its number.
            stored: the activations of the first `prefix_depth(epoch)` units on the training images; None: they are computed.

        Raises:
            Diverged: as soon as a step's loss is not finite.
        """
        phase = self._enter_phase(epoch)
        freeze(self._network, phase, batch_norm=self._hyper.batch_norm)
        # Dropout draws from torch's global generators; seeded here, an epoch does not depend on how it was reached.
        torch.manual_seed(self._seeds.derive(Purpose.DROPOUT, epoch))
        losses = _Losses(epoch, check_every=_GPU_CHECK_STEPS if self._compute.is_gpu else 1)
        convolutions = fast_convolutions(self._network.backbone.units[phase.prefix_depth :], self._compute)
        first = (epoch - 1) * self._length.steps_per_epoch
        started = time.perf_counter()
        for step in range(first, first + self._length.steps_per_epoch):
            losses.add(step, self._step(self._batches.at(step, stored), step, phase, convolutions))
        mean = losses.mean()
        self._compute.synchronize()
        seconds = time.perf_counter() - started
        return TrainedEpoch(mean, self._length.steps_per_epoch * self._hyper.batch_size / seconds)

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors and what trains beside the model, whose weights are its own.

        All else follows from the epoch.
        """
        return {**self.optimizer.state(), **self._objective.state()}

    def load_state(self, state: Mapping[str, Tensor], epoch: int) -> None:
        """Continue from the `state` after `epoch`; the model's weights are the caller's to load."""
        self._enter_phase(epoch)
        self.optimizer.load_state(state)
        self._objective.load_state(state)

    def _enter_phase(self, epoch: int) -> Phase:
        """Make sure that the optimiser holds what trains in `epoch`; parameters that go on training keep their state."""
        phase = phase_at(self._phases, epoch)
        if phase != self._phase:
            state = self.optimizer.state()
            self._phase = phase
            self.optimizer = self._build_optimizer()
            self.optimizer.load_state(state)
        return phase

    def _build_optimizer(self) -> GroupedOptimizer:
        return GroupedOptimizer(parameter_groups(self._network, self._phase, self._hyper), self._hyper)

    def _step(self, batch: Batch, step: int, phase: Phase, convolutions: AbstractContextManager[Any]) -> Tensor:
        """Take one optimiser step, what trains called under `convolutions`; return the loss before it, detached."""
        hyper, optimizer = self._hyper, self.optimizer
        with self._compute.autocast():
            activation = batch.inputs if batch.depth else self._network.prefix(batch.inputs, phase.prefix_depth)
            with convolutions:
                outputs = self._network.rest(activation, phase.prefix_depth)
        loss = self._objective.loss(outputs.float(), batch)
        optimizer.zero_grad()
        loss.backward()
        self._start.add_gradient(optimizer.groups)
        if hyper.clip_grad_norm > 0:
            nn.utils.clip_grad_norm_(optimizer.parameters.values(), hyper.clip_grad_norm)
        optimizer.step(learning_rate_factor(step, self._length.steps, schedule=hyper.schedule, warmup=hyper.warmup))
        return loss.detach()


class _Losses:
    """The losses of an epoch's steps, read from the device `check_every` at a time and checked when read."""

    def __init__(self, epoch: int, *, check_every: int) -> None:
        self._epoch = epoch
        self._check_every = check_every
        self._pending: list[tuple[int, Tensor]] = []
        self._values: list[float] = []

    def add(self, step: int, loss: Tensor) -> None:
        self._pending.append((step, loss))
        if len(self._pending) >= self._check_every:
            self._read()

    def mean(self) -> float:
        self._read()
        return math.fsum(self._values) / len(self._values)

    def _read(self) -> None:
        if not self._pending:
            return
        values = torch.stack([loss for _, loss in self._pending]).tolist()
        for (step, _), value in zip(self._pending, values, strict=True):
            if not math.isfinite(value):
                raise Diverged(f"training loss is {value} in epoch {self._epoch}, step {step}")
        self._values += values
        self._pending.clear()
