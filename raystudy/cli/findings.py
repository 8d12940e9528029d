"""The command that asks what matters. It needs MLflow only: no cluster, no Ray."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from raystudy.findings.answer import Importance
    from raystudy.query import Study

_FIGURES = (".png", ".svg")


@click.command()
@options.study_name
@click.option("--at", metavar="EPOCH", type=click.IntRange(min=1), help="Ask about this epoch; by default the budget's last.")
@click.option("--interactions", is_flag=True, help="Also list the interactions of two factors.")
@click.option("--given", "given", multiple=True, metavar="NAME=VALUE", help="Take a factor as fixed, e.g. data_fraction=0.1.")
@click.option("--within", metavar="EXPR", help='Ask about a part of what was declared, e.g. "learning_rate<0.01".')
@click.option("--plan", is_flag=True, help="Also say what would settle what is not settled yet.")
@click.option("--record", is_flag=True, help="Put the answer into MLflow, in the place of the one there.")
@click.option("--out", type=click.Path(path_type=Path), help="Write to FILE.png, .svg, .json, .csv or .parquet instead.")
@click.option("--seed", default=0, show_default=True, help="Of the computation.")
@options.tracking
@options.as_json
def importance(
    name: str,
    at: int | None,
    interactions: bool,
    given: tuple[str, ...],
    within: str | None,
    plan: bool,
    record: bool,
    out: Path | None,
    seed: int,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Show which factors matter, by how much, and how sure that is: from all trials, the stopped ones included."""
    from raystudy.cli import tables
    from raystudy.studies import open_study

    if out is not None:
        tables.check_format(out, (*_FIGURES, ".json", ".csv", ".parquet"))
    if record:
        _check_is_whole(at=at, given=given, within=within)
    study = open_study(name, tracking_uri=tracking_uri)
    with busy("Computing which factors matter"):
        answer = study.importance(at, given=_given(study, given), within=within, plan=plan, seed=seed)
        if record:
            study.record(answer)
    if out is not None:
        _write(answer, out)
        click.echo(f"wrote what matters in {name} to {out}", err=True)
    if as_json:
        options.print_json(answer.to_dict())
    elif out is None:
        from raystudy.cli.importance_table import shown

        options.show(shown(answer, interactions=interactions))
    if record:
        click.echo(f"recorded in MLflow, with the study {name}", err=True)


def _check_is_whole(**parts: Any) -> None:
    """Refuse to record an answer about a part of the question as the study's answer."""
    from raystudy.errors import InputError, Problem

    if got := [f"--{name}" for name, value in parts.items() if value]:
        accepted = f"leave out {' and '.join(got)}, or keep this answer with --out"
        raise InputError(Problem("--record", "MLflow holds one answer a study, about all of it", accepted))


def _given(study: Study, texts: tuple[str, ...]) -> dict[str, Any]:
    from raystudy.tracking.findings import given_of

    return given_of(texts, study.spec.all_factors) if texts else {}


def busy(doing: str) -> AbstractContextManager[object]:
    """Show on a terminal that something is going on."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(doing)


def _write(answer: Importance, path: Path) -> None:
    from raystudy.cli import tables

    if path.suffix in _FIGURES:
        from raystudy.findings.figures import save

        with tables.writing(path):
            save(answer.figure(), path)
    elif path.suffix == ".json":
        tables.write_json(answer.to_dict(), path)
    else:
        tables.write(answer.table(), path)
