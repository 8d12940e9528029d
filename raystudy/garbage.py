"""Python's garbage collector in processes that are raystudy's own.

Importing torch, timm and Ray makes a million objects and no garbage, but by default the collector walks over the young ones
after every 700, for a fifth of the time that these imports take; and when a process ends, it walks over all of them once
more, for a second, just before the system takes the memory back whole.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (50_000, 20, 50)
"""Of the three generations."""


def collect_rarely() -> None:
    """Let collections be rarer from now on, and leave out at the end what this process still holds.

    For the start of a process of our own; the collector of a program that imports raystudy is that program's.
    """
    gc.set_threshold(*_THRESHOLDS)
    atexit.register(gc.freeze)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing meanwhile, and never look again at what there is by then."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
