"""The page about a study: put together from its journal when it ends, or from what MLflow holds at any time."""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystudy.errors import RaystudyError
from raystudy.records import StudyRecord, StudyStarted, StudyState, TrialState
from raystudy.spec import StudySpec
from raystudy.tracking import names
from raystudy.tracking.address import redact
from raystudy.tracking.content import spec_of
from raystudy.tracking.journal import read_events
from raystudy.tracking.rows import TrialRow

if TYPE_CHECKING:
    import pyarrow as pa

    from raystudy.findings.answer import Importance
    from raystudy.findings.report import ReportedStudy
    from raystudy.tracking.reader import StudyReader
    from raystudy.tracking.store import StoredRun

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow")
"""Whose versions the page tells."""
UNFINISHED = "What matters was not computed: that takes longer than the study's end, or was stopped."
_NO_REPORT = "No trial has reported anything yet: there is nothing to find."

_log = logging.getLogger("raystudy.findings")


@dataclass(frozen=True, slots=True)
class About:
    """What is known about a study beside its file and its trials.

    Attributes:
        state: where it is in its life.
        reason: why.
        owner: who ran it.
        fingerprint: identifies what decides the results.
        version: of raystudy that ran it.
        started: seconds since 1970.
        ended: likewise; None while it runs.
        data: what the journal notes about the images; empty where that is not known.
        recorded: where MLflow holds it.
    """

    state: str
    reason: str
    owner: str
    fingerprint: str
    version: str
    started: float
    ended: float | None
    data: Mapping[str, Any] = field(default_factory=dict)
    recorded: str = ""


def page_of_record(record: StudyRecord, answer: Importance | None, no_answer: str = UNFINISHED) -> str:
    """Return the page about a study as its journal tells it.

    Args:
        record: the study.
        answer: what matters; None where there is no answer.
        no_answer: why.
    """
    from raystudy.findings.report import render
    from raystudy.tracking.tables import reports_table, trial_row

    spec = spec_of(record)
    about = About(
        state=record.state.value,
        reason=record.reason,
        owner=record.owner,
        fingerprint=record.fingerprint,
        version=record.version,
        started=record.started,
        ended=record.ended,
        data=record.data,
        recorded=f"the MLflow experiment {record.name}",
    )
    rows = [trial_row(trial, "", spec.metric, spec.mode) for trial in record.trials.values()]
    return render(_reported(spec, rows, reports_table(record), about, answer, no_answer))


def page_of_reader(reader: StudyReader, answer: Importance | None = None) -> str:
    """Return the page about a study as MLflow holds it.

    Args:
        reader: the study.
        answer: what matters; by default what is stored, and computed where nothing is.
    """
    from raystudy.findings.report import render

    parent, spec, rows, reports = reader.parent(), reader.spec(), reader.rows(), reader.reports()
    answer, no_answer = (answer, "") if answer else _answer(reader, parent, rows)
    return render(_reported(spec, rows, reports, _about(reader, parent), answer, no_answer))


def write_page(text: str, folder: Path) -> None:
    """Write a page into the folder of a study's findings, in the place of the one there."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{names.REPORT_FILE}"
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(folder / names.REPORT_FILE)


def leave_page(record: StudyRecord, folder: Path, answer: Importance | None, no_answer: str = UNFINISHED) -> None:
    """Write the page about a study that has ended; what goes wrong is a line of the log and no harm to the study."""
    try:
        write_page(page_of_record(record, answer, no_answer), folder)
    except Exception as error:  # the findings are worth having without it
        _log.warning("the report could not be written: %s: %s", type(error).__name__, error)


def _answer(reader: StudyReader, parent: StoredRun, rows: Iterable[TrialRow]) -> tuple[Importance | None, str]:
    """Return what matters, or None and why: the stored answer where the study is over, else a new one."""
    from raystudy.findings.answer import Importance

    if not any(row.epochs for row in rows):
        return None, _NO_REPORT
    if parent.tags.get(names.STATE) != StudyState.RUNNING:
        try:
            found = json.loads(_artifact(reader, names.IMPORTANCE_FILE))
            if "error" in found:
                return None, f"What matters could not be computed: {found['error']}."
            return Importance.from_dict(found), ""
        except (RaystudyError, ValueError):
            pass  # it was never stored, or by another version
    return reader.importance(), ""


def _artifact(reader: StudyReader, name: str) -> str:
    """Return the text of an artifact of the study; raises StoreRefused where there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        return reader.store.download(reader.run_id, name, Path(scratch)).read_text(encoding="utf-8")


def _about(reader: StudyReader, parent: StoredRun) -> About:
    tags = parent.tags
    is_over = tags[names.STATE] != StudyState.RUNNING
    return About(
        state=tags[names.STATE],
        reason=tags.get(names.REASON, ""),
        owner=tags.get(names.OWNER, ""),
        fingerprint=tags.get(names.FINGERPRINT, ""),
        version=tags.get(names.VERSION, ""),
        started=parent.started / 1000,
        ended=parent.ended / 1000 if is_over and parent.ended is not None else None,
        data=_noted(reader) if is_over else {},
        recorded=f"{redact(reader.store.uri)}, experiment {reader.experiment_id}, run {reader.run_id}",
    )


def _noted(reader: StudyReader) -> Mapping[str, Any]:
    """Return what the journal that was stored with the study notes about the images; nothing where it is not there."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = reader.store.download(reader.run_id, names.JOURNAL_FILE, Path(scratch))
            first = next((event for _, event in read_events(file)), None)
    except RaystudyError:
        return {}
    return first.data if isinstance(first, StudyStarted) else {}


def _reported(
    spec: StudySpec,
    rows: Iterable[TrialRow],
    reports: pa.Table,
    about: About,
    answer: Importance | None,
    no_answer: str,
) -> ReportedStudy:
    """Return what the page is made from."""
    from raystudy.findings.report import ReportedStudy, ReportedTrial

    curves = _curves(reports, spec.metric)
    trials = [
        ReportedTrial(
            trial_id=row.trial_id,
            number=row.number,
            state=TrialState(row.state),
            reason=redact(row.reason),
            epochs=row.epochs,
            config={name: row.config[name] for name in spec.all_factors if name in row.config},
            metrics=dict(sorted(row.best.items(), key=lambda item: names.metric_rank(item[0]))),
            curve=curves.get(row.trial_id, ()),
        )
        for row in sorted(rows, key=lambda row: row.number)
    ]
    return ReportedStudy(
        name=spec.name,
        state=about.state,
        reason=redact(about.reason),
        owner=about.owner,
        metric=spec.metric,
        mode=spec.mode,
        epochs=spec.budget.epochs,
        budget_trials=spec.budget.trials,
        started=datetime.fromtimestamp(about.started, UTC),
        ended=None if about.ended is None else datetime.fromtimestamp(about.ended, UTC),
        study_file="\n".join(map(redact, spec.to_yaml().splitlines())),
        backbones=spec.backbones,
        source=redact(spec.data.source),
        trials=trials,
        answer=answer,
        no_answer=no_answer if trials and any(trial.epochs for trial in trials) else _NO_REPORT,
        data=about.data,
        sharing=_sharing(spec),
        facts=_facts(spec, about),
        recorded=about.recorded,
    )


def _curves(reports: pa.Table, metric: str) -> dict[str, list[tuple[int, float]]]:
    """Return the metric by epoch, in order, of each trial."""
    if metric not in reports.column_names:
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    columns = (reports.column(name).to_pylist() for name in ("trial_id", "epoch", metric))
    for trial_id, epoch, value in zip(*columns, strict=True):
        if value is not None:
            found.setdefault(trial_id, []).append((epoch, value))
    return {trial_id: sorted(points) for trial_id, points in found.items()}


def _sharing(spec: StudySpec) -> list[str]:
    """Return what trials shared, in sentences."""
    activations = {
        "auto": "what frozen units make of an image was computed once too where that pays",
        "on": "what frozen units make of an image was computed once too",
        "off": "what frozen units make of an image was computed anew by each trial",
    }
    return [f"Images were decoded once a machine for all trials, and {activations[spec.features]} (features: {spec.features})."]


def _facts(spec: StudySpec, about: About) -> dict[str, str]:
    found = {
        "study fingerprint": about.fingerprint,
        "images' fingerprint": str(about.data.get("fingerprint", "")),
        "seed": str(spec.search.seed),
        "raystudy": about.version,
        "Python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }
    return {name: value for name, value in found.items() if value}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
