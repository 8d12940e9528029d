from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from journals import Clock, config_of, spec_dict, started, study_events, trial_events, write_journal
from stores import Server, closed_pipe, empty_store, feed, free_port
from waiting import wait_until

from raystudy.errors import StudyBusyError, UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import (
    StudyEnded,
    StudyRecord,
    StudyResumed,
    StudyState,
    TrialEnded,
    TrialResumed,
    TrialStarted,
    TrialState,
)
from raystudy.tracking import names
from raystudy.tracking.address import artifact_root, redact, study_uri
from raystudy.tracking.feeder import Feeder
from raystudy.tracking.journal import Journal, read_journal
from raystudy.tracking.mirror import Mirror
from raystudy.tracking.store import Store, StoreDown, StoredRun, StoreRefused
from raystudy.tracking.verify import compare
from raystudy.tracking.writer import GaveUp, Writer

OBJECTIVE = ("val_accuracy", "max")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPaths:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return StudyPaths.of("digits")


@pytest.fixture
def uri(files: StudyPaths) -> str:
    return empty_store(files.root.parent.parent)


def trial_runs(store: Store) -> dict[str, StoredRun]:
    experiment = store.experiment("digits")
    assert experiment is not None
    runs = store.runs([experiment], names.TRIAL_KIND)
    assert len({run.name for run in runs}) == len(runs)
    return {run.name: run for run in runs}


def assert_complete(uri: str, record: StudyRecord) -> None:
    found = compare(Store(uri), record)
    assert found.ok, str(found)


class Flaky(Store):
    """A store that fails at the requests that `fails` picks, before or after they took effect."""

    def __init__(self, uri: str, fails: Callable[[], str]) -> None:
        super().__init__(uri)
        for name in ("create_run", "log_batch", "update_run", "set_terminated", "search_runs", "log_artifact"):
            setattr(self.client, name, self._flaky(getattr(self.client, name), fails))

    @staticmethod
    def _flaky(request: Callable[..., object], fails: Callable[[], str]) -> Callable[..., object]:
        def maybe(*args: object, **options: object) -> object:
            how = fails()
            if how == "before":
                raise ConnectionError("connection refused")
            answer = request(*args, **options)
            if how == "after":
                raise ConnectionError("connection reset: the answer is lost")
            return answer

        return maybe


def test_mlflow_holds_exactly_what_the_journal_says(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(6))
    assert_complete(uri, record)
    store = Store(uri)
    runs = trial_runs(store)
    assert [runs[name].status for name in sorted(runs)] == ["FINISHED", "KILLED", "FAILED", "FINISHED", "FAILED", "FINISHED"]
    assert runs["t0004"].tags[names.REASON] == "RuntimeError: no «luck»"
    assert runs["t0003"].params["momentum"] == str(config_of(3)["momentum"])
    assert "momentum" not in runs["t0000"].params
    parents = store.runs([runs["t0000"].experiment_id], names.STUDY_KIND)
    assert [run.status for run in parents] == ["FINISHED"]
    assert {run.tags[names.PARENT] for run in runs.values()} == {parents[0].run_id}


def test_no_run_holds_the_environment_or_a_password(files: StudyPaths, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t-of-the-test")
    feed(files, uri, study_events(2))
    database = files.root.parent.parent / "mlflow.db"
    assert b"s3cr3t-of-the-test" not in database.read_bytes()
    assert redact("http://me:s3cr3t@host:5000/x") == "http://host:5000/x"


def test_artifacts_lie_beside_the_local_store(files: StudyPaths, uri: str) -> None:
    feed(files, uri, study_events(1))
    names_found = {path.name for path in (files.root.parent.parent / "artifacts").rglob("*") if path.is_file()}
    assert {names.STUDY_FILE, names.JOURNAL_FILE, names.TRIALS_FILE, names.REPORTS_FILE} <= names_found
    assert artifact_root("http://host:5000", "digits") is None


@pytest.mark.parametrize("seed", range(3))
def test_requests_that_fail_or_whose_answers_are_lost_leave_no_trace(files: StudyPaths, uri: str, seed: int) -> None:
    record = StudyRecord.fold(write_journal(files.journal, study_events(6)))
    rng = random.Random(seed)
    store = Flaky(uri, lambda: rng.choices(["before", "after", ""], [1, 1, 3])[0])
    mirror: Mirror | None = None
    for trial in record.trials.values():
        while True:
            try:
                if mirror is None or rng.random() < 0.1:  # now and then a new writer takes over
                    mirror = Mirror(store, record)
                mirror.write_trial(trial, *OBJECTIVE)
                mirror.write_study(record)
            except StoreDown:
                continue
            break
    assert_complete(uri, record)


def test_a_second_writer_finds_everything_written_and_writes_nothing(
    files: StudyPaths, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = feed(files, uri, study_events(6))
    mirror = Mirror(Store(uri), record)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to write")

    for name in ("create_run", "write", "set_status", "delete_run"):
        monkeypatch.setattr(Store, name, refuse)
    for trial in record.trials.values():
        mirror.write_trial(trial, *OBJECTIVE)
    mirror.write_study(record)


def test_a_run_is_double_only_until_the_next_writer(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(2))
    store = Store(uri)
    run = trial_runs(store)["t0000"]
    store.client.create_run(run.experiment_id, tags={**run.tags, names.EPOCHS: "0"})
    Mirror(store, record)
    assert trial_runs(store)["t0000"].run_id == run.run_id
    assert_complete(uri, record)


def test_an_interrupted_trial_goes_back_to_running_in_its_old_run(files: StudyPaths, uri: str) -> None:
    clock = Clock()
    interrupted = list(trial_events(clock, 0, epochs=2, state=TrialState.INTERRUPTED, reason="Ctrl-C"))
    events = [started(clock), *interrupted, StudyEnded(clock(), StudyState.INTERRUPTED, "Ctrl-C")]
    assert_complete(uri, feed(files, uri, events))
    before = trial_runs(Store(uri))["t0000"]
    assert (before.status, before.tags[names.STATE]) == ("KILLED", "interrupted")

    record = feed(files, uri, [StudyResumed(clock(), spec_dict(), "0.1.0"), TrialResumed(clock(), "t0000")])
    again = trial_runs(Store(uri))["t0000"]
    assert (again.run_id, again.status, again.tags[names.STATE]) == (before.run_id, "RUNNING", "running")
    assert again.tags[names.REASON] == ""
    assert_complete(uri, record)


def test_a_study_that_is_extended_goes_on_in_its_old_parent(files: StudyPaths, uri: str) -> None:
    feed(files, uri, study_events(2))
    clock = Clock()
    more = [StudyResumed(clock(), spec_dict(budget={"trials": 9, "epochs": 9}), "0.2.0"), *trial_events(clock, 2)]
    record = feed(files, uri, [*more, StudyEnded(clock(), StudyState.COMPLETED, "")])
    assert len(trial_runs(Store(uri))) == 3
    assert_complete(uri, record)


def test_a_run_deleted_by_hand_is_written_anew(files: StudyPaths, uri: str) -> None:
    clock = Clock()
    first = [started(clock), TrialStarted(clock(), "t0000", 0, config_of(0))]
    record = StudyRecord.fold(write_journal(files.journal, first))
    store = Store(uri)
    mirror = Mirror(store, record)
    mirror.write_trial(record.trials["t0000"], *OBJECTIVE)
    store.delete_run(mirror.run_ids["t0000"])
    record.apply(TrialEnded(clock(), "t0000", TrialState.FAILED, "an error"))
    mirror.write_trial(record.trials["t0000"], *OBJECTIVE)
    mirror.write_study(record)
    assert mirror.given_up == ()
    assert_complete(uri, record)


def test_more_values_than_fit_into_one_request_are_written(files: StudyPaths, uri: str) -> None:
    clock = Clock()
    spec = spec_dict(budget={"trials": 1, "epochs": 400})
    record = feed(files, uri, [started(clock, spec), *trial_events(clock, 0, epochs=400)])
    assert_complete(uri, record)


def test_a_deleted_experiment_is_refused_with_the_remedy(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(1))
    store = Store(uri)
    store.client.delete_experiment(str(store.experiment("digits")))
    with pytest.raises(StoreRefused, match=r"was deleted; restore it .* or give the study another name"):
        Mirror(store, record)


def test_a_study_of_the_same_name_from_another_journal_is_refused(files: StudyPaths, uri: str) -> None:
    record = feed(files, uri, study_events(1))
    record.started += 60
    with pytest.raises(StudyBusyError, match="already holds another study named 'digits'"):
        Mirror(Store(uri), record)


def test_a_writer_without_driver_gives_up_on_a_store_that_stays_away(files: StudyPaths, uri: str) -> None:
    writer = Writer(files, uri, closed_pipe(), patience=0)

    def down() -> None:
        raise StoreDown("it does not answer")

    with pytest.raises(GaveUp, match="it does not answer; `raystudy verify --repair` writes the rest"):
        writer.persist(down)


def test_the_address_comes_from_the_call_then_the_study_then_the_environment(
    files: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study_uri("digits") == f"sqlite:///{files.root.parent.parent / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:1")
    assert study_uri("digits") == study_uri("not a name") == "http://environment:1"
    write_journal(files.journal, [started(Clock(), spec_dict(tracking_uri="http://study:1"))])
    assert study_uri("digits") == "http://study:1"
    assert study_uri("digits", "http://call:1") == "http://call:1"


def test_the_drivers_end_imports_no_mlflow() -> None:
    code = (
        "import sys, raystudy.query, raystudy.tracking.feeder, raystudy.tracking.tables, raystudy.tracking.writer; "
        "sys.exit(bool({'mlflow', 'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The writer as a process


@pytest.fixture
def feeders() -> Iterator[list[Feeder]]:
    started_ones: list[Feeder] = []
    yield started_ones
    for feeder in started_ones:
        feeder.abandon()


def test_a_dead_server_is_one_clear_line_within_seconds(files: StudyPaths) -> None:
    feeder = Feeder.start(files, f"http://me:s3cr3t@127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError, match=r"^the tracking server at http://127.0.0.1:\d+ does not answer") as caught:
        feeder.wait_ready(10)
    assert "\n" not in str(caught.value)
    feeder.notify()
    assert not feeder.finish(1)
    assert "s3cr3t" not in files.writer_log.read_text()


@pytest.mark.slow
def test_a_driver_that_ends_before_it_began_ends_its_writer(files: StudyPaths, uri: str) -> None:
    feeder = Feeder.start(files, uri)
    assert not feeder.finish(30)
    assert "without having started a study" in files.writer_log.read_text()


@pytest.mark.slow
def test_the_writer_survives_signals_of_the_terminal(files: StudyPaths, uri: str, feeders: list[Feeder]) -> None:
    first, *rest, _ = study_events(4)  # without the end, after which it would look for what matters
    feeders.append(feeder := Feeder.start(files, uri))
    write_journal(files.journal, [first])
    feeder.wait_ready()
    os.kill(feeder.pid, signal.SIGINT)
    with Journal(files.journal) as journal:
        for event in rest:
            journal.append(event)
            feeder(event)
    assert feeder.finish()
    assert_complete(uri, StudyRecord.fold(read_journal(files.journal)))


@pytest.mark.slow
def test_a_driver_killed_at_any_moment_leaves_what_it_wrote_in_mlflow(files: StudyPaths, uri: str) -> None:
    events = list(study_events(3))[:-9]
    write_journal(files.journal, events)
    driver = (
        "import os, signal, sys; from pathlib import Path\n"
        "from raystudy.paths import StudyPaths; from raystudy.tracking.feeder import Feeder\n"
        f"feeder = Feeder.start(StudyPaths(Path({str(files.root)!r})), {uri!r}); feeder.wait_ready()\n"
        "print(feeder.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=False)
    wait_until(lambda: not Path(f"/proc/{int(killed.stdout)}").exists(), "the writer to end")
    assert_complete(uri, StudyRecord.fold(events))


@pytest.mark.slow
def test_a_writer_killed_at_random_moments_loses_and_doubles_nothing(
    files: StudyPaths, uri: str, feeders: list[Feeder]
) -> None:
    rng = random.Random(1)
    first, *rest = study_events(11)
    feeders.append(feeder := Feeder.start(files, uri))
    write_journal(files.journal, [first])
    feeder.wait_ready()
    with Journal(files.journal) as journal:
        for index, event in enumerate(rest):
            journal.append(event)
            feeder(event)
            if index % 25 == 20:
                at_least = 2 + rng.randrange(index // 10)
                wait_until(lambda least=at_least: count_rows(uri, "runs") >= least, f"{at_least} runs")  # type: ignore[misc]
                os.kill(feeder.pid, signal.SIGKILL)
                feeder.restart_now()
    assert feeder.finish()
    assert_complete(uri, StudyRecord.fold(read_journal(files.journal)))


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_gets_everything_once(
    files: StudyPaths, tmp_path: Path, feeders: list[Feeder]
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    try:
        first, *rest = study_events(11)
        feeders.append(feeder := Feeder.start(files, server.uri))
        write_journal(files.journal, [first])
        ready = feeder.wait_ready()
        assert ready.tracking_uri == server.uri
        with Journal(files.journal) as journal:
            for index, event in enumerate(rest):
                journal.append(event)
                feeder(event)
                if index == len(rest) // 3:
                    wait_until(lambda: count_rows(f"sqlite:///{folder}/mlflow.db", "runs") > 2, "the first trials")
                    server.kill()
                if index == len(rest) * 2 // 3:
                    wait_until(lambda: "trying again" in files.writer_log.read_text(), "the writer to notice")
        server.start()
        assert feeder.finish()
        assert_complete(server.uri, StudyRecord.fold(read_journal(files.journal)))
    finally:
        server.kill()


def count_rows(uri: str, table: str) -> int:
    with sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=30) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608
