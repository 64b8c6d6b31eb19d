"""PSS-Net: a pool of good subnets for every resource target, and training that prefers those (Chen et al.)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from slimnb.errors import StoreError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.pss_net.pools import Pool, Target, entries_of, fill_, pack_entries, unpack_entries
from slimnb.papers.slimmable.method import Draw, Sandwich, any_of
from slimnb.rng import rng_at
from slimnb.rules import Below1, Count, Portion, Seed, Whole, checked
from slimnb.subnet import Subnet
from slimnb.train.loop import average_
from slimnb.train.protocols import Outcome, Pass

# -- prioritized subnet sampling -------------------------------------------------------------------------


class Drawn(NamedTuple):
    """The tag of the pooled pass: its target, and whether its subnet was drawn from the space or from the pool."""

    target: int
    fresh: bool


class PrioritizedSubnetSampling:
    """Trains the largest subnet from the labels, then one of a random target and the smallest from it (Alg. 1, 2).

    In epoch e of E the middle one comes from the space with probability p = p_end^((e-1)/E). Else it comes from its
    target's pool, by softmax(metric / eta), eta = eta_end^((e-1)/E). Until a pool is full its p and eta are 1: Eq. 3
    prints the indicator the wrong way round (the prose has it so, and the released code). All targets are equally
    likely, which draws a resource with probability proportional to its targets (PSS-M). A pool that holds all
    structures of its target is full, too, if these can be listed.

    The metric is minus the mean cross-entropy of the middle pass itself, before the update. The released code computes
    the same number in a forward pass of its own, which is left out. (The training loss, which the text names, is a
    divergence from the teacher.) It reaches the pool a step late, so that nothing waits for the device; with several
    ranks it is their mean. Raises ParameterError for p_end or eta_end outside (0, 1], and as `Pool` does.
    """

    @checked
    def __init__(self, net: SlimmableNet, targets: Sequence[Target], smallest: Subnet, steps: Count, epochs: Count, *,
                 pool_size: Count = 50, p_end: Portion = 0.01, eta_end: Portion = 0.01, momentum: Below1 = 0.9,
                 seed: Seed = 0):
        self.targets = list(targets)
        self.pools = [Pool(min(pool_size, target.size), momentum) for target in self.targets]
        self.steps, self.epochs, self.p_end, self.eta_end, self.seed = steps, epochs, p_end, eta_end, seed
        self.units = len(net.largest.widths)
        self.largest = Pass(net.largest, name="largest")
        self.smallest = Pass(smallest, target="teacher", name="smallest")
        self.trained = np.zeros(len(self.pools), dtype=np.int64)  # steps by target
        self.reused = np.zeros(len(self.pools), dtype=np.int64)  # those of them that were drawn from the pool
        self.pending: tuple[int, Subnet, Callable[[], float], int] | None = None

    def subnets(self) -> list[Subnet]:
        """Return the two ends."""
        return [self.largest.route, self.smallest.route]

    def rates(self, step: int) -> tuple[float, float]:
        """Return (p, eta) of a full pool; they are constant within an epoch."""
        gone = step * self.epochs // self.steps / self.epochs  # (e - 1) / E
        return self.p_end**gone, self.eta_end**gone

    def plan(self, step: int) -> list[Pass]:
        """Return largest, pooled and smallest; the tag of the second is a `Drawn`."""
        rng = rng_at(self.seed, "prioritized", step)
        number = int(rng.integers(len(self.targets)))
        pool, (p, eta) = self.pools[number], self.rates(step)
        fresh = not pool.full or rng.random() < p
        subnet = self.targets[number].sample(rng)[0] if fresh else pool.sample(rng, eta)
        return [self.largest, Pass(subnet, "teacher", name="pooled", tag=Drawn(number, fresh)), self.smallest]

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Enter the last step's metric, and send this step's to the host."""
        self.settle()
        middle = outcomes[1]
        number, fresh = middle.a_pass.tag
        self.trained[number] += 1
        self.reused[number] += not fresh
        ce = middle.ce.mean()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            average_([ce], dist.group.WORLD)
        self.pending = number, middle.a_pass.route, towards_host(ce), step

    def settle(self) -> None:
        """Enter the metric that is on its way, if there is one.

        `observe` calls this, and so does a reader of the pools.
        """
        if self.pending:
            number, subnet, ce, step = self.pending
            self.pools[number].enter(subnet, -ce(), step)
            self.pending = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return pools, counts, and the metric that is on its way."""
        late = []
        if self.pending:
            number, subnet, ce, step = self.pending
            late = [(number, subnet, -ce(), step)]
        counts = np.stack([self.trained, self.reused, [pool.refused for pool in self.pools]])
        entries = {"pools": pack_entries(entries_of(self.pools), self.units), "late": pack_entries(late, self.units)}
        return {"counts": torch.from_numpy(counts)} | {f"{name}/{key}": value for name, state in entries.items()
                                                       for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned. Raises StoreError for other targets or another space."""
        if state["counts"].shape != (3, len(self.pools)):
            raise StoreError(f"{state['counts'].shape[-1]} pools", f"this training has {len(self.pools)}",
                             "Go on with the targets it was trained with.", "Nothing was trained.")
        entries, late = (unpack_entries({key.removeprefix(f"{name}/"): value for key, value in state.items()},
                                        len(self.pools), lambda subnet, pool: self.targets[pool].holds(subnet))
                         for name in ("pools", "late"))
        fill_(self.pools, entries)
        self.trained, self.reused, refused = state["counts"].cpu().numpy().copy()
        for pool, count in zip(self.pools, refused.tolist(), strict=True):
            pool.refused = count
        self.pending = None
        for number, subnet, metric, step in late:
            self.pending = number, subnet, partial(float, -metric), step


def towards_host(value: Tensor) -> Callable[[], float]:
    """Send a scalar to the host and return a function that waits for this copy alone and returns it."""
    if not value.is_cuda:
        return lambda: float(value.numpy())
    host = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return float(host.numpy())

    return read


class ReducedSandwich(Sandwich):
    """The sandwich rule, but from step `since` on random subnets are drawn from `kept` alone (Fig. 1)."""

    @checked
    def __init__(self, largest: Subnet, smallest: Subnet, draw: Draw, n_random: Whole = 1, seed: Seed = 0, *,
                 kept: Sequence[Subnet], since: Whole):
        super().__init__(largest, smallest, draw, n_random, seed)
        self.reduced, self.since = Sandwich(largest, smallest, any_of(kept), n_random, seed), since

    def plan(self, step: int) -> list[Pass]:
        """Return largest, smallest and random ones; they depend on seed and step alone."""
        return super().plan(step) if step < self.since else self.reduced.plan(step)
