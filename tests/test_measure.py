"""The measure: the declared distribution of the factors, what of it a restriction keeps, and how configurations are encoded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import N_UNITS, Plain, factor_sections

from raystudy.errors import InputError
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.findings.axis import Floats
from raystudy.findings.measure import Measure, parse_region, sobol_points
from raystudy.space import Space
from raystudy.spec import Factor, StudySpec

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32 - 1)

FORMS: dict[str, Plain] = {
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "dropout": {"uniform": [0.2, 0.7]},
    "warmup": {"uniform": [0.1, 0.5], "step": 0.1},
    "frozen_depth": {"int": [0, 18]},
    "resolution": {"int": [32, 100], "step": 16},
    "batch_size": {"log_int": [2, 40]},
    "data_fraction": {"choice": [1.0, 0.1, 0.25]},
    "mixup": {"choice": [0.0, 0.4]},
    "augmentation": {"choice": ["none", "flip", "standard"]},
    "optimizer": {"choice": ["sgd", "adamw"]},
    "pretrained": {"choice": [True, False]},
    "strategy": {"choice": ["ft"]},
    "seed": {"int": [0, 2**31 - 1]},
}
"""Every form, among them a choice out of order, one of two numbers, one of one value, and billions of levels."""

NESTED: dict[str, Plain] = {
    "lr_decay": {"uniform": [0, 1], "when": {"schedule": ["step", "cosine"], "warm": True}},
    "schedule": {"choice": ["constant", "step", "cosine"], "when": {"optimizer": "sgd"}},
    "optimizer": {"choice": ["sgd", "adamw"]},
    "warm": {"choice": [True, False]},
    "period": {"int": [1, 4], "when": {"schedule": "cosine"}},
}


def forms() -> Measure:
    return Measure.of(FORMS)


def uniform(measure: Measure, n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).random((n, len(measure.axes)))


def columns_of(measure: Measure, configs: Sequence[Mapping[str, Scalar]]) -> dict[str, list[Scalar | None]]:
    return {name: [config.get(name) for config in configs] for name in measure.names}


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def space_and_measure(sections: tuple[Plain, Plain]) -> tuple[Space, Measure]:
    """The same factors both ways: `max` is a number, and what depends on a fixed value does not, for the measure."""
    factors, fixed = sections
    known = {name: N_UNITS if value == PROBE_DEPTH else value for name, value in fixed.items()}
    kept: Plain = {}
    for name, body in factors.items():
        when = {parent: value for parent, value in body.get("when", {}).items() if parent not in known}
        plain = {key: _resolved(value) for key, value in body.items() if key != "when"}
        kept[name] = {**plain, "when": {parent: _resolved(value) for parent, value in when.items()}} if when else plain
    data = {"name": "s", "data": {"source": "sklearn:digits"}, "backbone": "efficientnet_lite0", "factors": kept}
    return Space.of(StudySpec.from_dict(data), n_units=N_UNITS), Measure.of(kept)


def _resolved(value: Any) -> Any:
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    return N_UNITS if value == PROBE_DEPTH else value


def assert_same_configs(found: Sequence[Mapping[str, Scalar]], expected: Sequence[Mapping[str, Scalar]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            assert type(value) is type(other[name])
            assert value == (pytest.approx(other[name], rel=1e-12) if isinstance(value, float) else other[name])


# The distribution is the study's


@some
@given(factor_sections(), seeds)
def test_configurations_are_those_of_the_study_at_the_same_point(sections: tuple[Plain, Plain], seed: int) -> None:
    space, measure = space_and_measure(sections)
    assert measure.names == tuple(dimension.name for dimension in space.dimensions)
    u = uniform(measure, 20, seed)
    assert_same_configs(measure.values(u), [space.at(point.tolist()) for point in u])


@some
@given(factor_sections(), seeds)
def test_configurations_encode_to_the_points_that_they_come_from(sections: tuple[Plain, Plain], seed: int) -> None:
    measure = space_and_measure(sections)[1]
    u = uniform(measure, 20, seed)
    matrix, active = measure.points(u)
    again, active_again = measure.encode(columns_of(measure, measure.values(u)))
    assert np.array_equal(active, active_again)
    assert np.allclose(matrix, again, rtol=0, atol=1e-9)
    assert matrix.shape == (20, measure.width)
    assert ((matrix >= 0) & (matrix <= 1)).all()


@pytest.mark.parametrize("name", FORMS)
def test_quantiles_are_those_of_the_study(name: str) -> None:
    space, measure = space_and_measure(({name: FORMS[name]}, {}))
    # Ends, and places that lie on no edge between levels.
    u = [0.0, *((np.arange(999) + 0.5 + 1e-3) / 999), 1.0]
    assert_same_configs([{name: measure.axes[0].value(share)} for share in u], [space.at([share]) for share in u])


def test_levels_are_drawn_with_their_probabilities() -> None:
    measure = forms()
    values = measure.values(sobol_points(2**12, len(measure.axes), 0))
    for name in ("warmup", "frozen_depth", "resolution", "batch_size", "data_fraction", "augmentation", "pretrained"):
        _, shares, levels = measure.grid(name, 3)
        drawn = Counter(config[name] for config in values)
        assert drawn.keys() == set(levels)
        assert shares.sum() == pytest.approx(1)
        for level, share in zip(levels, shares, strict=True):
            assert drawn[level] / 2**12 == pytest.approx(share, abs=2e-3)


def test_whole_numbers_on_a_logarithm_have_optunas_probabilities() -> None:
    _, shares, levels = Measure.of({"n": {"log_int": [2, 40]}}).grid("n", 3)
    assert levels == list(range(2, 41))
    expected = [math.log((level + 0.5) / (level - 0.5)) / math.log(40.5 / 1.5) for level in range(2, 41)]
    assert shares == pytest.approx(expected)


# Encoding


@pytest.mark.parametrize(
    ("factor", "kind", "codes"),
    [
        ({"log_uniform": [1e-4, 1e-2]}, "continuous", {1e-4: [0], 1e-3: [0.5], 1e-2: [1]}),
        ({"uniform": [2, 4]}, "continuous", {2: [0], 2.5: [0.25], 4.0: [1]}),
        ({"uniform": [0, 1], "step": 0.5}, "ordered", {0: [1 / 6], 0.5: [0.5], 1.0: [5 / 6]}),
        ({"int": [1, 4]}, "ordered", {1: [0.125], 2: [0.375], 4.0: [0.875]}),
        ({"int": [1, 8], "step": 3}, "ordered", {1: [1 / 6], 4: [0.5], 7: [5 / 6]}),
        ({"log_int": [1, 2]}, "ordered", {1: [math.log(3) / math.log(5) / 2], 2: [1 - math.log(5 / 3) / math.log(5) / 2]}),
        ({"choice": [1.0, 0.1, 0.25]}, "ordered", {0.1: [1 / 6], 0.25: [0.5], 1: [5 / 6]}),
        ({"choice": [0.5, 0.1]}, "categorical", {0.5: [0], 0.1: [1]}),
        ({"choice": ["sgd", "adamw"]}, "categorical", {"sgd": [0], "adamw": [1]}),
        ({"choice": ["sgd"]}, "categorical", {"sgd": [0]}),
        ({"choice": [1, True, "a"]}, "categorical", {"a": [0, 0, 0.5**0.5]}),
    ],
)
def test_values_are_encoded_at_the_middle_of_their_probability(
    factor: Plain, kind: str, codes: Mapping[Any, list[float]]
) -> None:
    (axis,) = Measure.of({"x": factor}).axes
    assert axis.kind == kind
    for value, code in codes.items():
        assert axis.encode(value) == pytest.approx(code)


def test_any_two_levels_of_a_categorical_factor_are_one_apart() -> None:
    (axis,) = Measure.of({"x": {"choice": ["a", "b", "c", "d"]}}).axes
    codes = [axis.encode(level) for level in axis.levels]
    assert [math.dist(one, other) for i, one in enumerate(codes) for other in codes[:i]] == pytest.approx([1] * 6)


@pytest.mark.parametrize(
    ("child", "neutral"),
    [
        ({"log_uniform": [1e-4, 1e-2]}, [0.5]),
        ({"log_int": [1, 9]}, [0.5]),
        ({"choice": [1, 2, 4]}, [0.5]),
        ({"choice": ["a", "b"]}, [0.5]),
        ({"choice": ["a", "b", "c"]}, [0.5**0.5 / 3] * 3),
    ],
)
def test_a_factor_that_is_not_active_lies_in_the_middle(child: Plain, neutral: list[float]) -> None:
    measure = Measure.of({"on": {"choice": [True, False]}, "x": {**child, "when": {"on": True}}})
    matrix, active = measure.points(np.array([[0.9, 0.1]]))
    assert matrix[0, measure.axis("x").columns] == pytest.approx(neutral)
    assert active.tolist() == [[True, False]]


def test_continuous_factors_encode_as_their_share() -> None:
    measure = forms()
    u = uniform(measure, 50, 0)
    matrix, _ = measure.points(u)
    for name in ("learning_rate", "dropout"):
        assert matrix[:, measure.axis(name).columns][:, 0] == pytest.approx(u[:, measure.names.index(name)])


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("learning_rate", 1e-4 * (1 - 1e-15), 1e-4),
        ("learning_rate", np.float32(0.1), 0.1),
        ("dropout", 0.7 + 1e-16, 0.7),
        ("dropout", np.float64(0.3), 0.3),
        ("warmup", 0.1 + 0.2, 0.3),
        ("warmup", np.float32(0.3), 0.3),
        ("frozen_depth", 3.0, 3),
        ("frozen_depth", np.int64(3), 3),
        ("batch_size", np.float32(32), 32),
        ("data_fraction", np.float32(0.1), 0.1),
        ("data_fraction", 1, 1.0),
        ("optimizer", np.str_("sgd"), "sgd"),
        ("pretrained", np.bool_(False), False),
        ("seed", 2.0**30, 2**30),
    ],
)
def test_rounding_and_other_types_of_numbers_do_not_matter(name: str, value: Any, meant: Scalar) -> None:
    measure = Measure.of({name: FORMS[name]})
    assert measure.encode({name: [value]})[0] == pytest.approx(measure.encode({name: [meant]})[0], abs=1e-7)


def test_columns_of_arrow_and_numpy_are_read_like_lists() -> None:
    measure = Measure.of(NESTED)
    columns = columns_of(measure, measure.values(uniform(measure, 50, 1)))
    expected = measure.encode(columns)
    arrow = {name: pa.chunked_array([pa.array(column)]) for name, column in columns.items()}
    numbers = columns | {"lr_decay": np.array([math.nan if value is None else value for value in columns["lr_decay"]])}
    for given_columns in (arrow, numbers):
        for found, wanted in zip(measure.encode(given_columns), expected, strict=True):
            assert np.array_equal(found, wanted)


def test_no_configurations_give_no_rows() -> None:
    measure = forms()
    matrix, active = measure.encode({name: [] for name in measure.names})
    assert matrix.shape == (0, measure.width)
    assert active.shape == (0, len(FORMS))


ACTIVE = {"optimizer": "sgd", "schedule": "cosine", "warm": True, "lr_decay": 0.5, "period": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_decay": 1.5}, "trial t7: lr_decay: got 1.5; expected a number from 0.0 to 1.0"),
        ({"lr_decay": "0.5"}, "trial t7: lr_decay: got the text '0.5'; expected a number from 0.0 to 1.0"),
        ({"lr_decay": True}, "trial t7: lr_decay: got True; expected a number from 0.0 to 1.0"),
        ({"lr_decay": math.inf}, "trial t7: lr_decay: got inf; expected a number from 0.0 to 1.0"),
        ({"lr_decay": 10**400}, "trial t7: lr_decay: got "),
        ({"lr_decay": [0.5]}, "trial t7: lr_decay: got [0.5]; expected a number from 0.0 to 1.0"),
        ({"lr_decay": None}, "trial t7: lr_decay: has no value, but is active here; expected a number from 0.0 to 1.0"),
        ({"lr_decay": math.nan}, "trial t7: lr_decay: has no value, but is active here; expected a number from 0.0 to 1.0"),
        ({"period": 2.5}, "trial t7: period: got 2.5; expected a whole number from 1 to 4"),
        ({"period": 5}, "trial t7: period: got 5; expected a whole number from 1 to 4"),
        ({"warm": 1}, "trial t7: warm: got 1; expected one of True, False"),
        ({"optimizer": "adam"}, "trial t7: optimizer: got the text 'adam'; expected one of sgd, adamw"),
    ],
)
def test_what_cannot_be_a_value_is_named_with_its_trial(change: Plain, message: str) -> None:
    columns = {name: [ACTIVE[name], value] for name, value in (ACTIVE | change).items()}
    said = refused(Measure.of(NESTED).encode, columns, ["t6", "t7"])
    assert said.startswith(message)
    assert len(said.splitlines()) == 1  # children of a value that is wrong are not blamed


def test_many_faults_of_one_factor_are_counted() -> None:
    said = refused(
        Measure.of({"x": {"uniform": [0, 1]}, "y": {"int": [0, 1]}}).encode, {"x": [0, 2, 3, 4, 5, 6], "y": [7] + [1] * 5}
    )
    assert said.splitlines() == [
        *(f"row {row}: x: got {row + 1}; expected a number from 0.0 to 1.0" for row in (1, 2, 3)),
        "x: 2 more like these",
        "row 0: y: got 7; expected a whole number from 0 to 1",
    ]


def test_a_trial_of_many_reports_is_blamed_once() -> None:
    said = refused(Measure.of({"x": {"uniform": [0, 1]}}).encode, {"x": [2] * 5}, ["t1"] * 5)
    assert said == "trial t1: x: got 2; expected a number from 0.0 to 1.0"


def test_values_of_factors_that_are_not_active_are_ignored() -> None:
    measure = Measure.of(NESTED)
    off: dict[str, list[Any]] = {
        "optimizer": ["adamw"],
        "schedule": ["step"],
        "warm": [True],
        "lr_decay": ["?"],
        "period": [99],
    }
    matrix, active = measure.encode(off)
    empty, _ = measure.encode({**off, "schedule": [None], "lr_decay": [None], "period": [None]})
    assert np.array_equal(matrix, empty)
    assert active[0].tolist() == [name in ("optimizer", "warm") for name in measure.names]


def test_columns_have_to_be_there_and_equally_long() -> None:
    measure = Measure.of({"x": {"uniform": [0, 1]}, "y": {"int": [0, 1]}})
    assert refused(measure.encode, {"x": [0.5], "z": [1]}) == "y: there is no column of this factor; the columns are x, z"
    assert refused(measure.encode, {"x": [0.5], "y": [1, 0]}) == "y: has 2 values; expected 1, as for x"


# Conditions


def test_a_factor_comes_after_those_its_condition_speaks_of() -> None:
    assert Measure.of(NESTED).names == ("optimizer", "schedule", "warm", "lr_decay", "period")


def test_a_condition_on_a_factor_that_is_not_active_does_not_hold() -> None:
    measure = Measure.of(NESTED)
    u = sobol_points(2**10, len(NESTED), 3)
    _, active = measure.points(u)
    for config, row in zip(measure.values(u), active, strict=True):
        assert config.keys() == {name for name, is_active in zip(measure.names, row, strict=True) if is_active}
        assert ("schedule" in config) == (config["optimizer"] == "sgd")
        assert ("period" in config) == (config.get("schedule") == "cosine")
        assert ("lr_decay" in config) == (config.get("schedule") in ("step", "cosine") and config["warm"] is True)


@pytest.mark.parametrize(
    ("region", "shares"),
    [
        ({}, [1, 1 / 2, 1, 1 / 6, 1 / 6]),
        ({"optimizer": "sgd"}, [1, 1, 1, 1 / 3, 1 / 3]),
        ({"optimizer": "adamw"}, [1, 0, 1, 0, 0]),
        ({"schedule": ["constant", "cosine"]}, [1, 1 / 2, 1, 1 / 8, 1 / 4]),
        ({"warm": False}, [1, 1 / 2, 1, 0, 1 / 6]),
    ],
)
def test_the_share_of_active_configurations_is_exact(region: Plain, shares: list[float]) -> None:
    measure = Measure.of(NESTED).within(region)
    assert [measure.share_active(name) for name in measure.names] == pytest.approx(shares)
    _, active = measure.points(sobol_points(2**12, len(NESTED), 0))
    assert active.mean(axis=0) == pytest.approx(shares, abs=5e-3)


def test_conditions_that_exclude_each_other_leave_a_factor_never_active() -> None:
    measure = Measure.of(
        {
            "a": {"choice": [1, 2, 3]},
            "b": {"choice": ["x", "y"], "when": {"a": [1, 2]}},
            "c": {"uniform": [0, 1], "when": {"b": "x", "a": [2, 3]}},
            "d": {"uniform": [0, 1], "when": {"b": "x", "a": 3}},
        }
    )
    assert [measure.share_active(name) for name in "abcd"] == pytest.approx([1, 2 / 3, 1 / 6, 0])
    assert measure.varying == ("a", "b", "c")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({}, "factors: is empty; expected at least one factor"),
        ({"x": 3}, "factors.x: got 3, expected a mapping"),
        ({"x": {"uniform": [1, 0]}}, "factors.x.uniform: [1, 0] is an empty range"),
        ({"x": {"log_unifrm": [1, 2]}}, "factors.x.log_unifrm: unknown key; did you mean log_uniform?"),
        ({"x": {"int": [0, "max"]}}, "factors.x.int: got 'max'; write the backbone's number of units"),
        (
            {"frozen_depth": {"choice": [0, "max"]}},
            "factors.frozen_depth.choice: got 'max'; write the backbone's number of units",
        ),
        (
            {"x": {"uniform": [0, 1], "when": {"mode": "a"}}, "mod": {"choice": ["a"]}},
            "factors.x.when.mode: there is no factor 'mode'; did",
        ),
        ({"x": {"choice": [1, 2], "when": {"x": 1}}}, "factors.x.when: the conditions go round in a circle"),
        (
            {"x": {"choice": [1, 2], "when": {"y": 1}}, "y": {"choice": [1, 2], "when": {"x": 1}}},
            "factors.x.when: the conditions go round in a circle",
        ),
        (
            {"x": {"uniform": [0, 1], "when": {"y": 1}}, "y": {"uniform": [0, 1]}},
            "factors.x.when.y: y is continuous; a condition needs a factor with levels",
        ),
        (
            {"x": {"int": [0, 9], "when": {"y": [1, 3]}}, "y": {"choice": [1, 2]}},
            "factors.x.when.y: y never is 3; expected one of 1, 2",
        ),
        (
            {"x": {"int": [0, 9], "when": {"y": 1}}, "y": {"choice": [True, False]}},
            "factors.x.when.y: y never is 1; expected one of True",
        ),
        ({"x": {"int": [0, 9], "when": {"y": []}}, "y": {"choice": [1, 2]}}, "factors.x.when.y: is an empty list"),
    ],
)
def test_factors_that_make_no_measure_are_named(factors: Plain, message: str) -> None:
    assert refused(Measure.of, factors).startswith(message)


def test_all_factors_that_are_wrong_are_named_at_once() -> None:
    said = refused(Measure.of, {"x": {"uniform": [1, 0]}, "y": {"choice": []}, "z": {"int": [0, 1]}})
    assert [line.split(":")[0] for line in said.splitlines()] == ["factors.x.uniform", "factors.y.choice"]


def test_factors_of_a_study_and_the_word_max_of_other_tuners_are_accepted() -> None:
    measure = Measure.of({"pool": Factor(choice=("avg", "max")), "backbone": Factor.model_construct(choice=("a", "b", "c"))})
    assert measure.width == 4


# Restriction


def test_fixed_factors_keep_their_columns_and_their_codes() -> None:
    measure = forms()
    fixed: dict[str, Scalar] = {
        "learning_rate": 0.01,
        "data_fraction": 0.1,
        "batch_size": 32,
        "augmentation": "flip",
        "seed": 7,
    }
    found = measure.given(fixed)
    assert found.names == measure.names
    assert found.fixed == {**fixed, "strategy": "ft"}
    assert found.varying == tuple(name for name in measure.names if name not in found.fixed)
    u = uniform(measure, 100, 5)
    matrix, _ = found.points(u)
    free, _ = measure.points(u)
    for axis in measure.axes:
        expected = axis.encode(fixed[axis.name]) if axis.name in fixed else free[:, axis.columns]
        assert matrix[:, axis.columns] == pytest.approx(np.broadcast_to(expected, matrix[:, axis.columns].shape))
    assert [config["seed"] for config in found.values(u)] == [7] * 100


def test_a_restriction_does_not_bear_on_what_was_run() -> None:
    measure = forms()
    columns = columns_of(measure, measure.values(uniform(measure, 30, 6)))
    restricted = measure.given({"data_fraction": 0.1}).within({"learning_rate": (None, 1e-3), "augmentation": ["none"]})
    assert np.array_equal(measure.encode(columns)[0], restricted.encode(columns)[0])


def test_factors_that_a_restriction_leaves_never_active_do_not_vary() -> None:
    measure = Measure.of(NESTED)
    assert measure.varying == measure.names
    assert measure.given({"optimizer": "adamw"}).varying == ("warm",)
    assert measure.given({"schedule": "step"}).varying == ("optimizer", "warm", "lr_decay")
    assert measure.within({"schedule": ["constant", "step"]}).varying == ("optimizer", "schedule", "warm", "lr_decay")


REGIONS: list[tuple[str, Any, str]] = [
    ("learning_rate", (1e-3, 1e-2), "0.001<=learning_rate<=0.01"),
    ("learning_rate", (None, 1e-2), "learning_rate<0.01"),
    ("dropout", (0.5, None), "0.5 < dropout"),
    ("dropout", (0.0, 0.3), "dropout<=0.3, dropout>=0"),
    ("warmup", (0.3, None), "warmup>=0.3"),
    ("warmup", [0.1, 0.3, 0.4], "warmup in 0.1|0.3|0.4"),
    ("frozen_depth", (3, 17.5), "frozen_depth>2 and frozen_depth < 18"),
    ("frozen_depth", [k for k in range(19) if k != 4], "frozen_depth!=4"),
    ("resolution", (40, 80), "40<resolution, resolution<=80"),
    ("batch_size", (8, 32), "8<=batch_size<=32"),
    ("batch_size", {3, 4, 5, 17}, "batch_size in 3 | 4|5|17"),
    ("data_fraction", (None, 0.5), "data_fraction<1"),
    ("data_fraction", [1.0, 0.25], "data_fraction != 0.1"),
    ("mixup", (None, 0.1), "mixup<0.4"),
    ("augmentation", ("none", "standard"), "augmentation != 'flip'"),
    ("optimizer", ("sgd",), "optimizer=sgd"),
    ("pretrained", True, "pretrained == true"),
]


@pytest.mark.parametrize(("name", "wanted", "text"), REGIONS)
def test_a_restricted_distribution_is_the_declared_one_among_the_values_kept(name: str, wanted: Any, text: str) -> None:
    measure = Measure.of({name: FORMS[name]})
    u = sobol_points(2**12, 1, 0)
    drawn = [config[name] for config in measure.values(u)]
    expected = Counter(value for value in drawn if _is_in(value, wanted))
    assert 0 < expected.total() < len(drawn)
    for restricted in (measure.within({name: wanted}), parse_region(text, measure)):
        found = Counter(config[name] for config in restricted.values(u))
        assert all(_is_in(value, wanted) for value in found)
        if measure.axes[0].levels:
            assert found.keys() == expected.keys()
            for value, count in expected.items():
                assert found[value] / 2**12 == pytest.approx(count / expected.total(), abs=5e-3)
        else:  # the same quantiles
            quantiles = np.quantile(list(expected.elements()), [0.1, 0.5, 0.9])
            assert np.quantile(list(found.elements()), [0.1, 0.5, 0.9]) == pytest.approx(quantiles, rel=1e-2)


def _is_in(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple) and not isinstance(value, str):
        low, high = wanted
        return (low is None or value >= low) and (high is None or value <= high)
    return value in wanted if isinstance(wanted, (tuple, list, set)) else value is wanted


@pytest.mark.parametrize(("name", "wanted", "text"), REGIONS)
def test_every_stretch_of_u_means_values_of_the_region_also_at_its_ends(name: str, wanted: Any, text: str) -> None:
    restricted = parse_region(text, Measure.of({name: FORMS[name]}))
    starts, ends = np.array(restricted.axes[0].runs).T
    edges = np.cumsum(ends - starts) / (ends - starts).sum()
    for u in [0.0, 1.0, *edges, *np.nextafter(edges, 0), *np.nextafter(edges, 2)]:
        value = restricted.axes[0].value(min(u, 1.0))
        near = (
            [value * (1 + slack) for slack in (-1e-12, 1e-12)]
            if isinstance(value, float) and not restricted.axes[0].levels
            else []
        )
        assert any(_is_in(one, wanted) for one in (value, *near))


@given(st.integers(1, 2**31 - 1), st.integers(2, 10**6), st.floats(0, 1))
def test_a_whole_number_fixed_on_a_logarithm_is_that_number(low: int, width: int, u: float) -> None:
    value = low + width // 2
    assert Measure.of({"n": {"log_int": [low, low + width]}}).given({"n": value}).axes[0].value(u) == value


def test_restrictions_add_up() -> None:
    measure = forms().within({"frozen_depth": (2, 9)}).within({"frozen_depth": [1, 2, 3, 8, 15]})
    assert measure.grid("frozen_depth", 3)[2] == [2, 3, 8]
    assert parse_region("frozen_depth!=3", measure).grid("frozen_depth", 3)[2] == [2, 8]
    assert measure.given({"frozen_depth": 8}).fixed["frozen_depth"] == 8
    assert "frozen_depth" in str(refused(measure.given, {"frozen_depth": 5}))


def test_an_open_range_keeps_everything() -> None:
    measure = forms()
    assert measure.within(dict.fromkeys(("dropout", "batch_size", "warmup", "mixup", "seed"), (None, None))) == measure


NO_VALUE = "the region is empty, no value is left"


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            {"learning_rat": 0.1},
            "learning_rat: is not a factor here; did you mean learning_rate? expected one of learning_rate, ",
        ),
        ({"learning_rate": (0.2, 1)}, f"learning_rate: {NO_VALUE}; expected a number from 0.0001 to 0.1"),
        ({"learning_rate": (0.1, 0.01)}, f"learning_rate: {NO_VALUE}"),
        ({"learning_rate": (math.nan, 1)}, "learning_rate: got nan"),
        (
            {"learning_rate": [0.1, 0.01]},
            "learning_rate: is continuous: single values have no probability; expected one, or a range",
        ),
        ({"learning_rate": "low"}, "learning_rate: got the text 'low'; expected a number from 0.0001 to 0.1"),
        ({"frozen_depth": (3.2, 3.8)}, f"frozen_depth: {NO_VALUE}; expected a whole number from 0 to 18"),
        ({"frozen_depth": []}, f"frozen_depth: {NO_VALUE}"),
        ({"resolution": [40]}, "resolution: got 40; expected a whole number from 32 to 96 in steps of 16"),
        ({"optimizer": ("sgd", "adam")}, "optimizer: got the text 'adam'; expected one of sgd, adamw"),
        ({"pretrained": 1}, "pretrained: got 1; expected one of True, False"),
    ],
)
def test_regions_that_make_no_sense_are_refused(region: Plain, message: str) -> None:
    assert refused(forms().within, region).startswith(message)


def test_all_that_is_wrong_with_a_region_is_said_at_once() -> None:
    said = refused(forms().given, {"dropout": 2.0, "optimzer": "sgd", "seed": -1})
    assert [line.split(":")[0] for line in said.splitlines()] == ["dropout", "optimzer", "seed"]


FORM = "expected e.g. learning_rate<0.01, 0.1<=data_fraction, optimizer=sgd, batch_size in 32|64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"region: got ''; {FORM}"),
        (" , ", f"region: got ' , '; {FORM}"),
        ("dropout", f"region: got 'dropout'; {FORM}"),
        ("dropout<", f"region: got 'dropout<'; {FORM}"),
        ("0.1<=drop<=0.5", "region: drop: is not a factor here; did you mean dropout? expected one of "),
        ("drop in 1|2", "region: drop: is not a factor here; did you mean dropout? expected one of "),
        ("dropout<x", "region: dropout: got 'x'; expected a number from 0.2 to 0.7"),
        ("dropout<nan", "region: dropout: got nan; expected a number from 0.2 to 0.7"),
        ("dropout>0.7", f"region: dropout: {NO_VALUE}; expected a number from 0.2 to 0.7"),
        ("dropout<0.4, dropout>0.4", f"region: dropout: {NO_VALUE}"),
        ("dropout!=0.4", "region: dropout: is continuous: leaving out one value changes nothing; expected < or >"),
        ("dropout in 0.4|0.5", "region: dropout: is continuous: single values have no probability; expected one, or a range"),
        ("optimizer<sgd", "region: optimizer: has no order, got <; expected = or !="),
        ("optimizer=adam", "region: optimizer: got 'adam'; expected one of sgd, adamw"),
        ("strategy!=ft", f"region: strategy: {NO_VALUE}; expected one of ft"),
        ("pretrained=maybe", "region: pretrained: got 'maybe'; expected one of True, False"),
        ("frozen_depth=2.5", "region: frozen_depth: got 2.5; expected a whole number from 0 to 18"),
    ],
)
def test_texts_that_are_no_region_are_refused(text: str, message: str) -> None:
    said = refused(parse_region, text, forms())
    assert said.startswith(message)
    assert len(said.splitlines()) == 1


def test_all_comparisons_that_are_wrong_are_named() -> None:
    said = refused(parse_region, "optimizer=adam, dropout<0.3, seed>-1, lr<1", forms())
    assert [line.split(":")[1].strip() for line in said.splitlines()] == ["optimizer", "lr"]


def test_a_level_is_meant_although_its_decimals_are_not_exact() -> None:
    measure = Measure.of({"x": {"choice": [0.1, 0.2, 0.1 + 0.2]}})
    assert parse_region("x<=0.3", measure).grid("x", 1)[2] == [0.1, 0.2, 0.1 + 0.2]
    assert parse_region("x<0.3", measure).grid("x", 1)[2] == [0.1, 0.2]


# Grids


@pytest.mark.parametrize("name", FORMS)
def test_a_grid_holds_points_values_and_probabilities(name: str) -> None:
    measure = forms()
    u, weights, labels = measure.grid(name, 6)
    axis = measure.axis(name)
    assert weights.sum() == pytest.approx(1)
    assert [axis.value(place) for place in u] == labels
    assert len(labels) == (len(axis.levels) if axis.levels and name != "seed" else 6)
    assert not axis.is_numeric or labels == sorted(labels, key=float)


def test_a_grid_of_a_region_holds_what_is_left() -> None:
    measure = parse_region("learning_rate=0.01, data_fraction!=0.25, 8<=batch_size<=9", forms())
    _, weights, labels = measure.grid("learning_rate", 9)
    assert weights.tolist() == [1.0]
    assert labels == pytest.approx([0.01])
    _, weights, labels = measure.grid("data_fraction", 9)
    assert weights.tolist() == [0.5, 0.5]
    assert labels == [0.1, 1.0]
    assert measure.grid("batch_size", 9)[2] == [8, 9]


def test_very_many_levels_are_shown_at_equal_probabilities_and_each_once() -> None:
    u, weights, labels = Measure.of({"n": {"log_int": [1, 10**6]}}).grid("n", 64)
    assert labels == sorted(set(labels), key=float)
    assert len(labels) < 64
    assert weights.sum() == pytest.approx(1)
    assert len(u) == len(weights) == len(labels)


# Sobol points


def test_sobol_points_are_balanced_and_their_seed_counts() -> None:
    points = sobol_points(64, 3, 1)
    assert points.shape == (64, 3)
    assert ((points >= 0) & (points < 1)).all()
    for column in points.T:
        assert sorted((column * 64).astype(int)) == list(range(64))
    assert np.array_equal(points, sobol_points(64, 3, 1))
    assert not np.array_equal(points, sobol_points(64, 3, 2))
    assert sobol_points(1, 2, 0).shape == (1, 2)
