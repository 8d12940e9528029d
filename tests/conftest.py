"""What makes the tests quick without leaving any of them out."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

E2E = Path(__file__).parent / "e2e"
WITHOUT_RAY = ("test_browser.py", "test_outage.py", "test_rest.py", "test_sharing.py::test_two_studies", "[inline")
"""What names the end-to-end tests that start no Ray."""
COSTLY = {"uri", "own_uri", "shelf", "exported", "asked"}
"""Fixtures that take seconds: an MLflow store in SQLite (imports, tables), an exported model, an answer from 60 trials."""
MEMORY = Path("/dev/shm")

# How long an example takes depends on what else the machine does. Tests with costly examples say themselves how many they need.
settings.register_profile("raystudy", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raystudy")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the thousands of small files of the fast tests in memory, where there is enough: disks take as long as the tests."""
    if "not slow" in config.option.markexpr and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**31:
        os.environ.setdefault("TMPDIR", str(MEMORY))
        tempfile.tempdir = None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the end-to-end tests, which are all slow, unread where slow tests are left out: what they import takes seconds."""
    if collection_path == E2E and "not slow" in config.option.markexpr:
        return True
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every end-to-end test, and those with costly fixtures, as slow: so none is left out of both halves of the tests."""
    if E2E in item.path.parents or COSTLY.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.slow)


class OneRayAtATime(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Lets one process run the tests that start a Ray, one after the other: two cores cannot feed two of them.

    The other processes run, meanwhile, whatever else there is. (pytest-xdist's own groups are lost on pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = f"{E2E.parent.name}/{E2E.name}/"
        starts_ray = nodeid.startswith(folder) and not any(part in nodeid for part in WITHOUT_RAY)
        return folder if starts_ray else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRayAtATime | None:
    """Keep the end-to-end tests together where a run asks for `--dist loadscope`."""
    return OneRayAtATime(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_sessionstart() -> None:
    """Let nothing be collected while modules are imported: hardly any of their objects is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector the hundreds of thousands of objects of imported modules, at every collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_is_no_garbage() -> None:
    """Spare it also what earlier modules' tests have imported: every trial that closes asks for a collection."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def disks_are_not_waited_for() -> Iterator[None]:
    """Let `fsync` and `fdatasync` in the tests' own process check their file only: nobody cuts the power.

    Disks that refuse to write are played by `disks.Disk` in their place, and processes that are killed are others.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda file: os.fstat(file) and None)
        yield
