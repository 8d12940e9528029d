"""Stored activations of frozen units: the same metrics bit for bit, used only where they are exact, and where they pay."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import N_UNITS, build_tiny_backbone, tiny_data, tiny_plan, without_time
from torch import Tensor, nn

from raystudy.cache import Cache, CacheFull
from raystudy.data import PreparedData, category_order, fraction_subset, nesting_order
from raystudy.errors import SpecError
from raystudy.factors import Scalar
from raystudy.finetune import activations, prefixes
from raystudy.finetune.activations import Layout
from raystudy.finetune.backbone import Backbone, build_backbone
from raystudy.finetune.checkpoint import Row
from raystudy.finetune.model import BackboneFactory
from raystudy.finetune.prefixes import Cost, Sharing
from raystudy.finetune.trainer import mean_epochs
from raystudy.finetune.trial import TrialPlan, TrialRun
from raystudy.spec import StudySpec

BACKBONES = (
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "timm:test_resnet",
    "timm:test_convnext",
    "timm:test_vit",
)


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    prefixes._readers.clear()
    yield
    prefixes._readers.clear()


def sharing(folder: Path, mode: str = "on", **changes: float) -> Sharing:
    values = Sharing("on", Cache(folder / "cache", limit=10**9), epochs=100.0, depths=1)
    return dataclasses.replace(values, mode=mode, **changes)  # type: ignore[arg-type]


def data_with_pixels(side: int = 8) -> PreparedData:
    return dataclasses.replace(tiny_data(side=side), pixels=f"tiny-{side}")


def rows(
    plan: TrialPlan,
    folder: Path,
    shared: Sharing | None,
    *,
    data: PreparedData | None = None,
    backbone: Backbone | BackboneFactory = build_tiny_backbone,
    most: int = 100,
) -> list[Row]:
    run = TrialRun(plan, data or data_with_pixels(), folder, backbone=backbone, sharing=shared)
    found = list(islice(run.epochs(), most))
    run.close()
    return found


def same(left: list[Row], right: list[Row]) -> bool:
    return [without_time(row) for row in left] == [without_time(row) for row in right]


configurations = st.fixed_dictionaries(
    {
        "frozen_depth": st.integers(0, N_UNITS),
        "data_fraction": st.sampled_from([0.2, 0.5, 1.0]),
        "images_per_class": st.sampled_from([0, 0, 4]),
        "class_imbalance": st.sampled_from([1.0, 1.0, 5.0]),
        "label_noise": st.sampled_from([0.0, 0.3]),
        "categories": st.sampled_from([0, 0, 2]),
        "batch_size": st.sampled_from([3, 8, 40]),
        "strategy": st.sampled_from(["ft", "lp_ft", "gradual"]),
        "optimizer": st.sampled_from(["sgd", "adamw"]),
        "augmentation": st.sampled_from(["none", "flip"]),
        "mixup": st.sampled_from([0.0, 0.2]),
        "cutmix": st.sampled_from([0.0, 0.2]),
        "dropout": st.sampled_from([0.0, 0.3]),
        "resolution": st.sampled_from([0, 12]),
        "reinit_units": st.integers(0, 2),
        "batch_norm": st.sampled_from(["train", "eval"]),
    }
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configurations)
def test_metrics_are_the_same_bit_for_bit_with_and_without(
    config: dict[str, Scalar], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("features")
    plan = tiny_plan({**config, "lp_share": 0.5}, epochs=4)
    computed = rows(plan, folder / "without", None)
    first, second = (rows(plan, folder / name, sharing(folder)) for name in ("building", "reading"))
    assert same(computed, first)
    assert same(computed, second)
    exact = config["augmentation"] == "none" and config["mixup"] == config["cutmix"] == 0
    frozen = config["strategy"] != "ft" or config["frozen_depth"]
    if exact and frozen and config["reinit_units"] == 0:
        assert any(row["stored_units"] for row in first)


def test_what_is_read_lies_in_memory_as_what_is_computed_does(tmp_path: Path) -> None:
    """Matrix products may round by the alignment of what they multiply."""
    shared = sharing(tmp_path)
    seen: list[Tensor] = []

    def build(name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
        backbone = build_tiny_backbone(name, pretrained=pretrained, seed=seed, image_size=image_size)
        backbone.units[2].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        return backbone

    found = rows(tiny_plan({"frozen_depth": 2}, epochs=2), tmp_path / "trial", shared, backbone=build)
    assert found[0]["stored_units"] == 2
    assert seen
    assert all(activation.data_ptr() % 64 == 0 for activation in seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_real_networks_at_every_frozen_depth(name: str, tmp_path: Path) -> None:
    side = 64 if "vit" in name else 32
    backbone = build_backbone(name, pretrained=False, seed=3, image_size=side)
    data = dataclasses.replace(tiny_data(side=side, n_train=20, n_validation=6), pixels=f"real-{side}")
    shared = sharing(tmp_path)
    is_read = []
    for depth in range(1, backbone.info.n_units + 1):
        plan = tiny_plan({"frozen_depth": depth, "learning_rate": 1e-3}, epochs=1)
        computed = rows(plan, tmp_path / f"{depth}-computed", None, data=data, backbone=backbone)
        read = rows(plan, tmp_path / f"{depth}-read", shared, data=data, backbone=backbone)
        assert same(computed, read)
        is_read.append(read[0]["stored_units"] == depth)
    # Where a unit's kernels round by what else is in the batch, which few images in few pixels bring about, it is computed.
    assert np.mean(is_read) > 0.5


def test_a_trial_continues_from_its_checkpoint_with_stored_activations(tmp_path: Path) -> None:
    plan = tiny_plan({"strategy": "gradual", "lp_share": 0.8}, epochs=5)
    whole = rows(plan, tmp_path / "whole", None)
    rows(plan, tmp_path / "broken", sharing(tmp_path), most=2)
    rest = rows(plan, tmp_path / "broken", sharing(tmp_path))
    assert same(whole[1:], rest)


def test_deeper_activations_start_from_stored_shallower_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = sharing(tmp_path)
    rows(tiny_plan({"frozen_depth": 2}), tmp_path / "a", shared)
    starts: list[int] = []
    onward = activations.Prefix.onward

    def noted(self: activations.Prefix, activation: Tensor, depth: int) -> Tensor:
        starts.append(depth)
        return onward(self, activation, depth)

    monkeypatch.setattr(activations.Prefix, "onward", noted)
    deeper = rows(tiny_plan({"frozen_depth": 4}), tmp_path / "b", shared)
    assert set(starts) == {2}
    assert same(deeper, rows(tiny_plan({"frozen_depth": 4}), tmp_path / "c", None))


def test_a_trial_on_a_fraction_computes_the_blocks_that_it_needs_and_others_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_BLOCK_ROWS", 5)
    shared, blocks = sharing(tmp_path), {}
    for fraction in (0.1, 0.5, 1.0):
        plan = tiny_plan({"frozen_depth": 3, "data_fraction": fraction, "batch_size": 5})
        assert same(rows(plan, tmp_path / f"{fraction}", shared), rows(plan, tmp_path / f"{fraction}-computed", None))
        blocks[fraction] = {entry.key for entry in shared.cache.entries() if entry.about["split"] == "train"}
    assert blocks[0.1] < blocks[0.5] < blocks[1.0]
    assert [len(keys) for keys in blocks.values()] == [1, 3, 6]


DATA_FACTORS: dict[str, dict[str, Scalar]] = {
    "shots": {"images_per_class": 3},
    "tail": {"class_imbalance": 8.0},
    "noise": {"label_noise": 0.4},
    "categories": {"categories": 2},
    "all": {"data_fraction": 0.8, "images_per_class": 7, "class_imbalance": 3.0, "label_noise": 0.3, "categories": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_FACTORS)
@pytest.mark.parametrize("strategy", ["ft", "gradual"])
def test_whatever_a_trial_trains_on_is_read_as_it_is_computed(
    name: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_BLOCK_ROWS", 5)
    plan = tiny_plan({**DATA_FACTORS[name], "frozen_depth": 3, "strategy": strategy, "batch_size": 5})
    computed = rows(plan, tmp_path / "computed", None)
    shared = sharing(tmp_path)
    built, read = (rows(plan, tmp_path / folder, shared) for folder in ("built", "read"))
    assert same(computed, built)
    assert same(computed, read)
    assert {row["stored_units"] for row in read} >= {3}


def test_wrong_labels_read_the_activations_that_right_ones_left(tmp_path: Path) -> None:
    shared = sharing(tmp_path)
    right = rows(tiny_plan({"frozen_depth": 3}), tmp_path / "right", shared)
    entries = {entry.key for entry in shared.cache.entries()}
    wrong = rows(tiny_plan({"frozen_depth": 3, "label_noise": 0.5}), tmp_path / "wrong", shared)
    assert {entry.key for entry in shared.cache.entries()} == entries
    assert not same(right, wrong)


def test_few_shots_compute_the_blocks_that_they_need_and_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_BLOCK_ROWS", 5)
    shared, blocks = sharing(tmp_path), []
    for shots in (1, 5, 0):
        rows(tiny_plan({"frozen_depth": 3, "images_per_class": shots, "batch_size": 5}), tmp_path / f"{shots}", shared)
        blocks.append({entry.key for entry in shared.cache.entries() if entry.about["split"] == "train"})
    assert blocks[0] < blocks[1] < blocks[2]
    assert [len(keys) for keys in blocks] == [1, 3, 6]


def test_few_categories_compute_their_own_images_only(tmp_path: Path) -> None:
    shared = sharing(tmp_path)
    rows(tiny_plan({"frozen_depth": 3, "categories": 2}), tmp_path / "a", shared)
    sizes = {entry.about["split"]: entry.about["images"] for entry in shared.cache.entries()}
    data = tiny_data()
    classes = category_order(3, seed=0)[:2]
    assert sizes == {"train": 20, "validation": int(np.isin(data.labels[data.splits.validation], classes).sum())}


def test_growing_fractions_take_up_images_in_one_order() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    train = np.sort(random.permutation(300)[:200])
    order = nesting_order(train, labels, seed=5)
    assert sorted(order) == train.tolist()
    for fraction in (0.05, 0.1, 0.33, 0.5, 1.0):
        subset = fraction_subset(train, labels, fraction, seed=5)
        assert set(subset) <= set(order[: math.ceil(len(order) * fraction) + 4])


def test_what_changes_the_activations_changes_their_key(tmp_path: Path) -> None:
    shared = sharing(tmp_path)

    def entries() -> int:
        return len(shared.cache.entries())

    rows(tiny_plan({"frozen_depth": 4}, epochs=1), tmp_path / "a", shared)
    assert entries() == 2  # training and validation images
    rows(
        tiny_plan({"frozen_depth": 4, "learning_rate": 0.5, "batch_norm_momentum": 0.3}, epochs=1, number=1),
        tmp_path / "b",
        shared,
    )
    assert entries() == 2
    rows(tiny_plan({"frozen_depth": 4, "resolution": 9}, epochs=1), tmp_path / "c", shared)
    assert entries() == 4
    rows(
        tiny_plan({"frozen_depth": 4}, epochs=1), tmp_path / "d", shared, data=dataclasses.replace(tiny_data(), pixels="other")
    )
    assert entries() == 6
    other = build_tiny_backbone(pretrained=False, seed=1)
    rows(tiny_plan({"frozen_depth": 4}, epochs=1), tmp_path / "e", shared, backbone=other)
    assert entries() == 8


def test_weights_that_belong_to_the_trial_are_not_stored(tmp_path: Path) -> None:
    shared = sharing(tmp_path)
    scratch = rows(tiny_plan({"frozen_depth": 4, "pretrained": False}), tmp_path / "a", shared)
    renewed = rows(tiny_plan({"frozen_depth": 4, "reinit_units": 1}), tmp_path / "b", shared)
    assert {row["stored_units"] for row in (*scratch, *renewed)} == {0}
    assert shared.cache.entries() == []


SELF: dict[str, Scalar] = {"training_objective": "self_supervised"}


@pytest.mark.parametrize("change", [{"augmentation": "flip"}, {"mixup": 0.4}, {"cutmix": 1.0}, SELF], ids=str)
def test_images_that_change_from_epoch_to_epoch_are_computed_but_validation_reads(
    change: dict[str, Scalar], tmp_path: Path
) -> None:
    shared = sharing(tmp_path)
    plan = tiny_plan({"frozen_depth": 3, **change})
    found = rows(plan, tmp_path / "a", shared)
    assert same(found, rows(plan, tmp_path / "b", None))
    assert {row["stored_units"] for row in found} == {0}
    assert {entry.about["split"] for entry in shared.cache.entries()} == {"validation"}


class _DependsOnItsBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean() * 1e-6


def test_activations_that_depend_on_their_batch_are_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = build_tiny_backbone()
    backbone.units[0] = nn.Sequential(backbone.units[0], _DependsOnItsBatch())
    plan = tiny_plan({"frozen_depth": 2})
    with caplog.at_level(logging.WARNING):
        read = rows(plan, tmp_path / "a", sharing(tmp_path), backbone=backbone)
    assert same(read, rows(plan, tmp_path / "b", None, backbone=backbone))
    assert {row["stored_units"] for row in read} == {0}
    assert "depend on the batch" in caplog.text


def test_without_room_activations_are_computed_and_the_log_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = dataclasses.replace(sharing(tmp_path), cache=Cache(tmp_path / "cache", limit=100))
    with caplog.at_level(logging.WARNING):
        read = rows(tiny_plan({"frozen_depth": 2}), tmp_path / "a", shared)
    assert same(read, rows(tiny_plan({"frozen_depth": 2}), tmp_path / "b", None))
    assert "cannot be stored" in caplog.text


def test_a_disk_that_fills_up_in_mid_build_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise CacheFull("no room")

    shared = sharing(tmp_path)
    monkeypatch.setattr(activations.Blocks, "_write", full)
    read = rows(tiny_plan({"frozen_depth": 2}), tmp_path / "a", shared)
    assert same(read, rows(tiny_plan({"frozen_depth": 2}), tmp_path / "b", None))
    assert shared.cache.entries() == []


def test_a_flipped_byte_is_found_and_the_activations_are_computed_again(tmp_path: Path) -> None:
    shared = sharing(tmp_path)
    plan = tiny_plan({"frozen_depth": 2})
    first = rows(plan, tmp_path / "a", shared)
    prefixes._readers.clear()
    for entry in shared.cache.entries():
        path = tmp_path / "cache" / entry.kind / f"{entry.key}.arrow"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    again = rows(plan, tmp_path / "b", shared)
    assert same(first, again)
    assert {row["stored_units"] for row in again} == {2}


@pytest.mark.parametrize(
    ("cost", "passes", "room", "pays"),
    [
        (Cost(Layout(torch.float32, (10,), (0,)), 1e-3, 1e-6), 3.0, 1e9, True),
        (Cost(Layout(torch.float32, (10,), (0,)), 1e-3, 1e-6), 1.0, 1e9, False),  # needed once: computed once
        (Cost(Layout(torch.float32, (10,), (0,)), 1e-3, 1e-6), 3.0, 3999, False),  # no room for 100 rows of 40 bytes
        (Cost(Layout(torch.float32, (10,), (0,)), 1e-3, 2e-3), 50.0, 1e9, False),  # reading takes longer
        (Cost(Layout(torch.float32, (10**6,), (0,)), 1e-3, 1e-4), 5.0, 1e9, False),  # so does writing
        (Cost(None, 1e-3, 0.0), 50.0, 1e9, False),
    ],
)
def test_storing_pays_where_it_saves_more_than_it_costs(cost: Cost, passes: float, room: float, pays: bool) -> None:
    assert cost.pays(100, passes, room) is pays


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_auto_asks_for_the_cost_and_on_does_not(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cost, "pays", lambda *_: False)
    read = rows(tiny_plan({"frozen_depth": 2}), tmp_path / "a", sharing(tmp_path, mode))
    assert {row["stored_units"] for row in read} == ({2} if mode == "on" else {0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 6, 1, 1), (4, 7), (4, 9, 6), (4, 5, 5, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_activation_comes_back_with_its_values_and_its_strides(
    dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool
) -> None:
    tensor = torch.randn(shape).to(dtype)
    if channels_last and len(shape) == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    layout = Layout.of(tensor)
    assert layout is not None
    back = Layout.of_document(layout.document()).restore(torch.from_numpy(layout.flatten(tensor)))
    assert torch.equal(back, tensor)
    assert (back.stride(), back.dtype) == (tensor.stride(), tensor.dtype)


def test_an_activation_that_cannot_come_back_as_it_was_has_no_layout() -> None:
    assert Layout.of(torch.randn(4, 6)[:, ::2]) is None
    assert Layout.of(torch.zeros(4, 6, dtype=torch.complex64)) is None


def _spec(**changes: object) -> StudySpec:
    factors = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}, "frozen_depth": {"int": [0, "max"]}}
    small = {
        "name": "small",
        "data": {"source": "sklearn:digits", "image_size": 32},
        "backbone": "resnet18",
        "factors": factors,
    }
    return StudySpec.from_dict({**small, **changes})


@pytest.mark.parametrize(
    ("stopping", "epochs", "expected"),
    [
        ({"scheduler": "none"}, 27, 27.0),
        ({"keep": 0}, 27, 1 + 2 / 3 + 6 / 9 + 18 / 27),
        ({"keep": 1}, 27, 27.0),
        ({"keep": 0, "grace": 4, "reduction": 2}, 6, 4 + 2 / 2),
    ],
)
def test_the_epochs_that_a_trial_is_expected_to_train(stopping: dict[str, object], epochs: int, expected: float) -> None:
    spec = _spec(early_stopping=stopping, budget={"trials": 9, "epochs": epochs})
    assert mean_epochs(spec) == pytest.approx(expected)


def test_features_may_change_on_resume_and_are_checked() -> None:
    assert _spec(features="off").fingerprint == _spec(features="on").fingerprint == _spec().fingerprint
    with pytest.raises(SpecError, match="features"):
        _spec(features="sometimes")
