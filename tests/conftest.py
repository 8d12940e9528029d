"""What makes the tests quick without leaving any of them out."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

E2E = Path(__file__).parent / "e2e"

# How long an example takes depends on what else the machine does. Tests with costly examples say themselves how many they need.
settings.register_profile("raystudy", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raystudy")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the end-to-end tests, which are all slow, unread where slow tests are left out: what they import takes seconds."""
    if collection_path == E2E and "not slow" in config.option.markexpr:
        return True
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every end-to-end test as slow, so that none is left out of both halves of the tests."""
    if E2E in item.path.parents:
        item.add_marker(pytest.mark.slow)


def pytest_sessionstart() -> None:
    """Let nothing be collected while modules are imported: hardly any of their objects is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector the hundreds of thousands of objects of imported modules, at every collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def disks_are_not_waited_for() -> Iterator[None]:
    """Let `fsync` and `fdatasync` in the tests' own process check their file only: nobody cuts the power.

    Disks that refuse to write are played by `disks.Disk` in their place, and processes that are killed are others.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda file: os.fstat(file) and None)
        yield
