"""Validation errors in words: what is wrong, where in the file, what would be accepted."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from rapidfuzz import fuzz, process

from raystudy.errors import Problem

_BRANCH = re.compile(
    r"^(int|float|str|bool|none|(literal|tuple|lax-or-strict)\[.*|(constrained|function|json-or-python|nullable)-.*)$"
)
_SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "opt": "optimizer",
    "freeze": "frozen_depth",
    "frozen": "frozen_depth",
    "model": "backbone",
    "dataset": "data",
    "model_name": "backbone",
    "accuracy": "val_accuracy",
    "loss": "val_loss",
}
"""What people call things elsewhere, where no similarity of spelling would find it."""
_TYPE_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "none_required": "null",
    "invalid_key": "a text",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return what would be accepted instead of `word`: the near miss if there is one, and all of `known`."""
    names = list(known)
    if not names:
        return ""
    if (synonym := _SYNONYMS.get(word.lower())) in names:
        return f"did you mean {synonym}? expected one of {', '.join(names)}"
    match = process.extractOne(word, names, scorer=fuzz.WRatio, score_cutoff=65)
    listed = "expected one of " + ", ".join(names)
    return f"did you mean {match[0]}? {listed}" if match else listed


def join(prefix: str, parts: Sequence[str | int]) -> str:
    """Join a place: `data` + ("a", 0) is `data.a[0]`."""
    text = prefix
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def problems_of(error: ValidationError, prefix: str, model: Any) -> list[Problem]:
    """Translate a pydantic error; the branches of a union that failed at one place become one problem."""
    grouped: dict[str, list[Any]] = {}
    for item in error.errors():
        grouped.setdefault(join(prefix, _real_parts(item["loc"], model)), []).append(item)
    return [
        problem
        for place, items in grouped.items()
        if not _is_moot(place, items, grouped)
        for problem in _faults(place, items) or [_problem(place, items, model)]
    ]


def _real_parts(loc: Sequence[str | int], model: Any) -> list[str | int]:
    """Drop the names of union branches and validators that pydantic mixes into a place."""
    has_keys = get_origin(model) is Mapping or (isinstance(model, type) and issubclass(model, BaseModel))
    return [
        part for index, part in enumerate(loc) if isinstance(part, int) or (index == 0 and has_keys) or not _BRANCH.match(part)
    ]


def _is_moot(place: str, items: list[Any], places: Iterable[str]) -> bool:
    """Whether another branch of the same union fits better: it got as far as one of the value's own elements."""
    is_elsewhere = any(other.startswith((f"{place}.", f"{place}[")) for other in places)
    return is_elsewhere and all(item["type"].endswith("_type") for item in items)


def _faults(place: str, items: list[Any]) -> list[Problem]:
    """Return what a model's own check has found: one fault a line, `@PLACE: TEXT`."""
    lines = [line for item in items if item["type"] == "value_error" for line in str(item["ctx"]["error"]).splitlines()]
    parts = [line.removeprefix("@").partition(": ") for line in lines]
    return [Problem(f"{place}.{inner}" if inner else place, text) for inner, _, text in parts]


def _problem(place: str, items: list[Any], model: Any) -> Problem:
    for item in items:
        if item["type"] == "extra_forbidden":
            fields = _field_names(model)
            return Problem(place, "unknown key", nearest(str(item["loc"][-1]), fields))
        if item["type"] == "missing":
            if isinstance(item["loc"][-1], int):
                return Problem(place.rpartition("[")[0], "has too few values, expected [low, high]")
            return Problem(place, "is missing", _described(model, item["loc"][-1]))
        if item["type"] == "too_long":
            return Problem(
                place, f"has {item['ctx']['actual_length']} values, expected {item['ctx']['max_length']}: [low, high]"
            )
    got = items[0]["input"]
    expected = list(dict.fromkeys(_expected(item) for item in items))
    if "a number" in expected and "a whole number" in expected:
        expected.remove("a whole number")
    return Problem(
        place,
        f"got {shown(got)}, expected {' or '.join(expected)}",
        _hint(got, items),
    )


def _field_names(model: Any) -> list[str]:
    for candidate in (model, *get_args(model)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return [field.alias or name for name, field in candidate.model_fields.items()]
    return []


def _described(model: Any, name: str) -> str:
    field = model.model_fields.get(name) if isinstance(model, type) and issubclass(model, BaseModel) else None
    return f"expected {field.description}" if field is not None and field.description else ""


def shown(value: Any) -> str:
    """Return what was found in words, of bounded length."""
    if value is None:
        return "nothing"
    # reprlib, because aliases let a few lines of YAML stand for a value that fills the memory when written out.
    text = f"the text {value!r}" if isinstance(value, str) else reprlib.repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 120 else text[:117] + "..."


def number_hint(value: object) -> str:
    """Say what to do about a number that was written as a text, a frequent slip in YAML."""
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return "write the number without quotes"


def _hint(got: Any, items: list[Any]) -> str:
    return number_hint(got) if any(item["type"] in ("int_type", "float_type") for item in items) else ""


def _expected(item: Any) -> str:
    kind, ctx = item["type"], item.get("ctx", {})
    if kind == "literal_error":
        return str(ctx["expected"]).replace("'", "").replace(" or ", ", ")
    limits = {
        "greater_than": "above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "below {lt}",
        "less_than_equal": "at most {le}",
    }
    if kind in limits:
        return limits[kind].format(**ctx)
    if kind == "string_pattern_mismatch":
        return "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 100"
    if kind == "string_too_short":
        return "a text that is not empty"
    return _TYPE_WORDS.get(kind, item["msg"])
