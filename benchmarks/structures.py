"""PSS-Net's structures: what it takes to draw one of a given cost, and to cost very many."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from benchmarks.clock import Reading, interleave
from slimnb.cost.macs import count_macs
from slimnb.nets.base import SlimmableNet
from slimnb.papers.pss_net.structure_samplers import ExactDistribution, StructureDistribution, StructureSampler
from slimnb.papers.pss_net.structures import Buckets, Resource, StructureCosts, structure_space


def priced(net: SlimmableNet) -> StructureCosts:
    """The structures of PSS-Net and their MACs."""
    structures = structure_space(net)
    return StructureCosts.of(structures, Resource.macs(net, structures))


def sampled(name: str, net: SlimmableNet, step: float, count: int, goal: float, seconds: float) -> Reading:
    """C9: milliseconds for `count` structures drawn exactly, in the mean over all buckets.

    Beside it, in `ms`, eq. 4 as the paper has it, over the buckets that 100,000 structures leave it.
    """
    costs = priced(net)
    buckets = Buckets.spanning(costs, step)
    start = time.process_time()
    exact = ExactDistribution(costs, buckets)
    summed = time.process_time() - start
    marginal = StructureDistribution.fit(costs, buckets, np.random.default_rng(0))

    def draw_all(sampler: StructureSampler) -> None:
        rng = np.random.default_rng(1)
        for bucket in np.flatnonzero(sampler.support):
            sampler.draw(bucket, rng, count)

    taken = interleave({"eq. 4": lambda: draw_all(marginal), "exact": lambda: draw_all(exact)}, seconds)
    reached = {"eq. 4": marginal.support.sum(), "exact": exact.support.sum()}
    ms = {way: [1e3 * value / reached[way] for value in times] for way, times in taken.items()}
    what = f"{name}: {count:,} structure{'s' * (count > 1)} of a given cost, exactly"
    note = (f"C9: {name}: {reached['exact']} of {len(buckets)} buckets reached, {reached['eq. 4']} by eq. 4 from "
            f"100,000 structures; the exact sums took {1e3 * summed:.0f} ms, once") * (count > 1)
    return Reading("C9", what, median(ms["exact"]), min(ms["exact"]), max(ms["exact"]), goal, "ms",
                   {way: median(times) for way, times in ms.items()}, len(ms["exact"]), note)


def costed(name: str, net: SlimmableNet, count: int, seconds: float, goal: float = 1000.0) -> Reading:
    """C10: milliseconds for the exact MACs of `count` random structures at all resolutions.

    Beside it, in `ms`, the same from their channels, by one table after the other. Some are traced for comparison.
    """
    costs = priced(net)
    structures, resource = costs.structures, costs.resource
    index = structures.draw(np.random.default_rng(0), count)
    widths, sides = structures.widths(index), structures.resolutions(index)
    found, traced = costs.cost(index), [count_macs(net, each, "B") for each in structures.subnets(index[:10])]
    np.testing.assert_array_equal(resource.predict(widths, sides), found)
    np.testing.assert_array_equal(traced, found[:10])
    taken = interleave({"by channels": lambda: resource.predict(widths, sides), "by choice": lambda: costs.cost(index)},
                       seconds)
    ms = {way: [1e3 * value for value in times] for way, times in taken.items()}
    return Reading("C10", f"{name}: MACs of {count:,} structures", median(ms["by choice"]), min(ms["by choice"]),
                   max(ms["by choice"]), goal, "ms", {way: median(times) for way, times in ms.items()},
                   len(ms["by choice"]))
