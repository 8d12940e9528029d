"""How many trials fit on the cluster that this process is connected to: on the nodes that it has, and on those it may start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray

_MANY_NODES = 10_000
"""Stands for a node group without a limit."""

_GPU_PARTS = 10_000
"""Ray counts shares of a GPU in these."""


@dataclass(frozen=True, slots=True)
class Slots:
    """What a trial gets and how many run at once.

    Attributes:
        cpu: CPUs per trial.
        gpu: GPUs (or a share of one) per trial.
        concurrent: trials at a time, at most.
        retries: times a trial is handed out again after its process died.
    """

    cpu: int
    gpu: float
    concurrent: int
    retries: int


def cluster_slots(cpu: int, gpu: float | str, concurrent: int | str, retries: int) -> Slots:
    """Turn `auto` into numbers by what the connected cluster has or can start.

    A trial gets a whole GPU where there are any; as many trials run at once as fit.
    """
    per_trial = (1.0 if _has_gpus() else 0.0) if gpu == "auto" else float(gpu)
    return Slots(cpu, per_trial, fitting_trials(cpu, per_trial) if concurrent == "auto" else int(concurrent), retries)


def fitting_trials(cpu: int, gpu: float) -> int:
    """Return how many trials fit on the cluster at its largest, at least 1."""
    now = sum(_fitting(node, cpu, gpu) for node in _nodes())
    later = sum(count * _fitting(node, cpu, gpu) for node, count in _node_groups())
    return max(1, now, later)


def _has_gpus() -> bool:
    return any(node.get("GPU", 0) for node in _nodes()) or any(node.get("GPU", 0) for node, _ in _node_groups())


def _fitting(node: Mapping[str, float], cpu: int, gpu: float) -> int:
    """Return how many trials fit on a node: a GPU is shared by whole trials only."""
    fit = int(node.get("CPU", 0) // cpu)
    if gpu:
        gpus = int(node.get("GPU", 0))
        fit = min(fit, int(gpus // gpu) if gpu >= 1 else gpus * (_GPU_PARTS // max(1, round(gpu * _GPU_PARTS))))
    return fit


def _nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _node_groups() -> Iterator[tuple[Mapping[str, float], int]]:
    """Yield the resources of each kind of node that the autoscaler may start, and how many of it."""
    from ray._private.state import state  # what Ray Data and Train look at for the same purpose; there is no public way

    config = state.get_cluster_config()
    for group in config.node_group_configs if config else ():
        yield dict(group.resources), _MANY_NODES if group.max_count < 0 else group.max_count
