from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from raystudy.search import deaths
from raystudy.search.deaths import examine

SEGFAULT = "x\npid: 7\nWorker exit type: SYSTEM_ERROR Worker exit detail: connection error. Some common causes include: (1) ..."


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Give the node on which every process is said to have run: a healthy one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = {
            "NodeID": "n1",
            "Alive": True,
            "NodeManagerHostname": "gpu-3",
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerPort": server.getsockname()[1],
        }
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "n0", "Alive": True}, known])
        monkeypatch.setattr(deaths, "_node_of", lambda _: "n1")
        monkeypatch.setattr(deaths, "_GRACE_S", 0.02)
        monkeypatch.setattr(deaths, "_GLANCE_S", 0.001)
        yield known


def test_a_process_that_dies_on_a_healthy_node_counts(node: dict[str, Any]) -> None:  # noqa: ARG001
    death = examine(RayActorError("a1", SEGFAULT), was_at_work=True)
    assert (death.reason, death.counts) == ("its process died: SYSTEM_ERROR: connection error.", True)
    assert not death.is_stillbirth


def test_a_node_that_is_taken_away_does_not_count(node: dict[str, Any]) -> None:
    node["Alive"] = False
    death = examine(RayActorError("a1", SEGFAULT, preempted=True), was_at_work=True)
    assert (death.reason, death.counts) == ("its node gpu-3 (127.0.0.1) was taken away (preempted)", False)


def test_a_node_that_ray_knows_to_be_dead_does_not_count(node: dict[str, Any]) -> None:
    node.update(Alive=False, DeathReasonMessage="health check failed")
    death = examine(ActorDiedError(), was_at_work=True)
    assert (death.reason, death.counts) == ("its node gpu-3 (127.0.0.1) died: health check failed", False)


def test_a_node_that_does_not_answer_does_not_count_though_ray_still_believes_in_it(node: dict[str, Any]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        node["NodeManagerPort"] = closed.getsockname()[1]
        death = examine(ActorUnavailableError("Socket closed", None), was_at_work=True)
    assert (death.reason, death.counts) == ("its node gpu-3 (127.0.0.1) does not answer any more", False)


def test_a_node_that_dies_a_moment_after_the_process_does_not_count(
    node: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deaths, "_GRACE_S", 60.0)
    asked: list[int] = []

    def nodes() -> list[dict[str, Any]]:
        asked.append(1)
        return [{**node, "Alive": len(asked) < 5}]

    monkeypatch.setattr(ray, "nodes", nodes)
    assert not examine(RayActorError("a1", SEGFAULT), was_at_work=True).counts


def test_the_memory_monitor_of_a_node_is_believed_at_once(node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(deaths, "_GRACE_S", 60.0)
    death = examine(RayActorError("a1", "the node was running low on memory"), was_at_work=True)
    assert death.reason.startswith("out of memory: ")
    assert death.counts


def test_a_process_that_never_came_up_says_why(node: dict[str, Any]) -> None:  # noqa: ARG001
    error = RayActorError("a1", "Traceback\n  File x\nImportError: no torch\n", actor_init_failed=True)
    death = examine(error, was_at_work=False)
    assert death.reason == "its process could not be started: ImportError: no torch"
    assert death.counts
    assert death.is_stillbirth


def test_a_process_that_died_between_two_trials_counts_for_neither(node: dict[str, Any]) -> None:  # noqa: ARG001
    death = examine(RayActorError("a1", SEGFAULT), was_at_work=False, was_handed_over=True)
    assert not death.counts
    assert not death.is_stillbirth
