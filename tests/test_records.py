from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import START, study_events

from raystudy.errors import JournalError
from raystudy.records import (
    EVENTS,
    Decided,
    Event,
    Reported,
    StudyEnded,
    StudyRecord,
    StudyResumed,
    StudyStarted,
    StudyState,
    TrialEnded,
    TrialRecord,
    TrialResumed,
    TrialRetried,
    TrialStarted,
    TrialState,
    event_from_json,
)

# Events

numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | st.integers() | numbers | st.text(max_size=5)
configs = st.dictionaries(st.text(max_size=5), scalars, max_size=3)
ids = st.text(min_size=1, max_size=5)
plain = st.dictionaries(st.text(max_size=5), scalars | st.lists(scalars, max_size=2), max_size=3)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(StudyStarted, numbers, ids, plain, ids, ids, plain),
    st.builds(StudyResumed, numbers, plain, ids),
    st.builds(TrialStarted, numbers, ids, st.integers(0), configs),
    st.builds(TrialResumed, numbers, ids),
    st.builds(TrialRetried, numbers, ids, ids),
    st.builds(Reported, numbers, ids, st.integers(1), st.dictionaries(ids, numbers, max_size=3), ids),
    st.builds(
        Decided,
        numbers,
        ids,
        st.integers(1),
        cell=st.lists(scalars | st.none(), max_size=2).map(tuple),
        value=numbers,
        table=st.lists(numbers, max_size=3).map(tuple),
        stop=st.booleans(),
        kept=st.booleans(),
        keep_probability=numbers,
        reason=ids,
    ),
    st.builds(TrialEnded, numbers, ids, st.sampled_from(TrialState), ids),
    st.builds(StudyEnded, numbers, st.sampled_from(StudyState), ids),
)


@given(events)
def test_every_event_comes_back_from_json_as_it_was(event: Event) -> None:
    again = event_from_json(json.loads(json.dumps(event.to_json())))
    assert again == event
    assert type(again) is type(event)


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    assert {cls.__name__ for cls in EVENTS.values()} == {cls.__name__ for cls in Event.__subclasses__()}
    assert all(kind == cls.kind for kind, cls in EVENTS.items())


@pytest.mark.parametrize("data", [{}, {"kind": "moon_landed", "time": 0.0}, {"kind": None}])
def test_an_unknown_event_is_a_journal_error(data: dict[str, Any]) -> None:
    with pytest.raises(JournalError, match="unknown event"):
        event_from_json(data)


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_an_incomplete_event_is_a_journal_error(kind: str) -> None:
    with pytest.raises(JournalError, match=f"event '{kind}' does not fit"):
        event_from_json({"kind": kind})


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "trial_ended", "time": 0.0, "trial_id": "t", "state": "lost", "reason": ""},
        {"kind": "study_ended", "time": 0.0, "state": "lost", "reason": ""},
        {"kind": "trial_resumed", "time": 0.0, "trial_id": "t", "colour": "red"},
    ],
)
def test_an_event_of_another_version_is_a_journal_error(data: dict[str, Any]) -> None:
    with pytest.raises(JournalError, match="does not fit this version"):
        event_from_json(data)


# States


def test_running_and_interrupted_trials_may_still_report() -> None:
    assert {state for state in TrialState if not state.is_over} == {TrialState.RUNNING, TrialState.INTERRUPTED}


def test_only_trials_with_a_sound_result_rank() -> None:
    assert {state for state in TrialState if state.ranks} == {TrialState.COMPLETED, TrialState.PRUNED}


# Trials


def trial(number: int, values: list[float], state: TrialState = TrialState.COMPLETED) -> TrialRecord:
    trial_id = f"t{number}"
    reports = {epoch: Reported(START, trial_id, epoch, {"val_accuracy": value}) for epoch, value in enumerate(values, start=1)}
    return TrialRecord(trial_id, number, {}, START, state=state, reports=reports)


def test_the_best_epoch_is_the_earliest_of_equals() -> None:
    one = trial(0, [0.1, 0.7, 0.7, 0.3, 0.1])
    assert one.best_epoch("val_accuracy", "max") == 2
    assert one.best_epoch("val_accuracy", "min") == 1
    assert one.best_value("val_accuracy", "max") == 0.7
    assert (one.epochs, one.last) == (5, {"val_accuracy": 0.1})


def test_a_trial_without_reports_has_no_best() -> None:
    one = trial(0, [])
    assert one.best_epoch("val_accuracy", "max") is None
    assert one.best_value("val_accuracy", "max") is None
    assert (one.epochs, one.last) == (0, {})


def test_a_metric_that_is_not_reported_has_no_best() -> None:
    assert trial(0, [0.5]).best_epoch("val_loss", "min") is None


@given(st.lists(numbers, min_size=1, max_size=8), st.sampled_from(["max", "min"]))
def test_no_epoch_is_better_than_the_best(values: list[float], mode: str) -> None:
    best = trial(0, values).best_value("val_accuracy", mode)
    assert best == (max if mode == "max" else min)(values)


def test_the_ranking_leaves_out_bad_ends_and_puts_the_earlier_of_equals_first() -> None:
    trials = [
        trial(0, [0.5]),
        trial(1, [0.9], TrialState.DIVERGED),
        trial(2, [0.9], TrialState.FAILED),
        trial(3, [0.7, 0.1], TrialState.PRUNED),
        trial(4, [0.7]),
        trial(5, [], TrialState.PRUNED),
        trial(6, [0.8], TrialState.RUNNING),
        trial(7, [0.8], TrialState.INTERRUPTED),
    ]
    record = StudyRecord(trials={one.trial_id: one for one in reversed(trials)})
    assert [one.number for one in record.ranking("val_accuracy", "max")] == [3, 4, 0]
    assert [one.number for one in record.ranking("val_accuracy", "min")] == [3, 0, 4]


def decided(*, kept: bool) -> Decided:
    return Decided(START, "t0", 1, (), 0.1, (0.5,), stop=not kept, kept=kept, keep_probability=0.05, reason="")


def test_a_hold_out_is_one_that_any_rung_kept() -> None:
    one = trial(0, [0.1])
    assert not one.kept
    one.decisions[1] = decided(kept=False)
    assert not one.kept
    one.decisions[3] = decided(kept=True)
    assert one.kept


# Studies


def test_the_same_events_always_add_up_to_the_same_record() -> None:
    journal = list(study_events(12))
    record = StudyRecord()
    for event in journal:
        record.apply(event)
    assert record == StudyRecord.fold(journal)
    assert record.state is StudyState.COMPLETED
    assert record.counts() == {"completed": 6, "pruned": 2, "diverged": 2, "failed": 2}
    assert sum(record.counts().values()) == len(record.trials) == 12


def test_a_resumed_trial_keeps_its_reports_and_is_neither_ended_nor_explained() -> None:
    events = [
        TrialStarted(START, "t0", 0, {}),
        Reported(START, "t0", 1, {"val_accuracy": 0.5}, "node-1"),
        TrialEnded(START + 1, "t0", TrialState.INTERRUPTED, "Ctrl-C"),
        TrialResumed(START + 2, "t0"),
    ]
    one = StudyRecord.fold(events).trials["t0"]
    assert (one.state, one.reason, one.ended) == (TrialState.RUNNING, "", None)
    assert one.epochs == 1


def test_the_first_report_of_an_epoch_counts() -> None:
    one = StudyRecord.fold(
        [
            TrialStarted(START, "t0", 0, {}),
            Reported(START, "t0", 1, {"val_accuracy": 0.5}, "node-1"),
            Reported(START, "t0", 1, {"val_accuracy": 0.9}, "node-2"),
        ]
    ).trials["t0"]
    assert one.last == {"val_accuracy": 0.5}
    assert one.node == "node-2"


def test_busy_time_is_that_of_drivers_at_work_without_the_time_between_them() -> None:
    resume = StudyResumed(START + 1000, {}, "")
    events = [
        StudyStarted(START, "s", {}, "", ""),
        TrialStarted(START + 10, "t0", 0, {}),
        resume,
        TrialResumed(START + 1003, "t0"),
        StudyEnded(START + 1007, StudyState.COMPLETED, ""),
        StudyResumed(START + 5000, {}, ""),
    ]
    assert StudyRecord.fold(events).busy_seconds == 10 + 7


def test_a_clock_set_back_does_not_take_time_away() -> None:
    events = [StudyStarted(START, "s", {}, "", ""), TrialStarted(START - 50, "t0", 0, {}), TrialResumed(START - 40, "t0")]
    assert StudyRecord.fold(events).busy_seconds == 10


def test_a_resume_opens_a_study_that_had_ended_and_takes_its_new_budget() -> None:
    record = StudyRecord.fold(
        [
            StudyStarted(START, "s", {"budget": 1}, "", "0.1"),
            StudyEnded(START + 1, StudyState.INTERRUPTED, "Ctrl-C"),
            StudyResumed(START + 2, {"budget": 2}, "0.2"),
        ]
    )
    assert (record.state, record.reason, record.ended) == (StudyState.RUNNING, "", None)
    assert (record.spec, record.version, record.started) == ({"budget": 2}, "0.2", START)


def test_no_state_without_trials_is_counted() -> None:
    assert StudyRecord().counts() == {}
    assert StudyRecord().count(TrialState.RUNNING) == 0


def test_json_has_no_place_for_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.dumps(Reported(START, "t", 1, {"a": math.nan}).to_json(), allow_nan=False)
