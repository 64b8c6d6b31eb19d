"""Dynamic inference: what grouping rows by path takes, beside masks, the widest path for all, and a static net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import torch

from benchmarks.clock import Reading, interleave
from slimnb.nets.gated import GatedNet
from slimnb.papers.ds_net.dynamic import path_macs
from slimnb.papers.ds_net.tables import execution_ways
from slimnb.train.calibrate import calibrate_bn

SPREADS = {"half slimmest, half widest": lambda count: [0, count - 1], "all paths alike": lambda count: range(count)}
"""Which choices a batch takes, in turn: what SGS asks for, and the worst for grouping."""

BASELINES = {"Masked": "masks at full width", "Widest": "the widest path", "Static": "the static path of its MACs"}


@torch.inference_mode()
def grouped(name: str, net: GatedNet, batches: Sequence[int], seconds: float, side: int = 32) -> Iterator[Reading]:
    """C16: grouped inference over each of `BASELINES`, for every batch size and spread, at equal outputs.

    Choices are given, not learnt, so that they are the same everywhere. With a batch of 64 or more it must win against
    masks and against the widest path.
    """
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(max(batches), 3, side, side, generator=rng).contiguous(memory_format=torch.channels_last)
    calibrate_bn(net, net.paths, [images[:64]])
    gate, macs = net.gates[0], path_macs(net)
    for spread, chosen in SPREADS.items():
        pattern = torch.tensor(list(chosen(gate.choices)))
        gate.best = lambda scores, wide, pattern=pattern: pattern.repeat(-(-len(scores) // len(pattern)))[: len(scores)]
        mean = macs[pattern.numpy()].mean()
        static = net.paths[int(abs(macs - mean).argmin())]
        ways = execution_ways(net, static)
        del ways["Sliced"]
        for batch in batches:
            x = images[:batch].contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ways["Grouped"](x), ways["Masked"](x), atol=1e-4, rtol=1e-4)
            taken = interleave({way: lambda run=run, x=x: run(x) for way, run in ways.items()}, seconds, 5)
            for baseline, what in BASELINES.items():
                ratios = [ours / plain for ours, plain in zip(taken["Grouped"], taken[baseline], strict=True)]
                goal = 1.0 if batch >= 64 and baseline != "Static" else None
                ms = {way: 1e3 * median(taken[way]) for way in (baseline, "Grouped")}
                yield Reading("C16", f"{name} x{batch}, {spread}: grouped / {what}", median(ratios), min(ratios),
                              max(ratios), goal, "ratio", ms, len(ratios))
    del gate.best
