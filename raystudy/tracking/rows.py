"""Trials and reports as tables and queries see them, wherever they come from. Imports no Arrow: most questions need none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystudy.records import Config


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as tables and queries see it.

    Attributes:
        trial_id: its id, the same everywhere.
        number: its number in the study, from 0.
        state: one of the trial states.
        reason: why it ended, where that needs words.
        epochs: the last epoch reported, 0 before the first.
        run_id: its MLflow run, empty where it has none yet.
        started: milliseconds since 1970.
        ended: likewise; None while it runs.
        node: the host it ran on last.
        config: the active factors.
        last: the metrics at the last epoch.
        best: the metrics at the best epoch.
        kept: whether it went on only as a hold-out.
    """

    trial_id: str
    number: int
    state: str
    reason: str
    epochs: int
    run_id: str
    started: int
    ended: int | None
    node: str
    config: Config
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    kept: bool = False

    @property
    def wall_seconds(self) -> float | None:
        """From the first start to the last end, None while it runs."""
        return None if self.ended is None else (self.ended - self.started) / 1000


@dataclass(frozen=True, slots=True)
class ReportRow:
    """The metrics of one epoch of one trial. `time` is in milliseconds since 1970."""

    trial_id: str
    number: int
    epoch: int
    time: int
    metrics: Mapping[str, float]
    config: Config
