"""A trial's whole state on disk: written elsewhere and moved, verified when read, never unpickled.

A checkpoint is one safetensors file, `epoch-00003-<digest>.safetensors`, so that one rename makes it appear; the digest
of its bytes in its name is checked before anything in it is believed. Frozen weights are not stored: whoever loads a
checkpoint builds the model as the trial did, and a digest of its frozen tensors proves that it is the same.
There is no random state in it, because none is needed: see `raystudy.finetune.seeds`.

The working directory holds the last and the best epoch, and for a moment around a write one more.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from raystudy.errors import CheckpointError
from raystudy.finetune.digests import Buffer, are_bytes_of, are_tensors_of, bytes_digest, tensors_digest
from raystudy.storage import keep_trying

_log = logging.getLogger(__name__)

_FORMAT = 1
_NAME = re.compile(r"epoch-(\d{5,})-([0-9a-f]{32})\.safetensors")
_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a safetensors file calls the types of its tensors."""

Row = dict[str, float]
"""The metrics of one epoch, `epoch` included."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a trial after an epoch.

    Attributes:
        epoch: the epoch, from 1.
        best_epoch: the best one so far by the study's objective.
        rows: the metrics of every epoch up to this one.
        weights: the trained part of the model's state dict.
        optimizer: the optimiser's tensors, by parameter name and key.
        frozen_digest: of the rest of the state dict.
        fingerprint: identifies the trial's plan and data.
    """

    epoch: int
    best_epoch: int
    rows: tuple[Row, ...]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    frozen_digest: str
    fingerprint: str

    @property
    def row(self) -> Row:
        """The metrics of this epoch."""
        return self.rows[-1]


class _File(NamedTuple):
    epoch: int
    digest: str
    path: Path


def has_checkpoint(workdir: Path) -> bool:
    """Say whether `workdir` holds a checkpoint, without verifying it."""
    return bool(_files(workdir))


def save(workdir: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint`, then remove every other but the best one; wait where the disk is full or read-only.

    Whatever interrupts this leaves the checkpoints before it, the new one, or both: never a part of one. (After a crash of
    the machine itself a file may be torn; its digest then betrays it.)
    """
    parts = _encode(checkpoint)
    target = workdir / f"epoch-{checkpoint.epoch:05d}-{bytes_digest(parts)}.safetensors"
    keep_trying(lambda: _write(target, parts), target)
    with suppress(OSError):  # what cannot be removed now is removed after the next epoch
        _prune(workdir, target, checkpoint)
    return target


def load_last(workdir: Path, *, fingerprint: str | None = None) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there is none.

    Damaged ones are passed over with a warning: the epochs since the one before are trained again.

    Raises:
        CheckpointError: where it is whole but belongs to another plan than `fingerprint`.
    """
    for file in reversed(_files(workdir)):
        try:
            checkpoint = _read(file)
        except CheckpointError as error:
            _log.warning("%s; falling back to an older checkpoint or the start", error)
            continue
        if fingerprint is not None and checkpoint.fingerprint != fingerprint:
            raise CheckpointError(f"{file.path} belongs to another trial, study or data set; use another directory")
        return checkpoint
    return None


def load_best(workdir: Path) -> Checkpoint:
    """Return the checkpoint of the best epoch.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    last = load_last(workdir)
    if last is None:
        raise CheckpointError(f"no checkpoint in {workdir}")
    if last.best_epoch == last.epoch:
        return last
    candidates = [file for file in _files(workdir) if file.epoch == last.best_epoch]
    if not candidates:
        raise CheckpointError(f"the checkpoint of the best epoch, {last.best_epoch}, is missing in {workdir}")
    return _read(candidates[-1])


def load_best_weights(workdir: Path, model: nn.Module) -> Checkpoint:
    """Give `model` the weights of the best epoch and return that epoch's checkpoint.

    Args:
        workdir: a trial's working directory.
        model: built as the trial built it, at its starting weights.

    Raises:
        CheckpointError: where there is none, it is damaged, or `model` is not the same.
    """
    checkpoint = load_best(workdir)
    restore_weights(model, checkpoint)
    return checkpoint


def restore_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give `model` the weights of `checkpoint`, after making sure that they are its own.

    Raises:
        CheckpointError: naming the tensors that are missing, or the one whose shape or values differ.
    """
    state = model.state_dict()
    unknown = checkpoint.weights.keys() - state.keys()
    if unknown:
        raise CheckpointError(f"the model has no {', '.join(sorted(unknown)[:5])}, which the checkpoint holds")
    for name, tensor in checkpoint.weights.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(f"{name}: expected {tuple(state[name].shape)}, found {tuple(tensor.shape)}")
    if not are_tensors_of(_frozen(model, checkpoint.weights.keys()), checkpoint.frozen_digest):
        raise CheckpointError("the model's frozen weights are not those that the checkpoint was trained with")
    model.load_state_dict(checkpoint.weights, strict=False)


def frozen_digest(model: nn.Module, trained: Collection[str]) -> str:
    """Return a digest of the names, types, shapes and values of all of `model`'s tensors that are not in `trained`."""
    return tensors_digest(_frozen(model, trained))


def _frozen(model: nn.Module, trained: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    return (item for item in sorted(model.state_dict().items()) if item[0] not in trained)


def _files(workdir: Path) -> list[_File]:
    """Return the checkpoints in `workdir`, oldest epoch first."""
    if not workdir.is_dir():
        return []
    matches = [(match, path) for path in workdir.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(_File(int(match[1]), match[2], path) for match, path in matches)


def _write(target: Path, parts: Sequence[Buffer]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _prune(workdir: Path, newest: Path, checkpoint: Checkpoint) -> None:
    for file in _files(workdir):
        is_best = file.epoch == checkpoint.best_epoch != checkpoint.epoch
        if file.path != newest and not is_best:
            file.path.unlink(missing_ok=True)
    for leftover in workdir.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _encode(checkpoint: Checkpoint) -> list[Buffer]:
    """Return what makes up the file of a checkpoint: the length of its header, the header, and each tensor where it lies.

    The library's `save` copies every tensor twice on the way, which takes more time than digest and disk together (on a CPU
    with epochs of a second 4 % of a study), and its `save_file` tells no digest. The format is the library's, and so is what
    reads it. The largest elements come first, as the library has it: so each tensor is aligned.
    """
    tensors = {_WEIGHTS + name: tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {_OPTIMIZER + name: tensor for name, tensor in checkpoint.optimizer.items()}
    about = {
        "format": _FORMAT,
        "epoch": checkpoint.epoch,
        "best_epoch": checkpoint.best_epoch,
        "rows": checkpoint.rows,
        "frozen_digest": checkpoint.frozen_digest,
        "fingerprint": checkpoint.fingerprint,
    }
    header: dict[str, Any] = {"__metadata__": {"raystudy": json.dumps(about, allow_nan=False)}}
    data: list[Buffer] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        view = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        start, end = end, end + len(view)
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        data.append(view)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *data]


def _read(file: _File) -> Checkpoint:
    data = file.path.read_bytes()
    if not are_bytes_of(data, file.digest):
        raise CheckpointError(f"{file.path} is damaged: its bytes do not have the digest in its name")
    about = _metadata(data, file.path)
    tensors = safetensors.torch.load(data)
    return Checkpoint(
        epoch=about["epoch"],
        best_epoch=about["best_epoch"],
        rows=tuple(about["rows"]),
        weights=_under(_WEIGHTS, tensors),
        optimizer=_under(_OPTIMIZER, tensors),
        frozen_digest=about["frozen_digest"],
        fingerprint=about["fingerprint"],
    )


def _metadata(data: bytes, path: Path) -> dict[str, Any]:
    """Return what `_encode` wrote about the checkpoint: a safetensors file is a length, a JSON header and the tensors."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("raystudy", "{}"))
    if about.get("format") != _FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {about.get('format')}, expected {_FORMAT}")
    return about


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
