"""Commands that ask about studies. They need MLflow only: no cluster, no Ray."""

from __future__ import annotations

from pathlib import Path

import click

from raystudy.cli import options


@click.command("list")
@options.tracking
@options.address
@options.as_json
def list_(tracking_uri: str | None, address: str | None, as_json: bool) -> None:
    """List all studies: state, owner, trials, best, GPU-hours."""
    from raystudy.cluster.board import with_drivers
    from raystudy.cluster.dashboard import find_address
    from raystudy.cluster.service import Cluster
    from raystudy.listing import list_studies

    drivers = Cluster(address).jobs.drivers() if find_address(address) else None
    rows = list_studies(tracking_uri)
    if drivers is not None:
        rows = with_drivers(rows, drivers)
    if as_json:
        options.print_json([row.to_dict() for row in rows])
        return
    from raystudy.cli.tables import studies_table

    options.show(studies_table(rows) if rows else "there are no studies yet: raystudy demo, or raystudy init NAME")


@click.command()
@options.study_name
@options.tracking
@options.address
@options.as_json
def status(name: str, tracking_uri: str | None, address: str | None, as_json: bool) -> None:
    """Show where a study is: trials by state, best so far, whether it waits or has lost its driver."""
    from raystudy.records import StudyState
    from raystudy.studies import lazy_study_on

    study = lazy_study_on(name, tracking_uri, address)
    if not study.is_recorded:  # only its driver is known
        state = study.state
        words = {StudyState.QUEUED: "waits for a place", StudyState.RUNNING: "is starting"}.get(state, "ended before it began")
        options.print_json({"name": name, "state": state.value}) if as_json else click.echo(f"{name} {words}")
        return
    found = study.status().left_as(study.state)
    if as_json:
        options.print_json(found.to_dict())
        return
    from raystudy.cli.tables import status_lines

    options.show(status_lines(found))


@click.command()
@options.study_name
@click.option("-k", default=1, show_default=True, type=click.IntRange(min=1), help="How many, best first.")
@click.option("--where", metavar="EXPR", help='Only trials with, e.g. "data_fraction=0.1, learning_rate<0.01".')
@options.tracking
@options.as_json
def best(name: str, k: int, where: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """Show the best configurations."""
    from raystudy.studies import open_study

    study = open_study(name, tracking_uri=tracking_uri)
    found = study.best(k, where=where)
    if as_json:
        options.print_json([trial.to_dict() for trial in found])
        return
    from raystudy.cli.tables import best_table

    condition = f" with {where}" if where else ""
    options.show(best_table(study, found) if found else f"no trial of {name}{condition} has a result yet")


@click.command()
@options.study_name
@click.option("--out", type=click.Path(path_type=Path), help="Write to FILE.parquet, .csv or .json instead of the screen.")
@options.tracking
@options.as_json
def trials(name: str, out: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    """Show or write the table of all trials."""
    from raystudy.cli import tables
    from raystudy.studies import open_study

    if out is not None:
        tables.check_format(out)
    table = open_study(name, tracking_uri=tracking_uri).trials()
    if out is not None:
        tables.write(table, out)
        click.echo(f"wrote {table.num_rows} trials to {out}", err=True)
    elif as_json:
        options.print_json(table.to_pylist())
    else:
        options.show(tables.trials_table(table))


@click.command()
@options.study_name
@click.argument("trial", metavar="[TRIAL]", required=False)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write; must be empty or absent.")
@options.tracking
def export(name: str, trial: str | None, out: Path, tracking_uri: str | None) -> None:
    """Write the best (or the given) trial's model to a folder that is usable without raystudy."""
    from raystudy.studies import open_study

    written = open_study(name, tracking_uri=tracking_uri).export(out, trial_id=trial)
    for file in written.files:
        click.echo(f"{out / file}")
    for skipped, reason in written.skipped.items():
        click.echo(f"not written: {skipped} ({reason})", err=True)
    click.echo(f"try it: python {out / 'predict.py'} IMAGE...", err=True)


@click.command()
@options.study_name
@click.option("--repair", is_flag=True, help="Make MLflow hold what the journal says.")
@options.tracking
@options.address
@options.as_json
def verify(name: str, repair: bool, tracking_uri: str | None, address: str | None, as_json: bool) -> int:
    """Compare MLflow with the journal: lost, duplicate and orphan runs, wrong values."""
    from raystudy.cluster.dashboard import find_address

    if find_address(address):
        from raystudy.cluster.service import Cluster

        flags = [flag for flag, given in (("--repair", repair), ("--json", as_json)) if given]
        code, output = Cluster(address).jobs.run(["verify", name, *flags])  # the journal is there
        click.echo(output, nl=False)
        return code
    from raystudy.tracking.verify import verify as verify_study

    found = verify_study(name, tracking_uri=tracking_uri, repair=repair)
    if as_json:
        options.print_json(found.to_dict())
    else:
        click.echo(str(found))
    return 0 if found.ok else 1


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@options.tracking
def ui(host: str, port: int, tracking_uri: str | None) -> None:
    """Start the MLflow UI on the tracking store, until Ctrl-C."""
    from raystudy.tracking.ui import serve_ui

    serve_ui(tracking_uri, host=host, port=port)
