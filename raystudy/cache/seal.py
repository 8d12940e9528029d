"""The seal of an entry: checksums of every byte of its file, and what the file says about itself.

    0            head: Arrow's magic, schema and the header of the record batch, filled up to HEAD bytes
    HEAD         body: the buffers of the record batch, Arrow's end-of-stream mark
                 seal: a JSON document, then its length, its own checksum and a magic word
                 foot: Arrow's footer, its length, Arrow's magic

Arrow's readers find everything from the footer, so they see a plain Arrow IPC file and never look at the seal. It is found
from the end of the file without trusting anything: whichever byte changes, some checksum does not fit. CRC-32 finds every
change of up to 32 bits in a row and lets any other through once in 4e9 times for each chunk; it guards against disks, not
against people.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from raystudy.cache.failures import Damaged

HEAD = 16 << 10
"""Bytes before the first buffer: a multiple of the page size, and room for the schema of a hundred columns."""

CHUNK = 8 << 20
"""Bytes of the body under one checksum."""

VERSION = 1

_FOOT_END = struct.Struct("<i6s")
_TAIL = struct.Struct("<QQ8s")
_MAGIC = b"RSTDSEAL"
_READ = 1 << 20
"""Bytes read at once: they are summed while they are in the processor's cache."""

_THREADS = 4


@dataclass(frozen=True, slots=True)
class Contents:
    """What an entry says about itself.

    Attributes:
        about: what its builder was given and told.
        arrays: for each array the dtype, as numpy writes it, and the shape of a row.
        created: seconds since the epoch.
    """

    about: dict[str, Any]
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    created: float


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal that is whole, though the file around it need not be.

    Attributes:
        contents: what the entry says about itself.
        sums: of the head, then of each chunk of the body.
        foot_sum: of what follows the seal.
        start: the byte of the file where the seal begins.
        end: the byte where it ends.
    """

    contents: Contents
    sums: tuple[int, ...]
    foot_sum: int
    start: int
    end: int


class Sums:
    """The checksums of a body that is written bit by bit."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._full: list[int] = []
        self._last, self._bytes = 0, 0

    def add(self, data: memoryview) -> None:
        """Go on with `data`, bytes that follow the ones before."""
        while data:
            piece = data[: CHUNK - self._bytes]
            self._last = zlib.crc32(piece, self._last)
            self._bytes += len(piece)
            data = data[len(piece) :]
            if self._bytes == CHUNK:
                self._full.append(self._last)
                self._last, self._bytes = 0, 0

    def all(self) -> list[int]:
        """Return one checksum for each chunk."""
        return [*self._full, self._last] if self._bytes else list(self._full)


def seal(contents: Contents, *, head: bytes, body: Sums, foot: bytes) -> bytes:
    """Return the bytes between body and foot. A multiple of 64, so that the footer stays where Arrow aligned it."""
    document = {
        "version": VERSION,
        "sums": [zlib.crc32(head), *body.all()],
        "foot_sum": zlib.crc32(foot),
        "contents": asdict(contents),
    }
    text = json.dumps(document).encode()
    text += b" " * (-(len(text) + _TAIL.size) % 64)
    return text + _TAIL.pack(len(text), zlib.crc32(text), _MAGIC)


def read_seal(file: int, size: int) -> Seal:
    """Return the seal of an open file of `size` bytes; its own bytes are verified, no others.

    Raises:
        Damaged: there is none, or it is not whole.
    """
    (foot_length, _) = _FOOT_END.unpack(_read(file, size - _FOOT_END.size, _FOOT_END.size))
    end = size - _FOOT_END.size - foot_length
    length, own_sum, magic = _TAIL.unpack(_read(file, end - _TAIL.size, _TAIL.size))
    start = end - _TAIL.size - length
    if foot_length < 0 or magic != _MAGIC or start < HEAD:
        raise Damaged("it has no seal")
    text = _read(file, start, length)
    if zlib.crc32(text) != own_sum:
        raise Damaged("its seal is broken")
    return _parse(text, start=start, end=end)


def verify(file: int, size: int, found: Seal) -> None:
    """Compare every byte outside the seal with its checksum, in a few threads if there is much to read.

    Raises:
        Damaged: one differs, or cannot be read.
    """
    starts = [0, *range(HEAD, found.start, CHUNK)]
    ends = [HEAD, *starts[2:], found.start] if len(starts) > 1 else [HEAD]
    pieces = [*zip(starts, ends, strict=True), (found.end, size)]
    expected = (*found.sums, found.foot_sum)
    if len(expected) != len(pieces):
        raise Damaged("it is longer or shorter than it was")
    sums: Iterable[int]
    if len(pieces) <= 8:
        sums = [_sum(file, start, end) for start, end in pieces]
        _compare(sums, expected)
        return
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        sums = threads.map(lambda piece: _sum(file, *piece), pieces)
        try:
            _compare(sums, expected)
        except Damaged:
            threads.shutdown(cancel_futures=True)
            raise


def _compare(sums: Iterable[int], expected: Iterable[int]) -> None:
    if any(found != known for found, known in zip(sums, expected, strict=True)):
        raise Damaged("its bytes are not the ones that were written")


def _sum(file: int, start: int, end: int) -> int:
    # Read, not mapped: a sector that the disk cannot read is an error here and would be the end of the process there.
    total, buffer = 0, memoryview(bytearray(min(_READ, end - start)))
    while start < end:
        piece = buffer[: end - start]
        try:
            count = os.preadv(file, [piece], start)
        except OSError as error:
            raise Damaged(f"it cannot be read: {error.strerror}") from error
        if not count:
            raise Damaged("it is cut short")
        total = zlib.crc32(piece[:count], total)
        start += count
    return total


def _read(file: int, start: int, length: int) -> bytes:
    try:
        data = os.pread(file, length, start) if start >= 0 and length < 1 << 31 else b""
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from error
    if len(data) != length:
        raise Damaged("it is cut short")
    return data


def _parse(text: bytes, *, start: int, end: int) -> Seal:
    document = json.loads(text)
    if document["version"] != VERSION:
        raise Damaged(f"it is of version {document['version']} instead of {VERSION}")
    contents = document["contents"]
    arrays = {name: (dtype, tuple(shape)) for name, (dtype, shape) in contents["arrays"].items()}
    return Seal(
        contents=Contents(contents["about"], arrays, contents["created"]),
        sums=tuple(document["sums"]),
        foot_sum=document["foot_sum"],
        start=start,
        end=end,
    )
