"""What passes between whoever hands out trials and whoever trains them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from raystudy.records import Config


@dataclass(frozen=True, slots=True)
class Ticket:
    """A trial as it is handed to whoever trains it.

    Attributes:
        trial_id: its id, the same in Ray, Optuna and MLflow.
        number: its number in the study, from 0.
        config: every hyperparameter: active factors, fixed values, defaults.
    """

    trial_id: str
    number: int
    config: Config


class Training(Protocol):
    """One trial being trained."""

    def epochs(self) -> Iterator[Mapping[str, float]]:
        """Yield the metrics of each epoch, `epoch` among them; after a crash the last known epoch may come again."""

    def close(self) -> None:
        """Free everything that the trial holds."""


class Trainer(Protocol):
    """Trains trials of one study in one process, one after another; travels to workers by pickle."""

    def open(self, ticket: Ticket) -> Training:
        """Prepare the trial; it continues from its last checkpoint if it has one."""
