"""Depthwise convolution for training on the CPU: the sums of `F.conv2d` without three slow paths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def backward_is_slow(x: Tensor, kernel: int, stride: int) -> bool:
    """Whether oneDNN would differentiate a depthwise convolution of x (B, C, H, W) slowly.

    Its reference kernels take the input gradient of a strided one in bfloat16 (25 to 100 times
    slower), and the weight gradient where the map is hardly larger than the padding (4 to 25 times)
    or the filter more than three columns wide (2 to 10 times).
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return _weight_gradient_is_slow(x, kernel, stride) or (stride > 1 and x.dtype == torch.bfloat16)


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
    """The library's; where it has no fast kernel, on a map that holds its padding, three filter columns at a time."""
    kernel, padding = weight.shape[-1], weight.shape[-1] // 2
    height, width = (stride * (side - 1) + kernel for side in gradient.shape[2:])  # of all windows together
    if _weight_gradient_is_slow(x, kernel, stride):
        x, padding = F.pad(x, (padding,) * 4)[:, :, :height], 0
    of_weight = torch.empty_like(weight)
    for column in sorted({*range(0, kernel - 3, 3), max(0, kernel - 3)}):
        strip = weight[..., column: column + 3]
        _, of_weight[..., column: column + 3], _ = torch.ops.aten.convolution_backward(
            gradient, x[..., column: column + width - kernel + strip.shape[-1]], strip, None, (stride, stride),
            (padding, padding), (1, 1), False, (0, 0), len(weight), (False, True, False))
    return of_weight


def _weight_gradient_is_slow(x: Tensor, kernel: int, stride: int) -> bool:
    return kernel > 3 or min(x.shape[2:]) < stride + 2
