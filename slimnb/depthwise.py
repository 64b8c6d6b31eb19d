"""Depthwise convolution for training on the CPU: the sums of `F.conv2d` without two slow paths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def backward_is_slow(x: Tensor, stride: int) -> bool:
    """Whether oneDNN would differentiate a depthwise convolution of x (B, C, H, W) slowly.

    Its reference kernels take the input gradient of a strided one in bfloat16 (25 to 100 times
    slower) and the weight gradient where the map is hardly larger than the padding (4 to 25 times).
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return min(x.shape[2:]) < stride + 2 or (stride > 1 and x.dtype == torch.bfloat16)


class DepthwiseConv2d(torch.autograd.Function):
    """`apply(x, weight, stride)`: x (B, C, H, W), weight (C, 1, k, k) with odd k, padding k // 2.

    Output and gradients are those of `F.conv2d`, up to the order of summation; differentiable once.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """(B, C, ceil(H / stride), ceil(W / stride))."""
        return _convolve(x, weight, stride)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep what the gradients need."""
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_x = _input_gradient(x, weight, gradient, ctx.stride) if wanted[0] else None
        of_weight = _weight_gradient(x, weight, gradient, ctx.stride) if wanted[1] else None
        return of_x, of_weight, None


def _convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))


def _input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The gradient, spread over a map of zeros as large as x, convolved with the flipped filter."""
    if stride > 1:
        spread = torch.zeros_like(x)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return _convolve(gradient, weight.flip(2, 3))


def _weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The library's, on maps that zeros make large enough for its fast kernel."""
    height, width = (max(0, stride + 2 - side) for side in x.shape[2:])
    if height or width:
        x = F.pad(x, (0, width, 0, height))
        outputs = [-(-side // stride) for side in x.shape[2:]]
        missing = [out - got for out, got in zip(outputs, gradient.shape[2:], strict=True)]
        gradient = F.pad(gradient, (0, missing[1], 0, missing[0]))
    strides, paddings = (stride, stride), (weight.shape[-1] // 2,) * 2
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, strides, paddings, (1, 1), False, (0, 0), len(weight),
        (False, True, False))  # dilation, transposed, output padding, groups, which gradients
    return of_weight
