"""How many channels every layer of a trained base keeps: scores, one threshold for all of them, a MACs target.

SP-Net's three ways to prune are three ways to call `prune`. One-shot: every target from one base. Multi-base: every
target from a base of its own, of which only the counts are used. Iterative: prune, embed the counts into the base,
train that subnet further, and prune again `within` it.
"""

from __future__ import annotations

import copy
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimnb.cost.table import macs_function
from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.sorting import embed_
from slimnb.nn.norm import PRIVATE
from slimnb.nn.zero_padding import ENDS, MATCH, SHORTCUT, leader, streams
from slimnb.rules import Pixels, checked
from slimnb.subnet import Subnet

Scores = list[np.ndarray]
"""A (layers, channels) array per channel unit, larger = more important: of the layer that makes the channels, then of
the depthwise layers over them. Row 0 says what is kept; the threshold is taken over all rows, as SP-Net's code does."""

Score = Callable[[SlimmableNet], Scores]


@checked
def gammas(net: SlimmableNet) -> Scores:
    """Score channels by |gamma| of every norm layer (network slimming: Liu et al. 2017).

    Where gammas are private, those of the largest subnet count.
    """
    row = net.slots.get(net.largest, 0) if net.bn == PRIVATE else 0
    return [np.stack([net.get_submodule(name).weight.detach().reshape(-1, unit.channels)[row].abs().double().cpu()
                      for name in unit.norms]) for unit in net.channel_units()]


@checked
def filter_norms(net: SlimmableNet) -> Scores:
    """Score channels by the L1 norm of every filter (Li et al. 2017).

    Norms are compared over all layers, as SP-Net does (section 4.2).
    """
    return [np.stack([net.get_submodule(name).weight.detach().double().abs().sum((1, 2, 3)).cpu()
                      for name in unit.producers]) for unit in net.channel_units()]


SCORES = {"gammas": gammas, "filter norms": filter_norms}
"""The scores that a recipe may name."""


@checked
def importance_order(scores: Scores) -> list[np.ndarray]:
    """Return the channel numbers of every unit, most important first; equal ones keep their order."""
    return [np.argsort(-unit[0], kind="stable") for unit in scores]


@checked
def embed_counts_(net: SlimmableNet, counts: Mapping[str | float, Sequence[int]], padding: str = MATCH,
                  score: Score = gammas) -> dict[str, Subnet]:
    """Embed `counts` with the channels in order of the net's own scores, whichever base the counts come from."""
    return embed_(net, importance_order(score(net)), counts, padding)


# The shares that SP-Net's code keeps, tuned by hand, thinnest subnet first: ResNet-50 .6166 .7628 (CIFAR-100), .5484
# .526 (ImageNet); VGG .6453 .8202, .557 .7366; MobileNetV1 .648 .7419 .7635; MobileNetV2 .6725 .6357. Here a search
# finds them.
@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of pruning, in plain numbers, so that `dataclasses.asdict` of it is JSON."""

    counts: tuple[int, ...]  # channels kept in each unit
    macs: int  # of the counts in the base, by SP-Net's rule: where paths join, of the channels that any of them has
    target: float  # MACs asked for
    keep: float  # share of all scores above the threshold

    @property
    def gap(self) -> float:
        """The share of the target that is not used, >= 0: counts go in steps, and no step came closer."""
        return 1 - self.macs / self.target


@checked
def prune(base: SlimmableNet, target: float, *, score: Score = gammas, within: Subnet | None = None,
          into: SlimmableNet | None = None, padding: str = MATCH, convention: str = "A",
          resolution: Pixels | None = None) -> Pruned:
    """Keep the most channels of `base` that one threshold over all its scores leaves for at most `target` MACs.

    A unit keeps the channels that score above the threshold, and at least a tenth of its channels; a twentieth where
    paths join under zero padding match. Depthwise layers follow the layer before them. `padding` says what happens at
    joins: "match" keeps each path's own channels, "shortcut" gives all paths the count of the shortcut.

    What a join costs depends on which channels of its paths coincide. That is counted in `into`, the supernet that the
    counts are for, whose own scores order its channels; without it, in the base. `within` is an earlier stage's subnet
    of the base. It warns if no channel of a unit stands out, as in an untrained base. Raises ParameterError if the
    floors alone cost more than the target, for scores of a wrong shape, and for counts wider than `into`.
    """
    scores = _scores(base, score, within)
    _warn_untrained(scores)
    counts = _counting(base, scores, padding)
    host, ranked = (base, scores) if into is None else (into, _scores(into, score))
    macs = _pricing(host, ranked, padding, convention, resolution)
    pool = np.sort(np.concatenate([unit[np.isfinite(unit)] for unit in scores]))
    result, keep = counts(-np.inf), 1.0
    if not macs(result) <= target:
        # MACs fall with the threshold, in steps: the first that fits is the closest.
        index = bisect_left(pool, True, key=lambda threshold: macs(counts(threshold)) <= target)
        if index == len(pool):
            raise ParameterError(f"target = {target:,} MACs",
                                 f"the floors of this base reach no less than {macs(counts(np.inf)):,}",
                                 "Raise the target, or prune a smaller base.")
        result, keep = counts(pool[index]), float((pool > pool[index]).mean())
    host.check(Subnet(result))
    return Pruned(result, macs(result), target, keep)


def _scores(net: SlimmableNet, score: Score, within: Subnet | None = None) -> Scores:
    """Scores as (layers, channels) float64; minus infinity for channels that an earlier stage has pruned."""
    scores = [np.array(np.atleast_2d(unit), dtype=np.float64) for unit in score(net)]
    if [unit.shape[1] for unit in scores] != list(net.largest.widths) or not all(np.isfinite(s).all() for s in scores):
        raise ParameterError(f"scores of shapes {[unit.shape for unit in scores]}"[:90],
                             "there is one finite number per channel of every channel unit",
                             "Return a (channels,) or (layers, channels) array per unit.")
    if within is not None:
        net.check(within)
        for unit, width in zip(scores, within.widths, strict=True):
            unit[:, width:] = -np.inf
    return scores


def _warn_untrained(scores: Scores) -> None:
    if all(np.ptp(unit[0][np.isfinite(unit[0])]) == 0 for unit in scores):
        warnings.warn("slimnb: the channels of every layer of this base score alike, as if it were untrained: "
                      "nothing but the floors decides how many are kept", stacklevel=3)


def _counting(base: SlimmableNet, scores: Scores, padding: str) -> Callable[[float], tuple[int, ...]]:
    """A function from a threshold to the channels that every unit keeps."""
    joined = [stream for stream in streams(base) if len(stream) > 1]
    loose = {unit for stream in joined for unit in stream} if padding != SHORTCUT else set()
    leaders = [(stream, leader(base, stream)) for stream in joined] if padding == SHORTCUT else []
    ascending = [np.sort(unit[0]) for unit in scores]
    floors = [max(1, width // (20 if unit in loose else 10)) for unit, width in enumerate(base.largest.widths)]

    def counts(threshold: float) -> tuple[int, ...]:
        kept = [max(floor, len(values) - int(np.searchsorted(values, threshold, side="right")))
                for floor, values in zip(floors, ascending, strict=True)]
        for stream, first in leaders:
            for unit in stream:
                kept[unit] = kept[first]
        return tuple(kept)

    return counts


def _pricing(net: SlimmableNet, scores: Scores, padding: str, convention: str,
             resolution: int | None) -> Callable[[tuple[int, ...]], int]:
    """A function from counts to the MACs of the subnet of `net` that they name, paths joined as `padding` says."""
    net = copy.deepcopy(net)
    # With "ends" joined paths overlap elsewhere, but in as many channels as with "match".
    embed_(net, importance_order(scores), {}, MATCH if padding == ENDS else padding)

    price = macs_function(net, convention, resolution, fused=True)
    return lambda counts: price(Subnet(tuple(map(min, counts, net.largest.widths))))
