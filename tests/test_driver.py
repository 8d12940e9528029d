from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from disks import Disk
from toys import Mishap, ToyTrainer, conduct, ends, table, toy_spec

from raystudy import driver, host, paths, preparation, storage
from raystudy.data import PreparedData, Splits
from raystudy.driver import Setting
from raystudy.errors import (
    BackboneError,
    DataError,
    InputError,
    JournalError,
    NotFoundError,
    Problem,
    RaystudyError,
    SpecError,
    StudyBusyError,
    StudyInterrupted,
    UnreachableError,
)
from raystudy.paths import StudyPaths
from raystudy.records import (
    Event,
    Reported,
    StudyEnded,
    StudyPaused,
    StudyRecord,
    StudyResumed,
    StudyStarted,
    StudyState,
    TrialEnded,
    TrialResumed,
    TrialState,
)
from raystudy.search.director import Director
from raystudy.spec import StudySpec
from raystudy.storage import Pause
from raystudy.tracking.feeder import Ready
from raystudy.tracking.journal import Journal, read_journal
from raystudy.watcher import Watcher

SPEC = toy_spec(keep_models=2)


@dataclass
class FakeFeeder:
    """Stands for the process that writes to MLflow."""

    refusal: RaystudyError | None = None
    recorded: bool = True
    impatience: bool = False
    calls: list[str] = field(default_factory=list)
    journal_seen: list[int] = field(default_factory=list)
    files: StudyPaths | None = None

    def prepare(self, files: StudyPaths, uri: str) -> FakeFeeder:
        self.calls.append(f"prepare {uri}")
        self.files = files
        return self

    def begin(self) -> None:
        self.calls.append("begin")

    def wait_ready(self, timeout: float) -> Ready:  # noqa: ARG002
        assert self.files is not None
        self.calls.append("wait_ready")
        self.journal_seen.append(len(read_journal(self.files.journal)))
        if self.refusal:
            raise self.refusal
        return Ready("7", "r1", "sqlite:///somewhere.db")

    def notify(self) -> None:
        self.calls.append("notify")

    def close(self) -> None:
        self.calls.append("close")

    def finish(self, timeout: float) -> bool:  # noqa: ARG002
        self.calls.append("finish")
        if self.impatience and self.calls.count("finish") == 1:
            raise KeyboardInterrupt
        return self.recorded

    def abandon(self) -> None:
        self.calls.append("abandon")

    def has_recorded(self) -> bool:
        return self.recorded


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)  # costs most of the time, and no power is cut here
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def feeder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeFeeder:
    """Put a fake in the place of the writer, but for the tests that take the time for the real one."""
    fake = FakeFeeder()
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(preparation, "Feeder", fake)
    return fake


def toy_trainer(spec: StudySpec = SPEC, **options: Any) -> ToyTrainer:
    return ToyTrainer(spec.budget.epochs, folder=StudyPaths.of(spec.name).all_checkpoints, **options)


def inline(**options: Any) -> Setting:
    return Setting(inline=True, trainer=toy_trainer(**options))


def events(name: str = "toy") -> list[Event]:
    return read_journal(StudyPaths.of(name).journal)


def images(fingerprint: str) -> PreparedData:
    """Return images of ten classes that nobody looks at."""
    no_pixels = np.zeros((20, 1, 1, 3), dtype=np.uint8)
    labels = np.arange(20, dtype=np.int64) % 10
    splits = Splits(np.arange(10), np.arange(10, 20), None)
    names = [str(index) for index in range(20)]
    return PreparedData(no_pixels, labels, names, tuple("0123456789"), splits, (), (), fingerprint)


def more_trials(count: int) -> Callable[[StudySpec], StudySpec]:
    return lambda spec: spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": count})})


def undisturbed(spec: StudySpec = SPEC) -> dict[str, Any]:
    return table(conduct(spec, ToyTrainer(spec.budget.epochs))[0].record)


# Running


def test_a_study_runs_to_its_end_and_its_journal_tells_all(feeder: FakeFeeder) -> None:
    driver.run(SPEC, inline())
    journal = events()
    record = StudyRecord.fold(journal)
    assert table(record) == undisturbed()
    assert isinstance(journal[0], StudyStarted)
    assert isinstance(journal[-1], StudyEnded)
    assert feeder.calls[:3] == [f"prepare {paths.local_tracking_uri()}", "begin", "wait_ready"]
    assert feeder.calls.count("notify") == len(journal) - 1
    assert feeder.journal_seen == [1], "the writer finds the study's first event"


def test_the_outcome_says_what_came_of_it(feeder: FakeFeeder) -> None:
    feeder.recorded = False
    outcome = driver.run(SPEC, inline())
    record = StudyRecord.fold(events())
    best = record.ranking("val_accuracy", "max")[0]
    assert outcome.to_dict() == {
        "name": "toy",
        "state": StudyState.COMPLETED,
        "reason": "",
        "trials": record.counts(),
        "best": {
            "trial_id": best.trial_id,
            "number": best.number,
            "state": "completed",
            "epoch": best.best_epoch("val_accuracy", "max"),
            "config": dict(best.config),
            "metrics": dict(best.reports[best.best_epoch("val_accuracy", "max") or 0].metrics),
        },
        "wall_seconds": round(record.busy_seconds, 3),
        "epochs_trained": sum(len(trial.reports) for trial in record.trials.values()),
        "tracking_uri": "sqlite:///somewhere.db",
        "experiment_id": "7",
        "run_id": "r1",
        "recorded": False,
    }


def test_the_watcher_is_told_when_trials_begin_and_end_and_of_every_event_between() -> None:
    heard: list[str] = []

    class Listener(Watcher):
        def __call__(self, event: Event) -> None:
            heard.append(event.kind)

        def begin(self, director: Any) -> None:  # noqa: ARG002
            heard.append("begin")

        def end(self) -> None:
            heard.append("end")

    driver.run(SPEC, inline(), Listener())
    assert heard == ["begin", *(event.kind for event in events()[1:]), "end"]


def test_what_matters_is_computed_once_everything_is_recorded_and_need_not_be_waited_for(feeder: FakeFeeder) -> None:
    said: list[str] = []

    class Listener(Watcher):
        def say(self, text: str) -> None:
            said.append(text)

    feeder.impatience = True
    outcome = driver.run(SPEC, inline(), Listener())
    assert said[-2:] == ["Recording models and results in MLflow", "Computing which factors matter"]
    assert (outcome.state, outcome.recorded) == (StudyState.COMPLETED, True)


def test_the_journal_knows_what_max_stands_for() -> None:
    driver.run(SPEC, inline())
    assert StudyRecord.fold(events()).n_units == 18


def test_a_name_is_used_once() -> None:
    driver.run(SPEC, inline())
    before = events()
    with pytest.raises(StudyBusyError, match=r"there is a study 'toy' already: `raystudy resume toy`"):
        driver.run(SPEC, inline())
    assert events() == before


@pytest.mark.parametrize("error", [UnreachableError("no answer"), StudyBusyError("another study of this name")])
def test_where_the_tracking_store_refuses_nothing_is_left_and_the_name_is_free(
    feeder: FakeFeeder, home: Path, error: RaystudyError
) -> None:
    feeder.refusal = error
    with pytest.raises(type(error)):
        driver.run(SPEC, inline())
    assert list((home / "studies").iterdir()) == []
    feeder.refusal = None
    assert driver.run(SPEC, inline()).state is StudyState.COMPLETED


@contextmanager
def no_ray(spec: StudySpec) -> Iterator[Callable[[], None]]:  # noqa: ARG001
    def wait() -> None:
        raise UnreachableError("the Ray cluster at RAY_ADDRESS=10.0.0.1:6379 cannot be used")

    yield wait


def test_where_ray_cannot_be_reached_nothing_is_left_and_no_study_was_recorded(
    feeder: FakeFeeder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "ray_starting", no_ray)
    with pytest.raises(UnreachableError, match="RAY_ADDRESS"):
        driver.run(SPEC, Setting(trainer=toy_trainer()))
    assert list((home / "studies").iterdir()) == []
    assert "wait_ready" not in feeder.calls


def test_where_the_images_are_unusable_nothing_was_started(
    feeder: FakeFeeder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unusable(*_: object) -> None:
        raise DataError(Problem("data.source", "no images"))

    monkeypatch.setattr("raystudy.data.open_data", unusable)
    monkeypatch.setattr(preparation, "ray_starting", lambda _: pytest.fail("Ray was started"))
    with pytest.raises(DataError):
        driver.run(SPEC, Setting())
    assert list((home / "studies").iterdir()) == []
    assert feeder.calls == [f"prepare {paths.local_tracking_uri()}", "abandon"]


def test_where_the_weights_are_unusable_ray_is_ended_again_and_nothing_is_left(
    feeder: FakeFeeder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []

    @contextmanager
    def ray_starting(spec: StudySpec) -> Iterator[Callable[[], None]]:  # noqa: ARG001
        happened.append("started")
        try:
            yield lambda: None
        finally:
            happened.append("ended")

    def unusable(*_: object) -> None:
        raise BackboneError(Problem("backbone", "no weights"))

    monkeypatch.setattr(preparation, "ray_starting", ray_starting)
    monkeypatch.setattr(preparation, "_trainer", unusable)
    monkeypatch.setattr("raystudy.data.open_data", lambda *_: images("aaaa"))
    with pytest.raises(BackboneError):
        driver.run(SPEC, Setting())
    assert happened == ["started", "ended"]
    assert list((home / "studies").iterdir()) == []
    assert feeder.calls[-2:] == ["begin", "abandon"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9"),
        ("ray://127.0.0.1:9", "no Ray cluster answers at RAY_ADDRESS=ray://127.0.0.1:9"),
        ("127.0.0.1:65545", "no Ray cluster answers"),  # no port has this number; Ray takes it for 9
        ("nonsense", "the Ray cluster at RAY_ADDRESS=nonsense cannot be used"),
    ],
)
def test_a_wrong_ray_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UnreachableError, match=message), host.ray_session(SPEC):
        pass


def test_a_failure_in_the_middle_leaves_a_study_that_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Journal.append_patiently

    def limited(journal: Journal, event: Event) -> Pause | None:
        if isinstance(event, TrialEnded) and event.trial_id == "t0002":
            raise JournalError("File too large")
        return written(journal, event)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append_patiently", limited)
        with pytest.raises(JournalError, match="File too large"):
            driver.run(SPEC, inline())
    driver.resume("toy", None, inline())
    assert table(StudyRecord.fold(events())) == undisturbed()


# The storage is full or read-only


class Filling(Watcher):
    """Fills the disk up when a trial reports for the first time, and does something about it when the study pauses."""

    def __init__(self, disk: Disk, trial_id: str, relief: Callable[[], None]) -> None:
        self.said: list[str] = []
        self._disk, self._trial_id, self._relief = disk, trial_id, relief

    def __call__(self, event: Event) -> None:
        if isinstance(event, Reported) and (event.trial_id, event.epoch) == (self._trial_id, 1):
            self._disk.errors = [errno.ENOSPC] * 10_000

    def say(self, text: str) -> None:
        self.said.append(text)
        if text.startswith("Paused"):
            self._relief()


@pytest.fixture
def disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(storage, "BACK_OFF_S", (0.001, 0.004))
    disk = Disk(home / "studies" / "toy" / "journal.jsonl", monkeypatch, "write", "ftruncate")
    disk.takes = 21
    return disk


def test_a_study_pauses_while_its_storage_is_full_and_goes_on(disk: Disk) -> None:
    watcher = Filling(disk, "t0002", lambda: disk.errors.clear())
    outcome = driver.run(SPEC, inline(), watcher)
    assert outcome.state is StudyState.COMPLETED
    told = [text for text in watcher.said if "journal.jsonl" in text]
    assert [text.split(":")[0] for text in told[:1]] == ["Paused"]
    assert len(told) == 2
    assert told[1].startswith("Going on: ")
    assert "journal.jsonl cannot be written: the storage is full (No space left on device)" in told[0]
    assert table(StudyRecord.fold(events())) == undisturbed()
    assert sum(isinstance(event, StudyPaused) for event in events()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_paused_can_be_stopped_and_loses_nothing(disk: Disk, number: signal.Signals) -> None:
    watcher = Filling(disk, "t0002", lambda: os.kill(os.getpid(), number))
    with pytest.raises(StudyInterrupted, match=r"the storage is full .* `raystudy resume toy` continues it") as caught:
        driver.run(SPEC, inline(), watcher)
    assert caught.value.exit_code == 130
    assert StudyRecord.fold(events()).trials["t0002"].state is TrialState.RUNNING
    disk.errors = []
    assert driver.resume("toy", None, inline()).state is StudyState.COMPLETED
    assert table(StudyRecord.fold(events())) == undisturbed()


def test_a_stop_of_a_paused_study_is_written_if_there_is_room_by_then(disk: Disk) -> None:
    def relieve_and_stop() -> None:
        disk.errors = disk.errors[:1]
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = driver.run(SPEC, inline(), Filling(disk, "t0002", relieve_and_stop))
    assert (outcome.state, outcome.reason) == (StudyState.INTERRUPTED, "terminated (SIGTERM)")
    assert driver.resume("toy", None, inline()).state is StudyState.COMPLETED
    assert table(StudyRecord.fold(events())) == undisturbed()


# One driver at a time


def hold(files: StudyPaths, *, pid: int, hostname: str | None = None) -> filelock.BaseFileLock:
    """Hold a study as another process would."""
    lock = filelock.FileLock(files.lock, is_singleton=False)
    lock.acquire()
    files.driver.write_text(json.dumps({"pid": pid, "host": hostname or socket.gethostname(), "started": 0.0}))
    return lock


@pytest.mark.slow
def test_a_study_that_another_process_runs_is_left_alone() -> None:
    driver.run(SPEC, inline())
    before = events()
    lock = hold(StudyPaths.of("toy"), pid=1)
    with pytest.raises(StudyBusyError, match="another process is running the study 'toy'"):
        driver.resume("toy", more_trials(9), inline())
    with pytest.raises(StudyBusyError, match="another process is running the study 'toy'"):
        driver.run(SPEC, inline())
    lock.release()
    assert events() == before
    assert driver.resume("toy", more_trials(9), inline()).state is StudyState.COMPLETED


def test_a_process_holds_its_study_while_it_runs_and_says_who_it_is() -> None:
    cards: list[dict[str, Any]] = []

    class Looking(Watcher):
        def begin(self, director: Any) -> None:  # noqa: ARG002
            cards.append(json.loads(StudyPaths.of("toy").driver.read_text()))
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(StudyPaths.of("toy").lock, is_singleton=False).acquire(timeout=0)

    driver.run(SPEC, inline(), Looking())
    assert [(card["pid"], card["host"]) for card in cards] == [(os.getpid(), socket.gethostname())]
    assert not StudyPaths.of("toy").driver.exists()


def test_stop_interrupts_the_process_that_runs_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    driver.run(SPEC, inline())
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    lock = hold(StudyPaths.of("toy"), pid=4242)
    assert host.stop("toy") == 4242
    lock.release()
    assert sent == [(4242, signal.SIGINT)]


def test_stop_says_where_a_study_runs_that_it_cannot_reach() -> None:
    driver.run(SPEC, inline())
    lock = hold(StudyPaths.of("toy"), pid=4242, hostname="gpu-7")
    with pytest.raises(NotFoundError, match="is run by gpu-7: stop it there"):
        host.stop("toy")
    lock.release()


def test_stop_of_a_study_that_nobody_runs_is_an_error_also_where_a_driver_died() -> None:
    driver.run(SPEC, inline())
    hold(StudyPaths.of("toy"), pid=4242).release()
    with pytest.raises(NotFoundError, match="nobody is running the study 'toy'"):
        host.stop("toy")


@pytest.mark.parametrize("action", [host.stop, lambda name: driver.resume(name, None, inline())])
def test_a_study_that_is_not_there_is_not_found_and_a_near_miss_is_named(action: Callable[[str], object]) -> None:
    with pytest.raises(NotFoundError, match="there are no studies yet"):
        action("toy")
    driver.run(SPEC, inline())
    with pytest.raises(NotFoundError, match=r"there is no study 'tpy'.*toy"):
        action("tpy")


# Resuming


def test_resume_of_a_finished_study_does_nothing_but_bring_mlflow_up_to_date(feeder: FakeFeeder) -> None:
    first = driver.run(SPEC, inline())
    before = StudyPaths.of("toy").journal.read_bytes()
    feeder.calls.clear()
    again = driver.resume("toy", None, Setting(trainer=toy_trainer()))  # not inline: Ray is not started either
    assert again == first
    assert StudyPaths.of("toy").journal.read_bytes() == before
    assert feeder.calls == [f"prepare {paths.local_tracking_uri()}", "begin", "wait_ready", "close", "finish", "finish"]


def test_a_study_in_which_no_process_came_up_is_resumed_without_changes() -> None:
    class Breaking(Watcher):
        def begin(self, director: Director) -> None:
            self.director = director

        def __call__(self, event: Event) -> None:
            if isinstance(event, Reported) and event.trial_id == "t0001":
                self.director.fail("no trial can be started")

    outcome = driver.run(SPEC, inline(), Breaking())
    assert (outcome.state, outcome.reason) == (StudyState.FAILED, "no trial can be started")
    assert driver.resume("toy", None, inline()).state is StudyState.COMPLETED
    assert table(StudyRecord.fold(events())) == undisturbed()


def test_resume_of_a_grid_that_is_used_up_does_nothing() -> None:
    spec = toy_spec(
        factors={"learning_rate": {"choice": [0.1, 0.01]}},
        search={"sampler": "grid"},
        budget={"trials": 50, "epochs": 1},
    )
    driver.run(spec, Setting(inline=True, trainer=toy_trainer(spec)))
    before = events()
    assert driver.resume("toy", None, Setting(inline=True, trainer=toy_trainer(spec))).trials == {"completed": 2}
    assert events() == before


@pytest.mark.parametrize("cut", [1, 2, 5, 17, 30, -1])
def test_resume_after_a_kill_anywhere_ends_as_the_undisturbed_study(cut: int) -> None:
    driver.run(SPEC, inline())
    files = StudyPaths.of("toy")
    lines = files.journal.read_bytes().splitlines(keepends=True)
    files.journal.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])  # the last line was being written
    outcome = driver.resume("toy", None, Setting(inline=True, trainer=ToyTrainer(4)))
    record = StudyRecord.fold(events())
    assert table(record) == undisturbed()
    assert outcome.state is record.state is StudyState.COMPLETED
    assert all(len(once) == 1 for once in ends(events()).values())
    assert sum(isinstance(event, StudyResumed) for event in events()) == 1


def test_a_resume_records_its_new_budget_even_before_the_first_trial() -> None:
    driver.run(SPEC, inline())
    files = StudyPaths.of("toy")
    files.journal.write_bytes(files.journal.read_bytes().splitlines(keepends=True)[0])
    driver.resume("toy", more_trials(3), Setting(inline=True, trainer=ToyTrainer(4)))
    record = StudyRecord.fold(events())
    assert len(record.trials) == StudySpec.from_dict(record.spec).budget.trials == 3
    kinds = [event.kind for event in events()[:4]]
    assert kinds == ["study_started", "study_resumed", "study_placed", "trial_started"]


def test_more_trials_extend_a_finished_study() -> None:
    driver.run(SPEC, inline())
    outcome = driver.resume("toy", more_trials(12), inline())
    assert outcome.state is StudyState.COMPLETED
    assert table(StudyRecord.fold(events())) == undisturbed(more_trials(12)(SPEC))


def test_fewer_trials_than_there_are_leave_a_finished_study_as_it_is() -> None:
    first = driver.run(SPEC, inline())
    assert driver.resume("toy", more_trials(2), inline()).trials == first.trials


def test_a_change_of_what_decides_the_results_is_refused() -> None:
    driver.run(SPEC, inline())
    before = events()
    with pytest.raises(SpecError, match="changes what decides the results"):
        driver.resume("toy", lambda spec: spec.model_copy(update={"fixed": {"weight_decay": 0.1}}), inline())
    assert events() == before


@pytest.mark.parametrize(("found", "refused"), [("aaaa", False), ("bbbb", True)])
def test_images_that_changed_are_refused(monkeypatch: pytest.MonkeyPatch, found: str, refused: bool) -> None:
    monkeypatch.setattr(preparation, "_trainer", lambda _: toy_trainer())
    monkeypatch.setattr("raystudy.data.open_data", lambda *_: images("aaaa"))
    driver.run(SPEC, Setting(inline=True))
    monkeypatch.setattr("raystudy.data.open_data", lambda *_: images(found))
    if refused:
        with pytest.raises(InputError, match=r"the images of sklearn:digits have changed"):
            driver.resume("toy", more_trials(9), Setting(inline=True))
        assert len(StudyRecord.fold(events()).trials) == 8
    else:
        assert driver.resume("toy", more_trials(9), Setting(inline=True)).epochs_trained > 0


# Signals


def interrupting(number: int, **options: Any) -> Setting:
    return inline(mishaps={number: "interrupt"}, **options)


def test_ctrl_c_interrupts_cleanly_and_a_resume_ends_as_the_undisturbed_study() -> None:
    number = next(trial["number"] for trial in undisturbed().values() if len(trial["reports"]) > 2)
    outcome = driver.run(SPEC, interrupting(number))
    assert (outcome.state, outcome.reason) == (StudyState.INTERRUPTED, "interrupted from the keyboard")
    record = StudyRecord.fold(events())
    assert record.trials[f"t{number:04d}"].state is TrialState.INTERRUPTED
    assert record.count(TrialState.RUNNING) == 0
    again = driver.resume("toy", None, interrupting(number))
    assert again.state is StudyState.COMPLETED
    assert table(StudyRecord.fold(events())) == undisturbed()
    assert sum(isinstance(event, TrialResumed) for event in events()) == 1


def test_sigterm_stops_as_cleanly() -> None:
    class Terminating(Watcher):
        def __call__(self, event: Event) -> None:
            if isinstance(event, Reported) and event.trial_id == "t0001":
                os.kill(os.getpid(), signal.SIGTERM)

    outcome = driver.run(SPEC, inline(), Terminating())
    assert (outcome.state, outcome.reason) == (StudyState.INTERRUPTED, "terminated (SIGTERM)")


def test_a_second_ctrl_c_does_not_wait_for_the_epoch_and_loses_nothing() -> None:
    class Impatient(Watcher):
        def __call__(self, event: Event) -> None:
            if isinstance(event, Reported) and event.trial_id == "t0001":
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    assert driver.run(SPEC, inline(), Impatient()).state is StudyState.INTERRUPTED
    assert driver.resume("toy", None, inline()).state is StudyState.COMPLETED
    assert table(StudyRecord.fold(events())) == undisturbed()


def test_signal_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    driver.run(SPEC, inline())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Checkpoints


def checkpoints() -> set[str]:
    return {folder.name for folder in StudyPaths.of("toy").all_checkpoints.iterdir()}


def best(count: int) -> set[str]:
    return {trial.trial_id for trial in StudyRecord.fold(events()).ranking("val_accuracy", "max")[:count]}


def test_only_the_best_trials_keep_their_checkpoints() -> None:
    driver.run(SPEC, inline())
    assert checkpoints() == best(2)


def test_bad_ends_keep_no_checkpoints() -> None:
    spec = toy_spec(early_stopping="none", keep_models=100)
    mishaps: dict[int, Mishap] = {1: "nan", 2: "raise"}
    driver.run(spec, Setting(inline=True, trainer=toy_trainer(spec, mishaps=mishaps)))
    assert checkpoints() == best(100)
    assert len(checkpoints()) == 6


def test_an_interrupted_trial_keeps_its_checkpoint() -> None:
    number = next(trial["number"] for trial in undisturbed().values() if len(trial["reports"]) > 2)
    driver.run(SPEC, interrupting(number))
    assert f"t{number:04d}" in checkpoints()


def test_a_resume_deletes_what_the_last_driver_could_not() -> None:
    driver.run(SPEC, inline())
    left = StudyPaths.of("toy").checkpoints("t0000" if "t0000" not in best(2) else "t0001")
    left.mkdir(exist_ok=True)
    driver.resume("toy", more_trials(9), inline())
    assert checkpoints() == best(2)


# With the real writer and real processes


DRIVER = """
    import sys
    from toys import ToyTrainer
    from raystudy import driver
    from raystudy.paths import StudyPaths
    from raystudy.spec import StudySpec

    action, mishap, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    spec = StudySpec.from_yaml("study.yaml")
    trainer = ToyTrainer(4, {number: mishap}, folder=StudyPaths.of("toy").all_checkpoints)
    setting = driver.Setting(inline=True, trainer=trainer)
    outcome = driver.run(spec, setting) if action == "run" else driver.resume("toy", None, setting)
    print(outcome.state, outcome.recorded)
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_another_and_mlflow_holds_what_the_journal_says(tmp_path: Path) -> None:
    from raystudy.tracking.verify import verify

    (tmp_path / "study.yaml").write_text(SPEC.to_yaml())
    (tmp_path / "drive.py").write_text(textwrap.dedent(DRIVER))

    def drive(action: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "drive.py", action, "kill_once", "0"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert drive("run").returncode == -signal.SIGKILL
    assert 1 < len(events()) < 10
    resumed = drive("resume")
    assert resumed.stdout.split() == ["completed", "True"], resumed.stderr
    assert table(StudyRecord.fold(events())) == undisturbed()
    assert verify("toy").ok


@pytest.mark.slow
def test_a_real_tracking_server_that_is_not_there_leaves_nothing_behind(home: Path) -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        driver.run(SPEC, Setting(inline=True, trainer=toy_trainer(), tracking_uri="http://127.0.0.1:9"))
    assert list((home / "studies").iterdir()) == []


@pytest.mark.slow
def test_after_a_ray_that_could_not_be_reached_the_name_is_free_in_the_store_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "ray_starting", no_ray)
        with pytest.raises(UnreachableError, match="RAY_ADDRESS"):
            driver.run(SPEC, Setting(trainer=toy_trainer()))
    outcome = driver.run(SPEC, inline())
    assert (outcome.state, outcome.recorded) == (StudyState.COMPLETED, True)
