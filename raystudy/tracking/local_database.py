"""The SQLite file of a local store: made whole or not at all, and written without waiting for the disk more than is needed."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock

HALF_MADE = (
    "its tables are not all there, as it is when MLflow was killed while it made them: move {file} away, "
    "and `raystudy verify STUDY --repair` writes each study into a new one"
)


def make_whole(file: Path, make: Callable[[str], object]) -> None:
    """Let the database of a new store appear with all its tables.

    MLflow makes them one by one, and never again opens a database whose making was cut off or done by two at once.

    Args:
        file: where the database is to be; one that is there already is left alone.
        make: given a store's address, makes MLflow create the tables there.

    Raises:
        OSError: the folder cannot be written.
    """
    if _is_there(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f"{file.name}.lock")):
        if _is_there(file):
            return
        drafts = f"{file.name}.new-"
        for left in file.parent.glob(f"{drafts}*"):  # by a process that was killed while it held the lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=drafts) as folder:
            draft, whole = Path(folder) / "draft.db", Path(folder) / file.name
            make(f"sqlite:///{draft}")
            # MLflow keeps its connections to the draft, which therefore cannot become the database itself.
            _copy(draft, whole)
            whole.replace(file)


def keep_rollback_journal(connection: object, _record: object = None) -> None:
    """Let a connection to SQLite keep its rollback journal's file from commit to commit, of which MLflow makes seven a trial.

    As safe as deleting it each time, also on a network file system, where SQLite rules out the faster write-ahead log.
    """
    if not isinstance(connection, sqlite3.Connection):
        return
    with suppress(sqlite3.OperationalError):  # somebody writes right now: it works as it did, only slower
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete":
            connection.execute("PRAGMA journal_mode = PERSIST")


def _is_there(file: Path) -> bool:
    """Whether there is a database, rather than the empty file that opening one leaves."""
    with suppress(FileNotFoundError):
        return file.stat().st_size > 0
    return False


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing)
