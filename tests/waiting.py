"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object],
    what: str,
    seconds: float = 240,
    *,
    poll: float = 0.05,
    context: Callable[[], str] = lambda: "",
) -> None:
    """Wait until a condition holds.

    Args:
        condition: is asked again and again.
        what: that is waited for, in words.
        seconds: after which the test fails; for a machine many times slower than usual.
        poll: seconds between two questions.
        context: what the failure should show besides, such as a log.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}\n{context()}".rstrip()
        time.sleep(poll)
