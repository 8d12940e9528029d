"""What the first units of a network make of images: computed once, kept in the machine's cache, mapped by all its trials.

A split's images are cut into blocks, each an entry of the cache; training images in the order in which growing data fractions
take them up, so that a trial on a tenth of them needs the first tenth of the blocks. A block is keyed by all that its content
depends on: pixels, the weights of the units, resizing, normalisation, precision, device and torch's version. Deeper
activations are computed from the deepest shallower ones that the cache holds.

Whoever reads an activation gets the tensor that the units would have given, memory layout included, since kernels are chosen by
layout and another kernel rounds differently. Kernels are chosen by the size of the batch, too: activations are computed in
batches of the size in which they will be read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystudy.cache import Cache, Entry, Writer
from raystudy.finetune import gpu_share
from raystudy.finetune.batches import ImageStore
from raystudy.finetune.compute import Compute
from raystudy.finetune.digests import tensors_digest
from raystudy.finetune.model import Classifier

KIND = "activations"
"""The kind of these entries."""

_VERSION = 1
_BLOCK_ROWS, _BLOCK_BYTES = 1024, 2**28
_GPU_SHARE = 0.25
"""Activations move to the GPU if they take at most this share of the memory free there."""
_STORED_AS: dict[torch.dtype, tuple[str, torch.dtype]] = {
    torch.float32: ("float32", torch.float32),
    torch.bfloat16: ("int16", torch.int16),  # numpy has no bfloat16: its bits are kept
    torch.float16: ("float16", torch.float16),
}

_MOMENTUM = re.compile(r"momentum=[^,)]*")

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one image's activation lies in memory.

    Attributes:
        dtype: of its values.
        shape: without the batch.
        order: its dimensions from the slowest to the fastest.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, activation: Tensor) -> Layout | None:
        """Return the layout of a batch of activations; None where it cannot be given back as it is."""
        if activation.dtype not in _STORED_AS:
            return None
        strides = activation.stride()[1:]
        order = tuple(sorted(range(len(strides)), key=lambda dimension: -strides[dimension]))
        layout = cls(activation.dtype, tuple(activation.shape[1:]), order)
        restored = layout.restore(torch.from_numpy(layout.flatten(activation)))
        return layout if restored.stride() == activation.stride() else None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of a row on disk: the slowest dimension first."""
        return tuple(self.shape[dimension] for dimension in self.order)

    @property
    def stored_dtype(self) -> str:
        """The name of the numpy dtype on disk."""
        return _STORED_AS[self.dtype][0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's activation."""
        return int(np.prod(self.shape)) * np.dtype(self.stored_dtype).itemsize

    def flatten(self, activation: Tensor) -> NDArray[Any]:
        """Return a batch of activations as rows, (batch, *stored_shape)."""
        rows = activation.detach().permute(0, *(dimension + 1 for dimension in self.order)).contiguous()
        return np.asarray(rows.view(_STORED_AS[self.dtype][1]).cpu().numpy())

    def restore(self, rows: Tensor) -> Tensor:
        """Return rows, (batch, *stored_shape), as the batch of activations that they were; no copy is made."""
        inverse = np.argsort(self.order)
        return rows.view(self.dtype).permute(0, *(int(dimension) + 1 for dimension in inverse))

    def document(self) -> dict[str, Any]:
        """Return it as plain data, for `of_document`."""
        return {"dtype": str(self.dtype).removeprefix("torch."), "shape": list(self.shape), "order": list(self.order)}

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> Layout:
        """Return the layout that `document` gave."""
        return cls(getattr(torch, document["dtype"]), tuple(document["shape"]), tuple(document["order"]))


class Prefix:
    """The first units of a network with the preprocessing before them: a fixed function of an image.

    Args:
        classifier: the network; its first `depth` units do not train.
        depth: how many units.
        compute: the device and precision.
    """

    def __init__(self, classifier: Classifier, depth: int, compute: Compute) -> None:
        self.depth, self.compute = depth, compute
        self._classifier = classifier
        self._digests = _unit_digests(classifier, depth)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the activations of float images (batch, 3, side, side) of 0 to 255."""
        with torch.no_grad(), self.compute.autocast():
            return self._run(self._classifier.preprocess(images), 0)

    def onward(self, activation: Tensor, depth: int) -> Tensor:
        """Return the activations from those of the first `depth` units."""
        with torch.no_grad(), self.compute.autocast():
            return self._run(activation, depth)

    def _run(self, activation: Tensor, depth: int) -> Tensor:
        for unit in list(self._classifier.model.backbone.units)[depth : self.depth]:
            activation = unit.eval()(activation)
        return activation

    def identity(self, depth: int) -> list[Any]:
        """Return, as plain data, all that the activations of the first `depth` units depend on beside the pixels."""
        preprocess = self._classifier.preprocess
        scale = [preprocess.resolution, preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist()]
        device = self.compute.device
        where = torch.cuda.get_device_name(device) if self.compute.is_gpu else torch.backends.cpu.get_cpu_capability()
        name = self._classifier.model.backbone.info.architecture
        return [name, scale, self._digests[:depth], self.compute.precision, device.type, where, torch.__version__]


class Blocks:
    """The activations of one split's images, block by block.

    Args:
        cache: where they are kept.
        images: the decoded images.
        pixels: identifies those.
        batch_size: how many images are read at a time.
        fills_up: whether all batches are full; else the last one of the split is not.
        about: what the cache says of the entries.
    """

    def __init__(
        self, cache: Cache, images: ImageStore, pixels: str, batch_size: int, about: dict[str, Any], *, fills_up: bool
    ) -> None:
        self._cache, self._images, self._pixels = cache, images, pixels
        self._batch_size, self._fills_up, self._about = batch_size, fills_up, about

    def open(self, prefix: Prefix, order: Indices, n_images: int, layout: Layout) -> Reader:
        """Return the activations of the first `n_images` of `order`; what is not in the cache is computed.

        Raises:
            CacheError: the cache has no room, or cannot be written.
        """
        size = max(min(_BLOCK_ROWS, _BLOCK_BYTES // layout.row_bytes) // self._batch_size, 1) * self._batch_size
        blocks = [order[start : start + size] for start in range(0, n_images, size)]
        entries = [self._open_block(prefix, block, layout) for block in blocks]
        return Reader(entries, np.concatenate(blocks), prefix.compute)

    def _open_block(self, prefix: Prefix, block: Indices, layout: Layout) -> Entry:
        return self._cache.open_or_build(
            KIND,
            self.key(prefix, prefix.depth, block),
            lambda writer: self._write(writer, prefix, block),
            about={**self._about, "units": prefix.depth, "images": len(block)},
            size=len(block) * layout.row_bytes,
        )

    def key(self, prefix: Prefix, depth: int, block: Indices) -> str:
        """Identify the activations of the first `depth` units on the images `block`."""
        rows = hashlib.sha256(np.ascontiguousarray(block).tobytes()).hexdigest()
        return hashlib.sha256(
            json.dumps([_VERSION, self._pixels, rows, self._batch_size, self._fills_up, prefix.identity(depth)]).encode()
        ).hexdigest()[:40]

    def _write(self, writer: Writer, prefix: Prefix, block: Indices) -> None:
        array, left = None, len(block)
        for activation in self._compute(prefix, block):
            layout = Layout.of(activation)
            if layout is None:
                raise ValueError("the memory layout of the activations changes from batch to batch")
            if array is None:
                array = writer.array("activations", layout.stored_dtype, layout.stored_shape)
                writer.about["layout"] = layout.document()
            array.append(layout.flatten(activation)[:left])
            left -= len(activation)

    def _compute(self, prefix: Prefix, block: Indices) -> Iterator[Tensor]:
        """Yield the block's activations, from the deepest that the cache holds, or else from the images."""
        found = ((depth, self._cache.find(KIND, self.key(prefix, depth, block))) for depth in range(prefix.depth - 1, 0, -1))
        depth, entry = next(((depth, entry) for depth, entry in found if entry is not None), (0, None))
        reader = None if entry is None else Reader([entry], block, prefix.compute, resident=False)
        for some in self._batches(block):
            yield prefix(self._images.fetch(some)[0]) if reader is None else prefix.onward(reader.fetch(some), depth)

    def _batches(self, block: Indices) -> Iterator[Indices]:
        """Yield the block in batches; training batches are all full, so that the last one is filled up."""
        for start in range(0, len(block), self._batch_size):
            some = block[start : start + self._batch_size]
            yield np.resize(some, self._batch_size) if self._fills_up else some


class Reader:
    """Activations by image.

    Attributes:
        depth: how many units they have been through.

    Args:
        entries: the blocks.
        images: the images of all blocks, one after another.
        compute: the device that they are needed on.
        resident: whether they may move to a GPU as a whole.
    """

    def __init__(self, entries: Sequence[Entry], images: Indices, compute: Compute, *, resident: bool = True) -> None:
        self.depth = int(entries[0].about["units"])
        self._layout = Layout.of_document(entries[0].about["layout"])
        self._blocks = [entry.array("activations") for entry in entries]
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        self._row_of = np.full(int(images.max()) + 1, -1, dtype=np.int64)
        self._row_of[images] = np.arange(len(images))
        self._device = compute.device
        self._resident: Tensor | None = None
        size = sum(block.nbytes for block in self._blocks)
        if resident and compute.is_gpu and size <= _GPU_SHARE * gpu_share.room(compute.device):
            self._resident = torch.cat([torch.from_numpy(np.array(block)).to(compute.device) for block in self._blocks])

    def fetch(self, indices: Indices) -> Tensor:
        """Return the activations of images, (batch, ...), as the units would have given them.

        Raises:
            IndexError: an image is not among them.
        """
        rows = self._row_of[indices]
        if (rows < 0).any():
            raise IndexError("activations of images that are not in the store were asked for")
        if self._resident is not None:
            return self._layout.restore(self._resident[torch.from_numpy(rows).to(self._device, non_blocking=True)])
        found = self._gather(rows)
        if self._device.type == "cuda":
            found = found.pin_memory().to(self._device, non_blocking=True)
        return self._layout.restore(found)

    def _gather(self, rows: Indices) -> Tensor:
        first = self._blocks[0]
        # Into torch's memory, as the units would have given them: a matrix product may round by alignment, and numpy's is less.
        found = torch.empty((len(rows), *first.shape[1:]), dtype=torch.from_numpy(np.empty(0, first.dtype)).dtype)
        out = found.numpy()
        if len(self._blocks) == 1:
            np.take(first, rows, axis=0, out=out, mode="clip")  # any other mode fills a second buffer first
            return found
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            chosen = numbers == number
            out[chosen] = self._blocks[number][rows[chosen] - self._starts[number]]
        return found


def _unit_digests(classifier: Classifier, depth: int) -> list[list[str]]:
    # What a unit is beside its weights (strides, activations) is in its printed form. A frozen unit's batch norms keep
    # their statistics, whatever momentum the trial gives to those that train.
    return [
        [_MOMENTUM.sub("", repr(unit)), tensors_digest(sorted(unit.state_dict().items()))]
        for unit in list(classifier.model.backbone.units)[:depth]
    ]
