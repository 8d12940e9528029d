"""How each architecture family is cut into units: stem, residual blocks, final layers.

A cut only regroups the modules of the model it is given: units and model share their tensors, so weights that are
loaded into the model afterwards are the units' weights too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from raystudy.errors import BackboneError, Problem
from raystudy.finetune.families import convnets, transformers
from raystudy.finetune.families.cut import Cut

__all__ = ["Cut", "cut_model"]

# Keyed by library and class name rather than by class, so that timm is imported only for its own models.
_CUTTERS: dict[tuple[str, str], Callable[[nn.Module], Cut]] = {
    ("torchvision", "AlexNet"): convnets.cut_alexnet,
    ("torchvision", "ConvNeXt"): convnets.cut_convnext,
    ("torchvision", "DenseNet"): convnets.cut_densenet,
    ("torchvision", "EfficientNet"): convnets.cut_efficientnet,
    ("torchvision", "MobileNetV2"): convnets.cut_mobilenet,
    ("torchvision", "MobileNetV3"): convnets.cut_mobilenet,
    ("torchvision", "RegNet"): convnets.cut_regnet,
    ("torchvision", "ResNet"): convnets.cut_resnet,
    ("torchvision", "SwinTransformer"): transformers.cut_swin,
    ("torchvision", "VGG"): convnets.cut_vgg,
    ("torchvision", "VisionTransformer"): transformers.cut_vit,
    ("timm", "ConvNeXt"): convnets.cut_timm_convnext,
    ("timm", "EfficientNet"): convnets.cut_timm_efficientnet,
    ("timm", "MobileNetV3"): convnets.cut_timm_mobilenet_v3,
    ("timm", "RegNet"): convnets.cut_timm_regnet,
    ("timm", "ResNet"): convnets.cut_resnet,
    ("timm", "VisionTransformer"): transformers.cut_timm_vit,
}


def cut_model(model: nn.Module, name: str) -> Cut:
    """Cut a torchvision or timm classifier into units; `model` keeps working.

    Args:
        model: the network with its classifier.
        name: what the user calls it, for the message.

    Raises:
        BackboneError: the family of `model` is not known, or a variant has parameters outside the known layout.
    """
    library = type(model).__module__.partition(".")[0]
    cutter = _CUTTERS.get((library, type(model).__name__))
    if cutter is None:
        known = ", ".join(sorted(family for lib, family in _CUTTERS if lib == library))
        what = f"{name!r} is a {type(model).__name__}, which raystudy cannot cut into units"
        raise BackboneError(Problem("backbone", what, f"the families of {library} that it can cut: {known}"))
    cut = cutter(model)
    _check_leftover(model, cut, name)
    return cut


def _check_leftover(model: nn.Module, cut: Cut, name: str) -> None:
    """Refuse a variant (attention pooling, a second head, ...) of which a cut would silently lose a part."""
    kept = {id(tensor) for unit in cut.units.values() for tensor in unit.state_dict(keep_vars=True).values()}
    left = [key for key, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in kept]
    owners = {key.rpartition(".")[0] for key in left}
    if len(owners) > 1:
        what = f"{name!r} has tensors outside its units and its classifier: {', '.join(left[:6])}"
        raise BackboneError(Problem("backbone", what, "choose a variant of the family without extra parts"))
