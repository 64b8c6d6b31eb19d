"""Figures of chapter 05, DepS: cost of training, gradients, warm-up shares, the start of shrinking, searches."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from slimnb.book.marks import MACS, TOP1, alt_of_ends, curves, line_chart, millions
from slimnb.book.style import GREY, INK, METHODS, Look, described, legible, look, new_axes, styled

GRADIENTS = {"full": Look("Full net", INK), "shrinking": replace(METHODS["bignas"], label="Shrinking"),
             "epsilon-shrinking": replace(METHODS["deps"], label="ε-shrinking")}


@styled("arm", "phase", "subnets", "length")
def training_cost(frame: pd.DataFrame, title: str) -> Axes:
    """Subnets per minibatch over time, one row per arm (Fig. 1). Columns arm, phase, subnets, length (of a phase).

    The area of a row's boxes is what its training costs, in passes.
    """
    arms = list(dict.fromkeys(frame["arm"]))
    ax = new_axes(title, height=0.5 + 0.2 * len(arms))[0]
    alt = []
    for row, arm in enumerate(arms):
        style, start = look(arm), 0.0
        rows = frame[frame["arm"] == arm]
        for length, subnets in zip(rows["length"], rows["subnets"], strict=True):
            height = 0.84 * subnets / frame["subnets"].max()
            ax.bar(start, height, length, row + 0.42 - height, align="edge", color=style.colour, ec="white", lw=1.5)
            start += length
        cost = (rows["length"] * rows["subnets"]).sum()
        ax.text(start, row + 0.4, f" {cost:g}", va="bottom", color=legible(style.colour), fontweight="bold")
        alt.append(f"{style.label}: {cost:g}.")
    ax.set_yticks(range(len(arms)), [look(arm).label for arm in arms])
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="Epoch (units of n; height: subnets per minibatch)", ylabel="Passes (bold: total, Tn)",
           ylim=(len(arms) - 0.5, -0.5), xlim=(0, 1.1 * frame.groupby("arm")["length"].sum().max()))
    return described(ax, f"Bars of subnets per minibatch over time; their area is the cost. {title}. {' '.join(alt)}")


@styled("share", "macs", "top1")
def by_share(frame: pd.DataFrame, title: str, paper: pd.DataFrame | None = None) -> Axes:
    """Accuracy against MACs, a line per share of training (Figs. 2 and 7a). Columns share (0 to 1), macs, top1, seed.

    The share is that of the full net's training before the look or before shrinking; `paper` has the same columns.
    """
    ax, alt = line_chart(millions(frame).sort_values("share"), title, "share", "macs", "top1", _share_look,
                          ("M MACs", "%"), millions(paper), xlabel=MACS, ylabel=TOP1)
    return described(ax, f"Line chart of top-1 accuracy against MACs by share of training. {title}. {alt}")


def _share_look(share: float) -> Look:
    return Look(f"{100 * share:.3g} %", mpl.colormaps["plasma"](0.8 * (1 - share)))


@styled("layer", "gradient", "norm", "cosine")
def layer_gradients(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Norm of each layer's gradient, and its cosine with the full net's (Fig. 3).

    Columns layer, gradient ("full", "shrinking", "epsilon-shrinking"), norm, cosine. Norms of zero are not drawn.
    """
    axes = new_axes(title, 2)
    alt = []
    for gradient, rows in frame.groupby("gradient", sort=False):
        style = GRADIENTS[gradient]
        mean = rows.astype({"cosine": float}).groupby("layer")[["norm", "cosine"]].mean()
        axes[0].plot(mean.index, mean["norm"].where(mean["norm"] > 0), style.marker, ls="-", ms=3.5, mew=0,
                     lw=1.2, color=style.colour, label=style.label)
        if gradient != "full":
            axes[1].plot(mean.index, mean["cosine"], style.marker, ls="-", ms=3.5, mew=0, lw=1.2, color=style.colour)
        alt.append(f"{style.label}: median norm {mean['norm'].median():.2g}, cosine {mean['cosine'].median():.2g}.")
    axes[0].set(yscale="log", ylabel="Gradient norm")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].minorticks_off()
    axes[1].set(ylabel="Cosine with the full net's")
    axes[1].axhline(1, color=INK, lw=1.2, zorder=1)
    for ax in axes:
        ax.set(xlabel="Layer (1 is the stem)")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return described(axes, f"Line charts of gradient norm and direction by layer. {title}. {' '.join(alt)}")


@styled("arm", "step", "epsilon")
def epsilon_ramps(frame: pd.DataFrame, title: str) -> Axes:
    """Epsilon over the steps of shrinking, a line per form of the ramp (section 4.2). Columns arm, step, epsilon."""
    ax = curves(frame, title, "step", "epsilon", "Training step (0: shrinking begins)", "Epsilon (full net = 1)")
    return described(ax, f"Line chart of epsilon over steps. {title}. {alt_of_ends(frame, 'step', 'epsilon')}")


@styled("arm", "step", "ratio")
def norm_ratio(frame: pd.DataFrame, title: str) -> Axes:
    """Norm of the training's gradient by that of the full net's, over steps (Fig. 4). Columns arm, step, ratio, seed.

    At 1 the subnets do not change how far a step goes.
    """
    ax = curves(frame, title, "step", "ratio", "Training step", "Gradient norm (full net = 1)")
    ax.axhline(1, color=GREY, lw=1.2, zorder=1)
    return described(ax, f"Line chart of gradient norms over steps. {title}. {alt_of_ends(frame, 'step', 'ratio')}")


@styled("arm", "epoch", "top1")
def start_of_shrinking(frame: pd.DataFrame, title: str, start: float, paper: pd.DataFrame | None = None) -> Axes:
    """The full net's accuracy over epochs, shrinking from `start` (Fig. 7b). Columns arm, epoch, top1 (%), seed."""
    ax = curves(frame, title, "epoch", "top1", "Epoch", TOP1, paper)
    ax.axvline(start, color=GREY, lw=1.2, zorder=1)
    alt = alt_of_ends(frame, "epoch", "top1")
    return described(ax, f"Line chart of the full net's accuracy, shrinking from epoch {start:g}. {title}. {alt}")


@styled("arm", "evaluation", "best")
def search_progress(frame: pd.DataFrame, title: str) -> Axes:
    """Best validation accuracy so far over evaluated subnets. Columns arm, evaluation, best (%), seed."""
    ax = curves(frame, title, "evaluation", "best", "Evaluated subnets", "Best validation accuracy (%)",
                drawstyle="steps-post", err_kws={"step": "post", "lw": 0})
    alt = alt_of_ends(frame, "evaluation", "best")
    return described(ax, f"Step chart of the best accuracy found so far. {title}. {alt}")
