from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import N_UNITS, build_tiny_backbone, tiny_data

from raystudy.finetune import probe as probing
from raystudy.finetune.probe import BackboneSpeed, Probe, probe, probe_depths
from raystudy.space import Space
from raystudy.spec import StudySpec


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probing, "_SECONDS_PER_DEPTH", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Nothing here has to survive a power cut, or holds memory worth a collection between trials.
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("gc.collect", lambda: 0)


def study(**sections: Any) -> tuple[StudySpec, Space]:
    factors = {"learning_rate": {"log_uniform": [1e-4, 1e-1]}}
    data = {"source": "sklearn:digits", "image_size": 8}
    spec = StudySpec.from_dict({"name": "s", "backbone": "resnet18", "data": data, "factors": factors, **sections})
    return spec, Space.of(spec, n_units=N_UNITS)


def tiny_probe(**sections: Any) -> Probe:
    spec, space = study(**sections)
    return probe(spec, space, tiny_data(), device="cpu", backbone=build_tiny_backbone)


def test_everything_that_is_measured_is_positive() -> None:
    result = tiny_probe(factors={"frozen_depth": {"int": [0, "max"]}}, fixed={"batch_size": 16})
    speed = result.speed("resnet18")
    assert speed.depths == (0, 2, 4)
    assert len(speed.seconds) == len(speed.saving) == 3
    assert min(*speed.seconds, speed.validation_images_per_second, result.seconds) > 0
    assert min(*speed.saving, speed.setup_seconds) >= 0
    assert (result.batch_size, result.side, result.gpus, result.precision) == (16, 8, 0, "float32")
    assert "CPU" in result.device_name


def test_every_backbone_is_measured() -> None:
    assert tiny_probe(backbone=["resnet18", "resnet34"]).speeds.keys() == {"resnet18", "resnet34"}


@pytest.mark.parametrize(
    "fixed",
    [
        {"strategy": "gradual", "optimizer": "sgd"},
        {"tuned_unit": 1, "batch_norm": "eval"},
        {"reinit_units": 2, "pretrained": False},
        {"data_fraction": 0.1, "augmentation": "standard", "mixup": 0.4},
        {"resolution": 6, "batch_size": 100},  # more than there are images
        {"learning_rate": 10.0, "head_lr_multiplier": 1000.0},  # would diverge in a trial
    ],
)
def test_any_configuration_can_be_measured(fixed: dict[str, Any]) -> None:
    factors = {"dropout": {"uniform": [0.0, 0.5]}}
    assert tiny_probe(factors=factors, fixed=fixed).speed("resnet18").seconds[0] > 0


def test_batches_that_cannot_hold_every_class_can_be_measured() -> None:
    spec, space = study(fixed={"batch_size": 4})
    data = tiny_data(n_train=100, n_validation=5, n_classes=5)  # more classes than images in a batch
    assert probe(spec, space, data, device="cpu", backbone=build_tiny_backbone).speeds


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    tiny_probe(resources={"cpu": threads + 1})
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_takes_long_is_measured_with_fewer_images_and_fewer_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    study_file: dict[str, Any] = {"factors": {"frozen_depth": {"int": [0, "max"]}}, "fixed": {"batch_size": 64}}
    monkeypatch.setattr(probing, "_LONGEST_STEP_S", 0.0)
    slow = tiny_probe(**study_file)
    assert slow.batch_size == 64
    assert (slow.speed("resnet18").measured_batch_size, slow.speed("resnet18").depths) == (4, (0, 4))
    monkeypatch.setattr(probing, "_LONGEST_STEP_S", 1e9)
    fast = tiny_probe(**study_file)
    assert (fast.speed("resnet18").measured_batch_size, fast.speed("resnet18").depths) == (64, (0, 2, 4))


def test_a_slow_first_epoch_is_the_measurement() -> None:
    rows = [({"epoch": 1.0, "epoch_seconds": 10.0, "images_per_second": 0.5}, 12.0)]
    assert probing._is_enough(rows, 60.0)
    timing = probing._summarise(rows, steps=1, batch_size=4, n_validation=2)
    assert (timing.setup, timing.step, timing.validation_per_image, timing.save) == (2, 8, 1, 0)


def test_the_first_of_several_epochs_only_warms_up() -> None:
    slow = {"epoch_seconds": 0.5, "images_per_second": 4.0}
    fast = {"epoch_seconds": 0.75, "images_per_second": 16.0}
    rows = [(slow, 3.0), (fast, 1.0), (fast, 1.0)]
    assert not probing._is_enough(rows[:2], 0.0)
    assert probing._is_enough(rows, 2.0)
    assert not probing._is_enough(rows, 2.5)
    timing = probing._summarise(rows, steps=2, batch_size=4, n_validation=10)
    assert (timing.setup, timing.step, timing.validation_per_image, timing.save) == (2.25, 0.25, 0.025, 0.25)


@pytest.mark.parametrize(
    ("sections", "depths"),
    [
        ({}, (0,)),
        ({"fixed": {"frozen_depth": "max"}}, (4,)),
        ({"fixed": {"frozen_depth": 3}}, (3,)),
        ({"fixed": {"strategy": "lp_ft"}}, (0, 2, 4)),
        ({"fixed": {"tuned_unit": 1}}, (0, 2, 4)),
        ({"factors": {"frozen_depth": {"choice": [0, 1]}}}, (0, 2, 4)),
    ],
)
def test_depths_are_measured_where_they_matter(sections: dict[str, Any], depths: tuple[int, ...]) -> None:
    spec, space = study(**sections)
    typical = spec.full_config(space.at([0.5] * len(space.dimensions)))
    assert probe_depths(spec, typical, N_UNITS) == depths


@given(st.integers(0, 20), st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_any_depth_lies_between_its_measured_neighbours(depth: int, seconds: list[float]) -> None:
    speed = BackboneSpeed(18, (0, 9, 18), (seconds[0], seconds[1], seconds[2]), (1.0, 1.0, 0.0), 1.0, 1.0, 64)
    value = speed.step_seconds(depth)
    neighbours = seconds[:2] if depth <= 9 else seconds[1:]
    assert min(neighbours) * (1 - 1e-9) <= value <= max(neighbours) * (1 + 1e-9)
    if depth in speed.depths:
        assert value == seconds[speed.depths.index(depth)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_measured_in_its_own_precision() -> None:
    spec, space = study(factors={"frozen_depth": {"int": [0, "max"]}})
    result = probe(spec, space, tiny_data(), backbone=build_tiny_backbone)
    assert result.gpus >= 1
    assert result.speed("resnet18").step_seconds(0) > 0
