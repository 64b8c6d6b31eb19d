"""Nets are built of these: chains, convolution-norm-activation, residual joins, each with a plain twin."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.errors import ParameterError
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
        """Map x (B, C, H, W) to (B, C, H / stride, W / stride); raises ParameterError if no window fits into x."""
        if min(x.shape[2:]) + 2 * self.padding < self.kernel:
            raise ParameterError(f"a map of {x.shape[2]} x {x.shape[3]} pixels for max-pooling",
                                 f"its windows have {self.kernel} x {self.kernel}", "Use larger images or resolution.")
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
        """Extract body and shortcut; how wide each is gets decided here, not by the plain module."""
        shortcut = nn.Identity() if self.shortcut is None else self.shortcut.extract(s)
        widths, out = s.widths if s.ends else s.reach or s.widths, self.body[-1].unit
        streams = tuple(u for u in self.sources if u != out)
        most, short = s.reaching(self.sources), s.reaching(streams) if self.shortcut is None else widths[streams[0]]
        before = (most - short) * s.ends
        return PlainResidual(self.body.extract(s), shortcut, PLAIN_ACTIVATIONS[self.activation](),
                             most - widths[out], before, most - short - before)


class PlainResidual(nn.Module):
    """Body and shortcut, plain modules, are padded with zero channels to one width, added and activated.

    The body has `behind` of them after its own, the shortcut `before` its own and `after`.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module, behind: int, before: int,
                 after: int):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation
        self.behind, self.before, self.after = behind, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, I, H, W) to (B, O, H / stride, W / stride)."""
        body, shortcut = self.body(x), self.shortcut(x)
        if self.behind > 0:
            body = F.pad(body, (0, 0, 0, 0, 0, self.behind))
        if self.before + self.after > 0:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.before, self.after))
        return self.activation(body + shortcut)


class Resize(nn.Module):
    """A layer that resizes as `resize` does, and asks for no size: at `resolution` that gives the pixels themselves."""

    def __init__(self, resolution: int):
        super().__init__()
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, 3, H, W) to (B, 3, resolution, resolution)."""
        return _interpolate(x, self.resolution)


def resize(x: Tensor, resolution: int | None) -> Tensor:
    """Bring x (B, 3, H, W) to `resolution` pixels a side, bilinearly with corners aligned; None leaves it as it is."""
    if resolution is None or x.shape[-2:] == (resolution, resolution):
        return x
    return _interpolate(x, resolution)


def _interpolate(x: Tensor, resolution: int) -> Tensor:
    return F.interpolate(x, size=(resolution, resolution), mode="bilinear", align_corners=True)
