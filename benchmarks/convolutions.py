"""What the convolutions of `raystudy.finetune.cpu_convolutions` gain a training step on one core of a CPU.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --backbone mobilenet_v3_small --side 64 --depths 0,6,12

Steps with them and with torch's own alternate, on ready activations of the frozen units: the ratio is between neighbours.
Backbones have random weights, which take as long as any.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from raystudy.finetune.backbone import build_backbone
from raystudy.finetune.compute import Compute
from raystudy.finetune.cpu_convolutions import fast_convolutions
from raystudy.finetune.model import FineTuneModel

CLASSES = 10


class Step:
    """A training step of what follows the first `depth` units."""

    def __init__(self, backbone: str, side: int, batch: int, depth: int) -> None:
        trunk = build_backbone(backbone, pretrained=False, image_size=side)
        self.model = FineTuneModel(trunk, CLASSES).to(memory_format=torch.channels_last).train()
        self.depth = depth
        images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (batch,))
        self.activation: Tensor = self.model.prefix(images, depth)
        for unit in self.model.backbone.units[:depth]:
            unit.requires_grad_(False)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, nesterov=True, fused=True)

    def seconds(self, compute: Compute) -> float:
        """Take a step; return how long it took. A `compute` of bf16 means torch's own convolutions, still in float32."""
        started = time.perf_counter()
        with fast_convolutions(self.model, compute):
            outputs = self.model.rest(self.activation, self.depth)
        loss = torch.nn.functional.cross_entropy(outputs, self.labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--depths", default="0,6,12,15,17")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    fast, plain = Compute.choose("cpu", "float32"), Compute.choose("cpu", "bf16")
    print(f"{asked.backbone}, {asked.side} px, batch {asked.batch}: images/s of training steps")
    for depth in map(int, asked.depths.split(",")):
        step = Step(asked.backbone, asked.side, asked.batch, depth)
        pairs = [(step.seconds(plain), step.seconds(fast)) for _ in range(asked.steps + 2)][2:]
        theirs, ours = (asked.batch / statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(theirs / ours for theirs, ours in pairs)
        low, middle, high = ratios[len(ratios) // 10], statistics.median(ratios), ratios[-1 - len(ratios) // 10]
        print(f"frozen {depth:3d}: torch's own {theirs:8.0f}, these {ours:8.0f}, {middle:.2f} x ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
