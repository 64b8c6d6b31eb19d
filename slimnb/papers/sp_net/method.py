"""SP-Net: sparse bases to prune, then joint training of every embedded subnet, with the supernet as teacher.

`slimnb.papers.sp_net.pruning` turns trained bases into channel counts and `slimnb.nets.sorting` embeds those.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable.method import Switches
from slimnb.rules import Amount, checked
from slimnb.subnet import Subnet


class Sparsity:
    """Adds the gradient of network slimming's `strength` x sum of |gamma| over all batch norms (SP-Net, eq. 7).

    Pass it as `train(..., penalty=Sparsity(1e-4))`. At gamma = 0 the subgradient is 0. It must be the last term that
    reaches the gradients: SP-Net's official code adds it before the loss scale is divided out, which leaves 1/65536 of
    it.
    """

    @checked
    def __init__(self, strength: Amount):
        self.strength = strength

    @torch.no_grad()
    def __call__(self, net: SlimmableNet) -> None:
        """Add it to the gradients that the passes of a step have left. Raises ParameterError without batch norm."""
        norms = net.norms()
        if not norms:
            raise ParameterError(f"a sparsity penalty with bn={net.bn!r}", "its gammas are those of batch norms",
                                 "Use another bn, or no penalty.")
        for norm in norms:
            norm.weight.grad.add_(norm.weight.sign(), alpha=self.strength)


class EmbeddedSwitches(Switches):
    """Trains the supernet from the labels, then the embedded subnets from it, widest first, in every step.

    It is SP-Net's algorithm 2; use it with `InplaceDistillation(temperature, alpha=0.9)`.
    """

    @checked
    def __init__(self, largest: Subnet, embedded: dict[str | float, Subnet]):
        super().__init__({"largest": largest} | embedded)
        teacher, *pupils = self.passes
        self.passes = [teacher, *(replace(a_pass, target="teacher") for a_pass in pupils)]
