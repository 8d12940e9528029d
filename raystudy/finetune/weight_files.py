"""Files of pretrained weights, looked at before anything heavy is imported: what a damaged copy betrays in its first bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from rapidfuzz import fuzz, process
from safetensors import SafetensorError, safe_open

from raystudy.errors import BackboneError, Problem

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")

ACCEPTED_FILES = "accepted are safetensors files, and .pth files that hold a state dict of tensors and nothing else"
_PICKLE_PROTOCOL = b"\x80"
"""The first byte of what torch.save wrote before version 1.6."""


def check_weight_file(path: Path) -> None:
    """Check that `path` is a regular file in a format of weights and not visibly damaged.

    The tensors are only read when the network is there to hold them.

    Raises:
        BackboneError: otherwise, with near misses for a name that is not there.
    """
    problem = _problem_with_place(path)
    if problem is not None:
        raise BackboneError(problem)
    if path.suffix == ".safetensors":
        read_metadata(path)
    else:
        _check_archive(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, after a check of its header against its size.

    Raises:
        BackboneError: the file is damaged or of another format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        what = f"cannot be loaded: it cannot be read as safetensors ({error}), as if copied in part"
        raise BackboneError(Problem(f"backbone file {path}", what, ACCEPTED_FILES)) from error


def quoted(names: Iterable[str]) -> str:
    """Return names in quotes with `or` between them."""
    return " or ".join(map(repr, names))


def _problem_with_place(path: Path) -> Problem | None:
    accepted = f"accepted are existing files that end in {', '.join(WEIGHT_SUFFIXES)}"
    if path.suffix not in WEIGHT_SUFFIXES:
        return Problem(f"backbone file {path}", f"{path.suffix or 'no suffix'!r} is no format of weights", accepted)
    if not path.exists():
        return Problem(f"backbone file {path}", "there is no such file", _near_files(path) or accepted)
    if not path.is_file():
        return Problem(f"backbone file {path}", "is not a regular file", accepted)
    return None


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in WEIGHT_SUFFIXES]
    near = process.extract(path.name, names, scorer=fuzz.ratio, score_cutoff=70, limit=3)
    return f"did you mean {quoted(match for match, *_ in near)}?" if near else ""


def _check_archive(path: Path) -> None:
    """Check that torch.save can have written a file: a zip archive, whose directory is at its end, or a bare pickle."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
        is_archive = zipfile.is_zipfile(path)
    except OSError as error:
        raise BackboneError(Problem(f"backbone file {path}", f"cannot be read ({error.strerror or error})")) from error
    if not is_archive and first != _PICKLE_PROTOCOL:
        what = "cannot be loaded: it is not what torch.save writes, or only a part of it"
        raise BackboneError(Problem(f"backbone file {path}", what, ACCEPTED_FILES))
