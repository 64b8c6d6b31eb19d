"""One net in memory serves many budgets: each request gets the most accurate subnet that its budget pays for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimnb.errors import SearchError
from slimnb.nets.base import SlimmableNet
from slimnb.nn.layers import Selection
from slimnb.rules import checked
from slimnb.search.pareto import pareto_front
from slimnb.subnet import Subnet


@dataclass(frozen=True, slots=True)
class PricedSubnet:
    """A subnet to switch to, its cost in MACs or ms, and its accuracy on validation images, percent."""

    subnet: Subnet
    cost: float
    top1_val: float


@dataclass(frozen=True, slots=True)
class _Table:
    costs: tuple[float, ...]  # ascending
    choices: tuple[PricedSubnet, ...]  # of ascending accuracy
    selections: tuple[Selection, ...]  # how the supernet runs each

    def find(self, budget: float) -> int:
        at = bisect_right(self.costs, budget)
        if not at or budget != budget:
            raise SearchError(f"a budget of {budget:,.6g}", f"the cheapest subnet costs {self.costs[0]:,.6g}",
                              "Allow as much, or train a supernet with smaller ones.")
        return at - 1


class SubnetSwitcher:
    """A frozen supernet that serves each batch with the most accurate subnet that a budget allows.

    It keeps those `choices` that are more accurate than all that cost no more, and prepares each once: a call then
    searches in sorted costs, and neither copies nor checks weights. Any number of threads may call it while another
    gives it new `choices`: a call reads one table from beginning to end. Do not train or calibrate the net any more;
    calls see its weights as they are. Raises SearchError without choices, or for a cost or accuracy that is none, and
    NumericsError for subnets without statistics of these weights.
    """

    @checked
    def __init__(self, net: SlimmableNet, choices: Sequence[PricedSubnet]):
        self.net = net
        self._table = self._table_of(choices)

    @property
    def choices(self) -> tuple[PricedSubnet, ...]:
        """The choices it switches between, cheapest first; an assignment replaces all of them at once."""
        return self._table.choices

    @choices.setter
    def choices(self, choices: Sequence[PricedSubnet]) -> None:
        self._table = self._table_of(choices)

    @checked
    def _table_of(self, choices: Sequence[PricedSubnet]) -> _Table:
        for choice in choices:
            if not (0 < choice.cost < float("inf") and 0 <= choice.top1_val <= 100):
                raise SearchError(f"cost {choice.cost}, accuracy {choice.top1_val} %",
                                  "a cost is finite and > 0, an accuracy is 0 to 100",
                                  "Measure that subnet again.")
            self.net.slot_of(choice.subnet)
        if not choices:
            raise SearchError("0 subnets", "a switcher has at least one to switch to",
                              "Give the best subnet of each pool.")
        front = pareto_front(np.array([c.cost for c in choices]), np.array([c.top1_val for c in choices]))
        best = tuple(choices[i] for i in front)
        selections = tuple(self.net.select(choice.subnet, statistics="slot") for choice in best)
        return _Table(tuple(choice.cost for choice in best), best, selections)

    def pick(self, budget: float) -> PricedSubnet:
        """Return the most accurate choice that costs at most `budget`; raises SearchError if all cost more."""
        table = self._table
        return table.choices[table.find(budget)]

    @torch.inference_mode()
    def __call__(self, x: Tensor, budget: float) -> Tensor:
        """Map x (B, 3, H, W) to the logits (B, classes) float32 of `pick(budget)`, at its resolution."""
        table = self._table
        return self.net.run(x, table.selections[table.find(budget)])


def storage(net: SlimmableNet, subnets: Sequence[Subnet]) -> dict[str, float]:
    """Return the bytes of the supernet's parameters and of the batch-norm statistics of all `subnets`, and their share.

    The keys are supernet, statistics, share. PSS-Net's Table 3 has a share of .02 N for N subnets, gamma and beta with
    them; where these are shared, only mean and variance of the channels that a subnet has are its own.
    """
    whole = sum(p.numel() * p.element_size() for p in net.parameters())
    own = sum(2 * subnet.widths[norm.unit] * norm.running_mean.element_size() for norm in net.norms()
              for subnet in dict.fromkeys(subnets))
    return {"supernet": whole, "statistics": own, "share": own / whole}
