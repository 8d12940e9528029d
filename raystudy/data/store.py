"""Decoded images on disk: one Arrow IPC file per key, mapped into memory by every process of the machine.

`<folder>/<key>.arrow` holds a single record batch, so that its pixel buffer *is* the (n, size, size, 3) array. It is
written under a hidden temporary name in the same folder and renamed when complete; `<key>.lock` keeps two processes
from building it twice. Readers need no lock: a file of that name is complete and never changes.

What decides over old stores (eviction by size, checksums on read) belongs here too, into `open_or_build`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from raystudy.data.decode import DIGEST_BYTES, DecodedImage

_METADATA_KEY = b"raystudy"


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


def open_or_build(folder: Path, key: str, *, image_size: int, build: Callable[[StoreWriter], None]) -> Store:
    """Return the store `key` of `folder`; where there is none, `build` writes it.

    Raises:
        Whatever `build` raises; nothing is left behind then.
    """
    path = folder / f"{key}.arrow"
    if (store := _open_if_whole(path)) is not None:
        return store
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if (store := _open_if_whole(path)) is None:
            _remove_leftovers(path)
            with StoreWriter(path, image_size=image_size) as writer:
                build(writer)
            store = open_store(path)
    return store


def open_store(path: Path) -> Store:
    """Map the store at `path` into memory.

    Raises:
        FileNotFoundError: there is none.
        pyarrow.ArrowInvalid: the file is damaged.
    """
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    info = _read_info(batch.schema.metadata[_METADATA_KEY])
    size = info.image_size
    return Store(
        images=_bytes_of(batch.column("pixels"), size * size * 3).reshape(-1, size, size, 3),
        labels=np.array(batch.column("label").to_numpy()),  # a copy: torch warns about read-only arrays
        parts=batch.column("part").to_numpy(),
        names=tuple(batch.column("name").to_pylist()),
        digests=_bytes_of(batch.column("digest"), DIGEST_BYTES),
        original_sizes=np.stack([batch.column("width").to_numpy(), batch.column("height").to_numpy()], axis=1),
        info=info,
    )


class StoreWriter:
    """Collects decoded images and, on leaving its context without an error, puts the complete store in place.

    Pixels go to a file of their own first, so that memory stays small however many images there are.
    """

    def __init__(self, path: Path, *, image_size: int) -> None:
        """Prepare to write the store at `path`; nothing appears under that name before the context is left."""
        self._path = path
        self._image_size = image_size
        self._pixels_path = _temporary(path, "pixels")
        self._arrow_path = _temporary(path, "arrow")
        self._pixels: BinaryIO
        self._rows: list[tuple[int, int, str, bytes, int, int]] = []
        self._bad: list[BadRow] = []
        self._class_names: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._pixels = self._pixels_path.open("wb")
        return self

    def describe(self, *, class_names: tuple[str, ...], warnings: tuple[str, ...]) -> None:
        """Set the names of the classes and what the source warned about."""
        self._class_names, self._warnings = class_names, warnings

    def add(self, image: DecodedImage, *, label: int, part: int, name: str) -> None:
        """Append one image."""
        self._pixels.write(np.ascontiguousarray(image.pixels).data)
        self._rows.append((label, part, name, image.digest, *image.original_size))

    def add_bad(self, row: BadRow) -> None:
        """Record an image that cannot be read."""
        self._bad.append(row)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._pixels.close()
            if error is None:
                self._write_arrow()
                self._arrow_path.replace(self._path)
        finally:
            self._pixels_path.unlink(missing_ok=True)
            self._arrow_path.unlink(missing_ok=True)

    def _write_arrow(self) -> None:
        batch = self._record_batch()
        with self._arrow_path.open("wb") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())

    def _record_batch(self) -> Any:
        labels, parts, names, digests, widths, heights = zip(*self._rows, strict=True) if self._rows else ((),) * 6
        info = StoreInfo(self._image_size, self._class_names, tuple(self._bad), self._warnings)
        columns = {
            "pixels": _fixed_size_binary(_map(self._pixels_path), self._image_size**2 * 3, len(labels)),
            "label": pa.array(labels, pa.int64()),
            "part": pa.array(parts, pa.int8()),
            "name": pa.array(names, pa.string()),
            "digest": pa.array(digests, pa.binary(DIGEST_BYTES)),
            "width": pa.array(widths, pa.int32()),
            "height": pa.array(heights, pa.int32()),
        }
        schema = pa.schema([(name, column.type) for name, column in columns.items()])
        schema = schema.with_metadata({_METADATA_KEY: _write_info(info)})
        return pa.record_batch(list(columns.values()), schema=schema)


def _open_if_whole(path: Path) -> Store | None:
    """Return the store, or None where it must be built: it is not there, or a damaged disk or person changed it."""
    try:
        return open_store(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _temporary(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}.{purpose}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed build of this key left. The caller holds the lock, so nobody is writing them."""
    for leftover in path.parent.glob(f".{path.stem}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _map(path: Path) -> Any:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return pa.py_buffer(b"")
    return pa.memory_map(str(path)).read_buffer()


def _fixed_size_binary(buffer: Any, width: int, length: int) -> Any:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), length, [None, buffer])


def _bytes_of(column: Any, width: int) -> NDArray[np.uint8]:
    """View a fixed-size binary column as (n, width) without copying."""
    if len(column) == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * width).reshape(-1, width)


def _write_info(info: StoreInfo) -> bytes:
    document = {
        "image_size": info.image_size,
        "class_names": info.class_names,
        "bad": [(row.part, row.name, row.reason) for row in info.bad],
        "warnings": info.warnings,
    }
    return json.dumps(document).encode()


def _read_info(text: bytes) -> StoreInfo:
    document = json.loads(text)
    return StoreInfo(
        image_size=document["image_size"],
        class_names=tuple(document["class_names"]),
        bad=tuple(BadRow(*row) for row in document["bad"]),
        warnings=tuple(document["warnings"]),
    )
