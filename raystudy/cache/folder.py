"""The cache: find an entry, or build it once however many processes ask."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystudy.cache import locks
from raystudy.cache.entry import Entry, map_entry, open_entry, read_contents
from raystudy.cache.failures import CacheError, Damaged, in_words
from raystudy.cache.room import MARK, Claim, EntryFiles, Room
from raystudy.cache.writer import Writer

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An entry, from outside.

    Attributes:
        kind: what sort of thing it is.
        key: what identifies it among its kind.
        size: in bytes.
        created: when it was built, in seconds since the epoch.
        last_used: when it was last found or built.
        about: what its builder was given and told; empty where the file does not say.
        in_use: some process maps it right now.
    """

    kind: str
    key: str
    size: int
    created: float
    last_used: float
    about: dict[str, Any]
    in_use: bool


class Cache:
    """A cache in one folder, which any number of processes of one machine may share."""

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        """Use `folder`, made when the first entry is built.

        Args:
            folder: on a disk of this machine.
            limit: bytes that all entries together may take; None: what RAYSTUDY_CACHE_LIMIT says (`50GB`), else 80 % of
                what is free on the disk or taken by the cache, measured whenever room is needed.
        """
        self._folder = folder
        self._room = Room(folder, limit)

    @property
    def folder(self) -> Path:
        """Where the cache is."""
        return self._folder

    @property
    def limit(self) -> int:
        """How many bytes all entries together may take, as of now; raises InputError if the environment makes no sense."""
        return self._room.limit()

    def find(self, kind: str, key: str) -> Entry | None:
        """Return the entry, which counts as used now; None where there is none, or only a damaged one, which is removed.

        Raises:
            CacheError: it is there and cannot be read.
        """
        return self._open(self._files(kind, key), is_locked=False)

    def open_or_build(
        self,
        kind: str,
        key: str,
        build: Callable[[Writer], None],
        *,
        about: Mapping[str, Any],
        size: int | None = None,
    ) -> Entry:
        """Return the entry; where there is none, `build` writes it. One process builds, others wait for it.

        Args:
            kind: what sort of thing it is, a plain name.
            key: what identifies it among its kind, a plain name; usually a hash of all that its content depends on.
            build: adds arrays and columns to the writer.
            about: what the entry says about itself, plain JSON data.
            size: the bytes of all arrays and columns, if known: room for them is made before anything is built.

        Raises:
            CacheFull: the limit or the disk has no room; known before the build where `size` is given.
            CacheError: the folder cannot be written.
            InputError: RAYSTUDY_CACHE_LIMIT makes no sense.
            Whatever `build` raises; nothing is left behind then.
        """
        files = self._files(kind, key)
        json.dumps(about)  # a mistake of the caller, better found before the build than after
        if (entry := self._open(files, is_locked=False)) is not None:
            return entry
        with ExitStack() as stack:
            with in_words(files.folder):
                files.folder.mkdir(parents=True, exist_ok=True)
                (files.folder / MARK).touch()
                stack.enter_context(locks.exclusive(files.lock))
            if (entry := self._open(files, is_locked=True)) is not None:
                return entry
            return self._build(files, build, about, size)

    def entries(self) -> list[EntryInfo]:
        """Return all entries, the most recently used one first."""
        return [info for files in reversed(self._room.entries()) if (info := _info(files)) is not None]

    def clear(self, kind: str | None = None) -> int:
        """Remove all entries (of one kind) and what killed builds left; return the bytes that came free.

        Entries that some process uses stay: to remove them would free nothing before that process ends.

        Raises:
            CacheError: the folder cannot be written.
        """
        with in_words(self._folder):
            return self._room.clear(kind)

    def _files(self, kind: str, key: str) -> EntryFiles:
        for name in (kind, key):
            if not _NAME.fullmatch(name):
                raise ValueError(f"expected a plain name, but got {name!r}")
        return EntryFiles(self._folder / kind, key)

    def _open(self, files: EntryFiles, *, is_locked: bool) -> Entry | None:
        """Open the entry and mark it used. A damaged one is removed, unless another process is about to do that itself."""
        try:
            entry = open_entry(files.arrow)
        except Damaged as error:
            if is_locked:
                _log.warning("removed %s: %s", files.arrow, error)
                with in_words(files.arrow):
                    files.arrow.unlink(missing_ok=True)
                return None
            with ExitStack() as stack:
                with in_words(files.lock):
                    is_free = stack.enter_context(locks.if_free(files.lock))
                return self._open(files, is_locked=True) if is_free else None
        except OSError as error:
            raise CacheError(f"{files.arrow} cannot be read: {error.strerror or error}") from error
        if entry is not None:
            _mark_used(files)
        return entry

    def _build(self, files: EntryFiles, build: Callable[[Writer], None], about: Mapping[str, Any], size: int | None) -> Entry:
        try:
            with in_words(files.folder):
                shutil.rmtree(files.building, ignore_errors=True)  # nobody is at work there: we hold the lock
                files.building.mkdir()
                writer = Writer(files.building, about, Claim(self._room, files))
            with closing(writer):
                writer.expect(size or 0)
                build(writer)
                return _publish(writer, files)
        finally:
            shutil.rmtree(files.building, ignore_errors=True)
            if not files.arrow.exists():
                with suppress(OSError):
                    files.lock.unlink()


def _publish(writer: Writer, files: EntryFiles) -> Entry:
    """Complete the entry and put it in its place, already in use, so that nobody can evict it in between."""
    file = writer.finish()
    with in_words(files.arrow):
        locks.share(file)
        (files.building / "entry").replace(files.arrow)
        _sync_folder(files.folder)
    try:
        entry = map_entry(file, files.arrow, own=True)
    except (Damaged, OSError) as error:
        raise CacheError(f"{files.arrow} cannot be read back: {error}") from error
    _mark_used(files)
    return entry


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mark_used(files: EntryFiles) -> None:
    with suppress(OSError):  # an entry that can be read serves well in a folder that cannot be written
        os.utime(files.lock)


def _info(files: EntryFiles) -> EntryInfo | None:
    try:
        status = files.arrow.stat()
    except OSError:  # evicted meanwhile
        return None
    contents = read_contents(files.arrow)
    return EntryInfo(
        kind=files.kind,
        key=files.key,
        size=status.st_size,
        created=status.st_mtime if contents is None else contents.created,
        last_used=files.last_used(),
        about={} if contents is None else contents.about,
        in_use=files.is_in_use(),
    )
