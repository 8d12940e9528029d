"""What a cluster does at the moment: the studies that MLflow knows, with what the cluster knows of their drivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from raystudy.cluster.jobs import StudyJob
from raystudy.listing import StudyRow
from raystudy.records import StudyState


def with_drivers(rows: Sequence[StudyRow], jobs: Mapping[str, StudyJob]) -> list[StudyRow]:
    """Return the lines of `raystudy list`: studies that wait or have just begun are added, those whose driver died marked."""
    known = {row.name for row in rows}
    waiting = [_waiting(job) for job in jobs.values() if job.study not in known and job.is_active]
    merged = [*waiting, *(_with_driver(row, jobs.get(row.name)) for row in rows)]
    return sorted(merged, key=lambda row: row.started, reverse=True)


def _waiting(job: StudyJob) -> StudyRow:
    return StudyRow(
        name=job.study,
        state=StudyState.QUEUED if job.status == "PENDING" else StudyState.RUNNING,
        trials={},
        budget_trials=0,
        metric="",
        best=None,
        started=datetime.fromtimestamp(job.submitted, UTC),
        ended=None,
        experiment_id="",
        run_id="",
        owner=job.owner,
    )


def _with_driver(row: StudyRow, job: StudyJob | None) -> StudyRow:
    """Correct what a driver that was killed could not say any more, and what one that waits has not said yet."""
    if job is not None and job.status == "PENDING":
        return replace(row, state=StudyState.QUEUED)
    if row.state is StudyState.RUNNING and (job is None or not job.is_active):
        return replace(row, state=StudyState.INTERRUPTED)
    return row
