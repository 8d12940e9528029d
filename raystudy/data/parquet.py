"""`parquet:PATH`: rows with image bytes and a label, Hugging Face's layout included.

PATH is a file, a folder or a pattern (`*` matches any part of a path). `PATH#label=NAME,image=NAME` names the columns
where `parquet_columns` cannot find them by itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystudy.data.decode import UnreadableImage
from raystudy.data.filesystem import Kind, Location, Node, locate, locate_existing
from raystudy.data.parquet_columns import Columns, RequestedColumns, choose_columns, classes_of, declared_classes
from raystudy.data.pool import Read
from raystudy.data.source import UNLABELLED, Listing, Scan
from raystudy.errors import DataError, Problem

_SUFFIXES = (".parquet", ".parq", ".pq")
_SPLIT = re.compile(r"(?:^|/)(train|validation|valid|val|dev|test)(?![a-z])")
_WILDCARD = re.compile(r"[*?\[]")
_ROWS_PER_READ = 32  # encoded images of common size: a few MB

_Files = Sequence[tuple[str, Node]]
"""(name relative to the source's folder, file), sorted by name."""


def scan_parquet(text: str) -> Scan:
    """Find the files.

    Raises:
        DataError: there are none, or they are several splits of one data set.
    """
    path, asked = _parse(text)
    root, files = _find_files(path)
    return Scan(
        source=f"parquet:{text}",
        base=f"{root.text.rstrip('/')}/",
        identity=(root.identity, repr(asked), *(f"{name}\0{node.size}\0{node.mtime_ns}" for name, node in files)),
        load=functools.partial(_load, root, files, asked),
        problems=tuple(_split_problems(path, files)),
    )


def _parse(text: str) -> tuple[str, RequestedColumns]:
    path, _, options = text.rpartition("#")
    if not path or "=" not in options:
        return text, RequestedColumns()
    values = dict(option.partition("=")[::2] for option in options.split(","))
    if unknown := sorted(set(values) - {"image", "label"}):
        what = f"the option {unknown[0]!r} is unknown"
        raise DataError(Problem(f"parquet:{text}", what, "use parquet:PATH#label=COLUMN,image=COLUMN"))
    return path, RequestedColumns(image=values.get("image"), label=values.get("label"))


def _find_files(path: str) -> tuple[Location, _Files]:
    """Return the folder that names are relative to, and the files."""
    if wildcard := _WILDCARD.search(path):
        top = _parent(path[: wildcard.start()])
        root, _ = locate_existing(top)
        pattern = path.removeprefix(top).lstrip("/")
        files = [(name, node) for name, node in _walk(root) if fnmatchcase(name, pattern)]
    else:
        root, node = locate_existing(path)
        if node.kind is Kind.FILE:
            return locate(_parent(path)), [(node.name, node)]
        files = [(name, node) for name, node in _walk(root) if name.endswith(_SUFFIXES)]
    if not files:
        raise DataError(Problem(path, "there are no Parquet files", "expected are files whose names end in .parquet"))
    return root, files


def _parent(path: str) -> str:
    parent, slash, _ = path.rpartition("/")
    return parent or slash or "."


def _walk(root: Location) -> Iterator[tuple[str, Node]]:
    """Yield everything below `root` that is not hidden, each folder once however many links lead to it."""
    pending, seen = [("", root.path)], set()
    found = []
    while pending:
        prefix, path = pending.pop()
        if (real := root.real_path(path)) in seen:
            continue
        seen.add(real)
        for node in _children(root.at(path)):
            if node.kind is Kind.FOLDER:
                pending.append((f"{prefix}{node.name}/", node.path))
            elif node.kind is Kind.FILE:
                found.append((prefix + node.name, node))
    yield from sorted(found, key=lambda item: item[0])


def _children(folder: Location) -> list[Node]:
    try:
        return [node for node in folder.children() if not node.name.startswith((".", "_"))]
    except OSError as error:
        raise DataError(Problem(folder.text, f"the folder cannot be read ({error.strerror or error})")) from error


def _split_problems(path: str, files: _Files) -> Iterator[Problem]:
    splits = sorted({match[1] for name, _ in files if (match := _SPLIT.search(name))})
    if len(splits) > 1:
        what = f"it holds several splits ({', '.join(splits)}), which must not be mixed"
        folder = _parent(path) if _WILDCARD.search(path) else path.rstrip("/")
        train = next((split for split in splits if split == "train"), splits[0])
        yield Problem(path, what, f"select one by a pattern, e.g. parquet:{folder}/{train}*")


def _load(root: Location, files: _Files, asked: RequestedColumns) -> Listing:
    """Read the labels.

    Raises:
        DataError: a file is damaged, or its columns are not what is needed.
    """
    with _open(root, files[0][1]) as first:
        schema = first.schema_arrow
    columns = choose_columns(root.at(files[0][1].path).text, schema, asked)
    values_of = {name: _read_labels(root, node, columns) for name, node in files}
    values = [value for of_file in values_of.values() for value in of_file]
    class_names, label_of, warnings = classes_of(values, declared_classes(schema, columns.label))
    return Listing(
        class_names=class_names,
        names=[f"{name}:{row}" for name, of_file in values_of.items() for row in range(len(of_file))],
        labels=np.array([label_of.get(value, UNLABELLED) for value in values], np.int64),
        reads=lambda: _reads(root, files, columns, [(value in label_of, value) for value in values]),
        files=lambda: frozenset(root.real_path(node.path) for _, node in files),
        warnings=warnings,
    )


@contextmanager
def _open(root: Location, node: Node) -> Iterator[Any]:
    """Open a Parquet file; damage found while it is open is a DataError that names it."""
    try:
        with root.filesystem.open_input_file(node.path) as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowInvalid, OSError) as error:
        what = "is empty (0 bytes)" if node.size == 0 else f"cannot be read as Parquet ({_first_line(error)})"
        raise DataError(Problem(node.path, what)) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _read_labels(root: Location, node: Node, columns: Columns) -> list[Any]:
    with _open(root, node) as file:
        missing = [name for name in (columns.image, columns.label) if name not in file.schema_arrow.names]
        if missing:
            what = f"has no column {' and no column '.join(map(repr, missing))}, unlike the first file"
            raise DataError(Problem(node.path, what, f"it has {', '.join(file.schema_arrow.names)}"))
        return list(file.read(columns=[columns.label]).column(columns.label).to_pylist())


def _reads(root: Location, files: _Files, columns: Columns, labels: Sequence[tuple[bool, Any]]) -> Iterator[Read]:
    """Yield the rows' images; `labels` says of each row whether its label is known, and the label."""
    for (is_known, value), image in zip(labels, _read_images(root, files, columns), strict=True):
        yield functools.partial(_image_bytes, image) if is_known else functools.partial(_refuse_label, value)


def _read_images(root: Location, files: _Files, columns: Columns) -> Iterator[Any]:
    for _, node in files:
        with _open(root, node) as file:
            for batch in file.iter_batches(batch_size=_ROWS_PER_READ, columns=[columns.image]):
                yield from batch.column(columns.image)


def _image_bytes(image: Any) -> bytes:
    value = image.as_py()
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            raise UnreadableImage(f"only the path {value['path']!r} is stored, not the image")
        value = value.get("bytes")
    if value is None:
        raise UnreadableImage("there is no image in this row")
    return bytes(value)


def _refuse_label(value: Any) -> bytes:
    raise UnreadableImage("the label is missing" if value in (None, "", -1) else f"the label {value!r} has no class name")
