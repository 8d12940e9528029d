"""Cuts of the convolutional families of torchvision and timm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raystudy.finetune.families.cut import Cut, append_to_last, last_linear, numbered, prepend_to_first


def cut_resnet(model: Any) -> Cut:
    """Cut a ResNet, ResNeXt or wide ResNet of torchvision or timm: stem, then each residual block."""
    activation = model.relu if hasattr(model, "relu") else model.act1
    units: dict[str, nn.Module] = {"stem": nn.Sequential(model.conv1, model.bn1, activation, model.maxpool)}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        units |= numbered(stage, getattr(model, stage))
    pool = [model.avgpool, nn.Flatten(1)] if hasattr(model, "avgpool") else [model.global_pool]
    return Cut(append_to_last(units, *pool), _timm_features(model) or model.fc.in_features)


def cut_efficientnet(model: Any) -> Cut:
    """Cut torchvision's EfficientNet v1 or v2: stem, each inverted residual block, last convolution."""
    stem, *stages, last = model.features
    units: dict[str, nn.Module] = {"stem": stem}
    for index, stage in enumerate(stages, start=1):
        units |= numbered(f"stage{index}", stage)
    units["conv_head"] = nn.Sequential(last, model.avgpool, nn.Flatten(1))
    return Cut(units, last_linear(model).in_features)


def cut_mobilenet(model: Any) -> Cut:
    """Cut torchvision's MobileNet v2 or v3: stem, each block, last convolution, v3's hidden layer."""
    stem, *blocks, last = model.features
    units = {"stem": stem, **numbered("block", blocks)}
    units["conv_head"] = nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    units |= numbered("hidden", _hidden_layers(model.classifier))
    return Cut(units, last_linear(model).in_features)


def cut_vgg(model: Any) -> Cut:
    """Cut torchvision's VGG: each convolution with what follows it, each hidden fully connected layer."""
    return _cut_plain(model, min_size=32)


def cut_alexnet(model: Any) -> Cut:
    """Cut torchvision's AlexNet: each convolution with what follows it, each hidden fully connected layer."""
    return _cut_plain(model, min_size=63)


def cut_densenet(model: Any) -> Cut:
    """Cut torchvision's DenseNet: stem, each dense layer, each transition, final norm.

    A dense layer, not a block, is the unit: blocks have up to 48 layers, which is no step to freeze as a whole.
    """
    units: dict[str, nn.Module] = {}
    stem: list[nn.Module] = []
    for name, child in model.features.named_children():
        if name.startswith("denseblock"):
            units |= numbered(name, map(DenseStep, child.values()))
        elif name.startswith("transition"):
            units[name] = child
        elif name == "norm5":
            units["norm"] = nn.Sequential(child, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        else:
            stem.append(child)
    return Cut({"stem": nn.Sequential(*stem), **units}, model.classifier.in_features, min_size=29)


def cut_convnext(model: Any) -> Cut:
    """Cut torchvision's ConvNeXt: stem, each block (with the downsampling before it), final norm."""
    stem, first, *rest = model.features
    units = {"stem": stem, **numbered("stage1", first)}
    for index, (downsample, stage) in enumerate(zip(rest[::2], rest[1::2], strict=True), start=2):
        units |= prepend_to_first(numbered(f"stage{index}", stage), downsample)
    norm, flatten, linear = model.classifier
    units["norm"] = nn.Sequential(model.avgpool, norm, flatten)
    return Cut(units, linear.in_features, min_size=32)


def cut_regnet(model: Any) -> Cut:
    """Cut torchvision's RegNet: stem, then each residual block."""
    units: dict[str, nn.Module] = {"stem": model.stem}
    for name, stage in model.trunk_output.named_children():
        units |= numbered(name, stage)
    return Cut(append_to_last(units, model.avgpool, nn.Flatten(1)), model.fc.in_features)


def cut_timm_efficientnet(model: Any) -> Cut:
    """Cut timm's EfficientNet (lite, MobileNet v2, MnasNet, ...): stem, each block, last convolution."""
    units = _timm_mobile_stages(model)
    units["conv_head"] = nn.Sequential(model.conv_head, model.bn2, model.global_pool)
    return Cut(units, model.head_hidden_size)


def cut_timm_mobilenet_v3(model: Any) -> Cut:
    """Cut timm's MobileNet v3, whose last convolution follows the pooling: stem, each block, last convolution."""
    units = _timm_mobile_stages(model)
    units["conv_head"] = nn.Sequential(model.global_pool, model.conv_head, model.norm_head, model.act2, model.flatten)
    return Cut(units, model.head_hidden_size)


def cut_timm_convnext(model: Any) -> Cut:
    """Cut timm's ConvNeXt v1 or v2: stem, each block (with the downsampling before it), final norm."""
    units: dict[str, nn.Module] = {"stem": model.stem}
    for index, stage in enumerate(model.stages, start=1):
        units |= prepend_to_first(numbered(f"stage{index}", stage.blocks), stage.downsample)
    tail = [getattr(model.head, part, None) for part in ("global_pool", "norm", "flatten", "pre_logits")]
    units["norm"] = nn.Sequential(model.norm_pre, *filter(None, tail))
    return Cut(units, model.head_hidden_size, min_size=model.feature_info[-1]["reduction"])


def cut_timm_regnet(model: Any) -> Cut:
    """Cut timm's RegNet: stem, then each residual block."""
    units: dict[str, nn.Module] = {"stem": model.stem}
    for stage in ("s1", "s2", "s3", "s4"):
        units |= numbered(stage, getattr(model, stage).children())
    return Cut(append_to_last(units, model.final_conv, model.head.global_pool), model.head_hidden_size)


class DenseStep(nn.Module):
    """One layer of a dense block: appends its new channels to its input.

    A chain of steps concatenates once per layer, as often as torchvision's block does, which collects a list.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*layer.children())

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, H, W) to (batch, channels + growth rate, H, W)."""
        return torch.cat([x, self.layer(x)], dim=1)


def _cut_plain(model: Any, min_size: int) -> Cut:
    convolutions = _split_before(model.features, (nn.Conv2d,))
    hidden = numbered("hidden", _hidden_layers(model.classifier))
    # Pooled at the beginning of the hidden layer, because that pooling blows small feature maps up to 7 x 7.
    units = {**numbered("conv", convolutions), **prepend_to_first(hidden, model.avgpool, nn.Flatten(1))}
    return Cut(units, last_linear(model).in_features, min_size=min_size)


def _hidden_layers(classifier: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Group all but the last linear layer of `classifier`; dropout goes to the layer that reads it.

    Dropout before the last linear layer is left out: it belongs to the head.
    """
    *layers, _ = classifier
    groups: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, nn.Dropout | nn.Linear) and _has_linear(groups[-1]):
            groups.append([])
        groups[-1].append(layer)
    return [nn.Sequential(*group) for group in groups if _has_linear(group)]


def _has_linear(layers: Iterable[nn.Module]) -> bool:
    return any(isinstance(layer, nn.Linear) for layer in layers)


def _split_before(layers: Iterable[nn.Module], starts: tuple[type[nn.Module], ...]) -> list[nn.Sequential]:
    """Group consecutive `layers`; each layer of a type in `starts` begins a group."""
    groups: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, starts):
            groups.append([])
        groups[-1].append(layer)
    return [nn.Sequential(*group) for group in groups]


def _timm_mobile_stages(model: Any) -> dict[str, nn.Module]:
    units: dict[str, nn.Module] = {"stem": nn.Sequential(model.conv_stem, model.bn1)}
    for index, stage in enumerate(model.blocks, start=1):
        units |= numbered(f"stage{index}", stage)
    return units


def _timm_features(model: Any) -> int | None:
    return getattr(model, "head_hidden_size", None)
