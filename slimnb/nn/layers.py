"""Layers take their width with every call: as an int (they slice), or as a mask (one width per sample).

`unit` is a layer's place in `Selection.widths`; `sources` are the units that its input comes from. Weights are not
initialised here: `SlimmableNet.finish` does it, and a module of another kind must do it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from slimnb.errors import DataError, ParameterError
from slimnb.nn.repairs import conv2d, depthwise_conv2d, relu6
from slimnb.subnet import Subnet, make_divisible

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: F.relu(x, inplace=True),
    "relu6": relu6,
    "swish": F.silu,
    "hswish": F.hardswish,
    "none": lambda x: x,
}
PLAIN_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "swish": nn.SiLU, "hswish": nn.Hardswish,
                     "none": nn.Identity}


@dataclass(slots=True)
class Selection:
    """A selection says what one forward pass runs: channels per unit, blocks, kernels, and whose statistics.

    `widths[u]` is an int or a (B, C) mask of zeros and ones. `slot` is the row of batch-norm statistics, a
    (B,) tensor with one row per sample, or a (B, slots) one of weights that mix the rows. `batch_statistics`
    normalises by the batch at hand; `momentum` is then its weight in the running statistics of `slot` (None
    leaves them alone). `reach` is `net.reach` of the subnet and `ends` says whether its joins are padded at their
    ends: see slimnb/nn/zero_padding.py. With a `routing` gates fill in widths and slot on the way: see
    slimnb/nn/gate.py. Images are brought to `resolution` pixels a side (None leaves them as they are).
    """

    widths: tuple | list
    depths: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    slot: int | Tensor = 0
    batch_statistics: bool = False
    momentum: float | None = None
    reach: tuple[int, ...] = ()
    ends: bool = False
    routing: Any = None
    decisions: list = field(default_factory=list)  # of the gates so far
    resolution: int | None = None

    def reaching(self, units: tuple[int, ...], otherwise: int = 0) -> int:
        """Return how many channels a layer reads that `units` feed: `otherwise` if there are none, or masks."""
        widths = [(self.reach or self.widths)[u] for u in units]
        return otherwise if any(isinstance(width, Tensor) for width in widths) else max(widths, default=otherwise)


def narrow(x: Tensor, width: int | Tensor) -> Tensor:
    """Keep the first `width` channels of x (B, C, H, W), or multiply x by the (B, C) mask `width`.

    If the batch is shorter than the mask, its first rows are used; if x has fewer channels, its first columns.
    """
    if isinstance(width, int):
        return x if x.shape[1] <= width else x[:, :width]
    return x * width[: len(x), : x.shape[1], None, None].to(x.dtype)


def join(body: Tensor, shortcut: Tensor) -> Tensor:
    """Add two (B, C, H, W) tensors; the narrower one counts as zero in the channels that it lacks."""
    if body.shape[1] == shortcut.shape[1]:
        return body + shortcut
    thin, wide = sorted((body, shortcut), key=lambda t: t.shape[1])
    return torch.cat([wide[:, : thin.shape[1]] + thin, wide[:, thin.shape[1]:]], dim=1)


def join_ends(body: Tensor, shortcut: Tensor, width: int) -> Tensor:
    """Add two (B, C, H, W) tensors in `width` channels: the body lies in the first, the shortcut in the last."""
    if body.shape[1] == shortcut.shape[1] == width:
        return body + shortcut
    behind, before = width - body.shape[1], width - shortcut.shape[1]
    return F.pad(body, (0, 0, 0, 0, 0, behind)) + F.pad(shortcut, (0, 0, 0, 0, before, 0))


def _uninitialised(kind: type[nn.Module], like: Tensor, *args, **kwargs) -> nn.Module:
    # An ordinary constructor would draw from torch's global random numbers, only to be overwritten.
    return skip_init(kind, *args, **kwargs, device=like.device, dtype=like.dtype)


class SlimmableConv2d(nn.Module):
    """A convolution that uses its first `widths[unit]` filters and as many input channels as its input has.

    `sources` are the channel units that its input may come from; without any it reads the image. A depthwise
    convolution has no width of its own: it follows its input.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, unit: int,
                 sources: tuple[int, ...] = (), depthwise: bool = False):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride = kernel, stride
        self.kernels = (kernel,)  # sides that it can have, ascending
        self.unit, self.sources, self.depthwise = unit, sources, depthwise
        shape = (out_channels, 1 if depthwise else in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, I, H, W), I <= in_channels, to (B, O, H / stride, W / stride), where O is the selected width."""
        inputs = x.shape[1]
        if not self.sources:
            self.check_images(x)
        elif inputs > self.in_channels:
            raise ParameterError(f"{inputs} input channels for a convolution of {self.in_channels}",
                                 "a subnet is nowhere wider than its supernet", "Use widths within net.largest.")
        # Casting here, not by autocast: autocast caches casts of parameters but not of their slices.
        if self.depthwise:
            return depthwise_conv2d(x, self.filters(s, self.weight[:inputs]).to(x.dtype), self.stride)
        width = s.widths[self.unit]
        outputs = width if isinstance(width, int) else self.out_channels
        return conv2d(x, self.weight[:outputs, :inputs].to(x.dtype), self.stride)

    def kernel_at(self, s: Selection | Subnet) -> int:
        """Return the side of the selected kernel in pixels."""
        return self.kernel

    def check_images(self, x: Tensor) -> None:
        """Raise DataError unless x is (B, in_channels, H, W) of floats: a slice would take fewer channels unsaid."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise DataError(f"images of shape {tuple(x.shape)}, {x.dtype}"[:90],
                            f"this net reads (B, {self.in_channels}, H, W) in a float type",
                            f"Convert them to {self.in_channels} channels, e.g. float32.")

    def filters(self, s: Selection, weight: Tensor) -> Tensor:
        """Return the filters of the selected size that rows of `self.weight` stand for, in their precision."""
        return weight

    def input_width(self, s: Selection) -> int:
        """Return how many channels come to this layer; the widths of `s` must be ints."""
        return s.reaching(self.sources, self.in_channels)

    def extract(self, s: Selection) -> nn.Conv2d:
        """Copy the selected part into a plain `nn.Conv2d`."""
        inputs = self.input_width(s)
        outputs = inputs if self.depthwise else s.widths[self.unit]
        groups = inputs if self.depthwise else 1
        weight = self.filters(s, self.weight[:outputs]).detach()
        kernel = weight.shape[-1]
        plain = _uninitialised(nn.Conv2d, self.weight, inputs, outputs, kernel, self.stride, kernel // 2,
                               groups=groups, bias=False)
        plain.weight.data.copy_(weight[:, : plain.weight.shape[1]])
        return plain


class SlimmableLinear(nn.Module):
    """A linear layer that reads as many features as its input has, and always computes all outputs."""

    def __init__(self, in_features: int, out_features: int, *, sources: tuple[int, ...]):
        super().__init__()
        self.in_features, self.out_features, self.sources = in_features, out_features, sources
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, s: Selection | None = None) -> Tensor:
        """Map x (B, I) to (B, out_features); raises ParameterError unless I is the width that `s` selects."""
        width = x.shape[1] if s is None else s.reaching(self.sources, self.in_features)
        if x.shape[1] != width:
            raise ParameterError(f"{x.shape[1]} features for a linear layer", f"its subnet has {width} there",
                                 "Run the features of that subnet.")
        return F.linear(x, self.weight[:, : x.shape[1]].to(x.dtype), self.bias.to(x.dtype))

    def extract(self, s: Selection) -> nn.Linear:
        """Copy the selected part into a plain `nn.Linear`."""
        inputs = s.reaching(self.sources)
        plain = _uninitialised(nn.Linear, self.weight, inputs, self.out_features)
        plain.weight.data.copy_(self.weight.detach()[:, :inputs])
        plain.bias.data.copy_(self.bias.detach())
        return plain


class PlainSqueezeExcite(nn.Module):
    """Squeeze-and-excitation at one width computes x * gate(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int, hidden: int, gate: str):
        super().__init__()
        self.squeeze, self.excite, self.gate = nn.Linear(channels, hidden), nn.Linear(hidden, channels), gate

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * _gate(gate, self.gate)[:, :, None, None]


def _gate(x: Tensor, kind: str) -> Tensor:
    return F.hardsigmoid(x) if kind == "hsigmoid" else torch.sigmoid(x)


class SlimmableSqueezeExcite(nn.Module):
    """Squeeze-and-excitation whose hidden width is `make_divisible(C // reduction)` if its input has C channels."""

    def __init__(self, channels: int, *, unit: int, reduction: int = 4, gate: str = "hsigmoid"):
        super().__init__()
        self.unit, self.gate = unit, gate
        hidden = [0] + [make_divisible(c // reduction) for c in range(1, channels + 1)]
        self.hidden = hidden  # hidden width of every possible C
        self.register_buffer("hidden_of", torch.tensor(hidden), persistent=False)
        self.squeeze = nn.Linear(channels, hidden[-1])
        self.excite = nn.Linear(hidden[-1], channels)

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        c, width, dtype = x.shape[1], s.widths[self.unit], x.dtype
        h = self.hidden[c] if isinstance(width, int) else self.squeeze.out_features
        weight, bias = self.squeeze.weight[:h, :c], self.squeeze.bias[:h]
        z = F.relu(F.linear(x.mean((2, 3)), weight.to(dtype), bias.to(dtype)))
        if not isinstance(width, int):
            per_sample = self.hidden_of[width.sum(1).long()]  # (B,)
            z = z * (torch.arange(h, device=x.device) < per_sample[:, None]).to(dtype)
        z = F.linear(z, self.excite.weight[:c, :h].to(dtype), self.excite.bias[:c].to(dtype))
        return x * _gate(z, self.gate)[:, :, None, None]

    def extract(self, s: Selection) -> PlainSqueezeExcite:
        """Copy the selected part into a plain module."""
        c = s.widths[self.unit]
        h = self.hidden[c]
        weight = self.squeeze.weight
        with torch.device("meta"):
            plain = PlainSqueezeExcite(c, h, self.gate).to(weight.dtype)
        plain.to_empty(device=weight.device)
        plain.squeeze.weight.data.copy_(self.squeeze.weight.detach()[:h, :c])
        plain.squeeze.bias.data.copy_(self.squeeze.bias.detach()[:h])
        plain.excite.weight.data.copy_(self.excite.weight.detach()[:c, :h])
        plain.excite.bias.data.copy_(self.excite.bias.detach()[:c])
        return plain


