"""The journal: one append-only file that is the truth about a study (rule 1).

One event a line: eight hex digits of CRC-32 over the rest, a space, the event as JSON. A line is written with a single
`write` and forced to disk before anybody acts on the event. A driver that dies in the middle of a write leaves a last line
without its newline; it is cut off when the next driver opens the file, and was never acted upon. Any other damage is an
error that names the place: nothing is guessed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from raystudy.errors import JournalError
from raystudy.records import Event, event_from_json


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
        """Open `path`, create it if need be, and cut off a torn last line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._cut_torn_line()

    def append(self, event: Event) -> None:
        """Write `event` and force it to disk; on an error (a full disk) the file is as it was before."""
        line = encode(event)
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"wrote {written} of {len(line)} bytes")
            os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise JournalError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

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
