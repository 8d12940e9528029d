"""What freezing saves: speed of training and validation at every frozen depth, with and without the cache of frozen prefixes.

    python benchmarks/frozen_depth.py [--backbone efficientnet_lite0] [--image-size 32] [--batch-size 64] [--steps 8]
                                      [--depths 0,9,15,17,18] [--device auto] [--threads 1] [--seconds 2]

One process, one trial after another on scikit-learn's digits, each the trial that a study would run (`TrialRun`), medians over
its epochs after the first. Columns, in images per second where nothing else is said:

    train            in the training loop, the frozen prefix computed in every step
    train, cached    likewise, the prefix read from the cache of activations; "-" where raystudy makes no use of it
    gain             the one over the other
    validate         over the validation images; and cached
    limit            forward, backward and optimiser step of what is not frozen, again and again on one batch whose
                     activations are ready: what must be done and cannot be shared, without reading any batch
    of limit         the faster of both trainings over the limit
    KiB/image        size of the activation at the frozen boundary
    image            that size over the image's own (uint8)
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raystudy.cache import Cache
from raystudy.data import PreparedData, prepare
from raystudy.data.prepared import Splits
from raystudy.factors import Scalar
from raystudy.finetune.backbone import Backbone, build_backbone
from raystudy.finetune.batches import Batch, ImageStore
from raystudy.finetune.compute import Compute
from raystudy.finetune.cpu_convolutions import fast_convolutions
from raystudy.finetune.freezing import Phase, freeze
from raystudy.finetune.model import build_classifier
from raystudy.finetune.objectives import criterion
from raystudy.finetune.optim import GroupedOptimizer, parameter_groups
from raystudy.finetune.prefixes import Sharing
from raystudy.finetune.trial import TrialPlan, TrialRun

EPOCHS = 1000
"""More than are waited for."""
FEWEST = 3
"""Epochs that a median is taken over at least."""


@dataclass(frozen=True)
class Speed:
    """Images per second in the training loop and in validation."""

    train: float
    validate: float


@dataclass(frozen=True)
class Bench:
    """What is the same at every depth.

    Attributes:
        data: the images, cut to `steps` training batches.
        backbone: pretrained; every trial copies it.
        batch_size: images a step.
        device: as `TrialPlan` has it.
        threads: CPU threads.
        seconds: how long to measure each figure, at least.
        cache: where activations are kept.
    """

    data: PreparedData
    backbone: Backbone
    batch_size: int
    device: str
    threads: int
    seconds: float
    cache: Cache

    def open(self, depth: int, features: str, folder: Path) -> TrialRun:
        """Return a trial at `depth` that has not started; `features`: `on` or `off`."""
        config: dict[str, Scalar] = {
            "frozen_depth": depth,
            "batch_size": self.batch_size,
            "learning_rate": 1e-6,
            "schedule": "constant",
        }
        plan = TrialPlan(f"{depth}-{features}", 0, config, EPOCHS, 0, device=self.device, threads=self.threads)
        sharing = Sharing("on", self.cache, epochs=EPOCHS, depths=1) if features == "on" else None
        return TrialRun(plan, self.data, folder, backbone=self.backbone, sharing=sharing)

    def measure(self, depth: int, features: str) -> Speed:
        """Train at `depth` until enough epochs are measured."""
        n_train, n_validation = len(self.data.splits.train), len(self.data.splits.validation)
        speeds: list[Speed] = []
        with tempfile.TemporaryDirectory() as folder:
            run = self.open(depth, features, Path(folder))
            for row in itertools.islice(run.epochs(), 1, None):  # the first warms up, and may fill the cache
                training = n_train / row["images_per_second"]
                validation = max(row["epoch_seconds"] - training, 1e-9)
                speeds.append(Speed(row["images_per_second"], n_validation / validation))
                if len(speeds) >= FEWEST and sum(n_train / speed.train for speed in speeds) >= self.seconds:
                    break
            run.close()
        return Speed(statistics.median(speed.train for speed in speeds), statistics.median(speed.validate for speed in speeds))

    def limit(self, depth: int) -> tuple[float, int]:
        """Return images per second of the rest of the network on ready activations, and bytes per image of these."""
        with self.suffix(depth) as suffix:
            for _ in steps_for(0.0, suffix.compute):
                suffix.step()
            return suffix.speed(self.seconds), suffix.batch.inputs[0].nbytes

    @contextmanager
    def suffix(self, depth: int) -> Iterator[Suffix]:
        """Give the rest of the network, ready to train on one batch of activations."""
        with tempfile.TemporaryDirectory() as folder:
            run = self.open(depth, "off", Path(folder))
            next(iter(run.epochs()))
            model, device = run.model, run.compute.device
            store = ImageStore(self.data.images, self.data.labels, run.compute)
            pixels, labels = store.fetch(self.data.splits.train[: self.batch_size])
            preprocess = build_classifier(model, resolution=run.hyper.resolution).preprocess.to(device)
            model.eval()
            with run.compute.autocast():
                activation = model.prefix(preprocess(pixels), depth)
            n_units = model.backbone.info.n_units
            phase = Phase(1, tuple(range(depth, n_units)), n_units)
            freeze(model, phase)
            optimizer = GroupedOptimizer(parameter_groups(model, phase, run.hyper), run.hyper)
            batch = Batch(activation, labels, labels, 1.0)
            convolutions = fast_convolutions(model.backbone.units[depth:], run.compute)
            yield Suffix(partial(model.rest, depth=depth), optimizer, batch, run.compute, convolutions)
            run.close()


@dataclass
class Suffix:
    """What trains of a network, and a batch of activations that are ready for it.

    Attributes:
        network: from activations to logits.
        optimizer: of its parameters.
        batch: the activations and their labels.
        compute: where and in what precision.
        convolutions: the context under which trials train.
    """

    network: Callable[[Tensor], Tensor]
    optimizer: GroupedOptimizer
    batch: Batch
    compute: Compute
    convolutions: AbstractContextManager[Any]

    def step(self) -> None:
        """Take one optimiser step."""
        with self.compute.autocast(), self.convolutions:
            logits = self.network(self.batch.inputs)
        loss = criterion(logits.float(), self.batch, label_smoothing=0.0)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(1.0)

    def speed(self, seconds: float) -> float:
        """Take steps for as long as asked; return images per second."""
        done, started = 0, time.perf_counter()
        for _ in steps_for(seconds, self.compute):
            self.step()
            done += 1
        self.compute.synchronize()
        return done * len(self.batch.labels) / (time.perf_counter() - started)


def steps_for(seconds: float, compute: Compute) -> Iterator[None]:
    """Yield for `seconds`, and `FEWEST` times at least; every 20 steps a GPU is waited for."""
    started = time.perf_counter()
    for count in itertools.count(1):
        yield
        if count % 20 == 0:
            compute.synchronize()
        if count >= FEWEST and time.perf_counter() - started >= seconds:
            return


def some_images(cache: Path, *, side: int, batch_size: int, steps: int) -> PreparedData:
    """Return digits, `steps` batches of them to train on."""
    data = prepare("sklearn:digits", image_size=side, validation=0.2, test=None, on_bad_image="error", seed=0, cache_dir=cache)
    wanted = min(steps * batch_size, len(data.splits.train) // batch_size * batch_size)
    if not wanted:
        raise SystemExit(f"a batch of {batch_size} is more than the {len(data.splits.train)} training images")
    return replace(data, splits=Splits(data.splits.train[:wanted], data.splits.validation, None))


def print_rows(bench: Bench, depths: list[int]) -> None:
    """Measure at every depth, and print a row each as soon as it is there."""
    heads = ("depth", "unit", "train", "cached", "gain", "validate", "cached", "limit", "of limit", "KiB/image", "image")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    side = bench.data.images.shape[1]
    for depth in depths:
        plain = bench.measure(depth, "off")
        cached = bench.measure(depth, "on") if depth else None
        limit, size = bench.limit(depth)
        best = max(plain.train, cached.train if cached else 0.0)
        cells = [
            str(depth),
            bench.backbone.info.unit_names[depth - 1] if depth else "none",
            f"{plain.train:,.0f}",
            f"{cached.train:,.0f}" if cached else "-",
            f"{cached.train / plain.train:.2f}" if cached else "-",
            f"{plain.validate:,.0f}",
            f"{cached.validate:,.0f}" if cached else "-",
            f"{limit:,.0f}",
            f"{best / limit:.0%}",
            f"{size / 1024:.1f}",
            f"{size / (3 * side * side):.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="training batches an epoch")
    parser.add_argument("--depths", help="by default all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure each figure, at least")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frozen-depth-") as folder:
        data = some_images(Path(folder), side=asked.image_size, batch_size=asked.batch_size, steps=asked.steps)
        backbone = build_backbone(asked.backbone, pretrained=True, image_size=asked.image_size)
        n_units = backbone.info.n_units
        depths = [int(depth) for depth in asked.depths.split(",")] if asked.depths else list(range(n_units + 1))
        compute = Compute.choose(asked.device)
        name = torch.cuda.get_device_name(compute.device) if compute.is_gpu else f"CPU, {asked.threads} threads"
        print(
            f"{asked.backbone} ({n_units} units), {asked.image_size} px, batch {asked.batch_size}, {name}, {compute.precision}"
        )
        cache = Cache(Path(folder))
        print_rows(Bench(data, backbone, asked.batch_size, asked.device, asked.threads, asked.seconds, cache), depths)


if __name__ == "__main__":
    main()
