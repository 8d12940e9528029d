"""Would head-only trials gain from being trained as one batched computation? An upper bound, from what there is to save.

    python benchmarks/fused_heads.py [--trials 64] [--epochs 9] [--threads 1]

Linear heads on stored features (the size of EfficientNet-lite0's on scikit-learn's digits), each with its own learning rate,
weight decay and order of images: one after the other as trials are trained, and all at once with batched matrix products.
Both must end at the same weights. Then the same trials as a study (`raystudy run --inline`, so without Ray's share), and how
much of its time is the training that fusing could shorten.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from points import Point
from torch import Tensor
from torch.nn import functional

IMAGES, FEATURES, CLASSES, BATCH = 1437, 1280, 10, 64
BETA, EPS = (0.9, 0.999), 1e-8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(IMAGES, FEATURES, generator=random)
    labels = torch.randint(CLASSES, (IMAGES,), generator=random)
    rates = 10 ** (-3 + 2 * torch.rand(asked.trials, generator=random))
    orders = torch.stack([torch.randperm(IMAGES, generator=random) for _ in range(asked.trials)])
    began = time.perf_counter()
    alone = torch.cat([train(features, labels, rates[k : k + 1], orders[k : k + 1], asked.epochs) for k in range(asked.trials)])
    separate = time.perf_counter() - began
    began = time.perf_counter()
    together = train(features, labels, rates, orders, asked.epochs)
    fused = time.perf_counter() - began
    images = asked.trials * asked.epochs * IMAGES
    print(f"{asked.trials} heads, {asked.epochs} epochs of {IMAGES} images, {asked.threads} thread(s)")
    print(f"one after the other {images / separate:12,.0f} images/s  {separate:7.2f} s")
    print(f"fused               {images / fused:12,.0f} images/s  {fused:7.2f} s  {separate / fused:.2f} x")
    difference = float((alone - together).abs().max())
    print(f"largest difference of a weight {difference:.1e}")
    wall, training = study(asked.trials, asked.epochs)
    print(f"the same as a study, inline: {wall:.1f} s, of which training {training:.1f} s ({training / wall:.0%})")
    print(Point("what fusing could shorten a study by, at most", wall / max(wall - training * (1 - fused / separate), 1e-9)))


def train(features: Tensor, labels: Tensor, rates: Tensor, orders: Tensor, epochs: int) -> Tensor:
    """Train k heads with AdamW and return their weights.

    Args:
        features: (images, features).
        labels: (images,).
        rates: learning rates, (k,).
        orders: the order of the images in each head's epochs, (k, images).
        epochs: number of passes.

    Returns:
        Shape (k, features, classes).
    """
    k = len(rates)
    weights = torch.zeros(k, FEATURES, CLASSES, requires_grad=True)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    step = 0
    for _ in range(epochs):
        for start in range(0, IMAGES, BATCH):
            chosen = orders[:, start : start + BATCH]
            logits = torch.bmm(features[chosen], weights)
            losses = functional.cross_entropy(logits.flatten(0, 1), labels[chosen].flatten(), reduction="none")
            # Each head's own mean: the sum over heads leaves their gradients apart.
            (gradient,) = torch.autograd.grad(losses.view(k, -1).mean(1).sum(), weights)
            step += 1
            with torch.no_grad():
                first.lerp_(gradient, 1 - BETA[0])
                second.mul_(BETA[1]).addcmul_(gradient, gradient, value=1 - BETA[1])
                scale = (second / (1 - BETA[1] ** step)).sqrt_().add_(EPS)
                weights.sub_(rates[:, None, None] * (first / (1 - BETA[0] ** step)) / scale)
    return weights.detach()


def study(trials: int, epochs: int) -> tuple[float, float]:
    """Run head-only trials as a study without early stopping; return its seconds and those that its epochs report."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["RAYSTUDY_HOME"] = home
        import raystudy as rs

        spec = rs.StudySpec.from_dict(
            {
                "name": "heads",
                "data": {"source": "sklearn:digits", "image_size": 32},
                "backbone": "efficientnet_lite0",
                "factors": {"learning_rate": {"log_uniform": [1e-3, 1e-1]}, "weight_decay": {"log_uniform": [1e-6, 1e-2]}},
                "fixed": {"frozen_depth": "max", "batch_size": BATCH},
                "budget": {"trials": trials, "epochs": epochs},
                "search": {"sampler": "random"},
                "early_stopping": {"scheduler": "none"},
                "keep_models": 0,
                "tracking_uri": f"sqlite:///{Path(home) / 'mlflow.db'}",
            }
        )
        began = time.perf_counter()
        reports = rs.run(spec, inline=True).reports()
        return time.perf_counter() - began, float(sum(reports.column("epoch_seconds").to_pylist()))


if __name__ == "__main__":
    main()
