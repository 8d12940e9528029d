"""The cache under fire: whatever happens to its files and its users, what is read is what was written."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from disks import Disk
from hypothesis import given, settings
from hypothesis import strategies as st

from raystudy.cache import Cache, CacheError, CacheFull, Entry, Writer, entry, seal, sizes
from raystudy.cache.room import MARK
from raystudy.cli import _call
from raystudy.errors import InputError

ROWS = np.arange(600, dtype=np.float32).reshape(100, 3, 2)
SMALL = 100_000
"""More than what an entry takes that holds next to nothing."""

fork = multiprocessing.get_context("fork")


def fill(writer: Writer, rows: np.ndarray[Any, Any] = ROWS) -> None:
    array = writer.array("x", rows.dtype, rows.shape[1:])
    for start in range(0, len(rows), 7):
        array.append(rows[start : start + 7])
    writer.column("name", pa.array([f"row {row}" for row in range(len(rows))]))


def big(writer: Writer) -> None:
    """Write 1 MB."""
    fill(writer, np.ones((100, 10_000), np.uint8))


def never(_: Writer) -> None:
    raise AssertionError("it is there and need not be built")


def build(cache: Cache, key: str = "a", fill: Callable[[Writer], None] = fill, **options: Any) -> Entry:
    return cache.open_or_build("things", key, fill, about={"of": key}, **options)


def keys(cache: Cache) -> list[str]:
    return [info.key for info in cache.entries()]


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.glob("*/*") if path.name[0] != ".")


def set_last_used(cache: Cache, **times: float) -> None:
    for key, seconds in times.items():
        os.utime(cache.folder / "things" / f"{key}.lock", (seconds, seconds))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


ARRAYS = st.lists(
    st.tuples(
        st.sampled_from(["u1", "<f2", "<f4", "<i8", "?", ">i4", "<c8"]), st.lists(st.integers(1, 5), max_size=3).map(tuple)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(kinds=ARRAYS, pieces=st.lists(st.integers(0, 9), max_size=4), seed=st.integers(0, 99))
def test_what_is_appended_comes_back(
    kinds: list[tuple[str, tuple[int, ...]]], pieces: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    length = sum(pieces)
    arrays = [rng.integers(0, 255, (length, *shape)).astype(dtype) for dtype, shape in kinds]

    def write(writer: Writer) -> None:
        targets = [writer.array(f"x{number}", dtype, shape) for number, (dtype, shape) in enumerate(kinds)]
        ends = np.cumsum(pieces)
        for start, end in zip([0, *ends], ends, strict=False):
            for target, array in zip(targets, arrays, strict=True):
                target.append(array[start:end])
        writer.column("number", pa.array(range(length), pa.int32()))

    built = build(Cache(tmp_path_factory.mktemp("cache")), fill=write)
    read = pa.ipc.open_file(pa.memory_map(str(built.path)))
    assert read.num_record_batches == 1
    assert read.get_batch(0).equals(built.batch)
    assert built.array("number").tolist() == list(range(length))
    for number, array in enumerate(arrays):
        found = built.array(f"x{number}")
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        if length:
            assert not found.flags.owndata
            assert not found.flags.writeable
            assert found.__array_interface__["data"][0] % 64 == 0


def test_a_second_call_opens_what_the_first_has_built(cache: Cache) -> None:
    assert cache.find("things", "a") is None
    build(cache)
    found = build(cache, fill=never)
    assert np.array_equal(found.array("x"), ROWS)
    assert found.batch.column("name")[3].as_py() == "row 3"
    assert found.about == {"of": "a"}
    assert cache.find("others", "a") is None


def test_a_builder_may_add_to_what_the_entry_says_about_itself(cache: Cache) -> None:
    def told(writer: Writer) -> None:
        fill(writer)
        writer.about["rows"] = len(ROWS)

    assert build(cache, fill=told).about == {"of": "a", "rows": 100}
    (info,) = cache.entries()
    assert info.about == {"of": "a", "rows": 100}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda writer: writer.array("x", np.uint8, (2,)).append(np.zeros((1, 3), np.uint8)),
        lambda writer: writer.array("x", np.uint8, (2,)).append(np.zeros((1, 2), np.int8)),
        lambda writer: writer.array("x", object, ()),
        lambda writer: writer.array("x", np.uint8, (0,)),
        lambda writer: [add(writer) for add in (fill, lambda writer: writer.column("short", pa.array([1])))],
        lambda writer: [add(writer) for add in (fill, fill)],
        lambda _: None,
    ],
)
def test_a_builder_that_errs_is_told_and_leaves_nothing(cache: Cache, wrong: Callable[[Writer], None]) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(cache, fill=wrong)
    assert files(cache) == []


def test_names_are_plain(cache: Cache) -> None:
    for name in ("", "../a", "a/b", ".a"):
        with pytest.raises(ValueError, match="plain name"):
            cache.find("things", name)


def damaged(cache: Cache, content: bytes) -> Entry | None:
    """Return what the cache finds when a new file with `content` stands in the place of the entry."""
    path = cache.folder / "things" / "a.arrow"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return cache.find("things", "a")


def test_whichever_byte_flips_the_entry_is_not_read(cache: Cache) -> None:
    whole = build(cache).path.read_bytes()
    assert damaged(cache, whole) is not None
    filler = range(1000, seal.HEAD)  # spaces, and as many again in the footer
    places = [place for place in range(len(whole)) if place not in filler and whole[place : place + 9] != b" " * 9]
    for place in (*places[::5], *filler[::999], len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        assert damaged(cache, bytes(flipped)) is None, place
    assert files(cache) == ["a.lock"]


@settings(max_examples=20, deadline=None)
@given(cut=st.tuples(*[st.integers(0, 34_000)] * 2).map(sorted), inserted=st.binary(max_size=40))
def test_a_file_that_is_mangled_is_not_read(cut: list[int], inserted: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    whole = build(cache).path.read_bytes()
    content = whole[: cut[0]] + inserted + whole[cut[1] :]
    found = damaged(cache, content)
    assert (found is None) == (content != whole)


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"\0" * 50_000, b"garbage" * 9999])
def test_what_is_no_entry_is_built_again_with_a_warning(cache: Cache, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    build(cache)
    damaged(cache, content)
    assert "a.arrow" in caplog.text
    assert np.array_equal(build(cache).array("x"), ROWS)


def test_many_chunks_are_verified_each(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "CHUNK", 100)
    whole = build(cache).path.read_bytes()
    assert damaged(cache, whole) is not None
    for place in range(seal.HEAD, seal.HEAD + ROWS.nbytes, 99):
        assert damaged(cache, whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]) is None


def test_a_file_is_verified_once_and_again_when_it_has_changed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(cache).path
    verified: list[int] = []
    monkeypatch.setattr(entry, "verify", lambda *arguments: verified.append(arguments[1]))
    assert cache.find("things", "a")
    assert not verified
    os.utime(path)
    assert cache.find("things", "a")
    assert cache.find("things", "a")
    assert len(verified) == 1


def test_a_disk_that_cannot_be_read_is_damage(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(cache, build(cache).path.read_bytes())
    entry._verified.clear()

    def refuse(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        assert cache.find("things", "a") is None
    assert np.array_equal(build(cache).array("x"), ROWS)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=4_000_000)
    for key in "abc":
        build(cache, key, big)
    set_last_used(cache, a=1, b=2, c=3)
    assert cache.find("things", "a")
    build(cache, "d", big, size=1_000_000)
    assert sorted(keys(cache)) == ["a", "c", "d"]
    assert files(cache) == [f"{key}.{kind}" for key in "acd" for kind in ("arrow", "lock")]


def test_no_more_goes_than_has_to(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3_000_000)
    build(cache, "a", big)
    build(cache, "b", big)
    with pytest.raises(CacheFull):
        build(cache, "c", never, size=3_000_000)
    assert sorted(keys(cache)) == ["a", "b"]


def hold(cache: Cache, pipe: Connection) -> None:
    """Use the entry until the end."""
    found = cache.find("things", "a")
    assert found is not None
    images = found.array("x")
    del found
    pipe.send(images[0, 0])
    pipe.recv()


def test_what_another_process_uses_stays_until_that_ends(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=2_000_000)
    build(cache, "a", big)
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold, args=(cache, theirs))
    process.start()
    ours.recv()
    try:
        assert [info.in_use for info in cache.entries()] == [True]
        assert cache.clear() == 0
        with pytest.raises(CacheFull, match=r"may take 2\.0 MB.*not fit beside 1\.0 MB in use; raise RAYSTUDY_CACHE_LIMIT"):
            build(cache, "b", big)
        assert keys(cache) == ["a"]
    finally:
        process.kill()
        process.join()
    build(cache, "b", big)
    assert keys(cache) == ["b"]


def test_an_array_alone_keeps_its_entry_in_use(cache: Cache) -> None:
    array = build(cache).array("x")[3:, 1]
    assert [info.in_use for info in cache.entries()] == [True]
    assert cache.clear() == 0
    del array
    assert [info.in_use for info in cache.entries()] == [False]
    assert cache.clear() > 0
    assert files(cache) == []


def test_what_is_mapped_outlives_its_file(cache: Cache) -> None:
    found = build(cache)
    found.path.unlink()
    assert np.array_equal(found.array("x"), ROWS)


def build_in_child(cache: Cache, pipe: Connection, others: list[Any]) -> None:
    """Build while all others are about to."""

    def counted(writer: Writer) -> None:
        pipe.send("built")
        for other in others:
            assert other.wait(60)
        fill(writer)

    others.pop(0).set()
    pipe.send(float(build(cache, fill=counted).array("x").sum()))
    pipe.close()


def test_processes_that_need_the_same_entry_at_once_build_it_once(cache: Cache) -> None:
    started = [fork.Event() for _ in range(3)]
    pipes = [fork.Pipe() for _ in started]
    processes = [
        fork.Process(target=build_in_child, args=(cache, pipe[1], started[number:] + started[:number]))
        for number, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    said = []
    for (ours, theirs), process in zip(pipes, processes, strict=True):
        theirs.close()
        said.append(ours.recv())
        if said[-1] == "built":
            said.append(ours.recv())
        process.join()
    assert sorted(said, key=str) == [*[float(ROWS.sum())] * 3, "built"]


def test_who_waits_for_a_build_that_fails_builds_itself(cache: Cache) -> None:
    begun, results = threading.Event(), []

    def wait_and_build() -> None:
        begun.set()
        results.append(build(cache))

    second = threading.Thread(target=wait_and_build)

    def fail(writer: Writer) -> None:
        second.start()
        assert begun.wait(60)
        fill(writer)
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        build(cache, fill=fail)
    second.join()
    assert np.array_equal(results[0].array("x"), ROWS)
    assert files(cache) == ["a.arrow", "a.lock"]


def die_building(cache: Cache, key: str, pipe: Connection) -> None:
    def stall(writer: Writer) -> None:
        fill(writer)
        pipe.send("half way")
        pipe.recv()

    build(cache, key, stall)


@pytest.fixture
def killed(cache: Cache) -> Cache:
    """Give a cache in which a builder of `a` was killed half way."""
    ours, theirs = fork.Pipe()
    process = fork.Process(target=die_building, args=(cache, "a", theirs))
    process.start()
    ours.recv()
    assert cache.clear() == 0, "the build under way was disturbed"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert files(cache) == ["a.lock", "a.tmp"]
    return cache


def test_a_build_that_is_killed_is_not_seen_and_is_done_again(killed: Cache) -> None:
    assert killed.entries() == []
    assert killed.find("things", "a") is None
    assert np.array_equal(build(killed).array("x"), ROWS)
    assert files(killed) == ["a.arrow", "a.lock"]


def test_what_a_killed_build_left_goes_with_the_next_build_of_anything(killed: Cache) -> None:
    killed.open_or_build("others", "b", fill, about={})
    assert files(killed) == ["b.arrow", "b.lock"]


def test_what_a_killed_build_left_goes_with_clear(killed: Cache) -> None:
    assert killed.clear() >= seal.HEAD
    assert files(killed) == []


def test_an_entry_that_is_larger_than_the_limit_is_refused_before_it_is_built(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=500_000)
    with pytest.raises(CacheFull, match=r"500\.0 kB: an entry of 1\.1 MB does not fit; "):
        build(cache, fill=never, size=1_000_000)
    assert files(cache) == []


def test_an_entry_of_unknown_size_is_refused_when_it_becomes_larger_than_the_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=500_000)
    written = 0

    def endless(writer: Writer) -> None:
        nonlocal written
        array = writer.array("x", np.uint8, (10_000,))
        while True:
            array.append(np.zeros((1, 10_000), np.uint8))
            written += 10_000

    build(cache, "b")
    with pytest.raises(CacheFull):
        build(cache, fill=endless)
    assert written > 400_000
    assert files(cache) == []


def test_an_entry_that_outgrows_its_expected_size_is_counted_as_it_is(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=500_000)
    with pytest.raises(CacheFull):
        build(cache, fill=big, size=1000)


def test_builds_at_the_same_time_do_not_promise_each_other_the_same_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1_500_000)

    def both(writer: Writer) -> None:
        with pytest.raises(CacheFull):
            build(cache, "b", never, size=1_000_000)
        big(writer)

    build(cache, "a", both, size=1_000_000)
    assert keys(cache) == ["a"]


def test_a_builder_that_goes_on_after_it_was_refused_room_does_not_get_away_with_it(tmp_path: Path) -> None:
    def stubborn(writer: Writer) -> None:
        array = writer.array("x", np.uint8, (10_000_000,))
        with pytest.raises(CacheFull):
            array.append(np.zeros((1, 10_000_000), np.uint8))
        array.append(np.zeros((0, 10_000_000), np.uint8))

    with pytest.raises(CacheFull):
        build(Cache(tmp_path, limit=1_000_000), fill=stubborn)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fills_up_ends_the_build_in_words(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    disk = Disk(cache.folder, monkeypatch, call)
    disk.takes = 5

    def full(writer: Writer) -> None:
        disk.errors.append(number)
        fill(writer)

    with pytest.raises(CacheFull, match=r"cannot be written: the .*free"):
        build(cache, fill=full)
    assert files(cache) == []
    assert np.array_equal(build(cache).array("x"), ROWS)


def test_a_disk_that_refuses_the_last_column_is_told_in_words(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(cache.folder, monkeypatch, "write")

    def full(writer: Writer) -> None:
        fill(writer)
        disk.errors.append(errno.EIO)  # comes when Arrow writes the columns

    with pytest.raises(CacheError, match="the storage does not work"):
        build(cache, fill=full)
    assert files(cache) == []


def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"file.*cannot be written"):
        build(Cache(tmp_path / "file" / "cache", limit=10**9))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_disk_that_somebody_else_fills(small_disk: Path) -> None:
    cache = Cache(small_disk / "cache")
    ballast = small_disk / "ballast"
    assert 3_000_000 < cache.limit < 4_000_000

    def robbed(writer: Writer) -> None:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096 and os.statvfs(small_disk).f_bavail > 100:
                pass
        big(writer)

    with pytest.raises(CacheFull, match=r"No space left on device.*0 B are free"):
        build(cache, fill=robbed, size=1_000_000)
    assert files(cache) == []
    with pytest.raises(CacheFull, match="RAYSTUDY_CACHE"):
        build(Cache(small_disk / "cache", limit=10**9), fill=never, size=1_000_000)
    ballast.unlink()
    for key in "abcd":
        build(cache, key, big, size=1_000_000)
    assert keys(cache) == ["d", "c", "b"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("50 g", 50 * 10**9), ("1.5TiB", 3 << 39), ("5000", 5000), ("2kb", 2000), ("0", 0)],
)
def test_sizes_as_people_write_them(text: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_CACHE_LIMIT", text)
    assert Cache(tmp_path).limit == size


@pytest.mark.parametrize("text", ["many", "-5GB", "5 GB free", "GB"])
def test_a_limit_that_means_nothing_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_CACHE_LIMIT", text)
    with pytest.raises(InputError, match=r"RAYSTUDY_CACHE_LIMIT: got '.*expected a size such as 50GB"):
        build(Cache(tmp_path))
    assert list(tmp_path.glob("*/*.*")) == [tmp_path / "things" / MARK]


def test_sizes_in_words() -> None:
    assert [sizes.in_words(size) for size in (0, 999, 1000, 999_960, 12_345_678)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.0 MB",
        "12.3 MB",
    ]


def test_the_command_lists_and_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path))
    monkeypatch.setenv("RAYSTUDY_CACHE_LIMIT", "1GB")
    cache = Cache(tmp_path)
    build(cache)
    held = cache.open_or_build("decoded", "b", fill, about={"source": "folder:/flowers", "names": ["x"]})

    assert _call(["cache", "ls", "--json"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["limit"], found["size"]) == (
        str(tmp_path),
        10**9,
        sum(row["size"] for row in found["entries"]),
    )
    assert [(row["kind"], row["in_use"]) for row in found["entries"]] == [("decoded", True), ("things", False)]

    assert _call(["cache"], debug=False) == 0
    out = capsys.readouterr().out
    assert "source folder:/flowers " in out
    assert f"{tmp_path}: 2 entries" in out
    assert "of at most 1.0 GB" in out

    assert _call(["cache", "clear"], debug=False) == 0
    assert "1 in use were kept" in capsys.readouterr().out
    assert keys(cache) == ["b"]
    del held
    assert _call(["cache", "clear", "--kind", "things"], debug=False) == 0
    assert keys(cache) == ["b"]
    assert _call(["cache", "clear", "--kind", "decoded"], debug=False) == 0
    assert keys(cache) == []


def test_the_command_copes_with_no_cache_and_with_foreign_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "none"))
    assert _call(["cache"], debug=False) == 0
    assert _call(["cache", "clear"], debug=False) == 0
    build(Cache(tmp_path / "none"))
    (tmp_path / "none" / "things" / "broken.arrow").write_bytes(b"something else")
    assert _call(["cache"], debug=False) == 0
    assert "broken" in capsys.readouterr().out
    assert _call(["cache", "clear"], debug=False) == 0
    assert files(Cache(tmp_path / "none")) == []


def test_what_is_not_ours_is_left_alone_wherever_the_cache_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "work.tmp").mkdir(parents=True)
    for name in ("data.arrow", "data.lock", "other.lock", "work.tmp/notes"):
        (mine / name).touch()
    cache = Cache(tmp_path, limit=SMALL)
    build(cache, "a")
    build(cache, "b")
    assert cache.clear() > 0
    assert len(list(mine.rglob("*"))) == 5


def test_what_it_raises_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CacheFull("no room", errno.EDQUOT)))
    assert (type(error), str(error), error.errno) == (CacheFull, "no room", errno.EDQUOT)
    assert isinstance(error, OSError)
