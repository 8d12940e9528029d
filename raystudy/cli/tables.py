"""Results as tables: for the screen and for files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raystudy.errors import InputError, Problem
from raystudy.progress import STATE_STYLES, configuration, duration, value

if TYPE_CHECKING:
    import pyarrow as pa

    from raystudy.listing import StudyRow
    from raystudy.query import Study
    from raystudy.results import StudyStatus, Trial

FORMATS = (".parquet", ".csv", ".json")


def studies_table(rows: Sequence[StudyRow]) -> Table:
    """Return the table of `raystudy list`."""
    table = new_table("study", "owner", "state", "trials", "best", "metric", "GPU-hours", "started")
    for row in rows:
        done = sum(count for state, count in row.trials.items() if state not in ("running", "interrupted"))
        best = "" if row.best is None else f"{row.best:.4f}"
        started = row.started.astimezone().strftime("%Y-%m-%d %H:%M")
        trials = f"{done}/{row.budget_trials}" if row.budget_trials else ""
        hours = f"{row.gpu_hours:.2f}" if row.gpu_hours else ""
        table.add_row(row.name, row.owner, _state(row.state.value), trials, best, row.metric, hours, started)
    return table


def status_lines(found: StudyStatus) -> RenderableType:
    """Return what `raystudy status` shows."""
    took = (found.ended or datetime.now(found.started.tzinfo)) - found.started
    counts = ", ".join(f"{count} {state}" for state, count in found.trials.items()) or "none yet"
    lines = [
        Text.assemble((found.name, "bold"), " ", _state(found.state.value), f" {found.reason}"),
        Text(f"trials   {counts}, of {found.budget_trials}; {found.epochs_trained} epochs in {duration(took.total_seconds())}"),
    ]
    if found.best is not None:
        score = found.best.metrics[found.metric]
        lines.append(Text(f"best     {found.metric} {score:.4f}, {found.best.trial_id}: {configuration(found.best.config)}"))
    lines.append(Text(f"recorded {found.tracking_uri}, experiment {found.experiment_id}, run {found.run_id}", style="dim"))
    return Group(*lines)


def best_table(study: Study, trials: Sequence[Trial]) -> Table:
    """Return the table of `raystudy best`: the objective first, then the configuration."""
    metrics = [study.metric, *(name for name in trials[0].metrics if name.startswith("val_") and name != study.metric)]
    factors = list(dict.fromkeys(name for trial in trials for name in trial.config))
    table = new_table("trial", "state", "epochs", *metrics, *factors)
    for trial in trials:
        scores = [f"{trial.metrics[name]:.4f}" if name in trial.metrics else "" for name in metrics]
        values = [value(trial.config[name]) if name in trial.config else "" for name in factors]
        table.add_row(trial.trial_id, _state(trial.state.value), str(trial.epochs), *scores, *values)
    return table


def trials_table(data: pa.Table) -> Table:
    """Return the table of `raystudy trials`: what fits a screen; `--out` has every column."""
    left_out = {"run_id", "number", "started", "ended", "node", "reason"}
    timing = ("images_per_second", "epoch_seconds", "gpu_peak_gib")
    names = [
        name for name in data.column_names if name not in left_out and not name.endswith(timing) and name != "best_train_loss"
    ]
    table = new_table(*names)
    for row in data.to_pylist():
        table.add_row(*(_state(row[name]) if name == "state" else _cell(row[name]) for name in names))
    return table


def check_format(path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Refuse a file whose ending names no format, before anything is read."""
    if path.suffix not in formats:
        raise InputError(Problem("--out", f"got {path}", f"expected a file that ends in {', '.join(formats)}"))


def write(table: pa.Table, path: Path) -> None:
    """Write all columns of `table` in the format that the ending of `path` names."""
    with writing(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, path)
        elif path.suffix == ".csv":
            import pyarrow.csv

            pyarrow.csv.write_csv(table, path)
        else:
            write_json(table.to_pylist(), path)


def write_json(data: object, path: Path) -> None:
    """Write plain data as a JSON document."""
    with writing(path):
        path.write_text(json.dumps(data, indent=2, default=str) + "\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the refusal of a disk or a folder into a problem with `--out`."""
    try:
        yield
    except OSError as error:
        raise InputError(Problem("--out", f"{path} cannot be written: {error.strerror or error}")) from error


def new_table(*titles: str) -> Table:
    """Return a table without rows, in the style of all tables."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def _cell(content: Any) -> str:
    return "" if content is None else value(content)
