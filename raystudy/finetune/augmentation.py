"""Random changes to a whole batch of images at once, each a pure function of the batch and a generator.

The random parameters are drawn on the CPU, a few numbers per image, so that every device sees the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_CROP_AREA = (0.08, 1.0)
_CROP_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
"""Area share and aspect ratio of random resized crops, as in Inception's and torchvision's training."""

_JITTER, _HUE = 0.4, 0.1
"""How far brightness, contrast and saturation go from 1, and hue in turns: SimCLR's strength of 0.5, for small images."""
_JITTERED, _GREY = 0.8, 0.2
"""Shares of the images whose colours are changed, and that lose them."""
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
"""Brightness, and the plane of hue and saturation, as linear functions of red, green and blue (NTSC)."""


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return `images` changed at random as the factor `augmentation` says.

    Args:
        images: float images `(batch, channels, side, side)`.
        kind: `none`, `flip` or `standard`.
        generator: a CPU generator.
    """
    if kind == "none":
        return images
    flipped = torch.rand(len(images), generator=generator) < 0.5
    if kind == "flip":
        return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
    transforms = _random_crops(len(images), generator)
    transforms[flipped, 0, 0] *= -1
    grid = functional.affine_grid(transforms.to(images.device), list(images.shape), align_corners=False)
    crops = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return crops.contiguous(memory_format=torch.channels_last)


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random view of each image, as SimCLR draws them: a crop, perhaps a flip, other colours.

    Colours are changed in one fixed order (brightness, saturation, hue, contrast), and images are not blurred.

    Args:
        images: float images `(batch, 3, side, side)` of 0 to 255.
        generator: a CPU generator.
    """
    crops = augment(images, "standard", generator)
    colours, contrast = (drawn.to(images.device) for drawn in _random_colours(len(images), generator))
    changed = torch.einsum("nij,njhw->nihw", colours, crops)
    grey = torch.einsum("j,njhw->nhw", torch.tensor(_YIQ[0], device=images.device), changed).mean((1, 2)).view(-1, 1, 1, 1)
    changed = grey + contrast.view(-1, 1, 1, 1) * (changed - grey)
    return changed.clamp(0, 255).contiguous(memory_format=torch.channels_last)


def _random_colours(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return matrices `(n, 3, 3)` on red, green and blue, and factors `(n,)` on the contrast."""
    brightness, saturation, contrast = 1 + _JITTER * (2 * torch.rand(3, n, generator=generator) - 1)
    angle = 2 * math.pi * _HUE * (2 * torch.rand(n, generator=generator) - 1)
    is_jittered, is_grey = torch.rand(2, n, generator=generator) < torch.tensor([[_JITTERED], [_GREY]])
    saturation = torch.where(is_grey, 0.0, saturation.where(is_jittered, 1.0))
    brightness, contrast = brightness.where(is_jittered, 1.0), contrast.where(is_jittered, 1.0)
    angle = angle.where(is_jittered, 0.0)
    turn = torch.zeros(n, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -saturation * angle.sin(), saturation * angle.sin()
    to_yiq = torch.tensor(_YIQ)
    return brightness.view(-1, 1, 1) * (torch.linalg.inv(to_yiq) @ turn @ to_yiq), contrast


def _random_crops(n: int, generator: torch.Generator) -> Tensor:
    """Return `(n, 2, 3)` affine maps from the output's square [-1, 1]² into a random rectangle of the input's."""
    area, ratio, x, y = torch.rand(4, n, generator=generator)
    area = _CROP_AREA[0] + area * (_CROP_AREA[1] - _CROP_AREA[0])
    log_ratio = _CROP_LOG_RATIO[0] + ratio * (_CROP_LOG_RATIO[1] - _CROP_LOG_RATIO[0])
    width = (area * log_ratio.exp()).sqrt().clamp(max=1)
    height = (area / log_ratio.exp()).sqrt().clamp(max=1)
    transforms = torch.zeros(n, 2, 3)
    transforms[:, 0, 0], transforms[:, 0, 2] = width, (1 - width) * (2 * x - 1)
    transforms[:, 1, 1], transforms[:, 1, 2] = height, (1 - height) * (2 * y - 1)
    return transforms


def draw_mixup(alpha: float, n: int, seed: int) -> tuple[float, Tensor]:
    """Draw MixUp's weight from Beta(alpha, alpha) and each image's partner.

    Returns:
        The weight of the image itself, in [0, 1], and the partners' places in the batch, `(n,)`.
    """
    random = np.random.default_rng(seed)
    weight = float(random.beta(alpha, alpha))
    return weight, torch.from_numpy(random.permutation(n))


@dataclass(frozen=True, slots=True)
class Cut:
    """The box that CutMix cuts out of a batch's images and fills with their partners' pixels.

    Attributes:
        rows: of pixels.
        columns: likewise.
        weight: the share of the pixels outside of the box, in [0, 1].
        partners: the partners' places in the batch, `(n,)`.
    """

    rows: slice
    columns: slice
    weight: float
    partners: Tensor


def draw_cutmix(alpha: float, side: int, n: int, seed: int) -> Cut:
    """Draw CutMix's box and each image's partner (Yun et al. 2019, arXiv 1905.04899).

    The box has the images' aspect ratio, the area 1 - Beta(alpha, alpha) and its centre anywhere in the image, which cuts off
    what sticks out; the weight is that of the box that is left.
    """
    random = np.random.default_rng(seed)
    cut = round(side * math.sqrt(1 - random.beta(alpha, alpha)))
    rows, columns = (slice(max(start, 0), min(start + cut, side)) for start in random.integers(0, side, 2) - cut // 2)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Cut(rows, columns, 1 - area / side**2, torch.from_numpy(random.permutation(n)))
