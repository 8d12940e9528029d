"""Bad study files and folders through the real command line: exit code 2, place and fix named, nothing started."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raystudy.cli import _call
from raystudy.spec.text import dump_yaml

GOOD: dict[str, Any] = {
    "name": "good",
    "data": {"source": "sklearn:digits", "image_size": 32},
    "backbone": "efficientnet_lite0",
    "factors": {
        "learning_rate": {"log_uniform": [1e-4, 1e-1]},
        "optimizer": {"choice": ["sgd", "adamw"]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    },
    "budget": {"trials": 4, "epochs": 9},
}


def _with(path: str, value: Any) -> dict[str, Any]:
    """Return the good study with `value` at a key path."""

    def change(data: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
        inner = value if len(keys) == 1 else change(data.get(keys[0], {}), keys[1:])
        return {**data, keys[0]: inner}

    return change(GOOD, path.split("."))


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


# what is wrong -> (the study file, what stderr says: the place and the fix)
FILES: dict[str, tuple[dict[str, Any] | str | bytes, list[str]]] = {
    "unknown key": ({**GOOD, "bugdet": {}}, ["bugdet", "did you mean budget"]),
    "unknown key in a section": (_with("data.imagesize", 3), ["data.imagesize", "did you mean image_size"]),
    "unknown key in a factor": (_with("factors.learning_rate.log", [1, 2]), ["factors.learning_rate.log", "log_uniform"]),
    "wrong type": (_with("budget.trials", "many"), ["budget.trials", "a whole number"]),
    "fraction of a trial": (_with("budget.trials", 2.5), ["budget.trials", "a whole number"]),
    "number in quotes": (_with("factors.learning_rate.log_uniform", ["1e-3", 0.1]), ["log_uniform[0]", "without quotes"]),
    "reversed range": (_with("factors.learning_rate.log_uniform", [0.1, 0.001]), ["log_uniform", "empty range"]),
    "one end only": (_with("factors.learning_rate.log_uniform", [0.1]), ["log_uniform", "[low, high]"]),
    "three ends": (_with("factors.learning_rate.log_uniform", [1, 2, 3]), ["log_uniform", "[low, high]"]),
    "logarithm of zero": (_with("factors.weight_decay.log_uniform", [0, 0.1]), ["log_uniform[0]", "above 0"]),
    "not a number": ("name: x\nfactors: {mixup: {uniform: [0, .nan]}}", ["factors.mixup.uniform[1]", "finite"]),
    "two forms": (_with("factors.dropout", {"uniform": [0, 0.1], "choice": [0]}), ["factors.dropout", "exactly one of"]),
    "no form": (_with("factors.dropout", {"role": "nuisance"}), ["factors.dropout", "exactly one of"]),
    "a value for a factor": (_with("factors.dropout", 0.1), ["factors.dropout", "under fixed"]),
    "key twice": ("name: a\nname: b\n", ["line 2", "given twice"]),
    "not YAML": ("name: [\n", ["line"]),
    "empty": ("", ["expected a study"]),
    "binary": (b"\x00\xff\xfe\x01", ["UTF-8"]),
    "list": ("- a\n- b\n", ["a list", "expected a study"]),
    "no name": (_without("name"), ["name", "is missing"]),
    "no data": (_without("data"), ["data", "is missing"]),
    "no backbone": (_without("backbone"), ["backbone", "is missing"]),
    "no factors": ({**GOOD, "factors": {}}, ["factors", "is empty"]),
    "unknown factor": (
        _with("factors.learnig_rate", {"uniform": [0, 1]}),
        ["factors.learnig_rate", "did you mean learning_rate"],
    ),
    "a synonym": (_with("factors.lr", {"uniform": [0, 1]}), ["factors.lr", "did you mean learning_rate"]),
    "varied and fixed": (_with("fixed", {"learning_rate": 0.1}), ["factors.learning_rate", "also under fixed"]),
    "unknown fixed": (_with("fixed", {"batchsize": 4}), ["fixed.batchsize", "did you mean batch_size"]),
    "fixed out of range": (_with("fixed", {"dropout": 2}), ["fixed.dropout", "0.95"]),
    "condition on nothing": (
        _with("factors.momentum.when", {"optimiser": "sgd"}),
        ["when.optimiser", "did you mean optimizer"],
    ),
    "condition on a level that is not": (
        _with("factors.momentum.when", {"optimizer": "adam"}),
        ["when.optimizer", "sgd, adamw"],
    ),
    "condition on a continuous factor": (
        _with("factors.momentum.when", {"learning_rate": 0.1}),
        ["when.learning_rate", "continuous"],
    ),
    "empty choice": (_with("factors.optimizer.choice", []), ["choice", "at least one"]),
    "choice twice": (_with("factors.optimizer.choice", ["sgd", "sgd"]), ["choice[1]", "twice"]),
    "unknown choice": (_with("factors.optimizer.choice", ["sdg"]), ["choice[0]", "sgd"]),
    "metric that nobody reports": (_with("objective", {"metric": "accuracy"}), ["objective.metric", "val_accuracy"]),
    "contradicting mode": (_with("objective", {"metric": "val_loss", "mode": "max"}), ["objective.mode", "expected min"]),
    "frozen beyond the backbone": (_with("factors.frozen_depth", {"int": [0, 40]}), ["int[1]", "at most 18"]),
    "max of another factor": (_with("factors.batch_size", {"int": [1, "max"]}), ["int[1]", "frozen_depth"]),
    "unknown backbone": (_with("backbone", "resnet_50"), ["backbone", "resnet50"]),
    "weights that are not there": (_with("backbone", "resnet18@file:/none.safetensors"), ["backbone", "/none.safetensors"]),
    "unknown kind of source": (_with("data.source", "flder:/x"), ["data.source", "folder:"]),
    "missing folder": (_with("data.source", "folder:/no/such/folder"), ["data.source", "/no/such/folder"]),
    "validation of everything": (_with("data.validation", 1.0), ["data.validation", "between 0 and 1"]),
    "nothing left to train on": (
        _with("data", {**GOOD["data"], "validation": 0.5, "test": 0.5}),
        ["data", "nothing to train on"],
    ),
    "grid of a continuous factor": (_with("search", {"sampler": "grid"}), ["factors.learning_rate", "listed values"]),
    "point outside": (
        _with("search", {"points": [{"learning_rate": 9.0}]}),
        ["search.points[0].learning_rate", "0.0001 to 0.1"],
    ),
    "cells of a continuous factor": (_with("early_stopping", {"within": ["learning_rate"]}), ["within[0]", "continuous"]),
    "grace beyond the budget": (_with("early_stopping", {"grace": 10}), ["early_stopping.grace", "at most 9"]),
    "name with a slash": (_with("name", "a/b"), ["name", "letters, digits"]),
    "name that climbs": (_with("name", "../x"), ["name", "letters, digits"]),
    "password in the address": (_with("tracking_uri", "http://u:secret@h:1"), ["tracking_uri", "MLFLOW_TRACKING_PASSWORD"]),
    "address of another kind": (_with("tracking_uri", "file:///x"), ["tracking_uri", "sqlite:///"]),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("RAYSTUDY_HOME", str(folder))
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def _study_file(folder: Path, content: dict[str, Any] | str | bytes) -> Path:
    path = folder / "study.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else dump_yaml(content))
    return path


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("kind", FILES)
def test_a_bad_study_file_is_refused_in_words_and_starts_nothing(
    kind: str, command: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = FILES[kind]
    assert _call([command, str(_study_file(tmp_path, content))], debug=False) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "secret" not in err
    for words in said:
        assert words in err
    assert not home.exists()


def _jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (200, 30, hash(path.name) % 255)).save(path)


def _good_folder(folder: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(6):
            _jpeg(folder / label / f"{number}.jpg")


def _bomb(path: Path) -> None:
    """Write a PNG that says it has 600 megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 20000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _empty(folder: Path) -> None:
    for label in ("cat", "dog"):
        shutil.rmtree(folder / label)


# what is wrong -> (what to do to a good folder, what stderr says)
FOLDERS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "zero bytes": (lambda f: (f / "cat/0.jpg").write_bytes(b""), ["cat/0.jpg", "empty"]),
    "truncated": (lambda f: _truncate(f / "cat/1.jpg"), ["cat/1.jpg"]),
    "text": (lambda f: (f / "dog/2.jpg").write_text("hello"), ["dog/2.jpg"]),
    "bomb": (lambda f: _bomb(f / "dog/bomb.png"), ["dog/bomb.png", "megapixel"]),
    "one class": (lambda f: shutil.rmtree(f / "dog"), ["class"]),
    "empty class": (lambda f: (f / "bird").mkdir(), ["bird"]),
    "class with one image": (lambda f: _jpeg(f / "bird/only.jpg"), ["bird", "1 "]),
    "images without class": (lambda f: _jpeg(f / "loose.jpg"), ["loose.jpg"]),
    "no images": (_empty, ["class"]),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_bad_folder_of_images_is_refused_in_words_and_starts_nothing(
    kind: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = FOLDERS[kind]
    _good_folder(tmp_path / "images")
    spoil(tmp_path / "images")
    file = _study_file(tmp_path, _with("data", {"source": f"folder:{tmp_path / 'images'}", "image_size": 32}))
    assert _call(["run", str(file), "--inline"], debug=False) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for words in said:
        assert words in err
    assert not (home / "studies").exists() or not list((home / "studies").iterdir())
    assert not (home / "mlflow.db").exists()


def test_all_problems_are_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {**_with("budget.trials", 0), "data": {"source": "nowhere:x"}, "backbone": "resnet_50", "keep_models": -1, "x": 1}
    assert _call(["validate", str(_study_file(tmp_path, bad))], debug=False) == 2
    err = capsys.readouterr().err
    for place in ("budget.trials", "data.source", "backbone", "keep_models", "x: unknown key"):
        assert place in err


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
    assert _call(arguments, debug=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err
    assert not home.exists()


def test_an_override_that_is_malformed_is_refused(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(_study_file(tmp_path, GOOD))
    for override, words in {"budget.trials": "key.path=value", "budget.trails=3": "did you mean trials"}.items():
        assert _call(["validate", file, "--set", override], debug=False) == 2
        assert words in capsys.readouterr().err
    assert not home.exists()


def test_the_real_command_says_it_on_stderr_without_a_traceback(tmp_path: Path, home: Path) -> None:
    file = _study_file(tmp_path, _with("backbone", "resnet_50"))
    done = subprocess.run([sys.executable, "-m", "raystudy", "run", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "resnet50" in done.stderr
    assert "Traceback" not in done.stderr
    assert not home.exists()


@pytest.mark.parametrize("code", ["import raystudy", "from raystudy.cli import main"])
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    check = f"import sys; {code}; print([name for name in ('torch', 'ray', 'mlflow', 'optuna') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
