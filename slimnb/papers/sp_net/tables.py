"""What pruning left, as tables: gammas and their threshold, channels by unit, errors beside the paper's.

Units are counted from 1, the stem; widths are named "0.5×".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from slimnb.cost.macs import count_macs
from slimnb.nets.base import Masks, SlimmableNet
from slimnb.nn.zero_padding import leader, stream_order, streams
from slimnb.papers.sp_net.recipes import PrunedRecipe
from slimnb.subnet import Subnet
from slimnb.train.experiment import Result

PAPER_ARMS = {"individual": "Individual", "S-Net": "S-Net", "SP-Net": "SP-Net", "multi-base": "SP-Net",
              "one-shot": "One-shot", "iterative": "Iterative", "shortcut first": "Shortcut first"}
"""Methods of the paper's tables by the arms of chapter 02 that are like them."""


def width_name(mult: float) -> str:
    """0.5 -> "0.5×"."""
    return f"{mult:g}×"


def gamma_table(gammas: Sequence, counts: Sequence[int], keep: float) -> tuple[pd.DataFrame, float]:
    """Return rows of unit, gamma, kept, decides for `figures.gamma_histogram`, and the threshold.

    `gammas` is of `recipes.scores`: (layers, channels) per unit, of which the first layer decides. `counts` and the
    share `keep` are of the pruning. Apart from the floors, `kept` are the gammas above the threshold.
    """
    parts = []
    for unit, (layers, count) in enumerate(zip(gammas, counts, strict=True), 1):
        for layer, values in enumerate(np.asarray(layers, dtype=float)):
            ranks = np.argsort(np.argsort(-values, kind="stable"), kind="stable")
            parts.append(pd.DataFrame({"unit": unit, "gamma": values, "kept": ranks < count, "decides": layer == 0}))
    frame = pd.concat(parts, ignore_index=True)
    ascending = np.sort(frame["gamma"])
    below = len(ascending) - round(keep * len(ascending))
    return frame, float(ascending[below - 1]) if below else 0.0


def counts_table(named: Mapping[str, Mapping[str, Sequence[int]]], full: Sequence[int]) -> pd.DataFrame:
    """Return rows of arm, name, unit, channels, full from {arm: {name of a width: channels of every unit}}."""
    rows = [(arm, name, unit, channels, most) for arm, subnets in named.items() for name, widths in subnets.items()
            for unit, (channels, most) in enumerate(zip(widths, full, strict=True), 1)]
    return pd.DataFrame(rows, columns=["arm", "name", "unit", "channels", "full"])


def order_of(gammas: Sequence) -> list[np.ndarray]:
    """Return the channels of every unit, most important first, by the gammas that `recipes.scores` keeps."""
    return [np.argsort(-np.asarray(layers[0]), kind="stable") for layers in gammas]


def kept(order: np.ndarray, count: int) -> np.ndarray:
    """Mark the first `count` channels of `order`, (C,) bool in the order in which training left them."""
    mask = np.zeros(len(order), dtype=bool)
    mask[order[:count]] = True
    return mask


def masks_of(order: Sequence[np.ndarray], counts: Sequence[int]) -> Masks:
    """Return the channels that each unit of an unsorted net keeps, as a route that zeroes the others."""
    return Masks(tuple(torch.from_numpy(kept(*pair)).float()[None] for pair in zip(order, counts, strict=True)))


def join_paths(net: SlimmableNet, order: Sequence[np.ndarray], counts: Mapping[str, Sequence[int]],
               name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return {"Body": mask, "Shortcut": mask} of subnet `name` in the first stream in which paths meet, and its order.

    Body and shortcut are the first two units of the stream; masks and order are of the base's channels.
    """
    stream = next(units for units in streams(net) if len(units) > 1)
    first = leader(net, stream)
    body = next(unit for unit in stream if unit != first)
    paths = {"Body": kept(order[body], counts[name][body]), "Shortcut": kept(order[first], counts[name][first])}
    sequence = stream_order([order[unit] for unit in stream],
                            [[widths[unit] for unit in stream] for widths in counts.values()], order[first])
    return paths, sequence


def not_nested(thin: Subnet | Sequence[int], wide: Subnet | Sequence[int]) -> list[int]:
    """Return the units (from 1) in which the thinner subnet is the wider one."""
    thin, wide = (getattr(subnet, "widths", subnet) for subnet in (thin, wide))
    return [unit for unit, (a, b) in enumerate(zip(thin, wide, strict=True), 1) if a > b]


def crossings(counts: Mapping[float, Sequence[int]]) -> dict[tuple[float, float], list[int]]:
    """Return `not_nested` of every width and the next wider one, by the pair."""
    return {(thin, wide): not_nested(counts[thin], counts[wide]) for thin, wide in pairwise(sorted(counts))}


def errors_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of `results_frame` with columns name ("0.5×") and error (%), widest first."""
    rows = frame.sort_values("mult", ascending=False, kind="stable")
    return rows.assign(name=rows["mult"].map(width_name), error=100 - rows["top1"])


def macs_by_rule(results: Sequence[Result], num_classes: int) -> pd.DataFrame:
    """Return rows of net, arm, seed, mult, target, union, executed (MACs), more (%), one per jointly trained subnet.

    `target` is of the uniform width. `union` is SP-Net's count. `executed` has the zeros between channels, too, and is
    `more` above `union`.
    """
    rows = [(r.recipe.net, r.recipe.arm, r.recipe.seed, row["mult"], _uniform_macs(r.recipe, row["mult"], num_classes),
             union, row["macs"], 100 * (row["macs"] / union - 1))
            for r in results if r.recipe.supernet
            for row, union in zip(r.rows, r.findings["printed_macs"], strict=True)]
    return pd.DataFrame(rows, columns=["net", "arm", "seed", "mult", "target", "union", "executed", "more"])


def _uniform_macs(recipe: PrunedRecipe, mult: float, num_classes: int) -> int:
    with torch.device("meta"):
        net = replace(recipe, supernet=None, subnets=None, mults=(mult,)).build(num_classes)
    return count_macs(net, net.largest)


def paper_errors(path: Path, tables: Sequence[int], net: str, widths: Sequence[float],
                 dataset: str = "ImageNet") -> pd.DataFrame:
    """Return the paper's rows of arm, name, error for arms of chapter 02; of two tables the first counts."""
    rows = pd.read_csv(path).query("table in @tables and dataset == @dataset and net == @net and mult in @widths")
    rows = rows.sort_values("table", key=lambda numbers: numbers.map(list(tables).index), kind="stable")
    rows = rows.assign(arm=rows["method"].map(PAPER_ARMS), name=rows["mult"].map(width_name))
    rows = rows.dropna(subset=["arm"]).drop_duplicates(["arm", "name"])
    return rows[["arm", "name", "error"]].reset_index(drop=True)
