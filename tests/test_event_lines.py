"""Events as lines: what goes out comes back, and whatever else a log has is left alone."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from strategies import VARIABLE, studies, values

from raystudy.event_lines import event_from_text, event_to_text, whole_lines
from raystudy.factors import Scalar
from raystudy.records import EVENTS, Decided, Event, StudyState, TrialState

FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(max_size=20)
IDS = st.integers(0, 9999).map("t{:04d}".format)
CONFIGS: SearchStrategy[dict[str, Scalar]] = st.lists(st.sampled_from(VARIABLE), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)
METRICS = st.dictionaries(st.sampled_from(["val_accuracy", "val_loss", "pid"]), FLOATS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
CELLS = st.lists(st.none() | st.booleans() | st.integers() | FLOATS | TEXTS, max_size=3).map(tuple)

VALUES: dict[str, SearchStrategy[Any]] = {
    "time": FLOATS,
    "name": TEXTS,
    "spec": studies(),
    "fingerprint": TEXTS,
    "version": TEXTS,
    "data": st.dictionaries(TEXTS, PLAIN, max_size=3),
    "owner": TEXTS,
    "cpu": st.integers(1, 64),
    "gpu": FLOATS,
    "concurrent": st.integers(1, 1000),
    "seconds": FLOATS,
    "reason": TEXTS,
    "trial_id": IDS,
    "number": st.integers(0, 9999),
    "config": CONFIGS,
    "epoch": st.integers(1, 999),
    "metrics": METRICS,
    "node": TEXTS,
    "cell": CELLS,
    "value": FLOATS,
    "table": st.lists(FLOATS, max_size=5).map(tuple),
    "stop": st.booleans(),
    "kept": st.booleans(),
    "keep_probability": FLOATS,
    "seen": st.integers(0, 9999),
}
STATES = {"trial_ended": st.sampled_from(TrialState), "study_ended": st.sampled_from(StudyState)}


def events_of(kind: str) -> SearchStrategy[Event]:
    given = {part.name: STATES[kind] if part.name == "state" else VALUES[part.name] for part in fields(EVENTS[kind])}
    return st.builds(EVENTS[kind], **given)


EVENTS_OF_ANY_KIND = st.sampled_from(sorted(EVENTS)).flatmap(events_of)


def without_table(event: Event) -> Event:
    return replace(event, table=()) if isinstance(event, Decided) else event


@pytest.mark.parametrize("kind", sorted(EVENTS))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_an_event_of_any_kind_comes_back_from_its_line_without_the_table(kind: str, data: st.DataObject) -> None:
    event = data.draw(events_of(kind))
    line = event_to_text(event)
    assert line.splitlines() == [line]
    assert event_from_text(line) == without_table(event)
    assert type(event_from_text(line)) is EVENTS[kind]


def test_a_decision_leaves_its_table_at_home_and_still_says_how_many_it_saw() -> None:
    decided = Decided(1.0, "t0000", 1, (0.5,), 0.9, (0.1, 0.2), True, False, 0.05, "below", 2)
    assert "0.1" not in event_to_text(decided)
    assert event_from_text(event_to_text(decided)) == replace(decided, table=())


NOISE = [
    "",
    "2026-11-25 INFO job_supervisor.py:180 -- Running entrypoint",
    "error: data.source: nothing there",
    "{",
    "{}",
    "{not json}",
    '{"kind":"trial_started","time":1.0}',
    '{"kind":"nothing we know","time":1.0}',
    '{"kind":["trial_started"],"time":1.0}',
    '{"kind":{},"time":1.0}',
    '{"kind":null}',
    '{"kind":"study_ended","time":1.0,"state":"exploded","reason":""}',
    '{"kind":"trial_retried","time":1.0,"trial_id":"t0000","reason":"","more":1}',
    '{"kind":"decided","time":1.0,"cell":3,"table":null}',
    ' {"kind":"trial_resumed","time":1.0,"trial_id":"t0000"}',
    '["kind"]',
]


@pytest.mark.parametrize("line", NOISE)
def test_a_line_that_is_no_event_is_left_alone(line: str) -> None:
    assert event_from_text(line) is None


@given(st.text() | PLAIN.map(json.dumps) | st.dictionaries(st.just("kind") | TEXTS, PLAIN).map(json.dumps))
def test_no_line_is_an_error(line: str) -> None:
    assert event_from_text(line) is None


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


@given(st.text("ab\n\r\x85{", max_size=40), st.lists(st.integers(0, 1000), max_size=10))
def test_lines_are_whole_wherever_the_text_is_cut(text: str, places: list[int]) -> None:
    *lines, rest = text.split("\n")
    assert list(whole_lines(cut(text, places))) == [*lines, *([rest] if rest else [])]


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENTS_OF_ANY_KIND | st.sampled_from(NOISE), max_size=6), st.lists(st.integers(0, 10_000), max_size=10))
def test_events_among_noise_arrive_in_their_order_wherever_the_log_is_cut(log: list[Event | str], places: list[int]) -> None:
    text = "".join(f"{line if isinstance(line, str) else event_to_text(line)}\n" for line in log)
    found = [event for line in whole_lines(cut(text, places)) if (event := event_from_text(line)) is not None]
    assert found == [without_table(line) for line in log if isinstance(line, Event)]


def test_a_line_is_given_as_soon_as_it_is_whole() -> None:
    arrived: list[str] = []

    def chunks() -> Any:
        for chunk in ("a", "b\nc", "\n", "d"):
            arrived.append(chunk)
            yield chunk

    lines = whole_lines(chunks())
    assert (next(lines), arrived) == ("ab", ["a", "b\nc"])
    assert (next(lines), arrived) == ("c", ["a", "b\nc", "\n"])
    assert list(lines) == ["d"]
