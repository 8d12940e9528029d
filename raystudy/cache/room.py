"""Room for entries: what the cache takes, what it may take, and which entries go when another needs their place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raystudy.cache import locks, sizes
from raystudy.cache.failures import CacheFull
from raystudy.errors import InputError, Problem

LIMIT_VARIABLE = "RAYSTUDY_CACHE_LIMIT"

_SHARE = 0.8
"""The default limit, as a share of the disk that is free or taken by the cache."""

MARK = ".raystudy-cache"
"""A file in each folder that belongs to the cache. No other folder is looked into, whatever RAYSTUDY_CACHE says."""

_CLAIM = "claim"
_STEP = 64 << 20
"""Bytes by which a build of unknown size asks for more at most; less while it is small, so that little goes for nothing."""


@dataclass(frozen=True, slots=True)
class EntryFiles:
    """The files of an entry, or of one that is being built or was left half built."""

    folder: Path
    key: str

    @property
    def kind(self) -> str:
        """The kind of the entry."""
        return self.folder.name

    @property
    def arrow(self) -> Path:
        """The entry itself."""
        return self.folder / f"{self.key}.arrow"

    @property
    def lock(self) -> Path:
        """Held by whoever builds or removes the entry; modified whenever it is used."""
        return self.folder / f"{self.key}.lock"

    @property
    def building(self) -> Path:
        """The folder in which the entry is built."""
        return self.folder / f"{self.key}.tmp"

    def last_used(self) -> float:
        """Return when the entry was last used, in seconds since the epoch."""
        for path in (self.lock, self.arrow):
            with suppress(OSError):
                return path.stat().st_mtime
        return 0.0

    def is_in_use(self) -> bool:
        """Say whether any process maps the entry."""
        with locks.unless_shared(self.arrow) as unused:
            return not unused

    def remove_unless_used(self) -> int:
        """Remove the entry unless somebody uses it, and return the bytes that came free."""
        with locks.unless_shared(self.arrow) as unused:
            if not unused:
                return 0
            size = _size(self.arrow)
            self.arrow.unlink(missing_ok=True)
        self.remove_leftovers()
        return size

    def remove_leftovers(self) -> int:
        """Remove what a killed build left and a lock without an entry, unless a build is under way; return the bytes."""
        with locks.if_free(self.lock) as free:
            if not free:
                return 0
            size = _size(self.building)
            shutil.rmtree(self.building, ignore_errors=True)
            if not self.arrow.exists():
                self.lock.unlink(missing_ok=True)
        return size


class Room:
    """The room below one folder."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        """Keep entries below `folder` within `limit` bytes; None: what the environment says, else a share of the disk."""
        self._folder, self._limit = folder, limit

    def limit(self) -> int:
        """Return how many bytes all entries together may take.

        Raises:
            InputError: the environment variable means nothing.
        """
        if self._limit is not None:
            return self._limit
        text = os.environ.get(LIMIT_VARIABLE, "").strip()
        if text:
            try:
                return sizes.parse(text)
            except ValueError:
                raise InputError(Problem(LIMIT_VARIABLE, f"got {text!r}", "expected a size such as 50GB")) from None
        taken = sum(_size(files.arrow) for files in self.entries()) + sum(_size(files.building) for files in self._builds())
        return int(_SHARE * (self._free() + taken))

    def entries(self) -> list[EntryFiles]:
        """Return all entries, the least recently used one first."""
        return sorted(self._named(".arrow"), key=EntryFiles.last_used)

    def claim(self, total: int, own: EntryFiles) -> None:
        """Make room for `own` to have `total` bytes in the end; others then count on that it will.

        Raises:
            CacheFull: there is not enough, even without the entries that nobody uses. None were removed for it.
        """
        with locks.exclusive(self._folder / ".lock"):
            self._remove_leftovers()
            lack = self._lack(total, own)
            if lack.bytes > 0:
                self._evict(lack)
            (own.building / _CLAIM).write_text(str(total))

    def clear(self, kind: str | None) -> int:
        """Remove all entries (of one kind) that nobody uses, and what killed builds left; return the bytes that came free."""
        if not self._folder.exists():
            return 0
        with locks.exclusive(self._folder / ".lock"):
            freed = self._remove_leftovers()
            return freed + sum(files.remove_unless_used() for files in self.entries() if kind in (None, files.kind))

    def _lack(self, total: int, own: EntryFiles) -> _Lack:
        """Return what is missing for an entry of `total` bytes, by the limit or on the disk, whichever is more."""
        limit = self.limit()
        claims = {files: _claimed(files) for files in self._builds() if files != own}
        entries = self.entries()  # after the claims, so that a build that is completed in between is not missed
        claims = {files: claimed for files, claimed in claims.items() if files not in entries}
        taken = sum(_size(files.arrow) for files in entries) + sum(claims.values())
        to_come = sum(claimed - _size(files.building) for files, claimed in claims.items())
        by_limit = taken + total - limit
        on_disk = to_come + total - _size(own.building) - self._free()
        if by_limit >= on_disk:
            where = f"the cache {self._folder} may take {sizes.in_words(limit)}"
            return _Lack(by_limit, total, taken, where, f"raise {LIMIT_VARIABLE}")
        where = f"the disk of the cache {self._folder} has {sizes.in_words(self._free())} free"
        return _Lack(on_disk, total, taken, where, "make room on the disk, or set RAYSTUDY_CACHE to a folder on another one")

    def _evict(self, lack: _Lack) -> None:
        unused = [files for files in self.entries() if not files.is_in_use()]
        evictable = sum(_size(files.arrow) for files in unused)
        if evictable < lack.bytes:
            raise lack.error(evictable)
        freed = 0
        for files in unused:
            freed += files.remove_unless_used()
            if freed >= lack.bytes:
                return
        raise lack.error(freed)  # somebody began to use one meanwhile

    def _remove_leftovers(self) -> int:
        waiting = {*self._builds(), *(files for files in self._named(".lock") if not files.arrow.exists())}
        return sum(files.remove_leftovers() for files in waiting)

    def _builds(self) -> list[EntryFiles]:
        return list(self._named(".tmp"))

    def _named(self, ending: str) -> Iterator[EntryFiles]:
        for mark in self._folder.glob(f"*/{MARK}"):
            yield from (EntryFiles(mark.parent, path.stem) for path in mark.parent.glob(f"*{ending}"))

    def _free(self) -> int:
        there = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        return shutil.disk_usage(there).free


class Claim:
    """What a build may write: asked for once where its size is known, and in steps beyond."""

    def __init__(self, room: Room, files: EntryFiles) -> None:
        """Claim room for the entry with `files`."""
        self._room, self._files, self._total = room, files, 0

    def __call__(self, total: int) -> None:
        """Be sure of `total` bytes.

        Raises:
            CacheFull: there is not enough room.
        """
        if total <= self._total:
            return
        try:
            self.exactly(total + min(_STEP, total // 8))
        except CacheFull:
            self.exactly(total)

    def exactly(self, total: int) -> None:
        """Be sure of `total` bytes, and no more if there were less so far."""
        if total > self._total:
            self._room.claim(total, self._files)
            self._total = total


@dataclass(frozen=True, slots=True)
class _Lack:
    """Why an entry does not fit as things are.

    Attributes:
        bytes: how many are missing.
        total: how many the entry needs.
        taken: how many other entries take, those being built included.
        where: what is limited, and how much there is.
        remedy: what to do about it.
    """

    bytes: int
    total: int
    taken: int
    where: str
    remedy: str

    def error(self, evictable: int) -> CacheFull:
        """Return the error to raise, where `evictable` bytes of other entries are not in use."""
        in_use = self.taken - evictable
        beside = f" beside {sizes.in_words(in_use)} in use" if in_use > 0 else ""
        return CacheFull(f"{self.where}: an entry of {sizes.in_words(self.total)} does not fit{beside}; {self.remedy}")


def _claimed(files: EntryFiles) -> int:
    """Return the bytes that the entry being built will have."""
    try:
        claimed = int((files.building / _CLAIM).read_text())
    except (OSError, ValueError):
        claimed = 0
    return max(claimed, _size(files.building))


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is none any more."""
    try:
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0
