from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import N_UNITS, build_tiny_backbone, conv_unit, tiny_data, tiny_plan, tiny_run, without_time
from torch import Tensor, nn

from raystudy.data import category_order
from raystudy.errors import CheckpointError, DataError, Diverged, OutOfMemory, SpecError
from raystudy.factors import Scalar
from raystudy.finetune import checkpoint as checkpoints
from raystudy.finetune.backbone import Backbone
from raystudy.finetune.batches import ImageStore, evaluation_batches
from raystudy.finetune.checkpoint import Row
from raystudy.finetune.compute import Compute, out_of_memory_as_error
from raystudy.finetune.metrics import evaluate
from raystudy.finetune.trial import TrialRun, best_epoch, load_classifier

EPOCHS = 4

CONFIGS: dict[str, dict[str, Scalar]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "schedule": "step", "warmup": 0.25},
    "lp_ft": {"strategy": "lp_ft", "dropout": 0.3, "l2_sp": 0.1},
    "gradual": {"strategy": "gradual", "lp_share": 0.9, "optimizer": "sgd", "mixup": 0.4, "cutmix": 1.0},
    "frozen": {"frozen_depth": 2, "augmentation": "standard", "mixup": 0.4},
    "surgical": {"tuned_unit": 1, "batch_norm": "eval", "clip_grad_norm": 0.5},
    "scratch": {"pretrained": False, "data_fraction": 0.5, "augmentation": "flip"},
    "few": {"images_per_class": 7, "class_imbalance": 4.0, "label_noise": 0.2, "categories": 2},
    "self": {"training_objective": "self_supervised", "dropout": 0.2, "strategy": "gradual", "lp_share": 0.6},
    "reinit": {"reinit_units": 2, "layer_decay": 0.7, "resolution": 6},
}


def rows_of(run: TrialRun, n: int | None = None) -> list[Row]:
    return [without_time(row) for row in itertools.islice(run.epochs(), n)]


def bits(run: TrialRun) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in run.model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trial_interrupted_after_any_epoch_continues_bit_identically(name: str, tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole", CONFIGS[name], epochs=EPOCHS)
    expected = rows_of(whole)
    assert [row["epoch"] for row in expected] == [1, 2, 3, 4]
    for stop in range(1, EPOCHS + 1):
        workdir = tmp_path / f"stopped-{stop}"
        assert rows_of(tiny_run(workdir, CONFIGS[name], epochs=EPOCHS), stop) == expected[:stop]
        torch.rand(stop)  # whatever the process did in between must not matter
        resumed = tiny_run(workdir, CONFIGS[name], epochs=EPOCHS)
        assert rows_of(resumed) == expected[stop - 1 :]
        assert bits(resumed) == bits(whole)


def test_the_same_plan_twice_is_bit_identical_and_other_trials_are_not(tmp_path: Path) -> None:
    config: dict[str, Scalar] = {"dropout": 0.2, "mixup": 0.3, "augmentation": "standard"}
    rows = rows_of(tiny_run(tmp_path / "a", config))
    assert rows == rows_of(tiny_run(tmp_path / "b", config))
    assert rows != rows_of(tiny_run(tmp_path / "c", config, number=1))
    assert rows != rows_of(tiny_run(tmp_path / "d", {**config, "seed": 1}))


def test_trials_that_take_turns_in_one_process_do_not_disturb_each_other(tmp_path: Path) -> None:
    config: dict[str, Scalar] = {"dropout": 0.3}
    alone = [rows_of(tiny_run(tmp_path / f"alone-{number}", config, number=number)) for number in (0, 1)]
    runs = [tiny_run(tmp_path / f"turns-{number}", config, number=number).epochs() for number in (0, 1)]
    turns = [(without_time(one), without_time(two)) for one, two in zip(*runs, strict=True)]
    assert [list(rows) for rows in zip(*turns, strict=True)] == alone


def test_a_row_has_the_metrics_of_the_contract_and_finite_values(tmp_path: Path) -> None:
    (row,) = tiny_run(tmp_path, epochs=1).epochs()
    assert row.keys() == {
        "epoch",
        "train_loss",
        "val_loss",
        "val_accuracy",
        "val_macro_f1",
        "val_balanced_accuracy",
        "images_per_second",
        "epoch_seconds",
        "prefix_seconds",
        "stored_units",
    }
    assert all(math.isfinite(value) for value in row.values())


def test_a_trial_learns(tmp_path: Path) -> None:
    rows = rows_of(tiny_run(tmp_path, {"learning_rate": 0.03}, epochs=10))
    assert rows[-1]["val_accuracy"] > 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("config", "unit", "steps"),
    [
        ({}, "epoch", 4),  # 30 images in batches of 8
        ({"data_fraction": 0.4}, "epoch", 4),
        ({"data_fraction": 0.4}, "subset_epoch", 2),  # 12 images
        ({"images_per_class": 4}, "epoch", 4),
        ({"images_per_class": 4}, "subset_epoch", 2),
        ({"class_imbalance": 5.0}, "subset_epoch", 2),  # 10 + 4 + 2 images
        ({"categories": 2}, "epoch", 4),
        ({"categories": 2}, "subset_epoch", 3),  # 20 images
        ({"data_fraction": 0.1, "batch_size": 30}, "epoch", 1),  # 3 images, each ten times
    ],
)
def test_an_epoch_is_as_many_steps_as_its_unit_says(config: dict[str, Scalar], unit: str, steps: int, tmp_path: Path) -> None:
    plan = dataclasses.replace(tiny_plan(config, epochs=2), epoch_unit=unit)
    run = TrialRun(plan, tiny_data(), tmp_path, backbone=build_tiny_backbone)
    next(run.epochs())
    assert conv_unit(run.model, 0).norm.num_batches_tracked == steps


DATA_FACTORS: dict[str, dict[str, Scalar]] = {
    "data_fraction": {"data_fraction": 0.4},
    "images_per_class": {"images_per_class": 4},
    "class_imbalance": {"class_imbalance": 5.0},
    "label_noise": {"label_noise": 0.3},
    "categories": {"categories": 2},
}
DEFAULTS: dict[str, Scalar] = {
    "data_fraction": 1.0,
    "images_per_class": 0,
    "class_imbalance": 1.0,
    "label_noise": 0.0,
    "categories": 0,
}


class Seen:
    """The images and labels of all training and validation batches of a trial, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.training: list[list[int]] = []
        self.training_labels: list[list[int]] = []
        self.validation: list[int] = []
        self.validation_labels: list[int] = []
        fetch = ImageStore.fetch

        def noted(store: ImageStore, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            images, labels = fetch(store, indices)
            if len(indices) == 8:  # the batch size; validation takes all its images at once
                self.training.append(indices.tolist())
                self.training_labels.append(labels.tolist())
            else:
                self.validation, self.validation_labels = indices.tolist(), labels.tolist()
            return images, labels

        monkeypatch.setattr(ImageStore, "fetch", noted)

    @property
    def images(self) -> list[int]:
        """The training images, batch after batch."""
        return list(itertools.chain.from_iterable(self.training))

    @property
    def label_of(self) -> dict[int, int]:
        """The label under which each training image was seen."""
        labels: dict[int, int] = {}
        for index, label in zip(self.images, itertools.chain.from_iterable(self.training_labels), strict=True):
            assert labels.setdefault(index, label) == label
        return labels


def seen_in(config: dict[str, Scalar], folder: Path, *, number: int = 0) -> tuple[Seen, TrialRun]:
    with pytest.MonkeyPatch.context() as patch:
        seen = Seen(patch)
        run = tiny_run(folder, config, epochs=2, number=number)
        list(run.epochs())
    return seen, run


def test_the_defaults_of_what_there_is_to_train_on_change_no_bit(tmp_path: Path) -> None:
    assert rows_of(tiny_run(tmp_path / "a", DEFAULTS)) == rows_of(tiny_run(tmp_path / "b"))


@pytest.mark.parametrize("name", DATA_FACTORS)
def test_what_there_is_to_train_on_changes_no_step_and_not_the_start(name: str, tmp_path: Path) -> None:
    seen, run = seen_in(DATA_FACTORS[name], tmp_path / "a")
    plain, plain_run = seen_in({}, tmp_path / "b")
    assert len(seen.training) == len(plain.training) == 8  # 2 epochs over 30 images in batches of 8
    assert conv_unit(run.model, 0).norm.num_batches_tracked == 8
    assert run.model.head.state_dict().keys() == plain_run.model.head.state_dict().keys()
    assert bits(run).keys() == bits(plain_run).keys()
    assert [len(part) for part in bits(run).values()] == [len(part) for part in bits(plain_run).values()]
    if name != "categories":
        assert seen.validation == plain.validation == tiny_data().splits.validation.tolist()
    assert seen.validation_labels == tiny_data().labels[seen.validation].tolist()


@pytest.mark.parametrize("name", DATA_FACTORS)
def test_every_trial_of_a_study_gets_the_same_data(name: str, tmp_path: Path) -> None:
    ones, others = (seen_in(DATA_FACTORS[name], tmp_path / str(number), number=number)[0] for number in (0, 7))
    assert ones.label_of == others.label_of
    assert ones.training != others.training


def test_label_noise_leaves_the_images_and_their_order_alone(tmp_path: Path) -> None:
    clean, little, much = (seen_in({"label_noise": noise}, tmp_path / str(noise))[0] for noise in (0.0, 0.2, 0.5))
    assert clean.training == little.training == much.training
    truth = tiny_data().labels
    wrong = []
    for seen in (clean, little, much):
        assert len(seen.label_of) == 30
        wrong.append({index: label for index, label in seen.label_of.items() if label != truth[index]})
    assert [len(part) for part in wrong] == [0, 6, 15]
    assert wrong[1].items() <= wrong[2].items()


def test_shots_and_tails_leave_so_many_images_of_each_class(tmp_path: Path) -> None:
    few, tail = (seen_in(DATA_FACTORS[name], tmp_path / name)[0] for name in ("images_per_class", "class_imbalance"))
    labels = tiny_data().labels
    assert np.bincount(labels[list(few.label_of)]).tolist() == [4, 4, 4]
    assert sorted(np.bincount(labels[list(tail.label_of)]).tolist()) == [2, 4, 10]


def test_categories_train_and_validate_on_their_classes_and_keep_the_head(tmp_path: Path) -> None:
    seen, run = seen_in({"categories": 2}, tmp_path)
    labels = tiny_data().labels
    classes = set(category_order(3, seed=0)[:2].tolist())
    assert set(labels[seen.images].tolist()) == set(labels[seen.validation].tolist()) == classes
    assert len(seen.validation) == np.isin(labels[30:], list(classes)).sum()
    assert run.model(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_more_categories_than_classes_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    def never(*_: object, **__: object) -> Backbone:
        raise AssertionError("weights were read")

    with pytest.raises(DataError, match="got 4, but the data have 3 classes"):
        next(tiny_run(tmp_path, {"categories": 4}, backbone=never).epochs())


def test_a_row_is_yielded_only_after_its_checkpoint_is_on_disk(tmp_path: Path) -> None:
    for row in tiny_run(tmp_path).epochs():
        last = checkpoints.load_last(tmp_path)
        assert last is not None
        assert last.row == row


def test_a_finished_trial_yields_its_last_row_again_and_trains_no_more(tmp_path: Path) -> None:
    rows = rows_of(tiny_run(tmp_path))
    assert rows_of(tiny_run(tmp_path)) == rows[-1:]


def test_a_damaged_last_checkpoint_costs_epochs_but_changes_nothing(tmp_path: Path) -> None:
    expected = rows_of(tiny_run(tmp_path / "whole", epochs=EPOCHS))
    workdir = tmp_path / "damaged"
    rows_of(tiny_run(workdir, epochs=EPOCHS), 3)
    for path in workdir.glob("epoch-00003-*"):
        path.write_bytes(path.read_bytes()[:1000])
    resumed = rows_of(tiny_run(workdir, epochs=EPOCHS))
    assert resumed == expected[-len(resumed) :]


def test_a_trial_whose_disk_fails_loses_only_that_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rows_of(tiny_run(tmp_path / "whole"))
    run = tiny_run(tmp_path / "failing").epochs()
    next(run)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(f"input/output error: {self} to {target}")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="input/output error"):
            next(run)
    assert rows_of(tiny_run(tmp_path / "failing")) == expected


def test_a_working_directory_of_another_trial_is_refused(tmp_path: Path) -> None:
    rows_of(tiny_run(tmp_path), 1)
    with pytest.raises(CheckpointError, match="belongs to another trial"):
        next(tiny_run(tmp_path, number=1).epochs())
    with pytest.raises(CheckpointError, match="belongs to another trial"):
        next(tiny_run(tmp_path, {"learning_rate": 0.02}).epochs())


def test_the_best_weights_give_the_best_rows_metrics(tmp_path: Path) -> None:
    plan, data = tiny_plan({"learning_rate": 0.05, "frozen_depth": 1}, epochs=6), tiny_data()
    run = TrialRun(plan, data, tmp_path, backbone=build_tiny_backbone)
    rows = list(run.epochs())
    classifier = load_classifier(plan, tmp_path, n_classes=3, image_size=8, backbone=build_tiny_backbone)
    best = checkpoints.load_best(tmp_path)
    compute = Compute.choose("cpu")
    batches = evaluation_batches(ImageStore(data.images, data.labels, compute), data.splits.validation)
    scores = evaluate(classifier, batches, n_classes=3, compute=compute)
    assert best.row == max(rows, key=lambda row: row["val_accuracy"])
    assert (scores.loss, scores.accuracy) == (best.row["val_loss"], best.row["val_accuracy"])


def test_the_best_epoch_is_the_earliest_of_equals() -> None:
    rows: list[Row] = [{"epoch": e, "m": value} for e, value in enumerate([0.1, 0.5, 0.3, 0.5, 0.1], start=1)]
    assert best_epoch(rows, "m", "max") == 2
    assert best_epoch(rows, "m", "min") == 1


def test_a_configuration_that_cannot_be_is_refused_with_every_problem_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        tiny_run(tmp_path, {"learning_rat": 0.1, "optimizer": "adam", "dropout": 2.0})
    assert len(caught.value.problems) == 3
    assert "did you mean learning_rate?" in str(caught.value)


def test_a_unit_that_the_backbone_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"frozen_depth: got 5, but the backbone has {N_UNITS} units"):
        next(tiny_run(tmp_path, {"frozen_depth": 5}).epochs())


class _Exploding(nn.Module):
    """A unit that fails in its nth training step with a given error."""

    def __init__(self, inner: nn.Module, error: BaseException, *, at: int) -> None:
        super().__init__()
        self.inner, self.error, self.at = inner, error, at

    def forward(self, x: Tensor) -> Tensor:
        self.at -= self.training
        if self.at < 0:
            raise self.error
        y: Tensor = self.inner(x)
        return y


def exploding_backbone(error: BaseException, *, at: int) -> Backbone:
    backbone = build_tiny_backbone()
    backbone.units[1] = _Exploding(backbone.units[1], error, at=at)
    return backbone


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1000 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_said_so_and_keeps_its_cause(error: Exception, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, backbone=exploding_backbone(error, at=5)).epochs()
    assert next(run)["epoch"] == 1
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        next(run)
    assert isinstance(caught.value.__cause__, type(error))


def test_an_allocation_that_the_host_refuses_is_recognised() -> None:
    with pytest.raises(OutOfMemory), out_of_memory_as_error():
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_come_out_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes do not match") as caught:
        next(tiny_run(tmp_path, backbone=exploding_backbone(RuntimeError("shapes do not match"), at=0)).epochs())
    assert type(caught.value) is RuntimeError


def test_a_non_finite_validation_metric_diverges_without_a_checkpoint(tmp_path: Path) -> None:
    class OnlyFiniteInTraining(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x * math.inf

    backbone = build_tiny_backbone()
    backbone.units[2] = nn.Sequential(backbone.units[2], OnlyFiniteInTraining())
    with pytest.raises(Diverged, match="val_loss is nan after epoch 1"):
        next(tiny_run(tmp_path, backbone=backbone).epochs())
    assert not checkpoints.has_checkpoint(tmp_path)


def test_closing_frees_the_model_even_while_its_rows_are_awaited(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    rows = run.epochs()
    next(rows)
    model = weakref.ref(run.model)
    run.close()
    gc.collect()
    assert model() is None
    assert list(rows) == []


def test_the_model_is_there_only_while_the_trial_runs(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(RuntimeError, match="has not started yet"):
        _ = run.model


def test_data_are_left_as_they_were_and_read_only_images_do(tmp_path: Path) -> None:
    data = tiny_data()
    images = data.images.copy()
    data.images.flags.writeable = False
    rows_of(tiny_run(tmp_path, {"augmentation": "standard", "mixup": 0.5}, data=data))
    assert np.array_equal(images, data.images)


def test_on_the_cpu_auto_means_float32_and_bf16_must_be_asked_for(tmp_path: Path) -> None:
    assert Compute.choose("cpu", "auto").precision == "float32"
    plan = dataclasses.replace(tiny_plan(), precision="bf16")
    rows = rows_of(TrialRun(plan, tiny_data(), tmp_path / "bf16", backbone=build_tiny_backbone))
    assert rows != rows_of(tiny_run(tmp_path / "float32"))


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "fp8", "expected one of auto, float32, bf16"),
        ("gpu", "auto", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:99", "auto", "GPUs are visible here"),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_refused(device: str, precision: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Compute.choose(device, precision)
