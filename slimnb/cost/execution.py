"""A subnet can be run in five ways (DS-Net, Table 1; SP-Net, Table 7): full, masked, indexed, sliced, ideal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.cost.latency import compare_latency
from slimnb.nets.base import Masks, SlimmableNet
from slimnb.nn.layers import Selection, SlimmableConv2d
from slimnb.nn.norm import SwitchableBatchNorm2d
from slimnb.subnet import Subnet


def execution_modes(net: SlimmableNet, subnet: Subnet, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return five callables that give logits of x (B, 3, H, W), for `compare_latency`; the last four give the same.

    - full: the largest subnet.
    - mask: the largest subnet, with the channels outside `subnet` multiplied by zero.
    - index: `subnet`, its weights gathered by lists of channel numbers at every call.
    - slice: `subnet`, as slimnb runs it.
    - ideal: the stand-alone thin net, in whichever memory format is faster here.

    Both subnets need statistics. Raises NumericsError without them.
    """
    masks = replace(net.masks(torch.tensor([subnet.widths]), [subnet]), slot=net.slot_of(subnet))  # one row for all
    image = x.contiguous(memory_format=torch.channels_last)
    return {"full": partial(_in_eval, net, image, net.largest), "mask": partial(_in_eval, net, image, masks),
            "index": partial(indexed(net, subnet), image), "slice": partial(_in_eval, net, image, subnet),
            "ideal": in_faster_format(net.extract(subnet), x)}


def in_faster_format(plain: nn.Module, x: Tensor, rounds: int = 5) -> Callable[[], Tensor]:
    """Return a callable that gives `plain(x)`, with both in PyTorch's own memory format or both in channels_last.

    The format is the one with the fastest of `rounds` calls, timed in turn. Neither wins for every net, and a slice,
    which is always in channels_last, must not look good beside a net that is held in the wrong format.
    """
    ways = [partial(copy.deepcopy(plain).to(memory_format=form), x.contiguous(memory_format=form))
            for form in (torch.contiguous_format, torch.channels_last)]
    timed = compare_latency(dict(enumerate(ways)), x, rounds, warmup=1, min_ms=0.0)
    return ways[min(timed, key=lambda way: timed[way]["min_ms"])]


def _in_eval(net: SlimmableNet, x: Tensor, route: Subnet | Masks) -> Tensor:
    return net(x, route, statistics="slot")


def indexed(net: SlimmableNet, subnet: Subnet) -> nn.Module:
    """Return `net.extract(subnet)`, whose convolutions, batch norms and classifier gather weights at each call.

    They gather the supernet's by index.
    """
    plain = net.extract(subnet)
    s = net.select(subnet, statistics="slot")
    layers = (m for m in net.modules() if isinstance(m, (SlimmableConv2d, SwitchableBatchNorm2d)))
    wide = [m for m in layers if s.widths[m.unit]]  # blocks of width 0 are not extracted
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
    """A slimmable convolution at one width that picks its filters by `index_select` on both axes."""

    def __init__(self, source: SlimmableConv2d, s: Selection):
        super().__init__()
        self.source, self.selection = source, s
        inputs = source.input_width(s)
        self.out_index = _numbers(inputs if source.depthwise else s.widths[source.unit], source.weight)
        self.in_index = _numbers(inputs, source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, I, H, W) to (B, O, H / stride, W / stride)."""
        source, weight = self.source, self.source.weight.index_select(0, self.out_index)
        if not source.depthwise:
            weight = weight.index_select(1, self.in_index)
        groups = len(self.in_index) if source.depthwise else 1
        weight = source.filters(self.selection, weight)
        return F.conv2d(x, weight, None, source.stride, weight.shape[-1] // 2, 1, groups)


class IndexedBatchNorm2d(nn.Module):
    """A slimmable batch norm at one width that picks its four vectors by `index_select`."""

    def __init__(self, source: SwitchableBatchNorm2d, s: Selection):
        super().__init__()
        self.source, self.slot = source, s.slot
        self.row = s.slot if len(source.weight) > 1 else 0
        self.index = _numbers(s.widths[source.unit], source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        source, index = self.source, self.index
        mean, var = (t[self.slot].index_select(0, index) for t in (source.running_mean, source.running_var))
        weight, bias = (t[self.row].index_select(0, index) for t in (source.weight, source.bias))
        return F.batch_norm(x, mean, var, weight, bias, eps=source.eps)


class IndexedLinear(nn.Module):
    """A slimmable linear layer at one width that picks its input features by `index_select`."""

    def __init__(self, source, s: Selection):
        super().__init__()
        self.source = source
        self.index = _numbers(s.reaching(source.sources), source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, I) to (B, out_features)."""
        return F.linear(x, self.source.weight.index_select(1, self.index), self.source.bias)
