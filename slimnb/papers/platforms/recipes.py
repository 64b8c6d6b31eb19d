"""Chapter 03: one search for the widths of seven platforms, then one network retrained for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from slimnb.cost.latency_model import time_random
from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.nets.base import SlimmableNet
from slimnb.papers.platforms.market import WEIGHTS
from slimnb.papers.platforms.method import PlatformSandwich, SmoothedViterbi, WidthSearch, platform_subnets
from slimnb.papers.slimmable.method import InplaceDistillation, Switches
from slimnb.papers.slimmable.recipes import SMALL, SMOKE
from slimnb.rng import rng_at
from slimnb.rules import Amount, Count, Whole
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.search.random_paths import random_under
from slimnb.search.trellis import Trellis
from slimnb.subnet import SearchSpace, Subnet
from slimnb.train.experiment import Context, Result, once
from slimnb.train.protocols import Labels, Objective, Outcome, Pass, Sampler
from slimnb.train.recipe import Recipe, check_scale, unknown_method

CHAPTER = "03_platforms"
METHODS = ("ows", "aows", "platforms", "alone")
MULTS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # section 4.1: the platforms' targets
PLATFORMS = tuple(f"#{k + 1}" for k in range(len(MULTS)))
SEARCH_MULTS = tuple(round(0.2 + 0.1 * i, 1) for i in range(14))  # section 4.1: [.2, 1.5], up to 14 choices
MARKETS = {"smoke": ("RS",), "small": ("S", "RS", "U"), "full": tuple(WEIGHTS)}
"""Rows of Table 1 for which AOWS searches and Slim is retrained; OWS is retrained for all rows but at smoke."""


@dataclass(frozen=True)
class PlatformRecipe(Recipe):
    """Trains a search (method "ows" or "aows"), a retraining ("platforms") or a stand-alone net ("alone")."""

    source: str = ""  # where the platforms' widths come from: "Slim", "OWS", "AOWS" or "Random"
    searched_for: str | None = None  # row of Table 1 that AOWS's search drew platforms by
    sampled_for: str | None = None  # row of Table 1 that the retraining draws platforms by
    weights: tuple[Amount, ...] | None = None  # that row
    budgets: tuple[Whole, ...] | None = None  # MACs of the seven platforms, for AOWS
    window: Count | None = None  # losses that a moving mean of the search holds
    refresh: Count | None = None  # steps between two runs of smoothed Viterbi
    distil: bool | None = None  # retraining: all but the largest learn from it instead of the labels

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return what trains each method, see the class."""
        if self.method == "alone":
            return Switches(self.named(net)), Labels(self.smoothing)
        return self._sampler(net, steps), InplaceDistillation(self.temperature, smoothing=self.smoothing)

    def _sampler(self, net: SlimmableNet, steps: int) -> Sampler:
        if self.method == "platforms":
            return PlatformSandwich(self.named(net), self.weights, dropout=self.dropout, seed=self.seed,
                                    target="teacher" if self.distil else "labels")
        if self.method not in METHODS:
            raise unknown_method(self, METHODS)
        space = net.space(self.train_mults)
        if self.method == "ows":
            return WidthSearch(net, space, self.batch_size, seed=self.seed, window=self.window)
        trellis = Trellis.of(CostTable.macs(net, space).chain())
        return SmoothedViterbi(net, space, self.batch_size, trellis, self.budgets, self.weights, steps,
                               seed=self.seed, window=self.window, refresh=self.refresh)

    def findings(self, net: SlimmableNet, sampler: Sampler) -> dict:
        """Return `unary` of a search: window means (units, choices) in nats, None for a missing choice."""
        if not isinstance(sampler, WidthSearch):
            return {}
        return {"unary": [[None if value == -np.inf else float(value) for value in row] for row in sampler.unary()]}


# Section 4.1 and, where it is silent, what chapter 01 does: crop and flip, private batch norm per platform.
FULL = replace(SMOKE, epochs=300, batch_size=128, lr=0.1, schedule="exponential", gamma=0.985, weight_decay=5e-4,
               augment="crop_flip", calibration_images=5 * 1024, layout=None, dropout=0.6, dtype="bfloat16")
RETRAINING = {"smoke": replace(SMOKE, epochs=1, batch_size=128), "small": replace(SMALL, epochs=4), "full": FULL}
SEARCH_EPOCHS = {"smoke": 1, "small": 5, "full": 50}
WINDOWS = {"smoke": 1_000, "small": 10_000, "full": 100_000}  # of 14 choices the last six tenths; of fewer, less


def _base(scale: str, seed: int) -> PlatformRecipe:
    return RETRAINING[check_scale(scale)].into(PlatformRecipe, paper="platforms", scale=scale, seed=seed, mults=())


def _search(scale: str, seed: int) -> PlatformRecipe:
    return replace(_base(scale, seed), arm="OWS search", source="OWS", method="ows", bn="calibrated", lr=0.1,
                   schedule="constant", gamma=None, dropout=0.0, epochs=SEARCH_EPOCHS[scale], window=WINDOWS[scale],
                   mults=(min(SEARCH_MULTS), max(SEARCH_MULTS)), train_mults=SEARCH_MULTS)


@dataclass(frozen=True)
class Problem:
    """What is searched: the space, its MACs as a trellis, the uniform subnets of the platforms and their MACs."""

    space: SearchSpace
    trellis: Trellis
    uniform: list[Subnet]
    budgets: tuple[int, ...]


def problem(scale: str, num_classes: int) -> Problem:
    """Return the search problem of a scale; the budgets are the MACs of the uniform subnets at `MULTS` (Table 1)."""
    with torch.device("meta"):  # shapes are enough
        net = _search(scale, 0).build(num_classes)
    space, uniform = net.space(SEARCH_MULTS), [net.uniform(mult) for mult in MULTS]
    trellis = Trellis.of(CostTable.macs(net, space).chain())
    return Problem(space, trellis, uniform, tuple(count_macs(net, subnet) for subnet in uniform))


def searches(context: Context) -> list[Recipe]:
    """Return one OWS search, which serves all markets, and an AOWS search for each of `MARKETS`."""
    scale, seed, data = context.scale, context.seed, context.data
    ows, budgets = _search(scale, seed), problem(scale, data.num_classes).budgets
    return [ows] + [replace(ows, arm=f"{market}-AOWS search", source="AOWS", method="aows", searched_for=market,
                            weights=WEIGHTS[market], budgets=budgets, refresh=5 if scale == "smoke" else 20)
                    for market in MARKETS[scale]]


def unary_of(result: Result) -> np.ndarray:
    """Return the window means (units, choices) of a finished search, with -inf for a missing choice."""
    return np.array([[-np.inf if value is None else value for value in row] for row in result.findings["unary"]])


def latency(net: SlimmableNet, num_classes: int, scale: str, store: RunStore, subnets: int, rounds: int,
            device: str = "cpu") -> dict:
    """`time_random` of so many subnets of a scale's search space, run by `net`, taken once."""
    settings = {"paper": "platforms", "arm": "latency model", "scale": scale, "device": torch.device(device).type,
                "classes": num_classes, "subnets": subnets, "rounds": rounds}
    space = problem(scale, num_classes).space
    return once(store, settings, code_fingerprint([time_random, type(net)]),
                lambda: time_random(net.to(device), space, subnets, rounds=rounds))


def search_sums(sampler: WidthSearch, scores: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """Return the scores (units, choices) that a search finds, without a net, if losses are what eq. 2 says plus noise.

    Every image loses minus the sum of the planted `scores` (units, choices) of its widths, nats, plus a normal number.
    """
    rng, units = rng_at(seed, "sums", 0), np.arange(len(scores))
    for step in range(steps):
        index = sampler.draw(step)
        loss = torch.from_numpy(rng.normal(size=len(index)) - scores[units, index].sum(1))
        a_pass = Pass(None, tag=torch.from_numpy(index))
        sampler.observe(step, [Outcome(a_pass, None, torch.zeros_like(loss)), Outcome(a_pass, None, loss)])
    return sampler.unary()


def retrainings(context: Context) -> list[Recipe]:
    """Return retrained nets and stand-alone nets (Table 3).

    Platforms are drawn uniformly (-U) or by a market's weights. Nets have the paper's names: Slim-U, OWS-RS, RS-AOWS-U
    (searched for RS, sampled for U); Random-U has random widths within the same budgets. Sources whose search is not
    among `results` are left out.
    """
    scale, seed = context.scale, context.seed
    settings = problem(scale, context.data.num_classes)
    chosen = MARKETS[scale]
    every = ("U", *chosen) if scale == "smoke" else tuple(WEIGHTS)
    rng = rng_at(seed, "random widths", 0)
    random = [random_under(settings.space, settings.trellis, budget, rng)[0] for budget in settings.budgets]
    recipes = [_retraining(scale, seed, "Random", random, "U")]
    recipes += [_retraining(scale, seed, "Slim", settings.uniform, market) for market in dict.fromkeys(("U", *chosen))]
    recipes += _alone(scale, seed, "Slim", settings.uniform)
    for result in context.results:
        source, market = result.recipe.source, result.recipe.searched_for
        subnets, _ = platform_subnets(unary_of(result), settings.space, settings.trellis, settings.budgets)
        sampled = every if source == "OWS" else dict.fromkeys(("U", market))
        recipes += [_retraining(scale, seed, source, subnets, sampling, market) for sampling in sampled]
        if source == "OWS":
            recipes += _alone(scale, seed, source, subnets)
    return recipes


def _retraining(scale: str, seed: int, source: str, subnets: Sequence[Subnet], market: str,
                searched_for: str | None = None) -> PlatformRecipe:
    weights = None if market == "U" else WEIGHTS[market]
    prefix = f"{searched_for}-" if searched_for else ""
    named = tuple((name, subnet.widths) for name, subnet in zip(PLATFORMS, subnets, strict=True))
    # Tracked statistics of a platform that is drawn in one step of a hundred are those of long-gone weights.
    return replace(_base(scale, seed), arm=f"{prefix}{source}-{market}", source=source, method="platforms",
                   calibrate=True, searched_for=searched_for, sampled_for=market, weights=weights, subnets=named)


def _alone(scale: str, seed: int, source: str, subnets: Sequence[Subnet]) -> list[Recipe]:
    """A net of its own for each platform, without dropout: the paper names none."""
    base = replace(_base(scale, seed), arm=f"{source} alone", source=source, method="alone", dropout=0.0)
    return [replace(base, subnets=((name, subnet.widths),)) for name, subnet in zip(PLATFORMS, subnets, strict=True)]


STAGES = (searches, retrainings)
