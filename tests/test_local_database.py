"""The SQLite file of a local store."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from raystudy.tracking.address import database
from raystudy.tracking.local_database import commit_quickly, make_whole, settle
from raystudy.tracking.store import Store, StoreRefused


def make_tables(uri: str) -> None:
    file = database(uri)
    assert file is not None
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE runs (id)")
        connection.execute("INSERT INTO runs VALUES (7)")
        connection.commit()


def rows(file: Path) -> list[tuple[int]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT * FROM runs").fetchall()


def test_the_file_of_an_address_is_without_its_options() -> None:
    assert database("sqlite:////home/mlflow.db?timeout=60") == Path("/home/mlflow.db")
    assert database("sqlite:///mlflow.db") == Path("mlflow.db")
    assert database("postgresql://host/mlflow") is None


@pytest.mark.parametrize("was_opened", [False, True])
def test_a_new_database_has_what_was_made(was_opened: bool, tmp_path: Path) -> None:
    file = tmp_path / "home" / "store.db"
    if was_opened:  # which leaves an empty file
        file.parent.mkdir()
        file.touch()
    make_whole(file, make_tables)
    assert rows(file) == [(7,)]
    assert not list(file.parent.glob("*.new-*"))


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    make_tables(f"sqlite:///{file}")
    make_whole(file, lambda uri: pytest.fail(uri))
    assert rows(file) == [(7,)]


def test_what_fails_half_way_leaves_no_database(tmp_path: Path) -> None:
    file = tmp_path / "store.db"

    def fail(uri: str) -> None:
        make_tables(uri)
        raise RuntimeError(uri)

    with pytest.raises(RuntimeError):
        make_whole(file, fail)
    assert not file.exists()
    make_whole(file, make_tables)
    assert rows(file) == [(7,)]


OPEN = "import sys; from raystudy.tracking.store import Store; print(Store(sys.argv[1]).experiments())"


def opening(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OPEN, f"sqlite:///{file}"], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_process_killed_while_mlflow_makes_its_tables_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """As the driver does to its writer where Ray cannot be reached."""
    file = tmp_path / "mlflow.db"
    process = opening(file)
    while not any(draft.stat().st_size for draft in tmp_path.glob("*.new-*/draft.db")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.communicate()[0] == ""
    assert process.returncode == -signal.SIGKILL
    assert not file.exists()
    assert list(Store(f"sqlite:///{file}").experiments().values()) == ["Default"]
    assert not list(tmp_path.glob("*.new-*"))


@pytest.mark.slow
def test_a_database_that_was_left_half_made_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER)")
    with pytest.raises(StoreRefused, match=f"move {file} away, and `raystudy verify STUDY --repair`"):
        Store(f"sqlite:///{file}")


@pytest.mark.slow
def test_processes_that_open_a_new_store_at_once_all_find_its_tables(tmp_path: Path) -> None:
    processes = [opening(tmp_path / "mlflow.db") for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["{'0': 'Default'}\n"] * 3


def mode_of(file: Path) -> str:
    with closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.parametrize(("file_system", "mode"), [("ext4", "wal"), ("tmpfs", "wal"), ("nfs4", "delete"), ("", "delete")])
def test_a_write_ahead_log_is_only_where_all_processes_share_a_machine(
    file_system: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=file_system)]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts if file_system else [])
    make_whole(tmp_path / "store.db", make_tables)
    assert mode_of(tmp_path / "store.db") == mode
    assert rows(tmp_path / "store.db") == [(7,)]


@pytest.mark.parametrize(("before", "after", "waits"), [("delete", "persist", 2), ("wal", "wal", 1)])
def test_a_commit_waits_for_the_disk_no_more_than_is_needed(before: str, after: str, waits: int, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute(f"PRAGMA journal_mode = {before}")
        commit_quickly(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == (after,)
        assert connection.execute("PRAGMA synchronous").fetchone() == (waits,)
        connection.execute("CREATE TABLE runs (id)")
        connection.commit()
        assert (tmp_path / "store.db-journal").exists() == (after == "persist")


def test_what_is_settled_is_in_the_database_itself(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    make_tables(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO runs VALUES (8)")
        connection.commit()
        (tmp_path / "before.db").write_bytes(file.read_bytes())
        settle(file)
        (tmp_path / "after.db").write_bytes(file.read_bytes())
    assert rows(tmp_path / "before.db") == [(7,)]
    assert rows(tmp_path / "after.db") == [(7,), (8,)]


def test_connecting_does_not_wait_for_whoever_writes(tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "store.db")) as writing,
        closing(sqlite3.connect(tmp_path / "store.db", 0)) as other,
    ):
        writing.execute("CREATE TABLE runs (id)")
        writing.execute("BEGIN EXCLUSIVE")
        commit_quickly(other)
        writing.commit()
        other.execute("INSERT INTO runs VALUES (1)")
