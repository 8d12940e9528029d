"""The file that `ray up` takes, as far as raystudy reads it: what is still to be filled in, and how to reach the head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raystudy.errors import InputError, Problem

PLACEHOLDER = "SET-ME"
"""Stands in the shipped cluster files, alone or as `SET-ME-what`, wherever only the user knows the value."""

# Not a command that looks for placeholders, as in `grep SET-ME file`.
_OPEN = re.compile(rf"{PLACEHOLDER}(?:-[\w-]+|(?=[\s'\"]*$))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """A cluster file.

    Attributes:
        path: where it is.
        content: what it says.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def provider(self) -> Mapping[str, Any]:
        """Return its section `provider`."""
        return _section(self.content, "provider")

    @property
    def auth(self) -> Mapping[str, Any]:
        """Return its section `auth`."""
        return _section(self.content, "auth")


def read_cluster_file(path: Path) -> ClusterFile:
    """Read the file of a cluster that `ray up` started.

    Raises:
        InputError: it cannot be read, or is not such a file.
    """
    text, _ = _parsed(path)
    content = next(yaml.safe_load_all(text), None)
    if not isinstance(content, dict) or not isinstance(content.get("provider"), dict):
        raise InputError(Problem(str(path), "has no section `provider`", "expected the file that `ray up` takes"))
    return ClusterFile(path, content)


def check_filled_in(path: Path) -> None:
    """Make sure that every value of a cluster file is filled in; a Kubernetes manifest will do too.

    Raises:
        InputError: each value that still is a placeholder, with its line; or the file cannot be read.
    """
    text, documents = _parsed(path)
    problems = [problem for root in documents for problem in _placeholders(root, text.splitlines(), "", set())]
    if problems:
        raise InputError(problems, title=str(path))


def _parsed(path: Path) -> tuple[str, list[yaml.Node]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(Problem(str(path), f"cannot be read: {reason}", "expected the cluster's YAML file")) from error
    except yaml.YAMLError as error:
        raise InputError(Problem(str(path), f"is not YAML: {' '.join(str(error).split())}")) from error


def _placeholders(node: yaml.Node, lines: list[str], where: str, seen: set[int]) -> Iterator[Problem]:
    """Yield a problem for each line of a value that holds a placeholder; comments, and aliases of a value, do not count."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _placeholders(value, lines, f"{where}.{key.value}" if where else str(key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _placeholders(item, lines, f"{where}[{index}]", seen)
    elif isinstance(node, yaml.ScalarNode) and (found := _OPEN.findall(node.value)):
        for number, values in _lines_of(node, found, lines):
            yield Problem(f"line {number + 1}", f"{where} is still {', '.join(values)}")


def _lines_of(node: yaml.ScalarNode, found: list[str], lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a value that are to be changed: a command spans many, and begins above them."""
    first, last = node.start_mark.line, node.end_mark.line - (node.end_mark.column == 0)
    if first >= last:
        yield first, found
        return
    for number in range(first, last + 1):
        if values := _OPEN.findall(lines[number].partition(" #")[0]):
            yield number, values


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}
