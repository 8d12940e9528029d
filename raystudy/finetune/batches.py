"""Training and validation batches: which images, when, and as which tensors.

The order of training images is an endless stream, one permutation after another, and every step's batch is a pure
function of the step. So nothing has to be saved to resume it, every batch is full, and trials on different data fractions
take the same number of equal steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystudy.finetune import gpu_share
from raystudy.finetune.augmentation import augment, draw_cutmix, draw_mixup, view
from raystudy.finetune.compute import Compute
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import Preprocess
from raystudy.finetune.seeds import Purpose, TrialSeeds

_EVALUATION_PIXELS = 2**23
"""Pixels per evaluation batch. By pixels and not by `batch_size`, which must not change what is measured; and few enough
that an evaluation needs less memory than the training that it interrupts."""

_GPU_SHARE = 0.25
"""A store moves to the GPU if it takes at most this share of the memory free there: most is for the network."""


class Activations(Protocol):
    """What the first units of a network made of images, by image."""

    @property
    def depth(self) -> int:
        """How many units."""

    def fetch(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the activations of images, `(batch, ...)`."""


class ImageStore:
    """Images and labels, fetched by index as tensors on the device.

    Args:
        images: uint8 `(n, side, side, 3)`, usually a read-only memory map.
        labels: int64 `(n,)`.
        compute: the device; a GPU keeps all images if they are small for it.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], compute: Compute) -> None:
        self._images = images
        self._device = compute.device
        self._labels = torch.from_numpy(np.array(labels, dtype=np.int64)).to(compute.device)
        self._resident: Tensor | None = None
        if compute.is_gpu and images.nbytes <= _GPU_SHARE * gpu_share.room(compute.device):
            self._resident = torch.from_numpy(np.array(images)).to(compute.device)

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the images as float `(batch, 3, side, side)` of 0 to 255, channels last, and their labels `(batch,)`."""
        where = torch.from_numpy(indices).to(self._device, non_blocking=True)
        pixels = self._read(indices) if self._resident is None else self._resident[where]
        # The permuted view of (batch, side, side, 3) memory already is channels-last: no copy.
        return pixels.permute(0, 3, 1, 2).float(), self._labels[where]

    def labels(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the labels of images, `(batch,)`."""
        return self._labels[torch.from_numpy(indices).to(self._device, non_blocking=True)]

    def _read(self, indices: NDArray[np.int64]) -> Tensor:
        pixels = torch.from_numpy(self._images[indices])
        return pixels.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else pixels


class BatchOrder:
    """Which images each training step sees: permutation after permutation of `indices`, cut into equal batches.

    Args:
        indices: the images to train on, `(n,)`; at least one.
        batch_size: images per step; may exceed `n`, a batch then spans several passes.
        seeds: pass `p` is permuted by the seed derived for `Purpose.ORDER` and `p`.
    """

    def __init__(self, indices: NDArray[np.int64], batch_size: int, seeds: TrialSeeds) -> None:
        self._indices = indices
        self._batch_size = batch_size
        self._seeds = seeds
        # Two passes meet in most batches; when batches are larger than the subset no cache would help anyway.
        self._pass = lru_cache(maxsize=2)(self._permute)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the images of `step` (from 0), sorted: memory-mapped files are read fastest in ascending order."""
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        passes, offsets = np.divmod(positions, len(self._indices))
        parts = [self._pass(int(number))[offsets[passes == number]] for number in np.unique(passes)]
        return np.sort(np.concatenate(parts))

    def _permute(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng(self._seeds.derive(Purpose.ORDER, number)).permutation(self._indices)


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step's input.

    Attributes:
        inputs: normalised images `(batch, 3, side, side)`, or what the first `depth` units made of them.
        labels: `(batch,)`; of the views that self-supervised training sees, which image each is of.
        partner_labels: the labels of the images mixed in by MixUp or CutMix, `(batch,)`; `labels` itself without.
        weight: the share of `labels` in the target; 1 without MixUp and CutMix.
        depth: how many units the inputs have been through.
    """

    inputs: Tensor
    labels: Tensor
    partner_labels: Tensor
    weight: float
    depth: int = 0


class TrainingBatches:
    """The training batches of a trial, addressed by step.

    Args:
        store: the images.
        order: which of them each step sees.
        preprocess: resizes and normalises; on the same device as the store's tensors.
        hyper: says the augmentation, the MixUp and the CutMix, or that there are two views of every image instead.
        seeds: augmentation, MixUp and CutMix of a step derive from it and the step.
    """

    def __init__(
        self, store: ImageStore, order: BatchOrder, *, preprocess: Preprocess, hyper: Hyperparameters, seeds: TrialSeeds
    ) -> None:
        self._store = store
        self._order = order
        self._preprocess = preprocess
        self._hyper = hyper
        self._seeds = seeds

    def at(self, step: int, stored: Activations | None = None) -> Batch:
        """Return the batch of `step`, counted from 0 over the whole trial; its activations where they are `stored`."""
        if stored is not None:
            indices = self._order.batch(step)
            labels = self._store.labels(indices)
            return Batch(stored.fetch(indices), labels, labels, 1.0, stored.depth)
        indices = self._order.batch(step)
        images, labels = self._store.fetch(indices)
        images = self._preprocess.resize(images)
        if self._hyper.is_self_supervised:
            return self._views(images, torch.from_numpy(indices).to(images.device), step)
        if self._hyper.augmentation != "none":
            generator = torch.Generator().manual_seed(self._seeds.derive(Purpose.AUGMENTATION, step))
            images = augment(images, self._hyper.augmentation, generator)
        return self._mix(self._preprocess.normalize(images), labels, step)

    def _views(self, images: Tensor, numbers: Tensor, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self._seeds.derive(Purpose.AUGMENTATION, step))
        views = torch.cat([view(images, generator) for _ in range(2)])
        return Batch(self._preprocess.normalize(views), numbers.repeat(2), numbers.repeat(2), 1.0)

    def _mix(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        hyper = self._hyper
        if hyper.mixup == 0 and hyper.cutmix == 0:
            return Batch(images, labels, labels, 1.0)
        if hyper.cutmix == 0 or (hyper.mixup > 0 and self._is_heads(step)):
            return self._mix_up(images, labels, step)
        return self._cut_mix(images, labels, step)

    def _is_heads(self, step: int) -> bool:
        """Toss a coin; its seed is neither MixUp's nor CutMix's, on whose draws it must not depend."""
        return bool(np.random.default_rng(self._seeds.derive(Purpose.MIXING, step)).random() < 0.5)

    def _mix_up(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        weight, partners = draw_mixup(self._hyper.mixup, len(images), self._seeds.derive(Purpose.MIXUP, step))
        partners = partners.to(images.device)
        return Batch(images.lerp(images[partners], 1 - weight), labels, labels[partners], weight)

    def _cut_mix(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        seed = self._seeds.derive(Purpose.CUTMIX, step)
        cut = draw_cutmix(self._hyper.cutmix, images.shape[-1], len(images), seed)
        partners = cut.partners.to(images.device)
        mixed = images.clone()
        mixed[:, :, cut.rows, cut.columns] = images[partners, :, cut.rows, cut.columns]
        return Batch(mixed, labels, labels[partners], cut.weight)


def evaluation_batch_size(side: int) -> int:
    """Return how many images of `side` pixels to evaluate at once: from 1 to 256."""
    return max(1, min(256, _EVALUATION_PIXELS // side**2))


def evaluation_batches(
    store: ImageStore, indices: NDArray[np.int64], *, batch_size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `indices` in order, never augmented, as float images `(batch, 3, side, side)` of 0 to 255 with labels."""
    for start in range(0, len(indices), batch_size):
        yield store.fetch(indices[start : start + batch_size])


def stored_batches(
    store: ImageStore, stored: Activations, indices: NDArray[np.int64], *, batch_size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `evaluation_batches` does, as stored activations with labels."""
    for start in range(0, len(indices), batch_size):
        some = indices[start : start + batch_size]
        yield stored.fetch(some), store.labels(some)
