"""The result of cutting a network into units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class Cut:
    """A network without its classifier, as steps that are frozen or trained as a whole.

    Attributes:
        units: the steps by name, in the order in which they are applied. The last one pools, so its output is
            (batch, n_features) and a linear probe caches features, not feature maps.
        n_features: width of the features.
        min_size: smallest square input, in pixels.
        image_size: the only square input that fits, in pixels, where position embeddings fix it.
        patch_size: what the input must be a multiple of, in pixels.
    """

    units: dict[str, nn.Module]
    n_features: int
    min_size: int = 1
    image_size: int | None = None
    patch_size: int = 1


def numbered(prefix: str, blocks: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Name `blocks` as `prefix.0`, `prefix.1`, ..."""
    return {f"{prefix}.{index}": block for index, block in enumerate(blocks)}


def append_to_last(units: dict[str, nn.Module], *tail: nn.Module) -> dict[str, nn.Module]:
    """Return `units` with `tail` (the pooling) run at the end of the last unit."""
    last = list(units)[-1]
    return {**units, last: nn.Sequential(units[last], *tail)}


def prepend_to_first(units: dict[str, nn.Module], *front: nn.Module) -> dict[str, nn.Module]:
    """Return `units` with `front` (a downsampling layer) run at the beginning of the first unit."""
    first = next(iter(units))
    return {first: nn.Sequential(*front, units[first]), **{name: unit for name, unit in units.items() if name != first}}


def last_linear(model: Any) -> nn.Linear:
    """Return the classifier of `model`: its last fully connected layer."""
    layers: list[nn.Linear] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return layers[-1]
