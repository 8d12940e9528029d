"""How studies share a cluster: the division, and the calling cards that it follows from."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystudy import host
from raystudy.host import calling_card, exclusive
from raystudy.paths import StudyPaths
from raystudy.shares import REFRESH_S, Claim, Share, divide

NOW = 1_700_000_000.0
CLOSE = 1e-6


def claim(name: str, **values: Any) -> Claim:
    return Claim(**{"name": name, "priority": 1.0, "slots": 8, "wants": 100, "served": 0.0, "started": 0.0, **values})


@st.composite
def claims(draw: st.DrawFn, *, greedy: bool = False, slots: int | None = None) -> list[Claim]:
    return [
        Claim(
            name=f"study{number}",
            priority=draw(st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0]) | st.floats(0.01, 100)),
            slots=slots or draw(st.integers(0 if not greedy else 1, 30)),
            wants=1000 if greedy else draw(st.integers(0, 40)),
            served=draw(st.floats(0, 1e6) | st.just(0.0)),
            started=draw(st.floats(0, 1e9)),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


# The division


@given(claims())
def test_no_more_is_given_than_the_cluster_has_and_to_nobody_more_than_wanted(everyone: list[Claim]) -> None:
    given_to = divide(everyone)
    assert set(given_to) == {one.name for one in everyone}
    assert sum(given_to[one.name] / one.slots for one in everyone if one.slots) <= 1 + CLOSE
    assert all(0 <= given_to[one.name] <= one.wants for one in everyone)
    assert all(given_to[one.name] == 0 for one in everyone if not one.slots)


@given(claims())
def test_nothing_stays_free_that_somebody_wants_and_could_use(everyone: list[Claim]) -> None:
    given_to = divide(everyone)
    free = 1 - sum(given_to[one.name] / one.slots for one in everyone if one.slots)
    for one in everyone:
        assert not one.slots or given_to[one.name] == one.wants or 1 / one.slots > free - CLOSE


@given(st.integers(1, 60).flatmap(lambda slots: claims(greedy=True, slots=slots)))
def test_where_all_want_everything_they_get_it_in_the_ratio_of_their_priorities_within_one_slot(everyone: list[Claim]) -> None:
    given_to = divide(everyone)
    for one in everyone:
        for other in everyone:
            assert (given_to[one.name] - 1) / one.priority <= given_to[other.name] / other.priority + CLOSE


@given(claims(), st.randoms(use_true_random=False))
def test_the_order_of_the_claims_does_not_matter(everyone: list[Claim], random: Any) -> None:
    shuffled = list(everyone)
    random.shuffle(shuffled)
    assert divide(shuffled) == divide(everyone)


@given(claims(greedy=True).filter(len))
def test_whoever_was_served_least_for_its_priority_gets_something(everyone: list[Claim]) -> None:
    """So that nobody starves: to be passed over, a study has to have been served more than another."""
    least = min(everyone, key=lambda one: (one.served / one.priority, one.started, one.name))
    assert divide(everyone)[least.name] >= 1


def test_a_study_alone_has_the_whole_cluster() -> None:
    assert divide([claim("a", slots=12)]) == {"a": 12}
    assert divide([]) == {}


@pytest.mark.parametrize(
    ("everyone", "expected"),
    [
        ([claim("a"), claim("b")], [4, 4]),
        ([claim("a", priority=3), claim("b")], [6, 2]),
        ([claim("a", wants=1), claim("b")], [1, 7]),
        ([claim("a", slots=1), claim("b")], [1, 0]),  # its trial takes the whole cluster, and it came first
        ([claim("a", slots=1, served=1), claim("b")], [0, 8]),
        ([claim("a", slots=2), claim("b", slots=8)], [1, 4]),
        ([claim("a", slots=1, started=2), claim("b", slots=1, started=1)], [0, 1]),
        ([claim("a", slots=3), claim("b", slots=3, served=0.5)], [2, 1]),
    ],
)
def test_divisions_that_are_plain_to_see(everyone: list[Claim], expected: list[int]) -> None:
    assert list(divide(everyone).values()) == expected


def rounds(everyone: list[Claim]) -> Any:
    """Yield the claims after each of many rounds in which everybody runs what it is given."""
    while True:
        given_to = divide(everyone)
        everyone = [replace(one, served=one.served + given_to[one.name] / one.slots) for one in everyone]
        yield everyone


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_equal_studies_are_served_equally_in_the_long_run_however_few_the_slots(n_studies: int, slots: int) -> None:
    turns = rounds([claim(f"study{number}", slots=slots, started=number) for number in range(n_studies)])
    for _, everyone in zip(range(40), turns, strict=False):
        served = [one.served for one in everyone]
        assert max(served) - min(served) <= 1 / slots + CLOSE
    assert sum(served) == pytest.approx(40)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1.0, 2.0, 4.0])), min_size=2, max_size=4))
def test_studies_with_trials_of_any_size_and_priority_all_get_their_turns(studies: list[tuple[int, float]]) -> None:
    everyone = [claim(f"study{n}", slots=slots, priority=priority) for n, (slots, priority) in enumerate(studies)]
    waits = dict.fromkeys((one.name for one in everyone), 0)
    for _, after in zip(range(150), rounds(everyone), strict=False):
        for before, one in zip(everyone, after, strict=True):
            waits[one.name] = 0 if one.served > before.served else waits[one.name] + 1
            # Until the others have caught up with the largest step that it can make, a slot at a time.
            longest = sum(other.slots * other.priority for other in after if other is not one) / one.priority
            assert waits[one.name] <= longest + len(after)
        everyone = after


# Calling cards


class Clock:
    """A time that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def card_of(name: str) -> Path:
    card = StudyPaths.of(name).driver
    card.parent.mkdir(parents=True, exist_ok=True)
    return card


def share_of(name: str, clock: Clock, *, slots: int = 8, priority: float = 1.0) -> Share:
    return Share(name, card_of(name), priority=priority, slots=lambda: slots, now=clock)


def write_card(name: str, content: object, clock: Clock) -> Path:
    card = card_of(name)
    card.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    os.utime(card, (clock.now, clock.now))
    return card


def fields_of(one: Claim) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Claim.__slots__}


@pytest.mark.parametrize(
    ("slots", "left", "expected"),
    [(8, 100, 8), (8, 3, 3), (8, 0, 0), (0, 100, 1)],  # a trial that fits nowhere has to be tried to be seen failing
)
def test_a_study_without_others_has_what_it_can_use(clock: Clock, slots: int, left: int, expected: int) -> None:
    assert share_of("a", clock, slots=slots).quota(0, left) == expected


def test_two_studies_see_each_others_cards_and_share(clock: Clock) -> None:
    first, second = share_of("a", clock), share_of("b", clock, priority=3)
    assert first.quota(0, 100) == 8
    clock.now += 1
    assert second.quota(0, 100) == 6
    clock.now += REFRESH_S
    assert (first.quota(8, 92), second.quota(0, 100)) == (2, 6)


def test_what_one_study_leaves_the_other_gets(clock: Clock) -> None:
    first, second = share_of("a", clock), share_of("b", clock)
    second.quota(1, 0)
    assert first.quota(0, 100) == 7


@pytest.mark.parametrize("step", [0.0, 0.25, 4.99])
def test_the_share_is_worked_out_anew_every_few_seconds_only(clock: Clock, step: float) -> None:
    looks = count(1)
    share = Share("a", card_of("a"), priority=1.0, slots=lambda: next(looks), now=clock)
    assert share.quota(0, 100) == 1
    while step and clock.now + step < NOW + REFRESH_S:
        clock.now += step
        assert share.quota(0, 100) == 1
    assert share.quota(0, 100) == 1
    clock.now = NOW + REFRESH_S
    assert share.quota(0, 100) == 2


def test_a_card_that_is_no_longer_renewed_is_forgotten(clock: Clock) -> None:
    alive, dead = share_of("a", clock), share_of("b", clock)
    dead.quota(0, 100)
    clock.now += 59
    assert alive.quota(0, 100) == 4
    clock.now += REFRESH_S
    assert alive.quota(0, 100) == 8


def test_a_study_that_ended_takes_its_card_with_it(clock: Clock) -> None:
    files = StudyPaths.of("b")
    files.root.mkdir(parents=True)
    with calling_card(files):
        share_of("b", clock).quota(0, 100)
        assert share_of("a", clock).quota(0, 100) == 4
    assert share_of("a", clock).quota(0, 100) == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        [],
        "claim",
        {},
        {"pid": 1, "host": "h"},
        {"claim": None},
        {"claim": []},
        {"claim": {"name": "b"}},
        {"claim": fields_of(claim("b", slots="many"))},
        {"claim": fields_of(claim("b", wants=None))},
        {"claim": fields_of(claim("b", served=[]))},
        {"claim": fields_of(claim("b", priority=0))},
        {"claim": fields_of(claim("b", priority=-1))},
        {"claim": fields_of(claim("b", priority=float("nan")))},
        {"claim": fields_of(claim("b", served=float("nan")))},
        {"claim": fields_of(claim("b", slots=float("inf")))},
    ],
    ids=lambda content: content[:9].hex() or "empty" if isinstance(content, bytes) else json.dumps(content)[-40:],
)
def test_a_card_that_says_nothing_sensible_is_nobodys(clock: Clock, content: object) -> None:
    write_card("b", content, clock)
    assert share_of("a", clock).quota(0, 100) == 8


def test_a_card_of_a_newer_version_that_says_more_still_counts(clock: Clock) -> None:
    write_card("b", {"claim": {**fields_of(claim("b")), "mood": "good"}}, clock)
    assert share_of("a", clock).quota(0, 100) == 4


def test_an_own_card_that_is_garbage_is_written_anew(clock: Clock) -> None:
    card = write_card("a", ["?"], clock)
    assert share_of("a", clock).quota(0, 100) == 8
    assert json.loads(card.read_text())["claim"]["name"] == "a"


def test_a_card_that_cannot_be_written_costs_the_study_nothing(clock: Clock, tmp_path: Path, home: Path) -> None:
    write_card("b", {"claim": fields_of(claim("b"))}, clock)
    blocked = tmp_path / "file" / "driver.json"
    blocked.parent.write_text("a file where the folder should be")
    assert Share("a", blocked, priority=1.0, slots=lambda: 8, now=clock).quota(0, 100) == 4
    assert sorted(path.name for path in (home / "studies").iterdir()) == ["b"]


def test_cards_that_cannot_be_read_cost_the_study_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Path:
        raise OSError(116, "Stale file handle")

    share = share_of("a", clock)
    monkeypatch.setattr("raystudy.paths.studies", broken)
    assert share.quota(0, 100) == 8


def test_stop_still_finds_the_process_of_a_study_that_shares_a_cluster(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    files = StudyPaths.of("a")
    with exclusive(files), calling_card(files):
        files.journal.touch()
        share_of("a", clock).quota(2, 100)
        card = json.loads(files.driver.read_text())
        assert (card["pid"], card["host"], card["claim"]["wants"]) == (os.getpid(), socket.gethostname(), 8)
        assert host.stop("a") == os.getpid()
        assert [path.name for path in files.root.glob("*.tmp")] == []
    assert signals == [(os.getpid(), signal.SIGINT)]


def test_a_clock_that_is_put_back_neither_freezes_the_share_nor_revives_the_dead(clock: Clock) -> None:
    dead, share, other = share_of("dead", clock), share_of("a", clock), share_of("b", clock)
    for one in (dead, share, other):
        one.quota(0, 100)
    clock.now -= 3600
    share.quota(4, 96)
    other.quota(4, 96)
    assert share.quota(4, 96) == 8  # nobody else had the new time when it looked
    clock.now += REFRESH_S
    assert share.quota(4, 96) == 4
    assert json.loads(card_of("a").read_text())["claim"]["served"] >= 0


TRIAL_S = 30


def take_turns(clock: Clock, everyone: dict[str, Share], seconds: int) -> dict[str, int]:
    """Let studies run trials on a cluster with one slot; return how many trials each could start."""
    had = dict.fromkeys(everyone, 0)
    running, ends = "", 0.0
    for _ in range(seconds):
        clock.now += 1
        if clock.now >= ends:
            running = ""
        quotas = {name: share.quota(int(name == running), 100) for name, share in everyone.items()}
        ready = [name for name, quota in quotas.items() if quota]
        if not running and ready:
            running, ends = ready[0], clock.now + TRIAL_S
            had[running] += 1
    return had


@pytest.mark.parametrize("n_studies", [2, 3, 5])
def test_more_studies_than_slots_take_turns_and_the_slot_is_not_idle_for_long(clock: Clock, n_studies: int) -> None:
    n_trials = 4 * n_studies
    everyone = {f"study{n}": share_of(f"study{n}", clock, slots=1) for n in range(n_studies)}
    had = take_turns(clock, everyone, n_trials * TRIAL_S)
    assert max(had.values()) - min(had.values()) <= 1
    assert sum(had.values()) >= n_trials * TRIAL_S / (TRIAL_S + 2 * REFRESH_S)


def test_priority_counts_where_studies_take_turns(clock: Clock) -> None:
    everyone = {"a": share_of("a", clock, slots=1), "b": share_of("b", clock, slots=1, priority=3)}
    had = take_turns(clock, everyone, 40 * TRIAL_S)
    assert had["b"] / had["a"] == pytest.approx(3, abs=0.3)


def test_a_newcomer_takes_turns_at_once_instead_of_catching_up(clock: Clock) -> None:
    """A study that has run for hours is not to stand still until one that comes later, or comes back, has run as long."""
    oldest = share_of("a", clock, slots=1)
    assert take_turns(clock, {"a": oldest}, 60 * TRIAL_S) == {"a": 60}
    newcomer = share_of("b", clock, slots=1)
    had = take_turns(clock, {"a": oldest, "b": newcomer}, 10 * TRIAL_S)
    assert abs(had["a"] - had["b"]) <= 1
    returned = share_of("a", clock, slots=1)  # its driver has died, and is back
    had = take_turns(clock, {"a": returned, "b": newcomer}, 10 * TRIAL_S)
    assert abs(had["a"] - had["b"]) <= 1
