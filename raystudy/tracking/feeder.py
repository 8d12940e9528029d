"""The driver's end of the pipe to the MLflow writer. Imports no MLflow: nothing here ever waits for it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raystudy.errors import StudyBusyError, UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import Event
from raystudy.storage import in_words
from raystudy.tracking.address import redact

_RESTARTS = 20
_LAST_RESTARTS = 2
_RESTART_PAUSE_S = 5.0
_READY_TIMEOUT_S = 120.0
_FINISH_TIMEOUT_S = 1800.0
_GLANCE_S = 0.01

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Where the study is in MLflow.

    Attributes:
        experiment_id: of the study.
        run_id: the parent run.
        tracking_uri: the store's address without user name and password.
    """

    experiment_id: str
    run_id: str
    tracking_uri: str


class Feeder:
    """A running writer process. Call it with every event, as an observer, or call `notify`."""

    def __init__(self, paths: StudyPaths, tracking_uri: str, *, is_told: bool = True) -> None:
        """Start the writer; see `start` and `prepare`."""
        self._paths, self._uri = paths, tracking_uri
        self._restarts = 0
        self._started = 0.0
        self._is_finished = False
        self._is_closed = False
        self._is_told = is_told
        self._process = self._spawn()

    @classmethod
    def start(cls, paths: StudyPaths, tracking_uri: str) -> Feeder:
        """Start the writer and return at once; `wait_ready` says whether the store can be used."""
        return cls(paths, tracking_uri)

    @classmethod
    def prepare(cls, paths: StudyPaths, tracking_uri: str) -> Feeder:
        """Start a writer that reads its libraries, for seconds, and does nothing else until it is told to `begin`."""
        return cls(paths, tracking_uri, is_told=False)

    def begin(self) -> None:
        """Let a prepared writer open the store; `wait_ready` says whether it can be used."""
        self._is_told = True
        self.notify()

    def __call__(self, event: Event) -> None:  # noqa: ARG002
        """Be an observer of the study."""
        self.notify()

    @property
    def pid(self) -> int:
        """The process id of the writer."""
        return self._process.pid

    def wait_ready(self, timeout: float = _READY_TIMEOUT_S) -> Ready:
        """Wait until the store has answered and experiment and parent run are there.

        The journal's first event has to be written before or meanwhile.

        Raises:
            UnreachableError: the store cannot be used; the writer has ended.
            StudyBusyError: the store holds another study of this name; the writer has ended.
        """
        answer = self._read_answer(timeout)
        if "ready" in answer:
            return Ready(answer["experiment_id"], answer["run_id"], answer["tracking_uri"])
        self.abandon()
        message = answer.get("error") or self._no_answer()
        raise StudyBusyError(message) if answer.get("kind") == "busy" else UnreachableError(message)

    def notify(self) -> None:
        """Tell the writer that the journal has grown; never blocks, never raises."""
        if self._is_finished or self._is_closed:
            return
        try:
            os.write(self._input, b".")
        except BlockingIOError:
            pass  # it has not read the earlier ones, so it will look anyway
        except OSError:
            self._restart()

    def close(self) -> None:
        """Tell the writer that nothing more will come, so that it wraps up while the caller tidies; `finish` waits for it."""
        self._is_closed = True
        self._close_input()

    def finish(self, timeout: float = _FINISH_TIMEOUT_S) -> bool:
        """Wait until the writer has written everything and ended.

        Returns:
            Whether MLflow holds all that the journal says. If not, the journal does: a resume or `verify --repair` writes it.
            A writer that takes longer than `timeout` seconds is left to itself, to finish or give up.
        """
        deadline = time.monotonic() + timeout
        if not self._is_told:
            self.abandon()  # it has nothing to write
        code = self._close_and_wait(timeout)
        if self._is_finished:
            return code == 0
        for _ in range(_LAST_RESTARTS):
            # 1 and 3 are its considered opinions; anything else is an accident that another one may survive.
            if code in (0, 1, 3, None):
                break
            self._respawn()
            code = self._close_and_wait(max(0.0, deadline - time.monotonic()))
        self._is_finished = True
        return code == 0

    def has_recorded(self) -> bool:
        """Whether the writer has said that MLflow holds all that the journal says: what it does then are the findings."""
        return self._read_answer(_GLANCE_S).get("recorded") is True

    def restart_now(self) -> None:
        """Start another writer in the place of one that has died, without the pause that `notify` makes between two."""
        self._respawn()

    def abandon(self) -> None:
        """End the writer without waiting for what it has not written."""
        self._is_finished = True
        self._close_input()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close_output()

    def _spawn(self, option: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "raystudy.tracking.writer", "--root", str(self._paths.root)]
        option = option or ("" if self._is_told else "--prepare")
        # In the environment, not among the arguments: every user of the machine can read those, and it may hold a password.
        environment = {**os.environ, "RAYSTUDY_WRITER_URI": self._uri}
        with self._open_log() as log:
            process = subprocess.Popen(
                [*command, option] if option else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                # A terminal's Ctrl-C and hang-up go to the driver, which then says what is to be done.
                start_new_session=True,
            )
        assert process.stdin is not None
        self._input = process.stdin.fileno()
        os.set_blocking(self._input, False)
        self._started = time.monotonic()
        return process

    def _open_log(self) -> BinaryIO:
        try:
            self._paths.root.mkdir(parents=True, exist_ok=True)
            return self._paths.writer_log.open("ab")
        except OSError as error:  # a disk that is full or read-only; MLflow may still be somewhere else
            _log.warning("%s: the MLflow writer leaves no log", in_words(error, self._paths.writer_log))
            return Path(os.devnull).open("ab")

    def _restart(self) -> None:
        """Start another writer for one that has died, not too often; the next event comes here again."""
        if self._restarts < _RESTARTS and time.monotonic() - self._started > _RESTART_PAUSE_S:
            try:
                self._respawn()
            except OSError as error:
                self._started = time.monotonic()
                _log.warning("the MLflow writer cannot be started: %s", error)

    def _respawn(self) -> None:
        self._restarts += 1
        self._close_input()
        self._close_output()
        code = self._process.wait()
        _log.warning("the MLflow writer ended with %s (see %s): starting another", code, self._paths.writer_log)
        self._process = self._spawn("--patient")

    def _read_answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        output, line = self._process.stdout.fileno(), b""
        deadline = time.monotonic() + timeout
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                return {"error": f"the tracking store at {redact(self._uri)} did not answer within {timeout:.0f} s"}
            data = os.read(output, 65536)
            if not data:
                return {}
            line += data
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _no_answer(self) -> str:
        return f"the MLflow writer ended with {self._process.returncode} before it was ready; see {self._paths.writer_log}"

    def _close_and_wait(self, timeout: float) -> int | None:
        self._close_input()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._input = -1  # the number may become another file's, the journal's for one

    def _close_output(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
