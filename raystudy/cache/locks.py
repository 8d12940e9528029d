"""Locks between the processes of a machine. The kernel releases them with their process, however it ends.

Two kinds: a lock file, held by whoever builds or removes what it stands for; and a share in the file of an entry, held by
whoever maps it. Locks of one process count against each other as those of two processes do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, made where there is none; wait for whoever holds it.

    The holder may remove the file: those who wait for it then go on to its successor.
    """
    file = _take(path, fcntl.LOCK_EX)
    assert file is not None
    try:
        yield
    finally:
        _release(file)


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` unless somebody does; say whether it is held now."""
    file = _take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield file is not None
    finally:
        if file is not None:
            _release(file)


def share(file: int) -> None:
    """Mark the open file as in use, until no copy of its descriptor is open in any process."""
    # A file system without locks cannot protect its readers from eviction; what they have mapped stays valid all the same.
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)


@contextmanager
def unless_shared(path: Path) -> Iterator[bool]:
    """Keep others from beginning to use the file at `path`; say whether nobody uses it. False too where that cannot be told."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            unused = _is_locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            unused = False
        yield unused
    finally:
        os.close(file)


def _take(path: Path, how: int) -> int | None:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _is_locked(file, how):
                os.close(file)
                return None
            if _is_at(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last holder removed it meanwhile


def _is_locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _release(file: int) -> None:
    # Closing alone would leave it with a child that was forked meanwhile and still has a copy of the descriptor.
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
