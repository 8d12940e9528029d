"""Commands about study files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from raystudy.data import PreparedData
    from raystudy.finetune.probe import Probe
    from raystudy.finetune.source_models import Sources
    from raystudy.plan import Room
    from raystudy.space import Space
    from raystudy.spec import StudySpec


@click.command()
@options.study_name
@click.option("--template", "-t", default="finetune", show_default=True, help="Which file to begin with; `list` lists them.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it.  [default: NAME.yaml]")
def init(name: str, template: str, out: Path | None) -> None:
    """Write a commented study file."""
    from raystudy.templates import named_copy, names

    if template == "list" or name == "list":
        for known, question in names().items():
            click.echo(f"{known:<16} {question}")
        return
    path = out or Path(f"{name}.yaml")
    named_copy(template, name, path)
    click.echo(f"wrote {path}; edit data.source and backbone, then: raystudy validate {path}")


@click.command()
@options.study_file
@options.overrides
@click.option("--no-probe", is_flag=True, help="Do not measure how fast training is where trials run.")
@options.as_json
def validate(file: Path, overrides: tuple[str, ...], no_probe: bool, as_json: bool) -> None:
    """Check a study file, its images and its backbone, and print the plan; starts nothing."""
    from raystudy import paths
    from raystudy.preflight import check_classes, check_units, read_study, space_of
    from raystudy.tracking.address import tracking_uri
    from raystudy.tracking.sources import fetch_sources

    spec = read_study(file, overrides)
    sources = fetch_sources(spec, tracking_uri(spec.tracking_uri))
    check_units(spec, sources)
    from raystudy.data import open_data
    from raystudy.finetune.trainer import check_weights
    from raystudy.plan import make_plan, plan_to_dict, render_plan

    data, space = open_data(spec, paths.cache()), space_of(spec, sources)
    check_classes(spec, len(data.class_names))
    backbones = list(check_weights(spec, sources).values())
    measured, room = None, None
    if not no_probe:
        # The log of a job on a cluster has stdout and stderr in one: words there would spoil the document.
        measured, room = _measure(
            spec, space, data, sources, say=(lambda _: None) if as_json else partial(click.echo, err=True)
        )
    plan = make_plan(spec, space, data, probe=measured, backbones=backbones, room=room)
    if as_json:
        options.print_json(plan_to_dict(plan))
        return
    from rich.console import Console

    Console().print(render_plan(plan))
    command = "pretrain" if spec.registers == "all" else "run"
    how = "nothing was started" if file == Path("-") else f"start it with: raystudy {command} {file}"
    click.echo(f"{spec.name if file == Path('-') else file} is right; {how}")


def _measure(
    spec: StudySpec, space: Space, data: PreparedData, sources: Sources, *, say: Callable[[str], None]
) -> tuple[Probe | None, Room | None]:
    """Measure a trial where the study's trials would run: here, or on the cluster that RAY_ADDRESS names.

    Returns:
        The measurement, and what trials get on a cluster; nothing where a cluster has no place for a trial.
    """
    from raystudy.host import is_on_shared_ray, ray_session

    if not is_on_shared_ray():
        from raystudy.finetune.backbone import builder_with
        from raystudy.finetune.probe import probe

        return probe(spec, space, data, backbone=builder_with(sources)), None
    with ray_session(spec):
        from raystudy.plan import Room
        from raystudy.search.remote_probe import probe_on_cluster

        there = probe_on_cluster(spec, say, sources)
    if there is None:
        return None, None
    return there.probe, Room(there.cpu, there.gpu, there.concurrent, there.abreast, there.node)


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from raystudy.spec.schema import json_schema

    options.print_json(json_schema())
