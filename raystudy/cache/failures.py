"""What a cache that cannot be written raises."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystudy import storage
from raystudy.cache import sizes
from raystudy.errors import RaystudyError


class CacheError(RaystudyError, OSError):
    """The cache cannot be read or written: read-only, not allowed, away."""

    exit_code = 2

    def __init__(self, message: str, number: int = errno.EIO) -> None:
        """Say `message`; `number` is the errno that handlers of an OSError look at."""
        super().__init__(number, message)

    def __str__(self) -> str:
        """Return the message alone, without the number."""
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes whole: the arguments of an OSError are not those of this class."""
        return type(self), (self.strerror, self.errno)


class CacheFull(CacheError):
    """The cache's limit or its disk has no room for an entry, even without all entries that nobody uses."""

    def __init__(self, message: str, number: int = errno.ENOSPC) -> None:
        """Say `message`."""
        super().__init__(message, number)


class Damaged(Exception):
    """The file of an entry is not what its builder wrote. Never leaves the cache."""


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn an OSError of writing at `path` into a CacheError, or a CacheFull if it lacks room."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        number = error.errno or errno.EIO
        words = storage.in_words(error, path)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise CacheFull(f"{words}; {_free(path)}", number) from error
        raise CacheError(words, number) from error


def _free(path: Path) -> str:
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        return f"{sizes.in_words(shutil.disk_usage(there).free)} are free"
    except OSError:
        return "nobody knows how much is free"
