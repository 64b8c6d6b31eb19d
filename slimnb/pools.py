"""Subnet pools: the best structures seen so far within one resource bucket, and their metrics (PSS-Net)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from slimnb.errors import SlimnbError
from slimnb.random_subnets import cumulative
from slimnb.subnet import Subnet


class Pool:
    """The `size` subnets of highest metric among those that were entered, and when they came (PSS-Net, Alg. 2).

    A metric is minus a batch's mean cross-entropy, nats; entered again, a subnet's moves by 1 - `momentum` towards
    the new one. Only subnets that are trained get new metrics, and losses fall: what came lately stands higher than
    its worth. A metric that is not finite is refused and counted. Errors: S59 for size < 1 or a momentum outside
    [0, 1).
    """

    def __init__(self, size: int = 50, momentum: float = 0.9):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SlimnbError("S59", f"a pool of {size!r} subnets"[:60], "it holds at least one", "Set pool_size=50.")
        if not 0 <= momentum < 1:
            raise SlimnbError("S59", f"momentum = {momentum!r}"[:60], "it lies in [0, 1)", "Set momentum=0.9.")
        self.size, self.momentum = size, momentum
        self.metrics: dict[Subnet, float] = {}  # in order of entry
        self.since: dict[Subnet, int] = {}  # step of entry
        self.refused = 0

    @property
    def full(self) -> bool:
        """Whether it holds `size` subnets."""
        return len(self.metrics) >= self.size

    def enter(self, subnet: Subnet, metric: float, step: int) -> None:
        """Enter what a batch of `step` gave; of one too many the lowest leaves, of equals the one that came last."""
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
        """All its subnets, best first, equals in order of entry."""
        return sorted(self.metrics, key=self.metrics.__getitem__, reverse=True)

    def top(self, k: int) -> list[Subnet]:
        """The best `k`. Raises S57 if there are fewer: ask for at most `len(pool.metrics)`."""
        if not 1 <= k <= len(self.metrics):
            raise SlimnbError("S57", f"the top {k} of a pool", f"it holds {len(self.metrics)} subnets",
                              "Ask for as many as there are, or train longer.", "")
        return self.ranked()[:k]

    def sample(self, rng: np.random.Generator, eta: float) -> Subnet:
        """A subnet with probability softmax(metric / `eta`) (Eq. 6). Raises S57 if it is empty."""
        if not self.metrics:
            raise SlimnbError("S57", "a draw from a pool", "it is empty", "Draw from the space until it is full.", "")
        metrics = np.fromiter(self.metrics.values(), float)
        p = softmax((metrics - metrics.max()) / eta)  # the maximum goes first: m / .01 overflows
        return list(self.metrics)[np.searchsorted(cumulative(p), rng.random(), side="right")]


Entry = tuple[int, Subnet, float, int]
"""Number of a pool, a subnet, its metric, the step it came at."""


def entries_of(pools: Sequence[Pool]) -> list[Entry]:
    """All entries of `pools`, each pool's in the order they came."""
    return [(number, subnet, metric, pool.since[subnet]) for number, pool in enumerate(pools)
            for subnet, metric in pool.metrics.items()]


def pack_entries(entries: Sequence[Entry], units: int) -> dict[str, Tensor]:
    """Tensors of n entries: pool, resolution (0: none), step (n,) and widths (n, units) int64, metric (n,) float64."""
    pool, subnet, metric, step = zip(*entries, strict=True) if entries else ((), (), (), ())
    widths = torch.tensor([each.widths for each in subnet], dtype=torch.int64).view(len(entries), units)
    resolution = torch.tensor([each.resolution or 0 for each in subnet], dtype=torch.int64)
    return {"pool": torch.tensor(pool, dtype=torch.int64), "widths": widths, "resolution": resolution,
            "metric": torch.tensor(metric, dtype=torch.float64), "step": torch.tensor(step, dtype=torch.int64)}


def unpack_entries(state: dict[str, Tensor], pools: int, fits: Callable[[Subnet, int], bool]) -> list[Entry]:
    """The entries that `pack_entries` packed.

    Raises C11 unless each names one of that many `pools` and its subnet `fits` it: a checkpoint of another space.
    """
    rows = zip(*(state[name].tolist() for name in ("pool", "widths", "resolution", "metric", "step")), strict=True)
    entries = [(pool, Subnet(tuple(widths), resolution=side or None), metric, step)
               for pool, widths, side, metric, step in rows]
    for pool, subnet, *_ in entries:
        if not 0 <= pool < pools or not fits(subnet, pool):
            raise SlimnbError("C11", f"subnet {subnet} of pool {pool}"[:100], "it is none of this space, or costs other",
                              "Go on with the space and targets it was trained with.", "Nothing was trained.")
    return entries


def fill_(pools: Sequence[Pool], entries: Sequence[Entry]) -> None:
    """Make `entries` the contents of `pools`."""
    for pool in pools:
        pool.metrics.clear()
        pool.since.clear()
    for number, subnet, metric, step in entries:
        pools[number].metrics[subnet], pools[number].since[subnet] = metric, step
