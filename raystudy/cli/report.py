"""The command that writes a study down for people. It needs MLflow only: no cluster, no Ray."""

from __future__ import annotations

from pathlib import Path

import click

from raystudy.cli import options

_ENDINGS = (".html", ".htm")


@click.command()
@options.study_name
@click.option("--out", type=click.Path(path_type=Path), help="The file to write.  [default: NAME-report.html]")
@options.tracking
def report(name: str, out: Path | None, tracking_uri: str | None) -> None:
    """Write a page for colleagues: best trials, which factors matter, what to do, how it was done; one HTML file."""
    from raystudy.cli.findings import busy
    from raystudy.cli.tables import check_format
    from raystudy.studies import open_study

    path = out or Path(f"{name}-report.html")
    check_format(path, _ENDINGS)
    study = open_study(name, tracking_uri=tracking_uri)
    with busy("Writing the report"):
        study.report(path)
    click.echo(f"wrote {path}", err=True)
