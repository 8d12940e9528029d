"""A day of a cluster on real hosts: studies from the laptop, hosts and drivers that die, the same answers as without."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from hosts import STORAGE, Hosts
from images import write_idx
from places import TIMES, Place

from raystudy.records import Event, Reported, StudyEnded, TrialRetried
from raystudy.tracking.journal import read_journal

pytestmark = pytest.mark.slow

STUDIES = f"{STORAGE}/raystudy/studies"
ONE_CPU_EACH = {"ray start --block --address=$RAY_HEAD_IP:6379": "ray start --block --num-cpus=1 --address=$RAY_HEAD_IP:6379"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if reason := Hosts.missing():
        pytest.skip(reason)
    with Hosts.start(folder=tmp_path / "hosts") as hosts:
        yield Cluster(hosts, changes=ONE_CPU_EACH)


IMAGES = {"n_classes": 4, "per_class": 240, "side": 8}
WRONG_PASSWORD = {"MLFLOW_TRACKING_USERNAME": "raystudy", "MLFLOW_TRACKING_PASSWORD": "wrong"}


class Laptop:
    """The client's host: study files, the real command line, and a look at the cluster's storage from outside."""

    def __init__(self, cluster: Cluster, place: Place) -> None:
        self.cluster, self.place = cluster, place

    def bring_images(self) -> None:
        write_idx(self.cluster.hosts.path("head", f"{STORAGE}/images"), **IMAGES)

    def study_file(self, name: str, seed: int, trials: int) -> str:
        # Epochs of a second or two: long enough to be in the middle of one.
        changes: dict[str, Any] = {
            "name": name,
            "search": {"sampler": "tpe", "seed": seed, "startup_trials": 3},
            "budget": {"trials": trials, "epochs": 4},
        }
        shutil.rmtree(self.place.folder.parent / "images", ignore_errors=True)
        write_idx(self.place.folder.parent / "images", **IMAGES)
        there = self.place.study_file(**changes, data={"source": f"idx:{STORAGE}/images"}).read_text()
        on_client = f"/root/{name}.yaml"
        self.cluster.hosts.path("client", on_client).write_text(there)
        self.place.study_file(**changes)  # the same one, for this machine
        return on_client

    def run_undisturbed(self, *names: str) -> None:
        """Run the studies here, without Ray, while the cluster does other things."""
        for name in names:
            self.place.call("run", str(self.place.folder / f"{name}.yaml"), "--inline")

    def call(self, *arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> str:
        done = self.cluster.client(["raystudy", *arguments], check=False, timeout=400, env=env)
        assert done.returncode == expect, (
            f"raystudy {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr if expect else done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.call(*arguments, "--json"))

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.json("list")}

    def events(self, name: str) -> list[Event]:
        journal = self.cluster.hosts.path("head", f"{STUDIES}/{name}/journal.jsonl")
        return list(read_journal(journal)) if journal.exists() else []

    def count(self, name: str, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events(name))

    def wait_for_events(self, name: str, kind: type[Event], count: int, seconds: float = 400) -> None:
        self.cluster.wait_for(lambda: self.count(name, kind) >= count, seconds, f"{count} {kind.__name__} of {name}")

    def table(self, name: str) -> list[dict[str, Any]]:
        rows = self.json("trials", name)
        return [{key: value for key, value in row.items() if key.removeprefix("best_") not in TIMES} for row in rows]


def test_a_day_of_a_cluster(cluster: Cluster, make_place: Callable[[str], Place], say: Callable[[str], None]) -> None:
    hosts = cluster.hosts
    laptop = Laptop(cluster, make_place("laptop"))
    # Alpha must still be running after all that happens before its driver is killed, on a fast machine too.
    files = {"alpha": laptop.study_file("alpha", seed=3, trials=16), "beta": laptop.study_file("beta", seed=11, trials=8)}
    cluster.up()
    laptop.bring_images()
    say("ray up")
    references = ThreadPoolExecutor(1).submit(laptop.run_undisturbed, *files)

    # What the cluster cannot see, and what is wrong with the way there, is said in a line; nothing is started.
    said = laptop.call("submit", files["alpha"], "--name", "blind", "--set", "data.source=folder:/root/pictures", expect=2)
    assert "/root/pictures: there is no such file or folder" in said
    assert "wants a token" in laptop.call("list", expect=3, env={"RAY_AUTH_MODE": "disabled"})
    assert "refuses the token" in laptop.call("list", expect=3, env={"RAY_AUTH_TOKEN": "0" * 64})
    assert "credentials" in laptop.call(
        "best", "alpha", expect=3, env={"MLFLOW_TRACKING_PASSWORD": "wrong", "MLFLOW_TRACKING_USERNAME": "raystudy"}
    )
    assert laptop.json("list") == []
    _assert_doors_are_shut(cluster)
    say("refusals")

    submitted = {name: laptop.json("submit", file) for name, file in files.items()}
    assert [answer["job_id"] for answer in submitted.values()] == ["raystudy-alpha", "raystudy-beta"]
    assert "is running on" in laptop.call("submit", files["alpha"], expect=2)
    follower = hosts.spawn("client", ["raystudy", "watch", "alpha"], env=cluster.environment)
    laptop.wait_for_events("alpha", Reported, 4)
    laptop.wait_for_events("beta", Reported, 2)
    say("two studies submitted, both report")

    # A host dies in mid-trial: its trial goes on elsewhere, and that is no failure of it.
    reports = [event for event in laptop.events("alpha") if isinstance(event, Reported)]
    unlucky = reports[-1].node
    hosts.poweroff(unlucky)
    say(f"{unlucky} powered off, with a trial of alpha")
    laptop.wait_for_events("alpha", TrialRetried, 1)
    laptop.call("stop", "beta")
    laptop.wait_for_events("beta", StudyEnded, 1)
    hosts.boot(unlucky)
    bystander = "sleep 100000"  # somebody else's process on that host
    hosts.spawn(unlucky, bystander.split())
    laptop.wait_for_events("alpha", Reported, len(reports) + 3)
    say("the trial goes on, beta is stopped")

    # The driver dies; whoever follows is told, and any client continues the study.
    drivers = "raystudy run - --events"
    cluster.wait_for(lambda: len(hosts.find("head", drivers)) == 1, 240, "beta's driver, which was told to stop, to end")
    assert len(hosts.kill("head", drivers, signal.SIGKILL)) == 1
    at = laptop.count("alpha", Reported)
    cluster.wait_for(lambda: follower.poll() is not None, 240, "the follower to end")
    out, _ = follower.communicate()
    assert follower.returncode == 130
    assert "the driver of alpha is gone; `raystudy resume alpha` continues it" in out
    assert laptop.states() == {"alpha": "interrupted", "beta": "interrupted"}
    laptop.call("resume", "alpha")
    laptop.wait_for_events("alpha", StudyEnded, 1)
    # Until MLflow has its end too: what the head's next death cuts off, only a resume would bring there.
    cluster.wait_for(lambda: laptop.states()["alpha"] == "completed", 240, "MLflow to have the end of alpha")
    cluster.wait_for_hosts("head", *cluster.workers)
    say(f"driver killed at report {at} of alpha's {laptop.count('alpha', Reported)}, alpha resumed to its end")

    # The head dies and comes back: its storage knows everything, and any client continues.
    laptop.call("resume", "beta")
    laptop.wait_for_events("beta", Reported, laptop.count("beta", Reported) + 2)
    hosts.poweroff("head")
    assert "no Ray dashboard answers at" in laptop.call("list", expect=3)
    assert "does not answer" in laptop.call("best", "beta", expect=3)
    before = laptop.events("beta")
    hosts.boot("head")
    cluster.up()
    assert laptop.states() == {"alpha": "completed", "beta": "interrupted"}
    laptop.call("resume", "beta")
    laptop.wait_for_events("beta", StudyEnded, 2)
    assert laptop.events("beta")[: len(before)] == before
    say("head powered off and on, beta resumed to its end")

    cluster.wait_for(lambda: set(laptop.states().values()) == {"completed"}, 240, "MLflow to be complete")
    (best,) = laptop.json("best", "alpha")
    assert best["state"] == "completed" or best["state"] == "pruned"
    rows = {row["name"]: row for row in laptop.json("list")}
    assert {row["owner"] for row in rows.values()} == {"root"}
    assert rows["alpha"]["best"] == pytest.approx(best["metrics"]["val_accuracy"])
    for name in files:
        assert laptop.json("verify", name)["ok"] is True
    assert "trial t0000" in laptop.call("logs", "beta", "t0000")
    say("best, list, verify, logs")

    # The same studies, never disturbed, on one machine without Ray.
    references.result()
    for name in files:
        assert laptop.table(name) == laptop.place.table(name)
    say("equal to the undisturbed runs")

    _assert_no_secret_is_left(cluster)
    cluster.down()
    cluster.wait_for(lambda: not cluster.processes(without=[bystander]), 240, "the last process to end")
    assert hosts.kill(unlucky, "^sleep 100000$"), "ray down ended what is not Ray's"
    say("ray down, no process left")


def _assert_doors_are_shut(cluster: Cluster) -> None:
    """Without the secrets nobody gets an answer, and the hosts keep them for their user."""
    jobs = f"{cluster.dashboard}/api/jobs/"
    assert [cluster.get(jobs, token=token)[0] for token in (None, "wrong", cluster.token)] == [401, 403, 200]
    assert cluster.get(f"{cluster.mlflow}/health")[0] == 200
    assert cluster.get(f"{cluster.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0")[0] == 401
    for host in ("head", *cluster.workers):
        secret = cluster.hosts.path(host, "/root/.ray/auth_token")
        assert (secret.read_text().strip(), secret.stat().st_mode & 0o777) == (cluster.token, 0o600)


def _assert_no_secret_is_left(cluster: Cluster) -> None:
    """No token and no password in MLflow's files, journals, logs, or what the dashboard tells of jobs."""
    hosts = cluster.hosts
    credentials = hosts.path("client", "/root/.mlflow/credentials").read_text()
    (password,) = re.findall(r"mlflow_tracking_password\s*=\s*(\S+)", credentials)
    secrets = [cluster.token.encode(), password.encode()]
    folders = [hosts.path("head", STORAGE), *(hosts.path(host, "/tmp/ray") for host in ("head", *cluster.workers))]
    searched = 0
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()):
        searched += 1
        data = file.read_bytes()
        assert not any(secret in data for secret in secrets), file
    assert searched > 50
    _, jobs = cluster.get(f"{cluster.dashboard}/api/jobs/", token=cluster.token)
    assert "raystudy-beta" in jobs
    assert not any(secret.decode() in jobs for secret in secrets)
