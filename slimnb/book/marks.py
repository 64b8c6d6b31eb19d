"""What figures of several chapters share: dashes, axis labels, lines with dots, curves, rows of dots, the paper's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from slimnb.book.style import GREY, INK, label_ends, look, new_axes

DASHES = ["", (4, 1.5), (1, 1.2)]  # a method's first, second and third arm
TOP1, MACS = "Top-1 accuracy (%)", "MACs per image (millions)"
NEUTRAL = "#7FA8C9"  # what belongs to no method


def millions(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """The frame with its MACs in millions; none if there is none."""
    return None if frame is None else frame.assign(macs=frame["macs"] / 1e6)


def dashes_of(colours: Iterable) -> list:
    """Dashes of lines by their colours: the first line of a colour is solid, the next ones are broken."""
    colours = list(colours)
    return [DASHES[min(len(DASHES) - 1, colours[:at].count(colour))] for at, colour in enumerate(colours)]


def lines(ax: Axes, frame: pd.DataFrame, by: str, x: str, y: str, look_of: Callable, units: tuple):
    """Dots per row and the line of means for each `by`; returns the ends to label and a description.

    Means are taken per x, or per platform where the frame has that column: nets searched for one platform
    differ in x from seed to seed.
    """
    ends, alt, at = [], [], "platform" if "platform" in frame else x
    groups = [(look_of(name), rows) for name, rows in frame.groupby(by, sort=False)]
    for (style, rows), dashes in zip(groups, dashes_of(style.colour for style, _ in groups), strict=True):
        mean = rows.groupby(rows[at].to_numpy())[[x, y]].mean().sort_values(x).to_numpy()
        ax.plot(rows[x], rows[y], style.marker, ms=5, mew=0, alpha=0.7, color=style.colour)
        ax.plot(*mean.T, dashes=dashes, color=style.colour)
        ends.append((*mean[-1], style.label, style.colour))
        first, last = (f"{mean[k, 1]:.3g} {units[1]} at {mean[k, 0]:,.4g} {units[0]}" for k in (0, -1))
        alt.append(f"{style.label}: {first}, {last}.")
    return ends, " ".join(alt)


def paper_lines(ax: Axes, frame: pd.DataFrame, by: str, x: str, y: str) -> list:
    """The paper's curves, grey and dashed under ours; returns the one end that is labelled."""
    for _, rows in frame.groupby(by, sort=False):
        mean = rows.groupby(x)[y].mean()
        ax.plot(mean.index, mean, color=GREY, lw=1.4, dashes=DASHES[1], zorder=1)
    return [(mean.index[-1], mean.iloc[-1], "Paper", GREY)]


def line_chart(frame: pd.DataFrame, title: str, by: str, x: str, y: str, look_of: Callable, units: tuple,
               paper: pd.DataFrame | None = None, **settings) -> tuple[Axes, str]:
    """`lines` with labelled ends, the paper's under them; returns the axes, set to `settings`, and a description."""
    ax = new_axes(title)[0]
    ends, alt = lines(ax, frame, by, x, y, look_of, units)
    if paper is not None:
        ends += paper_lines(ax, paper, by, x, y)
    ax.set(**settings)
    label_ends(ax, ends)
    return ax, alt


def curves(frame: pd.DataFrame, title: str, x: str, y: str, xlabel: str, ylabel: str,
           paper: pd.DataFrame | None = None, **kw) -> Axes:
    """A line of means per arm over `x`, in a band from the lowest to the highest seed; ends are labelled.

    `kw` goes to seaborn's lineplot.
    """
    ax, looks = new_axes(title)[0], {arm: look(arm) for arm in frame["arm"].unique()}
    palette = {arm: style.colour for arm, style in looks.items()}
    sns.lineplot(frame, x=x, y=y, hue="arm", hue_order=list(looks), palette=palette, style="arm", legend=False, ax=ax,
                 dashes=dict(zip(looks, dashes_of(palette.values()), strict=True)), errorbar=("pi", 100), **kw)
    ends = [(*line.get_xydata()[-1], style.label, style.colour)
            for line, style in zip(ax.lines, looks.values(), strict=True)]
    if paper is not None:
        ends += paper_lines(ax, paper, "arm", x, y)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    label_ends(ax, ends)
    return ax


def alt_of_ends(frame: pd.DataFrame, x: str, y: str) -> str:
    """First and last mean of each arm over `x`, in words."""
    means = {look(arm).label: rows.groupby(x)[y].mean() for arm, rows in frame.groupby("arm", sort=False)}
    return " ".join(f"{label}: {mean.iloc[0]:.3g} at {mean.index[0]:g}, {mean.iloc[-1]:.3g} at {mean.index[-1]:g}."
                    for label, mean in means.items())


def stack(bars: Callable, places, table: pd.DataFrame, size: float, colours: Iterable, **kw) -> None:
    """Stacked bars at `places`, drawn by `ax.bar` or `ax.barh`: a bar per row of the table, a part per column."""
    below = np.zeros(len(table))
    for (name, part), colour in zip(table.items(), colours, strict=True):
        bars(places, part, size, below, color=colour, label=name, **kw)
        below += part.to_numpy()


def dot_rows(frame: pd.DataFrame, paper: pd.DataFrame | None, title: str, row: str, value: str, xlabel: str):
    """A row per `row`, in it a large dot per arm at its mean and small ones per seed; the paper's panel is grey.

    Arms that end in "-U" (open) and "-W" (filled) share a line. Of the paper, what was run is shown.
    """
    names, arms = (list(dict.fromkeys(frame[column])) for column in (row, "arm"))
    families = list(dict.fromkeys(map(_family, arms)))
    frames = [rows.assign(family=rows["arm"].map(_family)) for rows in (frame, paper) if rows is not None]
    axes = new_axes(title, len(frames), height=0.55 + 0.15 * len(names), sharey=True)
    for ax, rows, head in zip(axes, frames, ("Here", "Paper"), strict=False):
        rows = rows[rows[row].isin(names) & rows["family"].isin(families)]
        means = rows.groupby([row, "family", "arm"], as_index=False)[value].mean()
        of_family = {"x": value, "y": row, "hue": "family", "hue_order": families, "order": names, "orient": "h",
                     "palette": [GREY if head == "Paper" else look(family).colour for family in families],
                     "legend": False, "ax": ax}
        beside = {"dodge": 0.8 - 0.8 / len(families), "linestyle": "none"}  # where stripplot puts them
        sns.stripplot(rows, jitter=False, dodge=True, size=3.5, alpha=0.6, **of_family)
        sns.pointplot(means, errorbar=("pi", 100), err_kws={"lw": 1.4, "alpha": 0.6}, marker="", **of_family, **beside)
        uniform = means["arm"].str.endswith("-U")
        for marks, face in ((means[uniform], {"mfc": "white"}), (means[~uniform], {})):
            sns.pointplot(marks, errorbar=None, markers=[look(family).marker for family in families], ms=6.5, mew=1.4,
                          zorder=3, **face, **of_family, **beside)
        for at in range(0, len(names), 2):
            ax.axhspan(at - 0.5, at + 0.5, color="#F5F5F5", lw=0, zorder=0)
        ax.set(xlabel=xlabel, ylabel="")
        ax.locator_params(axis="x", nbins=5)
        if paper is not None:
            ax.set_title(head, loc="left", color=GREY if head == "Paper" else INK)
    handles = _families(families, arms)
    letters = [len(handle.get_label()) + 5 for handle in handles]
    rows = next(rows for rows in range(1, len(letters) + 1)  # the fewest in which the widest of each column fit
                if sum(max(letters[at:at + rows]) for at in range(0, len(letters), rows)) <= 40 + 20 * len(frames))
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
