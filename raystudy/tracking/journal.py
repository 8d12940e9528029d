"""The journal: one append-only file that is the truth about a study (rule 1).

One event a line: eight hex digits of CRC-32 over the rest, a space, the event as JSON. A line is written with a single
`write` and forced to disk before anybody acts on the event. A driver that dies in the middle of a write leaves a last line
without its newline; it is cut off when the next driver opens the file, and was never acted upon. So is what a full or
read-only disk left of a line, before the line is tried again. Any other damage is an error that names the place: nothing is
guessed.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from raystudy.errors import JournalError
from raystudy.records import Event, event_from_json
from raystudy.storage import Pause, in_words, keep_trying

_BLOCK = 1 << 16
"""Bytes that are read at a time from the end."""


def encode(event: Event) -> bytes:
    """Return the line of `event`, newline included."""
    try:
        text = json.dumps(event.to_json(), separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise JournalError(f"event {event.kind!r} holds a number that is not finite: {error}") from error
    body = text.encode()
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes, *, where: str) -> Event:
    """Return the event of a line; raise JournalError if its checksum does not match."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            raise ValueError("the checksum does not match")
        data = json.loads(body)
    except ValueError as error:
        raise JournalError(
            f"{where}: damaged ({error}); restore the file from a copy, or start the study under a new name"
        ) from error
    return event_from_json(data)


def read_events(path: Path, *, offset: int = 0) -> Iterator[tuple[int, Event]]:
    """Yield every whole event from byte `offset` on, each with the offset just after it.

    A last line without newline is being written, or was when its driver died: it is left alone.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            event = decode(line, where=f"{path}, byte {offset}")
            offset += len(line)
            yield offset, event


def last_event(path: Path) -> Event | None:
    """Return the last whole event without reading the others; None where there is none.

    Raises:
        JournalError: it is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        end, block = file.seek(0, os.SEEK_END), b""
        while end > 0 and block[: block.rfind(b"\n")].count(b"\n") == 0:  # not yet a whole line with what ends the one before
            start = max(0, end - _BLOCK)
            file.seek(start)
            block, end = file.read(end - start) + block, start
    lines = block[: block.rfind(b"\n") + 1].splitlines(keepends=True)
    return decode(lines[-1], where=f"{path}, last line") if lines else None


def read_journal(path: Path) -> list[Event]:
    """Return all events; raise JournalError if there is no journal or it is damaged."""
    try:
        events = [event for _, event in read_events(path)]
    except FileNotFoundError as error:
        raise JournalError(f"{path}: no such journal") from error
    return events


class Journal:
    """A journal open for appending. The caller holds the study's lock: there is one writer."""

    def __init__(self, path: Path) -> None:
        """Open `path`, create it if need be, and cut off a torn last line.

        Raises:
            JournalError: it cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._cut_torn_line()
            self._size = os.fstat(self._file).st_size
        except OSError as error:
            raise JournalError(in_words(error, path)) from error
        self._is_whole = True

    def append(self, event: Event) -> None:
        """Write `event` and force it to disk; raise JournalError if that cannot be done now."""
        try:
            self._write(encode(event))
        except OSError as error:
            raise JournalError(in_words(error, self.path)) from error

    def append_patiently(self, event: Event) -> Pause | None:
        """Write `event` and force it to disk, however long the storage makes that take.

        Raises:
            StoppedWaiting: the study is to stop; `event` is not in the journal.
            JournalError: it cannot be written, and waiting does not help.
        """
        line = encode(event)
        try:
            return keep_trying(lambda: self._write(line), self.path)
        except OSError as error:
            raise JournalError(in_words(error, self.path)) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError, JournalError):
            self._mend()
        self._let_go()

    def _write(self, line: bytes) -> None:
        """Add `line`. Whatever a failed attempt leaves is cut off before the next one, or by the next driver."""
        self._mend()
        self._is_whole = False
        try:
            left = line
            while left:  # an almost full disk takes a part, and refuses the rest
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):  # a read-only disk refuses this too
                os.ftruncate(self._file, self._size)
            self._let_go()  # a file server that was away may not know the open file any more
            raise
        self._size += len(line)
        self._is_whole = True

    def _mend(self) -> None:
        """Make sure that the file ends with the last line that was forced to disk."""
        if self._is_whole:
            return
        if self._file < 0:
            self._file = self._reopened()
        size = os.fstat(self._file).st_size
        if size < self._size:
            raise JournalError(
                f"{self.path}: has {size} bytes, {self._size} were written; restore the file from a copy and resume the study"
            )
        os.ftruncate(self._file, self._size)
        self._is_whole = True

    def _reopened(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError as error:  # a file system that is not mounted: nothing must be created in its place
            raise OSError(errno.ESTALE, error.strerror) from error

    def _let_go(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            with suppress(OSError):  # a file server may report here what has been reported already
                os.close(file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        keep, step = size, 65536
        while keep > 0:
            start = max(0, keep - step)
            newline = os.pread(self._file, keep - start, start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < size:
            os.ftruncate(self._file, keep)
