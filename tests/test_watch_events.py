"""Following a study on a cluster by the events that its driver prints."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console
from toys import ToyTrainer, conduct, direct, resumed, run_on, toy_spec

from raystudy.progress import event_line
from raystudy.records import Event, StudyResumed, StudyState
from raystudy.watch import watch_events

SPEC = toy_spec(budget={"trials": 12, "epochs": 4}, early_stopping={"grace": 1, "reduction": 2, "keep": 0.3, "within": []})


def console(*, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=is_terminal, color_system=None)


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return conduct(SPEC, ToyTrainer(4, {3: "nan", 5: "raise"}, at_epoch=1))[1]


def test_each_event_is_a_line_as_soon_as_it_comes(events: list[Event]) -> None:
    shown = console()

    def coming() -> Iterator[Event | None]:
        for number, event in enumerate(events):
            assert text(shown).splitlines() == [event_line(one) for one in events[:number]]
            yield None
            yield event

    assert watch_events("toy", coming(), shown) is StudyState.COMPLETED
    assert text(shown).splitlines() == [event_line(event) for event in events]


def test_lines_are_neither_wrapped_nor_read_as_markup(events: list[Event]) -> None:
    narrow = Console(file=io.StringIO(), width=20, color_system=None)
    ended = StudyResumed(events[-1].time + 1, SPEC.to_dict(), "[bold]1[/bold]")
    watch_events("toy", [*events, ended], narrow)
    assert event_line(ended) in text(narrow).splitlines()


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("n_events", [0, 1, 10])
def test_a_driver_that_is_lost_is_said_to_be_gone(events: list[Event], n_events: int, is_terminal: bool) -> None:
    shown = console(is_terminal=is_terminal)
    assert watch_events("toy", events[:n_events], shown) is StudyState.INTERRUPTED
    assert "the driver of toy is gone; `raystudy resume toy` continues it" in text(shown)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_study_that_ended_is_not_said_to_be_gone(events: list[Event], is_terminal: bool) -> None:
    shown = console(is_terminal=is_terminal)
    assert watch_events("toy", events, shown) is StudyState.COMPLETED
    assert "gone" not in text(shown)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_study_that_was_stopped_is_interrupted(is_terminal: bool) -> None:
    director, journal = direct(SPEC)
    run_on(director, ToyTrainer(4), trials=5)
    director.request_stop("enough")
    director.finish()
    assert watch_events("toy", journal, console(is_terminal=is_terminal)) is StudyState.INTERRUPTED


def test_on_a_terminal_a_table_stays_in_place(events: list[Event]) -> None:
    shown = console(is_terminal=True)
    assert watch_events("toy", iter(events), shown) is StudyState.COMPLETED
    assert "12/12 trials" in text(shown)
    assert event_line(events[-1]) not in text(shown)


def test_the_table_shows_the_last_event_that_came_while_nothing_new_does(events: list[Event]) -> None:
    """Also if it was one of many, as in the history of a study that somebody begins to watch late."""
    over = sum(event.kind == "trial_ended" for event in events[:-1])
    drawn = {0: threading.Event(), over: threading.Event()}
    shown = console(is_terminal=True)

    class Screen(io.StringIO):
        def write(self, written: str) -> int:
            for count, event in drawn.items():
                if f" {count}/12 trials" in f" {written}":
                    event.set()
            return super().write(written)

    shown.file = Screen()

    def coming() -> Iterator[Event | None]:
        yield events[0]
        assert drawn[0].wait(30), "the table does not show the first event"
        yield from events[1:-1]
        assert drawn[over].wait(30), "the table does not show what was last said"
        yield events[-1]

    assert watch_events("toy", coming(), shown) is StudyState.COMPLETED


def test_a_study_that_waits_is_shown_as_starting() -> None:
    shown = console(is_terminal=True)
    watch_events("toy", [None, None], shown)
    assert "starting" in text(shown)
    assert "trials" not in text(shown)


def test_a_resumed_study_is_shown_from_its_first_event_on() -> None:
    director, journal = direct(SPEC)
    run_on(director, ToyTrainer(4), trials=5)
    _, events = conduct(SPEC, ToyTrainer(4), resumed(SPEC, journal))
    shown = console(is_terminal=True)
    assert watch_events("toy", events, shown) is StudyState.COMPLETED
    assert "12/12 trials" in text(shown)


def test_ctrl_c_leaves_the_terminal_as_it_was(events: list[Event]) -> None:
    def interrupted() -> Iterator[Event]:
        yield events[0]
        raise KeyboardInterrupt

    shown = console(is_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        watch_events("toy", interrupted(), shown)
    assert text(shown).endswith("\x1b[?25h")  # the cursor is back
