"""Studies on a cluster as its users see it, against a dashboard of our own that answers as Ray's does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from refusals import GOOD, assert_refused, write_study
from stores import free_port
from strategies import NAMES
from toys import ToyTrainer, conduct, toy_spec

from raystudy import __version__
from raystudy.cli import _call
from raystudy.cluster import board, dashboard, jobs, service
from raystudy.cluster.jobs import StudyJob
from raystudy.cluster.service import Cluster
from raystudy.errors import InputError, NotFoundError, SpecError, StudyBusyError, UnreachableError
from raystudy.event_lines import event_to_text
from raystudy.listing import StudyRow
from raystudy.progress import event_line
from raystudy.records import Event, StudyState
from raystudy.spec import StudySpec
from raystudy.spec.text import parse_yaml
from raystudy.studies import submit as submit_study

SPEC = StudySpec.from_dict(GOOD)
TOKEN = "a" * 64
HEADER = (
    "Runtime env is setting up.\n2026-11-25 02:00:00,000\tINFO job_supervisor.py:180 -- "
    "Running entrypoint for job {job_id}: {entrypoint}\n"
)
Row = dict[str, Any]


def events_of_a_study() -> list[Event]:
    spec = toy_spec(budget={"trials": 2, "epochs": 2}, early_stopping={"scheduler": "none"})
    return conduct(spec, ToyTrainer(2))[1]


EVENTS = events_of_a_study()
BEGUN = event_to_text(EVENTS[0]) + "\n"
STUDY_LOG = "".join(event_to_text(event) + "\n" for event in EVENTS)


def node(**changes: Any) -> Row:
    return {"state": "ALIVE", "labels": {}, "resources_total": {"CPU": 4.0}, **changes}


class FakeDashboard:
    """The part of Ray's dashboard that studies need."""

    def __init__(self) -> None:
        self.token = ""
        self.nodes = [node()]
        self.rows: dict[str, Row] = {}
        self.logs: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.answer: tuple[int, str, str] | None = None
        """Status, type and text of every answer, if set."""
        self.location = ""
        self.on_submit: Callable[[Row], None] = lambda row: self.run(row, BEGUN)
        self.on_get: Callable[[Row], None] = lambda _: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._respond("GET")

            def do_POST(self) -> None:
                self._respond("POST")

            def _respond(self, method: str) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                outer.requests.append((method, self.path, dict(self.headers), json.loads(text) if text else None))
                status, kind, answer = outer.answer or outer._refusal(self.headers) or outer._json(method, self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer.encode())))
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _refusal(self, headers: Any) -> tuple[int, str, str] | None:
        given = headers.get("Authorization")
        if not self.token or given == f"Bearer {self.token}":
            return None
        return (403 if given else 401), "text/plain", "Unauthorized: Missing or invalid authentication token"

    def _json(self, method: str, path: str) -> tuple[int, str, str]:
        status, body = self._answer(method, path.partition("?")[0])
        return (status, "application/json", json.dumps(body)) if status == 200 else (status, "text/plain", body)

    def _answer(self, method: str, path: str) -> tuple[int, Any]:
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "0", "session_name": "s"}
        if path == "/api/v0/nodes":
            return 200, {"result": True, "msg": "", "data": {"result": {"total": len(self.nodes), "result": self.nodes}}}
        if path == "/api/jobs/":
            return (200, list(self.rows.values())) if method == "GET" else self._submitted(self.requests[-1][3])
        job_id, _, rest = path.removeprefix("/api/jobs/").partition("/")
        if job_id not in self.rows:
            return 404, f"Job {job_id} does not exist"
        row = self.rows[job_id]
        if rest == "logs":
            return 200, {"logs": self.logs.get(job_id, "")}
        if rest == "stop":
            return 200, {"stopped": True}
        answer = dict(row)
        self.on_get(row)
        return 200, answer

    def _submitted(self, body: Row) -> tuple[int, Any]:
        if body["submission_id"] in self.rows:
            return (
                500,
                f"Traceback ...\nValueError: Job with submission_id {body['submission_id']} already exists. Use another.",
            )
        row = job_row(**{key: body[key] for key in ("submission_id", "entrypoint", "metadata")}, start_time=len(self.rows))
        self.rows[body["submission_id"]] = row
        self.on_submit(row)
        return 200, {"job_id": row["submission_id"], "submission_id": row["submission_id"]}

    # What becomes of a job

    def run(self, row: Row, printed: str = "") -> None:
        """Let a job run and print."""
        row.update(status="RUNNING", driver_node_id="n1")
        self.logs[row["submission_id"]] = HEADER.format(job_id=row["submission_id"], entrypoint=row["entrypoint"]) + printed

    def end(self, row: Row, code: int | None, printed: str = "") -> None:
        """Let a job end."""
        self.run(row, printed)
        row.update(status="FAILED" if code else "SUCCEEDED", driver_exit_code=code, message="Job entrypoint command ended")

    # What was asked

    @property
    def bodies(self) -> list[Row]:
        """What was submitted."""
        return [body for method, path, _, body in self.requests if (method, path) == ("POST", "/api/jobs/")]

    @property
    def stopped(self) -> list[str]:
        """The jobs that were asked to stop."""
        return [path.split("/")[3] for method, path, *_ in self.requests if method == "POST" and path.endswith("/stop")]


def job_row(submission_id: str, **changes: Any) -> Row:
    return {
        "type": "SUBMISSION",
        "job_id": "02000000",
        "submission_id": submission_id,
        "status": "PENDING",
        "message": "Job has not started yet.",
        "metadata": {"raystudy.study": "x", "raystudy.owner": "ada"},
        "start_time": 1_700_000_000_000,
        "driver_exit_code": None,
        "driver_node_id": None,
        "entrypoint": "exec raystudy run -",
        **changes,
    }


@contextmanager
def serving(fake: FakeDashboard) -> Iterator[FakeDashboard]:
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        thread.join()


@pytest.fixture
def cluster() -> Iterator[FakeDashboard]:
    with serving(FakeDashboard()) as fake:
        yield fake


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the client a home of its own, and no patience."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for module in (service, jobs):
        monkeypatch.setattr(module, "_POLL_S", 0.001)
    monkeypatch.setattr(service, "_QUEUED_S", 0.0)
    write_study(tmp_path, GOOD)
    return tmp_path


def call(*arguments: str) -> int:
    return _call(arguments, debug=False)


COMMANDS = {
    "submit": ["submit", "study.yaml"],
    "dry run": ["submit", "study.yaml", "--dry-run"],
    "follow": ["submit", "study.yaml", "--follow"],
    "list": ["list"],
    "status": ["status", "good"],
    "watch": ["watch", "good"],
    "logs": ["logs", "good"],
    "log of a trial": ["logs", "good", "t0000"],
    "stop": ["stop", "good"],
    "resume": ["resume", "good"],
    "verify": ["verify", "good"],
}
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())


def assert_one_line(arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 3) -> None:
    assert call(*arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for words in said:
        assert words in err
    for never in ("Traceback", "unexpected", TOKEN):
        assert never not in err


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8265",
        "head",
        "ray://127.0.0.1:10001",
        "auto",
        "ftp://head:8265",
        "http://",
        "http://:8265",
        "http://[::1",
        "http://head:port",
        "http://head:99999",
        "http://head:0",
    ],
)
@EVERY_COMMAND
def test_what_is_no_address_exits_with_2(command: list[str], address: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--address", repr(address), "such as http://127.0.0.1:8265"]
    assert_one_line([*command, "--address", address], said, capsys, code=2)


@EVERY_COMMAND
def test_a_password_in_an_address_is_refused_and_not_repeated(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://ada:{TOKEN}@127.0.0.1:8265")
    assert_one_line(command, ["holds a user name or password"], capsys, code=2)


def test_submit_needs_an_address_and_says_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    said = ["no cluster is named", "--address http://HEAD:8265", "RAY_API_SERVER_ADDRESS", "raystudy connect"]
    assert_one_line(["submit", "study.yaml"], said, capsys, code=2)


@EVERY_COMMAND
def test_an_address_in_the_environment_is_as_good(
    command: list[str], cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.answer = 500, "text/plain", "boom"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.url + "/")
    assert_one_line(command, [f"{cluster.url}/api/version answers 500"], capsys)


def test_the_address_that_is_given_wins(cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    assert call("submit", "study.yaml", "--address", cluster.url) == 0


# Nobody there, strangers, other versions


@EVERY_COMMAND
def test_where_nobody_listens_one_line_says_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert_one_line([*command, "--address", url], [f"no Ray dashboard answers at {url} (Connection refused)"], capsys)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, "text/plain", "Traceback\nboom"), "answers 500"),
        ((404, "text/html", "<html>not here</html>"), "answers 404"),
        ((200, "text/html", "<html>Welcome to the hotel's wireless network</html>"), "answers 200"),
        ((200, "application/json", "[]"), "without a version of Ray"),
        ((200, "application/json", '{"version": "3.17.2"}'), "without a version of Ray"),
        ((200, "application/json", "3"), "answers 200"),
        ((204, "text/plain", ""), "answers 204"),
    ],
)
@EVERY_COMMAND
def test_whoever_answers_otherwise_is_no_dashboard(
    command: list[str],
    answer: tuple[int, str, str],
    said: str,
    cluster: FakeDashboard,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.answer = answer
    assert_one_line([*command, "--address", cluster.url], [cluster.url, said, "no dashboard of Ray"], capsys)


@pytest.mark.parametrize("nodes", [{}, {"data": None}, {"data": {"result": {}}}, {"data": {"result": {"result": [3]}}}, []])
def test_nodes_that_cannot_be_understood_are_one_line(
    nodes: Any, cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = cluster._answer
    monkeypatch.setattr(cluster, "_answer", lambda method, path: (200, nodes) if "nodes" in path else answer(method, path))
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], ["without a list of nodes"], capsys)
    assert cluster.bodies == []


@pytest.mark.parametrize("status", [302, 307])
@EVERY_COMMAND
def test_a_redirection_is_not_followed_with_the_token(
    command: list[str], status: int, cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with serving(FakeDashboard()) as elsewhere:
        cluster.answer, cluster.location = (status, "application/json", "{}"), elsewhere.url + "/api/version"
        assert_one_line([*command, "--address", cluster.url], [f"answers {status}"], capsys)
        assert len(cluster.requests) == 1
        assert elsewhere.requests == []


@pytest.mark.parametrize("command", [COMMANDS["submit"], COMMANDS["resume"]])
def test_another_version_on_a_node_is_found_before_anything_is_submitted(
    command: list[str], cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.nodes = [node(labels={"raystudy.version": __version__}), node(labels={"raystudy.version": "9.8.7"})]
    said = [f"runs raystudy 9.8.7, this is {__version__}: install the same version on both sides"]
    assert_one_line([*command, "--address", cluster.url], said, capsys)
    assert cluster.bodies == []


@pytest.mark.parametrize(
    "nodes",
    [
        [node()],
        [node(labels=None)],
        [node(labels={"raystudy.version": __version__})],
        [node(), node(state="DEAD", labels={"raystudy.version": "0.0.1"})],
    ],
)
def test_nodes_of_this_version_of_none_and_dead_ones_are_fine(nodes: list[Row], cluster: FakeDashboard) -> None:
    cluster.nodes = nodes
    assert call("submit", "study.yaml", "--address", cluster.url) == 0


# Tokens


@EVERY_COMMAND
def test_without_a_token_one_line_says_where_to_put_it(
    command: list[str], cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.token = TOKEN
    assert_one_line([*command, "--address", cluster.url], [cluster.url, "wants a token", "~/.ray/auth_token"], capsys)
    assert cluster.bodies == []


@EVERY_COMMAND
def test_a_wrong_token_is_one_line_that_does_not_repeat_it(
    command: list[str], cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.token = "the right one"  # noqa: S105
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert_one_line([*command, "--address", cluster.url], ["refuses the token", "this cluster's?"], capsys)


@pytest.mark.parametrize("token", ["tök\N{EURO SIGN}n", "two\nlines", "a\x00b"])
def test_what_cannot_be_a_token_is_one_line(
    token: str, cluster: FakeDashboard, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / ".ray").mkdir()
    (place / ".ray" / "auth_token").write_text(token, encoding="utf-8")
    assert_one_line(["list", "--address", cluster.url], ["~/.ray/auth_token", "expected one line of ASCII"], capsys)
    assert cluster.requests == []


def write_token(path: Path, text: str = f"{TOKEN}\n") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def in_variable(place: Path, environ: pytest.MonkeyPatch) -> None:
    environ.setenv("RAY_AUTH_TOKEN", f" {TOKEN}\n")
    environ.setenv("RAY_AUTH_TOKEN_PATH", str(place / "nowhere"))
    write_token(place / ".ray" / "auth_token", "another")


def in_named_file(place: Path, environ: pytest.MonkeyPatch) -> None:
    write_token(place / "secrets" / "token")
    environ.setenv("RAY_AUTH_TOKEN_PATH", "~/secrets/token")
    write_token(place / ".ray" / "auth_token", "another")


def in_default_file(place: Path, environ: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    write_token(place / ".ray" / "auth_token")


def in_default_file_with_mode(place: Path, environ: pytest.MonkeyPatch) -> None:
    environ.setenv("RAY_AUTH_MODE", "token")
    write_token(place / ".ray" / "auth_token")


@pytest.mark.parametrize("put", [in_variable, in_named_file, in_default_file, in_default_file_with_mode])
def test_a_token_is_found_where_rays_own_clients_look(
    put: Callable[[Path, pytest.MonkeyPatch], None], cluster: FakeDashboard, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.token = TOKEN
    put(place, monkeypatch)
    assert call("submit", "study.yaml", "--address", cluster.url) == 0
    assert {headers["Authorization"] for _, _, headers, _ in cluster.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("mode", ["disabled", "k8s"])
def test_no_token_is_sent_where_tokens_are_switched_off(
    mode: str, cluster: FakeDashboard, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_token(place / ".ray" / "auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert call("submit", "study.yaml", "--address", cluster.url) == 0
    assert not any("Authorization" in headers for _, _, headers, _ in cluster.requests)


def test_a_token_file_that_cannot_be_read_is_no_token(cluster: FakeDashboard, place: Path) -> None:
    (place / ".ray" / "auth_token").mkdir(parents=True)
    assert call("submit", "study.yaml", "--address", cluster.url) == 0


def test_neither_a_proxy_nor_netrc_comes_in_between(
    cluster: FakeDashboard, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    (place / ".netrc").write_text("machine 127.0.0.1 login ada password for-others\n")
    (place / ".netrc").chmod(0o600)
    assert call("submit", "study.yaml", "--address", cluster.url) == 0
    assert not any("Authorization" in headers for _, _, headers, _ in cluster.requests)


# Submitting


def submitted(cluster: FakeDashboard, *arguments: str) -> Row:
    assert call("submit", "study.yaml", "--address", cluster.url, *arguments) == 0
    return cluster.bodies[-1]


def test_a_study_is_submitted_with_one_request_that_holds_all_it_needs(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    body = submitted(cluster)
    study_file = body["runtime_env"]["env_vars"].pop("RAYSTUDY_STUDY")
    assert StudySpec.from_dict(parse_yaml(study_file, where="body")) == SPEC
    assert body == {
        "submission_id": "raystudy-good",
        "entrypoint": "exec raystudy run - --events <<END_OF_STUDY\n$RAYSTUDY_STUDY\nEND_OF_STUDY\n".rstrip("\n"),
        "metadata": {"raystudy.study": "good", "raystudy.owner": "ada"},
        "runtime_env": {
            "env_vars": {
                "RAYSTUDY_OWNER": "ada",
                "RAYSTUDY_CLIENT_VERSION": __version__,
                "RAY_JOB_STOP_WAIT_TIME_S": "120",
            }
        },
        "entrypoint_resources": {},
    }
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"good runs on {cluster.url} as the job raystudy-good"
    assert "raystudy watch good" in out
    assert "raystudy stop good" in out
    assert err == ""


def test_what_was_taken_can_be_had_as_json(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(cluster, "--json")
    expected = {"name": "good", "job_id": "raystudy-good", "state": "running", "address": cluster.url}
    assert json.loads(capsys.readouterr().out) == expected


def test_changes_on_the_command_line_travel_with_the_study(cluster: FakeDashboard) -> None:
    body = submitted(cluster, "--name", "2024", "--set", "budget.trials=7")
    sent = parse_yaml(body["runtime_env"]["env_vars"]["RAYSTUDY_STUDY"], where="body")
    assert (sent["name"], sent["budget"]["trials"]) == ("2024", 7)
    assert body["submission_id"] == "raystudy-2024"


@pytest.mark.parametrize(
    ("nodes", "resources"),
    [
        ([node()], {}),
        ([node(), node(resources_total={"CPU": 1.0, "study_driver": 16.0})], {"study_driver": 1.0}),
        ([node(), node(state="DEAD", resources_total={"study_driver": 16.0})], {}),
    ],
)
def test_a_driver_takes_its_place_in_the_queue_where_the_head_has_one(
    nodes: list[Row], resources: Mapping[str, float], cluster: FakeDashboard
) -> None:
    cluster.nodes = nodes
    assert submitted(cluster)["entrypoint_resources"] == resources


def test_no_secret_of_the_submitter_travels_with_the_job(cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY"]
    for name in secrets:
        monkeypatch.setenv(name, f"secret-{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret-uri@127.0.0.1:5000")
    cluster.token = "secret-RAY_AUTH_TOKEN"  # noqa: S105
    submitted(cluster)
    assert call("resume", "other", "--address", cluster.url) == 0
    cluster.on_submit = lambda row: cluster.end(row, 0)
    assert call("verify", "good", "--address", cluster.url) == 0
    assert len(cluster.bodies) == 3
    assert "secret" not in json.dumps(cluster.bodies)


def test_a_password_in_the_study_file_is_refused_before_it_travels(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", "study.yaml", "--address", cluster.url, "--set", "tracking_uri=http://a:secret@host:5000"]
    assert_refused(arguments, ["tracking_uri", "holds a password"], capsys)
    assert cluster.requests == []


def test_a_wrong_study_file_is_refused_before_the_cluster_is_asked(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", "study.yaml", "--address", cluster.url, "--set", "data.source=folder:images"]
    assert_refused(arguments, ["data.source: ", "which the cluster cannot see"], capsys)
    assert cluster.requests == []


@pytest.mark.parametrize(
    "text",
    ["name: x\n", "$HOME `id` $(id) \\ \"'\n", "EOF\nEND_OF_STUDY\n  END_OF_STUDY\nmore\n", "no newline", "ünïcode: ✓\n"],
)
def test_the_shell_hands_the_study_file_to_the_driver_as_it_is(text: str, cluster: FakeDashboard, place: Path) -> None:
    (place / "bin").mkdir()
    (place / "bin" / "raystudy").write_text('#!/bin/sh\nprintf "%s\\n" "$*" >&2\nexec cat\n')
    (place / "bin" / "raystudy").chmod(0o755)
    Cluster(cluster.url).jobs.submit("x", ["run", "-", "--events", "it's; $HOME"], study_file=text)
    body = cluster.bodies[-1]
    environment = {**body["runtime_env"]["env_vars"], "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "HOME": "/elsewhere"}
    done = subprocess.run(["/bin/sh", "-c", body["entrypoint"]], env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == text + "\n"
    assert done.stderr.decode() == "run - --events it's; $HOME\n"


@given(NAMES, st.integers(1, 12))
@example("2024", 1)
@example("a" * 100, 3)
@example("a..b--c__d", 2)
def test_the_id_of_any_studys_job_is_safe_in_urls_and_paths_and_names_the_study(name: str, attempt: int) -> None:
    job_id = f"{jobs._PREFIX}{name}" + (f"{jobs._ATTEMPT}{attempt}" if attempt > 1 else "")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]*", job_id)
    assert quote(job_id, safe="") == job_id
    assert Path(f"job-driver-{job_id}.log").name == f"job-driver-{job_id}.log"
    job = StudyJob.of(job_row(job_id))
    assert job is not None
    assert (job.study, job.attempt) == (name, attempt)


@pytest.mark.parametrize("job_id", [None, "", "raysubmit_1", "raystudy_command-17", "other-raystudy-x"])
def test_jobs_of_others_are_none_of_ours(job_id: str | None) -> None:
    assert StudyJob.of({**job_row("x", metadata=None), "submission_id": job_id}) is None


@pytest.mark.parametrize("attempt", ["", "~", "~x", "~²"])
def test_a_job_that_others_gave_a_name_like_ours_is_the_first(attempt: str) -> None:
    job = StudyJob.of(job_row(f"raystudy-x{attempt}", metadata=None))
    assert job is not None
    assert (job.study, job.attempt, job.owner) == ("x", 1, "")


# The same name again


def test_a_running_study_is_not_submitted_twice(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(cluster)
    capsys.readouterr()
    for flags in ([], ["--resume"]):
        said = [f"the study 'good' is running on {cluster.url} already"]
        assert_one_line(["submit", "study.yaml", "--address", cluster.url, *flags], said, capsys, code=2)
    cluster.rows["raystudy-good"]["status"] = "PENDING"
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], ["the study 'good' is queued"], capsys, code=2)
    assert len(cluster.bodies) == 1


@pytest.mark.parametrize("code", [0, 1, 130, None])
def test_the_name_of_a_study_that_has_ended_is_taken_unless_it_is_to_be_resumed(
    code: int | None, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(cluster)
    capsys.readouterr()
    cluster.end(cluster.rows["raystudy-good"], code, BEGUN)
    said = ["there is a study 'good'", "`raystudy resume good` continues it", "--resume", "--name"]
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], said, capsys, code=2)
    body = submitted(cluster, "--resume")
    assert body["submission_id"] == "raystudy-good~2"
    assert body["entrypoint"].startswith("exec raystudy run - --events --resume <<")


@pytest.mark.parametrize("code", [2, 3])
def test_a_driver_that_refused_does_not_take_the_name(code: int, cluster: FakeDashboard) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good", status="FAILED", driver_exit_code=code)
    body = submitted(cluster)
    assert body["submission_id"] == "raystudy-good~2"
    assert "--resume" not in body["entrypoint"]


def test_two_who_submit_the_same_name_at_the_same_moment_do_not_both_get_it(
    cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good", status="RUNNING")
    monkeypatch.setattr(jobs.Jobs, "all", lambda _: [])  # the other one came after this was asked
    said = [f"the cluster at {cluster.url} has a job raystudy-good already"]
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], said, capsys, code=2)


def test_drivers_of_a_study_are_numbered(cluster: FakeDashboard) -> None:
    submitted(cluster)
    for attempt in (2, 3, 10):
        cluster.end(list(cluster.rows.values())[-1], 130, BEGUN)
        if attempt == 10:
            cluster.rows["raystudy-good~9"] = job_row("raystudy-good~9", status="STOPPED", start_time=0)
        assert call("resume", "good", "--address", cluster.url) == 0
        assert cluster.bodies[-1]["submission_id"] == f"raystudy-good~{attempt}"
    assert Cluster(cluster.url).driver("good").attempt == 10


# Resume, stop, state


def test_resume_submits_a_driver_that_continues_with_the_changes(cluster: FakeDashboard) -> None:
    arguments = ["resume", "good", "--set", "budget.trials=9", "--set", "budget.hours=0.5"]
    assert call(*arguments, "--address", cluster.url) == 0  # this cluster's jobs are forgotten when its head dies
    (body,) = cluster.bodies
    command = ["exec", "raystudy", "resume", "good", "--events", "--set", "budget.trials=9", "--set", "budget.hours=0.5"]
    assert shlex.split(body["entrypoint"]) == command
    assert body["submission_id"] == "raystudy-good"
    assert "RAYSTUDY_STUDY" not in body["runtime_env"]["env_vars"]


def test_a_running_study_is_not_resumed(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good", status="RUNNING")
    assert_one_line(["resume", "good", "--address", cluster.url], ["'good' is running"], capsys, code=2)
    assert cluster.bodies == []


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_stop_asks_the_last_driver_to_end(status: str, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good", status="STOPPED")
    cluster.rows["raystudy-good~2"] = job_row("raystudy-good~2", status=status, start_time=1_700_000_000_001)
    cluster.rows["raystudy-other"] = job_row("raystudy-other", status="RUNNING")
    assert call("stop", "good", "--address", cluster.url) == 0
    assert cluster.stopped == ["raystudy-good~2"]
    assert "`raystudy resume good`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has never run a study 'good'"),
        ([job_row("raystudy-good2", status="RUNNING")], "has never run a study 'good'"),
        ([job_row("raystudy-good", status="SUCCEEDED", driver_exit_code=0)], "nobody is running the study 'good'"),
        ([job_row("raystudy-good", status="FAILED", driver_exit_code=2)], "has never run a study 'good'"),
    ],
)
def test_what_does_not_run_cannot_be_stopped(
    rows: list[Row], said: str, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows = {row["submission_id"]: row for row in rows}
    assert_one_line(["stop", "good", "--address", cluster.url], [said, cluster.url], capsys)
    assert cluster.stopped == []


def test_a_stop_that_does_not_get_through_is_not_reported_as_done(
    cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good", status="RUNNING")
    answer = cluster._answer
    failed = 500, "Traceback\nRuntimeError: no agent"
    monkeypatch.setattr(cluster, "_answer", lambda method, path: failed if path.endswith("stop") else answer(method, path))
    assert_one_line(["stop", "good", "--address", cluster.url], ["did not stop", "RuntimeError: no agent"], capsys)


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ([], None),
        ([("PENDING", None)], StudyState.QUEUED),
        ([("RUNNING", None)], StudyState.RUNNING),
        ([("SUCCEEDED", 0)], StudyState.INTERRUPTED),  # what it came to is in MLflow
        ([("FAILED", 1)], StudyState.INTERRUPTED),
        ([("STOPPED", None)], StudyState.INTERRUPTED),
        ([("FAILED", 2)], None),
        ([("FAILED", None), ("FAILED", 3)], StudyState.INTERRUPTED),
        ([("FAILED", None), ("RUNNING", None), ("FAILED", 2)], StudyState.RUNNING),
        ([("STOPPED", None), ("PENDING", None)], StudyState.QUEUED),
    ],
)
def test_the_state_is_that_of_the_last_driver_that_was_not_refused(
    rows: list[tuple[str, int | None]], state: StudyState | None, cluster: FakeDashboard
) -> None:
    for number, (status, code) in enumerate(rows, 1):
        job_id = "raystudy-good" + (f"~{number}" if number > 1 else "")
        cluster.rows[job_id] = job_row(job_id, status=status, driver_exit_code=code, start_time=number)
    assert Cluster(cluster.url).state("good") is state


@pytest.mark.parametrize(
    ("status", "words"),
    [("PENDING", "good waits for a place"), ("RUNNING", "good is starting"), ("STOPPED", "good ended before it began")],
)
def test_status_of_a_study_that_only_its_driver_knows(
    status: str, words: str, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good", status=status)
    assert call("status", "good", "--address", cluster.url) == 0
    assert capsys.readouterr().out == f"{words}\n"
    assert call("status", "good", "--address", cluster.url, "--json") == 0
    state = {"PENDING": "queued", "RUNNING": "running"}.get(status, "interrupted")
    assert json.loads(capsys.readouterr().out) == {"name": "good", "state": state}


def test_status_of_a_study_that_nobody_knows_exits_with_3(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(["status", "good", "--address", cluster.url], ["there are no studies yet"], capsys)


# The driver's verdict


@pytest.mark.parametrize(
    ("code", "printed", "expected", "said"),
    [
        (
            2,
            "Reading images\nerror: data.source: /data: nothing there\n",
            2,
            "on the cluster: data.source: /data: nothing there",
        ),
        (3, "error: the tracking server does not answer\n", 3, "on the cluster: the tracking server does not answer"),
        (1, "unexpected OSError: no luck\n", 1, "on the cluster: unexpected OSError: no luck"),
        (130, "error: interrupted\n", 130, "on the cluster: interrupted"),
        (137, "\n", 1, "on the cluster: Job entrypoint command ended"),
        (None, "", 1, "on the cluster: Job entrypoint command ended"),
    ],
)
def test_why_a_driver_refused_is_said_with_its_exit_code(
    code: int | None, printed: str, expected: int, said: str, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(row: Row) -> None:
        cluster.end(row, code, printed)
        row["status"] = "FAILED"

    cluster.on_submit = refuse
    assert call("submit", "study.yaml", "--address", cluster.url) == expected
    assert capsys.readouterr() == ("", f"error: {said}\n")


def test_every_problem_that_a_driver_names_is_passed_on(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    printed = "noise\nerror: standard input: 2 problems\n  data.source: gone\n  backbone: no such file\n"
    cluster.on_submit = lambda row: cluster.end(row, 2, printed)
    assert call("submit", "study.yaml", "--address", cluster.url) == 2
    err = capsys.readouterr().err
    assert err == "error: on the cluster: standard input: 2 problems\n  data.source: gone\n  backbone: no such file\n"


def test_a_driver_that_was_stopped_in_the_queue_says_so(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.on_submit = lambda row: row.update(status="STOPPED", message="")
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], ["its driver ended as STOPPED"], capsys, code=1)


def test_a_study_that_was_over_before_anybody_looked_was_accepted(cluster: FakeDashboard) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 0, STUDY_LOG)
    assert Cluster(cluster.url).submit(SPEC).state == "running"


def test_a_driver_without_a_place_is_queued(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.on_submit = lambda _: None
    submitted(cluster)
    assert capsys.readouterr().out.startswith(f"good waits for a place on {cluster.url}")
    assert not any(path.endswith("/logs") for _, path, *_ in cluster.requests)


def test_a_driver_that_takes_long_to_read_its_images_is_starting(
    cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "_ACCEPT_S", 0.05)
    cluster.on_submit = lambda row: cluster.run(row, "Reading images from folder:/data\n")
    submitted(cluster)
    assert capsys.readouterr().out.startswith(f"good is starting on {cluster.url}")


def test_the_verdict_is_waited_for_while_the_driver_gets_ready(cluster: FakeDashboard) -> None:
    looks: list[Row] = []

    def progress(row: Row) -> None:
        looks.append(row)
        if len(looks) == 3:
            cluster.run(row, "Reading images\n")
        if len(looks) == 6:
            cluster.run(row, f"Reading images\n{BEGUN}")

    cluster.on_get = progress
    cluster.on_submit = lambda _: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "_QUEUED_S", 600.0)
        assert Cluster(cluster.url).submit(SPEC).state == "running"
    assert len(looks) >= 6


@pytest.mark.parametrize("after", [0, 1])
def test_a_job_that_the_cluster_loses_is_one_line(
    after: int, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(row: Row) -> None:
        cluster.rows.pop(row["submission_id"], None)

    if after:
        cluster.on_submit, cluster.on_get = lambda _: None, lose
    else:
        cluster.on_submit = lose
    said = ["has lost the job raystudy-good"] if after else ["took the job raystudy-good and does not know it any more"]
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], said, capsys)


def test_a_cluster_that_refuses_the_job_says_why_in_one_line(
    cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_submitted", lambda _: (500, "Traceback (most recent call last):\n  x\nValueError: full"))
    assert_one_line(["submit", "study.yaml", "--address", cluster.url], ["refuses the job (500: ValueError: full)"], capsys)


# Commands that run on the head


def commanded(body: Row) -> list[str]:
    return shlex.split(body["entrypoint"].partition(" <<END_OF_STUDY")[0])


def test_a_dry_run_prints_the_plan_of_the_cluster_and_leaves_the_name_free(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 0, "the plan\nis this\n")
    submitted(cluster, "--dry-run")
    assert capsys.readouterr() == ("the plan\nis this\n", "")
    (body,) = cluster.bodies
    assert commanded(body) == ["exec", "raystudy", "validate", "-"]
    assert parse_yaml(body["runtime_env"]["env_vars"]["RAYSTUDY_STUDY"], where="body")["name"] == "good"
    assert Cluster(cluster.url).state("good") is None
    assert Cluster(cluster.url).jobs.all() == []


def test_a_dry_run_as_json_prints_the_clusters_document(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 0, '{"trials": 4}\n')
    assert commanded(submitted(cluster, "--dry-run", "--json"))[-1] == "--json"
    assert json.loads(capsys.readouterr().out) == {"trials": 4}


def test_a_dry_run_ends_with_what_the_cluster_has_against_the_study(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 2, "error: data.source: nothing there\n")
    said = ["on the cluster: data.source: nothing there"]
    assert_one_line(["submit", "study.yaml", "--dry-run", "--address", cluster.url], said, capsys, code=2)


def test_a_trials_log_is_fetched_by_the_head_whatever_it_is_called(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 0, "epoch 1\nepoch 2\n")
    assert call("logs", "good", "t0; rm -rf ~", "--address", cluster.url) == 0
    assert capsys.readouterr().out == "epoch 1\nepoch 2\n"
    assert commanded(cluster.bodies[0]) == ["exec", "raystudy", "logs", "good", "t0; rm -rf ~"]


def test_a_trial_that_has_no_log_exits_with_3(cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 3, "error: the study 'good' has no log of a trial 't9'\n")
    assert_one_line(["logs", "good", "t9", "--address", cluster.url], ["no log of a trial 't9'"], capsys)


@pytest.mark.parametrize("code", [0, 1])
def test_verify_runs_where_the_journal_is_and_keeps_its_exit_code(
    code: int, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.on_submit = lambda row: cluster.end(row, code, "2 runs\n")
    assert call("verify", "good", "--repair", "--json", "--address", cluster.url) == code
    assert capsys.readouterr().out == "2 runs\n"
    assert commanded(cluster.bodies[0]) == ["exec", "raystudy", "verify", "good", "--repair", "--json"]


# Logs


def test_a_studys_log_is_its_events_in_words_and_whatever_else_its_driver_said(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good")
    cluster.end(cluster.rows["raystudy-good"], 0, f"Reading images\n{STUDY_LOG}warning: no luck\n")
    assert call("logs", "good", "--address", cluster.url) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Reading images", *map(event_line, EVENTS), "warning: no luck"]


@pytest.mark.parametrize("study_file", ["", "name: x\n"])
@pytest.mark.parametrize("printed", ["", "one\ntwo\n", "one\nEND_OF_STUDY\ntwo\n"])
def test_what_ray_prints_before_a_job_is_no_part_of_its_log(study_file: str, printed: str, cluster: FakeDashboard) -> None:
    cluster.on_submit = lambda row: cluster.run(row, printed)
    found = Cluster(cluster.url).jobs
    job = found.submit("x", ["run", "-"], study_file=study_file)
    assert found.log(job.job_id) == printed


def test_a_job_that_was_never_started_has_no_log_and_one_that_ray_could_not_start_has_rays_words(
    cluster: FakeDashboard,
) -> None:
    cluster.rows["raystudy-x"] = job_row("raystudy-x")
    found = Cluster(cluster.url).jobs
    assert found.log("raystudy-x") == ""
    assert found.log("raystudy-unknown") == ""
    cluster.logs["raystudy-x"] = "the environment could not be set up\n"
    assert found.log("raystudy-x") == "the environment could not be set up\n"


# Following


@pytest.fixture
def tailed(monkeypatch: pytest.MonkeyPatch, cluster: FakeDashboard) -> list[str]:
    """Stand for Ray's web socket: what the job has printed, in pieces that end anywhere."""
    followed: list[str] = []

    def tail(address: str, job_id: str) -> Iterator[str]:
        assert address == cluster.url
        followed.append(job_id)
        text = cluster.logs[job_id]
        yield from (text[start : start + 1000] for start in range(0, len(text), 1000))

    monkeypatch.setattr("raystudy.cluster.tail.tail", tail)
    return followed


def test_a_followed_study_is_shown_to_its_end(
    cluster: FakeDashboard, tailed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.on_submit = lambda row: cluster.end(row, 0, STUDY_LOG)
    submitted(cluster, "--follow")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-len(EVENTS) :] == [event_line(event) for event in EVENTS]
    assert tailed == ["raystudy-good"]


def test_a_study_that_waits_is_followed_when_it_has_its_place(
    cluster: FakeDashboard, tailed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[Row] = []

    def progress(row: Row) -> None:
        looks.append(row)
        if len(looks) == 3:
            cluster.end(row, 0, STUDY_LOG)

    cluster.rows["raystudy-good"] = job_row("raystudy-good")
    cluster.on_get = progress
    assert call("watch", "good", "--address", cluster.url) == 0
    assert capsys.readouterr().out.splitlines() == [event_line(event) for event in EVENTS]
    assert tailed == ["raystudy-good"]


def test_what_a_queued_driver_has_against_the_study_reaches_whoever_follows(
    cluster: FakeDashboard, tailed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good")
    cluster.on_get = lambda row: cluster.end(row, 2, "error: data.source: nothing there\n")
    said = ["on the cluster: data.source: nothing there"]
    assert_one_line(["watch", "good", "--address", cluster.url], said, capsys, code=2)
    assert tailed == ["raystudy-good"]


def test_a_job_that_is_lost_while_it_waits_is_not_waited_for_any_more(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good")
    cluster.on_get = lambda _: cluster.rows.clear()
    assert_one_line(["watch", "good", "--address", cluster.url], ["has lost the job raystudy-good"], capsys)


@pytest.mark.parametrize("n_events", [1, len(EVENTS) - 1])
@pytest.mark.usefixtures("tailed")
def test_a_driver_that_dies_is_said_to_be_gone(
    n_events: int, cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rows["raystudy-good"] = job_row("raystudy-good")
    cluster.end(cluster.rows["raystudy-good"], 137, "".join(event_to_text(event) + "\n" for event in EVENTS[:n_events]))
    assert call("watch", "good", "--address", cluster.url) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "the driver of good is gone; `raystudy resume good` continues it"


def test_ctrl_c_detaches_and_stops_nothing(
    cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(address: str, job_id: str) -> Iterator[str]:  # noqa: ARG001
        yield BEGUN
        raise KeyboardInterrupt

    monkeypatch.setattr("raystudy.cluster.tail.tail", interrupted)
    submitted(cluster, "--follow")
    out, err = capsys.readouterr()
    assert event_line(EVENTS[0]) in out
    assert err == "detached; the study goes on: `raystudy watch good` comes back, `raystudy stop good` ends it\n"
    assert cluster.stopped == []


def test_a_connection_that_breaks_while_following_exits_with_3(
    cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(address: str, job_id: str) -> Iterator[str]:
        yield BEGUN
        raise UnreachableError(f"the connection to {address} broke; {job_id} goes on there")

    monkeypatch.setattr("raystudy.cluster.tail.tail", broken)
    assert call("submit", "study.yaml", "--follow", "--address", cluster.url) == 3
    assert capsys.readouterr().err == f"error: the connection to {cluster.url} broke; raystudy-good goes on there\n"


# From Python


def test_submit_returns_at_once_and_the_state_is_that_of_the_driver(cluster: FakeDashboard) -> None:
    cluster.on_submit = lambda _: None
    study = submit_study(SPEC, cluster.url)
    seen = [study.state]
    assert (study.name, study.is_recorded) == ("good", False)
    assert cluster.bodies[0]["submission_id"] == "raystudy-good"
    assert not any(path.endswith("/logs") for _, path, *_ in cluster.requests)
    cluster.run(cluster.rows["raystudy-good"])
    seen.append(study.state)
    study.stop()
    assert cluster.stopped == ["raystudy-good"]
    cluster.end(cluster.rows["raystudy-good"], 130, BEGUN)
    seen.append(study.wait())
    assert seen == [StudyState.QUEUED, StudyState.RUNNING, StudyState.INTERRUPTED]
    cluster.on_submit = lambda row: cluster.run(row, BEGUN)
    study.resume()
    assert cluster.bodies[-1]["submission_id"] == "raystudy-good~2"
    with pytest.raises(StudyBusyError):
        study.resume()


def test_submit_takes_the_name_of_a_study_once(cluster: FakeDashboard) -> None:
    submit_study(SPEC, cluster.url)
    with pytest.raises(StudyBusyError, match="'good' is running"):
        submit_study(SPEC, cluster.url)
    cluster.end(cluster.rows["raystudy-good"], 0, BEGUN)
    with pytest.raises(StudyBusyError, match="there is a study 'good'"):
        submit_study(SPEC, cluster.url)
    submit_study(SPEC, cluster.url, resume=True)
    assert "--resume" in cluster.bodies[-1]["entrypoint"]


def test_submit_checks_the_study_and_needs_an_address(monkeypatch: pytest.MonkeyPatch, cluster: FakeDashboard) -> None:
    with pytest.raises(InputError, match="no cluster is named"):
        submit_study(SPEC)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.url)
    with pytest.raises(SpecError, match="which the cluster cannot see"):
        submit_study(StudySpec.from_dict({**GOOD, "data": {"source": "folder:images"}}))
    assert cluster.requests == []
    submit_study(SPEC)
    assert len(cluster.bodies) == 1


def test_a_study_that_the_cluster_does_not_know_cannot_be_stopped(cluster: FakeDashboard) -> None:
    study = submit_study(SPEC, cluster.url)
    cluster.rows.clear()
    with pytest.raises(NotFoundError, match="has never run a study 'good'"):
        study.stop()


# The list


def study_row(name: str, state: StudyState, *, day: int = 1) -> StudyRow:
    started = datetime(2026, 11, day, tzinfo=UTC)
    return StudyRow(name, state, {"completed": 3}, 9, "val_accuracy", 0.5, started, None, "1", "r1", "ada", 1.5)


def study_job(name: str, status: str, *, day: int = 1) -> StudyJob:
    milliseconds = datetime(2026, 11, day, tzinfo=UTC).timestamp() * 1000
    job = StudyJob.of(job_row(f"raystudy-{name}", status=status, start_time=milliseconds))
    assert job is not None
    return job


@pytest.mark.parametrize(
    ("recorded", "status", "shown"),
    [
        ("running", "RUNNING", "running"),
        ("running", "PENDING", "queued"),
        ("running", "FAILED", "interrupted"),
        ("running", "STOPPED", "interrupted"),
        ("running", None, "interrupted"),
        ("interrupted", "PENDING", "queued"),
        ("completed", "PENDING", "queued"),
        ("completed", "SUCCEEDED", "completed"),
        ("completed", None, "completed"),
        ("failed", "FAILED", "failed"),
        ("interrupted", "STOPPED", "interrupted"),
    ],
)
def test_the_list_corrects_what_a_driver_could_not_say(recorded: str, status: str | None, shown: str) -> None:
    drivers = {} if status is None else {"x": study_job("x", status)}
    (row,) = board.with_drivers([study_row("x", StudyState(recorded))], drivers)
    assert row == study_row("x", StudyState(shown))


@pytest.mark.parametrize(("status", "state"), [("PENDING", StudyState.QUEUED), ("RUNNING", StudyState.RUNNING)])
def test_the_list_has_studies_that_mlflow_does_not_know_yet(status: str, state: StudyState) -> None:
    rows = [study_row("old", StudyState.COMPLETED, day=1), study_row("new", StudyState.COMPLETED, day=9)]
    drivers = {"waiting": study_job("waiting", status, day=5), "gone": study_job("gone", "FAILED", day=6)}
    merged = board.with_drivers(rows, drivers)
    assert [row.name for row in merged] == ["new", "waiting", "old"]
    assert (merged[1].state, merged[1].owner, merged[1].best) == (state, "ada", None)
    assert merged[1].to_dict()["started"] == "2026-11-05T00:00:00+00:00"


def test_the_list_of_a_cluster_takes_one_request_for_the_drivers_of_all_studies(
    cluster: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(50):
        cluster.rows[f"raystudy-s{number}"] = job_row(f"raystudy-s{number}", start_time=number)
    cluster.rows["raystudy-refused"] = job_row("raystudy-refused", status="FAILED", driver_exit_code=2)
    cluster.rows["raysubmit_1"] = job_row("raysubmit_1", status="RUNNING")
    assert call("list", "--address", cluster.url, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == [f"s{number}" for number in reversed(range(50))]
    assert {row["state"] for row in found} == {"queued"}
    assert [path for _, path, *_ in cluster.requests] == ["/api/version", "/api/jobs/"]


def test_of_several_drivers_of_a_study_the_last_one_counts(cluster: FakeDashboard) -> None:
    for attempt, (status, code) in {1: ("STOPPED", None), 2: ("RUNNING", None), 3: ("FAILED", 3)}.items():
        job_id = "raystudy-x" + (f"~{attempt}" if attempt > 1 else "")
        cluster.rows[job_id] = job_row(job_id, status=status, driver_exit_code=code, start_time=-attempt)
    (driver,) = Cluster(cluster.url).jobs.drivers().values()
    assert (driver.job_id, driver.attempt, driver.is_active) == ("raystudy-x~2", 2, True)


def test_the_dashboard_module_imports_neither_ray_nor_mlflow() -> None:
    code = "import sys, raystudy.cluster.service; sys.exit(bool({'mlflow', 'torch', 'ray', 'optuna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert dashboard.ADDRESS_VARIABLE == "RAY_API_SERVER_ADDRESS"
