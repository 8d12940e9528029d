from __future__ import annotations

from raystudy.search.notices import Notices


def test_ray_is_asked_every_few_seconds_at_most() -> None:
    clock, asked = [0.0], []
    drained: dict[str, int] = {}

    def ask() -> dict[str, int]:
        asked.append(clock[0])
        return dict(drained)

    notices = Notices(ask, lambda: clock[0])
    assert not notices.is_leaving("a")
    drained["a"] = 120_000
    clock[0] = 1.0
    assert not notices.is_leaving("a")
    clock[0] = 2.5
    assert notices.is_leaving("a")
    assert not notices.is_leaving("b")
    drained.clear()
    clock[0] = 5.0
    assert not notices.is_leaving("a")
    assert asked == [0.0, 2.5, 5.0]
