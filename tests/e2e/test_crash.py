"""The driver is killed at random moments; what is resumed equals what was never disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from places import SMALL, Place, Undisturbed

pytestmark = pytest.mark.slow


def _kill_after(place: Place, process: subprocess.Popen[str], events: int) -> bool:
    """Kill the driver with SIGKILL once its journal holds `events` events; False if it ended before."""
    while process.poll() is None:
        if place.events() >= events:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.01)
    process.communicate()
    return False


def _torture(tortured: Place, undisturbed: Undisturbed, rng: np.random.Generator, kills: int) -> None:
    file = str(tortured.study_file(**{**SMALL, "keep_models": 1}))
    process = tortured.start("run", file)
    # Every driver gets a few events further, so that the kills are spread over the whole study.
    moments = np.sort(rng.integers(2, undisturbed.events - 1, size=kills))
    killed = 0
    for number, moment in enumerate(moments):
        # A resume adds two or three events of its own.
        killed += _kill_after(tortured, process, int(moment) + 3 * number)
        process = tortured.start("resume", "small")
    process.communicate()
    tortured.call("resume", "small")  # of a finished study: does nothing but complete the record

    assert killed >= kills // 2
    assert tortured.table() == undisturbed.table
    assert tortured.decisions() == undisturbed.decisions
    found = tortured.json("verify", "small")
    assert [found[kind] for kind in ("lost", "duplicate", "orphan", "unfinished", "wrong")] == [[], [], [], [], []]


def test_a_study_killed_three_times_ends_like_an_undisturbed_one(
    place: Place, undisturbed: Undisturbed, rng: np.random.Generator
) -> None:
    _torture(place, undisturbed, rng, kills=3)


@pytest.mark.torture
@pytest.mark.timeout(3000)
def test_a_study_killed_twenty_times_ends_like_an_undisturbed_one(
    place: Place, undisturbed: Undisturbed, rng: np.random.Generator
) -> None:
    _torture(place, undisturbed, rng, kills=20)
