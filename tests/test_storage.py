"""Storage that is full, read-only or away for a while: everybody waits, nothing is lost, a stop is obeyed."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import Disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import study_events, write_journal
from stores import empty_store
from toys import Clock, ToyTrainer, direct, started, toy_spec

from raystudy import host, storage
from raystudy.errors import InputError, JournalError, NotFoundError
from raystudy.finetune import checkpoint as checkpoints
from raystudy.paths import StudyPaths
from raystudy.records import Event, StudyEnded, StudyPaused
from raystudy.search.inline import run_inline
from raystudy.search.trial_log import TrialLog
from raystudy.search.worker import Worker
from raystudy.storage import Pause, StoppedWaiting, attended, keep_trying
from raystudy.tracking.feeder import Feeder
from raystudy.tracking.journal import Journal, encode, read_journal
from raystudy.work import Ticket

PASSING = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EACCES]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BACK_OFF_S", (0.0001, 0.0004))


class Action:
    """Fails as often as it is told, then works."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.done = 0

    def __call__(self) -> None:
        if self.errors:
            error = self.errors.pop(0)
            raise OSError(error, os.strerror(error))
        self.done += 1


# Waiting


def test_what_works_at_once_is_done_once_and_nothing_is_said() -> None:
    action, said = Action(), list[str]()
    with attended(said.append):
        assert keep_trying(action, Path("/data/x")) is None
    assert (action.done, said) == (1, [])


@pytest.mark.parametrize("error", PASSING)
def test_a_wait_says_once_what_is_wrong_and_where_and_once_that_it_is_over(error: int) -> None:
    action, said = Action(*[error] * 5), list[str]()
    with attended(said.append):
        pause = keep_trying(action, Path("/data/x"))
    assert action.done == 1
    assert len(said) == 2
    assert said[0].startswith("Paused: /data/x cannot be written: ")
    assert os.strerror(error) in said[0]
    assert "goes on by itself" in said[0]
    assert said[1].startswith("Going on: /data/x can be written again, after ")
    assert pause is not None
    assert pause.seconds > 0
    assert os.strerror(error) in pause.reason


def test_another_reason_is_said_too() -> None:
    said = list[str]()
    with attended(said.append):
        keep_trying(Action(errno.ENOSPC, errno.ENOSPC, errno.EROFS, errno.EROFS), Path("x"))
    assert [line.split("(")[0] for line in said[:2]] == [
        "Paused: x cannot be written: the storage is full ",
        "Paused: x cannot be written: the file system is read-only ",
    ]
    assert len(said) == 3


@pytest.mark.parametrize("error", [errno.EBADF, errno.EINVAL, errno.EFBIG, errno.ENAMETOOLONG])
def test_what_no_waiting_helps_against_is_an_error_at_once(error: int) -> None:
    with pytest.raises(OSError, match=os.strerror(error)):
        keep_trying(Action(error), Path("x"))


def test_a_stop_ends_a_wait_however_long_the_pause_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BACK_OFF_S", (3600.0, 3600.0))
    said = list[str]()
    begun = time.monotonic()
    with (
        attended(said.append, lambda: bool(said)),
        pytest.raises(StoppedWaiting, match="x cannot be written: the storage is full"),
    ):
        keep_trying(Action(*[errno.ENOSPC] * 9), Path("x"))
    assert time.monotonic() - begun < 60


def test_what_is_to_stop_still_tries_once() -> None:
    with attended(lambda _: None, lambda: True):
        action = Action()
        assert keep_trying(action, Path("x")) is None
        with pytest.raises(StoppedWaiting):
            keep_trying(Action(errno.EROFS), Path("x"))
    assert action.done == 1


# The journal


CALLS = [["write"], ["fdatasync"], ["write", "ftruncate"], ["fdatasync", "ftruncate", "open"]]
"""What a disk refuses: a read-only one also to truncate, so that a torn line stays for a while."""


@pytest.mark.parametrize("error", PASSING)
@pytest.mark.parametrize("calls", CALLS, ids=" ".join)
def test_a_journal_waits_and_is_whole_whatever_an_attempt_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, calls: list[str]
) -> None:
    disk = Disk(tmp_path, monkeypatch, *calls)
    disk.takes = 17
    path, expected = tmp_path / "journal.jsonl", list(study_events(2))
    with Journal(path) as journal:
        for number, event in enumerate(expected):
            disk.errors = [error] * 5 if number % 4 == 1 else []
            pause = journal.append_patiently(event)
            assert (pause is not None) == (number % 4 == 1)
            assert path.read_bytes() == b"".join(map(encode, expected[: number + 1]))


FAULT = st.tuples(st.sampled_from(CALLS), st.integers(0, 300), st.integers(1, 7))


@given(faults=st.lists(st.none() | FAULT, max_size=30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_line_is_ever_torn_in_the_middle(tmp_path: Path, faults: list[tuple[list[str], int, int] | None]) -> None:
    path, expected = tmp_path / f"{os.urandom(8).hex()}.jsonl", list(study_events(2))
    written = b""
    with Journal(path) as journal:
        for number, event in enumerate(expected):
            fault, seen = faults[number] if number < len(faults) else None, list[bytes]()
            with pytest.MonkeyPatch.context() as patch:
                if fault is not None:
                    disk = Disk(tmp_path, patch, *fault[0])
                    disk.takes, disk.errors = fault[1], [errno.EROFS] * fault[2]
                with attended(lambda _, seen=seen: seen.append(path.read_bytes())):  # type: ignore[misc]
                    journal.append_patiently(event)
            # While it waits, readers find the whole lines, and at most a beginning of the next one.
            assert all(content.startswith(written) and (written + encode(event)).startswith(content) for content in seen)
            written += encode(event)
            assert path.read_bytes() == written
    assert read_journal(path) == expected


def test_an_impatient_append_is_an_error_in_words_and_may_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path, monkeypatch, "write", "ftruncate")
    first, second, *_ = study_events(1)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(first)
        disk.errors, disk.takes = [errno.ENOSPC] * 2, 9
        with pytest.raises(JournalError, match=r"journal\.jsonl cannot be written: the storage is full \(No space left"):
            journal.append(second)
        assert read_journal(journal.path) == [first]
        disk.errors = []
        journal.append(second)
    assert read_journal(tmp_path / "journal.jsonl") == [first, second]


def test_a_torn_line_is_cut_off_when_the_study_stops_if_the_disk_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch, "write", "ftruncate")
    first, second, *_ = study_events(1)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(first)
        disk.errors, disk.takes = [errno.EROFS] * 2, 9
        with attended(lambda _: None, lambda: True), pytest.raises(StoppedWaiting):
            journal.append_patiently(second)
        assert (tmp_path / "journal.jsonl").read_bytes() == encode(first) + encode(second)[:9]
        disk.errors = []
    assert (tmp_path / "journal.jsonl").read_bytes() == encode(first)


def test_a_file_system_that_is_not_mounted_is_waited_for_and_nothing_is_created_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, away = tmp_path / "studies", tmp_path / "away"
    disk = Disk(tmp_path, monkeypatch, "write")
    first, second, *_ = study_events(1)

    def mount(text: str) -> None:
        if "No such file" in text:
            assert list(here.iterdir()) == []
            here.rmdir()
            away.rename(here)

    with Journal(here / "journal.jsonl") as journal:
        journal.append(first)
        here.rename(away)
        here.mkdir()
        disk.errors = [errno.ESTALE]
        with attended(mount):
            journal.append_patiently(second)
    assert read_journal(here / "journal.jsonl") == [first, second]


def test_a_journal_that_has_become_shorter_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path, monkeypatch, "write")
    path, events = tmp_path / "journal.jsonl", list(study_events(1))
    with Journal(path) as journal:
        journal.append(events[0])
        disk.errors = [errno.EIO]
        with pytest.raises(JournalError):
            journal.append(events[1])
        path.write_bytes(b"")
        with pytest.raises(JournalError, match=r"has 0 bytes, .* were written; restore the file"):
            journal.append_patiently(events[1])
    assert path.read_bytes() == b""


def test_a_journal_that_cannot_be_opened_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal.jsonl")


# The study's time


def test_a_pause_is_recorded_after_its_event_and_is_no_part_of_the_studys_time() -> None:
    spec = toy_spec(budget={"trials": 4, "epochs": 4, "hours": 1.0})
    clock = Clock(step=0.0)
    journal: list[Event] = [started(spec)]

    def append(event: Event) -> Pause | None:
        journal.append(event)
        if event.kind == "reported" or isinstance(event, StudyEnded):
            clock.now += 1800
            return Pause(1800.0, "the storage is full")
        return None

    director, _ = direct(spec, journal, clock=clock)
    director._append = append
    run_inline(director, Worker(ToyTrainer(4)))
    assert director.record.state.value == "completed"
    assert sum(len(trial.reports) for trial in director.record.trials.values()) > 4
    pauses = [number for number, event in enumerate(journal) if isinstance(event, StudyPaused)]
    assert [journal[number - 1].kind for number in pauses] == ["reported"] * len(pauses)
    assert isinstance(journal[-1], StudyEnded)
    assert type(director.record).fold(journal) == director.record
    assert director.record.busy_seconds < 10


# Trials


def test_a_checkpoint_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Path.open
    errors = [errno.ENOSPC, errno.ENOSPC, errno.EROFS]

    def open_for_a_part(path: Path, mode: str = "r", **options: Any) -> Any:
        if errors and mode == "wb":
            with opened(path, mode) as file:
                file.write(b"a part of it")
            error = errors.pop(0)
            raise OSError(error, os.strerror(error))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_for_a_part)
    weights = {"head.weight": torch.arange(6.0)}
    row = {"epoch": 1.0, "val_accuracy": 0.5}
    with caplog.at_level(logging.INFO):
        file = checkpoints.save(tmp_path / "t0000", checkpoints.Checkpoint(1, 1, (row,), weights, {}, "frozen", "plan"))
    assert [path.name for path in (tmp_path / "t0000").iterdir()] == [file.name]
    found = checkpoints.load_last(tmp_path / "t0000")
    assert found is not None
    assert torch.equal(found.weights["head.weight"], weights["head.weight"])
    assert [record.message.split(":")[0] for record in caplog.records] == ["Paused", "Paused", "Going on"]


def test_what_cannot_be_removed_does_not_break_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple({"epoch": float(epoch), "val_accuracy": epoch / 10} for epoch in (1, 2, 3))
    states = [checkpoints.Checkpoint(n, n, rows[:n], {"w": torch.ones(1) * n}, {}, "frozen", "plan") for n in (1, 2, 3)]
    checkpoints.save(tmp_path, states[0])

    def refuse(path: Path, missing_ok: bool = False) -> None:  # noqa: ARG001
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        checkpoints.save(tmp_path, states[1])
    assert len(list(tmp_path.iterdir())) == 2
    checkpoints.save(tmp_path, states[2])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("where", ["full", "no folder"])
def test_a_log_that_cannot_be_written_does_not_break_its_trial(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    if where == "full":
        logs.mkdir()
        (logs / "t0000.log").symlink_to("/dev/full")
    else:
        logs.write_text("a file stands in the way")
    worker = Worker(ToyTrainer(2), logs=logs)
    worker.start(Ticket("t0000", 0, {"learning_rate": 0.01}))
    assert worker.step().metrics is not None
    worker.start(Ticket("t0001", 1, {"learning_rate": 0.01}))
    assert worker.step().metrics is not None
    worker.close()
    assert capsys.readouterr().err == ""
    assert (logs / "t0001.log").exists() == (where == "full")


def test_a_log_goes_on_when_its_disk_does(tmp_path: Path) -> None:
    logger = logging.getLogger("raystudy.tests.storage")
    logger.setLevel(logging.INFO)
    (tmp_path / "logs").write_text("a file stands in the way")
    handler = TrialLog(tmp_path / "logs" / "t0000.log")
    logger.addHandler(handler)
    logger.info("lost")
    (tmp_path / "logs").unlink()
    logger.info("found")
    logger.removeHandler(handler)
    handler.close()
    assert (tmp_path / "logs" / "t0000.log").read_text().endswith("INFO found\n")


# What stands around a study


def test_a_calling_card_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    files = StudyPaths(tmp_path / "small")
    files.root.mkdir()
    files.driver.symlink_to("/dev/full")
    with host.calling_card(files):
        pass


def test_a_study_whose_process_left_no_word_is_not_stopped_but_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path))
    files = StudyPaths.of("small")
    with host.exclusive(files):
        files.journal.write_text("")
        files.driver.write_text("")
        with pytest.raises(NotFoundError, match=r"driver\.json does not say which .*Ctrl-C"):
            host.stop("small")


def test_a_home_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="RAYSTUDY_HOME names the folder"), host.exclusive(StudyPaths(tmp_path / "file" / "x")):
        pass


@pytest.mark.slow
def test_a_writer_without_a_log_still_writes(tmp_path: Path) -> None:
    files = StudyPaths(tmp_path / "small")
    files.root.mkdir()
    files.writer_log.symlink_to("/dev/full")
    write_journal(files.journal, list(study_events(2))[:-1])
    feeder = Feeder.start(files, empty_store(tmp_path))
    assert feeder.wait_ready().run_id
    assert feeder.finish(240)


def test_a_feeder_whose_writer_cannot_be_restarted_writes_into_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StudyPaths(tmp_path / "small")
    feeder = Feeder.start(files, f"sqlite:///{tmp_path / 'mlflow.db'}")
    os.kill(feeder.pid, signal.SIGKILL)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feeder, "_spawn", refuse)
    with pytest.raises(OSError, match="No space"):
        feeder.restart_now()
    others = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(8)]
    for _ in range(3):
        feeder.notify()
    assert [os.fstat(file).st_size for file in others] == [0] * 8
    for file in others:
        os.close(file)
