"""Storage that cannot be written for a while: full, read-only, away. What that is called, and how to wait for it to pass.

A study outlives such times: whoever has to write tries again until it works, and nobody acts on what is not written. In the
driver the wait ends when the study is to stop (`attended`); a trial's process waits until it is killed.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

BACK_OFF_S = (0.5, 10.0)
_GLANCE_S = 0.1
"""How soon a wait notices that the study is to stop."""

_PASSING = {
    errno.ENOSPC: "the storage is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "writing is not allowed",
    errno.EPERM: "writing is not allowed",
    errno.EIO: "the storage does not work",
    errno.EREMOTEIO: "the storage does not work",
    errno.ENODEV: "the storage is away",
    errno.ENXIO: "the storage is away",
    errno.ESTALE: "the storage is away",
    errno.ENOTCONN: "the storage is away",
    errno.ESHUTDOWN: "the storage is away",
    errno.ETIMEDOUT: "the storage does not answer",
    errno.EHOSTDOWN: "the storage does not answer",
    errno.EHOSTUNREACH: "the storage does not answer",
}
"""Errors of a file that could be written before and will be again, once somebody has seen to the storage."""


class StoppedWaiting(KeyboardInterrupt):
    """The study is to stop while its storage cannot be written.

    A KeyboardInterrupt, because it has to leave Ray Tune's loop as one does: every other exception becomes an error of Tune's.
    """


@dataclass(frozen=True, slots=True)
class Pause:
    """How long the storage could not be written, and why."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Attendant:
    """Somebody who is told of waits in this process, and may end them."""

    say: Callable[[str], None]
    is_stopping: Callable[[], bool]


_attendant = _Attendant(say=lambda _: None, is_stopping=lambda: False)


def attend(say: Callable[[str], None], is_stopping: Callable[[], bool] = lambda: False) -> None:
    """Tell `say` of every wait in this process from now on, and end them by `StoppedWaiting` when `is_stopping`."""
    global _attendant
    _attendant = _Attendant(say, is_stopping)


@contextmanager
def attended(say: Callable[[str], None], is_stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Attend to waits for as long as the context lasts."""
    before = _attendant
    attend(say, is_stopping)
    try:
        yield
    finally:
        attend(before.say, before.is_stopping)


def tell(text: str) -> None:
    """Tell whoever attends to the waits in this process."""
    _log.info("%s", text)
    _attendant.say(text)


def passes(error: OSError) -> bool:
    """Say whether the cause of `error` can go away by itself or by somebody's care."""
    return error.errno in _PASSING


def in_words(error: OSError, path: Path) -> str:
    """Say what is wrong and where."""
    return f"{path} cannot be written: {_PASSING.get(error.errno or 0, 'an error')} ({error.strerror or error})"


def keep_trying(action: Callable[[], object], path: Path) -> Pause | None:
    """Do `action` until the storage takes it.

    Whoever attends is told once that and why there is a wait, again if the reason changes, and once that it is over.

    Args:
        action: writes; raises OSError if it cannot, having done nothing that a repetition would not put right.
        path: what it writes, for the messages.

    Returns:
        The time spent waiting; None if there was none.

    Raises:
        StoppedWaiting: the study is to stop.
        OSError: of a kind that no waiting helps against.
    """
    started, pause, said = time.monotonic(), BACK_OFF_S[0], ""
    while True:
        try:
            action()
        except OSError as error:
            if not passes(error):
                raise
            words = in_words(error, path)
        else:
            break
        if _attendant.is_stopping():
            raise StoppedWaiting(words)
        if words != said:
            said = words
            tell(f"Paused: {words}; nothing is lost, and it goes on by itself when that is put right")
        _sleep(pause)
        pause = min(2 * pause, BACK_OFF_S[1])
    if not said:
        return None
    waited = time.monotonic() - started
    tell(f"Going on: {path} can be written again, after {waited:.0f} s")
    return Pause(waited, said)


def _sleep(seconds: float) -> None:
    """Sleep, at most until the study is to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not _attendant.is_stopping():
        time.sleep(min(left, _GLANCE_S))
