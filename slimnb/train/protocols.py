"""What a paper gives the training loop: a Sampler plans the passes of a step, an Objective makes a loss of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from slimnb.nets.base import Masks, SlimmableNet
from slimnb.rules import Below1, checked
from slimnb.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and one backward of a step: the subnet that runs, and what it learns from."""

    route: Subnet | Masks | Any  # whatever the net takes as a route, as a gated net a `slimnb.nn.gate.Gated`
    target: str = "labels"  # "labels" | "teacher" | "ensemble"
    weight: float | Tensor = 1.0  # multiplies the loss, hence the gradient
    dropout: float = 0.0
    name: str = ""  # under which its cross-entropy enters the training history
    tag: Any = None  # handed back in the Outcome: pool id, path indices


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass gave: losses per sample, detached and still on the device."""

    a_pass: Pass
    loss: Tensor  # (B,) as differentiated
    ce: Tensor  # (B,) cross-entropy with the labels, nats


class Sampler(Protocol):
    """Chooses the subnets that each step trains.

    `plan` depends on the seed, the step and the sampler's state only. Every plan contains the largest subnet in use. A
    run gets its sampler from `Recipe.sampler_and_objective`.
    """

    def subnets(self) -> list[Subnet]:
        """Return the subnets that need statistics of their own; they are known before training."""

    def plan(self, step: int) -> list[Pass]:
        """Return the passes of `step`, in order."""

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Receive the losses of `step`; the loop calls this once per step, in order."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors from which `load_state_dict` restores the sampler exactly."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""


class Objective(Protocol):
    """Turns the logits of a pass into its loss.

    An objective that remembers something across steps has `state_dict` and `load_state_dict`, as a sampler has.
    """

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Prepare for the passes of a step; the loop calls this once per step, before them."""

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) to differentiate and the cross-entropy (B,) with the labels, detached."""


class Probe(Protocol):
    """Looks at copies of a net while it trains."""

    rows: list[dict]  # what it has found so far, JSON-able; kept with the checkpoints

    def at(self, step: int) -> bool:
        """Return whether the probe is due before `step`."""

    def __call__(self, step: int, net: SlimmableNet, x: Tensor, y: Tensor) -> list[dict]:
        """Return the rows of one look. `net` is a copy that is about to train on x (B, 3, H, W) and y (B,)."""


class Labels:
    """Every pass learns from the labels, by cross-entropy."""

    @checked
    def __init__(self, smoothing: Below1 | None = None):
        self.smoothing = smoothing

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Do nothing: there is nothing to prepare."""

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, with smoothed labels if so set, and the plain cross-entropy, each (B,)."""
        ce = F.cross_entropy(logits, y, reduction="none")
        if not self.smoothing:
            return ce, ce.detach()
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing), ce.detach()


Penalty = Callable[[SlimmableNet], None]
"""Adds the gradient of a term that depends on the weights alone, once per step, without waiting for the device."""
