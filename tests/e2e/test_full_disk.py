"""The storage of a study is full, or refuses to be written, for a while: the study pauses, says so, and goes on."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import SMALL, Place, Undisturbed

pytestmark = pytest.mark.slow


def mounted(*command: str) -> None:
    """Mount or unmount; skip where this machine does not let us."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(command[:4])} needs root and the right to mount: {done.stderr.strip()}")


@pytest.fixture
def studies(place: Place) -> Iterator[Path]:
    """Give the studies folder of the place, on a disk of its own with little room."""
    folder = place.folder / "home" / "studies"
    folder.mkdir(parents=True)
    mounted("mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Told:
    """What a running command says on stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._lines = process, queue.Queue[str]()
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line)

    def wait_for(self, *words: str, seconds: float = 400) -> str:
        """Return the first line from now on that holds all words."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{words} were not said within {seconds} s, but: {self.text}") from None
            self.text += line
            if all(word in line for word in words):
                return line


Start = Callable[..., tuple[subprocess.Popen[str], Told]]


@pytest.fixture
def start(place: Place, studies: Path) -> Iterator[Start]:  # noqa: ARG001  the disk is unmounted after the process
    """Give a function that starts the study and returns when it is under way."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, keep_models: int = 0) -> tuple[subprocess.Popen[str], Told]:
        process = place.start("run", str(place.study_file(**{**SMALL, "keep_models": keep_models})), *options)
        running.append(process)
        told = Told(process)
        told.wait_for("[1/6]")
        return process, told

    yield start
    for process in running:
        process.kill()
        process.wait()


def end(process: subprocess.Popen[str], told: Told, code: int) -> None:
    """Wait for the end of a command, which exits with `code`."""
    assert process.wait(timeout=500) == code, told.text


def fill(folder: Path) -> Path:
    """Take up all the room that there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def test_a_study_whose_disk_is_full_pauses_and_goes_on(
    place: Place, studies: Path, undisturbed: Undisturbed, start: Start
) -> None:
    process, told = start(keep_models=1)
    ballast = fill(studies)
    told.wait_for("Paused", str(studies / "small"), "the storage is full (No space left on device)", "goes on by itself")
    assert process.poll() is None
    ballast.unlink()
    told.wait_for("Going on")
    end(process, told, 0)
    assert place.table() == undisturbed.table
    assert place.json("verify", "small")["ok"]


def test_a_study_that_waits_for_room_can_be_stopped_and_resumed(
    place: Place, studies: Path, undisturbed: Undisturbed, start: Start
) -> None:
    process, told = start("--inline")
    ballast = fill(studies)
    told.wait_for("Paused", "the storage is full")
    os.kill(process.pid, signal.SIGTERM)
    end(process, told, 130)
    ballast.unlink()
    place.call("resume", "small", "--inline")
    assert place.table() == undisturbed.table
    assert place.json("verify", "small")["ok"]


def test_checkpoints_that_become_read_only_are_waited_for(
    place: Place, studies: Path, undisturbed: Undisturbed, start: Start
) -> None:
    process, told = start()
    checkpoints = studies / "small" / "checkpoints"
    # The kernel makes no file system read-only while files on it are open for writing; a second mount on top of it can be.
    mounted("mount", "--bind", str(checkpoints), str(checkpoints))
    mounted("mount", "-o", "remount,bind,ro", str(checkpoints))
    try:
        told.wait_for("Paused", "checkpoints", "Read-only file system")
        assert process.poll() is None
    finally:
        subprocess.run(["umount", str(checkpoints)], check=True)
    told.wait_for("Going on")
    end(process, told, 0)
    assert place.table() == undisturbed.table
    assert place.json("verify", "small")["ok"]
