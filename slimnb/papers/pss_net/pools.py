"""Resource targets, and for each a pool of the best subnets so far and their metrics (PSS-Net)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from slimnb.errors import ParameterError, SearchError, SlimnbError, StoreError
from slimnb.papers.pss_net.structures import Buckets, Resource
from slimnb.rules import Below1, Count, checked
from slimnb.search.random_paths import cumulative
from slimnb.subnet import Subnet

# -- targets ---------------------------------------------------------------------------------------------


class Source(Protocol):
    """Draws random structures of each bucket of a resource.

    A `slimnb.papers.pss_net.structure_samplers.StructureDistribution` is one.
    """

    buckets: Buckets
    support: Sequence[bool]  # of each bucket, whether it has structures

    def sample(self, bucket: int, rng: np.random.Generator, n: int = 1) -> list[Subnet]:
        """Draw `n` random structures of a bucket."""


class Listed:
    """Draws from a list of subnets, those of a bucket being equally likely: the control of uniform widths."""

    def __init__(self, subnets: Sequence[Subnet], resource: Resource, buckets: Buckets):
        cost = {subnet: resource.of(subnet) for subnet in subnets}
        dearest_first = sorted(cost, key=cost.__getitem__, reverse=True)
        at = buckets.index(np.array([cost[subnet] for subnet in dearest_first])).tolist()
        self.buckets = buckets
        self.members = [[subnet for subnet, home in zip(dearest_first, at, strict=True) if home == bucket]
                        for bucket in range(len(buckets))]
        self.support = [bool(members) for members in self.members]

    def sample(self, bucket: int, rng: np.random.Generator, n: int = 1) -> list[Subnet]:
        """Draw `n` subnets of a bucket that has any, with repetition."""
        return [self.members[bucket][at] for at in rng.integers(len(self.members[bucket]), size=n)]


class Target(NamedTuple):
    """One bucket of one resource, and the source of its structures."""

    resource: Resource
    source: Source
    bucket: int

    @property
    def cost(self) -> float:
        """The middle of the bucket, in the resource's unit."""
        return float(self.source.buckets.targets[self.bucket])

    @property
    def name(self) -> str:
        """A name such as "110 M" for MACs or "12 ms CPU" for a latency."""
        unit, kind = self.resource.unit, self.resource.name.partition(" ")[0]
        return f"{self.cost / 1e6:.6g} M" if unit == "MACs" else f"{self.cost:.6g} {unit} {kind}"

    @property
    def size(self) -> float:
        """The number of its structures if they are few enough to be listed, else infinity."""
        return len(self.source.members[self.bucket]) if isinstance(self.source, Listed) else math.inf

    def sample(self, rng: np.random.Generator, n: int = 1) -> list[Subnet]:
        """Draw `n` random structures of it."""
        return self.source.sample(self.bucket, rng, n)

    def holds(self, subnet: Subnet) -> bool:
        """Return whether the subnet is in the bucket; it is not if the resource cannot price it."""
        try:
            cost = self.resource.of(subnet)
        except SlimnbError:
            return False
        return self.source.buckets.index(np.array([cost]))[0] == self.bucket


# -- pools -----------------------------------------------------------------------------------------------


class Pool:
    """The `size` subnets of highest metric of all that were entered, and when they came (PSS-Net, Alg. 2).

    A metric is minus a batch's mean cross-entropy, nats. If a subnet is entered again, its metric moves by 1 -
    `momentum` towards the new one. Only subnets that are trained get new metrics, and losses fall, so a late subnet
    stands higher than its worth. A metric that is not finite is refused and counted. Raises SearchError for size < 1 or
    a momentum outside [0, 1).
    """

    @checked
    def __init__(self, size: Count = 50, momentum: Below1 = 0.9):
        self.size, self.momentum = size, momentum
        self.metrics: dict[Subnet, float] = {}  # in order of entry
        self.since: dict[Subnet, int] = {}  # step of entry
        self.refused = 0

    @property
    def full(self) -> bool:
        """Whether it holds `size` subnets."""
        return len(self.metrics) >= self.size

    def enter(self, subnet: Subnet, metric: float, step: int) -> None:
        """Enter the metric of a batch at `step`.

        If there is one subnet too many, the lowest leaves, of equals the latest.
        """
        if not math.isfinite(metric):
            self.refused += 1
        elif subnet in self.metrics:
            self.metrics[subnet] = self.momentum * self.metrics[subnet] + (1 - self.momentum) * metric
        else:
            self.metrics[subnet], self.since[subnet] = metric, step
            if len(self.metrics) > self.size:
                lowest = min(reversed(self.metrics), key=self.metrics.__getitem__)
                del self.metrics[lowest], self.since[lowest]

    def ranked(self) -> list[Subnet]:
        """Return all its subnets, best first; equals stand in order of entry."""
        return sorted(self.metrics, key=self.metrics.__getitem__, reverse=True)

    def top(self, k: int) -> list[Subnet]:
        """Return the best `k`. Raises SearchError if there are fewer than `k`."""
        if not 1 <= k <= len(self.metrics):
            raise SearchError(f"the top {k} of a pool", f"it holds {len(self.metrics)} subnets",
                              "Ask for as many as there are, or train longer.")
        return self.ranked()[:k]

    def sample(self, rng: np.random.Generator, eta: float) -> Subnet:
        """Draw a subnet with probability softmax(metric / `eta`) (Eq. 6). Raises SearchError if it is empty."""
        if not self.metrics:
            raise SearchError("a draw from a pool", "it is empty", "Draw from the space until it is full.")
        if not 0 < eta <= 1:
            raise ParameterError(f"eta = {eta!r}"[:60], "it is above 0 and at most 1", "Set eta_end=0.01.")
        metrics = np.fromiter(self.metrics.values(), float)
        p = softmax((metrics - metrics.max()) / eta)  # the maximum goes first: m / .01 overflows
        return list(self.metrics)[np.searchsorted(cumulative(p), rng.random(), side="right")]


Entry = tuple[int, Subnet, float, int]
"""Number of a pool, a subnet, its metric, the step it came at."""


def entries_of(pools: Sequence[Pool]) -> list[Entry]:
    """Return all entries of `pools`, each pool's in the order they came."""
    return [(number, subnet, metric, pool.since[subnet]) for number, pool in enumerate(pools)
            for subnet, metric in pool.metrics.items()]


def pack_entries(entries: Sequence[Entry], units: int) -> dict[str, Tensor]:
    """Pack n entries into tensors.

    They are pool, resolution (0: none), step (n,) and widths (n, units) int64, and metric (n,) float64.
    """
    pool, subnet, metric, step = zip(*entries, strict=True) if entries else ((), (), (), ())
    widths = torch.tensor([member.widths for member in subnet], dtype=torch.int64).view(len(entries), units)
    resolution = torch.tensor([member.resolution or 0 for member in subnet], dtype=torch.int64)
    return {"pool": torch.tensor(pool, dtype=torch.int64), "widths": widths, "resolution": resolution,
            "metric": torch.tensor(metric, dtype=torch.float64), "step": torch.tensor(step, dtype=torch.int64)}


def unpack_entries(state: dict[str, Tensor], pools: int, fits: Callable[[Subnet, int], bool]) -> list[Entry]:
    """Return the entries that `pack_entries` packed.

    Raises StoreError unless each names one of that many `pools` and its subnet `fits` it; else the checkpoint is of
    another space.
    """
    rows = zip(*(state[name].tolist() for name in ("pool", "widths", "resolution", "metric", "step")), strict=True)
    entries = [(pool, Subnet(tuple(widths), resolution=side or None), metric, step)
               for pool, widths, side, metric, step in rows]
    for pool, subnet, *_ in entries:
        if not 0 <= pool < pools or not fits(subnet, pool):
            why = "it is none of this space, or costs other"
            raise StoreError(f"subnet {subnet} of pool {pool}"[:100], why,
                             "Go on with the space and targets it was trained with.", "Nothing was trained.")
    return entries


def fill_(pools: Sequence[Pool], entries: Sequence[Entry]) -> None:
    """Make `entries` the contents of `pools`."""
    for pool in pools:
        pool.metrics.clear()
        pool.since.clear()
    for number, subnet, metric, step in entries:
        pools[number].metrics[subnet], pools[number].since[subnet] = metric, step
