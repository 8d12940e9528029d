"""Which columns of a Parquet file hold image and label, and which classes the labels name.

A column is found by Hugging Face's schema metadata, else by its usual name, else by type where only one fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raystudy.errors import DataError, Problem

_IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "photo", "image_bytes", "bytes")
_LABEL_NAMES = ("label", "labels", "class", "target", "category", "y", "cls")


@dataclass(frozen=True, slots=True)
class RequestedColumns:
    """The columns that the user named."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns in use."""

    image: str
    label: str


def choose_columns(place: str, schema: Any, asked: RequestedColumns) -> Columns:
    """Return the image and label columns of `schema`, a `pyarrow.Schema`.

    Raises:
        DataError: a column is not there, has an unusable type, or cannot be told from others; `place` names the file.
    """
    features = _features(schema)
    images = _Choice("image", _IMAGE_NAMES, "Image", _holds_images, "image bytes", asked.image)
    labels = _Choice("label", _LABEL_NAMES, "ClassLabel", _holds_labels, "whole numbers or text", asked.label)
    found = [choice.choose(place, schema, features) for choice in (images, labels)]
    if problems := [column for column in found if isinstance(column, Problem)]:
        raise DataError(problems)
    image, label = map(str, found)
    return Columns(image, label)


def declared_classes(schema: Any, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's metadata gives for the column `label`; empty where it gives none."""
    names = _features(schema).get(label, {}).get("names")
    if not isinstance(names, list) or not pa.types.is_integer(schema.field(label).type):
        return ()
    return tuple(map(str, names))


def classes_of(values: Sequence[Any], declared: tuple[str, ...]) -> tuple[tuple[str, ...], Mapping[Any, int], tuple[str, ...]]:
    """Name the classes of the label column.

    Args:
        values: the labels as stored, None where there is none.
        declared: the names of the labels 0, 1, ..., if they have any.

    Returns:
        Class names, the class's index of every usable value, and warnings. Declared classes without rows are dropped.
    """
    present = {value for value in values if value is not None and value != ""}
    if not declared:
        ordered = sorted(present)
        return tuple(map(str, ordered)), {value: label for label, value in enumerate(ordered)}, ()
    ordered = sorted(value for value in present if 0 <= value < len(declared))
    unused = [name for value, name in enumerate(declared) if value not in present]
    shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
    warning = f"declared classes without an image are left out: {len(unused)} ({shown})"
    label_of = {value: label for label, value in enumerate(ordered)}
    return tuple(declared[value] for value in ordered), label_of, (warning,) if unused else ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """How to choose one column.

    Attributes:
        role: what the column holds, as in the option that names it.
        usual_names: in the order of preference.
        feature: its type in Hugging Face's metadata.
        fits: whether a type can hold it.
        expected: the fitting types, in words.
        asked: the name that the user gave.
    """

    role: str
    usual_names: Sequence[str]
    feature: str
    fits: Callable[[Any], bool]
    expected: str
    asked: str | None

    def choose(self, place: str, schema: Any, features: Mapping[str, Mapping[str, Any]]) -> str | Problem:
        fitting = [field.name for field in schema if self.fits(field.type)]
        all_columns = ", ".join(f"{field.name} ({_type_name(field.type)})" for field in schema)
        if self.asked is not None:
            what = f"the column {self.asked!r} is not there or does not hold {self.expected}"
            return self.asked if self.asked in fitting else Problem(place, what, f"the columns are {all_columns}")
        declared = [name for name in fitting if features.get(name, {}).get("_type") == self.feature]
        usual = [name for name in self.usual_names if name in (declared or fitting)]
        if len(declared) != 1 and usual:
            return usual[0]
        candidates = declared or fitting
        if len(candidates) == 1:
            return candidates[0]
        state = f"could be any of {', '.join(candidates)}" if candidates else f"is missing (it holds {self.expected})"
        accepted = f"name it by #{self.role}=COLUMN behind the path; the columns are {all_columns}"
        return Problem(place, f"the {self.role} column {state}", accepted)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return Hugging Face's description of the columns, as far as it is one."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_labels(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _type_name(kind: Any) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)
