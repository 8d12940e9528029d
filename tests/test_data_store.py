from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystudy.cache import Cache
from raystudy.data import prepare
from raystudy.data.decode import DecodedImage, decode
from raystudy.data.store import BadRow, Store, StoreWriter, open_or_build
from raystudy.errors import DataError

SIZE = 6


def images(count: int) -> list[DecodedImage]:
    rng = np.random.default_rng(0)
    return [decode(rng.integers(0, 256, (9, 7, 3), np.uint8), SIZE) for _ in range(count)]


def fill(writer: StoreWriter, count: int = 5) -> None:
    writer.describe(class_names=("a", "ö b"), warnings=("careful",))
    writer.add_bad(BadRow(1, "bad.png", "truncated"))
    for row, image in enumerate(images(count)):
        writer.add(image, label=row % 2, part=row % 3, name=f"img {row}.png")


def build(folder: Path, build: Callable[[StoreWriter], None] = fill) -> Store:
    return open_or_build(Cache(folder), "k", image_size=SIZE, about={}, build=build)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "decoded").iterdir() if path.suffix in (".arrow", ".tmp"))


def never(*_: object) -> None:
    raise AssertionError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = build(tmp_path)
    assert np.array_equal(store.images, np.stack([image.pixels for image in images(5)]))
    assert store.labels.tolist() == [0, 1, 0, 1, 0]
    assert store.parts.tolist() == [0, 1, 2, 0, 1]
    assert list(store.names) == [f"img {row}.png" for row in range(5)]
    assert [digest.tobytes() for digest in store.digests] == [image.digest for image in images(5)]
    assert store.original_sizes.tolist() == [[7, 9]] * 5
    assert store.info.class_names == ("a", "ö b")
    assert store.info.bad == (BadRow(1, "bad.png", "truncated"),)
    assert store.info.warnings == ("careful",)


def test_images_are_mapped_not_copied_and_cannot_be_written(tmp_path: Path) -> None:
    store = build(tmp_path)
    assert not store.images.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        store.images[0, 0, 0, 0] = 1


def test_a_store_without_images_opens(tmp_path: Path) -> None:
    store = build(tmp_path, lambda writer: fill(writer, 0))
    assert store.images.shape == (0, SIZE, SIZE, 3)
    assert len(store.info.bad) == 1


def test_a_second_call_does_not_build(tmp_path: Path) -> None:
    build(tmp_path)
    assert len(build(tmp_path, never).images) == 5


def test_a_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def fail(writer: StoreWriter) -> None:
        fill(writer)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(tmp_path, fail)
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"garbage" * 100])
def test_a_damaged_store_is_built_again(content: bytes, tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "decoded" / "k.arrow").write_bytes(content)
    assert len(build(tmp_path).images) == 5


def test_a_truncated_store_is_built_again(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "decoded" / "k.arrow"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(build(tmp_path).images) == 5


def test_images_that_find_no_room_are_refused_in_words_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSTUDY_CACHE_LIMIT", "1MB")
    with pytest.raises(DataError, match=r"may take 1\.0 MB.* of 3\.\d MB .*raise RAYSTUDY_CACHE_LIMIT") as raised:
        prepare("sklearn:digits", image_size=24, cache_dir=tmp_path, progress=never)
    assert raised.value.exit_code == 2
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"decoded images cannot be kept: .*file.* cannot be written"):
        prepare("sklearn:digits", image_size=8, cache_dir=tmp_path / "file")


KILLED_IN_MID_BUILD = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_data_store import build, fill

def die(writer):
    fill(writer)
    os.kill(os.getpid(), 9)

build(Path(sys.argv[1]), die)
"""


def test_a_build_that_is_killed_leaves_nothing_that_is_read_and_is_cleaned_up(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_MID_BUILD, str(tmp_path), *paths], check=False)
    assert killed.returncode == -9
    assert [path.name for path in files(tmp_path)] == ["k.tmp"]
    assert len(build(tmp_path).images) == 5
    assert [path.name for path in files(tmp_path)] == ["k.arrow"]


def test_readers_keep_their_images_when_the_file_is_removed(tmp_path: Path) -> None:
    store = build(tmp_path)
    (tmp_path / "decoded" / "k.arrow").unlink()
    assert np.array_equal(store.images[4], images(5)[4].pixels)


def build_and_count(folder: Path, barrier: Barrier, results: Any) -> None:
    def counted(writer: StoreWriter) -> None:
        (folder / f"built-by-{os.getpid()}").touch()
        fill(writer)

    barrier.wait()
    store = build(folder, counted)
    results.put(int(store.images.astype(np.int64).sum()))


def test_two_processes_at_once_build_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=build_and_count, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    sums = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(list(tmp_path.glob("built-by-*"))) == 1
    assert sums == {int(build(tmp_path).images.astype(np.int64).sum())}


def test_stores_of_other_sizes_live_side_by_side(tmp_path: Path) -> None:
    small = prepare("sklearn:digits", image_size=8, cache_dir=tmp_path)
    large = prepare("sklearn:digits", image_size=12, cache_dir=tmp_path)
    assert small.images.shape[1:] == (8, 8, 3)
    assert large.images.shape[1:] == (12, 12, 3)
    assert len(list((tmp_path / "decoded").glob("*.arrow"))) == 2
