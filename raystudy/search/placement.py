"""Which trial runs where: where most of what it reads has been computed before.

On a cluster each node has its own cache, and no trial waits for another node's. So a trial costs less on a node where trials
like it have run: the activations of their frozen units are stored there. Which these are is told by reports, in which a trial
says how many units' output it read, so that what is not stored (`features: off`, a depth at which it does not pay) counts for
nothing. That may be out of date, as a cache evicts: hence it decides only who is first of those that may run anyway, and a
wrong belief costs what is paid without any.

What is proposed never depends on it: the sampler is asked when a slot comes free or could be started, as it would be anyway.
So there is something to choose only where more trials wait than slots are free: on a cluster smaller than it may become.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.finetune.hyperparameters import Hyperparameters

PASSED_MOST = 16
"""How often later trials may be preferred to one that waits."""

_DEPENDS_ON = ("backbone", "resolution", "batch_size", "categories", "images_per_class", "class_imbalance", "strategy")
"""The factors that decide which activations a trial reads, beside how many units are frozen and how many images it takes."""
_DEEPER_THAN_ANY = 1000
"""Stands for all units of a backbone, however many these are."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The activations that a trial reads.

    Attributes:
        kind: equal for trials of which the deeper ones go on from what the others stored.
        depth: units that the images have been through, at least 1.
        share: of the training images, in (0, 1]; smaller shares are inside larger ones.
    """

    kind: Hashable
    depth: int
    share: float


def prefix_of(config: Mapping[str, Scalar]) -> Prefix | None:
    """Return what a trial with these hyperparameters reads if it is stored; None where nothing could be."""
    hyper = Hyperparameters.from_config(config)
    if not hyper.sees_stored_images or not hyper.pretrained or hyper.reinit_units:
        return None
    depth = _depth(hyper)
    kind = tuple(config.get(name) for name in _DEPENDS_ON)
    return Prefix(kind, depth, hyper.data_fraction) if depth > 0 else None


def _depth(hyper: Hyperparameters) -> int:
    """Return how many units are frozen to begin with."""
    if hyper.frozen_depth == PROBE_DEPTH or hyper.strategy != "ft":
        return _DEEPER_THAN_ANY
    return hyper.tuned_unit if hyper.tuned_unit >= 0 else int(hyper.frozen_depth)


class Holdings:
    """Which activations nodes hold, as far as reports have told."""

    def __init__(self) -> None:
        """Know of nothing."""
        self._held: dict[str, dict[Hashable, dict[int, float]]] = {}

    def note(self, node: str, prefix: Prefix) -> None:
        """Remember that a trial read this on the node."""
        shares = self._held.setdefault(node, {}).setdefault(prefix.kind, {})
        shares[prefix.depth] = max(shares.get(prefix.depth, 0.0), prefix.share)

    def saved(self, node: str, prefix: Prefix | None) -> float:
        """Return how much of the computing the node has behind it, as units of all the trial's images; 0 if none."""
        if prefix is None:
            return 0.0
        shares = self._held.get(node, {}).get(prefix.kind, {})
        return max((d * min(1.0, share / prefix.share) for d, share in shares.items() if d <= prefix.depth), default=0.0)

    def gain(self, node: str, prefix: Prefix | None, others: Iterable[str]) -> float:
        """Return how much more the node has than the one of the others that has most; negative where that has more."""
        return self.saved(node, prefix) - max((self.saved(other, prefix) for other in others if other != node), default=0.0)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A trial that may run next.

    Attributes:
        trial_id: its id.
        prefix: what it reads.
        passed: how often a later one was preferred to it.
    """

    trial_id: str
    prefix: Prefix | None
    passed: int = 0


def first_for(node: str, waiting: Sequence[Waiting], holdings: Holdings, nodes: Iterable[str]) -> Waiting:
    """Return the trial that gains most by a slot on `node`, the earliest of equals; none is passed over for ever.

    Args:
        node: where the slot is.
        waiting: at least one trial, those that have waited longest first.
        holdings: what nodes hold.
        nodes: where trials could run instead.
    """
    if waiting[0].passed >= PASSED_MOST:
        return waiting[0]
    others = tuple(nodes)
    return max(waiting, key=lambda trial: holdings.gain(node, trial.prefix, others))


class Placement:
    """What is known of a study's nodes, and how long its trials have been put off."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._holdings = Holdings()
        self._passed: dict[str, int] = {}

    def report(self, node: str, config: Mapping[str, Scalar], stored_units: float) -> None:
        """Take in that a trial has trained on `node` with the output of so many units read from its cache."""
        if stored_units > 0 and (prefix := prefix_of(config)) is not None:
            self._holdings.note(node, prefix)

    def choose(self, node: str, waiting: Mapping[str, Mapping[str, Scalar]], nodes: Iterable[str]) -> str:
        """Return the id of the trial that is to take a slot on `node`.

        Args:
            node: where the slot is.
            waiting: the hyperparameters of at least one trial by its id, those that have waited longest first.
            nodes: where trials of the study run, and slots will come free.
        """
        trials = [Waiting(name, prefix_of(config), self._passed.get(name, 0)) for name, config in waiting.items()]
        chosen = first_for(node, trials, self._holdings, nodes)
        for trial in trials[: trials.index(chosen)]:
            self._passed[trial.trial_id] = trial.passed + 1
        return chosen.trial_id
