"""Zero padding match (SP-Net, section 3.4): the paths that meet in a join each keep channels of their own.

Every unit of a residual stream holds its channels in its own order, most important first, so that a subnet's
are a slice; its `Placement` scatters them to their places in the stream and leaves zeros in between. The
stream's order puts first what the smallest subnet uses: all that a subnet uses then lies in a prefix, and
the layers that read the stream slice their inputs as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from slimnb.nn.blocks import ConvNormAct, Residual
from slimnb.nn.layers import Selection

MATCH, ENDS, SHORTCUT = "match", "ends", "shortcut"
PADDINGS = (MATCH, ENDS, SHORTCUT)


class Placement(nn.Module):
    """Scatters the channels of one unit into its residual stream of `channels` channels.

    `index` (C,) int64: the place in the stream of each of the unit's channels.
    """

    def __init__(self, index: Tensor, unit: int, channels: int):
        super().__init__()
        self.unit, self.channels = unit, channels
        self.register_buffer("index", index)

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """(B, C, H, W) -> (B, the reach of C, H, W), zeros where no channel goes; masks fill the whole stream."""
        if s.ends:
            return x
        return scatter(x, self.index[: x.shape[1]], s.reach[self.unit] if s.reach else self.channels)

    def extract(self, s: Selection) -> PlainPlacement:
        """The selected channels' places as a plain module."""
        return PlainPlacement(self.index[: s.widths[self.unit]].clone(), s.reach[self.unit])


class PlainPlacement(nn.Module):
    """Scatters (B, C, H, W) to the places `index` (C,) of `width` channels."""

    def __init__(self, index: Tensor, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H, W)."""
        return scatter(x, self.index, self.width)


def scatter(x: Tensor, index: Tensor, width: int) -> Tensor:
    """(B, C, H, W) -> (B, width, H, W), channels_last: channel c goes to index[c], zeros elsewhere."""
    last = x.permute(0, 2, 3, 1)  # index_copy and index_select over channels are several times slower
    out = last.new_zeros(*last.shape[:3], width)
    return out.scatter_(3, index.expand(last.shape), last).permute(0, 3, 1, 2)


def streams(net: nn.Module) -> list[tuple[int, ...]]:
    """The channel units that meet in residual joins, in forward order; a unit that meets none is alone."""
    home: dict[int, tuple[int, ...]] = {unit: (unit,) for unit in range(len(net.unit_names))}
    for join in _joins(net):
        met = tuple(sorted({unit for source in join.sources for unit in home[source]}))
        home |= dict.fromkeys(met, met)
    return sorted(set(home.values()))


def leader(net: nn.Module, stream: tuple[int, ...]) -> int:
    """The unit of a stream that comes by the first shortcut: the projection, or the block before an identity."""
    projections = (join.shortcut.unit for join in _joins(net) if join.shortcut is not None)
    return next((unit for unit in projections if unit in stream), stream[0])


def _joins(net: nn.Module) -> list[Residual]:
    return [module for module in net.modules() if isinstance(module, Residual)]


def place_(net: nn.Module, places: Mapping[int, np.ndarray | Tensor]) -> None:
    """Give the units named in `places` their places (C,) in their stream; all others lie as they are."""
    device = next(net.parameters()).device
    most = {unit: max(net.largest.widths[u] for u in stream) for stream in streams(net) for unit in stream}
    for block in _makers(net):
        block.place = None
        if block.unit in places:
            # Places are read when costs are traced: on the meta device they would be lost.
            index = torch.as_tensor(places[block.unit], dtype=torch.int64)
            block.place = Placement(index if device.type == "meta" else index.to(device), block.unit,
                                    most[block.unit])


def _makers(net: nn.Module) -> Iterable[ConvNormAct]:
    return (m for m in net.modules() if isinstance(m, ConvNormAct) and not m.conv.depthwise)


def places_of(net: nn.Module) -> dict[int, np.ndarray]:
    """The place in its stream of each channel (C,), of the units that are scattered."""
    return {block.unit: block.place.index.cpu().numpy() for block in _makers(net) if block.place is not None}


def reach_of(net: nn.Module, widths: Sequence[int], ends: bool) -> tuple[int, ...]:
    """Channels of the stream up to the end of each unit, for a subnet of `widths` channels.

    The last place that the unit's channels are scattered to, plus one; with `ends` the number of different
    channels that it and the units before it in the stream hold (the paper's fused mask).
    """
    places, reach = places_of(net), list(widths)
    for stream in streams(net):
        used: set[int] = set()
        for unit in stream:
            width = widths[unit]
            taken = places[unit][:width].tolist() if unit in places else range(width)
            used.update(taken)
            reach[unit] = len(used) if ends else max(taken) + 1
    return tuple(reach)


def stream_order(orders: Sequence[np.ndarray], kept: Iterable[Sequence[int]], first: np.ndarray) -> np.ndarray:
    """Order of a stream in which the smallest subnet's channels come first, then those the next one adds.

    `orders`: of each unit in forward order, its channels, most important first; `kept`: of each subnet, how
    many of them. Within a subnet the channels of earlier units come first; what no subnet uses follows in the
    order of `first`.
    """
    used = [[order[:n] for order, n in zip(orders, counts, strict=True)] for counts in kept]
    used.sort(key=lambda parts: len(set(chain.from_iterable(part.tolist() for part in parts))))
    return np.array(list(dict.fromkeys(c for parts in (*used, [first]) for part in parts for c in part.tolist())))
