from __future__ import annotations

from dataclasses import fields

import pytest

from raystudy.errors import SpecError
from raystudy.factors import FACTORS, defaults
from raystudy.finetune.hyperparameters import Hyperparameters


def test_there_is_one_field_per_factor_of_the_catalogue() -> None:
    assert [field.name for field in fields(Hyperparameters)] == list(FACTORS)


def test_an_empty_configuration_gives_the_defaults() -> None:
    assert Hyperparameters.from_config({}).as_dict() == defaults()


def test_numbers_take_the_type_of_their_factor() -> None:
    hyper = Hyperparameters.from_config({"learning_rate": 1, "batch_size": 32.0, "frozen_depth": 3.0})
    assert isinstance(hyper.learning_rate, float)
    assert isinstance(hyper.batch_size, int)
    assert isinstance(hyper.frozen_depth, int)


def test_max_becomes_the_number_of_units() -> None:
    hyper = Hyperparameters.from_config({"frozen_depth": "max"})
    assert hyper.frozen_depth == "max"
    assert hyper.resolve(18).frozen_depth == 18


def test_every_unknown_name_and_refused_value_is_a_problem_of_its_own() -> None:
    with pytest.raises(SpecError) as caught:
        Hyperparameters.from_config({"momentun": 0.9, "zzz": 1, "batch_size": 0, "schedule": "linear", "dropout": "x"})
    assert [problem.where for problem in caught.value.problems] == ["momentun", "zzz", "batch_size", "schedule", "dropout"]
    assert "did you mean momentum?" in str(caught.value)
    assert "expected one of learning_rate, optimizer" in str(caught.value)


def test_units_beyond_the_backbone_are_refused_with_the_highest_that_there_is() -> None:
    hyper = Hyperparameters.from_config({"frozen_depth": 5, "tuned_unit": 4, "reinit_units": 6})
    with pytest.raises(SpecError) as caught:
        hyper.resolve(4)
    assert [problem.accepted for problem in caught.value.problems] == ["at most 4", "at most 3", "at most 4"]
