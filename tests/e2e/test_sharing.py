"""Studies that share activations of frozen units report what studies that share nothing report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from places import Place

pytestmark = pytest.mark.slow

MODES = {"alone": "off", "one": "on", "two": "on"}
SMALL: dict[str, Any] = {"budget": {"trials": 6, "epochs": 3}, "keep_models": 0}


def _stored_units(place: Place, name: str) -> set[float]:
    return {row["stored_units"] for row in place.json("trials", name)}


def test_two_studies_that_build_the_same_activations_at_once(make_place: Callable[[str], Place]) -> None:
    place = make_place("shared")
    files = {name: place.study_file(name=name, features=mode, **SMALL) for name, mode in MODES.items()}
    place.call("run", str(files["alone"]), "--inline")
    assert _stored_units(place, "alone") == {0}
    # Both begin with the images decoded and no activations, and come to the same ones at about the same time.
    both = {name: place.start("run", str(files[name]), "--inline") for name in ("one", "two")}
    for name, process in both.items():
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert max(_stored_units(place, name)) >= 8
        assert place.table(name) == place.table("alone")
        assert place.decisions(name) == place.decisions("alone")
    kept = [entry for entry in place.json("cache", "ls")["entries"] if entry["kind"] == "activations"]
    assert kept
    assert "freed" in place.call("cache", "clear")
    assert place.json("cache", "ls")["entries"] == []


def test_trials_side_by_side_on_ray_share_too(make_place: Callable[[str], Place]) -> None:
    place = make_place("ray")
    side_by_side: dict[str, Any] = {**SMALL, "resources": {"concurrent": 2}, "search": {"sampler": "random"}}
    # Who reports first decides what ASHA does, so that only a study without it is the same every time.
    side_by_side["early_stopping"] = {"scheduler": "none"}
    for name in ("alone", "one"):
        place.call("run", str(place.study_file(name=name, features=MODES[name], **side_by_side)))
    assert place.table("one") == place.table("alone")
    assert max(_stored_units(place, "one")) >= 8
