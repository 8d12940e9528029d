from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import (
    START,
    Clock,
    Mishap,
    ToyTrainer,
    conduct,
    direct,
    ends,
    epochs_of,
    resumed,
    run_on,
    score,
    stream,
    table,
    timeless,
    toy_spec,
)

from raystudy.records import (
    Decided,
    Event,
    Reported,
    StudyEnded,
    StudyRecord,
    StudyState,
    TrialEnded,
    TrialResumed,
    TrialRetried,
    TrialStarted,
    TrialState,
    event_from_json,
)
from raystudy.search.asha import Asha
from raystudy.search.director import Director
from raystudy.search.inline import run_inline
from raystudy.search.worker import Worker
from raystudy.space import Space
from raystudy.spec import StudySpec

SAMPLERS = ["tpe", "random", "qmc", "grid"]
MISHAPS: list[Mishap] = ["nan", "raise", "memory", "early_end", "unopenable"]


def toy_trainer(spec: StudySpec, **options: Any) -> ToyTrainer:
    return ToyTrainer(spec.budget.epochs, **options)


# A study, cut off anywhere


@st.composite
def studies(draw: st.DrawFn) -> StudySpec:
    kind = draw(st.sampled_from(SAMPLERS))
    rate = {"choice": [0.1, 0.01, 0.001]} if kind == "grid" else {"log_uniform": [1e-4, 1e-1]}
    momentum: dict[str, Any] = {"choice": [0.8, 0.9]} if kind == "grid" else {"uniform": [0.8, 0.99]}
    factors: dict[str, Any] = {"learning_rate": rate, "optimizer": {"choice": ["sgd", "adamw"]}}
    factors["momentum"] = {**momentum, "when": {"optimizer": "sgd"}}
    if draw(st.booleans()):
        factors["data_fraction"] = {"choice": [0.5, 1.0]}
    stopping: dict[str, Any] = {"scheduler": "none"}
    if draw(st.integers(0, 4)):
        stopping = {"reduction": draw(st.integers(2, 3)), "keep": draw(st.sampled_from([0, 0.3, 1]))}
    return toy_spec(
        factors=factors,
        objective={"metric": draw(st.sampled_from(["val_accuracy", "val_loss"]))},
        budget={"trials": draw(st.integers(1, 10)), "epochs": draw(st.integers(1, 5))},
        search={
            "sampler": kind,
            "seed": draw(st.integers(0, 1000)),
            "startup_trials": draw(st.integers(0, 4)),
            "points": draw(st.sampled_from([(), ({"learning_rate": 0.01},)])),
        },
        early_stopping=stopping,
    )


mishaps = st.dictionaries(st.integers(0, 9), st.sampled_from(MISHAPS), max_size=3)


def finish_from(spec: StudySpec, trainer: ToyTrainer, prefix: Sequence[Event]) -> list[Event]:
    """Go on with a study of which only `prefix` reached the disk."""
    return conduct(spec, trainer, resumed(spec, [event_from_json(event.to_json()) for event in prefix]))[1]


def leave_checkpoints(spec: StudySpec, trainer: ToyTrainer, prefix: Sequence[Event], *, ahead: bool) -> None:
    """Put the checkpoints there that a driver leaves which dies after `prefix`.

    A trial saves before it reports, so its checkpoint may be one epoch ahead of the journal, unless it waits for an answer.
    """
    assert trainer.folder is not None
    shutil.rmtree(trainer.folder, ignore_errors=True)
    rungs = Asha(spec).rungs
    for trial_id, trial in StudyRecord.fold(prefix).trials.items():
        done = trial.epochs
        waits = isinstance(prefix[-1], Reported) or (done in rungs and done not in trial.decisions and not trial.kept)
        meets_mishap = trial.number in trainer.mishaps and done + 1 >= trainer.at_epoch
        if ahead and not (waits or meets_mishap or trial.state.is_over):
            done = min(done + 1, trainer.epochs)
        if done:
            file = trainer.checkpoint(trial_id)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(done))


@given(studies(), mishaps, st.lists(st.floats(0, 1), min_size=1, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_study_killed_anywhere_any_number_of_times_ends_as_the_undisturbed_one(
    spec: StudySpec, mishaps: dict[int, Mishap], cuts: list[float], has_checkpoints: bool, ahead: bool
) -> None:
    undisturbed, events = conduct(spec, toy_trainer(spec, mishaps=mishaps))
    with TemporaryDirectory() as folder:
        trainer = toy_trainer(spec, mishaps=mishaps, folder=Path(folder) / "checkpoints" if has_checkpoints else None)
        for cut in cuts:
            prefix = events[: 1 + round(cut * (len(events) - 1))]
            if has_checkpoints:
                leave_checkpoints(spec, trainer, prefix, ahead=ahead)
            events = finish_from(spec, trainer, prefix)
    record = StudyRecord.fold(events)
    assert table(record) == table(undisturbed.record)
    assert record.state is undisturbed.record.state
    assert all(len(once) == 1 for once in ends(events).values())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_can_be_killed_after_every_single_event(sampler: str) -> None:
    factors = {"learning_rate": {"choice": [0.1, 0.03, 0.01]}, "optimizer": {"choice": ["sgd", "adamw"]}}
    spec = toy_spec(
        factors=factors, budget={"trials": 6, "epochs": 4}, search={"sampler": sampler, "seed": 3, "startup_trials": 2}
    )
    trainer = toy_trainer(spec, mishaps={1: "nan", 2: "raise"}, at_epoch=1)
    undisturbed, events = conduct(spec, trainer)
    assert {trial.state for trial in undisturbed.record.trials.values()} >= {TrialState.DIVERGED, TrialState.FAILED}
    for length in range(1, len(events) + 1):
        assert table(StudyRecord.fold(finish_from(spec, trainer, events[:length]))) == table(undisturbed.record), length


def optuna_trials(director: Director) -> list[tuple[Any, ...]]:
    return [
        (trial.number, trial.state, trial.params, trial.intermediate_values, trial.values, trial.user_attrs)
        for trial in director.sampler.study.trials
    ]


@given(studies(), mishaps, st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_replay_gives_the_same_rungs_and_the_same_sampler_history_as_living_through_it(
    spec: StudySpec, mishaps: dict[int, Mishap], cut: float
) -> None:
    director, journal = direct(spec)
    run_on(director, toy_trainer(spec, mishaps=mishaps), trials=round(cut * spec.budget.trials))
    replayed, _ = direct(spec, journal)
    assert replayed.asha.tables == director.asha.tables
    assert optuna_trials(replayed) == optuna_trials(director)
    assert replayed.record == director.record


def test_only_the_event_that_decides_a_fate_is_needed_to_end_a_trial() -> None:
    spec = toy_spec(budget={"trials": 8, "epochs": 4}, early_stopping={"reduction": 2, "keep": 0, "within": []})
    _, events = conduct(spec, toy_trainer(spec))
    fatal = next(index for index, event in enumerate(events) if isinstance(event, Decided) and event.stop)
    director, journal = direct(spec, events[: fatal + 1])
    assert [timeless(event) for event in journal[fatal + 1 :]] == [timeless(events[fatal + 1])]
    assert director.record.count(TrialState.PRUNED) == 1


def test_a_last_report_at_the_budget_is_enough_to_complete_a_trial() -> None:
    spec = toy_spec(early_stopping="none", budget={"trials": 2, "epochs": 3})
    _, events = conduct(spec, toy_trainer(spec))
    last = next(index for index, event in enumerate(events) if isinstance(event, Reported) and event.epoch == 3)
    director, _ = direct(spec, events[: last + 1])
    assert director.record.trials["t0000"].state is TrialState.COMPLETED


def test_unfinished_trials_are_handed_out_first_under_their_old_ids() -> None:
    spec = toy_spec(early_stopping="none")
    director, journal = direct(spec)
    first, second = director.next_trial(), director.next_trial()
    assert first is not None
    assert second is not None
    director, journal = direct(spec, resumed(spec, journal))
    again = [director.next_trial() for _ in range(3)]
    assert [trial and trial.trial_id for trial in again] == ["t0000", "t0001", "t0002"]
    assert [event.kind for event in journal[-3:]] == ["trial_resumed", "trial_resumed", "trial_started"]


# Several workers at once, in any order


@given(studies(), st.randoms(use_true_random=False), st.integers(2, 4), st.lists(st.floats(0, 1), max_size=2))
@settings(max_examples=40, deadline=None)
def test_whatever_the_order_of_several_workers_every_trial_ends_once_and_every_decision_saw_the_true_table(
    spec: StudySpec, rng: Any, workers: int, cuts: list[float]
) -> None:
    events: list[Event] = []
    for cut in [*cuts, 1.0]:
        director, events = direct(spec, resumed(spec, events) if events else ())
        run_interleaved(director, rng, workers)
        events = events[: max(1, round(cut * len(events)))]
    record = StudyRecord.fold(events)
    assert record.state is StudyState.COMPLETED
    assert all(trial.state.is_over for trial in record.trials.values())
    assert all(len(once) == 1 for once in ends(events).values())
    assert set(ends(events)) == set(record.trials)
    assert len(record.trials) <= spec.budget.trials
    for trial in record.trials.values():
        assert list(trial.reports) == list(range(1, trial.epochs + 1))
    check_tables(events)


def run_interleaved(director: Director, rng: Any, workers: int) -> None:
    busy: dict[str, int] = {}
    while busy or not director.is_exhausted:
        if len(busy) < workers and (trial := director.next_trial()) is not None:
            busy[trial.trial_id] = 0
        elif busy:
            trial_id = rng.choice(sorted(busy))
            busy[trial_id] += 1
            trial = director.record.trials[trial_id]
            value = score(trial.config, trial.number, busy[trial_id])
            row = {"epoch": busy[trial_id], "val_accuracy": value, "val_loss": 1 - value}
            if not director.report(trial_id, row):
                del busy[trial_id]
        assert director.running == len(busy)
    director.finish()


def check_tables(events: Sequence[Event]) -> None:
    seen: dict[tuple[int, tuple[Any, ...]], list[float]] = {}
    for event in events:
        if isinstance(event, Decided):
            values = seen.setdefault((event.epoch, event.cell), [])
            assert list(event.table) == values
            values.append(event.value)


# Reports


def one_trial(**changes: Any) -> tuple[Director, list[Event], str]:
    director, journal = direct(toy_spec(**changes))
    trial = director.next_trial()
    assert trial is not None
    return director, journal, trial.trial_id


def row(epoch: int, value: float = 0.5, **more: float) -> dict[str, float]:
    return {"epoch": epoch, "val_accuracy": value, "val_loss": 1 - value, **more}


def test_a_repeated_report_changes_nothing_but_is_answered() -> None:
    director, journal, trial_id = one_trial()
    assert director.report(trial_id, row(1))
    before = list(journal)
    assert director.report(trial_id, row(1, 0.9))
    assert journal == before
    assert director.record.trials[trial_id].last["val_accuracy"] == 0.5
    assert director.sampler.study.trials[0].intermediate_values == {1: 0.5}


def test_a_report_after_the_end_is_refused() -> None:
    director, journal, trial_id = one_trial()
    director.end(trial_id, TrialState.FAILED, "boom")
    before = list(journal)
    assert not director.report(trial_id, row(1))
    assert journal == before


def test_the_first_end_counts() -> None:
    director, journal, trial_id = one_trial()
    director.end(trial_id, TrialState.DIVERGED, "first")
    director.end(trial_id, TrialState.COMPLETED, "second")
    assert [event.reason for event in journal if isinstance(event, TrialEnded)] == ["first"]
    assert director.running == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_metric_that_is_not_finite_ends_the_trial_as_diverged_with_its_name(value: float) -> None:
    director, journal, trial_id = one_trial()
    assert not director.report(trial_id, row(1, train_loss=value))
    trial = director.record.trials[trial_id]
    assert (trial.state, trial.reason) == (TrialState.DIVERGED, f"train_loss is {value} at epoch 1")
    assert not trial.reports
    assert not any(isinstance(event, Reported) for event in journal)


def test_a_trial_without_the_objective_fails_and_leaves_a_journal_that_can_be_replayed() -> None:
    director, journal, trial_id = one_trial()
    assert not director.report(trial_id, {"epoch": 1, "accuracy": 0.5})
    trial = director.record.trials[trial_id]
    assert (trial.state, trial.reason) == (TrialState.FAILED, "it reported no val_accuracy at epoch 1")
    assert direct(director.spec, journal)[0].record == director.record


def test_the_last_epoch_completes_a_trial_whether_or_not_it_is_a_rung() -> None:
    director, _, trial_id = one_trial(budget={"epochs": 2}, early_stopping={"grace": 2})
    assert director.report(trial_id, row(1))
    assert not director.report(trial_id, row(2))
    assert director.record.trials[trial_id].state is TrialState.COMPLETED


def test_reports_keep_the_host_and_leave_epoch_out_of_the_metrics() -> None:
    director, journal, trial_id = one_trial()
    director.report(trial_id, row(1), node="gpu-7")
    assert journal[-2].to_json()["metrics"] == {"val_accuracy": 0.5, "val_loss": 0.5}
    assert director.record.trials[trial_id].node == "gpu-7"


def test_a_retry_is_counted_and_the_trial_stays_handed_out() -> None:
    director, journal, trial_id = one_trial()
    director.retry(trial_id, "its process died")
    assert isinstance(journal[-1], TrialRetried)
    assert director.record.trials[trial_id].retries == 1
    assert director.running == 1


def test_nothing_takes_effect_that_could_not_be_written() -> None:
    director, journal, trial_id = one_trial()
    director._append = full_disk
    with pytest.raises(OSError, match="No space left"):
        director.report(trial_id, row(1))
    assert not director.record.trials[trial_id].reports
    assert director.asha.tables == {}
    assert director.record == StudyRecord.fold(journal)


def full_disk(_: Event) -> None:
    raise OSError(28, "No space left on device")


def test_observers_are_told_of_every_new_event_after_it_is_written() -> None:
    spec = toy_spec(budget={"trials": 2, "epochs": 2})
    journal: list[Event] = []
    told: list[Event] = []

    def observe(event: Event) -> None:
        assert journal[-1] is event
        told.append(event)

    director = Director(spec, Space.of(spec), append=journal.append, history=(), observers=[observe], now=Clock())
    run_inline(director, Worker(toy_trainer(spec)))
    assert told == journal


# What Optuna knows at the end


def test_after_a_study_optuna_knows_every_trial_in_its_state_with_all_values() -> None:
    spec = toy_spec(budget={"trials": 16, "epochs": 4}, early_stopping={"reduction": 2, "keep": 0.2, "within": []})
    director, _ = conduct(spec, toy_trainer(spec, mishaps={3: "nan", 5: "raise"}))
    expected = {"completed": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL", "failed": "FAIL"}
    assert set(director.record.counts()) == set(expected)
    for mine, theirs in zip(director.record.trials.values(), director.sampler.study.trials, strict=True):
        assert theirs.state.name == expected[mine.state]
        assert theirs.params == mine.config
        assert theirs.intermediate_values == {epoch: rep.metrics["val_accuracy"] for epoch, rep in mine.reports.items()}
        if mine.state is TrialState.COMPLETED:
            assert theirs.value == mine.last["val_accuracy"]
    running = director.sampler.study.get_trials(states=[optuna.trial.TrialState.RUNNING])
    assert running == []


# Budgets and stops


def test_no_more_trials_than_the_budget_says() -> None:
    director, _ = conduct(toy_spec(budget={"trials": 5, "epochs": 2}), ToyTrainer(2))
    assert len(director.record.trials) == 5
    assert director.is_exhausted
    assert director.next_trial() is None


def test_a_grid_that_is_used_up_ends_the_study_before_its_budget() -> None:
    spec = toy_spec(
        factors={"optimizer": {"choice": ["sgd", "adamw"]}, "learning_rate": {"choice": [0.1, 0.01]}},
        search={"sampler": "grid"},
        budget={"trials": 100, "epochs": 1},
    )
    director, _ = conduct(spec, ToyTrainer(1))
    assert len(director.record.trials) == 4
    assert director.record.state is StudyState.COMPLETED


def test_a_used_up_time_budget_interrupts_what_runs_and_completes_the_study() -> None:
    spec = toy_spec(budget={"trials": 50, "epochs": 4, "hours": 1}, early_stopping="none")
    clock = Clock(START, step=100.0)
    director, _ = direct(spec, clock=clock)
    run_inline(director, Worker(toy_trainer(spec)))
    record = director.record
    assert record.state is StudyState.COMPLETED
    assert record.reason == "the time budget of 1 hours is used up"
    assert 0 < record.count(TrialState.COMPLETED) < 50
    assert record.count(TrialState.INTERRUPTED) == 1
    assert record.busy_seconds > 3600


def test_time_between_drivers_does_not_count() -> None:
    spec = toy_spec(budget={"trials": 4, "epochs": 2, "hours": 1})
    director, journal = direct(spec)
    run_on(director, toy_trainer(spec), trials=2)
    journal[-1:] = resumed(spec, journal[-1:])  # 1,000 s later, and once more
    journal = resumed(spec, journal)
    week_later = Clock(journal[-1].time + 0.0)
    director, _ = direct(spec, journal, clock=week_later)
    assert not director.must_stop
    assert director.record.busy_seconds < 1000


def test_more_hours_let_a_study_go_on_that_had_run_out_of_time() -> None:
    spec = toy_spec(budget={"trials": 6, "epochs": 4, "hours": 0.1}, early_stopping="none")
    director, journal = direct(spec, clock=Clock(START, step=100.0))
    run_inline(director, Worker(toy_trainer(spec)))
    assert director.record.count(TrialState.COMPLETED) < 6
    longer = toy_spec(budget={"trials": 6, "epochs": 4, "hours": 10}, early_stopping="none")
    assert longer.fingerprint == spec.fingerprint
    after, _ = conduct(longer, toy_trainer(longer), resumed(longer, journal))
    assert after.record.counts() == {"completed": 6}
    undisturbed, _ = conduct(longer, toy_trainer(longer))
    assert table(after.record) == table(undisturbed.record)


def test_a_stop_that_was_asked_for_interrupts_and_keeps_the_first_reason() -> None:
    director, journal, trial_id = one_trial()
    director.report(trial_id, row(1))
    director.request_stop("interrupted from the keyboard")
    director.request_stop("terminated")
    assert director.must_stop
    assert director.next_trial() is None
    assert director.finish() is StudyState.INTERRUPTED
    assert director.record.trials[trial_id].state is TrialState.INTERRUPTED
    assert {event.reason for event in journal[-2:] if isinstance(event, (TrialEnded, StudyEnded))} == {
        "interrupted from the keyboard"
    }


@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_a_study_stopped_by_hand_and_resumed_ends_as_the_undisturbed_one(after: int) -> None:
    spec = toy_spec(search={"sampler": "tpe", "startup_trials": 2})
    trainer = toy_trainer(spec)
    director, journal = direct(spec)
    run_on(director, trainer, trials=after)
    begun = director.next_trial()
    assert begun is not None
    director.report(begun.trial_id, next(epochs_of(trainer, director, begun)))
    director.request_stop("enough")
    director.finish()
    again, _ = conduct(spec, trainer, resumed(spec, journal))
    undisturbed, _ = conduct(spec, trainer)
    assert table(again.record) == table(undisturbed.record)


def test_a_study_that_cannot_go_on_fails_with_the_reason_and_can_be_resumed() -> None:
    trainer = ToyTrainer(4)
    director, journal = direct(toy_spec())
    run_on(director, trainer, trials=3)
    begun = director.next_trial()
    assert begun is not None
    director.fail("no trial can be started: no module named 'torch'")
    assert director.next_trial() is None
    assert director.finish() is StudyState.FAILED
    assert director.record.reason == "no trial can be started: no module named 'torch'"
    assert director.record.trials[begun.trial_id].state is TrialState.INTERRUPTED
    again, _ = conduct(toy_spec(), trainer, resumed(toy_spec(), journal))
    undisturbed, _ = conduct(toy_spec(), trainer)
    assert table(again.record) == table(undisturbed.record)


def test_a_study_in_which_nothing_gave_a_result_has_failed_with_a_reason() -> None:
    spec = toy_spec(budget={"trials": 3, "epochs": 4})
    director, _ = conduct(spec, toy_trainer(spec, mishaps={0: "raise", 1: "raise", 2: "unopenable"}))
    assert director.record.state is StudyState.FAILED
    assert director.record.reason == "no trial gave a result: ValueError: boom"


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_more_trials_let_a_finished_study_go_on_as_a_longer_one_would_have(sampler: str) -> None:
    search = {"sampler": sampler, "seed": 5, "startup_trials": 3}
    short, long = (toy_spec(budget={"trials": trials, "epochs": 4}, search=search) for trials in (6, 14))
    assert short.fingerprint == long.fingerprint
    trainer = toy_trainer(short, mishaps={4: "nan", 9: "raise"})
    _, journal = conduct(short, trainer)
    extended, events = conduct(long, trainer, resumed(long, journal))
    undisturbed, _ = conduct(long, trainer)
    assert table(extended.record) == table(undisturbed.record)
    assert extended.record.state is StudyState.COMPLETED
    assert not any(isinstance(event, TrialResumed) for event in events)


def test_one_worker_and_one_seed_give_the_same_events_twice() -> None:
    spec = toy_spec(search={"sampler": "tpe", "seed": 2, "startup_trials": 2}, budget={"trials": 12, "epochs": 4})
    assert stream(conduct(spec, toy_trainer(spec))[1]) == stream(conduct(spec, toy_trainer(spec))[1])


def test_trials_are_numbered_from_0_and_their_ids_follow() -> None:
    spec = toy_spec(budget={"trials": 3, "epochs": 1})
    _, events = conduct(spec, ToyTrainer(1))
    handed = [(event.number, event.trial_id) for event in events if isinstance(event, TrialStarted)]
    assert handed == [(number, f"t{number:04d}") for number in range(3)]


def test_a_trial_gets_every_hyperparameter() -> None:
    spec = toy_spec(fixed={"weight_decay": 0.25})
    director, _ = direct(spec)
    trial = director.next_trial()
    assert trial is not None
    config = director.config(trial)
    assert config["weight_decay"] == 0.25
    assert config["backbone"] == "efficientnet_lite0"
    assert config["label_smoothing"] == 0.0
    assert {name: config[name] for name in trial.config} == trial.config


def test_a_clock_that_jumps_back_does_no_harm() -> None:
    spec = toy_spec(budget={"trials": 2, "epochs": 2, "hours": 1})
    steps = count()
    director, _ = direct(spec)
    director._now = lambda: START - 50.0 * next(steps)
    run_inline(director, Worker(toy_trainer(spec)))
    assert director.record.state is StudyState.COMPLETED
    assert director.record.busy_seconds >= 0
