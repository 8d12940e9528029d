"""The MLflow UI on the tracking store of the studies."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from raystudy import paths
from raystudy.errors import InputError, NotFoundError, Problem
from raystudy.tracking.address import redact, tracking_uri


def serve_ui(given: str | None, *, host: str, port: int) -> NoReturn:
    """Become the server of the UI: this process is replaced, so that whatever ends it ends the server.

    Args:
        given: the tracking store; by default as for `run`.
        host: the address to listen on.
        port: the port to listen on.

    Raises:
        InputError: the store is a server, which has a UI of its own.
        NotFoundError: there is no local store yet.
    """
    uri = tracking_uri(given)
    if uri.startswith(("http://", "https://")):
        raise InputError(
            Problem("--tracking-uri", f"{redact(uri)} is a server, which shows its own UI", "open it in a browser")
        )
    if uri == paths.local_tracking_uri() and not (paths.home() / "mlflow.db").exists():
        raise NotFoundError(f"there are no studies in {paths.home()} yet: raystudy demo, or raystudy init NAME")
    os.execve(sys.executable, _command(host, port), _environment(uri))  # noqa: S606  our own interpreter, no shell


def _command(host: str, port: int) -> list[str]:
    where = ["--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *where, "--artifacts-destination", str(paths.local_artifacts())]


def _environment(uri: str) -> dict[str, str]:
    """Pass the store in the environment: arguments are for every user of the machine to read, and it may hold a password."""
    # The job runner starts eight more processes, for features that a study does not use.
    return {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
