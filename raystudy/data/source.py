"""`SCHEME:LOCATION`: what a source of labelled images is, and the one place that knows all schemes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raystudy.data.pool import Read
from raystudy.errors import DataError, Problem

# What people write after the scheme, as shown in messages.
SCHEMES = {
    "folder": "folder:PATH (one sub-folder per class)",
    "parquet": "parquet:PATH (a file, folder or pattern)",
    "sklearn": "sklearn:digits",
    "idx": "idx:DIR (MNIST files)",
    "torchvision": "torchvision:NAME@ROOT",
}
UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Listing:
    """All images of a source, before any is decoded.

    Attributes:
        class_names: of the labels.
        names: (n,), unique within the source.
        labels: (n,), indices into `class_names`, or `UNLABELLED` where reading the image will give a reason.
        reads: yields n functions, in the order of `names`, each of which reads one image.
        files: what the images are read from, links resolved; two sources that share one are not disjoint.
        warnings: what deserves a look.
    """

    class_names: tuple[str, ...]
    names: Sequence[str]
    labels: NDArray[np.int64]
    reads: Callable[[], Iterator[Read]]
    files: Callable[[], frozenset[str]]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """A first, cheap look at a source.

    Attributes:
        source: as the user wrote it.
        base: what to put before a name to say where an image is.
        identity: changes whenever the content may have changed.
        load: lists the images; raises DataError.
        problems: what is wrong with the source as a whole.
        warnings: what deserves a look.
    """

    source: str
    base: str
    identity: tuple[str, ...]
    load: Callable[[], Listing]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def scan_source(source: str) -> Scan:
    """Take a first look at `source`.

    Raises:
        DataError: unknown scheme, nothing there, or not what the scheme expects.
    """
    scheme, location = split_source(source)
    if scheme == "folder":
        from raystudy.data.folder import scan_folder

        return scan_folder(location)
    if scheme == "parquet":
        from raystudy.data.parquet import scan_parquet

        return scan_parquet(location)
    if scheme == "idx":
        from raystudy.data.idx import scan_idx

        return scan_idx(location)
    if scheme == "sklearn":
        from raystudy.data.digits import scan_sklearn

        return scan_sklearn(location)
    from raystudy.data.torchvision_sets import scan_torchvision

    return scan_torchvision(location)


_LONGEST_SHOWN = 120


def check_source(source: str) -> None:
    """Check that the scheme of `source` is known and its local path exists; decodes nothing, contacts nobody.

    Raises:
        DataError: with what would be accepted.
    """
    try:
        _check(*split_source(source))
    except (OSError, RuntimeError, ValueError) as error:  # longer than a name may be, a user without a home, a NUL byte
        shown = source if len(source) <= _LONGEST_SHOWN else source[:_LONGEST_SHOWN] + "..."
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(Problem(shown, f"cannot be a place of images here ({why[:_LONGEST_SHOWN]})")) from error


def _check(scheme: str, location: str) -> None:
    if scheme == "sklearn":
        from raystudy.data.digits import check_name

        check_name(location)
    elif scheme == "torchvision":
        from raystudy.data.torchvision_sets import parse

        parse(location)
    else:
        _check_path(scheme, location)


def split_source(source: str) -> tuple[str, str]:
    """Return scheme and location.

    Raises:
        DataError: there is no scheme or an unknown one, or nothing behind it.
    """
    scheme, colon, location = source.partition(":")
    accepted = "use one of " + ", ".join(SCHEMES.values())
    if not colon or scheme not in SCHEMES:
        raise DataError(
            Problem(source or "data.source", "the kind of the source is missing or unknown", _guess(source) or accepted)
        )
    if not location.strip():
        raise DataError(Problem(source, f"nothing follows {scheme!r}:", f"use {SCHEMES[scheme]}"))
    return scheme, location


def _check_path(scheme: str, location: str) -> None:
    from raystudy.data.filesystem import is_uri, missing_path

    is_pattern = scheme == "parquet" and any(character in location for character in "*?[")
    if is_uri(location) or is_pattern:
        return
    without_options = location if scheme == "folder" else location.rpartition("#")[0]
    existing = [path for path in (location, without_options) if path and Path(path).expanduser().exists()]
    if not existing:
        raise DataError(missing_path(without_options or location))
    if scheme != "parquet" and not Path(existing[0]).expanduser().is_dir():
        raise DataError(Problem(location, "is a file", f"use {SCHEMES[scheme]}"))


def _guess(source: str) -> str:
    """Return the probable intention behind a source without a known scheme, or nothing."""
    from rapidfuzz import process

    if source and Path(source).expanduser().is_dir():
        return f"did you mean folder:{source}?"
    if Path(source).expanduser().is_file() and source.endswith(".parquet"):
        return f"did you mean parquet:{source}?"
    scheme, colon, location = source.partition(":")
    if not colon:
        return ""
    match = process.extractOne(scheme, list(SCHEMES), score_cutoff=70)
    return f"did you mean {match[0]}:{location or SCHEMES[match[0]].partition(':')[2]}?" if match else ""
