"""The two secrets of a cluster, made on the user's machine; `ray up` copies them to the head and the workers.

~/.ray/auth_token        Ray's: whoever has it may run code on the cluster
~/.mlflow/credentials    MLflow's: user and password of the tracking server's administrator

The files are written here rather than by Ray and MLflow, which leave them readable for every user of the machine.
"""

from __future__ import annotations

import configparser
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raystudy.cluster.cluster_file import check_filled_in
from raystudy.errors import InputError, Problem

USER = "raystudy"
_PRIVATE = 0o600
_TOKEN_BYTES = 32  # as many as Ray's own tokens have
_PASSWORD_BYTES = 24
_SHORTEST_PASSWORD = 12  # MLflow's limit


@dataclass(frozen=True, slots=True)
class Key:
    """One secret's file.

    Attributes:
        path: where it is.
        made: it was missing, and is new.
    """

    path: Path
    made: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and password of the tracking server; the password never shows up when this is printed."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def make_keys(cluster_file: Path | None = None) -> list[Key]:
    """Make the secrets that are missing; none is overwritten.

    Args:
        cluster_file: checked first for values that are still to be filled in, so that one look names all that `ray up` needs.

    Raises:
        InputError: the cluster file is not filled in, or a secret that is there already cannot be used.
    """
    if cluster_file is not None:
        check_filled_in(cluster_file)
    keys = [make_secret(token_file(), lambda: secrets.token_hex(_TOKEN_BYTES)), make_secret(credentials_file(), _credentials)]
    problems = [problem for problem in (_problem_of_token(), problem_of_credentials()) if problem is not None]
    if problems:
        raise InputError(problems)
    return keys


def token_file() -> Path:
    """Return where Ray looks for its token."""
    return Path.home() / ".ray" / "auth_token"


def credentials_file() -> Path:
    """Return where MLflow looks for user and password."""
    return Path.home() / ".mlflow" / "credentials"


def read_credentials() -> Credentials:
    """Return the tracking server's user and password.

    Raises:
        InputError: there are none, or none that MLflow accepts.
    """
    problem = problem_of_credentials()
    if problem is not None:
        raise InputError(problem)
    section = _section()
    return Credentials(section["mlflow_tracking_username"], section["mlflow_tracking_password"])


def make_secret(path: Path, make: Callable[[], str]) -> Key:
    """Write a new secret to `path`, or leave the one that is there; only this user can read it afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        protect(path)
        return Key(path, made=False)
    # Written aside and linked into place: never half a secret, never over one that another process makes meanwhile.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    write_private(draft, make())
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return Key(path, made=False)
    finally:
        draft.unlink()
    return Key(path, made=True)


def protect(path: Path) -> None:
    """Let only this user read a secret that is there already, where the file system lets us say so."""
    if stat.S_IMODE(path.stat().st_mode) != _PRIVATE:
        with suppress(OSError):  # a secret that Kubernetes mounts is read-only
            path.chmod(_PRIVATE)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, and that nobody else could read at any moment before."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "w", encoding="utf-8") as file:
        file.write(text)


def _credentials() -> str:
    # URL-safe characters: MLflow reads the file with configparser, which gives `%` a meaning.
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    return f"[mlflow]\nmlflow_tracking_username = {USER}\nmlflow_tracking_password = {password}\n"


def _section() -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read(credentials_file())
    return parser["mlflow"]


def _problem_of_token() -> Problem | None:
    if token_file().read_text(encoding="utf-8").strip():
        return None
    return Problem(str(token_file()), "is empty", "remove it, and call raystudy keys again for a new token")


def problem_of_credentials() -> Problem | None:
    """Return what keeps MLflow from using the file of credentials, None if nothing does."""
    path = credentials_file()
    accepted = "expected a section [mlflow] with mlflow_tracking_username and mlflow_tracking_password"
    if not path.exists():
        return Problem(
            str(path), "does not exist", "raystudy keys makes it on your machine, and file_mounts bring it to the head"
        )
    try:
        section = _section()
        user, password = section.get("mlflow_tracking_username"), section.get("mlflow_tracking_password")
    except (KeyError, configparser.Error, UnicodeDecodeError):
        return Problem(str(path), "holds no credentials of MLflow", accepted)
    if not user or not password:
        return Problem(str(path), f"lacks the {'password' if user else 'user'}", accepted)
    if len(password) < _SHORTEST_PASSWORD:
        return Problem(str(path), f"its password has {len(password)} characters", f"MLflow wants {_SHORTEST_PASSWORD} or more")
    return None
