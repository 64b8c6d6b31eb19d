"""What a market gets from a net that serves several platforms: weighted accuracy, regret, a wrong forecast's cost.

The frames come from `results.results_frame` and hold one row per platform: source, method, searched_for, sampled_for,
seed, name ("#1", ...), top1 (%, test), top1_val (%, optional). Accuracies and their differences are in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from slimnb.papers.platforms.market import WEIGHTS, check_weights
from slimnb.subnet import SearchSpace, Subnet

NET = ["source", "searched_for", "sampled_for", "seed"]


def retrained(frame: pd.DataFrame, method: str = "platforms", column: str = "top1") -> pd.DataFrame:
    """Return `column` of each net on each platform, as a table.

    It has a row per net (`NET`, a missing market is "") and a column per platform. With method "alone" the seven
    stand-alone nets of a source make one row.
    """
    rows = frame[frame["method"] == method]
    wide = rows.assign(**rows[NET].fillna("")).pivot_table(column, NET, "name", sort=False)
    return wide[list(dict.fromkeys(rows["name"]))]


def weighted(frame: pd.DataFrame, weights: Mapping[str, Sequence[float]] = WEIGHTS) -> pd.DataFrame:
    """Weight accuracies by market (Table 2 of Wang and Blaschko).

    Columns are market, arm, seed, top1, and top1_val if it is known. Arms are the source of the widths with -U
    (platforms drawn uniformly in the retraining) or -W (by the market's weights); AOWS is the one searched for the
    market. Nets that were not trained are left out, and so is -W in market U, where it is the same net as -U.
    """
    columns, parts = [column for column in ("top1", "top1_val") if column in frame], []
    nets = pd.concat({column: retrained(frame, column=column) for column in columns}, axis=1)
    searched, sampled = (nets.index.get_level_values(level) for level in ("searched_for", "sampled_for"))
    for market, shares in weights.items():
        for suffix, drawn in {"U": "U", **({} if market == "U" else {"W": market})}.items():
            rows = nets[searched.isin(["", market]) & (sampled == drawn)]
            means = {column: rows[column] @ check_weights(shares, rows[column].shape[1]) for column in columns}
            rows = pd.DataFrame(means).reset_index()
            parts.append(rows.assign(market=market, arm=rows["source"] + f"-{suffix}"))
    return pd.concat(parts, ignore_index=True)[["market", "arm", "seed", *columns]]


def stand_alone(frame: pd.DataFrame, shares: Sequence[float] = WEIGHTS["U"]) -> pd.DataFrame:
    """Weight the accuracies of nets trained one per platform by `shares` (Table 3): columns arm, seed, top1."""
    nets = retrained(frame, "alone")
    top1 = (nets @ check_weights(shares, nets.shape[1])).rename("top1").reset_index()
    return top1.rename(columns={"source": "arm"})[["arm", "seed", "top1"]]


def over_markets(frame: pd.DataFrame, arms: tuple[str, str], markets: Sequence[str] = tuple(WEIGHTS)
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Return both arms' accuracy (seeds,), means over those of `markets` in which both were trained.

    `frame` is of `weighted`. The market where the first arm does worst would be picked per seed, which makes noise a
    loss; so it is a mean. Both are empty if there is no such market.
    """
    rows = frame[frame["arm"].isin(arms) & frame["market"].isin(markets)]
    both = rows.pivot_table("top1", ["seed", "market"], "arm").reindex(columns=list(arms)).dropna()
    mean = both.groupby("seed").mean()
    return mean[arms[0]].to_numpy(), mean[arms[1]].to_numpy()


def best_of(frame: pd.DataFrame, source: str, by: str = "top1") -> pd.DataFrame:
    """Return rows of `weighted` for arm "best SOURCE": of its -U and -W the one with more `by`, per market and seed.

    By "top1_val" the choice is made on other images than the comparison.
    """
    of_it = frame[frame["arm"].isin([f"{source}-U", f"{source}-W"])]
    best = of_it.loc[of_it.groupby(["market", "seed"], sort=False)[by].idxmax()]
    return best.assign(arm=f"best {source}")


def with_best(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """`weighted`, and `best_of` both searches by a column."""
    return pd.concat([frame, *(best_of(frame, source, by) for source in ("OWS", "AOWS"))])


def regret(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the points that each arm loses on each platform against the best arm there, means over seeds.

    `frame` also has the column arm; the result is (arms, platforms). The best arm of a platform is chosen by the
    numbers it is compared by, so small regrets mean little.
    """
    rows = frame[frame["method"] == "platforms"]
    mean = rows.pivot_table("top1", "arm", "name", sort=False)
    return mean.max() - mean


def forecast(frame: pd.DataFrame, source: str = "OWS", weights: Mapping[str, Sequence[float]] = WEIGHTS
             ) -> pd.DataFrame:
    """Return what a wrong forecast costs: columns trained, used (markets), seed, lost (points).

    It is the accuracy in market `used` of the net retrained for that market, less that of the net retrained for
    `trained`; for all markets that nets of `source` were retrained for (and searched for, if it is "AOWS").
    """
    nets = retrained(frame).xs(source, level="source").reset_index("searched_for")
    nets = nets[nets["searched_for"].isin([""]) | (nets["searched_for"] == nets.index.get_level_values("sampled_for"))]
    nets = nets.drop(columns="searched_for")
    markets = [market for market in weights if market in nets.index.unique("sampled_for")]
    shares = pd.DataFrame({market: check_weights(weights[market], nets.shape[1]) for market in markets}, nets.columns)
    values = (nets @ shares).melt(var_name="used", value_name="top1", ignore_index=False).reset_index()
    values = values.rename(columns={"sampled_for": "trained"})
    right = values[values["trained"] == values["used"]][["used", "seed", "top1"]]
    both = values.merge(right, on=["used", "seed"], suffixes=("", "_right"))
    both["lost"] = both["top1_right"] - both["top1"]
    order = both["trained"].map(markets.index)
    return both.loc[order.sort_values(kind="stable").index, ["trained", "used", "seed", "lost"]]


def platform_widths(subnets: Mapping[str, Mapping[str, Subnet]], full: Subnet) -> pd.DataFrame:
    """Return the channels of {source: {platform: subnet}} as rows.

    Columns are source, platform, unit (1 is the stem), channels, mult: the share of the channels of `full`, the net at
    1.0.
    """
    rows = [(source, platform, unit, width, width / most) for source, named in subnets.items()
            for platform, subnet in named.items()
            for unit, (width, most) in enumerate(zip(subnet.widths, full.widths, strict=True), 1)]
    return pd.DataFrame(rows, columns=["source", "platform", "unit", "channels", "mult"])


def shared_units(*subnets: Subnet) -> int:
    """Return the number of channel units that have the same width in all subnets."""
    return sum(len(set(widths)) == 1 for widths in zip(*(subnet.widths for subnet in subnets), strict=True))


def choice_scores(unary: np.ndarray, space: SearchSpace, full: Subnet) -> pd.DataFrame:
    """Return the scores (units, choices) of a search as rows: unit (1 is the stem), mult (share of `full`), score."""
    rows = [(unit, width / most, score)
            for unit, (choices, most, scores) in enumerate(zip(space.widths, full.widths, unary, strict=True), 1)
            for width, score in zip(choices, scores, strict=False)]
    return pd.DataFrame(rows, columns=["unit", "mult", "score"])


def paper_table_2(path: Path) -> pd.DataFrame:
    """Table 2 of `data/literature/platforms.csv` as `weighted` has it: in market U, -W would be -U."""
    rows = pd.read_csv(path).query("table == '2'").rename(columns={"row": "market", "value": "top1"}).assign(seed=0)
    return rows[(rows["market"] != "U") | rows["arm"].str.endswith("-U")]
