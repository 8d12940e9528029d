"""All studies of a tracking store, a line each, from one request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raystudy.errors import NotFoundError
from raystudy.host import driver_state
from raystudy.query import ended, moment
from raystudy.records import StudyState
from raystudy.tracking import address, names

if TYPE_CHECKING:
    from raystudy.tracking.store import StoredRun


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A line of `raystudy list`.

    Attributes:
        name: the study.
        state: as its driver last said, unless it ran on this machine and is gone.
        trials: number of trials by state.
        budget_trials: the number of trials it may start.
        metric: the objective.
        best: the best value of the objective, None if no trial ranks yet.
        started: when its first driver started.
        ended: when its last driver ended, None while it runs.
        experiment_id: the study's experiment; empty before it has one.
        run_id: the study's parent run, likewise.
        owner: who runs it.
        gpu_hours: GPUs that its trials have held, times hours.
    """

    name: str
    state: StudyState
    trials: Mapping[str, int]
    budget_trials: int
    metric: str
    best: float | None
    started: datetime
    ended: datetime | None
    experiment_id: str
    run_id: str
    owner: str = ""
    gpu_hours: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what `raystudy list --json` prints."""
        return {
            "name": self.name,
            "state": self.state.value,
            "trials": dict(self.trials),
            "budget_trials": self.budget_trials,
            "metric": self.metric,
            "best": self.best,
            "started": self.started.isoformat(),
            "ended": None if self.ended is None else self.ended.isoformat(),
            "experiment_id": self.experiment_id,
            "run_id": self.run_id,
            "owner": self.owner,
            "gpu_hours": self.gpu_hours,
        }


def list_studies(tracking_uri: str | None = None) -> list[StudyRow]:
    """Return all studies in the tracking store, the latest first; none where there is no local store yet.

    Raises:
        UnreachableError: the store does not answer.
    """
    from raystudy.tracking.reader import connect, study_runs

    try:
        store = connect(address.tracking_uri(tracking_uri))
    except NotFoundError:
        return []
    return sorted(map(_study_row, study_runs(store).values()), key=lambda row: row.started, reverse=True)


def _study_row(parent: StoredRun) -> StudyRow:
    """Return a study's line from its parent run alone, so that a list of many takes one request."""
    tags = parent.tags
    state, summary = StudyState(tags[names.STATE]), json.loads(tags.get(names.SUMMARY, "{}"))
    if state is StudyState.RUNNING:  # a driver that was killed could not say so
        state = driver_state(parent.name, tags[names.JOURNAL_ID]) or state
    return StudyRow(
        name=parent.name,
        state=state,
        trials=summary.get("trials", {}),
        budget_trials=int(tags[names.TRIALS]),
        metric=tags[names.METRIC],
        best=summary.get("best"),
        started=moment(parent.started),
        ended=ended(parent, state),
        experiment_id=parent.experiment_id,
        run_id=parent.run_id,
        owner=tags.get(names.OWNER, ""),
        gpu_hours=float(tags.get(names.GPU_HOURS, "0")),
    )
