"""Viterbi over a net's width choices, and the best subnets for very many budgets at once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from benchmarks.clock import Reading, interleave
from slimnb.cost.table import CostTable
from slimnb.nets.base import SlimmableNet
from slimnb.search.trellis import Trellis, best_under, exact_under, viterbi

REPEATS = 20  # searches per timing: one takes a tenth of a millisecond


def paths(name: str, net: SlimmableNet, mults: Sequence[float], count: int, goal: float,
          seconds: float) -> Reading:
    """C14: milliseconds of one Viterbi for `count` multipliers.

    Beside it, in `ms`, loops over units, choices and choices for one multiplier, which must find the same.
    """
    trellis, unary = problem(net, mults)
    multipliers = _span(unary, trellis) * np.geomspace(1, 10, count)
    assert looped(unary, trellis, multipliers[0]) == viterbi(unary, trellis, multipliers)[0].tolist()

    def search() -> None:
        for _ in range(REPEATS):
            viterbi(unary, trellis, multipliers)

    taken = interleave({"loops": lambda: looped(unary, trellis, multipliers[0]), "Viterbi": search}, seconds)
    ms = [1e3 * value / REPEATS for value in taken["Viterbi"]]
    what = f"{name}, {trellis.choices} x {trellis.choices} choices: Viterbi for {count} multiplier{'s' * (count > 1)}"
    return Reading("C14", what, median(ms), min(ms), max(ms), goal, "ms",
                   {"loops, 1 multiplier": 1e3 * median(taken["loops"]), "Viterbi": median(ms)}, len(ms))


def budgets(name: str, net: SlimmableNet, mults: Sequence[float], count: int, seconds: float,
            rounds: int) -> Reading:
    """C15: milliseconds of the exact search for `count` budgets, and what the Lagrangian one misses."""
    trellis, unary = problem(net, mults)
    within = np.linspace(trellis.cheapest, trellis.dearest, count)
    relaxed, exact = best_under(unary, trellis, within), exact_under(unary, trellis, within)
    span = exact[-1].score - exact[0].score
    missed = np.array([(best.score - one.score) / span for best, one in zip(exact, relaxed, strict=True)])
    bound = max(found.gap for found in relaxed) / span
    taken = interleave({"Lagrangian": lambda: best_under(unary, trellis, within),
                        "exact": lambda: exact_under(unary, trellis, within)}, seconds, rounds)
    ms = {search: [1e3 * value for value in times] for search, times in taken.items()}
    note = (f"C15: the Lagrangian search misses the best path of {(missed > 1e-9).sum()} of {count} budgets, by "
            f"{missed.mean():.2%} of the range of scores in the mean, {missed.max():.2%} at most (bound {bound:.2%})")
    return Reading("C15", f"{name}: exact optimum for {count} budgets at once", median(ms["exact"]),
                   min(ms["exact"]), max(ms["exact"]), None, "ms",
                   {search: median(times) for search, times in ms.items()}, len(ms["exact"]), note)


def problem(net: SlimmableNet, mults: Sequence[float]) -> tuple[Trellis, np.ndarray]:
    """Exact MACs, and made-up scores that grow ever less with the width, differently in every unit."""
    trellis = Trellis.of(CostTable.macs(net, net.space(tuple(mults))).chain())
    rng, width = np.random.default_rng(0), np.linspace(0.2, 1.5, trellis.choices)
    depth, rate = rng.uniform(0.02, 0.1, (trellis.units, 1)), rng.uniform(1, 4, (trellis.units, 1))
    return trellis, -depth * np.exp(-rate * width) + 1e-3 * rng.standard_normal((trellis.units, trellis.choices))


def _span(unary: np.ndarray, trellis: Trellis) -> float:
    """What a unit of cost is worth on the whole."""
    best = viterbi(unary, trellis, 0.0)[0]
    gained = unary[np.arange(trellis.units), best] - unary[np.arange(trellis.units), trellis.ends[0]]
    return gained.sum() / (trellis.dearest - trellis.cheapest)


def looped(unary: np.ndarray, trellis: Trellis, multiplier: float) -> list[int]:
    """Viterbi written plainly, a number at a time, from the last unit to the first."""
    costs, scores, counts = trellis.tables.tolist(), unary.tolist(), trellis.counts
    best, following = scores[-1], []
    for unit in reversed(range(trellis.units - 1)):
        values, choices = [], []
        for a in range(counts[unit]):
            ahead = [best[b] - multiplier * costs[unit][b][a] for b in range(counts[unit + 1])]
            choices.append(ahead.index(max(ahead)))
            values.append(scores[unit][a] + max(ahead))
        best = values
        following.append(choices)
    path = [best.index(max(best))]
    for choices in reversed(following):
        path.append(choices[path[-1]])
    return path
