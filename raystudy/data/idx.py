"""`idx:DIR`: the files of MNIST and its relatives, gzipped or not.

`DIR#t10k` selects the test pair; without it the training pair is read, or the test pair where there is no other.
The format: two zero bytes, the type of the samples (8 = uint8), the number of dimensions, each dimension as a
big-endian 32-bit number, then the samples.
"""

from __future__ import annotations

import functools
import gzip
import io
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from raystudy.data.digits import array_listing
from raystudy.data.filesystem import Kind, Location, Node, locate_existing
from raystudy.data.source import Listing, Scan
from raystudy.errors import DataError, Problem

_FILE = re.compile(r"(?P<pair>.*(?P<part>train|t10k|test))-(?P<role>images|labels)[-.]idx[13]-ubyte(?P<gz>\.gz)?")
_UINT8 = 8
_EXPECTED = "expected are train-images-idx3-ubyte and train-labels-idx1-ubyte, each with or without .gz"


@dataclass(frozen=True, slots=True)
class _Pair:
    images: Node
    labels: Node


def scan_idx(text: str) -> Scan:
    """Find the pair of files.

    Raises:
        DataError: it is not there, or there are several.
    """
    path, part = _parse_location(text)
    location, node = locate_existing(path)
    if node.kind is not Kind.FOLDER:
        raise DataError(Problem(path, "is a file", "give the folder that holds the IDX files"))
    pair = _choose_pair(path, _find_pairs(location), part)
    files = (pair.images, pair.labels)
    return Scan(
        source=f"idx:{text}",
        base=f"{pair.images.path}, image ",
        identity=(location.identity, *(f"{node.name}\0{node.size}\0{node.mtime_ns}" for node in files)),
        load=functools.partial(_load, location, pair),
    )


def _parse_location(text: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(?P<path>.+)#(?P<part>[\w-]+)", text)
    if match is None or Path(text).is_dir():
        return text, None
    return match["path"], match["part"]


def _find_pairs(location: Location) -> dict[str, _Pair]:
    """Return the complete pairs of the folder by name, `train` for example; a plain file goes before a gzipped one."""
    try:
        nodes = location.children()
    except OSError as error:
        raise DataError(Problem(location.text, f"the folder cannot be read ({error.strerror or error})")) from error
    found: dict[tuple[str, str], Node] = {}
    for node in nodes:
        if node.kind is Kind.FILE and (match := _FILE.fullmatch(node.name)):
            found.setdefault((match["pair"], match["role"]), node)
    pairs = sorted({pair for pair, _ in found})
    return {
        pair: _Pair(found[pair, "images"], found[pair, "labels"])
        for pair in pairs
        if (pair, "images") in found and (pair, "labels") in found
    }


def _choose_pair(path: str, pairs: dict[str, _Pair], part: str | None) -> _Pair:
    wanted = (part,) if part else ("train", "t10k", "test")
    for ending in wanted:
        matching = [name for name in pairs if name == ending or name.endswith(f"-{ending}")]
        if len(matching) > 1:
            what = f"there are several pairs of files ({', '.join(matching)})"
            raise DataError(Problem(path, what, f"select one, e.g. idx:{path}#{matching[0]}"))
        if matching:
            return pairs[matching[0]]
    available = f"there are {', '.join(pairs)}" if pairs else _EXPECTED
    raise DataError(Problem(path, f"there is no pair of {part or 'train'} images and labels", available))


def _load(location: Location, pair: _Pair) -> Listing:
    images = _read(location, pair.images, dimensions=3)
    labels = _read(location, pair.labels, dimensions=1)
    if len(images) != len(labels):
        what = f"holds {len(images)} images, but {pair.labels.name} holds {len(labels)} labels"
        raise DataError(Problem(pair.images.path, what))
    return array_listing(images, labels, file=location.real_path(pair.images.path))


def _read(location: Location, node: Node, *, dimensions: int) -> NDArray[np.uint8]:
    try:
        content: BinaryIO = io.BytesIO(location.read(node.path))
        return _parse(gzip.GzipFile(fileobj=content) if node.name.endswith(".gz") else content, dimensions)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(Problem(node.path, f"cannot be read as an IDX file ({error})")) from error


def _parse(file: BinaryIO | gzip.GzipFile, dimensions: int) -> NDArray[np.uint8]:
    magic = file.read(4)
    if magic != bytes([0, 0, _UINT8, dimensions]):
        expected = bytes([0, 0, _UINT8, dimensions]).hex()
        raise ValueError(f"it begins with {magic.hex() or 'nothing'} instead of {expected}")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError("its header is cut off")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    samples = file.read(math.prod(shape))
    if len(samples) < math.prod(shape):
        raise ValueError(f"truncated: {len(samples)} of {math.prod(shape)} samples")
    return np.frombuffer(samples, np.uint8).reshape(shape)
