"""Nets are built of these: chains, convolution-norm-activation, residual joins, each with a plain twin."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.nn.layers import ACTIVATIONS, PLAIN_ACTIVATIONS, Selection, SlimmableConv2d, join, join_ends, narrow
from slimnb.nn.norm import normalisation


class Chain(nn.Sequential):
    """A chain runs slimmable modules one after the other."""

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, C, H, W) to the output of the last module."""
        for module in self:
            x = module(x, s)
        return x

    def extract(self, s: Selection) -> nn.Sequential:
        """Extract every module."""
        return nn.Sequential(*(module.extract(s) for module in self))


class ConvNormAct(nn.Module):
    """Convolution, normalisation and activation come first, and then the mask: beta could light a masked channel.

    `net.bn` names the normalisation; `activation` (None: `net.activation`) names the activation.
    """

    def __init__(self, net: nn.Module, in_channels: int, out_channels: int, kernel: int,
                 stride: int = 1, *, unit: int, sources: tuple[int, ...], depthwise: bool = False,
                 activation: str | None = None):
        super().__init__()
        self.unit, self.activation = unit, activation or net.activation
        self.conv = SlimmableConv2d(in_channels, out_channels, kernel, stride, unit=unit, sources=sources,
                                    depthwise=depthwise)
        self.norm = normalisation(out_channels, unit=unit, policy=net.bn, channels_per_group=net.channels_per_group)
        self.place = None  # a Placement, where the channels lie scattered in a residual stream

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, I, H, W) to (B, O, H / stride, W / stride)."""
        x = self.conv(x, s)  # rebinding lets the input die before the next activation is made
        x = narrow(self.norm(x, s, self.activation), s.widths[self.unit])
        return x if self.place is None else self.place(x, s)

    def extract(self, s: Selection) -> nn.Sequential:
        """Extract convolution, normalisation, activation and placement."""
        plain = nn.Sequential(self.conv.extract(s), self.norm.extract(s))
        if self.activation != "none":
            plain.append(PLAIN_ACTIVATIONS[self.activation]())
        return plain if self.place is None or s.ends else plain.append(self.place.extract(s))


class MaxPool(nn.Module):
    """Max-pooling of the channels of the units `sources`."""

    def __init__(self, kernel: int, stride: int, padding: int = 0, *, sources: tuple[int, ...]):
        super().__init__()
        self.kernel, self.stride, self.padding, self.sources = kernel, stride, padding, sources

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, C, H, W) to (B, C, H / stride, W / stride)."""
        return F.max_pool2d(x, self.kernel, self.stride, self.padding)

    def extract(self, s: Selection) -> nn.MaxPool2d:
        """Return the plain module that does the same."""
        return nn.MaxPool2d(self.kernel, self.stride, self.padding)


class Residual(nn.Module):
    """Body and shortcut (None: the identity) are added, the narrower padded with zeros, and activated.

    `sources` are the channel units that its output comes from; the widest of them says how wide it is.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, activation: str,
                 sources: tuple[int, ...]):
        super().__init__()
        self.body, self.shortcut, self.activation, self.sources = body, shortcut, activation, sources

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, I, H, W) to (B, max(body, shortcut), H / stride, W / stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x, s)
        if s.ends:
            x = join_ends(self.body(x, s), shortcut, s.reaching(self.sources))
        else:
            x = join(self.body(x, s), shortcut)
        return ACTIVATIONS[self.activation](x)

    def extract(self, s: Selection) -> PlainResidual:
        """Extract body and shortcut."""
        shortcut = None if self.shortcut is None else self.shortcut.extract(s)
        activation = PLAIN_ACTIVATIONS[self.activation]()
        return PlainResidual(self.body.extract(s), shortcut, activation, s.reaching(self.sources) * s.ends)


class PlainResidual(nn.Module):
    """Body and shortcut (None: the identity) of plain modules are added and activated.

    With `ends` > 0 their sum has that many channels: the body's come first, the shortcut's last.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, activation: nn.Module, ends: int = 0):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut or nn.Identity(), activation
        self.ends = ends

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, I, H, W) to (B, O, H / stride, W / stride)."""
        body, shortcut = self.body(x), self.shortcut(x)
        return self.activation(join_ends(body, shortcut, self.ends) if self.ends else join(body, shortcut))


class Resize(nn.Module):
    """A layer that calls `resize`."""

    def __init__(self, resolution: int):
        super().__init__()
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, 3, H, W) to (B, 3, resolution, resolution)."""
        return resize(x, self.resolution)


def resize(x: Tensor, resolution: int | None) -> Tensor:
    """Bring x (B, 3, H, W) to `resolution` pixels a side, bilinearly with corners aligned; None leaves it as it is."""
    if resolution is None or x.shape[-2:] == (resolution, resolution):
        return x
    return F.interpolate(x, size=(resolution, resolution), mode="bilinear", align_corners=True)
