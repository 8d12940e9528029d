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
        self._command = command or (sys.executable, "-m", "raystudy.tracking.findings", "--root", str(files.root))
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._is_ready = False

    def start(self, record: StudyRecord) -> None:
        """Start the process and return at once, unless there is nothing to find or it has been found; never raises."""
        if not any(trial.reports for trial in record.trials.values()):
            return
        if latest(self._files) is not None:
            self._is_ready = True
            return
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": _MOST_THREADS, **os.environ},
            )
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
            time.sleep(_POLL_S)
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

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
