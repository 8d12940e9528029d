from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler
from scipy.stats import qmc
from toys import N_UNITS, toy_spec

from raystudy.factors import Scalar
from raystudy.records import TrialState
from raystudy.search.sampler import Sampler, derived_seed, explores
from raystudy.space import Space

HISTORY_FREE = ["random", "qmc"]
KINDS = ["tpe", "random", "qmc", "grid"]
WIDE = {
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "optimizer": {"choice": ["sgd", "adamw"]},
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    "frozen_depth": {"int": [0, "max"]},
}
LISTED = {
    "optimizer": {"choice": ["sgd", "adamw"]},
    "momentum": {"choice": [0.8, 0.9, 0.95], "when": {"optimizer": "sgd"}},
    "frozen_depth": {"int": [0, "max"], "step": 3},
}
SQUARE = {"dropout": {"uniform": [0, 0.5]}, "label_smoothing": {"uniform": [0, 0.5]}}

Config = dict[str, Scalar]


def sampler(
    kind: str,
    *,
    seed: int = 0,
    startup: int = 4,
    explore: float = 0.33,
    factors: Mapping[str, Any] | None = None,
    points: tuple[Any, ...] = (),
) -> Sampler:
    spec = toy_spec(
        factors=factors or (LISTED if kind == "grid" else WIDE),
        search={"sampler": kind, "seed": seed, "startup_trials": startup, "explore": explore, "points": points},
        early_stopping={"within": []},
    )
    return Sampler(spec, Space.of(spec, n_units=N_UNITS))


def quality(config: Mapping[str, Scalar]) -> float:
    return -abs(float(config.get("learning_rate", 0.01)) - 0.01) - 0.01 * float(config.get("frozen_depth", 0))


def proposals(asked: Sampler, count: int, value: Callable[[Config], float] = quality) -> list[Config]:
    """Propose, report and tell `count` trials, one after another."""
    found = []
    for number in range(count):
        config = asked.propose(number, f"t{number}")
        assert config is not None
        asked.report(f"t{number}", 1, value(config))
        asked.tell(f"t{number}", TrialState.COMPLETED, value(config))
        found.append(config)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_proposes_the_same(kind: str) -> None:
    assert proposals(sampler(kind), 9) == proposals(sampler(kind), 9)


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc"])
def test_another_seed_proposes_something_else(kind: str) -> None:
    assert proposals(sampler(kind, seed=0), 3) != proposals(sampler(kind, seed=1), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_proposal_depends_on_the_history_not_on_how_it_came_about(kind: str) -> None:
    live = sampler(kind)
    configs = proposals(live, 8)
    replayed = sampler(kind)
    for number, config in enumerate(configs):
        replayed.adopt(number, f"t{number}", config)
        replayed.report(f"t{number}", 1, quality(config))
        replayed.tell(f"t{number}", TrialState.COMPLETED, quality(config))
    assert replayed.propose(8, "t8") == live.propose(8, "t8")


@pytest.mark.parametrize("kind", KINDS)
def test_global_randomness_is_neither_used_nor_moved(kind: str) -> None:
    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    first = proposals(sampler(kind), 7)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    random.seed(2)
    np.random.seed(2)
    assert proposals(sampler(kind), 7) == first


@pytest.mark.parametrize("kind", HISTORY_FREE)
def test_random_and_quasi_random_proposals_ignore_results(kind: str) -> None:
    assert proposals(sampler(kind), 8) == proposals(sampler(kind), 8, value=lambda config: -quality(config))


@pytest.mark.parametrize("kind", ["random", "qmc", "tpe"])
def test_every_proposal_holds_exactly_the_active_factors_within_their_bounds(kind: str) -> None:
    for config in proposals(sampler(kind), 30):
        assert set(config) == {"learning_rate", "optimizer", "frozen_depth"} | (
            {"momentum"} if config["optimizer"] == "sgd" else set()
        )
        assert 1e-4 <= float(config["learning_rate"]) <= 1e-1
        assert config["frozen_depth"] in range(N_UNITS + 1)
        assert 0.8 <= float(config.get("momentum", 0.9)) <= 0.99


# Quasi-random


def in_unit_square(configs: list[Config]) -> Any:
    return np.array([[float(config[name]) / 0.5 for name in SQUARE] for config in configs])


def test_sobol_points_are_more_even_than_random_ones() -> None:
    even, uneven = (qmc.discrepancy(in_unit_square(proposals(sampler(kind, factors=SQUARE), 64))) for kind in ("qmc", "random"))
    assert even < uneven / 3


@pytest.mark.parametrize("power", [3, 5, 6])
def test_the_first_power_of_two_sobol_points_fill_every_stratum_of_every_factor_once(power: int) -> None:
    points = in_unit_square(proposals(sampler("qmc", factors=SQUARE), 2**power))
    for column in points.T:
        assert sorted(np.floor(column * 2**power).astype(int)) == list(range(2**power))


@given(st.integers(0, 300), st.integers(0, 2**31 - 1))
@settings(max_examples=20)
def test_a_sobol_point_is_the_same_however_many_follow(number: int, seed: int) -> None:
    spec = toy_spec(factors=SQUARE, search={"sampler": "qmc", "seed": seed}, early_stopping={"within": []})
    space = Space.of(spec)
    points = qmc.Sobol(2, scramble=True, rng=derived_seed(seed, 0, "sobol")).random_base2(9)
    asked = Sampler(spec, space)
    for earlier in range(number):
        asked.adopt(earlier, f"t{earlier}", {"dropout": 0.1, "label_smoothing": 0.1})
    assert asked.propose(number, "now") == space.at(points[number].tolist())


# Grid


def test_a_grid_is_complete_without_repetition_and_then_ends() -> None:
    asked = sampler("grid")
    found = proposals(asked, 4 * 3)
    expected = [{"optimizer": "sgd", "momentum": m, "frozen_depth": d} for m in (0.8, 0.9, 0.95) for d in (0, 3, 6)]
    expected += [{"optimizer": "adamw", "frozen_depth": d} for d in (0, 3, 6)]
    assert found == expected
    assert asked.propose(12, "t12") is None
    assert asked.propose(12, "t12") is None


def test_a_grid_comes_after_the_points_to_start_from() -> None:
    asked = sampler("grid", points=({"optimizer": "adamw", "frozen_depth": 6},))
    assert proposals(asked, 2) == [
        {"optimizer": "adamw", "frozen_depth": 6},
        {"optimizer": "sgd", "momentum": 0.8, "frozen_depth": 0},
    ]


# Points to start from


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc"])
def test_points_come_first_and_max_means_the_whole_backbone(kind: str) -> None:
    points = (
        {"learning_rate": 0.05, "optimizer": "sgd", "momentum": 0.85, "frozen_depth": "max"},
        {"learning_rate": 0.001, "optimizer": "adamw", "frozen_depth": 2},
    )
    assert proposals(sampler(kind, points=points), 2) == [{**points[0], "frozen_depth": N_UNITS}, points[1]]


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc"])
def test_the_rest_of_a_partial_point_is_drawn_by_the_seed(kind: str) -> None:
    points = ({"optimizer": "sgd"}, {"frozen_depth": 0})
    first, second = proposals(sampler(kind, points=points), 2)
    assert first["optimizer"] == "sgd"
    assert second["frozen_depth"] == 0
    assert set(first) == {"learning_rate", "optimizer", "momentum", "frozen_depth"}
    assert [first, second] == proposals(sampler(kind, points=points), 2)
    assert first["learning_rate"] != proposals(sampler(kind, seed=1, points=points), 1)[0]["learning_rate"]


def test_a_whole_number_stands_for_a_real_one_in_a_point() -> None:
    factors = {"weight_decay": {"uniform": [0, 1]}, "dropout": {"uniform": [0, 0.5]}}
    (config,) = proposals(sampler("tpe", factors=factors, points=({"weight_decay": 1},)), 1)
    assert config["weight_decay"] == 1.0
    assert isinstance(config["weight_decay"], float)


def test_max_in_a_choice_of_depths_is_the_largest() -> None:
    factors = {"frozen_depth": {"choice": [0, 3, "max"]}}
    assert proposals(sampler("random", factors=factors, points=({"frozen_depth": "max"},)), 1) == [{"frozen_depth": N_UNITS}]


def test_points_do_not_shift_the_quasi_random_sequence() -> None:
    points = ({"learning_rate": 0.05, "optimizer": "adamw", "frozen_depth": 2},)
    assert proposals(sampler("qmc", points=points), 5)[1:] == proposals(sampler("qmc"), 4)


# Models


def test_tpe_starts_to_learn_after_the_startup_trials() -> None:
    good, bad = (proposals(sampler("tpe", startup=5), 8, value) for value in (quality, lambda config: -quality(config)))
    assert good[:5] == bad[:5]
    assert all(a != b for a, b in zip(good[5:], bad[5:], strict=True))


def test_tpe_without_startup_trials_proposes_from_the_first_one_on() -> None:
    assert len(proposals(sampler("tpe", startup=0), 4)) == 4


def test_tpe_keeps_the_space_that_one_which_begins_anew_would_find() -> None:
    """Whatever order trials end in, and whichever conditions and outcomes they have."""
    asked, ends = sampler("tpe", startup=2), random.Random(1)
    running: list[str] = []
    spaces: set[tuple[str, ...]] = set()
    for number in range(40):
        asked.propose(number, f"t{number}")
        running.append(f"t{number}")
        if isinstance(asked.study.sampler, TPESampler):
            trial = asked.study.trials[-1]
            found, anew = (one.infer_relative_search_space(asked.study, trial) for one in (asked.study.sampler, TPESampler()))
            assert found == anew
            spaces.add(tuple(found))
        while len(running) > ends.randrange(6):
            trial_id = running.pop(ends.randrange(len(running)))
            state = ends.choice([TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED])
            asked.report(trial_id, 1, 0.5)
            asked.tell(trial_id, state, 0.5)
    assert len(spaces) > 1


def test_a_third_of_the_later_trials_is_left_to_chance() -> None:
    """Whatever was learnt before, these proposals are the same, and those in between are not."""
    good, bad = (proposals(sampler("tpe", startup=3), 12, value) for value in (quality, lambda config: -quality(config)))
    same = [number for number, (a, b) in enumerate(zip(good, bad, strict=True)) if a == b]
    assert same == [0, 1, 2, *(number for number in range(12) if explores(number, 3, 0.33))]
    assert len(same) == 3 + 2


@given(st.integers(0, 50), st.floats(0, 1))
def test_what_is_left_to_chance_is_spread_evenly(startup: int, share: float) -> None:
    chosen = [explores(number, startup, share) for number in range(startup + 200)]
    assert not any(chosen[:startup])
    for length in (1, 7, 200):
        assert abs(sum(chosen[startup : startup + length]) - share * length) <= 1


def test_tpe_finds_the_better_half_of_a_simple_space() -> None:
    factors = {"dropout": {"uniform": [0, 0.9]}}
    found = proposals(
        sampler("tpe", startup=8, explore=0, factors=factors), 40, lambda config: -abs(float(config["dropout"]) - 0.3)
    )
    assert sum(abs(float(config["dropout"]) - 0.3) < 0.1 for config in found[20:]) > 10


@pytest.mark.slow  # imports torch
def test_a_gaussian_process_proposes_the_same_after_a_replay() -> None:
    factors = {"dropout": {"uniform": [0, 0.9]}, "optimizer": {"choice": ["sgd", "adamw"]}}

    def value(config: Mapping[str, Scalar]) -> float:
        return -abs(float(config["dropout"]) - 0.3)

    live = sampler("gp", startup=3, factors=factors)
    configs = proposals(live, 6, value)
    replayed = sampler("gp", startup=3, factors=factors)
    for number, config in enumerate(configs):
        replayed.adopt(number, f"t{number}", config)
        replayed.tell(f"t{number}", TrialState.COMPLETED, value(config))
    assert replayed.propose(6, "t6") == live.propose(6, "t6")


# What Optuna is told


def told(state: TrialState, value: float | None) -> optuna.trial.FrozenTrial:
    asked = sampler("random")
    asked.propose(0, "t0")
    asked.report("t0", 1, 0.25)
    asked.report("t0", 3, 0.5)
    asked.tell("t0", state, value)
    return asked.study.trials[0]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TrialState.COMPLETED, optuna.trial.TrialState.COMPLETE),
        (TrialState.PRUNED, optuna.trial.TrialState.PRUNED),
        (TrialState.DIVERGED, optuna.trial.TrialState.FAIL),
        (TrialState.FAILED, optuna.trial.TrialState.FAIL),
    ],
)
def test_optuna_is_told_every_state_with_all_intermediate_values(state: TrialState, expected: optuna.trial.TrialState) -> None:
    trial = told(state, 0.5)
    assert trial.state == expected
    assert trial.intermediate_values == {1: 0.25, 3: 0.5}
    assert trial.user_attrs["trial_id"] == "t0"


def test_the_value_of_a_completed_trial_is_told_as_it_is() -> None:
    assert told(TrialState.COMPLETED, 0.5).value == 0.5


def test_failed_trials_have_no_value() -> None:
    assert told(TrialState.FAILED, None).value is None
    assert told(TrialState.DIVERGED, 0.5).value is None


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_seeds_of_different_uses_differ(seed: int, number: int) -> None:
    assert len({derived_seed(seed, number, "a"), derived_seed(seed, number, "b"), derived_seed(seed, number + 1, "a")}) == 3
    assert 0 <= derived_seed(seed, number, "a") < 2**32


def test_the_direction_is_the_objectives() -> None:
    for metric, direction in (("val_accuracy", "MAXIMIZE"), ("val_loss", "MINIMIZE")):
        spec = toy_spec(objective={"metric": metric})
        assert Sampler(spec, Space.of(spec)).study.direction.name == direction
