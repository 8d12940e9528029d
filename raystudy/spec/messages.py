"""Validation errors in words: what is wrong, where in the file, what would be accepted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from rapidfuzz import fuzz, process

from raystudy.errors import Problem

_PLACE = re.compile(r"^Value error, (?:@(?P<place>[^:]+): )?(?P<text>.*)$", re.DOTALL)
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
}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return what would be accepted instead of `word`: the near miss if there is one, and all of `known`."""
    names = list(known)
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
        grouped.setdefault(join(prefix, _real_parts(item["loc"])), []).append(item)
    return [_problem(place, items, model) for place, items in grouped.items()]


def _real_parts(loc: Sequence[str | int]) -> list[str | int]:
    """Drop the names of union branches and validators that pydantic mixes into a place."""
    noise = re.compile(
        r"^(int|float|str|bool|none|lax-or-strict\[|tuple\[|literal\[|constrained|function-|is-instance|json-or-python|nullable)"
    )
    known = {"int"}  # a form of a factor
    return [
        part
        for index, part in enumerate(loc)
        if isinstance(part, int) or (index == 0 and part in known) or not noise.match(part)
    ]


def _problem(place: str, items: list[Any], model: Any) -> Problem:
    for item in items:
        if item["type"] == "extra_forbidden":
            fields = _field_names(model)
            return Problem(place, "unknown key", nearest(str(item["loc"][-1]), fields))
        if item["type"] == "value_error":
            match = _PLACE.match(item["msg"])
            text = match["text"] if match else item["msg"]
            return Problem(f"{place}.{match['place']}" if match and match["place"] else place, text)
        if item["type"] == "missing":
            if isinstance(item["loc"][-1], int):
                return Problem(place.rpartition("[")[0], "has too few values, expected [low, high]")
            return Problem(place, "is missing")
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
        f"got {_shown(got)}, expected {' or '.join(expected)}",
        _hint(got, items),
    )


def _field_names(model: Any) -> list[str]:
    for candidate in (model, *get_args(model)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return [field.alias or name for name, field in candidate.model_fields.items()]
    return []


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = f"the text {value!r}" if isinstance(value, str) else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 120 else text[:117] + "..."


def _hint(got: Any, items: list[Any]) -> str:
    """Say what to do about a number that was written as a text, a frequent slip in YAML."""
    if not isinstance(got, str) or not any(item["type"] in ("int_type", "float_type") for item in items):
        return ""
    try:
        float(got)
    except ValueError:
        return ""
    return "write the number without quotes"


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
