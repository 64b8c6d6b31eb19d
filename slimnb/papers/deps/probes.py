"""Probes of a net in training: gradients with and without shrinking (DepS, Figs. 3 and 4).

How training mixes the gradients is in method.py, `DelayedShrinking`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from slimnb.nets.base import SlimmableNet
from slimnb.rules import Count, Positive, Whole, checked
from slimnb.train.protocols import Objective, Pass

Gradient = dict[str, Tensor]
"""By parameter name; what no pass touches is left out."""


def gradients(net: SlimmableNet, x: Tensor, y: Tensor, passes: Sequence[Pass],
              objective: Objective) -> tuple[Gradient, Gradient]:
    """Return the gradient of the first of `passes`, and of the weighted sum of the others, on one batch.

    Every shrinking gradient follows from these two: full + epsilon others (DepS, eq. 4). Dropout is left out. The call
    replaces what `net` has in `grad`.
    """
    objective.begin(net, x, passes)
    parts = []
    for part in (passes[:1], passes[1:]):
        net.zero_grad(set_to_none=True)
        for a_pass in part:
            loss, _ = objective(a_pass, net(x, a_pass.route), y)
            (a_pass.weight * loss.mean()).backward()
        parts.append({name: p.grad.to(torch.promote_types(p.dtype, torch.float32))  # they will be summed
                      for name, p in net.named_parameters() if p.grad is not None})
    net.zero_grad(set_to_none=True)
    return parts[0], parts[1]


def added(full: Gradient, others: Gradient, epsilon: float | Tensor) -> Gradient:
    """Return full + epsilon others; weights that the full net does not use keep the others' part."""
    scaled = {name: epsilon * g for name, g in others.items()}
    return {name: full[name] + scaled.get(name, 0) if name in full else scaled[name] for name in {**full, **scaled}}


def norm(gradient: Gradient) -> Tensor:
    """Return the Euclidean norm of the whole gradient, a scalar on the device."""
    return nn.utils.get_total_norm(list(gradient.values()))


def by_layer(full: Gradient, other: Gradient) -> list[dict]:
    """Return the norm of `other`, and its cosine with `full`, in every weight that the full net uses, in order.

    Weights are those of convolutions and linear layers. Rows: layer (from 1), name, norm, cosine (None where one is
    zero).
    """
    names = [name for name, g in full.items() if g.dim() > 1]
    pairs = [(full[name].flatten(), other[name].flatten()) for name in names]
    dots = torch.stack([torch.dot(a, b) for a, b in pairs])
    lengths = [torch.stack(torch._foreach_norm(side)) for side in zip(*pairs, strict=True)]
    numbers = torch.stack([lengths[1], dots / (lengths[0] * lengths[1])]).T.tolist()  # the only wait for the device
    return [{"layer": layer, "name": name, "norm": length, "cosine": None if cosine != cosine else cosine}
            for layer, (name, (length, cosine)) in enumerate(zip(names, numbers, strict=True), 1)]


Plan = Callable[[int], Sequence[Pass]]
"""The passes of a step, the full net's first, as a sampler's `plan`; epsilon not among their weights."""


class LayerGradients:
    """A probe: at `steps`, the full, shrinking (epsilon 1) and epsilon-shrinking gradient of each layer (Fig. 3).

    Rows: look "layers", step, gradient ("full", "shrinking" or "epsilon-shrinking"), epsilon, and the keys of
    `by_layer`, with the cosine with the full net's gradient.
    """

    @checked
    def __init__(self, plan: Plan, objective: Objective, steps: Collection[int], epsilon: Positive = 1e-3):
        self.plan, self.objective, self.steps, self.epsilon = plan, objective, frozenset(steps), epsilon
        self.rows: list[dict] = []

    def at(self, step: int) -> bool:
        """Return whether `step` is one of the steps."""
        return step in self.steps

    def __call__(self, step: int, net: SlimmableNet, x: Tensor, y: Tensor) -> list[dict]:
        """Return three rows per layer."""
        full, others = gradients(net, x, y, self.plan(step), self.objective)
        named = {"full": 0.0, "shrinking": 1.0, "epsilon-shrinking": self.epsilon}
        return [{"look": "layers", "step": step, "gradient": name, "epsilon": epsilon, **row}
                for name, epsilon in named.items() for row in by_layer(full, added(full, others, epsilon))]


class NormRatio:
    """A probe: every `every` steps from `first` on, the norm of the shrinking gradient by the full net's (Fig. 4).

    `epsilon(step)` is that of the training. A row has the ratio with it and with 1, from the same two gradients; it
    costs as much as one step. Rows: look "norms", step, epsilon, ratio, ratio_at_1.
    """

    @checked
    def __init__(self, plan: Plan, objective: Objective, epsilon: Callable[[int], float], every: Count = 25,
                 first: Whole = 0):
        self.plan, self.objective, self.epsilon, self.every, self.first = plan, objective, epsilon, every, first
        self.rows: list[dict] = []

    def at(self, step: int) -> bool:
        """Return whether `step` is due."""
        return step >= self.first and (step - self.first) % self.every == 0

    def __call__(self, step: int, net: SlimmableNet, x: Tensor, y: Tensor) -> list[dict]:
        """Return one row."""
        full, others = gradients(net, x, y, self.plan(step), self.objective)
        epsilon = self.epsilon(step)
        ratios = torch.stack([norm(added(full, others, e)) for e in (epsilon, 1.0)]) / norm(full)
        ratio, at_1 = ratios.tolist()
        return [{"look": "norms", "step": step, "epsilon": epsilon, "ratio": ratio, "ratio_at_1": at_1}]


