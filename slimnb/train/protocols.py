"""What a paper gives the training loop: a Sampler plans the passes of a step, an Objective makes a loss of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from slimnb.nets.base import Masks, SlimmableNet
from slimnb.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward of a step."""

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
    """Which subnets a step trains. `plan` is pure in (seed, step, state); each contains the largest used."""

    def subnets(self) -> list[Subnet]:
        """The subnets that need statistics of their own, known before training."""

    def plan(self, step: int) -> list[Pass]:
        """The passes of `step`, in order."""

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Take the losses of `step` back; called once per step, in order."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which `load_state_dict` restores the sampler exactly."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""


class Objective(Protocol):
    """What a pass learns from. One that remembers across steps has `state_dict` and `load_state_dict`, as a sampler."""

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Called once per step before its passes."""

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (B,) to differentiate, ce (B,) with the labels, detached)."""


class Probe(Protocol):
    """Looks at a net while it trains."""

    rows: list[dict]  # what it has found so far, JSON-able; kept with the checkpoints

    def at(self, step: int) -> bool:
        """Whether to look before `step`."""

    def __call__(self, step: int, net: SlimmableNet, x: Tensor, y: Tensor) -> list[dict]:
        """The rows of one look. `net` is a copy, about to train on x (B, 3, H, W) and y (B,)."""


class Labels:
    """Cross-entropy with the labels in every pass."""

    def __init__(self, smoothing: float | None = None):
        self.smoothing = smoothing

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Nothing to prepare."""

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Per-sample cross-entropy, smoothed for the loss."""
        ce = F.cross_entropy(logits, y, reduction="none")
        if not self.smoothing:
            return ce, ce.detach()
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing), ce.detach()


Penalty = Callable[[SlimmableNet], None]
"""Adds the gradient of a term that depends on the weights alone, once per step, without waiting for the device."""
