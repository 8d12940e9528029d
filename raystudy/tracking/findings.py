"""What matters in a study: the question put to the estimator, from the journal or from MLflow, and the files of the answer.

At the end of a study the MLflow writer runs this module as a process: `python -m raystudy.tracking.findings --root DIR`. It
writes the files into the study's folder; whatever goes wrong is one line of the log and an `error` in importance.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystudy.errors import InputError, Problem
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.findings.answer import Importance
from raystudy.garbage import collect_rarely
from raystudy.paths import StudyPaths
from raystudy.records import StudyRecord, TrialState
from raystudy.spec import StudySpec
from raystudy.spec.depths import asks_for_units, resolved, resolved_factors
from raystudy.spec.messages import nearest
from raystudy.tracking import names
from raystudy.tracking.content import factor_kind, param_value, spec_of
from raystudy.tracking.rows import ReportRow, TrialRow

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

    from raystudy.tracking.store import Store

LIMIT_S = 240.0
"""How long the findings may take at the end of a study; a tenth of it is usual for thousands of trials."""
STATE, KEPT = "state", "kept"
_WORDS = {"float": "a number", "int": "a whole number", "bool": "true or false"}

_log = logging.getLogger("raystudy.findings")


def ask(
    spec: StudySpec,
    trials: Iterable[TrialRow],
    reports: pa.Table,
    *,
    n_units: int | None = None,
    at: int | None = None,
    given: Mapping[str, Scalar] | None = None,
    within: str | None = None,
    plan: bool = False,
    seed: int = 0,
) -> Importance:
    """Return what matters for the objective of a study.

    Args:
        spec: the study.
        trials: all of its trials.
        reports: all of their reports.
        n_units: what `max` stands for in frozen depths; found out where it is not known.
        at: the epoch, by default the last one of the budget.
        given: factors that are fixed, `max` allowed.
        within: a region of the factors as text.
        plan: whether to say what would settle what is open.
        seed: of the computation.

    Raises:
        InputError: an epoch, a factor or a region that the study does not have.
    """
    known = {name: value for name, value in (given or {}).items() if value == PROBE_DEPTH}
    if n_units is None and (known or asks_for_units(spec.all_factors)):
        from raystudy.preflight import smallest_unit_count

        n_units = smallest_unit_count(spec)
    factors = resolved_factors(spec.all_factors, n_units)
    table = evidence(reports, trials, list(factors), spec.metric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # gpytorch's own, about torch.jit
        from raystudy.findings.importance import importance

        return importance(
            table,
            factors,
            metric=spec.metric,
            mode=spec.mode,
            budget=spec.budget.epochs,
            at=at,
            given={name: resolved(name, value, n_units) for name, value in (given or {}).items()} or None,
            within=within,
            roles={name: spec.role(name) for name in factors},
            plan=plan,
            seed=seed,
        )


def evidence(reports: pa.Table, trials: Iterable[TrialRow], factors: Sequence[str], metric: str) -> pa.Table:
    """Return the table that the estimator takes.

    Args:
        reports: one row per trial and epoch.
        trials: all trials; those without a report get a row without an epoch, since it matters how they ended.
        factors: the columns of configurations.
        metric: the column that is explained.

    Returns:
        Columns trial_id, epoch, the metric, the factors, `state` (how the trial ended) and `kept` (whether it is a hold-out).
    """
    import pyarrow as pa

    from raystudy.tracking.tables import reports_table_of

    rows = {row.trial_id: row for row in trials}
    if metric not in reports.column_names:  # nobody has reported anything yet
        reports = reports.append_column(metric, pa.nulls(reports.num_rows, pa.float64()))
    reports = reports.select(["trial_id", "epoch", metric, *factors])
    silent = rows.keys() - set(reports.column("trial_id").to_pylist())
    if silent:
        found = [ReportRow(row.trial_id, row.number, 0, 0, {}, row.config) for row in rows.values() if row.trial_id in silent]
        without_epoch = reports_table_of(found, factors).select(["trial_id", *factors])
        reports = pa.concat_tables([reports, without_epoch], promote_options="default")
    known = [rows.get(trial_id) for trial_id in reports.column("trial_id").to_pylist()]
    states = [row.state if row else TrialState.RUNNING.value for row in known]  # it began after the trials were read
    kept = [row is not None and row.kept for row in known]
    return reports.append_column(STATE, pa.array(states, pa.string())).append_column(KEPT, pa.array(kept, pa.bool_()))


def given_of(texts: Iterable[str], factors: Iterable[str]) -> dict[str, Scalar]:
    """Read `NAME=VALUE`, each value with the type of its factor.

    Raises:
        InputError: with every text that is none, names no factor of the study, or has a value of another type.
    """
    known = list(factors)
    values: dict[str, Scalar] = {}
    problems: list[Problem] = []
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            problems.append(Problem("--given", f"got {text!r}", "expected NAME=VALUE"))
        elif name not in known:
            problems.append(Problem(f"--given {name}", "does not vary in this study", nearest(name, known)))
        else:
            try:
                values[name] = _typed(name, value)
            except ValueError:
                problems.append(Problem(f"--given {name}", f"got {value!r}", f"expected {_WORDS[factor_kind(name)]}"))
    if problems:
        raise InputError(problems)
    return values


def _typed(name: str, text: str) -> Scalar:
    if name == "frozen_depth" and text == PROBE_DEPTH:
        return text
    if factor_kind(name) == "bool" and text not in ("true", "false"):
        raise ValueError(text)
    return param_value(name, text)


# The files of an answer


def write_files(answer: Importance, folder: Path) -> None:
    """Write an answer as JSON, table and figure; the JSON last, so that where it is, all are."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_views(answer.table(), answer.figure(), folder)
    _write_json(answer.to_dict(), folder)


def write_error(error: str, folder: Path) -> None:
    """Write why there is no answer, in the place of one that may have been there."""
    folder.mkdir(parents=True, exist_ok=True)
    nothing = Importance(metric="", mode="max", budget=1, at=1)
    try:
        from raystudy.findings.figures import notice

        _write_views(nothing.table(), notice(f"There are no findings: {error}"), folder)
    except Exception as problem:  # it may be the table or the figure that cannot be made
        _log.error("no table and no figure of findings: %s", problem)
    _write_json({"error": error}, folder)


def _write_views(table: pa.Table, figure: Figure, folder: Path) -> None:
    import pyarrow.parquet as pq

    from raystudy.findings.figures import save

    with _replacing(folder / names.IMPORTANCE_TABLE) as file:
        pq.write_table(table, file)
    with _replacing(folder / names.IMPORTANCE_FIGURE) as file:
        save(figure, file)


def _write_json(data: object, folder: Path) -> None:
    with _replacing(folder / names.IMPORTANCE_FILE) as file:
        file.write_text(json.dumps(data, indent=2))


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Give the path of a file that takes the place of `file` when it is complete; its ending is the same."""
    scratch = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        yield scratch
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def store_files(store: Store, run_id: str, folder: Path) -> None:
    """Store the files of an answer, and the page about the study, on the study's run."""
    for name in (names.IMPORTANCE_TABLE, names.IMPORTANCE_FIGURE, names.REPORT_FILE, names.IMPORTANCE_FILE):
        if (folder / name).exists():
            store.upload(run_id, folder / name)


def latest(files: StudyPaths) -> Importance | None:
    """Return the answer in a study's folder; None where there is none, or the study has gone on since."""
    found = _latest(files)
    try:
        return Importance.from_dict(found) if found and "error" not in found else None
    except ValueError:  # of another version
        return None


def conclusion(files: StudyPaths) -> list[str]:
    """Return what matters in a study that has ended, in a few sentences; none where nothing was computed."""
    from raystudy.findings.sentences import headline

    found = _latest(files) or {}
    if "error" in found:
        return [f"could not be computed: {found['error']}"]
    answer = latest(files)
    return headline(answer) if answer else []


def _latest(files: StudyPaths) -> dict[str, Any] | None:
    path = files.findings / names.IMPORTANCE_FILE
    try:
        if path.stat().st_mtime < files.journal.stat().st_mtime:
            return None
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


# The process


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what matters from a study's journal and write the files; see the module's text.

    The page about the study comes first without what matters: it is there if this process is ended before it has an answer.
    """
    collect_rarely()
    parser = argparse.ArgumentParser(prog="raystudy.tracking.findings")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--wait", action="store_true", help="begin when a byte comes on standard input, end when that ends")
    options = parser.parse_args(arguments)
    files = StudyPaths(options.root)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    from raystudy.tracking.report import leave_page

    if options.wait:
        _read_libraries()
        if not os.read(sys.stdin.fileno(), 1):
            return 0
    signal.alarm(int(LIMIT_S) + 60)  # the writer ends it earlier, if it still lives
    record: StudyRecord | None = None
    try:
        record = _record(files)
        leave_page(record, files.findings, None)
        answer = _of_record(record)
        leave_page(record, files.findings, answer)
        write_files(answer, files.findings)
    except Exception as error:  # a study has ended well without them
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _log.error("the findings could not be computed: %s", text)
        if record is not None:
            leave_page(record, files.findings, None, f"What matters could not be computed: {text}.")
        write_error(text, files.findings)
    return 0


def _read_libraries() -> None:
    """Import what computing and drawing takes, for seconds; where that is not possible, computing says why."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import raystudy.findings.figures
        import raystudy.findings.importance
        import raystudy.findings.report
        import raystudy.tracking.tables  # noqa: F401


def _record(files: StudyPaths) -> StudyRecord:
    from raystudy.tracking.journal import read_journal

    return StudyRecord.fold(read_journal(files.journal))


def _of_record(record: StudyRecord) -> Importance:
    from raystudy.tracking.tables import reports_table, trial_row

    spec = spec_of(record)
    rows = [trial_row(trial, "", spec.metric, spec.mode) for trial in record.trials.values()]
    return ask(spec, rows, reports_table(record), n_units=record.n_units)


if __name__ == "__main__":
    sys.exit(main())
