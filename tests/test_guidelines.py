"""Guidelines: known effects are inside their intervals, thin evidence gives none, and the words say what the numbers do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import answers
import curves
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from truths import columns_at

from raystudy.factors import Scalar
from raystudy.findings import importance as module
from raystudy.findings.answer import Guideline, Importance, Interval
from raystudy.findings.guidelines import FEWEST_TRIALS, MOST
from raystudy.findings.guidelines_wording import Wording, settings
from raystudy.findings.importance import importance
from raystudy.findings.measure import sobol_points
from raystudy.findings.sentences import sentences

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

FACTORS: dict[str, Any] = {
    "lr": {"log_uniform": [1e-4, 1e-1]},
    "frozen_depth": {"int": [0, 3]},
    "optimizer": {"choice": ["sgd", "adamw"]},
}
ROLES = {"lr": "nuisance", "frozen_depth": "scientific", "optimizer": "nuisance"}


def accuracy(lr: Any, depth: Any, optimizer: Any) -> Any:
    """Return the noiseless metric: the best learning rate is 6e-3, 3 frozen units cost 0.24, the optimizer decides nothing."""
    place = (np.log10(lr) + 4) / 3
    return 0.8 - 0.5 * (place - 0.6) ** 2 - 0.08 * depth + 0.0 * (optimizer == "sgd")


def table(n: int, seed: int = 0) -> pa.Table:
    """Return `n` random trials of one epoch."""
    random = np.random.default_rng(seed)
    lr, depth = 10 ** random.uniform(-4, -1, n), random.integers(0, 4, n)
    optimizer = random.choice(["sgd", "adamw"], n)
    values = accuracy(lr, depth, optimizer) + 0.004 * random.standard_normal(n)
    return pa.table(
        {
            "trial_id": [f"t{k:03d}" for k in range(n)],
            "epoch": [1] * n,
            "val_accuracy": values,
            "lr": lr,
            "frozen_depth": depth,
            "optimizer": optimizer,
        }
    )


def ask(reports: pa.Table, factors: Any = None, metric: str = "val_accuracy", budget: int = 1, **more: Any) -> Importance:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importance(reports, factors or FACTORS, metric=metric, budget=budget, **{"roles": ROLES, **more})


@pytest.fixture(scope="module")
def asked() -> Importance:
    return ask(table(60))


# On functions that are known


def test_effects_of_a_known_function_are_inside_their_intervals(asked: Importance) -> None:
    found = {one.factor: one for one in asked.guidelines}
    assert set(found) == {"lr", "frozen_depth"}, "the optimizer does nothing, and nothing is said of it"
    depth, lr = found["frozen_depth"], found["lr"]
    assert (depth.level, depth.reference, depth.condition) == (0, 3, {})
    assert depth.effect.low <= 0.24 <= depth.effect.high
    true = float(accuracy(lr.level, 0, "sgd") - accuracy(lr.reference, 0, "sgd"))
    assert lr.effect.low - 0.003 <= true <= lr.effect.high + 0.003
    assert all(one.n_trials >= FEWEST_TRIALS and one.probability > 0.95 for one in found.values())
    assert [one.factor for one in asked.guidelines] == ["frozen_depth", "lr"], "the largest effect comes first"


def test_the_number_of_trials_is_that_near_the_values_compared(asked: Importance) -> None:
    depth = next(one for one in asked.guidelines if one.factor == "frozen_depth")
    values = table(60).column("frozen_depth").to_pylist()
    assert depth.n_trials == values.count(0) + values.count(3)
    assert depth.sentence.endswith(f", n = {depth.n_trials}.")


def test_the_recommended_configuration_is_the_best_of_the_function(asked: Importance) -> None:
    assert asked.recommended is not None
    config = asked.recommended.config
    assert config["frozen_depth"] == 0
    assert 3e-3 <= float(config["lr"]) <= 1.2e-2
    assert asked.recommended.predicted.low - 0.005 <= 0.8 <= asked.recommended.predicted.high + 0.005
    assert set(config) == set(FACTORS), "the null factor is nobody's business"


def test_guidelines_stand_at_the_end_and_survive_json(asked: Importance) -> None:
    lines = str(asked).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("Guidelines"))
    assert lines[start + 1 : -1] == [one.sentence for one in asked.guidelines]
    assert lines[-1].startswith("Recommended: lr=0.00")
    data = asked.to_dict()
    assert Importance.from_dict(data) == asked
    older = {name: value for name, value in data.items() if name not in ("guidelines", "recommended")}
    assert Importance.from_dict(older).guidelines == ()


# Where little is known


@pytest.mark.slow
def test_few_trials_give_no_guideline() -> None:
    thin = ask(table(13))
    assert all(one.n_trials >= FEWEST_TRIALS for one in thin.guidelines)
    assert len(thin.guidelines) <= 1


@pytest.mark.slow
def test_an_answer_in_doubt_gives_neither_guideline_nor_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_doubt", lambda *_, **__: "The metric jumps.")
    doubted = ask(table(30))
    assert (doubted.guidelines, doubted.recommended) == ((), None)
    assert "Guidelines" not in str(doubted)


@pytest.mark.slow
def test_without_details_there_are_none() -> None:
    assert ask(table(30), details=False).guidelines == ()


# In words


SIZES = st.floats(1e-6, 1e3)
VALUES = st.one_of(st.floats(1e-8, 1e8), st.integers(0, 10**6), st.sampled_from(["sgd", "adamw"]), st.booleans())


@given(
    low=SIZES,
    width=SIZES,
    sign=st.sampled_from([1.0, -1.0]),
    level=VALUES,
    reference=VALUES,
    condition=st.dictionaries(st.sampled_from(["data_fraction", "backbone"]), VALUES, max_size=2),
    in_points=st.booleans(),
    factor=st.sampled_from(["learning_rate", "frozen_depth"]),
)
def test_a_guideline_is_one_sentence_that_says_all_and_no_more_digits_than_are_known(
    low: float,
    width: float,
    sign: float,
    level: Scalar,
    reference: Scalar,
    condition: Mapping[str, Scalar],
    in_points: bool,
    factor: str,
) -> None:
    ends = sorted((sign * low, sign * (low + width)))
    effect = Interval(value=sign * (low + width / 2), low=ends[0], high=ends[1])
    wording = Wording("val_accuracy", "max" if sign > 0 else "min", in_points)
    for sentence in (
        wording.gain(factor, level, reference, effect, condition, 12),
        wording.place(factor, level, (level, level), reference, effect, condition, 12),
    ):
        assert re.fullmatch(r"\S.*, n = 12\.", sentence), sentence
        assert not re.search(r"\b(None|nan|inf|True|False)\b", sentence), sentence
        assert ("points" in sentence) is in_points
        assert sentence.startswith("With ") is bool(condition)
        assert all(f"{name}=" in sentence for name in condition)
        (first, last) = map(float, re.findall(r"\[([\d.]+), ([\d.]+)\], n", sentence)[0])
        assert first <= last
        scale = 100 if in_points else 1
        assert abs(last - first - scale * width) <= 0.11 * scale * width + 2e-6


@pytest.mark.parametrize(
    ("mode", "in_points", "effect", "words"),
    [
        ("max", True, (0.031, 0.018, 0.043), "freezing 12 units instead of 0 gains 3.1 points of m [1.8, 4.3], n = 46."),
        ("max", False, (0.31, 0.2, 0.42), "freezing 12 units instead of 0 raises m by 0.31 [0.20, 0.42], n = 46."),
        ("min", False, (-12.1, -14.0, -10.0), "freezing 12 units instead of 0 lowers m by 12.1 [10.0, 14.0], n = 46."),
    ],
)
def test_a_gain_is_said_as_people_say_it(mode: str, in_points: bool, effect: tuple[float, ...], words: str) -> None:
    said = Interval(value=effect[0], low=effect[1], high=effect[2])
    wording = Wording("m", mode, in_points)
    assert wording.gain("frozen_depth", 12, 0, said, {"data_fraction": 0.1}, 46) == f"With data_fraction=0.1, {words}"
    assert wording.gain("frozen_depth", 12, 0, said, {}, 46) == f"F{words[1:]}"


def test_a_place_is_said_as_people_say_it() -> None:
    wording, effect = Wording("val_accuracy", "max", True), Interval(value=0.21, low=0.15, high=0.28)
    assert wording.place("learning_rate", 0.00412, (0.0021, 0.0089), 0.1, effect, {}, 51) == (
        "learning_rate is best near 0.0041 [0.0021, 0.0089]; at 0.1 val_accuracy is 21 points lower [15, 28], n = 51."
    )
    assert "1e-05 val_loss is 0.21 higher [0.15, 0.28]" in Wording("val_loss", "min", False).place(
        "learning_rate", 0.004, (0.002, 0.009), 1e-5, Interval(value=-0.21, low=-0.28, high=-0.15), {}, 51
    )
    assert wording.gain("pretrained", True, False, effect, {}, 9).startswith("pretrained=true instead of false gains")
    assert settings({"lr": 0.00123456, "nesterov": False}) == "lr=0.00123, nesterov=false"


def test_a_region_is_told_with_the_guidelines() -> None:
    one = answers.guideline()
    said = list(sentences(answers.usual(guidelines=(one,), recommended=None, region="optimizer=sgd")))
    assert said[-2].endswith("near the values compared where optimizer=sgd:")
    assert said[-1] == one.sentence


# On learning curves that ASHA stopped


def true_effect(fixture: curves.Curves, one: Guideline) -> float:
    """Return the effect on the noiseless function by brute force, the nuisance factors tuned for a scientific one."""

    def at(value: Scalar) -> float:
        size = 2**14
        columns = columns_at(fixture.factors, sobol_points(size, len(fixture.factors), 1))
        for name, pinned in {one.factor: value, **one.condition}.items():
            columns[name] = np.full(size, pinned)
        values = fixture.link(fixture.curve(columns, np.array([float(curves.BUDGET)]))[:, 0])
        return float(values.max() if one.factor == "frozen_depth" else values.mean())

    return at(one.level) - at(one.reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["separable", "accuracy"])
def test_effects_are_inside_their_intervals_where_most_trials_were_stopped(name: str) -> None:
    fixture = getattr(curves, name)()
    roles = {factor: "scientific" if factor == "frozen_depth" else "nuisance" for factor in fixture.factors}
    hits, total = 0, 0
    for seed in range(3):
        reports = fixture.simulate(150, seed).reports
        answer = ask(reports, fixture.factors, curves.METRIC, curves.BUDGET, roles=roles)
        assert len(answer.guidelines) <= MOST
        for one in answer.guidelines:
            true = true_effect(fixture, one)
            slack = 0.5 * one.effect.width
            assert one.effect.low - slack <= true <= one.effect.high + slack, one.sentence
            hits, total = hits + (one.effect.low <= true <= one.effect.high), total + 1
    assert total >= 6
    assert hits >= 0.7 * total
