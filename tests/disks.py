"""A disk that refuses to write on demand, under the system calls of this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """Stands between a process and the files in one folder.

    Attributes:
        errors: the errors to come, one for each call; afterwards everything works.
        takes: bytes of a write that get through before its error.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *calls: str) -> None:
        """Watch over `folder`; errors come out of the system calls `calls`, such as write, fdatasync, ftruncate and open."""
        self.errors: list[int] = []
        self.takes = 0
        self._folder, self._real_write = str(folder), os.write
        for name in calls:
            patch.setattr(os, name, self._write if name == "write" else self._or_error(getattr(os, name)))

    def _write(self, file: int, data: bytes) -> int:
        if self.errors and self._is_here(file):
            self._real_write(file, bytes(data)[: self.takes])
            self._refuse()
        return self._real_write(file, data)

    def _or_error(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(where: Any, *arguments: Any, **options: Any) -> Any:
            if self.errors and self._is_here(where):
                self._refuse()
            return call(where, *arguments, **options)

        return guarded

    def _refuse(self) -> None:
        error = self.errors.pop(0)
        raise OSError(error, os.strerror(error))

    def _is_here(self, where: Any) -> bool:
        path = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else where
        return str(path).startswith(self._folder)
