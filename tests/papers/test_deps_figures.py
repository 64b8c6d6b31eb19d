"""Figures of the chapter on DepS, from small frames: what is drawn where, and the checks of all figures."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import holds_for, refuses

from slimnb.book import style
from slimnb.papers.deps import figures
from slimnb.search.pareto import PHASES

SHARES, MACS = (0.3, 0.5, 1.0), np.array([45.2, 91.6, 179.8]) * 1e6


def _cost() -> pd.DataFrame:
    rows = [(arm, phase, *row) for arm, phases in PHASES.items() for phase, row in enumerate(phases)]
    return pd.DataFrame(rows, columns=["arm", "phase", "subnets", "length"])


def _shares() -> pd.DataFrame:
    rows = [(share, macs, 40 + 10 * share + macs / 2e7 + seed, seed)
            for share, macs, seed in itertools.product(SHARES, MACS, (0, 1))]
    return pd.DataFrame(rows, columns=["share", "macs", "top1", "seed"])


def _layers() -> pd.DataFrame:
    rows = [(layer, gradient, 1e-3 * size * layer, 1 - 0.02 * layer * (size - 1))
            for layer, (gradient, size) in itertools.product(range(1, 13), [("full", 1), ("shrinking", 5),
                                                                           ("epsilon-shrinking", 1.1)])]
    return pd.DataFrame(rows, columns=["layer", "gradient", "norm", "cosine"])


def _curve(x: str, y: str, arms=("DepS", "DepS, no epsilon")) -> pd.DataFrame:
    rows = [(arm, at, 60 + at / 4 + 2 * arms.index(arm) + seed, seed)
            for arm, at, seed in itertools.product(arms, range(1, 13), (0, 1))]
    return pd.DataFrame(rows, columns=["arm", x, y, "seed"])


DRAW = {
    "training_cost": lambda: figures.training_cost(_cost(), "DepS needs the fewest passes"),
    "by_share": lambda: figures.by_share(_shares(), "Half-trained nets start better", _shares().assign(seed=0)),
    "layer_gradients": lambda: figures.layer_gradients(_layers(), "Shrinking turns the gradient"),
    "epsilon_ramps": lambda: figures.epsilon_ramps(_curve("step", "epsilon", ("DepS", "DepS, by rate")),
                                                   "Both ramps end near one"),
    "norm_ratio": lambda: figures.norm_ratio(_curve("step", "ratio"), "Epsilon keeps steps short"),
    "start_of_shrinking": lambda: figures.start_of_shrinking(
        _curve("epoch", "top1"), "Without epsilon the full net drops", 6, _curve("epoch", "top1", ("DepS",))),
    "search_progress": lambda: figures.search_progress(_curve("evaluation", "best", ("Evolution", "Random search")),
                                                       "Evolution finds more"),
}


test_every_figure_holds = holds_for(DRAW)


def test_the_boxes_of_figure_1_have_the_cost_as_their_area():
    ax = figures.training_cost(_cost(), "t")
    tallest = max(bar.get_height() for bar in ax.patches)
    areas: dict[int, float] = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() - 0.42)
        areas[row] = areas.get(row, 0) + bar.get_width() * 3 * bar.get_height() / tallest
    assert areas == pytest.approx({0: 10, 1: 6, 2: 4})
    assert [text.get_text().strip() for text in ax.texts] == ["10", "6", "4"]


def test_a_share_is_a_line_of_means_and_dots_of_seeds():
    ax = figures.by_share(_shares(), "t")
    means = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in means] == [3, 3, 3]
    assert means[1].get_ydata() == pytest.approx(45.5 + MACS / 2e7)
    assert [text.get_text() for text in ax.texts] == ["30 %", "50 %", "100 %"]


def test_the_full_net_has_a_norm_and_the_others_a_cosine_too():
    norms, cosines = figures.layer_gradients(_layers(), "t")
    assert len(norms.lines) == 3 and norms.get_yscale() == "log"
    ours = [line for line in cosines.lines if len(line.get_xdata()) == 12]
    assert [line.get_ydata()[0] for line in ours] == pytest.approx([1 - 0.08, 1 - 0.002])
    missing = _layers().assign(cosine=lambda frame: frame["cosine"].where(frame["layer"] > 1, None).astype(object))
    plt.close(norms.figure)
    figures.layer_gradients(missing, "t")


def test_the_start_of_shrinking_is_marked_and_the_paper_is_grey():
    ax = DRAW["start_of_shrinking"]()
    marked = [line for line in ax.lines if list(line.get_xdata()) == [6, 6]]
    assert len(marked) == 1 and marked[0].get_color() == style.GREY
    assert "Paper" in {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(("arm", "label"), [("OFA", "OFA"), ("CompOFA", "CompOFA"), ("BigNAS", "BigNAS"),
                                            ("Random search", "Random search"),
                                            ("DepS, no epsilon", "DepS, no epsilon")])
def test_arms_have_their_own_look(arm, label):
    found = style.look(arm)
    assert found.label == label and found.colour in {each.colour for each in style.METHODS.values()}
    colours = [style.look(name).colour for name in ("OFA", "CompOFA", "BigNAS", "DepS")]
    assert len(set(colours)) == 4


test_bad_input_is_one_line = refuses(
    (lambda: figures.layer_gradients(_layers().drop(columns="cosine"), "t"), "cosine"),
    (lambda: figures.by_share(_shares().drop(columns="share"), "t"), "share"),
    (lambda: figures.search_progress(_curve("evaluation", "best").iloc[:0], "t"), "0 rows"),
)
