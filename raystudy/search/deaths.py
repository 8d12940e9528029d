"""Why a trial's process died, and whether that counts against the trial.

A node that dies or is taken away, as spot machines are, takes the processes of its trials with it. That is nobody's fault:
those trials are handed out again, as often as it happens. What happened is found out, not guessed: from the error itself,
from what Ray knows of the node, and from whether the node still answers, since Ray needs up to a minute to notice.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial

_GRACE_S = 3.0
"""How long a node is watched after a process on it died: a machine that shuts down ends its processes first."""
_GLANCE_S = 0.25
_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class Death:
    """The death of a trial's process.

    Attributes:
        reason: in words.
        counts: whether it is one of the deaths after which a trial is given up.
        is_stillbirth: whether the process never came up.
    """

    reason: str
    counts: bool = True
    is_stillbirth: bool = False


class LastingTrial(Trial):
    """A trial in Tune's books; Tune itself counts every death against it, that of a whole node too.

    Attributes:
        death: the last one.
        is_at_work: whether its process has come up.
        is_echo: whether Tune has just heard of the last death for the second time.
    """

    death: Death | None = None
    is_at_work = False
    is_echo = False
    _move = ""
    _error: Exception | None = None
    _controller: Any = None

    def requeued(self, controller: Any) -> None:
        """Remember who handles the trial, and put right what Tune forgets of a process that died while it was handed over."""
        self._controller = controller
        controller._resetting_trials.discard(self)  # it would wait for that process for ever

    def move(self, reason: str) -> None:
        """Let the trial go on in another process, from the checkpoint that it has just written."""
        self._move = reason
        ray.kill(self.temporary_state.ray_actor)

    def handle_error(self, exc: Exception | None = None) -> None:
        """Take notice of a death."""
        self.is_echo = exc is not None and exc is self._error
        if self.is_echo:
            # Of a process that is handed over Tune hears as a process and as a trial. It has handed the trial out again by
            # then, and gives up one that fails before it runs.
            self._controller._set_trial_status(self, Trial.RUNNING)
            return
        self._error = exc
        was_at_work, self.is_at_work = self.is_at_work, False
        # A process that is handed over from the last trial is known before this one starts in it.
        was_handed_over = not was_at_work and self.temporary_state.ray_actor is not None
        move, self._move = self._move, ""
        self.death = (
            Death(move, counts=False) if move else examine(exc, was_at_work=was_at_work, was_handed_over=was_handed_over)
        )
        counted = self.run_metadata.num_failures
        with suppress(OSError):  # Tune notes it on the driver's disk too, where nobody looks
            super().handle_error(exc)
        if not self.death.counts:
            self.run_metadata.num_failures = counted

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only this process can use."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_controller", "_error")}


def examine(error: Exception | None, *, was_at_work: bool, was_handed_over: bool = False) -> Death:
    """Find out why a process died.

    Args:
        error: Ray's.
        was_at_work: whether the trial had begun in the process.
        was_handed_over: whether the process died between two trials, of which this is the second.
    """
    if isinstance(error, RayActorError):
        loss = _loss_of_node(error)
        if loss:
            return Death(loss, counts=False)
    reason = _in_words(error)
    return Death(reason, counts=not was_handed_over, is_stillbirth=not was_at_work and not was_handed_over)


def _in_words(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    if "running low on memory" in text:
        return f"out of memory: {text}"[:500]
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return f"its process could not be started: {_last_line(error)}"[:500]
    detail = re.search(r"Worker exit type: (\w+) Worker exit detail: (.*?)(?: Some common causes|$)", text)
    cause = f"{detail[1]}: {detail[2]}" if detail else text
    return f"its process died: {cause}"[:500]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _loss_of_node(error: RayActorError) -> str:
    """Say what became of the node of a dead process; nothing if the node is well."""
    if error.actor_init_failed:
        return ""
    node_id = _node_of(error.actor_id)
    # The memory monitor of a node ends processes one by one: that node is well.
    end = time.monotonic() + (0.0 if "running low on memory" in str(error) else _GRACE_S)
    while True:
        node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
        name = _name(node) if node else "its node"
        if error.preempted:
            return f"{name} was taken away (preempted)"
        if node is None:
            return ""
        if not node["Alive"]:
            return f"{name} died: {node.get('DeathReasonMessage') or 'no reason known'}"
        if not _answers(node):
            return f"{name} does not answer any more"
        if time.monotonic() > end:
            return ""
        time.sleep(_GLANCE_S)


def _node_of(actor_id: str | None) -> str:
    from ray._private import state  # what `ray.util.state` says too, but that needs a dashboard

    known = state.actors(actor_id) if actor_id else {}
    node_id: str = known["Address"]["NodeID"] if known else ""
    return node_id


def _name(node: Mapping[str, Any]) -> str:
    return f"its node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _answers(node: Mapping[str, Any]) -> bool:
    """Say whether Ray's own process on the node takes connections; it outlives every trial there while the node is well."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True
