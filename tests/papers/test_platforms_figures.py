"""Figures of the chapter on platforms, from small frames: what is drawn where, and the checks of all figures."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from figure_checks import holds_for, refuses
from matplotlib.colors import to_hex

from slimnb.book import style
from slimnb.papers.platforms import figures as platforms_figures
from slimnb.papers.platforms import search_figures
from slimnb.papers.slimmable import figures as slimmable_figures

MARKETS = ["S", "RS", "U", "M", "L", "RL"]
ARMS = ["Slim-U", "Slim-W", "OWS-U", "OWS-W", "AOWS-U", "AOWS-W"]
SIZES = np.array([[10, 30, 60, 0], [100, 0, 0, 0], [20, 20, 20, 40]])
UNARY, COSTS, WIDTHS = [[-1.2, -0.8], [-1.5, -0.9], [-1.1, -0.6]], [[[2, 4], [4, 8]]] * 2, [[8, 16]] * 3


def _reference() -> pd.DataFrame:
    rows = [("Table 1, row S", 1, 62.0), ("Table 1, row S", 2, 26.0), ("Vendors", 1, 59.0), ("Vendors", 2, 26.0)]
    return pd.DataFrame(rows, columns=["source", "rank", "share"])


def _trellis():
    return search_figures.trellis(UNARY, COSTS, [1, 1, 0], WIDTHS, "The best path is bold")


def _channels() -> pd.DataFrame:
    widths = {("Original", "#6"): [32, 56, 112], ("Original", "#7"): [32, 64, 128],
              ("RS-AOWS", "#6"): [40, 64, 112], ("RS-AOWS", "#7"): [40, 64, 96]}
    rows = [(*key, unit, c) for key, row in widths.items() for unit, c in enumerate(row, 1)]
    return pd.DataFrame(rows, columns=["source", "platform", "unit", "channels"])


def _weighted(seeds=2) -> pd.DataFrame:
    grid = itertools.product(MARKETS, ARMS, range(seeds))
    frame = pd.DataFrame(grid, columns=["market", "arm", "seed"])
    arm, market = frame["arm"].map(ARMS.index), frame["market"].map(MARKETS.index)
    return frame.assign(top1=60 + arm + market / 4 + frame["seed"])


def _many() -> pd.DataFrame:
    frame = _weighted(1)
    return pd.concat([frame, frame[frame["arm"] == "OWS-U"].assign(arm="Random-U")])


def _forecast() -> pd.DataFrame:
    frame = pd.DataFrame(itertools.product(MARKETS, MARKETS, (0, 1)), columns=["trained", "used", "seed"])
    rank = frame["used"].map(MARKETS.index) - frame["trained"].map(MARKETS.index)
    return frame.assign(lost=np.maximum(rank, -0.5) + np.sign(rank).abs() * (frame["seed"] - 0.5))


def _unary():
    scores = {1: {0.5: -0.3, 1.0: -0.2, 1.5: -0.1}, 2: {0.25: -0.9, 0.5: -0.4, 1.0: -0.2, 1.5: -0.25}}
    rows = [(unit, mult, score) for unit, row in scores.items() for mult, score in row.items()]
    paths = [("#1", 1, 0.5), ("#1", 2, 0.25), ("#7", 1, 1.5), ("#7", 2, 1.0)]
    return search_figures.unary(pd.DataFrame(rows, columns=["unit", "mult", "score"]),
                         pd.DataFrame(paths, columns=["platform", "unit", "mult"]), "Width pays first in the stem")


def _duality() -> pd.DataFrame:
    nothing = float("nan")
    rows = [("exact", 20e6, 20e6, -0.3, nothing), ("exact", 10e6, 9e6, -0.5, nothing),
            ("lagrangian", 10e6, 8e6, -0.6, -0.45), ("lagrangian", 20e6, 20e6, -0.3, -0.3),
            *[("random", nothing, macs * 1e6, -1.0, nothing) for macs in (12, 15, 18)]]
    return pd.DataFrame(rows, columns=["kind", "budget", "macs", "score", "bound"])


def _latency() -> pd.DataFrame:
    measured = np.linspace(3, 14, 40)
    pair = pd.DataFrame({"measured": measured, "predicted": 1.02 * measured, "model": "pairwise table"})
    return pd.concat([pair, pair.assign(predicted=0.9 * measured, model="MACs alone")])


def _marginals() -> pd.DataFrame:
    rows = [(epoch, unit, mult, p, 10.0 ** -(epoch // 10)) for unit in (2, 9) for epoch in (0, 10, 20)
            for mult, p in zip((0.5, 1.0, 1.5), ((1, 1, 1), (1, 4, 1), (0, 1, 0))[epoch // 10], strict=True)]
    frame = pd.DataFrame(rows, columns=["epoch", "unit", "mult", "probability", "temperature"])
    total = frame.groupby(["epoch", "unit"])["probability"].transform("sum")
    return frame.assign(probability=frame["probability"] / total)


DRAW = {
    "market_shares": lambda: platforms_figures.market_shares(SIZES, "Few tables take all", _reference()),
    "trellis": _trellis,
    "channels": lambda: platforms_figures.channels(_channels(), "Shallow layers are wider"),
    "channels of one platform": lambda: platforms_figures.channels(_channels().query("platform == '#7'"), "Wider"),
    "weighted_accuracy": lambda: platforms_figures.weighted_accuracy(_weighted(), "Searched wins", _weighted(1)),
    "weighted_accuracy of four searches": lambda: platforms_figures.weighted_accuracy(_many(), "Random search loses"),
    "forecast": lambda: platforms_figures.forecast(_forecast(), "A wrong forecast costs points"),
    "unary": _unary,
    "duality": lambda: search_figures.duality(_duality(), "The gap is small"),
    "latency_fit": lambda: platforms_figures.latency_fit(_latency(), "Tables predict latency"),
    "marginals": lambda: search_figures.marginals(_marginals(), "Sampling closes in"),
}


test_every_figure_holds = holds_for(DRAW)


def test_shares_are_ranked_and_tables_that_are_missing_count_as_none():
    ax = platforms_figures.market_shares(SIZES, "t", _reference(), ranks=3)
    (means,) = [line.get_ydata() for line in ax.lines if line.get_marker() == "D"]
    assert means == pytest.approx([200 / 3, 50 / 3, 10])
    assert [bar.get_height() for bar in ax.patches if bar.get_height()] == [62, 26, 59, 26]


def test_the_best_path_is_bold_and_the_description_has_its_score_and_cost():
    ax = _trellis()
    bold = [line for line in ax.lines if line.get_linewidth() == 3]
    assert [list(line.get_ydata()) for line in bold] == [[1, 1], [1, 0]]
    assert "The path 16, 16, 8 scores -2.8 and costs 12." in style.alt_text(ax)


def test_units_of_a_trellis_may_have_unequal_choices():
    padded = [[-1.2, float("-inf")], [-1.5, -0.9]]
    ax = search_figures.trellis(padded, [[[2, 4]]], [0, 1], [[8], [16, 32]], "t")
    assert [text.get_text() for text in ax.texts if text.get_text() in {"8", "16", "32"}] == ["8", "16", "32"]
    assert "−inf" not in "".join(text.get_text() for text in ax.texts)


def test_a_unit_that_platforms_share_is_filled_on_each_of_them():
    axes = platforms_figures.channels(_channels(), "t")
    for ax in axes:
        filled = [[to_hex(face) != "#ffffff" for face in dots.get_facecolors()] for dots in ax.collections]
        assert filled == [[True, False, False], [True, True, False]]
    assert [dots.get_offsets()[:, 1].tolist() for dots in axes[1].collections] == [[32, 64, 128], [40, 64, 96]]
    assert "Original: 1 of 3\nRS-AOWS: 2 of 3" in axes[0].texts[0].get_text()


def test_a_dot_is_the_mean_of_an_arm_in_a_market_and_the_paper_shows_what_was_run():
    few = _weighted().query("market in ['S', 'U'] and arm not in ['AOWS-U', 'AOWS-W']")
    for ax, shift in zip(platforms_figures.weighted_accuracy(few, "t", _weighted(1)), (0.5, 0), strict=True):
        dots = [line for line in ax.lines if line.get_markersize() == 6.5]
        drawn = {(line.get_marker(), line.get_markerfacecolor() == "white"): line.get_xdata() for line in dots}
        assert len(dots) == 4 and (shift or {line.get_color() for line in dots} == {style.GREY})
        for arm in few["arm"].unique():
            values = drawn[style.look(arm).marker, arm.endswith("-U")]
            assert values == pytest.approx([60 + ARMS.index(arm) + market / 4 + shift for market in (0, 2)])


def test_rows_are_trained_for_and_columns_used_in():
    ax = platforms_figures.forecast(_forecast(), "t")
    texts = np.array([text.get_text() for text in ax.texts]).reshape(6, 6)
    assert texts[0, 5] == "5.00" and texts[5, 0] == "−0.50" and texts[2, 2] == "0"
    assert ax.collections[0].get_array()[0].tolist() == pytest.approx([0, 1, 2, 3, 4, 5])
    assert "trained for S and used in RL" in style.alt_text(ax)


def test_every_choice_is_a_cell_and_every_platform_a_path():
    ax = _unary()
    assert [(cell.get_y(), cell.get_height()) for cell in ax.patches[:3]] == [(0.25, 0.5), (0.75, 0.5), (1.25, 0.5)]
    assert len(ax.patches) == 7 and ax.patches[2].get_facecolor() == ax.patches[5].get_facecolor()  # each unit's best
    assert [line.get_ydata().round(1).tolist() for line in ax.lines] == [[0.5, 0.2], [1.5, 1.0]]


def test_gaps_are_taken_at_the_same_budget():
    _, right = search_figures.duality(_duality(), "t")
    gap, lost = right.lines
    assert gap.get_ydata() == pytest.approx([0.15, 0]) and lost.get_ydata() == pytest.approx([0.1, 0])


def test_each_latency_model_has_its_mean_error():
    ax = platforms_figures.latency_fit(_latency(), "t")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "pairwise table: off by 2 %", "MACs alone: off by 10 %"]
    drawn = np.concatenate([line.get_xydata() for line in ax.lines[:2]])
    assert drawn == pytest.approx(_latency()[["measured", "predicted"]].to_numpy())


def test_probabilities_are_stacked_to_one_and_the_likely_widths_are_named():
    axes = search_figures.marginals(_marginals(), "t")
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in axes[0].collections]
    assert tops == pytest.approx([1 / 3, 1, 1])
    assert [text.get_text() for text in axes[0].texts] == ["1×"]


def test_a_platforms_mean_is_one_point_though_its_nets_differ_in_macs():
    rows = [("OWS-U", "#1", 3.0e6, 40, 0), ("OWS-U", "#1", 3.2e6, 42, 1), ("OWS-U", "#2", 7.0e6, 50, 0),
            ("OWS-U", "#2", 6.8e6, 52, 1)]
    ax = slimmable_figures.accuracy(pd.DataFrame(rows, columns=["arm", "platform", "macs", "top1", "seed"]), "t")
    assert ax.lines[1].get_xdata() == pytest.approx([3.1, 6.9])
    assert ax.lines[1].get_ydata() == pytest.approx([41, 51])


@pytest.mark.parametrize(("arm", "method", "label"), [
    ("Slim-U", "slim", "Slim-U"), ("OWS-W", "ows", "OWS-W"), ("RS-AOWS-U", "aows", "RS-AOWS-U"),
    ("S-AOWS", "aows", "S-AOWS"), ("OWS-RS", "ows", "OWS-RS"),
    ("ows", "ows", "OWS"), ("Original", "slim", "Original"),
    ("OWS, stand-alone", "ows", "OWS, stand-alone"), ("Random-U", "random", "Random-U"),
    ("Stand-alone", "individual", "Stand-alone nets"), ("DS-Net", "dsnet", "DS-Net"), ("US-Net", "usnet", "US-Net"),
    ("Uniform", "slim", "Uniform widths"), ("us_net_a", "usnet", "US-Net, a"),
])
def test_an_arm_has_its_papers_name_and_its_methods_colour(arm, method, label):
    found = style.look(arm)
    assert (found.label, found.colour, found.marker) == (
        label, style.METHODS[method].colour, style.METHODS[method].marker)


def test_a_word_that_begins_like_a_method_is_not_the_method():
    assert style.look("slimmest").label == "slimmest" and style.look("owsome").colour != style.METHODS["ows"].colour


test_bad_input_is_one_line = refuses(
    (lambda: platforms_figures.channels(_channels().drop(columns="unit"), "t"), "unit"),
    (lambda: platforms_figures.forecast(_forecast().rename(columns={"lost": "regret"}), "t"), "lost"),
    (lambda: platforms_figures.market_shares(np.empty((0, 3)), "t"), "0 rows"),
)
