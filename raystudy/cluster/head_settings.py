"""How the head's MLflow server is set up: read from the environment and checked, all problems at once.

RAYSTUDY_HOME                the folder on persistent storage: the database, unless it is PostgreSQL's, and the artifacts
RAYSTUDY_MLFLOW_STORE        sqlite, or postgresql://USER@HOST:PORT/DATABASE; its password is in ~/.pgpass or PGPASSFILE
RAYSTUDY_MLFLOW_ARTIFACTS    a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; by default RAYSTUDY_HOME/artifacts
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from raystudy import __version__
from raystudy.cluster.cluster_file import PLACEHOLDER
from raystudy.cluster.keys import problem_of_credentials
from raystudy.errors import InputError, Problem

HOME = "RAYSTUDY_HOME"
STORE = "RAYSTUDY_MLFLOW_STORE"
ARTIFACTS = "RAYSTUDY_MLFLOW_ARTIFACTS"

_POSTGRESQL = "postgresql://"
_PSYCOPG = "postgresql+psycopg://"  # the driver that the extra `head` installs, whatever SQLAlchemy's default is
_FOLDER = "expected the folder on persistent storage, as an absolute path"
_EVERYWHERE = ("0.0.0.0", "::", "[::]", "*")  # noqa: S104  refused, not bound


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of one server. They hold no secret, so that they can be written down and compared.

    Attributes:
        host: the address to listen on.
        port: the port to listen on.
        allowed_hosts: further HOST:PORT under which clients may call it.
        store: SQLAlchemy's address of MLflow's database.
        users: SQLAlchemy's address of the database of users and permissions.
        artifacts: where artifacts lie.
        versions: of raystudy and MLflow: another version means another server.
    """

    host: str
    port: int
    allowed_hosts: tuple[str, ...]
    store: str
    users: str
    artifacts: str
    versions: str

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        """Return the server's HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def postgresql(self) -> str | None:
        """Return the address of the PostgreSQL database for psycopg, None if the store is a SQLite file."""
        return self.store.replace(_PSYCOPG, _POSTGRESQL, 1) if self.store.startswith(_PSYCOPG) else None

    def to_json(self) -> str:
        """Return the form that is written down."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ServerSettings:
        """Return what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "allowed_hosts": tuple(fields["allowed_hosts"])})


def read_settings(
    host: str, port: int, allowed_hosts: Sequence[str] = (), *, environ: Mapping[str, str] = os.environ
) -> ServerSettings:
    """Return the settings that the environment asks for.

    Args:
        host: the address to listen on.
        port: the port to listen on.
        allowed_hosts: further names, as clients write them, under which they may call the server.
        environ: where the RAYSTUDY_ variables are.

    Raises:
        InputError: every variable that is missing, still a placeholder or wrong, every package that is not installed, and
            the credentials if MLflow cannot use them.
    """
    home, store = environ.get(HOME, ""), environ.get(STORE, "") or "sqlite"
    artifacts = environ.get(ARTIFACTS, "") or f"{home}/artifacts"
    problems = [
        *_problems_of(HOME, home, _problems_of_home),
        *_problems_of(STORE, store, _problems_of_store),
        *(_problems_of(ARTIFACTS, artifacts, _problems_of_artifacts) if environ.get(ARTIFACTS) else ()),
        *_problems_of("--host", host, _problems_of_host),
        *(problem for name in allowed_hosts for problem in _problems_of("--allowed-host", name, _problems_of_name)),
        *_missing_packages(store, artifacts),
        *filter(None, [problem_of_credentials()]),
    ]
    if problems:
        raise InputError(problems, title="the head's settings")
    own = store == "sqlite"
    database = f"sqlite:///{Path(home) / 'mlflow.db'}" if own else store.replace(_POSTGRESQL, _PSYCOPG, 1)
    return ServerSettings(
        host=host,
        port=port,
        allowed_hosts=tuple(allowed_hosts),
        store=database,
        users=f"sqlite:///{Path(home) / 'mlflow-users.db'}" if own else database,
        artifacts=artifacts,
        versions=f"raystudy {__version__}, mlflow {version('mlflow')}",
    )


def _problems_of(name: str, value: str, check: Callable[[str, str], Iterator[Problem]]) -> Iterator[Problem]:
    if PLACEHOLDER in value:
        yield Problem(name, f"is still {PLACEHOLDER}", "set it in the cluster file")
    else:
        yield from check(name, value)


def _problems_of_home(name: str, value: str) -> Iterator[Problem]:
    if not value:
        yield Problem(name, "is not set", _FOLDER)
    elif not Path(value).is_absolute():
        yield Problem(name, f"got {value!r}", _FOLDER)


def _problems_of_store(name: str, value: str) -> Iterator[Problem]:
    if value == "sqlite":
        return
    accepted = f"expected sqlite or {_POSTGRESQL}USER@HOST:PORT/DATABASE"
    if not value.startswith(_POSTGRESQL):
        yield Problem(name, f"got an address that begins with {value.partition('@')[0].partition(':')[0]!r}", accepted)
        return
    parts = urlsplit(value)
    if parts.password or "password" in parse_qs(parts.query):
        # The value is not repeated: this message goes to a log.
        yield Problem(name, "holds a password, which addresses show to everybody", "put it into ~/.pgpass, mode 0600")
    elif not parts.hostname or not parts.path.strip("/"):
        yield Problem(name, f"got {value!r}", accepted)


def _problems_of_artifacts(name: str, value: str) -> Iterator[Problem]:
    if not value.startswith(("s3://", "gs://")) and not Path(value).is_absolute():
        yield Problem(name, f"got {value!r}", "expected an absolute path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")


def _problems_of_host(name: str, value: str) -> Iterator[Problem]:
    if value in _EVERYWHERE:
        yield Problem(name, f"{value} listens on every network of the machine", "expected the head's private address")


def _problems_of_name(name: str, value: str) -> Iterator[Problem]:
    if not value or "*" in value or "/" in value or "," in value:
        yield Problem(name, f"got {value!r}", "expected a host as clients write it, e.g. head.example.com:5000, no pattern")


def _missing_packages(store: str, artifacts: str) -> Iterator[Problem]:
    needed = {"supervisor": "the supervisor of the server", "flask_wtf": "MLflow's authentication"}
    if store.startswith(_POSTGRESQL):
        needed["psycopg"] = "PostgreSQL"
    if artifacts.startswith("s3://"):
        needed["boto3"] = "artifacts on S3"
    if artifacts.startswith("gs://"):
        needed["google.cloud.storage"] = "artifacts on Google Cloud Storage"
    for module, purpose in needed.items():
        if not _installed(module):
            extra = "google-cloud-storage" if module.startswith("google") else "'raystudy[head]'"
            yield Problem("installation", f"{purpose} needs the package {module}", f"pip install {extra}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
