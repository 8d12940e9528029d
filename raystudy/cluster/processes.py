"""Processes of this machine: Ray's own, which others live and die with, and those that a running head consists of."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class RayProcess:
    """A process of Ray on this machine.

    Attributes:
        process: the process.
        flags: its command line's `--name=value`, with `-` for `_` in the names: Ray itself uses both.
    """

    process: psutil.Process
    flags: Mapping[str, str] = field(default_factory=dict)


def head_of_ray(host: str | None = None) -> RayProcess | None:
    """Return the control process of the Ray head on this machine, the one at address `host` if that is given."""
    return _newest("gcs_server", lambda flags: host is None or flags.get("node-ip-address") == host)


def node_of_ray() -> RayProcess | None:
    """Return the process by which this machine takes part in a Ray cluster."""
    return _newest("raylet", lambda flags: "node-id" in flags and "gcs-address" in flags)


def alive(process: psutil.Process) -> bool:
    """Say whether a process still runs; one that ended but was not waited for, as in a container without init, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Return the other processes of this user that were started with `variable` at `value` in their environment.

    The environment is inherited by children and kept by orphans, so this finds what process groups and parents lose.
    """
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _has(process, variable, value)]


def end(processes: Sequence[psutil.Process], *, patience: float = _PATIENCE_S) -> None:
    """End processes: kindly, and those that are left after `patience` seconds at once."""
    for process in processes:
        _signal(process.terminate)
    _, left = psutil.wait_procs(processes, timeout=patience)
    for process in left:
        _signal(process.kill)
    psutil.wait_procs(left, timeout=patience)


def ray_command() -> str:
    """Return Ray's command: the one installed beside this Python, which need not be on the PATH."""
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else shutil.which("ray") or "ray"


def _newest(name: str, fits: Callable[[Mapping[str, str]], bool]) -> RayProcess | None:
    found = [candidate for candidate in _named(name) if fits(candidate.flags)]
    return max(found, key=lambda candidate: float(candidate.process.create_time()), default=None)


def _named(name: str) -> Iterator[RayProcess]:
    for process in psutil.process_iter():
        try:
            if process.name() == name and alive(process):
                yield RayProcess(process, _flags(process.cmdline()))
        except psutil.Error:  # it ended just now, or is none of our business
            continue


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments if argument.startswith("--"))
    return {name.replace("_", "-"): value for name, _, value in pairs}


def _has(process: psutil.Process, variable: str, value: str) -> bool:
    try:
        return alive(process) and process.environ().get(variable) == value
    except (psutil.Error, OSError):
        return False


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
