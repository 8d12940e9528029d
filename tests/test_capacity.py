"""How many trials fit on a cluster: on the nodes that it has, and on those that its autoscaler may start."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystudy.search import capacity
from raystudy.search.capacity import Slots, cluster_slots, fitting_trials

Node = Mapping[str, float]
HEAD: Node = {"CPU": 0.0, "memory": 1e9}
CPU_NODE: Node = {"CPU": 8.0, "memory": 1e9, "node:10.0.0.2": 1.0}
GPU_NODE: Node = {"CPU": 32.0, "GPU": 4.0, "accelerator_type:A10G": 1.0}


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Any:
    def have(nodes: list[Node], groups: list[tuple[Node, int]] | None = None) -> None:
        monkeypatch.setattr(capacity, "_nodes", lambda: nodes)
        monkeypatch.setattr(capacity, "_node_groups", lambda: iter(groups or []))

    return have


@pytest.mark.parametrize(
    ("node", "cpu", "gpu", "expected"),
    [
        (CPU_NODE, 1, 0.0, 8),
        (CPU_NODE, 3, 0.0, 2),
        (CPU_NODE, 9, 0.0, 0),
        (CPU_NODE, 1, 1.0, 0),
        (CPU_NODE, 1, 0.25, 0),
        (GPU_NODE, 1, 1.0, 4),
        (GPU_NODE, 1, 2.0, 2),
        (GPU_NODE, 1, 3.0, 1),
        (GPU_NODE, 1, 8.0, 0),
        (GPU_NODE, 1, 0.5, 8),
        (GPU_NODE, 1, 0.4, 8),  # two trials a GPU; what is left of several GPUs adds up to nothing
        (GPU_NODE, 1, 0.6, 4),
        (GPU_NODE, 16, 0.5, 2),
        (GPU_NODE, 4, 0.25, 8),
        (HEAD, 1, 0.0, 0),
        ({}, 1, 0.5, 0),
    ],
)
def test_trials_that_fit_on_a_node(node: Node, cpu: int, gpu: float, expected: int) -> None:
    assert capacity._fitting(node, cpu, gpu) == expected


@given(st.integers(1, 64), st.sampled_from([1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 80, 100, 10_000]))
def test_a_gpu_holds_as_many_trials_as_its_share_says(gpus: int, share: int) -> None:
    node = {"CPU": 1e9, "GPU": float(gpus)}
    assert capacity._fitting(node, 1, 1 / share) == gpus * share


@pytest.mark.parametrize(("gpu", "expected"), [(1 / 3, 3), (0.33, 3), (1 / 6, 5), (1 / 7, 6), (1e-300, 10_000)])
def test_shares_are_rounded_as_ray_does(gpu: float, expected: int) -> None:
    """To ten-thousandths: six times 0.1667 is more than one GPU."""
    assert capacity._fitting({"CPU": 1e9, "GPU": 1.0}, 1, gpu) == expected


@given(st.integers(0, 64), st.integers(0, 8), st.integers(1, 9), st.integers(0, 10_000) | st.integers(1, 9))
def test_what_fits_is_never_more_than_the_node_has(cpus: int, gpus: int, cpu: int, parts: int) -> None:
    gpu = parts / 10_000 if parts > 9 else float(parts)
    fit = capacity._fitting({"CPU": float(cpus), "GPU": float(gpus)}, cpu, gpu)
    assert fit * cpu <= cpus
    assert fit * gpu <= gpus * (1 + 1e-9)


def test_trials_of_all_nodes_add_up(machines: Any) -> None:
    machines([HEAD, CPU_NODE, CPU_NODE, GPU_NODE])
    assert fitting_trials(1, 0) == 8 + 8 + 32
    assert fitting_trials(5, 0) == 1 + 1 + 6
    assert fitting_trials(1, 1) == 4


def test_a_cluster_that_starts_its_nodes_when_they_are_needed_counts_at_its_largest(machines: Any) -> None:
    machines([HEAD], [(HEAD, 1), (GPU_NODE, 10), (CPU_NODE, 2)])
    assert fitting_trials(1, 1) == 40
    assert fitting_trials(8, 0) == 10 * 4 + 2


def test_nodes_beyond_what_the_autoscaler_may_start_count_too(machines: Any) -> None:
    machines([GPU_NODE, GPU_NODE, GPU_NODE], [(GPU_NODE, 2)])
    assert fitting_trials(1, 1) == 12


def test_a_trial_that_fits_nowhere_is_one_trial_so_that_it_can_fail_in_words(machines: Any) -> None:
    machines([CPU_NODE], [(CPU_NODE, 3)])
    assert fitting_trials(1, 1) == 1
    assert fitting_trials(99, 0) == 1


@pytest.mark.parametrize(
    ("nodes", "groups", "gpu"),
    [
        ([HEAD, CPU_NODE], [], 0.0),
        ([HEAD, GPU_NODE], [], 1.0),
        ([HEAD], [(GPU_NODE, 4)], 1.0),  # none yet
        ([HEAD], [(CPU_NODE, 4)], 0.0),
    ],
)
def test_auto_is_a_whole_gpu_where_there_are_or_may_be_any(
    nodes: list[Node], groups: list[tuple[Node, int]], gpu: float, machines: Any
) -> None:
    machines(nodes, groups)
    assert cluster_slots(1, "auto", "auto", 2).gpu == gpu


def test_auto_runs_as_many_trials_at_a_time_as_fit(machines: Any) -> None:
    machines([HEAD], [(GPU_NODE, 3)])
    assert cluster_slots(1, "auto", "auto", 2) == Slots(cpu=1, gpu=1.0, concurrent=12, retries=2)
    assert cluster_slots(1, 0.5, "auto", 0) == Slots(cpu=1, gpu=0.5, concurrent=24, retries=0)


def test_what_is_given_is_taken(machines: Any) -> None:
    machines([GPU_NODE])
    assert cluster_slots(2, 0, 3, 1) == Slots(cpu=2, gpu=0.0, concurrent=3, retries=1)


def config_of(*groups: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(get_cluster_config=lambda: SimpleNamespace(node_group_configs=groups)))


def test_node_groups_are_what_the_autoscaler_told_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    state = pytest.importorskip("ray._private.state")
    limited = SimpleNamespace(resources={"CPU": 4, "GPU": 1}, max_count=3)
    unlimited = SimpleNamespace(resources={"CPU": 2}, max_count=-1)
    monkeypatch.setattr(state, "state", config_of(limited, unlimited).state)
    groups = list(capacity._node_groups())
    assert groups[0] == ({"CPU": 4, "GPU": 1}, 3)
    assert groups[1][0] == {"CPU": 2}
    assert groups[1][1] > 1000
    monkeypatch.setattr(capacity, "_nodes", lambda: [HEAD])
    assert fitting_trials(1, 0) == 3 * 4 + groups[1][1] * 2


def test_a_cluster_without_an_autoscaler_has_no_node_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    state = pytest.importorskip("ray._private.state")
    monkeypatch.setattr(state, "state", SimpleNamespace(get_cluster_config=lambda: None))
    assert list(capacity._node_groups()) == []


def test_dead_nodes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": CPU_NODE}, {"Alive": False, "Resources": GPU_NODE}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert capacity._nodes() == [CPU_NODE]
