from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

import earlier
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import conv_unit, tiny_hyper, tiny_model

from raystudy.errors import CheckpointError
from raystudy.finetune.checkpoint import (
    Checkpoint,
    frozen_digest,
    has_checkpoint,
    load_best,
    load_best_weights,
    load_last,
    restore_weights,
    save,
)
from raystudy.finetune.model import FineTuneModel
from raystudy.finetune.trial import trained_names


def make(epoch: int = 1, *, best: int | None = None, value: float = 0.5) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        best_epoch=best or epoch,
        rows=tuple({"epoch": e, "val_accuracy": 0.1 * e} for e in range(1, epoch + 1)),
        weights={"w": torch.full((2, 3), value), "n": torch.tensor(epoch)},
        optimizer={"w/step": torch.tensor(3.0)},
        frozen_digest="f",
        fingerprint="p",
    )


def of_model(model: FineTuneModel, *, frozen_depth: int = 0) -> Checkpoint:
    names = trained_names(model, tiny_hyper(frozen_depth=frozen_depth))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in names}
    return Checkpoint(1, 1, ({"epoch": 1},), weights, {}, frozen_digest(model, names), "p")


def epochs_in(workdir: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in workdir.glob("epoch-*.safetensors"))


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0xFF
    path.write_bytes(data)


@given(
    values=st.lists(st.floats(width=32), max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    metric=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(0, 2**40),
)
def test_what_is_saved_is_loaded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], dtype: torch.dtype, metric: float, count: int
) -> None:
    workdir = tmp_path_factory.mktemp("round-trip")
    weights = {"a": torch.tensor(values).to(dtype), "b": torch.tensor(count)}
    rows = ({"epoch": 1, "val_loss": metric},)
    save(workdir, Checkpoint(1, 1, rows, weights, {"a/step": torch.tensor(2.0)}, "f", "p"))
    loaded = load_last(workdir)
    assert loaded is not None
    assert loaded.rows == rows
    assert loaded.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert loaded.weights[name].dtype == tensor.dtype
        assert torch.equal(loaded.weights[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    assert loaded.optimizer["a/step"] == 2


def test_the_file_is_one_that_the_library_reads_whatever_the_tensors(tmp_path: Path) -> None:
    floats = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    types += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    weights = {f"as {dtype}": floats.to(dtype) for dtype in types}
    weights |= {"transposed": floats.permute(2, 0, 1), "last channel first": floats[None].to(memory_format=torch.channels_last)}
    weights |= {"of one number": torch.tensor(7), "of none": torch.empty(0, 3), "a part": floats[:, 1]}
    path = save(tmp_path, Checkpoint(1, 1, ({"epoch": 1},), weights, {}, "f", "p"))
    found = safetensors.torch.load_file(path)
    assert found.keys() == {f"weights/{name}" for name in weights}
    for name, tensor in weights.items():
        read = found[f"weights/{name}"]
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read, tensor)
        assert read.data_ptr() % read.element_size() == 0


def test_an_empty_or_missing_directory_has_no_checkpoint(tmp_path: Path) -> None:
    for workdir in (tmp_path, tmp_path / "missing"):
        assert not has_checkpoint(workdir)
        assert load_last(workdir) is None
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            load_best(workdir)


def test_only_the_last_and_the_best_epoch_are_kept(tmp_path: Path) -> None:
    for epoch, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)]:
        save(tmp_path, make(epoch, best=best))
        assert epochs_in(tmp_path) == sorted({epoch, best})
    last = load_last(tmp_path)
    assert last is not None
    assert (last.epoch, load_best(tmp_path).epoch) == (6, 5)


@given(at=st.integers(0, 10_000))
def test_any_damaged_byte_of_the_last_checkpoint_falls_back_to_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, at: int
) -> None:
    workdir = tmp_path_factory.mktemp("damaged")
    save(workdir, make(1))
    damage(save(workdir, make(2, best=1)), at)
    loaded = load_last(workdir)
    assert loaded is not None
    assert loaded.epoch == 1


def test_damage_is_logged_and_with_nothing_older_the_trial_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, make(1))
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert load_last(tmp_path) is None
    assert "is damaged" in caplog.text
    assert str(path) in caplog.text


def test_an_empty_file_of_a_checkpoints_name_is_damage(tmp_path: Path) -> None:
    (tmp_path / f"epoch-00001-{'0' * 32}.safetensors").touch()
    assert load_last(tmp_path) is None


def test_a_damaged_file_goes_when_its_epoch_is_saved_again(tmp_path: Path) -> None:
    damage(save(tmp_path, make(1, value=0.1)), 300)
    save(tmp_path, make(1, value=0.2))
    assert len(list(tmp_path.iterdir())) == 1
    assert load_best(tmp_path).weights["w"][0, 0] == pytest.approx(0.2)


def test_a_damaged_best_checkpoint_is_an_error_not_another_epochs_weights(tmp_path: Path) -> None:
    damage(save(tmp_path, make(1)), 300)
    save(tmp_path, make(2, best=1))
    with pytest.raises(CheckpointError, match="damaged"):
        load_best(tmp_path)


def test_a_missing_best_checkpoint_is_an_error(tmp_path: Path) -> None:
    first = save(tmp_path, make(1))
    save(tmp_path, make(2, best=1))
    first.unlink()
    with pytest.raises(CheckpointError, match="best epoch, 1, is missing"):
        load_best(tmp_path)


def test_a_write_that_dies_before_its_rename_leaves_the_old_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, make(1))

    def fail(self: Path, target: Path) -> Path:
        raise OSError(f"no space left: {self} to {target}")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path, make(2))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["00001"]


def test_a_kill_between_rename_and_clean_up_is_cleaned_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, make(1))
    (tmp_path / ".1234.tmp").write_bytes(b"half a file")

    def die(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt(f"{self} {missing_ok}")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, make(2))
    last = load_last(tmp_path)
    assert last is not None
    assert last.epoch == 2
    save(tmp_path, make(3))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["00003"]


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    save(tmp_path, make())
    assert load_last(tmp_path, fingerprint="p") is not None
    with pytest.raises(CheckpointError, match="belongs to another trial"):
        load_last(tmp_path, fingerprint="q")


def test_best_weights_are_given_to_the_model(tmp_path: Path) -> None:
    trained, fresh = tiny_model(), tiny_model()
    torch.nn.init.constant_(trained.head.weight, 0.25)
    save(tmp_path, of_model(trained, frozen_depth=2))
    load_best_weights(tmp_path, fresh)
    for (name, one), two in zip(trained.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_frozen_weights_are_not_stored() -> None:
    names = of_model(tiny_model(), frozen_depth=3).weights.keys()
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    assert all(name.startswith(("backbone.units.3.", "head.")) for name in names)


def test_a_model_with_other_frozen_weights_is_refused() -> None:
    checkpoint, other = of_model(tiny_model(), frozen_depth=2), tiny_model()
    with torch.no_grad():
        conv_unit(other, 0).norm.bias.add_(1e-7)
    with pytest.raises(CheckpointError, match="frozen weights are not those"):
        restore_weights(other, checkpoint)


def test_a_model_of_another_shape_is_refused_by_tensor_expected_and_found() -> None:
    with pytest.raises(CheckpointError, match=r"head.weight: expected \(5, 8\), found \(3, 8\)"):
        restore_weights(tiny_model(n_classes=5), of_model(tiny_model()))


def test_a_model_without_the_checkpoints_tensors_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, make())
    with pytest.raises(CheckpointError, match="the model has no n, w"):
        load_best_weights(tmp_path, tiny_model())


def test_a_checkpoint_that_was_written_with_sha_256_is_read(tmp_path: Path) -> None:
    model = tiny_model()
    now = of_model(model, frozen_depth=2)
    frozen = earlier.tensors_digest(item for item in sorted(model.state_dict().items()) if item[0] not in now.weights)
    path = save(tmp_path, dataclasses.replace(now, frozen_digest=frozen))
    path.rename(path.with_name(f"epoch-00001-{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.safetensors"))
    last = load_last(tmp_path)
    assert last is not None
    restore_weights(model, last)
    with torch.no_grad():
        conv_unit(model, 0).conv.weight.add_(1)
    with pytest.raises(CheckpointError, match="frozen weights"):
        restore_weights(model, last)
