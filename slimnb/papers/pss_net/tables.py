"""Runs of PSS-Net as tables: subnets by target and price, pools, costs, the paper's numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from slimnb.errors import SlimnbError
from slimnb.papers.pss_net.structure_samplers import StructureDistribution
from slimnb.papers.pss_net.structures import Resource
from slimnb.runs.results import results_frame
from slimnb.subnet import Subnet
from slimnb.train.experiment import Result
from slimnb.train.measure import chosen

ENDS = ("max", "min")
"""Names of the rows that are no target: the largest and the smallest subnet."""


# -- structures ------------------------------------------------------------------------------------------


def marginal_table(sampler: StructureDistribution, buckets: Sequence[int]) -> pd.DataFrame:
    """Return Eq. 4's marginals: rows of bucket ("120 M MACs"), unit (from 1, the stem), mult, probability, prior.

    `mult` is the choice as a share of the unit's largest; resolutions are left out.
    """
    structures, rows = sampler.costs.structures, []
    for bucket in buckets:
        name = sampler.resource.show(sampler.buckets.targets[bucket]).replace(".00", "")
        for unit, p in enumerate(structures.prior[:-1]):
            widths = structures.space.widths[structures.groups[unit][0]]
            rows += [(name, str(unit + 1), width / widths[-1], probability, prior) for width, probability, prior in
                     zip(widths, sampler.marginals[bucket, unit], p, strict=False)]
    return pd.DataFrame(rows, columns=["bucket", "unit", "mult", "probability", "prior"])


# -- subnets ---------------------------------------------------------------------------------------------


def chosen_frame(results: Sequence[Result], top_k: int) -> pd.DataFrame:
    """Return `results_frame` of the subnets that validate best among each target's first `top_k`, with names.

    Runs of one subnet, which had nothing to choose from, are left out.
    """
    return results_frame([replace(r, rows=chosen(r.findings["candidates"], top_k)) for r in results
                          if "candidates" in r.findings])


def over_targets(frame: pd.DataFrame, arms: Sequence[str], names: Collection[str] = (),
                 column: str = "top1") -> tuple[np.ndarray, np.ndarray]:
    """Return means (seeds,) of `column` of two arms over the rows called `names`, by default all targets of both.

    Seeds that one of them lacks are left out; nothing is left if one was not trained.
    """
    rows = frame[frame["arm"].isin(arms) & (frame["name"].isin(names) if names else ~frame["name"].isin(ENDS))]
    pairs = rows.pivot_table(column, ["seed", "name"], "arm").reindex(columns=list(arms)).dropna()
    means = pairs.groupby("seed").mean()
    return means[arms[0]].to_numpy(), means[arms[1]].to_numpy()


def priced(frame: pd.DataFrame, panels: Mapping[str, Sequence[str]], latencies: Sequence[Resource]) -> pd.DataFrame:
    """Price subnets by `panels`, {resource: arms}.

    Rows: resource, arm, name, platform, cost (MACs or ms), top1, top1_val, seed. MACs are those of the frame, latencies
    those of their tables. Subnets that these do not know, such as US-Net's narrowest, are left out. An arm with targets
    of a resource shows only those there. The platform is the name.
    """
    tables, parts = {resource.name: resource for resource in latencies}, []
    for resource, arms in panels.items():
        rows = frame[frame["arm"].isin(arms)]
        kind = rows["name"].map(lambda name: _resource_of(name, panels))
        held = (kind == resource).groupby(rows["arm"]).transform("any")
        rows = rows[~held | kind.isin(["", resource])]
        cost = rows["macs"] if resource == "MACs" else [_price(tables[resource], subnet) for subnet in rows["subnet"]]
        parts.append(rows.assign(resource=resource, cost=cost, platform=rows["name"]).dropna(subset="cost"))
    columns = ["resource", "arm", "name", "platform", "cost", "top1", "top1_val", "seed"]
    return pd.concat(parts, ignore_index=True)[columns]


def _resource_of(target: str, resources: Iterable[str]) -> str:
    """"9 M" -> "MACs", "2 ms CPU" -> "CPU latency", "max" -> "": the resource that begins with the last word."""
    kind = target.rpartition(" ")[2]
    return "" if target in ENDS else "MACs" if kind == "M" else next(
        (name for name in resources if name.partition(" ")[0] == kind), kind)


def _price(resource: Resource, subnet: dict) -> float:
    try:
        return resource.of(Subnet.from_json(subnet))
    except SlimnbError:
        return np.nan


def within(frame: pd.DataFrame, budgets: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Return what each arm of `priced` offers within `budgets` ({resource: costs}), with resource, budget, name.

    Of every arm and seed it is the subnet that validates best among those that fit, if there is one.
    """
    parts = []
    for resource, costs in budgets.items():
        for budget in costs:
            fits = frame[(frame["resource"] == resource) & (frame["cost"] <= budget)]
            best = fits.sort_values("top1_val", kind="stable").groupby(["arm", "seed"], sort=False).tail(1)
            parts.append(best.assign(budget=budget, name=f"{resource} {budget:.6g}"))
    return pd.concat(parts, ignore_index=True)


def by_k(results: Sequence[Result], names: Collection[str], ks: Sequence[int]) -> pd.DataFrame:
    """Return rows of pool, k, top1, top1_val, seed: the best by validation of each pool's first k (Table 5)."""
    rows = [(row["name"], k, row["top1"], row["top1_val"], r.recipe.seed) for r in results for k in ks
            for row in chosen(r.findings["candidates"], k) if row["name"] in names]
    return pd.DataFrame(rows, columns=["pool", "k", "top1", "top1_val", "seed"])


def tuned(results: Sequence[Result], arm: str) -> pd.DataFrame:
    """Return rows of pool, arm, top1, seed: subnets of `arm` "In the supernet" and "Fine-tuned" (Table 6)."""
    before = {(r.recipe.seed, row["name"]): row["top1"] for r in results if r.recipe.arm == arm for row in r.rows}
    rows = []
    for r in results:
        if r.recipe.arm == "Fine-tuned":
            (row,), seed = r.rows, r.recipe.seed
            rows += [(row["name"], "In the supernet", before[seed, row["name"]], seed),
                     (row["name"], "Fine-tuned", row["top1"], seed)]
    return pd.DataFrame(rows, columns=["pool", "arm", "top1", "seed"])


# -- pools -----------------------------------------------------------------------------------------------


def pool_table(result: Result, names: Collection[str]) -> pd.DataFrame:
    """Return rows of pool, since, metric, chosen: the content of the pools called `names`, best first."""
    best = {row["name"]: Subnet.from_json(row["subnet"]) for row in result.rows}
    rows = [(pool["name"], since, metric, Subnet(tuple(widths), resolution=side) == best[pool["name"]])
            for pool in result.findings["pools"] if pool["name"] in names
            for (*widths, side), since, metric in zip(pool["structures"], pool["since"], pool["metrics"], strict=True)]
    return pd.DataFrame(rows, columns=["pool", "since", "metric", "chosen"])


def pool_relations(results: Sequence[Result]) -> pd.DataFrame:
    """Return rows of arm, seed, pool, trained, reused, recency, foresight, for every pool of three structures or more.

    `recency` is the rank correlation of the step of entry with the metric. `foresight` is that of the metric with the
    accuracy on validation images, of those that were validated. If all are equal it is 0.
    """
    rows = []
    for r in results:
        for pool in r.findings.get("pools", ()):
            if len(pool["metrics"]) >= 3:
                tried = [(row["rank"], row["top1_val"]) for row in r.findings["candidates"]
                         if row["name"] == pool["name"]]
                rows.append((r.recipe.arm, r.recipe.seed, pool["name"], pool["trained"], pool["reused"],
                             _rank_correlation(pool["since"], pool["metrics"]),
                             -_rank_correlation(*zip(*tried, strict=True))))
    columns = ["arm", "seed", "pool", "trained", "reused", "recency", "foresight"]
    return pd.DataFrame(rows, columns=columns)


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0


# -- costs -----------------------------------------------------------------------------------------------


def macs_per_step(result: Result) -> float:
    """Return the MACs of a step's three passes as a multiple of the largest subnet's, from the draws of an arm."""
    ends = {row["name"]: row["macs"] for row in result.rows if row["name"] in ENDS}
    cost, trained = np.array([(pool["cost"], pool["trained"]) for pool in result.findings["pools"]]).T
    return float((ends["max"] + np.average(cost, weights=trained) + ends["min"]) / ends["max"])


def cost_table(path: Path, subnets: int) -> pd.DataFrame:
    """Return Table 3 for `subnets`: method, training, storage (supernet = 1), measured (False), dearest first."""
    wide = paper(path, "3", "any").set_index("arm")
    grown = {of: wide[of] + subnets * wide[f"{of}_per_subnet"] for of in ("training", "storage")}
    rows = pd.DataFrame(grown).sort_values("training", ascending=False, kind="stable")
    return rows.rename_axis("method").reset_index().assign(measured=False)


# -- the paper's numbers ---------------------------------------------------------------------------------


def paper(path: Path, table: str, net: str = "MobileNetV1") -> pd.DataFrame:
    """Return a table of `data/literature/pss_net.csv`: a line per row and arm, a column per quantity."""
    rows = pd.read_csv(path, dtype={"table": str}).query("table == @table and net == @net")
    wide = rows.pivot(index=["row", "method"], columns="column", values="value").reset_index()
    return wide.rename_axis(columns=None).rename(columns={"method": "arm"})


def paper_by_resource(path: Path, resources: Sequence[str]) -> pd.DataFrame:
    """Return Table 1 in the form of `priced`; GPU latencies, which it prints in microseconds, are in ms."""
    wide = paper(path, "1").query("arm != 'base'")
    columns = {"MACs": ("macs_m", 1e6), "CPU latency": ("cpu_ms", 1), "GPU latency": ("gpu_us", 1e-3)}
    parts = [wide.assign(resource=resource, cost=wide[column] * unit).dropna(subset="cost")
             for resource, (column, unit) in columns.items() if resource in resources]
    return pd.concat(parts, ignore_index=True)[["resource", "arm", "row", "cost", "top1"]].assign(seed=0)


def rivals(path: Path, dearer: float = 1.04) -> pd.DataFrame:
    """Return Table 2: each PSS-Net beside the most accurate other net of at most `dearer` times its MACs."""
    rows = []
    for net in ("MobileNetV1", "MobileNetV2"):
        wide = paper(path, "2", net).sort_values("macs_m", ascending=False)
        is_pss = wide["arm"].str.startswith("PSS")
        for row in wide[is_pss].itertuples():
            near = wide[~is_pss & wide["macs_m"].le(dearer * row.macs_m)]
            for rival in near.nlargest(1, "top1").itertuples():
                rows.append((net, row.arm, row.macs_m, row.top1, rival.arm, rival.macs_m, rival.top1,
                             round(row.top1 - rival.top1, 1)))
    columns = ["net", "arm", "M MACs", "top1", "best other", "its M MACs", "its top1", "ahead by"]
    return pd.DataFrame(rows, columns=columns)


def paper_by_k(path: Path) -> pd.DataFrame:
    """Return Table 5 in the form of `by_k`."""
    wide = paper(path, "5")
    return wide.assign(pool=wide["macs_m"].map("{:.0f} M".format), k=wide["k"].astype(int))[["pool", "k", "top1"]]
