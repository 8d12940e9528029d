"""Commands about study files."""

from __future__ import annotations

from pathlib import Path

import click

from raystudy.cli import options


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
@click.option("--no-probe", is_flag=True, help="Do not measure how fast training is here.")
@options.as_json
def validate(file: Path, overrides: tuple[str, ...], no_probe: bool, as_json: bool) -> None:
    """Check a study file, its images and its backbone, and print the plan; starts nothing."""
    from raystudy import paths
    from raystudy.preflight import read_study, space_of

    spec = read_study(file, overrides)
    from raystudy.finetune.trainer import check_weights, open_data
    from raystudy.plan import make_plan, plan_to_dict, render_plan

    data, space = open_data(spec, paths.cache()), space_of(spec)
    backbones = list(check_weights(spec).values())
    measured = None
    if not no_probe:
        from raystudy.finetune.probe import probe

        measured = probe(spec, space, data)
    plan = make_plan(spec, space, data, probe=measured, backbones=backbones)
    if as_json:
        options.print_json(plan_to_dict(plan))
        return
    from rich.console import Console

    Console().print(render_plan(plan))
    click.echo(f"{file} is right; start it with: raystudy run {file}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from raystudy.spec.schema import json_schema

    options.print_json(json_schema())
