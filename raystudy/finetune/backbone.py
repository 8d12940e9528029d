"""Pretrained networks without their classifier, as ordered lists of units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor, nn

from raystudy.errors import BackboneError, Problem
from raystudy.finetune import names
from raystudy.finetune.architectures import Architecture, find_architecture
from raystudy.finetune.families import Cut, cut_model
from raystudy.finetune.names import BACKBONE_KEY, BackboneName, check_backbone, known_backbones, parse_backbone
from raystudy.finetune.source_models import Sources
from raystudy.finetune.weights import load_state, read_state

if TYPE_CHECKING:
    from raystudy.finetune.model import BackboneFactory

__all__ = [
    "Backbone",
    "BackboneInfo",
    "build_backbone",
    "builder_with",
    "check_backbone",
    "known_backbones",
    "save_backbone",
    "unit_count",
]


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What a backbone is, without its weights.

    Attributes:
        name: as the study file has it.
        architecture: `name` without its file.
        n_units: number of units.
        unit_names: their names, from the input to the features.
        unit_parameters: their numbers of parameters.
        n_features: width of the features.
        input_size: the size in pixels at which it was pretrained.
        min_size: the smallest square input in pixels.
        image_size: the only square input that it takes, in pixels; None: any size from `min_size`.
        mean: per channel, to be subtracted from images in 0..1.
        std: per channel, to divide by afterwards.
        weights: where the weights came from.
    """

    name: str
    architecture: str
    n_units: int
    unit_names: tuple[str, ...]
    unit_parameters: tuple[int, ...]
    n_features: int
    input_size: int
    min_size: int
    image_size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str


class Backbone(nn.Module):
    """A network without its classifier, as an ordered list of units.

    Every parameter and buffer belongs to exactly one unit. The last unit pools, so its output is the features.

    Attributes:
        info: what it is.
        units: the steps, applied one after another.
    """

    def __init__(self, units: Mapping[str, nn.Module], info: BackboneInfo) -> None:
        super().__init__()
        self.info = info
        self.units = nn.ModuleList(units.values())

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (batch, 3, H, W) to features (batch, n_features)."""
        for unit in self.units:
            x = unit(x)
        return x

    def prefix(self, x: Tensor, depth: int) -> Tensor:
        """Return the output of the first `depth` units on images `x`; `x` itself at depth 0."""
        self._check_depth(depth)
        for unit in islice(self.units, depth):
            x = unit(x)
        return x

    def suffix(self, activation: Tensor, depth: int) -> Tensor:
        """Map the output of the first `depth` units to features (batch, n_features).

        `suffix(prefix(x, depth), depth)` does what `forward(x)` does, operation by operation.
        """
        self._check_depth(depth)
        for unit in islice(self.units, depth, None):
            activation = unit(activation)
        return activation

    def _check_depth(self, depth: int) -> None:
        if not 0 <= depth <= self.info.n_units:
            raise ValueError(f"`0 <= depth <= {self.info.n_units}` does not hold for depth {depth}")


def build_backbone(name: str, *, pretrained: bool = True, seed: int = 0, image_size: int | None = None) -> Backbone:
    """Build a backbone with pretrained or random weights; torch's global random state is left as it was.

    Args:
        name: as in a study file, see `names.parse_backbone`.
        pretrained: whether to load weights; the weights of a named file are loaded in any case.
        seed: of the random weights.
        image_size: the square input that it must take, in pixels; position embeddings are resampled to it.

    Raises:
        BackboneError: the name is unknown, the weights cannot be had or do not fit, or the images are too small.
    """
    parsed = parse_backbone(name)
    architecture = find_architecture(parsed)
    with _own_randomness(seed):
        model = architecture.create(image_size)
        cut = cut_model(model, name)
        _check_image_size(name, cut, image_size)
        source = _load_weights(model, cut, parsed, architecture, pretrained=pretrained)
    return Backbone(cut.units, _describe(name, parsed, architecture, cut, source))


def builder_with(sources: Sources, build: BackboneFactory = build_backbone) -> BackboneFactory:
    """Return what builds the registered models among `sources` from their files, and any other backbone with `build`.

    With `pretrained=False` it gives random weights, of the same architecture.

    Raises:
        BackboneError: when called, if a file is not the one that was fetched.
    """

    def build_named(name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
        if name not in sources:
            return build(name, pretrained=pretrained, seed=seed, image_size=image_size)
        source = sources[name]
        if pretrained:
            source.check()
        origin = source.backbone if pretrained else source.architecture
        backbone = build(origin, pretrained=pretrained, seed=seed, image_size=image_size)
        backbone.info = replace(backbone.info, name=name, weights=source.words if pretrained else "none")
        return backbone

    return build_named


def unit_count(name: str) -> int:
    """Return the number of units of `name`; only a timm model has to be built for that, without weights.

    Raises:
        BackboneError: `name` is no backbone that can be built.
    """
    known = names.unit_count(name)
    if known is not None:
        return known
    with _own_randomness(0), torch.device("meta"):
        return len(cut_model(find_architecture(parse_backbone(name)).create(None), name).units)


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Write the weights so that `file:PATH` reads them back; `path` ends in `.safetensors`."""
    tensors = {key: tensor.contiguous() for key, tensor in backbone.state_dict().items()}
    # Not `save_file`, whose files only their owner may read.
    path.write_bytes(save(tensors, metadata={BACKBONE_KEY: backbone.info.architecture}))


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds every GPU, and those would stay seeded.
        torch.default_generator.manual_seed(seed)
        yield


def _check_image_size(name: str, cut: Cut, image_size: int | None) -> None:
    if image_size is None:
        return
    accepted = f"the smallest size is {cut.min_size} px"
    if image_size < cut.min_size:
        raise BackboneError(Problem("data.image_size", f"{image_size} px is too small for {name}", accepted))
    if cut.image_size not in (None, image_size) or image_size % cut.patch_size:
        what = f"{name} cannot take images of {image_size} px"
        raise BackboneError(Problem("data.image_size", what, f"choose a multiple of {cut.patch_size} px"))


def _load_weights(model: nn.Module, cut: Cut, name: BackboneName, architecture: Architecture, *, pretrained: bool) -> str:
    """Fill `model`, and so the units of `cut`, which share its tensors; return where the weights came from."""
    classifier = _classifier_tensors(model, cut)
    if name.file is not None:
        _load_file(model, cut, name.file, classifier)
        return f"file:{name.file}"
    if not pretrained:
        return "none"
    state, source = architecture.pretrained(model)
    load_state(model, state, ignored=classifier, title=f"pretrained weights of {name.architecture}")
    return source


def _load_file(model: nn.Module, cut: Cut, path: Path, classifier: frozenset[str]) -> None:
    state = read_state(path)
    title = f"backbone file {path}"
    if any(key.startswith("units.") for key in state):
        units = nn.ModuleDict({"units": nn.ModuleList(cut.units.values())})
        head = frozenset(key for key in state if not key.startswith("units."))
        load_state(units, state, ignored=head, title=title)
    else:
        load_state(model, state, ignored=classifier, title=title)


def _classifier_tensors(model: nn.Module, cut: Cut) -> frozenset[str]:
    """Return the names of the tensors of `model` that no unit holds."""
    held = {id(tensor) for unit in cut.units.values() for tensor in unit.state_dict(keep_vars=True).values()}
    return frozenset(key for key, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in held)


def _describe(name: str, parsed: BackboneName, architecture: Architecture, cut: Cut, source: str) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        architecture=parsed.architecture,
        n_units=len(cut.units),
        unit_names=tuple(cut.units),
        unit_parameters=tuple(sum(p.numel() for p in unit.parameters()) for unit in cut.units.values()),
        n_features=cut.n_features,
        input_size=architecture.input_size,
        min_size=cut.min_size,
        image_size=cut.image_size,
        mean=architecture.mean,
        std=architecture.std,
        weights=source,
    )
