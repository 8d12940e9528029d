"""The Ray that a study starts for itself has the processes that trials need, does all that trials need, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import services
from ray._private.node import Node
from waiting import wait_until

from raystudy import own_ray

UNNEEDED = {"dashboard.py", "agent.py", "ray::DashboardAgent", "monitor.py", "log_monitor.py"}
REPLACED = ("start_api_server", "start_monitor", "start_log_monitor", "start_raylet")


@ray.remote
class Worker:
    """A process with an environment of its own, as Tune's trials have."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


@pytest.fixture
def own() -> Iterator[None]:
    own_ray.start(3, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def programs() -> dict[str, psutil.Process]:
    """Return this process's descendants by program; those written in Python by script, or by the title that Ray gives them."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        program, *arguments = process.cmdline()
        script = next((word for word in arguments[:3] if word.endswith(".py")), "") if "python" in program else ""
        found[Path(script or program).name] = process
    return found


def functions() -> tuple[object, ...]:
    """Return those of Ray that are replaced while it starts."""
    return (*(vars(Node)[name] for name in REPLACED), services._build_python_executable_command_memory_profileable)


@pytest.mark.usefixtures("own")
def test_a_studys_own_ray_has_what_trials_need_and_nothing_else() -> None:
    worker = Worker.options(runtime_env={"env_vars": {"OF_THE_TRIAL": "yes"}}).remote()  # type: ignore[attr-defined]
    assert ray.get(worker.environment.remote())["OF_THE_TRIAL"] == "yes"
    assert ray.cluster_resources()["CPU"] == 3
    names = programs().keys()
    assert {"raylet", "gcs_server"} <= names, "this test does not see Ray's processes"
    assert not names & UNNEEDED


@pytest.mark.usefixtures("own")
def test_no_process_of_it_outlives_a_raylet_that_is_killed() -> None:
    ray.get(Worker.remote().environment.remote())  # type: ignore[attr-defined]
    raylet = programs()["raylet"]
    others = raylet.children(recursive=True)
    assert "sh" in [process.name() for process in others]
    raylet.kill()
    wait_until(lambda: not any(process.is_running() for process in others), "the raylet's processes to end")


def test_rays_own_functions_are_back_once_it_has_started() -> None:
    before = functions()
    own_ray.start(1, log_to_driver=False, logging_level="ERROR")
    ray.shutdown()
    assert functions() == before


def test_they_are_back_where_it_fails_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = functions()

    def fail(**_: object) -> None:
        assert not set(functions()) & set(before)
        raise RuntimeError("no room")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(RuntimeError, match="no room"):
        own_ray.start(1)
    assert functions() == before


@pytest.mark.parametrize(
    "name",
    [
        *(f"ray._private.node.Node.{name}" for name in REPLACED),
        "ray._private.services._build_python_executable_command_memory_profileable",
        "ray._raylet.persist_port",
        "ray._raylet.METRICS_AGENT_PORT_NAME",
    ],
)
def test_a_ray_that_lacks_one_of_them_starts_as_it_would(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(name)
    before = [vars(Node).get(name) for name in REPLACED]
    seen: list[object] = []
    monkeypatch.setattr("ray.init", lambda **_: seen.extend(vars(Node).get(name) for name in REPLACED))
    own_ray.start(1)
    assert seen == before
