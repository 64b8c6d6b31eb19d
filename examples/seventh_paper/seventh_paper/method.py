"""The half-sandwich: largest, smallest, and one random subnet that is drawn as often as it is dear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimnb import Pass, Subnet, count_macs
from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable.method import Stateless
from slimnb.rng import rng_at


class HalfSandwich(Stateless):
    """The sandwich rule with one random width per step, its probability in proportion to its MACs.

    Half of the weights of a net belong to wide subnets alone. Uniform draws seldom train them.
    """

    def __init__(self, net: SlimmableNet, mults: Sequence[float], seed: int = 0):
        self.widths = list(dict.fromkeys(net.uniform(mult) for mult in sorted(mults)))  # equal ones count once
        self.ends = [Pass(net.largest, name="largest"), Pass(self.widths[0], target="teacher", name="smallest")]
        macs = np.array([count_macs(net, subnet) for subnet in self.widths], dtype=float)
        self.odds, self.seed = macs / macs.sum(), seed

    def subnets(self) -> list[Subnet]:
        """The two ends."""
        return [a_pass.route for a_pass in self.ends]

    def plan(self, step: int) -> list[Pass]:
        """Largest, smallest, random: a pure function of (seed, step)."""
        drawn = rng_at(self.seed, "half-sandwich", step).choice(len(self.widths), p=self.odds)
        return [*self.ends, Pass(self.widths[drawn], target="teacher", name="random")]
