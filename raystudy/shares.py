"""How several studies share one cluster: each driver works out the same division from what all drivers say of themselves.

Ray has no quotas, and a study that got hold of every slot first would keep them, since processes are reused from trial to
trial. So every driver hands out no more trials at a time than its share. The shares follow from the calling cards that the
drivers keep in the studies' folders, which one head's drivers all see; nobody has to be asked, and whoever dies is forgotten.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystudy import paths

_log = logging.getLogger(__name__)

REFRESH_S = 5.0
_FORGET_S = 60.0
"""A card that was not renewed for so long belongs to a driver that is dead, or whose storage is away."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one study says of itself.

    Attributes:
        name: the study.
        priority: its weight.
        slots: trials of it that would fit on the whole cluster.
        wants: trials that it could run now, given the cluster.
        served: slot-seconds that it has had, each as a share of the cluster.
        started: when its driver started, seconds since 1970.
    """

    name: str
    priority: float
    slots: int
    wants: int
    served: float
    started: float


def divide(claims: Sequence[Claim]) -> dict[str, int]:
    """Divide the cluster: trials at a time for each study.

    Slots are given out one by one, each to the study that has the least of the cluster for its priority (weighted max-min
    fairness), until nothing fits or nobody wants more. Among equals the one goes first that has been served least, so that
    where there are more studies than slots they take turns, trial by trial.
    """
    given = {claim.name: 0 for claim in claims}
    free = 1.0
    waiting = [claim for claim in claims if claim.wants > 0 and claim.slots > 0]
    while waiting:
        claim = min(waiting, key=lambda one: _turn(one, given[one.name]))
        if 1 / claim.slots <= free + 1e-9 and given[claim.name] < claim.wants:
            given[claim.name] += 1
            free -= 1 / claim.slots
        else:
            waiting.remove(claim)
    return given


def _turn(claim: Claim, given: int) -> tuple[float, float, float, str]:
    return given / claim.slots / claim.priority, claim.served / claim.priority, claim.started, claim.name


class Share:
    """One driver's part of the cluster, worked out anew every few seconds."""

    def __init__(
        self,
        name: str,
        card: Path,
        *,
        priority: float,
        slots: Callable[[], int],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Begin with nothing known of the others.

        Args:
            name: the study.
            card: this driver's calling card, in a folder beside those of the other studies.
            priority: the study's weight.
            slots: tells how many of its trials fit on the whole cluster.
            now: the time in seconds since 1970.
        """
        self._name, self._card, self._priority = name, card, priority
        self._slots, self._now = slots, now
        self._started = self._looked = now()
        self._looked -= 2 * REFRESH_S
        self._served = 0.0
        self._is_new = True
        self._quota = 0

    def quota(self, running: int, left: int) -> int:
        """Return how many trials may run at a time now.

        Args:
            running: trials that run.
            left: trials that could be started besides.
        """
        now = self._now()
        passed = now - self._looked
        if not 0 <= passed < REFRESH_S:  # also where the clock was put back
            slots = max(1, self._slots())
            self._served += running / slots * max(0.0, min(passed, _FORGET_S))
            self._looked = now
            self._renew(slots, min(slots, running + left))
        return self._quota

    def _renew(self, slots: int, wants: int) -> None:
        try:
            others = [claim for claim in self._others() if claim.name != self._name]
        except OSError as error:  # a card is not worth a study
            _log.warning("the other studies' shares cannot be read: %s", error)
            others = []
        if self._is_new:
            # Where studies take turns, a newcomer would have all of them until it had caught up with those that were first.
            self._served += self._priority * min((claim.served / claim.priority for claim in others), default=0.0)
            self._is_new = False
        own = Claim(self._name, self._priority, slots, wants, round(self._served, 3), self._started)
        try:
            self._publish(own)
        except OSError as error:
            _log.warning("the other studies cannot be told of this one's share: %s", error)
        self._quota = divide([own, *others])[self._name]

    def _publish(self, own: Claim) -> None:
        card = {**_read(self._card), "claim": {key: getattr(own, key) for key in Claim.__slots__}}
        temporary = self._card.with_suffix(".tmp")
        temporary.write_text(json.dumps(card))
        temporary.replace(self._card)
        os.utime(self._card, (self._now(), self._now()))  # by the clock that judges it

    def _others(self) -> list[Claim]:
        found = []
        for path in sorted(paths.studies().glob(f"*/{self._card.name}")):
            try:
                if abs(self._now() - path.stat().st_mtime) < _FORGET_S:
                    found.append(_claim(_read(path)["claim"]))
            except (OSError, KeyError, TypeError, ValueError, OverflowError):
                continue  # it has just ended, is just starting, or is of another version
        return found


def _claim(data: Mapping[str, Any]) -> Claim:
    """Return the claim that a card holds; raise whatever Python raises for what is none."""
    claim = Claim(
        str(data["name"]),
        float(data["priority"]),
        int(data["slots"]),
        int(data["wants"]),
        float(data["served"]),
        float(data["started"]),
    )
    if not (0 < claim.priority < math.inf and 0 <= claim.served < math.inf):
        raise ValueError(f"no claim: {claim}")
    return claim


def _read(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}
