"""The JSON Schema of study files, so that editors complete and check them."""

from __future__ import annotations

from typing import Any

from raystudy.factors import FACTORS, PROBE_DEPTH, FactorInfo
from raystudy.spec.sections import METRICS
from raystudy.spec.study import StudySpec


def json_schema() -> dict[str, Any]:
    """Return the schema: the models' own, with the catalogue's factor names, descriptions and value ranges filled in."""
    schema = StudySpec.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    properties = schema["properties"]
    factor = properties["factors"]["additionalProperties"]
    properties["factors"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {name: {**factor, "description": info.doc} for name, info in FACTORS.items() if name != "backbone"},
    }
    properties["fixed"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _value_schema(info) for name, info in FACTORS.items() if name != "backbone"},
    }
    schema["$defs"]["ObjectiveSection"]["properties"]["metric"]["enum"] = list(METRICS)
    stopping = properties["early_stopping"]
    properties["early_stopping"] = {"anyOf": [stopping, {"const": "none"}, {"type": "null"}]}
    schema["$defs"]["EarlyStoppingSection"]["properties"]["keep"] = {
        "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "none"}],
        "default": 0.05,
    }
    return schema


def _value_schema(info: FactorInfo) -> dict[str, Any]:
    about: dict[str, Any] = {"description": info.doc, "default": info.default}
    if info.kind == "bool":
        return {**about, "type": "boolean"}
    if info.choices:
        return {**about, "enum": list(info.choices)}
    low = {"exclusiveMinimum" if info.positive else "minimum": info.low} if info.low is not None else {}
    high = {"maximum": info.high} if info.high is not None else {}
    number: dict[str, Any] = {"type": "integer" if info.kind == "int" else "number", **low, **high}
    word = PROBE_DEPTH if info.name == "frozen_depth" else info.off
    if word is not None:
        return {**about, "anyOf": [number, {"const": word}]}
    return {**about, **number}
