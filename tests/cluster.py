"""The project's own on-prem cluster on pretend hosts: `ray up` of clusters/onprem.yaml from a client that is not part of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hosts import KEY, ROOT, STORAGE, Hosts
from waiting import wait_until

CONFIG = ROOT / "clusters" / "onprem.yaml"
_ON_CLIENT = "/root/onprem.yaml"
_LOGS = {
    "head": ("/tmp/ray/session_latest/logs/monitor.*", "/root/.raystudy/head/mlflow.log"),
    "worker": ("/root/raystudy-worker.log",),
}


@dataclass
class Cluster:
    """A Ray cluster on hosts that are up; `up` starts it.

    Attributes:
        hosts: the client's host and the cluster's.
        changes: further changes to the configuration's text, after the values that its users set.
    """

    hosts: Hosts
    changes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Do on the client what its user does before `ray up`: set the values of the configuration, and make the secrets."""
        self.hosts.path("client", _ON_CLIENT).write_text(self.configuration())
        self.hosts.run("client", ["raystudy", "keys", _ON_CLIENT])

    @property
    def dashboard(self) -> str:
        """The address of Ray's dashboard and its job API."""
        return f"http://{self.hosts.addresses['head']}:8265"

    @property
    def mlflow(self) -> str:
        """The address of the MLflow server."""
        return f"http://{self.hosts.addresses['head']}:5000"

    @property
    def token(self) -> str:
        """Ray's token."""
        return self.hosts.path("client", "/root/.ray/auth_token").read_text().strip()

    @property
    def workers(self) -> list[str]:
        """The names of the worker hosts."""
        return [name for name in self.hosts.addresses if name not in ("client", "head")]

    @property
    def environment(self) -> dict[str, str]:
        """What the client's user has in the environment."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def configuration(self) -> str:
        """Return clusters/onprem.yaml with its values set, as its users do."""
        values = {
            "SET-ME-head-address": self.hosts.addresses["head"],
            "SET-ME-worker-address, SET-ME-worker-address": ", ".join(self.hosts.addresses[name] for name in self.workers),
            "SET-ME-user": "root",
            "SET-ME-ssh-key": KEY,
            "SET-ME-shared-folder": f"{STORAGE}/raystudy",
            "SET-ME-local-folder": "/tmp/raystudy-cache",
            "SET-ME-folder-for-artifacts": f"{STORAGE}/artifacts",
            **self.changes,
        }
        text = CONFIG.read_text(encoding="utf-8")
        for old, new in values.items():
            assert old in text, f"{CONFIG.name} has no {old}"
            text = text.replace(old, new)
        forgotten = re.findall(r"SET-ME-[\w-]+", text)
        assert not forgotten, f"{CONFIG.name} has {forgotten}"
        return text

    def client(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the client's host, whose user has the secrets and knows the cluster's addresses."""
        return self.hosts.run("client", argv, check=check, timeout=timeout, env={**self.environment, **(env or {})}, cwd=cwd)

    def up(self) -> None:
        """Start the cluster and wait until every host of it is."""
        self.client(["ray", "up", "-y", _ON_CLIENT], timeout=480, cwd=str(ROOT))
        self.wait_for_hosts("head", *self.workers)

    def down(self) -> None:
        """Stop the cluster; what is left on the workers ends by itself a few seconds later."""
        self.client(["ray", "down", "-y", _ON_CLIENT], timeout=480, cwd=str(ROOT))

    def get(self, url: str, *, token: str | None = None, user: str | None = None) -> tuple[int, str]:
        """Ask for an address from the client's host, with a token or as USER:PASSWORD.

        Returns:
            The status, 0 when nobody answers, and the document.
        """
        header = ["--header", f"Authorization: Bearer {token}"] if token else []
        header += ["--user", user] if user else []
        curl = ["curl", "--silent", "--max-time", "10", "--write-out", r"\n%{http_code}", *header, url]
        document, _, status = self.hosts.run("client", curl, check=False).stdout.rpartition("\n")
        return int(status or 0), document

    def alive(self) -> set[str]:
        """Return the names of the hosts that Ray believes to be alive."""
        status, document = self.get(f"{self.dashboard}/api/v0/nodes", token=self.token)
        if status != 200:
            return set()
        names = {address: name for name, address in self.hosts.addresses.items()}
        rows = json.loads(document)["data"]["result"]["result"]
        return {names[row["node_ip"]] for row in rows if row["state"] == "ALIVE"}

    def settled(self) -> bool:
        """Tell whether Ray is done with starting its workers: one that dies while it is being started is given up for good."""
        try:
            state = json.loads(self.hosts.path("head", "/tmp/ray/cluster-raystudy.state").read_text())
        except (OSError, ValueError):  # not yet, or being written
            return False
        return all(host["tags"].get("ray-node-status") == "up-to-date" for host in state.values())

    def wait_for_hosts(self, *names: str, seconds: float = 240) -> None:
        """Wait until just these hosts are alive and, where they are all, no longer being started."""
        everybody = {"head", *self.workers}
        self.wait_for(
            lambda: self.alive() == set(names) and (set(names) != everybody or self.settled()),
            seconds,
            f"just {', '.join(names)} to be alive",
        )

    def processes(self, *, without: Collection[str] = ()) -> list[tuple[str, str]]:
        """Return (host, command line) of all that runs on the cluster's hosts, without the command lines given."""
        found = [(host, line) for host in ("head", *self.workers) for _, line in self.hosts.pids(host)]
        return [(host, line) for host, line in found if line not in without]

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until a condition holds; fail, with the cluster's logs, when it does not within `seconds`."""
        wait_until(condition, what, seconds, poll=0.2, context=lambda: f"{self.processes()}\n{self.logs()}")

    def logs(self) -> str:
        """Return the ends of the logs that tell why a cluster does not do what it should."""
        found = []
        for host in ("head", *self.workers):
            for pattern in _LOGS["head" if host == "head" else "worker"]:
                folder, name = pattern.rsplit("/", 1)
                # Ray's link to its session is an absolute one, which leads nowhere on this machine.
                sessions = folder.replace("session_latest", "session_2*").removeprefix("/")
                found += sorted(self.hosts.path(host, "/tmp").parent.glob(f"{sessions}/{name}"))
        return "\n".join(f"== {file}\n{_tail(file)}" for file in found)


def _tail(file: Path, lines: int = 25) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
