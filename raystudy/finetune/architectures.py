"""The definitions of architectures, from torchvision and timm, with what their pretraining fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raystudy.errors import BackboneError, Problem
from raystudy.finetune import weights
from raystudy.finetune.names import BackboneName, Source, unknown_timm

# What the TensorFlow models, from which the lite weights were converted, subtract from and divide bytes by.
_LITE_MEAN, _LITE_STD = 127 / 255, 128 / 255


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to make a network, and how its pretraining prepared images.

    Attributes:
        create: makes the network with its classifier and random weights, for square images of so many pixels
            (None: as pretrained).
        input_size: the size in pixels at which it was pretrained.
        mean: per channel, subtracted from images in 0..1.
        std: per channel, divides what remains.
        pretrained: gets the ImageNet weights under the network's own tensor names, and says where they came from.
    """

    create: Callable[[int | None], nn.Module]
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pretrained: Callable[[nn.Module], tuple[dict[str, Tensor], str]]


def find_architecture(name: BackboneName) -> Architecture:
    """Return the definition of `name`.

    Raises:
        BackboneError: timm has no such model, or the name is that of a registered model.
    """
    if name.source is Source.TORCHVISION:
        return _torchvision_architecture(name.architecture)
    if name.source is Source.LITE:
        return _lite_architecture(name.architecture)
    if name.source is Source.TIMM:
        return _timm_architecture(name.architecture.removeprefix("timm:"))
    what = f"{name.architecture!r} is the address of a registered model, which has not been fetched"
    raise BackboneError(Problem("backbone", what, "name it in a study file, or download it and write file:PATH"))


def _torchvision_architecture(name: str) -> Architecture:
    from torchvision import models

    chosen = models.get_model_weights(name).DEFAULT
    preset = chosen.transforms()

    def create(image_size: int | None) -> nn.Module:
        if not name.startswith("vit_"):
            return models.get_model(name, weights=None)
        size = image_size or preset.crop_size[0]
        _check_patches(name, size, int(name.rpartition("_")[2]))
        return models.get_model(name, weights=None, image_size=size)

    def pretrained(_: nn.Module) -> tuple[dict[str, Tensor], str]:
        return weights.torchvision_state(name, chosen), "imagenet (torchvision DEFAULT)"

    return Architecture(create, preset.crop_size[0], _triple(preset.mean), _triple(preset.std), pretrained)


def _lite_architecture(name: str) -> Architecture:
    # The package of the weights documents these sizes; timm's own lite weights were trained with the same.
    input_size = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}[name]

    def create(_: int | None) -> nn.Module:
        import timm

        return timm.create_model(f"tf_{name}")

    def pretrained(model: nn.Module) -> tuple[dict[str, Tensor], str]:
        return weights.lite_state(name, model)

    return Architecture(create, input_size, (_LITE_MEAN,) * 3, (_LITE_STD,) * 3, pretrained)


def _timm_architecture(name: str) -> Architecture:
    import timm

    config = _timm_config(name)
    takes_size = bool(config.fixed_input_size)

    def create(image_size: int | None) -> nn.Module:
        if image_size is None or not takes_size:
            return timm.create_model(name, pretrained=False)
        return timm.create_model(name, pretrained=False, img_size=image_size)

    def pretrained(_: nn.Module) -> tuple[dict[str, Tensor], str]:
        return weights.timm_state(name), f"pretrained (timm {config.tag or 'default'})"

    return Architecture(create, config.input_size[-1], _triple(config.mean), _triple(config.std), pretrained)


def _timm_config(name: str) -> Any:
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        raise unknown_timm(name)
    return config


def _check_patches(name: str, image_size: int, patch_size: int) -> None:
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        accepted = f"choose {below} or {below + patch_size}" if below else f"the smallest size is {patch_size} px"
        what = f"{image_size} px cannot be cut into patches of {patch_size} px, as {name} does"
        raise BackboneError(Problem("data.image_size", what, accepted))


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
