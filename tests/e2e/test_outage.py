"""MLflow goes away in the middle of a study, and comes back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import SMALL, Place
from stores import Server, free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


def _wait_for_events(place: Place, process: subprocess.Popen[str], count: int) -> None:
    while process.poll() is None:
        if place.events() >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"the study ended before its {count}th event: {process.communicate()}")


def test_a_server_that_is_away_for_a_while_ends_up_with_everything_once(place: Place, server: Server) -> None:
    process = place.start("run", str(place.study_file(**SMALL)), "--tracking-uri", server.uri, "--inline", "--json")
    _wait_for_events(place, process, 6)
    server.kill()
    _wait_for_events(place, process, 20)  # the study goes on without it
    server.start()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, f"{out}\n{err}"
    found = place.json("verify", "small")
    assert found["ok"], found
    assert found["values"] > 50
    best = place.json("best", "small")
    assert best[0]["state"] in ("completed", "pruned")


def test_a_server_that_is_down_at_the_start_is_an_error_and_starts_nothing(place: Place) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    process = place.start("run", str(place.study_file()), "--tracking-uri", uri)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 3
    assert uri in err
    assert "Traceback" not in err
    assert out == ""
    assert not place.journal().exists()
