"""The numbers of a read-out: what fine-tuning changed in weights, responses and features.

Pure functions of weights and of what a probe set of images makes units respond. All sums are in float64, on the CPU but for
those over weights. A unit's *features* of an image are its output averaged over positions (pixels or tokens): `(n, channels)`.

Sources: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited" (CKA); Li et al. 2020, "Rethinking
the Hyperparameters for Fine-tuning" (of weights that normalisation follows only the direction counts); Gonthier et al. 2020,
"An analysis of the transfer learning of convolutional neural networks for artistic images" (classes among a channel's most
exciting images); Rousseeuw 1987 (silhouette).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

DEAD_BELOW = 0.01
TOP_IMAGES = 100
"""The most images that selectivity takes for a channel; a tenth of the probe set where that is fewer."""

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Similarity(NamedTuple):
    """How alike two sets of features are.

    Attributes:
        cka: their linear CKA, 0 to 1; None where one of them is the same for all images.
        chance: its mean over all orders of the images of one of them.
    """

    cka: float | None
    chance: float | None


class Projection(NamedTuple):
    """Features on their two principal axes.

    Attributes:
        points: `(n, 2)`.
        explained: the share of the variance along each.
    """

    points: Tensor
    explained: tuple[float, float]


# Weights


def scale_free(unit: nn.Module) -> list[str]:
    """Return the names of the weights whose norm normalisation makes meaningless: those of convolutions and linear layers.

    None where the unit holds no normalisation. Which layer a norm follows is not written in a module; units are small enough
    that "the unit normalises" says it.
    """
    if not any(isinstance(layer, _NORMS) for layer in unit.modules()):
        return []
    layers = [(name, layer) for name, layer in unit.named_modules() if isinstance(layer, _ConvNd | nn.Linear)]
    return [f"{name}.weight" if name else "weight" for name, layer in layers if isinstance(layer.weight, nn.Parameter)]


def weight_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """Return ||W - W0|| / ||W0||, Frobenius norms over all tensors of pairs (W0, W); None where W0 is zero."""
    moved = start = 0.0
    for before, after in pairs:
        moved += _square(after - before)
        start += _square(before)
    return math.sqrt(moved / start) if start > 0 else None


def weight_angle(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return the angle between all tensors of pairs (W0, W), taken as two vectors, in degrees; None where one is zero.

    As 2 atan2(|u - v|, |u + v|) of the unit vectors: arccos of their product sees no angle below 1e-6 degrees, and none that
    is certain below 0.02 in float32.
    """
    length, other = (math.sqrt(sum(_square(pair[side]) for pair in pairs)) for side in (0, 1))
    if length == 0 or other == 0:
        return None
    # |u - v|² is |W - s W0|² / |W|² with the s that makes lengths equal, and |u - v|² + |u + v|² = 4.
    scale = other / length
    apart = sum(_square(torch.sub(after.double(), before.double(), alpha=scale)) for before, after in pairs) / other**2
    return math.degrees(2 * math.atan2(math.sqrt(apart), math.sqrt(max(4 - apart, 0))))


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


# Responses


def pooled(output: Tensor) -> tuple[Tensor, Tensor]:
    """Average a unit's output over positions, as it is and without its sign; both `(batch, channels)`, float32.

    Outputs are `(batch, channels)`, `(batch, tokens, channels)`, or maps with channels first or last. Which one a map has is
    seen by what is square, as images are; where all three sides are equal, channels are taken to come first.
    """
    positions: tuple[int, ...] = tuple(range(1, output.dim() - 1))
    if output.dim() == 4 and output.shape[2] == output.shape[3]:
        positions = (2, 3)
    output = output.float()
    if not positions:
        return output, output.abs()
    return output.mean(positions), output.abs().mean(positions)


def dead_share(activity: Tensor, dead_below: float = DEAD_BELOW) -> float:
    """Return the share of channels whose mean absolute response is at most `dead_below` times the mean over channels.

    Args:
        activity: each channel's mean absolute response, over images and positions, `(channels,)`.
        dead_below: 0 counts only channels that never respond.
    """
    activity = activity.double()
    return float((activity <= dead_below * activity.mean()).double().mean())


def linear_cka(before: Tensor, after: Tensor) -> Similarity:
    """Return the linear CKA of two sets of features of the same n images, `(n, p)` and `(n, q)`, and its level by chance.

    With X, Y centred it is |Y'X|² / (|X'X| |Y'Y|), Frobenius norms (Kornblith et al. 2019, eq. 5): that is <XX', YY'> /
    (|XX'| |YY'|), which costs less where there are fewer images than features. Over all orders of the images of one side the
    numerator has the mean tr(XX') tr(YY') / (n - 1), which is far from zero where images are few and features many.
    """
    if max(before.shape[1], after.shape[1]) > len(before):
        return gram_cka(gram(before), gram(after))
    x, y = _centred(before), _centred(after)
    norms = math.sqrt(_square(x.T @ x) * _square(y.T @ y))
    return _similarity(_square(x.T @ y), _square(x) * _square(y), norms, len(x))


def gram(features: Tensor) -> Tensor:
    """Return the products of centred features `(n, d)` of each two images, `(n, n)`."""
    x = _centred(features)
    return x @ x.T


def gram_cka(before: Tensor, after: Tensor) -> Similarity:
    """Return `linear_cka` of the features whose `gram` matrices these are."""
    norms = math.sqrt(_square(before) * _square(after))
    return _similarity(float((before * after).sum()), float(before.trace() * after.trace()), norms, len(before))


def _similarity(products: float, traces: float, norms: float, n: int) -> Similarity:
    if norms == 0 or n < 2:
        return Similarity(None, None)
    return Similarity(min(products / norms, 1.0), min(traces / (n - 1) / norms, 1.0))


def top_images(n_images: int) -> int:
    """Return how many images selectivity takes for a channel: a tenth of them, at most `TOP_IMAGES`, at least two."""
    return min(n_images, max(2, min(TOP_IMAGES, n_images // 10)))


def selectivity(features: Tensor, labels: Tensor, n_top: int) -> float | None:
    """Return how much the images that excite a channel most are of one class, averaged over channels.

    Of a channel it is 1 - H / log C, H the entropy of the classes of the `n_top` images with the highest features, C the
    number of classes: 1 if all are of one class. Channels with the same feature for every image rank nothing and are left
    out; None where there is no other, or only one class.

    Args:
        features: `(n, channels)`.
        labels: `(n,)`; equal features rank in this order, so classes should take turns in it.
        n_top: how many images.
    """
    classes, codes = labels.unique(return_inverse=True)
    ranking = features[:, features.amax(0) > features.amin(0)].T.contiguous()
    if len(classes) < 2 or not len(ranking):
        return None
    best = _sort_keys(ranking).topk(n_top, dim=1).indices
    counts = torch.zeros(len(ranking), len(classes), dtype=torch.float64)
    counts.scatter_add_(1, codes[best], torch.ones(best.shape, dtype=torch.float64))
    entropy = -torch.special.xlogy(counts / n_top, counts / n_top).sum(1)
    return float((1 - entropy / math.log(len(classes))).mean())


def _sort_keys(rows: Tensor) -> Tensor:
    """Return whole numbers `(rows, n)` that rank as the entries of each row do, the earlier first among equals.

    Of these `topk` is several times faster than a stable sort of all. The bits of a float, read as a whole number, rank as the
    float does if it is positive, and the other way round if it is negative.
    """
    bits = (rows.float() + 0.0).view(torch.int32)  # the sum makes -0.0 equal 0.0
    ranks = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    n = rows.shape[1]
    return ranks.long() * n + torch.arange(n - 1, -1, -1)


def selectivity_chance(labels: Tensor, n_top: int) -> float:
    """Return the mean selectivity of channels that rank the images by chance; 0 for a single class.

    How many of the `n_top` images are of a class is then hypergeometric. It is not zero: few images cannot be of many classes.
    """
    counts = labels.unique(return_counts=True)[1].tolist()
    n = sum(counts)
    if len(counts) < 2:
        return 0.0
    entropy = 0.0
    for size in counts:
        for hits in range(1, min(size, n_top) + 1):
            chance = math.comb(size, hits) * math.comb(n - size, n_top - hits) / math.comb(n, n_top)
            entropy -= chance * hits / n_top * math.log(hits / n_top)
    return 1 - entropy / math.log(len(counts))


# Features


def silhouette(features: Tensor, labels: Tensor) -> float | None:
    """Return the mean silhouette of features `(n, d)` by class, -1 to 1 (Rousseeuw 1987), Euclidean distances.

    Of an image it is (b - a) / max(a, b): a the mean distance to the others of its class, b to the nearest other class; 0 for
    an image that is alone in its class. None where there are fewer than two classes, or each image is alone.
    """
    codes = labels.unique(return_inverse=True)[1]
    members = nn.functional.one_hot(codes).double()
    sizes = members.sum(0)
    if len(sizes) < 2 or len(sizes) == len(labels):
        return None
    x = _centred(features)
    # By matrix products, which in float64 and around the mean are exact enough, but for the distance of an image to itself.
    to_class = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0) @ members
    own = members.bool()
    others = sizes[codes] - 1
    inside = to_class[own] / others.clamp(min=1)
    outside = (to_class / sizes).masked_fill(own, math.inf).amin(1)
    largest = torch.maximum(inside, outside)
    scores = torch.where((others > 0) & (largest > 0), (outside - inside) / largest.clamp(min=1e-300), 0.0)
    return float(scores.mean())


def project(products: Tensor) -> Projection:
    """Return the features of a `gram` matrix on their two principal axes, the point farthest out on each positive."""
    variances, axes = torch.linalg.eigh(products)
    variances = variances.clamp(min=0)
    points = torch.zeros(len(products), 2, dtype=torch.float64)
    for axis in range(min(2, len(products))):
        column = axes[:, -1 - axis] * variances[-1 - axis].sqrt()
        points[:, axis] = column * column[column.abs().argmax()].sign()
    total = float(variances.sum()) or 1.0
    first, second = [*variances.flip(0).tolist(), 0.0, 0.0][:2]
    return Projection(points, (first / total, second / total))


def _centred(features: Tensor) -> Tensor:
    features = features.double()
    return features - features.mean(0)
