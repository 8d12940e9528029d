from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import N_UNITS, build_tiny_backbone, conv_unit, tiny_data, tiny_hyper, tiny_model, tiny_run
from torch import Tensor, nn
from torch.nn import functional

from raystudy.errors import Diverged
from raystudy.factors import FACTORS, Scalar
from raystudy.finetune.backbone import Backbone
from raystudy.finetune.batches import Batch, BatchOrder, ImageStore, TrainingBatches
from raystudy.finetune.compute import Compute
from raystudy.finetune.fit import Fitter, Length
from raystudy.finetune.model import FineTuneModel, build_classifier
from raystudy.finetune.objectives import criterion
from raystudy.finetune.seeds import TrialSeeds

CPU = Compute.choose("cpu")
SEEDS = TrialSeeds(0, 0)


def build_fitter(model: FineTuneModel, *, epochs: int = 2, steps: int = 3, **config: Scalar) -> Fitter:
    data, hyper = tiny_data(), tiny_hyper(batch_size=8, **config)
    batches = TrainingBatches(
        ImageStore(data.images, data.labels, CPU),
        BatchOrder(data.splits.train, 8, SEEDS),
        preprocess=build_classifier(model).preprocess,
        hyper=hyper,
        seeds=SEEDS,
    )
    return Fitter(model, batches, hyper=hyper, length=Length(epochs, steps), seeds=SEEDS, compute=CPU)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def final_state(workdir: Path, config: dict[str, Scalar]) -> dict[str, Tensor]:
    run = tiny_run(workdir, config, epochs=2)
    list(run.epochs())
    return copies(run.model)


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# What each factor is compared against: (another value, the other factors that both sides have).
CHANGES: dict[str, tuple[Scalar, dict[str, Scalar]]] = {
    "learning_rate": (0.02, {}),
    "optimizer": ("sgd", {}),
    "momentum": (0.5, {"optimizer": "sgd"}),
    "weight_decay": (0.5, {}),
    "batch_size": (5, {}),
    "schedule": ("step", {}),
    "warmup": (0.5, {}),
    "frozen_depth": (2, {}),
    "tuned_unit": (1, {}),
    "reinit_units": (1, {}),
    "strategy": ("lp_ft", {}),
    "lp_share": (1.0, {"strategy": "lp_ft"}),
    "head_lr_multiplier": (3.0, {}),
    "layer_decay": (0.5, {}),
    "batch_norm": ("eval", {}),
    "batch_norm_momentum": (0.3, {}),
    "l2_sp": (1.0, {}),
    "label_smoothing": (0.1, {}),
    "dropout": (0.5, {}),
    "mixup": (0.5, {}),
    "cutmix": (0.5, {}),
    "clip_grad_norm": (1e-3, {"optimizer": "sgd"}),
    "augmentation": ("standard", {}),
    "resolution": (6, {}),
    "data_fraction": (0.4, {}),
    "images_per_class": (4, {}),
    "class_imbalance": (5.0, {}),
    "label_noise": (0.3, {}),
    "categories": (2, {}),
    "training_objective": ("self_supervised", {}),
    "pretrained": (False, {}),
    "seed": (1, {}),
}


def test_the_table_of_changes_covers_every_factor() -> None:
    # Which network is fine-tuned, by name or by what its source was, is not the fitter's business.
    assert CHANGES.keys() == FACTORS.keys() - {
        "backbone",
        "source",
        "source_categories",
        "source_images_per_category",
        "source_objective",
        "source_seed",
    }


@pytest.mark.slow
@pytest.mark.parametrize("factor", CHANGES)
def test_each_factor_changes_training_and_its_default_changes_nothing(factor: str, tmp_path: Path) -> None:
    value, others = CHANGES[factor]
    base = final_state(tmp_path / "base", others)
    assert not equal(base, final_state(tmp_path / "changed", {**others, factor: value}))
    if factor not in ("learning_rate", "batch_size"):  # which the tiny plan sets to values of its own
        assert equal(base, final_state(tmp_path / "default", {factor: FACTORS[factor].default, **others}))


@given(depth=st.integers(0, N_UNITS))
def test_prefix_and_rest_do_together_what_forward_does(depth: int) -> None:
    model = tiny_model().eval()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.rest(model.prefix(images, depth), depth), model(images))


def test_the_prefix_records_no_gradients() -> None:
    model = tiny_model()
    assert not model.prefix(torch.rand(2, 3, 8, 8), 2).requires_grad
    assert model.rest(model.prefix(torch.rand(2, 3, 8, 8), 2), 2).requires_grad


def test_label_smoothing_gives_the_loss_computed_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    expected = -(0.9 + 0.1 / 3) * log_p[0] - 0.1 / 3 * (log_p[1] + log_p[2])
    batch = Batch(torch.empty(0), labels, labels, 1.0)
    assert criterion(logits, batch, label_smoothing=0.1).item() == pytest.approx(expected.item())


def test_mixup_weighs_the_losses_of_both_labels() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels, partners = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 1, 0, 2, 2])
    mixed = 0.3 * functional.one_hot(labels, 3) + 0.7 * functional.one_hot(partners, 3)
    expected = -(mixed * logits.log_softmax(1)).sum(1).mean()
    loss = criterion(logits, Batch(torch.empty(0), labels, partners, 0.3), label_smoothing=0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_clipping_bounds_a_steps_length_by_rate_times_norm() -> None:
    model = tiny_model()
    before = dict(copies(model))
    config: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}
    build_fitter(model, epochs=1, steps=1, clip_grad_norm=0.01, **config).train(1)
    moved = [(parameter.detach() - before[name]).square().sum() for name, parameter in model.named_parameters()]
    assert math.sqrt(sum(moved)) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_batch_norm_momentum_is_the_weight_of_the_first_batch() -> None:
    model = tiny_model()
    mean = conv_unit(model, 0).norm.running_mean
    assert mean is not None
    with torch.no_grad():
        mean.fill_(100.0)
    build_fitter(model, epochs=1, steps=1, batch_norm_momentum=0.25).train(1)
    assert mean.mean().item() == pytest.approx(75, abs=2)


def test_training_of_trained_units_is_in_train_mode_again_after_an_evaluation() -> None:
    model = tiny_model()
    fitter = build_fitter(model)
    fitter.train(1)
    model.eval()
    fitter.train(2)
    assert conv_unit(model, 0).norm.num_batches_tracked == 6


@pytest.mark.parametrize("strategy", ["lp_ft", "gradual"])
def test_units_join_the_optimizer_phase_by_phase_and_others_keep_their_state(strategy: str) -> None:
    fitter = build_fitter(tiny_model(), epochs=4, strategy=strategy, lp_share=0.5, frozen_depth=2)
    counts = []
    for epoch in range(1, 5):
        fitter.train(epoch)
        state = fitter.state()
        counts.append(len({name.split(".")[2] for name in fitter.optimizer.parameters if name.startswith("backbone")}))
        assert state["head.weight/step"] == 3 * epoch
        assert {name.rpartition("/")[0] for name in state} == fitter.optimizer.parameters.keys()
    assert counts == {"lp_ft": [0, 0, 2, 2], "gradual": [0, 1, 2, 2]}[strategy]


class _FaultyHead(nn.Linear):
    """A linear layer whose output is NaN from its nth call on."""

    def __init__(self, fault_at: int) -> None:
        super().__init__(8, 3)
        self.calls, self.fault_at = 0, fault_at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (math.nan if self.calls >= self.fault_at else 1)


def test_a_non_finite_loss_ends_training_at_its_step() -> None:
    model = tiny_model()
    model.head = _FaultyHead(fault_at=5)
    fitter = build_fitter(model)
    fitter.train(1)
    with pytest.raises(Diverged, match="training loss is nan in epoch 2, step 4"):
        fitter.train(2)
    assert model.head.calls == 5


def test_the_reported_loss_is_the_mean_over_the_epochs_steps() -> None:
    config: dict[str, Any] = {"frozen_depth": "max", "optimizer": "sgd", "learning_rate": 1e-12}
    model = tiny_model()
    fitter = build_fitter(model, **config)
    reported = fitter.train(1).loss
    with torch.no_grad():
        losses = [
            functional.cross_entropy(model(batch.inputs), batch.labels)
            for batch in (fitter._batches.at(step) for step in range(3))
        ]
    assert reported == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def _nan_backbone(name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
    backbone = build_tiny_backbone(name, pretrained=pretrained, seed=seed, image_size=image_size)
    for weight in backbone.units[1].parameters():
        nn.init.constant_(weight, math.nan)
    return backbone


def test_weights_that_are_not_finite_make_the_trial_diverge_before_any_row(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="epoch 1, step 0"):
        next(tiny_run(tmp_path, backbone=_nan_backbone).epochs())
    assert not list(tmp_path.iterdir())


def test_reinitialised_units_are_random_and_the_others_pretrained() -> None:
    pretrained, model = tiny_model(), tiny_model(tiny_hyper(reinit_units=2))
    for index in range(N_UNITS):
        ours, theirs = (dict(m.backbone.units[index].named_parameters()) for m in (model, pretrained))
        weights = [name for name in ours if "norm" not in name]
        assert all(torch.equal(ours[name], theirs[name]) == (index < 2) for name in weights)


def test_without_pretraining_every_unit_is_random_and_another_trial_is_random_otherwise() -> None:
    hyper = tiny_hyper(pretrained=False)
    weights = [conv_unit(m, 0).conv.weight for m in (tiny_model(), tiny_model(hyper), tiny_model(hyper, number=1))]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_given_backbone_is_copied_and_keeps_its_weights(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    before = copies(backbone)
    given_rows = list(tiny_run(tmp_path / "given", backbone=backbone).epochs())
    assert equal(before, copies(backbone))
    built_rows = list(tiny_run(tmp_path / "built").epochs())
    assert [row["val_loss"] for row in given_rows] == [row["val_loss"] for row in built_rows]
