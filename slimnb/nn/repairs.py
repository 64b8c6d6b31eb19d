"""These functions give PyTorch's numbers where a kernel of PyTorch or oneDNN is slow or wrong: repairs.

Layers call them in place of the functions of torch.nn.functional, so that no layer has to say why. A repair goes when
its kernel is mended.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve x (B, I, H, W) with weight (O, I, k, k), k odd, padded by k // 2, as `F.conv2d` does.

    oneDNN 3.x, where the processor has AVX2 but not AVX-512, writes beyond its buffers in the backward pass of a
    strided 1 x 1 convolution of fewer than 8 channels. So the pixels that it would read are taken first.
    """
    kernel = weight.shape[-1]
    if kernel == 1 and stride == 1 and matrices_are_faster(x):
        return PointwiseConv2d.apply(x, weight)
    if kernel == 1 and stride > 1 and x.shape[1] < 8:
        return F.conv2d(x[:, :, ::stride, ::stride], weight)
    return F.conv2d(x, weight, None, stride, kernel // 2)


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve each channel of x (B, C, H, W) with its filter of weight (C, 1, k, k), k odd, padded by k // 2.

    `DepthwiseConv2d` takes the gradients where oneDNN would be slow.
    """
    if backward_is_slow(x, weight.shape[-1], stride):
        return DepthwiseConv2d.apply(x, weight, stride)
    return _convolve(x, weight, stride)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise x (B, C, H, W) as `F.group_norm`; on the CPU in NCHW: for channels_last it is 2 to 17 times slower."""
    return F.group_norm(x.contiguous() if x.device.type == "cpu" else x, groups, weight, bias, eps)


def relu6(x: Tensor) -> Tensor:
    """Clip x to [0, 6], in place in inference mode alone: while training, hardtanh_ keeps a copy of its input.

    Code that is compiled cannot ask for the mode; the compiler places its results as it sees fit.
    """
    return F.relu6(x, inplace=not torch.compiler.is_compiling() and torch.is_inference_mode_enabled())


def matrices_are_faster(x: Tensor) -> bool:
    """Say whether 1 x 1 convolutions of x (B, C, H, W) train faster as matrix products on the CPU.

    In bfloat16 they do, most for the weight gradient and on small maps. In float32 they do not wherever MKL is slow
    (AMD).
    """
    return (x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled()
            and x.is_contiguous(memory_format=torch.channels_last))


class PointwiseConv2d(torch.autograd.Function):
    """A 1 x 1 convolution at stride 1 is a product of matrices: pixels by channels, and channels by filters.

    `apply(x, weight)` takes x (B, I, H, W) in channels_last and weight (O, I, 1, 1). Output and gradients are those of
    `F.conv2d`, up to the order of summation.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        """Return (B, O, H, W) in channels_last."""
        return _maps(_pixels(x) @ weight.flatten(1).t(), x)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep what the gradients need."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        rows, needs = _pixels(gradient), ctx.needs_input_grad
        of_x = _maps(rows @ weight.flatten(1), x) if needs[0] else None
        of_weight = (rows.t() @ _pixels(x)).view_as(weight) if needs[1] else None
        return of_x, of_weight


def _pixels(x: Tensor) -> Tensor:
    """View x (B, C, H, W) as (B * H * W, C); copies what is not channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """View (B * H * W, C) as (B, C, H, W), with the batch and the sides of `like`."""
    return rows.view(len(like), *like.shape[2:], rows.shape[1]).permute(0, 3, 1, 2)


def backward_is_slow(x: Tensor, kernel: int, stride: int) -> bool:
    """Say whether oneDNN would differentiate a depthwise convolution of x (B, C, H, W) by its slow reference kernels.

    They take the input gradient of a strided one in bfloat16 (25 to 100 times slower), and the weight gradient where
    the map is hardly larger than the padding (4 to 25 times) or the filter has more than three columns (2 to 10 times).
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return _weight_gradient_is_slow(x, kernel, stride) or (stride > 1 and x.dtype == torch.bfloat16)


class DepthwiseConv2d(torch.autograd.Function):
    """A depthwise convolution for training on the CPU computes the sums of `F.conv2d` without three slow paths.

    `apply(x, weight, stride)` takes x (B, C, H, W) and weight (C, 1, k, k) with odd k, and pads by k // 2. Output and
    gradients are those of `F.conv2d`, up to the order of summation. It is differentiable once.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Return (B, C, ceil(H / stride), ceil(W / stride))."""
        return _convolve(x, weight, stride)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep what the gradients need."""
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        of_x = _input_gradient(x, weight, gradient, ctx.stride) if needs[0] else None
        of_weight = _weight_gradient(x, weight, gradient, ctx.stride) if needs[1] else None
        return of_x, of_weight, None


def _convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))


def _input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """Spread the gradient over a map of zeros as large as x, and convolve it with the flipped filter."""
    if stride > 1:
        spread = torch.zeros_like(x)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return _convolve(gradient, weight.flip(2, 3))


def _weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """Call PyTorch; where it has no fast kernel, with a map that holds its padding, three filter columns at a time."""
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
