"""DepS: a supernet first learns to be large, then by epsilon to be small; beside it BigNAS, OFA and CompOFA.

Wang et al., Delayed epsilon-Shrinking. Every method runs in `slimnb.train.loop`; they differ in the passes of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable.method import Draw, Stateless
from slimnb.rng import rng_at
from slimnb.rules import Amount, Below1, Count, Portion, Seed, Whole, checked
from slimnb.subnet import SearchSpace, Subnet
from slimnb.train.optim import Schedule
from slimnb.train.protocols import Labels, Outcome, Pass, Sampler

# -- epsilon ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
@checked
class LinearRamp:
    """The paper's epsilon: it rises from `first` by equal increments to 1, which it reaches after `steps` steps."""

    steps: Count
    first: Portion = 1e-4

    def __call__(self, i: int) -> float:
        """Return epsilon of the i-th step of shrinking, counted from 0."""
        return self.first + (1 - self.first) * i / self.steps


@dataclass(frozen=True, slots=True)
@checked
class RateRamp:
    """The released code's epsilon: the subnets' learning rate epsilon * `rates` rises linearly over `steps` steps.

    It rises to the rate of step `reference`, where the ramp ends. The released code reads its tables an epoch late and
    has them for one schedule; this is their closed form. Raises ParameterError where a rate is zero.
    """

    rates: Schedule
    start: Whole  # first step of shrinking
    steps: Count
    reference: Whole

    def __post_init__(self):
        for step in (*range(self.start, self.start + self.steps), self.reference):
            if not self.rates(step) > 0:
                raise ParameterError(f"learning rate {self.rates(step):g} at step {step}",
                                     "the ramp divides by it and multiplies with it", "Give the schedule a floor > 0.")

    def __call__(self, i: int) -> float:
        """Return epsilon of the i-th step of shrinking, counted from 0."""
        return (i + 1) / self.steps * self.rates(self.reference) / self.rates(self.start + i)


Ramp = LinearRamp | RateRamp


class DelayedShrinking:
    """Delays any sampler: for `warm_up` steps only its first pass runs, then all do, the others weighted by epsilon.

    The gradient of a step is grad l(full) + epsilon sum grad l(others) (eq. 4), a sum, not a mean. Epsilon depends on
    the step alone: it follows `ramp` from the first step of shrinking on, then is 1; without a ramp it is 1 at once.
    The sampler does not observe the warm-up, but its steps count from the start of training.

    Raises ParameterError for a negative `warm_up`, a ramp of no steps, an epsilon outside (0, 1], a sampler of fewer
    than two passes, and one whose first pass does not learn from the labels.
    """

    @checked
    def __init__(self, sampler: Sampler, warm_up: Whole, ramp: Ramp | None = None):
        for i in range(ramp.steps if ramp else 0):
            if not 0 < ramp(i) <= 1:
                raise ParameterError(f"epsilon = {ramp(i):g} in step {i} of the ramp", "it lies in (0, 1]",
                                     "Raise the ramp's start, or use a schedule that does not rise meanwhile.")
        passes = sampler.plan(warm_up)
        if len(passes) < 2:
            raise ParameterError(f"k = {len(passes)} subnets per step", "shrinking trains the full net and others",
                                 "Use a sampler of two or more passes.")
        if passes[0].target != "labels":
            raise ParameterError(f"a first pass with target {passes[0].target!r}",
                                 "every step trains the full net from the labels, first",
                                 "Use a sampler that plans the largest subnet first.")
        self.sampler, self.warm_up, self.ramp = sampler, warm_up, ramp

    def epsilon(self, step: int) -> float:
        """Return the weight of all passes but the first; it is 0 during the warm-up."""
        i = step - self.warm_up
        if i < 0:
            return 0.0
        return self.ramp(i) if self.ramp and i < self.ramp.steps else 1.0

    def subnets(self) -> list[Subnet]:
        """Return the sampler's subnets."""
        return self.sampler.subnets()

    def plan(self, step: int) -> list[Pass]:
        """Return the sampler's passes of `step`, weighted; during the warm-up only the first."""
        full, *others = self.sampler.plan(step)
        epsilon = self.epsilon(step)
        if not epsilon:
            return [full]
        return [full, *(others if epsilon == 1 else (replace(p, weight=epsilon * p.weight) for p in others))]

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Hand the losses on to the sampler, except during the warm-up."""
        if step >= self.warm_up:
            self.sampler.observe(step, outcomes)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sampler's state; epsilon follows from the step."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the sampler."""
        self.sampler.load_state_dict(state)


@checked
def delayed(sampler: Sampler, rates: Schedule, share: Below1, ramp: Literal["linear", "rate"] | None = "linear",
            ramp_steps: Whole = 0) -> DelayedShrinking:
    """Return `sampler` after a warm-up of `share` (the paper's P) of the schedule's steps.

    `ramp` is "linear" (`LinearRamp`), "rate" (`RateRamp`) or None. Raises ParameterError for another one, for a share
    outside [0, 1), for a ramp longer than what follows the warm-up, and as `DelayedShrinking` does.
    """
    start = round(share * rates.steps)
    if ramp is None:
        return DelayedShrinking(sampler, start)
    if ramp_steps > rates.steps - start:
        raise ParameterError(f"a ramp of {ramp_steps} steps", f"{rates.steps - start} steps follow the warm-up",
                             "Shorten the ramp, or the warm-up.")
    epsilon = LinearRamp(ramp_steps) if ramp == "linear" else RateRamp(rates, start, ramp_steps, start + ramp_steps)
    return DelayedShrinking(sampler, start, epsilon)


# -- Once-for-All and CompOFA ----------------------------------------------------------------------------


class Draws(Stateless):
    """Trains `n` random subnets in every step without the largest, for a teacher trained apart (OFA)."""

    @checked
    def __init__(self, draw: Draw, n: Count, seed: Seed = 0):
        self.draw, self.n, self.seed = draw, n, seed

    def subnets(self) -> list[Subnet]:
        """Return an empty list: no subnet is known before training."""
        return []

    def plan(self, step: int) -> list[Pass]:
        """Return random passes, which depend on seed and step alone."""
        rng = rng_at(self.seed, "draws", step)
        return [Pass(self.draw(rng), name="random") for _ in range(self.n)]


class FixedTeacher(Labels):
    """Lets every pass learn the labels and, with weight `ratio`, the outputs of another net (OFA).

    loss = CE(y, z) + ratio CE(softmax(z_teacher), z). The teacher normalises by the batch, as OFA's does: it is in
    train mode and not trained.
    """

    @checked
    def __init__(self, teacher: SlimmableNet, ratio: Amount = 1.0, smoothing: Below1 = 0.0):
        super().__init__(smoothing)
        self.teacher, self.ratio = teacher, ratio

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Run the teacher on the batch."""
        with torch.no_grad():
            self.taught = self.teacher(x, statistics="batch").softmax(1)

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the cross-entropy with the labels, each (B,)."""
        loss, ce = super().__call__(a_pass, logits, y)
        return loss + self.ratio * F.cross_entropy(logits, self.taught, reduction="none"), ce


@checked
def phase(space: SearchSpace, kernels: Count = 1, depths: Count = 1, expands: Count = 1) -> SearchSpace:
    """Return the space of a phase of progressive shrinking: of every block and stage the largest so many choices."""
    return replace(space, kernels=tuple(c[-kernels:] for c in space.kernels),
                   depths=tuple(c[-depths:] for c in space.depths), widths=tuple(c[-expands:] for c in space.widths))


@checked
def compound(space: SearchSpace) -> Draw:
    """Return CompOFA's draws: in each stage the smallest depth comes with the smallest expansion, and so on.

    Kernels are the largest. Three choices in five stages give 3^5 = 243 subnets. Raises ParameterError if a stage has
    another number of depths than of expansions, unless one of them is fixed.
    """
    blocks, stages = iter(space.block_units), []
    for depths in space.depths:
        units = [unit for _, block in zip(range(max(depths)), blocks, strict=False) for unit in block]
        counts = {len(depths), *(len(space.widths[unit]) for unit in units)} - {1}
        if len(counts) > 1:
            raise ParameterError(f"stage {len(stages)} with {sorted(counts)} choices",
                                 "CompOFA ties as many depths to as many expansions", "Give as many of each.")
        stages.append((depths, units, max(counts, default=1)))

    def draw(rng) -> Subnet:
        subnet, widths, kept = space.largest, list(space.largest.widths), []
        for depths, units, choices in stages:
            index = int(rng.integers(choices))
            kept.append(depths[min(index, len(depths) - 1)])
            for unit in units:
                widths[unit] = space.widths[unit][min(index, len(space.widths[unit]) - 1)]
        return space.canonical(replace(subnet, widths=tuple(widths), depths=tuple(kept)))

    return draw
