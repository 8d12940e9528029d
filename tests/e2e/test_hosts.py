"""A real cluster of pretend hosts: `ray up` on the project's own configuration, a host that dies and comes back, `ray down`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from hosts import KEY, ROOT, STORAGE, Hosts

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := Hosts.missing():
        pytest.skip(reason)
    with Hosts.start(folder=tmp_path / "hosts") as running:
        yield running


@pytest.fixture
def cluster(hosts: Hosts) -> Cluster:
    return Cluster(hosts)


def test_hosts_are_machines_of_their_own(hosts: Hosts) -> None:
    ssh = ["ssh", "-q", "-i", KEY, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "w1"]
    bystander = hosts.spawn("head", ["sleep", "1000"])
    assert hosts.run("client", [*ssh, "hostname; ps -A -o comm="]).stdout.split()[0] == "w1"
    assert "sleep" not in hosts.run("client", [*ssh, "ps -A -o comm="]).stdout

    hosts.run("client", [*ssh, f"echo ours > {STORAGE}/note; echo mine > /tmp/note"])
    assert hosts.path("w2", f"{STORAGE}/note").read_text() == "ours\n"
    assert not hosts.path("w2", "/tmp/note").exists()
    assert hosts.run("client", ["test", "-e", STORAGE], check=False).returncode == 1
    for elsewhere in (ROOT, "/var/tmp"):
        assert "Read-only" in hosts.run("head", ["touch", f"{elsewhere}/note"], check=False).stderr
    assert hosts.run("client", ["curl", "-sS", "-m", "5", "http://192.0.2.1"], check=False).returncode == 7

    hosts.poweroff("w1")
    assert hosts.run("client", [*ssh[:-1], "-o", "ConnectTimeout=1", "w1", "true"], check=False).returncode == 255
    hosts.boot("w1")
    assert hosts.run("client", [*ssh, "cat /tmp/note"]).stdout == "mine\n"
    assert [line for _, line in hosts.pids("head")] == ["sleep 1000"]
    assert len(hosts.kill("head", "^sleep 1000$")) == 1
    assert bystander.wait(timeout=10) != 0


def test_a_cluster_comes_up_loses_a_host_takes_it_back_and_leaves_nothing(cluster: Cluster, say: Callable[[str], None]) -> None:
    hosts = cluster.hosts
    bystander = "sleep 100000"
    sleeper = hosts.spawn("w1", bystander.split())
    cluster.up()
    say("ray up, all hosts alive")

    assert cluster.get(f"{cluster.dashboard}/api/jobs/")[0] == 401
    assert cluster.get(f"{cluster.dashboard}/api/jobs/", token="wrong")[0] == 403  # noqa: S106
    assert cluster.get(f"{cluster.dashboard}/api/jobs/", token=cluster.token)[0] == 200
    assert cluster.get(f"{cluster.mlflow}/health")[0] == 200
    assert cluster.get(f"{cluster.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0")[0] == 401
    for host in ("head", *cluster.workers):
        secret = hosts.path(host, "/root/.ray/auth_token")
        assert (secret.read_text().strip(), secret.stat().st_mode & 0o777) == (cluster.token, 0o600)
    say("without or with a wrong token: nothing")

    hosts.poweroff("w2")
    cluster.wait_for_hosts("head", "w1", seconds=40)
    say("w2 powered off, noticed")
    hosts.boot("w2")
    cluster.wait_for_hosts("head", "w1", "w2", seconds=90)
    say("w2 booted, alive again")

    cluster.down()
    say("ray down")
    cluster.wait_for(lambda: not cluster.processes(without=[bystander]), 40, "the last process to end")
    say("no process left on any host")
    assert sleeper.poll() is None, "ray down ended what is not Ray's"
