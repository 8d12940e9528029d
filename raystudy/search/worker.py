"""What a process does with trials: train them epoch by epoch and say in words how each one ended.

The inline loop and Ray's actors share this code, so that they cannot differ.
"""

from __future__ import annotations

import logging
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raystudy.errors import Diverged, OutOfMemory
from raystudy.records import TrialState
from raystudy.search.trial_log import TrialLog
from raystudy.work import Ticket, Trainer, Training

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a trial came to: the metrics of an epoch, or how the trial ended by itself."""

    metrics: Mapping[str, float] | None = None
    state: TrialState | None = None
    reason: str = ""
    seconds: float = 0.0
    """How long the trial has held this process since its last step, or since it was taken on."""
    is_out_of_memory: bool = False


class Worker:
    """Trains one trial at a time. No exception of a trial's own code leaves `step`."""

    def __init__(self, trainer: Trainer, *, logs: Path | None = None) -> None:
        """Work with `trainer`; each trial's log goes to `logs`/TRIAL.log."""
        self.node = socket.gethostname()
        self._trainer, self._logs = trainer, logs
        self._ticket: Ticket | None = None
        self._training: Training | None = None
        self._epochs: Iterator[Mapping[str, float]] | None = None
        self._handler: logging.Handler | None = None
        self._mark = 0.0
        self._end: Step | None = None

    def start(self, ticket: Ticket) -> None:
        """Take on a trial; whatever was left of the one before is freed first. Nothing is built before the first step."""
        self.close()
        self._ticket, self._end = ticket, None
        self._mark = time.monotonic()
        self._open_log(ticket)

    def step(self) -> Step:
        """Train for one epoch; a trial that has ended by itself stays as it ended."""
        if self._end is not None:
            return self._end
        try:
            metrics = dict(next(self._iterator()))
        except StopIteration:
            return self._ended(TrialState.FAILED, "training ended before its budget")
        except Diverged as error:
            return self._ended(TrialState.DIVERGED, str(error))
        except (OutOfMemory, MemoryError) as error:
            return self._ended(TrialState.FAILED, f"out of memory: {error}", is_out_of_memory=True)
        except Exception as error:
            _log.error("%s", traceback.format_exc())
            return self._ended(TrialState.FAILED, f"{type(error).__name__}: {error}")
        before, self._mark = self._mark, time.monotonic()
        return Step(metrics=metrics, seconds=self._mark - before)

    def close(self) -> None:
        """Free what the trial holds; the next trial is not to suffer if that fails."""
        training, self._training, self._epochs, self._ticket = self._training, None, None, None
        if training is not None:
            try:
                training.close()
            except Exception:
                _log.error("what the trial held could not be freed: %s", traceback.format_exc())
        if self._handler is not None:
            logging.getLogger("raystudy").removeHandler(self._handler)
            self._handler.close()
            self._handler = None

    def _iterator(self) -> Iterator[Mapping[str, float]]:
        if self._ticket is None:
            raise RuntimeError("a worker steps only after start")
        if self._epochs is None:
            self._training = self._trainer.open(self._ticket)
            self._epochs = iter(self._training.epochs())
        return self._epochs

    def _ended(self, state: TrialState, reason: str, *, is_out_of_memory: bool = False) -> Step:
        reason = " ".join(reason.split())[:500]
        _log.warning("trial ended: %s, %s", state.value, reason)
        self._end = Step(state=state, reason=reason, is_out_of_memory=is_out_of_memory)
        return self._end

    def _open_log(self, ticket: Ticket) -> None:
        if self._logs is None:
            return
        self._handler = TrialLog(self._logs / f"{ticket.trial_id}.log")
        logger = logging.getLogger("raystudy")
        logger.addHandler(self._handler)
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
        _log.info("trial %s on %s: %s", ticket.trial_id, self.node, dict(ticket.config))
