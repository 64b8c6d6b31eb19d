"""DS-Net: in-place ensemble bootstrapping trains a supernet (stage I), sandwich gate sparsification its gates (II).

Li et al., Dynamic Slimmable Network. Both stages run in `slimnb.train.loop`; in the second only slimming heads move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimnb.cost.macs import count_macs
from slimnb.data.batches import Batches
from slimnb.data.datasets import ImageData
from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.gated import GatedNet
from slimnb.nn.gate import Gated, RoutedLogits
from slimnb.nn.norm import GROUP
from slimnb.papers.ds_net.dynamic import DynamicNet, path_macs
from slimnb.papers.slimmable.method import Draw, Stateless, any_of
from slimnb.rules import Amount, Below1, Count, Positive, Seed, checked
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.measure import measured, plain_batches
from slimnb.train.protocols import Pass
from slimnb.train.state import load_net

# -- stage I ---------------------------------------------------------------------------------------------


class Ema:
    """A copy of a net whose parameters and batch-norm statistics follow it: t <- decay t + (1 - decay) net (eq. 3).

    Integers are copied, not averaged. The copy is frozen, in eval mode, in float32 at least, and has statistics for
    every subnet for which the net has some. Raises ParameterError for a decay outside [0, 1).
    """

    @checked
    def __init__(self, net: SlimmableNet, decay: Below1 = 0.997):
        self.decay = decay
        self.net = net.frozen_copy().to(torch.promote_types(next(net.parameters()).dtype, torch.float32))
        self.net.mark_calibrated(list(self.net.slots))

    @torch.no_grad()
    def update(self, net: SlimmableNet) -> None:
        """Move one step towards `net`. Raises ParameterError if its rows of statistics are those of other subnets."""
        if net.slots != self.net.slots:
            raise ParameterError(f"slots of {len(net.slots)} subnets, {len(self.net.slots)} in the average",
                                 "both have the same subnets in the same rows", "Make it after net.reserve([...]).")
        averages, values = [], []
        for average, other in zip(self.tensors().values(), tensors_of(net).values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(other.detach().to(average.dtype))
            else:
                average.copy_(other)
        torch._foreach_lerp_(averages, values, 1 - self.decay)
        self.net.mark_calibrated(list(self.net.slots))

    def tensors(self) -> dict[str, Tensor]:
        """Return the copy's parameters and buffers by name, themselves and no copies."""
        return tensors_of(self.net)


def tensors_of(net: SlimmableNet) -> dict[str, Tensor]:
    """Return the parameters and buffers of `net` by name, themselves and no copies."""
    return {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}


class EnsembleBootstrapping:
    """In-place ensemble bootstrapping: soft labels come from an `Ema` of the net in training (eqs. 4 and 5).

    Passes with target "teacher" learn the probabilities that the average's largest subnet gives for the batch. Those
    with target "ensemble" learn the mean of these and of the "teacher" passes' own subnets, as the average has them:
    the very subnets of this step. (The released code draws others.) There are soft labels only: T^2 CE(softmax(z' / T),
    z / T).
    """

    @checked
    def __init__(self, net: SlimmableNet, decay: Below1 = 0.997, temperature: Positive = 1.0):
        self.ema, self.temperature = Ema(net, decay), temperature
        self.soft: dict[str, Tensor] = {}

    def begin(self, net: SlimmableNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Bring the average up to the weights of the last step, then compute this step's soft labels with it."""
        self.ema.update(net)
        targets = {a_pass.target for a_pass in passes}
        taught = [a_pass.route for a_pass in passes if a_pass.target == "teacher"] if "ensemble" in targets else []
        largest = next((a_pass.route for a_pass in passes if a_pass.target == "labels"), None)
        if largest is None:
            raise ParameterError("a step without a pass from the labels", "the largest subnet's average teaches",
                                 "Plan a pass with target='labels' first.")
        with torch.no_grad():
            soft = [(self.ema.net(x, route) / self.temperature).softmax(1) for route in (largest, *taught)]
        self.soft = {"teacher": soft[0], "ensemble": torch.stack(soft).mean(0)}

    def __call__(self, a_pass: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the cross-entropy with the labels, each (B,)."""
        ce = F.cross_entropy(logits, y, reduction="none")
        if a_pass.target == "labels":
            return ce, ce.detach()
        kd = F.cross_entropy(logits / self.temperature, self.soft[a_pass.target], reduction="none")
        return kd * self.temperature**2, ce.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average."""
        return self.ema.tensors()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the average back."""
        load_net(self.ema.net, state, self.ema.net.get_extra_state())
        self.ema.net.mark_calibrated(list(self.ema.net.slots))


@checked
def any_path(net: GatedNet) -> Draw:
    """Return a function that draws a path: with one gate any but the slimmest, which every step trains anyway.

    With several gates it draws each gate's choice alone.
    """
    if len(net.gates) == 1:
        return any_of(net.paths[1:])
    return lambda rng: net.path(*(int(rng.integers(count)) for count in net.choices))


# -- stage II --------------------------------------------------------------------------------------------


class Routed(Stateless):
    """Trains one pass a step, which the gates route; their Gumbel noise depends on seed and step alone."""

    @checked
    def __init__(self, lowest: Count | None = None, temperature: Positive = 1.0, seed: Seed = 0):
        self.lowest, self.temperature, self.seed = lowest, temperature, seed

    def subnets(self) -> list[Subnet]:
        """Return an empty list."""
        return []

    def plan(self, step: int) -> list[Pass]:
        """Return the one pass."""
        return [Pass(Gated(self.lowest, self.temperature, self.seed, step), name="gated")]


@checked
def freeze_all_but_heads_(net: GatedNet) -> None:
    """Freeze all but the slimming heads, which stage II trains."""
    net.requires_grad_(False)
    for gate in net.gates:
        for p in gate.heads():
            p.requires_grad_(True)


TRY_BEST, GIVE_UP = "try best", "give up"


class SandwichGateSparsification:
    """Classification, complexity and SGS losses of a routed pass (eqs. 10 to 12), with `weights` in this order.

    An image that the slimmest path classifies rightly is easy, and its target in every gate is the narrowest choice.
    The target of any other is the widest of the open choices. With `strategy` "give up", an image that the widest path
    gets wrong, too, is sent to the narrowest. Complexity is per image: (MACs / MACs of the widest path)^2. SGS is the
    cross-entropy of the scores themselves, a mean over gates. Raises ParameterError for another strategy or a bad
    `lowest`.
    """

    @checked
    def __init__(self, net: GatedNet, weights: tuple[Amount, Amount, Amount] = (1.0, 0.5, 1.0),
                 strategy: str = TRY_BEST, lowest: int | None = None):
        if strategy not in (TRY_BEST, GIVE_UP):
            raise ParameterError(f"strategy = {strategy!r}"[:60], f"it is {TRY_BEST!r} or {GIVE_UP!r}",
                                 f"Set strategy={TRY_BEST!r}.")
        if not sum(weights) > 0:
            raise ParameterError(f"weights = {weights!r}"[:60], "they are not all zero",
                                 "Set (1, 0.5, 1), the paper's.")
        if lowest is None and len(set(net.choices)) > 1:
            raise ParameterError(f"gates of {' and '.join(map(str, sorted(set(net.choices))))} choices",
                                 "SGS has one label for all gates of an image", "Set lowest to the smaller number.")
        self.weights, self.strategy = tuple(weights), strategy
        self.top = (net.check_lowest(lowest) or net.choices[0]) - 1  # index of the widest open choice
        macs = path_macs(net)
        device = next(net.parameters()).device
        self.macs = torch.tensor(macs / macs.max(), dtype=torch.float32, device=device)  # an axis per gate
        self.guesses: tuple[Tensor, Tensor | None] | None = None

    def begin(self, net: GatedNet, x: Tensor, passes: Sequence[Pass]) -> None:
        """Run the slimmest path on the batch, and if it matters the widest, to tell easy from hard images."""
        if not self.weights[2]:
            return
        with torch.no_grad():
            slim = net(x, net.slimmest, statistics="slot").argmax(1)
            give_up = self.strategy == GIVE_UP
            wide = net(x, net.path(self.top), statistics="slot").argmax(1) if give_up else None
        self.guesses = slim, wide

    def targets(self, y: Tensor) -> Tensor:
        """Return the choice (B,) that SGS wants of every gate."""
        slim, wide = self.guesses
        narrow = slim == y if wide is None else (slim == y) | (wide != y)
        return torch.where(narrow, 0, self.top)

    def __call__(self, a_pass: Pass, output: RoutedLogits, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the cross-entropy with the labels, each (B,)."""
        logits, decisions = output
        ce = F.cross_entropy(logits, y, reduction="none")
        classify, cost, sparsify = self.weights
        loss = classify * ce
        if cost:
            loss = loss + cost * routed_macs(self.macs, [d.weights for d in decisions]) ** 2
        if sparsify:
            choices = self.targets(y)
            loss = loss + sparsify * torch.stack([self._sgs(d.scores, choices) for d in decisions]).mean(0)
        return loss, ce.detach()

    def _sgs(self, scores: Tensor, choices: Tensor) -> Tensor:
        if scores.shape[1] == 1:  # a scalar head: 0 is the narrowest choice, 1 the widest
            return F.binary_cross_entropy_with_logits(scores[:, 0], choices.to(scores.dtype) / max(self.top, 1),
                                                      reduction="none")
        return F.cross_entropy(scores, choices, reduction="none")


def routed_macs(macs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the cost (B,) of each sample.

    It is `macs`, an axis per gate, at the choices that `weights` (B, choices) weigh.
    """
    first, *rest = weights
    cost = torch.tensordot(first.to(macs.dtype), macs, 1)  # (B, ...)
    for gate in rest:
        cost = (cost * gate.to(macs.dtype).view(*gate.shape, *[1] * (cost.dim() - 2))).sum(1)
    return cost


# -- what gates do ---------------------------------------------------------------------------------------


def measure_paths(net: GatedNet, named: dict[str, Subnet], data: ImageData, images: int, device: str,
                  group=None) -> tuple[list[dict], dict]:
    """Return a row for each of the `named` paths, calibrated on `images` images, all of them together.

    Beside the rows stands `correct` by name (see `packed_bits`).
    """
    if net.bn != GROUP:
        train = plain_batches(data, data.train, net.input_size, device, group)
        calibrate_bn(net, list(named.values()), train.images(images), group)
    tested = measured(net, data, list(named.values()), images=images, device=device, group=group)
    rows = [{"name": name} | row | {"macs": count_macs(net, named[name], "D")}
            for name, (row, _) in zip(named, tested, strict=True)]
    return rows, {"correct": {name: packed_bits(evaluation.correct.numpy()) for name, (_, evaluation) in
                              zip(named, tested, strict=True)}}


def measure_routes(net: GatedNet, lowest: int | None, data: ImageData, device: str) -> tuple[list[dict], dict]:
    """Return one row: mean MACs and accuracy of routing; beside it every test image's choices, and which were right.

    `choices` is a string per gate, a digit in base 36 per image; `correct` is as from `packed_bits`.
    """
    dynamic, macs = DynamicNet(net.eval(), lowest), path_macs(net)
    test = data.test
    on_val = route_all(dynamic, plain_batches(data, data.val, net.input_size, device))
    chosen, correct, ce = route_all(dynamic, plain_batches(data, test, net.input_size, device))
    spent = macs[tuple(chosen.T)]
    row = {"name": "routed", "macs": float(spent.mean()), "top1": 100 * float(correct.mean()),
           "top1_val": 100 * float(on_val[1].mean()), "ce": float(ce.mean()), "n": len(correct),
           "macs_val": float(macs[tuple(on_val[0].T)].mean())}
    choices = ["".join(np.base_repr(k, 36) for k in column) for column in chosen.T.tolist()]
    return [row], {"choices": choices, "correct": {"routed": packed_bits(correct)}, "path_macs": macs.tolist()}


def route_all(dynamic: DynamicNet, batches: Batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return choices (N, gates), whether right (N,) and cross-entropy (N,) of all images, in their order."""
    parts = []
    for x, y in batches:
        logits, chosen = dynamic.route(x)
        parts.append((chosen.cpu(), (logits.argmax(1) == y).cpu(), F.cross_entropy(logits, y, reduction="none").cpu()))
    return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))


def packed_bits(flags: np.ndarray) -> str:
    """Write booleans (N,) as hexadecimal digits, four to a digit; zeros fill the last byte."""
    return np.packbits(flags).tobytes().hex()


def unpacked_bits(text: str, count: int) -> np.ndarray:
    """Return the first `count` booleans that `packed_bits` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=count).astype(bool)
