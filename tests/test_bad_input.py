"""Bad study files through the real command line: exit code 2, the place and the fix named, nothing started."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import GOOD, Content, assert_refused, spoilt, write_study

# what is wrong -> (the study file, what stderr says: the place and the fix)
FORM: dict[str, tuple[Content, list[str]]] = {
    "unknown key": ({**GOOD, "bugdet": {}}, ["bugdet: unknown key", "did you mean budget"]),
    "unknown key of the data": (spoilt("data.imagesize", 3), ["data.imagesize: unknown key", "did you mean image_size"]),
    "unknown key of a factor": (spoilt("factors.learning_rate.log", [1, 2]), ["factors.learning_rate.log: ", "log_uniform"]),
    "unknown key of the search": (spoilt("search.sampl", "tpe"), ["search.sampl: unknown key", "did you mean sampler"]),
    "unknown key of the stopping": (spoilt("early_stopping.graze", 1), ["early_stopping.graze: ", "did you mean grace"]),
    "unknown key of the resources": (spoilt("resources.gpus", 1), ["resources.gpus: ", "did you mean gpu"]),
    "unknown key of the objective": (spoilt("objective.metrics", "x"), ["objective.metrics: ", "did you mean metric"]),
    "unknown word": (spoilt("search.sampler", "grids"), ["search.sampler: ", "tpe, random, qmc, grid, gp"]),
    "unknown role": (spoilt("factors.optimizer.role", "scientfic"), ["optimizer.role: ", "scientific, nuisance, fixed"]),
    "wrong type": (spoilt("budget.trials", "many"), ["budget.trials: ", "a whole number"]),
    "fraction of a trial": (spoilt("budget.trials", 2.5), ["budget.trials: ", "a whole number"]),
    "number in quotes": (spoilt("factors.learning_rate.log_uniform", ["1e-3", 0.1]), ["log_uniform[0]: ", "without quotes"]),
    "share in quotes": (spoilt("data.validation", "0.2"), ["data.validation: ", "without quotes"]),
    "fixed number in quotes": (spoilt("fixed.batch_size", "64"), ["fixed.batch_size: ", "without quotes"]),
    "text for a range": (spoilt("factors.mixup.uniform", "0, 1"), ["factors.mixup.uniform: ", "a list"]),
    "list for a section": (spoilt("budget", [4]), ["budget: got a list", "trials, epochs, hours, unit"]),
    "nothing for a section": (spoilt("data", None), ["data: got nothing", "source, image_size"]),
    "reversed range": (spoilt("factors.learning_rate.log_uniform", [0.1, 0.001]), ["rate.log_uniform: ", "empty range"]),
    "one end only": (spoilt("factors.learning_rate.log_uniform", [0.1]), ["rate.log_uniform: ", "[low, high]"]),
    "three ends": (spoilt("factors.learning_rate.log_uniform", [1, 2, 3]), ["rate.log_uniform: ", "[low, high]"]),
    "logarithm of zero": (spoilt("factors.weight_decay.log_uniform", [0, 0.1]), ["decay.log_uniform[0]: ", "above 0"]),
    "not a number": ("name: x\nfactors: {mixup: {uniform: [0, .nan]}}", ["factors.mixup.uniform[1]: ", "finite"]),
    "infinite end": (spoilt("factors.mixup.uniform", [0, float("inf")]), ["factors.mixup.uniform[1]: ", "finite"]),
    "infinite whole number": (spoilt("fixed.batch_size", float("inf")), ["fixed.batch_size: ", "a whole number from 1"]),
    "infinite hours": (spoilt("budget.hours", float("inf")), ["budget.hours: ", "at most"]),
    "step beyond the range": (spoilt("factors.mixup", {"uniform": [0, 1], "step": 2}), ["factors.mixup.step: ", "[0, 1]"]),
    "two forms": (spoilt("factors.dropout", {"uniform": [0, 0.1], "choice": [0]}), ["factors.dropout: ", "exactly one of"]),
    "no form": (spoilt("factors.dropout", {"role": "nuisance"}), ["factors.dropout: ", "exactly one of"]),
    "a value for a factor": (spoilt("factors.dropout", 0.1), ["factors.dropout: ", "goes under fixed"]),
    "empty choice": (spoilt("factors.optimizer.choice", []), ["factors.optimizer.choice: ", "at least one"]),
    "choice twice": (spoilt("factors.optimizer.choice", ["sgd", "sgd"]), ["factors.optimizer.choice[1]: ", "twice"]),
    "key twice": ("name: a\nname: b\n", ["line 2, column 1: ", "given twice"]),
    "not YAML": ("name: [\n", ["line 2, column 1: "]),
    "a tab": ("name: x\n\tdata: y\n", ["line 2, column 1: "]),
    "two documents": ("name: x\n---\nname: y\n", ["line 2, column 1: ", "another document"]),
    "a key that is no word": ("1: x\n", ["line 1, column 1: ", "a key must be a word"]),
    "an object of Python": ("name: !!python/object/apply:os.getcwd []\n", ["line 1, column 7: ", "python/object"]),
    "empty": ("", ["got nothing", "expected a study"]),
    "binary": (b"\x00\xff\xfe\x01", ["UTF-8"]),
    "another encoding": ("name: x".encode("utf-16"), ["UTF-8"]),
    "list": ("- a\n- b\n", ["got a list", "expected a study"]),
    "no name": ({key: value for key, value in GOOD.items() if key != "name"}, ["name: is missing", "e.g. flowers-resnet50"]),
    "no data": ({key: value for key, value in GOOD.items() if key != "data"}, ["data: is missing", "folder:/path"]),
    "no backbone": ({key: value for key, value in GOOD.items() if key != "backbone"}, ["backbone: is missing", "resnet50"]),
    "no source": (spoilt("data", {"image_size": 32}), ["data.source: is missing", "folder:"]),
    "no factors": ({**GOOD, "factors": {}}, ["factors: is empty", "at least one factor"]),
    "name with a slash": (spoilt("name", "a/b"), ["name: ", "letters, digits"]),
    "name with a space": (spoilt("name", "a b"), ["name: ", "letters, digits"]),
    "name that climbs": (spoilt("name", ".."), ["name: ", "letters, digits"]),
    "name that is too long": (spoilt("name", "a" * 101), ["name: ", "at most 100"]),
    "name that is a number": ("name: 2024\n", ["name: got 2024", "a text"]),
}
MEANING: dict[str, tuple[Content, list[str]]] = {
    "unknown factor": (
        spoilt("factors.learnig_rate.uniform", [0, 1]),
        ["factors.learnig_rate: ", "did you mean learning_rate"],
    ),
    "a synonym": (spoilt("factors.lr.uniform", [0, 1]), ["factors.lr: ", "did you mean learning_rate"]),
    "varied and fixed": (spoilt("fixed.learning_rate", 0.1), ["factors.learning_rate: ", "also under fixed"]),
    "unknown fixed": (spoilt("fixed.batchsize", 4), ["fixed.batchsize: ", "did you mean batch_size"]),
    "fixed out of range": (spoilt("fixed.dropout", 2), ["fixed.dropout: ", "0 to 0.95"]),
    "range out of range": (spoilt("factors.dropout.uniform", [0, 2]), ["factors.dropout.uniform[1]: ", "0 to 0.95"]),
    "unknown choice": (spoilt("factors.optimizer.choice", ["sdg"]), ["choice[0]: ", "did you mean sgd"]),
    "no image of any class": (spoilt("fixed.data_fraction", 0), ["fixed.data_fraction: ", "above 0"]),
    "real range of whole numbers": (spoilt("factors.batch_size.uniform", [8, 64]), ["size.uniform: ", "int: [low, high]"]),
    "range of words": (spoilt("factors.schedule.int", [0, 2]), ["schedule.int: ", "choice: [constant, cosine, step]"]),
    "max of another factor": (spoilt("factors.batch_size.int", [1, "max"]), ["batch_size.int[1]: ", "frozen_depth"]),
    "condition on nothing": (
        spoilt("factors.momentum.when", {"optimiser": "sgd"}),
        ["when.optimiser: ", "did you mean optimizer"],
    ),
    "condition on no level": (spoilt("factors.momentum.when", {"optimizer": "adam"}), ["when.optimizer: ", "sgd, adamw"]),
    "condition on no value": (spoilt("factors.momentum.when", {"optimizer": []}), ["when.optimizer: ", "never be active"]),
    "condition on a range": (spoilt("factors.momentum.when", {"learning_rate": 0.1}), ["when.learning_rate: ", "continuous"]),
    "condition on itself": (spoilt("factors.momentum.when", {"momentum": 0.9}), ["when.momentum: ", "itself"]),
    "condition that never holds": (
        {**GOOD, "factors": {"momentum": GOOD["factors"]["momentum"]}, "fixed": {"optimizer": "adamw"}},
        ["factors.momentum.when.optimizer: ", "never be active"],
    ),
    "conditions in a circle": (
        spoilt("factors", {"dropout": {"choice": [0], "when": {"mixup": 0}}, "mixup": {"choice": [0], "when": {"dropout": 0}}}),
        ["factors.dropout.when: ", "factors.mixup.when: ", "circle"],
    ),
    "metric that nobody reports": (spoilt("objective.metric", "accuracy"), ["objective.metric: ", "did you mean val_accuracy"]),
    "contradicting mode": (spoilt("objective", {"metric": "val_loss", "mode": "max"}), ["objective.mode: ", "expected min"]),
    "frozen beyond the backbone": (spoilt("factors.frozen_depth.int", [0, 40]), ["frozen_depth.int[1]: ", "at most 18"]),
    "fixed beyond the backbone": (spoilt("fixed.reinit_units", 19), ["fixed.reinit_units: ", "at most 18"]),
    "max twice": (spoilt("factors.frozen_depth.choice", [18, "max"]), ["frozen_depth.choice[1]: ", "twice"]),
    "unknown backbone": (spoilt("backbone", "resnet_50"), ["backbone: ", "did you mean 'resnet50'"]),
    "backbone twice": (spoilt("backbone", ["resnet18", "resnet18"]), ["backbone[1]: ", "twice"]),
    "no name of a backbone": (spoilt("backbone", ["resnet18", 5]), ["backbone[1]: ", "a text"]),
    "backbone as a factor": (spoilt("factors.backbone.choice", ["resnet18"]), ["factors.backbone: ", "backbone: [name, name]"]),
    "weights that are not there": (spoilt("backbone", "resnet18@file:/none.safetensors"), ["backbone: ", "/none.safetensors"]),
    "weights of no format": (spoilt("backbone", "resnet18@file:/etc/hostname"), ["backbone: ", ".safetensors, .pth"]),
    "unknown kind of source": (spoilt("data.source", "flder:/x"), ["data.source: ", "did you mean folder:/x"]),
    "path without its kind": (spoilt("data.source", "/"), ["data.source: ", "did you mean folder:/"]),
    "unknown images": (spoilt("data.source", "sklearn:digit"), ["data.source: ", "sklearn:digits"]),
    "missing folder": (spoilt("data.source", "folder:/no/such/folder"), ["data.source: ", "/no/such/folder"]),
    "missing second source": (spoilt("data.validation", "folder:/no/such/folder"), ["data.validation: ", "/no/such/folder"]),
    "validation of nothing": (spoilt("data.validation", 0), ["data.validation: ", "between 0 and 1"]),
    "validation of everything": (spoilt("data.validation", 1.0), ["data.validation: ", "between 0 and 1"]),
    "validation of more than all": (spoilt("data.validation", 1.5), ["data.validation: ", "between 0 and 1"]),
    "nothing left to train on": (
        spoilt("data", {**GOOD["data"], "validation": 0.5, "test": 0.5}),
        ["data: ", "nothing to train on"],
    ),
    "grid of a continuous factor": (spoilt("search.sampler", "grid"), ["factors.learning_rate.log_uniform: ", "listed values"]),
    "point outside": (spoilt("search.points", [{"learning_rate": 9.0}]), ["points[0].learning_rate: ", "0.0001 to 0.1"]),
    "point of nothing": (spoilt("search.points", [{"learnin_rate": 1}]), ["points[0].learnin_rate: ", "learning_rate"]),
    "point of another type": (spoilt("search.points", [{"optimizer": True}]), ["points[0].optimizer: ", "sgd, adamw"]),
    "point beyond the backbone": (
        {**spoilt("factors.frozen_depth.int", [0, "max"]), "search": {"points": [{"frozen_depth": 19}]}},
        ["search.points[0].frozen_depth: ", "at most 18"],
    ),
    "cells of a continuous factor": (spoilt("early_stopping.within", ["learning_rate"]), ["within[0]: ", "continuous"]),
    "cells of nothing": (spoilt("early_stopping.within", ["optimiser"]), ["within[0]: ", "did you mean optimizer"]),
    "grace beyond the budget": (spoilt("early_stopping.grace", 10), ["early_stopping.grace: ", "at most 9"]),
    "password in the address": (spoilt("tracking_uri", "http://u:secret@h:1"), ["tracking_uri: ", "MLFLOW_TRACKING_PASSWORD"]),
    "address of another kind": (spoilt("tracking_uri", "ftp://host"), ["tracking_uri: ", "sqlite:///PATH"]),
    "address of a folder": (spoilt("tracking_uri", "file:///x"), ["tracking_uri: ", "sqlite:///PATH"]),
    "address that is none": (spoilt("tracking_uri", "http://[::1"), ["tracking_uri: ", "HOST:PORT"]),
}
KINDS = {**FORM, **MEANING}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_study_file_is_refused_in_words_and_starts_nothing(
    kind: str, command: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = KINDS[kind]
    assert_refused([command, str(write_study(tmp_path, content))], said, capsys)
    assert not home.exists()


ALL_WRONG = """
name: a/b
data: {source: "folder:/no/such/folder", image_size: 32, validation: "0.2", augmentation: flop}
backbone: [efficientnet_lite0, resnet_50]
objective: {metric: accuracy}
factors:
  lr: {log_uniform: [1e-4, 1e-1]}
  momentum: {uniform: [0.99, 0.8], when: {optimizer: sgd}}
  dropout: {uniform: [0, 2]}
fixed: {batch_size: "64"}
budget: {trails: 4}
search: {sampler: grids}
early_stopping: {graze: 1}
resources: {cpu: 0}
keep_models: -1
tracking_uri: http://user:secret@host
"""


def test_all_problems_are_in_one_message(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [
        "14 problems", "name: got", "data.augmentation: got", "backbone[1]: unknown", "objective.metric: nothing",
        "factors.lr: unknown", "factors.momentum.uniform: ", "factors.dropout.uniform[1]: ", "fixed.batch_size: got",
        "budget.trails: unknown", "search.sampler: got", "early_stopping.graze: unknown", "resources.cpu: got",
        "keep_models: got", "tracking_uri: holds",
    ]  # fmt: skip
    assert_refused(["validate", str(write_study(tmp_path, ALL_WRONG))], said, capsys)
    assert not home.exists()


def test_images_and_depth_are_in_the_same_message_as_the_rest(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {**spoilt("budget.trials", 0), "data": {"source": "folder:/no/such/folder"}, "fixed": {"frozen_depth": 19}, "x": 1}
    said = [
        "4 problems",
        "budget.trials: ",
        "data.source: ",
        "fixed.frozen_depth: got 19, but efficientnet_lite0 has 18",
        "x: ",
    ]
    assert_refused(["validate", str(write_study(tmp_path, bad))], said, capsys)
    assert not home.exists()


def test_a_few_lines_that_stand_for_billions_of_values_are_refused(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    file = write_study(tmp_path, "\n".join([*lines, "name: *a11", "data: *a11", "factors: {dropout: {choice: *a11}}"]))
    assert_refused(["validate", str(file)], ["name: got [[[", "data: got a list", "factors.dropout.choice[0]: "], capsys)
    assert not home.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("budget.trials", "--set: got 'budget.trials'; expected key.path=value"),
        ("budget..trials=3", "expected key.path=value"),
        ("budget.trails=3", "budget.trails: unknown key; did you mean trials?"),
        ("budget.trials=many", "budget.trials: got the text 'many', expected a whole number"),
        ("budget.trials='3'", "write the number without quotes"),
        ("budget.trials=[3", "--set budget.trials, line 1, column 3: "),
        ("factors.learning_rate=", "factors.learning_rate: got nothing"),
    ],
)
def test_a_bad_override_is_refused(
    override: str, words: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(["validate", str(write_study(tmp_path, GOOD)), "--set", override], [words], capsys)
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "no-such-file.yaml"], 2),
        (["run", "."], 2),
        (["nonsense"], 2),
        (["run"], 2),
        (["best", "no-such-study"], 3),
        (["resume", "no-such-study"], 3),
        (["stop", "no-such-study"], 3),
        (["logs", "no-such-study"], 3),
        (["init", "a/b"], 2),
        (["init", "x", "--template", "nonsense"], 3),
        (["trials", "x", "--out", "file.xls"], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(arguments, [], capsys, code=code)
    assert not home.exists()
