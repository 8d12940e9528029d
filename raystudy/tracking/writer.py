"""The process that feeds MLflow from the journal: `python -m raystudy.tracking.writer --root DIR [--tracking-uri URI]`.

It shares nothing with the driver but the journal file and a pipe: a byte on standard input says that there is something new,
the pipe's end says that the driver is done, or dead. What was written in the meantime goes to MLflow in one batch per run.
A store that goes away is retried for as long as the driver lives, and for a bounded time after it.

Standard output gets one line of JSON: {"ready": true, "experiment_id", "run_id", "tracking_uri"} or {"error", "kind"}; then a
second one, {"recorded": true} or false, when everything but the findings is written.
Exit codes: 0 MLflow holds what the journal says, 1 it does not yet, 2 a mistake in this program, 3 refused.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock

from raystudy.errors import RaystudyError, StudyBusyError
from raystudy.garbage import collect_rarely
from raystudy.paths import StudyPaths
from raystudy.records import StudyRecord
from raystudy.tracking.address import check_reachable, redact
from raystudy.tracking.content import spec_of
from raystudy.tracking.finder import Finder
from raystudy.tracking.store import StoreDown, StoreRefused, own_process, read_libraries
from raystudy.tracking.tail import Tail

if TYPE_CHECKING:
    from raystudy.tracking.store import Store

URI_VARIABLE = "RAYSTUDY_WRITER_URI"
PATIENCE_VARIABLE = "RAYSTUDY_WRITER_PATIENCE_S"
_PATIENCE_S = 60.0
_FIRST_PATIENCE_S = 4.0
"""How long a store that answers may refuse to be opened: two studies may be making its tables at the same time."""
_POLL_S = 10.0
"""How long the driver may say nothing before the writer looks for itself: every event comes with a byte."""
_GATHER_S = 0.25
"""How long events gather after the first one: what arrives together is written together."""
_BACK_OFF_S = (0.5, 10.0)
_NICENESS = 5

_T = TypeVar("_T")
_log = logging.getLogger("raystudy.writer")


class GaveUp(RaystudyError):
    """The store stayed away for longer than the writer may live without its driver."""


class _Log(io.TextIOBase):
    """Standard error, where that is a file on a disk that may be full: what it does not take is lost, nothing else."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(2, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        return 2


class DriverPipe:
    """The pipe from the driver: wakes the writer, and ends with the driver."""

    def __init__(self, file: int) -> None:
        """Listen to the file descriptor `file`."""
        self._file = file
        self.is_closed = False
        os.set_blocking(file, False)

    def wait(self, seconds: float) -> None:
        """Return when the driver sends a byte or goes away, at the latest after `seconds`."""
        if self.is_closed:
            time.sleep(seconds)
        elif select.select([self._file], [], [], seconds)[0]:
            self._drain()

    def await_word(self) -> bool:
        """Wait until the driver sends a byte; return False if it goes away instead."""
        select.select([self._file], [], [])
        self._drain()
        return not self.is_closed

    def _drain(self) -> None:
        try:
            while (data := os.read(self._file, 65536)) != b"":
                _ = data
        except BlockingIOError:
            return
        self.is_closed = True


class Writer:
    """Keeps MLflow up with one journal."""

    def __init__(
        self, paths: StudyPaths, uri: str, pipe: DriverPipe, *, patience: float = _PATIENCE_S, finder: Finder | None = None
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            paths: the study.
            uri: the tracking store.
            pipe: from the driver.
            patience: seconds without success after which it gives up once the driver is gone.
            finder: computes the findings of a study that has ended; None for no findings.
        """
        self._paths, self._uri, self._pipe, self._patience = paths, uri, pipe, patience
        self._finder = finder
        self._tail = Tail(paths.journal)
        self._dirty: set[str] = set()
        self._is_complete = True
        self._most_running = 0
        self._store: Store | None = None

    def await_study(self) -> StudyRecord:
        """Wait until the driver has written the journal's first event, and return the record."""
        self._dirty |= self._tail.read()
        while not self._tail.record.name:
            if self._pipe.is_closed:
                raise GaveUp(f"{self._paths.journal}: the driver ended without having started a study")
            self._pipe.wait(0.1)
            self._dirty |= self._tail.read()
        return self._tail.record

    def connect(self) -> dict[str, str]:
        """Open the store, find or create experiment and parent run; return their ids.

        Opening comes before the journal's first event: it takes seconds, which the driver needs for Ray, and creates nothing
        that bears the study's name.
        """
        from raystudy.tracking.artifacts import store_study_file
        from raystudy.tracking.mirror import Mirror

        store = self._open()
        record = self.await_study()
        self._mirror = Mirror(store, record)
        store_study_file(store, self._mirror.run_id, record)
        self._dirty |= set(record.trials)
        return {
            "experiment_id": self._mirror.experiment_id,
            "run_id": self._mirror.run_id,
            "tracking_uri": redact(self._uri),
        }

    def _open(self) -> Store:
        """Return the store, opened at the first call."""
        from raystudy.tracking.store import Store

        if self._store is None:
            self._store = Store(self._uri)
        return self._store

    def run(self) -> bool:
        """Write until the driver is gone and everything is written; return whether MLflow is complete."""
        while True:
            last_round = self._pipe.is_closed
            self.persist(self._read)
            if last_round and self._tail.is_ended and self._finder is not None:
                # Beside what is left to write. While the driver is there, the journal of a study that goes on may still end
                # with its interruption.
                self._finder.start(self._tail.record)
            self.persist(self._write_all)
            self._prepare_findings()
            if last_round:
                break
            if not self._pipe.is_closed and not self._tail.has_more():
                self._pipe.wait(_POLL_S)
            if not self._pipe.is_closed:
                time.sleep(_GATHER_S)
        if self._tail.is_ended:
            self._finish()
        self._open().settle()
        return self._is_complete and not self._mirror.given_up

    def _prepare_findings(self) -> None:
        """Let the findings' process read its libraries, once the last trial has begun and a slot is idle (or there is one)."""
        record, finder = self._tail.record, self._finder
        if finder is None or self._pipe.is_closed or len(record.trials) < spec_of(record).budget.trials:
            return
        running = sum(not trial.state.is_over for trial in record.trials.values())
        self._most_running = max(self._most_running, running)
        if running <= max(1, self._most_running - 1):
            finder.prepare()

    def add_findings(self) -> None:
        """Store what matters in a study that has ended, unless it goes on meanwhile; what goes wrong is a line of the log."""
        from raystudy.tracking.findings import store_files

        if self._finder is None or not self._tail.is_ended:
            return
        try:
            if self._finder.wait(self._tail.has_more):
                self.persist(lambda: store_files(self._open(), self._mirror.run_id, self._paths.findings))
        except Exception as error:  # the study is recorded, and nobody shall think otherwise
            _log.error("the findings are not in MLflow: %s: %s", type(error).__name__, error)

    def persist(self, action: Callable[[], _T], *, limit: float = math.inf) -> _T:
        """Do `action` again and again until the store takes it.

        Args:
            action: what to do.
            limit: seconds after which to let the error through, even if the driver is there.

        Raises:
            StoreDown: `limit` has passed.
            GaveUp: the driver is gone, and so was the store for longer than our patience.
        """
        pause, longest = _BACK_OFF_S
        started = time.monotonic()
        alone_since: float | None = None
        while True:
            try:
                return action()
            except StoreDown as error:
                now = time.monotonic()
                if now - started > limit:
                    raise
                if self._pipe.is_closed:
                    alone_since = alone_since or now
                    if now - alone_since > self._patience:
                        raise GaveUp(f"{error}; `raystudy verify --repair` writes the rest") from error
                _log.warning("%s; trying again in %.1f s", error, pause)
                self._pipe.wait(min(pause, self._patience / 4) if self._pipe.is_closed else pause)
                pause = min(pause * 2, longest)

    def _read(self) -> None:
        """Take in what is new in the journal; storage that is away for a while is waited for as the store is."""
        try:
            self._dirty |= self._tail.read()
        except OSError as error:
            raise StoreDown(f"{self._paths.journal} cannot be read: {error.strerror or error}") from error

    def _write_all(self) -> None:
        """Write what has changed, or a part of it if the driver goes away meanwhile.

        What is written leaves `_dirty` at once, so that a repetition goes on from there.
        """
        record, was_closed = self._tail.record, self._pipe.is_closed
        if not self._tail.is_ended:
            self._mirror.write_study(record)
        spec = spec_of(record)
        for trial_id in sorted(self._dirty & record.trials.keys(), key=lambda trial_id: record.trials[trial_id].number):
            self._mirror.write_trial(record.trials[trial_id], spec.metric, spec.mode)
            self._dirty.discard(trial_id)
            self._pipe.wait(0)
            if self._pipe.is_closed and not was_closed:
                return

    def _finish(self) -> None:
        """Store artifacts and models and end the parent run, in this order: a run that is over has everything."""
        from raystudy.tracking.artifacts import store_results
        from raystudy.tracking.models import ModelKeeper

        record, mirror, store = self._tail.record, self._mirror, self._open()
        keeper = ModelKeeper(store, mirror.experiment_id, self._paths)
        steps = (
            lambda: store_results(store, mirror.run_id, record, self._paths.journal, mirror.run_ids),
            lambda: keeper.keep(record, mirror.run_ids),
            lambda: mirror.write_study(record),
        )
        for step in steps:
            try:
                self.persist(step)
            except StoreRefused as error:
                # A store may take runs and refuse files or models; the rest is still worth having.
                _log.error("%s", error)
                self._is_complete = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the writer; see the module's text."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to every process of a study; our end is the pipe's
        signal.signal(number, signal.SIG_IGN)
    collect_rarely()
    os.nice(_NICENESS)  # Ray starts at the same moment, and everybody waits for Ray
    parser = argparse.ArgumentParser(prog="raystudy.tracking.writer")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tracking-uri", default=os.environ.get(URI_VARIABLE), help=f"default: {URI_VARIABLE}")
    parser.add_argument("--prepare", action="store_true", help="open the store only when a byte comes on standard input")
    parser.add_argument("--patient", action="store_true", help="wait for a store that is away at the start")
    options = parser.parse_args(arguments)
    answer = _own_stdout()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    own_process(options.tracking_uri)
    paths = StudyPaths(options.root)
    patience = float(os.environ.get(PATIENCE_VARIABLE, _PATIENCE_S))
    pipe = DriverPipe(sys.stdin.fileno())
    if options.prepare:
        read_libraries(options.tracking_uri)
        if not pipe.await_word():
            return 0
    writer = Writer(paths, options.tracking_uri, pipe, patience=patience, finder=Finder(paths))
    try:
        return _serve(writer, paths, options, answer)
    except GaveUp as error:
        _log.error("%s", error)
        return 1
    except Exception:
        _log.exception("this should not have happened")
        return 2


def _serve(writer: Writer, paths: StudyPaths, options: argparse.Namespace, answer: Callable[[dict[str, object]], None]) -> int:
    try:
        if not options.patient:
            check_reachable(options.tracking_uri, create=True)
        # A writer of an earlier driver that died may still be at work: two of them would create the same runs.
        with FileLock(paths.writer_lock):
            ids = writer.persist(writer.connect, limit=math.inf if options.patient else _FIRST_PATIENCE_S)
            answer({"ready": True, **ids})
            is_complete = writer.run()
        answer({"recorded": is_complete})
        # The lock is open: a driver that takes the study up again need not wait for findings that it will replace.
        writer.add_findings()
        return 0 if is_complete else 1
    except GaveUp:
        raise
    except RaystudyError as error:
        _log.error("%s", error)
        answer({"error": str(error), "kind": "busy" if isinstance(error, StudyBusyError) else "unreachable"})
        return 3


def _own_stdout() -> Callable[[dict[str, object]], None]:
    """Keep standard output for our one line, whatever libraries print: that goes to the log."""
    sys.stdout.flush()
    channel = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr = _Log()

    def answer(line: dict[str, object]) -> None:
        try:
            os.write(channel, json.dumps(line).encode() + b"\n")
        except OSError:
            # The driver is gone; the end of its pipe says so too.
            _log.info("nobody listens any more")

    return answer


if __name__ == "__main__":
    sys.exit(main())
