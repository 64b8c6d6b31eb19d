"""What drawing subnets and learning from their losses adds to a training step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import median

import torch

from benchmarks.clock import Reading, interleave
from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.nets.base import SlimmableNet
from slimnb.papers.platforms.method import SmoothedViterbi
from slimnb.search.trellis import Trellis
from slimnb.train.protocols import Outcome, Pass


def bookkeeping(name: str, net: SlimmableNet, mults: Sequence[float], targets: Sequence[float], batch: int,
                seconds: float, goal: float = 0.3, steps: int = 2000) -> Reading:
    """C11: milliseconds per step that the search of AOWS adds to its passes, for platforms at multipliers `targets`.

    A step draws a width of every unit for every image, and enters what they cost into the windows; every `refresh`
    steps Viterbi and smoothed Viterbi run for all platforms, and that is spread over those steps. The losses are
    made up: narrow units cost up to a tenth of a nat, noise as much. The masks belong to the pass.
    """
    space = net.space(tuple(mults))
    macs = [count_macs(net, net.uniform(mult)) for mult in targets]
    trellis = Trellis.of(CostTable.macs(net, space).chain())
    search = SmoothedViterbi(net, space, batch, trellis, macs, [1 / len(macs)] * len(macs), steps)
    largest = Outcome(Pass(net.largest), torch.zeros(batch), torch.zeros(batch))
    counts, noise = torch.from_numpy(search.counts), torch.Generator().manual_seed(0)

    def outcomes(step: int) -> list[Outcome]:
        index = torch.from_numpy(search.draw(step))
        ce = 0.1 * (1 - index / (counts - 1)).square().sum(1) + torch.randn(batch, generator=noise) * 0.1
        return [largest, Outcome(Pass(None, tag=index), ce.float(), ce.float())]

    for step in range(search.warm_up + search.refresh):
        search.observe(step, outcomes(step))
    told = {step: outcomes(step) for step in range(step + 1, steps - 1)}
    coming = cycle(told)

    def between_refreshes() -> None:
        for _ in range(search.refresh):
            step = next(coming)
            search.draw(step)
            search.observe(step, told[step])

    ms = [1e3 * taken / search.refresh for taken in interleave({"search": between_refreshes}, seconds)["search"]]
    what = f"{name}: AOWS beside its passes, batch {batch}, {len(macs)} platforms"
    return Reading("C11", what, median(ms), min(ms), max(ms), goal, "ms", {"step": median(ms)}, len(ms),
                   f"C11: per step; marginals of all platforms anew every {search.refresh} steps")
