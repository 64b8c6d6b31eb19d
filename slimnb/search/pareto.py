"""Trade-offs of many subnets: the Pareto front, one best subnet per bucket, mean Pareto accuracy, cost of training."""

from __future__ import annotations

import numpy as np

from slimnb.errors import ParameterError
from slimnb.rules import Amount, Array, Count, Some, checked

# -- accuracy against cost -------------------------------------------------------------------------------


@checked
def pareto_front(cost: Array, accuracy: Array) -> np.ndarray:
    """Return the indices, by rising cost, of the points that no other point beats; of equal points the first.

    `cost` and `accuracy` are (N,). One point beats another if it costs no more, is no worse, and is better in one of
    both. Raises ParameterError for other shapes and numbers that are not finite.
    """
    cost, accuracy = _points(cost, accuracy)
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(accuracy[order])
    return order[np.append(True, best[1:] > best[:-1])]


@checked
def best_per_bucket(cost: Array, accuracy: Array, buckets: Count = 6,
                    span: tuple[float, float] | None = None) -> np.ndarray:
    """Return the indices of the most accurate point in each cost bucket, by rising cost (DepS, section 5.1).

    The buckets divide `span` (least, most) evenly; the last contains its end. Without `span` it is the range of the
    points. A bucket without points has no index. Of equally accurate points the cheapest counts, then the first. Points
    outside `span` are left out. Raises ParameterError.
    """
    cost, accuracy = _points(cost, accuracy)
    least, most = span or (cost.min(), cost.max())
    if buckets < 1 or not least <= most:
        raise ParameterError(f"{buckets} buckets from {least:g} to {most:g}", "there is one or more, upwards",
                             "Set buckets=6.")
    inside = np.flatnonzero((cost >= least) & (cost <= most))
    scale = buckets / (most - least) if most > least else 0.0
    bucket = np.minimum((cost[inside] - least) * scale, buckets - 1).astype(np.int64)
    order = np.lexsort((cost[inside], -accuracy[inside], bucket))
    return inside[order[np.unique(bucket[order], return_index=True)[1]]]


@checked
def mean_pareto_accuracy(cost: Array, accuracy: Array) -> float:
    """Return the area under accuracy over cost, by trapezoids, divided by the range of costs: a mean accuracy.

    DepS, section 5.1, normalises the costs; its Table 2 follows from the points of its Figure 5d in this way. Raises
    ParameterError unless two costs differ.
    """
    cost, accuracy = _points(cost, accuracy)
    order = np.argsort(cost, kind="stable")
    cost, accuracy = cost[order], accuracy[order]
    if cost[0] == cost[-1]:
        raise ParameterError(f"{len(cost)} points at one cost", "an area needs two costs",
                             "Evaluate a smaller and a larger subnet.")
    return float((np.diff(cost) * (accuracy[1:] + accuracy[:-1]) / 2).sum() / (cost[-1] - cost[0]))


def _points(cost, accuracy) -> tuple[np.ndarray, np.ndarray]:
    cost, accuracy = np.asarray(cost, dtype=float), np.asarray(accuracy, dtype=float)
    if cost.ndim != 1 or cost.shape != accuracy.shape or not len(cost) or not np.isfinite([cost, accuracy]).all():
        raise ParameterError(f"costs of shape {cost.shape}, accuracies {accuracy.shape}",
                             "they are (N,), N at least 1, all of them finite", "Give one of each per subnet.")
    return cost, accuracy


# -- cost of training ------------------------------------------------------------------------------------

PHASES = {"OFA": ((1, 2), (2, 1), (3, 2)), "BigNAS": ((3, 2),), "DepS": ((1, 1), (3, 1))}
"""Figure 1's bars: (subnets per minibatch, length) of each phase, in its units of n epochs."""


@checked
def passes(phases: Some[tuple[Amount, Amount]]) -> float:
    """Return the forward and backward passes of `phases`, rows of (subnets per step, steps).

    In units of T n this is 10 for OFA, 6 for BigNAS and 4 for DepS.
    """
    return sum(subnets * steps for subnets, steps in phases)


@checked
def step_cost(macs: Some[Amount]) -> float:
    """Return the cost of a step over subnets of these MACs, in steps of the first, which is the full net."""
    return sum(macs) / macs[0]


@checked
def delayed_cost(epochs: Amount, delay: Amount, step: Amount) -> float:
    """Return what `epochs` epochs cost, in epochs of the full net, which trains alone in the first `delay` of them.

    Afterwards an epoch costs `step`. Raises ParameterError for a delay longer than the training.
    """
    if not 0 <= delay <= epochs:
        raise ParameterError(f"a delay of {delay:g} of {epochs:g} epochs", "it is 0 up to all of them",
                             "Set half of the epochs.")
    return delay + (epochs - delay) * step


@checked
def gpu_hours(epochs: Array, minutes: Array) -> Array:
    """Return the GPU hours of `epochs` epochs at `minutes` GPU minutes each."""
    return epochs * minutes / 60
