from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import SPEC, metrics_of, spec_dict, study_events

from raystudy.factors import FACTORS, Scalar
from raystudy.records import StudyRecord
from raystudy.tracking.content import Point, journal_id, param_text, param_value, trial_content, typed
from raystudy.tracking.tables import reports_table, trials_table


@pytest.fixture
def record() -> StudyRecord:
    return StudyRecord.fold(study_events(6))


def test_trials_have_the_columns_of_the_contract(record: StudyRecord) -> None:
    table = trials_table(record, {"t0001": "run1"})
    about = ["trial_id", "number", "state", "reason", "epochs", "run_id", "started", "ended", "wall_seconds", "node"]
    metrics = list(metrics_of(0, 1))
    assert table.column_names == [*about, *SPEC["factors"], *metrics, *(f"best_{name}" for name in metrics)]
    assert table["run_id"].to_pylist() == [None, "run1", None, None, None, None]
    assert table["state"].to_pylist() == ["completed", "pruned", "diverged", "completed", "failed", "completed"]
    assert table["epochs"].to_pylist() == [9, 3, 1, 9, 0, 9]


def test_factors_have_their_own_types_and_are_null_where_they_are_not_active(record: StudyRecord) -> None:
    table = trials_table(record, {})
    types = [pa.float64(), pa.string(), pa.float64(), pa.int64(), pa.float64(), pa.bool_()]
    assert [table.schema.field(name).type for name in SPEC["factors"]] == types
    assert [value is None for value in table["momentum"].to_pylist()] == [True, False] * 3


def test_metrics_stand_at_the_last_and_at_the_best_epoch(record: StudyRecord) -> None:
    row = trials_table(record, {}).to_pylist()[0]
    assert row["val_accuracy"] == metrics_of(0, 9)["val_accuracy"]
    best = max(range(1, 10), key=lambda epoch: metrics_of(0, epoch)["val_accuracy"])
    assert {name: row[f"best_{name}"] for name in metrics_of(0, best)} == metrics_of(0, best)


def test_the_best_epoch_of_a_loss_is_its_smallest() -> None:
    spec = spec_dict(objective={"metric": "val_loss"})
    row = trials_table(StudyRecord.fold(study_events(1, spec=spec)), {}).to_pylist()[0]
    assert row["best_val_loss"] == min(metrics_of(0, epoch)["val_loss"] for epoch in range(1, 10))


def test_reports_have_one_row_per_trial_and_epoch(record: StudyRecord) -> None:
    table = reports_table(record)
    assert table.column_names == ["trial_id", "epoch", "time", *metrics_of(0, 1), *SPEC["factors"]]
    rows = [(row["trial_id"], row["epoch"]) for row in table.to_pylist()]
    assert rows == sorted(set(rows))
    assert len(rows) == sum(len(trial.reports) for trial in record.trials.values())


def test_a_report_repeated_after_a_crash_counts_as_first_written(record: StudyRecord) -> None:
    repeated = [row for row in reports_table(record).to_pylist() if (row["trial_id"], row["epoch"]) == ("t0003", 2)]
    assert [row["epoch_seconds"] for row in repeated] == [metrics_of(3, 2)["epoch_seconds"]]


def test_a_study_without_trials_has_empty_tables() -> None:
    record = StudyRecord.fold(list(study_events(1))[:1])
    assert trials_table(record, {}).num_rows == reports_table(record).num_rows == 0


@pytest.mark.parametrize("make", [lambda record: trials_table(record, {"t0000": "r"}), reports_table])
def test_parquet_gives_back_the_same_table(record: StudyRecord, make: Callable[[StudyRecord], pa.Table]) -> None:
    buffer = io.BytesIO()
    pq.write_table(make(record), buffer)
    assert pq.read_table(buffer).equals(make(record))


@given(st.sampled_from(sorted(FACTORS)), st.data())
def test_the_text_of_a_factor_gives_back_its_value(name: str, data: st.DataObject) -> None:
    by_kind: dict[str, st.SearchStrategy[Scalar]] = {
        "float": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9),
        "int": st.integers(-(2**53), 2**53),
        "bool": st.booleans(),
        "categorical": st.text(),
    }
    value = data.draw(by_kind[FACTORS[name].kind])
    assert param_value(name, param_text(name, value)) == typed(name, value)


def test_a_run_holds_every_value_once_and_the_best_so_far_at_its_epoch(record: StudyRecord) -> None:
    points = trial_content(record.trials["t0000"], parent="p", metric="val_accuracy", mode="max").points
    assert len({(point.key, point.step) for point in points}) == len(points)
    values = [metrics_of(0, epoch)["val_accuracy"] for epoch in range(1, 10)]
    expected = [epoch for epoch in range(1, 10) if values[epoch - 1] > max([0.0, *values[: epoch - 1]])]
    assert _steps(points, "best_val_accuracy") == _steps(points, "best_train_loss") == expected
    assert _steps(points, "val_accuracy") == list(range(1, 10))


def test_two_studies_of_the_same_file_have_different_journals(record: StudyRecord) -> None:
    other = StudyRecord.fold(study_events(1))
    assert journal_id(other) == journal_id(record)
    other.started += 1
    assert journal_id(other) != journal_id(record)


def _steps(points: tuple[Point, ...], key: str) -> list[int]:
    return [point.step for point in points if point.key == key]
