"""Spot notices, from a metadata service of our own to a ray that only notes what it was told."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from stores import free_port

from raystudy.cli import _call
from raystudy.cluster import spot
from raystudy.cluster.processes import RayProcess
from raystudy.cluster.spot import InstanceMetadata, NoMetadata, Notice, watch
from raystudy.errors import UnreachableError

RAY = """\
#!/bin/sh
for argument in "$@"; do printf '%s\\n' "$argument"; done > "{log}.$$" && mv "{log}.$$" "{log}-$(ls "{folder}" | wc -l)"
[ ! -e "{refuse}" ] || {{ rm "{refuse}"; echo "The drain request is not accepted: not yet" >&2; exit 1; }}
"""


class Service:
    """A metadata service as AWS documents version 2."""

    def __init__(self) -> None:
        self.notice: str | None = None
        self.tokens: list[str] = []
        self.looks = 0
        self.status: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.path == "/latest/api/token"
                assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
                outer.tokens.append(f"token{len(outer.tokens)}")
                self._answer(200, outer.tokens[-1])

            def do_GET(self) -> None:
                assert self.path == "/latest/meta-data/spot/instance-action"
                if not outer.tokens or self.headers["X-aws-ec2-metadata-token"] != outer.tokens[-1]:
                    self._answer(401, "")
                    return
                outer.looks += 1
                if outer.status or outer.notice is None:
                    self._answer(outer.status or 404, "")
                else:
                    self._answer(200, outer.notice)

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


@pytest.fixture
def raylet(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Stand in for the node's process of Ray."""
    process = subprocess.Popen(["sleep", "300"])
    node = RayProcess(psutil.Process(process.pid), {"node-id": "ab" * 28, "gcs-address": "10.0.0.5:6379"})
    monkeypatch.setattr(spot, "node_of_ray", lambda: node)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Put a ray in place that notes its arguments; return what reads them."""
    folder = tmp_path / "calls"
    folder.mkdir()
    program = tmp_path / "ray"
    program.write_text(RAY.format(log=folder / "call", folder=folder, refuse=tmp_path / "refuse"))
    program.chmod(0o755)
    monkeypatch.setattr(spot, "ray_command", lambda: str(program))
    return lambda: [path.read_text().splitlines() for path in sorted(folder.glob("call-*"))]


class Watching:
    """A watch in a thread, and what it said."""

    def __init__(self, url: str) -> None:
        self.said: list[str] = []
        self._thread = threading.Thread(
            target=watch, args=(InstanceMetadata(url), self.said.append), kwargs={"look_every": 0.02, "patience": 30.0}
        )
        self._thread.start()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert self._thread.is_alive(), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def end(self, raylet: subprocess.Popen[bytes]) -> None:
        raylet.kill()  # and not waited for: a process that is only not buried yet has ended, too
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.said[-1] == "Ray has ended on this machine"


def in_seconds(seconds: float) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_a_notice_drains_the_node_once(
    service: Service, raylet: subprocess.Popen[bytes], told: Callable[[], list[list[str]]]
) -> None:
    watching = Watching(service.url)
    watching.until(lambda: service.looks > 2)
    assert told() == []
    service.notice = in_seconds(120)
    watching.until(lambda: "Ray drains this machine" in watching.said)
    looks = service.looks
    watching.end(raylet)
    (call,) = told()
    assert call[0] == "drain-node"
    options = dict(zip(call[1::2], call[2::2], strict=True))
    assert 100 <= int(options.pop("--deadline-remaining-seconds")) <= 120
    assert options.pop("--reason-message").startswith("AWS spot notice: terminate at 20")
    assert options == {
        "--address": "10.0.0.5:6379",
        "--node-id": "ab" * 28,
        "--reason": "DRAIN_NODE_REASON_PREEMPTION",
    }
    assert service.looks == looks
    assert len(service.tokens) == 1


def test_a_ray_that_does_not_take_it_is_told_again(
    service: Service, raylet: subprocess.Popen[bytes], told: Callable[[], list[list[str]]], tmp_path: Path
) -> None:
    (tmp_path / "refuse").touch()
    service.notice = in_seconds(60)
    watching = Watching(service.url)
    watching.until(lambda: "Ray drains this machine" in watching.said)
    watching.end(raylet)
    assert "Ray did not take it: The drain request is not accepted: not yet" in watching.said
    assert len(told()) == 2


def test_a_token_that_has_run_out_is_renewed(service: Service) -> None:
    metadata = InstanceMetadata(service.url)
    assert metadata.notice() is None
    service.tokens.append("another")  # so that ours is no longer the last
    service.notice = in_seconds(60)
    assert metadata.notice() is not None
    assert "token" not in repr(metadata)


def test_trouble_is_said_once_and_passes(
    service: Service, raylet: subprocess.Popen[bytes], told: Callable[[], list[list[str]]]
) -> None:
    service.status = 503
    watching = Watching(service.url)
    watching.until(lambda: service.looks > 3)
    service.status = None
    service.notice = in_seconds(30)
    watching.until(told)
    watching.end(raylet)
    assert sum("503" in line for line in watching.said) == 1


def test_a_notice_without_a_time_is_an_error(service: Service) -> None:
    service.notice = '{"action": "terminate"}'
    with pytest.raises(NoMetadata, match="a notice that is none"):
        InstanceMetadata(service.url).notice()


def test_seconds_left() -> None:
    at = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    assert Notice("stop", at).seconds_left(at - timedelta(seconds=90)) == 90
    assert Notice("stop", at).seconds_left(at + timedelta(seconds=1)) == 0


@pytest.mark.usefixtures("raylet")
def test_a_machine_without_metadata_is_an_error() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=r"does not answer .* is this an AWS machine"):
        watch(InstanceMetadata(url), lambda _: None, look_every=0.01, patience=0.05)


def test_a_machine_without_ray_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "node_of_ray", lambda: None)
    with pytest.raises(UnreachableError, match="Ray does not run on this machine"):
        watch(InstanceMetadata("http://127.0.0.1:1"), lambda _: None, look_every=0.01, patience=0.05)


def test_the_command_watches_until_ray_ends(
    service: Service, raylet: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSTUDY_SPOT_METADATA", service.url)
    raylet.kill()
    assert _call(["spot-watch", "--every", "0.1"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"watching for spot notices at {service.url}" in lines[0]
    assert lines[-1].endswith("Ray has ended on this machine")
