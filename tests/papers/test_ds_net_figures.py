"""Figures of the chapter on DS-Net, from small frames: what is drawn where, and the checks of all figures."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_checks import holds_for, no_text_overlaps, refuses

from slimnb.book import style
from slimnb.papers.ds_net import figures

LITERATURE = Path(__file__).parents[2] / "data/literature/ds_net.csv"
TRAINED = ("In-place distillation", "EMA target", "IEB", "Temperature 4")
SHARED = [TRAINED, ("Static", "DS-Net", "Widest", "Oracle", "Blind router"), ("Static", "Try Best", "Give Up"),
          ("Masked", "Indexed", "Grouped", "Widest")]


def _schemes() -> pd.DataFrame:
    macs = np.linspace(0.1, 1, 10)
    rows = [("static", "static", cost, 76 - 12 * np.exp(-3 * cost)) for cost in macs]
    rows += [(f"{bent:.2f}", "dynamic", cost, 77 - (8 + 6 * bent) * np.exp(-(3 + 4 * bent) * cost) - 5 * bent * cost)
             for bent, cost in itertools.product(np.linspace(0, 1, 20), macs)]
    return pd.DataFrame(rows, columns=["scheme", "kind", "macs", "top1"])


def _training(arms=TRAINED) -> pd.DataFrame:
    rows = [(arm, epoch, 60 - 40 / epoch + arms.index(arm) + seed / 2, seed)
            for arm, epoch, seed in itertools.product(arms, range(1, 21), (0, 1))]
    return pd.DataFrame(rows, columns=["arm", "epoch", "top1", "seed"])


def _gates(gates: int = 4, choices=(0.25, 0.5, 0.75, 1.0)) -> pd.DataFrame:
    shares = np.random.default_rng(0).dirichlet(np.ones(len(choices)), gates)
    return pd.DataFrame({"gate": np.repeat(np.arange(gates) + 1, len(choices)), "choice": [*choices] * gates,
                         "share": shares.ravel()})


def _settings(seeds: int = 3) -> pd.DataFrame:
    rows = pd.read_csv(LITERATURE, dtype={"table": str}).query("table in ['6', '7']")
    names = rows["method"] + (" (" + rows["variant"] + ")").fillna("")
    return pd.concat([pd.DataFrame({"setting": names, "macs": rows["macs_m"] * 1e6 * (1 + 0.01 * seed),
                                    "top1": rows["top1"] + 0.2 * seed, "seed": seed}) for seed in range(seeds)])


def _static() -> pd.DataFrame:
    return pd.DataFrame({"macs": np.array([0.28, 1.1, 2.3, 4.1]) * 1e9, "top1": [66, 73.4, 75.4, 76.6]})


def _routes(groups) -> pd.DataFrame:
    towards = np.linspace(0, 1, len(groups))[:, None]
    shares = (1 - towards) * [0.7, 0.2, 0.1] + towards * [0.05, 0.15, 0.8]
    return pd.DataFrame({"difficulty": np.repeat(groups, 3), "choice": [8, 16, 24] * len(groups),
                         "share": shares.ravel()})


def _speeds() -> pd.DataFrame:
    rows = [(mode, batch, ratio * (1 + 0.02 * seed) * (1 + 0.05 * np.log2(batch) * (mode == "Grouped")))
            for mode, ratio in [("Masked", 0.97), ("Indexed", 0.7), ("Grouped", 1.1)]
            for batch in (1, 4, 16, 64, 256) for seed in (0, 1)]
    return pd.DataFrame(rows, columns=["mode", "batch", "ratio"])


def _found(count: int = 6):
    rng = np.random.default_rng(0)
    images = rng.integers(90, 150, (count, 3, 48, 48)).astype(np.uint8)
    boxes = []
    for at in range(count):
        rows = [(*corner, *(corner + size), name, score)
                for corner, size, name, score in [(np.array([4, 4 + at]), 18, "disc", np.nan),
                                                  (np.array([3, 6 + at]), 18, "disc", 0.93),
                                                  (np.array([26, 22]), 16, "square", np.nan),
                                                  (np.array([24, 24]), 20, "square", 0.51 + at / 30)]]
        boxes.append(pd.DataFrame(rows, columns=["x0", "y0", "x1", "y1", "label", "score"]))
    return images, boxes


DRAW = {
    "simulation": lambda: figures.simulation(_schemes(), "The best routing beats every static net"),
    "slimmest_over_training": lambda: figures.slimmest_over_training(_training(), "An ensemble teaches best"),
    "gate_distribution": lambda: figures.gate_distribution(_gates(), "Early gates go narrow, late ones wide"),
    "one_gate": lambda: figures.gate_distribution(_gates(1, range(224, 641, 32)), "One gate uses every width"),
    "loss_ablation": lambda: figures.loss_ablation(_settings(), "SGS alone gives the best trade-off", _static()),
    "loss_ablation_alone": lambda: figures.loss_ablation(_settings(1), "SGS alone gives the best trade-off"),
    "routing_by_difficulty": lambda: figures.routing_by_difficulty(_routes(np.arange(0.05, 1, 0.1)),
                                                                   "Hard images go to wide nets"),
    "routing_by_group": lambda: figures.routing_by_difficulty(_routes(["easy", "dependent", "hard"]),
                                                              "Hard images go to wide nets"),
    "throughput": lambda: figures.throughput(_speeds(), "Only grouping is faster than the widest net"),
    "detections": lambda: figures.detections(*_found(), "Discs are found, squares are not always"),
}


test_every_figure_holds = holds_for(DRAW)


def test_the_best_of_the_schemes_is_their_upper_envelope():
    frame = _schemes()
    best, static = (line for line in figures.simulation(frame, "t").lines if line.get_linewidth() == 2)
    top = frame[frame["kind"] == "dynamic"].groupby("macs")["top1"].max()
    assert best.get_ydata() == pytest.approx(top.to_numpy()) and (np.diff(best.get_ydata()) > 0).all()
    assert static.get_ydata() == pytest.approx(frame.loc[frame["kind"] == "static", "top1"].to_numpy())


def test_schemes_of_one_point_are_dots_and_only_the_best_are_joined():
    frame = pd.DataFrame([("a", "dynamic", 0.2, 60), ("b", "dynamic", 0.5, 55), ("c", "dynamic", 0.9, 70)],
                         columns=["scheme", "kind", "macs", "top1"])
    best = [line for line in figures.simulation(frame, "t").lines if line.get_linewidth() == 2]
    assert [line.get_xdata().tolist() for line in best] == [[0.2, 0.9]]


def test_arms_of_training_are_lines_of_means():
    ax = figures.slimmest_over_training(_training(), "t")
    means = [line for line in ax.lines if line.get_linewidth() == 2]
    assert [line.get_ydata()[-1] for line in means] == pytest.approx([58.25, 59.25, 60.25, 61.25])
    assert {text.get_text() for text in ax.texts} == set(TRAINED)


def test_bars_of_gates_are_the_shares_and_large_ones_are_named():
    frame = pd.DataFrame({"gate": [1, 1, 1, 2, 2, 2], "choice": [8, 24, 16] * 2,
                          "share": [0.5, 0.45, 0.05, 0, 1, 0]})
    ax = figures.gate_distribution(frame, "t")
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([50, 0, 5, 0, 45, 100])  # by choice, then gate
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["50 %", "45 %", "100 %"]


def test_a_setting_is_its_mean_and_is_named_once():
    ax = figures.loss_ablation(_settings(), "t", _static())
    frame = _settings().groupby("setting", sort=False)[["macs", "top1"]].mean()
    centres = np.concatenate([line.get_xydata() for line in ax.lines if line.get_markersize() == 8])
    assert centres == pytest.approx((frame / [1e6, 1]).to_numpy())
    names = [text.get_text() for text in ax.texts]
    assert sorted(names) == sorted([*frame.index, "Static subnets"])


def test_names_of_twelve_close_points_do_not_collide(tmp_path):
    near = pd.DataFrame({"setting": [f"setting number {at}" for at in range(12)], "seed": 0,
                         "macs": 1e6 * (100 + np.arange(12) % 4), "top1": 70 + np.arange(12) // 4 / 10})
    no_text_overlaps(lambda: figures.loss_ablation(near, "t"), tmp_path)


def test_difficulty_may_be_a_number_or_a_text_in_the_order_given():
    ax = figures.routing_by_difficulty(_routes(["easy", "dependent", "hard"]), "t")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Easy", "Dependent", "Hard"]
    assert [bar.get_height() for bar in ax.patches[:3]] == pytest.approx([70, 37.5, 5])
    binned = figures.routing_by_difficulty(_routes([0.75, 0.25]), "t")
    assert [bar.get_height() for bar in binned.patches[:2]] == pytest.approx([5, 70])


def test_a_mode_is_a_line_of_means_over_batches():
    means = _speeds().groupby(["mode", "batch"], sort=False)["ratio"].mean()
    assert [line.get_ydata() for line in figures.throughput(_speeds(), "t").lines[1:6:2]] == [
        pytest.approx(means[mode].to_numpy()) for mode in ("Masked", "Indexed", "Grouped")]


def test_a_picture_holds_its_own_boxes_and_the_scores_of_predictions():
    images, boxes = _found(2)
    ax = figures.detections(images, boxes, "t")
    assert (ax.images[0].get_array()[:48, 50:98] == images[1].transpose(1, 2, 0)).all()
    assert [text.get_text() for text in ax.texts] == ["disc 0.93", "square 0.51", "disc 0.93", "square 0.54"]
    corners = sorted(box.get_xy() for box in ax.patches)
    assert corners == sorted([(4, 4), (3, 6), (26, 22), (24, 24), (54, 5), (53, 7), (76, 22), (74, 24)])


@pytest.mark.parametrize("arms", SHARED, ids=lambda arms: arms[0])
def test_arms_that_share_a_figure_have_their_own_looks(arms):
    looks = [style.look(arm) for arm in arms]
    assert len({(each.colour, each.marker) for each in looks}) == len({each.colour for each in looks}) == len(arms)
    assert all(each in style.METHODS.values() for each in looks)


def test_the_literature_holds_each_table_of_the_paper():
    rows = pd.read_csv(LITERATURE, dtype={"table": str})
    assert list(rows["table"].unique()) == [*map(str, range(1, 11)), "readme"]
    assert rows["table"].value_counts()[["2", "6", "readme"]].tolist() == [35, 7, 14]
    assert rows[["macs_m", "latency_ms", "slimmest"]].notna().any(axis=1).all()


test_bad_input_is_one_line = refuses(
    (lambda: figures.gate_distribution(_gates().drop(columns="choice"), "t"), "choice"),
    (lambda: figures.simulation(_schemes().iloc[:0], "t"), "0 rows"),
    (lambda: figures.throughput(_speeds().drop(columns="ratio"), "t"), "ratio"),
    (lambda: figures.detections(_found()[0], _found(5)[1], "t"), "5 frames"),
    (lambda: figures.detections(_found()[0], [frame.drop(columns="score") for frame in _found()[1]], "t"), "score"),
)
