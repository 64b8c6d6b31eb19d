"""How every figure looks: colours, house style, line labels, descriptions, and saving."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import itertools
import math
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from slimnb.errors import ParameterError
from slimnb.runs.files import Failpoint, make_folder, write_file

INK, GREY, PALE = "#222222", "#767676", "#E4E4E4"


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn in every figure of the book."""

    label: str
    colour: str
    marker: str = "o"


# Okabe and Ito's palette, told apart by the colour-blind; its yellow is too pale for lines. A key is the arm's name in
# small letters and digits. A paper from elsewhere adds its own: METHODS["mynet"] = Look("My-Net", "#4B0082", "p").
METHODS = {
    "individual": Look("Individual nets", "#222222", "s"),
    "onebn": Look("One BN", "#7A5C3A", "*"),
    "snet": Look("S-Net", "#E69F00", "^"),
    "usnet": Look("US-Net", "#0072B2", "o"),
    # SP-Net's arms are shades of its green.
    "spnetunsorted": Look("SP-Net, unsorted", "#00401A", "X"),
    "spnetallwidths": Look("SP-Net, all widths", "#009E73", "D"),
    "spnet": Look("SP-Net", "#009E73", "v"),
    "oneshot": Look("One-shot", "#6FD3A8", "<"),
    "iterative": Look("Iterative", "#00401A", ">"),
    "shortcutfirst": Look("Shortcut first", "#00401A", "8"),
    "l1norms": Look("L1 norms", "#6FD3A8", "p"),
    "drawnanew": Look("Drawn anew", "#009E73", "d"),
    "mutualnet": Look("MutualNet", "#7A5C3A", "v"),
    "pssnet": Look("PSS-Net", "#CC79A7", "D"),
    "pssm": Look("PSS-M", "#880E4F", "d"),
    "pss": Look("PSS-Net", "#CC79A7", "D"),  # PSS-F, -C and -G: held to one resource
    "exactsampling": Look("Exact sampling", "#880E4F", "<"),
    "uniformpools": Look("Uniform pools", "#E69F00", "^"),
    "givenwidths": Look("Given widths", "#CC79A7", "p"),
    "givenuniformwidths": Look("Given uniform widths", "#E69F00", "p"),
    "inthesupernet": Look("In the supernet", "#CC79A7", "D"),
    "finetuned": Look("Fine-tuned", "#880E4F", "s"),
    "dsnet": Look("DS-Net", "#D55E00", "P"),
    "inplacedistillation": Look("In-place distillation", "#0072B2", "o"),
    "ematarget": Look("EMA target", "#56B4E9", "s"),
    "ieb": Look("IEB", "#D55E00", "P"),
    "temperature4": Look("Temperature 4", "#7A5C3A", "v"),
    "static": Look("Static subnets", "#222222", "s"),
    "widest": Look("Widest", "#4B0082", "^"),
    "oracle": Look("Oracle", "#009E73", "*"),
    "blindrouter": Look("Blind router", "#A8C66C", "X"),
    "trybest": Look("Try Best", "#D55E00", "P"),
    "giveup": Look("Give Up", "#CC79A7", "v"),
    "masked": Look("Masked", "#0072B2", "s"),
    "indexed": Look("Indexed", "#56B4E9", "v"),
    "grouped": Look("Grouped", "#D55E00", "P"),
    "aows": Look("AOWS", "#56B4E9", "H"),
    "deps": Look("DepS", "#4B0082", "p"),
    "compofa": Look("CompOFA", "#56B4E9", "<"),
    "ofa": Look("OFA", "#E69F00", "v"),
    "bignas": Look("BigNAS", "#009E73", "s"),
    "ows": Look("OWS", "#880E4F", "d"),
    "evolution": Look("Evolution", "#4B0082", "p"),
    "randomsearch": Look("Random search", "#A8C66C", "X"),
    "random": Look("Random widths", "#A8C66C", "X"),
    # Other names of the two plain answers: one net per width, and the same multiplier in every layer.
    "standalone": Look("Stand-alone nets", "#222222", "s"),
    "slim": Look("Slim", "#E69F00", "^"),
    "original": Look("Original", "#E69F00", "^"),
    "uniformcounts": Look("Uniform counts", "#E69F00", "P"),
    "uniform": Look("Uniform widths", "#E69F00", "^"),
}


def house_style() -> dict:
    """Matplotlib settings of every figure: legible at half width, and the same bytes on every rendering."""
    return {
        "figure.figsize": (5.6, 3.6), "figure.dpi": 110, "figure.facecolor": "white",
        "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.07,
        "font.family": "DejaVu Sans", "font.size": 10.5, "text.color": INK, "text.parse_math": False,
        "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.titlesize": 10.5, "axes.labelsize": 10.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.xmargin": 0.03, "axes.ymargin": 0.08,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": PALE, "grid.linewidth": 0.8,
        "xtick.color": INK, "xtick.major.size": 0, "xtick.minor.size": 0,
        "ytick.color": INK, "ytick.major.size": 0, "ytick.minor.size": 0,
        "lines.linewidth": 2.0, "lines.solid_capstyle": "round", "legend.frameon": False,
        "svg.hashsalt": "slimnb", "svg.fonttype": "path", "image.interpolation": "nearest",
    }


@contextlib.contextmanager
def in_house_style():
    """Matplotlib's defaults and the house style on top, whatever the reader's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(house_style())
        yield


def styled(*columns: str):
    """Decorator of a figure function: house style around it, `columns` asked of its frame before it draws."""
    def decorate(draw):
        @functools.wraps(draw)
        def checked(frame, *args, **kwargs):
            missing = [column for column in columns if column not in frame]
            if missing or not len(frame):
                lacks = f"{len(frame)} rows, no {', '.join(missing) or 'data'}"
                raise ParameterError(f"figure {draw.__name__}: {lacks}",
                                     f"it draws {', '.join(columns)}", "Pass a frame with these.")
            with in_house_style():
                return draw(frame, *args, **kwargs)
        return checked
    return decorate


def look(arm: str) -> Look:
    """Label, colour and marker of an arm: "us_net_n2" is "US-Net, n2" in US-Net's colour.

    The longest method that the arm's name begins with counts. One or two capitals before or after it are a market
    and part of the arm's name, as in "RS-AOWS-U".
    """
    for key in sorted(METHODS, key=len, reverse=True):
        match = re.match(rf"([A-Z]{{1,2}}-)?(?i:{'[^a-z0-9]*'.join(key)})(?![A-Za-z])", arm)
        if match:
            method, variant = METHODS[key], arm[match.end():]
            if match[1] or re.fullmatch("-[A-Z]{1,2}", variant):
                return replace(method, label=arm)
            variant = variant.strip(" _-,").replace("_", " ")
            return replace(method, label=f"{method.label}, {variant}") if variant else method
    return Look(arm, "#7A5C3A", "h")


def width_colour(mult: float) -> tuple:
    """RGBA of a width multiplier: dark for the full net, green from 0.25 down."""
    return mpl.colormaps["viridis"](0.66 * min(1.0, max(0.0, (1 - mult) / 0.75)))


def new_axes(title: str, columns: int = 1, height: float = 1.0, rows: int = 1, **kw) -> np.ndarray:
    """Axes (rows * columns,) of a new figure whose title starts at its left edge; several columns are wider."""
    x, y = mpl.rcParams["figure.figsize"]
    wide = 1.25 if columns > 1 else 1.0
    fig, axes = plt.subplots(rows, columns, figsize=(x * wide, y * height), squeeze=False, **kw)
    for lines in itertools.count(max(1, math.ceil(len(title) / (58 * wide)))):
        wrapped = "\n".join(textwrap.wrap(title, len(title) // lines + 6))
        text = fig.suptitle(wrapped, x=0.01, ha="left", fontsize=12, fontweight="bold")
        if text.get_window_extent().x1 <= fig.bbox.x1 or lines > len(title):
            break
    return axes.ravel()


def figure_of(axes) -> Figure:
    """The figure that `axes` (one or an array) belong to."""
    return np.ravel(axes)[0].figure


def described(axes, text: str):
    """The same axes, laid out for good, their figure carrying `text` as its description."""
    fig = figure_of(axes)
    fig.slimnb_alt = re.sub(r"\s+", " ", text)
    for _ in range(2):  # panels of a fixed shape settle in the second pass
        fig.draw_without_rendering()
    fig.set_layout_engine("none")  # else each drawing moves things a little, and bytes depend on the past
    return axes


def alt_text(axes) -> str:
    """The description of the figure that `axes` (one or an array) belong to."""
    return figure_of(axes).slimnb_alt


def legible(colour) -> tuple:
    """The colour, dark enough for text on white."""
    return tuple(0.68 * channel for channel in to_rgb(colour))


def label_ends(ax: Axes, ends: list) -> None:
    """Name each line to the right of the axes, in its colour, pushed apart where two would collide."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [end for end in ends if np.isfinite(end[1])]
    ends.sort(key=lambda end: to_axes.transform(end[:2])[1])
    gap = 14.5 / (72 * 0.68 * ax.figure.get_figheight())  # a line of text in axes heights
    heights = np.array([to_axes.transform(end[:2])[1] for end in ends])
    for _ in range(200):
        overlap = np.maximum(0, gap - np.diff(heights)) / 2
        heights[:-1] -= overlap
        heights[1:] += overlap
    for (x, y, text, colour), height in zip(ends, heights, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3,
                  "relpos": (0, 0.5)}
        ax.annotate(text, (x, y), xytext=(1.04, height), textcoords="axes fraction", color=legible(colour),
                    va="center", fontweight="bold", annotation_clip=False, arrowprops=leader)


@dataclass(frozen=True, slots=True)
class Shown:
    """A saved figure, displayed with its description for screen readers."""

    path: Path
    alt: str
    png: bytes
    width: int  # pixels on the page

    def _repr_mimebundle_(self, **_) -> dict:
        source = base64.b64encode(self.png).decode()
        alt = html.escape(self.alt)
        return {"text/plain": self.alt,
                "text/html": f'<img src="data:image/png;base64,{source}" width="{self.width}" alt="{alt}">'}


def save(axes, path: str | Path) -> Shown:
    """Write the figure of `axes` to `path` (.svg, byte for byte the same from the same data) and close it."""
    fig, path = figure_of(axes), Path(path)
    if path.suffix != ".svg":
        raise ParameterError(f"figure {path.name[:60]}", "figures are stored as .svg", "Name it so.")
    svg, png = io.BytesIO(), io.BytesIO()
    about = {"Date": None, "Creator": None, "Title": fig.get_suptitle(), "Description": fig.slimnb_alt}
    with in_house_style():
        fig.savefig(svg, format="svg", metadata=about)
        fig.savefig(png, format="png", dpi=160)
    plt.close(fig)
    make_folder(path.parent)
    write_file(path, svg.getvalue(), Failpoint(), "figure")
    return Shown(path, fig.slimnb_alt, png.getvalue(), round(fig.get_figwidth() * fig.dpi))
