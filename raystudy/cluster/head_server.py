"""The program that the supervisor runs: it becomes the MLflow server. `python -m raystudy.cluster.head_server SETTINGS.json`.

The secrets go from their files into the server's environment here, at the last moment: so they are on no command line, and
in no file of the supervisor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from raystudy.cluster.head_settings import ServerSettings
from raystudy.cluster.keys import Credentials, read_credentials, write_private
from raystudy.cluster.processes import end, marked

PROGRAM = "RAYSTUDY_HEAD_PROGRAM"
"""Marks the processes of the server, so that those that a killed one leaves behind can be found."""

# Settings of MLflow that may be lying about in the environment, and that could open what is closed here.
_FOREIGN = ("MLFLOW_SERVER_", "MLFLOW_AUTH_", "MLFLOW_TRACKING_", "MLFLOW_FLASK_", "MLFLOW_BACKEND_", "MLFLOW_REGISTRY_")
# Any port: a tunnel may end at whichever is free. A page from a foreign name cannot send these, whatever it resolves to.
_TUNNEL_ENDS = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*")


def main(settings_file: Path) -> NoReturn:
    """Become the server that `settings_file` describes."""
    settings = ServerSettings.from_json(settings_file.read_text(encoding="utf-8"))
    # MLflow's server is a parent and a child. If only the parent was killed, the child still holds the port.
    end(marked(PROGRAM, str(settings_file)))
    folder = settings_file.parent
    users = folder / "basic_auth.ini"
    write_private(users, user_settings(settings))
    secret = (folder / "flask_secret_key").read_text(encoding="utf-8")
    environment = server_environment(settings, users, read_credentials(), secret)
    os.execve(sys.executable, server_command(settings), environment)  # noqa: S606  our own interpreter, no shell


def server_command(settings: ServerSettings) -> list[str]:
    """Return the server's command line: anyone on the machine may read it."""
    hosts = [settings.address, *settings.allowed_hosts]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--serve-artifacts", "--artifacts-destination", settings.artifacts),
        *("--allowed-hosts", ",".join([*hosts, *_TUNNEL_ENDS])),
        *("--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)),
    ]


def server_environment(
    settings: ServerSettings, users: Path, credentials: Credentials, secret: str, *, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the server's environment: only this user may read it."""
    return {
        **{name: value for name, value in environ.items() if not name.startswith(_FOREIGN)},
        "MLFLOW_BACKEND_STORE_URI": settings.store,
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_USERNAME": credentials.user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret,
        # The job runner starts eight more processes, for features that a study does not use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def user_settings(settings: ServerSettings) -> str:
    """Return MLflow's settings of users: whoever is not the administrator sees nothing until permission is given.

    Passwords are checked at every request, which is made slow on purpose; a check holds for a minute.
    """
    database = settings.users.replace("%", "%%")  # the file is read by configparser
    return (
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        f"database_uri = {database}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
