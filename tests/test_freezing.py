from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import N_UNITS, build_tiny_backbone, conv_unit, tiny_hyper, tiny_model, tiny_run
from torch import nn

from raystudy.errors import BackboneError
from raystudy.factors import Scalar
from raystudy.finetune.freezing import check_units, freeze, phase_at, phases, summarize, trainable_units
from raystudy.finetune.optim import parameter_groups

depths = st.integers(0, N_UNITS)


def state_after_training(workdir: Path, config: dict[str, Scalar]) -> dict[str, torch.Tensor]:
    run = tiny_run(workdir, config, epochs=2)
    list(run.epochs())
    return run.model.state_dict()


def changed_units(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the units (their index) and `head` in which any weight or buffer differs."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return {name.split(".")[2] if name.startswith("backbone") else "head" for name in changed}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("depth", [0, 1, 3, 4, "max"])
def test_frozen_units_are_bit_identical_afterwards_and_all_others_are_not(
    tmp_path: Path, depth: Scalar, optimizer: str
) -> None:
    config: dict[str, Scalar] = {"frozen_depth": depth, "optimizer": optimizer, "weight_decay": 0.1}
    after = state_after_training(tmp_path, config)
    first = N_UNITS if depth == "max" else int(depth)
    assert changed_units(tiny_model().state_dict(), after) == {*map(str, range(first, N_UNITS)), "head"}


def test_surgical_tuning_changes_only_that_unit_and_the_head(tmp_path: Path) -> None:
    after = state_after_training(tmp_path, {"tuned_unit": 1, "frozen_depth": 3})
    assert changed_units(tiny_model().state_dict(), after) == {"1", "head"}


def test_batch_norm_eval_keeps_all_statistics_but_trains_the_weights(tmp_path: Path) -> None:
    before = tiny_model().state_dict()
    after = state_after_training(tmp_path, {"batch_norm": "eval"})
    buffers = {name for name in before if "running" in name or "tracked" in name}
    assert buffers
    assert all(torch.equal(before[name], after[name]) for name in buffers)
    assert all(not torch.equal(before[name], after[name]) for name in before.keys() - buffers)


@given(depth=depths, batch_norm=st.sampled_from(["train", "eval"]), tuned=st.integers(-1, N_UNITS - 1))
def test_freeze_puts_exactly_the_frozen_units_into_eval_mode_without_gradients(depth: int, batch_norm: str, tuned: int) -> None:
    hyper = tiny_hyper(frozen_depth=depth, tuned_unit=tuned)
    model = tiny_model().train()
    (phase,) = phases(hyper, N_UNITS, 5)
    freeze(model, phase, batch_norm=batch_norm)
    for index, unit in enumerate(model.backbone.units):
        trained = index in phase.trained_units
        assert all(parameter.requires_grad == trained for parameter in unit.parameters())
        for layer in unit.modules():
            is_fixed = batch_norm == "eval" and isinstance(layer, nn.BatchNorm2d)
            assert layer.training == (trained and not is_fixed)
    assert model.head.training
    assert model.dropout.training
    assert model.head.weight.requires_grad


@given(depth=depths, tuned=st.integers(-1, N_UNITS - 1))
def test_every_parameter_is_either_frozen_or_in_exactly_one_group(depth: int, tuned: int) -> None:
    hyper = tiny_hyper(frozen_depth=depth, tuned_unit=tuned)
    model = tiny_model()
    (phase,) = phases(hyper, N_UNITS, 5)
    freeze(model, phase)
    grouped = [name for group in parameter_groups(model, phase, hyper) for name in group.parameters]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert sorted(grouped + frozen) == sorted(dict(model.named_parameters()))


@given(depth=depths, tuned=st.integers(-1, N_UNITS - 1))
def test_the_summary_counts_every_parameter_once(depth: int, tuned: int) -> None:
    model = tiny_model()
    (phase,) = phases(tiny_hyper(frozen_depth=depth, tuned_unit=tuned), N_UNITS, 5)
    summary = summarize(model, phase)
    assert summary.n_trained + summary.n_frozen == sum(parameter.numel() for parameter in model.parameters())
    freeze(model, phase)
    assert summary.n_trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert [unit.name for unit in summary.units] == ["stem", "block1", "block2", "pool", "head"]


def test_a_parameter_outside_the_units_is_refused_by_name() -> None:
    model = tiny_model()
    model.backbone.register_parameter("stray", nn.Parameter(torch.zeros(2)))
    with pytest.raises(BackboneError, match="stray: belongs to 0 units"):
        check_units(model)


def test_a_parameter_shared_by_two_units_is_refused_by_name() -> None:
    model = tiny_model()
    conv_unit(model, 2).norm.bias = conv_unit(model, 1).norm.bias
    with pytest.raises(BackboneError, match="belongs to 2 units"):
        check_units(model)


def test_the_tiny_backbone_and_its_units_pass_the_check() -> None:
    check_units(tiny_model())
    assert build_tiny_backbone().info.n_units == N_UNITS


def test_phases_of_ft_are_one() -> None:
    (phase,) = phases(tiny_hyper(frozen_depth=2), N_UNITS, 10)
    assert (phase.first_epoch, phase.trained_units, phase.prefix_depth) == (1, (2, 3), 2)


def test_lp_ft_trains_the_head_alone_for_its_share_of_the_budget() -> None:
    plan = phases(tiny_hyper(strategy="lp_ft", lp_share=0.3, frozen_depth=1), N_UNITS, 10)
    assert [(phase.first_epoch, phase.trained_units) for phase in plan] == [(1, ()), (4, (1, 2, 3))]
    assert plan[0].prefix_depth == N_UNITS


def test_gradual_unfreezes_from_the_last_unit_backwards() -> None:
    plan = phases(tiny_hyper(strategy="gradual", lp_share=0.8), N_UNITS, 10)
    expected = [(1, ()), (3, (3,)), (5, (2, 3)), (7, (1, 2, 3)), (9, (0, 1, 2, 3))]
    assert [(phase.first_epoch, phase.trained_units) for phase in plan] == expected


@pytest.mark.parametrize("share", [0.29, 0.57, 0.58])
def test_a_share_without_exact_binary_form_loses_no_epoch(share: float) -> None:
    plan = phases(tiny_hyper(strategy="lp_ft", lp_share=share), N_UNITS, 100)
    assert plan[1].first_epoch == round(100 * share) + 1


@given(
    depth=depths,
    strategy=st.sampled_from(["ft", "lp_ft", "gradual"]),
    share=st.floats(0, 1),
    epochs=st.integers(1, 30),
)
def test_phases_only_ever_add_units_and_end_with_all_that_train(depth: int, strategy: str, share: float, epochs: int) -> None:
    hyper = tiny_hyper(frozen_depth=depth, strategy=strategy, lp_share=share)
    plan = phases(hyper, N_UNITS, epochs)
    sets = [set(phase_at(plan, epoch).trained_units) for epoch in range(1, epochs + 1)]
    assert all(before <= after for before, after in itertools.pairwise(sets))
    assert plan[0].first_epoch == 1
    if share < 1 or strategy == "ft":
        assert sets[-1] == set(trainable_units(hyper, N_UNITS))
