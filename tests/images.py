"""Small sets of images, made by formula, that a network can learn."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def write_idx(folder: Path, *, n_classes: int, per_class: int, side: int) -> None:
    """Write noisy bars, whose place is the class, as gzipped IDX files."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_classes, dtype=np.uint8), per_class)
    images = rng.integers(0, 90, size=(len(labels), side, side), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, label * side // n_classes : (label + 1) * side // n_classes] += 120
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x03" + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x01" + np.array([len(labels)], ">u4").tobytes() + labels.tobytes())
