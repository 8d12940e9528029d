"""GPUs as money: what trials hold is counted, a budget of GPU-hours ends a study cleanly, and MLflow says who spent what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from toys import START, ToyTrainer, direct, epochs_of, resumed, run_on, toy_spec

from raystudy.records import (
    Event,
    Reported,
    StudyEnded,
    StudyPlaced,
    StudyRecord,
    StudyStarted,
    StudyState,
    TrialResumed,
    TrialStarted,
    TrialState,
    event_from_json,
)
from raystudy.search.director import Director
from raystudy.search.inline import run_inline
from raystudy.search.worker import Worker
from raystudy.spec import StudySpec
from raystudy.tracking import names
from raystudy.tracking.content import RunContent, study_content, trial_content

HOUR = 3600.0


def gpu_spec(gpu_hours: float | None = 1.0, **changes: Any) -> StudySpec:
    budget = {"trials": 6, "epochs": 4} | ({} if gpu_hours is None else {"gpu_hours": gpu_hours})
    return toy_spec(budget=budget, early_stopping={"scheduler": "none"}, **changes)


def train(director: Director, *, seconds: float, epochs: int = 99) -> str:
    """Run a trial, each of whose epochs takes `seconds`, for at most so many epochs; return its id."""
    trial = director.next_trial()
    assert trial is not None
    for _, metrics in zip(range(epochs), epochs_of(ToyTrainer(4), director, trial), strict=False):
        if not director.report(trial.trial_id, metrics, seconds=seconds) or director.must_stop:
            break
    return trial.trial_id


def placed(spec: StudySpec, gpu: float = 1.0) -> tuple[Director, list[Event]]:
    director, journal = direct(spec)
    director.place(cpu=1, gpu=gpu, concurrent=2)
    return director, journal


# Counting


@pytest.mark.parametrize("gpu", [0.0, 0.25, 1.0, 2.0])
def test_what_a_trial_holds_is_its_gpus_times_the_seconds_of_its_epochs(gpu: float) -> None:
    director, journal = placed(gpu_spec(None), gpu)
    first, second = train(director, seconds=10.0), train(director, seconds=3.0, epochs=2)
    record = director.record
    assert record.trials[first].gpu_seconds == pytest.approx(4 * 10 * gpu)
    assert record.trials[second].gpu_seconds == pytest.approx(2 * 3 * gpu)
    assert record.gpu_seconds == pytest.approx((40 + 6) * gpu)
    assert StudyRecord.fold(journal) == record


def test_gpu_seconds_of_a_trial_that_is_retried_add_up_and_the_repeated_epoch_counts_with_the_next() -> None:
    director, _ = placed(gpu_spec(None))
    trial = director.next_trial()
    assert trial is not None
    rows = list(epochs_of(ToyTrainer(4), director, trial))
    director.report(trial.trial_id, rows[0], seconds=10)
    director.report(trial.trial_id, rows[1], seconds=10)
    director.retry(trial.trial_id, "its process died")
    director.report(trial.trial_id, rows[1], seconds=7)  # what it took to come back to where it was
    assert trial.gpu_seconds == 20
    director.report(trial.trial_id, rows[2], seconds=10)
    assert trial.gpu_seconds == 37
    director.report(trial.trial_id, rows[3], seconds=10)
    assert (trial.gpu_seconds, trial.retries, director.record.gpu_seconds) == (47, 1, 47)
    assert trial.state is TrialState.COMPLETED


def test_each_driver_counts_with_the_gpus_that_it_placed() -> None:
    spec = gpu_spec(None)
    director, journal = placed(spec, gpu=1.0)
    train(director, seconds=10.0, epochs=1)
    director.finish()
    again, journal = direct(spec, resumed(spec, journal))
    again.place(cpu=1, gpu=0.5, concurrent=4)
    train(again, seconds=10.0, epochs=2)  # the first epoch is in the journal
    assert again.record.gpu_seconds == 10 + 20 * 0.5
    assert StudyRecord.fold(journal).gpu_seconds == 10 + 20 * 0.5


def test_a_study_that_ran_before_gpus_were_counted_has_held_none() -> None:
    started = {"kind": "study_started", "time": START, "name": "toy", "spec": {}, "fingerprint": "", "version": "0.0.9"}
    trial = {"kind": "trial_started", "time": START, "trial_id": "t0000", "number": 0, "config": {}}
    reported = {"kind": "reported", "time": START, "trial_id": "t0000", "epoch": 1, "metrics": {"val_accuracy": 0.5}}
    record = StudyRecord.fold(map(event_from_json, (started, trial, reported)))
    assert (record.gpu_seconds, record.owner, record.trials["t0000"].gpu_seconds) == (0.0, "", 0.0)


def test_where_a_study_was_placed_comes_back_from_its_journal_and_changes_nothing_else() -> None:
    event = StudyPlaced(START + 1, 2, 0.5, 7)
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event
    spec = gpu_spec(None)
    director, journal = placed(spec, gpu=0.5)
    train(director, seconds=1.0)
    again, _ = direct(spec, journal)
    assert again.record == director.record
    assert again.record.gpus_per_trial == 0.5
    without, _ = direct(spec, [event for event in journal if not isinstance(event, StudyPlaced)])
    assert without.record.trials.keys() == again.record.trials.keys()
    assert (again.left, without.left) == (5, 5)


def test_inline_studies_hold_no_gpus() -> None:
    spec = gpu_spec(0.000001)
    director, journal = direct(spec)
    assert run_inline(director, Worker(ToyTrainer(4))) is StudyState.COMPLETED
    assert director.record.gpu_seconds == 0
    assert all(event.seconds >= 0 for event in journal if isinstance(event, Reported))
    assert director.record.reason == ""
    assert len(director.record.trials) == 6


# The budget


def test_a_study_that_has_used_up_its_gpu_hours_is_complete_and_says_why() -> None:
    director, journal = placed(gpu_spec(1.0))
    train(director, seconds=HOUR / 5)
    assert not director.must_stop
    assert (director.running, director.left) == (0, 5)
    second = train(director, seconds=HOUR / 5)
    assert director.must_stop
    assert director.next_trial() is None
    assert (director.is_exhausted, director.left) == (True, 0)
    assert director.finish() is StudyState.COMPLETED
    reason = "the budget of 1 GPU-hours is used up"
    assert director.record.reason == reason
    assert isinstance(journal[-1], StudyEnded)
    assert (journal[-1].state, journal[-1].reason) == (StudyState.COMPLETED, reason)
    cut_off = director.record.trials[second]
    assert (cut_off.state, cut_off.reason, cut_off.epochs) == (TrialState.INTERRUPTED, reason, 1)


def test_gpu_hours_count_gpus_not_hours() -> None:
    director, _ = placed(gpu_spec(1.0), gpu=4.0)
    train(director, seconds=HOUR / 4, epochs=1)
    assert director.must_stop


def test_gpu_hours_are_counted_over_all_drivers() -> None:
    spec = gpu_spec(1.0)
    director, journal = placed(spec)
    train(director, seconds=HOUR / 5)
    director.request_stop("enough")
    assert director.finish() is StudyState.INTERRUPTED
    again, _ = direct(spec, resumed(spec, journal))
    again.place(cpu=1, gpu=1.0, concurrent=1)
    assert not again.must_stop
    train(again, seconds=HOUR / 5, epochs=1)
    assert again.must_stop
    assert again.finish() is StudyState.COMPLETED


def test_a_study_without_a_result_when_its_gpu_hours_are_used_up_has_failed() -> None:
    director, _ = placed(gpu_spec(0.1))
    train(director, seconds=HOUR, epochs=1)
    assert director.finish() is StudyState.FAILED
    assert "no trial gave a result" in director.record.reason


def test_more_gpu_hours_let_a_finished_study_go_on_where_it_was() -> None:
    short, long = gpu_spec(1.0), gpu_spec(100.0)
    assert short.fingerprint == long.fingerprint
    director, journal = placed(short)
    train(director, seconds=HOUR / 8)
    train(director, seconds=HOUR / 8, epochs=3)
    train(director, seconds=HOUR / 8)
    assert director.finish() is StudyState.COMPLETED
    unfinished = {trial.trial_id for trial in director.record.trials.values() if not trial.state.is_over}
    assert len(unfinished) == 2
    again, journal = direct(long, resumed(long, journal))
    assert not again.must_stop
    run_on(again, ToyTrainer(4), trials=99)
    assert again.finish() is StudyState.COMPLETED
    assert again.record.reason == ""
    assert {trial.state for trial in again.record.trials.values()} == {TrialState.COMPLETED}
    assert len(again.record.trials) == 6
    assert {event.trial_id for event in journal if isinstance(event, TrialResumed)} == unfinished
    assert again.record.gpu_seconds == HOUR  # nothing of the first driver is forgotten


def test_the_same_budget_does_not_let_it_go_on() -> None:
    spec = gpu_spec(1.0)
    director, journal = placed(spec)
    train(director, seconds=HOUR)
    director.finish()
    again, _ = direct(spec, resumed(spec, journal))
    assert again.must_stop
    assert again.next_trial() is None


def test_whichever_budget_ends_first_ends_the_study() -> None:
    spec = toy_spec(budget={"trials": 6, "epochs": 4, "gpu_hours": 100, "hours": 0.001})
    director, _ = placed(spec)
    train(director, seconds=1.0)
    assert director.must_stop
    assert director.stop_reason == "the time budget of 0.001 hours is used up"


# In MLflow


def started_by(owner: str, spec: StudySpec) -> StudyStarted:
    return StudyStarted(START, spec.name, spec.to_dict(), spec.fingerprint, "0.1.0", {}, owner)


def content_of(events: list[Event]) -> RunContent:
    return study_content(StudyRecord.fold(events))


def summary_of(events: list[Event]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(content_of(events).tags[names.SUMMARY])
    return found


def test_mlflow_has_owner_gpu_hours_and_a_summary_of_a_study() -> None:
    spec = gpu_spec(None)
    director, journal = direct(spec, [started_by("ada", spec)])
    director.place(cpu=1, gpu=0.5, concurrent=1)
    train(director, seconds=HOUR)
    train(director, seconds=HOUR, epochs=1)
    ranked = director.record.ranking(spec.metric, spec.mode)
    tags = content_of(journal).tags
    assert (tags[names.OWNER], float(tags[names.GPU_HOURS])) == ("ada", 2.5)
    assert json.loads(tags[names.SUMMARY]) == {
        "trials": {"running": 1, "completed": 1},
        "epochs": 5,
        "best": ranked[0].best_value(spec.metric, spec.mode),
        "best_trial": "t0000",
    }


def test_each_trial_has_its_gpu_seconds() -> None:
    director, _ = placed(gpu_spec(None), gpu=2.0)
    trial = director.record.trials[train(director, seconds=1.25)]
    assert trial_content(trial, parent="p", metric="val_accuracy", mode="max").tags[names.GPU_SECONDS] == "10.0"


def test_a_study_in_which_nothing_ranks_yet_has_no_best() -> None:
    spec = gpu_spec(None)
    events: list[Event] = [started_by("", spec), TrialStarted(START, "t0000", 0, {})]
    assert summary_of(events[:1]) == {"trials": {}, "epochs": 0, "best": None, "best_trial": None}
    events.append(Reported(START, "t0000", 1, {"val_accuracy": 0.9}))
    assert summary_of(events) == {"trials": {"running": 1}, "epochs": 1, "best": None, "best_trial": None}


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_the_best_of_the_summary_is_that_of_the_ranking(metric: str) -> None:
    spec = toy_spec(objective={"metric": metric})
    director, journal = direct(spec)
    run_inline(director, Worker(ToyTrainer(4, {1: "nan", 2: "raise"})))
    best = director.record.ranking(spec.metric, spec.mode)[0]
    summary = summary_of(journal)
    assert (summary["best"], summary["best_trial"]) == (best.best_value(spec.metric, spec.mode), best.trial_id)
    assert summary["trials"] == director.record.counts()
