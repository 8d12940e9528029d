"""The SQLite file of a local store: made whole or not at all, and written without waiting for the disk more than is needed."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
from filelock import FileLock

LOCAL_FILE_SYSTEMS = frozenset(
    {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs", "overlay", "tmpfs", "xfs", "zfs"}
)
"""Where all processes that open a file are on one machine, as SQLite's write-ahead log needs it."""
HALF_MADE = (
    "its tables are not all there: another MLflow is making them now, or was killed while it did. "
    "If trying again does not help, move {file} away, and `raystudy verify STUDY --repair` writes each study into a new one"
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


def commit_quickly(connection: object, _record: object = None) -> None:
    """Let a connection to SQLite wait for the disk no more than is needed at each commit, of which MLflow makes seven a trial.

    Where there is a write-ahead log, that is when the log is copied into the database (see `settle`): a power cut can take the
    last runs with it, which the study's journal has, but never spoils the database. Elsewhere the rollback journal's file
    stays from commit to commit, which is as safe as deleting it each time.
    """
    if not isinstance(connection, sqlite3.Connection):
        return
    with suppress(sqlite3.OperationalError):  # somebody writes right now: it works as it did, only slower
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL")
        elif mode == "delete":
            connection.execute("PRAGMA journal_mode = PERSIST")


def settle(file: Path) -> None:
    """See to it that what was written is on the disk, as far as nobody else is reading it."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _is_there(file: Path) -> bool:
    """Whether there is a database, rather than the empty file that opening one leaves."""
    with suppress(FileNotFoundError):
        return file.stat().st_size > 0
    return False


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing)
        if _file_system(target) in LOCAL_FILE_SYSTEMS:
            # The database keeps this for whoever opens it: readers, such as the UI, and the writer do not wait for each other.
            writing.execute("PRAGMA journal_mode = WAL")


def _file_system(file: Path) -> str:
    """Return the type of the file system that a file is on, empty where that is not known."""
    above = {str(folder) for folder in file.resolve().parents}
    mounts = [(len(mount.mountpoint), mount.fstype) for mount in psutil.disk_partitions(all=True) if mount.mountpoint in above]
    return max(mounts, default=(0, ""))[1]
