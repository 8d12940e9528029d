"""Nodes that are about to be taken away, spot machines above all: Ray was told (`ray drain-node`) and starts nothing there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_LOOK_S = 2.0


class Notices:
    """Which nodes leave. Ray is asked every few seconds at most."""

    def __init__(self, ask: Callable[[], Mapping[str, int]] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing known.

        Args:
            ask: returns the ids of the nodes that are drained, with their deadlines; by default asks Ray.
            now: a clock in seconds.
        """
        self._ask, self._now = ask or _draining_nodes, now
        self._looked = -2 * _LOOK_S
        self._leaving: frozenset[str] = frozenset()

    def is_leaving(self, node_id: str) -> bool:
        """Whether the node has been given notice."""
        now = self._now()
        if now - self._looked >= _LOOK_S:
            self._looked, self._leaving = now, frozenset(self._ask())
        return node_id in self._leaving


def _draining_nodes() -> Mapping[str, int]:
    from ray._private.state import state  # Ray Serve looks at the same list; there is no public way

    nodes: Mapping[str, int] = state.get_draining_nodes()
    return nodes
