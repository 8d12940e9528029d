"""The pretend hosts that the cluster test runs on are machines of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import KEY, ROOT, STORAGE, Hosts

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := Hosts.missing():
        pytest.skip(reason)
    with Hosts.start(folder=tmp_path / "hosts") as running:
        yield running


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
    assert bystander.wait(timeout=60) != 0
