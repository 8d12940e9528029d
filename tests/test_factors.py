"""The catalogue of factors: complete, consistent, and strict about values without ever stumbling over one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import VARIABLE, factors, scalars, values

from raystudy.errors import SpecError
from raystudy.factors import FACTORS, PROBE_DEPTH, Scalar, defaults
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.spec import StudySpec

NAMES = st.sampled_from(sorted(VARIABLE))


@pytest.mark.parametrize("name", FACTORS)
def test_every_entry_says_what_it_does_and_where_it_is_described(name: str) -> None:
    info = FACTORS[name]
    assert info.name == name
    assert info.doc.endswith(".")
    assert info.source


@pytest.mark.parametrize("name", VARIABLE)
def test_every_default_is_a_value_that_the_factor_may_have(name: str) -> None:
    assert FACTORS[name].refusal(FACTORS[name].default) is None
    assert defaults()[name] == FACTORS[name].default


@pytest.mark.parametrize("name", FACTORS)
def test_what_a_factor_applies_to_is_a_value_of_another_factor(name: str) -> None:
    for parent, value in FACTORS[name].applies.items():
        assert parent != name
        assert FACTORS[parent].refusal(value) is None


def test_training_knows_every_factor_and_no_other() -> None:
    assert set(Hyperparameters.__annotations__) == set(FACTORS)


@given(st.data())
def test_values_of_a_factor_are_accepted_wherever_they_are_written(data: st.DataObject) -> None:
    name = data.draw(NAMES)
    value = data.draw(values(name))
    assert FACTORS[name].refusal(value) is None
    StudySpec.from_dict(_study(fixed={name: value}))
    StudySpec.from_dict(_study(factors={name: {"choice": [value]}}))


@settings(deadline=None)
@given(st.data())
def test_every_form_of_a_factor_is_accepted(data: st.DataObject) -> None:
    name = data.draw(NAMES)
    spec = StudySpec.from_dict(_study(factors={name: data.draw(factors(name))}))
    assert list(spec.factors) == [name]


@given(NAMES, scalars())
def test_any_value_is_either_accepted_or_refused_in_words(name: str, value: Any) -> None:
    refusal = FACTORS[name].refusal(value)
    assert refusal is None or refusal.startswith(f"got {value!r}")
    assert refusal is None or refusal.endswith(f"expected {FACTORS[name].accepted()}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", 10.5),
        ("learning_rate", "1e-3"),
        ("learning_rate", True),
        ("learning_rate", math.nan),
        ("learning_rate", -math.inf),
        ("learning_rate", 10**400),
        ("learning_rate", None),
        ("batch_size", 0),
        ("batch_size", 0.5),
        ("batch_size", math.nan),
        ("batch_size", math.inf),
        ("batch_size", PROBE_DEPTH),
        ("frozen_depth", -1),
        ("frozen_depth", "min"),
        ("data_fraction", 0),
        ("data_fraction", 1.01),
        ("optimizer", "adam"),
        ("optimizer", 1),
        ("pretrained", 1),
        ("pretrained", "yes"),
        ("backbone", ""),
        ("seed", 2**31),
        ("images_per_class", -1),
        ("images_per_class", 1.5),
        ("class_imbalance", 0.99),
        ("class_imbalance", 1001),
        ("label_noise", -0.1),
        ("label_noise", 0.91),
        ("categories", 1),
        ("categories", -1),
    ],
)
def test_a_value_that_a_factor_cannot_have_is_refused(name: str, value: Any) -> None:
    assert FACTORS[name].refusal(value) is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("learning_rate", "a number above 0 and at most 10"),
        ("momentum", "a number from 0 to 0.999"),
        ("batch_size", "a whole number from 1 to 65536"),
        ("seed", "a whole number from 0 to 2147483647"),
        ("frozen_depth", "a whole number from 0 (or max)"),
        ("images_per_class", "a whole number from 1 to 1000000 (or 0)"),
        ("categories", "a whole number from 2 to 1000000 (or 0)"),
        ("optimizer", "one of sgd, adamw"),
        ("pretrained", "true or false"),
        ("backbone", "a name"),
    ],
)
def test_what_is_accepted_is_said_in_words(name: str, words: str) -> None:
    assert FACTORS[name].accepted() == words


@pytest.mark.parametrize(("name", "least"), [("images_per_class", 1), ("categories", 2)])
def test_the_word_for_no_limit_is_a_value_but_not_the_end_of_a_range(name: str, least: int) -> None:
    StudySpec.from_dict(_study(fixed={name: 0}))
    StudySpec.from_dict(_study(factors={name: {"choice": [0, 5]}}))
    StudySpec.from_dict(_study(factors={name: {"int": [least, 5]}}))
    with pytest.raises(SpecError, match=rf"factors.{name}.int\[0\]: got 0, which sets no limit .* at least {least}"):
        StudySpec.from_dict(_study(factors={name: {"int": [0, 5]}}))


def _study(*, factors: dict[str, Any] | None = None, fixed: dict[str, Scalar] | None = None) -> dict[str, Any]:
    free = "mixup" if fixed and "dropout" in fixed else "dropout"
    return {
        "name": "s",
        "data": {"source": "sklearn:digits"},
        "backbone": "efficientnet_lite0",
        "factors": factors or {free: {"uniform": [0, 0.5]}},
        "fixed": fixed or {},
    }
