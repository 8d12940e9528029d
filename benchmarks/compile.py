"""Whether torch.compile pays within a study: what it gains in an epoch, and after how many epochs it has paid for itself.

    python benchmarks/compile.py [--backbone efficientnet_lite0] [--image-size 32] [--batch-size 64] [--depths 0,9,15]
                                 [--images 1437] [--device auto] [--threads 1] [--seconds 5]

What is compiled is the part of the network that trains, at each frozen depth by itself: every depth is another graph, and so
is every batch size and number of classes. Actors could share what one has compiled through inductor's cache on disk, so two
costs are measured: with that cache empty, and in a fresh process that finds it filled. Columns:

    plain, compiled   images/s of forward, backward and optimiser step on one batch whose activations are ready
    first, later      seconds until the first compiled step is done: nothing cached; everything cached, in a new process
    pays after        epochs of `--images` images that a trial must train until the later start is paid back

Each depth is measured in processes of its own: torch keeps what it has compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from frozen_depth import Bench, some_images

from raystudy.cache import Cache
from raystudy.finetune.backbone import build_backbone


@dataclass(frozen=True)
class Speed:
    """Seconds until the first step was done, and images per second of the later ones."""

    first: float
    images_per_second: float


def measure(bench: Bench, depth: int, *, is_compiled: bool) -> Speed:
    """Take steps on one batch at `depth` for as long as asked."""
    with bench.suffix(depth) as suffix:
        if is_compiled:
            suffix.network = torch.compile(suffix.network, dynamic=False)
            suffix.convolutions = nullcontext()
        started = time.perf_counter()
        suffix.step()
        suffix.compute.synchronize()
        first = time.perf_counter() - started
        return Speed(first, suffix.speed(bench.seconds))


def in_a_process(depth: int, cache: Path, *, is_compiled: bool) -> Speed:
    """Measure, as this process was asked to, in a fresh one whose inductor keeps what it compiles in `cache`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", str(depth), *(["--compiled"] if is_compiled else [])]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"depth {depth} could not be measured:\n{done.stderr[-3000:]}")
    return Speed(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--depths", default="0,9,15", help="frozen depths")
    parser.add_argument("--images", type=int, default=1437, help="images that a trial trains in an epoch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each figure, at least")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        with tempfile.TemporaryDirectory(prefix="compile-") as folder:
            data = some_images(Path(folder), side=asked.image_size, batch_size=asked.batch_size, steps=2)
            backbone = build_backbone(asked.backbone, pretrained=True, image_size=asked.image_size)
            bench = Bench(data, backbone, asked.batch_size, asked.device, asked.threads, asked.seconds, Cache(Path(folder)))
            speed = measure(bench, asked.one, is_compiled=asked.compiled)
        print(json.dumps([speed.first, speed.images_per_second]))
        return
    load = os.getloadavg()[0]
    print(f"{asked.backbone}, {asked.image_size} px, batch {asked.batch_size}, {asked.threads} threads, load {load:.1f}")
    print("depth | plain | compiled | gain | first, s | later, s | pays after", flush=True)
    for depth in (int(text) for text in asked.depths.split(",")):
        with tempfile.TemporaryDirectory(prefix="compile-cache-") as cache:
            plain = in_a_process(depth, Path(cache), is_compiled=False)
            compiled = in_a_process(depth, Path(cache), is_compiled=True)
            later = in_a_process(depth, Path(cache), is_compiled=True)
        saved = asked.images / plain.images_per_second - asked.images / compiled.images_per_second
        pays = f"{math.ceil((later.first - plain.first) / saved)} epochs" if saved > 0 else "never"
        rates = f"{plain.images_per_second:,.0f} | {compiled.images_per_second:,.0f}"
        gain = compiled.images_per_second / plain.images_per_second
        print(f"{depth} | {rates} | {gain:.2f} | {compiled.first:.1f} | {later.first:.1f} | {pays}", flush=True)


if __name__ == "__main__":
    main()
