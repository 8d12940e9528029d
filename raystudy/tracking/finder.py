"""The writer's end of the process that computes a study's findings: started, watched, ended if it takes too long.

That process takes seconds to minutes, gigabytes for thousands of trials, and numerical libraries that nobody can vouch for.
So it is one of its own, and whatever becomes of it, the study has ended well before.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from raystudy.paths import StudyPaths
from raystudy.records import StudyRecord
from raystudy.storage import in_words
from raystudy.tracking import names
from raystudy.tracking.findings import LIMIT_S, latest, write_error

_POLL_S = 0.2
_MOST_THREADS = str(min(4, os.cpu_count() or 1))
"""More threads than cores wait for each other, and more than four make the small matrices of a study slower."""

_log = logging.getLogger("raystudy.writer")


class Finder:
    """Computes the findings of one study, at most once."""

    def __init__(self, files: StudyPaths, command: Sequence[str] | None = None, *, limit: float = LIMIT_S) -> None:
        """Prepare.

        Args:
            files: the study.
            command: the process; by default the one that computes.
            limit: seconds that it may take.
        """
        self._files, self._limit = files, limit
        self._command = command or (sys.executable, "-m", "raystudy.tracking.findings", "--wait", "--root", str(files.root))
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._is_ready = False

    def prepare(self) -> None:
        """Start a process that reads its libraries, for seconds, and waits; never raises.

        It ends with this one if nothing becomes of the study's end.
        """
        if self._process is None:
            with suppress(OSError):  # `start` tries again, and says so
                self._process = self._spawn()

    def start(self, record: StudyRecord) -> None:
        """Let the process compute and return at once, unless there is nothing to find or it has been found; never raises."""
        self._is_ready = latest(self._files) is not None
        if self._is_ready or not any(trial.reports for trial in record.trials.values()):
            self._dismiss()
            return
        self._started = time.monotonic()
        if self._process is not None and not self._tell(self._process):
            self._dismiss()  # it was killed while it waited
        try:
            if self._process is None:
                self._process = self._spawn()
                self._tell(self._process)
        except OSError as error:
            self._give_up(f"the process could not be started: {error}")

    def wait(self, is_outdated: Callable[[], bool]) -> bool:
        """Wait for the process; return whether there is something to store.

        Args:
            is_outdated: whether the study goes on, so that this answer is not wanted any more.
        """
        if self._process is None:
            return self._is_ready
        while (code := self._process.poll()) is None:
            is_late = time.monotonic() - self._started > self._limit
            if is_late or is_outdated():
                self._end(self._process)
                return self._give_up(f"they took longer than {self._limit:g} s") if is_late else False
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_S)
        if is_outdated():
            return False
        if code != 0:
            return self._give_up(f"the process ended with {code}" + (", perhaps out of memory" if code == -9 else ""))
        return (self._files.findings / names.IMPORTANCE_FILE).exists()

    def _give_up(self, reason: str) -> bool:
        """Note why there are no findings; return whether that could be noted."""
        _log.error("no findings: %s", reason)
        try:
            write_error(reason, self._files.findings)
        except OSError as error:
            _log.error("%s", in_words(error, self._files.findings))
            return False
        self._is_ready = True
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {"OMP_NUM_THREADS": _MOST_THREADS, **os.environ}
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, env=environment)

    @staticmethod
    def _tell(process: subprocess.Popen[bytes]) -> bool:
        """Let the process go on; return False if it is gone."""
        assert process.stdin is not None
        try:
            process.stdin.write(b".")
            process.stdin.close()
        except OSError:
            return False
        return True

    def _dismiss(self) -> None:
        """End a process that was prepared in vain."""
        if self._process is not None:
            self._end(self._process)
            self._process = None

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
