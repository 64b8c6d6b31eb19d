"""The two-parameter Chinese restaurant process, and the platform weights that the paper drew from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Interval
from scipy.linalg import toeplitz

from slimnb.errors import ParameterError, SlimnbError
from slimnb.rules import Array, Count, checked

# Paper 003 calls alpha the strength and theta the discount; by its own formula it is the other way round.

_S = (0.25, 0.005, 0.01, 0.045, 0.13, 0.31, 0.25)
_L = (0.25, 0.005, 0.01, 0.02, 0.04, 0.425, 0.25)
WEIGHTS = {
    "S": _S,
    "RS": _S[::-1],
    "U": (0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.25),
    "M": (0.25, 0.025, 0.0625, 0.325, 0.0625, 0.025, 0.25),
    "L": _L,
    "RL": _L[::-1],
}
"""Share of requests of platforms #1 to #7 in each market (paper 003, Table 1); as decimals each sums to 1.

S and L are what `market(0.3, 0.15, rng)` and `market(0.15, 0.15, rng)` can give; RS and RL are reversed.
"""


Customers = Annotated[int, Interval(ge=1, le=10**5)]


@checked
def chinese_restaurant_process(customers: Customers, alpha: float, theta: float, rng: np.random.Generator,
                               realisations: Annotated[int, Interval(ge=1, le=10**6)] | None = None) -> np.ndarray:
    """Seat `customers` and return how many sit at each table, (tables,), in order of opening.

    With `realisations` the result is (realisations, most tables), and rows with fewer tables end in zeros. Customers
    sit down one at a time as `seating` says. `alpha` is the discount and `theta` the strength: 0 <= alpha < 1 and theta
    > -alpha, or alpha < 0 and theta = -L alpha for L = 1, 2, ... tables at most. Raises ParameterError for others
    (paper 003, section 3.1).
    """
    opening = _opening(customers, alpha, theta)
    most = 1 + np.count_nonzero(opening[1:] > 0)
    runs = _count("realisations", 1 if realisations is None else realisations)
    sizes = np.zeros((most, runs), dtype=np.int64)
    weights = np.zeros((most, runs))  # of the next customer's sitting down at each table
    tables, run = np.zeros(runs, dtype=np.int64), np.arange(runs)
    for seated in range(customers):
        held = tables.max()
        reach = weights[:held].cumsum(0)
        seat = (reach <= rng.random(runs) * (seated + theta)).sum(0)
        seat = np.minimum(np.minimum(seat, tables), most - 1)  # past the last table: a new one, if there is one
        new = seat == tables
        sizes[seat, run] += 1
        weights[seat, run] += np.where(new, 1 - alpha, 1)
        tables += new
    sizes = sizes[:tables.max()].T
    return sizes[0] if realisations is None else np.ascontiguousarray(sizes)


@checked
def seating(sizes: Sequence[Count], alpha: float, theta: float) -> np.ndarray:
    """Return the probabilities (tables + 1,) that the next customer joins each table or, last, opens a new one.

    They are (size - alpha) / (seated + theta) and (theta + alpha tables) / (seated + theta); the first customer opens a
    table. Fractions give Fractions (paper 003, section 3.1).
    """
    sizes = np.array([_count("a table's size", size) for size in sizes], dtype=np.int64)
    opening = _opening(len(sizes) + 1, alpha, theta)
    if len(sizes) > 1 and not opening[len(sizes) - 1] > 0:
        raise ParameterError(f"{len(sizes)} tables at alpha = {alpha}, theta = {theta}",
                             "there are at most theta / -alpha", "Give fewer sizes.")
    if not len(sizes):
        return np.ones(1)
    return np.append(sizes - alpha, opening[-1]) / (sizes.sum() + theta)


@checked
def table_count_probabilities(customers: Customers, alpha: float, theta: float) -> np.ndarray:
    """Return the exact probability of every number of tables, (customers + 1,), customer by customer."""
    opening = _opening(customers, alpha, theta)
    tables = np.arange(customers + 1)
    probability = (tables == 1).astype(float)
    for seated in range(1, customers):
        joins = probability * (seated - alpha * tables)
        joins[1:] += probability[:-1] * opening
        probability = joins / (seated + theta)
    return probability


@checked
def expected_shares(customers: Customers, alpha: float, theta: float, tables: Count,
                    given: Count | None = None) -> np.ndarray:
    """Return the mean shares (tables,) of the largest table, the second largest, ...; `given` that so many are open.

    They are exact. The mean of the k-th largest size is the sum over s of P(k tables or more have s customers), and
    those are coefficients of a product of power series, since the probability of a seating plan is a product over its
    tables. It takes customers^4 operations, 0.1 s for 100. The stick-breaking means are exact too, but for tables in
    order of opening and infinitely many customers; figures show sorted shares.
    """
    opening = _opening(customers, alpha, theta)
    open_tables = np.arange(customers + _count("tables", tables))
    chance = 1.0 if given is None else _chance(customers, alpha, theta, given, least=0)
    kept = np.full(len(open_tables), True) if given is None else open_tables == given
    size, unit = np.arange(1, customers), max(1.0, -alpha)  # weights in this unit stay within a float's range
    rise = np.zeros(customers + tables)  # weight of another table when 0, 1, ... are open
    rise[:customers] = np.append(1, opening[1:] / unit)
    series = np.append([0, 1], np.cumprod((size - alpha) / unit / (size + 1)))  # of one table, over size factorial
    scale = np.prod(unit * (size + 1) / (size + theta)) / chance
    exactly = np.array([_large_tables(series, rise, kept, s, tables) for s in range(1, customers + 1)])
    return (1 - scale * exactly.cumsum(1)).clip(0).sum(0) / customers


def _large_tables(series: np.ndarray, rise: np.ndarray, kept: np.ndarray, s: int, most: int) -> np.ndarray:
    """(most,) weights of the seating plans in which exactly 0, 1, ... tables have `s` customers or more."""
    large = np.where(np.arange(len(series)) >= s, series, 0)
    times_large, times_small = (toeplitz(part, np.zeros_like(part)) for part in (large, series - large))
    columns = [np.eye(1, len(series))[0]]  # j large tables and no small one, by number of customers
    for j in range(most - 1):
        columns.append(times_large @ columns[-1] * rise[j] / (j + 1))
    plans, total, j = np.stack(columns, 1), np.zeros(most), np.arange(most)
    for small in range(len(series)):
        total += plans[-1] * kept[small + j]
        plans = times_small @ plans * rise[small + j] / (small + 1)
    return total


@checked
def market(alpha: float, theta: float, rng: np.random.Generator, customers: Customers = 100,
           tables: Count = 5) -> tuple[float, ...]:
    """Draw weights of platforms #1 to #(tables + 2), as S and L of Table 1 arise: .25 at both ends, the peak at #6.

    Between the ends stand the ascending shares of a realisation with exactly `tables` tables, halved, as the ends hold
    half of the market. Realisations with other numbers of tables are rejected. Raises ParameterError if that would be
    nearly all of them.
    """
    chance = _chance(customers, alpha, theta, tables, least=1e-4)
    while True:
        drawn = chinese_restaurant_process(customers, alpha, theta, rng, math.ceil(1 / chance))
        fit = drawn[np.count_nonzero(drawn, axis=1) == tables]
        if len(fit):
            inner = np.sort(fit[0, :tables]) / (2 * customers)
            return (0.25, *inner.tolist(), 0.25)


@checked
def check_weights(weights: Array, platforms: Count) -> np.ndarray:
    """Return the weights as (platforms,) float64.

    Raises ParameterError unless there are that many, none is negative, and they sum to 1 within 1e-9.
    """
    numbers = np.asarray(weights, dtype=np.float64)
    if numbers.shape != (platforms,):
        raise ParameterError(f"weights of shape {numbers.shape}", f"there are {platforms} platforms",
                             "Give one weight per platform.")
    if not (np.isfinite(numbers) & (numbers >= 0)).all() or abs(numbers.sum() - 1) > 1e-9:
        raise ParameterError(f"weights = {numbers.tolist()}"[:100], "they are >= 0 and sum to 1",
                             "Divide them by their sum.")
    return numbers


@checked
def expected(weights: Array, values: Array) -> float:
    """Return the mean of `values`, one per platform, over requests that come from the platforms by `weights`."""
    return float(check_weights(weights, len(values)) @ np.asarray(values, dtype=np.float64))


def _chance(customers: int, alpha: float, theta: float, tables: int, least: float) -> float:
    """Probability of exactly `tables` tables, if above `least`."""
    chances = table_count_probabilities(customers, alpha, theta)
    chance = chances[_count("tables", tables)] if tables <= customers else 0.0
    if chance <= least:
        raise ParameterError(f"{tables} tables of {customers} customers",
                             f"at alpha = {alpha}, theta = {theta} their probability is {chance:.1g}",
                             "Ask for fewer or more tables.")
    return float(chance)


def _opening(customers: int, alpha: float, theta: float) -> np.ndarray:
    """(customers,) weight theta + alpha tables of a new table when 0, 1, ... are open; checks the domain."""
    _count("customers", customers)
    if not (math.isfinite(alpha) and math.isfinite(theta)):
        raise _out_of_domain(alpha, theta)
    opening = theta + alpha * np.arange(customers)
    if alpha < 0:
        most = round(min(theta / -alpha, 1e15))
        if most < 1 or not math.isclose(most * -alpha, theta, rel_tol=1e-9):  # -3 * -.1 is not .3, yet means it
            raise _out_of_domain(alpha, theta)
        opening[most:] = 0
    elif alpha >= 1 or theta <= -alpha:
        raise _out_of_domain(alpha, theta)
    return opening


def _out_of_domain(alpha: float, theta: float) -> SlimnbError:
    return ParameterError(f"alpha = {alpha}, theta = {theta}"[:80],
                          "0 <= alpha < 1 and theta > -alpha, or alpha < 0 and theta = -L alpha for L = 1, 2, ...",
                          "Set e.g. alpha=0.3, theta=0.15.")


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ParameterError(f"{name} = {value!r}"[:60], "it is a whole number >= 1", "Set e.g. 100.")
    return value
