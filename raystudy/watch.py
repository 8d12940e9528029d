"""Follows a study: by its journal on this machine, by its driver's output on a cluster. Whoever watches cannot disturb it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.live import Live

from raystudy.host import existing, glance
from raystudy.paths import StudyPaths
from raystudy.progress import Drawing, Snapshot, event_line
from raystudy.records import Event, StudyRecord, StudyResumed, StudyState
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


def watch_events(name: str, events: Iterable[Event | None], console: Console | None = None) -> StudyState:
    """Show a study by its events as they come, until there are no more; return its state.

    Args:
        name: the study.
        events: from its first on; None where nothing new came for a while.
        console: where to show it: a table that stays in place on a terminal, a line for each event elsewhere.
    """
    console = console or Console()
    view = _View()
    if console.is_terminal:
        with Live(_LatestDrawing(view), console=console, refresh_per_second=4):
            for event in events:
                if event is not None:
                    view.apply(event)
    else:
        for event in events:
            if event is not None:
                view.apply(event, console)
    if view.record.state is StudyState.RUNNING:
        console.print(f"the driver of {name} is gone; `raystudy resume {name}` continues it")
        return StudyState.INTERRUPTED
    return view.record.state


class _View:
    """Folds events into a record and what is to be shown of it."""

    def __init__(self) -> None:
        self.record = StudyRecord()
        self._lock = threading.Lock()
        self._driver_since, self._done_before = 0.0, 0

    def apply(self, event: Event, console: Console | None = None) -> None:
        """Take in an event; print it on `console`, if given."""
        with self._lock:
            self.record.apply(event)
            if isinstance(event, StudyResumed) or not self._driver_since:
                self._driver_since = event.time
                self._done_before = sum(trial.state.is_over for trial in self.record.trials.values())
        if console is not None:
            console.print(event_line(event), markup=False, highlight=False, soft_wrap=True)

    def snapshot(self) -> Snapshot | None:
        """Return what is to be shown; None while the first event is still being written."""
        with self._lock:
            if not self.record.spec:
                return None
            return Snapshot.of(self.record, StudySpec.from_dict(self.record.spec), self._driver_since, self._done_before)


class _LatestDrawing(Drawing):
    """Draws what a view holds at the moment: a long history comes in much faster than it could be drawn event by event."""

    def __init__(self, view: _View) -> None:
        super().__init__()
        self._view = view

    def __rich__(self) -> RenderableType:
        self.snapshot = self._view.snapshot()
        return super().__rich__()


class _Follower(_View):
    """Folds a growing journal."""

    def __init__(self, files: StudyPaths) -> None:
        super().__init__()
        self._files, self._offset = files, 0

    def take_in(self, console: Console | None = None) -> None:
        """Take in what was appended since; print each event on `console`, if given."""
        for offset, event in read_events(self._files.journal, offset=self._offset):
            self._offset = offset
            self.apply(event, console)

    def is_alive(self) -> bool:
        """Whether the study has not ended and somebody runs it."""
        if self.record.ended is not None:
            return False
        with glance(self._files) as is_run:
            return is_run
