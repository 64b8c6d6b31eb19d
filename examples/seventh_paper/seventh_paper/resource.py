"""A cost that structures can be held to, as PSS-Net holds them to MACs: what the weights weigh."""

from __future__ import annotations

from dataclasses import replace

from slimnb import CostTable
from slimnb.nets.base import SlimmableNet
from slimnb.papers.pss_net.structures import Resource, Structures


def weights(net: SlimmableNet, structures: Structures) -> Resource:
    """Kilobytes of a subnet's parameters in float32, the same at every resolution."""
    table = CostTable.params(net, structures.space)
    table = replace(table, unit="kB", terms={ends: 4e-3 * count for ends, count in table.terms.items()})
    return Resource("weights", "kB", {side: replace(table, about={"resolution": side})
                                      for side in structures.space.resolutions})
