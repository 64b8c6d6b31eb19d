"""What shrinking left, as tables for chapter 05: shares, gradients, costs of training, subnets to deploy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from slimnb.search.pareto import mean_pareto_accuracy
from slimnb.train.experiment import Result

ARMS = ("DepS", "DepS without epsilon", "DepS, P = 25%", "DepS, P = 75%", "DepS, epsilon by rate", "BigNAS", "OFA",
        "CompOFA")
"""Ends of the chains of `slimnb.papers.deps.recipes`: trained supernets."""


def accuracies(results: Iterable[Result]) -> pd.DataFrame:
    """Return rows of net, arm, method, share, seed, run_id, name, macs, top1, top1_val, one per subnet of a run.

    `share` is the share of the full net's training with which a leg ends, or after which a `DelayedShrinking` begins;
    else NaN.
    """
    rows = [(r.recipe.net, r.recipe.arm, r.recipe.method, _share(r), r.recipe.seed, r.run_id, row["name"], row["macs"],
             row["top1"], row["top1_val"]) for r in results for row in r.rows]
    columns = ["net", "arm", "method", "share", "seed", "run_id", "name", "macs", "top1", "top1_val"]
    return pd.DataFrame(rows, columns=columns)


def _share(result: Result) -> float:
    recipe = result.recipe
    if recipe.method == "full":
        return recipe.span[1] / recipe.epochs if recipe.span else np.nan
    return recipe.warm_up if recipe.warm_up is not None else np.nan


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean Pareto accuracy, smallest and largest subnet's accuracy of every run; index (net, arm, seed)."""
    def of(rows: pd.DataFrame) -> pd.Series:
        rows = rows.sort_values("macs")
        return pd.Series({"mean_pareto": mean_pareto_accuracy(rows["macs"], rows["top1"]),
                          "smallest": rows["top1"].iloc[0], "largest": rows["top1"].iloc[-1]})

    return frame.groupby(["net", "arm", "seed"], sort=False)[["macs", "top1"]].apply(of)


# -- probes ----------------------------------------------------------------------------------------------


def probe_rows(results: Iterable[Result], look: str) -> pd.DataFrame:
    """Return the rows of a probe ("layers", "norms" or "accuracy") in all runs that took it.

    Columns arm, seed, epoch and run_id are added. Steps count from the start of training.
    """
    rows = []
    for r in results:
        probed = r.findings.get("probed", [])
        if not probed:
            continue
        epoch = min(row["step"] for row in probed) / (r.recipe.warm_up * r.recipe.epochs)
        rows += [{"arm": r.recipe.arm, "seed": r.recipe.seed, "run_id": r.run_id, "epoch": row["step"] / epoch, **row}
                 for row in probed if row["look"] == look]
    return pd.DataFrame(rows)


def layers(results: Iterable[Result]) -> pd.DataFrame:
    """Return the rows of `probe_rows(results, "layers")` for convolutions and linear layers, numbered from 1."""
    rows = probe_rows(results, "layers")
    rows = rows[rows["name"].str.endswith(".weight") & ~rows["name"].str.contains(".norm.", regex=False)]
    return rows.assign(layer=rows.groupby(["run_id", "step", "gradient"])["layer"].rank(method="dense").astype(int))


def drops(accuracy: pd.DataFrame, epochs: float = 1.0) -> pd.DataFrame:
    """Return the points that the full net loses within `epochs` of the start of shrinking, at its worst.

    Columns: arm, seed, drop.
    """
    rows = []
    for (arm, seed), of_run in accuracy[accuracy["name"] == "full"].groupby(["arm", "seed"], sort=False):
        of_run = of_run.sort_values("step")
        within = of_run[of_run["epoch"] <= of_run["epoch"].iloc[0] + epochs]
        rows.append((arm, seed, within["top1"].iloc[0] - within["top1"].iloc[1:].min()))
    return pd.DataFrame(rows, columns=["arm", "seed", "drop"])


# -- cost of training ------------------------------------------------------------------------------------


def chain(result: Result, results: Sequence[Result]) -> list[Result]:
    """Return the runs whose weights `result` goes on from, oldest first, and itself."""
    by_id = {r.run_id: r for r in results}
    links = [result]
    while links[0].recipe.start:
        links.insert(0, by_id[links[0].recipe.start])
    return links


def epochs_of(result: Result) -> float:
    """Return the epochs that a run itself trains."""
    since, to = result.recipe.span or (0, result.recipe.epochs)
    return to - since


def phases(result: Result, results: Sequence[Result]) -> pd.DataFrame:
    """Return rows of arm, phase, subnets (per minibatch), length (epochs) for `figures.training_cost`.

    Equal neighbours are joined.
    """
    rows: list[list] = []
    for link in chain(result, results):
        if rows and rows[-1][2] == link.findings["passes_per_step"]:
            rows[-1][3] += epochs_of(link)
        else:
            rows.append([result.recipe.arm, len(rows), link.findings["passes_per_step"], epochs_of(link)])
    return pd.DataFrame(rows, columns=["arm", "phase", "subnets", "length"])


def training_costs(results: Sequence[Result]) -> pd.DataFrame:
    """Return what each supernet of `ARMS` cost, its chain from scratch included, and its accuracy (as Table 2).

    Columns: net, arm, seed, epochs, passes (per image), work (epochs of the full net, by MACs; a backward counts as two
    forwards, a teacher as a forward), minutes, smallest, largest, mean_pareto (percent, test).
    """
    finals = [r for r in results if r.recipe.arm in ARMS]
    quality, rows = means(accuracies(finals)), []
    for r in finals:
        links = chain(r, results)
        most = max(row["macs"] for row in r.rows)
        work = sum(epochs_of(k) * (k.findings["macs_per_step"] + k.findings["teacher_macs"] / 3) / most for k in links)
        rows.append({"net": r.recipe.net, "arm": r.recipe.arm, "seed": r.recipe.seed,
                     "epochs": sum(map(epochs_of, links)),
                     "passes": sum(epochs_of(k) * k.findings["passes_per_step"] for k in links), "work": work,
                     "minutes": sum(k.seconds for k in links) / 60,
                     **quality.loc[r.recipe.net, r.recipe.arm, r.recipe.seed]})
    return pd.DataFrame(rows)
