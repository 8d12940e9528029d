r"""What trials of a study share, on a GPU: beside the stock way to train them from JPEGs, and beside what cannot be shared.

    python benchmarks/gpu.py [--images 4096] [--processes 1,2,4] [--workers 16] [--depths 0,4,8,12,14,16,17] [--out FILE.json]
    python benchmarks/gpu.py --smoke --device cpu           the same path with a small network, in under two minutes

ResNet-50 with random weights at 224 px on synthetic 320 px JPEGs that the script writes first; the study is a fixed list of
trials (`trials_of`) whose frozen depths are uniform over the units and whose epochs are those that ASHA leaves. Compared are

    stock       torchvision's ImageFolder and a DataLoader that decodes the JPEGs in every epoch, float32, units frozen by
                `requires_grad_(False)`, one trial after another
    raystudy    `TrialRun` on images decoded once, without and with stored activations, in one process and in several on the GPU

First one table by frozen depth, in images per second of the training loop: both ways, `limit` (forward, backward and optimiser
step of what trains on activations that are ready), the share of the limit that is reached, the frozen prefix alone, and what
is read of activations in MB/s. Then whole studies: training images over wall time, where the wall time holds everything,
validation, checkpoints, the building of networks and the first computation of activations too; the decoding of the images is
in it as well. Processes start together when each has a CUDA context. The last lines say whether a whole study is at least 4
times, and one of trials that train the last stage only at least 15 times as fast as the stock way.

Beside torch, torchvision, numpy and pillow it needs pyarrow, rapidfuzz and safetensors: no Ray, no MLflow.
For a machine without network put their wheels into a folder that git ignores, and carry that:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d .wheels \
        pyarrow rapidfuzz safetensors
    pip install --no-index --no-deps .wheels/*.whl && PYTHONPATH=. python benchmarks/gpu.py --out $OUT/gpu.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frozen_depth import Bench
from PIL import Image
from torch import Tensor, nn

from raystudy.cache import Cache
from raystudy.data import PreparedData, prepare
from raystudy.factors import Scalar
from raystudy.finetune.backbone import Backbone, build_backbone
from raystudy.finetune.batches import ImageStore
from raystudy.finetune.compute import Compute
from raystudy.finetune.model import build_classifier
from raystudy.finetune.prefixes import Sharing
from raystudy.finetune.trial import TrialPlan, TrialRun

STUDY_TARGET, LAST_STAGE_TARGET = 4.0, 15.0
BUDGET = 9
ASHA_EPOCHS = (1, 1, 3, 1, 1, 9, 1, 3, 1)
"""Of nine trials six stop after the first epoch, two at the second rung, and one trains to the end: grace 1, reduction 3."""
SMOKE_EPOCHS = (1, 2)

Trials = Sequence[tuple[int, int]]
"""Frozen depth and epochs of each."""


@dataclass(frozen=True)
class Job:
    """What is measured, in a form that travels to other processes.

    Attributes:
        folder: holds the JPEGs and the cache.
        backbone: its name.
        image_size: pixels of the network's input.
        jpeg_size: pixels of the files.
        images: how many files.
        classes: how many folders.
        batch_size: images a step.
        workers: of the DataLoader, and of the threads that write the files.
        device: as `TrialPlan` has it.
        threads: CPU threads of a trial.
        seconds: to measure each figure, at least.
        epochs: of the trials, which are twice as many in a whole study.
    """

    folder: str
    backbone: str
    image_size: int
    jpeg_size: int
    images: int
    classes: int
    batch_size: int
    workers: int
    device: str
    threads: int
    seconds: float
    epochs: tuple[int, ...] = ASHA_EPOCHS

    @property
    def jpegs(self) -> Path:
        """The folder of the files."""
        return Path(self.folder) / "jpegs"

    def data(self) -> PreparedData:
        """Return the images; decoded by whoever asks first."""
        source = f"folder:{self.jpegs}"
        cache = Path(self.folder) / "cache"
        return prepare(source, image_size=self.image_size, validation=0.2, on_bad_image="error", seed=0, cache_dir=cache)

    def network(self) -> Backbone:
        """Return the backbone with the same random weights every time."""
        return build_backbone(self.backbone, pretrained=False, seed=0, image_size=self.image_size)


def write_jpegs(job: Job) -> int:
    """Write images of smooth random shapes with some grain, which compress as photos do; return their bytes."""

    def write(number: int) -> int:
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((job.jpeg_size, job.jpeg_size), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-12, 13, (job.jpeg_size, job.jpeg_size, 1), dtype=np.int16)
        file = job.jpegs / f"class{number % job.classes:02d}" / f"{number:06d}.jpg"
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
        return file.stat().st_size

    for label in range(job.classes):
        (job.jpegs / f"class{label:02d}").mkdir(parents=True)
    with ThreadPoolExecutor(max(job.workers, 1)) as pool:
        return sum(pool.map(write, range(job.images)))


def trials_of(n_units: int, epochs: Sequence[int]) -> Trials:
    """Return a study: frozen depths spread evenly over all of them, two for each of `epochs`."""
    depths = np.linspace(0, n_units, 2 * len(epochs)).round().astype(int).tolist()
    order = np.random.default_rng(0).permutation(len(depths))  # so that long trials fall on all kinds of depths
    return list(zip([depths[place] for place in order], itertools.cycle(epochs), strict=False))


# The stock way


class Stock:
    """Trains as one would with torchvision's and torch's parts as they are."""

    def __init__(self, job: Job, data: PreparedData) -> None:
        """Open the JPEGs, with the same split as raystudy."""
        from torch.utils.data import DataLoader, Subset
        from torchvision import datasets, transforms

        self.job, self.compute = job, Compute.choose(job.device, "float32")
        self._network = job.network()
        info = self._network.info
        steps = [transforms.Resize(job.image_size), transforms.CenterCrop(job.image_size), transforms.ToTensor()]
        images = datasets.ImageFolder(str(job.jpegs), transforms.Compose([*steps, transforms.Normalize(info.mean, info.std)]))
        options: dict[str, Any] = {"num_workers": job.workers, "pin_memory": self.compute.is_gpu}
        options["persistent_workers"] = job.workers > 0
        train, held_out = data.splits.train.tolist(), data.splits.validation.tolist()
        self._train: Any = DataLoader(Subset(images, train), job.batch_size, shuffle=True, drop_last=True, **options)
        self._held_out: Any = DataLoader(Subset(images, held_out), 256, **options)
        self.n_train = len(self._train) * job.batch_size

    def build(self, depth: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        """Return the network with its first `depth` units frozen, and the optimiser of the rest."""
        network = copy.deepcopy(self._network)
        for unit in list(network.units)[:depth]:
            unit.requires_grad_(False)
        model = nn.Sequential(*network.units, nn.Linear(network.info.n_features, self.job.classes)).to(self.compute.device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model, torch.optim.AdamW(trained, lr=1e-6)

    def epoch(self, model: nn.Sequential, optimizer: torch.optim.Optimizer, depth: int) -> float:
        """Train for an epoch; return images per second."""
        model.train()
        for unit in list(model)[:depth]:
            unit.eval()
        started = time.perf_counter()
        for images, labels in self._train:
            self._step(model, optimizer, images, labels)
        self.compute.synchronize()
        return self.n_train / (time.perf_counter() - started)

    def validate(self, model: nn.Sequential) -> float:
        """Return the share of the held-out images that is classified rightly."""
        model.eval()
        right = torch.zeros((), device=self.compute.device)
        with torch.no_grad():
            for images, labels in self._held_out:
                right += (model(self._there(images)).argmax(1) == self._there(labels)).sum()
        return right.item() / len(self._held_out.dataset)

    def study(self, trials: Trials) -> float:
        """Train all trials; return the seconds."""
        started = time.perf_counter()
        for depth, epochs in trials:
            model, optimizer = self.build(depth)
            for _ in range(epochs):
                self.epoch(model, optimizer, depth)
                self.validate(model)
        return time.perf_counter() - started

    def decode(self) -> float:
        """Return images per second of the loader alone."""
        next(iter(self._train))
        started = time.perf_counter()
        for _ in self._train:
            pass
        return self.n_train / (time.perf_counter() - started)

    def _step(self, model: nn.Sequential, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        loss = nn.functional.cross_entropy(model(self._there(images)), self._there(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.compute.device, non_blocking=True)


# raystudy


def train_study(job: Job, data: PreparedData, trials: Trials, features: str, cache: Path, backbone: Backbone) -> None:
    """Train trials one after another in this process, as a worker does; `features`: `auto` or `off`."""
    n_units = backbone.info.n_units
    epochs = sum(epochs for _, epochs in trials) / len({depth for depth, _ in trials})
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        for number, (depth, length) in enumerate(trials):
            config: dict[str, Scalar] = {"frozen_depth": depth, "batch_size": job.batch_size, "learning_rate": 1e-6}
            plan = TrialPlan(f"t{number}", number, config, BUDGET, 0, device=job.device, threads=job.threads)
            sharing = Sharing("auto", Cache(cache), epochs, n_units) if features == "auto" else None
            run = TrialRun(plan, data, Path(folder) / str(number), backbone=copy.deepcopy(backbone), sharing=sharing)
            for _ in itertools.islice(run.epochs(), length):
                pass
            run.close()


def work(job: Job, trials: Trials, features: str, cache: str, start: Any) -> None:
    """Train a process's part of a study, once all processes are ready."""
    data, backbone = job.data(), job.network()
    compute = Compute.choose(job.device)
    torch.zeros(1, device=compute.device)
    compute.synchronize()
    start.wait()
    train_study(job, data, trials, features, Path(cache), backbone)


def run_study(job: Job, trials: Trials, features: str, processes: int) -> float:
    """Train a study in new processes; return the seconds from when all are ready until the last one is done."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(processes + 1)
    with tempfile.TemporaryDirectory(dir=job.folder) as cache:
        parts = [trials[number::processes] for number in range(processes)]
        workers = [spawn.Process(target=work, args=(job, part, features, cache, start)) for part in parts]
        for worker in workers:
            worker.start()
        start.wait(180)
        started = time.perf_counter()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process of the study failed: its message is above")
    return seconds


def prefix_speed(job: Job, data: PreparedData, bench: Bench, depth: int) -> float:
    """Return images per second of the frozen units alone, from images that are ready."""
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        run = bench.open(depth, "off", Path(folder))
        next(iter(run.epochs()))
        model, compute = run.model.eval(), run.compute
        pixels, _ = ImageStore(data.images, data.labels, compute).fetch(data.splits.train[: job.batch_size])
        preprocess = build_classifier(model, resolution=run.hyper.resolution).preprocess.to(compute.device)
        with torch.no_grad(), compute.autocast():
            for _ in repeats(0.0, compute):
                model.prefix(preprocess(pixels), depth)
            count, started = 0, time.perf_counter()
            for _ in repeats(job.seconds, compute):
                model.prefix(preprocess(pixels), depth)
                count += 1
            compute.synchronize()
        speed = count * job.batch_size / (time.perf_counter() - started)
        run.close()
    return speed


def repeats(seconds: float, compute: Compute) -> Iterator[None]:
    """Yield for `seconds`, 5 times at least, and let a GPU never be far behind."""
    started = time.perf_counter()
    for count in itertools.count(1):
        yield
        if count % 20 == 0:
            compute.synchronize()
        if count >= 5 and time.perf_counter() - started >= seconds:
            return


# Tables


def by_depth(job: Job, data: PreparedData, stock: Stock, depths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Print and yield a row for each frozen depth."""
    backbone = job.network()
    cache = Cache(Path(job.folder) / "by-depth")
    bench = Bench(data, backbone, job.batch_size, job.device, job.threads, job.seconds, cache)
    heads = ("depth", "unit", "stock", "raystudy", "stored", "gain", "limit", "of limit", "prefix", "KiB/image", "read MB/s")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for depth in depths:
        model, optimizer = stock.build(depth)
        stock.epoch(model, optimizer, depth)  # warms up
        plain_way = stock.epoch(model, optimizer, depth)
        del model, optimizer
        computed = bench.measure(depth, "off").train
        stored = bench.measure(depth, "on").train if depth else 0.0
        limit, size = bench.limit(depth)
        best = max(computed, stored)
        row: dict[str, float | str] = {
            "depth": depth,
            "unit": backbone.info.unit_names[depth - 1] if depth else "none",
            "stock": plain_way,
            "raystudy": computed,
            "stored": stored,
            "gain": best / plain_way,
            "limit": limit,
            "of_limit": best / limit,
            "prefix": prefix_speed(job, data, bench, depth) if depth else 0.0,
            "kib": size / 1024 if depth else 0.0,
            "mb_per_s": stored * size / 1e6,
        }
        cells = [f"{value:,.2f}" if name in ("gain", "of_limit") else _cell(value) for name, value in row.items()]
        print("| " + " | ".join(cells) + " |", flush=True)
        yield row


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value else "-"


def studies(job: Job, stock: Stock, trials: Trials, processes: Sequence[int], decode_s: float) -> dict[str, Any]:
    """Train a study in all ways; print a line each; return images per second by way."""
    images = stock.n_train * sum(epochs for _, epochs in trials)
    seconds = {"stock": stock.study(trials)}
    print(f"  stock: {seconds['stock']:.1f} s, {images / seconds['stock']:,.0f} images/s", flush=True)
    for features, count in [("off", 1), *(("auto", count) for count in processes)]:
        # Decoding is paid for by the study as a whole, before its first trial.
        name = f"{count} process{'es' if count > 1 else ''}, {'stored' if features == 'auto' else 'no'} activations"
        seconds[name] = run_study(job, trials, features, count) + decode_s
        ratio = seconds["stock"] / seconds[name]
        print(f"  {name}: {seconds[name]:.1f} s, {images / seconds[name]:,.0f} images/s, {ratio:.1f} x stock", flush=True)
    return {name: images / value for name, value in seconds.items()}


def judge(what: str, speeds: dict[str, float], target: float) -> dict[str, Any]:
    """Print an acceptance point."""
    name, best = max(((name, speed) for name, speed in speeds.items() if name != "stock"), key=lambda item: item[1])
    ratio = best / speeds["stock"]
    verdict = "met" if ratio >= target else "MISSED"
    print(f"{what}: {ratio:.1f} x stock ({name}), wanted {target:.0f} x: {verdict}")
    return {"what": what, "ratio": ratio, "target": target, "met": ratio >= target, "by": name}


def measure(job: Job, depths: Sequence[int] | None, processes: Sequence[int]) -> dict[str, Any]:
    """Measure and print everything; return it."""
    started = time.perf_counter()
    size = write_jpegs(job)
    print(f"{job.images} JPEGs of {job.jpeg_size} px, {size / job.images / 1024:.1f} KiB each: {_since(started)}", flush=True)
    started = time.perf_counter()
    data = job.data()
    decode_s = time.perf_counter() - started
    compute, info = Compute.choose(job.device), job.network().info
    device = torch.cuda.get_device_name(compute.device) if compute.is_gpu else f"CPU, {job.threads} threads"
    print(f"{job.backbone} ({info.n_units} units), {job.image_size} px, batch {job.batch_size}, {device}, {compute.precision}")
    stock = Stock(job, data)
    loader = stock.decode()
    print(f"decoding: once in {decode_s:.1f} s ({job.images / decode_s:,.0f} images/s); stock loader {loader:,.0f} images/s\n")
    chosen = depths or sorted({0, *np.linspace(1, info.n_units, 6).round().astype(int).tolist()})
    rows = list(by_depth(job, data, stock, chosen))
    last = next((n for n, name in enumerate(info.unit_names) if name.startswith("layer4")), info.n_units - 1)
    trials, last_trials = trials_of(info.n_units, job.epochs), [(last, epochs) for epochs in job.epochs]
    print(f"\na whole study: {len(trials)} trials, {sum(epochs for _, epochs in trials)} epochs, depths 0 to {info.n_units}")
    whole = studies(job, stock, trials, processes, decode_s)
    print(f"\ntrials that train the last stage only (depth {last}): {len(last_trials)} trials")
    only_last = studies(job, stock, last_trials, processes, decode_s)
    limit = next((row["limit"] for row in rows if row["depth"] == last), None)
    if limit:
        print(f"  limit of one process in its training loop: {limit:,.0f} images/s")
    print()
    points = [
        judge("a whole study", whole, STUDY_TARGET),
        judge("trials that train only the last stage", only_last, LAST_STAGE_TARGET),
    ]
    about = {"device": device, "precision": compute.precision, "torch": torch.__version__, "decode_s": decode_s}
    return {"job": asdict(job), **about, "loader": loader, "depths": rows, "study": whole, "last": only_last, "points": points}


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="a network of torchvision")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--jpeg-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=16, help="processes of the stock DataLoader")
    parser.add_argument("--processes", default="1,2,4", help="of raystudy on the GPU")
    parser.add_argument("--depths", help="for the table; by default 7, the last stage's among them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a trial")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure each figure, at least")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    parser.add_argument("--smoke", action="store_true", help="small everything: does it run?")
    asked = parser.parse_args()
    small: dict[str, Any] = {}
    if asked.smoke:
        small = {"backbone": "mobilenet_v3_small", "image_size": 32, "jpeg_size": 48, "images": 80, "batch_size": 16}
        small |= {"workers": min(asked.workers, 1), "threads": 1, "seconds": 0.05, "epochs": SMOKE_EPOCHS}
    values = {"epochs": ASHA_EPOCHS, **vars(asked), **small, "classes": 4 if asked.smoke else 10}
    processes = [int(count) for count in ("1,2" if asked.smoke else asked.processes).split(",")]
    depths = [int(depth) for depth in asked.depths.split(",")] if asked.depths else [0, 7] if asked.smoke else None
    if asked.backbone == "resnet50" and not asked.smoke and depths is None:
        depths = [0, 4, 8, 11, 14, 16, 17]
    torch.set_num_threads(values["threads"])
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-", dir=os.environ.get("TMPDIR")) as folder:
        job = Job(folder, **{name: values[name] for name in Job.__dataclass_fields__ if name != "folder"})
        figures = measure(job, depths, processes)
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
