"""Study files as text: YAML that reads numbers as people mean them, and `--set` overrides."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raystudy.errors import Problem, SpecError

MAX_BYTES = 1_000_000
_LINE_BREAKS = "\x85\u2028\u2029"


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: `1e-3` is a number, `off` and `no` are words; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"a key must be a word, got {reprlib.repr(key)}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(str(node.value).replace("_", ""))  # SafeLoader reads 010 as octal and fails at 08


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader`, or a reader of YAML 1.1, would take for something else."""


def _without(resolvers: Mapping[str, list[Any]], *tags: str) -> dict[str, list[Any]]:
    return {letter: [(tag, rule) for tag, rule in rules if tag not in tags] for letter, rules in resolvers.items()}


_BOOL, _FLOAT, _INT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp"))
_Loader.yaml_implicit_resolvers = _without(yaml.SafeLoader.yaml_implicit_resolvers, _BOOL, _FLOAT, _INT, _TIME)
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_INT, _Loader.construct_decimal)
_Dumper.yaml_implicit_resolvers = {
    letter: [
        *_Loader.yaml_implicit_resolvers.get(letter, []),
        *yaml.SafeDumper.yaml_implicit_resolvers.get(letter, []),
    ]
    for letter in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML; `parse_yaml` of it gives equal data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if any(character in text for character in _LINE_BREAKS):
        # Written as they are, these would be read as ends of lines; escaped, they are what they were.
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    return text


def parse_yaml(text: str, *, where: str) -> Any:
    """Return the plain data of a YAML text; raise SpecError with line and column if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise SpecError(Problem(place, str(error.problem or error.context or error))) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(Problem(where, f"is not a YAML file ({' '.join(str(error).split())[:200]})")) from error


def read_study_file(path: Path) -> Any:
    """Return the plain data of the study file at `path`, `-` for standard input; raise SpecError if it cannot be read."""
    if path == Path("-"):
        return parse_yaml(_standard_input(), where="standard input")
    where = str(path)
    try:
        if path.is_dir():
            raise SpecError(Problem(where, "is a folder, expected a study file (YAML)"))
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(Problem(where, f"is larger than {MAX_BYTES:,} bytes: not a study file"))
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpecError(Problem(where, "no such file", "`raystudy init NAME` writes a study file")) from error
    except UnicodeDecodeError as error:
        raise SpecError(Problem(where, "is not text in UTF-8, expected a study file (YAML)")) from error
    except OSError as error:
        raise SpecError(Problem(where, f"cannot be read: {error.strerror}")) from error
    return parse_yaml(text, where=where)


def _standard_input() -> str:
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SpecError(Problem("standard input", f"is larger than {MAX_BYTES:,} bytes: not a study file"))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SpecError(Problem("standard input", "is not text in UTF-8, expected a study file (YAML)")) from error


def apply_overrides(data: Any, overrides: Sequence[str]) -> Any:
    """Return `data` with each `key.path=value` set; values are read as YAML. Raise SpecError for malformed ones."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            problems.append(Problem("--set", f"got {override!r}", "expected key.path=value, e.g. budget.trials=8"))
            continue
        try:
            values[path] = parse_yaml(text, where=f"--set {path}")
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return with_values(data, values)


def with_values(data: Any, values: Mapping[str, Any]) -> Any:
    """Return `data` with each value set at its key path, `budget.trials` for instance."""
    for path, value in values.items():
        data = _with_value(data, path.split("."), value)
    return data


def _with_value(data: Any, keys: Sequence[str], value: Any) -> Any:
    if not keys:
        return value
    base = dict(data) if isinstance(data, Mapping) else {}
    base[keys[0]] = _with_value(base.get(keys[0]), keys[1:], value)
    return base
