"""The same seed gives the same study, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from places import Place

pytestmark = pytest.mark.slow


def test_the_same_seed_gives_the_same_study_on_ray_twice_and_inline(make_place: Callable[[str], Place]) -> None:
    ways: dict[str, tuple[str, ...]] = {"ray": (), "ray-again": (), "inline": ("--inline",)}
    places = {way: make_place(way) for way in ways}
    for way, options in ways.items():
        file = places[way].study_file(budget={"trials": 7, "epochs": 3}, keep_models=0)
        outcome = places[way].json("run", str(file), *options)
        assert outcome["state"] == "completed"
        assert sum(outcome["trials"].values()) == 7
    table, decisions = places["ray"].table(), places["ray"].decisions()
    assert any(row["state"] == "pruned" for row in table)
    for way in ("ray-again", "inline"):
        assert places[way].table() == table
        assert places[way].decisions() == decisions
