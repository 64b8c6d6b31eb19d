"""Figures of chapter 03's markets and platforms: shares, channels, weighted accuracies, forecasts, latency."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from slimnb.book.marks import NEUTRAL, TOP1, dot_rows
from slimnb.book.style import GREY, INK, described, label_ends, look, new_axes, styled

SHADES = ["#CFCFCF", "#A6A6A6"]  # a figure's first and second set of the paper's bars
MODELS = {"o": "#2F6690", "^": "#E0B84C", "s": "#B5482A"}  # marker and colour of latency models
GAIN_TO_LOSS = LinearSegmentedColormap.from_list("gain to loss", ["#2C7FB8", "#FFFFFF", "#D95F0E"], 257)


@styled()
def market_shares(sizes: np.ndarray, title: str, paper: pd.DataFrame | None = None, ranks: int = 8) -> Axes:
    """Ranked market shares of a Chinese restaurant process: their mean, and where most realisations lie.

    `sizes` (realisations, tables) has the customers at each table, in any order; only the first `ranks` ranks
    are drawn. `paper` has source, rank (1 is the largest), share (%) and is drawn as grey bars.
    """
    ax = new_axes(title)[0]
    shares = np.sort(100 * np.asarray(sizes) / np.sum(sizes, axis=1, keepdims=True), axis=1)[:, :-ranks - 1:-1]
    rank = np.arange(1, shares.shape[1] + 1)
    beside = 0.0 if paper is None else 0.28  # bars on the left, realisations on the right
    if paper is not None:
        sns.barplot(paper.assign(rank=paper["rank"] - 0.14), x="rank", y="share", hue="source",
                    palette=SHADES[:paper["source"].nunique()], native_scale=True, width=0.54, saturation=1, ax=ax)
    ranked = pd.DataFrame(shares, columns=rank + beside).melt(var_name="rank", value_name="share")
    sns.pointplot(ranked, x="rank", y="share", errorbar=("pi", 90), err_kws={"lw": 1.4}, marker="D", ms=6, mew=0,
                  linestyle="none", color=INK, native_scale=True, zorder=3, ax=ax,
                  label=f"mean of {len(shares):,} realisations, and 90 % of them")
    ax.get_legend().remove()
    some = shares[:60]
    jitter = np.resize(np.linspace(-0.1, 0.1, 7), some.shape[::-1]).T
    ax.plot(rank + beside + jitter, some, "o", ms=2.5, mew=0, color=NEUTRAL, alpha=0.6, zorder=1)
    mean = shares.mean(0)
    ax.set(xlabel="Rank (1 is the largest share)", ylabel="Market share (%)", ylim=(0, 104), xticks=rank)
    ax.grid(axis="x", visible=False)
    ax.figure.legend(loc="outside lower center", ncols=2, handlelength=1.2)
    alt = ", ".join(f"{share:.3g} %" for share in mean)
    return described(ax, f"Ranked market shares, means and spread. {title}. Means by rank: {alt}.")


@styled("source", "platform", "unit", "channels")
def channels(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Channels of each channel unit by source, one panel per platform. Columns source, platform, unit, channels.

    `source` says where the widths come from ("Original", "OWS", "RS-AOWS"). A filled dot is a unit with the
    same channels on all platforms shown.
    """
    platforms = list(dict.fromkeys(frame["platform"]))
    axes = new_axes(title, len(platforms), sharey=True)
    per_unit = frame.groupby(["source", "unit"], sort=False)["channels"]
    shared = per_unit.min() == per_unit.max()
    alt = []
    for ax, platform in zip(axes, platforms, strict=True):
        ends = []
        groups = frame[frame["platform"] == platform].groupby("source", sort=False)
        for at, (source, rows) in enumerate(groups):
            style, rows = look(source), rows.sort_values("unit")
            wide = max(1.4, 3.2 - 1.8 * at)  # what the next source hides is still seen beside it
            fills = np.where(shared[source].loc[rows["unit"]], style.colour, "white")
            ax.step(rows["unit"], rows["channels"], where="mid", color=style.colour, lw=wide)
            ax.scatter(rows["unit"], rows["channels"], 12 + 8 * wide, c=fills, marker=style.marker,
                       edgecolors=style.colour, zorder=3)
            ends.append((rows["unit"].iloc[-1], rows["channels"].iloc[-1], style.label, style.colour))
            alt.append(f"{style.label} on {platform}: {', '.join(map(str, rows['channels']))}.")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="Channel unit (1 is the stem)", xticks=sorted(frame["unit"].unique())[::3])
        ax.set_title(f"Platform {platform}", loc="left")
    label_ends(axes[-1], ends)
    axes[0].set(ylabel="Channels")
    if len(platforms) > 1:
        counts = shared.groupby("source", sort=False).sum()
        note = "\n".join(f"{look(source).label}: {count} of {len(shared[source])}" for source, count in counts.items())
        axes[0].annotate(f"filled: shared\n{note}", (0.98, 0.03), xycoords="axes fraction", ha="right", color=GREY)
        alt.append(f"Units shared by the platforms, {note}.")
    return described(axes, f"Step chart of channels per channel unit. {title}. {' '.join(alt)}")


@styled("market", "arm", "top1")
def weighted_accuracy(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> np.ndarray:
    """Accuracy weighted by market, one row per market. Columns market, arm, top1 (%), seed; `paper` the same.

    Arms of one source of channels share a line: "OWS-U" (retrained with uniform sampling) is its open dot,
    "OWS-W" (by weight) its filled one. The paper's panel is grey.
    """
    axes = dot_rows(frame, paper, title, "market", "top1", f"Weighted {TOP1[0].lower()}{TOP1[1:]}")
    axes[0].set(ylabel="Market")
    best = frame.groupby(["market", "arm"], sort=False)["top1"].mean().groupby("market", sort=False).idxmax()
    alt = "; ".join(f"{market}: {arm}" for market, arm in best)
    return described(axes, f"Dot plot of accuracy weighted by market. {title}. Best arms: {alt}.")


@styled("trained", "used", "lost")
def forecast(frame: pd.DataFrame, title: str) -> Axes:
    """What a wrong market forecast costs. Columns trained, used (markets), lost (points of accuracy), seed.

    Lost is the accuracy of the net trained for the market it is used in, less this net's; cells are
    means over seeds.
    """
    markets = list(dict.fromkeys(frame["used"]))
    table = frame.pivot_table("lost", "trained", "used", sort=False)[markets]
    ax = new_axes(title, height=1.1)[0]
    reach = 1.4 * max(0.1, np.nanmax(table.abs()))  # pale enough for the numbers
    texts = table.map(lambda lost: f"{lost:.2f}".replace("-", "−") if round(lost, 2) else "0")
    sns.heatmap(table, vmin=-reach, vmax=reach, cmap=GAIN_TO_LOSS, annot=texts, fmt="", annot_kws={"color": INK},
                linewidths=1.5, cbar=False, ax=ax)
    ax.tick_params("y", rotation=0)
    ax.set(xlabel="Market it is used in (cells: points lost)", ylabel="Market it is trained for")
    row, column = np.unravel_index(np.nanargmax(table), table.shape)
    alt = (f"Most is lost when trained for {table.index[row]} and used in {markets[column]}: "
            f"{table.iloc[row, column]:.2f}.")
    return described(ax, f"Heat map of points lost to a wrong forecast. {title}. {alt}")


@styled("measured", "predicted")
def latency_fit(frame: pd.DataFrame, title: str) -> Axes:
    """Predicted against measured latency of held-out subnets. Columns measured, predicted (ms), model (optional).

    On the diagonal a prediction is exact. With several models each has its colour; errors are means.
    """
    ax = new_axes(title, height=1.15)[0]
    models = frame["model"] if "model" in frame else pd.Series("held-out subnets", frame.index)
    error = 100 * (frame["predicted"] / frame["measured"] - 1).abs().groupby(models, sort=False).mean()
    for (model, rows), (marker, colour) in zip(frame.groupby(models, sort=False), MODELS.items(), strict=False):
        # One marker and a list of places: a scatter plot would write each of a thousand points with a style of its own.
        ax.plot(rows["measured"], rows["predicted"], marker, ms=4.5, mew=0, alpha=0.7, color=colour,
                label=f"{model}: off by {error[model]:.2g} %")
    ends = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot(ends, ends, color=GREY, lw=1.2, zorder=1)
    ax.set(xlabel="Measured latency (ms)", ylabel="Predicted latency (ms)", xlim=ends, ylim=ends)
    ax.legend(loc="upper left", handletextpad=0.1, borderaxespad=0)
    alt = " ".join(f"{model}: mean error {value:.2g} %." for model, value in error.items())
    return described(ax, f"Scatter plot of predicted against measured latency. {title}. {alt}")
