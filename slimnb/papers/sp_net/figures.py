"""Figures of chapter 02: what pruning keeps, how channels are sorted, how paths join, latency, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from slimnb.book.marks import MACS, NEUTRAL, dot_rows, lines, millions
from slimnb.book.style import GREY, INK, METHODS, described, legible, look, new_axes, styled

ABSENT, KEPT, ZERO = "#EDEAE4", METHODS["spnet"].colour, NEUTRAL
PRUNED = "#CDBFA8"
UNIT = "Channel unit (1 is the stem)"


@styled("unit", "gamma", "kept")
def gamma_histogram(frame: pd.DataFrame, title: str, threshold: float) -> np.ndarray:
    """|gamma| of all batch norms of a base, and unit by unit, largest first. Columns unit, gamma, kept (bool).

    A row per gamma, `unit` counts from 1. A column decides (bool, optional) is false for the gammas of depthwise
    layers, which follow the layer before them: they are drawn on the left only. What a unit keeps below the
    threshold is a floor's.
    """
    together, by_unit = axes = new_axes(title, 2, sharey=True, width_ratios=[1, 2.6])
    frame = frame.assign(size=frame["gamma"].abs()).sort_values("size", ascending=False)
    above = frame["size"] > threshold
    _profile(together, frame.assign(kept=above), 0, 100)
    deciding = frame[frame["decides"]] if "decides" in frame else frame
    for unit, rows in deciding.sort_values("kept", ascending=False, kind="stable").groupby("unit"):
        _profile(by_unit, rows, unit - 0.46, 0.92)
    units = deciding.groupby("unit")["kept"].mean()
    for ax in axes:
        ax.axhline(threshold, color=INK, lw=1.2)
        ax.grid(visible=False)
    together.set(xlabel="All gammas (%)", ylabel="Size of gamma, |γ|", xlim=(0, 100), ylim=(0, None))
    together.locator_params(axis="y", nbins=5)
    by_unit.set(xlabel=UNIT, xlim=(units.index.min() - 0.6, units.index.max() + 0.6), xticks=_ticks(units.index))
    handles = [Patch(color=KEPT, lw=0, label="kept"), Patch(color=PRUNED, lw=0, label="pruned"),
               Line2D([], [], color=INK, lw=1.2, label=f"threshold, {threshold:.2g}")]
    together.figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.2)
    alt = (f"Of {len(frame):,} gammas {above.mean():.0%} are above {threshold:.3g}. Unit {units.idxmax()} keeps most, "
            f"{units.max():.0%} of its channels, unit {units.idxmin()} least, {units.min():.0%}.")
    return described(axes, f"Sorted |gamma| of all batch norms and of each channel unit. {title}. {alt}")


@styled("arm", "name", "unit", "channels", "full")
def widths_by_layer(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Share of channels each unit keeps, one panel per subnet. Columns arm, name (width), unit, channels, full.

    `unit` counts from 1, `full` is the supernet's channels. A uniform subnet is level; a pruned one is not,
    because its width is a share of all the net's channels.
    """
    names = list(dict.fromkeys(frame["name"]))
    axes = new_axes(title, rows=len(names), height=0.42 + 0.34 * len(names), sharex=True, sharey=True)
    frame = frame.assign(share=100 * frame["channels"] / frame["full"])
    alt = []
    for ax, name in zip(axes, names, strict=True):
        for arm, rows in frame[frame["name"] == name].sort_values("unit").groupby("arm", sort=False):
            style, unit = look(arm), rows["unit"].to_numpy()
            ax.stairs(rows["share"], [*(unit - 0.5), unit[-1] + 0.5], baseline=None, color=style.colour, lw=1.6)
            low, high = rows["share"].min(), rows["share"].max()
            alt.append(f"{style.label} at {name}: {low:.0f} to {high:.0f} %.")
        ax.set(ylabel="Kept (%)", ylim=(0, 104), yticks=[0, 50, 100], xticks=_ticks(frame["unit"].unique()),
               xlim=(frame["unit"].min() - 0.5, frame["unit"].max() + 0.5))
        ax.set_title(name, loc="left", fontweight="bold")
        ax.grid(axis="x", visible=False)
    axes[-1].set(xlabel=UNIT)
    axes[0].figure.legend(handles=_handles(frame["arm"], marker=""), loc="outside lower center", ncols=2)
    return described(axes, f"Step charts of channels kept by channel unit. {title}. {' '.join(alt)}")


@styled()
def survivors(masks: Mapping[str, Sequence[bool]], order: Sequence[int], title: str) -> Axes:
    """Which channels of one unit each subnet keeps, as the base has them and sorted: a strip per subnet.

    `masks` (C,) by subnet, in the base's order, thinnest first; `order` (C,) the unit's channels, most important
    first. Lines follow the thinnest subnet's channels. Legible up to 128 channels; cells have edges up to 64.
    """
    order, names = np.asarray(order), list(masks)
    cells = np.array([masks[name] for name in names], dtype=int)
    notes = [str(count) for count in cells.sum(1)]
    ax, below = _two_blocks([cells, cells[:, order]], names, [notes, notes], title,
                            ["As trained: gathers", "Sorted: slices"])
    places = np.argsort(order)
    for channel in np.flatnonzero(cells[0]):
        ax.plot([channel, places[channel]], [len(cells) - 0.45, below - 0.55], color=KEPT, lw=0.8, alpha=0.7)
    ax.set(ylabel="Channels kept, by subnet", xlabel="Place of the channel in its unit")
    ax.locator_params(axis="x", integer=True)
    alt = "; ".join(f"{name} keeps {note} of {len(order)}" for name, note in zip(names, notes, strict=True))
    return described(ax, f"Strips of a unit's channels before and after sorting. {title}. {alt}.")


@styled()
def padding(paths: Mapping[str, Sequence[bool]], order: Sequence[int], title: str) -> Axes:
    """Zero padding match at one join: each path's channels, the zeros put in, their sum, with counts.

    `paths` (C,) by name: which channels of the base the body and the shortcut keep; `order` (C,): the base's
    channels in the order of the net's residual stream. Above as SP-Net's code has it, below as slices.
    """
    order, kept = np.asarray(order), np.array([*paths.values()], dtype=bool)
    rows = np.vstack([kept, kept.any(0)])  # the paths, and their sum
    reach = int(np.flatnonzero(rows[-1, order])[-1]) + 1
    blocks, notes = [], []
    for block, carried in ((rows, rows[-1]), (rows[:, order], np.arange(len(order)) < reach)):
        zeros = carried & ~block
        blocks.append(block + 2 * zeros)
        notes.append([f"{there} + {none} zeros" if none else str(there)
                      for there, none in zip(block.sum(1), zeros.sum(1), strict=True)])
    union = rows[-1].sum()
    ax, _ = _two_blocks(blocks, [*paths, "Sum"], notes, title,
                        [f"In the base's order: a gather of {union}", f"In the stream's order: a slice of {reach}"])
    ax.set(ylabel="Channels of the paths", xlabel="Place of the channel in the stream")
    handles = [Patch(color=colour, lw=0, label=label) for colour, label in
               ((KEPT, "kept"), (ZERO, "zeros put in"), (ABSENT, "pruned"))]
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.2)
    alt = "; ".join(f"{name} {row.sum()}" for name, row in zip(paths, kept, strict=True))
    return described(ax, f"Strips of channels at a join. {title}. Of {len(order)} channels, {alt}; "
                         f"the sum {union}, of which {kept.all(0).sum()} in all paths; a slice of {reach}.")


@styled("arm", "base", "name", "base_macs", "macs")
def multi_base(frame: pd.DataFrame, title: str) -> np.ndarray:
    """From which base each subnet's counts come, one panel per arm. Columns arm, base, name, base_macs, macs.

    A row per subnet: the counts of `name` are what pruning `base` to `macs` leaves. A base that is the name of
    another row of its arm is an earlier stage (iterative pruning).
    """
    arms = list(dict.fromkeys(frame["arm"]))
    axes = new_axes(title, len(arms), height=0.9, sharey=True)
    alt = []
    for ax, arm in zip(axes, arms, strict=True):
        style, stage, bases = look(arm), {}, {}
        for row in millions(frame[frame["arm"] == arm]).sort_values("macs", ascending=False).itertuples():
            start = stage.get(row.base, 0), row.base_macs / 1e6
            stage[row.name] = start[0] + 1
            if row.base not in stage:
                bases[row.base] = start
            end = stage[row.name], row.macs
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": style.colour, "lw": 1.4,
                                                    "shrinkA": 4, "shrinkB": 4})
            ax.plot(*end, style.marker, ms=7, mew=0, color=style.colour)
            ax.annotate(row.name, end, xytext=(7, 0), textcoords="offset points", va="center",
                        color=legible(style.colour))
            alt.append(f"{style.label}: {row.name} from {row.base}.")
        for base, at in bases.items():
            ax.plot(*at, "s", ms=7, mew=0, color=INK)
            ax.annotate(base, at, xytext=(0, 6), textcoords="offset points", ha="center")
        stages = max(stage.values())
        ax.set_title(style.label, loc="left", color=legible(style.colour))
        ax.set(xlabel="Times pruned", xlim=(-0.8 * stages, 1.95 * stages), xticks=range(stages + 1))
        ax.grid(axis="x", visible=False)
    axes[0].set(ylabel=MACS, ylim=(0, 1.12e-6 * frame["base_macs"].max()))
    return described(axes, f"Arrows from bases to the subnets pruned from them. {title}. {' '.join(alt)}")


@styled("net", "width", "way", "ms")
def latency_pairs(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> np.ndarray:
    """Latency against width, one panel per net. Columns net, width (multiplier), way, ms, repeat; `paper` the same.

    Ways are arms: "snet", "spnet_sorted" (slices), "spnet_unsorted" (gathers). The paper's latencies are open
    and grey, scaled so that its widest S-Net takes as long as ours.
    """
    nets = list(dict.fromkeys(frame["net"]))
    rows = 1 if len(nets) < 3 else 2
    axes = new_axes(title, -(-len(nets) // rows), height=0.15 + 0.85 * rows, rows=rows)
    alt = []
    for ax, net in zip(axes, nets, strict=False):
        ours = frame[frame["net"] == net]
        _, text = lines(ax, ours, "way", "width", "ms", look, ("×", "ms"))
        if paper is not None:
            theirs = paper[(paper["net"] == net) & paper["width"].isin(ours["width"])]
            scale = _s_net(ours, theirs["width"].max()) / _s_net(theirs, theirs["width"].max())
            for way, values in theirs.groupby("way", sort=False):
                ax.plot(values["width"], scale * values["ms"], look(way).marker, ms=6, mew=1.1, color=GREY, mfc="none")
        ax.margins(x=0.08)
        ax.set_title(net, loc="left")
        ax.set(xlabel="Width multiplier", ylabel="Latency (ms)", ylim=(0, None))
        ax.set_xticks(widths := sorted(ours["width"].unique()), [f"{width:g}" for width in widths])
        alt.append(f"{net}: {text}")
    for ax in axes[len(nets):]:
        ax.remove()
    handles = _handles(frame["way"], ms=6, mew=0)
    if paper is not None:
        handles.append(Line2D([], [], ls="none", marker="o", mfc="none", mec=GREY, label="paper, scaled"))
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(nets) == 1 else 4)
    return described(axes[:len(nets)], f"Line charts of latency against width. {title}. {' '.join(alt)}")


@styled("arm", "name", "error")
def errors(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> np.ndarray:
    """Top-1 error by width, a dot per arm. Columns arm, name (width), error (%), seed; `paper` the same, in grey."""
    axes = dot_rows(frame, paper, title, "name", "error", "Top-1 error (%)")
    axes[0].set(ylabel="Width multiplier")
    means = frame.groupby(["name", "arm"], sort=False)["error"].mean()
    best = means.groupby("name", sort=False).idxmin()
    alt = "; ".join(f"{name}: {look(arm).label}, {means[name, arm]:.1f} %" for name, arm in best)
    return described(axes, f"Dot plot of top-1 error. {title}. Least error: {alt}.")


def _profile(ax: Axes, rows: pd.DataFrame, start: float, width: float) -> None:
    """Fill `width` from `start` with the sizes of `rows` in their order, kept ones and pruned ones."""
    edges = start + width * np.linspace(0, 1, len(rows) + 1)
    split = int(rows["kept"].sum())
    ax.axvspan(edges[split], edges[-1], color=ABSENT, lw=0, zorder=0)  # the share that is pruned, however small
    for part, colour in ((slice(0, split), KEPT), (slice(split, None), PRUNED)):
        size, left = rows["size"].to_numpy()[part], edges[:-1][part]
        at = np.unique(np.linspace(0, len(size) - 1, 40).round().astype(int))  # more cannot be seen
        if len(size):
            ax.stairs(size[at], [*left[at], edges[1:][part][-1]], fill=True, color=colour, lw=0)


def _ticks(units: Sequence[int]) -> np.ndarray:
    """The first unit and some of the others, at equal distances."""
    return np.sort(units)[:: -(-len(units) // 8)]


def _two_blocks(blocks: Sequence[np.ndarray], names: list[str], notes: Sequence[list[str]], title: str,
                heads: Sequence[str]) -> tuple[Axes, float]:
    """Two blocks of strips, one over the other; returns the axes and the first row of the lower block.

    A cell is 0 (pruned), 1 (kept) or 2 (zeros); `notes` stand to the right of their rows.
    """
    rows, channels = blocks[0].shape
    below = rows + 1.7
    ax = new_axes(title, height=0.5 + 0.14 * rows)[0]
    edges = {"edgecolors": "white", "lw": 0.8} if channels <= 64 else {"lw": 0}  # of many, edges would cover the cells
    for start, block, of_rows, head in zip((0, below), blocks, notes, heads, strict=True):
        ax.pcolormesh(np.arange(channels), start + np.arange(rows), block, vmin=0, vmax=2,
                      cmap=ListedColormap([ABSENT, KEPT, ZERO]), **edges)
        ax.annotate(head, (channels - 0.5, start - 0.6), xytext=(0, 2), textcoords="offset points", ha="right",
                    fontweight="bold", bbox={"facecolor": "white", "lw": 0, "pad": 1})
        for row, note in enumerate(of_rows):
            ax.annotate(note, (1, start + row), xytext=(5, 0), textcoords="offset points", va="center",
                        xycoords=("axes fraction", "data"))
    ax.set(xlim=(-0.5, channels - 0.5), ylim=(below + rows - 0.4, -1.4))
    ax.set_yticks([*range(rows), *(below + np.arange(rows))], names * 2)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return ax, below


def _handles(arms: Sequence[str], **kw) -> list[Line2D]:
    """Legend entries of the arms' lines."""
    styles = [look(arm) for arm in dict.fromkeys(arms)]
    return [Line2D([], [], **{"marker": style.marker, "color": style.colour, "label": style.label} | kw)
            for style in styles]


def _s_net(frame: pd.DataFrame, width: float) -> float:
    """Latency (ms) of the S-Net of that width."""
    rows = frame[frame["width"] == width]
    return rows.loc[[look(way) == look("snet") for way in rows["way"]], "ms"].mean()
