"""What it saves to run trials where their frozen prefix is stored: a cluster played through with measured times.

    python benchmarks/placement.py [--depths 0,9,12,15,17,18] [--backbones 1] [--nodes 3] [--slots 2] [--trials 120]
                                   [--images 50000] [--waiting 1,2,3,6,12,24] [--repetitions 20] [--seconds 1]
                                   [--backbone efficientnet_lite0] [--image-size 32]

Measured on this machine at every depth (see frozen_depth.py): an epoch that computes the prefix, one that reads it, and the
computing of it, all in seconds an image. The rest is played: each node has a cache and runs `slots` trials at a time; a free
slot takes, of the trials that wait, the one that raystudy.search.placement chooses (`placed`), or the one that has waited
longest. Trials have a random depth and one of `backbones` backbones (such as registered source models, each with a prefix of
its own), and last 1, 3, 9 or 27 epochs, a third going on each time. Who finds a prefix being computed waits for it; deeper
ones are computed from shallower ones.

Rows: how many trials wait when a slot comes free. 1 is a cluster at its full size: a trial is proposed just when a slot comes
free, and there is nothing to choose. More wait where a cluster is smaller than it may become, as on spot machines.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from frozen_depth import Bench, some_images

from raystudy.cache import Cache
from raystudy.finetune.backbone import build_backbone
from raystudy.finetune.batches import ImageStore
from raystudy.finetune.model import build_classifier
from raystudy.search.placement import Holdings, Prefix, Waiting, first_for

BATCH = 64


@dataclass(frozen=True)
class Times:
    """Seconds per image at one depth: an epoch that computes the prefix, one that reads it, and the computing of it."""

    computed: float
    read: float
    prefix: float

    @property
    def stores(self) -> bool:
        """Whether trials store activations at this depth."""
        return self.read < self.computed

    @property
    def epoch(self) -> float:
        """Seconds per image of an epoch."""
        return min(self.read, self.computed)


def measure(bench: Bench, depths: Sequence[int]) -> dict[int, Times]:
    """Measure at each depth."""
    found = {}
    for depth in depths:
        plain = bench.measure(depth, "off")
        cached = bench.measure(depth, "on") if depth else plain
        found[depth] = Times(1 / plain.train, 1 / cached.train, prefix_seconds(bench, depth) if depth else 0.0)
    return found


def prefix_seconds(bench: Bench, depth: int) -> float:
    """Return seconds per image to compute what the first `depth` units make of it."""
    with tempfile.TemporaryDirectory() as folder:
        run = bench.open(depth, "off", Path(folder))
        next(iter(run.epochs()))
        store = ImageStore(bench.data.images, bench.data.labels, run.compute)
        pixels, _ = store.fetch(bench.data.splits.train[: bench.batch_size])
        preprocess = build_classifier(run.model, resolution=run.hyper.resolution).preprocess.to(run.compute.device)
        run.model.eval()
        took = []
        for _ in range(7):
            started = time.perf_counter()
            with torch.no_grad():
                run.model.prefix(preprocess(pixels), depth)
            run.compute.synchronize()
            took.append(time.perf_counter() - started)
        run.close()
    return statistics.median(took) / bench.batch_size


@dataclass(frozen=True)
class Job:
    """A trial that is played: its backbone, its depth and how many epochs it lasts."""

    trial_id: str
    backbone: int
    depth: int
    epochs: int

    @property
    def prefix(self) -> Prefix | None:
        """What it reads."""
        return Prefix(self.backbone, self.depth, 1.0) if self.depth else None


def jobs(seed: int, n_trials: int, depths: Sequence[int], backbones: int) -> list[Job]:
    """Draw a study's trials, in the order in which they are proposed."""
    draw = random.Random(seed)
    lasting = draw.choices((1, 3, 9, 27), (18, 6, 2, 1), k=n_trials)
    return [
        Job(f"t{number:04d}", draw.randrange(backbones), draw.choice(depths), epochs) for number, epochs in enumerate(lasting)
    ]


@dataclass
class Play:
    """A cluster at work."""

    times: Mapping[int, Times]
    nodes: int
    slots: int
    waiting: int
    placed: bool
    built: dict[tuple[tuple[str, int], int], float] = field(default_factory=dict)
    """When a node has, or will have, the prefix of a depth."""
    computing: float = 0.0
    holdings: Holdings = field(default_factory=Holdings)

    def run(self, study: Sequence[Job]) -> tuple[float, float]:
        """Return when the last trial ends, and the seconds spent in computing prefixes, both per image."""
        names = [f"n{number}" for number in range(self.nodes)]
        free = [(0.0, number, name) for number, name in enumerate(name for _ in range(self.slots) for name in names)]
        known: list[tuple[float, str, Job]] = []
        left, passed, end = list(study), dict[str, int](), 0.0
        while left:
            now, number, node = heapq.heappop(free)
            for told in [told for told in known if told[0] <= now]:
                known.remove(told)
                if (prefix := told[2].prefix) and self.times[told[2].depth].stores:
                    self.holdings.note(told[1], prefix)
            at_hand = left[: self.waiting]
            job = self._next(node, at_hand, passed, names)
            for other in at_hand[: at_hand.index(job)]:
                passed[other.trial_id] = passed.get(other.trial_id, 0) + 1
            left.remove(job)
            began = self._prefix((node, job.backbone), job.depth, now)
            known.append((began + self.times[job.depth].epoch, node, job))
            done = began + job.epochs * self.times[job.depth].epoch
            heapq.heappush(free, (done, number, node))
            end = max(end, done)
        return end, self.computing

    def _next(self, node: str, at_hand: Sequence[Job], passed: Mapping[str, int], names: Sequence[str]) -> Job:
        if not self.placed:
            return at_hand[0]
        waiting = [Waiting(job.trial_id, job.prefix, passed.get(job.trial_id, 0)) for job in at_hand]
        return at_hand[waiting.index(first_for(node, waiting, self.holdings, names))]

    def _prefix(self, place: tuple[str, int], depth: int, now: float) -> float:
        """Return when the prefix of a depth is there for a trial that begins now."""
        if not depth or not self.times[depth].stores:
            return now
        if (place, depth) not in self.built:
            there = [d for d in range(1, depth) if self.built.get((place, d), now + 1) <= now]
            took = max(self.times[depth].prefix - max((self.times[d].prefix for d in there), default=0.0), 0.0)
            self.computing += took
            self.built[place, depth] = now + took
        return max(now, self.built[place, depth])


def print_rows(times: Mapping[int, Times], arguments: argparse.Namespace) -> None:
    """Play each case with and without placement, on the same studies."""
    print("| waiting | computing prefixes, all slots | placed | wall time | placed | gain |\n|---|---|---|---|---|---|")
    for waiting in arguments.waiting:
        ends: dict[bool, list[float]] = {False: [], True: []}
        spent: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(arguments.repetitions):
            study = jobs(seed, arguments.trials, sorted(times), arguments.backbones)
            for placed in ends:
                end, computing = Play(times, arguments.nodes, arguments.slots, waiting, placed).run(study)
                ends[placed].append(end * arguments.images)
                spent[placed].append(computing * arguments.images)
        before, after = (statistics.fmean(ends[placed]) for placed in (False, True))
        computed, less = (statistics.fmean(spent[placed]) for placed in (False, True))
        print(f"| {waiting} | {computed:.0f} s | {less:.0f} s | {before:.0f} s | {after:.0f} s | {before / after:.3f} x |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=_numbers, default=[0, 9, 12, 15, 17, 18])
    parser.add_argument("--backbones", type=int, default=1, help="among which trials are drawn, all of the same cost")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--slots", type=int, default=2, help="trials at a time on a node")
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--waiting", type=_numbers, default=[1, 2, 3, 6, 12, 24])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each figure is measured, at least")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        data = some_images(cache, side=arguments.image_size, batch_size=BATCH, steps=8)
        backbone = build_backbone(arguments.backbone, pretrained=True, image_size=arguments.image_size)
        bench = Bench(data, backbone, BATCH, "auto", 1, arguments.seconds, Cache(cache))
        times = measure(bench, arguments.depths)
    print("| depth | epoch, us an image | reading the prefix | computing the prefix |\n|---|---|---|---|")
    for depth, at in times.items():
        print(f"| {depth} | {at.computed * 1e6:.0f} | {at.read * 1e6:.0f} | {at.prefix * 1e6:.0f} |")
    print()
    print_rows(times, arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
