"""Follows a study by its journal, from any terminal of this machine; whoever watches cannot disturb it."""

from __future__ import annotations

import time
from collections.abc import Callable

import filelock
from rich.console import Console
from rich.live import Live

from raystudy.host import existing
from raystudy.paths import StudyPaths
from raystudy.progress import Drawing, Snapshot, event_line
from raystudy.records import StudyRecord, StudyResumed, StudyState
from raystudy.spec import StudySpec
from raystudy.tracking.journal import read_events

_POLL_S = 0.3


def watch_study(name: str, console: Console | None = None, pause: Callable[[float], None] = time.sleep) -> StudyState:
    """Show the study `name` until it ends or nobody runs it; return its state.

    On a terminal a table stays in place; elsewhere each event is a line.

    Raises:
        NotFoundError: there is no such study here.
    """
    files, console = existing(name), console or Console()
    follower = _Follower(files)
    if console.is_terminal:
        drawing = Drawing()
        with Live(drawing, console=console, refresh_per_second=4):
            while follower.is_alive():
                follower.take_in()
                drawing.snapshot = follower.snapshot()
                pause(_POLL_S)
            follower.take_in()
            drawing.snapshot = follower.snapshot()
    else:
        while follower.is_alive():
            follower.take_in(console)
            pause(_POLL_S)
        follower.take_in(console)
    record = follower.record
    if record.state is StudyState.RUNNING:
        console.print(f"nobody is running {name}; `raystudy resume {name}` continues it")
    return record.state


class _Follower:
    """Folds a growing journal into a record."""

    def __init__(self, files: StudyPaths) -> None:
        self.record = StudyRecord()
        self._files, self._offset = files, 0
        self._driver_since, self._done_before = 0.0, 0

    def take_in(self, console: Console | None = None) -> None:
        """Take in what was appended since; print each event on `console`, if given."""
        for offset, event in read_events(self._files.journal, offset=self._offset):
            self._offset = offset
            self.record.apply(event)
            if isinstance(event, StudyResumed) or not self._driver_since:
                self._driver_since = event.time
                self._done_before = sum(trial.state.is_over for trial in self.record.trials.values())
            if console is not None:
                console.print(event_line(event), markup=False, highlight=False, soft_wrap=True)

    def snapshot(self) -> Snapshot | None:
        """Return what is to be shown; None while the first event is still being written."""
        if not self.record.spec:
            return None
        return Snapshot.of(self.record, StudySpec.from_dict(self.record.spec), self._driver_since, self._done_before)

    def is_alive(self) -> bool:
        """Whether the study has not ended and somebody runs it."""
        if self.record.ended is not None:
            return False
        try:
            with filelock.FileLock(self._files.lock).acquire(timeout=0):
                return False
        except filelock.Timeout:
            return True
