from __future__ import annotations

import io
import re
from itertools import islice
from pathlib import Path

import filelock
import pytest
from rich.console import Console
from toys import START, Clock, ToyTrainer, conduct, direct, resumed, run_on, toy_spec

from raystudy.errors import NotFoundError
from raystudy.paths import StudyPaths
from raystudy.progress import (
    Drawing,
    Lead,
    LiveProgress,
    PlainProgress,
    Snapshot,
    configuration,
    draw,
    duration,
    event_line,
    value,
)
from raystudy.records import Event, StudyRecord, StudyState, TrialEnded, TrialResumed, TrialStarted, TrialState
from raystudy.search.director import Director
from raystudy.search.inline import run_inline
from raystudy.search.worker import Worker
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.tracking.journal import Journal, encode
from raystudy.watch import watch_study

SPEC = toy_spec(budget={"trials": 12, "epochs": 4}, early_stopping={"grace": 1, "reduction": 2, "keep": 0.3, "within": []})


def finished(spec: StudySpec = SPEC) -> tuple[StudyRecord, list[Event]]:
    director, journal = conduct(spec, ToyTrainer(spec.budget.epochs, {3: "nan", 5: "raise"}, at_epoch=1))
    return director.record, journal


def terminal(*, wide: int = 120, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=wide, force_terminal=is_terminal, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# Words


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_values_have_the_digits_that_matter() -> None:
    assert [value(number) for number in (0.000123456, 12.0, 5, True, "sgd")] == ["0.000123", "12", "5", "True", "sgd"]
    assert configuration({"learning_rate": 0.0012345, "optimizer": "sgd"}) == "learning_rate=0.00123, optimizer=sgd"


# Snapshots


def test_a_snapshot_says_what_the_record_says() -> None:
    record, _ = finished()
    snapshot = Snapshot.of(record, SPEC, START, 0)
    assert (snapshot.name, snapshot.metric, snapshot.trials, snapshot.over) == ("toy", "val_accuracy", 12, 12)
    assert snapshot.counts == record.counts()
    assert snapshot.epochs == sum(len(trial.reports) for trial in record.trials.values())
    best = record.ranking("val_accuracy", "max")[0]
    assert snapshot.best is not None
    assert (snapshot.best.trial_id, snapshot.best.score) == (best.trial_id, best.best_value("val_accuracy", "max"))
    assert snapshot.seconds_left == 0


def test_the_rung_table_counts_who_reached_it_who_was_stopped_and_who_was_held_out() -> None:
    record, _ = finished()
    snapshot = Snapshot.of(record, SPEC, START, 0)
    assert [rung.epoch for rung in snapshot.rungs] == [1, 2]
    for rung in snapshot.rungs:
        decisions = [trial.decisions[rung.epoch] for trial in record.trials.values() if rung.epoch in trial.decisions]
        assert rung.reached == len(decisions)
        assert rung.stopped == sum(decision.stop for decision in decisions)
        assert rung.kept == sum(decision.kept for decision in decisions)
        assert rung.best == max(decision.value for decision in decisions)
    assert sum(rung.stopped for rung in snapshot.rungs) == record.count(TrialState.PRUNED)
    assert any(rung.kept for rung in snapshot.rungs)


def test_smaller_is_best_where_the_objective_says_so() -> None:
    spec = toy_spec(objective={"metric": "val_loss"}, budget={"trials": 6, "epochs": 2})
    record, _ = finished(spec)
    snapshot = Snapshot.of(record, spec, START, 0)
    values = [report.metrics["val_loss"] for trial in record.trials.values() for report in trial.reports.values()]
    assert snapshot.best is not None
    assert snapshot.best.score == min(values)
    assert snapshot.rungs[0].best == min(trial.decisions[1].value for trial in record.trials.values() if trial.decisions)


def test_a_running_trial_may_be_the_best_so_far_a_diverged_one_never() -> None:
    director, _ = direct(SPEC)
    running, diverging = director.next_trial(), director.next_trial()
    assert running is not None
    assert diverging is not None
    director.report(running.trial_id, {"epoch": 1, "val_accuracy": 0.5})
    director.report(diverging.trial_id, {"epoch": 1, "val_accuracy": 0.9})
    director.end(diverging.trial_id, TrialState.DIVERGED, "val_loss is nan")
    best = Snapshot.of(director.record, SPEC, START, 0).best
    assert best is not None
    assert (best.trial_id, best.score, best.state) == (running.trial_id, 0.5, "running")


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_the_lead_kept_event_by_event_is_what_a_look_through_all_trials_finds(metric: str) -> None:
    """Also when the leading trial diverges, which gives the lead back to another, and after an interruption."""
    spec = toy_spec(objective={"metric": metric}, budget={"trials": 12, "epochs": 4})
    director, journal = direct(spec)
    run_on(director, ToyTrainer(4, {3: "nan"}, at_epoch=2), trials=6)
    leading = director.next_trial()
    assert leading is not None
    director.report(leading.trial_id, {"epoch": 1, "val_accuracy": 2.0, "val_loss": -1.0})
    director.end(leading.trial_id, TrialState.DIVERGED, "val_loss is nan")
    director.request_stop("interrupted")
    director.finish()
    record = StudyRecord()
    lead, seen = Lead(record, spec), []
    for event in [*journal, *(TrialResumed(START, trial.trial_id) for trial in director.record.trials.values())]:
        record.apply(event)
        lead.take(event)
        assert lead.best == Snapshot.of(record, spec, START, 0).best
        seen.append(lead.best and lead.best.trial_id)
    assert leading.trial_id in seen[:-1]
    assert len(set(seen)) > 2


def test_the_time_left_goes_by_the_trials_of_this_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    director, _ = direct(SPEC)
    run_on(director, ToyTrainer(4), trials=6)
    monkeypatch.setattr("raystudy.progress.time.time", lambda: START + 100)
    assert Snapshot.of(director.record, SPEC, START, 0).seconds_left == 100
    assert Snapshot.of(director.record, SPEC, START, 4).seconds_left == 300
    assert Snapshot.of(director.record, SPEC, START, 6).seconds_left is None


def test_no_time_is_left_where_there_are_more_trials_than_the_budget_says_now() -> None:
    record, _ = finished()
    assert Snapshot.of(record, toy_spec(budget={"trials": 4, "epochs": 4}), START, 0).seconds_left == 0


def test_a_study_without_events_can_be_shown() -> None:
    console = terminal()
    console.print(draw(Snapshot.of(StudyRecord(), SPEC, START, 0)))
    assert "toy  0/12 trials, 0 epochs" in text(console)


def test_a_drawing_shows_counts_rungs_and_the_best_with_its_configuration() -> None:
    record, _ = finished()
    snapshot = Snapshot.of(record, SPEC, START, 0)
    console = terminal()
    console.print(draw(snapshot))
    shown = text(console)
    assert snapshot.best is not None
    for part in ("toy  12/12 trials", "1 diverged", "1 failed", "held out", f"val_accuracy {snapshot.best.score:.4f}"):
        assert part in shown
    assert re.search(rf"epoch 1 +{snapshot.rungs[0].reached} +{snapshot.rungs[0].stopped}", shown)
    assert snapshot.best.config.split(",")[0] in shown


def test_before_the_first_snapshot_the_drawing_says_that_it_starts() -> None:
    console = terminal()
    console.print(Drawing())
    assert text(console).strip() == "starting"


# Watchers


def run_watched(progress: PlainProgress | LiveProgress, spec: StudySpec = SPEC) -> Director:
    journal: list[Event] = []
    director = Director(spec, Space.of(spec), append=journal.append, history=(), observers=[progress], now=Clock())
    progress.begin(director)
    run_inline(director, Worker(ToyTrainer(spec.budget.epochs, {3: "nan"}, at_epoch=1)))
    progress.end()
    return director


def test_plain_progress_is_a_line_a_trial() -> None:
    console = terminal()
    director = run_watched(PlainProgress(console))
    lines = text(console).splitlines()
    assert lines[0] == "toy: 12 trials of up to 4 epochs, rungs at 1, 2"
    assert len(lines) == 1 + 12 + 1
    assert lines[-1] == "study completed"
    for number, line in enumerate(lines[1:-1]):
        trial = director.record.trials[f"t{number:04d}"]
        assert line.startswith(f"[{number + 1}/12] {trial.trial_id} {trial.state.value} after epoch {trial.epochs}")
    assert "(val_loss is nan at epoch 1)" in lines[4]


def test_plain_lines_are_not_broken_however_narrow_the_pipe() -> None:
    wide, narrow = terminal(wide=500), terminal(wide=20)
    for console in (wide, narrow):
        run_watched(PlainProgress(console))
    assert len(text(narrow).splitlines()) == len(text(wide).splitlines())


def test_what_a_user_wrote_is_no_markup() -> None:
    console = terminal()
    PlainProgress(console).say("images from [bold]/data[/bold]")
    assert text(console) == "images from [bold]/data[/bold]\n"


@pytest.mark.parametrize("kind", [PlainProgress, LiveProgress])
def test_events_before_the_beginning_are_not_shown(kind: type[PlainProgress | LiveProgress]) -> None:
    console = terminal()
    kind(console)(TrialEnded(START, "t0000", TrialState.FAILED, "boom"))
    assert text(console) == ""


def test_live_progress_ends_with_the_final_table() -> None:
    console = terminal(is_terminal=True)
    run_watched(LiveProgress(console))
    assert "toy  12/12 trials" in text(console)


def test_an_event_is_one_line_of_a_log() -> None:
    started = TrialStarted(START, "t0007", 7, {"learning_rate": 0.0012345, "optimizer": "sgd"})
    line = event_line(started)
    assert line.endswith("trial_started  trial_id=t0007  number=7  learning_rate=0.00123, optimizer=sgd")
    _, journal = finished()
    assert all("\n" not in event_line(event) for event in journal)


# Watching from another terminal


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPaths:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path))
    return StudyPaths.of("toy")


def hold(files: StudyPaths) -> filelock.BaseFileLock:
    """Hold the study as another process would."""
    files.root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(files.lock, is_singleton=False)
    lock.acquire()
    return lock


@pytest.mark.parametrize("is_terminal", [False, True])
def test_watching_follows_a_growing_journal_to_its_end(files: StudyPaths, is_terminal: bool) -> None:
    _, events = finished()
    lock, rest = hold(files), iter(events[3:])
    with Journal(files.journal) as journal:
        for event in events[:3]:
            journal.append(event)

        def pause(_: float) -> None:
            for event in islice(rest, 9):
                journal.append(event)

        console = terminal(is_terminal=is_terminal)
        assert watch_study("toy", console, pause) is StudyState.COMPLETED
    lock.release()
    if is_terminal:
        assert "12/12 trials" in text(console)
    else:
        assert text(console).splitlines() == [event_line(event) for event in events]


def test_watching_ends_when_the_driver_dies_and_says_how_to_go_on(files: StudyPaths) -> None:
    _, events = finished()
    lock = hold(files)
    with Journal(files.journal) as journal:
        for event in events[:10]:
            journal.append(event)
    console = terminal()
    assert watch_study("toy", console, lambda _: lock.release()) is StudyState.RUNNING
    assert "nobody is running toy; `raystudy resume toy` continues it" in text(console)


def test_watching_leaves_alone_an_event_that_is_being_written(files: StudyPaths) -> None:
    _, events = finished()
    lock = hold(files)
    files.journal.write_bytes(b"".join(encode(event) for event in events[:-1]) + encode(events[-1])[:9])

    def pause(_: float) -> None:
        files.journal.write_bytes(b"".join(encode(event) for event in events))

    assert watch_study("toy", terminal(), pause) is StudyState.COMPLETED
    lock.release()


def test_watching_waits_for_the_first_event(files: StudyPaths) -> None:
    _, events = finished()
    lock = hold(files)
    files.journal.touch()
    console = terminal(is_terminal=True)

    def pause(_: float) -> None:
        files.journal.write_bytes(b"".join(encode(event) for event in events))

    assert watch_study("toy", console, pause) is StudyState.COMPLETED
    lock.release()


def test_watching_a_resumed_study_counts_the_time_of_its_present_driver(files: StudyPaths) -> None:
    director, journal = direct(SPEC)
    run_on(director, ToyTrainer(4), trials=5)
    _, events = conduct(SPEC, ToyTrainer(4), resumed(SPEC, journal))
    files.root.mkdir(parents=True)
    files.journal.write_bytes(b"".join(encode(event) for event in events))
    console = terminal(is_terminal=True)
    assert watch_study("toy", console) is StudyState.COMPLETED
    assert "12/12 trials" in text(console)


def test_there_is_nothing_to_watch_without_a_study(files: StudyPaths) -> None:
    with pytest.raises(NotFoundError, match=f"there is no study '{files.root.name}'"):
        watch_study("toy", terminal())
