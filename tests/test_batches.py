from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_data, tiny_hyper
from torch.nn import functional

from raystudy.factors import Scalar
from raystudy.finetune.augmentation import augment, draw_cutmix, draw_mixup, view
from raystudy.finetune.batches import Batch, BatchOrder, ImageStore, TrainingBatches, evaluation_batch_size, evaluation_batches
from raystudy.finetune.compute import Compute
from raystudy.finetune.model import Preprocess
from raystudy.finetune.seeds import Purpose, TrialSeeds

CPU = Compute.choose("cpu")
SEEDS = TrialSeeds(0, 0)
PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

sizes = st.integers(1, 40)


def batches(config: dict[str, Scalar] | None = None, seeds: TrialSeeds = SEEDS) -> TrainingBatches:
    data = tiny_data()
    hyper = tiny_hyper(batch_size=8, **(config or {}))
    return TrainingBatches(
        ImageStore(data.images, data.labels, CPU),
        BatchOrder(data.splits.train, 8, seeds),
        preprocess=Preprocess((0.5,) * 3, (0.25,) * 3, resolution=hyper.resolution),
        hyper=hyper,
        seeds=seeds,
    )


def same(one: Batch, two: Batch) -> bool:
    return torch.equal(one.inputs, two.inputs) and torch.equal(one.labels, two.labels) and one.weight == two.weight


@given(n=sizes, batch_size=st.integers(1, 100), step=st.integers(0, 1000))
def test_a_batch_is_a_function_of_its_step_alone_and_always_full(n: int, batch_size: int, step: int) -> None:
    indices = np.arange(100, 100 + n)
    warm, cold = BatchOrder(indices, batch_size, SEEDS), BatchOrder(indices, batch_size, SEEDS)
    for earlier in range(max(0, step - 3), step):
        warm.batch(earlier)
    assert np.array_equal(warm.batch(step), cold.batch(step))
    assert len(cold.batch(step)) == batch_size
    assert set(cold.batch(step)) <= set(indices)


@given(n=sizes, batch_size=st.integers(1, 100), steps=st.integers(1, 30))
def test_the_stream_shows_every_image_equally_often_up_to_one(n: int, batch_size: int, steps: int) -> None:
    order = BatchOrder(np.arange(n), batch_size, SEEDS)
    seen = np.bincount(np.concatenate([order.batch(step) for step in range(steps)]), minlength=n)
    assert seen.max() - seen.min() <= 1
    assert seen.sum() == steps * batch_size


def test_passes_differ_from_one_another_and_between_trials() -> None:
    order = BatchOrder(np.arange(64), 16, SEEDS)
    passes = [[tuple(order.batch(step)) for step in range(first, first + 4)] for first in (0, 4)]
    assert passes[0] != passes[1]
    assert passes[0][0] != tuple(BatchOrder(np.arange(64), 16, TrialSeeds(0, 1)).batch(0))


@given(study=st.integers(0, 2**40), number=st.integers(0, 1000), replicate=st.integers(0, 100))
def test_each_purpose_and_index_has_a_seed_of_its_own(study: int, number: int, replicate: int) -> None:
    seeds = TrialSeeds(study, number, replicate)
    derived = [seeds.derive(purpose, index) for purpose in Purpose for index in range(5)]
    assert len(set(derived)) == len(derived)
    assert all(0 <= seed < 2**63 for seed in derived)


def test_seeds_are_what_they_were_when_studies_were_recorded() -> None:
    assert TrialSeeds(0, 0, 0).derive(Purpose.ORDER, 0) == 7740947395572111255  # sha256sum of 0/0/0/order/0


def test_fetched_images_are_the_stored_ones_channels_last() -> None:
    data = tiny_data()
    images, labels = ImageStore(data.images, data.labels, CPU).fetch(np.array([3, 5, 8]))
    assert images.shape == (3, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), data.images[[3, 5, 8]])
    assert labels.tolist() == data.labels[[3, 5, 8]].tolist()


def test_a_read_only_memory_map_is_read(tmp_path: object) -> None:
    data = tiny_data()
    mapped = np.memmap(f"{tmp_path}/images", dtype=np.uint8, mode="w+", shape=data.images.shape)
    mapped[:] = data.images
    mapped.flush()
    read_only = np.memmap(f"{tmp_path}/images", dtype=np.uint8, mode="r", shape=data.images.shape)
    images, _ = ImageStore(read_only, data.labels, CPU).fetch(np.array([1, 2]))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), data.images[[1, 2]])


def test_normalisation_has_the_values_computed_by_hand() -> None:
    images = torch.full((1, 3, 2, 2), 51.0)  # 0.2 on the scale of 0 to 1
    expected = [(0.2 - 0.5) / 0.2, (0.2 - 0.4) / 0.25, (0.2 - 0.3) / 0.3]
    assert PREPROCESS(images)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_resolution_sets_the_side_of_training_images(side: int) -> None:
    assert batches({"resolution": side}).at(0).inputs.shape == (8, 3, side, side)


def test_default_batches_are_the_stored_images_normalised_and_nothing_else() -> None:
    data = tiny_data()
    batch = batches().at(4)
    rows = BatchOrder(data.splits.train, 8, SEEDS).batch(4)
    stored = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float()
    assert torch.equal(batch.inputs, Preprocess((0.5,) * 3, (0.25,) * 3)(stored))
    assert batch.weight == 1


@pytest.mark.parametrize(
    "config",
    [
        {"augmentation": "flip"},
        {"augmentation": "standard"},
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"augmentation": "standard", "mixup": 1.0},
        {"augmentation": "flip", "mixup": 1.0, "cutmix": 1.0},
        {"training_objective": "self_supervised"},
    ],
)
def test_random_changes_are_a_function_of_the_trial_and_the_step(config: dict[str, Scalar]) -> None:
    assert same(batches(config).at(7), batches(config).at(7))
    assert not same(batches(config).at(7), batches().at(7))
    assert not torch.equal(batches(config).at(7).inputs, batches(config, TrialSeeds(0, 0, 1)).at(7).inputs)


def test_flips_mirror_each_image_or_leave_it() -> None:
    images = torch.rand(32, 3, 8, 8)
    flipped = augment(images, "flip", torch.Generator().manual_seed(0))
    kinds = [(torch.equal(new, old), torch.equal(new, old.flip(2))) for new, old in zip(flipped, images, strict=True)]
    assert {(True, False), (False, True)} == set(kinds)


def test_self_supervised_batches_are_two_views_of_each_image_and_know_no_label() -> None:
    batch = batches({"training_objective": "self_supervised", "resolution": 12}).at(3)
    rows = BatchOrder(tiny_data().splits.train, 8, SEEDS).batch(3)
    assert batch.inputs.shape == (16, 3, 12, 12)
    assert batch.labels.tolist() == [*rows, *rows], "numbers of images"
    assert not torch.equal(batch.inputs[:8], batch.inputs[8:])


def test_views_change_colours_within_their_range_and_some_are_grey() -> None:
    images = torch.tensor([200.0, 90.0, 30.0]).view(1, 3, 1, 1).expand(400, 3, 4, 4)  # where a crop shows nothing
    seen = view(images, torch.Generator().manual_seed(0))[:, :, 0, 0]
    assert seen.min() >= 0
    assert seen.max() <= 255
    is_grey = seen.amax(1) - seen.amin(1) < 0.01
    is_same = (seen - images[:, :, 0, 0]).abs().amax(1) < 0.1
    assert is_grey.float().mean().item() == pytest.approx(0.2, abs=0.06)
    assert is_same.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.06)
    luma = seen @ torch.tensor([0.299, 0.587, 0.114])
    ratio = luma / (images[0, :, 0, 0] @ torch.tensor([0.299, 0.587, 0.114]))
    assert 0.6 - 1e-3 <= ratio.min() < 0.7, "brightness; hue, saturation and the contrast of one colour leave the luma alone"
    assert ratio.max() > 1.2


def test_contrast_moves_pixels_to_and_from_the_mean_luma() -> None:
    grey = torch.tensor([100.0, 140.0]).repeat_interleave(2).expand(200, 3, 4, 4)
    seen = view(grey, torch.Generator().manual_seed(0))[:, 0]
    spread = (seen.amax((1, 2)) - seen.amin((1, 2))) / seen.mean((1, 2))
    assert (spread > 1.1 * 40 / 120).any(), "more than brightness alone gives"


def test_crops_stay_inside_the_image_and_keep_its_range() -> None:
    ramp = torch.linspace(0, 255, 16).expand(64, 3, 16, 16)
    crops = augment(ramp, "standard", torch.Generator().manual_seed(0))
    assert crops.shape == ramp.shape
    assert crops.min() >= 0
    assert crops.max() <= 255
    # A crop of a ramp is a ramp over a part of the range, rising or, if flipped, falling.
    spans = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert (spans > 0).any()
    assert (spans < 0).any()
    assert spans.abs().min() < 0.5 * 255 < spans.abs().max()


def test_mixup_mixes_images_and_keeps_both_labels() -> None:
    plain, mixed = batches().at(2), batches({"mixup": 1.0}).at(2)
    weight, partners = draw_mixup(1.0, 8, SEEDS.derive(Purpose.MIXUP, 2))
    expected = weight * plain.inputs + (1 - weight) * plain.inputs[partners]
    assert torch.allclose(mixed.inputs, expected, atol=1e-5)
    assert mixed.weight == weight
    assert torch.equal(mixed.partner_labels, plain.labels[partners])


def test_mixup_weights_follow_the_beta_distribution() -> None:
    weights = np.array([draw_mixup(0.4, 2, seed)[0] for seed in range(2000)])
    variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
    assert weights.mean() == pytest.approx(0.5, abs=0.04)
    assert weights.var() == pytest.approx(variance, abs=0.01)


def test_cutmix_takes_a_box_from_the_partner_and_counts_its_pixels() -> None:
    weights = []
    for step in range(20):
        plain, mixed = batches().at(step), batches({"cutmix": 1.0}).at(step)
        cut = draw_cutmix(1.0, 8, 8, SEEDS.derive(Purpose.CUTMIX, step))
        in_box = torch.zeros(8, 8, dtype=torch.bool)
        in_box[cut.rows, cut.columns] = True
        assert torch.equal(mixed.inputs, torch.where(in_box, plain.inputs[cut.partners], plain.inputs))
        assert (mixed.weight, mixed.depth) == (1 - in_box.float().mean().item(), 0)
        assert torch.equal(mixed.labels, plain.labels)
        assert torch.equal(mixed.partner_labels, plain.labels[cut.partners])
        weights.append(mixed.weight)
    assert len(set(weights)) > 5, "boxes differ from step to step"


def test_cutmix_boxes_follow_the_beta_distribution_clipped_at_the_edge() -> None:
    cuts = [draw_cutmix(1.0, 1000, 2, seed) for seed in range(2000)]
    # A side of r, its centre uniform, keeps r - r²/4 on average; of Beta(1, 1), u = r² is uniform: the mean of (r - r²/4)².
    expected = 1 - (1 / 2 - 1 / 5 + 1 / 48)
    assert np.mean([cut.weight for cut in cuts]) == pytest.approx(expected, abs=0.02)
    ends = np.array([(cut.rows.start, cut.rows.stop, cut.columns.start, cut.columns.stop) for cut in cuts])
    assert ends.min() >= 0
    assert ends.max() <= 1000
    assert np.corrcoef(ends[:, 1] - ends[:, 0], ends[:, 3] - ends[:, 2])[0, 1] > 0.5, "of the image's shape, but for the edge"


def test_with_mixup_and_cutmix_each_batch_has_one_of_the_two() -> None:
    both, up, cut = batches({"mixup": 1.0, "cutmix": 1.0}), batches({"mixup": 1.0}), batches({"cutmix": 1.0})
    dealt = [(same(both.at(step), up.at(step)), same(both.at(step), cut.at(step))) for step in range(60)]
    assert {(True, False), (False, True)} == set(dealt)
    assert 15 <= sum(is_up for is_up, _ in dealt) <= 45


@given(batch_size=st.integers(1, 20))
def test_evaluation_covers_the_split_once_in_order(batch_size: int) -> None:
    data = tiny_data()
    store = ImageStore(data.images, data.labels, CPU)
    parts = list(evaluation_batches(store, data.splits.validation, batch_size=batch_size))
    assert len(parts) == math.ceil(14 / batch_size)
    assert torch.cat([labels for _, labels in parts]).tolist() == data.labels[data.splits.validation].tolist()


@pytest.mark.parametrize(("side", "expected"), [(8, 256), (32, 256), (224, 167), (512, 32), (4096, 1)])
def test_evaluation_takes_fewer_images_at_once_the_larger_they_are(side: int, expected: int) -> None:
    assert evaluation_batch_size(side) == expected


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"augmentation": "flip"},
        {"augmentation": "standard"},
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"resolution": 12},
        {"training_objective": "self_supervised"},
    ],
)
def test_training_batches_are_channels_last_whatever_is_done_to_them(config: dict[str, Scalar]) -> None:
    assert batches(config).at(0).inputs.is_contiguous(memory_format=torch.channels_last)


def test_enlarging_equals_torchs_bilinear_interpolation() -> None:
    images = torch.rand(2, 3, 8, 8)
    expected = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(Preprocess((0.5,) * 3, (0.25,) * 3, resolution=16).resize(images), expected)
