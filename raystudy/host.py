"""This machine's side of a study: who holds it, how it is told to stop, and the Ray it runs on."""

from __future__ import annotations

import getpass
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import filelock

from raystudy import __version__, own_ray, paths
from raystudy.errors import InputError, JournalError, NotFoundError, Problem, StudyBusyError, UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import StudyEnded, StudyRecord, StudyState
from raystudy.spec import StudySpec
from raystudy.spec.messages import nearest
from raystudy.storage import in_words
from raystudy.tracking.content import journal_id
from raystudy.tracking.journal import last_event, read_events

if TYPE_CHECKING:
    from raystudy.search.director import Director

_RAY_TIMEOUT_S = 5.0
_GLANCE_S = 0.5
"""Whoever glances at a study holds its lock for less."""

_log = logging.getLogger(__name__)


def stop(name: str) -> int:
    """Ask the process that runs the study `name` on this machine to stop cleanly; return its process id.

    Raises:
        NotFoundError: there is no such study here, or nobody is running it.
    """
    files = existing(name)
    with glance(files) as is_run:
        if not is_run:
            raise NotFoundError(f"nobody is running the study {name!r}")
    driver = _read_card(files)
    if driver["host"] != socket.gethostname():
        raise NotFoundError(f"the study {name!r} is run by {driver['host']}: stop it there")
    os.kill(driver["pid"], signal.SIGINT)
    return int(driver["pid"])


def driver_state(name: str, journal: str) -> StudyState | None:
    """Return what has become of a study that nobody runs any more, which a driver that was killed could not tell MLflow.

    Args:
        name: the study.
        journal: identifies the one that is meant (MLflow's tag): a study elsewhere may have the same name.

    Returns:
        How its journal ends, `interrupted` if in the middle; None if a process runs it, or if it is not of this machine.
    """
    try:
        files = StudyPaths.of(name)
        _, first = next(read_events(files.journal))
        if journal_id(StudyRecord.fold([first])) != journal:
            return None
        with glance(files) as is_run:
            if is_run:
                return None
            last = last_event(files.journal)
    except (StopIteration, OSError, InputError, JournalError):
        return None
    return last.state if isinstance(last, StudyEnded) else StudyState.INTERRUPTED


def _read_card(files: StudyPaths) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(files.driver.read_text())
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"a process runs the study {files.root.name!r}, but {files.driver} does not say which ({error}): stop it by Ctrl-C"
        ) from error
    return card


def owner() -> str:
    """Return who runs a study: RAYSTUDY_OWNER, which a submitted study has from its submitter, else this user."""
    given = os.environ.get("RAYSTUDY_OWNER")
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        return ""


def check_client() -> None:
    """Make sure that whoever submitted this study runs the same version of raystudy.

    Raises:
        UnreachableError: they do not.
    """
    client = os.environ.get("RAYSTUDY_CLIENT_VERSION", __version__)
    if client != __version__:
        raise UnreachableError(f"raystudy {client} submitted the study, {__version__} runs on the cluster: install one version")


def existing(name: str) -> StudyPaths:
    """Return the files of a study that was run here; raise NotFoundError if there is none."""
    files = StudyPaths.of(name)
    if not files.journal.exists():
        here = sorted(folder.name for folder in paths.studies().glob("*") if (folder / "journal.jsonl").exists())
        hint = nearest(name, here) if here else "there are no studies yet"
        raise NotFoundError(f"there is no study {name!r} in {paths.studies()}; {hint}")
    return files


@contextmanager
def glance(files: StudyPaths) -> Iterator[bool]:
    """Say whether a process runs the study; if none does, none can begin while this lasts."""
    lock = filelock.FileLock(files.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield True
        return
    try:
        yield False
    finally:
        lock.release()


@contextmanager
def exclusive(files: StudyPaths) -> Iterator[None]:
    """Hold the study: one driver at a time. The lock goes with the process, however it dies."""
    existed = files.root.exists()
    lock = filelock.FileLock(files.lock)
    try:
        files.root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_GLANCE_S)
    except filelock.Timeout as error:
        raise StudyBusyError(f"another process is running the study {files.root.name!r}") from error
    except OSError as error:
        accepted = "RAYSTUDY_HOME names the folder that studies are kept in; it has to be writable"
        raise InputError(Problem("", in_words(error, files.root), accepted)) from error
    try:
        yield
    finally:
        lock.release()
        if not existed and not files.journal.exists():
            shutil.rmtree(files.root, ignore_errors=True)


@contextmanager
def calling_card(files: StudyPaths) -> Iterator[None]:
    """Leave word of which process runs the study, for `stop`; a study runs without it where it cannot be written."""
    try:
        files.driver.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}))
    except OSError as error:
        _log.warning("%s: `raystudy stop` will not find this process", in_words(error, files.driver))
    try:
        yield
    finally:
        with suppress(OSError):
            files.driver.unlink(missing_ok=True)


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an error does, so that what has been begun is tidied away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopping_on_signals(director: Director) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a clean stop; a second SIGINT interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        if director.stop_reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        director.request_stop("interrupted from the keyboard" if number == signal.SIGINT else "terminated (SIGTERM)")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_on_shared_ray() -> bool:
    """Whether the studies of this process run on a Ray that others use too."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


@contextmanager
def ray_session(spec: StudySpec) -> Iterator[None]:
    """Connect to the Ray that RAY_ADDRESS names, else start one for this study.

    Raises:
        UnreachableError: nobody answers at RAY_ADDRESS.
    """
    with ray_starting(spec) as await_ray:
        await_ray()
        yield


@contextmanager
def ray_starting(spec: StudySpec) -> Iterator[Callable[[], None]]:
    """Begin a `ray_session` and let the caller go on meanwhile, with a function that waits until Ray is there.

    The function raises what `ray_session` raises. A start cannot be broken off: leaving waits for its end, seconds at most.
    """
    import ray

    if ray.is_initialized():
        yield lambda: None  # the caller's own: neither started nor stopped here
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray") as threads:
        start = threads.submit(_connect, spec)
        try:
            yield start.result
        finally:
            wait([start])
            ray.shutdown()


def _connect(spec: StudySpec) -> None:
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if is_on_shared_ray():
        address = os.environ["RAY_ADDRESS"]
        _check_reachable(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnreachableError(f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {error}") from error
    else:
        own_ray.start(max(os.cpu_count() or 1, spec.resources.cpu), **common)


def _check_reachable(address: str) -> None:
    """Make sure within seconds that somebody listens at a Ray address: Ray itself tries for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, `local`, or something that Ray refuses at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_RAY_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UnreachableError(f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); is it running?") from error
