from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from journals import study_events
from stores import empty_store, feed

from raystudy.errors import NotFoundError, StudyBusyError
from raystudy.paths import StudyPaths
from raystudy.records import StudyRecord
from raystudy.tracking import names
from raystudy.tracking.mirror import Mirror
from raystudy.tracking.store import Store, StoredRun
from raystudy.tracking.verify import Verification, compare, repair_study, verify


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPaths:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return StudyPaths.of("digits")


@pytest.fixture
def uri(files: StudyPaths) -> str:
    return empty_store(files.root.parent.parent)


def first_run(store: Store) -> StoredRun:
    return store.runs([str(store.experiment("digits"))], names.TRIAL_KIND, trial_id="t0000")[0]


def deleted(store: Store, run: StoredRun) -> None:
    store.delete_run(run.run_id)


def doubled(store: Store, run: StoredRun) -> None:
    store.client.create_run(run.experiment_id, tags={**run.tags, names.EPOCHS: "0"})


def foreign(store: Store, run: StoredRun) -> None:
    store.client.create_run(run.experiment_id, tags={**run.tags, names.TRIAL_ID: "t9999", names.NUMBER: "9999"})


def left_running(store: Store, run: StoredRun) -> None:
    store.set_status(run.run_id, "RUNNING", None)


def other_status(store: Store, run: StoredRun) -> None:
    store.client.set_terminated(run.run_id, "FAILED", run.ended)


def other_tag(store: Store, run: StoredRun) -> None:
    store.client.set_tag(run.run_id, names.STATE, "pruned")


def more_params(store: Store, run: StoredRun) -> None:
    store.client.log_param(run.run_id, "momentum", "0.9")


def repeated_value(store: Store, run: StoredRun) -> None:
    point = store.history(run.run_id, "val_loss")[3]
    store.client.log_metric(run.run_id, "val_loss", point.value, timestamp=point.time + 1, step=point.step)


def other_value(store: Store, run: StoredRun) -> None:
    store.client.log_metric(run.run_id, "val_loss", 0.123, timestamp=1, step=10)


def other_parent(store: Store, run: StoredRun) -> None:
    store.client.set_tag(run.run_id, names.PARENT, "somebody-else")


DAMAGES: list[tuple[Callable[[Store, StoredRun], None], str, str]] = [
    (deleted, "lost", "t0000"),
    (doubled, "duplicate", "t0000: "),
    (foreign, "orphan", "t9999: "),
    (left_running, "unfinished", "t0000"),
    (other_status, "wrong", "t0000: status is FAILED, expected FINISHED"),
    (other_tag, "wrong", "t0000: tag raystudy.state is 'pruned', expected 'completed'"),
    (more_params, "wrong", "t0000: param momentum is '0.9', expected None"),
    (repeated_value, "wrong", "was never reported"),
    (other_value, "wrong", "t0000: val_loss = 0.123 at epoch 10 (time 1) was never reported"),
    (other_parent, "wrong", "t0000: tag mlflow.parentRunId is 'somebody-else'"),
]


def test_a_study_as_the_writer_left_it_is_right(files: StudyPaths, uri: str) -> None:
    feed(files, uri, study_events(6))
    found = verify("digits")
    assert found.ok
    assert found.trials == 6
    assert found.values > 150
    assert "0 lost, 0 duplicate, 0 orphan, 0 unfinished, 0 wrong" in str(found)
    assert found.to_dict()["ok"] is True


@pytest.mark.parametrize(("damage", "kind", "text"), DAMAGES, ids=[damage.__name__ for damage, *_ in DAMAGES])
def test_damage_is_found_and_repaired(
    files: StudyPaths, uri: str, damage: Callable[[Store, StoredRun], None], kind: str, text: str
) -> None:
    record = feed(files, uri, study_events(2))
    store = Store(uri)
    damage(store, first_run(store))
    found = compare(store, record)
    assert not found.ok
    assert any(text in item for item in getattr(found, kind)), str(found)
    assert text in str(found)
    repair_study(files, uri, record, write=lambda: feed(files, uri))
    assert compare(store, record).ok


def test_several_damages_at_once_are_repaired(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(6))
    store = Store(uri)
    for damage in (doubled, foreign, other_tag, other_value):
        damage(store, first_run(store))
    repair_study(files, uri, record, write=lambda: feed(files, uri))
    assert compare(store, record).ok


def test_a_value_that_was_never_written_is_missing(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(1))
    trial = record.trials["t0000"]
    epoch_5 = trial.reports.pop(5)
    shorter = compare(Store(uri), record)
    assert any("val_loss" in item and "at epoch 5" in item and "never reported" in item for item in shorter.wrong)
    trial.reports[5] = epoch_5
    trial.reports[10] = epoch_5
    longer = compare(Store(uri), record)
    assert any("at epoch 10" in item and "is missing" in item for item in longer.wrong)


def test_a_study_without_any_run_is_lost_as_a_whole(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(2))
    Store(uri).client.delete_run(Mirror(Store(uri), record).run_id)
    assert compare(Store(uri), record).lost == ("digits", "t0000", "t0001")


def test_a_running_study_cannot_be_repaired(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(1))
    with FileLock(files.lock), pytest.raises(StudyBusyError, match="is running"):
        repair_study(files, uri, record)


@pytest.mark.usefixtures("files")
def test_without_a_journal_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(NotFoundError, match="no journal of a study 'digits'"):
        verify("digits")


def test_long_lists_are_cut_short() -> None:
    text = str(Verification("digits", "sqlite:///x", 99, 0, lost=tuple(f"t{number}" for number in range(30))))
    assert "30 lost" in text
    assert "... and 10 more" in text
    assert "--repair` makes MLflow hold what the journal says" in text


@pytest.mark.slow
def test_the_command_writes_a_whole_study_into_an_empty_store(files: StudyPaths, uri: str) -> None:
    from journals import write_journal

    events = write_journal(files.journal, study_events(4))
    assert not verify("digits").ok
    assert verify("digits", repair=True).ok
    assert compare(Store(uri), StudyRecord.fold(events)).ok
