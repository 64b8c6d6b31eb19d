"""Figures of chapters 00 and 01: accuracy against MACs, statistics, calibration, latency, layers, images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from scipy.stats import binomtest

from slimnb.book.marks import DASHES, MACS, NEUTRAL, TOP1, line_chart, lines, millions, stack
from slimnb.book.style import GREY, INK, Look, described, label_ends, legible, look, new_axes, styled, width_colour

MODES = {"slice": "#0072B2", "sorted": "#009E73", "unsorted": "#D55E00"}
PARTS = {"1×1 convolution": NEUTRAL, "depthwise convolution": "#B5482A", "3×3 convolution": INK,
         "linear": "#E0B84C"}


@styled("arm", "macs", "top1")
def accuracy(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> Axes:
    """Accuracy against MACs, one line per arm. Columns arm, macs, top1 (%), seed; `paper` arm, macs, top1.

    With a column platform the line joins each platform's mean: searched nets differ in MACs by seed.
    """
    ax, alt = line_chart(millions(frame), title, "arm", "macs", "top1", look, ("M MACs", "%"), millions(paper),
                          xlabel=MACS, ylabel=TOP1)
    return described(ax, f"Line chart of top-1 accuracy against MACs. {title}. {alt}")


@styled("arm", "macs", "top1_easy", "top1_hard")
def easy_and_hard(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Accuracy against MACs on easy and on hard images. Columns arm, macs, top1_easy, top1_hard (%), seed."""
    axes = new_axes(title, 2, sharey=True)
    alt = []
    panels = {"top1_easy": "Easy images", "top1_hard": "Hard images"}
    for ax, (column, name) in zip(axes, panels.items(), strict=True):
        ends, text = lines(ax, millions(frame), "arm", "macs", column, look, ("M MACs", "%"))
        ax.set_title(name, loc="left")
        ax.set(xlabel=MACS)
        alt.append(f"{name}: {text}")
    axes[0].set(ylabel=TOP1)
    label_ends(axes[1], ends)
    return described(axes, f"Two line charts of top-1 accuracy against MACs. {title}. {' '.join(alt)}")


@styled("mult", "channel", "mean", "var")
def statistics(frame: pd.DataFrame, title: str) -> np.ndarray:
    """BN statistics of one layer at slimmer widths against full width. Columns mult, channel, mean, var.

    On the diagonal one set of statistics would serve both widths; distance from it is what goes wrong.
    """
    axes = new_axes(title, 2)
    full, slim = (rows for _, rows in frame.groupby(frame["mult"] < frame["mult"].max()))
    both = slim.sort_values("mult", ascending=False, kind="stable").merge(full, on="channel", suffixes=("", "_full"))
    colours = {f"{mult:g}×": width_colour(mult) for mult in both["mult"].unique()}
    widths, alt = both["mult"].map("{:g}×".format), []
    for ax, (column, name) in zip(axes, {"mean": "mean", "var": "variance"}.items(), strict=True):
        sns.scatterplot(both, x=f"{column}_full", y=column, hue=widths, palette=colours, s=20, lw=0, alpha=0.85, ax=ax)
        off = (both[column] - both[f"{column}_full"]).abs().groupby(widths, sort=False).median()
        alt += [f"{name} at {width} is off by {value:.3g} (median)." for width, value in off.items()]
        if column == "var":
            ax.set(xscale="log", yscale="log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
        ends = np.array([frame[column].min(), frame[column].max()])
        ax.plot(ends, ends, color=GREY, lw=1.2, zorder=1)
        ax.set(xlabel=f"Running {name}, full width", ylabel=f"Running {name}, slimmer")
        ax.get_legend().remove()
    axes[0].annotate("no change", (0.98, 0.98), xycoords="axes fraction", ha="right", va="top", color=GREY)
    handles = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(*handles, loc="outside right center", title="Width", handletextpad=0.1)
    return described(axes, f"Two scatter plots of a layer's BN statistics. {title}. {' '.join(alt)}")


@styled("arm", "step", "mult", "loss")
def training_curves(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Training loss per width, one panel per arm. Columns arm, step, mult, loss (nats).

    The faint line is every logged loss, the strong one its running mean over a twentieth of the training.
    """
    arms = list(dict.fromkeys(frame["arm"]))
    axes = new_axes(title, len(arms), sharey=True)
    alt = []
    for ax, arm in zip(axes, arms, strict=True):
        ends = []
        for mult, rows in frame[frame["arm"] == arm].groupby("mult"):
            loss, colour = rows.groupby("step")["loss"].mean(), width_colour(mult)
            smooth = loss.rolling(max(1, len(loss) // 20), min_periods=1).mean()
            thin = slice(None, None, -(-len(loss) // 300))  # a long run must not make a heavy file
            ax.plot(loss.index[thin], loss.iloc[thin], color=colour, lw=0.7, alpha=0.3)
            ax.plot(smooth.index[thin], smooth.iloc[thin], color=colour)
            ends.append((smooth.index[-1], smooth.iloc[-1], f"{mult:g}×", colour))
            alt.append(f"{look(arm).label} at {mult:g}× ends at {smooth.iloc[-1]:.3g}.")
        ax.set(xlabel="Training step")
        ax.set_title(look(arm).label, loc="left", color=legible(look(arm).colour))
        label_ends(ax, ends)
    axes[0].set(ylabel="Training loss (nats)")
    return described(axes, f"Line chart of training loss against steps. {title}. {' '.join(alt)}")


@styled("mult", "images", "top1")
def calibration(frame: pd.DataFrame, title: str) -> Axes:
    """Accuracy against the number of BN calibration images. Columns mult, images, top1 (%), seed."""
    ticks = sorted(frame["images"].unique())
    ticks = ticks[:: -(-len(ticks) // 6)]
    ax, alt = line_chart(frame, title, "mult", "images", "top1", _width_look, ("images", "%"), xscale="log",
                          xlabel="Calibration images", ylabel=TOP1, xticks=ticks,
                          xticklabels=[f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    return described(ax, f"Line chart of accuracy against calibration images. {title}. {alt}")


@styled("mode", "ms")
def latency_bars(frame: pd.DataFrame, title: str) -> Axes:
    """Latency of each way to run a slimmer net over the full net's. Columns mode, ms, paper_ms (optional).

    A mode "full" is needed. The paper's grey bars are divided by the paper's own full net.
    """
    ax = new_axes(title)[0]
    ours = frame.groupby("mode", sort=False).mean(numeric_only=True)
    both = "paper_ms" in ours
    shift, size = (0.2, 0.38) if both else (0.0, 0.62)
    places = pd.Series(np.arange(len(ours)), ours.index, dtype=float)
    colours = [MODES.get(mode, NEUTRAL) for mode in ours.index]
    ratio = frame["ms"] / ours.loc["full", "ms"]
    _bars(ax, places - shift, ours["ms"], size, colours, ratio.groupby(frame["mode"], sort=False).max(), INK)
    if len(frame) > len(ours):
        ax.plot(frame["mode"].map(places) - shift, ratio, "o", ms=3.5, mew=0, color=INK, alpha=0.6)
    if both:
        theirs = ours["paper_ms"]
        _bars(ax, places + shift, theirs, size, "#CFCFCF", theirs / theirs["full"], GREY)
        ax.annotate("grey: paper", (0.99, 0.99), xycoords="axes fraction", ha="right", va="top", color=GREY)
    ax.axhline(1, color=GREY, lw=1, zorder=0.5)
    ax.set_xticks(places, [str(mode).capitalize() for mode in ours.index])
    ax.set(ylabel="Latency (full net = 1)", xlabel="Way to run a slimmer net (bars carry ms)")
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.18)
    alt = " ".join(f"{mode}: {ms:.3g} ms." for mode, ms in ours["ms"].items())
    return described(ax, f"Bar chart of latency. {title}. {alt}")


@styled("mode", "mult", "ms")
def latency_by_width(frame: pd.DataFrame, title: str) -> Axes:
    """Latency against width, one line per mode. Columns mode, mult, ms, paper_ms (optional)."""
    paper = frame.assign(ms=frame["paper_ms"]) if "paper_ms" in frame else None
    ax, alt = line_chart(frame, title, "mode", "mult", "ms", _mode_look, ("×", "ms"), paper, ylim=(0, None),
                          xlabel="Width multiplier", ylabel="Latency (ms)", xticks=sorted(frame["mult"].unique()))
    return described(ax, f"Line chart of latency against width. {title}. {alt}")


@styled()
def image_grid(images, labels, difficulty, class_names, title: str, columns: int = 8) -> Axes:
    """Images by difficulty, one row per class. Shapes (N, 3, S, S) uint8, (N,) ints, (N,) in [0, 1]."""
    images, labels, difficulty = np.asarray(images), np.asarray(labels), np.asarray(difficulty)
    side, rows = images.shape[-1] + 2, len(class_names)
    sheet = np.full((rows * side, columns * side, 3), 255, np.uint8)
    bins = np.minimum((difficulty * columns).astype(int), columns - 1)
    for row in range(rows):
        for column in range(columns):
            there = np.flatnonzero((labels == row) & (bins == column))
            if len(there):
                y, x = row * side + 1, column * side + 1
                sheet[y:y + side - 2, x:x + side - 2] = images[there[0]].transpose(1, 2, 0)
    ax = new_axes(title, height=(rows / columns * 4.6 + 1.1) / 3.6)[0]
    ax.imshow(sheet, extent=(0, 1, rows - 0.5, -0.5), aspect="auto")
    ax.set_yticks(range(rows), class_names)
    ax.set(xlabel="Difficulty (0 easiest, 1 hardest)", ylabel="Class")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return described(ax, f"Grid of images, {rows} classes by {columns} steps of difficulty. {title}.")


@styled()
def slicing_diagram(weight, widths, title: str) -> np.ndarray:
    """Which weights of a 1x1 convolution each width uses. `weight` (out, in), `widths` channel counts."""
    weight = np.asarray(weight)
    axes = new_axes(title, len(widths), height=0.78, sharey=True)
    outs, ins = weight.shape
    for ax, width in zip(axes, widths, strict=True):
        for (o, i), value in np.ndenumerate(weight):
            face, ink = ("#0072B2", "white") if max(o, i) < width else ("#F1F1F1", GREY)
            ax.add_patch(Rectangle((i + 0.53, o + 0.53), 0.94, 0.94, color=face, lw=0))
            ax.text(i + 1, o + 1, f"{value:g}".replace("-", "−"), ha="center", va="center", color=ink)
        ax.set(xlim=(0.5, ins + 0.5), ylim=(outs + 0.5, 0.5), box_aspect=outs / ins,
               xlabel="Input channel",
               xticks=range(1, ins + 1), yticks=range(1, outs + 1))
        used = weight[:width, :width].size
        ax.set_title(f"Width {width}: {used} weight{'s' * (used > 1)}", loc="left")
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    axes[0].set(ylabel="Output channel")
    alt = f"Widths {', '.join(map(str, widths))} use the top left square of that side."
    return described(axes, f"Weight matrices of a sliced convolution. {title}. {alt}")


@styled("layer", "part", "macs")
def layer_macs(frame: pd.DataFrame, title: str) -> Axes:
    """MACs of every layer, its parts stacked. Columns layer, part, macs; layers in the order of the frame."""
    ax = new_axes(title)[0]
    table = millions(frame).pivot_table("macs", "layer", "part", aggfunc="sum", fill_value=0, sort=False)
    table = table[table.sum().sort_values(ascending=False).index]
    colours = [PARTS.get(part, GREY) for part in table]
    table.columns = alt = [f"{part}, {share:.1%}" for part, share in (table.sum() / table.to_numpy().sum()).items()]
    stack(ax.bar, range(len(table)), table, 0.72, colours, lw=0)
    ax.set_xticks(range(len(table)), [name.removeprefix("block") for name in table.index], fontsize=9)
    ax.set(xlabel="Layer (numbers are blocks)", ylabel="MACs (millions)")
    ax.grid(axis="x", visible=False)
    ax.figure.legend(loc="outside lower center", ncols=2, handlelength=1.2)
    return described(ax, f"Stacked bars of MACs per layer. {title}. {'; '.join(alt)}.")


@styled()
def cost_histogram(macs, uniform: dict[float, float], title: str) -> Axes:
    """How many random subnets cost how much. `macs` (N,); `uniform` has the MACs of each width multiplier."""
    ax = new_axes(title)[0]
    random, mults, marks = np.asarray(macs) / 1e6, sorted(uniform), np.array(sorted(uniform.values())) / 1e6
    across = ax.get_xaxis_transform()  # x in MACs, y in heights of the axes
    sns.histplot(random, bins=60, color=NEUTRAL, lw=0, alpha=1, label="random subnets", ax=ax)
    ax.set(ylim=(0, 1.18 * ax.get_ylim()[1]), xlabel=MACS, ylabel="Number of subnets")
    ax.plot(marks, np.full(len(marks), 0.93), "v", ms=6, mew=0, color=INK, transform=across,
            label="uniform subnets")
    gap, last = 0.07 * np.ptp(marks), -np.inf
    for mult, cost in zip(mults, marks, strict=True):
        if cost - last > gap:  # the slim end is crowded: name what fits
            ax.annotate(f"{mult:g}×", (cost, 0.96), xycoords=across, ha="center", fontsize=9)
            last = cost
    ax.figure.legend(loc="outside lower center", ncols=2, handlelength=1.2)
    low, high = np.quantile(random, [0.25, 0.75])
    alt = (f"{len(random):,} random subnets cost {random.min():.3g} to {random.max():.3g} M MACs, half of "
            f"them {low:.3g} to {high:.3g}; uniform ones {marks[0]:.3g} to {marks[-1]:.3g}.")
    return described(ax, f"Histogram of MACs. {title}. {alt}")


@styled("difficulty", "correct")
def difficulty_profile(frame: pd.DataFrame, title: str, chance: float = 10, bins: int = 5) -> np.ndarray:
    """How many images are how hard, and how accurate a method is on them. Columns difficulty, correct (bool).

    Bars on the dots are 95 % Wilson intervals; `chance` (%) is the dashed line.
    """
    axes = new_axes(title, 2)
    edges = np.linspace(0, 1, bins + 1)
    centre = (edges[1:] + edges[:-1])[np.digitize(frame["difficulty"], edges[1:-1])] / 2
    sns.histplot(frame, x="difficulty", bins=edges, color=NEUTRAL, shrink=0.94, lw=0, alpha=1, ax=axes[0])
    axes[0].set(ylabel="Number of images")
    sns.lineplot(x=centre, y=100 * frame["correct"], errorbar=_wilson, err_style="bars", err_kws={"lw": 1.2},
                 marker="o", mew=0, color=INK, lw=1.6, ax=axes[1])
    axes[1].axhline(chance, color=GREY, lw=1.2, dashes=DASHES[1])
    axes[1].annotate("chance", (0, chance), xytext=(0, -4), textcoords="offset points", va="top", color=GREY)
    axes[1].set(ylabel=TOP1, ylim=(0, 102))
    for ax in axes:
        ax.set(xlabel="Difficulty (0 easiest, 1 hardest)", xlim=(-0.03, 1.03))
    alt = f"From easy to hard: {', '.join(f'{value:.0f} %' for value in axes[1].lines[0].get_ydata())}."
    return described(axes, f"Histogram of difficulty, and accuracy by difficulty. {title}. {alt}")


def _wilson(hits: pd.Series) -> np.ndarray:
    """95 % Wilson interval (%) of a share, from one value of 0 or 100 per image."""
    return 100 * np.array(binomtest(int((hits > 0).sum()), len(hits)).proportion_ci(method="wilson"))


def _width_look(mult: float) -> Look:
    return Look(f"{mult:g}×", width_colour(mult))


def _mode_look(mode: str) -> Look:
    return Look(str(mode).capitalize(), MODES.get(mode, INK))


def _bars(ax: Axes, places: pd.Series, ms: pd.Series, size: float, colours, tops: pd.Series, ink: str):
    """Bars relative to the mode "full"; the milliseconds stand above `tops`, where the dots end."""
    ax.bar(places, ms / ms["full"], size, color=colours, lw=0)
    for x, value, top in zip(places, ms, tops, strict=True):
        ax.annotate(f"{value:.3g}", (x, top), xytext=(0, 4), textcoords="offset points", ha="center",
                    color=ink, fontsize=9.5)
