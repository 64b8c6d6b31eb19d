"""Subnets for a cost target: evolutionary search over elastic structures, and random search of as many evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from slimnb.cost.elastic import ElasticTable, kept_blocks, sample_structures, subnets_at
from slimnb.errors import ParameterError, SearchError
from slimnb.rng import rng_at
from slimnb.rules import Amount, Count, Portion, Seed, checked
from slimnb.subnet import SearchSpace, Subnet

Score = Callable[[Sequence[Subnet]], Sequence[float]]
"""A number for each of a batch of canonical subnets; the larger the better."""

EXHAUSTIVE = 200_000
"""Spaces up to this size are listed rather than sampled."""


@dataclass(frozen=True)
class SearchResult:
    """The best subnet of a search, and every subnet that the search evaluated, in order."""

    subnet: Subnet
    score: float
    cost: float
    rows: list[dict]  # evaluation (from 1), generation, subnet (JSON), cost, score, best (score up to here)


@checked
def all_structures(space: SearchSpace) -> np.ndarray:
    """Return one structure of every subnet of `space`: (space.size, stages + blocks).

    Raises SearchError for more than `EXHAUSTIVE` of them.
    """
    if space.size > EXHAUSTIVE:
        raise SearchError(f"a space of {space.size:.3g} subnets", f"up to {EXHAUSTIVE:,} are listed",
                          "Search it with evolve.")
    stages, first = [], 0
    pairs = [len(space.widths[units[0]]) * len(sides)
             for units, sides in zip(space.block_units, space.kernels, strict=True)]
    for choices in space.depths:
        blocks = range(first, first + choices[-1])
        first += choices[-1]
        stages.append([(at, *picked, *(0,) * (choices[-1] - depth)) for at, depth in enumerate(choices)
                       for picked in product(*(range(pairs[b]) for b in blocks[:depth]))])
    rows = [np.array(stage) for stage in stages]
    index = np.indices([len(stage) for stage in rows]).reshape(len(rows), -1)
    chosen = [stage[at] for stage, at in zip(rows, index, strict=True)]
    return np.concatenate([np.stack([part[:, 0] for part in chosen], 1), *(part[:, 1:] for part in chosen)], 1)


@checked
def random_search(table: ElasticTable, target: float, score: Score, evaluations: Count = 500, *, least: Amount = 0.0,
                  seed: Seed = 0, batch: Count = 50) -> SearchResult:
    """Return the best of `evaluations` different subnets that cost `least` to `target`, drawn as `space.sample` draws.

    Raises as `evolve` does.
    """
    return _Search(table, target, least, score, seed).run(evaluations, batch, evolving=False)


@checked
def evolve(table: ElasticTable, target: float, score: Score, evaluations: Count = 500, *, least: Amount = 0.0,
           seed: Seed = 0, population: Count = 50, parents: Portion = 0.25, mutate: Portion = 0.1) -> SearchResult:
    """Search by evolution for the best structure that costs `least` to `target` (as OFA deploys).

    The first generation is that of `random_search` with the same seed. The best `parents` share of all seen breeds the
    next: half are mutants, every choice drawn anew with probability `mutate`, half take every choice from one of two
    parents. Nothing that breaks the constraint is scored, nothing is scored twice; the search ends early where no new
    structure is found. Raises SearchError for a target outside `cost_range`, ParameterError for numbers out of range.
    """
    if population < 2:
        raise ParameterError(f"population = {population}", "it is 2 or more", "Set population=50.")
    search = _Search(table, target, least, score, seed, max(2, round(parents * population)), mutate)
    return search.run(evaluations, population, evolving=True)


class _Search:
    """Structures asked for so far, all canonical, feasible and different."""

    TRIES = 50  # batches of candidates without a new one until the search ends

    def __init__(self, table, target, least, score, seed, parents=2, mutate=0.1):
        self.table, self.target, self.least, self.score = table, target, least, score
        self.space, self.seed, self.parents, self.mutate = table.space, seed, parents, mutate
        self.columns = len(table.space.depths) + len(table.space.kernels)
        cheapest, dearest = cost_range(table)
        if not max(least, cheapest) <= min(target, dearest):
            raise SearchError(f"target {target:,.4g} {table.unit}, at least {least:,.4g}",
                              f"subnets cost {cheapest:,.4g} to {dearest:,.4g} {table.unit}",
                              "Choose a target in between.")
        self.drawn_rows: set[bytes] = set()
        self.structures = np.empty((0, self.columns), dtype=np.int64)
        self.scores, self.rows = np.empty(0), []

    def run(self, evaluations: int, batch: int, evolving: bool) -> SearchResult:
        """Ask for batch after batch; the best of all."""
        generation = 0
        while len(self.scores) < evaluations:
            rng = rng_at(self.seed, "evolution", generation)
            draw = self._children if evolving and generation else self._random
            fresh = self._fresh(partial(draw, rng), min(batch, evaluations - len(self.scores)))
            if not len(fresh):
                break
            self._ask(fresh, generation)
            generation += 1
        if not len(self.scores):
            raise SearchError(f"target {self.least:,.4g} to {self.target:,.4g} {self.table.unit}",
                              f"no subnet was met there in {self.TRIES * 20 * batch:,} draws", "Widen it.")
        best = self.rows[int(self.scores.argmax())]
        return SearchResult(Subnet.from_json(best["subnet"]), best["score"], best["cost"], self.rows)

    def _ask(self, fresh: np.ndarray, generation: int) -> None:
        subnets, costs = subnets_at(self.space, fresh), self.table.predict(fresh).tolist()
        scores = np.asarray(self.score(subnets), dtype=float)
        self.structures = np.concatenate([self.structures, fresh])
        self.scores = np.concatenate([self.scores, scores])
        best = np.maximum.accumulate(self.scores)[-len(scores):]
        for subnet, cost, score, most in zip(subnets, costs, scores.tolist(), best.tolist(), strict=True):
            self.rows.append({"evaluation": len(self.rows) + 1, "generation": generation,
                              "subnet": subnet.to_json(), "cost": cost, "score": score, "best": most})

    def _fresh(self, draw: Callable[[int], np.ndarray], n: int) -> np.ndarray:
        """Up to n structures of `draw` that are feasible and were not seen."""
        kept: list[np.ndarray] = []
        for _ in range(self.TRIES):
            candidates = canonical(self.space, draw(20 * n))
            costs = self.table.predict(candidates)
            for row in candidates[(costs >= self.least) & (costs <= self.target)]:
                if row.tobytes() not in self.drawn_rows and len(kept) < n:
                    self.drawn_rows.add(row.tobytes())
                    kept.append(row)
            if len(kept) == n:
                break
        return np.array(kept).reshape(-1, self.columns)

    def _random(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return sample_structures(self.space, rng, n)

    def _children(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n structures, the first half mutants of the best, the other half crossed."""
        best = self.structures[np.argsort(-self.scores, kind="stable")[: self.parents]]
        one, two = best[rng.integers(len(best), size=(2, n))]
        anew = sample_structures(self.space, rng, n)
        mutants = np.where(rng.random(one.shape) < self.mutate, anew, one)
        crossed = np.where(rng.random(one.shape) < 0.5, one, two)
        return np.where((np.arange(n) % 2 == 0)[:, None], mutants, crossed)


def canonical(space: SearchSpace, structures: np.ndarray) -> np.ndarray:
    """Return the structures with choice 0 in every dropped block, so that one network has one row."""
    stages = len(space.depths)
    return np.concatenate([structures[:, :stages], structures[:, stages:] * kept_blocks(space, structures)], 1)


@checked
def cost_range(table: ElasticTable) -> tuple[float, float]:
    """Return the exact costs of the cheapest and of the dearest subnet: stages add up, and so do the blocks of one."""
    ends, first = [table.constant, table.constant], 0
    for choices in table.space.depths:
        blocks = table.terms[first: first + choices[-1]]
        first += choices[-1]
        for end, pick in enumerate((np.min, np.max)):
            ends[end] += pick(np.append(0, pick(blocks, axis=1).cumsum())[list(choices)])
    return float(ends[0]), float(ends[1])
