"""Follows a growing journal and keeps the record that it adds up to."""

from __future__ import annotations

import logging
from pathlib import Path

from raystudy.errors import JournalError
from raystudy.records import Event, StudyEnded, StudyRecord
from raystudy.tracking.journal import read_events

_log = logging.getLogger(__name__)


class Tail:
    """A journal as far as it has been read.

    Attributes:
        record: what the events so far add up to.
        offset: bytes read.
        is_ended: whether the last event says that the study is over or interrupted.
    """

    def __init__(self, path: Path) -> None:
        """Follow the journal at `path`, which need not exist yet."""
        self._path = path
        self.offset = 0
        self._rewind()

    def has_more(self) -> bool:
        """Whether the journal has changed since it was read."""
        try:
            return self._path.stat().st_size != self.offset
        except OSError:
            return True

    def read(self) -> set[str]:
        """Take in the events that have been added; return the ids of the trials they are about.

        Raises:
            JournalError: the journal is damaged.
        """
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return set()
        if size == self.offset:
            return set()
        if size < self.offset:
            return self._read_anew()
        try:
            return self._read_on()
        except JournalError:
            # A driver whose disk was full takes back the line it could not force to disk: we may be inside another one.
            if self.offset == 0:
                raise
            return self._read_anew()

    def _read_on(self) -> set[str]:
        touched: set[str] = set()
        for offset, event in read_events(self._path, offset=self.offset):
            self._apply(event, touched)
            self.offset = offset
        return touched

    def _read_anew(self) -> set[str]:
        _log.warning("the journal changed behind byte %d: reading it anew", self.offset)
        self._rewind()
        self._read_on()
        return set(self.record.trials)

    def _apply(self, event: Event, touched: set[str]) -> None:
        self.record.apply(event)
        self.is_ended = isinstance(event, StudyEnded)
        trial_id = getattr(event, "trial_id", None)
        if trial_id is not None:
            touched.add(trial_id)

    def _rewind(self) -> None:
        self.record = StudyRecord()
        self.offset = 0
        self.is_ended = False
