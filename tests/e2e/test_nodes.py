"""Machines of a cluster that die under their trials: the trials go on elsewhere, and it is not counted against them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from toys import Mishap, ToyTrainer, conduct, direct, table, toy_spec
from waiting import wait_until

from raystudy.records import Event, StudyState, TrialRetried, TrialState
from raystudy.search.capacity import Slots
from raystudy.search.director import Director
from raystudy.search.tune import run_on_tune

pytestmark = pytest.mark.slow

SPEC = toy_spec(budget={"trials": 4, "epochs": 4}, early_stopping="none")
ALONE = Slots(1, 0, concurrent=1, retries=0)
STORE = 80_000_000
QUICK_TO_NOTICE = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""Ray takes half a minute to call a silent node dead; here three seconds must do."""


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """Give a cluster whose head runs no trials, with this process connected to it."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of sockets must be short
    arguments = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**arguments, "_system_config": QUICK_TO_NOTICE})
    path = str(Path(__file__).parents[1])
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """Give the cluster without any other node; those that a test adds end with it."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


def add_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=STORE)


def when_held(cluster: Cluster, trainer: ToyTrainer, trial_id: str, act: Callable[[Any], None]) -> Future[None]:
    """Do something to the node that a trial is held on, as soon as it is."""
    place = trainer.checkpoint(trial_id).with_name("node")

    def wait_and_act() -> None:
        wait_until(place.exists, f"{trial_id} to be held")
        act(next(node for node in cluster.list_all_nodes() if node.node_id == place.read_text()))

    return ThreadPoolExecutor(1).submit(wait_and_act)


def retries(events: list[Event]) -> list[TrialRetried]:
    return [event for event in events if isinstance(event, TrialRetried)]


def reasons(director: Director) -> dict[str, str]:
    """Return why trials ended as they did, for when they should not have."""
    return {trial.trial_id: trial.reason for trial in director.record.trials.values()}


@pytest.mark.parametrize("notice", [False, True], ids=["without notice", "shut down"])
def test_a_trial_whose_node_dies_goes_on_elsewhere_from_its_checkpoint(cluster: Cluster, tmp_path: Path, notice: bool) -> None:
    for _ in range(2):
        add_node(cluster)
    trainer = ToyTrainer(4, {1: "hold_once"}, at_epoch=3, folder=tmp_path)
    director, events = direct(SPEC)
    done = when_held(cluster, trainer, "t0001", lambda node: cluster.remove_node(node, allow_graceful=notice))
    state = run_on_tune(director, trainer, ALONE)
    done.result()

    assert state is StudyState.COMPLETED
    assert [event.trial_id for event in retries(events)] == ["t0001"]
    assert "its node" in retries(events)[0].reason
    trial = director.record.trials["t0001"]
    assert (trial.state, trial.retries) == (TrialState.COMPLETED, 1)
    undisturbed, _ = conduct(SPEC, ToyTrainer(4))
    assert table(director.record) == table(undisturbed.record)
    reported = [
        event.to_json()["epoch"] for event in events if event.kind == "reported" and event.to_json()["trial_id"] == "t0001"
    ]
    assert reported == [1, 2, 3, 4]


def test_a_process_that_dies_shortly_before_its_node_is_the_nodes_fault(cluster: Cluster, tmp_path: Path) -> None:
    for _ in range(2):
        add_node(cluster)
    trainer = ToyTrainer(4, {1: "hold_once"}, at_epoch=3, folder=tmp_path)
    director, events = direct(SPEC)

    def shut_down(node: Any) -> None:
        for pid in workers(node):
            os.kill(pid, 9)
        time.sleep(0.5)
        cluster.remove_node(node, allow_graceful=False)

    done = when_held(cluster, trainer, "t0001", shut_down)
    assert run_on_tune(director, trainer, ALONE) is StudyState.COMPLETED
    done.result()
    assert director.record.counts() == {"completed": 4}, reasons(director)
    assert [event.trial_id for event in retries(events)] == ["t0001"]


def test_a_trial_on_a_node_with_notice_moves_after_its_epoch_and_repeats_none(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystudy.search.notices._LOOK_S", 0.0)  # it is asked at once: the toy's epochs take no time
    for _ in range(2):
        add_node(cluster)
    trainer = ToyTrainer(4, {1: "hold_once"}, at_epoch=3, folder=tmp_path)
    director, events = direct(SPEC)

    def give_notice(node: Any) -> None:
        from ray._private.worker import global_worker
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = global_worker.gcs_client.drain_node(
            node.node_id, reason, "spot notice", int(time.time() * 1000) + 120_000
        )
        assert accepted, why
        trainer.checkpoint("t0001").with_name("release").touch()

    done = when_held(cluster, trainer, "t0001", give_notice)
    assert run_on_tune(director, trainer, ALONE) is StudyState.COMPLETED
    done.result()
    (retry,) = retries(events)
    assert retry.trial_id == "t0001"
    assert "is about to be taken away" in retry.reason
    assert director.record.counts() == {"completed": 4}, reasons(director)
    undisturbed, _ = conduct(SPEC, ToyTrainer(4))
    assert table(director.record) == table(undisturbed.record)


def workers(node: Any) -> list[int]:
    """Return the processes that the node started."""
    import psutil

    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [
        child.pid for child in raylet.children(recursive=True) if "ray::" in child.name() or "ray::" in "".join(child.cmdline())
    ]


def test_a_process_that_dies_on_a_healthy_node_counts(cluster: Cluster, tmp_path: Path) -> None:
    add_node(cluster)
    mishaps: dict[int, Mishap] = {1: "kill"}
    director, events = direct(SPEC)
    assert run_on_tune(director, ToyTrainer(4, mishaps, folder=tmp_path), ALONE) is StudyState.COMPLETED
    assert director.record.counts() == {"completed": 3, "failed": 1}
    assert director.record.trials["t0001"].reason.startswith("its process died: SYSTEM_ERROR")
    assert retries(events) == []


def test_a_process_that_dies_between_two_trials_is_neither_ones_fault(cluster: Cluster, tmp_path: Path) -> None:
    add_node(cluster)
    director, events = direct(SPEC)
    trainer = ToyTrainer(4, {1: "kill_at_close"}, folder=tmp_path)
    assert run_on_tune(director, trainer, ALONE) is StudyState.COMPLETED
    assert director.record.counts() == {"completed": 4}, reasons(director)
    assert {event.trial_id for event in retries(events)} <= {"t0002"}  # Tune may also have put the process away before


class Elsewhere(ToyTrainer):
    """A trainer of a module that the workers do not have, as where a package is missing there."""

    __module__ = "here_only"


@pytest.mark.parametrize("allowed", [0, 2])
def test_where_no_process_comes_up_the_study_fails_with_the_reason_and_can_be_resumed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    monkeypatch.setitem(sys.modules, "here_only", sys.modules[__name__])
    add_node(cluster)
    spec = toy_spec(budget={"trials": 50, "epochs": 4}, early_stopping="none")
    director, _ = direct(spec)
    assert run_on_tune(director, Elsewhere(4), Slots(1, 0, 1, retries=allowed)) is StudyState.FAILED
    assert director.record.reason.startswith("no trial can be started: ")
    assert director.record.reason.endswith("No module named 'here_only'")
    assert len(director.record.trials) <= 3
    assert director.record.count(TrialState.INTERRUPTED) == 1
