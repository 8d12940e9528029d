"""Decoded images in the cache of this machine, mapped into memory by every process that trains on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystudy.cache import Cache, Entry, Writer
from raystudy.data.decode import DIGEST_BYTES, DecodedImage

KIND = "decoded"
"""The kind of these entries."""

_ROW_BYTES = 100
"""Bytes of an image beside its pixels, roughly: label, name, digest and sizes."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """An image that is not in the store: its part (see `Store.parts`), its name, and why it could not be read."""

    part: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says about itself as a whole."""

    image_size: int
    class_names: tuple[str, ...]
    bad: tuple[BadRow, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store.

    Attributes:
        images: (n, size, size, 3), read-only, mapped from the file.
        labels: (n,), indices into `info.class_names`.
        parts: (n,), which source an image is from: 0 the main one, 1 validation, 2 test.
        names: (n,).
        digests: (n, 16), identify the pixels.
        original_sizes: (n, 2), width and height in pixels.
        info: the rest.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parts: NDArray[np.int8]
    names: Sequence[str]
    digests: NDArray[np.uint8]
    original_sizes: NDArray[np.int32]
    info: StoreInfo


def open_or_build(
    cache: Cache, key: str, *, image_size: int, about: Mapping[str, Any], build: Callable[[StoreWriter], None]
) -> Store:
    """Return the store `key` of `cache`; where there is none, `build` writes it.

    Args:
        cache: where stores are kept.
        key: identifies the images and how they are decoded.
        image_size: the side of the decoded images, in pixels.
        about: what the cache says about the store, plain JSON data.
        build: calls `StoreWriter.expect` first, then adds the images.

    Raises:
        CacheError: the cache cannot be written; CacheFull if it lacks room, before anything is decoded.
        Whatever `build` raises; nothing is left behind then.
    """

    def write(entry: Writer) -> None:
        writer = StoreWriter(entry, image_size=image_size)
        build(writer)
        writer.finish()

    return _store(cache.open_or_build(KIND, key, write, about={**about, "image_size": image_size}))


class StoreWriter:
    """Collects decoded images: pixels go to disk at once, so that memory stays small however many images there are."""

    def __init__(self, entry: Writer, *, image_size: int) -> None:
        """Write the images into an entry of the cache."""
        self._entry = entry
        self._image_size = image_size
        self._pixels = entry.array("pixels", np.uint8, (image_size, image_size, 3))
        self._rows: list[tuple[int, int, str, bytes, int, int]] = []
        self._bad: list[BadRow] = []
        self._class_names: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()

    def expect(self, images: int) -> None:
        """Make room for that many images, or raise CacheFull."""
        self._entry.expect(images * (self._image_size**2 * 3 + _ROW_BYTES))

    def describe(self, *, class_names: tuple[str, ...], warnings: tuple[str, ...]) -> None:
        """Set the names of the classes and what the source warned about."""
        self._class_names, self._warnings = class_names, warnings

    def add(self, image: DecodedImage, *, label: int, part: int, name: str) -> None:
        """Append one image."""
        self._pixels.append(image.pixels[np.newaxis])
        self._rows.append((label, part, name, image.digest, *image.original_size))

    def add_bad(self, row: BadRow) -> None:
        """Record an image that cannot be read."""
        self._bad.append(row)

    def finish(self) -> None:
        """Write what is known of the images beside their pixels."""
        labels, parts, names, digests, widths, heights = zip(*self._rows, strict=True) if self._rows else ((),) * 6
        self._entry.column("label", pa.array(labels, pa.int64()))
        self._entry.column("part", pa.array(parts, pa.int8()))
        self._entry.column("name", pa.array(names, pa.string()))
        self._entry.column("digest", pa.array(digests, pa.binary(DIGEST_BYTES)))
        self._entry.column("width", pa.array(widths, pa.int32()))
        self._entry.column("height", pa.array(heights, pa.int32()))
        info = StoreInfo(self._image_size, self._class_names, tuple(self._bad), self._warnings)
        self._entry.about.update(images=len(labels), classes=len(self._class_names), info=_info_document(info))


def _store(entry: Entry) -> Store:
    batch = entry.batch
    return Store(
        images=entry.array("pixels"),
        labels=np.array(entry.array("label")),  # a copy: torch warns about read-only arrays
        parts=entry.array("part"),
        names=tuple(batch.column("name").to_pylist()),
        digests=_bytes_of(batch.column("digest"), DIGEST_BYTES),
        original_sizes=np.stack([entry.array("width"), entry.array("height")], axis=1),
        info=_read_info(entry.about["info"]),
    )


def _bytes_of(column: Any, width: int) -> NDArray[np.uint8]:
    """View a fixed-size binary column as (n, width) without copying."""
    if len(column) == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * width).reshape(-1, width)


def _info_document(info: StoreInfo) -> dict[str, Any]:
    return {
        "image_size": info.image_size,
        "class_names": info.class_names,
        "bad": [(row.part, row.name, row.reason) for row in info.bad],
        "warnings": info.warnings,
    }


def _read_info(document: Mapping[str, Any]) -> StoreInfo:
    return StoreInfo(
        image_size=document["image_size"],
        class_names=tuple(document["class_names"]),
        bad=tuple(BadRow(*row) for row in document["bad"]),
        warnings=tuple(document["warnings"]),
    )
