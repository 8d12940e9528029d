"""What the end-to-end tests share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from images import write_idx
from places import SMALL, Place, Undisturbed
from stores import empty_store


@pytest.fixture(scope="session", autouse=True)
def one_way_to_authenticate() -> Iterator[None]:
    """Let every Ray that these tests start in their own process ask for no token.

    Ray's libraries read the mode once in a process, and a local Ray turns tokens on by itself: later ones would be refused.
    """
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    yield
    if before is None:
        del os.environ["RAY_AUTH_MODE"]
    else:
        os.environ["RAY_AUTH_MODE"] = before


def place_in(parent: Path, name: str, *, has_store: bool = True) -> Place:
    """Make a place in `parent`, with an empty MLflow store unless a command is to make it: that takes seconds."""
    folder = parent / name
    folder.mkdir()
    (folder / "images").symlink_to(parent / "images")
    environment = {
        **os.environ,
        "RAYSTUDY_HOME": str(folder / "home"),
        "RAYSTUDY_CACHE": str(parent / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_AUTH_MODE": "disabled",
    }
    for variable in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(variable, None)
    if has_store:
        empty_store(folder / "home")
    return Place(folder, environment)


def write_images(parent: Path) -> None:
    """Write the images of all places in `parent`."""
    write_idx(parent / "images", n_classes=4, per_class=50, side=8)


@pytest.fixture
def make_place(tmp_path: Path) -> Callable[[str], Place]:
    """Give a function that makes a fresh place; places of one test share images and cache."""
    write_images(tmp_path)
    return partial(place_in, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Give a study of `SMALL` size that ran inline to its end without any trouble; it is run once for all tests."""
    parent = tmp_path_factory.mktemp("undisturbed")
    write_images(parent)
    place = place_in(parent, "whole", has_store=False)
    told = place.call("run", str(place.study_file(**SMALL)), "--inline")
    return Undisturbed(place, told, place.table(), place.decisions(), place.events(), place.findings())


@pytest.fixture
def place(make_place: Callable[[str], Place]) -> Place:
    """Give one place."""
    return make_place("place")


@pytest.fixture
def rng() -> np.random.Generator:
    """Give random moments that are the same in every run."""
    return np.random.default_rng(20261123)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Give a function that prints how long a step took, whether or not the test's output is captured."""
    last = time.monotonic()

    def step(what: str) -> None:
        nonlocal last
        now = time.monotonic()
        with capsys.disabled():
            print(f"\n{now - last:6.1f} s  {what}", end="", flush=True)
        last = now

    return step
