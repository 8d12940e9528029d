"""Which tracking store is used, whether it answers, and its address without secrets. Imports no MLflow, so it is fast."""

from __future__ import annotations

import base64
import configparser
import os
import re
import sqlite3
import urllib.error
import urllib.parse
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

CREDENTIALS = (
    "put user and password into ~/.mlflow/credentials (raystudy keys makes that file for a cluster), "
    "or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)
"""Where MLflow's clients look for what a server asks for."""


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
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


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
    try:
        _get(uri, "/health")
    except urllib.error.HTTPError as error:
        # A proxy may guard this page, or not know it: whether the server serves is then seen at the first request.
        if error.code >= 500:
            raise UnreachableError(f"the tracking server at {redact(uri)} answers {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"the tracking server at {redact(uri)} does not answer ({reason}); is it running?") from error
    _check_credentials(uri)


def _check_credentials(uri: str) -> None:
    """Find out now that the server refuses us, rather than when images and weights are ready."""
    if is_authorized_elsewhere():
        return  # the client will send what only it knows
    header = authorization(uri)
    try:
        _get(uri, "/api/2.0/mlflow/experiments/search?max_results=1", header)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            does = "refuses the credentials it is given" if header else "asks for credentials"
            raise UnreachableError(f"the tracking server at {redact(uri)} {does}; {CREDENTIALS}") from error
    except (OSError, ValueError):
        return  # it answered a moment ago: the first request will say more


def _get(uri: str, page: str, headers: Mapping[str, str] | None = None) -> None:
    url = redact(uri).rstrip("/") + page
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 (http or https, see above)
    urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()  # noqa: S310


def authorization(uri: str) -> dict[str, str]:
    """Return the header that MLflow's client would send: from the environment, else its file, else the address."""
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read(Path("~/.mlflow/credentials").expanduser())
    except (configparser.Error, UnicodeDecodeError):
        file.clear()
    names = ("mlflow_tracking_username", "mlflow_tracking_password")
    user, password = [os.environ.get(name.upper()) or file.get("mlflow", name, fallback=None) for name in names]
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        pair = f"{user}:{password}"
    elif token:
        return {"Authorization": f"Bearer {token}"}
    else:
        parts = urllib.parse.urlsplit(uri)
        pair = f"{urllib.parse.unquote(parts.username or '')}:{urllib.parse.unquote(parts.password or '')}"
    return {} if pair == ":" else {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def is_authorized_elsewhere() -> bool:
    """Whether MLflow's client logs in by means of its own: plug-ins, AWS signatures, ~/.netrc."""
    return bool(os.environ.get("MLFLOW_TRACKING_AUTH") or os.environ.get("MLFLOW_TRACKING_AWS_SIGV4")) or _netrc().exists()


def _netrc() -> Path:
    return Path(os.environ.get("NETRC") or Path.home() / ".netrc")  # whose entries the client prefers to all else


def _check_database(file: Path, *, create: bool) -> None:
    try:
        exists = file.exists()
        if not create and not exists:
            raise UnreachableError(f"there is no tracking store at {file}")
        file.parent.mkdir(parents=True, exist_ok=True)
        if exists:
            with closing(sqlite3.connect(file, timeout=_PROBE_TIMEOUT_S)) as connection:
                connection.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        raise UnreachableError(f"the tracking store {file} cannot be opened: {error}") from error
    if not os.access(file if exists else file.parent, os.W_OK):
        raise UnreachableError(f"the tracking store {file} cannot be written")
