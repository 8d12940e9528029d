"""The MLflow server of a cluster's head: started under a supervisor, left alone while it is well, ended with Ray.

~/.raystudy/head/            on the head's own disk, for this user only
├── settings.json            what the running server was started with
├── supervisord.conf .pid .log
├── mlflow.log               what the server had to say
├── basic_auth.ini           MLflow's settings of users; no password
└── flask_secret_key         signs the forms of the server's pages
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import filelock

from raystudy.cluster import head_supervisor as supervision
from raystudy.cluster.head_guard import HEAD
from raystudy.cluster.head_settings import ServerSettings, read_settings
from raystudy.cluster.keys import credentials_file, make_secret, protect, read_credentials, write_private
from raystudy.cluster.processes import end, head_of_ray, marked
from raystudy.errors import InputError, Problem, RaystudyError
from raystudy.tracking.address import redact

_START_S = 60.0
_LOOK_EVERY_S = 0.25
_ANSWER_S = 5.0
_LOG_LINES = 15
_SECRET_BYTES = 32


class HeadError(RaystudyError):
    """The head's server does not run, and why."""


@dataclass(frozen=True, slots=True)
class HeadServer:
    """The head's server.

    Attributes:
        settings: what it runs with.
        log: where it writes what it has to say.
        fresh: it was started just now, rather than found well.
    """

    settings: ServerSettings
    log: Path
    fresh: bool


def folder() -> Path:
    """Return the folder of the head's server."""
    return Path.home() / ".raystudy" / "head"


def start_head(
    host: str | None, port: int, allowed_hosts: Sequence[str] = (), *, ray_pid: int | None = None, with_ray: bool = True
) -> HeadServer:
    """See to it that the server runs, and return when it answers.

    Args:
        host: the address to listen on; by default the one of the Ray head on this machine.
        port: the port to listen on.
        allowed_hosts: further HOST:PORT under which clients call the server.
        ray_pid: the process whose end ends the server; by default the Ray head's control process.
        with_ray: end the server with Ray; False lets it run until `stop_head`.

    Raises:
        InputError: settings are missing or wrong, or Ray does not run here.
        HeadError: the server did not answer in time; nothing is left running.
    """
    host, ray_pid = _ray(host, ray_pid, with_ray=with_ray)
    settings = read_settings(host, port, allowed_hosts)
    protect(credentials_file())  # however it came here
    state = _own_folder()
    files = supervision.files(state, settings, ray_pid)
    with filelock.FileLock(state / "lock"):
        if _unchanged(files) and _supervised(state) and _answers(settings):
            return HeadServer(settings, supervision.log(state), fresh=False)
        _stop(state)
        _check_port(settings)
        _check_storage(settings)
        make_secret(state / "flask_secret_key", lambda: secrets.token_hex(_SECRET_BYTES))
        for path, text in files.items():
            write_private(path, text)
        _start(state)
        try:
            _wait(settings, state)
            _check_credentials(settings)
        except BaseException:
            _stop(state)
            raise
    return HeadServer(settings, supervision.log(state), fresh=True)


def stop_head() -> bool:
    """End the server and everything that belongs to it; return whether anything ran."""
    if not folder().exists():
        return False
    with filelock.FileLock(folder() / "lock"):
        return _stop(folder())


def _ray(host: str | None, ray_pid: int | None, *, with_ray: bool) -> tuple[str, int | None]:
    """Return the address to listen on and the process to end with."""
    found = head_of_ray(host) if ray_pid is None and (with_ray or host is None) else None
    if with_ray and ray_pid is None and found is None:
        where = f" with the address {host}" if host else ""
        raise InputError(
            Problem("Ray", f"no head of Ray runs on this machine{where}", "start it first (ray start --head), or --without-ray")
        )
    address = host or (found.flags.get("node-ip-address") if found else None)
    if address is None:
        raise InputError(Problem("--host", "is not given, and no Ray says it", "expected the head's private address"))
    if not with_ray:
        return address, None
    return address, found.process.pid if found else ray_pid


def _own_folder() -> Path:
    state = folder()
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    return state


def _unchanged(files: dict[Path, str]) -> bool:
    return all(path.exists() and path.read_text(encoding="utf-8") == text for path, text in files.items())


def _supervised(state: Path) -> bool:
    try:
        pid = int(supervision.pid_file(state).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(process.pid == pid for process in marked(HEAD, str(state)))


def _stop(state: Path) -> bool:
    """End the supervisor, which ends its programs; then whatever is left, if the supervisor had been killed."""
    found = marked(HEAD, str(state))
    try:
        supervisor = int(supervision.pid_file(state).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        supervisor = -1
    end([process for process in found if process.pid == supervisor], patience=supervision.STOP_S)
    end(marked(HEAD, str(state)))
    return bool(found)


def _check_port(settings: ServerSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise HeadError(f"the MLflow server cannot listen on {settings.address}: {error.strerror or error}") from error


def _check_storage(settings: ServerSettings) -> None:
    """Say at once what the server would say in a traceback after half a minute."""
    address = settings.postgresql
    if address is None:
        home = Path(settings.store.removeprefix("sqlite:///")).parent
        try:
            home.mkdir(parents=True, exist_ok=True)
            probe = home / f".raystudy-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise HeadError(f"the storage folder {home} cannot be written: {error.strerror or error}") from error
        return
    import psycopg

    try:
        psycopg.connect(address, connect_timeout=int(_ANSWER_S)).close()
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise HeadError(
            f"the database {redact(address)} cannot be opened: {reason}; its password is read from ~/.pgpass"
        ) from error


def _start(state: Path) -> None:
    # Marked by its environment, which every process of the head inherits.
    environment = {**os.environ, HEAD: str(state)}
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(supervision.config_file(state))]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=state, umask=0o077)
    if started.returncode != 0:
        raise HeadError(f"the supervisor does not start: {started.stderr.strip() or started.stdout.strip()}")


def _wait(settings: ServerSettings, state: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if _answers(settings):
            return
        time.sleep(_LOOK_EVERY_S)
    log = supervision.log(state)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    said = "\n".join(f"  {line}" for line in lines) or "  nothing"
    raise HeadError(f"the MLflow server does not answer at {settings.url} after {_START_S:.0f} s; {log} ends with\n{said}")


def _answers(settings: ServerSettings) -> bool:
    return _status(f"{settings.url}/health") == 200


def _check_credentials(settings: ServerSettings) -> None:
    """Make sure that the server's users are those of our file: MLflow sets the password only when it makes its database."""
    credentials = read_credentials()
    pair = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    status = _status(
        f"{settings.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default", {"Authorization": f"Basic {pair}"}
    )
    if status == 401:
        raise HeadError(
            f"the users in {redact(settings.users)} were made with other credentials than those in ~/.mlflow/credentials; "
            "put the former ones there, or remove that database of users"
        )


def _status(url: str, headers: dict[str, str] | None = None) -> int | None:
    """Return the status that a GET of `url` gives, None where nobody answers; never by way of a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers or {}), timeout=_ANSWER_S) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
