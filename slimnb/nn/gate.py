"""Double-headed gates (DS-Net, section 3.2): attention over channels, and the width an image needs from here on.

Widths are masks here, one per image; `slimnb/papers/ds_net/dynamic.py` groups images of one path and slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.errors import ParameterError
from slimnb.nn.layers import Selection
from slimnb.rng import keyed_uniform

MARGIN = 1e-4
"""Scores that lie closer than this to the best count as equal, and the narrowest of equals is chosen.

So where a gate does not care the slimmest path is taken, and not the one that rounding, which differs with batch size
and device, happens to favour.
"""

MOST_CHOICES = 36  # a digit each, in what is stored of routes
LEAST_HIDDEN = 32
"""Hidden width, at least, that DS-MBNet and DS-ResNet give a gate that chooses: a quarter of 16 channels would say
little. In DS-EffNet the gate is the squeeze-and-excitation of its block, whose width is the net's."""

DELTAS = ("tanh", "sigmoid")
"""Activations of the attention head: the paper's delta, 1 + tanh, and that of squeeze-and-excitation."""
HEADS = ("one-hot", "scalar")


@dataclass(frozen=True)
class Decision:
    """What one gate said about a batch."""

    scores: Tensor  # (B, open choices), or (B, 1) of a scalar head: before softmax or sigmoid
    weights: Tensor  # (B, choices): one-hot; while training with the gradient of the soft choice


class RoutedLogits(NamedTuple):
    """What a net gives for a `Gated` route: the logits, and what each gate decided, in order."""

    logits: Tensor  # (B, classes)
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Gated:
    """The route that a net's own gates choose for every sample.

    Of each gate the `lowest` choices are open, the narrowest first (None: all). With a `temperature` the choice is a
    sample of Gumbel-softmax, one-hot forward and soft backward, its noise a pure function of (seed, step); without, it
    is the best score's. A net returns what its gates decided beside the logits: see `RoutedLogits`.
    """

    lowest: int | None = None
    temperature: float | None = None
    seed: int = 0
    step: int = 0
    resolution: None = None

    def __post_init__(self) -> None:
        if self.lowest is not None and (type(self.lowest) is not int or self.lowest < 1):
            raise ParameterError(f"lowest = {self.lowest!r}"[:60], "a gate has at least one choice open",
                                 "Give a whole number, or None for all.")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ParameterError(f"temperature = {self.temperature!r}"[:60], "Gumbel-softmax needs one above 0",
                                 "Set temperature=1.0.")

    def decide(self, gate: Gate, hidden: Tensor, number: int) -> Decision:
        """The decision of `gate`, the net's `number`-th from 0, for what its slimming head sees."""
        wide = gate.choices if self.lowest is None else self.lowest
        if wide > gate.choices:
            raise ParameterError(f"lowest = {wide}", f"the gate has {gate.choices} choices",
                                 "Give at most as many, or None for all.")
        scores = gate.scores(hidden, wide)
        if self.temperature is None:
            weights = F.one_hot(gate.best(scores, wide), gate.choices).to(scores.dtype)
        else:
            weights = F.pad(self._sampled(gate, scores, wide, number), (0, gate.choices - wide))
        return Decision(scores, weights)

    def _sampled(self, gate: Gate, scores: Tensor, wide: int, number: int) -> Tensor:
        """One-hot (B, wide) with the gradient of a soft choice; a scalar head is not noisy."""
        if gate.head == "scalar":
            place = torch.sigmoid(scores) * (wide - 1)  # (B, 1): 0 is the narrowest choice
            soft = (1 - (place - torch.arange(wide, device=scores.device)).abs()).clamp(min=0)
            hard = F.one_hot(gate.best(scores, wide), wide)
        else:
            index = torch.arange(scores.numel(), device=scores.device).view(scores.shape)
            uniform = keyed_uniform(self.seed, f"gumbel {number}", self.step, index).clamp(min=2.0**-25)
            soft = ((scores - torch.log(-torch.log(uniform))) / self.temperature).softmax(1)
            hard = F.one_hot(soft.argmax(1), wide)
        return hard + (soft - soft.detach())  # the bracket is exactly zero


class Gate(nn.Module):
    """Attention over the channels of its input and, where it has `widths`, the choice of widths from there on.

    Both heads share one reduction of the pooled input: h = relu(W1 mean(x)). Attention multiplies x by
    delta(W3 h), delta = 1 + tanh, W3 zero at first (eq. 9, which slices W3's columns; rows are meant). The slimming
    head scores the choices, W2 h (eq. 8); choice k gives the channel units `rules` the channels `widths[k]`, ascending
    in k. `hidden` is the same for every width of the input, so that its cost is proportional to it.

    `head` "scalar" is the paper's other design: a sigmoid that says where between the narrowest (0) and the widest (1).
    With `shared` False the slimming head has a reduction of its own (Table 7). Raises ParameterError.
    """

    def __init__(self, channels: int, hidden: int, *, sources: tuple[int, ...], delta: str = "tanh",
                 rules: tuple[int, ...] = (), widths: Sequence[tuple[int, ...]] = (), most: tuple[int, ...] = (),
                 head: str = "one-hot", shared: bool = True):
        super().__init__()
        if delta not in DELTAS or head not in HEADS:
            raise ParameterError(f"delta = {delta!r}, head = {head!r}"[:80],
                                 f"they are one of {', '.join(DELTAS)}; {', '.join(HEADS)}", "Set tanh and one-hot.")
        self.channels, self.hidden, self.sources, self.delta = channels, hidden, sources, delta
        self.rules, self.widths, self.head, self.shared = tuple(rules), tuple(map(tuple, widths)), head, shared
        self.reduce_weight = nn.Parameter(torch.empty(hidden, channels))
        self.reduce_bias = nn.Parameter(torch.zeros(hidden))
        self.attend_weight = nn.Parameter(torch.zeros(channels, hidden))
        self.attend_bias = nn.Parameter(torch.zeros(channels))
        if not self.rules:
            return
        self._check_widths()
        self.slim_weight = nn.Parameter(torch.empty(1 if head == "scalar" else self.choices, hidden))
        self.slim_bias = nn.Parameter(torch.zeros(1)) if head == "scalar" else None  # else it could not say below 1/2
        if not shared:
            self.slim_reduce_weight = nn.Parameter(torch.empty(hidden, channels))
            self.slim_reduce_bias = nn.Parameter(torch.zeros(hidden))
        for unit, column, channels_of in zip(self.rules, zip(*self.widths, strict=True), most, strict=True):
            mask = torch.arange(channels_of) < torch.tensor(column)[:, None]
            self.register_buffer(f"mask{unit}", mask.float(), persistent=False)  # (choices, C)
        self.register_buffer("slots", None, persistent=False)  # (choices, slots): whose statistics a choice takes
        self.slots_of: tuple[int, ...] = ()  # number of slots, and each choice's, that `slots` was made for

    def _check_widths(self) -> None:
        if not 2 <= len(self.widths) <= MOST_CHOICES or any(len(row) != len(self.rules) for row in self.widths):
            raise ParameterError(f"{len(self.widths)} choices for {len(self.rules)} channel units",
                              f"a gate has 2 to {MOST_CHOICES} choices, each with one width per unit", "Mend the grid.")
        for column in zip(*self.widths, strict=True):
            if list(column) != sorted(set(column)):
                raise ParameterError(f"widths {', '.join(map(str, column))}"[:60], "a gate's choices ascend",
                                     "Sort the grid, and leave out doubles.")

    @property
    def choices(self) -> int:
        """How many choices the slimming head has; 0 without one."""
        return len(self.widths)

    def heads(self) -> list[nn.Parameter]:
        """The parameters of the slimming head alone: what stage II trains."""
        return [p for name, p in self.named_parameters() if name.startswith("slim")]

    @torch.no_grad()
    def reset(self, rng: torch.Generator) -> None:
        """He's start for reductions, N(0, .01) for the slimming head, zeros for attention with a tanh: the identity."""
        for name, p in self.named_parameters():
            std = {"slim_weight": 0.01}.get(name, math.sqrt(2 / self.channels))
            if name.endswith("reduce_weight") or name == "slim_weight":
                p.copy_(torch.randn(p.shape, generator=rng) * std)
            elif name == "attend_weight" and self.delta == "sigmoid":
                p.copy_(torch.randn(p.shape, generator=rng) * 0.01)
            else:
                p.zero_()

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """(B, C, H, W) -> the same shape, attended; with a routing, `s` has the widths and slots chosen."""
        hidden, seen = self.look(x)
        if self.rules and s.routing is not None:
            decision = s.routing.decide(self, seen, len(s.decisions))
            s.decisions.append(decision)
            weights = decision.weights
            for unit in self.rules:
                s.widths[unit] = weights @ getattr(self, f"mask{unit}").to(weights.dtype)
            if self.slots is not None:
                s.slot = weights @ self.slots.to(weights.dtype)
        return self.attended(x, hidden)

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What attention and what the slimming head see of x (B, C, H, W), each (B, hidden), at least float32."""
        pooled = x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3))
        hidden = self._reduced(pooled, self.reduce_weight, self.reduce_bias)
        if self.shared or not self.rules:
            return hidden, hidden
        return hidden, self._reduced(pooled, self.slim_reduce_weight, self.slim_reduce_bias)

    @staticmethod
    def _reduced(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.linear(pooled, weight[:, : pooled.shape[1]].to(pooled.dtype), bias.to(pooled.dtype)))

    def attended(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (B, C, H, W) times the attention head's answer to `hidden` (B, d)."""
        c = x.shape[1]
        z = F.linear(hidden, self.attend_weight[:c].to(hidden.dtype), self.attend_bias[:c].to(hidden.dtype))
        return x * _delta(z, self.delta)[:, :, None, None].to(x.dtype)

    def scores(self, hidden: Tensor, wide: int) -> Tensor:
        """(B, d) -> (B, wide) scores of the narrowest choices; (B, 1) of a scalar head."""
        weight = self.slim_weight if self.head == "scalar" else self.slim_weight[:wide]
        bias = None if self.slim_bias is None else self.slim_bias.to(hidden.dtype)
        return F.linear(hidden, weight.to(hidden.dtype), bias)

    def best(self, scores: Tensor, wide: int) -> Tensor:
        """(B,) the choice that `scores` ask for, ties to the narrowest."""
        if self.head == "scalar":  # the nearest choice
            return (torch.sigmoid(scores[:, 0]) * (wide - 1) + 0.5 - MARGIN).clamp(0, wide - 1).long()
        return (scores >= scores.amax(1, keepdim=True) - MARGIN).int().argmax(1)

    def extract(self, s: Selection) -> PlainAttention:
        """The attention head as a plain module, at the width selected."""
        return PlainAttention(self, s.reaching(self.sources))


class PlainAttention(nn.Module):
    """The attention head of a gate at one width, with its own parameters."""

    def __init__(self, gate: Gate, channels: int):
        super().__init__()
        self.delta = gate.delta
        named = {"reduce_weight": gate.reduce_weight[:, :channels], "reduce_bias": gate.reduce_bias,
                 "attend_weight": gate.attend_weight[:channels], "attend_bias": gate.attend_bias[:channels]}
        for name, value in named.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        hidden = F.relu(F.linear(x.mean((2, 3)), self.reduce_weight, self.reduce_bias))
        z = F.linear(hidden, self.attend_weight, self.attend_bias)
        return x * _delta(z, self.delta)[:, :, None, None]


def _delta(z: Tensor, kind: str) -> Tensor:
    return torch.sigmoid(z) if kind == "sigmoid" else 1 + torch.tanh(z)
