"""Spot machines of AWS: a notice comes two minutes before the machine goes; Ray is told, so that its trials go on elsewhere.

The notice is looked for in the instance's metadata, version 2, as AWS advises: every five seconds. Ray gives the machine
nothing new then, and counts what is lost with it as preempted rather than failed.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from raystudy.cluster.processes import RayProcess, alive, node_of_ray, ray_command
from raystudy.errors import UnreachableError

METADATA = "http://169.254.169.254"
LOOK_EVERY_S = 5.0
_TOKEN_S = 6 * 3600  # as long as AWS allows
_ANSWER_S = 2.0
_DRAIN_S = 30.0
_PATIENCE_S = 60.0


class NoMetadata(UnreachableError):
    """The instance's metadata cannot be read."""


@dataclass(frozen=True, slots=True)
class Notice:
    """AWS takes the machine back.

    Attributes:
        action: terminate, stop or hibernate.
        at: when.
    """

    action: str
    at: datetime

    def seconds_left(self, now: datetime | None = None) -> int:
        """Return how long the machine still runs."""
        return max(0, int((self.at - (now or datetime.now(UTC))).total_seconds()))


@dataclass(slots=True)
class InstanceMetadata:
    """The metadata service of the machine, at `address`."""

    address: str = METADATA
    _token: str | None = field(default=None, repr=False)

    def notice(self) -> Notice | None:
        """Return the notice, None while there is none.

        Raises:
            NoMetadata: the service does not answer, or not as AWS says it does.
        """
        try:
            answer = self._get("spot/instance-action")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise NoMetadata(f"the metadata service at {self.address} answers {error.code} {error.reason}") from error
        try:
            said = json.loads(answer)
            return Notice(str(said["action"]), datetime.fromisoformat(said["time"]))
        except (ValueError, KeyError, TypeError) as error:
            raise NoMetadata(f"the metadata service at {self.address} gives a notice that is none: {answer[:200]!r}") from error

    def _get(self, name: str) -> str:
        try:
            return self._get_with_token(name)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
        self._token = None  # it has run out
        return self._get_with_token(name)

    def _get_with_token(self, name: str) -> str:
        if self._token is None:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = self._request("PUT", "/latest/api/token", lifetime)
        return self._request("GET", f"/latest/meta-data/{name}", {"X-aws-ec2-metadata-token": self._token})

    def _request(self, method: str, page: str, headers: dict[str, str]) -> str:
        # The address is the machine's own: no proxy leads there.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.address.rstrip("/") + page, headers=headers, method=method)  # noqa: S310
        try:
            with opener.open(request, timeout=_ANSWER_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NoMetadata(
                f"the metadata service at {self.address} does not answer ({reason}); is this an AWS machine?"
            ) from error


def watch(
    metadata: InstanceMetadata,
    say: Callable[[str], None],
    *,
    look_every: float = LOOK_EVERY_S,
    patience: float = _PATIENCE_S,
) -> None:
    """Look for a notice as long as Ray runs on this machine; on one, let Ray drain the machine, once.

    Args:
        metadata: where notices come from.
        say: told what happens, one line at a time.
        look_every: seconds between two looks.
        patience: for how many seconds Ray may not have started yet, and the metadata service not have answered yet.

    Raises:
        UnreachableError: Ray does not run here, or the metadata service never answered.
    """
    node = _wait_for_ray(look_every, patience)
    say(f"watching for spot notices at {metadata.address}, for node {node.flags['node-id']}")
    deadline: float | None = time.monotonic() + patience  # None once the service has answered
    trouble = ""
    drained = False
    while alive(node.process):
        try:
            notice = None if drained else metadata.notice()
            deadline, trouble = None, ""
            if notice is not None:
                drained = drain(node, notice, say)
        except NoMetadata as error:
            if deadline is not None and time.monotonic() > deadline:
                raise
            if str(error) != trouble:
                say(trouble := str(error))
        time.sleep(look_every)
    say("Ray has ended on this machine")


def drain(node: RayProcess, notice: Notice, say: Callable[[str], None]) -> bool:
    """Tell Ray that this machine goes; return whether Ray took it. The next look tries again where it did not."""
    left = notice.seconds_left()
    say(f"AWS will {notice.action} this machine in {left} s")
    command = [
        *(ray_command(), "drain-node", "--address", node.flags["gcs-address"], "--node-id", node.flags["node-id"]),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"AWS spot notice: {notice.action} at {notice.at}"),
        *("--deadline-remaining-seconds", str(left)),
    ]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_DRAIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"Ray could not be told: {error}")
        return False
    if told.returncode != 0:
        reason = (told.stderr.strip() or told.stdout.strip()).splitlines() or ["it does not say why"]
        say(f"Ray did not take it: {reason[-1]}")
        return False
    say("Ray drains this machine")
    return True


def _wait_for_ray(look_every: float, patience: float) -> RayProcess:
    deadline = time.monotonic() + patience
    while (node := node_of_ray()) is None:
        if time.monotonic() > deadline:
            raise UnreachableError("Ray does not run on this machine; start it first (ray start --address=HEAD:6379)")
        time.sleep(min(1.0, look_every))
    return node
