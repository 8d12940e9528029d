"""`folder:PATH`: every first-level sub-folder is a class; its images may be nested anywhere below it."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from raystudy.data.decode import UnreadableImage
from raystudy.data.filesystem import Kind, Location, Node, locate_existing
from raystudy.data.pool import Read
from raystudy.data.source import Listing, Scan
from raystudy.errors import DataError, Problem

# Files that nobody would call an image. Everything else is tried, so that no image is lost silently.
_NOT_IMAGES = frozenset(
    {
        *("txt", "md", "rst", "html", "htm", "css", "js", "log", "pdf", "doc", "docx", "ppt", "pptx", "url", "lnk"),
        *("csv", "tsv", "xls", "xlsx", "json", "jsonl", "xml", "yaml", "yml", "toml", "ini", "cfg", "conf", "names"),
        *("db", "sqlite", "parquet", "arrow", "feather", "h5", "hdf5", "mat", "npy", "npz", "pkl", "pickle", "lst"),
        *("pt", "pth", "ckpt", "safetensors", "py", "pyc", "ipynb", "sh", "bat", "r", "data", "lock", "bak", "tmp"),
        *("zip", "gz", "tgz", "tar", "bz2", "xz", "7z", "rar", "md5", "sha1", "sha256", "part", "crdownload"),
        *("mp3", "wav", "mp4", "avi", "mov", "mkv", "webm"),
    }
)
_NOT_IMAGES_BY_NAME = frozenset({"license", "licence", "copying", "readme", "authors", "makefile", "checksums"})
# What file managers and servers leave behind; hidden in spirit.
_CLUTTER = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__"})
_CLUTTER_FILES = frozenset({"thumbs.db", "desktop.ini"})
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


@dataclass(slots=True)
class _Walk:
    """What the walk below one class folder found."""

    images: list[tuple[str, Node]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    loops: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def scan_folder(text: str) -> Scan:
    """List the folder `text`, see `scan_location`.

    Raises:
        DataError: there is no such folder.
    """
    location, node = locate_existing(text)
    if node.kind is not Kind.FOLDER:
        raise DataError(Problem(text, "is a file", "give the folder that holds one sub-folder per class"))
    return scan_location(location)


def scan_location(location: Location) -> Scan:
    """List a folder of any filesystem with all problems of its structure."""
    text = location.text
    base = f"{text.rstrip('/')}/"
    top = [node for node in _list(location) if not _is_hidden(node)]
    classes = [node for node in top if node.kind is Kind.FOLDER]
    walks = {node.name: _walk(location, node) for node in classes}
    images = [(name, image, node.name) for node in classes for name, image in walks[node.name].images]
    return Scan(
        source=f"folder:{text}",
        base=base,
        identity=(location.identity, *walks, *(f"{name}\0{image.size}\0{image.mtime_ns}" for name, image, _ in images)),
        load=functools.partial(_load, location, [node.name for node in classes], images),
        problems=tuple(_structure_problems(text, base, top, walks)),
        warnings=tuple(_warnings(top, walks)),
    )


def _load(location: Location, folders: Sequence[str], images: Sequence[tuple[str, Node, str]]) -> Listing:
    label_of = {folder: label for label, folder in enumerate(folders)}
    nodes = [node for _, node, _ in images]
    return Listing(
        class_names=tuple(_class_name(folder) for folder in folders),
        names=[name for name, _, _ in images],
        labels=np.array([label_of[folder] for _, _, folder in images], np.int64),
        reads=lambda: (_reader(location, node) for node in nodes),
        files=lambda: frozenset(location.real_path(node.path) for node in nodes),
    )


def _reader(location: Location, node: Node) -> Read:
    if node.kind is Kind.BROKEN_LINK:
        return functools.partial(_refuse, "a symbolic link that leads nowhere")
    if node.kind is Kind.SPECIAL:
        return functools.partial(_refuse, "not a regular file (a pipe, socket or device)")
    return functools.partial(location.read, node.path)


def _refuse(reason: str) -> bytes:
    raise UnreadableImage(reason)


def _list(location: Location) -> list[Node]:
    try:
        return location.children()
    except OSError as error:
        raise DataError(Problem(location.text, f"the folder cannot be read ({error.strerror or error})")) from error


def _walk(root: Location, top: Node) -> _Walk:
    """Find all images below the class folder `top`, in the order of their names.

    A folder is entered once, however many links lead to it: that ends cycles and keeps an image from being counted twice.
    """
    walk = _Walk()
    seen = {root.real_path(root.path)}
    for name, node in _descend(root, top, top.name, seen, walk):
        if _may_be_image(node):
            walk.images.append((name, node))
        else:
            walk.ignored[_type_of(node)] += 1
    return walk


def _descend(root: Location, folder: Node, name: str, seen: set[str], walk: _Walk) -> Iterator[tuple[str, Node]]:
    real = root.real_path(folder.path)
    if real in seen:
        walk.loops.append(name)
        return
    seen.add(real)
    try:
        children = root.at(folder.path).children()
    except OSError as error:
        walk.problems.append(Problem(folder.path, f"the folder cannot be read ({error.strerror or error})"))
        return
    for child in children:
        if _is_hidden(child):
            continue
        child_name = f"{name}/{child.name}"
        if child.kind is Kind.FOLDER:
            yield from _descend(root, child, child_name, seen, walk)
        else:
            yield child_name, child


def _is_hidden(node: Node) -> bool:
    return node.name.startswith(".") or node.name in _CLUTTER or node.name.lower() in _CLUTTER_FILES


def _extension(node: Node) -> str:
    stem, _, extension = node.name.rpartition(".")
    return extension.lower() if stem else ""


def _may_be_image(node: Node) -> bool:
    """Whether `node`, below a class folder, may be an image. Of links and pipes only the extension can tell."""
    extension = _extension(node)
    if extension:
        return extension not in _NOT_IMAGES
    return node.kind is Kind.FILE and node.name.lower() not in _NOT_IMAGES_BY_NAME


def _type_of(node: Node) -> str:
    return f".{_extension(node)}" if _extension(node) else f"{node.kind.value} without extension"


def _class_name(folder: str) -> str:
    """Return the name in one Unicode form: macOS writes é as two characters, everybody else as one."""
    return unicodedata.normalize("NFC", folder)


def _structure_problems(text: str, base: str, top: Sequence[Node], walks: dict[str, _Walk]) -> Iterator[Problem]:
    for walk in walks.values():
        yield from walk.problems
    yield from _stray_images(text, top)
    yield from _class_count_problems(text, walks)
    for node in top:
        if node.kind is Kind.BROKEN_LINK:
            yield Problem(base + node.name, "a symbolic link that leads nowhere, where a class folder is expected")
    for name, count in Counter(map(_class_name, walks)).items():
        if count > 1:
            yield Problem(text, f"{count} folders are named {name!r} in different Unicode forms", "merge them")


def _stray_images(text: str, top: Sequence[Node]) -> Iterator[Problem]:
    # Beside the class folders, a file without extension is a note rather than an image.
    stray = [node.name for node in top if node.kind is Kind.FILE and _extension(node) and _may_be_image(node)]
    if stray:
        shown = ", ".join(stray[:3]) + (", ..." if len(stray) > 3 else "")
        count = "1 image lies" if len(stray) == 1 else f"{len(stray)} images lie"
        what = f"{count} directly in the folder, outside any class ({shown})"
        yield Problem(text, what, "move each into a sub-folder named after its class")


def _class_count_problems(text: str, walks: dict[str, _Walk]) -> Iterator[Problem]:
    names = list(walks)
    if not names:
        yield Problem(text, "there are no class folders in it", "expected is one sub-folder of images per class")
    elif len(names) == 1:
        nested = sorted({name.split("/")[1] for name, _ in walks[names[0]].images if name.count("/") >= 2})
        hint = f"did you mean folder:{text.rstrip('/')}/{names[0]} (classes {', '.join(nested[:3])}, ...)?"
        accepted = hint if len(nested) > 1 else "a classifier needs at least two sub-folders of images"
        yield Problem(text, f"there is a single class, {names[0]!r}", accepted)
    elif all(name.lower() in _SPLIT_NAMES for name in names):
        train = next((name for name in names if name.lower().startswith("train")), names[0])
        other = next((name for name in names if name.lower()[:3] in ("val", "dev")), names[-1])
        root = text.rstrip("/")
        accepted = f"did you mean source: folder:{root}/{train} and validation: folder:{root}/{other}?"
        yield Problem(text, f"its sub-folders are splits ({', '.join(names)}), not classes", accepted)


def _warnings(top: Sequence[Node], walks: dict[str, _Walk]) -> Iterator[str]:
    ignored = sum((walk.ignored for walk in walks.values()), Counter[str]())
    ignored.update(_type_of(node) for node in top if node.kind is Kind.FILE and not _may_be_image(node))
    if ignored:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(ignored.items()))
        yield f"files that are not images were ignored: {ignored.total()} ({kinds})"
    if loops := [name for walk in walks.values() for name in walk.loops]:
        yield f"links to folders that were visited already were not followed: {len(loops)} (e.g. {loops[0]})"
    folded = Counter(_class_name(name).casefold() for name in walks)
    for name in walks:
        if folded[_class_name(name).casefold()] > 1:
            yield f"the class {name!r} differs from another one only by upper and lower case"
