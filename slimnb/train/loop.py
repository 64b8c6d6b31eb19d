"""The one training loop: a Sampler plans the passes of a step, an Objective turns logits into losses."""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from slimnb.errors import SlimnbError
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear
from slimnb.nets.base import Masks, SlimmableNet
from slimnb.train.history import History, Reporter, Watch
from slimnb.train.state import collect, restore
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

    made: Pass
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

    def __call__(self, made: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
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

    def __call__(self, made: Pass, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Per-sample cross-entropy, smoothed for the loss."""
        ce = F.cross_entropy(logits, y, reduction="none")
        if not self.smoothing:
            return ce, ce.detach()
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing), ce.detach()


Penalty = Callable[[SlimmableNet], None]
"""Adds the gradient of a term that depends on the weights alone, once per step, without waiting for the device."""


def rng_at(seed: int, stream: str, step: int) -> np.random.Generator:
    """The random numbers of one decision: a pure function of (seed, stream, step), the same on every rank."""
    key = np.array([(seed << 32) | zlib.crc32(stream.encode()), step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


# -- optimiser and schedule ------------------------------------------------------------------------------


def make_optimizer(net: SlimmableNet, momentum: float = 0.9, weight_decay: float = 1e-4,
                   decay: str = "weights"):
    """Fused SGD with Nesterov momentum.

    `decay` "weights" spares depthwise filters, norms, gates and biases from weight decay, "all" spares nothing. The
    learning rate is set at every step by the schedule. Frozen parameters are left out. Make it after `net.reserve`.
    """
    if decay not in ("weights", "all"):
        raise SlimnbError("P10", f"decay = {decay!r}", "it is weights or all", "Set decay='weights'.")
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
class Schedule:
    """Learning rate as a pure function of the step."""

    lr: float
    steps: int
    kind: str = "cosine"  # "cosine" | "linear" (both to `floor`) | "constant" | "multistep" | "exponential"
    warmup: int = 0  # steps of linear warm-up from 0
    floor: float = 0.0
    milestones: tuple[int, ...] = ()  # steps, for "multistep"
    gamma: float = 0.1  # factor per milestone, or per `period` steps for "exponential"
    period: int = 1

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise SlimnbError("P10", f"schedule = {self.kind!r}", f"it is one of {', '.join(SCHEDULES)}",
                              "Set schedule='cosine'.")

    @classmethod
    def of(cls, recipe, epoch: int) -> Schedule:
        """The schedule of a `slimnb.train.recipe.Recipe`, `epoch` steps to an epoch."""
        given = {name: value for name in ("gamma", "floor") if (value := getattr(recipe, name)) is not None}
        milestones = tuple(at * epoch for at in recipe.milestones or ())
        return cls(recipe.lr, recipe.epochs * epoch, recipe.schedule, recipe.warmup_epochs * epoch,
                   milestones=milestones, period=epoch, **given)

    def __call__(self, step: int) -> float:
        """Learning rate of `step` (0-based)."""
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


# -- one step --------------------------------------------------------------------------------------------


def train_step(net: SlimmableNet, x: Tensor, y: Tensor, passes: Sequence[Pass], objective: Objective,
               optimizer, generator: torch.Generator | None = None, group=None,
               penalty: Penalty | None = None) -> list[Outcome]:
    """One optimiser step from all `passes` on the same batch; gradients add up, weighted.

    x (B, 3, H, W), y (B,). With a process `group` the gradients are averaged over its ranks in one
    all-reduce; what `penalty` adds in place comes after that. Where a loss or the gradient is not finite, on
    any rank, the device skips the update; `Watch` then says so.
    """
    optimizer.zero_grad(set_to_none=True)
    objective.begin(net, x, passes)
    outcomes = []
    for made in passes:
        logits = net(x, made.route, dropout=made.dropout, generator=generator)
        loss, ce = objective(made, logits, y)
        mean = loss.mean()
        weighted = isinstance(made.weight, Tensor) or made.weight != 1
        (made.weight * mean if weighted else mean).backward()
        outcomes.append(Outcome(made, loss.detach(), ce))
    bad = (~torch.stack([o.loss for o in outcomes]).isfinite().all()).float()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    if group is not None:
        average_([*gradients, bad], group)
    if penalty is not None:
        penalty(net)
    norm = torch.nn.utils.get_total_norm(gradients)
    # A fused optimiser leaves weights and momentum alone where this is 1, and nobody waits for the device.
    optimizer.found_inf = ((bad > 0) | ~norm.isfinite()).float()
    optimizer.grad_scale = None
    optimizer.step()
    return outcomes


def average_(tensors: Sequence[Tensor], group) -> None:
    """Replace each tensor by its mean over the ranks of `group`, in one coalesced all-reduce.

    The ranks' plans are the same, so that they all bring the gradients of the same parameters.
    """
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view(t.shape))


# -- the loop --------------------------------------------------------------------------------------------

LOOK = 50
"""Steps between looks at what the device has done; on the CPU it is every step."""


def train(net: SlimmableNet, batches, sampler: Sampler, objective: Objective, schedule: Schedule,
          optimizer, *, seed: int = 0, label: str = "train", run=None, save_seconds: float = 60.0,
          intervals: int = 20, stop: Callable[[], bool] = lambda: False, group=None,
          quiet: bool = False, penalty: Penalty | None = None, probe: Probe | None = None,
          span: tuple[int, int] | None = None) -> list[dict]:
    """Train `net` for `schedule.steps` steps; returns the history, rows of step, lr, name, ce.

    With `span` it makes only the steps from the first to before the second, with the rates, batches and plans that
    they have in the whole: another run makes the others. What `probe` finds is added to its `rows`.
    `batches.batch(step)` gives (x, y). With a `run` (see `slimnb.runs.store`) it starts from the newest checkpoint,
    saves one every `save_seconds`, and ends in the same bits however often it was interrupted. `stop` is
    asked at every look (`LOOK`); when it says true the state is saved and K10 raised. `penalty` adds to the
    gradients of every step. Other errors: P04 for a span outside the schedule, N01 and N02 of `Watch`, P09 for an
    optimiser that does not hold the net's parameters.
    """
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    first, last = span or (0, schedule.steps)
    if not 0 <= first < last <= schedule.steps:
        raise SlimnbError("P04", f"span = {span}", f"it lies in the schedule's steps, 0 to {schedule.steps}",
                          "Leave it out for all of them.")
    history, watch = History([], [] if probe is None else probe.rows), Watch(ranks)
    loaded = run.load() if run is not None else None
    start = restore(*loaded, net, optimizer, sampler, history, objective) if loaded else first
    _check_optimizer(net, optimizer)
    interval = max(1, (last - first) // intervals)
    generator = torch.Generator(next(net.parameters()).device)
    often = 1 if generator.device.type == "cpu" else LOOK
    saved = time.perf_counter()
    net.train()
    with closing(Reporter(label, start, last, quiet)) as report:
        for step in range(start, last):
            lr, done = schedule(step), step + 1
            for param_group in optimizer.param_groups:
                param_group["lr"] = lr
            generator.manual_seed(zlib.crc32(f"{seed}/dropout/{step}{f'/{rank}' if rank else ''}".encode()))
            x, y = batches.batch(step)
            if probe is not None and probe.at(step):
                look(probe, step, net, x, y, group)
            outcomes = train_step(net, x, y, sampler.plan(step), objective, optimizer, generator, group,
                                  penalty)
            sampler.observe(step, outcomes)
            history.add(outcomes)
            watch.add(step, lr, outcomes, optimizer.found_inf)
            due = done % interval == 0 or done == last
            if not due and done % often:
                continue  # nothing above waits for the device
            watch.check_finite()
            report.move(done)
            if due:
                report(done, history.flush(done, lr))
            stopping = stop()
            old = done < last and time.perf_counter() - saved > save_seconds
            if run is not None and (stopping or old):
                run.save(done, *collect(net, optimizer, sampler, history, done, objective))
                saved = time.perf_counter()
            if stopping:
                raise SlimnbError("K10", f"stopped at step {done} of {last}",
                                  "the process was asked to end", "Run the same command again to go on.",
                                  "Progress is kept." if run is not None else "Nothing was kept.")
    return history.rows


def look(probe: Probe, step: int, net: SlimmableNet, x: Tensor, y: Tensor, group=None) -> None:
    """Add what `probe` finds in `net` before `step` to its rows; the training goes on as if nobody had looked."""
    copied = copy.deepcopy(net, {id(group): group})  # mode, statistics, gradients: all its own
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        probe.rows += probe(step, copied, x, y)


def _check_optimizer(net: SlimmableNet, optimizer) -> None:
    held = {id(p) for param_group in optimizer.param_groups for p in param_group["params"]}
    for name, p in net.named_parameters():
        if p.requires_grad and id(p) not in held:
            raise SlimnbError("P09", f"parameter {name[:60]}",
                              "the optimiser does not hold it, so it would never move",
                              "Call net.reserve([...]) first and make_optimizer(net) then.")
