"""Ctrl-C and SIGTERM save the state and say how to go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from places import Place

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "options"), [(signal.SIGINT, []), (signal.SIGTERM, ["--inline"])])
def test_an_interrupted_study_is_resumed_to_the_same_end(
    make_place: Callable[[str], Place], number: signal.Signals, options: list[str]
) -> None:
    whole, place = make_place("whole"), make_place("interrupted")
    changes = {"budget": {"trials": 6, "epochs": 3}, "keep_models": 0}
    told = whole.call("run", str(whole.study_file(**changes)), "--inline")
    assert "\nmatters " in told
    assert "raystudy importance small" in told

    process = place.start("run", str(place.study_file(**changes)), *options)
    while process.poll() is None and not (place.journal().exists() and place.journal().read_bytes().count(b"\n") >= 8):
        pass
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, f"{out}\n{err}"
    assert "raystudy resume small" in out
    assert place.json("status", "small")["state"] == "interrupted"

    place.call("resume", "small", *options)
    assert place.table() == whole.table()
    assert place.json("verify", "small")["ok"]
    # The findings of the interrupted study are replaced by those of the whole one.
    assert place.findings()["n_trials"] == whole.findings()["n_trials"] == 6
    assert {share["factors"][0] for share in place.findings()["shares"]} >= {"learning_rate", "frozen_depth"}
