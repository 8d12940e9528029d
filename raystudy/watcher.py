"""Whoever shows what happens in a study while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raystudy.records import Event, Observer

if TYPE_CHECKING:
    from raystudy.search.director import Director


class Watcher(Observer):
    """Somebody who shows what happens; every method may do nothing."""

    def __call__(self, event: Event) -> None:
        """Take notice of an event."""

    def say(self, text: str) -> None:
        """Show what is being done before and after the trials."""

    def recount(self, history: Sequence[Event]) -> None:
        """Take notice of everything that is in the journal already, this driver's first event included."""

    def begin(self, director: Director) -> None:
        """Trials are about to run."""

    def end(self) -> None:
        """No trial runs any more."""
