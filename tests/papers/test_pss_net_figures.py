"""Figures of the chapter on PSS-Net, from small frames: what is drawn where, and the checks of all figures."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_checks import holds_for, refuses

from slimnb.book import style
from slimnb.papers.pss_net import figures

PRINTED = pd.read_csv(Path(__file__).parents[2] / "data/literature/pss_net.csv")
ARMS = ["US-Net", "MutualNet", "PSS-F", "PSS-M"]


def _trials() -> pd.DataFrame:
    rows = [(arm, macs * 1e6, float("nan") if arm == "Naive" and macs == 9 else many * (1 + (macs - 6) ** 4))
            for arm, many in (("Naive", 30), ("Eq. 4", 3), ("Exact", 0)) for macs in range(3, 10)]
    frame = pd.DataFrame(rows, columns=["arm", "cost", "trials"])
    return frame.assign(trials=frame["trials"].where(frame["arm"] != "Exact", 1.0))


def _marginals() -> pd.DataFrame:
    rows = []
    for bucket, slope in (("3 M MACs", -1), ("9 M MACs", 1)):
        for unit in range(1, 9):
            mult = np.linspace(0.75, 1, 3 + unit)
            p = np.exp(8 * slope * mult)
            rows += [(bucket, str(unit), m, q, 1 / len(mult)) for m, q in zip(mult, p / p.sum(), strict=True)]
    return pd.DataFrame(rows, columns=["bucket", "unit", "mult", "probability", "prior"])


def _exploration() -> pd.DataFrame:
    epoch = np.arange(20)
    return pd.DataFrame({"epoch": epoch, "p": 0.01 ** (epoch / 20), "eta": 0.01 ** (epoch / 20),
                         "reused": 1 - 0.01 ** (epoch / 20)})


def _pools() -> pd.DataFrame:
    rows = [(pool, step, -2 + step / 4000, step == 1000) for pool in ("4 M", "6 M", "8 M")
            for step in range(0, 1500, 100)]
    return pd.DataFrame(rows, columns=["pool", "since", "metric", "chosen"])


def _accuracy(resources=("MACs", "CPU latency"), seeds=2) -> pd.DataFrame:
    rows = [(resource, arm, cost * (1e6 if resource == "MACs" else 1),
             40 + 3 * np.log(cost) + ARMS.index(arm) + seed, seed)
            for resource in resources for arm in ARMS for cost in (3, 6, 10) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["resource", "arm", "cost", "top1", "seed"])


def _printed() -> pd.DataFrame:
    """Table 1, MobileNetV1, as `accuracy_by_resource` draws it."""
    table = PRINTED.query("table == '1' and net == 'MobileNetV1' and method != 'base'")
    wide = table.pivot(index=["row", "method"], columns="column", values="value").reset_index()
    macs, cpu = (wide.dropna(subset=column) for column in ("macs_m", "cpu_ms"))
    return pd.concat([macs.assign(resource="MACs", cost=1e6 * macs["macs_m"]),
                      cpu.assign(resource="CPU latency", cost=cpu["cpu_ms"])]).rename(columns={"method": "arm"})


def _top_k(seeds=2) -> pd.DataFrame:
    rows = [(pool, k, 40 + at + 0.3 * np.log(k) * (3 - at), seed) for at, pool in enumerate(("4 M", "6 M", "8 M"))
            for k in (1, 5, 10, 20) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["pool", "k", "top1", "seed"])


def _printed_k() -> pd.DataFrame:
    wide = PRINTED.query("table == '5'").pivot(index="row", columns="column", values="value")
    return wide.assign(pool=wide["macs_m"].map("{:.0f} M".format), seed=0)


def _tuned(seeds=2) -> pd.DataFrame:
    grid = itertools.product(("4 M", "6 M", "8 M"), ("In the supernet", "Fine-tuned"), range(seeds))
    frame = pd.DataFrame(grid, columns=["pool", "arm", "seed"])
    return frame.assign(top1=40 + frame["pool"].str[0].astype(int) - (frame["arm"] == "Fine-tuned") / 2 + frame["seed"])


def _costs() -> pd.DataFrame:
    rows = [("US-Net", 4, 1.6, False), ("Pruning", 30, 30, False), ("PSS-Net", 3, 1.6, False),
            ("PSS-Net", 1.8, 1.2, True)]
    return pd.DataFrame(rows, columns=["method", "training", "storage", "measured"])


def _switching() -> pd.DataFrame:
    budget = (6 + 3 * np.sin(np.arange(60) / 9)) * 1e6
    return pd.DataFrame({"batch": range(60), "budget": budget, "cost": budget // 1e6 * 1e6,
                         "top1_val": 40 + budget // 1e6})


DRAW = {
    "trials": lambda: figures.trials(_trials(), "Marginals need a tenth of the tries"),
    "bucket_marginals": lambda: figures.bucket_marginals(_marginals(), "Dear buckets want wide layers"),
    "exploration": lambda: figures.exploration(_exploration(), "Fewer and fewer are new"),
    "pool_contents": lambda: figures.pool_contents(_pools(), "What came late stands higher"),
    "accuracy_by_resource": lambda: figures.accuracy_by_resource(_accuracy(), "Pools win", _printed()),
    "accuracy_by_resource, one": lambda: figures.accuracy_by_resource(_accuracy(("MACs",)), "Pools win by MACs"),
    "top_k": lambda: figures.top_k(_top_k(), "Five are enough"),
    "top_k and the paper's": lambda: figures.top_k(_top_k(), "Five are enough", _printed_k()),
    "fine_tuning": lambda: figures.fine_tuning(_tuned(), "Fine-tuning gains nothing", _tuned(1)),
    "costs": lambda: figures.costs(_costs(), "One supernet is cheaper than thirty nets"),
    "switching": lambda: figures.switching(_switching(), "The subnet follows the budget"),
    "switching by latency": lambda: figures.switching(
        _switching().assign(budget=lambda f: f["budget"] / 1e6, cost=lambda f: f["cost"] / 1e6), "In ms",
        "CPU latency"),
}


test_every_figure_holds = holds_for(DRAW)


def test_a_bucket_where_nothing_was_accepted_has_no_dot():
    ax = figures.trials(_trials(), "t")
    naive = ax.lines[0]
    assert naive.get_xdata().tolist() == [3, 4, 5, 6, 7, 8, 9] and np.isnan(naive.get_ydata()[-1])
    assert "Naive: 30 to 2.46e+03" in style.alt_text(ax) and "Exact: 1 to 1" in style.alt_text(ax)


def test_what_a_bucket_prefers_is_warm():
    cheap, dear = figures.bucket_marginals(_marginals(), "t")[:2]
    for ax, sign in ((cheap, -1), (dear, 1)):
        change = ax.collections[0].get_array().ravel()
        assert (np.diff(change) * sign > 0).all() and change.min() < 0 < change.max()
        assert len(change) == 4


def test_the_paper_has_panels_of_its_own_in_grey():
    axes = figures.accuracy_by_resource(_accuracy(), "t", _printed())
    assert {line.get_color() for ax in axes[2:] for line in ax.lines} == {style.GREY}
    ours = {line.get_color() for line in axes[0].lines}
    assert ours == {style.look(arm).colour for arm in ARMS} and len(ours) == 4
    assert max(axes[2].lines[0].get_xdata()) == 569 and max(axes[0].lines[0].get_xdata()) == 10


def test_gains_are_over_the_first_of_the_same_pool():
    ax = figures.top_k(_top_k(), "t", _printed_k())
    first = ax.lines[0].get_ydata()
    assert first[0] == 0 and first[-1] == pytest.approx(0.9 * np.log(20))
    assert ax.lines[3].get_ydata() == pytest.approx([0, 0.9, 0.9, 1.0])  # Table 5, 300M


def test_bars_say_what_they_are_long():
    training, storage = figures.costs(_costs(), "t")
    assert [bar.get_width() for bar in training.patches] == [4, 30, 3, 1.8]
    assert [text.get_text() for text in storage.texts] == ["1.6", "30", "1.6", "1.2"]


def test_a_switcher_that_overspends_is_told():
    fine = figures.switching(_switching(), "t")
    assert "60 batches 0 cost more" in style.alt_text(fine)
    assert fine[0].lines[1].get_ydata().max() == 8 and len(fine) == 2
    over = figures.switching(_switching().assign(cost=9e6), "t")
    assert "60 batches 0 cost" not in style.alt_text(over)


def test_chosen_structures_are_marked_and_the_trend_is_told():
    axes = figures.pool_contents(_pools(), "t")
    assert axes[1].lines[1].get_xdata().tolist() == [1000]
    assert "4 M: 15 structures, rank correlation 1.00." in style.alt_text(axes)


@pytest.mark.parametrize(("arm", "label", "colour"), [
    ("PSS-F", "PSS-F", "pssnet"), ("PSS-M", "PSS-M", "pssm"), ("PSS-Net", "PSS-Net", "pssnet"),
    ("PSS-F from 0.25x", "PSS-Net, F from 0.25x", "pssnet"), ("Uniform pools", "Uniform pools", "uniform"),
    ("MutualNet, reduced", "MutualNet, reduced", "mutualnet"),
    ("Given uniform widths", "Given uniform widths", "uniform"), ("Given widths", "Given widths", "pssnet"),
])
def test_arms_of_the_chapter_have_a_look(arm, label, colour):
    assert (style.look(arm).label, style.look(arm).colour) == (label, style.METHODS[colour].colour)


test_bad_input_is_one_line = refuses(
    (lambda: figures.switching(_switching().drop(columns="budget"), "t"), "budget"))


# -- the paper's numbers ---------------------------------------------------------------------------------


def test_the_papers_tables_are_whole_and_add_up():
    assert set(PRINTED["table"]) == {"1", "2", "3", "4", "5", "6", "Figure 4"} and not PRINTED.isna().any().any()
    assert not PRINTED.duplicated(["table", "net", "row", "method", "column"]).any()
    wide = PRINTED.pivot(index=["table", "net", "row", "method"], columns="column", values="value")
    assert wide.loc["1"]["top1"].count() == 2 + 36 + 33  # three cells of US-Net's MobileNetV2 are a dash
    assert wide.loc["2"]["top1"].count() == 2 * 23
    per_n = wide.loc["3"].droplevel(["net", "row"])
    assert per_n.loc["Pruning", "training_per_subnet"] * 30 / per_n.loc["PSS-Net", "training"] == 10  # "about 1/10"
    store = per_n["storage"] + 30 * per_n["storage_per_subnet"]
    assert store["Pruning"] / store["PSS-Net"] == pytest.approx(18.75)  # "about 1/20"
    k = wide.loc["5"].reset_index().pivot(index="macs_m", columns="k", values="top1")
    assert (k[[5, 10, 20]].sub(k[1], axis=0).mean().round(2) == [0.4, 0.4, 0.43]).all()  # its row of average boosts
    tuned = wide.loc["6"]
    assert (tuned["top1_tuned"] - tuned["top1"]).round(1).tolist() == [-0.4, -0.3, -0.3]
