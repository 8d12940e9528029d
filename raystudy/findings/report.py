"""A study as one page for people: a self-contained HTML file, without a script and without the network.

Whatever comes from a study (names of classes, reasons, files) is text to the template, which escapes all of it; figures are
images within the page.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raystudy.factors import Scalar
from raystudy.findings.answer import Importance, Interval, Share
from raystudy.findings.figures import as_svg, trial_curves
from raystudy.findings.sentences import amount, cautions, headline, measured, statements, text_of
from raystudy.records import TrialState

_MOST_TRIALS, _MOST_SKIPPED, _MOST_REASONS, _MOST_CLASSES = 5, 20, 3, 40
"""Best trials, skipped images, reasons a state and classes that the page lists."""
_COUNTS = {"images": "images", "training_images": "for training", "validation_images": "for validation"}
_ENDINGS = {
    TrialState.COMPLETED: "trained to the last epoch",
    TrialState.PRUNED: "stopped early because others did better",
    TrialState.DIVERGED: "its loss was not finite any more",
    TrialState.FAILED: "ended with an error",
    TrialState.INTERRUPTED: "left unfinished; a resume goes on with it",
    TrialState.RUNNING: "still training",
}


@dataclass(frozen=True, slots=True)
class ReportedTrial:
    """One trial.

    Attributes:
        trial_id: its id.
        number: its number in the study, from 0.
        state: how it ended.
        reason: why, where that needs words.
        epochs: the last epoch reported.
        config: the active factors.
        metrics: at its best epoch.
        curve: the objective by epoch, ascending.
    """

    trial_id: str
    number: int
    state: TrialState
    reason: str
    epochs: int
    config: Mapping[str, Scalar]
    metrics: Mapping[str, float]
    curve: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class ReportedStudy:
    """What a page is made from.

    Attributes:
        name: the study.
        state: where it is in its life.
        reason: why, where that needs words.
        owner: who ran it.
        metric: the objective.
        mode: max or min.
        epochs: the budget T of a trial.
        budget_trials: trials that it may start.
        started: when its first driver started.
        ended: when its last driver ended; None while it runs.
        study_file: what was asked, as YAML, without secrets.
        backbones: the pretrained networks.
        source: the images.
        trials: all trials.
        answer: what matters; None where nothing was computed.
        no_answer: why.
        data: what was found in the images, as the journal notes it: classes, counts, skipped images, warnings; may be empty.
        sharing: what trials shared, in sentences.
        facts: what identifies the study and the software, by name, in the order shown.
        recorded: where MLflow holds it, without user name and password.
    """

    name: str
    state: str
    reason: str
    owner: str
    metric: str
    mode: str
    epochs: int
    budget_trials: int
    started: datetime
    ended: datetime | None
    study_file: str
    backbones: Sequence[str]
    source: str
    trials: Sequence[ReportedTrial]
    answer: Importance | None
    no_answer: str
    data: Mapping[str, Any] = field(default_factory=dict)
    sharing: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    recorded: str = ""

    @property
    def ranking(self) -> list[ReportedTrial]:
        """The trials that rank, best first; of equals the earlier one first."""
        sign = -1.0 if self.mode == "max" else 1.0
        found = [trial for trial in self.trials if trial.state.ranks and self.metric in trial.metrics]
        return sorted(found, key=lambda trial: (sign * trial.metrics[self.metric], trial.number))


def render(study: ReportedStudy) -> str:
    """Return the page."""
    return _template().render(
        study=study,
        summary=list(_summary(study)),
        best=_best_table(study),
        endings=list(_endings(study)),
        curves=_curves(study),
        matters=_matters(study.answer) if study.answer else None,
        images=_images(study.data),
        commands=_commands(study.name),
        moment=_moment,
        duration=_duration,
    )


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("raystudy.findings"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _summary(study: ReportedStudy) -> Iterator[str]:
    """Yield the page in a few sentences."""
    if not study.ranking:
        yield "No trial has a result yet." if study.trials else "There are no trials yet."
    else:
        best = study.ranking[0]
        config = ", ".join(f"{name}={text_of(value)}" for name, value in best.config.items())
        yield f"The best trial is {best.trial_id} with {study.metric} {_number(best.metrics[study.metric])}: {config}."
    yield from headline(study.answer) if study.answer else [study.no_answer]


def _best_table(study: ReportedStudy) -> dict[str, Any] | None:
    """Return titles and rows of the best trials: objective, configuration, other metrics; None where no trial ranks."""
    trials = study.ranking[:_MOST_TRIALS]
    if not trials:
        return None
    others = (name for trial in trials for name in trial.metrics if name.startswith("val_") and name != study.metric)
    metrics = list(dict.fromkeys(others))
    factors = list(dict.fromkeys(name for trial in trials for name in trial.config))
    rows = [
        {
            "trial": trial.trial_id,
            "state": trial.state.value,
            "epochs": trial.epochs,
            "objective": _number(trial.metrics[study.metric]),
            "metrics": [_number(trial.metrics[name]) if name in trial.metrics else "" for name in metrics],
            "config": [text_of(trial.config[name]) if name in trial.config else "" for name in factors],
        }
        for trial in trials
    ]
    return {"metrics": metrics, "factors": factors, "rows": rows}


def _endings(study: ReportedStudy) -> Iterator[dict[str, Any]]:
    """Yield how many trials ended how, and the most frequent reasons where something went wrong."""
    for state, words in _ENDINGS.items():
        reasons = Counter(trial.reason for trial in study.trials if trial.state is state)
        if not reasons:
            continue
        tells = state in (TrialState.FAILED, TrialState.DIVERGED)
        told = [f"{count} × {reason}" for reason, count in reasons.most_common(_MOST_REASONS) if reason] if tells else []
        yield {"state": state.value, "count": reasons.total(), "words": words, "reasons": told}


def _curves(study: ReportedStudy) -> str:
    """Return the picture of all learning curves; empty where nothing was reported."""
    if not any(trial.curve for trial in study.trials):
        return ""
    best = study.ranking[0].trial_id if study.ranking else ""
    curves = [(trial.trial_id, trial.state is TrialState.COMPLETED, trial.curve) for trial in study.trials if trial.curve]
    return _image(as_svg(trial_curves(curves, best, study.metric)))


def _image(svg: bytes) -> str:
    """Return a picture as an address that is the picture; as an image, nothing in it can run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _matters(answer: Importance) -> dict[str, Any]:
    pairs = [pair for pair in answer.pairs if pair.verdict == "important"]
    return {
        "cautions": list(cautions(answer)),
        "figure": _image(as_svg(answer.figure())) if answer.shares else "",
        "rows": [_row(share, answer.notes) for share in (*answer.shares, *pairs)],
        "sentences": list(statements(answer)),
        "guidelines": [guideline.sentence for guideline in answer.guidelines],
        "recommended": [(name, text_of(value)) for name, value in answer.recommended.config.items()]
        if answer.recommended
        else [],
        "predicted": f"{answer.metric} {measured(answer.recommended.predicted)}" if answer.recommended else "",
        "check": answer.check,
        "basis": f"{answer.n_reports} reports of {answer.n_trials} trials, {answer.n_completed} to epoch {answer.budget}",
    }


def _row(share: Share, known: Sequence[str]) -> dict[str, str]:
    """Return what a table says of a share; a reason that stands above the table, one of those `known`, is not repeated."""
    unknown = share.verdict == "not identified"
    return {
        "name": share.name,
        "alone": _percent(share.first_order, only_ends=unknown),
        "total": _percent(share.total, only_ends=unknown),
        "first": "" if share.probability_first is None else f"{amount(share.probability_first)} %",
        "verdict": share.verdict,
        "reason": "" if share.reason in known else share.reason,
    }


def _percent(interval: Interval | None, *, only_ends: bool) -> str:
    if interval is None:
        return ""
    ends = f"({amount(interval.low)} to {amount(interval.high)} %)"
    return ends if only_ends else f"{amount(interval.value)} % {ends}"


def _images(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is told about the images; None where the journal notes nothing."""
    if not data:
        return None
    skipped, classes = list(data.get("skipped", ())), [str(name) for name in data.get("classes", ())]
    return {
        "counts": [(words, data[key]) for key, words in _COUNTS.items() if key in data],
        "n_classes": len(classes),
        "classes": classes[:_MOST_CLASSES],
        "more_classes": max(0, len(classes) - _MOST_CLASSES),
        "n_skipped": len(skipped),
        "skipped": skipped[:_MOST_SKIPPED],
        "more_skipped": max(0, len(skipped) - _MOST_SKIPPED),
        "warnings": list(data.get("warnings", ())),
    }


def _commands(name: str) -> list[tuple[str, str]]:
    """Return the commands to type and what they do; a study's name needs no quotes."""
    return [
        (f"raystudy run {name}.yaml", "the same study again: save the file above under this name"),
        (f"raystudy best {name} -k 5", "the best configurations"),
        (f"raystudy importance {name}", "which factors matter; --at, --given and --within ask further"),
        (f"raystudy trials {name} --out {name}.csv", "every trial with its configuration and metrics"),
        (f"raystudy export {name} --out {name}-model", "the best model, usable without raystudy"),
    ]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


def _duration(started: datetime, ended: datetime) -> str:
    minutes = round((ended - started).total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
