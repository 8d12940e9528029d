"""The head's server, as far as no server needs to run: settings, what is told to whom, and processes."""

from __future__ import annotations

import base64
import configparser
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import wait_until

from raystudy.cli import _call
from raystudy.cluster import head, head_settings, processes
from raystudy.cluster import head_supervisor as supervision
from raystudy.cluster.head import HeadError, start_head, stop_head
from raystudy.cluster.head_server import server_command, server_environment, user_settings
from raystudy.cluster.head_settings import ServerSettings, read_settings
from raystudy.cluster.keys import credentials_file, make_keys, read_credentials
from raystudy.cluster.processes import RayProcess, alive, end, marked
from raystudy.errors import InputError

POSTGRESQL = "postgresql://raystudy@db.internal:5432/mlflow"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "storage"))
    monkeypatch.delenv("RAYSTUDY_MLFLOW_STORE", raising=False)
    monkeypatch.delenv("RAYSTUDY_MLFLOW_ARTIFACTS", raising=False)
    make_keys()
    return tmp_path / "me"


@pytest.fixture
def processes_of_mine() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **environment: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, env={**os.environ, **environment}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def settings(**changes: Any) -> ServerSettings:
    return replace(read_settings("10.0.0.5", 5000), **changes)


# Settings


def test_sqlite_is_the_default_and_everything_is_on_the_storage(tmp_path: Path) -> None:
    found = read_settings("10.0.0.5", 5000)
    storage = tmp_path / "storage"
    assert found.store == f"sqlite:///{storage}/mlflow.db"
    assert found.users == f"sqlite:///{storage}/mlflow-users.db"
    assert found.artifacts == f"{storage}/artifacts"
    assert found.url == "http://10.0.0.5:5000"
    assert found.postgresql is None
    assert ServerSettings.from_json(found.to_json()) == found


def test_postgresql_holds_runs_and_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_MLFLOW_STORE", POSTGRESQL)
    monkeypatch.setenv("RAYSTUDY_MLFLOW_ARTIFACTS", "s3://bucket/prefix")
    found = read_settings("fd00::5", 5000)
    assert found.store == found.users == "postgresql+psycopg://raystudy@db.internal:5432/mlflow"
    assert found.postgresql == POSTGRESQL
    assert found.artifacts == "s3://bucket/prefix"
    assert found.url == "http://[fd00::5]:5000"


def test_everything_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials_file().unlink()
    monkeypatch.setenv("RAYSTUDY_HOME", "SET-ME-storage")
    monkeypatch.setenv("RAYSTUDY_MLFLOW_STORE", "mysql://x")
    monkeypatch.setenv("RAYSTUDY_MLFLOW_ARTIFACTS", "SET-ME-artifacts")
    with pytest.raises(InputError) as error:
        read_settings("::", 5000, ["*.example.com"])
    assert [problem.where for problem in error.value.problems] == [
        *("RAYSTUDY_HOME", "RAYSTUDY_MLFLOW_STORE", "RAYSTUDY_MLFLOW_ARTIFACTS", "--host", "--allowed-host"),
        str(credentials_file()),
    ]
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("RAYSTUDY_HOME", "", "is not set"),
        ("RAYSTUDY_HOME", "here", "got 'here'"),
        ("RAYSTUDY_HOME", "s3://bucket", "got 's3://bucket'"),
        ("RAYSTUDY_MLFLOW_STORE", "SET-ME", "is still SET-ME"),
        ("RAYSTUDY_MLFLOW_STORE", "postgresql://host", "got 'postgresql://host'"),
        ("RAYSTUDY_MLFLOW_STORE", "postgres://u@host/db", "begins with 'postgres'"),
        ("RAYSTUDY_MLFLOW_ARTIFACTS", "bucket", "got 'bucket'"),
    ],
)
def test_a_setting_that_is_wrong(name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=reason) as error:
        read_settings("10.0.0.5", 5000)
    assert [problem.where for problem in error.value.problems] == [name]


@pytest.mark.parametrize(
    "address", ["postgresql://u:hunter2@h/db", "postgresql://u@h/db?password=hunter2", "mysql://u:hunter2@h/db"]
)
def test_a_password_in_the_address_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_MLFLOW_STORE", address)
    with pytest.raises(InputError) as error:
        read_settings("10.0.0.5", 5000)
    assert "hunter2" not in str(error.value)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_settings, "find_spec", lambda _: None)
    monkeypatch.setenv("RAYSTUDY_MLFLOW_STORE", POSTGRESQL)
    monkeypatch.setenv("RAYSTUDY_MLFLOW_ARTIFACTS", "gs://bucket")
    with pytest.raises(InputError) as error:
        read_settings("10.0.0.5", 5000)
    for package in ("supervisor", "flask_wtf", "psycopg", "google.cloud.storage", "raystudy[head]"):
        assert package in str(error.value)


# What the server is told


def test_no_secret_is_on_the_command_line_or_in_a_file_of_the_supervisor(tmp_path: Path) -> None:
    password = read_credentials().password
    environment = server_environment(settings(), tmp_path / "users.ini", read_credentials(), "f" * 64)
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == password
    assert environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] == "f" * 64
    texts = [*server_command(settings()), *supervision.files(tmp_path, settings(), 1).values(), user_settings(settings())]
    assert not any(password in text for text in texts)


def test_nobody_else_is_let_in_by_the_name_or_by_the_environment() -> None:
    found = settings(allowed_hosts=("head.example.com:5000",))
    command = server_command(found)
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert {"10.0.0.5:5000", "head.example.com:5000", "127.0.0.1:*", "localhost:*"} <= set(hosts)
    assert all(host.partition(":")[0] in ("localhost", "127.0.0.1") for host in hosts if "*" in host)
    assert "*" not in command[command.index("--cors-allowed-origins") + 1]
    open_door = {"MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true", "MLFLOW_S3_ENDPOINT_URL": "http://minio"}
    environment = server_environment(found, Path("users.ini"), read_credentials(), "key", environ=open_door)
    assert "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE" not in environment
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "http://minio"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_users_see_nothing_without_permission() -> None:
    parser = configparser.ConfigParser()
    parser.read_string(user_settings(settings(users="postgresql+psycopg://u@h/db?options=-c%20x")))
    assert parser["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    assert parser["mlflow"]["database_uri"] == "postgresql+psycopg://u@h/db?options=-c%20x"
    assert "admin_password" not in parser["mlflow"]


def test_the_supervisor_runs_the_server_and_the_guard_of_ray(tmp_path: Path) -> None:
    folder = tmp_path / "50% of it"
    parser = configparser.RawConfigParser()
    parser.read_string(supervision.files(folder, settings(), 4711)[supervision.config_file(folder)])
    guard = shlex.split(parser["program:guard"]["command"].replace("%%", "%"))
    assert guard == [sys.executable, "-m", "raystudy.cluster.head_guard", "4711", str(folder)]
    assert parser["program:mlflow"]["autorestart"] == "true"
    assert parser["program:mlflow"]["killasgroup"] == "true"
    assert parser["supervisord"]["umask"] == "077"
    assert "program:guard" not in supervision.files(folder, settings(), None)[supervision.config_file(folder)]


# Before anything is started


def test_without_ray_the_head_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(head, "head_of_ray", lambda _: None)
    assert _call(["head", "--host", "10.0.0.5"], debug=False) == 2
    assert "no head of Ray runs on this machine with the address 10.0.0.5" in capsys.readouterr().err
    assert _call(["head", "--without-ray"], debug=False) == 2
    assert "--host: is not given" in capsys.readouterr().err


def test_ray_says_which_address_and_which_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = RayProcess(psutil.Process(), {"node-ip-address": "10.0.0.9"})
    monkeypatch.setattr(head, "head_of_ray", lambda host: ray if host in (None, "10.0.0.9") else None)
    assert head._ray(None, None, with_ray=True) == ("10.0.0.9", os.getpid())
    assert head._ray("10.0.0.9", None, with_ray=True) == ("10.0.0.9", os.getpid())
    assert head._ray(None, None, with_ray=False) == ("10.0.0.9", None)
    assert head._ray("10.0.0.7", 42, with_ray=True) == ("10.0.0.7", 42)


def test_a_port_in_use_and_a_storage_that_cannot_be_written_are_said_at_once(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(HeadError, match="Address already in use"):
            start_head("127.0.0.1", taken.getsockname()[1], with_ray=False)
    (tmp_path / "storage").write_text("a file")
    with pytest.raises(HeadError, match="storage cannot be written"):
        start_head("127.0.0.1", 0, with_ray=False)
    assert stat.S_IMODE((home / ".raystudy" / "head").stat().st_mode) == 0o700
    monkeypatch.setenv("RAYSTUDY_MLFLOW_STORE", "postgresql://u@127.0.0.1:1/db")
    with pytest.raises(HeadError, match=r"postgresql://127\.0\.0\.1:1/db cannot be opened"):
        start_head("127.0.0.1", 0, with_ray=False)
    assert not (home / ".raystudy" / "head" / "supervisord.conf").exists()


def test_credentials_that_others_can_read_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials_file().chmod(0o644)
    monkeypatch.setenv("RAYSTUDY_MLFLOW_STORE", "postgresql://u@127.0.0.1:1/db")
    with pytest.raises(HeadError):
        start_head("127.0.0.1", 0, with_ray=False)
    assert stat.S_IMODE(credentials_file().stat().st_mode) == 0o600


@pytest.mark.parametrize(("status", "accepted"), [(200, True), (401, False)])
def test_users_that_were_made_with_other_credentials_are_said(status: int, accepted: bool) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with nullcontext() if accepted else pytest.raises(HeadError, match="made with other credentials"):
            head._check_credentials(settings(host="127.0.0.1", port=server.server_port))
        thread.join()
    assert base64.b64decode(asked[0].removeprefix("Basic ")).decode() == f"raystudy:{read_credentials().password}"


def test_stop_where_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert not stop_head()
    assert _call(["head", "--stop"], debug=False) == 0
    assert "no MLflow server" in capsys.readouterr().out


# Processes


def test_flags_of_ray_are_read_from_either_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["raylet", "--node_id=ab", "--gcs-address=10.0.0.5:6379", "--config=a=b", "loose", "--flag"]
    assert processes._flags(arguments) == {"node-id": "ab", "gcs-address": "10.0.0.5:6379", "config": "a=b", "flag": ""}
    found = [RayProcess(psutil.Process(), processes._flags(arguments)), RayProcess(psutil.Process(), {"node-id": "cd"})]
    monkeypatch.setattr(processes, "_named", lambda _: iter(found))
    assert processes.node_of_ray() == found[0]
    assert processes.head_of_ray("10.0.0.5") is None


def test_marked_processes_are_found_also_as_orphans_and_end(
    tmp_path: Path, processes_of_mine: Callable[..., subprocess.Popen[bytes]]
) -> None:
    mark = str(tmp_path)
    parent = processes_of_mine("sh", "-c", "trap '' TERM; sleep 300 & sleep 300", RAYSTUDY_TEST=mark)
    processes_of_mine("sleep", "300", RAYSTUDY_TEST="another")
    wait_until(lambda: len(marked("RAYSTUDY_TEST", mark)) == 3, "three processes")
    parent.kill()
    wait_until(lambda: len(marked("RAYSTUDY_TEST", mark)) == 2, "the first one to end")
    end(marked("RAYSTUDY_TEST", mark), patience=0.2)  # these ignore SIGTERM, as their parent did
    assert marked("RAYSTUDY_TEST", mark) == []
    assert len(marked("RAYSTUDY_TEST", "another")) == 1


def test_a_process_that_ended_but_was_not_waited_for_is_not_alive(
    processes_of_mine: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = processes_of_mine("sleep", "300")
    seen = psutil.Process(process.pid)
    assert alive(seen)
    process.kill()
    wait_until(lambda: not alive(seen), "the process to end")
    process.wait()
    assert not alive(seen)


@pytest.mark.slow
def test_the_guard_ends_its_supervisor_and_what_is_left_when_ray_ends(
    tmp_path: Path, processes_of_mine: Callable[..., subprocess.Popen[bytes]]
) -> None:
    mark = {"RAYSTUDY_HEAD": str(tmp_path)}
    ray = processes_of_mine("sleep", "300")
    guard = [sys.executable, "-m", "raystudy.cluster.head_guard", str(ray.pid), str(tmp_path)]
    said = tmp_path / "said"
    code = "import subprocess as s, sys; s.Popen(['sleep', '300']); s.run(sys.argv[2:], stdout=open(sys.argv[1], 'w'))"
    supervisor = processes_of_mine(sys.executable, "-c", code, str(said), *guard, **mark)
    wait_until(lambda: said.exists() and "ends with" in said.read_text(), "the guard to be there")
    assert len(marked("RAYSTUDY_HEAD", str(tmp_path))) == 3
    ray.kill()  # and not waited for
    assert supervisor.wait(30) == -signal.SIGTERM
    wait_until(lambda: not marked("RAYSTUDY_HEAD", str(tmp_path)), "the last process to end")
