"""The tunnel to a cluster's head, with an ssh that only says what it was asked."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from stores import free_port

from raystudy.cli import _call
from raystudy.cluster import connect
from raystudy.cluster.connect import plan_tunnel
from raystudy.errors import InputError, UnreachableError

SSH = """\
#!/bin/sh
echo "$$ $*" >> "$SSH_LOG"
case " $* " in *" -N "*) if [ -n "$SSH_ENDS" ]; then echo "Connection closed" >&2; exit 255; fi; exec sleep 300;; esac
[ -z "$SSH_FAILS" ] || { echo "a warning" >&2; echo "$SSH_FAILS" >&2; exit 255; }
echo "$SSH_SAYS"
"""
RAY = """\
#!/bin/sh
[ "$1 $2" = "get-head-ip $CLUSTER" ] || exit 9
echo "some notice" >&2
if [ -n "$NO_HEAD" ]; then echo "RuntimeError: Head node of cluster (mine) not found!" >&2; exit 1; fi
echo "Loaded cached provider configuration"
echo 203.0.113.7
"""


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an ssh and a ray in front of the real ones; return the log of the ssh."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"ssh": SSH, "ray": RAY}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setattr(connect, "ray_command", lambda: str(folder / "ray"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SSH_LOG", str(tmp_path / "ssh.log"))
    monkeypatch.setenv("SSH_SAYS", "10.0.0.5:6379")
    monkeypatch.setenv("CLUSTER", str(tmp_path / "cluster.yaml"))
    return tmp_path / "ssh.log"


def cluster_file(tmp_path: Path, *, provider: dict[str, Any] | None = None, **auth: Any) -> Path:
    content = {
        "cluster_name": "mine",
        "provider": provider or {"type": "local", "head_ip": "192.0.2.10", "worker_ips": []},
        "auth": {"ssh_user": "me", **auth},
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_own_hosts(tmp_path: Path, programs: Path) -> None:
    tunnel = plan_tunnel(cluster_file(tmp_path, ssh_private_key="~/.ssh/cluster"), mlflow_port=5001)
    asked = programs.read_text()
    key = ["-i", str(tmp_path / "home/.ssh/cluster")]
    assert " me@192.0.2.10 cat /tmp/ray/ray_current_cluster" in asked
    assert " ".join(key) in asked
    command = list(tunnel.command)
    assert command[0] == "ssh"
    assert command[command.index("-i") : command.index("-i") + 2] == key
    assert command[command.index("-N") :] == [
        *("-N", "-L", "127.0.0.1:8265:10.0.0.5:8265", "-L", "127.0.0.1:5001:10.0.0.5:5000", "me@192.0.2.10"),
    ]
    assert {"StrictHostKeyChecking=accept-new", "ExitOnForwardFailure=yes"} <= set(command)
    assert tunnel.exports == {
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5001",
        "RAY_AUTH_MODE": "token",
    }


def test_a_cloud_is_asked_for_the_head_and_the_key_is_the_one_that_ray_made(tmp_path: Path) -> None:
    keys = tmp_path / "home" / ".ssh"
    keys.mkdir(parents=True)
    for name in (
        "ray-autoscaler_1_us-west-2.pem",
        "ray-autoscaler_us-west-2.pem",
        "ray-autoscaler_1_eu-west-1.pem",
        "other.pem",
    ):
        (keys / name).touch()
    command = plan_tunnel(cluster_file(tmp_path, provider={"type": "aws", "region": "us-west-2"})).command
    assert command[-1] == "me@203.0.113.7"
    used = {Path(command[at + 1]).name for at, part in enumerate(command) if part == "-i"}
    assert used == {"ray-autoscaler_1_us-west-2.pem", "ray-autoscaler_us-west-2.pem"}


def test_a_jump_host_of_the_file_is_used(tmp_path: Path) -> None:
    command = plan_tunnel(cluster_file(tmp_path, ssh_proxy_command="ssh -W %h:%p jump")).command
    assert "ProxyCommand=ssh -W %h:%p jump" in command


@pytest.mark.parametrize(
    ("said", "forward"),
    [
        ("10.0.0.5:6379\n", "10.0.0.5"),
        ("10.0.0.5 172.17.0.1 fd00::1 \n", "10.0.0.5"),  # hostname -I
        ("[fd00::1]:6379\n", "[fd00::1]"),
        ("fd00::1\n", "[fd00::1]"),
    ],
)
def test_forms_of_the_private_address(said: str, forward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SAYS", said)
    assert f"127.0.0.1:8265:{forward}:8265" in plan_tunnel(cluster_file(tmp_path)).command


@pytest.mark.parametrize("said", ["", "nothing here", "10.0.0.999:6379", "$(reboot)"])
def test_an_answer_that_is_no_address_is_not_used(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SAYS", said)
    with pytest.raises(UnreachableError, match=r"me@192\.0\.2\.10 was asked for its private address"):
        plan_tunnel(cluster_file(tmp_path))


def test_a_host_that_does_not_let_us_in_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSH_FAILS", "me@192.0.2.10: Permission denied (publickey).")
    assert _call(["connect", str(cluster_file(tmp_path)), "--print"], debug=False) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["error: me@192.0.2.10 cannot be reached by ssh: me@192.0.2.10: Permission denied (publickey)."]


def test_a_cluster_that_is_not_up_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_HEAD", "yes")
    file = cluster_file(tmp_path, provider={"type": "aws", "region": "us-west-2"})
    assert _call(["connect", str(file), "--print"], debug=False) == 3
    err = capsys.readouterr().err
    assert "not found" in err
    assert f"ray up {file}" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "no section `provider`"),
        ("", "no section `provider`"),
        ("provider: {type: local}", r"auth\.ssh_user: is missing"),
    ],
)
def test_a_file_that_does_not_say_how_is_an_error(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=reason):
        plan_tunnel(file)


def test_print_prints_the_command_and_opens_nothing(tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(["connect", str(cluster_file(tmp_path)), "--print"], debug=False) == 0
    out = capsys.readouterr().out
    assert shlex.split(out)[-1] == "me@192.0.2.10"
    assert "-N" in shlex.split(out)
    assert " -N " not in programs.read_text()


def test_a_port_in_use_is_named_by_its_option(tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["connect", str(cluster_file(tmp_path)), "--dashboard-port", str(free_port()), "--mlflow-port", str(port)]
        assert _call(arguments, debug=False) == 2
    err = capsys.readouterr().err
    assert f"--mlflow-port: port {port} is in use" in err
    assert "dashboard" not in err
    assert not programs.exists()


def opened(tmp_path: Path) -> subprocess.Popen[str]:
    ports = ["--dashboard-port", str(free_port()), "--mlflow-port", str(free_port())]
    return subprocess.Popen(
        [sys.executable, "-m", "raystudy", "connect", str(cluster_file(tmp_path)), *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def tunnel_pid(log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines() if log.exists() else ():
            if " -N " in line:
                return int(line.split()[0])
        time.sleep(0.02)
    raise AssertionError("ssh was not started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_tunnel_stays_open_until_it_is_interrupted(number: signal.Signals, tmp_path: Path, programs: Path) -> None:
    process = opened(tmp_path)
    pid = tunnel_pid(programs)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert [line.partition("=")[0] for line in lines] == [
        "export RAY_API_SERVER_ADDRESS",
        "export MLFLOW_TRACKING_URI",
        "export RAY_AUTH_MODE",
    ]
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_tunnel_that_ends_by_itself_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ENDS", "yes")
    process = opened(tmp_path)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert err.splitlines()[-1] == "error: the tunnel to me@192.0.2.10 has ended (ssh exited with 255)"
