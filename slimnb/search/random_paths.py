"""Random subnets of a given cost, with which a search is compared."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from slimnb.errors import SearchError
from slimnb.rules import Count, Share, checked
from slimnb.search.trellis import Trellis
from slimnb.subnet import SearchSpace, Subnet

TRIES = 4_000_000
"""Random paths after which `random_under` gives up."""


@checked
def random_under(space: SearchSpace, trellis: Trellis, budget: float, rng: np.random.Generator, n: Count = 1,
                 least: Share = 0.98) -> list[Subnet]:
    """Draw `n` random subnets that cost `least` to 1 times the budget; all such subnets are equally likely.

    Paths are drawn exactly from p ~ exp(-lambda cost), by messages along the chain. Lambda puts the mean cost into the
    middle of the interval. Paths outside are rejected; those inside are kept with a probability ~ exp(lambda cost),
    which makes them uniform again. Subnets may repeat. Raises SearchError if no subnet costs that much, or if too few
    are drawn in `TRIES` paths.
    """
    low, high = max(least * budget, trellis.cheapest), min(budget, trellis.dearest)
    if low > high:
        raise SearchError(f"budget {budget:,.0f}", f"subnets cost {trellis.cheapest:,.0f} to "
                          f"{trellis.dearest:,.0f}, none {least:g} to 1 times that", "Ask for a budget among them.")
    middle = (low + high) / 2
    steepest = 10 * middle / max(high - low, 1e-9 * high)  # so that at the least exp(-10) of those inside are kept
    tilt = minimize_scalar(lambda x: logsumexp(_messages(trellis, x / middle)[0]) + x, method="bounded",
                           bounds=(-steepest, steepest)).x / middle  # where the mean cost is `middle`
    kept, tried = [], 0
    while sum(map(len, kept)) < n:
        if tried >= TRIES:
            raise SearchError(f"{sum(map(len, kept))} of {n} subnets after {tried:,} tries",
                              f"few or none cost {low:,.0f} to {high:,.0f}", "Lower least=, or n=.")
        paths = _paths(trellis, tilt, rng, 4096)
        cost, tried = trellis.cost(paths), tried + len(paths)
        likely = np.exp(tilt * (cost - (high if tilt > 0 else low)))  # <= 1 inside
        kept.append(paths[(cost >= low) & (cost <= high) & (rng.random(len(paths)) < likely)])
    return space.at(np.concatenate(kept)[:n])


def _messages(trellis: Trellis, tilt: float) -> list[np.ndarray]:
    """For each unit, (choices,) the log of the sum of exp(-tilt cost) over all that may follow a choice."""
    none = np.where(trellis.exists, 0.0, -np.inf)
    messages = [none[-1]]
    for table, start in zip(trellis.tables[::-1], none[-2::-1], strict=True):
        messages.append(start + logsumexp(messages[-1][:, None] - tilt * table, axis=0))
    return messages[::-1]


def _paths(trellis: Trellis, tilt: float, rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, units) independent paths from p ~ exp(-tilt cost)."""
    first, *others = _messages(trellis, tilt)
    u = rng.random((trellis.units, n))
    index = [inverse_cdf(cumulative(softmax(first)), u[0])]
    for unit, (table, message) in enumerate(zip(trellis.tables, others, strict=True), 1):
        cdf = cumulative(softmax(message - tilt * table.T, axis=1))  # (this choice, next choice)
        index.append(inverse_cdf(cdf[index[-1]], u[unit]))
    return np.stack(index, 1)


def cumulative(p: np.ndarray) -> np.ndarray:
    """Return the sums of probabilities along the last axis, for `inverse_cdf`; they are 1 from the last p > 0 on."""
    sums = p.cumsum(-1)
    return sums / sums[..., -1:]


def inverse_cdf(cdf: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the choice on which each u in [0, 1) falls; `cdf` has one axis more, its choices."""
    return (u[..., None] < cdf).argmax(-1)
