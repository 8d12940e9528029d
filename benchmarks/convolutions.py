"""What the convolutions of `raystudy.finetune.cpu_convolutions` gain a training step on one core of a CPU.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --backbone mobilenet_v3_small --image-size 64 --depths 0,6,12

Steps with them and with torch's own alternate, on ready activations of the frozen units: the ratio is between neighbours.
Backbones have random weights, which take as long as any.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from frozen_depth import Bench, Suffix, some_images
from processes import scratch

from raystudy.cache import Cache
from raystudy.finetune.backbone import build_backbone

WARM_UP = 2
"""Pairs of steps that are not counted."""


def seconds(suffix: Suffix, convolutions: AbstractContextManager[Any]) -> float:
    """Take a step under `convolutions`; return how long it took."""
    suffix.convolutions = convolutions
    started = time.perf_counter()
    suffix.step()
    return time.perf_counter() - started


def measure(bench: Bench, depth: int, steps: int) -> str:
    """Take steps of both kinds at `depth`; return a line about them."""
    with bench.suffix(depth) as suffix:
        fast, plain = suffix.convolutions, nullcontext()
        pairs = [(seconds(suffix, plain), seconds(suffix, fast)) for _ in range(steps + WARM_UP)][WARM_UP:]
    theirs, ours = (bench.batch_size / statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    low, middle, high = ratios[len(ratios) // 10], statistics.median(ratios), ratios[-1 - len(ratios) // 10]
    return f"frozen {depth:3d}: torch's own {theirs:8,.0f}, these {ours:8,.0f}, {middle:.2f} x ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--depths", default="0,6,12,15,17", help="frozen depths")
    parser.add_argument("--steps", type=int, default=20, help="of each kind")
    asked = parser.parse_args()
    side, batch_size = asked.image_size, asked.batch_size
    print(f"{asked.backbone}, {side} px, batch {batch_size}: images/s of training steps", flush=True)
    with scratch() as cache:
        bench = Bench(
            data=some_images(cache, side=side, batch_size=batch_size, steps=1),
            backbone=build_backbone(asked.backbone, pretrained=False, image_size=side),
            batch_size=batch_size,
            device="cpu",
            threads=1,
            seconds=0.0,
            cache=Cache(cache),
        )
        for depth in map(int, asked.depths.split(",")):
            print(measure(bench, depth, asked.steps), flush=True)


if __name__ == "__main__":
    main()
