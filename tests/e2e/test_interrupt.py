"""Ctrl-C and SIGTERM save the state and say how to go on."""

from __future__ import annotations

import os
import signal
import time

import pytest
from places import SMALL, Place, Undisturbed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "options"), [(signal.SIGINT, []), (signal.SIGTERM, ["--inline"])], ids=["ray", "inline"])
def test_an_interrupted_study_is_resumed_to_the_same_end(
    place: Place, undisturbed: Undisturbed, number: signal.Signals, options: list[str]
) -> None:
    process = place.start("run", str(place.study_file(**SMALL)), *options)
    while process.poll() is None and place.events() < 8:
        time.sleep(0.01)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 130, f"{out}\n{err}"
    assert "raystudy resume small" in out
    assert place.json("status", "small")["state"] == "interrupted"

    place.call("resume", "small", *options)
    assert place.table() == undisturbed.table
    assert place.json("verify", "small")["ok"]
    # The findings of the interrupted study are replaced by those of the whole one.
    assert place.findings()["n_trials"] == undisturbed.findings["n_trials"] == 6
    assert {share["factors"][0] for share in place.findings()["shares"]} >= {"learning_rate", "frozen_depth"}


def test_the_end_of_a_study_tells_what_matters_and_how_to_see_more(undisturbed: Undisturbed) -> None:
    assert "\nmatters " in undisturbed.told
    assert "raystudy importance small" in undisturbed.told
