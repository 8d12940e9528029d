"""The file of a trial's read-outs: appended to by the trial, read when its model is kept. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from raystudy.findings.readouts import ReadOut, from_lines

FILE = "readouts.jsonl"
"""Beside a trial's checkpoints, and deleted with them."""


def append(folder: Path, text: str) -> None:
    """Append lines to the file of a trial's folder in one write; one that a crash left unfinished stays a line of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, ("\n" * is_torn + text).encode())
    finally:
        os.close(descriptor)


def read(folder: Path) -> list[ReadOut]:
    """Return the read-outs in a trial's folder by epoch; none where there is no file."""
    try:
        with (folder / FILE).open(encoding="utf-8", errors="replace") as lines:
            return from_lines(lines)
    except FileNotFoundError:
        return []
