"""Tracking stores for tests: SQLite in a folder, and a real `mlflow server` that can be killed and started again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from journals import write_journal

from raystudy.paths import StudyPaths
from raystudy.records import Event, StudyRecord
from raystudy.tracking.journal import read_journal
from raystudy.tracking.store import Store
from raystudy.tracking.writer import DriverPipe, Writer


def closed_pipe() -> DriverPipe:
    """Return the pipe of a driver that has ended."""
    reading, writing = os.pipe()
    os.close(writing)
    return DriverPipe(reading)


def feed(files: StudyPaths, uri: str, events: Iterable[Event] = ()) -> StudyRecord:
    """Append `events` to the study's journal and let a writer in this process bring MLflow up to it."""
    write_journal(files.journal, list(events))
    writer = Writer(files, uri, closed_pipe(), patience=0)
    writer.connect()
    assert writer.run()
    return StudyRecord.fold(read_journal(files.journal))


def empty_store(home: Path) -> str:
    """Return the address of a new SQLite store in `home`, whose disk this process does not wait for."""
    _wait_for_no_disk()
    home.mkdir(parents=True, exist_ok=True)
    (home / "mlflow.db").write_bytes(_empty_database())
    return f"sqlite:///{home / 'mlflow.db'}"


@cache
def _wait_for_no_disk() -> None:
    """Let SQLite leave writing to the disk to the operating system, from this process only: nobody cuts the power."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF").close())


@cache
def _empty_database() -> bytes:
    """Return what MLflow makes of a new database; making its tables takes seconds, so it is done once."""
    with tempfile.TemporaryDirectory() as scratch:
        Store(f"sqlite:///{scratch}/mlflow.db").experiments()
        return (Path(scratch) / "mlflow.db").read_bytes()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A real tracking server over a folder, as users start it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        if not (folder / "mlflow.db").exists():
            empty_store(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)),
                *("--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"),
                *("--artifacts-destination", str(self._folder / "artifacts")),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill it and its workers at once."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.uri + "/health", timeout=1).close()  # noqa: S310
        except (OSError, urllib.error.URLError):
            return False
        return True
