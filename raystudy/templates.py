"""The study files that come with raystudy: one per question, each with a header that says what to expect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from pathlib import Path

from raystudy.errors import InputError, NotFoundError, Problem
from raystudy.paths import StudyPaths
from raystudy.spec.messages import nearest
from raystudy.spec.text import dump_yaml


def names() -> dict[str, str]:
    """Return the question of each template by its name."""
    return {file.name.removesuffix(".yaml"): _question(file) for file in _files()}


@contextmanager
def template(name: str) -> Iterator[Path]:
    """Give the path of a template for as long as the context is open."""
    with resources.as_file(_find(name)) as path:
        yield path


def named_copy(template_name: str, study: str, path: Path) -> None:
    """Write the template to `path`, under the name `study`; never overwrites.

    Raises:
        InputError: `path` exists or cannot be written, or `study` cannot be a name.
    """
    StudyPaths.of(study)
    line = dump_yaml({"name": study}).rstrip()  # quoted where YAML would read a number: 2024, 1e5
    text = re.sub(r"^name:.*$", line, _find(template_name).read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(Problem(str(path), "exists already", "choose another place with --out")) from error
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be written: {error.strerror}")) from error


def _files() -> list[Traversable]:
    folder = resources.files("raystudy") / "search_spaces"
    return sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)


def _find(name: str) -> Traversable:
    found = [file for file in _files() if file.name == f"{name}.yaml"]
    if not found:
        raise NotFoundError(f"there is no template {name!r}; {nearest(name, names())}")
    return found[0]


def _question(file: Traversable) -> str:
    """Return the question with which a file's header begins; it may go over several lines."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    header = " ".join(line.lstrip("# ") for line in lines)
    return header.removeprefix("Question:").partition("?")[0].strip() + "?"
