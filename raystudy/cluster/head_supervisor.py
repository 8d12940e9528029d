"""What the supervisor of the head's server is told: supervisord's configuration, and the files beside it."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from pathlib import Path

from raystudy.cluster.head_server import PROGRAM
from raystudy.cluster.head_settings import ServerSettings

STOP_S = 20.0
"""How long the supervisor gets to end its programs."""

_STOP_SERVER_S = 10


def files(state: Path, settings: ServerSettings, ray_pid: int | None) -> dict[Path, str]:
    """Return the files that describe a head, with their text; a head whose files would stay the same need not be replaced."""
    return {
        settings_file(state): settings.to_json(),
        config_file(state): _configuration(state, ray_pid),
    }


def settings_file(state: Path) -> Path:
    """Return where the server's settings are."""
    return state / "settings.json"


def config_file(state: Path) -> Path:
    """Return where supervisord's configuration is."""
    return state / "supervisord.conf"


def pid_file(state: Path) -> Path:
    """Return where supervisord notes its process id."""
    return state / "supervisord.pid"


def log(state: Path) -> Path:
    """Return the server's log."""
    return state / "mlflow.log"


def _configuration(state: Path, ray_pid: int | None) -> str:
    server = [sys.executable, "-m", "raystudy.cluster.head_server", str(settings_file(state))]
    sections = [
        _section(
            "supervisord",
            logfile=state / "supervisord.log",
            logfile_maxbytes="1MB",
            pidfile=pid_file(state),
            directory=state,
            umask="077",
            # supervisord wants to be told if it is to stay root.
            **({"user": pwd.getpwuid(0).pw_name} if os.geteuid() == 0 else {}),
        ),
        _program("mlflow", server, log(state), environment=f'{PROGRAM}="{settings_file(state)}"'),
    ]
    if ray_pid is not None:
        guard = [sys.executable, "-m", "raystudy.cluster.head_guard", str(ray_pid), str(state)]
        sections.append(_program("guard", guard, state / "guard.log"))
    return "\n".join(sections)


def _program(name: str, command: list[str], output: Path, **more: object) -> str:
    return _section(
        f"program:{name}",
        command=shlex.join(command),
        autorestart="true",
        startsecs=5,
        startretries=1000,  # with a pause that grows by a second each: a database may be away for hours
        stopasgroup="true",
        killasgroup="true",
        stopwaitsecs=_STOP_SERVER_S,
        redirect_stderr="true",
        stdout_logfile=output,
        stdout_logfile_maxbytes="10MB",
        stdout_logfile_backups=2,
        **more,
    )


def _section(name: str, **values: object) -> str:
    # supervisord expands `%(...)s` in values.
    lines = (f"{key} = {str(value).replace('%', '%%')}" for key, value in values.items())
    return "\n".join([f"[{name}]", *lines, ""])
