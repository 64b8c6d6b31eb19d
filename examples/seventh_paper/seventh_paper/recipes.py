"""What the seventh paper trains: its half-sandwich, and the rule it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seventh_paper.method import HalfSandwich
from slimnb import InplaceDistillation, Recipe
from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable import recipes as slimmable
from slimnb.runs.store import RunStore
from slimnb.train.experiment import Context
from slimnb.train.protocols import Objective, Sampler
from slimnb.train.recipe import check_scale

OURS, CONTROL = "Half-sandwich", "US-Net"


@dataclass(frozen=True)
class SeventhRecipe(slimmable.SlimmableRecipe):
    """The methods of the baselines, and "half_sandwich"."""

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """What trains `net`; all but the largest subnet learn from the largest."""
        if self.method == "half_sandwich":
            return HalfSandwich(net, self.train_mults, self.seed), InplaceDistillation(self.temperature)
        return super().sampler_and_objective(net, steps, store)


CHANGES = {"paper": "seventh", "net": "tiny_net", "layout": None, "bn": "calibrated", "n_random": 1,
           "mults": slimmable.WIDTHS, "train_mults": slimmable.SANDWICH_MULTS}
SCALES = {
    "smoke": slimmable.SMOKE.into(SeventhRecipe, **CHANGES),
    "small": slimmable.SMALL.into(SeventhRecipe, **CHANGES | {"layout": ((32, 1), (64, 2), (128, 2), (256, 2))}),
}
"""The baselines' values at each scale, on our own net, with one random subnet per step."""


def arms(context: Context) -> list[Recipe]:
    """Our draws by cost, and US-Net's uniform draws with as many passes."""
    base = replace(SCALES[check_scale(context.scale, SCALES)], seed=context.seed)
    return [replace(base, arm=CONTROL, method="sandwich"), replace(base, arm=OURS, method="half_sandwich")]


STAGES = (arms,)
