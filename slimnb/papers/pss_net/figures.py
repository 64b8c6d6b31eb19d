"""Figures of chapter 04: how structures are drawn, what pools hold, accuracy by resource, costs, switching."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from slimnb.book.marks import DASHES, MACS, NEUTRAL, TOP1, dot_rows, lines
from slimnb.book.style import GREY, INK, METHODS, Look, described, label_ends, look, new_axes, styled

RESOURCES = {"MACs": (MACS, "M MACs"), "CPU latency": ("CPU latency (ms)", "ms"),
             "GPU latency": ("GPU latency (ms)", "ms")}
POOLED = METHODS["pssnet"].colour
RARER_TO_LIKELIER = LinearSegmentedColormap.from_list("rarer to likelier", ["#2C7FB8", "#FFFFFF", "#D95F0E"], 257)


# -- how structures are drawn ----------------------------------------------------------------------------


@styled("arm", "cost", "trials")
def trials(frame: pd.DataFrame, title: str) -> Axes:
    """Structures drawn per accepted one, by bucket and way of drawing. Columns arm, cost (MACs), trials.

    Arms as `look` knows them, or "Naive", "Eq. 4" and "Exact". A bucket in which nothing was accepted has NaN.
    """
    ax, ends, alt = new_axes(title)[0], [], []
    ways = {"Naive": GREY, "Eq. 4": POOLED, "Exact": INK}
    for (arm, rows), dashes in zip(frame.groupby("arm", sort=False), DASHES * 3, strict=False):
        rows, colour = rows.sort_values("cost"), ways.get(arm, look(arm).colour)
        ax.plot(rows["cost"] / 1e6, rows["trials"], dashes=dashes, color=colour, marker="o", ms=4, mew=0)
        finite = rows.dropna(subset="trials")
        ends.append((finite["cost"].iloc[-1] / 1e6, finite["trials"].iloc[-1], arm, colour))
        alt.append(f"{arm}: {finite['trials'].min():,.3g} to {finite['trials'].max():,.3g} per accepted one.")
    ax.set(yscale="log", xlabel=MACS, ylabel="Drawn subnets per accepted one")
    _plain_log(ax)
    label_ends(ax, ends)
    return described(ax, f"Line chart of drawn subnets per accepted one, by bucket. {title}. {' '.join(alt)}")


def _plain_log(ax: Axes) -> None:
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.minorticks_off()


@styled("bucket", "unit", "mult", "probability", "prior")
def bucket_marginals(frame: pd.DataFrame, title: str) -> np.ndarray:
    """How much likelier than in the whole space each choice is in a bucket, one panel per bucket.

    Columns bucket, unit (a name, in order), mult (share of the largest choice), probability, prior.
    """
    buckets, units = (list(dict.fromkeys(frame[column])) for column in ("bucket", "unit"))
    axes = new_axes(title, len(buckets), height=1.1, sharey=True)
    change = np.log2(frame["probability"].clip(lower=2e-3) / frame["prior"])
    frame, reach = frame.assign(change=change), max(0.5, np.ceil(2 * change.abs().quantile(0.98)) / 2)
    alt = []
    for ax, bucket in zip(axes, buckets, strict=True):
        panel = frame[frame["bucket"] == bucket]
        for at, unit in enumerate(units):
            rows = panel[panel["unit"] == unit].sort_values("mult")
            edges = _edges(rows["mult"].to_numpy())
            image = ax.pcolormesh([at - 0.5, at + 0.5], edges, rows[["change"]], cmap=RARER_TO_LIKELIER,
                                  vmin=-reach, vmax=reach)
        widest = panel.groupby("unit")["mult"].transform("max") == panel["mult"]
        alt.append(f"{bucket}: largest choices have probability {panel.loc[widest, 'probability'].mean():.2g}.")
        ax.set_title(bucket, loc="left")
        ax.set(xlabel="Unit (1: the stem)", xlim=(-0.5, len(units) - 0.5),
               ylim=(frame["mult"].min() - 0.02, frame["mult"].max() + 0.02))
        ax.set_xticks(range(0, len(units), max(1, len(units) // 5)), units[::max(1, len(units) // 5)])
        ax.grid(visible=False)
    axes[0].set(ylabel="Share of channels (full net = 1)")
    bar = axes[0].figure.colorbar(image, ax=axes.tolist(), ticks=[-reach, 0, reach], aspect=30)
    bar.ax.set_yticklabels([f"{2 ** -reach:.2g}×", "as drawn", f"{2 ** reach:.2g}×"])
    bar.outline.set_visible(False)
    return described(axes, f"Heat maps of choices in buckets. {title}. {' '.join(alt)}")


def _edges(centres: np.ndarray) -> np.ndarray:
    middle = (centres[1:] + centres[:-1]) / 2
    step = np.diff(centres).mean() if len(centres) > 1 else 0.1
    return np.concatenate([[centres[0] - step / 2], middle, [centres[-1] + step / 2]])


# -- pools -----------------------------------------------------------------------------------------------


@styled("epoch", "p", "eta")
def exploration(frame: pd.DataFrame, title: str) -> np.ndarray:
    """How the share of new structures p and the temperature eta (nats) of full pools fall. Columns epoch, p, eta.

    With a column reused, the share of passes that came from pools, that is drawn too.
    """
    left, right = axes = new_axes(title, 2)
    left.plot(frame["epoch"], frame["p"], color=POOLED)
    if "reused" in frame:
        left.plot(frame["epoch"], 1 - frame["reused"], "o", ms=4, mew=0, color=INK, label="share that was new")
        left.legend(loc="upper right")
    left.set(xlabel="Epoch", ylabel="Probability of a new structure", ylim=(0, 1.04))
    right.plot(frame["epoch"], frame["eta"], color=POOLED)
    right.set(xlabel="Epoch", ylabel="Temperature η (nats)", yscale="log")
    _plain_log(right)
    first, last = frame.iloc[0], frame.iloc[-1]
    return described(axes, f"Line charts of p and of the temperature. {title}. p falls from {first['p']:.3g} to "
                           f"{last['p']:.3g}, the temperature from {first['eta']:.3g} to {last['eta']:.3g} nats.")


@styled("pool", "since", "metric")
def pool_contents(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Metrics of pooled structures against the step they came at. Columns pool, since (step), metric (nats).

    With a column chosen (bool) the structures that were chosen by validation are filled with ink.
    """
    pools = list(dict.fromkeys(frame["pool"]))
    axes = new_axes(title, len(pools), sharex=True, sharey=True)
    chosen = frame["chosen"] if "chosen" in frame else pd.Series(False, frame.index)
    alt = []
    for ax, pool in zip(axes, pools, strict=True):
        rows, marked = frame[frame["pool"] == pool], chosen[frame["pool"] == pool]
        ax.plot(rows["since"], rows["metric"], "o", ms=4.5, mew=0, alpha=0.75, color=POOLED)
        ax.plot(rows["since"][marked], rows["metric"][marked], "D", ms=7, mew=0, color=INK)
        ax.set_title(pool, loc="left")
        ax.set(xlabel="Training step of entry")
        ax.locator_params(axis="x", nbins=3)
        varied = rows[["since", "metric"]].nunique().min() > 1
        rank = rows["since"].corr(rows["metric"], "spearman") if varied else 0.0
        alt.append(f"{pool}: {len(rows)} structures, rank correlation {rank:.2f}.")
    axes[0].set(ylabel="Metric (nats)")
    if chosen.any():
        marks = [("o", POOLED, "in the pool"), ("D", INK, "chosen by validation")]
        handles = [Line2D([], [], ls="none", marker=m, color=c, mew=0, label=text) for m, c, text in marks]
        axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.1)
    return described(axes, f"Scatter plots of metric against step of entry. {title}. {' '.join(alt)}")


# -- accuracy --------------------------------------------------------------------------------------------


@styled("resource", "arm", "cost", "top1")
def accuracy_by_resource(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> np.ndarray:
    """Accuracy against each resource, one panel per resource. Columns resource, arm, cost (MACs or ms), top1, seed.

    `paper` has the same columns; it gets a row of panels of its own, in grey, since its data and machine differ.
    """
    resources = list(dict.fromkeys(frame["resource"]))
    frames = [frame] if paper is None else [frame, paper]
    axes = new_axes(title, len(resources), height=0.95 * len(frames), rows=len(frames))
    alt, arms = [], list(dict.fromkeys(pd.concat(frames)["arm"]))
    panels = [(rows, resource, rows is paper) for rows in frames for resource in resources]
    for ax, (rows, resource, grey) in zip(axes, panels, strict=True):
        label, unit = RESOURCES.get(resource, (resource, ""))
        rows = rows[rows["resource"] == resource]
        rows = rows.assign(cost=rows["cost"] / (1e6 if resource == "MACs" else 1))
        _, text = lines(ax, rows, "arm", "cost", "top1", _grey if grey else look, (unit, "%"))
        alt.append(f"{resource}{' in the paper' if grey else ''}: {text}")
        ax.set(xlabel=label)
        ax.locator_params(axis="x", nbins=4)
    for ax, name in zip(axes[::len(resources)], ("Here", "Paper"), strict=False):
        ax.set(ylabel=TOP1)
        if paper is not None:
            ax.set_title(name, loc="left", color=INK if name == "Here" else GREY)
    handles = [Line2D([], [], color=look(arm).colour, marker=look(arm).marker, mew=0, ms=5, label=look(arm).label)
               for arm in arms]
    columns = min(len(handles), 3 if len(resources) == 1 else 5)
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return described(axes, f"Line charts of top-1 accuracy by resource. {title}. {' '.join(alt)}")


def _grey(arm: str) -> Look:
    return replace(look(arm), colour=GREY)


@styled("pool", "k", "top1")
def top_k(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> Axes:
    """Accuracy gained by calibrating k subnets of a pool instead of one (Table 5). Columns pool, k, top1 (%), seed.

    `paper` has the same columns and is grey; gains are over its own k = 1.
    """
    ax, alt, ends = new_axes(title)[0], [], []
    for rows, colours in ((frame, [POOLED, INK, NEUTRAL]), (paper, [GREY] * 3)):
        for at, (pool, of_pool) in enumerate([] if rows is None else rows.groupby("pool", sort=False)):
            mean = of_pool.groupby("k")["top1"].mean()
            gain, colour = mean - mean.iloc[0], colours[at % 3]
            ax.plot(gain.index, gain, dashes=DASHES[at % 3], color=colour, marker="o", ms=4.5, mew=0,
                    zorder=1 if rows is paper else 2)
            name = f"{pool} (paper)" if rows is paper else pool
            ends.append((gain.index[-1], gain.iloc[-1], name, colour))
            alt.append(f"{name}: {gain.iloc[-1]:+.2g} points at k = {gain.index[-1]}.")
    ax.set(xlabel="Calibrated subnets of each pool", ylabel="Gain over the first (points)")
    ax.set_xticks(sorted(frame["k"].unique()))
    label_ends(ax, ends)
    return described(ax, f"Line chart of gains by calibrating more subnets. {title}. {' '.join(alt)}")


@styled("pool", "arm", "top1")
def fine_tuning(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> np.ndarray:
    """Subnets in the supernet and trained further (Table 6), a row per pool. Columns pool, arm, top1 (%), seed."""
    axes = dot_rows(frame, paper, title, "pool", "top1", TOP1)
    axes[0].set(ylabel="Pool (MACs)")
    mean = frame.groupby(["pool", "arm"], sort=False)["top1"].mean()
    alt = "; ".join(f"{pool}, {arm}: {value:.1f} %" for (pool, arm), value in mean.items())
    return described(axes, f"Dot plot of accuracy before and after fine-tuning. {title}. {alt}.")


# -- what it costs, and running it -----------------------------------------------------------------------


@styled("method", "training", "storage")
def costs(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Training and storage of N subnets in supernets (Table 3). Columns method, training, storage, measured (bool).

    Rows that are not measured are the paper's bounds, in grey.
    """
    axes = new_axes(title, 2, height=0.5 + 0.12 * len(frame), sharey=True)
    measured = frame["measured"] if "measured" in frame else pd.Series(False, frame.index)
    for ax, column in zip(axes, ("training", "storage"), strict=True):
        colours = np.where(measured, [look(method).colour for method in frame["method"]], GREY)
        ax.bar_label(ax.barh(range(len(frame)), frame[column], 0.62, color=colours), fmt="{:.3g}", padding=4)
        ax.set(xscale="log", xlim=(0.8, 3 * frame[column].max()), xlabel=f"{column.title()} (supernet = 1)")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(frame)), frame["method"])
    axes[0].set(ylim=(len(frame) - 0.5, -0.5), ylabel="Method, for N subnets")
    if measured.any():
        handles = [Patch(color=GREY, label="bound, as printed"), Patch(color=POOLED, label="measured")]
        axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=2)
    alt = "; ".join(f"{row.method}: training {row.training:.3g}, storage {row.storage:.3g}"
                     for row in frame.itertuples())
    return described(axes, f"Bars of training and storage cost. {title}. {alt}.")


@styled("batch", "budget", "cost", "top1_val")
def switching(frame: pd.DataFrame, title: str, resource: str = "MACs") -> np.ndarray:
    """A switcher under a changing budget: what is allowed, what is spent, how accurate that is.

    Columns batch (its number), budget, cost (MACs or ms), top1_val (%) of the subnet that was picked.
    """
    upper, lower = axes = new_axes(title, rows=2, height=1.2, sharex=True)
    label, unit = RESOURCES.get(resource, (resource, ""))
    scale = 1e6 if resource == "MACs" else 1
    for column, colour, name in (("budget", GREY, "budget"), ("cost", POOLED, "picked")):
        upper.step(frame["batch"], frame[column] / scale, where="post", color=colour, label=name)
    upper.set(ylabel=label.replace(" per image", ""))
    upper.figure.legend(loc="outside lower center", ncols=2)
    lower.step(frame["batch"], frame["top1_val"], where="post", color=POOLED)
    lower.set(xlabel="Batch of images", ylabel=TOP1)
    over = int((frame["cost"] > frame["budget"]).sum())
    alt = (f"Of {len(frame)} batches {over} cost more than allowed; budgets run from "
            f"{frame['budget'].min() / scale:.3g} to {frame['budget'].max() / scale:.3g} {unit}, accuracies from "
            f"{frame['top1_val'].min():.3g} to {frame['top1_val'].max():.3g} %.")
    return described(axes, f"Step charts of budget, cost and accuracy. {title}. {alt}")
