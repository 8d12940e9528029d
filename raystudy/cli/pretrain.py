"""The command that makes source models: the registered models that studies about the source begin with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from raystudy.driver import Outcome
    from raystudy.records import TrialRecord
    from raystudy.spec import StudySpec


@click.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path(path_type=Path))
@options.overrides
@click.option("--name", help="Give the source models another name than the file's.")
@options.tracking
@click.option("--inline", is_flag=True, help="Train in this process, one model after another, without Ray.")
@click.option("--resume", "may_resume", is_flag=True, help="Go on with the models of this name and file if there are some.")
@click.option("--address", metavar="URL", help="Train on the cluster with this dashboard, such as http://127.0.0.1:8265.")
@options.follow
@options.as_json
def pretrain(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    tracking_uri: str | None,
    inline: bool,
    may_resume: bool,
    address: str | None,
    follows: bool,
    as_json: bool,
) -> int:
    """Train source models on numbers of categories and of images, and register each under an alias for studies to name."""
    from raystudy.preflight import read_study

    if follows and address is None:
        raise click.UsageError("--follow goes with --address; on this machine the training is shown anyway")
    is_here = address is None
    spec = read_study(file, overrides, name=name, tracking_uri=tracking_uri, is_here=is_here, is_for_sources=True)
    if address is not None:
        return _submit(spec, address, may_resume=may_resume, follows=follows, as_json=as_json)
    from raystudy.cli.studies import conduct, exit_code

    outcome = conduct(spec, inline=inline, may_resume=may_resume)
    models = _models(spec, outcome)
    if as_json:
        options.print_json({**outcome.to_dict(), "models": [asdict(model) for model in models]})
    else:
        click.echo(_summary(spec, outcome, models))
    return exit_code(outcome) or int(any(not model.version for model in models))


@dataclass(frozen=True, slots=True)
class _Model:
    """A source model: the trial that made it, how a study names it, and its version in MLflow (empty: not registered)."""

    alias: str
    backbone: str
    trial_id: str
    state: str
    reason: str
    val_accuracy: float | None
    version: str


def _submit(spec: StudySpec, address: str, *, may_resume: bool, follows: bool, as_json: bool) -> int:
    from raystudy.cli.submit import follow, tell
    from raystudy.cluster.service import Cluster

    cluster = Cluster(address)
    tell(spec.name, cluster, cluster.submit(spec, resume=may_resume), as_json=as_json)
    return follow(cluster, spec.name) if follows else 0


def _models(spec: StudySpec, outcome: Outcome) -> list[_Model]:
    """Return what became of every model, in the order of the file."""
    from raystudy.paths import StudyPaths
    from raystudy.records import StudyRecord
    from raystudy.spec.sources import alias_of
    from raystudy.tracking.journal import read_journal

    trials = StudyRecord.fold(read_journal(StudyPaths.of(spec.name).journal)).trials.values()
    registered = _registered(spec) if outcome.recorded else {}
    found = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        alias = alias_of(trial.config)
        accuracy = _accuracy(trial, spec)
        backbone = f"models:/{spec.name}@{alias}"
        version = registered.get(alias, "")
        found.append(_Model(alias, backbone, trial.trial_id, trial.state.value, trial.reason, accuracy, version))
    return found


def _registered(spec: StudySpec) -> dict[str, str]:
    """Return the versions of the study's registered model by alias; none where the store does not answer just now."""
    from raystudy.errors import UnreachableError
    from raystudy.tracking.address import study_uri
    from raystudy.tracking.registry import Registry
    from raystudy.tracking.store import Store

    try:
        return Registry(Store(study_uri(spec.name, spec.tracking_uri))).aliases(spec.name) or {}
    except UnreachableError as error:
        click.echo(f"warning: {error}", err=True)
        return {}


def _accuracy(trial: TrialRecord, spec: StudySpec) -> float | None:
    epoch = trial.best_epoch(spec.metric, spec.mode)
    return None if epoch is None else trial.reports[epoch].metrics.get("val_accuracy")


def _summary(spec: StudySpec, outcome: Outcome, models: Sequence[_Model]) -> str:
    from raystudy.progress import duration

    made = sum(bool(model.version) for model in models)
    lines = ["", f"{spec.name} {outcome.state.value}: {made} of {len(models)} models in {duration(outcome.wall_seconds)}"]
    width = max((len(model.backbone) for model in models), default=0)
    for model in models:
        accuracy = "-" if model.val_accuracy is None else f"{model.val_accuracy:.4f}"
        trouble = "" if model.version else f"   not registered: {model.state}" + (f", {model.reason}" if model.reason else "")
        lines.append(f"  {model.backbone:<{width}}  val_accuracy {accuracy}{trouble}")
    if not outcome.recorded:
        lines.append(f"MLflow  is not complete yet: `raystudy verify {spec.name} --repair` completes it from the journal")
    elif made:
        lines += ["", "in a study file, one of them or a factor:", *_examples(spec, models)]
    if made < len(models) and sys.stderr.isatty():
        lines.append(f"resume  raystudy pretrain FILE.yaml --resume, or raystudy resume {spec.name}")
    return "\n".join(lines)


def _examples(spec: StudySpec, models: Sequence[_Model]) -> list[str]:
    """Return how a study names these models."""
    first = next(model for model in models if model.version)
    names = {
        "categories": "source_categories",
        "images_per_class": "source_images_per_category",
        "seed": "source_seed",
        "training_objective": "source_objective",
    }
    factors = [
        f"{names[name]}: {{choice: [{', '.join(map(str, factor.choice or ()))}]}}" for name, factor in spec.factors.items()
    ]
    return [
        f"  backbone: {first.backbone}",
        f"  fixed: {{source: {spec.name}}}   and under factors: {'; '.join(factors)}",
    ]
