"""Writing an entry: arrays go to disk as they come, so that memory stays small however long they get."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from raystudy.cache.failures import CacheError, in_words
from raystudy.cache.room import Claim
from raystudy.cache.seal import HEAD, Contents, Sums, seal

_ALIGNMENT = 64
_AROUND = 4 * HEAD
"""Bytes that an entry has beside its data, roughly: head and foot with the schema, the seal."""

_FILLER = b"filler"
_END_OF_STREAM = 8
"""Bytes of Arrow's mark after the record batch."""


class Writer:
    """Collects the arrays and columns of one entry. The first array is written in its place, others are copied at the end.

    Attributes:
        about: what the entry says about itself, plain JSON data; the builder may add to it.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], claim: Claim) -> None:
        """Begin an entry in the empty folder `folder`, within what can be claimed."""
        self.about = dict(about)
        self._folder, self._claim = folder, claim
        self._bytes = _AROUND
        self._file = _EntryFile(folder / "entry")
        self._arrays: dict[str, ArrayWriter] = {}
        self._columns: dict[str, Any] = {}
        self._failure: BaseException | None = None

    def expect(self, size: int) -> None:
        """Make room for arrays and columns of `size` bytes in all.

        Raises:
            CacheFull: there is not enough; nothing was removed for it.
        """
        with in_words(self._folder):
            self._claim.exactly(_AROUND + size)

    def array(self, name: str, dtype: DTypeLike, row_shape: tuple[int, ...]) -> ArrayWriter:
        """Add an array of rows of one shape and dtype, to be appended to. Make the largest one first.

        Raises:
            ValueError: the name is taken, or rows of that kind cannot be stored.
        """
        self._check_name(name)
        kind = np.dtype(dtype)
        if kind.hasobject or not 0 < _row_bytes(kind, row_shape) < 1 << 31:
            raise ValueError(f"expected rows of 1 to 2**31 - 1 bytes without objects, but got {kind} of shape {row_shape}")
        with in_words(self._folder):
            part = _PartFile(self._folder / f"array-{len(self._arrays)}") if self._arrays else self._file
        self._arrays[name] = array = ArrayWriter(kind, row_shape, lambda data: self._write(part, data), part)
        return array

    def column(self, name: str, values: Any) -> None:
        """Add a small column, a pyarrow array with as many values as the arrays have rows.

        Raises:
            ValueError: the name is taken.
        """
        self._check_name(name)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        # A dictionary would be a message of its own before the record batch.
        self._columns[name] = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values

    def finish(self) -> int:
        """Complete the file `entry` of the folder, on disk to the last byte, and return its open descriptor.

        Raises:
            ValueError: arrays and columns are not equally long, or there are none.
            CacheError: it cannot be written.
        """
        if self._failure is not None:  # the builder went on in spite of it
            raise self._failure
        with in_words(self._folder):
            batch = self._record_batch()
            self._claim(self._bytes + batch.nbytes - sum(array.size for array in self._arrays.values()))
            arrays = {name: (array.dtype.str, array.row_shape) for name, array in self._arrays.items()}
            self._file.finish(batch, Contents(self.about, arrays, time.time()))
        return self._file.descriptor

    def close(self) -> None:
        """Close all files."""
        for file in {self._file, *(array.file for array in self._arrays.values())}:
            file.close()

    def _check_name(self, name: str) -> None:
        if name in self._arrays or name in self._columns or name.startswith("."):
            raise ValueError(f"expected a new name that does not begin with a point, but got {name!r}")

    def _write(self, file: _PartFile, data: memoryview) -> None:
        try:
            with in_words(self._folder):
                self._claim(self._bytes + len(data))
                file.write(data)
        except BaseException as error:
            self._failure = error
            raise
        self._bytes += len(data)

    def _record_batch(self) -> pa.RecordBatch:
        columns: dict[str, Any] = {}
        end = HEAD
        for name, array in self._arrays.items():
            if end % _ALIGNMENT and array.length:
                columns[f".pad{len(columns)}"] = pad = _pad(array.length, end)
                end += sum(_round_up(buffer.size, 8) for buffer in pad.buffers() if buffer)
            columns[name] = array.column()
            end = _round_up(end + array.size, 8)
        columns.update(self._columns)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected arrays and columns of one length, but got {lengths}")
        return pa.record_batch(list(columns.values()), names=list(columns))


class ArrayWriter:
    """Takes the rows of one array."""

    def __init__(
        self, dtype: np.dtype[Any], row_shape: tuple[int, ...], write: Callable[[memoryview], None], file: _PartFile
    ) -> None:
        """Write rows of `row_shape` and `dtype` with `write`, which puts them into `file`."""
        self.dtype, self.row_shape, self.file = dtype, tuple(row_shape), file
        self.length = 0
        self._write = write

    @property
    def size(self) -> int:
        """The bytes of all rows."""
        return self.length * _row_bytes(self.dtype, self.row_shape)

    def append(self, rows: NDArray[Any]) -> None:
        """Append `rows`, (k, *row_shape), of the array's dtype.

        Raises:
            ValueError: they are of another shape or dtype.
            CacheFull: there is no room for them.
        """
        if rows.dtype != self.dtype or rows.shape[1:] != self.row_shape or rows.ndim == 0:
            expected = f"{self.dtype} of shape (k, {', '.join(map(str, self.row_shape))})"
            raise ValueError(f"expected {expected}, but got {rows.dtype} of shape {rows.shape}")
        if len(rows):
            self._write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self.length += len(rows)

    def column(self) -> Any:
        """Return what was appended as an Arrow column, mapped from the file that it is in."""
        kind = pa.binary(_row_bytes(self.dtype, self.row_shape))
        if not self.row_shape and self.dtype.kind in "iuf" and self.dtype.isnative:
            kind = pa.from_numpy_dtype(self.dtype)
        return pa.Array.from_buffers(kind, self.length, [None, self.file.buffer(self.size)])


class _PartFile:
    """A file that grows at its end."""

    start = 0
    """Where the bytes that are written begin."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.lseek(self.descriptor, self.start, os.SEEK_SET)

    def write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self.descriptor, data) :]

    def buffer(self, length: int) -> Any:
        """Return the first `length` bytes that were written, mapped."""
        if length == 0:
            return pa.py_buffer(b"")
        return pa.memory_map(str(self._path)).read_buffer(self.start + length).slice(self.start)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _EntryFile(_PartFile):
    """The file of the entry itself: the body first, with its checksums, and the head at the very end."""

    start = HEAD

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._sums = Sums()
        self._written = 0

    def write(self, data: memoryview) -> None:
        super().write(data)
        self._sums.add(data)
        self._written += len(data)

    def finish(self, batch: pa.RecordBatch, contents: Contents) -> None:
        """Write everything that surrounds the array in place: `batch` begins with that array."""
        length = _head_length(batch.replace_schema_metadata({_FILLER: b""}))
        if length > HEAD:
            raise ValueError(f"expected fewer or simpler columns, but got {batch.num_columns}")
        batch = batch.replace_schema_metadata({_FILLER: b" " * (HEAD - length)})
        around = _Around(self.write, in_place=self._written)
        with pa.ipc.new_file(around, batch.schema) as arrow:
            arrow.write_batch(batch)
            around.begin_foot()
        head, foot = bytes(around.head), around.foot()
        if _parsed_head_length(head) != HEAD:
            raise CacheError("the head of a cache entry has another length than foreseen: a fault of raystudy")
        super().write(memoryview(seal(contents, head=head, body=self._sums, foot=foot)))
        super().write(memoryview(foot))
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        super().write(memoryview(head))
        os.fsync(self.descriptor)


class _Around(io.RawIOBase):
    """What Arrow writes its file into: parts it into head, body and foot, and leaves out the part of the body in place."""

    def __init__(self, write: Callable[[memoryview], None], *, in_place: int) -> None:
        self.head = bytearray()
        self._write = write
        self._in_place = in_place
        self._foot: bytearray | None = None

    def begin_foot(self) -> None:
        """Keep what follows instead of writing it."""
        self._foot = bytearray()

    def foot(self) -> bytes:
        """Return Arrow's footer and its end; the end-of-stream mark before it is written: it belongs to the body."""
        assert self._foot is not None
        mark, foot = bytes(self._foot[:_END_OF_STREAM]), bytes(self._foot[_END_OF_STREAM:])
        self._write(memoryview(mark))
        return foot

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        length = len(view)
        if self._foot is not None:
            self._foot += view
            return length
        to_head = min(length, HEAD - len(self.head))
        self.head += view[:to_head]
        view = view[to_head:]
        skipped = min(len(view), self._in_place)
        self._in_place -= skipped
        self._write(view[skipped:])
        return length


def _head_length(batch: pa.RecordBatch) -> int:
    """Return how long the head of a file with `batch` is, by writing it to nowhere."""
    nowhere = _Around(lambda _: None, in_place=0)
    with pa.ipc.new_file(nowhere, batch.schema) as arrow:
        arrow.write_batch(batch)
    return _parsed_head_length(bytes(nowhere.head))


def _parsed_head_length(head: bytes) -> int:
    """Return where the body begins: after Arrow's magic and two messages, each with a mark and its length in front."""
    end = 8
    for _ in ("schema", "record batch"):
        end += 8 + int.from_bytes(head[end + 4 : end + 8], "little")
    return end


def _pad(length: int, position: int) -> Any:
    """Return a column of `length` rows that, placed at `position` of a file, moves what follows to where rows are aligned."""
    offsets = np.full(length + 1, -(position + _round_up(4 * (length + 1), 8)) % _ALIGNMENT, np.int32)
    offsets[0] = 0
    return pa.Array.from_buffers(pa.binary(), length, [None, pa.py_buffer(offsets), pa.py_buffer(bytes(offsets[1]))])


def _row_bytes(dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(row_shape)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
