"""What tests of bad input share: a good study to spoil, and what a refusal on the command line has to look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raystudy.cli import _call
from raystudy.spec.text import dump_yaml, with_values

Content = Mapping[str, Any] | str | bytes

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


def spoilt(path: str, value: Any) -> dict[str, Any]:
    """Return the good study with `value` at a key path."""
    changed: dict[str, Any] = with_values(GOOD, {path: value})
    return changed


def write_study(folder: Path, content: Content) -> Path:
    """Write a study file: plain data, text or bytes."""
    path = folder / "study.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else dump_yaml(content), encoding="utf-8")
    return path


def assert_refused(arguments: Sequence[str], said: Sequence[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> None:
    """Call the command line; it has to refuse with `code`, in words on stderr, among them all of `said`."""
    assert _call(arguments, debug=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert "secret" not in err
    for words in said:
        assert words in err


def assert_nothing_started(home: Path) -> None:
    """No study, no tracking store: at most the empty folder for studies."""
    assert [path for path in home.rglob("*") if path != home / "studies"] == []
