"""The images that read-outs look at, and what units make of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystudy.data import PreparedData, nesting_order
from raystudy.finetune import readouts

MOST_IMAGES = 128
MOST_BOUNDARY_BYTES = 2**26
"""The outputs of frozen units are kept from one read-out to the next as long as they take at most this."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The images that read-outs look at: their `indices` and `labels`, `(n,)`, and a digest of their pixels."""

    indices: NDArray[np.int64]
    labels: Tensor
    pixels: str

    @classmethod
    def of(cls, data: PreparedData, seed: int) -> Probe:
        """Draw them from the validation images."""
        indices = probe_images(data.splits.validation, data.labels, seed=seed)
        labels = data.labels[indices].astype(np.int64)
        pixels = hashlib.blake2b(data.images[indices].tobytes() + labels.tobytes()).hexdigest()
        return cls(indices, torch.from_numpy(labels), pixels)

    @property
    def n_top(self) -> int:
        """How many images selectivity takes for a channel."""
        return readouts.top_images(len(self.labels))


@dataclass(frozen=True)
class Response:
    """What a unit makes of the probe set: `features` and `activity` as in `raystudy.finetune.readouts`, on the CPU.

    The numbers of it are computed once: many trials begin with the same responses, and frozen units keep theirs.
    """

    features: Tensor
    activity: Tensor
    probe: Probe

    @cached_property
    def selectivity(self) -> float | None:
        """See `readouts.selectivity`."""
        return finite(readouts.selectivity(self.features, self.probe.labels, self.probe.n_top))

    @cached_property
    def unchanged(self) -> readouts.Similarity:
        """Its similarity with itself."""
        return readouts.Similarity(1.0, self.similarity(self).chance)

    @cached_property
    def separability(self) -> float | None:
        """See `readouts.silhouette`."""
        return finite(readouts.silhouette(self.features, self.probe.labels))

    @cached_property
    def projection(self) -> readouts.Projection:
        """See `readouts.project`."""
        return readouts.project(self._gram)

    @cached_property
    def _gram(self) -> Tensor:
        return readouts.gram(self.features)

    def similarity(self, other: Response) -> readouts.Similarity:
        """Return how alike another response of as many channels is."""
        if self.features.shape[1] > len(self.features):  # the cheaper form, see `readouts.linear_cka`
            return readouts.gram_cka(self._gram, other._gram)
        return readouts.linear_cka(self.features, other.features)


class Boundary:
    """The output of the first `depth` units on the probe set, in batches, on the CPU; dropped where it grows too large."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._batches: list[Tensor] = []
        self.nbytes = 0

    def add(self, batch: Tensor) -> None:
        """Take up the next batch."""
        self.nbytes += batch.nbytes
        if self.nbytes > MOST_BOUNDARY_BYTES:
            self._batches.clear()
        else:  # a copy, since the next unit may write into its input
            self._batches.append(batch.to("cpu", copy=True))

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Return copies of the batches on `device`."""
        return (batch.to(device, copy=True) for batch in self._batches)

    @property
    def is_kept(self) -> bool:
        """Whether there was anything, and room for all of it."""
        return 0 < self.nbytes <= MOST_BOUNDARY_BYTES


class Collector:
    """Gathers the responses of units batch by batch."""

    def __init__(self, n_units: int, probe: Probe) -> None:
        self._probe = probe
        self._features: list[list[Tensor]] = [[] for _ in range(n_units)]
        self._activity: list[list[Tensor]] = [[] for _ in range(n_units)]

    def add(self, index: int, output: Tensor) -> None:
        """Take up the next batch of unit `index`."""
        features, activity = readouts.pooled(output)
        self._features[index].append(features.cpu())
        self._activity[index].append(activity.cpu())

    def collected(self) -> tuple[Response, ...]:
        """Return the responses by unit; empty ones of units that were not run."""
        empty = torch.empty(0, 0)
        return tuple(
            Response(torch.cat(features or [empty]), torch.cat(activity or [empty]).double().mean(0), self._probe)
            for features, activity in zip(self._features, self._activity, strict=True)
        )


def probe_images(validation: NDArray[np.int64], labels: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return at most `MOST_IMAGES` of the validation images, each class in proportion, classes taking turns.

    Of each class at least one; where there are more classes than places, of evenly spaced ones.

    Args:
        validation: indices of all of them.
        labels: of all images, `(n,)`.
        seed: of the draw.
    """
    order = nesting_order(validation, labels, seed=seed)
    n_classes = len(np.unique(labels[validation]))
    if n_classes > MOST_IMAGES:  # the order begins with one image of every class
        return order[np.linspace(0, n_classes - 1, MOST_IMAGES).round().astype(np.int64)]
    return order[:MOST_IMAGES]


def finite(value: float | None) -> float | None:
    """Return a number unless it is none."""
    return value if value is not None and np.isfinite(value) else None
