"""Which tracking store is used, whether it answers, and its address without secrets. Imports no MLflow, so it is fast."""

from __future__ import annotations

import os
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from raystudy import paths
from raystudy.errors import InputError, JournalError, UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import StudyStarted
from raystudy.tracking.journal import read_events

_PROBE_TIMEOUT_S = 5.0
_SQLITE = "sqlite:///"


def tracking_uri(given: str | None = None, *, environ: Mapping[str, str] = os.environ) -> str:
    """Return the address to use: the one given, else MLFLOW_TRACKING_URI, else the local store's."""
    return given or environ.get("MLFLOW_TRACKING_URI") or paths.local_tracking_uri()


def study_uri(name: str, given: str | None = None) -> str:
    """Return where the study `name` is recorded.

    That is the address given, else the one in the study's own file if it was run here, else MLFLOW_TRACKING_URI, else the
    local store: the same order in which `raystudy run` chooses.
    """
    return given or _recorded_uri(name) or tracking_uri()


def redact(uri: str) -> str:
    """Return `uri` without the user name and password that it may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def database(uri: str) -> Path | None:
    """Return the file of a SQLite store, None for any other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str, name: str) -> str | None:
    """Return where the artifacts of study `name` go: beside a local store's file; None lets a server decide."""
    file = database(uri)
    return None if file is None else (file.absolute().parent / "artifacts" / name).as_uri()


def check_reachable(uri: str, *, create: bool = False) -> None:
    """Make sure within seconds that the store answers.

    Args:
        uri: its address.
        create: whether a local store that is not there yet will be created, so that it need only be possible.

    Raises:
        UnreachableError: in one line, with the address and the reason.
    """
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif (file := database(uri)) is not None:
        _check_database(file, create=create)


def _recorded_uri(name: str) -> str | None:
    try:
        events = read_events(StudyPaths.of(name).journal)
        first = next((event for _, event in events), None)
    except (InputError, JournalError, OSError):
        return None
    uri = first.spec.get("tracking_uri") if isinstance(first, StudyStarted) else None
    return uri if isinstance(uri, str) else None


def _check_server(uri: str) -> None:
    request = urllib.request.Request(redact(uri).rstrip("/") + "/health")  # noqa: S310 (http or https, see above)
    try:
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        # A proxy may guard this page, or not know it: whether the server serves is then seen at the first request.
        if error.code >= 500:
            raise UnreachableError(f"the tracking server at {redact(uri)} answers {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"the tracking server at {redact(uri)} does not answer ({reason}); is it running?") from error


def _check_database(file: Path, *, create: bool) -> None:
    if not create and not file.exists():
        raise UnreachableError(f"there is no tracking store at {file}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=_PROBE_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        raise UnreachableError(f"the tracking store {file} cannot be opened: {error}") from error
    if not os.access(file, os.W_OK):
        raise UnreachableError(f"the tracking store {file} cannot be written")
