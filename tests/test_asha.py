from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import START, ToyTrainer, conduct, toy_spec

from raystudy.factors import Scalar
from raystudy.records import Decided, TrialRecord
from raystudy.search.asha import Asha, rungs


def asha(*, epochs: int = 9, mode: str = "max", seed: int = 0, **stopping: Any) -> Asha:
    metric = {"max": "val_accuracy", "min": "val_loss"}[mode]
    return Asha(
        toy_spec(
            objective={"metric": metric},
            budget={"epochs": epochs},
            search={"seed": seed},
            early_stopping={"keep": 0, **stopping},
        )
    )


def trial(number: int, **config: Scalar) -> TrialRecord:
    return TrialRecord(f"t{number:04d}", number, config, START)


def judge(judge_: Asha, number: int, value: float, *, epoch: int = 1, **config: Scalar) -> Decided:
    decision = judge_.decide(trial(number, **config), epoch=epoch, value=value, time=START)
    assert decision is not None
    judge_.record(decision)
    return decision


@pytest.mark.parametrize(
    ("grace", "budget", "reduction", "expected"),
    [
        (1, 243, 3, (1, 3, 9, 27, 81)),  # log(243)/log(3) is 4.999999999999999
        (1, 1000, 10, (1, 10, 100)),  # log(1000)/log(10) is 2.9999999999999996
        (1, 1, 3, ()),
        (1, 2, 3, (1,)),
        (2, 9, 2, (2, 4, 8)),
        (2, 8, 2, (2, 4)),
        (5, 5, 2, ()),
        (3, 100, 4, (3, 12, 48)),
    ],
)
def test_rungs_are_the_powers_below_the_budget(grace: int, budget: int, reduction: int, expected: tuple[int, ...]) -> None:
    assert rungs(grace=grace, reduction=reduction, budget=budget) == expected


@given(st.integers(1, 50), st.integers(2, 12), st.integers(1, 100_000))
def test_rungs_are_exact_for_all_integers(grace: int, reduction: int, budget: int) -> None:
    found = rungs(grace=grace, reduction=reduction, budget=budget)
    assert found == tuple(grace * reduction**k for k in range(20) if grace * reduction**k < budget)


def test_no_rungs_where_early_stopping_is_off() -> None:
    off = Asha(toy_spec(early_stopping="none"))
    assert off.rungs == ()
    assert off.decide(trial(0), epoch=1, value=0.1, time=START) is None


def test_a_trial_goes_on_if_it_is_among_the_best_third() -> None:
    judging = asha(reduction=3)
    values = [0.50, 0.40, 0.60, 0.55, 0.58, 0.61, 0.59, 0.60]
    # n       1     2     3     4     5     6     7     8
    # quota   1     1     1     1     1     2     2     2
    # rank    1     2     1     2     2     1     3     2 (0.60 equals 0.60: only better ones rank before)
    assert [judge(judging, number, value).stop for number, value in enumerate(values)] == [
        False,
        True,
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert judging.tables == {(1, (None,)): values}


def test_smaller_is_better_in_mode_min() -> None:
    judging = asha(mode="min", reduction=2)
    assert [judge(judging, number, value).stop for number, value in enumerate([0.5, 0.6, 0.4])] == [False, True, False]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_equal_values_share_a_rank(mode: str) -> None:
    judging = asha(mode=mode, reduction=3)
    assert not any(judge(judging, number, 0.5).stop for number in range(7))


def test_a_decision_holds_the_table_it_saw_and_its_reason() -> None:
    judging = asha(reduction=3, keep=0.0)
    judge(judging, 0, 0.7, data_fraction=0.5)
    decision = judge(judging, 1, 0.6, data_fraction=0.5)
    assert decision.table == (0.7,)
    assert decision.cell == (0.5,)
    assert (decision.stop, decision.kept, decision.keep_probability) == (True, False, 0.0)
    assert decision.reason == "rank 2 of 2 at epoch 1 with data_fraction=0.5, the best 1 go on"


def test_deciding_alone_changes_no_table() -> None:
    judging = asha()
    judging.decide(trial(0), epoch=1, value=0.5, time=START)
    assert judging.tables == {}


def test_nothing_is_decided_between_rungs() -> None:
    assert asha(reduction=3, epochs=9).decide(trial(0), epoch=2, value=0.0, time=START) is None
    assert asha(reduction=3, epochs=9).decide(trial(0), epoch=9, value=0.0, time=START) is None


def test_rungs_do_not_mix() -> None:
    judging = asha(reduction=3, epochs=9)
    judge(judging, 0, 0.9, epoch=3)
    assert judge(judging, 1, 0.1, epoch=1).table == ()


def test_cells_do_not_mix() -> None:
    judging = asha(reduction=2)
    assert not judge(judging, 0, 0.9, data_fraction=1.0).stop
    assert not judge(judging, 1, 0.1, data_fraction=0.5).stop, "little data is not compared with much"
    assert judge(judging, 2, 0.05, data_fraction=0.5).table == (0.1,)


def test_a_cell_is_all_factors_named_and_none_stands_for_an_inactive_one() -> None:
    judging = asha(within=["optimizer", "data_fraction"])
    assert judging.cell({"optimizer": "sgd", "learning_rate": 0.1}) == ("sgd", None)


def test_an_empty_within_compares_all_trials() -> None:
    judging = asha(within=[], reduction=2)
    judge(judging, 0, 0.9, data_fraction=1.0)
    assert judge(judging, 1, 0.1, data_fraction=0.5).stop


def test_with_keep_1_nobody_is_stopped() -> None:
    judging = asha(keep=1)
    decisions = [judge(judging, number, -number) for number in range(50)]
    assert not any(decision.stop for decision in decisions)
    assert [decision.kept for decision in decisions] == [False] + [True] * 49
    assert "hold-out" in decisions[1].reason


def test_with_keep_0_nobody_is_kept() -> None:
    judging = asha(keep=0)
    decisions = [judge(judging, number, -number) for number in range(50)]
    assert not any(decision.kept for decision in decisions)
    assert [decision.stop for decision in decisions] == [False] + [True] * 49


def test_the_known_share_is_kept_over_seeds() -> None:
    kept = 0
    for seed in range(40):
        judging = asha(keep=0.05, seed=seed)
        judge(judging, 0, 1.0)
        decisions = [judging.decide(trial(number), epoch=1, value=0.0, time=START) for number in range(1, 101)]
        assert all(decision is not None and decision.stop != decision.kept for decision in decisions)
        kept += sum(decision is not None and decision.kept for decision in decisions)
    # 4,000 draws with probability 0.05: mean 200, standard deviation 13.8; the draws depend on nothing but the seeds.
    assert 160 < kept < 240


def test_who_is_kept_depends_on_seed_and_number_only() -> None:
    def kept(seed: int, epoch: int, order: list[int]) -> set[int]:
        judging = asha(keep=0.3, seed=seed, reduction=3)
        judge(judging, 1000, 1.0, epoch=epoch)
        decisions = {number: judging.decide(trial(number), epoch=epoch, value=0.0, time=START) for number in order}
        return {number for number, decision in decisions.items() if decision is not None and decision.kept}

    numbers = list(range(40))
    assert kept(0, 1, numbers) == kept(0, 1, numbers[::-1]) == kept(0, 3, numbers)
    assert kept(0, 1, numbers) != kept(1, 1, numbers)


def test_a_hold_out_is_neither_compared_nor_entered_after_it_was_kept() -> None:
    judging = asha(keep=1, reduction=3, epochs=9)
    judge(judging, 0, 0.9)
    decision = judge(judging, 1, 0.1)
    assert decision.kept
    survivor = dataclasses.replace(trial(1), decisions={1: decision})
    assert judging.decide(survivor, epoch=3, value=0.99, time=START) is None


def test_in_a_study_hold_outs_reach_the_budget_and_leave_later_rungs_to_the_others() -> None:
    spec = toy_spec(budget={"trials": 20, "epochs": 9}, early_stopping={"grace": 1, "reduction": 2, "keep": 1, "within": []})
    director, events = conduct(spec, ToyTrainer(9))
    kept = {event.trial_id for event in events if isinstance(event, Decided) and event.kept}
    assert kept
    assert {director.record.trials[trial_id].state.value for trial_id in kept} == {"completed"}
    for trial_id in kept:
        decided = director.record.trials[trial_id].decisions
        assert [epoch for epoch, decision in decided.items() if decision.kept] == [max(decided)]
