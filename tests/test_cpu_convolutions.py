"""Convolutions for training on a CPU give what torch's own give, to the rounding of float32, and leave all others alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_data, tiny_plan, without_time
from torch import Tensor, nn

from raystudy.finetune import cpu_convolutions, fit
from raystudy.finetune.backbone import build_backbone
from raystudy.finetune.compute import Compute
from raystudy.finetune.cpu_convolutions import fast_convolutions
from raystudy.finetune.trial import TrialRun

CPU = Compute.choose("cpu", "float32")


def run(layer: nn.Module, images: Tensor, *, fast: bool) -> list[Tensor]:
    """Return the outputs, and the gradients of the images and of the parameters for a fixed gradient of the outputs."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    with fast_convolutions(layer, CPU) if fast else nullcontext():
        outputs = layer(images)
    outputs.backward(torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)))
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert images.grad is not None
    return [outputs.detach(), images.grad, *(gradient.clone() for gradient in gradients if gradient is not None)]


def images_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


def assert_same(layer: nn.Module, images: Tensor) -> None:
    layer = layer.to(memory_format=torch.channels_last)
    for ours, theirs in zip(run(layer, images, fast=True), run(layer, images, fast=False), strict=True):
        scale = max(float(theirs.abs().max()), 1e-3)
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) < 1e-5 * scale


class Geometry(NamedTuple):
    """Of a convolution and its images, in rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    sides: tuple[int, int]


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any side from the smallest that gives an output pixel; padding may exceed the kernel."""

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    kernel, stride, padding, extra = pair(1, 5), pair(1, 3), pair(0, 4), pair(0, 6)
    height, width = (max(1, k - 2 * p) + e for k, p, e in zip(kernel, padding, extra, strict=True))
    return Geometry(kernel, stride, padding, (height, width))


def refuse(*_: object) -> Tensor:
    raise AssertionError("not to be called")


@given(geometry=geometries(), bias=st.booleans())
def test_depthwise_convolutions_of_any_geometry(geometry: Geometry, bias: bool) -> None:
    layer = nn.Conv2d(6, 6, geometry.kernel, geometry.stride, geometry.padding, groups=6, bias=bias)
    assert_same(layer, images_of(3, 6, *geometry.sides))


@given(geometry=geometries())
def test_the_sum_over_taps_is_the_weights_gradient(geometry: Geometry) -> None:
    stride, padding = geometry.stride, geometry.padding
    images, weight = images_of(2, 3, *geometry.sides).double(), torch.randn(3, 1, *geometry.kernel).double().requires_grad_()
    outputs = torch.conv2d(images, weight, None, stride, padding, 1, 3)
    gradient = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).double()
    torch.autograd.backward(outputs, gradient)
    assert weight.grad is not None
    ours = cpu_convolutions._weight_gradient(gradient, images, weight, stride, padding)
    torch.testing.assert_close(ours, weight.grad, rtol=1e-12, atol=1e-12)


@given(n_in=st.integers(1, 9), n_out=st.integers(1, 9), side=st.integers(1, 5), bias=st.booleans())
def test_pointwise_convolutions(n_in: int, n_out: int, side: int, bias: bool) -> None:
    assert_same(nn.Conv2d(n_in, n_out, 1, bias=bias), images_of(4, n_in, side, side))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1, padding=1),
        nn.Conv2d(4, 8, 1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=4),
    ],
    ids=str,
)
def test_other_convolutions_are_torchs_own(layer: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_convolutions, "_convolve_pointwise", refuse)
    if layer.padding_mode == "zeros":
        monkeypatch.setattr(cpu_convolutions._Depthwise, "apply", refuse)
    assert_same(layer, images_of(3, 4, 6, 6))


def test_small_maps_are_added_up_by_taps_and_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = cpu_convolutions._weight_gradient

    def noting(gradient: Tensor, *others: Any) -> Tensor:
        taken.append(gradient.shape[2])
        return real(gradient, *others)

    monkeypatch.setattr(cpu_convolutions, "_weight_gradient", noting)
    for side in (1, 2, 3, 7):
        assert_same(nn.Conv2d(4, 4, 3, padding=1, groups=4), images_of(3, 4, side, side))
    for side in (4, 5):
        assert_same(nn.Conv2d(4, 4, 5, padding=2, groups=4), images_of(3, 4, side, side))
    assert taken == [1, 2, 4]


def test_without_gradients_torchs_own_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored of a frozen prefix is the same whoever computes it."""
    monkeypatch.setattr(cpu_convolutions, "_convolve", refuse)
    layer, images = nn.Conv2d(4, 8, 1), images_of(3, 4, 6, 6)
    with fast_convolutions(layer, CPU), torch.no_grad():
        ours = layer(images)
    torch.testing.assert_close(ours, layer(images).detach(), rtol=0, atol=0)


def test_a_frozen_weight_gets_no_gradient_and_passes_on_that_of_its_input() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False).requires_grad_(False)
    assert_same(layer, images_of(3, 4, 2, 2))
    assert layer.weight.grad is None


def test_weights_without_a_gradient_of_the_input() -> None:
    """As the first layer after a frozen prefix has it."""
    layer, images = nn.Conv2d(4, 4, 3, padding=1, groups=4), images_of(3, 4, 2, 2)
    gradients = []
    for context in (fast_convolutions(layer, CPU), torch.enable_grad()):
        layer.zero_grad()
        with context:
            outputs = layer(images)
        outputs.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "compute"),
    [
        (nn.Conv2d(4, 4, 3), CPU),
        (nn.Linear(4, 4), CPU),
        (nn.Conv2d(4, 4, 1), Compute.choose("cpu", "bf16")),
        (nn.Conv2d(4, 4, 1), Compute(torch.device("cuda"), "float32")),
    ],
    ids=["no such layer", "no convolution", "bf16", "GPU"],
)
def test_elsewhere_nothing_is_replaced(network: nn.Module, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_convolutions, "_Convolutions", refuse)
    with fast_convolutions(network, compute):
        pass


def test_outputs_stay_channels_last() -> None:
    layer, images = nn.Conv2d(4, 8, 1), images_of(3, 4, 6, 6)
    with fast_convolutions(layer, CPU):
        assert layer(images).is_contiguous(memory_format=torch.channels_last)


def test_a_trial_trains_with_them_and_reports_what_it_would_with_torchs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_backbone("mobilenet_v3_small", pretrained=False, seed=3, image_size=32)
    data = tiny_data(side=32)
    plan = tiny_plan({"learning_rate": 1e-3, "optimizer": "sgd", "batch_size": 8}, epochs=1)

    def row(name: str) -> dict[str, float]:
        return {**without_time(next(TrialRun(plan, data, tmp_path / name, backbone=backbone).epochs()))}

    ours, asked = row("ours"), []

    def without(_: nn.Module, compute: Compute) -> AbstractContextManager[None]:
        asked.append(compute)
        return nullcontext()

    monkeypatch.setattr(fit, "fast_convolutions", without)
    theirs = row("theirs")
    assert len(asked) == 1
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours != theirs, "no convolution was replaced"
