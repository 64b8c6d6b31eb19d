"""Interleaved timing, and the reading that comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median

Variants = Mapping[str, Callable[[], object]]
"""Name of each variant and what it does; the second is compared with the first."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of the table: a ratio (or milliseconds), its spread over the rounds, and its goal."""

    gate: str  # "C1" ...
    what: str
    value: float  # median over the rounds
    low: float
    high: float
    goal: float | None  # at most this; None = for information
    unit: str = "ratio"  # "ratio" | "ms"
    ms: dict[str, float] | None = None  # median time of each variant, milliseconds
    rounds: int = 0
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.value <= self.goal

    def to_json(self) -> dict:
        """Plain dict with `met`; numbers to four digits."""
        found = asdict(self) | {"met": self.met}
        found |= {name: _rounded(found[name]) for name in ("value", "low", "high")}
        found["ms"] = {name: _rounded(value) for name, value in (self.ms or {}).items()}
        return found


def interleave(variants: Variants, seconds: float, rounds: int = 5) -> dict[str, list[float]]:
    """Processor seconds of each variant in every round: all of them in turn, in alternating order.

    At least `rounds` rounds, and more until `seconds` have passed; one warm-up of each comes first. The
    process's own processor time is read, with one thread the same as the wall clock on an idle machine, so
    that other jobs on the machine count for less. Taking turns shares out what disturbance remains.
    """
    for run in variants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    began = time.perf_counter()
    while len(taken[order[0]]) < rounds or time.perf_counter() - began < seconds:
        for name in order:
            start = time.process_time()
            variants[name]()
            taken[name].append(time.process_time() - start)
        order.reverse()
    return taken


def compare(gate: str, what: str, variants: Variants, goal: float | None, seconds: float, *, ideals: int = 1,
            rounds: int = 5, note: str = "") -> Reading:
    """The time of the variant behind the first `ideals` over that of the ideal of the least median, round by round."""
    taken = interleave(variants, seconds, rounds)
    times = list(taken.values())
    ratios = [ours / plain for plain, ours in zip(min(times[:ideals], key=median), times[ideals], strict=True)]
    ms = {name: 1e3 * median(times) for name, times in taken.items()}
    return Reading(gate, what, median(ratios), min(ratios), max(ratios), goal, "ratio", ms, len(ratios), note)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
