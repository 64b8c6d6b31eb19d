"""What figures of several chapters share: dashes, axis labels, lines with dots, curves, rows of dots, the paper's."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from slimnb.book.style import GREY, INK, label_ends, look, new_axes

DASHES = ["-", (0, (4, 1.5)), (0, (1, 1.2))]  # a method's first, second and third arm
TOP1, MACS = "Top-1 accuracy (%)", "MACs per image (millions)"
NEUTRAL = "#7FA8C9"  # what belongs to no method


def millions(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its MACs in millions."""
    return frame.assign(macs=frame["macs"] / 1e6)


def lines(ax: Axes, frame: pd.DataFrame, by: str, x: str, y: str, look_of: Callable, units: tuple):
    """Dots per row and the line of means for each `by`; returns the ends to label and a description.

    Means are taken per x, or per platform where the frame has that column: nets searched for one platform
    differ in x from seed to seed.
    """
    ends, told, drawn = [], [], []
    at = "platform" if "platform" in frame else x
    for name, rows in frame.groupby(by, sort=False):
        style, mean = look_of(name), rows.groupby(rows[at].to_numpy())[[x, y]].mean().sort_values(x).to_numpy()
        dashes = DASHES[min(len(DASHES) - 1, drawn.count(style.colour))]
        drawn.append(style.colour)
        ax.plot(rows[x], rows[y], style.marker, ms=5, mew=0, alpha=0.7, color=style.colour)
        ax.plot(*mean.T, ls=dashes, color=style.colour)
        ends.append((*mean[-1], style.label, style.colour))
        first, last = (f"{mean[k, 1]:.3g} {units[1]} at {mean[k, 0]:,.4g} {units[0]}" for k in (0, -1))
        told.append(f"{style.label}: {first}, {last}.")
    return ends, " ".join(told)


def paper_lines(ax: Axes, frame: pd.DataFrame, by: str, x: str, y: str) -> list:
    """The paper's curves, grey and dashed under ours; returns the one end that is labelled."""
    for _, rows in frame.groupby(by, sort=False):
        mean = rows.groupby(x)[y].mean()
        ax.plot(mean.index, mean, color=GREY, lw=1.4, ls=DASHES[1], zorder=1)
    return [(mean.index[-1], mean.iloc[-1], "Paper", GREY)]


def curves(frame: pd.DataFrame, title: str, x: str, y: str, xlabel: str, ylabel: str,
           paper: pd.DataFrame | None = None) -> Axes:
    """A line of means per arm over `x`, with a thin one for each seed; ends are labelled."""
    ax, ends, drawn = new_axes(title)[0], [], []
    for arm, rows in frame.groupby("arm", sort=False):
        style, mean = look(arm), rows.groupby(x)[y].mean()
        dashes = DASHES[min(len(DASHES) - 1, drawn.count(style.colour))]
        drawn.append(style.colour)
        for _, of_seed in rows.groupby("seed") if "seed" in rows else []:
            ax.plot(of_seed[x], of_seed[y], color=style.colour, lw=0.7, alpha=0.4)
        ax.plot(mean.index, mean, color=style.colour, ls=dashes)
        ends.append((mean.index[-1], mean.iloc[-1], style.label, style.colour))
    if paper is not None:
        ends += paper_lines(ax, paper, "arm", x, y)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    label_ends(ax, ends)
    return ax


def told_ends(frame: pd.DataFrame, x: str, y: str) -> str:
    """First and last mean of each arm over `x`, in words."""
    means = {look(arm).label: rows.groupby(x)[y].mean() for arm, rows in frame.groupby("arm", sort=False)}
    return " ".join(f"{label}: {mean.iloc[0]:.3g} at {mean.index[0]:g}, {mean.iloc[-1]:.3g} at {mean.index[-1]:g}."
                    for label, mean in means.items())


def dot_rows(frame: pd.DataFrame, paper: pd.DataFrame | None, title: str, row: str, value: str, xlabel: str):
    """A row per `row`, in it a large dot per arm at its mean and small ones per seed; the paper's panel is grey.

    Arms that end in "-U" (open) and "-W" (filled) share a line. Of the paper, what was run is shown.
    """
    names, arms = (list(dict.fromkeys(frame[column])) for column in (row, "arm"))
    families = list(dict.fromkeys(map(_family, arms)))
    if paper is not None:
        paper = paper[paper[row].isin(names) & paper["arm"].map(_family).isin(families)]
    panels = [frame] if paper is None else [frame, paper]
    axes = new_axes(title, len(panels), height=0.55 + 0.15 * len(names), sharey=True)
    for ax, rows in zip(axes, panels, strict=True):
        grey = rows is paper
        mean = rows.groupby([row, "arm"])[value].mean()
        for (name, arm), centre in mean.items():
            style, at = look(arm), families.index(_family(arm))
            colour = GREY if grey else style.colour
            y = names.index(name) + min(0.24, 0.96 / len(families)) * (at - (len(families) - 1) / 2)
            seen = rows.loc[(rows[row] == name) & (rows["arm"] == arm), value]
            if len(seen) > 1:
                ax.plot(seen, np.full(len(seen), y), ".", ms=4, mew=0, color=colour, alpha=0.6)
            partner = mean.get((name, f"{_family(arm)}-W"), centre)
            ax.plot([centre, partner], [y, y], color=colour, lw=1.4, alpha=0.6, zorder=2)
            face = "white" if arm.endswith("-U") else colour
            ax.plot(centre, y, style.marker, ms=6.5, mew=1.4, color=colour, mfc=face, zorder=3)
        for at in range(0, len(names), 2):
            ax.axhspan(at - 0.5, at + 0.5, color="#F5F5F5", lw=0, zorder=0)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        ax.locator_params(axis="x", nbins=5)
        if paper is not None:
            ax.set_title("Paper" if grey else "Here", loc="left", color=GREY if grey else INK)
    axes[0].set_yticks(range(len(names)), names)
    handles = _families(families, arms)
    rows = -(-sum(len(handle.get_label()) + 5 for handle in handles) // (40 + 20 * len(panels)))
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows),
                          handletextpad=0.1, columnspacing=1.4)
    return axes


def _family(arm: str) -> str:
    return re.sub("-[UW]$", "", arm)


def _families(families: list[str], arms: list[str]) -> list[Line2D]:
    """Legend entries: a family's colour, then what open and filled mean."""
    marks = [(look(family).label, look(family).marker, look(family).colour, look(family).colour)
             for family in families]
    if any(arm.endswith("-U") for arm in arms):
        marks += [("-U: uniform", "o", GREY, "white"), ("-W: by weight", "o", GREY, GREY)]
    return [Line2D([], [], ls="none", marker=marker, mec=edge, mfc=face, label=label)
            for label, marker, edge, face in marks]
