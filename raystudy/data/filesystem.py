"""Where images lie: a local path or a URI (s3://, gs://, ...), read through `pyarrow.fs` either way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raystudy.errors import DataError, Problem


class Kind(Enum):
    """What a path leads to, links followed."""

    FILE = "file"
    FOLDER = "folder"
    BROKEN_LINK = "broken link"
    SPECIAL = "special"  # a pipe, socket or device: opening one may never return
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Node:
    """A file or folder.

    Attributes:
        name: its last path component; bytes that are not UTF-8 appear escaped.
        path: what its filesystem opens.
        kind: what it is.
        size: in bytes; 0 for what is not a file.
        mtime_ns: the time of its last change, in nanoseconds.
    """

    name: str
    path: str
    kind: Kind
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Location:
    """A path on a filesystem.

    Attributes:
        filesystem: a `pyarrow.fs.FileSystem`.
        path: absolute, as the filesystem wants it.
        text: as the user wrote it.
    """

    filesystem: Any
    path: str
    text: str

    @property
    def is_local(self) -> bool:
        """Whether the path is on this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def identity(self) -> str:
        """The same for every way to write this location."""
        return f"{self.filesystem.type_name}:{self.real_path(self.path)}"

    def node(self) -> Node:
        """Look at the location itself."""
        return _node_of(self.filesystem.get_file_info(self.path))

    def at(self, path: str) -> Location:
        """Return another path of the same filesystem."""
        return Location(self.filesystem, path, path)

    def children(self) -> list[Node]:
        """List the folder, sorted by name.

        Raises:
            OSError: the folder cannot be read.
        """
        # Arrow's listing of a local folder leaves out broken links and fails at names that are not UTF-8.
        nodes = _scan_local(self.path) if self.is_local else map(_node_of, self._remote_children())
        return sorted(nodes, key=lambda node: node.name)

    def real_path(self, path: str) -> str:
        """Return `path` with links resolved; object stores have none."""
        return os.path.realpath(path) if self.is_local else path.rstrip("/")

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: it cannot be read.
        """
        if self.is_local:  # Arrow cannot open names that are not UTF-8
            return Path(path).read_bytes()
        with self.filesystem.open_input_file(path) as file:
            return bytes(file.read())

    def _remote_children(self) -> list[Any]:
        return list(self.filesystem.get_file_info(fs.FileSelector(self.path)))


def locate(text: str) -> Location:
    """Return where `text`, a local path or a URI, points.

    Raises:
        DataError: the URI is malformed or its kind is not supported.
    """
    if not is_uri(text):
        path = Path(text).expanduser().absolute()
        return Location(fs.LocalFileSystem(), os.path.normpath(path), text)
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError) as error:
        accepted = "a local path, or a URI that begins with s3://, gs://, abfss://, hdfs:// or file://"
        raise DataError(Problem(text, f"cannot be opened ({error})", accepted)) from error
    return Location(filesystem, path, text)


def locate_existing(text: str) -> tuple[Location, Node]:
    """Return where `text` points and what is there.

    Raises:
        DataError: nothing is there, or it cannot be reached.
    """
    location = locate(text)
    try:
        node = location.node()
    except OSError as error:
        raise DataError(Problem(text, f"cannot be reached ({error})")) from error
    if node.kind is Kind.MISSING:
        raise DataError(missing_path(text))
    return location, node


def is_uri(text: str) -> bool:
    """Whether `text` is a URI rather than a local path."""
    return "://" in text


def missing_path(text: str) -> Problem:
    """Say that nothing is at `text`, and what was probably meant."""
    return Problem(text, "there is no such file or folder", "" if is_uri(text) else _suggest_path(text))


def _suggest_path(text: str) -> str:
    from rapidfuzz import process

    path = Path(text).expanduser().absolute()
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    try:
        siblings = [child.name for child in parent.iterdir()]
    except OSError:
        siblings = []
    match = process.extractOne(path.name, siblings, score_cutoff=70)
    return f"did you mean {parent / match[0]}?" if match else f"the folder {parent} exists, {path.name!r} in it does not"


def _scan_local(path: str) -> Iterator[Node]:
    with os.scandir(path) as entries:
        for entry in entries:
            yield _local_node(entry)


def _local_node(entry: os.DirEntry[str]) -> Node:
    name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
    try:
        info = entry.stat()
    except OSError:  # nothing there, or a link that leads to itself
        return Node(name, entry.path, Kind.BROKEN_LINK)
    if entry.is_dir():
        return Node(name, entry.path, Kind.FOLDER)
    kind = Kind.FILE if entry.is_file() else Kind.SPECIAL
    return Node(name, entry.path, kind, info.st_size, info.st_mtime_ns)


def _node_of(info: Any) -> Node:
    kinds = {
        fs.FileType.File: Kind.FILE,
        fs.FileType.Directory: Kind.FOLDER,
        fs.FileType.NotFound: Kind.MISSING,
        fs.FileType.Unknown: Kind.SPECIAL,
    }
    return Node(info.base_name, info.path, kinds[info.type], info.size or 0, info.mtime_ns or 0)
