"""From a source to `PreparedData`: look, list, decode once into a store, split, warn."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from raystudy.cache import Cache, CacheError
from raystudy.data.decode import POLICY_VERSION, UnreadableImage, quiet_pillow
from raystudy.data.pool import decode_in_order
from raystudy.data.prepared import BadImage, PreparedData, Splits, bad_images_error
from raystudy.data.source import UNLABELLED, Listing, Scan, scan_source
from raystudy.data.splits import Indices, class_size_problems, make_splits, split_warnings
from raystudy.data.store import BadRow, Store, StoreWriter, open_or_build
from raystudy.errors import DataError, Problem

Progress = Callable[[int, int], None]
"""Called with the number of images decoded so far and of all images."""

_MAIN, _VALIDATION, _TEST = 0, 1, 2
_ROLES = {_MAIN: "", _VALIDATION: "validation", _TEST: "test"}


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the images are to be split: from which sources (by part), and by which shares of the main one."""

    scans: dict[int, Scan]
    validation_share: float
    test_share: float | None

    @property
    def images_needed(self) -> int:
        """How many images each class of the main source needs."""
        return 1 + bool(self.validation_share) + bool(self.test_share)


def prepare(
    source: str,
    *,
    image_size: int,
    validation: float | str = 0.2,
    test: float | str | None = None,
    on_bad_image: str = "error",
    seed: int = 0,
    cache_dir: Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> PreparedData:
    """Return the images of `source`, decoded, checked and split.

    The first call decodes every image into a store below `cache_dir`; later calls map that store into memory. It is
    found again as long as names, sizes and modification times of the files stay the same.

    Args:
        source: `folder:PATH`, `parquet:PATH`, `sklearn:digits`, `idx:DIR` or `torchvision:NAME@ROOT`.
        image_size: the side of the decoded images, in pixels.
        validation: a share of each class, or a second source with the same classes and other images.
        test: likewise; None for no test split.
        on_bad_image: `error`, or `skip` to leave out and record images that cannot be read.
        seed: of the splits.
        cache_dir: the folder of the cache (see `raystudy.cache`).
        progress: called while decoding.
        workers: the number of decoding threads; default: one per available core.

    Raises:
        DataError: with every problem found; all unreadable images in one error. Also where the cache has no room.
    """
    _check_arguments(image_size, validation, test, on_bad_image)
    plan = _make_plan(source, validation, test)
    if any(scan.problems for scan in plan.scans.values()):
        _list_images(plan)  # raises these and all that it finds itself
    try:
        store = open_or_build(
            Cache(cache_dir),
            _key(plan, image_size),
            image_size=image_size,
            about={"source": source},
            build=functools.partial(_build, plan, image_size=image_size, progress=progress, workers=workers),
        )
    except CacheError as error:
        raise DataError(Problem(source, f"its decoded images cannot be kept: {error}")) from error
    if store.info.bad and on_bad_image == "error":
        places = [(plan.scans[row.part].base + row.name, row.reason) for row in store.info.bad]
        raise bad_images_error(source, places)
    return _assemble(plan, store, seed=seed)


def _check_arguments(image_size: int, validation: float | str, test: float | str | None, on_bad_image: str) -> None:
    problems = []
    if image_size < 1:
        problems.append(Problem("data.image_size", f"is {image_size}", "use a number of pixels, at least 1"))
    if on_bad_image not in ("error", "skip"):
        problems.append(Problem("data.on_bad_image", f"is {on_bad_image!r}", "use error or skip"))
    shares = {"data.validation": validation, "data.test": test}
    numbers = {where: share for where, share in shares.items() if share is not None and not isinstance(share, str)}
    for where, share in numbers.items():
        if not 0 < share < 1:
            problems.append(Problem(where, f"is {share}", "use a share between 0 and 1, or a second source"))
    if not problems and sum(numbers.values()) >= 1:
        what = f"the shares add up to {sum(numbers.values()):g}"
        problems.append(Problem("data.validation and data.test", what, "leave some images for training"))
    if problems:
        raise DataError(problems)


def _make_plan(source: str, validation: float | str, test: float | str | None) -> _Plan:
    sources = {_MAIN: source, _VALIDATION: validation, _TEST: test}
    scans, problems = {}, []
    for part, text in sources.items():
        if isinstance(text, str):
            try:
                scans[part] = scan_source(text)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(problems)
    return _Plan(
        scans=scans,
        validation_share=0.0 if isinstance(validation, str) else validation,
        test_share=None if isinstance(test, str) else test,
    )


def _key(plan: _Plan, image_size: int) -> str:
    parts = [(part, scan.identity) for part, scan in plan.scans.items()]
    # Another Pillow may decode JPEGs to other pixels.
    document = ["decoded", POLICY_VERSION, version("pillow"), image_size, parts]
    return sha256(json.dumps(document).encode()).hexdigest()[:40]


def _build(plan: _Plan, writer: StoreWriter, *, image_size: int, progress: Progress | None, workers: int | None) -> None:
    listings = _list_images(plan)
    class_names = listings[_MAIN].class_names
    warnings = tuple(warning for listing in listings.values() for warning in listing.warnings)
    writer.describe(class_names=class_names, warnings=warnings)
    total = sum(len(listing.names) for listing in listings.values())
    writer.expect(total)
    rows = itertools.chain.from_iterable(
        _decode_part(part, listing, writer, class_names, image_size=image_size, workers=workers)
        for part, listing in listings.items()
    )
    with quiet_pillow():
        for done, _ in enumerate(rows, start=1):
            if progress is not None:
                progress(done, total)


def _decode_part(
    part: int, listing: Listing, writer: StoreWriter, class_names: Sequence[str], *, image_size: int, workers: int | None
) -> Iterator[None]:
    """Write the images of one source, and yield after each."""
    label_of = [class_names.index(name) for name in listing.class_names]
    decoded = decode_in_order(listing.reads(), image_size=image_size, workers=workers)
    for name, label, image in zip(listing.names, listing.labels.tolist(), decoded, strict=True):
        if isinstance(image, UnreadableImage):
            writer.add_bad(BadRow(part, name, str(image)))
        else:
            writer.add(image, label=label_of[label], part=part, name=name)
        yield


def _list_images(plan: _Plan) -> dict[int, Listing]:
    """List all sources and check them, and against each other, before the long work.

    Raises:
        DataError: with every problem found.
    """
    problems = [problem for scan in plan.scans.values() for problem in scan.problems]
    listings = {}
    for part, scan in plan.scans.items():
        try:
            listings[part] = scan.load()
        except DataError as error:
            problems += error.problems
    if listings.keys() == plan.scans.keys():
        problems += _class_problems(plan, listings)
        problems += _shared_file_problems(plan, listings)
        for part, listing in listings.items():
            labels = listing.labels[listing.labels != UNLABELLED]
            problems += _class_size_problems(plan, part, listing.class_names, labels)
    if problems:
        raise DataError(problems, title=plan.scans[_MAIN].source)
    return listings


def _class_problems(plan: _Plan, listings: dict[int, Listing]) -> Iterator[Problem]:
    expected = set(listings[_MAIN].class_names)
    for part, listing in listings.items():
        found = set(listing.class_names)
        if found != expected:
            lacking, extra = sorted(expected - found), sorted(found - expected)
            differences = [f"lacks {_quote(lacking)}"] * bool(lacking) + [f"has {_quote(extra)} in addition"] * bool(extra)
            what = f"its classes differ from those of {plan.scans[_MAIN].source}: it {' and '.join(differences)}"
            yield Problem(plan.scans[part].source, what, "both need the same class names")


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + more


def _shared_file_problems(plan: _Plan, listings: dict[int, Listing]) -> Iterator[Problem]:
    parts = list(listings)
    files = {part: listings[part].files() for part in parts} if len(parts) > 1 else {}
    for position, part in enumerate(parts):
        for other in parts[position + 1 :]:
            if shared := sorted(files[part] & files[other]):
                what = f"{len(shared)} of its files are also in {plan.scans[part].source} (e.g. {shared[0]})"
                yield Problem(plan.scans[other].source, what, "the splits must not share images")


def _class_size_problems(plan: _Plan, part: int, class_names: Sequence[str], labels: Indices) -> Iterator[Problem]:
    """Yield the classes of one source that have too few images for their splits."""
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    needed = plan.images_needed if part == _MAIN else 1
    return class_size_problems(class_names, counts, needed=needed, split=_ROLES[part])


def _assemble(plan: _Plan, store: Store, *, seed: int) -> PreparedData:
    splits = _split(plan, store, seed=seed)
    class_names = store.info.class_names
    names = tuple(_prefixed(part, name) for part, name in zip(store.parts.tolist(), store.names, strict=True))
    bad = tuple(BadImage(_prefixed(row.part, row.name), row.reason) for row in store.info.bad)
    found = split_warnings(splits, store.labels, names=names, class_names=class_names, digests=store.digests)
    scanned = [warning for scan in plan.scans.values() for warning in scan.warnings]
    skipped = [f"images that cannot be read were skipped: {len(bad)} (e.g. {bad[0].name}: {bad[0].reason})"] if bad else []
    return PreparedData(
        images=store.images,
        labels=store.labels,
        names=names,
        class_names=class_names,
        splits=splits,
        bad=bad,
        warnings=(*scanned, *store.info.warnings, *skipped, *found),
        fingerprint=_fingerprint(store, splits),
        original_sizes=store.original_sizes,
        pixels=blake2b(store.images.shape[1].to_bytes(4, "little") + store.digests.tobytes(), digest_size=16).hexdigest(),
    )


def _prefixed(part: int, name: str) -> str:
    return f"{_ROLES[part]}:{name}" if part else name


def _split(plan: _Plan, store: Store, *, seed: int) -> Splits:
    """Split what could be read.

    Raises:
        DataError: leaving out the unreadable images left a class without enough of them.
    """
    class_names = store.info.class_names
    problems: list[Problem] = []
    for part in plan.scans:
        problems += _class_size_problems(plan, part, class_names, store.labels[store.parts == part])
    if problems:
        raise DataError(problems, title=f"{plan.scans[_MAIN].source}, without the images that cannot be read")
    main = np.flatnonzero(store.parts == _MAIN)
    shares = make_splits(store.labels[main], class_names, validation=plan.validation_share, test=plan.test_share, seed=seed)
    of_part = {part: np.flatnonzero(store.parts == part) for part in plan.scans}
    return Splits(
        train=main[shares.train],
        validation=of_part.get(_VALIDATION, main[shares.validation]),
        test=of_part.get(_TEST, None if shares.test is None else main[shares.test]),
    )


def _fingerprint(store: Store, splits: Splits) -> str:
    """Hash what training sees: not where the images lie, nor what their files are called."""
    info = store.info
    digest = blake2b(json.dumps([info.image_size, info.class_names]).encode(), digest_size=16)
    for array in (store.digests, store.labels, splits.train, splits.validation, splits.test):
        content = b"" if array is None else np.ascontiguousarray(array).tobytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
