"""An entry of the cache, opened."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystudy.cache import locks
from raystudy.cache.failures import Damaged
from raystudy.cache.seal import Contents, read_seal, verify

_Version = tuple[int, int, int, int]
_verified: dict[Path, _Version] = {}
"""For each file that this process has verified, or written itself: which file and state of it that was."""


class Entry:
    """An entry, mapped into memory and read-only.

    It counts as in use, and is not evicted, for as long as the entry or any array or buffer taken from it is alive.
    """

    def __init__(self, path: Path, batch: pa.RecordBatch, contents: Contents) -> None:
        """Stand for the mapped `batch` of the file at `path`."""
        self._batch, self._contents, self._path = batch, contents, path

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def batch(self) -> pa.RecordBatch:
        """All columns, in the order in which the builder made them: arrays, then columns.

        A column with a name like `.pad1` may stand between two arrays, so that the second begins where it should.
        """
        return self._batch

    @property
    def about(self) -> dict[str, Any]:
        """What the builder was given and told, as plain JSON data."""
        return self._contents.about

    @property
    def created(self) -> float:
        """When it was built, in seconds since the epoch."""
        return self._contents.created

    def array(self, name: str) -> NDArray[Any]:
        """Return the array `name`, (n, *row_shape), of the dtype with which it was written; read-only and not copied.

        Also the column `name`, (n,), if its values are numbers without gaps.

        Raises:
            KeyError: there is none of that name.
        """
        column = self._batch.column(name)
        if name not in self._contents.arrays:
            return column.to_numpy(zero_copy_only=True)
        dtype, row_shape = self._contents.arrays[name]
        shape = (len(column), *row_shape)
        if len(column) == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(column.buffers()[1], dtype, count=math.prod(shape)).reshape(shape)


def open_entry(path: Path) -> Entry | None:
    """Open the entry at `path`; None where there is none.

    Raises:
        Damaged: it is not what its builder wrote.
        OSError: it cannot be opened.
    """
    while True:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            locks.share(file)
            if os.fstat(file).st_nlink:  # otherwise it was evicted between the two calls
                return map_entry(file, path)
        finally:
            os.close(file)


def map_entry(file: int, path: Path, *, own: bool = False) -> Entry:
    """Map the open file of an entry, which the caller may close afterwards; whoever mapped it keeps its share of the lock.

    Args:
        file: its descriptor, shared (see `locks.share`).
        path: where it is, or will be.
        own: this process has just written it, checksums included.
    """
    status = os.fstat(file)
    version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    try:
        seal = read_seal(file, status.st_size)
        if not own and _verified.get(path) != version:
            verify(file, status.st_size, seal)
        # The mapping has a copy of the descriptor, and with it of the lock, until the last array that needs it is gone.
        mapped = pa.py_buffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
        batch = pa.ipc.open_file(pa.BufferReader(mapped)).get_batch(0)
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise Damaged(f"it cannot be understood: {error}") from error
    _verified[path] = version
    return Entry(path, batch, seal.contents)


def read_contents(path: Path) -> Contents | None:
    """Return what the entry at `path` says about itself; None where that cannot be told. The rest is not looked at."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read_seal(file, os.fstat(file).st_size).contents
    except (Damaged, ValueError, KeyError):
        return None
    finally:
        os.close(file)
