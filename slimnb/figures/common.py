"""What figures of several chapters share: dashes, axis labels, lines with their dots, the paper's lines."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes

from slimnb.style import GREY

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
