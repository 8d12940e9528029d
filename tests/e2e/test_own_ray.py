"""The Ray that a study starts for itself has the processes that trials need, does all that trials need, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.node import Node
from waiting import wait_until

from raystudy import own_ray

UNNEEDED = {"start_api_server": "dashboard.py", "start_monitor": "monitor.py", "start_log_monitor": "log_monitor.py"}


@ray.remote
class Worker:
    """A process with an environment of its own, as Tune's trials have."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


def test_a_studys_own_ray_has_what_trials_need_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPORTER_UPDATE_INTERVAL_MS", raising=False)
    functions = {name: vars(Node)[name] for name in UNNEEDED}
    own_ray.start(3, log_to_driver=False, logging_level="ERROR")
    try:
        worker = Worker.options(runtime_env={"env_vars": {"OF_THE_TRIAL": "yes"}}).remote()  # type: ignore[attr-defined]
        assert ray.get(worker.environment.remote())["OF_THE_TRIAL"] == "yes"
        assert ray.cluster_resources()["CPU"] == 3
        # The first argument is an interpreter's script where a process is written in Python.
        names = {Path(word).name for process in psutil.Process().children(recursive=True) for word in process.cmdline()[:4]}
        assert {"raylet", "gcs_server"} <= names, "this test does not see Ray's processes"
        assert not names & set(UNNEEDED.values())
        log = Path(ray._private.worker._global_node.get_logs_dir_path(), "dashboard_agent.log")
        wait_until(log.is_file, "Ray's agent")
        assert "Get dashboard http address failed" not in log.read_text(encoding="utf-8")
    finally:
        ray.shutdown()
    assert {name: vars(Node)[name] for name in UNNEEDED} == functions
    assert "REPORTER_UPDATE_INTERVAL_MS" not in os.environ


def test_a_ray_that_starts_them_by_another_name_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class NewNode:
        def start_monitor(self) -> None:
            started.append("monitor")

        def start_watcher(self) -> None:
            started.append("watcher")

    def init(**_: object) -> None:
        NewNode().start_monitor()
        NewNode().start_watcher()

    monkeypatch.setattr("ray._private.node.Node", NewNode)
    monkeypatch.setattr("ray.init", init)
    own_ray.start(1)
    assert started == ["watcher"]
    NewNode().start_monitor()
    assert started == ["watcher", "monitor"]


def test_what_a_user_set_for_ray_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORTER_UPDATE_INTERVAL_MS", "1000")
    seen: list[str] = []
    monkeypatch.setattr("ray.init", lambda **_: seen.append(os.environ["REPORTER_UPDATE_INTERVAL_MS"]))
    own_ray.start(1)
    assert [*seen, os.environ["REPORTER_UPDATE_INTERVAL_MS"]] == ["1000", "1000"]
