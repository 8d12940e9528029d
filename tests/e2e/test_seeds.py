"""The same seed gives the same study, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from places import SMALL, Place, Undisturbed

pytestmark = pytest.mark.slow


def test_the_same_seed_gives_the_same_study_on_ray_twice_and_inline(
    make_place: Callable[[str], Place], undisturbed: Undisturbed
) -> None:
    for name in ("ray", "ray again"):
        place = make_place(name)
        outcome = place.json("run", str(place.study_file(**SMALL)))
        assert outcome["state"] == "completed"
        assert sum(outcome["trials"].values()) == 6
        assert place.table() == undisturbed.table
        assert place.decisions() == undisturbed.decisions
    assert len(place.json("trials", "small")) == 6
    assert any(row["state"] == "pruned" for row in undisturbed.table)
