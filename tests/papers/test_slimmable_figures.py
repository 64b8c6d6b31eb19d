"""Every figure from small frames: labels with units, fixed colours, a description, the same bytes twice."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from figure_checks import holds_for, refuses
from matplotlib.colors import to_rgb

from slimnb.book import style
from slimnb.papers.slimmable import figures

MULTS = [0.25, 0.5, 1.0]


def _results(arms=("s_net", "us_net", "individual")) -> pd.DataFrame:
    grid = list(itertools.product(arms, MULTS, (0, 1)))
    frame = pd.DataFrame(grid, columns=["arm", "mult", "seed"])
    frame["macs"] = (40e6 * frame["mult"] ** 2).astype(int)
    frame["top1"] = 50 + 10 * frame["mult"] + frame["seed"] + frame["arm"].str.len()
    return frame.assign(top1_easy=frame["top1"] + 20, top1_hard=frame["top1"] - 20)


def _statistics() -> pd.DataFrame:
    rows = [(m, c, c / 8 * m, 0.1 + c * m) for m in MULTS for c in range(int(8 * m))]
    return pd.DataFrame(rows, columns=["mult", "channel", "mean", "var"])


def _history() -> pd.DataFrame:
    grid = itertools.product(("s_net", "us_net"), range(0, 4000, 10), MULTS)
    frame = pd.DataFrame(grid, columns=["arm", "step", "mult"])
    return frame.assign(loss=3 - frame["step"] / 2000 - frame["mult"] / 4)


def _calibration() -> pd.DataFrame:
    grid = itertools.product(MULTS, (16, 64, 256, 1024), (0, 1))
    frame = pd.DataFrame(grid, columns=["mult", "images", "seed"])
    return frame.assign(top1=50 + 5 * np.log10(frame["images"]) * frame["mult"] + frame["seed"])


def _latency() -> pd.DataFrame:
    modes = ["full", "mask", "index", "slice", "ideal"]
    ms, paper = [30.0, 31.0, 12.0, 9.0, 8.0], [12.2, 12.4, 16.6, 7.9, 7.2]
    return pd.DataFrame({"mode": modes, "ms": ms, "paper_ms": paper})


def _by_width() -> pd.DataFrame:
    grid = itertools.product(("unsorted", "sorted"), MULTS, (0, 1))
    frame = pd.DataFrame(grid, columns=["mode", "mult", "repeat"])
    return frame.assign(ms=20 * frame["mult"] + 5 * (frame["mode"] == "unsorted") + frame["repeat"])


def _grid():
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    labels, difficulty = np.arange(60) % 3, np.linspace(0, 1, 60, dtype=np.float32)
    names = ["disc", "ring", "cross"]
    return figures.image_grid(images, labels, difficulty, names, "Harder to the right", columns=4)


def _layers() -> pd.DataFrame:
    rows = [("stem", "3×3 convolution", 10e6), ("block1", "depthwise convolution", 3e6),
            ("block1", "1×1 convolution", 25e6), ("FC", "linear", 1e6)]
    return pd.DataFrame(rows, columns=["layer", "part", "macs"])


def _costs():
    random = np.random.default_rng(0).normal(30e6, 5e6, 1000)
    uniform = {0.25: 3e6, 0.3: 4e6, 0.5: 12e6, 1.0: 46e6}
    return figures.cost_histogram(random, uniform, "Random subnets crowd")


def _answers() -> pd.DataFrame:
    hard = np.linspace(0, 1, 200)
    return pd.DataFrame({"difficulty": hard, "correct": hard < 0.5})


DRAW = {
    "accuracy": lambda: figures.accuracy(_results(), "US-Net wins", _results(("us_net",))),
    "easy_and_hard": lambda: figures.easy_and_hard(_results(), "Width pays on hard images"),
    "statistics": lambda: figures.statistics(_statistics(), "Slimmer layers have other statistics"),
    "training_curves": lambda: figures.training_curves(_history(), "Slim learns last"),
    "calibration": lambda: figures.calibration(_calibration(), "A thousand images are enough"),
    "latency_bars": lambda: figures.latency_bars(_latency(), "Only slicing saves time"),
    "latency_by_width": lambda: figures.latency_by_width(_by_width(), "Sorting pays"),
    "image_grid": _grid,
    "slicing_diagram": lambda: figures.slicing_diagram(np.arange(9).reshape(3, 3) - 4, (1, 2, 3), "Corners"),
    "layer_macs": lambda: figures.layer_macs(_layers(), "The 1×1 convolutions cost most"),
    "cost_histogram": _costs,
    "difficulty_profile": lambda: figures.difficulty_profile(_answers(), "Hard images are hard"),
}


test_every_figure_holds = holds_for(DRAW)


def test_a_method_keeps_its_colour_in_every_figure():
    used = {}
    for arms in [("s_net", "us_net"), ("us_net", "individual", "s_net")]:
        for draw in (figures.accuracy, figures.easy_and_hard):
            ax = np.ravel(draw(_results(arms), "t"))[-1]
            for label in [t for t in ax.texts if t.get_text()]:
                used.setdefault(label.get_text(), set()).add(label.get_color())
    assert set(used) == {"S-Net", "US-Net", "Individual nets"}
    assert all(len(colours) == 1 for colours in used.values())


def test_a_variant_keeps_its_methods_colour_but_not_its_line():
    ax = figures.accuracy(_results(("us_net", "us_net_n2")), "t")
    lines = [line for line in ax.lines if line.get_linestyle() != "None"]
    assert lines[0].get_color() == lines[1].get_color()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert style.look("US-Net").label == "US-Net" and style.look("us_net_n2").label == "US-Net, n2"
    assert style.look("reader's own").label == "reader's own"


def test_a_paper_from_elsewhere_adds_its_look(monkeypatch):
    monkeypatch.setitem(style.METHODS, "usnetlite", style.Look("US-Net lite", "#123456", "p"))
    assert style.look("us_net_lite_n2") == style.Look("US-Net lite, n2", "#123456", "p")  # the longest name counts


def test_seeds_are_dots_and_the_line_is_their_mean():
    frame = _results(("us_net",))
    dots, line = figures.accuracy(frame, "t").lines
    assert len(dots.get_xdata()) == len(frame) and dots.get_linestyle() == "None"
    assert line.get_ydata().tolist() == frame.groupby("macs")["top1"].mean().tolist()
    assert line.get_xdata().tolist() == [2.5, 10.0, 40.0]


def test_dots_are_a_slimmer_layers_statistics_against_the_full_ones():
    for ax, column in zip(figures.statistics(_statistics(), "t"), ("mean", "var"), strict=True):
        slim = _statistics().query("mult < 1").sort_values(["mult", "channel"], ascending=[False, True])
        full = _statistics().query("mult == 1").set_index("channel")[column].loc[slim["channel"]]
        assert np.array(ax.collections[0].get_offsets()) == pytest.approx(np.column_stack([full, slim[column]]))


def test_paper_bars_are_divided_by_the_papers_full_net():
    heights = [patch.get_height() for patch in figures.latency_bars(_latency(), "t").patches]
    assert heights[0] == heights[5] == 1.0
    assert heights[3] == pytest.approx(9 / 30) and heights[8] == pytest.approx(7.9 / 12.2)


def test_the_grid_shows_each_image_in_its_class_and_difficulty():
    images = np.zeros((2, 3, 4, 4), np.uint8)
    images[1] = 200
    ax = figures.image_grid(images, np.array([0, 1]), np.array([0.1, 1.0]), ["a", "b"], "t", columns=2)
    sheet = ax.images[0].get_array()
    assert (sheet[1:5, 1:5] == 0).all() and (sheet[7:11, 7:11] == 200).all()
    assert (sheet[7:11, 1:5] == 255).all()  # no such image: white


def test_parts_of_a_layer_are_stacked_in_millions():
    ax = figures.layer_macs(_layers(), "t")
    tops = [max(p.get_y() + p.get_height() for p in ax.patches if round(p.get_x() + p.get_width() / 2) == x)
            for x in range(3)]
    assert tops == pytest.approx([10, 28, 1])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["stem", "1", "FC"]


def test_the_histogram_counts_every_subnet_and_marks_every_uniform_one():
    ax = _costs()
    assert sum(patch.get_height() for patch in ax.patches) == 1000
    assert ax.lines[0].get_xdata().tolist() == [3, 4, 12, 46]
    assert [t.get_text() for t in ax.texts] == ["0.25×", "0.5×", "1×"]  # 0.3× would stand on 0.25×


def test_the_profile_gives_the_accuracy_of_each_bin_even_where_one_is_empty():
    left, right = figures.difficulty_profile(_answers(), "t", bins=4)
    assert [patch.get_height() for patch in left.patches] == [50, 50, 50, 50]
    assert right.lines[0].get_ydata().tolist() == [100, 100, 0, 0]
    easy = _answers().query("difficulty < 0.4")
    assert len(figures.difficulty_profile(easy, "t", bins=4)[1].lines[0].get_xdata()) == 2


DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                         [-0.011820, 0.042940, 0.968881]])  # Machado, Oliveira and Fernandes 2009, severity 1
PROTANOPIA = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                       [-0.003882, -0.048116, 1.051998]])
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _linear(colour) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(colour, sight) -> np.ndarray:
    xyz = XYZ @ np.clip(sight @ _linear(colour), 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["full", "deuter", "protan"])
def test_colours_are_told_apart_by_the_colour_blind(sight):
    methods = sorted({method.colour for method in style.METHODS.values()})
    for palette in (methods, [style.width_colour(m) for m in (0.25, 0.5, 0.75, 1.0)]):
        seen = [_lab(colour, sight) for colour in palette]
        gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(gaps) > 15  # CIELAB units; 2 is just noticeable


def test_text_has_contrast_on_white():
    for colour in [m.colour for m in style.METHODS.values()] + [style.width_colour(m) for m in (0.25, 1.0)]:
        luminance = XYZ[1] @ _linear(style.legible(colour))
        assert 1.05 / (luminance + 0.05) >= 3  # WCAG 2.2, large or bold text


def test_what_is_shown_is_escaped(tmp_path):
    frame = _results().assign(arm="<script>alert(1)</script> $x^{$")
    shown = style.save(figures.accuracy(frame, 'T"><img src=x> --> $\\frac$'), tmp_path / "x.svg")
    bundle = shown._repr_mimebundle_()
    assert "<script" not in bundle["text/html"] and bundle["text/html"].count("<img") == 1
    svg = shown.path.read_text()
    assert "<script" not in svg and "<img" not in svg


test_bad_input_is_one_line = refuses(
    (lambda: figures.easy_and_hard(_results().drop(columns="top1_hard"), "t"), "top1_hard"),
    (lambda: figures.accuracy(_results().iloc[:0], "t"), "0 rows"),
    (lambda: style.save(figures.accuracy(_results(), "t"), "no folder/x.png"), "x.png"))
