"""How many trials fit on the cluster that this process is connected to: on the nodes that it has, and on those it may start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

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
        learns: whether `gpu` is a share that was worked out, and grows where trials run out of memory.
    """

    cpu: int
    gpu: float
    concurrent: int
    retries: int
    learns: bool = False


def cluster_slots(cpu: int, gpu: float | str, concurrent: int | str, retries: int) -> Slots:
    """Turn `auto` into numbers by what the connected cluster has or can start.

    A trial gets a whole GPU where there are any, until it is known how many fit (`packing`); as many trials run at once as fit.
    """
    per_trial = (1.0 if _has_gpus() else 0.0) if gpu == "auto" else float(gpu)
    return Slots(cpu, per_trial, fitting_trials(cpu, per_trial) if concurrent == "auto" else int(concurrent), retries)


def with_gpu(slots: Slots, gpu: float, concurrent: int | str, *, learns: bool = False) -> Slots:
    """Return the same with another share of a GPU for each trial, and so many at a time as fit with it (`auto`)."""
    at_a_time = fitting_trials(slots.cpu, gpu) if concurrent == "auto" else int(concurrent)
    return replace(slots, gpu=gpu, concurrent=at_a_time, learns=learns)


def most_per_gpu(cpu: int, trials: int) -> int:
    """Return how many trials it makes sense to put on a GPU, whatever they need of it; at least 1.

    No more than every node with GPUs has CPUs for: on one with fewer, some GPUs would be full and others empty. And no more
    than `trials` at a time come to when they are spread over all GPUs.
    """
    now = [(node, 1) for node in _nodes() if _fitting(node, cpu, 1)]
    later = [(node, count) for node, count in _node_groups() if _fitting(node, cpu, 1)]
    if not now and not later:
        return 1
    by_cpus = min(int(node["CPU"] // cpu // int(node["GPU"])) for node, _ in [*now, *later])
    gpus = max(sum(count * int(node["GPU"]) for node, count in nodes) for nodes in (now, later))
    return max(1, min(by_cpus, math.ceil(trials / gpus)))


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
