"""What it takes to know the MACs of very many subnets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from benchmarks.clock import Reading, interleave
from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.nets.base import SlimmableNet
from slimnb.subnet import Subnet


def predicted(name: str, net: SlimmableNet, mults: Sequence[float], count: int, looped: int,
              seconds: float, goal: float = 25.0) -> Reading:
    """C10: milliseconds for the exact MACs of `count` random subnets, from a table.

    Beside it, in `ms`, a loop that traces one subnet after the other: measured on `looped` of them, then
    multiplied up to `count`. Both must agree on those.
    """
    space = net.space(tuple(mults))
    widths = space.sample_widths(np.random.default_rng(0), count)
    table = CostTable.macs(net, space)
    start = time.process_time()
    traced = [count_macs(net, Subnet(tuple(map(int, row)))) for row in widths[:looped]]
    loop = (time.process_time() - start) / looped * count
    np.testing.assert_array_equal(table.predict(widths[:looped]), traced)
    taken = interleave({"table": lambda: table.predict(widths)}, seconds)["table"]
    ms = [1e3 * value for value in taken]
    what = f"{name}: MACs of {count:,} subnets from a table"
    note = f"C10: one subnet after the other would take {loop:,.0f} s, measured on {looped}, extrapolated"
    return Reading("C10", what, median(ms), min(ms), max(ms), goal, "ms",
                   {"table": median(ms), "loop": 1e3 * loop}, len(ms), note)
