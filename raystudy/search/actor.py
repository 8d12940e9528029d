"""The process that trains trials on Ray.

Kept apart from the driver's side, because every worker process imports this module before its first trial: it needs neither
Optuna nor the director.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raystudy.finetune import gpu_share
from raystudy.garbage import uncollected
from raystudy.search import messages
from raystudy.search.worker import Worker
from raystudy.storage import attend
from raystudy.work import Ticket, Trainer


class TrialActor(tune.Trainable):
    """The process that trains: kept from trial to trial, so that imports and CUDA contexts are paid for once."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Be started by Tune, which reads what `setup` gets here: that imports torch and what else trains.

        What the imports have made stays: collecting after a trial then looks at its own objects only (0.26 s a trial).
        """
        with uncollected():
            super().__init__(*arguments, **named)

    def setup(self, config: dict[str, Any], *, trainer: Trainer, logs: Path | None, box: str) -> None:
        """Start the first trial; what cannot wait for a report goes to the driver's `box`."""
        self._is_settled = False
        self._worker = Worker(trainer, logs=logs)
        self._node_id = ray.get_runtime_context().get_node_id()
        attend(lambda text: messages.send(box, f"{self._trial_id} on {self._worker.node}: {text}"))
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial; nothing of the last one is left."""
        self._start(new_config)
        if not self._is_settled:
            gc.freeze()  # nor does what the first trial has imported and cached concern later collections (0.13 s a trial)
            self._is_settled = True
        return True

    def step(self) -> dict[str, Any]:
        """Train for one epoch."""
        step = self._worker.step()
        return {
            "metrics": dict(step.metrics) if step.metrics is not None else None,
            "state": step.state and step.state.value,
            "reason": step.reason,
            "node": self._worker.node,
            "node_id": self._node_id,
            "seconds": step.seconds,
            "is_out_of_memory": step.is_out_of_memory,
        }

    def cleanup(self) -> None:
        """Free what the trial holds."""
        self._worker.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a trial checkpoints itself, before it reports."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing: a trial finds its own last checkpoint."""

    def _start(self, config: Mapping[str, Any]) -> None:
        self._trial_id = config["trial_id"]
        gpu_share.take(config["gpu"])
        self._worker.start(_ticket(config))


def _ticket(config: Mapping[str, Any]) -> Ticket:
    return Ticket(config["trial_id"], config["number"], config["hyperparameters"])
