"""How fast a trial trains where it would run on the connected cluster: the probe, in a process that has what a trial gets."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from raystudy import paths
from raystudy.errors import InputError, OutOfMemory, RaystudyError
from raystudy.finetune.source_models import Sources
from raystudy.preflight import space_of
from raystudy.search import messages
from raystudy.search.capacity import Slots, cluster_slots, fitting_trials, most_per_gpu, with_gpu
from raystudy.search.packing import most_at_a_time, trials_per_gpu
from raystudy.spec import StudySpec

if TYPE_CHECKING:
    from raystudy.finetune.gpu_memory import GpuNeed
    from raystudy.finetune.probe import Probe

_START_TIMEOUT_S = 600.0
"""How long the cluster may take to start a node, or to have a place on one."""
_PATIENCE_S = 5.0
"""A process that has not come up by then waits for a place."""
_LISTEN_S = 0.5
_RETRIES = 2
"""Times the measurement is begun again because its node was taken away."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement on one node of the cluster, and how many trials fit on all.

    Attributes:
        probe: the measurement.
        node: the node's host name.
        cpu: CPUs per trial.
        gpu: GPUs (or a share of one) per trial.
        concurrent: trials that run at a time.
        abreast: as many as those together progress like, each at the measured speed: trials on one GPU share its speed.
    """

    probe: Probe
    node: str
    cpu: int
    gpu: float
    concurrent: int
    abreast: int


def probe_on_cluster(spec: StudySpec, say: Callable[[str], None], sources: Sources | None = None) -> Measured | None:
    """Measure a trial of the study on the cluster that this process is connected to.

    Args:
        spec: the study.
        say: is told of a wait.
        sources: the registered models among its backbones.

    Returns:
        The measurement; None if the cluster has had no place for it for ten minutes.

    Raises:
        InputError: the images cannot be read on the node.
        RaystudyError: whatever else went wrong there.
    """
    resources = spec.resources
    slots = cluster_slots(resources.cpu, resources.gpu, resources.concurrent, resources.retries)
    answer = _asked(_measure, spec, slots, say, sources=sources)
    if answer is None:
        return None
    probe, need, node = answer
    if need is not None:
        count = trials_per_gpu(need.need, need.total, most=most_per_gpu(slots.cpu, most_at_a_time(spec)))
        slots = with_gpu(slots, 1 / count, resources.concurrent)
    return Measured(
        probe, node, slots.cpu, slots.gpu, _at_a_time(spec, slots, slots.gpu), _at_a_time(spec, slots, max(slots.gpu, 1.0))
    )


def gpu_need_on_cluster(
    spec: StudySpec,
    slots: Slots,
    say: Callable[[str], None],
    stops: Callable[[], bool] = lambda: False,
    sources: Sources | None = None,
) -> GpuNeed | None:
    """Measure how much memory the study's largest trial needs, on a GPU of the cluster that this process is connected to.

    Args:
        spec: the study.
        slots: what the measurement gets; whole GPUs.
        say: is told of a wait.
        stops: whether to give up waiting.
        sources: the registered models among its backbones.

    Returns:
        The measurement; None if there was no place for it.

    Raises:
        InputError: the images cannot be read on the node.
        RaystudyError: whatever else went wrong there; `OutOfMemory` if the trial does not fit on a GPU.
    """
    need: GpuNeed | None = _asked(_measure_memory, spec, slots, say, stops, sources)
    return need


def _asked(
    what: Callable[[StudySpec, str, Sources], Any],
    spec: StudySpec,
    slots: Slots,
    say: Callable[[str], None],
    stops: Callable[[], bool] = lambda: False,
    sources: Sources | None = None,
) -> Any:
    """Run a measurement where a trial would run; return None if no place became free."""
    box = uuid.uuid4().hex
    # A process that has used a GPU keeps a part of its memory: it must not outlive the measurement.
    task = ray.remote(num_cpus=slots.cpu, num_gpus=slots.gpu, max_calls=1, max_retries=_RETRIES)(what)
    answer = task.remote(spec, box, dict(sources or {}))
    if not _is_answered(answer, box, slots, say, stops):
        ray.cancel(answer)
        return None
    return _result(answer)


def _at_a_time(spec: StudySpec, slots: Slots, gpu: float) -> int:
    """Return how many trials run at a time if each that uses a GPU gets `gpu`; asked only now that a node for them is there."""
    fit = fitting_trials(slots.cpu, gpu if slots.gpu else 0.0)
    return fit if spec.resources.concurrent == "auto" else min(int(spec.resources.concurrent), fit)


def _measure(spec: StudySpec, box: str, sources: Sources) -> tuple[Probe, GpuNeed | None, str]:
    """Measure on this node, with its own copy of the images; say in `box` that it has begun."""
    messages.send(box, "begun")
    from raystudy.data import open_data
    from raystudy.finetune.backbone import builder_with
    from raystudy.finetune.gpu_memory import measure_need
    from raystudy.finetune.probe import probe

    node = socket.gethostname()
    try:
        data, space, build = open_data(spec, paths.cache()), space_of(spec, sources), builder_with(sources)
        measured = probe(spec, space, data, backbone=build)
        need = None
        if spec.resources.gpu == "auto" and measured.gpus:
            with suppress(OutOfMemory):  # a GPU for each trial, then
                need = measure_need(spec, space, data, backbone=build)
    except InputError as error:
        raise type(error)(error.problems, title=f"on the cluster's node {node}") from error
    return measured, need, node


def _measure_memory(spec: StudySpec, box: str, sources: Sources) -> GpuNeed:
    """Measure the largest trial on this node, likewise."""
    messages.send(box, "begun")
    from raystudy.data import open_data
    from raystudy.finetune.backbone import builder_with
    from raystudy.finetune.gpu_memory import measure_need

    data = open_data(spec, paths.cache())
    return measure_need(spec, space_of(spec, sources), data, backbone=builder_with(sources))


def _is_answered(
    answer: Any, box: str, slots: Slots, say: Callable[[str], None], stops: Callable[[], bool] = lambda: False
) -> bool:
    """Wait for the measurement, which may take long only once it has begun; return False where it does not begin."""
    asked = time.monotonic()
    has_begun, is_told = False, False
    while not ray.wait([answer], timeout=_LISTEN_S)[0]:
        if stops():
            return False
        has_begun = has_begun or bool(messages.receive(box))
        waited = time.monotonic() - asked
        if has_begun:
            continue
        if waited > _START_TIMEOUT_S:
            say(f"the cluster has had no place for a trial for {_START_TIMEOUT_S / 60:.0f} min: nothing was measured")
            return False
        if not is_told and (not _has_node_for(slots) or waited > _PATIENCE_S):
            say(_reason_to_wait(slots))
            is_told = True
    messages.receive(box)  # leaves nothing on the cluster
    return True


def _reason_to_wait(slots: Slots) -> str:
    what = f"{slots.cpu} CPU" + (f" and {slots.gpu:g} GPU" if slots.gpu else "")
    reason = "all places for trials are taken" if _has_node_for(slots) else f"no node has {what}: the cluster has to start one"
    return f"{reason}; waiting up to {_START_TIMEOUT_S / 60:.0f} min to measure a trial there"


def _has_node_for(slots: Slots) -> bool:
    needs = {"CPU": slots.cpu, "GPU": slots.gpu}
    return any(node["Alive"] and _holds(node["Resources"], needs) for node in ray.nodes())


def _holds(resources: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in needs.items())


def _result(answer: Any) -> tuple[Probe, str]:
    """Return what was measured, or raise what went wrong as it would be raised here."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, RaystudyError):
            raise error.cause from error
        raise RaystudyError(f"a trial cannot be measured on the cluster: {_last_line(error)}") from error
    except RayError as error:
        raise RaystudyError(f"the process that measured a trial on the cluster died: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
