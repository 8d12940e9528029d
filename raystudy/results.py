"""What questions about a study give back: a trial with its result, and where the study is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raystudy.factors import Scalar
from raystudy.records import StudyState, TrialState

if TYPE_CHECKING:
    from torch import nn

    from raystudy.tracking.reader import StudyReader


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial with its result.

    Attributes:
        trial_id: its id, the same in Ray, Optuna and MLflow.
        number: its number in the study, from 0.
        run_id: its MLflow run.
        state: how it ended.
        epochs: the last epoch reported.
        config: the active factors.
        metrics: at its best epoch.
    """

    trial_id: str
    number: int
    run_id: str
    state: TrialState
    epochs: int
    config: Mapping[str, Scalar]
    metrics: Mapping[str, float]
    _reader: StudyReader = field(repr=False, compare=False)

    def load_model(self) -> nn.Module:
        """Return the model at the best epoch, in eval mode on the CPU: float images of 0 to 255 in, logits out.

        It is rebuilt from safetensors; nothing is unpickled.

        Raises:
            NotFoundError: the trial is not among the best `keep_models` of a finished study.
        """
        return self._reader.model(self.run_id).classifier

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what `raystudy best --json` prints."""
        return {
            "trial_id": self.trial_id,
            "number": self.number,
            "run_id": self.run_id,
            "state": self.state.value,
            "epochs": self.epochs,
            "config": dict(self.config),
            "metrics": dict(self.metrics),
        }


def by_state(counts: Counter[str]) -> dict[str, int]:
    """Return numbers of trials in the order of `TrialState`, states without trials left out."""
    return {state.value: counts[state.value] for state in TrialState if counts[state.value]}


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """Where a study is.

    Attributes:
        name: the study.
        state: running, completed, interrupted or failed, as its driver last said.
        reason: why, where that is not plain.
        trials: number of trials by state, states without trials left out.
        budget_trials: the number of trials it may start.
        epochs_trained: epochs reported over all trials.
        metric: the objective.
        mode: max or min.
        best: the best trial so far, None if none ranks yet.
        started: when its first driver started.
        ended: when its last driver ended, None while it runs.
        tracking_uri: the MLflow store, without user name and password.
        experiment_id: the study's experiment.
        run_id: the study's parent run.
    """

    name: str
    state: StudyState
    reason: str
    trials: Mapping[str, int]
    budget_trials: int
    epochs_trained: int
    metric: str
    mode: str
    best: Trial | None
    started: datetime
    ended: datetime | None
    tracking_uri: str
    experiment_id: str
    run_id: str

    def left_as(self, state: StudyState) -> StudyStatus:
        """Return the same in the state that the study was found in: without a driver no trial runs, whatever was said of it."""
        trials = Counter(self.trials)
        if state not in (StudyState.QUEUED, StudyState.RUNNING):
            trials[TrialState.INTERRUPTED.value] += trials.pop(TrialState.RUNNING.value, 0)
        return replace(self, state=state, trials=by_state(trials))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what `raystudy status --json` prints."""
        return {
            "name": self.name,
            "state": self.state.value,
            "reason": self.reason,
            "trials": dict(self.trials),
            "budget_trials": self.budget_trials,
            "epochs_trained": self.epochs_trained,
            "metric": self.metric,
            "mode": self.mode,
            "best": None if self.best is None else self.best.to_dict(),
            "started": self.started.isoformat(),
            "ended": None if self.ended is None else self.ended.isoformat(),
            "tracking_uri": self.tracking_uri,
            "experiment_id": self.experiment_id,
            "run_id": self.run_id,
        }
