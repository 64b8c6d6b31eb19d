"""Structures of a given cost: by PSS-Net's eq. 4 and rejection, or exactly, by counting along the chain.

What plans the training's steps is another thing, `PrioritizedSubnetSampling` in method.py.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from slimnb.errors import SearchError
from slimnb.papers.pss_net.structures import Buckets, Resource, StructureCosts
from slimnb.rules import Count, checked
from slimnb.search.random_paths import cumulative, inverse_cdf
from slimnb.search.trellis import Trellis
from slimnb.subnet import Subnet

TRIES = 1_000_000
"""Structures proposed for one bucket after which `sample` gives up."""


class StructureSampler:
    """Draws structures by bucket: subclasses propose them, and those outside the bucket are rejected.

    `support` (T,) says which buckets can be sampled.
    """

    costs: StructureCosts
    buckets: Buckets
    support: np.ndarray
    ahead = 1.0  # proposals made at first for each structure that is wanted

    @property
    def resource(self) -> Resource:
        """The resource whose costs fill the buckets."""
        return self.costs.resource

    def propose(self, bucket: int, rng: np.random.Generator, n: int) -> np.ndarray:
        """Propose (n, groups + 1) structures, not all of them in the bucket."""
        raise NotImplementedError

    def sample(self, bucket: int, rng: np.random.Generator, n: int = 1) -> list[Subnet]:
        """Draw `n` independent subnets of one bucket; they may repeat.

        Raises SearchError for a bucket that has no support or does not exist, and after `TRIES` proposals.
        """
        return self.costs.structures.subnets(self.draw(bucket, rng, n))

    def draw(self, bucket: int, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        """Draw as `sample` does, but return (n, groups + 1) choices."""
        self._check(bucket)
        kept, missing, tried, ahead = [], n, 0, self.ahead
        while missing > 0:
            if tried >= TRIES:
                raise SearchError(f"{n - missing} of {n} structures after {tried:,} tries", "next to none "
                                  f"proposed are in {self._named(bucket)}", "Set a larger step.")
            index = self.propose(bucket, rng, min(65_536, int(ahead * missing) + 4))
            fitting = index[self._inside(bucket, index)][:missing]
            kept.append(fitting)
            missing, tried, ahead = missing - len(fitting), tried + len(index), 2 * ahead
        return np.concatenate(kept) if kept else np.empty((0, len(self.costs.structures.prior)), dtype=np.int64)

    def acceptance(self, bucket: int, rng: np.random.Generator, n: int) -> float:
        """Return the share of `n` proposals that are in the bucket."""
        self._check(bucket)
        return self._inside(bucket, self.propose(bucket, rng, n)).mean().item()

    def _inside(self, bucket: int, index: np.ndarray) -> np.ndarray:
        return self.buckets.index(self.costs.cost(index)) == bucket

    def _check(self, bucket: int) -> None:
        if not 0 <= bucket < len(self.buckets):
            raise SearchError(f"bucket {bucket}", f"there are {len(self.buckets)}",
                              f"Give 0 to {len(self.buckets) - 1}.")
        if not self.support[bucket]:
            show, reached = self.resource.show, self.buckets.targets[self.support]
            reach = f"reach from {show(reached[0])} to {show(reached[-1])}" if len(reached) else "are none"
            raise SearchError(self._named(bucket), "no structure was found there; targets with structures "
                              f"{reach}", "Leave it out, as `support` says, or draw from more structures.")

    def _named(self, bucket: int) -> str:
        low, high = map(self.resource.show, self.buckets.bounds(bucket))
        return f"bucket {bucket}, {low} to {high}"


class StructureDistribution(StructureSampler):
    """PSS-Net, eq. 4: every choice is drawn by how often structures of the bucket have it, as if independent.

    `count` (T,) is the number of sampled structures in each bucket, `marginals` (T, groups + 1, choices) the shares of
    each choice among them. Proposals have other correlations than structures from the prior, and so do those that are
    kept.
    """

    ahead = 24.0

    def __init__(self, costs: StructureCosts, buckets: Buckets, count: np.ndarray, histograms: np.ndarray):
        self.costs, self.buckets, self.count = costs, buckets, count
        self.support = count > 0
        self.marginals = histograms / np.maximum(count, 1)[:, None, None]
        self._cdf = histograms.cumsum(-1) / np.maximum(count, 1)[:, None, None]  # of whole numbers: ends in 1

    @classmethod
    @checked
    def fit(cls, costs: StructureCosts, buckets: Buckets, rng: np.random.Generator,
            n: Count = 100_000) -> StructureDistribution:
        """Fit it to `n` structures of the prior. Raises SearchError if a target lies outside of all costs."""
        buckets.check(costs)
        index = costs.structures.draw(rng, n)
        bucket = buckets.index(costs.cost(index))
        index, bucket = index[bucket >= 0], bucket[bucket >= 0]
        total, choices = len(buckets), max(costs.structures.counts)
        histograms = [np.bincount(bucket * choices + column, minlength=total * choices).reshape(total, choices)
                      for column in index.T]
        return cls(costs, buckets, np.bincount(bucket, minlength=total), np.stack(histograms, 1))

    def propose(self, bucket: int, rng: np.random.Generator, n: int) -> np.ndarray:
        """Propose (n, groups + 1) structures from the product of the bucket's marginals."""
        return inverse_cdf(self._cdf[bucket], rng.random((n, self._cdf.shape[1])))


class ExactDistribution(StructureSampler):
    """Draws structures from the prior within the bucket, exactly; it reaches every bucket that has a structure.

    Costs between neighbouring groups are rounded to a 1/`bins` of a bucket. From the last group to the first, the
    probability of all that may follow a choice is summed at each rounded cost. Forward again, structures are drawn from
    the prior at their rounded cost. Viterbi says how far sums of rounded costs can be off: rounded costs that may be in
    the bucket are proposed, and the few structures that are not in it are rejected. If none is in it for certain, 4,096
    proposals decide whether it has support. For one budget and without a prior, `random_under` needs no sums.

    `mass` (T,) is the probability under the prior of what is proposed; times the acceptance it is that of the bucket.
    """

    @checked
    def __init__(self, costs: StructureCosts, buckets: Buckets, bins: Count = 64):
        """Sum the probabilities. Raises SearchError if a target lies outside of all costs."""
        buckets.check(costs)
        self.costs, self.buckets, bin_ = costs, buckets, buckets.step / bins
        rounded = np.rint(costs.tables / bin_)
        error = [Trellis(chain.counts, chain.tables - bin_ * q) for chain, q in zip(costs.chains, rounded, strict=True)]
        self._error = np.array([(trellis.cheapest, trellis.dearest) for trellis in error]) / bin_  # (resolutions, 2)
        base = self._sum_up(rounded.astype(np.int64))
        starts = [self._start(bucket, base, bin_) for bucket in range(len(buckets))]
        self.mass = np.array([cdf[-1] if len(cdf) else 0.0 for cdf, _, _ in starts])
        self._starts = [(cdf / cdf[-1:], start) for cdf, start, _ in starts]
        self.support = np.array([certain for *_, certain in starts])
        for bucket in np.flatnonzero(~self.support & (self.mass > 0)):  # only within the rounding: look
            index = self.propose(bucket, np.random.default_rng(0), 4096)
            self.support[bucket] = self._inside(bucket, index).any()

    def _sum_up(self, tables: np.ndarray) -> np.ndarray:
        """Fill `self._steps`; gives (resolutions,) the rounded cost that the first place stands for.

        Of each group, (resolutions, choices, places + 1): the probability of a choice and all continuations that
        cost `place` more than the cheapest, in bins. The last place is for costs that nothing has.
        """
        sides, (*priors, last) = range(len(tables)), self.costs.structures.prior[:-1]
        to_go = np.zeros((len(tables), len(last), 2))
        to_go[..., 0] = last
        places, base, self._steps = np.ones(len(tables), dtype=np.int64), 0, []
        for group in reversed(range(len(priors))):
            prior, following = priors[group], to_go
            paid = tables[:, group, : following.shape[1], : len(prior)]  # (resolutions, next, this)
            least = paid.min((1, 2))
            base, paid = base + least, paid - least[:, None, None]
            most = paid.max((1, 2))
            self._steps.append((paid.transpose(0, 2, 1).copy(), following))
            to_go = np.zeros((len(tables), len(prior), (places + most).max() + 1))
            for side in sides:
                _add(to_go[side], following[side, :, : places[side]], paid[side], most[side])
            to_go *= prior[:, None]
            places = places + most
        self._steps.reverse()
        self._first = to_go * self.costs.structures.prior[-1][:, None, None]
        return base

    def _start(self, bucket: int, base: np.ndarray, bin_: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """Where paths of a bucket may start: sums of their probabilities, (N, 3) resolution, choice and cost,
        and whether one is in the bucket for certain.
        """
        low, high = np.array(self.buckets.bounds(bucket)) / bin_
        place = np.arange(self._first.shape[2] - 1) + base[:, None]  # (resolutions, places) in bins
        under, over = self._error.T[..., None]
        noise = 1e-6  # of a bin: sums of costs round, too
        may = (place + over >= low - noise) & (place + under < high + noise)
        surely = (place + under >= low + noise) & (place + over < high - noise)
        held = self._first[..., :-1].sum(1) > 0
        at = np.argwhere(may[:, None] & (self._first[..., :-1] > 0))
        return self._first[tuple(at.T)].cumsum(), at, bool((surely & held).any())

    def propose(self, bucket: int, rng: np.random.Generator, n: int) -> np.ndarray:
        """Propose (n, groups + 1) structures from the prior whose rounded cost may be in the bucket."""
        cdf, start = self._starts[bucket]
        side, choice, place = start[np.searchsorted(cdf, rng.random(n), side="right")].T
        u, index = rng.random((len(self._steps), n)), [choice]
        for step, (paid, following) in zip(u, self._steps, strict=True):
            _, choices, places = following.shape
            rest = place[:, None] - paid[side, choice]  # (n, choices of the next group)
            # below 0 is above all as a natural number: both ends go to the last place, where nothing is
            held = np.minimum(rest.view(np.uint64), np.uint64(places - 1)).view(np.int64)
            row = (side * choices)[:, None] + np.arange(choices)
            choice = inverse_cdf(cumulative(following.ravel().take(row * places + held)), step)
            place = rest[np.arange(n), choice]
            index.append(choice)
        return np.stack([*index, side], 1)


def _add(to_go: np.ndarray, following: np.ndarray, paid: np.ndarray, most: int) -> None:
    """to_go[this, place] += following[next, place - paid[next, this]], over all next choices; paid <= most."""
    places = following.shape[1] + most
    for after, cost in zip(following, paid, strict=True):
        padded = np.zeros(places + most)
        padded[most:places] = after
        to_go[:, :places] += sliding_window_view(padded, places)[most - cost]


@checked
def trials(marginal: StructureDistribution, exact: ExactDistribution, rng: np.random.Generator,
           n: Count = 4096) -> pd.DataFrame:
    """Count, by bucket, the structures tried for each that is kept: from the prior, by eq. 4, and exactly.

    Columns are target, naive, eq4, exact; NaN where a sampler has no support. The last two are measured on `n`
    proposals, of which at least one counts as kept. The naive one is 1 / the probability of the bucket under the prior,
    also where nobody could wait for it.
    """
    def tried(sampler: StructureSampler) -> np.ndarray:
        share = [max(sampler.acceptance(bucket, rng, n), 1 / n) if has else np.nan
                 for bucket, has in enumerate(sampler.support)]
        return 1 / np.array(share)

    kept = tried(exact)
    with np.errstate(divide="ignore"):
        naive = kept / exact.mass
    return pd.DataFrame({"target": exact.buckets.targets, "naive": naive, "eq4": tried(marginal), "exact": kept})
