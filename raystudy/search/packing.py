"""How many trials share a GPU: decided by what the largest one needs, and corrected by trials that run out of memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from raystudy.errors import OutOfMemory, RaystudyError
from raystudy.search.capacity import Slots, most_per_gpu, with_gpu
from raystudy.spec import StudySpec
from raystudy.storage import tell

if TYPE_CHECKING:
    from raystudy.finetune.gpu_memory import GpuNeed

_log = logging.getLogger(__name__)

MOST = 4
"""Trials on a GPU: two processes already fill one with networks that train as a whole, and four with mostly frozen ones."""
_USABLE = 0.9
"""Share of a GPU's memory that is divided: allocators fragment, and no measurement meets the worst batch."""

Measure = Callable[[], "GpuNeed | None"]
"""Measures the study's largest trial on one of its GPUs; None where none became free, or the study is to stop."""


def trials_per_gpu(need: int, total: int, *, most: int) -> int:
    """Return how many trials that need `need` bytes each share a GPU of `total` bytes; at least 1, at most `most` and 4."""
    fitting = math.floor(_USABLE * total / need) if need > 0 else MOST
    return max(1, min(fitting, most, MOST))


def pack(spec: StudySpec, slots: Slots, measure: Measure) -> Slots:
    """Let trials share GPUs where the study leaves that to us (`gpu: auto`) and as many as fit would run at a time.

    A measurement that fails costs the study nothing but the sharing.

    Args:
        spec: the study.
        slots: a whole GPU for each trial, or none.
        measure: asked only if the answer matters.
    """
    if spec.resources.gpu != "auto" or not slots.gpu:
        return slots
    most = min(MOST, most_per_gpu(slots.cpu, most_at_a_time(spec)))
    if most == 1:
        return slots
    try:
        need = measure()
    except OutOfMemory as error:
        tell(f"warning: the largest trial of the study does not fit on a GPU: {error}")
        return slots
    except RaystudyError as error:
        _log.warning("how much memory a trial needs could not be measured: %s", error)
        return slots
    if need is None:
        return slots
    count = trials_per_gpu(need.need, need.total, most=most)
    tell(in_words(need, count))
    return with_gpu(slots, 1 / count, spec.resources.concurrent, learns=True) if count > 1 else slots


def most_at_a_time(spec: StudySpec) -> int:
    """Return how many trials of the study could run at a time anywhere."""
    trials = spec.budget.trials
    return trials if spec.resources.concurrent == "auto" else min(trials, int(spec.resources.concurrent))


def in_words(need: GpuNeed, count: int) -> str:
    """Say what was decided and why."""
    sizes = f"needs {need.need / 2**30:.1f} of the {need.total / 2**30:.1f} GiB of {need.gpu_name or 'a GPU'}"
    return f"The largest trial {sizes}: {f'{count} trials share a GPU' if count > 1 else 'each trial has a GPU to itself'}"


class Packing:
    """Which share of a GPU trials get while a study runs.

    Attributes:
        gpu: GPUs, or a share of one, for the next trial.
        concurrent: how many such trials run at a time at most.
        learnt: as many, once trials have turned out to need more than was planned; None before.
        waiting: the trials that wait for a whole GPU. No other trial is handed out meanwhile: each would take a place on a
            GPU that is about to become empty.
    """

    def __init__(self, slots: Slots, fit: Callable[[float], int]) -> None:
        """Begin as planned.

        Args:
            slots: the plan.
            fit: how many trials fit on the cluster if each has so much of a GPU.
        """
        self.gpu, self.concurrent = slots.gpu, slots.concurrent
        self.learnt: int | None = None
        self.waiting: set[str] = set()
        self._learns, self._fit = slots.learns, fit

    def retry_alone(self, trial_id: str, share: float) -> bool:
        """Remember that a trial is to have a GPU to itself; return whether later trials get a larger share than so far.

        Only the first of the trials that were packed alike says anything: what drove out one may have driven out the others.
        """
        self.waiting.add(trial_id)
        if not self._learns or share < self.gpu:
            return False
        self.gpu = 1 / max(round(1 / self.gpu) - 1, 1)
        self.concurrent = self.learnt = min(self.concurrent, self._fit(self.gpu))
        return True
