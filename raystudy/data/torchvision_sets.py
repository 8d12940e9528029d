"""`torchvision:NAME@ROOT#SPLIT`: torchvision's data sets, from files that are already there.

Nothing is downloaded unless the environment variable RAYSTUDY_ALLOW_DOWNLOAD is 1. Without `@ROOT`, files are expected in
the user's cache folder; without `#SPLIT`, the training split is read. torchvision checks the MD5 sums of the archives
that hold Python pickles (CIFAR) before it opens them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from PIL import Image

from raystudy.data.pool import Read
from raystudy.data.source import Listing, Scan
from raystudy.errors import DataError, Problem

ALLOW_DOWNLOAD = "RAYSTUDY_ALLOW_DOWNLOAD"

_Splits = Mapping[str, Mapping[str, Any]]
_TRAIN_FLAG: _Splits = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: _Splits = {"all": {}}


def _named(*splits: str) -> _Splits:
    return {split: {"split": split} for split in splits}


# The splits of each set (the first is the default) as arguments of its constructor.
_SETS: Mapping[str, _Splits] = {
    "CIFAR10": _TRAIN_FLAG,
    "CIFAR100": _TRAIN_FLAG,
    "MNIST": _TRAIN_FLAG,
    "FashionMNIST": _TRAIN_FLAG,
    "KMNIST": _TRAIN_FLAG,
    "USPS": _TRAIN_FLAG,
    "STL10": _named("train", "test"),
    "SVHN": _named("train", "test", "extra"),
    "GTSRB": _named("train", "test"),
    "Flowers102": _named("train", "val", "test"),
    "OxfordIIITPet": _named("trainval", "test"),
    "Food101": _named("train", "test"),
    "DTD": _named("train", "val", "test"),
    "FGVCAircraft": _named("trainval", "train", "val", "test"),
    "StanfordCars": _named("train", "test"),
    "Country211": _named("train", "valid", "test"),
    "RenderedSST2": _named("train", "val", "test"),
    "Imagenette": _named("train", "val"),
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "EuroSAT": _WHOLE,
    "SUN397": _WHOLE,
}


@dataclass(frozen=True, slots=True)
class _Request:
    name: str
    root: Path
    split: str

    def __str__(self) -> str:
        return f"torchvision:{self.name}@{self.root}#{self.split}"


def parse(text: str, *, is_here: bool = True) -> _Request:
    """Read `NAME@ROOT#SPLIT`.

    Args:
        text: what follows `torchvision:`.
        is_here: whether this machine will read it, so that its folder can be looked for.

    Raises:
        DataError: unknown set or split, or no such folder while downloads are not allowed.
    """
    rest, _, split = text.partition("#")
    name, _, root_text = rest.partition("@")
    if name not in _SETS:
        raise DataError(Problem(f"torchvision:{text}", f"there is no data set {name!r}", _suggest(name)))
    root = Path(root_text).expanduser() if root_text else platformdirs.user_cache_path("raystudy") / "torchvision"
    request = _Request(name, root.absolute(), split or next(iter(_SETS[name])))
    if request.split not in _SETS[name]:
        what = f"{name} has no split {split!r}"
        raise DataError(Problem(f"torchvision:{text}", what, f"it has {', '.join(_SETS[name])}"))
    if is_here and not root.is_dir() and not _may_download():
        raise _not_there(request)
    return request


def scan_torchvision(text: str) -> Scan:
    """Identify the set by the files below its root.

    Raises:
        DataError: see `parse`.
    """
    request = parse(text)
    if _may_download():
        _open(request)  # so that the files to identify it by are there
    return Scan(
        source=str(request),
        base=f"{request}, image ",
        identity=(str(request), version("torchvision"), *_files_below(request.root)),
        load=functools.partial(_load, request),
    )


def _load(request: _Request) -> Listing:
    dataset = _open(request)
    targets = np.asarray(_targets(dataset)).reshape(-1)
    values, labels = np.unique(targets, return_inverse=True)
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)

    def reads() -> Iterator[Read]:
        return (functools.partial(_read, dataset, row) for row in range(len(dataset)))

    return Listing(
        class_names=tuple(str(names[value] if names else value) for value in values),
        names=[str(row) for row in range(len(dataset))],
        labels=labels.astype(np.int64),
        reads=reads,
        files=lambda: frozenset({str(request)}),
    )


def _open(request: _Request) -> Any:
    from torchvision import datasets

    constructor = getattr(datasets, request.name)
    arguments: dict[str, Any] = dict(_SETS[request.name][request.split])
    if _may_download():
        arguments["download"] = True
    try:
        return constructor(root=str(request.root), **arguments)
    except (RuntimeError, OSError) as error:
        raise _not_there(request, str(error).partition("\n")[0]) from error


def _targets(dataset: Any) -> Any:
    """Return the labels; torchvision has no common name for them, and without one every image is read for its label."""
    for name in ("targets", "_labels", "labels", "y"):
        if (targets := getattr(dataset, name, None)) is not None:
            return targets
    if samples := (getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)):
        return [label for _, label in samples]
    return [dataset[row][1] for row in range(len(dataset))]


def _read(dataset: Any, row: int) -> Image.Image:
    image: Image.Image = dataset[row][0]
    return image


def _files_below(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            info = path.stat()
            yield f"{path.relative_to(root)}\0{info.st_size}\0{info.st_mtime_ns}"


def _may_download() -> bool:
    return os.environ.get(ALLOW_DOWNLOAD) == "1"


def _not_there(request: _Request, detail: str = "") -> DataError:
    what = f"{request.name} is not there" + (f" ({detail})" if detail else "")
    accepted = (
        f"put its files below {request.root}, name their folder by torchvision:{request.name}@ROOT, "
        f"or set {ALLOW_DOWNLOAD}=1 to have it downloaded"
    )
    return DataError(Problem(str(request), what, accepted))


def _suggest(name: str) -> str:
    from rapidfuzz import process, utils

    match = process.extractOne(name, list(_SETS), processor=utils.default_process, score_cutoff=70)
    return f"did you mean {match[0]}?" if match else f"use one of {', '.join(_SETS)}"
