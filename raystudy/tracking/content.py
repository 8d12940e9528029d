"""What the runs of a study have to hold in MLflow, computed from its records and from nothing else.

The writer writes the difference to what is there, and `verify` reports it; both take what should be from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from raystudy.factors import FACTORS, Scalar
from raystudy.records import StudyRecord, TrialRecord
from raystudy.spec import StudySpec
from raystudy.tracking import names

_LONGEST_TAG = 5000


class Point(NamedTuple):
    """One value of one metric. `time` is in milliseconds since 1970."""

    key: str
    step: int
    value: float
    time: int


@dataclass(frozen=True, slots=True)
class RunContent:
    """What one run has to hold.

    Attributes:
        name: shown in the UI.
        params: never change once written.
        tags: the latest values.
        points: every value of every metric, those of the best epochs so far included.
        status: in MLflow's words.
        started: milliseconds since 1970.
        ended: likewise, None while it runs.
    """

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]
    status: str
    started: int
    ended: int | None


def milliseconds(time: float) -> int:
    """Convert seconds since 1970 to MLflow's whole milliseconds."""
    return round(time * 1000)


def trial_content(trial: TrialRecord, *, parent: str, metric: str, mode: str) -> RunContent:
    """Return what the child run of `trial` has to hold; `parent` is the id of the study's run."""
    return RunContent(
        name=trial.trial_id,
        params={name: param_text(name, value) for name, value in trial.config.items()},
        tags=_trial_tags(trial, parent, trial.best_epoch(metric, mode)),
        points=tuple(_points(trial, metric, mode)),
        status=names.TRIAL_STATUS[trial.state],
        started=milliseconds(trial.started),
        ended=None if trial.ended is None else milliseconds(trial.ended),
    )


def study_content(record: StudyRecord) -> RunContent:
    """Return what the parent run has to hold."""
    spec = spec_of(record)
    return RunContent(
        name=record.name,
        params=_study_params(spec),
        tags={
            names.KIND: names.STUDY_KIND,
            names.STATE: record.state.value,
            names.REASON: record.reason[:_LONGEST_TAG],
            names.FINGERPRINT: record.fingerprint,
            names.VERSION: record.version,
            names.JOURNAL_ID: journal_id(record),
            names.METRIC: spec.metric,
            names.MODE: spec.mode,
            names.TRIALS: str(spec.budget.trials),
            names.OWNER: record.owner,
            names.GPU_HOURS: f"{record.gpu_seconds / 3600:.4f}",
            names.SUMMARY: _summary(record, spec),
            **({names.UNITS: str(record.n_units)} if record.n_units else {}),
        },
        points=(),
        status=names.STUDY_STATUS[record.state],
        started=milliseconds(record.started),
        ended=None if record.ended is None else milliseconds(record.ended),
    )


def spec_of(record: StudyRecord) -> StudySpec:
    """Return the study file of a record, checked once however often it is asked for."""
    return _parsed(json.dumps(record.spec))


@lru_cache(maxsize=8)
def _parsed(text: str) -> StudySpec:
    return StudySpec.from_dict(json.loads(text))


def journal_id(record: StudyRecord) -> str:
    """Identify the journal of a study: two studies of one name and file were not started in the same microsecond."""
    about = json.dumps([record.name, record.fingerprint, record.started])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def param_text(factor: str, value: Scalar) -> str:
    """Return the text that stands for a factor's value in MLflow; `param_value` reads it back."""
    value = typed(factor, value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def param_value(factor: str, text: str) -> Scalar:
    """Return the value of a factor from its text in MLflow."""
    match factor_kind(factor):
        case "bool":
            return text == "true"
        case "int":
            return int(text)
        case "float":
            return float(text)
    return text


def typed(factor: str, value: Scalar) -> Scalar:
    """Give `value` the type of its factor: samplers and study files write 1 for 1.0."""
    match factor_kind(factor):
        case "float":
            return float(value)
        case "int":
            return int(value)
    return value


def factor_kind(factor: str) -> str:
    """Return the type of a factor's values; one that this version does not know is text."""
    return FACTORS[factor].kind if factor in FACTORS else "categorical"


def _summary(record: StudyRecord, spec: StudySpec) -> str:
    best = next(iter(record.ranking(spec.metric, spec.mode)), None)
    about = {
        "trials": record.counts(),
        "epochs": sum(len(one.reports) for one in record.trials.values()),
        "best": best and best.best_value(spec.metric, spec.mode),
        "best_trial": best and best.trial_id,
    }
    return json.dumps(about)


def _study_params(spec: StudySpec) -> dict[str, str]:
    """Return what a resume cannot change."""
    return {
        "metric": spec.metric,
        "mode": spec.mode,
        "backbone": ", ".join(spec.backbones)[:_LONGEST_TAG],
        "data": spec.data.source,
        "factors": ", ".join(spec.all_factors),
        "epochs": str(spec.budget.epochs),
        "sampler": spec.search.sampler,
        "seed": str(spec.search.seed),
        "scheduler": spec.early_stopping.scheduler,
    }


def _trial_tags(trial: TrialRecord, parent: str, best_epoch: int | None) -> dict[str, str]:
    tags = {
        names.PARENT: parent,
        names.KIND: names.TRIAL_KIND,
        names.TRIAL_ID: trial.trial_id,
        names.NUMBER: str(trial.number),
        names.STATE: trial.state.value,
        names.REASON: trial.reason[:_LONGEST_TAG],
        names.NODE: trial.node,
        names.RETRIES: str(trial.retries),
        names.EPOCHS: str(trial.epochs),
        names.KEPT: str(trial.kept).lower(),
        names.GPU_SECONDS: f"{trial.gpu_seconds:.1f}",
    }
    if best_epoch is not None:
        tags[names.BEST_EPOCH] = str(best_epoch)
    probabilities = [decision.keep_probability for decision in trial.decisions.values() if decision.kept]
    if probabilities:
        tags[names.KEEP_PROBABILITY] = str(probabilities[0])
    return tags


def _points(trial: TrialRecord, metric: str, mode: str) -> list[Point]:
    """Return the metrics of every epoch, and with `best_` before their names those of every epoch that was the best so far."""
    sign = 1.0 if mode == "max" else -1.0
    best = float("-inf")
    points: list[Point] = []
    for epoch, report in sorted(trial.reports.items()):
        time = milliseconds(report.time)
        points += [Point(key, epoch, float(value), time) for key, value in report.metrics.items()]
        if metric in report.metrics and sign * report.metrics[metric] > best:
            best = sign * report.metrics[metric]
            points += [Point(names.BEST_PREFIX + key, epoch, float(value), time) for key, value in report.metrics.items()]
    return points
