"""The shared baselines: S-Net's switches, US-Net's sandwich rule and in-place distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.rng import rng_at
from slimnb.rules import Below1, Mult, Pixels, Positive, Seed, Share, Some, Whole, checked
from slimnb.subnet import Subnet
from slimnb.train.protocols import Outcome, Pass

Draw = Callable[[np.random.Generator], Subnet]
"""Gives a random subnet, e.g. `space.sample` or `any_width(net, mults)`."""


class Stateless:
    """A sampler whose plans depend on the seed and the step alone."""

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Do nothing: the sampler learns nothing from losses."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Do nothing: there is nothing to restore."""


class Switches(Stateless):
    """Trains the same few subnets in every step, largest first, each from the labels (S-Net).

    With one subnet it trains a plain net. Only the largest has `dropout`.
    """

    @checked
    def __init__(self, named: Mapping[str | float, Subnet], dropout: Below1 = 0.0):
        if not named:
            raise ParameterError("no subnets", "at least one is trained",
                                 "Give e.g. {'1.0x': net.largest}.")
        order = sorted(named.items(), key=lambda item: sum(item[1].widths), reverse=True)
        self.passes = [Pass(subnet, name=name, dropout=0 if i else dropout)
                       for i, (name, subnet) in enumerate(order)]

    def subnets(self) -> list[Subnet]:
        """Return the switches, largest first."""
        return [a_pass.route for a_pass in self.passes]

    def plan(self, step: int) -> list[Pass]:
        """Return the same passes in every step."""
        return self.passes


class Sandwich(Stateless):
    """Trains the largest subnet from the labels, then the smallest and `n_random` random ones from it (US-Net, 3.2).

    Only the largest has `dropout`, so the others learn from logits with dropout. `target` is what the smallest learns
    from: "teacher" or "labels".
    """

    @checked
    def __init__(self, largest: Subnet, smallest: Subnet, draw: Draw, n_random: Whole = 2, seed: Seed = 0,
                 dropout: Below1 = 0.0, target: Literal["labels", "teacher", "ensemble"] = "teacher"):
        self.draw, self.n_random, self.seed = draw, n_random, seed
        self.largest = Pass(largest, name="largest", dropout=dropout)
        self.smallest = Pass(smallest, target=target, name="smallest")

    def subnets(self) -> list[Subnet]:
        """Return the two ends; the random subnets are too many to have statistics of their own."""
        return [self.largest.route, self.smallest.route]

    def plan(self, step: int) -> list[Pass]:
        """Return the largest, the smallest and the random passes of `step`; they depend on seed and step alone."""
        rng = rng_at(self.seed, "sandwich", step)
        random = [Pass(self.draw(rng), target="teacher", name="random") for _ in range(self.n_random)]
        return [self.largest, self.smallest, *random]


class Uniform(Stateless):
    """Trains the largest and one random subnet in every step, both from the labels, without a teacher."""

    @checked
    def __init__(self, largest: Subnet, draw: Draw, seed: Seed = 0):
        self.largest, self.draw, self.seed = Pass(largest, name="largest"), draw, seed

    def subnets(self) -> list[Subnet]:
        """Return the largest."""
        return [self.largest.route]

    def plan(self, step: int) -> list[Pass]:
        """Return the largest and one random pass of `step`; they depend on seed and step alone."""
        return [self.largest, Pass(self.draw(rng_at(self.seed, "uniform", step)), name="random")]


@checked
def any_of(subnets: Some[Subnet]) -> Draw:
    """Return a function that draws one of `subnets`; equal ones count once."""
    subnets = list(dict.fromkeys(subnets))
    return lambda rng: subnets[rng.integers(len(subnets))]


@checked
def any_width(net: SlimmableNet, mults: Some[Mult], resolutions: Some[Pixels | None] = (None,)) -> Draw:
    """Return a function that draws one of the uniform-width subnets at `mults`, at any of `resolutions` (MutualNet)."""
    return any_of([net.uniform(mult, side) for side in resolutions for mult in mults])


class InplaceDistillation:
    """Lets passes with target "teacher" learn the largest pass's softened predictions on the same batch.

    loss = alpha T^2 CE(softmax(z_teacher / T), z / T) + (1 - alpha) CE(y, z), with the teacher detached. US-Net has
    alpha 1 and T 1, SP-Net alpha .9. The teacher is the step's first pass with target "labels". It learns from labels
    smoothed by `smoothing`.
    """

    @checked
    def __init__(self, temperature: Positive = 1.0, alpha: Share = 1.0, smoothing: Below1 | None = None):
        self.temperature, self.alpha, self.smoothing = temperature, alpha, smoothing
        self.teacher: Tensor | None = None  # (B, classes) probabilities

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Forget the last step's teacher."""
        self.teacher = None

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the cross-entropy with labels, each (B,). Raises ParameterError before any teacher."""
        ce = F.cross_entropy(logits, y, reduction="none")
        if a_pass.target == "labels":
            if self.teacher is None:
                self.teacher = (logits.detach() / self.temperature).softmax(1)
            if not self.smoothing:
                return ce, ce.detach()
            smoothed = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)
            return smoothed, ce.detach()
        if self.teacher is None:
            raise ParameterError(f"pass {a_pass.name or a_pass.target!r} before any teacher",
                                 "the largest subnet's pass comes first",
                                 "Plan a pass with target='labels' first.")
        kd = F.cross_entropy(logits / self.temperature, self.teacher, reduction="none") * self.temperature**2
        return kd if self.alpha == 1 else self.alpha * kd + (1 - self.alpha) * ce, ce.detach()
