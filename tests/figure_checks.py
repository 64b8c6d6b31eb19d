"""What every figure of the book must hold; each check takes what draws it and an empty folder."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from slimnb.book import style
from slimnb.errors import SlimnbError

mpl.use("Agg")

UNITS = ["(%)", "(millions)", "(nats)", "(ms)", "(full net = 1)", "(0 easiest", "(bars carry ms)", "Class",
         "Running mean", "Running variance", "Training step", "images", "multiplier", "channel",
         "subnets", "(numbers are blocks)", "Rank (1", "(nodes: channels", "Width choice", "Channel unit (1",
         "Channels", "Market", "(cells: points lost)", "(millions of MACs)", "Epoch", "Probability", "|γ|",
         "Times pruned", "(supernet = 1)", "for N subnets", "(points)", "Layer (1", "Gradient norm", "Cosine",
         "Passes (", "Unit (1", "(MACs)", "(widest net = 1)", "Gate (1", "(pixels)"]


def axes_carry_units(draw, folder):
    axes = np.ravel(draw())
    assert all(ax.get_xlabel() for ax in axes if ax.get_subplotspec().is_last_row()) and axes[0].get_ylabel()
    for label in [text for ax in axes for text in (ax.get_xlabel(), ax.get_ylabel()) if text]:
        assert any(unit in label for unit in UNITS), label
        assert label[0].isupper()


def title_and_description(draw, folder):
    axes = draw()
    title = " ".join(style.figure_of(axes).get_suptitle().split())
    assert title and title in style.alt_text(axes) and len(style.alt_text(axes)) > len(title) + 20


def same_bytes_twice(drawn, draw, folder):
    """`drawn`, that was looked at before, and another drawing of it under a reader's own settings."""
    paths = [folder / "a.svg", folder / "b.svg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(drawn, paths[0])
        with mpl.rc_context({"savefig.dpi": 300, "font.size": 30, "axes.grid": False}):
            style.save(draw(), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"<dc:date>" not in paths[0].read_bytes()
    assert not plt.get_fignums()


def no_text_overlaps(draw, folder):
    fig = style.figure_of(draw())
    fig.canvas.draw()
    shown = [text for legend in fig.legends for text in legend.get_texts()] + [fig._suptitle]
    for ax in fig.axes:
        shown += [ax.xaxis.label, ax.yaxis.label, ax._left_title, *ax.texts]
        shown += [*_ticks(ax.xaxis), *_ticks(ax.yaxis)]
        shown += ax.get_legend().get_texts() if ax.get_legend() else []
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in shown if text.get_text().strip()]
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1), (one, two)
    for text, box in boxes:
        assert box.x0 >= -1 and box.x1 <= fig.bbox.x1 + 1 and box.y0 >= -1 and box.y1 <= fig.bbox.y1 + 1, text


def _ticks(axis):
    low, high = sorted(axis.get_view_interval())
    places = axis.get_majorticklocs()
    labels = zip(axis.get_majorticklabels(), places, strict=False)  # a shared axis has labels once
    return [label for label, place in labels if low <= place <= high]


CHECKS = [axes_carry_units, title_and_description, no_text_overlaps]


def holds_for(drawings: dict[str, Callable]) -> Callable:
    """A test that every check passes for every one of the named drawings; `-m sweep` draws each again."""
    first, *others = drawings
    twice = [pytest.param(name, True, marks=pytest.mark.sweep) for name in others]

    @pytest.mark.parametrize(("name", "again"), [(first, True), *((name, False) for name in others), *twice])
    def test(name, again, tmp_path):
        drawn = drawings[name]()
        for check in CHECKS:  # all at one drawing
            check(lambda: drawn, tmp_path)
        if again:
            same_bytes_twice(drawn, drawings[name], tmp_path)

    return test


def refuses(*cases: tuple[Callable, str]) -> Callable:
    """A test that each call is refused in one line that names what is missing."""
    @pytest.mark.parametrize(("call", "missing"), cases)
    def test(call, missing):
        with pytest.raises(SlimnbError) as caught:
            call()
        text = str(caught.value)
        assert "ParameterError" in text and missing in text and len(text) <= 240 and "\n" not in text

    return test
