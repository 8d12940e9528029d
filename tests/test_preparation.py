"""What gets ready before it is needed: the writer, Ray, the findings' process; and what becomes of it if it is not."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from journals import SPEC, Clock, started, study_events, trial_events, write_journal
from stores import empty_store
from toys import ToyTrainer, toy_spec
from waiting import wait_until

from raystudy import driver, host
from raystudy.driver import Setting
from raystudy.errors import UnreachableError
from raystudy.garbage import uncollected
from raystudy.paths import StudyPaths
from raystudy.records import Event, StudyRecord, TrialState
from raystudy.tracking import names
from raystudy.tracking.feeder import Feeder
from raystudy.tracking.finder import Finder
from raystudy.tracking.writer import DriverPipe, Writer


@pytest.fixture
def files(tmp_path: Path) -> StudyPaths:
    return StudyPaths(tmp_path / "studies" / "digits")


# The garbage collector


def test_a_process_of_our_own_collects_rarely_and_leaves_out_at_its_end_what_it_holds() -> None:
    code = """
        import atexit, gc
        from raystudy.garbage import collect_rarely

        atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # after what is registered later
        collect_rarely()
        print(gc.isenabled(), gc.get_threshold()[0] > 10_000, gc.get_freeze_count())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "0", "True"]


@pytest.mark.parametrize("was_on", [True, False])
def test_imports_are_not_collected_and_what_they_made_is_not_looked_at_again(was_on: bool) -> None:
    before = gc.isenabled(), gc.get_freeze_count()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is was_on
        assert gc.get_freeze_count() > before[1]
    finally:
        gc.unfreeze()
        (gc.enable if before[0] else gc.disable)()


# The writer


@pytest.mark.slow
def test_a_prepared_writer_begins_when_it_is_told(files: StudyPaths, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    feeder = Feeder.prepare(files, uri)
    try:
        write_journal(files.journal, list(study_events(1))[:1])
        feeder.begin()
        assert feeder.wait_ready().tracking_uri == uri
    finally:
        feeder.abandon()


@pytest.mark.slow
def test_a_prepared_writer_that_is_never_told_opens_nothing(files: StudyPaths, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-m", "raystudy.tracking.writer", "--prepare", "--root", str(files.root), "--tracking-uri", uri]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_prepared_writer_that_is_not_needed_ends_at_once_and_leaves_nothing(files: StudyPaths, tmp_path: Path) -> None:
    feeder = Feeder.prepare(files, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not feeder.finish(1.0)
    assert not Path(f"/proc/{feeder.pid}").exists()
    assert not (tmp_path / "mlflow.db").exists()


# Ray


def test_whoever_leaves_while_ray_is_starting_waits_for_the_start_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    go_on = threading.Event()

    def connect(_: object) -> None:
        go_on.wait()
        order.append("started")

    monkeypatch.setattr(host, "_connect", connect)
    monkeypatch.setattr("ray.shutdown", lambda: order.append("ended"))
    with pytest.raises(KeyError), host.ray_starting(toy_spec()):
        order.append("weights")
        threading.Timer(0.05, go_on.set).start()
        raise KeyError
    assert order == ["weights", "started", "ended"]


def test_what_goes_wrong_with_ray_is_raised_where_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: object) -> None:
        raise UnreachableError("no Ray")

    monkeypatch.setattr(host, "_connect", connect)
    with host.ray_starting(toy_spec()) as await_ray, pytest.raises(UnreachableError, match="no Ray"):
        await_ray()


def test_sigterm_before_the_first_trial_tidies_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))

    def terminated(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(driver, "check_units", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        driver.run(toy_spec(), Setting(inline=True, trainer=ToyTrainer(9)))
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert list((tmp_path / "home" / "studies").iterdir()) == []


# The findings' process

WAITS = """
import os, sys
from pathlib import Path
print(os.getpid(), file=open({0!r} + ".pids", "a"))
if sys.stdin.read(1):
    folder = Path({0!r})
    folder.mkdir(parents=True)
    (folder / "importance.json").write_text('{{"error": "as told"}}')
"""


@pytest.fixture
def finder(files: StudyPaths) -> Finder:
    files.root.mkdir(parents=True)
    return Finder(files, (sys.executable, "-c", WAITS.format(str(files.findings))))


def pids(files: StudyPaths) -> list[int]:
    """Return the processes that have been started, once there is one."""
    file = Path(f"{files.findings}.pids")
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the process to be there")
    return [int(line) for line in file.read_text().split()]


def test_a_prepared_process_computes_when_it_is_told_and_only_then(files: StudyPaths, finder: Finder) -> None:
    record = StudyRecord.fold(write_journal(files.journal, study_events(2)))
    finder.prepare()
    (pid,) = pids(files)
    assert not files.findings.exists()
    finder.prepare()
    finder.start(record)
    assert finder.wait(lambda: False)
    assert (files.findings / names.IMPORTANCE_FILE).exists()
    assert pids(files) == [pid]


def test_a_prepared_process_that_was_killed_is_replaced(files: StudyPaths, finder: Finder) -> None:
    record = StudyRecord.fold(write_journal(files.journal, study_events(2)))
    finder.prepare()
    (pid,) = pids(files)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2], "the process to die")
    finder.start(record)
    assert finder.wait(lambda: False)
    assert len(pids(files)) == 2


def test_a_process_that_was_prepared_in_vain_is_ended(files: StudyPaths, finder: Finder) -> None:
    clock = Clock()
    silent = trial_events(clock, 0, epochs=0, state=TrialState.FAILED)
    finder.prepare()
    (pid,) = pids(files)
    finder.start(StudyRecord.fold([started(clock), *silent]))
    assert not finder.wait(lambda: False)
    assert not Path(f"/proc/{pid}").exists()
    assert not files.findings.exists()


@pytest.mark.slow
def test_the_real_process_ends_with_its_writer_and_writes_nothing(files: StudyPaths) -> None:
    write_journal(files.journal, study_events(2))
    command = [sys.executable, "-m", "raystudy.tracking.findings", "--wait", "--root", str(files.root)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not files.findings.exists()


@pytest.fixture
def own_uri(tmp_path: Path) -> str:
    return empty_store(tmp_path / "store")


@pytest.mark.parametrize(
    ("started_ones", "ended", "prepares"),
    [(5, 5, False), (6, 4, False), (6, 5, True), (6, 6, True)],
    ids=["trials are left", "no slot is idle", "a slot is idle", "all have ended"],
)
def test_the_writer_prepares_the_findings_when_a_slot_is_idle_at_the_end(
    files: StudyPaths, own_uri: str, started_ones: int, ended: int, prepares: bool
) -> None:
    """Two at a time; the writer has seen both at work."""
    clock = Clock()
    six = {**SPEC, "budget": {**SPEC["budget"], "trials": 6}}
    events: list[Event] = [started(clock, six)]
    for number in range(started_ones):
        state = TrialState.COMPLETED if number < 4 else TrialState.RUNNING
        events += trial_events(clock, number, epochs=1, state=state)
    write_journal(files.journal, events)
    calls = []

    class Noted(Finder):
        def prepare(self) -> None:
            calls.append("prepare")

    reading, writing = os.pipe()
    writer = Writer(files, own_uri, DriverPipe(reading), patience=0, finder=Noted(files))
    writer.connect()
    writer._read()
    writer._prepare_findings()
    assert calls == []
    later = [event for number in range(4, ended) for event in list(trial_events(clock, number, epochs=1))[-1:]]
    write_journal(files.journal, later)
    writer._read()
    writer._prepare_findings()
    assert bool(calls) is prepares
    os.close(writing)
