"""Figures of the search for widths: a trellis and its best path, unary scores, duality gaps, marginals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.patheffects import withStroke

from slimnb.book.marks import MACS, NEUTRAL, millions
from slimnb.book.style import GREY, INK, described, label_ends, new_axes, styled, width_colour

BEST = "#B5482A"
BEST_TO_WORSE = LinearSegmentedColormap.from_list("best to worse", ["#FFF6DF", "#D9D5CC", "#878D97"])


@styled()
def trellis(unary: Sequence, costs: Sequence, path: Sequence[int], widths: Sequence, title: str) -> Axes:
    """A small search as a trellis: nodes are widths with their scores, edges carry costs, `path` is bold.

    `unary` and `widths` hold one row of K_i numbers per channel unit, `costs` one (K_i, K_{i+1}) array per pair
    of units, `path` the chosen index in each unit.
    """
    ax = new_axes(title, height=1.05)[0]
    most = max(map(len, widths))
    where = [np.arange(len(row)) + (most - len(row)) / 2 for row in widths]  # each column is centred
    for unit, cost in enumerate(map(np.asarray, costs)):
        for (i, j), value in np.ndenumerate(cost):
            chosen = (path[unit], path[unit + 1]) == (i, j)
            a, b = where[unit][i], where[unit + 1][j]
            ax.plot([unit, unit + 1], [a, b], color=BEST if chosen else "#C9C9C9", lw=3 if chosen else 1,
                    zorder=2 if chosen else 1)
            part = 1 / (most + 1)  # here the costs of all edges stand at equal distances
            ax.text(unit + part, a + part * (b - a), f"{value:g}", ha="center", va="center", fontsize=9,
                    color=BEST if chosen else GREY, fontweight="bold" if chosen else "normal",
                    bbox={"facecolor": "white", "lw": 0, "pad": 1.2})
    for unit, (row, scores) in enumerate(zip(widths, unary, strict=True)):
        for k, (width, score) in enumerate(zip(row, scores, strict=False)):
            chosen, at = path[unit] == k, (unit, where[unit][k])
            ax.plot(*at, "o", ms=25, mew=2 if chosen else 1, mfc="white", mec=BEST if chosen else GREY)
            ax.text(*at, f"{width:g}", ha="center", va="center", fontweight="bold", color=INK)
            ax.annotate(f"{score:+.3g}".replace("-", "−"), at, xytext=(0, 16), textcoords="offset points",
                        ha="center", color=BEST if chosen else INK, fontsize=9)
    ax.set(xlim=(-0.2, len(widths) - 0.8), ylim=(-0.25, most - 0.6), yticks=[],
           xlabel="Channel unit (nodes: channels, score above; edges: cost)", ylabel="Width choice")
    ax.set_xticks(range(len(widths)), range(1, len(widths) + 1))
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    total = sum(float(row[k]) for row, k in zip(unary, path, strict=True))
    cost = sum(float(np.asarray(c)[i, j]) for c, i, j in zip(costs, path[:-1], path[1:], strict=True))
    best = ", ".join(f"{row[k]:g}" for row, k in zip(widths, path, strict=True))
    return described(ax, f"Trellis of widths. {title}. The path {best} scores {total:.3g} and costs {cost:g}.")


@styled("unit", "mult", "score")
def unary(frame: pd.DataFrame, paths: pd.DataFrame, title: str) -> Axes:
    """Unary scores of a search, each unit against its own best, and the platforms' paths over them.

    Columns unit (1 is the stem), mult (channels over the full net's), score (nats); `paths` has platform,
    unit, mult, platforms from the slimmest up.
    """
    ax = new_axes(title, height=1.2)[0]
    lost = frame.groupby("unit")["score"].transform("max") - frame["score"]
    norm = PowerNorm(0.5, 0, lost.max())  # most choices lose little
    for unit, rows in frame.assign(lost=lost).sort_values("mult").groupby("unit"):
        mults = rows["mult"].to_numpy()
        middle = (mults[1:] + mults[:-1]) / 2
        edges = np.concatenate([[2 * mults[0] - middle[0]], middle, [2 * mults[-1] - middle[-1]]])
        ax.bar(np.full(len(mults), unit), np.diff(edges), 1.0, edges[:-1], lw=0.6, edgecolor="white",
               color=BEST_TO_WORSE(norm(rows["lost"])))
    ends, names = [], list(dict.fromkeys(paths["platform"]))
    for k, name in enumerate(names):
        rows = paths[paths["platform"] == name].sort_values("unit")
        at = k / max(1, len(names) - 1)
        colour, shift = width_colour(0.25 + 0.75 * at), 0.02 * (at - 0.5)  # shared choices stay visible
        ax.plot(rows["unit"], rows["mult"] + shift, "o-", ms=4, mew=0, lw=1.6, color=colour,
                path_effects=[withStroke(linewidth=3, foreground="white")])
        ends.append((rows["unit"].iloc[-1], rows["mult"].iloc[-1], str(name), colour))
    units = sorted(frame["unit"].unique())
    ax.set(xlabel="Channel unit (1 is the stem)", ylabel="Width multiplier", xticks=units,
           xlim=(units[0] - 0.5, units[-1] + 0.5))
    ax.grid(visible=False)
    label_ends(ax, ends)
    bar = ax.figure.colorbar(ScalarMappable(norm, BEST_TO_WORSE), ax=ax, location="bottom", shrink=0.7, aspect=35)
    ticks = norm.inverse(np.linspace(0, 1, 5))
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.set_label("Score lost against the unit's best (nats)")
    bar.outline.set_visible(False)
    alt = "; ".join(f"{name}: {', '.join(f'{m:.3g}' for m in paths.loc[paths['platform'] == name, 'mult'])}"
                     for name in names)
    return described(ax, f"Heat map of unary scores with one path per platform. {title}. Multipliers: {alt}.")


@styled("kind", "budget", "macs", "score")
def duality(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Score against MACs: the exact front, the Lagrangian's answers, random subnets; and what they lose.

    Columns kind ("exact", "lagrangian", "random"), budget, macs, score (nats), bound (of "lagrangian"). Right:
    at each budget the exact score less the Lagrangian's, and its own certificate, the duality gap.
    """
    axes = new_axes(title, 2)
    frame = millions(frame).assign(budget=frame["budget"] / 1e6)
    exact, answer, random = (frame[frame["kind"] == kind].sort_values("budget")
                             for kind in ("exact", "lagrangian", "random"))
    axes[0].plot(random["macs"], random["score"], ".", ms=3.5, mew=0, color=NEUTRAL, alpha=0.5,
                 label="random subnets")
    axes[0].plot(exact["macs"], exact["score"], color=INK, label="exact")
    axes[0].plot(answer["macs"], answer["score"], "o", ms=4.5, mfc="white", mec=BEST, mew=1.4, label="Lagrangian")
    axes[0].set(xlabel=MACS, ylabel="Score (nats)")
    both = answer.merge(exact[["budget", "score"]], on="budget", suffixes=("", "_exact"))
    axes[1].plot(both["budget"], both["bound"] - both["score"], "-", color=GREY, label="duality gap")
    axes[1].plot(both["budget"], both["score_exact"] - both["score"], "o", ms=4, mew=0, color=BEST,
                 label="lost against exact")
    axes[1].set(xlabel="Budget (millions of MACs)", ylabel="Difference in score (nats)")
    axes[0].legend(loc="lower right", handletextpad=0.4, markerscale=1.4)
    axes[1].legend(loc="upper right", handletextpad=0.4)
    lost = both["score_exact"] - both["score"]
    alt = (f"The Lagrangian loses at most {lost.max():.2g} nats against the exact answer, and its gap is at most "
            f"{(both['bound'] - both['score']).max():.2g}.")
    return described(axes, f"Scatter plot of score against MACs, and of gaps against budgets. {title}. {alt}")


@styled("epoch", "unit", "mult", "probability")
def marginals(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Sampling probabilities of a unit's widths over the run, stacked, one panel per unit.

    Columns epoch, unit, mult, probability, temperature (optional, written below the epochs).
    """
    units = list(dict.fromkeys(frame["unit"]))
    axes = new_axes(title, len(units), sharey=True)
    alt = []
    for ax, unit in zip(axes, units, strict=True):
        rows = frame[frame["unit"] == unit]
        table = rows.pivot_table("probability", "epoch", "mult")
        colours = [width_colour(share) for share in np.linspace(0.25, 1, table.shape[1])]
        ax.stackplot(table.index, table.T, colors=colours, lw=0.4, edgecolor="white")
        last = table.iloc[-1]
        middle = last.cumsum() - last / 2
        ends = [(table.index[-1], middle[mult], f"{mult:.3g}×", colour)
                for (mult, p), colour in zip(last.items(), colours, strict=True) if p > 0.04]
        ax.set(xlabel="Epoch", xlim=(table.index[0], table.index[-1]), ylim=(0, 1))
        if "temperature" in rows:
            _temperatures(ax, rows.groupby("epoch")["temperature"].first())
        ax.set_title(f"Channel unit {unit}", loc="left")
        ax.grid(visible=False)
        label_ends(ax, ends)
        alt.append(f"Unit {unit} ends at {last.idxmax():.3g}× with probability {last.max():.2f}.")
    axes[0].set(ylabel="Probability of a width")
    return described(axes, f"Stacked areas of sampling probabilities. {title}. {' '.join(alt)}")


def _temperatures(ax: Axes, temperature: pd.Series) -> None:
    """Below each tick of the epochs, the temperature there."""
    ticks = np.array([tick for tick in ax.get_xticks() if temperature.index[0] <= tick <= temperature.index[-1]])
    there = np.exp(np.interp(ticks, temperature.index, np.log(temperature)))
    ax.set_xticks(ticks, [f"{tick:g}\n{value:.1g}" for tick, value in zip(ticks, there, strict=True)])
    ax.set(xlabel="Epoch, temperature")
