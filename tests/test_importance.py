"""`raystudy.importance` as a function of a table: right where the truth is known, and silent where nothing can be said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from truths import METRIC, linear

from raystudy.errors import InputError
from raystudy.findings.answer import Importance, Interval
from raystudy.findings.importance import FEWEST_TRIALS, importance
from raystudy.findings.left_out import FirstReports, LeftOut
from raystudy.findings.selfcheck import self_check

FACTORS: dict[str, Any] = {
    "lr": {"log_uniform": [1e-4, 1e-1]},
    "opt": {"choice": ["sgd", "adam", "adamw"]},
    "drop": {"uniform": [0.0, 0.5]},
}
LINEAR = linear((3, 2, 1))


def ask(reports: pa.Table, factors: dict[str, Any] = FACTORS, **more: Any) -> Importance:
    settings: dict[str, Any] = {"metric": "m", "budget": 9, "details": False} | more
    return importance(reports, factors, **settings)


def first_orders(answer: Importance) -> dict[str, float]:
    return {share.name: share.first_order.value for share in answer.shares if share.first_order is not None}


def configs(n: int, seed: int = 0) -> dict[str, list[Any]]:
    random = np.random.default_rng(seed)
    names = ["sgd", "adam", "adamw"]
    return {
        "lr": (1e-4 * 1000 ** random.random(n)).tolist(),
        "opt": [names[i] for i in random.permutation(np.arange(n) % 3)],
        "drop": (0.5 * random.random(n)).tolist(),
    }


def lr_place(values: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(np.log(np.array(values) / 1e-4) / np.log(1000))


def table(given: dict[str, list[Any]], epochs: int = 1, last: int = 9, **more: list[Any]) -> pa.Table:
    """Return reports of epochs `last` - `epochs` + 1 to `last`, one trial per configuration: mostly the learning rate."""
    n = len(given["lr"])
    value = 2 * lr_place(given["lr"]) + np.where(np.array(given["opt"]) == "adam", 0.6, 0.0)
    rows = [(trial, epoch) for trial in range(n) for epoch in range(last - epochs + 1, last + 1)]
    columns: dict[str, Any] = {"trial_id": [f"t{trial}" for trial, _ in rows], "epoch": [epoch for _, epoch in rows]}
    columns["m"] = [float(value[trial]) - 0.1 * (9 - epoch) for trial, epoch in rows]
    columns |= {name: [values[trial] for trial, _ in rows] for name, values in (given | more).items()}
    return pa.table(columns)


def with_column(reports: pa.Table, name: str, values: Any) -> pa.Table:
    return reports.set_column(reports.column_names.index(name), name, pa.array(values))


@pytest.mark.slow
def test_a_single_factor_is_all_there_is() -> None:
    x = np.linspace(0.01, 0.99, 20)
    reports = pa.table({"trial_id": np.arange(20), "epoch": np.ones(20, int), "m": x**2, "x": x})
    answer = ask(reports, {"x": {"uniform": [0, 1]}}, budget=1)
    assert first_orders(answer)["x"] == pytest.approx(1, abs=0.02)
    assert answer.shares[0].verdict == "important"
    assert answer.shares[0].probability_first == pytest.approx(1)


def empty() -> pa.Table:
    return table(configs(1)).slice(0, 0)


def flat(n: int = 20) -> pa.Table:
    return with_column(table(configs(n)), "m", [0.5] * n)


def diverged(n: int = 20) -> pa.Table:
    return with_column(table(configs(n), state=["diverged"] * n), "m", [float("nan")] * n)


def nothing_finite(n: int = 20) -> pa.Table:
    return with_column(table(configs(n), state=["running"] * n), "m", [float("inf")] * n)


def without_reports(n: int = 20) -> pa.Table:
    both = with_column(table(configs(n), state=["running"] * n), "epoch", pa.nulls(n, pa.int64()))
    return with_column(both, "m", pa.nulls(n, pa.float64()))


def never_varied(n: int = 20) -> pa.Table:
    reports = table({"lr": [0.01] * n, "opt": ["sgd"] * n, "drop": [0.1] * n})
    return with_column(reports, "m", np.random.default_rng(0).random(n))


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        (lambda: table(configs(8), epochs=9), f"8 trials are too few to tell factors apart: it takes at least {FEWEST_TRIALS}"),
        (flat, "m is 0.5 in every report: there is no variance to explain."),
        (diverged, "All trials diverged or failed before a report: m is not known for any."),
        (lambda: table(configs(20), last=1), "No trial reached epoch 9 (the furthest got to 1)"),
        (never_varied, "No factor has more than one value among the trials: nothing can be compared."),
        (empty, "There are no trials yet."),
        (nothing_finite, "No trial has reported yet: m is not known for any."),
        (without_reports, "No trial has reported yet: m is not known for any."),
    ],
    ids=["8 trials", "constant", "all diverged", "all pruned", "never varied", "empty", "not finite", "no reports"],
)
def test_where_nothing_can_be_said_there_is_a_sentence_and_no_number(reports: Callable[[], pa.Table], sentence: str) -> None:
    for details in (False, True):
        answer = ask(reports(), details=details, plan=details)
        assert answer.notes[0].startswith(sentence)
        assert sentence in str(answer)
        assert [share.name for share in answer.shares] == list(FACTORS)
        for share in answer.shares:
            assert share.verdict == "not identified"
            assert share.reason == answer.notes[0]
            assert (share.first_order, share.total, share.probability_first, share.within_active) == (None,) * 4
        assert (answer.pairs, answer.effects, answer.surfaces, answer.epochs) == ((), (), (), ())
        assert (answer.check, answer.noise_share, answer.open_share, answer.trouble) == (None,) * 4
        assert Importance.from_dict(answer.to_dict()) == answer


def test_few_that_reached_the_end_are_counted() -> None:
    reports = pa.concat_tables([table(configs(20), last=3), table(configs(20)).slice(0, 2)])
    assert ask(reports).notes[0].startswith("Only 2 trials reached epoch 9 (the furthest got to 9)")


@pytest.mark.slow
def test_a_factor_that_never_varied_has_no_share() -> None:
    answer = ask(table(configs(24) | {"drop": [0.25] * 24}, last=1), budget=1)
    (unknown,) = [share for share in answer.shares if share.name == "drop"]
    assert unknown.first_order is unknown.total is None
    assert (unknown.verdict, unknown.reason) == ("not identified", "all trials have drop=0.25")
    assert "All trials have drop=0.25: its share is not known, and the others' are those at this value." in answer.notes
    assert first_orders(answer) == pytest.approx({"lr": 0.8, "opt": 0.2}, abs=0.05)


@pytest.mark.slow
def test_a_level_that_was_never_tried_is_said_to_be_a_guess() -> None:
    given = configs(24)
    given["opt"] = ["sgd" if name == "adamw" else name for name in given["opt"]]
    answer = ask(table(given, last=1), budget=1)
    assert "No trial has opt=adamw: what is said of it is a guess." in answer.notes
    (share,) = [share for share in answer.shares if share.name == "opt"]
    assert share.first_order is not None
    assert share.first_order.width > 0.02, "the level that nobody tried leaves its share open"


@pytest.mark.slow
def test_a_level_that_never_got_far_is_said_to_be_extrapolated() -> None:
    given = configs(24)
    whole = table(given, epochs=9)
    keep = [
        not (opt == "adamw" and epoch > 2)
        for opt, epoch in zip(whole["opt"].to_pylist(), whole["epoch"].to_pylist(), strict=True)
    ]
    answer = ask(whole.filter(pa.array(keep)))
    assert any(note.startswith("No trial with opt=adamw got beyond epoch 2") for note in answer.notes)


GOOD = table(configs(3), epochs=2)


@pytest.mark.parametrize(
    ("reports", "more", "texts"),
    [
        (GOOD.drop_columns(["lr", "m"]), {}, ["has no column 'lr'", "has no column 'm'"]),
        (with_column(GOOD, "epoch", [0, 9, 8, 9, 8, 9]), {}, ["trial t0: got 0", "a whole number from 1 to 9, the budget"]),
        (with_column(GOOD, "epoch", [8, 10, 8, 9, 8, 9]), {}, ["trial t0: got 10"]),
        (with_column(GOOD, "epoch", [9, 9, 8, 9, 8, 9]), {}, ["trial t0 reports epoch 9 twice"]),
        (with_column(GOOD, "drop", [0.1, 0.2] * 3), {}, ["trial t0 has 0.1 and 0.2", "one value throughout a trial"]),
        (with_column(GOOD, "drop", [0.7] * 6), {}, ["drop", "got 0.7", "0.0 to 0.5"]),
        (with_column(GOOD, "opt", ["lion"] * 6), {}, ["opt", "got the text 'lion'", "expected one of sgd, adam, adamw"]),
        (with_column(GOOD, "m", ["a"] * 6), {}, ["reports.m", "a metric is a number"]),
        (GOOD, {"at": 10}, ["at", "got 10", "an epoch from 1 to 9, the budget"]),
        (GOOD, {"at": 0}, ["got 0"]),
        (GOOD, {"budget": 0}, ["budget", "at least 1"]),
        (GOOD, {"mode": "maximise"}, ["got 'maximise'", "max or min"]),
        (GOOD, {"factors": {}}, ["factors", "at least one factor"]),
        (GOOD, {"given": {"lrr": 0.1}}, ["lrr", "is not a factor", "lr"]),
        (GOOD, {"given": {"drop": 3.0}}, ["drop", "got 3.0"]),
        (GOOD, {"within": "lrr<0.1"}, ["lrr", "is not a factor"]),
        (GOOD, {"within": "lr<1e-9"}, ["lr", "no value is left"]),
        (GOOD, {"within": "top 90%"}, ["within", "got 'top 90%'", "at most 50 %"]),
        (GOOD, {"within": "top 0%"}, ["above 0 %"]),
    ],
)
def test_bad_input_is_named(reports: pa.Table, more: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        ask(reports, **more)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answer_in_whatever_order_the_rows_are() -> None:
    reports = table(configs(14, 3), epochs=3, last=3)
    shuffled = reports.take(np.random.default_rng(0).permutation(reports.num_rows))
    one, again, other = (ask(rows, budget=3) for rows in (reports, reports, shuffled))
    assert one == again
    assert first_orders(one) == pytest.approx(first_orders(other), abs=0.01)
    assert [share.verdict for share in one.shares] == [share.verdict for share in other.shares]


@pytest.mark.slow
def test_a_factor_that_is_given_has_no_share_and_the_others_more() -> None:
    answer = importance(LINEAR.sample(40, 1), LINEAR.factors, metric=METRIC, budget=1, details=False, given={"x1": 0.5})
    assert first_orders(answer) == pytest.approx({"x2": 0.8, "x3": 0.2}, abs=0.05)
    assert answer.region == "x1=0.5"


@pytest.mark.slow
def test_within_a_region_a_factor_matters_less() -> None:
    answer = importance(LINEAR.sample(40, 1), LINEAR.factors, metric=METRIC, budget=1, details=False, within="x1<0.5")
    whole = 9 / 4 + 4 + 1
    assert first_orders(answer) == pytest.approx({"x2": 4 / whole, "x1": 9 / 4 / whole, "x3": 1 / whole}, abs=0.05)
    assert answer.region == "x1<0.5"


@pytest.mark.slow
def test_what_sets_the_best_apart() -> None:
    answer = importance(LINEAR.sample(40, 1), LINEAR.factors, metric=METRIC, budget=1, details=False, within="top 10%")
    assert answer.of_best
    assert answer.shares[0].name == "x1"
    assert all(share.total is None for share in answer.shares)
    assert sum(first_orders(answer).values()) <= 1.001
    assert sum(first_orders(answer).values()) > 0.8


def test_everything_given_leaves_nothing_to_compare() -> None:
    answer = ask(table(configs(20)), given={"lr": 0.01, "opt": "sgd", "drop": 0.1})
    assert answer.notes == ("No factor varies: there is nothing to compare.",)


@pytest.mark.slow
def test_the_factor_that_makes_trials_diverge_is_named() -> None:
    given = configs(40, 2)
    bad = (lr_place(given["lr"]) > 0.7).tolist()
    reports = table(given, epochs=2, last=2, state=["diverged" if one else "completed" for one in bad])
    is_last = np.array(reports["epoch"]) == 2
    values = np.where(np.repeat(bad, 2) & is_last, np.nan, np.array(reports["m"]))
    answer = ask(with_column(reports, "m", values), budget=2)
    assert answer.n_diverged == sum(bad)
    assert answer.trouble is not None
    assert answer.trouble.shares[0].name == "lr"
    assert first_orders(answer.trouble)["lr"] > 0.6


def left_out(scores: list[float], kept: int = 0) -> LeftOut:
    z = np.array(scores)
    seen = np.linspace(0, 1, len(z))
    return LeftOut(seen, seen + 0.01, z, np.arange(len(z)) < kept)


def first_reports(*scores: float, stopped: bool = True) -> FirstReports:
    z = np.array([*scores, *[0.5] * 50])
    return FirstReports(z / 10, z, np.full(len(z), stopped), 1.0)


NOUGHT = Interval(value=0.001, low=0.0, high=0.004)
FORESEEN = first_reports()


@pytest.mark.slow
def test_the_self_check_passes_and_fails() -> None:
    good = self_check(left_out([0.1] * 20), FORESEEN, NOUGHT, "m")
    assert good.passed
    assert good.coverage_90 == 1
    bad = self_check(left_out([0.1] * 13 + [4.0] * 7), FORESEEN, NOUGHT, "m")
    assert not bad.passed
    assert bad.sentences[0] == "13 of 20 left-out results lie inside their 90 % bands, too few: the model of m does not fit."
    holdouts = self_check(left_out([5.0] * 6 + [0.1] * 200, kept=6), FORESEEN, NOUGHT, "m")
    assert not holdouts.passed
    assert holdouts.sentences[0].startswith("0 of 6 trials that early stopping would have stopped")
    noisy = self_check(left_out([0.1] * 20), FORESEEN, Interval(value=0.05, low=0.03, high=0.09), "m")
    assert not noisy.passed
    assert noisy.sentences[0].startswith("A factor that does nothing gets 3.0% to 9.0%")
    assert self_check(left_out([]), FORESEEN, NOUGHT, "m").passed


def test_reports_that_nobody_foresees_are_a_jump() -> None:
    cliff = self_check(left_out([0.1] * 20), first_reports(9.0, -8.0), NOUGHT, "m")
    assert not cliff.passed
    assert cliff.sentences[0].startswith("2 of 52 trials begin far from what all others foresee")
    assert cliff.unforeseen_share == pytest.approx((0.9**2 + 0.8**2) / 52)
    # Trials that went on to the end say themselves how they end.
    assert self_check(left_out([0.1] * 20), first_reports(9.0, -8.0, stopped=False), NOUGHT, "m").passed
    # One odd trial, or several that are off by little beside what there is to explain, are not.
    assert self_check(left_out([0.1] * 20), first_reports(9.0), NOUGHT, "m").passed
    assert self_check(left_out([0.1] * 20), first_reports(3.1, 3.2), NOUGHT, "m").passed


@pytest.mark.slow
def test_finals_that_nothing_predicts_are_not_explained() -> None:
    """Smooth curves whose last values are exchanged between trials: either the check fails, or no curve is believed."""
    reports = table(configs(24, 4), epochs=4)
    values = np.array(reports["m"].to_pylist())
    at_end = np.array(reports["epoch"].to_pylist()) == 9
    values[at_end] = np.random.default_rng(1).permutation(values[at_end])
    answer = ask(with_column(reports, "m", values))
    assert answer.check is not None
    assert answer.loo_r2 is not None
    assert not answer.check.passed or answer.loo_r2 < 0.3


@pytest.mark.slow
def test_permuted_results_have_no_important_factor() -> None:
    reports = LINEAR.sample(40, 1)
    values = np.random.default_rng(5).permutation(reports[METRIC].to_numpy())
    answer = importance(with_column(reports, METRIC, values), LINEAR.factors, metric=METRIC, budget=1, details=False)
    for share in answer.shares:
        assert share.first_order is not None
        assert share.first_order.low < 0.1
    assert answer.loo_r2 is not None
    assert answer.loo_r2 < 0.3


@pytest.mark.slow
def test_mode_turns_the_best_level_round_and_no_share() -> None:
    reports = table(configs(16), last=1)
    high, low = (ask(reports, budget=1, mode=mode, details=True) for mode in ("max", "min"))
    assert high.shares == low.shares
    best = [{effect.factor: effect.best.value for effect in answer.effects} for answer in (high, low)]
    assert best[0]["opt"] == "adam"
    assert best[1]["opt"] != "adam"
    assert float(best[0]["lr"]) > 0.05
    assert float(best[1]["lr"]) < 2e-4
    assert low.to_dict()["mode"] == "min"


@pytest.mark.slow
def test_nothing_here_needs_ray_or_mlflow() -> None:
    program = (
        "import sys; from raystudy.findings.importance import importance\n"
        "print(sorted({'ray', 'mlflow', 'optuna', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
