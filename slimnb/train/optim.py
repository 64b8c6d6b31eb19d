"""Optimiser and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from slimnb.nets.base import SlimmableNet
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear
from slimnb.rules import Amount, Below1, Count, Positive, Whole, checked


@checked
def make_optimizer(net: SlimmableNet, momentum: Below1 = 0.9, weight_decay: Amount = 1e-4,
                   decay: Literal["weights", "all"] = "weights"):
    """Make fused SGD with Nesterov momentum for the parameters of `net` that are not frozen.

    With `decay` "weights", depthwise filters, norms, gates and biases have no weight decay; with "all" everything has.
    The schedule sets the learning rate at every step. Call it after `net.reserve`. Raises ParameterError.
    """
    decayed, spared = [], []
    weights = {id(m.weight) for m in net.modules() if isinstance(m, (SlimmableLinear, torch.nn.Linear))
               or (isinstance(m, SlimmableConv2d) and not m.depthwise)}
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        (decayed if decay == "all" or id(p) in weights else spared).append(p)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:  # all at once: fused, it cannot begin some parameters, as of blocks not drawn before, after others
        for p in trained:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


SCHEDULES = ("cosine", "linear", "constant", "multistep", "exponential")


@dataclass(frozen=True, slots=True)
@checked
class Schedule:
    """The learning rate as a function of the step alone. Raises ParameterError."""

    lr: Amount
    steps: Annotated[int, Interval(ge=1, le=10**12)]
    kind: Literal[SCHEDULES] = "cosine"  # "cosine" and "linear" end at `floor`
    warmup: Whole = 0  # steps of linear warm-up from 0
    floor: Amount = 0.0
    milestones: tuple[Whole, ...] = ()  # steps, for "multistep"
    gamma: Positive = 0.1  # factor per milestone, or per `period` steps for "exponential"
    period: Count = 1

    @classmethod
    def of(cls, recipe, epoch: int) -> Schedule:
        """Make the schedule of a `slimnb.train.recipe.Recipe` whose epochs have `epoch` steps."""
        options = {name: value for name in ("gamma", "floor") if (value := getattr(recipe, name)) is not None}
        milestones = tuple(at * epoch for at in recipe.milestones or ())
        return cls(recipe.lr, recipe.epochs * epoch, recipe.schedule, recipe.warmup_epochs * epoch,
                   milestones=milestones, period=epoch, **options)

    def __call__(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        t = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.kind == "cosine":
            return self.floor + (self.lr - self.floor) * 0.5 * (1 + math.cos(math.pi * t))
        if self.kind == "linear":
            return self.floor + (self.lr - self.floor) * (1 - t)
        if self.kind == "multistep":
            return self.lr * self.gamma ** sum(step >= m for m in self.milestones)
        return self.lr * self.gamma ** (step // self.period) if self.kind == "exponential" else self.lr
