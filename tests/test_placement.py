"""Which trial takes a free slot: one that finds its activations there; none waits for ever, and nothing else is proposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import N_UNITS, build_tiny_backbone, tiny_data, tiny_plan
from toys import ToyTrainer, direct, epochs_of, table, toy_spec

from raystudy.cache import Cache
from raystudy.factors import Scalar
from raystudy.finetune import prefixes
from raystudy.finetune.prefixes import Sharing
from raystudy.finetune.trial import TrialRun
from raystudy.records import TrialRecord, TrialStarted
from raystudy.search.placement import PASSED_MOST, Holdings, Placement, Prefix, Waiting, first_for, prefix_of

NODES = ("n0", "n1", "n2")
some_prefixes = st.builds(Prefix, st.sampled_from("ab"), st.integers(1, 4), st.sampled_from([0.25, 0.5, 1.0]))
held = st.lists(st.tuples(st.sampled_from(NODES), some_prefixes), max_size=8)
queues = st.lists(st.none() | some_prefixes, min_size=1, max_size=8)


def holdings_of(notes: Sequence[tuple[str, Prefix]]) -> Holdings:
    holdings = Holdings()
    for node, prefix in notes:
        holdings.note(node, prefix)
    return holdings


def in_line(prefixes: Sequence[Prefix | None], passed: int = 0) -> list[Waiting]:
    return [Waiting(f"t{number}", prefix, passed) for number, prefix in enumerate(prefixes)]


# Who is first


@given(held, queues, st.sampled_from(NODES))
def test_no_other_trial_gains_more_and_of_equals_none_has_waited_longer(
    notes: list[tuple[str, Prefix]], queue: list[Prefix | None], node: str
) -> None:
    holdings, waiting = holdings_of(notes), in_line(queue)
    chosen = first_for(node, waiting, holdings, NODES)
    gains = [holdings.gain(node, trial.prefix, NODES) for trial in waiting]
    assert gains[waiting.index(chosen)] == max(gains)
    assert all(gain < max(gains) for gain in gains[: waiting.index(chosen)])


def test_a_trial_goes_where_its_activations_are_and_leaves_other_nodes_those_that_find_theirs_there() -> None:
    a, b, c = (Prefix(kind, 3, 1.0) for kind in "abc")
    holdings = holdings_of([("n0", a), ("n1", b)])
    waiting = in_line([b, c, a])
    assert first_for("n0", waiting, holdings, NODES).prefix == a
    assert first_for("n1", waiting, holdings, NODES).prefix == b
    assert first_for("n2", waiting, holdings, NODES).prefix == c  # nobody has it: nothing is lost there
    assert first_for("n0", waiting[:2], holdings, NODES).prefix == c
    assert first_for("n0", waiting[:2], holdings, ["n0"]).prefix == b  # the node that has it is gone


def test_what_counts_is_how_much_need_not_be_computed() -> None:
    holdings = holdings_of([("n0", Prefix("a", 4, 0.25)), ("n0", Prefix("a", 2, 1.0)), ("n0", Prefix("b", 6, 1.0))])
    assert holdings.saved("n0", Prefix("a", 4, 0.25)) == 4
    assert holdings.saved("n0", Prefix("a", 6, 0.125)) == 4
    assert holdings.saved("n0", Prefix("a", 6, 1.0)) == 2
    assert holdings.saved("n0", Prefix("a", 3, 0.5)) == 2
    assert holdings.saved("n0", Prefix("b", 5, 1.0)) == 0  # deeper activations do not give shallower ones
    assert holdings.saved("n0", None) == holdings.saved("n1", Prefix("a", 4, 0.25)) == 0


@given(st.lists(st.tuples(st.sampled_from(NODES), st.integers(0, 3)), min_size=1, max_size=120), st.integers(1, 6))
def test_no_trial_is_passed_over_for_ever(arrivals: list[tuple[str, int]], most_waiting: int) -> None:
    placement = Placement()
    waiting: dict[str, dict[str, Scalar]] = {}
    passed: dict[str, int] = {}
    for number, (node, depth) in enumerate(arrivals):
        waiting[f"t{number}"] = {"frozen_depth": depth}
        if len(waiting) < most_waiting:
            continue
        chosen = placement.choose(node, waiting, NODES)
        for earlier in list(waiting)[: list(waiting).index(chosen)]:
            passed[earlier] = passed.get(earlier, 0) + 1
        placement.report(node, waiting.pop(chosen), depth)
    assert max(passed.values(), default=0) <= PASSED_MOST


def test_a_trial_that_nobody_favours_has_its_turn() -> None:
    placement = Placement()
    favoured: dict[str, Scalar] = {"frozen_depth": 3}
    placement.report("n0", favoured, 3)
    plain: dict[str, Scalar] = {"frozen_depth": 0}
    order = [placement.choose("n0", {"plain": plain, f"t{number}": favoured}, NODES) for number in range(PASSED_MOST + 1)]
    assert order == [*(f"t{number}" for number in range(PASSED_MOST)), "plain"]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 4))
def test_where_nothing_is_stored_trials_run_in_the_order_in_which_they_were_proposed(depths: list[int], seen: int) -> None:
    placement = Placement()
    placement.report("n0", {"frozen_depth": seen}, 0)  # `features: off`, or it does not pay
    assert placement.choose("n0", {f"t{n}": {"frozen_depth": depth} for n, depth in enumerate(depths)}, NODES) == "t0"


# What a trial reads


@pytest.mark.parametrize(
    "config",
    [
        {"frozen_depth": 0},
        {"frozen_depth": 3, "augmentation": "flip"},
        {"frozen_depth": 3, "mixup": 0.2},
        {"frozen_depth": 3, "pretrained": False},
        {"frozen_depth": 3, "reinit_units": 1},
        {"frozen_depth": 3, "tuned_unit": 0},
    ],
)
def test_a_trial_that_could_read_nothing_has_no_preference(config: dict[str, Scalar]) -> None:
    assert prefix_of(config) is None


def test_the_depth_is_that_of_the_units_that_are_frozen_to_begin_with() -> None:
    def depth(**config: Scalar) -> int:
        prefix = prefix_of(config)
        assert prefix is not None
        return prefix.depth

    assert depth(frozen_depth=3) == 3
    assert depth(frozen_depth=0, tuned_unit=2) == 2
    assert depth(frozen_depth="max") == depth(frozen_depth=0, strategy="lp_ft") > 500


def test_trials_that_are_said_to_read_the_same_do(tmp_path: Path) -> None:
    """The second trial differs in all that should not matter, and adds nothing to the cache."""
    cache = Cache(tmp_path / "cache", limit=10**9)
    alike: dict[str, Scalar] = {"frozen_depth": N_UNITS - 1, "batch_size": 8}
    other: dict[str, Scalar] = {"learning_rate": 0.1, "optimizer": "adamw", "weight_decay": 0.1, "label_noise": 0.3}
    other |= {"dropout": 0.5, "l2_sp": 0.1, "batch_norm": "eval", "label_smoothing": 0.1, "clip_grad_norm": 1.0, "seed": 3}
    assert prefix_of(alike) == prefix_of(alike | other) != prefix_of(alike | {"batch_size": 4})
    images = dataclasses.replace(tiny_data(side=8), pixels="tiny-8")
    entries = []
    for number, config in enumerate((alike, alike | other, alike | {"batch_size": 4})):
        prefixes._readers.clear()
        plan = tiny_plan(config, number=number)
        run = TrialRun(
            plan, images, tmp_path / str(number), backbone=build_tiny_backbone, sharing=Sharing("on", cache, 100.0, 1)
        )
        (row,) = islice(run.epochs(), 1)
        run.close()
        prefixes._readers.clear()
        assert row["stored_units"] == N_UNITS - 1
        entries.append(len(cache.entries()))
    assert entries[0] == entries[1] < entries[2]


# What is proposed


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_the_same_trials_are_proposed_as_in_the_order_of_proposal(sampler: str) -> None:
    """In a study of three slots on three nodes that may run six trials at a time; TPE still collects its first points."""
    spec = toy_spec(
        factors={"learning_rate": {"log_uniform": [1e-4, 1e-1]}, "frozen_depth": {"int": [0, 3]}},
        budget={"trials": 24, "epochs": 2},
        search={"sampler": sampler, "seed": 3, "startup_trials": 24},
        early_stopping="none",
    )
    placed_order, placed, placed_rows = play(spec, Placement())
    order, plain, rows = play(spec, None)
    assert placed == plain
    assert placed_rows == rows
    assert placed_order != order == sorted(order)


def play(spec: Any, placement: Placement | None) -> tuple[list[str], list[Any], dict[str, Any]]:
    """Return the trials in the order in which they ran, the proposals, and the final table."""
    director, journal = direct(spec)
    trainer = ToyTrainer(spec.budget.epochs)
    waiting: dict[str, TrialRecord] = {}
    order: list[str] = []
    while True:
        while director.running < 6 and (trial := director.next_trial()) is not None:
            waiting[trial.trial_id] = trial
        if not waiting:
            break
        node = NODES[len(order) % 3]
        chosen = next(iter(waiting))
        if placement is not None:
            chosen = placement.choose(node, {name: director.config(trial) for name, trial in waiting.items()}, NODES)
        trial = waiting.pop(chosen)
        order.append(chosen)
        for row in epochs_of(trainer, director, trial):
            if placement is not None:
                placement.report(node, director.config(trial), int(director.config(trial)["frozen_depth"]))
            director.report(chosen, row)
    proposals = [(event.trial_id, event.number, event.config) for event in journal if isinstance(event, TrialStarted)]
    return order, proposals, dict(sorted(table(director.record).items()))
