"""The best subnet under a cost budget, where the score is a sum over units and the cost a sum over neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slimnb.errors import SearchError
from slimnb.rules import Array, Positive, checked

ROUNDING = 1e-12  # of a score or a cost: smaller differences are noise of the sums


@dataclass(frozen=True, eq=False)
class Trellis:
    """The costs of a chain of channel units. A path through it takes one choice of each unit.

    Units with fewer choices than others are padded; no function of this module returns a path through padding. Costs
    are exact if they are whole numbers below 2^53.
    """

    counts: tuple[int, ...]  # choices of each unit
    tables: np.ndarray  # (units - 1, choices of the next unit, choices of this unit) costs, padded with 0

    @classmethod
    @checked
    def of(cls, chain: Sequence[Array]) -> Trellis:
        """Make the trellis of `CostTable.chain()`: costs (choices of unit i, choices of unit i + 1), in MACs or ms.

        Raises SearchError for tables that do not fit together.
        """
        pairs = [np.asarray(pair, dtype=np.float64) for pair in chain]
        if not pairs or any(pair.ndim != 2 or not pair.size for pair in pairs):
            raise SearchError(f"a chain of shapes {[p.shape for p in pairs]}"[:100],
                              "it holds one table of costs for every two neighbouring channel units",
                              "Give CostTable.chain().")
        counts = (*(len(pair) for pair in pairs), pairs[-1].shape[1])
        for unit, pair in enumerate(pairs):
            if pair.shape[1] != counts[unit + 1] or not np.isfinite(pair).all():
                raise SearchError(f"the costs {pair.shape} of channel units {unit} and {unit + 1}",
                                  f"they are finite, and unit {unit + 1} has {counts[unit + 1]} choices",
                                  "Give CostTable.chain().")
        tables = np.zeros((len(pairs), max(counts), max(counts)))
        for table, pair in zip(tables, pairs, strict=True):
            table[: pair.shape[1], : len(pair)] = pair.T
        return cls(counts, tables)

    @property
    def units(self) -> int:
        """The number of channel units."""
        return len(self.counts)

    @property
    def choices(self) -> int:
        """The largest number of choices that a unit has, which is the length of a row of unary scores."""
        return max(self.counts)

    @cached_property
    def exists(self) -> np.ndarray:
        """(units, choices) booleans: whether a choice exists or is padding."""
        return np.arange(self.choices) < np.array(self.counts)[:, None]

    @cached_property
    def ends(self) -> np.ndarray:
        """(2, units) choices of a cheapest and of a dearest path."""
        return _walk(np.where(self.exists, 0.0, -np.inf), self, np.array([1.0, -1.0]))

    @property
    def cheapest(self) -> float:
        """The least cost of any path. Viterbi finds it, since a wider choice need not cost more."""
        return float(self.cost(self.ends[0]))

    @property
    def dearest(self) -> float:
        """The greatest cost of any path."""
        return float(self.cost(self.ends[1]))

    def cost(self, index: np.ndarray) -> np.ndarray:
        """Return the costs (...) of choices (..., units), summed from first unit to last. Raises SearchError."""
        index = np.asarray(index)
        if index.shape[-1:] != (self.units,) or (index < 0).any() or (index >= self.counts).any():
            raise SearchError(f"choices {index.tolist()}"[:100],
                              f"the channel units have {', '.join(map(str, self.counts))}",
                              "Give the index of a choice for every unit.")
        paid = self.tables[np.arange(self.units - 1), index[..., 1:], index[..., :-1]]
        return paid.cumsum(-1)[..., -1]  # not sum(): its order depends on the shape

    def scores(self, unary: np.ndarray) -> np.ndarray:
        """Return `unary` as (units, choices) float64 with -inf for padding.

        Raises SearchError for other shapes, and unless all but the padding is finite.
        """
        unary = np.asarray(unary, dtype=np.float64)
        if unary.shape != self.exists.shape:
            raise SearchError(f"unary scores {unary.shape}",
                              f"they are {self.exists.shape}: channel units, choices",
                              "Pad the rows of units with fewer choices.")
        if not np.isfinite(unary[self.exists]).all():
            unit, choice = np.argwhere(self.exists & ~np.isfinite(unary))[0]
            raise SearchError(f"unary score {unary[unit, choice]} of channel unit {unit}, choice {choice}",
                              "the score of a choice is a finite number",
                              "Sample for longer, so that every choice is seen.")
        return np.where(self.exists, unary, -np.inf)


@checked
def viterbi(unary: Array, trellis: Trellis, multipliers: Array) -> np.ndarray:
    """Return the path of greatest score - multiplier * cost for each of (M,) multipliers: (M, units) choices.

    `unary` is (units, choices) scores, which add up along a path. With minus the losses of Multi-platform's eq. 2, this
    is the inner minimum of its eq. 4. Of equally good paths it is the first in lexicographic order. Raises SearchError
    for scores that are not finite, and for multipliers that are negative or not finite.
    """
    return _walk(trellis.scores(unary), trellis, _checked(multipliers))


def _checked(multipliers) -> np.ndarray:
    multipliers = np.asarray(multipliers, dtype=np.float64)
    if multipliers.ndim > 1 or not (np.isfinite(multipliers) & (multipliers >= 0)).all():
        raise SearchError(f"multipliers {multipliers.tolist()}"[:100], "each is a finite number >= 0",
                          "Use best_under to find the multiplier of a budget.")
    return np.atleast_1d(multipliers)


def _to_go(scores: np.ndarray, trellis: Trellis, multipliers: np.ndarray) -> list[np.ndarray]:
    """For each unit, (choices, M) the best score - multiplier * cost of that choice and all after it."""
    value = np.repeat(scores[-1][:, None], len(multipliers), axis=1)
    values = [value]
    for table, score in zip(trellis.tables[::-1], scores[-2::-1, :, None], strict=True):
        paid = table[..., None] * multipliers
        value = np.maximum.reduce(np.subtract(value[:, None], paid, out=paid)) + score
        values.append(value)
    return values[::-1]


def _walk(scores: np.ndarray, trellis: Trellis, multipliers: np.ndarray) -> np.ndarray:
    first, *others = _to_go(scores, trellis, multipliers)
    index = np.empty((trellis.units, len(multipliers)), dtype=np.int64)
    at = index[0] = first.argmax(0)
    for unit, (table, value) in enumerate(zip(trellis.tables, others, strict=True), 1):
        at = index[unit] = (value - table.take(at, axis=1) * multipliers).argmax(0)
    return index.T


@dataclass(frozen=True, eq=False)
class BestPath:
    """A path under a budget, with a bound on the score of any other."""

    index: np.ndarray  # (units,) choices
    score: float
    cost: float  # <= budget
    budget: float
    multiplier: float | None  # of the least bound, which a dearer path attains too; 0: no path held back; None: exact
    bound: float  # no path under the budget scores more

    @property
    def gap(self) -> float:
        """The certificate: bound - score >= 0. If it is 0, no path under the budget is better."""
        return self.bound - self.score


@checked
def best_under(unary: Array, trellis: Trellis, budget: Array) -> BestPath | list[BestPath]:
    """Return the best path under `budget` that a Lagrange multiplier leads to; for an array of budgets return a list.

    For every budget two paths are kept: one that fits and one that does not. Viterbi runs at the multiplier that values
    both alike, and its path replaces one of them. This ends when the new path is no better than both: then no
    multiplier gives a smaller bound, and both paths attain it (Handler and Zang, 1980). It takes a few rounds, with all
    budgets in one Viterbi, where the bisection of AOWS only comes near.

    Paths that no multiplier leads to are missed. `gap` says how much that can cost at most, and `exact_under` finds
    them. If a budget holds no path back, the multiplier is 0 and the path is the best of all; it is the largest subnet
    only where wider units score more. Raises SearchError for a budget below `trellis.cheapest`.
    """
    scores = trellis.scores(unary)
    budgets = _affordable(trellis, np.asarray(budget, dtype=np.float64).ravel())
    free = _walk(scores, trellis, np.zeros(1))[0]
    path = np.repeat([[trellis.ends[0]], [free]], len(budgets), axis=1)  # row 0 fits, row 1 may not
    cost, score = trellis.cost(path), _score(scores, path)
    row = (cost[1] <= budgets).astype(int)  # the row that holds the answer
    bound, multiplier = score[1].copy(), np.zeros(len(budgets))
    held = np.flatnonzero(row == 0)
    while len(held):
        worth = np.maximum(0, (score[1, held] - score[0, held]) / (cost[1, held] - cost[0, held]))
        distinct, which = np.unique(worth, return_inverse=True)
        new = _walk(scores, trellis, distinct)[which]
        new_cost, new_score = trellis.cost(new), _score(scores, new)
        value = new_score - worth * (new_cost - budgets[held])
        bound[held], multiplier[held] = np.minimum(bound[held], value), worth
        rises = value - (score[0, held] - worth * (cost[0, held] - budgets[held])) > _noise(scores, trellis, worth)
        over = new_cost > budgets[held]
        taken = np.flatnonzero(rises | (~over & (new_score > score[0, held])))
        place = over[taken].astype(int), held[taken]
        path[place], cost[place], score[place] = new[taken], new_cost[taken], new_score[taken]
        held = held[rises]
    answer = row, np.arange(len(budgets))
    bound = np.maximum(bound, score[answer])  # what rounding took from it
    numbers = np.stack([score[answer], cost[answer], budgets, multiplier, bound], 1).tolist()
    paths = [BestPath(index, *of_it) for index, of_it in zip(path[answer], numbers, strict=True)]
    return paths if np.ndim(budget) else paths[0]


def _affordable(trellis: Trellis, budgets: np.ndarray) -> np.ndarray:
    refused = budgets[~(budgets >= trellis.cheapest)]
    if len(refused):
        raise SearchError(f"budget {refused[0]}", f"the cheapest subnet costs {trellis.cheapest}",
                          f"Set it to at least {trellis.cheapest}.")
    return budgets


def _score(scores: np.ndarray, index: np.ndarray) -> np.ndarray:
    return scores[np.arange(len(scores)), index].sum(-1)


def _noise(scores: np.ndarray, trellis: Trellis, multipliers: np.ndarray) -> np.ndarray:
    """What rounding may do to score - multiplier * cost."""
    largest = np.abs(scores, where=trellis.exists, out=np.zeros_like(scores)).max(1).sum()
    return ROUNDING * (largest + multipliers * np.abs(trellis.tables).max((1, 2)).sum())


@dataclass
class _Front:
    """The beginnings of paths, up to one unit, that can still become the best under some budget."""

    choice: np.ndarray  # (N,) of that unit
    cost: np.ndarray
    score: np.ndarray  # without that unit's own
    parent: np.ndarray  # position in the front of the unit before

    def __getitem__(self, keep: np.ndarray) -> _Front:
        return _Front(self.choice[keep], self.cost[keep], self.score[keep], self.parent[keep])


@checked
def exact_under(unary: Array, trellis: Trellis, budgets: Array) -> list[BestPath]:
    """Return the best path under each of many budgets, by one dynamic programme that rounds nothing.

    Beginnings of paths grow from unit to unit. One is dropped if another that ends in the same choice costs no more and
    scores no less. It is also dropped if even its best continuation, at the multiplier of `best_under`, falls short of
    the paths of `best_under` for every budget. So costs need not be cut into levels, and may be MACs or milliseconds.
    `bound` is the score itself. Raises as `best_under` does.
    """
    scores = trellis.scores(unary)
    relaxed = best_under(scores, trellis, np.atleast_1d(budgets))
    if not relaxed:
        return []
    within, known, multiplier = np.array([(f.budget, f.score, f.multiplier) for f in relaxed]).T
    worth, which = np.unique(multiplier, return_inverse=True)
    least = np.full(len(worth), np.inf)  # score - multiplier * cost that a path must have to matter
    np.minimum.at(least, which, known - multiplier * np.minimum(within, trellis.dearest))
    fronts = _fronts(scores, trellis, worth, least - _noise(scores, trellis, worth))
    at = np.searchsorted(fronts[-1].cost, within, side="right") - 1
    path = np.empty((trellis.units, len(relaxed)), dtype=np.int64)
    for front, unit in zip(fronts[:0:-1], range(trellis.units)[::-1], strict=True):
        at = front.parent[at]
        path[unit] = fronts[unit].choice[at]
    numbers = np.stack([_score(scores, path.T), trellis.cost(path.T), within], 1).tolist()
    return [BestPath(index, *of_it, None, of_it[0]) for index, of_it in zip(path.T, numbers, strict=True)]


def _fronts(scores: np.ndarray, trellis: Trellis, worth: np.ndarray, least: np.ndarray) -> list[_Front]:
    """The front of each unit, and one of whole paths: ascending in cost and score."""
    choice, zeros = np.arange(trellis.counts[0]), np.zeros(trellis.counts[0])
    front, fronts = _Front(choice, zeros, zeros, choice), []
    for unit, to_go in enumerate(_to_go(scores, trellis, worth)):
        if unit:
            table = trellis.tables[unit - 1, : trellis.counts[unit]]
            front = _undominated(_extended(front, scores[unit - 1], table))
        reach = to_go[front.choice]  # (beginnings, multipliers)
        reach += front.score[:, None]
        reach -= front.cost[:, None] * worth
        front = front[(reach >= least).any(1)]
        fronts.append(front)
    return [*fronts, _undominated(_extended(front, scores[-1], np.zeros((1, trellis.choices))))]


def _extended(front: _Front, scores: np.ndarray, table: np.ndarray) -> _Front:
    """Every beginning followed by every choice of the next unit."""
    cost = front.cost + table[:, front.choice]
    score = np.broadcast_to(front.score + scores[front.choice], cost.shape)
    choice, parent = np.indices(cost.shape)
    return _Front(choice.ravel(), cost.ravel(), score.ravel(), parent.ravel())


def _undominated(front: _Front) -> _Front:
    front = front[np.lexsort((-front.score, front.cost, front.choice))]
    _, rank = np.unique(front.score, return_inverse=True)
    best = np.maximum.accumulate(rank + front.choice * len(rank))  # of each choice on its own
    return front[np.append(True, best[1:] > best[:-1])]


@checked
def marginals(unary: Array, trellis: Trellis, multiplier: Array,
              temperature: Positive) -> np.ndarray:
    """Return the probability of each choice, (units, choices), for paths with p ~ exp((score - multiplier * cost) / T).

    For (M,) multipliers it is (M, units, choices). This is the smoothed Viterbi of AOWS: eq. 5 of Multi-platform, with
    the outer T that it lacks. The messages T log sum exp(. / T) are kept as a maximum and the weight of all paths
    beside the best, so nothing under- or overflows at any T > 0. Towards T = 0 it becomes Viterbi, whose equally good
    paths share the probability; with growing T all paths become equally likely. Raises SearchError for a temperature
    that is not positive and as `viterbi` does.
    """
    scores, multipliers = trellis.scores(unary), _checked(multiplier)
    value = np.repeat(scores[-1][:, None], len(multipliers), axis=1)
    weight, steps = np.ones_like(value), []
    for table, score in zip(trellis.tables[::-1], scores[-2::-1, :, None], strict=True):
        ahead = value[:, None] - table[..., None] * multipliers
        value, weight, step = _soft_max(ahead, weight[:, None], temperature)
        value += score
        steps.append(step)  # the probability of a choice given the one before it
    *_, probability = _soft_max(value, weight, temperature)
    probabilities = [probability]
    for step in reversed(steps):
        probability = (step * probability).sum(1)
        probabilities.append(probability)
    out = np.stack(probabilities).transpose(2, 0, 1)
    return out if np.ndim(multiplier) else out[0]


def _soft_max(value: np.ndarray, weight: np.ndarray, temperature: float) -> tuple[np.ndarray, ...]:
    """Over the first axis: the maximum, the weight of all in terms of it, and the share of each in that."""
    most = value.max(0)
    with np.errstate(over="ignore"):  # -1 / 1e-310 is -inf, as it should be
        share = np.exp((value - most) / temperature) * weight
    total = share.sum(0)
    share /= total
    return most, total, share
