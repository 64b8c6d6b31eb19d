"""Figures of chapter 06, DS-Net: simulated routing, training, gates, losses, difficulty, throughput, detections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.transforms import Bbox

from slimnb.book.marks import MACS, TOP1, alt_of_ends, curves, lines, millions, stack
from slimnb.book.style import GREY, INK, METHODS, described, label_ends, legible, look, new_axes, styled
from slimnb.errors import ParameterError

ROUTED, STATIC = METHODS["dsnet"].colour, METHODS["static"].colour
NARROW_TO_WIDE = LinearSegmentedColormap.from_list("narrow to wide", ["#FCE6D8", "#F2A172", ROUTED, "#4A2000"])
CLASSES = ["#D55E00", "#0072B2", "#009E73", "#880E4F", "#7A5C3A", "#4B0082"]
BOX = ["x0", "y0", "x1", "y1", "label", "score"]
ON_DARK, ON_WHITE = ([Stroke(linewidth=2.8, foreground=edge), Normal()] for edge in (INK, "white"))


# -- accuracy and cost -----------------------------------------------------------------------------------


@styled("scheme", "kind", "macs", "top1")
def simulation(frame: pd.DataFrame, title: str) -> Axes:
    """Simulated routing against static nets (Fig. 2, left). Columns scheme, kind ("static", "dynamic"), macs, top1.

    MACs are means over images, relative to the full net's; top1 is in percent. The strong line is the best that
    any dynamic scheme reaches at that cost or less.
    """
    ax, ends, alt = new_axes(title)[0], [], []
    static, dynamic = (frame[frame["kind"] == kind].sort_values("macs") for kind in ("static", "dynamic"))
    for _, rows in dynamic.groupby("scheme", sort=False):
        ax.plot(rows["macs"], rows["top1"], "-" if len(rows) > 1 else "o", ms=4, mew=0, lw=0.8, color=ROUTED, alpha=0.4)
    best = _envelope(dynamic)
    for name, curve, colour in [("Best dynamic", best, ROUTED), ("Static", static[["macs", "top1"]], STATIC)]:
        if len(curve):
            ax.plot(*curve.to_numpy().T, color=colour, zorder=3)
            ends.append((*curve.to_numpy()[-1], name, colour))
            alt.append(f"{name}: {curve['top1'].iloc[0]:.3g} % at {curve['macs'].iloc[0]:.2g} of the full net's MACs, "
                        f"{curve['top1'].iloc[-1]:.3g} % at {curve['macs'].iloc[-1]:.2g}.")
    ax.set(xlabel="Mean MACs per image (full net = 1)", ylabel=TOP1)
    ax.plot([], [], color=ROUTED, lw=0.8, alpha=0.6, label=f"each of {dynamic['scheme'].nunique()} dynamic schemes")
    ax.legend(loc="lower right", handlelength=1.4)
    label_ends(ax, ends)
    return described(ax, f"Line chart of simulated accuracy against mean cost. {title}. {' '.join(alt)}")


def _envelope(dynamic: pd.DataFrame) -> pd.DataFrame:
    """Columns macs, top1: where the best of the schemes' lines rises, from the cheapest cost on."""
    grid = np.unique(dynamic["macs"])
    best = np.full(len(grid), -np.inf)
    for _, rows in dynamic.groupby("scheme"):
        rows = rows.sort_values("macs")
        best = np.maximum(best, np.interp(grid, rows["macs"], rows["top1"], left=-np.inf, right=-np.inf))
    rises = best > np.maximum.accumulate(np.concatenate([[-np.inf], best]))[:-1]
    return pd.DataFrame({"macs": grid[rises], "top1": best[rises]})


@styled("arm", "epoch", "top1")
def slimmest_over_training(frame: pd.DataFrame, title: str) -> Axes:
    """The slimmest net's accuracy over epochs, a line per arm (Fig. 6). Columns arm, epoch, top1 (%), seed."""
    ax = curves(frame, title, "epoch", "top1", "Epoch", "Top-1 accuracy of the slimmest (%)")
    alt = alt_of_ends(frame, "epoch", "top1")
    return described(ax, f"Line chart of the slimmest net's accuracy over training. {title}. {alt}")


@styled("setting", "macs", "top1")
def loss_ablation(frame: pd.DataFrame, title: str, static: pd.DataFrame | None = None) -> Axes:
    """A named point per way to train the gates, small dots per seed (Fig. 7 left, Table 6).

    Columns setting, macs (per image), top1 (%), seed, and arm where settings differ in colour; at most about
    12 settings. `static` has macs and top1 of the static subnets, drawn as a line.
    """
    ax, frame = new_axes(title, height=1.15)[0], millions(frame)
    points, alt = [], []
    if static is not None:
        line = millions(static).groupby("macs")["top1"].mean()
        ax.plot(line.index, line, color=STATIC, lw=1.6, zorder=1)
    for setting, rows in frame.groupby("setting", sort=False):
        style, (macs, top1) = look(rows["arm"].iloc[0] if "arm" in rows else "DS-Net"), rows[["macs", "top1"]].mean()
        if len(rows) > 1:
            ax.plot(rows["macs"], rows["top1"], ".", ms=4, mew=0, alpha=0.6, color=style.colour)
        ax.plot(macs, top1, style.marker, ms=8, mew=0, color=style.colour, zorder=3)
        points.append((macs, top1, str(setting), style.colour))
        alt.append(f"{setting}: {top1:.3g} % at {macs:,.4g} M MACs.")
    ax.set(xlabel=MACS, ylabel=TOP1)
    ax.margins(0.08, 0.12)
    label_ends(ax, [] if static is None else [(line.index[-1], line.iloc[-1], look("Static").label, STATIC)])
    _name_points(ax, points, [] if static is None else np.column_stack([line.index, line]))
    return described(ax, f"Scatter plot of gates' accuracy against MACs. {title}. {' '.join(alt)}")


def _name_points(ax: Axes, points: list, line) -> None:
    """Name each (x, y, text, colour) beside it, where neither names nor points nor the line (N, 2) are in the way."""
    ax.figure.draw_without_rendering()  # lays out the axes: only now is it known where points lie
    scale, others = ax.figure.dpi / 72, []
    points = sorted(points, key=lambda point: -len(point[2]))  # long names have the fewest places
    dots = ax.transData.transform([point[:2] for point in points])
    way = [dots + 5 * scale * np.array(shift) for shift in itertools.product((-1, 0, 1), repeat=2)]
    way += [np.linspace(a, b, 60) for a, b in itertools.pairwise(ax.transData.transform(line) if len(line) else [])]
    for (x, y, text, colour), dot in zip(points, dots, strict=True):
        size, spots = _size(ax, text, 9.5) / scale, []
        for far, (across, up) in itertools.product((8, 16, 27, 40, 54), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1),
                                                                         (1, -1), (-1, 1), (-1, -1)]):
            shift = far * np.array([across, up]) * (0.7 if across and up else 1)
            corner = shift + size * (np.array([across, up]) - 1) / 2
            leader = np.linspace(dot, dot + shift * scale, 20)
            crossed = sum(((leader > box.min) & (leader < box.max)).all(1).sum() for box in others)
            box = Bbox.from_bounds(*(dot + corner * scale), *(size * scale))
            spots.append((box, (shift, across, up, leader), far / 9 + 10 * crossed))
        box, (shift, across, up, leader) = _freest(spots, ax.bbox, others, np.concatenate(way))
        others.append(box)
        way.append(leader)
        ax.annotate(text, (x, y), shift, textcoords="offset points", fontsize=9.5, color=legible(colour),
                    ha=("center", "left", "right")[across], va=("center", "bottom", "top")[up],
                    arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "shrinkA": 0,
                                "shrinkB": 4, "relpos": ((1 - across) / 2, (1 - up) / 2)})


def _size(ax: Axes, text: str, fontsize: float, **font) -> np.ndarray:
    """Width and height of the text, in pixels of the figure."""
    label = ax.text(0, 0, text, fontsize=fontsize, **font)
    box = label.get_window_extent()
    label.remove()
    return np.array([box.width, box.height])


def _freest(spots: list, inside: Bbox, others: Sequence[Bbox], way: np.ndarray) -> tuple:
    """Box and place of the (box, place, cost) that covers least of the boxes and of the points `way` (N, 2)."""
    def covers(spot):
        box, _, cost = spot
        hidden = ((way > box.min) & (way < box.max)).all(1).sum()
        out = (box.min < inside.min - 0.01).any() or (box.max > inside.max + 0.01).any()
        return cost + hidden + 100 * (out + sum(box.overlaps(other) for other in others))
    return min(spots, key=covers)[:2]


# -- where images go -------------------------------------------------------------------------------------


@styled("gate", "choice", "share")
def gate_distribution(frame: pd.DataFrame, title: str) -> Axes:
    """Share of images that each gate sends to each choice, a bar per gate (Fig. 7, right).

    Columns gate (int from 1), choice (a width as number, or a text, narrow to wide), share (0 to 1).
    """
    table = _percents(frame, "gate")
    ax = new_axes(title, height=0.6 + 0.13 * len(table))[0]
    colours = _shades(table.shape[1])
    stack(ax.barh, range(len(table)), table, 0.72, colours, ec="white", lw=0.6)
    for bars, colour in zip(ax.containers, colours, strict=True):
        ax.bar_label(bars, [f"{percent:.0f} %" if percent >= 8 else "" for percent in bars.datavalues], fontsize=9,
                     label_type="center", color="white" if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.56 else INK)
    ax.set_yticks(range(len(table)), table.index)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="Share of images (%)", ylabel="Gate (1: first)", xlim=(0, 100), ylim=(len(table) - 0.5, -0.5))
    handles, labels = ax.get_legend_handles_labels()
    across = max(1, min(7, len(labels), 56 // (max(map(len, labels)) + 4)))
    ax.figure.legend(handles, labels, loc="outside lower center", ncols=across,
                     handlelength=1.0, handletextpad=0.4, columnspacing=1.2, title="Width, narrow to wide")
    alt = " ".join(f"Gate {gate}: {_ends(row)}" for gate, row in table.iterrows())
    return described(ax, f"Stacked bars of the gates' choices. {title}. {alt}")


@styled("difficulty", "choice", "share")
def routing_by_difficulty(frame: pd.DataFrame, title: str) -> Axes:
    """Share of images sent to each choice, by difficulty.

    Columns difficulty (0 to 1, the centres of equal bins; or a text), choice (a width as number, or a text, narrow
    to wide), share (0 to 1, of the images in that bin or group).
    """
    ax, table = new_axes(title)[0], _percents(frame, "difficulty")
    binned = pd.api.types.is_numeric_dtype(frame["difficulty"])
    places = table.index.to_numpy(float) if binned else np.arange(len(table))
    step = np.diff(places).min() if len(places) > 1 else 1
    stack(ax.bar, places, table, (0.94 if binned else 0.72) * step, _shades(table.shape[1]), ec="white", lw=0.6)
    if not binned:
        ax.set_xticks(places, [str(name).capitalize() for name in table.index])
    ax.grid(axis="x", visible=False)
    ax.set(xlabel="Difficulty (0 easiest, 1 hardest)" if binned else "Group of images", ylabel="Share of images (%)",
           ylim=(0, 100), xlim=(places.min() - step / 2, places.max() + step / 2))
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles[::-1], labels[::-1], loc="outside right center", title="Width", handlelength=1.0,
                     labelspacing=0.35, handletextpad=0.4)
    name = "{:.2g}".format if binned else str
    alt = " ".join(f"{name(at)}: {_ends(row)}" for at, row in (table.iloc[[0, -1]] if binned else table).iterrows())
    return described(ax, f"Stacked bars of the choices by difficulty. {title}. {alt}")


def _percents(frame: pd.DataFrame, row: str) -> pd.DataFrame:
    """Shares in percent, a line per `row`, a column per choice, means where there are seeds.

    Numbers are sorted, texts stay as they come; the columns' names are texts.
    """
    table = 100 * frame.pivot_table("share", row, "choice", fill_value=0, sort=False)
    if pd.api.types.is_numeric_dtype(frame["choice"]):
        table = table[sorted(table)].rename(columns="{:g}".format)
    return table.sort_index() if pd.api.types.is_numeric_dtype(frame[row]) else table


def _ends(percents: pd.Series) -> str:
    return f"{percents.iloc[0]:.0f} % to the narrowest, {percents.iloc[-1]:.0f} % to the widest."


def _shades(choices: int) -> np.ndarray:
    return NARROW_TO_WIDE(np.linspace(0, 1, choices) if choices > 1 else [0.66])


# -- execution and detection -----------------------------------------------------------------------------


@styled("mode", "batch", "ratio")
def throughput(frame: pd.DataFrame, title: str) -> Axes:
    """Images per second by batch size, a line per mode. Columns mode, batch, ratio (the widest static net's is 1)."""
    ax = new_axes(title)[0]
    ends, alt = lines(ax, frame, "mode", "batch", "ratio", look, ("images", "×"))
    ax.axhline(1, color=GREY, lw=1.2, zorder=1)
    sizes = sorted(frame["batch"].unique())
    if "Widest" not in set(frame["mode"]):
        ends.append((sizes[-1], 1, "Widest", GREY))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="Batch size (images)", ylabel="Images per second (widest net = 1)", ylim=(0, None))
    label_ends(ax, ends)
    return described(ax, f"Line chart of throughput against batch size. {title}. {alt}")


@styled()
def detections(images, boxes: Sequence[pd.DataFrame], title: str, columns: int = 4) -> Axes:
    """Images with their boxes: ground truth thin, white on black; predictions in their class's colour.

    `images` (N, 3, S, S) uint8; `boxes` N frames of x0, y0, x1, y1 (pixels), label, score (NaN: ground truth).
    """
    images = np.asarray(images)
    lacking = [name for name in BOX if any(name not in frame for frame in boxes)]
    if lacking or len(boxes) != len(images):
        raise ParameterError(f"figure detections: {len(boxes)} frames of boxes for {len(images)} images, "
                             f"no {', '.join(lacking) or 'data'}", f"it draws {', '.join(BOX)}", "Pass one per image.")
    columns, side, gap = min(columns, len(images)), images.shape[-1], max(2, images.shape[-1] // 24)
    rows, pitch = -(-len(images) // columns), side + gap
    sheet = np.full((rows * pitch - gap, columns * pitch - gap, 3), 255, np.uint8)
    ax = new_axes(title, height=0.37 + 1.36 * rows / max(2, columns))[0]
    corners = [(at % columns * pitch, at // columns * pitch) for at in range(len(images))]
    for (x, y), image in zip(corners, images, strict=True):
        sheet[y:y + side, x:x + side] = image.transpose(1, 2, 0)
    ax.imshow(sheet, extent=(0, sheet.shape[1], sheet.shape[0], 0), interpolation="none")
    ax.set(xlabel="Column (pixels)", ylabel="Row (pixels)", xticks=(0, side), yticks=(0, side))
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    every = pd.concat(boxes)
    classes = sorted(every["label"].astype(str).unique())
    colours = {name: CLASSES[at % len(CLASSES)] for at, name in enumerate(classes)}
    marks = [Line2D([], [], color="white", lw=1.2, path_effects=ON_DARK, label="ground truth")]
    marks += [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    lines_of_legend = -(-sum(len(mark.get_label()) + 6 for mark in marks) // 60)
    ax.figure.legend(handles=marks, loc="outside lower center", ncols=-(-len(marks) // lines_of_legend),
                     handlelength=1.4)
    for _ in range(2):  # lays out the axes, of a fixed shape: only now is it known how large a picture is
        ax.figure.draw_without_rendering()
    for corner, frame in zip(corners, boxes, strict=True):
        _draw_boxes(ax, frame, np.array(corner), side, colours)
    alt = f"{every['score'].isna().sum()} boxes of ground truth, {every['score'].notna().sum()} predictions."
    return described(ax, f"{len(images)} pictures with boxes around objects. {title}. {alt}")


def _draw_boxes(ax: Axes, frame: pd.DataFrame, corner: np.ndarray, side: int, colours: dict) -> None:
    """Boxes of one picture whose upper left corner is given; each score stands where it hides no other."""
    scale, others = ax.figure.dpi / 72, []
    picture = Bbox(ax.transData.transform([corner, corner + side]))
    picture = Bbox.from_extents(picture.xmin, picture.ymin, picture.xmax, picture.ymax)
    for row in frame.sort_values("score", ascending=False, na_position="first").to_dict("records"):
        (x0, y0), (x1, y1) = corner + np.array([[row["x0"], row["y0"]], [row["x1"], row["y1"]]])
        truth, colour = np.isnan(row["score"]), colours[str(row["label"])]
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.2 if truth else 1.8,
                               ec="white" if truth else colour, path_effects=ON_DARK if truth else ON_WHITE))
        if truth:
            continue
        text = f"{row['label']} {row['score']:.2f}"
        size, spots = _size(ax, text, 8, fontweight="bold") + 5 * scale, []
        (left, top), (right, bottom) = ax.transData.transform([(x0, y0), (x1, y1)])
        room = picture.max - picture.min - size
        near = [(x, y) for y in (top, bottom - size[1], top - size[1], bottom) for x in (left, right - size[0])]
        far = [picture.min + room * part for part in itertools.product(np.linspace(0, 1, 7), repeat=2)]
        for at in [*near, *sorted(far, key=lambda spot: np.hypot(*(spot - near[0])))]:
            at = np.clip(at, picture.min, picture.max - size)
            spots.append((Bbox.from_bounds(*at, *size), at + size / 2, 0.1 * len(spots)))
        box, centre = _freest(spots, picture, others, np.empty((0, 2)))
        others.append(box)
        ax.text(*ax.transData.inverted().transform(centre), text, fontsize=8, fontweight="bold", color="white",
                ha="center", va="center", bbox={"facecolor": legible(colour), "edgecolor": "none", "pad": 1.5})
