from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import N_UNITS, conv_unit, tiny_hyper, tiny_model

from raystudy.factors import Scalar
from raystudy.finetune.freezing import phases
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import FineTuneModel
from raystudy.finetune.optim import GroupedOptimizer, StartingPoint, learning_rate_factor, parameter_groups


def build(model: FineTuneModel, hyper: Hyperparameters) -> GroupedOptimizer:
    (phase,) = phases(hyper, N_UNITS, 1)
    return GroupedOptimizer(parameter_groups(model, phase, hyper), hyper)


def set_gradients(model: FineTuneModel, value: float = 1.0) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


def move(config: dict[str, Scalar], *, factor: float = 1.0, gradient: float = 1.0) -> Callable[[str], torch.Tensor]:
    """Take one step from the starting weights; return a function from parameter name to change."""
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_gradients(model, gradient)
    build(model, tiny_hyper(**config)).step(factor)
    after = dict(model.named_parameters())
    return lambda name: after[name].detach() - before[name]


def test_constant_schedule_is_one_everywhere() -> None:
    assert {learning_rate_factor(step, 50, schedule="constant", warmup=0) for step in range(50)} == {1.0}


def test_cosine_schedule_has_the_values_computed_by_hand() -> None:
    factors = [learning_rate_factor(step, 4, schedule="cosine", warmup=0) for step in range(4)]
    assert factors == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_step_schedule_drops_tenfold_at_30_60_and_90_percent() -> None:
    factors = [learning_rate_factor(step, 10, schedule="step", warmup=0) for step in range(10)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_warmup_rises_linearly_to_one_and_the_schedule_covers_the_rest() -> None:
    factors = [learning_rate_factor(step, 8, schedule="cosine", warmup=0.5) for step in range(8)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert factors[4:] == pytest.approx([learning_rate_factor(s, 4, schedule="cosine", warmup=0) for s in range(4)])


@given(total=st.integers(1, 300), schedule=st.sampled_from(["constant", "cosine", "step"]), warmup=st.floats(0, 0.5))
def test_factors_are_positive_at_most_one_and_never_rise_after_the_warmup(total: int, schedule: str, warmup: float) -> None:
    factors = [learning_rate_factor(step, total, schedule=schedule, warmup=warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[round(warmup * total) :]
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))


def test_layer_decay_and_head_multiplier_give_the_rates_computed_by_hand() -> None:
    hyper = tiny_hyper(learning_rate=0.1, layer_decay=0.5, head_lr_multiplier=10.0)
    groups = build(tiny_model(), hyper).groups
    rates = {group.name: group.learning_rate for group in groups}
    assert rates == pytest.approx({"stem": 0.0125, "block1": 0.025, "block2": 0.05, "pool": 0.1, "head": 1.0})


def test_weight_decay_acts_on_weights_and_not_on_biases_and_norms() -> None:
    for group in build(tiny_model(), tiny_hyper(weight_decay=0.01)).groups:
        for name, parameter in group.parameters.items():
            assert group.weight_decay == (0.01 if parameter.ndim > 1 else 0), name
            assert (parameter.ndim > 1) == (name.endswith("weight") and "norm" not in name)


def test_frozen_parameters_are_not_in_the_optimizer() -> None:
    names = build(tiny_model(), tiny_hyper(frozen_depth=3)).parameters.keys()
    assert names == {
        "backbone.units.3.linear.weight",
        "backbone.units.3.linear.bias",
        "head.weight",
        "head.bias",
    }


def test_sgd_takes_nesterovs_first_step() -> None:
    # The first step of Nesterov with momentum m moves by lr * (1 + m) * gradient; weight decay is off on biases.
    change = move({"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.5}, gradient=2.0)
    assert change("head.bias") == pytest.approx(-0.1 * 1.5 * 2.0)


def test_sgd_without_momentum_moves_by_the_rate_times_the_gradient() -> None:
    change = move({"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0}, gradient=2.0)
    assert change("head.bias") == pytest.approx(-0.2)


def test_adamw_moves_by_the_rate_at_first_whatever_the_gradient() -> None:
    change = move({"learning_rate": 0.1}, gradient=1e-3)
    assert change("backbone.units.0.conv.bias") == pytest.approx(-0.1, rel=1e-4)


def test_the_schedules_factor_and_each_groups_rate_multiply() -> None:
    change = move({"learning_rate": 0.1, "layer_decay": 0.5, "head_lr_multiplier": 3.0}, factor=0.5)
    assert change("head.bias") == pytest.approx(-0.15, rel=1e-4)
    assert change("backbone.units.3.linear.bias") == pytest.approx(-0.05, rel=1e-4)
    assert change("backbone.units.2.conv.bias") == pytest.approx(-0.025, rel=1e-4)


def test_adamw_decays_weights_by_rate_times_decay() -> None:
    model = tiny_model()
    before = model.head.weight.detach().clone()
    set_gradients(model, 0.0)
    build(model, tiny_hyper(learning_rate=0.1, weight_decay=0.5)).step(1.0)
    assert torch.allclose(model.head.weight, before * (1 - 0.1 * 0.5))


def test_l2_sp_adds_strength_times_the_distance_to_the_gradient_of_trained_backbone_weights_only() -> None:
    model = tiny_model()
    hyper = tiny_hyper(frozen_depth=1)
    start = StartingPoint(model, 0.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2.0)
    set_gradients(model, 1.0)
    start.add_gradient(build(model, hyper).groups)
    for name, parameter in model.named_parameters():
        pulled = name.startswith("backbone.") and parameter.ndim > 1 and ".units.0." not in name
        expected = 1 + 0.25 * 2 if pulled else 1.0
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, torch.full_like(parameter, expected)), name


def test_l2_sp_is_the_gradient_of_its_penalty() -> None:
    model = tiny_model()
    start, weight = StartingPoint(model, 0.3), conv_unit(model, 1).conv.weight
    origin = weight.detach().clone()
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    (expected,) = torch.autograd.grad(0.3 / 2 * (weight - origin).square().sum(), [weight])
    set_gradients(model, 0.0)
    start.add_gradient(build(model, tiny_hyper()).groups)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_round_trips_by_name_even_through_another_memory_layout(optimizer: str) -> None:
    hyper = tiny_hyper(optimizer=optimizer)
    models = [tiny_model(), tiny_model()]
    optimizers = [build(model, hyper) for model in models]
    for value in (1.0, -0.5):
        set_gradients(models[0], value)
        optimizers[0].step(1.0)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state({name: tensor.contiguous().clone() for name, tensor in optimizers[0].state().items()})
    for model, stepper in zip(models, optimizers, strict=True):
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        stepper.step(1.0)
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name


def test_state_of_parameters_that_do_not_train_is_passed_over() -> None:
    full, probe = build(tiny_model(), tiny_hyper()), build(tiny_model(), tiny_hyper(frozen_depth="max"))
    full.load_state({"head.weight/exp_avg": torch.ones(3, 8), "nowhere/exp_avg": torch.ones(2)})
    probe.load_state(full.state() | {"backbone.units.0.conv.bias/exp_avg": torch.ones(6)})
    assert probe.state().keys() == {"head.weight/exp_avg"}
