"""Parameter groups, optimisers, learning-rate schedules and the pull towards the starting point.

Schedules are functions of the step, and an optimiser's state is addressed by parameter name: so both can be resumed, and
survive units joining between phases, without state of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raystudy.finetune.freezing import Phase
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import Network

_STEP_MILESTONES = (0.3, 0.6, 0.9)
_STEP_DROP = 0.1
"""Where the step schedule drops, as a share of the way, and to what share (BiT, 2020)."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters of one unit (or the head) that share a learning rate and a weight decay.

    Attributes:
        name: of the unit, or `head`.
        in_backbone: whether the group belongs to the backbone.
        parameters: by their names in the model.
        learning_rate: at schedule factor 1.
        weight_decay: 0 for biases, norms and other vectors.
        decays: whether these are weights, which weight decay and L2-SP act on, rather than biases and norms.
    """

    name: str
    in_backbone: bool
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float
    decays: bool


def parameter_groups(model: Network, phase: Phase, hyper: Hyperparameters) -> tuple[ParameterGroup, ...]:
    """Put every parameter that trains in `phase` into one group, first unit first, head last.

    The last unit learns at `learning_rate`, each unit before it at `layer_decay` times the rate of the next, the head at
    `head_lr_multiplier` times `learning_rate`.
    """
    groups: list[ParameterGroup] = []
    last = phase.n_units - 1
    for index in phase.trained_units:
        rate = hyper.learning_rate * hyper.layer_decay ** (last - index)
        name = model.backbone.info.unit_names[index]
        groups += _split(model.backbone.units[index], f"backbone.units.{index}", name, rate, hyper.weight_decay)
    rate = hyper.learning_rate * hyper.head_lr_multiplier
    return (*groups, *_split(model.head, "head", "head", rate, hyper.weight_decay))


def _split(module: nn.Module, prefix: str, name: str, rate: float, weight_decay: float) -> list[ParameterGroup]:
    """Return the weights and the vectors (biases, norms) of `module` as two groups, or one where the other is empty."""
    halves: dict[bool, dict[str, nn.Parameter]] = {True: {}, False: {}}
    for key, parameter in module.named_parameters():
        halves[parameter.ndim > 1][f"{prefix}.{key}"] = parameter
    return [
        ParameterGroup(name, prefix != "head", parameters, rate, weight_decay if decays else 0.0, decays)
        for decays, parameters in halves.items()
        if parameters
    ]


def build_optimizer(groups: Sequence[ParameterGroup], hyper: Hyperparameters) -> torch.optim.Optimizer:
    """Return the optimiser that `hyper` names over `groups`; `GroupedOptimizer` wraps it."""
    parameters = [
        {"params": list(group.parameters.values()), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
    ]
    # Fused: one kernel over all parameters of a group. AdamW over lite0 on one core takes 3 ms with it, 10 without.
    if hyper.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=hyper.learning_rate, fused=True)
    nesterov = hyper.momentum > 0
    return torch.optim.SGD(parameters, lr=hyper.learning_rate, momentum=hyper.momentum, nesterov=nesterov, fused=True)


def learning_rate_factor(step: int, total_steps: int, *, schedule: str, warmup: float) -> float:
    """Return the factor on every learning rate at `step` (from 0) of `total_steps`.

    Over the first `warmup` share of the steps it rises linearly to 1, which the last of them reaches. The schedule covers the
    rest: `constant`; `cosine` from 1 to 0; `step`, a tenth after 30, 60 and 90 % each.
    """
    warmup_steps = round(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return _STEP_DROP ** sum(progress >= milestone for milestone in _STEP_MILESTONES)
    return 1.0


class GroupedOptimizer:
    """A torch optimiser over parameter groups, with its state addressed by parameter name.

    Args:
        groups: what it changes.
        hyper: names the update rule.
    """

    def __init__(self, groups: Sequence[ParameterGroup], hyper: Hyperparameters) -> None:
        self.groups = tuple(groups)
        self.parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        self._optimizer = build_optimizer(groups, hyper)

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self, factor: float) -> None:
        """Take a step at `factor` times each group's learning rate."""
        for target, group in zip(self._optimizer.param_groups, self.groups, strict=True):
            target["lr"] = factor * group.learning_rate
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors as `{parameter name}/{key}`."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Give each parameter the tensors that `state` holds under its name; others begin without any."""
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            if name in self.parameters:
                parameter = self.parameters[name]
                self._optimizer.state[parameter][key] = _like(parameter, value)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `value` on the device and, if it has its shape, in the memory layout of `parameter`.

    The fused kernels walk all tensors of a parameter in memory order, so a layout of its own would pair wrong elements.
    """
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)


class StartingPoint:
    """L2-SP: pulls trained backbone weights towards where they began (Li et al. 2018, there the norm's alpha).

    Args:
        model: at its starting weights, which are copied.
        strength: the penalty is `strength / 2` times the squared distance; 0 copies nothing and does nothing.
    """

    def __init__(self, model: Network, strength: float) -> None:
        self._strength = strength
        self._weights = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if strength > 0 and name.startswith("backbone.") and parameter.ndim > 1
        }

    @torch.no_grad()
    def add_gradient(self, groups: Sequence[ParameterGroup]) -> None:
        """Add the penalty's gradient, `strength * (weight - start)`, to those of the backbone's weights in `groups`."""
        if self._strength == 0:
            return
        for group in groups:
            if group.in_backbone and group.decays:
                for name, weight in group.parameters.items():
                    if weight.grad is not None:
                        weight.grad.add_(weight - self._weights[name], alpha=self._strength)
