"""Commands that run studies and look after running ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from raystudy.driver import Outcome
    from raystudy.spec import StudySpec
    from raystudy.watcher import Watcher


@click.command()
@click.option("--trials", type=click.IntRange(min=1), help="Run fewer or more trials than the demo's own number.")
@options.tracking
@options.as_json
def demo(trials: int | None, tracking_uri: str | None, as_json: bool) -> int:
    """Run a real study on this machine: pretrained weights, real images, minutes, no network, no GPU needed."""
    from raystudy.preflight import read_study
    from raystudy.templates import template

    changes = [f"budget.trials={trials}"] if trials else []
    with template("quickstart") as file:
        spec = read_study(file, changes, name=_free_name("quickstart"), tracking_uri=tracking_uri)
    return _run(spec, inline=False, as_json=as_json)


@click.command()
@options.study_file
@options.overrides
@click.option("--name", help="Give the study another name than the file's.")
@options.tracking
@click.option("--inline", is_flag=True, help="Run in this process, one trial after another, without Ray.")
@click.option("--resume", "may_resume", is_flag=True, help="Continue the study if there is one of this name and file.")
@options.events
@options.as_json
def run(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    tracking_uri: str | None,
    inline: bool,
    may_resume: bool,
    events: bool,
    as_json: bool,
) -> int:
    """Run a study to its end; `-` reads the study file from standard input."""
    from raystudy.host import check_client
    from raystudy.preflight import read_study

    check_client()
    spec = read_study(file, overrides, name=name, tracking_uri=tracking_uri)
    return _run(spec, inline=inline, as_json=as_json, may_resume=may_resume, events=events)


@click.command()
@options.study_name
@options.overrides
@options.tracking
@click.option("--inline", is_flag=True, help="Run in this process, one trial after another, without Ray.")
@options.events
@options.address
@options.as_json
def resume(
    name: str,
    overrides: tuple[str, ...],
    tracking_uri: str | None,
    inline: bool,
    events: bool,
    address: str | None,
    as_json: bool,
) -> int:
    """Continue a study that was interrupted or whose process died; --set budget.trials=N extends a finished one."""
    from raystudy.cluster.dashboard import find_address

    if find_address(address) and not inline:
        from raystudy.cli.submit import resume_on_cluster

        return resume_on_cluster(name, overrides, address, as_json=as_json)
    from raystudy.driver import Setting
    from raystudy.driver import resume as continue_study
    from raystudy.host import check_client
    from raystudy.preflight import check
    from raystudy.spec.text import apply_overrides

    check_client()

    def changed(spec: StudySpec) -> StudySpec:
        return check(apply_overrides(spec.to_dict(), overrides), title=name)

    setting = Setting(inline=inline, tracking_uri=tracking_uri)
    outcome = continue_study(name, changed if overrides else None, setting, shown_progress(events=events))
    return _finish(outcome, as_json=as_json, events=events)


@click.command()
@options.study_name
@options.address
def stop(name: str, address: str | None) -> None:
    """Stop a running study cleanly: its state is saved, `resume` continues it."""
    from raystudy.cluster.dashboard import find_address

    if find_address(address):
        from raystudy.cluster.service import Cluster

        job = Cluster(address).stop(name)
        click.echo(f"asked the job {job.job_id} to stop; `raystudy resume {name}` continues the study")
        return
    from raystudy.host import stop as stop_study

    pid = stop_study(name)
    click.echo(f"asked process {pid} to stop; `raystudy resume {name}` continues the study")


@click.command()
@options.study_name
@click.argument("trial", metavar="[TRIAL]", required=False)
@options.address
def logs(name: str, trial: str | None, address: str | None) -> None:
    """Print the log of a trial, or the events of the study."""
    from raystudy.cluster.dashboard import find_address

    if find_address(address):
        from raystudy.cli.submit import print_cluster_log

        print_cluster_log(name, trial, address)
        return
    from raystudy.errors import NotFoundError
    from raystudy.host import existing
    from raystudy.paths import StudyPaths
    from raystudy.progress import event_line
    from raystudy.spec.messages import nearest
    from raystudy.tracking.journal import read_events

    files: StudyPaths = existing(name)
    if trial is None:
        for _, event in read_events(files.journal):
            click.echo(event_line(event))
        return
    if not files.log(trial).exists():
        known = sorted(path.stem for path in files.logs.glob("*.log"))
        raise NotFoundError(f"the study {name!r} has no log of a trial {trial!r}; {nearest(trial, known)}")
    click.echo(files.log(trial).read_text(), nl=False)


@click.command()
@options.study_name
@options.address
def watch(name: str, address: str | None) -> int:
    """Show a running study until it ends; Ctrl-C stops watching, not the study."""
    from raystudy.cluster.dashboard import find_address

    if find_address(address):
        from raystudy.cli.submit import follow
        from raystudy.cluster.service import Cluster

        return follow(Cluster(address), name)
    from raystudy.watch import watch_study

    watch_study(name)
    return 0


def _run(spec: StudySpec, *, inline: bool, as_json: bool, may_resume: bool = False, events: bool = False) -> int:
    outcome = conduct(spec, inline=inline, may_resume=may_resume, events=events)
    return _finish(outcome, as_json=as_json, events=events)


def conduct(spec: StudySpec, *, inline: bool, may_resume: bool = False, events: bool = False) -> Outcome:
    """Run a study, or continue the one of its name, and show how it goes."""
    from raystudy import driver

    setting, watcher = driver.Setting(inline=inline), shown_progress(events=events)
    if may_resume and driver.exists(spec.name):
        return driver.resume(spec.name, lambda _: spec, setting, watcher)
    return driver.run(spec, setting, watcher)


def shown_progress(*, events: bool = False) -> Watcher:
    """Return what shows progress, on stderr: stdout is for results, or for events where somebody reads those."""
    from rich.console import Console

    from raystudy.progress import EventStream, LiveProgress, PlainProgress

    if events:
        return EventStream(sys.stdout, sys.stderr)

    console = Console(stderr=True)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def _finish(outcome: Outcome, *, as_json: bool, events: bool = False) -> int:
    if as_json:
        options.print_json(outcome.to_dict())
    else:
        click.echo(_summary(outcome), err=events)
    return exit_code(outcome)


def exit_code(outcome: Outcome) -> int:
    """Return the exit code of a command that ran a study."""
    from raystudy.records import StudyState

    return {StudyState.COMPLETED: 0, StudyState.INTERRUPTED: 130}.get(outcome.state, 1)


def _summary(outcome: Outcome) -> str:
    from raystudy.progress import configuration, duration
    from raystudy.records import StudyState

    counts = ", ".join(f"{count} {state}" for state, count in outcome.trials.items())
    lines = [
        "",
        f"{outcome.name} {outcome.state.value}: {counts}; {outcome.epochs_trained} epochs in {duration(outcome.wall_seconds)}"
        + (f" ({outcome.reason})" if outcome.reason else ""),
    ]
    if best := outcome.best:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in best["metrics"].items() if name.startswith("val_"))
        lines += [
            f"best    {best['trial_id']}, {best['state']}, at epoch {best['epoch']}: {metrics}",
            f"        {configuration(best['config'])}",
        ]
    lines += _findings(outcome.name)
    if not outcome.recorded:
        lines.append(f"MLflow  is not complete yet: `raystudy verify {outcome.name} --repair` completes it from the journal")
    if outcome.state is StudyState.INTERRUPTED:
        lines.append(f"resume  raystudy resume {outcome.name}")
    is_served = outcome.tracking_uri.startswith(("http://", "https://"))
    lines += [
        f"browse  {outcome.tracking_uri}" if is_served else "browse  raystudy ui",
        f"ask     raystudy importance {outcome.name}; raystudy best {outcome.name} -k 5; raystudy trials {outcome.name};",
        f"        raystudy export {outcome.name} --out {outcome.name}-model",
    ]
    return "\n".join(lines)


def _findings(name: str) -> list[str]:
    """Return what matters in a study that has just ended, in a few lines."""
    from raystudy.paths import StudyPaths
    from raystudy.tracking.findings import conclusion

    return [("" if index else "matters").ljust(8) + line for index, line in enumerate(conclusion(StudyPaths.of(name)))]


def _free_name(name: str) -> str:
    """Return `name`, or `name-2`, `name-3`, ... if studies of that name are there already."""
    from raystudy.paths import StudyPaths

    candidates = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(candidate for candidate in candidates if not StudyPaths.of(candidate).journal.exists())
