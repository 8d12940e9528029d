"""Convolutions for training on a CPU, where two kinds are slow there: the same sums, to the rounding of float32.

Measured on one core, EfficientNet-lite0 at 32 px, batches of 64 (`benchmarks/convolutions.py`): of a training step's 210 ms
oneDNN spends 63 on the weights' gradients of depthwise convolutions, nearly all of it on maps of a few pixels where there is
next to nothing to add up, and 59 on convolutions by 1 x 1 kernels, which are matrix products and as such take half of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from raystudy.finetune.compute import Compute

_Pair = tuple[int, int]

_FEW_PIXELS = 4
_FEW_PIXELS_OF_LARGE_KERNELS, _LARGE_KERNEL = 16, 5
"""Up to how many pixels of output a depthwise weight's gradient is added up tap by tap; above, oneDNN is faster."""


def fast_convolutions(network: nn.Module, compute: Compute) -> AbstractContextManager[Any]:
    """Return the context under which `network`, the part that trains, is to be called; it changes no more than rounding.

    It can be entered again and again. Only for float32 on a CPU, and for networks that have such convolutions: elsewhere it
    does nothing. Convolutions that record no gradient are left as they are, so that what is stored of a frozen prefix does not
    depend on who computed it.
    """
    if compute.device.type != "cpu" or compute.precision != "float32":
        return nullcontext()
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    if not any(layer.kernel_size == (1, 1) or layer.groups > 1 for layer in layers):
        return nullcontext()
    return _Convolutions()


class _Convolutions(TorchFunctionMode):
    """Replaces calls of `conv2d`, whichever layer makes them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and torch.is_grad_enabled():
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or not input.is_contiguous(memory_format=torch.channels_last) or input.ndim != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    strides, paddings, dilations = _pair(stride), _pair(padding), _pair(dilation)
    if groups == 1 and weight.shape[2:] == (1, 1) and strides == (1, 1) and paddings == (0, 0):
        return _convolve_pointwise(input, weight, bias)
    if groups == input.shape[1] == weight.shape[0] > 1 and dilations == (1, 1) and weight.requires_grad:
        outputs: Tensor = _Depthwise.apply(input, weight, bias, strides, paddings)
        return outputs
    return torch.conv2d(input, weight, bias, strides, paddings, dilations, groups)


def _convolve_pointwise(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve `(n, c, h, w)`, channels last, by 1 x 1 kernels `(c', c, 1, 1)`: `(n, c', h, w)`, channels last."""
    outputs = nn.functional.linear(images.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return outputs.permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose weight's gradient on small maps is added up tap by tap."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return torch.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        of_images, of_weight, of_bias = ctx.needs_input_grad[:3]
        by_taps = of_weight and _is_small(gradient, weight)
        wanted = [of_images, of_weight and not by_taps, of_bias]
        d_images = d_weight = d_bias = None
        if any(wanted):
            sizes = [len(weight)] if ctx.has_bias else None
            d_images, d_weight, d_bias = torch.ops.aten.convolution_backward(
                gradient, images, weight, sizes, ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight), wanted
            )
        if by_taps:
            d_weight = _weight_gradient(gradient, images, weight, ctx.stride, ctx.padding)
        return d_images, d_weight, d_bias, None, None


def _is_small(gradient: Tensor, weight: Tensor) -> bool:
    few = _FEW_PIXELS_OF_LARGE_KERNELS if min(weight.shape[2:]) >= _LARGE_KERNEL else _FEW_PIXELS
    return gradient.shape[2] * gradient.shape[3] <= few


def _weight_gradient(gradient: Tensor, images: Tensor, weight: Tensor, stride: _Pair, padding: _Pair) -> Tensor:
    """Return the gradient of a depthwise weight `(c, 1, k, k')`: for every tap the sum over the pixels that it meets.

    Args:
        gradient: of the output, `(n, c, h', w')`.
        images: the input, `(n, c, h, w)`.
        weight: gives the shape.
        stride: in rows and columns.
        padding: likewise.
    """
    result = torch.zeros_like(weight)
    height, width = weight.shape[2:]
    for row, to_y, from_y in _met(height, images.shape[2], gradient.shape[2], stride[0], padding[0]):
        for column, to_x, from_x in _met(width, images.shape[3], gradient.shape[3], stride[1], padding[1]):
            product = gradient[:, :, to_y, to_x] * images[:, :, from_y, from_x]
            result[:, 0, row, column] = product.sum((0, 2, 3))
    return result


def _met(taps: int, n_in: int, n_out: int, stride: int, padding: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield along one side each tap that meets a pixel, the outputs at which it does, and the inputs that it meets there.

    Output `o` meets input `o * stride + tap - padding`, where that is one.
    """
    for tap in range(taps):
        offset = tap - padding
        first = max(0, -(offset // stride))
        last = min(n_out - 1, (n_in - 1 - offset) // stride)
        if first <= last:
            yield tap, slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1, stride)
