"""Zero padding match (SP-Net, section 3.4) lets the paths that meet in a join each keep channels of their own.

Every unit of a residual stream holds its channels in its own order, most important first, so that a subnet's
are a slice. Its `Placement` scatters them to their places in the stream and leaves zeros in between. The
stream's order puts first what the smallest subnet uses. So all that a subnet uses lies in a prefix of the
stream, and the layers that read it slice their inputs as everywhere.
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
    """A placement scatters the channels of one unit into its residual stream of `channels` channels.

    `index` (C,) int64 holds the place in the stream of each of the unit's channels.
    """

    def __init__(self, index: Tensor, unit: int, channels: int):
        super().__init__()
        self.unit, self.channels = unit, channels
        self.register_buffer("index", index)

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, C, H, W) to (B, reach of the unit, H, W), zero where no channel goes; masks fill the stream."""
        if s.ends:
            return x
        return scatter(x, self.index[: x.shape[1]], s.reach[self.unit] if s.reach else self.channels)

    def extract(self, s: Selection) -> PlainPlacement:
        """Copy the places of the selected channels into a plain module."""
        return PlainPlacement(self.index[: s.widths[self.unit]].clone(), s.reach[self.unit])


class PlainPlacement(nn.Module):
    """A plain placement scatters C channels to the places `index` (C,) of `width` channels."""

    def __init__(self, index: Tensor, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, width, H, W)."""
        return scatter(x, self.index, self.width)


def scatter(x: Tensor, index: Tensor, width: int) -> Tensor:
    """Put channel c of x (B, C, H, W) at index[c] of (B, width, H, W), which is channels_last and elsewhere zero."""
    last = x.permute(0, 2, 3, 1)  # index_copy and index_select over channels are several times slower
    out = last.new_zeros([last.shape[0], last.shape[1], last.shape[2], width])
    return out.scatter_(3, index.expand(last.shape), last).permute(0, 3, 1, 2)


def streams(net: nn.Module) -> list[tuple[int, ...]]:
    """List the channel units that meet in residual joins, in forward order; a unit that meets none is alone."""
    home: dict[int, tuple[int, ...]] = {unit: (unit,) for unit in range(len(net.unit_names))}
    for join in _joins(net):
        met = tuple(sorted({unit for source in join.sources for unit in home[source]}))
        home |= dict.fromkeys(met, met)
    return sorted(set(home.values()))


def leader(net: nn.Module, stream: tuple[int, ...]) -> int:
    """Return the unit of a stream that comes by the first shortcut: a projection, or the block before an identity."""
    projections = (join.shortcut.unit for join in _joins(net) if join.shortcut is not None)
    return next((unit for unit in projections if unit in stream), stream[0])


def _joins(net: nn.Module) -> list[Residual]:
    return [module for module in net.modules() if isinstance(module, Residual)]


def place_(net: nn.Module, places: Mapping[int, np.ndarray | Tensor]) -> None:
    """Give each unit in `places` its places (C,) in its stream; all others lie as they are."""
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
    """Return of each unit that is scattered the place of every channel in its stream, (C,)."""
    return {block.unit: block.place.index.cpu().numpy() for block in _makers(net) if block.place is not None}


def reach_of(net: nn.Module, widths: Sequence[int], ends: bool) -> tuple[int, ...]:
    """Return for each unit how many channels its stream has up to its end, in a subnet of `widths` channels.

    That is the last place that the unit's channels are scattered to, plus one; with `ends` it is the number of
    different channels that the unit and those before it in the stream hold (the paper's fused mask).
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


def stream_order(orders: Sequence[np.ndarray], counts: Iterable[Sequence[int]], first: np.ndarray) -> np.ndarray:
    """Order a stream so that the smallest subnet's channels come first, then those that the next one adds.

    `orders` has the channels of each unit in forward order, most important first; `counts` says for each subnet how
    many of them it has. Within a subnet the channels of earlier units come first; what no subnet uses follows in
    the order of `first`.
    """
    used = [[order[:n] for order, n in zip(orders, row, strict=True)] for row in counts]
    used.sort(key=lambda parts: len(set(chain.from_iterable(part.tolist() for part in parts))))
    return np.array(list(dict.fromkeys(c for parts in (*used, [first]) for part in parts for c in part.tolist())))
