"""Whether a trial reads its frozen units' activations instead of computing them, and the activations if so.

Read are only activations that are a fixed function of an image: of units that do not train, whose weights other trials have
too, and for training only where images are neither augmented nor mixed. `auto` compares what computing them costs in this
process with what reading and writing them costs, for as many epochs as trials of the study are expected to train at the same
depth. In float32 on the CPU a batch is computed once as well and compared bit by bit before a process relies on what it reads.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from raystudy.cache import Cache, CacheError
from raystudy.finetune.activations import Blocks, Indices, Layout, Prefix, Reader
from raystudy.finetune.batches import ImageStore
from raystudy.finetune.compute import Compute
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import Classifier

_log = logging.getLogger(__name__)

_WRITE_BYTES_PER_S = 5e8
"""What an entry takes to be written, with its checksums, on a disk that is not a fast one."""
_MOST_OF_CACHE = 0.8
"""Share of the cache that one study's activations may be expected to take: what evicts itself helps nobody."""
_READERS_KEPT = 8
_READERS_KEPT_ON_GPU = 2
"""Those of the trial at work: what a reader keeps on the GPU is taken from whatever trains there next."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What is known of the trials that read the same activations.

    Attributes:
        mode: `auto` decides by cost, `on` takes whatever is exact.
        cache: where activations are kept.
        epochs: epochs that all trials with the same frozen depth are expected to train.
        depths: frozen depths that the study may come to.
    """

    mode: Literal["auto", "on"]
    cache: Cache
    epochs: float
    depths: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What activations cost, per image.

    Attributes:
        layout: of them; None where they cannot be stored.
        compute_s: seconds to compute one.
        read_s: seconds to read one.
    """

    layout: Layout | None
    compute_s: float
    read_s: float

    def pays(self, n_images: int, passes: float, room: float) -> bool:
        """Whether storing `n_images` of them pays if each is needed `passes` times and may take `room` bytes."""
        if self.layout is None or n_images * self.layout.row_bytes > room:
            return False
        write_s = self.layout.row_bytes / _WRITE_BYTES_PER_S
        return passes * self.compute_s > self.compute_s + write_s + passes * self.read_s


@dataclass(frozen=True, slots=True)
class Split:
    """A split's images.

    Attributes:
        name: `train` or `validation`.
        order: all of them, those first that small data fractions hold.
        n_needed: how many of `order` this trial needs.
        passes: how often each is needed in an epoch.
        batch_size: how many are read at a time.
    """

    name: Literal["train", "validation"]
    order: Indices
    n_needed: int
    passes: float
    batch_size: int

    @property
    def is_drawn(self) -> bool:
        """Whether batches are drawn at random, all of one size, rather than `order` cut into pieces."""
        return self.name == "train"


class Prefixes:
    """The stored activations of one trial.

    Args:
        sharing: with whom, and where.
        classifier: the trial's network at its starting weights.
        images: the decoded images.
        pixels: identifies those.
        hyper: the trial's configuration.
        compute: the device and precision.
    """

    def __init__(
        self,
        sharing: Sharing,
        classifier: Classifier,
        images: ImageStore,
        pixels: str,
        *,
        hyper: Hyperparameters,
        compute: Compute,
    ) -> None:
        self._sharing, self._classifier, self._images, self._pixels = sharing, classifier, images, pixels
        self._hyper, self._compute = hyper, compute
        n_units = classifier.model.backbone.info.n_units
        self._n_shared = n_units - hyper.reinit_units if hyper.pretrained else 0
        """Leading units whose weights other trials have too."""
        self._prefixes: dict[int, Prefix] = {}

    def reader(self, depth: int, split: Split) -> Reader | None:
        """Return the activations of the first `depth` units on a split's images; None where they are to be computed."""
        changes = split.is_drawn and not self._hyper.sees_stored_images
        if changes or not 0 < depth <= self._n_shared:
            return None
        if depth not in self._prefixes:
            self._prefixes[depth] = Prefix(self._classifier, depth, self._compute)
        prefix = self._prefixes[depth]
        cache = self._sharing.cache
        about = {"split": split.name, "backbone": self._hyper.backbone}
        blocks = Blocks(cache, self._images, self._pixels, split.batch_size, about, fills_up=split.is_drawn)
        key = (blocks.key(prefix, depth, split.order), split.n_needed)
        if key not in _readers:
            _readers[key] = self._open(blocks, prefix, split)
            while len(_readers) > (_READERS_KEPT_ON_GPU if self._compute.is_gpu else _READERS_KEPT):
                _readers.popitem(last=False)
        _readers.move_to_end(key)
        return _readers[key]

    def _open(self, blocks: Blocks, prefix: Prefix, split: Split) -> Reader | None:
        cost = measured(prefix, self._images, split.order[: split.batch_size])
        sharing = self._sharing
        if cost.layout is None:
            return None
        room = _MOST_OF_CACHE * sharing.cache.limit / max(sharing.depths, 1)
        if sharing.mode == "auto" and not cost.pays(split.n_needed, sharing.epochs * split.passes, room):
            _log.info("activations of %d units on %s images are computed: storing them does not pay", prefix.depth, split.name)
            return None
        try:
            reader = blocks.open(prefix, split.order, split.n_needed, cost.layout)
        except CacheError as error:
            _log.warning("activations of %d units are computed, they cannot be stored: %s", prefix.depth, error)
            return None
        return reader if self._is_exact(reader, prefix, split) else None

    def _is_exact(self, reader: Reader, prefix: Prefix, split: Split) -> bool:
        """Whether a batch reads as it computes; validation's do, they are the very batches that were computed.

        Not asked on a GPU and in half precision, where activations do depend, by rounding, on what else is in the batch.
        """
        if not split.is_drawn or self._compute.is_gpu or self._compute.precision != "float32":
            return True
        some = np.sort(np.random.default_rng(0).choice(split.order[: split.n_needed], split.batch_size))
        computed, read = prefix(self._images.fetch(some)[0]), reader.fetch(some)
        if torch.equal(computed, read) and computed.stride() == read.stride():
            return True
        _log.warning("activations of %d units are computed: here they depend on the batch that they are in", prefix.depth)
        return False


_readers: OrderedDict[tuple[str, int], Reader | None] = OrderedDict()
"""What this process has opened, or decided against, the last used last. Trials come one after another."""


def measured(prefix: Prefix, images: ImageStore, sample: Indices) -> Cost:
    """Measure what the activations of some images cost here, after a first run that warms up."""
    activation = prefix(images.fetch(sample)[0])
    layout = Layout.of(activation)
    prefix.compute.synchronize()
    started = time.perf_counter()
    prefix(images.fetch(sample)[0])
    prefix.compute.synchronize()
    computed = time.perf_counter() - started
    if layout is None:
        return Cost(None, computed / len(sample), 0.0)
    rows = layout.flatten(activation)
    order = np.random.default_rng(0).permutation(len(sample))
    started = time.perf_counter()
    layout.restore(torch.from_numpy(np.take(rows, order, axis=0))).to(prefix.compute.device)
    prefix.compute.synchronize()
    return Cost(layout, computed / len(sample), (time.perf_counter() - started) / len(sample))
