"""The log of one trial, which never stands in the trial's way."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path


class TrialLog(logging.FileHandler):
    """Writes to a file whose disk may be full, read-only or away: such lines are lost, and the next one is tried again."""

    def __init__(self, path: Path) -> None:
        """Log to `path`; it is opened with the first line."""
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line if that can be done."""
        with suppress(OSError):  # opening the file; writing to it ends in `handleError`
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Pass over what the disk refused; anything else is a mistake in the program that logs."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file; lines that it does not take any more are lost."""
        with suppress(OSError):
            super().close()

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()
