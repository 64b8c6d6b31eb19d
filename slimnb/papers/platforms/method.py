"""One slimmable net for several platforms: OWS and AOWS searches, and retraining of their subnets (Wang et al.)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from slimnb.errors import ParameterError, SearchError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.platforms.market import check_weights
from slimnb.papers.platforms.windows import Windows
from slimnb.papers.slimmable.method import Stateless
from slimnb.rng import rng_at
from slimnb.rules import Array, Below1, Count, Seed, checked
from slimnb.search.random_paths import cumulative, inverse_cdf
from slimnb.search.trellis import BestPath, Trellis, best_under, marginals
from slimnb.subnet import SearchSpace, Subnet
from slimnb.train.protocols import Outcome, Pass

WINDOW = 100_000
"""Losses kept of every (channel unit, choice), as in AOWS."""

TEMPERATURES = ((0.0, 1.0), (0.2, 1.0), (0.24, 0.01), (0.5, 0.001), (1.0, 5e-4))
"""(fraction of the run, T) between which log T is linear: AOWS's breakpoints, at fractions instead of its epochs,
one of which collides with the 10 epochs of warm-up here. The second one ends the warm-up."""


# -- search ----------------------------------------------------------------------------------------------


class WidthSearch:
    """OWS's sampler: the largest subnet learns from the labels, the smallest and random widths from the largest.

    Widths are drawn anew for every image and unit. What they add to the loss of the largest, per unit, enters the
    windows (AOWS, section 3; methods of Wang et al., section 4.1, k = 1). One search serves all platforms. Make it when
    the net is on its device. `batch_size` is this process's; a shorter batch uses the first of its widths. Raises
    ParameterError for a window shorter than a batch, for several processes and for tied units.
    """

    stream = "ows"

    @checked
    def __init__(self, net: SlimmableNet, space: SearchSpace, batch_size: Count, *, seed: Seed = 0,
                 window: Count = WINDOW):
        _check_search(net, space, batch_size, window)
        self.net, self.space, self.batch_size, self.seed = net, space, batch_size, seed
        self.counts = np.array([len(choices) for choices in space.widths])
        self.device = next(net.parameters()).device
        units, most = len(self.counts), max(self.counts)
        padded = [[*choices, *[0] * (most - len(choices))] for choices in space.widths]
        self.widths = torch.tensor(padded, device=self.device)
        self.units = torch.arange(units, device=self.device)
        self.windows = Windows(units, most, window, self.device)
        self.ends = [Pass(space.largest, name="largest"), Pass(space.smallest, target="teacher", name="smallest")]

    def subnets(self) -> list[Subnet]:
        """Return the two ends of the space."""
        return [a_pass.route for a_pass in self.ends]

    def draw(self, step: int) -> np.ndarray:
        """Draw indices of choices, (batch_size, units), each uniformly."""
        rng = rng_at(self.seed, self.stream, step)
        return rng.integers(self.counts, size=(self.batch_size, len(self.counts)))

    def plan(self, step: int) -> list[Pass]:
        """Return largest, smallest and random widths.

        The tag of the last holds their indices (B, units), on the device.
        """
        index = torch.from_numpy(self.draw(step))
        if self.device.type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)  # from ordinary memory it would wait
        route = self.net.masks(self.widths[self.units, index])
        return [*self.ends, Pass(route, target="teacher", name="random", tag=index)]

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Enter -(ce of the random widths - ce of the largest) / units of every image into its windows."""
        largest, random = outcomes[0], outcomes[-1]
        gain = (largest.ce - random.ce) / len(self.units)
        self.windows.add(random.a_pass.tag[: len(gain)], gain)

    def unary(self) -> np.ndarray:
        """Return the window means (units, choices), in nats, which Viterbi adds up; -inf stands for a missing choice.

        Under uniform draws (OWS) they differ within a unit by 1 / units of what the choices add to the loss. A path's
        sum ranks subnets, but is not their loss. Under AOWS's draws they also carry the cost of the other widths of the
        drawn platform (`SmoothedViterbi`). Raises SearchError if a choice was never drawn.
        """
        means, counts = self.windows.means()
        valid = np.arange(counts.shape[1]) < self.counts[:, None]
        for unit, choice in np.argwhere(valid & (counts == 0))[:1]:
            raise SearchError(f"width {self.space.widths[unit][choice]} of unit {self.net.unit_names[unit]!r}",
                              "no image has run it yet, so nothing is known of its loss",
                              "Search for more steps, or over fewer choices.")
        return np.where(valid, means, -np.inf)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the windows."""
        return self.windows.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the windows."""
        self.windows.load_state_dict(state)


class SmoothedViterbi(WidthSearch):
    """AOWS's sampler for several platforms: after a warm-up it draws the widths that each step's platform will use.

    In every step it draws a platform k with its weight (nu = mu in eq. 4, so that both cancel). Every unit's widths
    come from the marginals of smoothed Viterbi (eq. 5, with the outer -T that it lacks), at the multiplier that meets
    the budget of k and at T(step / steps). Until the second breakpoint of `temperatures` widths are uniform. The
    multipliers and marginals of all platforms are computed anew every `refresh` steps. That is our choice: the search
    then costs a step little, and waits for the device only then. T is in nats per unit, as the windows are. Choices of
    OWS's scores differ by some 1e-3, so at T = .01 widths would still be nearly uniform.

    As published, the windows confuse widths with platforms. All images of a step have the widths of one platform, so
    narrow choices are mostly drawn with the other narrow ones of #1, and their means carry the loss of all of these.
    The scores then spread far more than under OWS's uniform draws, even if losses are exact sums over units.

    Raises as `WidthSearch` does; SearchError for a trellis of another space and for a budget below the cheapest subnet;
    ParameterError for weights that are not one share per platform; while it trains, SearchError for a choice that was
    never drawn.
    """

    stream = "aows"

    @checked
    def __init__(self, net: SlimmableNet, space: SearchSpace, batch_size: Count, trellis: Trellis,
                 budgets: Array, weights: Array, steps: Count, *, seed: Seed = 0,
                 window: Count = WINDOW, refresh: Count = 20,
                 temperatures: Array = TEMPERATURES):
        super().__init__(net, space, batch_size, seed=seed, window=window)
        at, values = np.asarray(temperatures, dtype=np.float64).reshape(-1, 2).T
        if len(at) < 2 or at[0] != 0 or at[-1] != 1 or (np.diff(at) <= 0).any() or not (values > 0).all():
            raise ParameterError(f"temperatures = {tuple(temperatures)}"[:100],
                                 "pairs (share of the steps, T > 0), shares from 0 to 1 and ascending",
                                 "Set e.g. ((0, 1), (0.5, 0.01), (1, 0.001)).")
        if trellis.counts != tuple(self.counts):
            raise SearchError(f"a trellis of {trellis.counts} choices"[:90], "it is of another space",
                              "Make it with Trellis.of(CostTable.macs(net, space).chain()).")
        best_under(np.zeros(trellis.exists.shape), trellis,
                   np.asarray(budgets))  # now, not after the warm-up: SearchError
        self.trellis, self.budgets, self.weights = trellis, np.asarray(budgets), check_weights(weights, len(budgets))
        self.steps, self.refresh, self.temperatures = steps, refresh, temperatures
        self.warm_up = math.ceil(temperatures[1][0] * steps - 1e-9)
        uniform = (np.arange(max(self.counts)) < self.counts[:, None]) / self.counts[:, None]
        self.cdf = cumulative(np.repeat(uniform[None], len(budgets), 0))  # (platforms, units, choices)

    def temperature(self, step: int) -> float:
        """Return T of `step`; log T is linear between the breakpoints."""
        at, values = zip(*self.temperatures, strict=True)
        return float(10 ** np.interp(step / self.steps, at, np.log10(values)))

    def draw(self, step: int) -> np.ndarray:
        """Draw indices of choices, (batch_size, units), from the marginals of one platform."""
        rng = rng_at(self.seed, self.stream, step)
        cdf = self.cdf[rng.choice(len(self.weights), p=self.weights)]
        return inverse_cdf(cdf, rng.random((self.batch_size, len(self.counts))))

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Observe as `WidthSearch` does; every `refresh` steps after the warm-up compute the marginals anew."""
        super().observe(step, outcomes)
        after = step + 1 - self.warm_up
        if after >= 0 and after % self.refresh == 0 and step + 1 < self.steps:
            unary = self.unary()
            paths = best_under(unary, self.trellis, self.budgets)
            multipliers = np.array([path.multiplier for path in paths])
            self.cdf = cumulative(marginals(unary, self.trellis, multipliers, self.temperature(step + 1)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the windows and the marginals in use."""
        return super().state_dict() | {"cdf": torch.from_numpy(self.cdf)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore windows and marginals."""
        super().load_state_dict(state)
        self.cdf = state["cdf"].cpu().numpy().copy()


def _check_search(net: SlimmableNet, space: SearchSpace, batch_size: int, window: int) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ParameterError(f"a search on {dist.get_world_size()} ranks", "its windows are not shared by ranks",
                             "Run the search in one process; retraining may use several.")
    if space.tied:
        raise ParameterError("a space with tied units", "the search chooses every unit's width on its own",
                             "Make it with net.space(mults), without tied=.")
    if not 1 <= batch_size <= window:
        raise ParameterError(f"batch_size = {batch_size}, window = {window}", "a window holds at least one batch",
                             "Set e.g. window=100_000.")
    net.check(space.largest)


# -- subnets of the platforms ----------------------------------------------------------------------------


@checked
def platform_subnets(unary: Array, space: SearchSpace, trellis: Trellis, budgets: Array,
                     search: Callable[..., list[BestPath]] = best_under) -> tuple[list[Subnet], list[BestPath]]:
    """Return the best subnet within each budget, and the paths that prove it.

    `search` is `best_under` or `exact_under`.
    """
    paths = search(unary, trellis, np.asarray(budgets))
    return space.at(np.array([path.index for path in paths])), paths


# -- retraining ------------------------------------------------------------------------------------------


class PlatformSandwich(Stateless):
    """Retrains the platforms' subnets: in every step the last with dropout, the first, and one of those between.

    `named` holds them in order of budget. One of those between is drawn uniformly (the paper's suffix -U), or by
    `weights` (-W), one per platform, of which the middle ones count. All but the last learn from `target`: "labels", or
    "teacher" for in-place distillation, on which the paper is silent. The teacher is the last one's logits, dropout
    included.

    The subnets are not nested, so the supernet is built at their `elementwise_max`. A channel that only other subnets
    use has gradient zero in that step, and so have the private gamma and beta of a subnet that is not drawn; momentum
    and weight decay move them all the same. Use `make_optimizer(..., decay="weights")`, or rarely drawn platforms lose
    their gamma. Raises ParameterError for fewer than two subnets or bad weights.
    """

    @checked
    def __init__(self, named: Mapping[str | float, Subnet], weights: Array | None = None, *, dropout: Below1 = 0.6,
                 target: Literal["labels", "teacher", "ensemble"] = "labels", seed: Seed = 0):
        if len(named) < 2:
            raise ParameterError(f"{len(named)} platforms", "a sandwich has two ends", "Give at least two subnets.")
        self.passes = [Pass(subnet, target, name=name) for name, subnet in named.items()]
        self.largest = replace(self.passes[-1], target="labels", dropout=dropout)
        self.middle, self.seed = self.passes[1:-1], seed
        share = np.ones(len(named)) if weights is None else check_weights(weights, len(named))
        total = share[1:-1].sum()
        if self.middle and not total:
            raise ParameterError(f"weights = {list(weights)}"[:100], "a platform in the middle has weight",
                                 "Leave weights out to draw them uniformly.")
        self.p = share[1:-1] / (total or 1)

    def subnets(self) -> list[Subnet]:
        """Return the platforms' subnets in order of budget; platforms with the same subnet share its statistics."""
        return [a_pass.route for a_pass in self.passes]

    def plan(self, step: int) -> list[Pass]:
        """Return last, first and one between; they depend on seed and step alone."""
        ends = [self.largest, self.passes[0]]
        if not self.middle:
            return ends
        rng = rng_at(self.seed, "platforms", step)
        return [*ends, self.middle[rng.choice(len(self.middle), p=self.p)]]
