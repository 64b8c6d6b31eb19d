"""Five ways to run a subnet (DS-Net, Table 1; SP-Net, Table 7): full, masked, indexed, sliced, ideal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.nets.base import Masks, SlimmableNet
from slimnb.nn.layers import Selection, SlimmableConv2d
from slimnb.nn.norm import SwitchableBatchNorm2d
from slimnb.subnet import Subnet


def execution_modes(net: SlimmableNet, subnet: Subnet, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Five callables that give logits of x (B, 3, H, W), for `compare_latency`; four give the same.

    full: the largest subnet. mask: the largest with the channels outside `subnet` multiplied by zero.
    index: weights gathered by lists of channel numbers at every call. slice: what slimnb does. ideal: the
    stand-alone thin net as anybody would have it, in PyTorch's own memory format. Both subnets need
    statistics.
    """
    masks = Masks(tuple((torch.arange(most, device=x.device) < width).float()[None]
                        for width, most in zip(subnet.widths, net.largest.widths, strict=True)),
                  net.slot_of(subnet), resolution=subnet.resolution)
    ideal = net.extract(subnet).to(memory_format=torch.contiguous_format)
    nhwc, nchw = (x.contiguous(memory_format=f) for f in (torch.channels_last, torch.contiguous_format))
    return {"full": partial(_in_eval, net, nhwc, net.largest), "mask": partial(_in_eval, net, nhwc, masks),
            "index": partial(indexed(net, subnet), nhwc), "slice": partial(_in_eval, net, nhwc, subnet),
            "ideal": partial(ideal, nchw)}


def _in_eval(net: SlimmableNet, x: Tensor, route: Subnet | Masks) -> Tensor:
    return net(x, route, statistics="slot")


def indexed(net: SlimmableNet, subnet: Subnet) -> nn.Module:
    """`net.extract(subnet)`, except that its layers gather the supernet's weights by index at each call."""
    plain = net.extract(subnet)
    s = net.select(subnet, statistics="slot")
    wide = [m for m in net.modules() if isinstance(m, (SlimmableConv2d, SwitchableBatchNorm2d))]
    thin = [name for name, m in plain.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    for source, name in zip(wide, thin, strict=True):
        kind = IndexedConv2d if isinstance(source, SlimmableConv2d) else IndexedBatchNorm2d
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, kind(source, s))
    plain[-1] = IndexedLinear(net.classifier, s)
    return plain


def _numbers(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


class IndexedConv2d(nn.Module):
    """A slimmable convolution at one width, its filters picked by `index_select` on both axes."""

    def __init__(self, source: SlimmableConv2d, s: Selection):
        super().__init__()
        self.source = source
        inputs = source.input_width(s)
        self.out_index = _numbers(inputs if source.depthwise else s.widths[source.unit], source.weight)
        self.in_index = _numbers(inputs, source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        source, weight = self.source, self.source.weight.index_select(0, self.out_index)
        if not source.depthwise:
            weight = weight.index_select(1, self.in_index)
        groups = len(self.in_index) if source.depthwise else 1
        return F.conv2d(x, weight, None, source.stride, source.padding, 1, groups)


class IndexedBatchNorm2d(nn.Module):
    """A slimmable batch norm at one width, its four vectors picked by `index_select`."""

    def __init__(self, source: SwitchableBatchNorm2d, s: Selection):
        super().__init__()
        self.source, self.slot = source, s.slot
        self.row = s.slot if len(source.weight) > 1 else 0
        self.index = _numbers(s.widths[source.unit], source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        source, index = self.source, self.index
        mean, var = (t[self.slot].index_select(0, index) for t in (source.running_mean, source.running_var))
        weight, bias = (t[self.row].index_select(0, index) for t in (source.weight, source.bias))
        return F.batch_norm(x, mean, var, weight, bias, eps=source.eps)


class IndexedLinear(nn.Module):
    """A slimmable linear layer at one width, its input features picked by `index_select`."""

    def __init__(self, source, s: Selection):
        super().__init__()
        self.source = source
        self.index = _numbers(s.reaching(source.sources), source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I) -> (B, out_features)."""
        return F.linear(x, self.source.weight.index_select(1, self.index), self.source.bias)
