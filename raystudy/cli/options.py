"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def study_file(command: Command) -> Command:
    """Add the argument STUDY.yaml."""
    return click.argument("file", metavar="STUDY.yaml", type=click.Path(path_type=Path))(command)


def overrides(command: Command) -> Command:
    """Add `--set k.e.y=VALUE`."""
    return click.option("--set", "overrides", multiple=True, metavar="k.e.y=VALUE", help="Change a value of the study file.")(
        command
    )


def study_name(command: Command) -> Command:
    """Add the argument NAME."""
    return click.argument("name", metavar="NAME")(command)


def tracking(command: Command) -> Command:
    """Add `--tracking-uri`."""
    text = "MLflow's address; by default the study file's, then MLFLOW_TRACKING_URI, then a local store."
    return click.option("--tracking-uri", metavar="URI", help=text)(command)


def address(command: Command) -> Command:
    """Add `--address`."""
    text = "A cluster's dashboard, such as http://127.0.0.1:8265; by default RAY_API_SERVER_ADDRESS, else this machine."
    return click.option("--address", metavar="URL", help=text)(command)


def follow(command: Command) -> Command:
    """Add `--follow`."""
    text = "Show the study until it ends; Ctrl-C detaches, it stops nothing."
    return click.option("--follow", "-f", "follows", is_flag=True, help=text)(command)


def events(command: Command) -> Command:
    """Add `--events`."""
    text = "Print every event of the study as a line of JSON on stdout, for other programs."
    return click.option("--events", is_flag=True, help=text)(command)


def as_json(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")(command)


def print_json(data: object) -> None:
    """Print one JSON document."""
    json.dump(data, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def show(renderable: object) -> None:
    """Print for people: tables on a terminal, as wide as they need to be in a pipe."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 200), highlight=False)
    console.print(renderable, highlight=False)
