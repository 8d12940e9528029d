from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import study_events, write_journal

from raystudy.errors import JournalError
from raystudy.records import EVENTS, Event, StudyEnded, StudyRecord, StudyState, TrialState, event_from_json
from raystudy.tracking import journal
from raystudy.tracking.journal import Journal, decode, encode, last_event, read_events, read_journal
from raystudy.tracking.tail import Tail

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALAR = st.booleans() | st.integers(-(2**53), 2**53) | FINITE | st.text(max_size=20)
JSON = st.recursive(
    SCALAR | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
BY_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "spec": st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    "data": st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    "config": st.dictionaries(st.text(max_size=8), SCALAR, max_size=4),
    "metrics": st.dictionaries(st.text(max_size=8), FINITE, max_size=4),
    "number": st.integers(0, 10**6),
    "epoch": st.integers(1, 10**6),
    "cell": st.lists(SCALAR | st.none(), max_size=3).map(tuple),
    "table": st.lists(FINITE, max_size=5).map(tuple),
    "time": FINITE,
    "value": FINITE,
    "keep_probability": st.floats(0, 1),
    "stop": st.booleans(),
    "kept": st.booleans(),
}
STATES = {"trial_ended": st.sampled_from(TrialState), "study_ended": st.sampled_from(StudyState)}


def events_of(kind: type[Event]) -> st.SearchStrategy[Event]:
    strategies = {
        field.name: STATES[kind.kind] if field.name == "state" else BY_FIELD.get(field.name, st.text(max_size=30))
        for field in fields(kind)
    }
    return st.builds(kind, **strategies)


ANY_EVENT = st.sampled_from(sorted(EVENTS)).flatmap(lambda kind: events_of(EVENTS[kind]))


@given(ANY_EVENT)
def test_an_event_comes_back_as_it_was_written(event: Event) -> None:
    line = encode(event)
    assert line.count(b"\n") == 1
    assert decode(line, where="here") == event


@given(ANY_EVENT)
def test_plain_data_of_an_event_gives_the_event(event: Event) -> None:
    assert event_from_json(event.to_json()) == event


@given(st.lists(ANY_EVENT, max_size=6))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_journal_gives_its_events_in_order(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / f"{os.urandom(8).hex()}.jsonl"
    assert write_journal(path, events) == read_journal(path)


@given(event=ANY_EVENT, data=st.data())
def test_a_flipped_bit_anywhere_is_detected(event: Event, data: st.DataObject) -> None:
    line = bytearray(encode(event))
    position = data.draw(st.integers(0, len(line) - 2))
    line[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert decode(bytes(line), where="here") == event  # an upper-case digit of the checksum means the same
    except JournalError as error:
        assert "here" in str(error)


def test_damage_in_the_middle_names_the_place_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    events = write_journal(path, study_events(2))
    first = len(encode(events[0]))
    content = bytearray(path.read_bytes())
    content[first + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalError, match=rf"byte {first}: damaged .*restore the file"):
        read_journal(path)


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_not_an_event_and_is_cut_off_by_the_next_driver(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    events = write_journal(path, study_events(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_journal(path) == events[:-1]
    with Journal(path) as journal:
        journal.append(events[-1])
    assert path.read_bytes() == whole


@given(events=st.lists(ANY_EVENT, max_size=6), block=st.integers(1, 400), torn=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_event_is_read_from_the_end(tmp_path: Path, events: list[Event], block: int, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(map(encode, events)) + torn.replace(b"\n", b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_BLOCK", block)
        assert last_event(path) == (events[-1] if events else None)


def test_a_journal_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"00000000 {" + b"x" * 200_000)
    Journal(path).close()
    assert path.read_bytes() == b""


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    *most, last = study_events(1)
    with Journal(path) as journal:
        for event in most:
            journal.append(event)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(JournalError, match="No space left"):
            journal.append(last)
    assert read_journal(path) == most


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    event = next(event for event in study_events(1) if event.kind == "reported")
    broken = type(event)(**{**{f.name: getattr(event, f.name) for f in fields(event)}, "metrics": {"val_loss": float("nan")}})
    with Journal(tmp_path / "journal.jsonl") as journal, pytest.raises(JournalError, match="not finite"):
        journal.append(broken)


def test_a_missing_journal_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no such journal"):
        read_journal(tmp_path / "journal.jsonl")


def test_reading_goes_on_from_any_event(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    events = write_journal(path, study_events(3))
    offsets = [offset for offset, _ in read_events(path)]
    for index in (0, 7, len(events) - 1):
        assert [event for _, event in read_events(path, offset=offsets[index])] == events[index + 1 :]


def test_a_tail_adds_up_to_the_record_however_it_is_cut(tmp_path: Path) -> None:
    path, whole = tmp_path / "journal.jsonl", tmp_path / "whole.jsonl"
    expected = StudyRecord.fold(write_journal(whole, study_events(4)))
    content = whole.read_bytes()
    tail = Tail(path)
    assert tail.read() == set()
    for end in (*range(0, len(content), 777), len(content)):
        path.write_bytes(content[:end])
        tail.read()
    assert tail.record == expected
    assert tail.is_ended


def test_a_tail_reads_anew_when_a_line_was_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    events = write_journal(path, study_events(3))
    tail = Tail(path)
    assert tail.read() == {"t0000", "t0001", "t0002"}
    # A driver whose disk was full takes back what it could not force to disk; then it goes on with a longer line.
    long_one = StudyEnded(events[-1].time, StudyState.FAILED, "x" * 999)
    for other in (events[:-2], [*events[:-4], long_one]):
        path.write_bytes(b"".join(map(encode, other)))
        assert tail.read() == {"t0000", "t0001", "t0002"}
        assert tail.record == StudyRecord.fold(other)
