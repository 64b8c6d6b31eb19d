"""Slimmable channel sorting (SP-Net, section 3.3) puts channels in order of importance; the net's outputs stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from slimnb.errors import ParameterError, SlimnbError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.elastic import ElasticNet
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear, SlimmableSqueezeExcite
from slimnb.nn.norm import GROUP, SwitchableBatchNorm2d
from slimnb.nn.zero_padding import ENDS, MATCH, PADDINGS, SHORTCUT, leader, places_of, stream_order, streams
from slimnb.rules import Count, checked
from slimnb.subnet import Subnet

Order = Sequence[np.ndarray | Tensor | Sequence[int]]
"""Of each channel unit, the numbers of its channels as they lie now, most important first."""


@torch.no_grad()
@checked
def embed_(net: SlimmableNet, order: Order, counts: Mapping[str | float, Sequence[int]] | None = None,
           padding: str = MATCH) -> dict[str, Subnet]:
    """Sort the channels of `net` in place so that subnets of `counts` channels per unit are slices of it.

    Returns the subnet of every name, a row of statistics reserved for each; any other widths run, too. A
    subnet keeps the first channels of `order` in every unit. `padding` says what happens where paths join:

    - "match": each path keeps its own channels, zeros elsewhere; a join has their union (zero padding match).
    - "ends": the same number of channels, but the body's come first and the shortcut's last. For weights that
      are drawn anew right after (`net.reset_parameters`): nothing is sorted, all statistics are forgotten.
    - "shortcut": counts and order of the shortcut overwrite the body's; the subnets returned have them.

    The largest subnet's outputs stay as they were; statistics of all others are forgotten. Do it before making the
    optimiser. Raises ParameterError for an unknown padding, for orders that are not one permutation per unit, for
    counts that are not one per unit, from 1 to its channels, and for a net that cannot be sorted: it has group norm,
    or a stream whose units differ in width, or one that a depthwise layer reads.
    """
    if padding not in PADDINGS:
        raise ParameterError(f"padding = {padding!r}"[:60], f"it is one of {', '.join(PADDINGS)}",
                             f"Set padding={MATCH!r}.")
    subnets = {name: Subnet(tuple(np.asarray(row).tolist())) for name, row in (counts or {}).items()}
    orders = _checked(net, order, padding)
    for subnet in subnets.values():
        net.check(subnet)
    if padding == SHORTCUT:
        subnets = {name: Subnet(tuple(subnet.widths[lead] for lead in _leaders(net)))
                   for name, subnet in subnets.items()}
    current = [subnet for subnet in net.slots if padding != ENDS
               and subnet.widths == net.largest.widths and _has_statistics(net, subnet)]
    _arrange_(net, orders, [subnet.widths for subnet in subnets.values()], padding)
    net.mark_uncalibrated(list(net.slots))
    if current:
        net.mark_calibrated(current)
    net.reserve(list(subnets.values()))
    return subnets


@checked
def expand_order(net: ElasticNet, levels: Sequence[Count] = ()) -> list[np.ndarray]:
    """Order hidden channels, for `embed_`, by the L1 norm of what reads them; others stay (OFA, section 3.3).

    `levels` are expansions across which nothing moves, so that subnets of these expansions compute what they
    did: () sorts all channels, (4,) is stage 1 of OFA's released code, which DepS runs, (3, 4) its stage 2.
    """
    order = [np.arange(channels) for channels in net.largest.widths]
    readers = {m.sources[0]: m.weight for m in net.modules() if isinstance(m, SlimmableConv2d) and not m.depthwise
               and m.sources}
    for hidden, _ in net.block_units:
        importance = readers[hidden].detach().double().abs().sum((0, 2, 3)).cpu().numpy()
        choices = net.search_space.widths[hidden]
        bounds = [0, *(choices[net.expands.index(level)] for level in levels), len(importance)]
        order[hidden] = np.concatenate([start + np.argsort(-importance[start:end], kind="stable")
                                        for start, end in pairwise(bounds)])
    return order


def _leaders(net: SlimmableNet) -> list[int]:
    """Return for every unit the one whose shortcut it meets first; itself if it meets none."""
    leads = {unit: leader(net, stream) for stream in streams(net) for unit in stream}
    return [leads[unit] for unit in range(len(leads))]


def _arrange_(net: SlimmableNet, orders: list[np.ndarray], counts: list[tuple[int, ...]], padding: str) -> None:
    """Permute weights, or remember places only ("ends"), and say where in its stream each channel now lies."""
    now, leads = ({} if net.padding == ENDS else places_of(net)), _leaders(net)
    now = [now.get(unit, np.arange(channels)) for unit, channels in enumerate(net.largest.widths)]
    # From here on a channel goes by the number it has in its stream, which all units of the stream share.
    orders = [place[order] for place, order in zip(now, orders, strict=True)]
    if padding == SHORTCUT:
        orders = [orders[lead] for lead in leads]
    read, places = list(orders), {}
    for stream in (stream for stream in streams(net) if len(stream) > 1):
        sequence = stream_order([orders[unit] for unit in stream],
                                [[widths[unit] for unit in stream] for widths in counts], orders[leads[stream[0]]])
        for unit in stream:
            read[unit], places[unit] = sequence, np.argsort(sequence)[orders[unit]]
    if padding == ENDS:
        net.set_padding(ENDS, places)
        return
    scattered = {unit: place for unit, place in places.items() if (np.diff(place) != 1).any()}
    depthwise = next((m.unit for m in net.modules() if isinstance(m, SlimmableConv2d) and m.depthwise
                      and m.unit in scattered), None)
    if depthwise is not None:
        raise ParameterError(f"unit {net.unit_names[depthwise]!r}", "a depthwise layer reads it, in the order of "
                             "the residual stream", f"Set padding={SHORTCUT!r}.")
    _permute_(net, [np.argsort(place)[order] for place, order in zip(now, orders, strict=True)], read)
    net.set_padding(MATCH if scattered else None, scattered)


def _permute_(net: SlimmableNet, own: list[np.ndarray], read: list[np.ndarray]) -> None:
    """Reorder each unit's filters and norms by `own`, and the inputs of what reads it by `read`."""
    device = next(net.parameters()).device
    own, read = ([torch.from_numpy(order).to(device) for order in orders] for orders in (own, read))

    def reorder(tensors: Sequence[Tensor], dim: int, index: Tensor) -> None:
        for tensor in tensors:
            tensor.copy_(tensor.index_select(dim, index))  # in place: optimisers and references stay

    for module in net.modules():
        if isinstance(module, SlimmableConv2d):
            reorder([module.weight], 0, own[module.unit])
            if module.sources and not module.depthwise:
                reorder([module.weight], 1, read[module.sources[0]])
        elif isinstance(module, SlimmableLinear):
            reorder([module.weight], 1, read[module.sources[0]])
        elif isinstance(module, SwitchableBatchNorm2d):
            rows = [module.weight, module.bias, module.running_mean, module.running_var]
            reorder(rows, 1, own[module.unit])
        elif isinstance(module, SlimmableSqueezeExcite):
            reorder([module.squeeze.weight], 1, own[module.unit])
            reorder([module.excite.weight, module.excite.bias], 0, own[module.unit])


def _checked(net: SlimmableNet, order: Order, padding: str) -> list[np.ndarray]:
    """Return `order` as arrays; raises ParameterError unless it fits `net`."""
    if net.bn == GROUP and padding != ENDS:
        raise ParameterError("a net with group norm", "sorting moves channels from group to group",
                             "Build it with another bn, e.g. bn='shared_affine'.")
    if len(order) != len(net.unit_names):
        raise ParameterError(f"orders of {len(order)} channel units",
                             f"{type(net).__name__} has {len(net.unit_names)}", "Give one permutation per unit.")
    orders = [torch.as_tensor(channels).cpu().numpy() for channels in order]
    for name, channels, most in zip(net.unit_names, orders, net.largest.widths, strict=True):
        if channels.dtype.kind not in "iu" or not np.array_equal(np.sort(channels), np.arange(most)):
            raise ParameterError(f"order of unit {name!r}", f"it is no permutation of its channels 0 to {most - 1}",
                                 "Give e.g. np.argsort(-importance).")
    for stream in streams(net):
        if len({net.largest.widths[unit] for unit in stream}) > 1:
            names = " and ".join(net.unit_names[unit] for unit in stream[:2])
            raise ParameterError(f"units {names} of different widths", "paths that join are sorted as one stream",
                                 "Build a supernet as wide in all blocks of a stage.")
    return orders


def _has_statistics(net: SlimmableNet, subnet: Subnet) -> bool:
    try:
        net.slot_of(subnet)
    except SlimnbError:
        return False
    return True
