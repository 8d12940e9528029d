"""The network of a trial: a backbone, dropout and a new head; and the same with its preprocessing, for use."""

from __future__ import annotations

import copy
import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from raystudy.finetune.backbone import Backbone, build_backbone
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.seeds import Purpose, TrialSeeds


class BackboneFactory(Protocol):
    """Builds a backbone by name, as `raystudy.finetune.backbone.build_backbone` does."""

    def __call__(self, name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
        """Return a new backbone; random weights, where there are any, come from `seed`."""


class Network(nn.Module):
    """Backbone, dropout, head: normalised images `(batch, 3, side, side)` to the head's outputs `(batch, n)`.

    `forward` is `rest(prefix(images, depth), depth)` for every depth: the cut between the part that is frozen, whose
    output can be computed without gradients (and once for many epochs), and the part that is not.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def prefix(self, images: Tensor, depth: int) -> Tensor:
        """Run the first `depth` units without recording gradients; depth 0 returns `images`."""
        with torch.no_grad():
            return self.backbone.prefix(images, depth)

    def rest(self, activation: Tensor, depth: int) -> Tensor:
        """Turn the output of the first `depth` units into the head's."""
        outputs: Tensor = self.head(self.dropout(self.backbone.suffix(activation, depth)))
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the head's outputs `(batch, n)` of normalised images `(batch, 3, side, side)`."""
        outputs: Tensor = self.head(self.dropout(self.backbone(images)))
        return outputs


class FineTuneModel(Network):
    """A network that classifies: its head is linear and gives logits `(batch, n_classes)`."""

    head: nn.Linear

    def __init__(self, backbone: Backbone, n_classes: int, *, dropout: float = 0.0, head_seed: int = 0) -> None:
        super().__init__(backbone, new_linear(backbone.info.n_features, n_classes, seed=head_seed), dropout=dropout)


class Preprocess(nn.Module):
    """Bring images of values 0 to 255 to the size and the scale that a backbone was trained on.

    Args:
        mean: of each channel, on the scale 0 to 1.
        std: likewise.
        resolution: side in pixels to which images are resized; 0 keeps theirs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], *, resolution: int = 0) -> None:
        super().__init__()
        self.resolution = resolution
        # Not persistent: they belong to the backbone's description, not to what training changes.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255, persistent=False)

    def resize(self, images: Tensor) -> Tensor:
        """Resize images `(batch, 3, side, side)` of any float scale to the resolution."""
        if self.resolution in (0, images.shape[-1]):
            return images
        size = (self.resolution, self.resolution)
        resized = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return resized.contiguous(memory_format=torch.channels_last)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring values 0 to 255 to the backbone's mean and standard deviation."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Resize and normalise float images `(batch, 3, side, side)` of values 0 to 255."""
        return self.normalize(self.resize(images))


class Classifier(nn.Module):
    """A model with its preprocessing inside: float images `(batch, 3, side, side)` of 0 to 255 in, logits out.

    This is what trials validate with and what is exported, so that both see the same pixels.
    """

    def __init__(self, model: FineTuneModel, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, n_classes)` of float images `(batch, 3, side, side)` of values 0 to 255."""
        return self.model(self.preprocess(images))


def build_model(
    hyper: Hyperparameters,
    n_classes: int,
    *,
    image_size: int,
    seeds: TrialSeeds,
    backbone: Backbone | BackboneFactory | None = None,
) -> FineTuneModel:
    """Build the network with the weights a trial starts from; the same arguments give the same weights.

    Args:
        hyper: names the backbone and says which of its weights are random.
        n_classes: width of the head.
        image_size: side of the data's images in pixels; `hyper.resolution` goes before it.
        seeds: where random weights come from.
        backbone: a pretrained backbone to copy instead of building `hyper.backbone`, or what builds backbones.

    Raises:
        SpecError: where `hyper` names a unit that the backbone does not have.
        BackboneError: where the backbone cannot be built.
    """
    trunk = _starting_backbone(hyper, hyper.resolution or image_size, seeds, _factory(backbone))
    model = FineTuneModel(trunk, n_classes, dropout=hyper.dropout, head_seed=seeds.derive(Purpose.HEAD))
    return model.to(memory_format=torch.channels_last)


def build_classifier(model: FineTuneModel, *, resolution: int = 0) -> Classifier:
    """Put the preprocessing that `model`'s backbone wants in front of it."""
    info = model.backbone.info
    return Classifier(model, Preprocess(info.mean, info.std, resolution=resolution))


def _factory(backbone: Backbone | BackboneFactory | None) -> BackboneFactory:
    if backbone is None:
        return build_backbone
    if not isinstance(backbone, Backbone):
        return backbone
    given = backbone

    def copy_or_build(name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
        # A copy: the caller's weights must survive this trial's training.
        if pretrained:
            return copy.deepcopy(given)
        return build_backbone(name or given.info.architecture, pretrained=False, seed=seed, image_size=image_size)

    return copy_or_build


def _starting_backbone(hyper: Hyperparameters, side: int, seeds: TrialSeeds, build: BackboneFactory) -> Backbone:
    seed = seeds.derive(Purpose.BACKBONE)
    backbone = build(hyper.backbone, pretrained=hyper.pretrained, seed=seed, image_size=side)
    n_units = backbone.info.n_units
    hyper.resolve(n_units)
    n_random = hyper.reinit_units if hyper.pretrained else n_units
    if n_random:
        # By its architecture: a name that says a weights file means those weights, whatever `pretrained` is.
        fresh = build(backbone.info.architecture, pretrained=False, seed=seed, image_size=side)
        for index in range(n_units - n_random, n_units):
            backbone.units[index].load_state_dict(fresh.units[index].state_dict())
    return backbone


def new_linear(n_in: int, n_out: int, *, seed: int) -> nn.Linear:
    """Return a linear layer as torch initialises it, but from `seed` instead of the global generator, and no bias."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    bound = 1 / math.sqrt(n_in)
    nn.init.uniform_(layer.weight, -bound, bound, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer
