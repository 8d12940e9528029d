"""A real head: MLflow under its supervisor, with authentication, until Ray ends."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from stores import free_port
from waiting import wait_until

from raystudy.cluster.keys import make_keys, read_credentials, token_file
from raystudy.cluster.processes import marked

pytestmark = pytest.mark.slow

CLIENT = """
import sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
run = client.create_run(client.create_experiment("by a client")).info
client.log_metric(run.run_id, "accuracy", 0.5)
client.log_text(run.run_id, "through the proxy", "note.txt")
assert run.artifact_uri.startswith("mlflow-artifacts:/"), run.artifact_uri
assert client.list_artifacts(run.run_id)[0].path == "note.txt"
assert client.get_run(run.run_id).data.metrics == {"accuracy": 0.5}
"""
PAGES = [
    "/", "/version", "/api/2.0/mlflow/experiments/search?max_results=5", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=1",
    "/api/2.0/mlflow/users/list", "/api/2.0/mlflow-artifacts/artifacts", "/graphql", "/metrics", "/v1/traces", "/openapi.json",
]  # fmt: skip


class Head:
    """A head of one test, whose Ray is a process that sleeps."""

    def __init__(self, folder: Path) -> None:
        self.home, self.storage, self.port = folder / "me", folder / "storage", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = self.home / ".raystudy" / "head"
        self.ray = subprocess.Popen(["sleep", "600"])
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAYSTUDY_"))},
            "HOME": str(self.home),
            "RAYSTUDY_HOME": str(self.storage),
        }

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raystudy", "head", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def ask(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raystudy", *arguments, "--tracking-uri", self.url],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self) -> subprocess.CompletedProcess[str]:
        return self.call("--host", "127.0.0.1", "--port", str(self.port), "--ray-pid", str(self.ray.pid))

    def processes(self) -> list[psutil.Process]:
        return marked("RAYSTUDY_HEAD", str(self.state))

    def servers(self) -> list[psutil.Process]:
        return [process for process in self.processes() if "uvicorn" in command_line(process)]

    def server(self) -> psutil.Process:
        (found,) = self.servers()
        return found

    def status(self, page: str, *, password: str | None = None, **headers: str) -> int:
        request = urllib.request.Request(self.url + page, headers=headers)  # noqa: S310
        if password is not None:
            manager = urllib.request.HTTPPasswordMgrWithPriorAuth()
            manager.add_password(None, self.url, "raystudy", password, is_authenticated=True)
            opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        else:
            opener = urllib.request.build_opener()
        try:
            with opener.open(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            body = error.read().decode()
            assert "by a client" not in body
            return error.code
        except OSError:
            return 0


def command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    made = Head(tmp_path)
    monkeypatch.setenv("HOME", str(made.home))
    make_keys()
    yield made
    made.call("--stop")
    made.ray.kill()
    made.ray.wait()


def test_a_head_from_start_to_stop(head: Head) -> None:
    began = head.start()
    assert began.returncode == 0, began.stderr
    assert head.url in began.stdout
    password = read_credentials().password
    page = "/api/2.0/mlflow/experiments/search?max_results=5"

    client = subprocess.run(
        [sys.executable, "-c", CLIENT, head.url], env=head.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert client.returncode == 0, client.stderr
    assert [path.read_text() for path in head.storage.rglob("note.txt")] == ["through the proxy"]

    assert {page: head.status(page) for page in PAGES} == dict.fromkeys(PAGES, 401)
    assert head.status(page, password="wrong" + password) == 401
    assert head.status(page, password=password) == 200
    assert head.status(page, password=password, Host="evil.com") == 403
    assert head.status(page, password=password, Host=f"127.0.0.1.evil.com:{head.port}") == 403
    assert head.status(page, password=password, Host="localhost:5000") == 200  # from the other end of a tunnel

    for environment in (
        {"HOME": str(head.storage)},
        {"MLFLOW_TRACKING_USERNAME": "raystudy", "MLFLOW_TRACKING_PASSWORD": "wrong"},
    ):
        refused = head.ask("best", "small", **environment)
        assert refused.returncode == 3
        assert "~/.mlflow/credentials" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert "there is no study 'small'" in head.ask("best", "small").stderr

    before = {process.pid for process in head.processes()}
    assert "was well already" in head.start().stdout
    assert {process.pid for process in head.processes()} == before

    kill_and_wait(head, lambda: head.server())
    kill_and_wait(head, lambda: psutil.Process(head.server().ppid()))  # which leaves the server behind, on the port
    assert head.status(page, password=password) == 200

    assert secrets_in_the_open(head) == []
    ended = head.call("--stop")
    assert ended.returncode == 0, ended.stderr
    assert head.processes() == []
    assert head.status("/health") == 0


def test_a_head_whose_supervisor_was_killed_is_replaced_and_ends_with_ray(head: Head) -> None:
    assert head.start().returncode == 0
    supervisor = psutil.Process(int((head.state / "supervisord.pid").read_text()))
    supervisor.kill()
    wait_until(lambda: not supervisor.is_running(), "the supervisor to end")
    began = head.start()  # what a dead supervisor left is replaced
    assert "answers" in began.stdout, began.stderr
    assert len(head.processes()) == 4
    head.ray.kill()
    head.ray.wait()
    wait_until(lambda: head.processes() == [], "the last process to end")


def kill_and_wait(head: Head, victim: Callable[[], psutil.Process]) -> None:
    before = head.server().pid
    victim().kill()
    wait_until(
        lambda: [process.pid for process in head.servers()] not in ([], [before]) and head.status("/health") == 200,
        "another server to answer",
    )


def secrets_in_the_open(head: Head) -> list[str]:
    """Return where a secret can be read by others: command lines, and files that are not this user's alone."""
    secrets = [read_credentials().password, token_file().read_text(), (head.state / "flask_secret_key").read_text()]
    found = [
        f"process {process.pid}"
        for process in psutil.process_iter(["cmdline"])
        if any(secret in " ".join(process.info["cmdline"] or []) for secret in secrets)
    ]
    assert len(list(head.state.iterdir())) >= 6
    for path in (path for folder in (head.home, head.storage) for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if any(secret.encode() in content for secret in secrets):
            allowed = (
                path.name in ("credentials", "auth_token", "flask_secret_key") and stat.S_IMODE(path.stat().st_mode) == 0o600
            )
            found += [] if allowed else [str(path)]
    return found
