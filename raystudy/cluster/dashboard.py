"""A cluster's dashboard: Ray's HTTP interface, with errors in words. Imports no Ray, so that a command answers at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from raystudy import __version__
from raystudy.errors import InputError, Problem, UnreachableError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
VERSION_LABEL = "raystudy.version"
"""The label that the start commands of a cluster give to every node."""

_TIMEOUT_S = (4.0, 30.0)
"""To connect, and to wait for an answer."""
_FIRST_TIMEOUT_S = (4.0, 4.0)


def find_address(given: str | None = None) -> str | None:
    """Return the address to use: the one given, else RAY_API_SERVER_ADDRESS, else None.

    Raises:
        InputError: it is no http address.
    """
    address = given or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        return None
    accepted = "expected the dashboard's address, such as http://127.0.0.1:8265"
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        is_address = False
    if "@" in address:  # it would be shown in messages, and be sent instead of the token
        raise InputError(Problem("--address", "holds a user name or password", accepted))
    if not is_address:
        raise InputError(Problem("--address", f"got {address!r}", accepted))
    return address.rstrip("/")


def required_address(given: str | None = None) -> str:
    """Return the address to use.

    Raises:
        InputError: there is none.
    """
    address = find_address(given)
    if address is None:
        raise InputError(
            Problem(
                "--address",
                "no cluster is named",
                f"give --address http://HEAD:8265 or set {ADDRESS_VARIABLE}; `raystudy connect cluster.yaml` leads there",
            )
        )
    return address


@dataclass(frozen=True, slots=True)
class Answer:
    """What the dashboard said: the HTTP status, and the body as JSON or text."""

    status: int
    body: Any


class Dashboard:
    """One cluster's dashboard."""

    def __init__(self, address: str) -> None:
        """Connect and compare versions.

        Args:
            address: `http://HOST:PORT`.

        Raises:
            UnreachableError: nobody answers there, the token is missing or wrong, or another version runs there.
        """
        self.address = address
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy for the internet leads nowhere here, and ~/.netrc is for others
        if token := read_token():
            if not (token.isascii() and token.isprintable()):
                raise UnreachableError("the token in ~/.ray/auth_token (or RAY_AUTH_TOKEN) is none: expected one line of ASCII")
            self._session.headers["Authorization"] = f"Bearer {token}"
        version = self.get("/api/version", timeout=_FIRST_TIMEOUT_S)
        if "ray_version" not in version:
            raise self._stranger("/api/version", "without a version of Ray")
        self.ray_version = str(version["ray_version"])

    def get(self, path: str, *, timeout: tuple[float, float] = _TIMEOUT_S) -> Any:
        """Return the answer to a GET; raise UnreachableError for anything but success."""
        return self._good(self.request("GET", path, timeout=timeout), path)

    def request(self, method: str, path: str, *, body: Any = None, timeout: tuple[float, float] = _TIMEOUT_S) -> Answer:
        """Return the answer to a request, errors of its content included.

        Raises:
            UnreachableError: no answer, or none without a right token.
        """
        try:
            response = self._session.request(method, self.address + path, json=body, timeout=timeout, allow_redirects=False)
        except requests.RequestException as error:
            raise UnreachableError(
                f"no Ray dashboard answers at {self.address} ({_reason(error)}); is the cluster up, and the tunnel open?"
            ) from error
        if response.status_code in (401, 403):
            raise UnreachableError(self._refusal())
        try:
            return Answer(response.status_code, response.json())
        except ValueError:
            return Answer(response.status_code, response.text)

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return the nodes that are alive, as Ray's state interface describes them."""
        answer = self.get("/api/v0/nodes?detail=True&limit=10000")
        try:
            return [row for row in answer["data"]["result"]["result"] if row.get("state") == "ALIVE"]
        except (KeyError, TypeError, AttributeError) as error:
            raise self._stranger("/api/v0/nodes", "without a list of nodes") from error

    def check_version(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Make sure that no node says that it runs another version of raystudy; a driver compares once more.

        Raises:
            UnreachableError: one does.
        """
        found = {str((row.get("labels") or {}).get(VERSION_LABEL, __version__)) for row in nodes} - {__version__}
        if found:
            raise UnreachableError(
                f"the cluster at {self.address} runs raystudy {', '.join(sorted(found))}, this is {__version__}: "
                "install the same version on both sides"
            )

    def _good(self, answer: Answer, path: str) -> Any:
        if answer.status != 200 or not isinstance(answer.body, (dict, list)):
            raise self._stranger(path, str(answer.status))
        return answer.body

    def _stranger(self, path: str, answers: str) -> UnreachableError:
        return UnreachableError(f"{self.address}{path} answers {answers}: this is no dashboard of Ray, or an ill one")

    def _refusal(self) -> str:
        if "Authorization" not in self._session.headers:
            return (
                f"the cluster at {self.address} wants a token: put it into ~/.ray/auth_token "
                "(`raystudy keys` makes one for a new cluster), or set RAY_AUTH_TOKEN"
            )
        return f"the cluster at {self.address} refuses the token: is ~/.ray/auth_token (or RAY_AUTH_TOKEN) this cluster's?"


def read_token() -> str:
    """Return the token that Ray's own clients would send, from where they look for it; or nothing."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return "no connection within seconds"
    if isinstance(error, requests.Timeout):
        return "connected, but no answer within seconds"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
