"""The study file: what is read is what was written, frozen, and known by what decides its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import ValidationError
from strategies import NAMES, Plain, studies

from raystudy.errors import SpecError
from raystudy.spec import StudySpec
from raystudy.spec.load import parse_spec
from raystudy.spec.schema import json_schema
from raystudy.spec.text import MAX_BYTES, apply_overrides, dump_yaml, parse_yaml, with_values

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

STUDY: Plain = {
    "name": "flowers",
    "data": {"source": "folder:/data/flowers", "image_size": 64},
    "backbone": "resnet18",
    "factors": {"learning_rate": {"log_uniform": [1e-4, 1e-1]}, "data_fraction": {"choice": [0.5, 1.0]}},
    "fixed": {"batch_size": 32},
    "search": {"seed": 7},
}


def study(**changes: Any) -> StudySpec:
    return StudySpec.from_dict(with_values(STUDY, {key.replace("__", "."): value for key, value in changes.items()}))


def problems_of(call: Callable[[], object]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        call()
    return [str(problem) for problem in caught.value.problems]


# Round trips


@some
@given(studies())
def test_a_study_written_and_read_again_is_equal(tmp_path_factory: pytest.TempPathFactory, data: Plain) -> None:
    spec = StudySpec.from_dict(data)
    file = tmp_path_factory.mktemp("round") / "study.yaml"
    file.write_text(spec.to_yaml(), encoding="utf-8")
    again = StudySpec.from_yaml(file)
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    assert list(again.factors) == list(spec.factors)


@some
@given(studies())
def test_plain_data_survives_json_as_the_journal_keeps_it(data: Plain) -> None:
    spec = StudySpec.from_dict(data)
    again = StudySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.fingerprint == spec.fingerprint


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@some
@given(_plain)
def test_what_is_dumped_is_read_back_even_texts_that_look_like_numbers(data: Any) -> None:
    assert parse_yaml(dump_yaml(data), where="test") == data


@pytest.mark.parametrize("word", ["1e-3", "1e5", "08", "010", "1_000", "off", "no", "yes", "null", "true", ".5", "2024-01-01"])
def test_a_text_that_looks_like_something_else_is_quoted(word: str) -> None:
    assert dump_yaml({"key": word}) == f"key: '{word}'\n"


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-1e-3", -0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("1.5e2", 150.0),
        ("+1", 1),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("010", 10),
        ("08", 8),
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ('"1e-3"', "1e-3"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_yaml_is_read_as_its_version_1_2_says(text: str, value: Any) -> None:
    read = parse_yaml(text, where="test")
    assert read == value
    assert type(read) is type(value)


def test_infinite_and_undefined_numbers_are_read_so_that_the_checks_can_refuse_them() -> None:
    assert parse_yaml("[.inf, -.inf]", where="test") == [float("inf"), float("-inf")]
    assert parse_yaml(".nan", where="test") != parse_yaml(".nan", where="test")


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1", "'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "line 1, column 11", "'b' is given twice"),
        ("a: 1\n\tb: 2\n", "line 2, column 1", "cannot start any token"),
        ("a: [1, 2\nb: 3", "line 2, column 2", "expected ',' or ']'"),
        ("1: 2\n", "line 1, column 1", "a key must be a word, got 1"),
        ("? [a, b]\n: 2\n", "line 1, column 3", "a key must be a word"),
        ("a: !!python/object/apply:os.getcwd []", "line 1, column 4", "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "but found another document"),
        ("a: *nowhere\n", "line 1, column 4", "found undefined alias"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line_and_column(text: str, place: str, what: str) -> None:
    (problem,) = problems_of(lambda: parse_yaml(text, where="study.yaml"))
    assert problem.startswith(f"study.yaml, {place}: ")
    assert what in problem


@pytest.mark.parametrize("text", ["[" * 5000, "\x00", "a: \x07"])
def test_what_the_yaml_reader_gives_up_on_is_an_error_in_words(text: str) -> None:
    (problem,) = problems_of(lambda: parse_yaml(text, where="study.yaml"))
    assert problem.startswith("study.yaml: is not a YAML file")


def test_a_few_lines_that_stand_for_billions_of_values_are_refused_in_short_words() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    data = parse_yaml("\n".join([*lines, "name: *a11", "data: *a11"]), where="test")
    problems = problems_of(lambda: parse_spec(data))
    assert any(problem.startswith("name: got [[[") for problem in problems)
    assert all(len(problem) < 400 for problem in problems)


def test_a_value_that_holds_itself_is_refused() -> None:
    data = parse_yaml("name: &a [*a]\nfixed: &b {dropout: *b}", where="test")
    problems = problems_of(lambda: parse_spec(data))
    assert any(problem.startswith("fixed.dropout: got {'dropout': ") for problem in problems)


def test_files_that_are_no_study_files_are_refused_in_words(tmp_path: Path) -> None:
    huge, binary, utf16 = tmp_path / "huge.yaml", tmp_path / "binary.yaml", tmp_path / "utf16.yaml"
    huge.write_bytes(b" " * (MAX_BYTES + 1))
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    utf16.write_text("name: x", encoding="utf-16")
    cases = {
        huge: "is larger than 1,000,000 bytes",
        binary: "is not text in UTF-8",
        utf16: "is not text in UTF-8",
        tmp_path: "is a folder, expected a study file",
        tmp_path / "no.yaml": "no such file; `raystudy init NAME`",
        binary / "x.yaml": "cannot be read: Not a directory",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
    }
    for path, expected in cases.items():
        (problem,) = problems_of(lambda path=path: StudySpec.from_yaml(path))  # type: ignore[misc]
        assert problem.startswith(f"{path}: {expected}")


# Overrides


def test_overrides_change_add_and_create_sections() -> None:
    overrides = ["budget.trials=8", "data.image_size=32", "factors.learning_rate.log_uniform=[1e-5, 1e-2]", "fixed.dropout=.5"]
    spec = parse_spec(apply_overrides(STUDY, overrides))
    assert (spec.budget.trials, spec.data.image_size) == (8, 32)
    assert spec.factors["learning_rate"].log_uniform == (1e-5, 1e-2)
    assert spec.fixed == {"batch_size": 32, "dropout": 0.5}
    assert STUDY["data"]["image_size"] == 64, "the data that was given is left alone"


def test_an_empty_override_is_null_and_a_value_may_hold_equal_signs() -> None:
    assert apply_overrides({}, ["a=", "b=x=y"]) == {"a": None, "b": "x=y"}


@pytest.mark.parametrize("override", ["budget.trials", "=3", ".a=3", "a..b=3", "a.=3"])
def test_a_malformed_override_is_refused_by_name(override: str) -> None:
    (problem,) = problems_of(lambda: apply_overrides(STUDY, [override]))
    assert problem == f"--set: got {override!r}; expected key.path=value, e.g. budget.trials=8"


def test_all_malformed_overrides_are_named_at_once() -> None:
    problems = problems_of(lambda: apply_overrides(STUDY, ["a", "b=[1", "c"]))
    assert [problem.partition(":")[0] for problem in problems] == ["--set", "--set b, line 1, column 3", "--set"]


# What a spec is


def test_a_spec_is_frozen() -> None:
    spec = study()
    for part, name in ((spec, "name"), (spec.data, "image_size"), (spec.factors["learning_rate"], "role")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


def test_defaults_are_filled_in() -> None:
    spec = study()
    assert (spec.metric, spec.mode) == ("val_accuracy", "max")
    assert (spec.budget.trials, spec.budget.epochs, spec.search.sampler) == (32, 27, "tpe")
    assert spec.early_stopping.scheduler == "asha"
    assert spec.cells == ("data_fraction",)
    assert spec.role("data_fraction") == "scientific"
    assert spec.role("learning_rate") == "nuisance"


def test_a_metric_that_is_better_the_smaller_it_is_is_minimised_without_being_told() -> None:
    assert study(objective={"metric": "val_loss"}).mode == "min"


def test_several_backbones_are_a_factor_of_their_own_and_a_cell() -> None:
    spec = study(backbone=["resnet18", "resnet50"])
    assert list(spec.all_factors) == ["backbone", "learning_rate", "data_fraction"]
    assert spec.cells == ("backbone", "data_fraction")
    assert "backbone" not in spec.constants()


def test_what_there_is_to_train_on_is_compared_within_where_it_varies_by_levels() -> None:
    varied: Plain = {
        "images_per_class": {"choice": [5, 50]},
        "label_noise": {"choice": [0, 0.4]},
        "dropout": {"choice": [0, 0.5]},
        "categories": {"int": [2, 10]},
        "class_imbalance": {"choice": [1, 10]},
        "training_objective": {"choice": ["supervised", "self_supervised"]},
    }
    cells = ("images_per_class", "label_noise", "categories", "class_imbalance", "training_objective")
    assert study(factors=varied).cells == cells
    assert study(factors=varied, early_stopping={"within": []}).cells == ()
    continuous = {"data_fraction": {"uniform": [0.1, 1]}, "label_noise": {"uniform": [0, 0.5]}}
    assert study(factors={**continuous, "images_per_class": {"log_int": [1, 99]}}).cells == ()


def test_fraction_and_shots_may_vary_together() -> None:
    both = study(factors={"data_fraction": {"choice": [0.5, 1.0]}, "images_per_class": {"choice": [1, 9]}})
    assert both.cells == ("data_fraction", "images_per_class")


def test_balanced_accuracy_can_be_aimed_at() -> None:
    assert study(objective={"metric": "val_balanced_accuracy"}).mode == "max"


def test_full_configurations_hold_every_factor_active_over_fixed_over_default() -> None:
    spec = study(data__augmentation="flip")
    config = spec.full_config({"learning_rate": 0.01})
    assert (config["learning_rate"], config["batch_size"], config["augmentation"], config["warmup"]) == (0.01, 32, "flip", 0.0)
    assert config["backbone"] == "resnet18"


@pytest.mark.parametrize("word", ["none", None])
def test_early_stopping_is_switched_off_by_a_word(word: str | None) -> None:
    assert study(early_stopping=word).early_stopping.scheduler == "none"


@pytest.mark.parametrize("word", ["none", None])
def test_holding_out_is_switched_off_by_a_word(word: str | None) -> None:
    assert study(early_stopping={"keep": word}).early_stopping.keep == 0


# Fingerprint

DECIDES = {
    "data.source": "folder:/data/other",
    "data.image_size": 32,
    "data.validation": 0.3,
    "data.test": 0.1,
    "data.augmentation": "flip",
    "data.on_bad_image": "skip",
    "backbone": "resnet50",
    "objective.metric": "val_loss",
    "factors.learning_rate.log_uniform": [1e-4, 1e-2],
    "factors.learning_rate.role": "scientific",
    "factors.dropout": {"uniform": [0, 0.5]},
    "factors.data_fraction.when": {"batch_size": 32},
    "fixed.batch_size": 64,
    "fixed.dropout": 0.1,
    "budget.epochs": 9,
    "budget.unit": "subset_epoch",
    "search.sampler": "random",
    "search.seed": 8,
    "search.startup_trials": 2,
    "search.points": [{"learning_rate": 0.01}],
    "early_stopping.grace": 2,
    "early_stopping.keep": 0.1,
    "early_stopping": "none",
    "resources.precision": "bf16",
}
DOES_NOT_DECIDE = {
    "name": "other",
    "budget.trials": 1000,
    "budget.hours": 2,
    "resources.cpu": 4,
    "resources.gpu": 1,
    "resources.concurrent": 8,
    "resources.retries": 0,
    "keep_models": 0,
    "tracking_uri": "http://host:5000",
}


@pytest.mark.parametrize("place", DECIDES)
def test_the_fingerprint_changes_with_what_decides_results(place: str) -> None:
    changed = StudySpec.from_dict(with_values(STUDY, {place: DECIDES[place]}))
    assert changed.fingerprint != study().fingerprint


@pytest.mark.parametrize("place", DOES_NOT_DECIDE)
def test_the_fingerprint_stays_with_what_does_not_decide_results(place: str) -> None:
    changed = StudySpec.from_dict(with_values(STUDY, {place: DOES_NOT_DECIDE[place]}))
    assert changed != study()
    assert changed.fingerprint == study().fingerprint


def test_the_order_of_the_factors_counts_because_samplers_draw_them_in_it() -> None:
    turned = StudySpec.from_dict({**STUDY, "factors": dict(reversed(STUDY["factors"].items()))})
    assert turned.fingerprint != study().fingerprint


def test_the_order_of_everything_else_does_not_count() -> None:
    turned = StudySpec.from_dict({key: STUDY[key] for key in reversed(STUDY)})
    assert turned.fingerprint == study().fingerprint


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = f"from raystudy.spec import StudySpec; print(StudySpec.from_dict({STUDY!r}).fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == study().fingerprint


# All problems at once

TEN_DEFECTS = """
name: a/b
data: {source: "folder:/data", image_size: "64", validation: 1.5}
backbone: resnet18
objective: {metric: val_acc}
factors:
  lr: {log_uniform: [1e-4, 1e-1]}
  momentum: {uniform: [0.9, 0.8], when: {optimiser: sgd}}
  dropout: {uniform: [0, 2]}
fixed: {batch_size: 0}
budget: {trails: 3}
early_stopping: {within: [dropout]}
keep_models: -1
"""


def test_ten_defects_are_ten_problems_in_one_message() -> None:
    problems = problems_of(lambda: parse_spec(parse_yaml(TEN_DEFECTS, where="test")))
    places = {problem.partition(": ")[0] for problem in problems}
    assert places == {
        "name",
        "data.image_size",
        "objective.metric",
        "factors.lr",
        "factors.momentum.uniform",
        "factors.dropout.uniform[1]",
        "fixed.batch_size",
        "budget.trails",
        "early_stopping.within[0]",
        "keep_models",
    }


def test_the_parts_of_one_broken_factor_are_all_named() -> None:
    problems = problems_of(lambda: study(factors__lr={"log_uniform": [float("nan"), float("inf")], "step": 0.1}))
    places = [problem.partition(": ")[0] for problem in problems]
    assert places == ["factors.lr.log_uniform[0]", "factors.lr.log_uniform[1]", "factors.lr.step", "factors.lr"]


@pytest.mark.parametrize("bounds", [["max", 3], ["max", "max"], [3, 3], [5, "max"]])
def test_a_step_beside_odd_bounds_is_checked_without_stumbling(bounds: list[Any]) -> None:
    problems = problems_of(lambda: study(factors__frozen_depth={"int": bounds, "step": 0}))
    assert "factors.frozen_depth.step: got 0, expected a whole number above 0" in problems


@pytest.mark.parametrize(
    ("bounds", "step", "what"),
    [
        ([0, 1], 2, "got 2, which is more than the whole range [0, 1]"),
        ([0.1, 0.9], 0.0123456789012345678, "cannot be counted exactly"),
        ([0, 0.9], 1e-9, "cannot be counted exactly"),
        ([0, 0.9], float("inf"), "expected a number above 0"),
        ([0, 0.9], float("nan"), "expected a number above 0"),
    ],
)
def test_a_step_that_cannot_be_is_refused(bounds: list[float], step: float, what: str) -> None:
    (problem,) = problems_of(lambda: study(factors__dropout={"uniform": bounds, "step": step}))
    assert problem.startswith("factors.dropout.step: ")
    assert what in problem


def test_what_speaks_of_a_broken_factor_is_not_blamed_for_it() -> None:
    broken = {"optimizer": {"choice": []}, "momentum": {"uniform": [0.8, 0.9], "when": {"optimizer": "sgd"}}}
    problems = problems_of(lambda: study(factors=broken, search__points=[{"optimizer": "sgd"}]))
    assert problems == ["factors.optimizer.choice: is empty, expected at least one value"]


def test_missing_sections_are_all_named_with_an_example() -> None:
    problems = problems_of(lambda: parse_spec({"budget": {"trials": 3}}))
    assert [problem.partition(": ")[0] for problem in problems] == ["name", "data", "backbone", "factors"]
    assert all("; expected " in problem for problem in problems)


@pytest.mark.parametrize("name", ["strategy", "interval", "floating", "string", "none_of_these"])
def test_a_name_that_begins_like_a_type_keeps_its_place(name: str) -> None:
    (problem,) = problems_of(lambda: study(**{f"budget__{name}": 3}))
    assert problem.startswith(f"budget.{name}: unknown key")


def test_a_factor_whose_name_begins_like_a_type_keeps_its_place() -> None:
    (problem,) = problems_of(lambda: study(fixed__strategy=None))
    assert problem.startswith("fixed.strategy: got nothing, expected ")


def test_of_a_union_only_the_branch_that_got_furthest_is_named() -> None:
    assert problems_of(lambda: study(backbone=["resnet18", 5])) == ["backbone[1]: got 5, expected a text"]


@pytest.mark.parametrize(
    "address",
    ["ftp://host", "file:/tmp/x", "mlruns", "", "http://", "http://host:99999", "http://[::1", "sqlite:x.db", "sqlite://",
     "sqlite:///:memory:", "foo+bar://host", "postgresql://"],
)  # fmt: skip
def test_an_address_that_is_no_tracking_store_is_refused(address: str) -> None:
    (problem,) = problems_of(lambda: study(tracking_uri=address))
    assert problem.startswith("tracking_uri: got ")
    assert problem.endswith("expected http(s)://HOST:PORT or sqlite:///PATH")


@pytest.mark.parametrize(
    "address",
    ["http://host:5000", "https://host/mlflow", "http://[::1]:5000", "sqlite:///x.db", "sqlite:////tmp/x.db",
     "postgresql+psycopg2://host/db", "mysql://user@host/db"],
)  # fmt: skip
def test_an_address_of_a_tracking_store_is_accepted(address: str) -> None:
    assert study(tracking_uri=address).tracking_uri == address


# JSON Schema


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@some
@given(studies())
def test_the_schema_accepts_what_the_checks_accept(validator: Draft202012Validator, data: Plain) -> None:
    StudySpec.from_dict(data)
    validator.validate(data)


@pytest.mark.parametrize(
    "section", ["", "data", "objective", "factors", "fixed", "budget", "search", "early_stopping", "resources"]
)
def test_the_schema_refuses_an_unknown_key_in_every_section(validator: Draft202012Validator, section: str) -> None:
    assert validator.is_valid(STUDY)
    assert not validator.is_valid(with_values(STUDY, {f"{section}.typo".lstrip("."): 1}))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", "a/b"),
        ("data.image_size", "224"),
        ("objective.metric", "val_acc"),
        ("factors.lr", {"uniform": [0, 1]}),
        ("factors.learning_rate.loguniform", [0, 1]),
        ("factors.learning_rate.log_uniform", [1e-4]),
        ("fixed.optimizer", "adam"),
        ("fixed.dropout", 2),
        ("early_stopping", "asha"),
        ("search.sampler", "grids"),
    ],
)
def test_the_schema_refuses_wrong_values(validator: Draft202012Validator, place: str, value: Any) -> None:
    assert not validator.is_valid(with_values(STUDY, {place: value}))
