"""Commands that bring studies to a cluster and look after them there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from raystudy.cluster.service import Cluster, Submitted


@click.command()
@options.study_file
@options.overrides
@click.option("--name", help="Give the study another name than the file's.")
@options.address
@click.option("--resume", "may_resume", is_flag=True, help="Continue the study if there is one of this name and file.")
@options.follow
@click.option("--dry-run", is_flag=True, help="Check everything on the cluster and print the plan and its cost; start nothing.")
@options.as_json
def submit(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    address: str | None,
    may_resume: bool,
    follows: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Submit a study to a cluster, where it runs whether or not this machine stays on."""
    from raystudy.cluster.service import Cluster
    from raystudy.preflight import read_study

    spec = read_study(file, overrides, name=name, is_here=False)
    cluster = Cluster(address)
    if dry_run:
        click.echo(cluster.plan(spec, as_json=as_json), nl=False)
        return 0
    tell(spec.name, cluster, cluster.submit(spec, resume=may_resume), as_json=as_json)
    return follow(cluster, spec.name) if follows else 0


def resume_on_cluster(name: str, overrides: tuple[str, ...], address: str | None, *, as_json: bool) -> int:
    """Submit another driver for a study."""
    from raystudy.cluster.service import Cluster

    cluster = Cluster(address)
    tell(name, cluster, cluster.resume(name, overrides), as_json=as_json)
    return 0


def follow(cluster: Cluster, name: str) -> int:
    """Show a study until its driver ends; return the exit code of a command that did this."""
    from raystudy.records import StudyState
    from raystudy.watch import watch_events

    try:
        state = watch_events(name, cluster.events(name))
    except KeyboardInterrupt:
        click.echo(f"detached; the study goes on: `raystudy watch {name}` comes back, `raystudy stop {name}` ends it", err=True)
        return 0
    return {StudyState.COMPLETED: 0, StudyState.INTERRUPTED: 130}.get(state, 1)


def print_cluster_log(name: str, trial: str | None, address: str | None) -> None:
    """Print the log of a trial, or what the drivers of a study printed, events in words."""
    from raystudy.cluster.service import Cluster
    from raystudy.event_lines import event_from_text
    from raystudy.progress import event_line

    cluster = Cluster(address)
    if trial is not None:
        click.echo(cluster.trial_log(name, trial), nl=False)
        return
    for line in cluster.jobs.log(cluster.driver(name).job_id).splitlines():
        event = event_from_text(line)
        click.echo(line if event is None else event_line(event))


def tell(name: str, cluster: Cluster, taken: Submitted, *, as_json: bool) -> None:
    """Say that a cluster has taken a study, and how to go on."""
    if as_json:
        about = {"name": name, "job_id": taken.job.job_id, "state": taken.state, "address": cluster.address}
        options.print_json(about)
        return
    words = {"running": "runs", "starting": "is starting", "queued": "waits for a place"}[taken.state]
    click.echo(f"{name} {words} on {cluster.address} as the job {taken.job.job_id}")
    click.echo(f"follow  raystudy watch {name}")
    click.echo(f"ask     raystudy status {name}; raystudy best {name}; raystudy list")
    click.echo(f"end     raystudy stop {name}")
