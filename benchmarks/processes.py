"""The processes of a benchmark: how much processor time they take, and that none of them is left behind.

A study's MLflow writer lives on when its driver dies, to finish what it has begun, and so it should. A benchmark that is
stopped (`timeout`, Ctrl-C, SIGKILL) must not leave such processes and their files behind. So a guard, a process in a session of
its own, waits for the end of a pipe that only the benchmark holds. Then it kills the processes that have this run's folder
in the environment variable `RAYSTUDY_BENCHMARK`, which processes hand on to those that they start, and deletes the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from raystudy.cluster.processes import alive, marked

MARK = "RAYSTUDY_BENCHMARK"
_ROUNDS = 100
_PAUSE_S = 0.1
_SAMPLE_S = 1.0


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder, which is deleted afterwards; every process that is started meanwhile is ended, however this one ends."""
    folder = Path(tempfile.mkdtemp(prefix="raystudy-benchmark-"))
    guard = subprocess.Popen([sys.executable, __file__, str(folder)], stdin=subprocess.PIPE, start_new_session=True)
    os.environ[MARK] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[MARK]
        guard.communicate()


def clear(folder: Path) -> None:
    """Kill the processes of `folder`, and those that they may start meanwhile; delete it."""
    for _ in range(_ROUNDS):
        left = [process for process in marked(MARK, str(folder)) if alive(process)]
        if not left:
            break
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Use:
    """The processor time of a process.

    Attributes:
        command: its command line, the last one that was seen.
        samples: (seconds since 1970, processor seconds so far), once a second.
    """

    command: str = ""
    samples: list[tuple[float, float]] = field(default_factory=list)


Used = Mapping[int, Use]
"""Of each process by its id."""


@contextmanager
def processor_time(folder: Path) -> Iterator[Used]:
    """Gather the processor time of the processes started within `scratch`, while the context lasts."""
    used: dict[int, Use] = {}

    def gather() -> None:
        for process in marked(MARK, str(folder)):
            with suppress(psutil.Error):  # it has just ended
                use, times = used.setdefault(process.pid, Use()), process.cpu_times()
                use.samples.append((time.time(), times.user + times.system))
                use.command = " ".join(process.cmdline()) or use.command

    with repeatedly(gather, seconds=_SAMPLE_S):
        yield used


@contextmanager
def repeatedly(act: Callable[[], None], *, seconds: float) -> Iterator[None]:
    """Do something every so many seconds, in a thread of its own, while the context lasts."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the benchmark has ended, or is dead
    clear(Path(sys.argv[1]))
