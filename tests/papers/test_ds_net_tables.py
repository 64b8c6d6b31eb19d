"""Tables of chapter 06 against brute force on made-up routes; the simulation; throughput on a tiny net."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimnb.papers.ds_net import tables
from slimnb.papers.ds_net.method import packed_bits

COUNT = 200
MACS = [10.0, 25.0, 60.0, 100.0]


def recipe(**more):
    return SimpleNamespace(**{"net": "ds_mbnet", "arm": "DS-Net-L", "method": "gates", "seed": 0, "lowest": None,
                              "scale": "small"} | more)


def made(seed=0, lowest=None):
    """(gates' result, supernet's result, hits (N, 4), choices (N,)) of random routes over four paths."""
    rng = np.random.default_rng(seed)
    hits = rng.random((COUNT, 4)) < [0.4, 0.55, 0.6, 0.7]
    choices = rng.integers(0, lowest or 4, COUNT)
    supernet = SimpleNamespace(
        recipe=recipe(arm="IEB", method="bootstrapping"), run_id="super", history=[],
        rows=[{"name": str(k), "macs": MACS[k], "top1": 100 * hits[:, k].mean(), "top1_val": 0.0} for k in range(4)]
        + [{"name": "largest", "macs": 120.0, "top1": 99.0, "top1_val": 0.0}],
        findings={"correct": {str(k): packed_bits(hits[:, k]) for k in range(4)}})
    routed = SimpleNamespace(
        recipe=recipe(lowest=lowest), run_id="gates", history=[],
        rows=[{"name": "routed", "macs": float(np.take(MACS, choices).mean()), "top1": 0.0, "top1_val": 0.0}],
        findings={"choices": ["".join(map(str, choices))], "path_macs": MACS, "correct": {}})
    return routed, supernet, hits, choices


@pytest.mark.parametrize("lowest", [None, 2])
def test_routers_against_a_loop_over_images(lowest):
    routed, supernet, hits, choices = made(lowest=lowest)
    table, top = tables.routers(routed, supernet), (lowest or 4) - 1
    right = dict.fromkeys(table.index, 0)
    cost = dict(right)
    for i in range(COUNT):
        oracle = next((k for k in range(top + 1) if hits[i, k]), 0)
        label = 0 if hits[i, 0] else top
        for name, k in (("Gate", choices[i]), ("Widest", top), ("SGS labels", label), ("Oracle", oracle)):
            right[name] += hits[i, k]
            cost[name] += MACS[k]
        for other in choices:  # blind: any image's path is as good as any other's
            right["Blind router"] += hits[i, other] / COUNT
            cost["Blind router"] += MACS[other] / COUNT
    for name in ("Gate", "Widest", "SGS labels", "Oracle", "Blind router"):
        assert table.loc[name, "top1"] == pytest.approx(100 * right[name] / COUNT), name
        assert table.loc[name, "macs"] == pytest.approx(cost[name] / COUNT), name
    assert table.loc["Static", "macs"] == pytest.approx(table.loc["Gate", "macs"])
    assert table.loc["Oracle", "top1"] == pytest.approx(100 * hits[:, : top + 1].any(1).mean())


def test_static_accuracy_is_read_off_the_line_between_paths_and_the_largest_is_none():
    _, supernet, hits, _ = made()
    means = 100 * hits.mean(0)
    assert tables.static_at(supernet, 42.5) == pytest.approx((means[1] + means[2]) / 2)
    assert tables.static_at(supernet, 500.0) == pytest.approx(means[3])
    assert list(tables.static_paths(supernet)["name"]) == ["0", "1", "2", "3"]


def test_shares_add_up_and_a_collapse_is_named():
    routed, _, _, choices = made()
    shares = tables.shares(routed)
    assert shares["share"].sum() == pytest.approx(1) and len(shares) == 4
    assert shares["share"].tolist() == pytest.approx([np.mean(choices == k) for k in range(4)])
    assert tables.collapses([routed]) == []
    stuck = SimpleNamespace(**vars(routed) | {"findings": routed.findings | {"choices": ["3" * COUNT]}})
    line, = tables.collapses([stuck])
    assert line.endswith("DS-Net-L (seed 0): gate 1 to choice 3 (100.0%)")


def test_agreement_counts_labels():
    routed, supernet, hits, choices = made()
    told = tables.agreement(routed, supernet)
    labels = [0 if right else 3 for right in hits[:, 0]]
    assert told["agree"] == pytest.approx(np.mean([a == b for a, b in zip(choices, labels, strict=True)]))
    assert told["easy"] == pytest.approx(choices[hits[:, 0]].mean()) and told["share_easy"] == hits[:, 0].mean()


def test_information_is_zero_of_constants_and_all_of_copies():
    a = np.tile([0, 1, 2, 3], 50)
    assert tables.bits(a) == pytest.approx(2)
    assert tables.information(a, np.zeros_like(a)) == pytest.approx(0)
    assert tables.information(a, 3 - a) == pytest.approx(2)
    assert tables.information(a, a // 2) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=60))
def test_information_is_symmetric_and_at_most_either_entropy(pairs):
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    found = tables.information(a, b)
    assert found == pytest.approx(tables.information(b, a), abs=1e-9)
    assert -1e-9 <= found <= min(tables.bits(a), tables.bits(b)) + 1e-9


def test_choices_of_several_gates_are_read_by_image():
    routed = SimpleNamespace(recipe=recipe(), rows=[],
                             findings={"choices": ["01Z", "310"], "path_macs": np.zeros((36, 4))})
    assert tables.chosen(routed).tolist() == [[0, 3], [1, 1], [35, 0]]
    assert tables.paths_of(tables.chosen(routed)).tolist() == [0, 1, 2]


def test_by_difficulty_bins_images():
    choices, difficulty = np.array([0, 1, 1, 0]), np.array([0.05, 0.15, 0.95, 1.0])
    frame = tables.by_difficulty(choices, difficulty)
    assert frame["difficulty"].unique() == pytest.approx([0.1, 0.9])
    assert frame["share"].tolist() == [0.5, 0.5, 0.5, 0.5]
    assert frame.groupby("difficulty")["share"].sum().tolist() == [1, 1]


@pytest.mark.parametrize("schemes", [2, 20, 21])
def test_the_simulation_gives_equal_mean_costs_and_its_best_scheme_never_loses_much(schemes):
    frame = tables.simulated(schemes)
    static = frame[frame["kind"] == "static"].set_index("macs")["top1"]
    assert frame.loc[frame["kind"] == "dynamic", "scheme"].nunique() == schemes
    half = frame[np.isclose(frame["share"], 0.5) & (frame["kind"] == "dynamic")]
    if len(half):  # a scheme that splits evenly is the static net
        pd.testing.assert_series_equal(half.set_index("macs")["top1"], static, check_names=False)
    assert ((frame["macs"] > 0) & (frame["macs"] <= 1) & frame["top1"].between(30, 95)).all()


def test_throughput_is_measured_once_and_its_ways_agree(tmp_path):
    from slimnb.data.datasets import load_data
    from slimnb.papers.ds_net import recipes
    from slimnb.runs.store import RunStore
    from slimnb.train.experiment import run

    data, store = load_data("synthetic", train=200, test=60), RunStore(tmp_path / "runs", tmp_path / "results")
    family = recipes.LAPTOP["smoke"][0]
    supernet = run(replace(recipes.supernets(family, 0)[2], epochs=1, looks=0), data, store, quiet=True)
    routed = run(recipes.gated(family, 0, supernet.run_id)[-1], data, store, quiet=True)
    found = tables.throughput(routed, supernet, data, store, batches=(1, 8), rounds=1)
    assert {row["mode"] for row in found["rows"]} == {"Grouped", "Sliced", "Masked", "Widest", "Static"}
    assert found["difference"] < 1e-3 and found["static"] in {"0", "1", "2", "3"} and 0 <= found["overhead"] < 1e4
    assert all(row["ratio"] == 1 for row in found["rows"] if row["mode"] == "Widest")
    again = tables.throughput(routed, supernet, data, store, batches=(1, 8), rounds=1)
    assert again["run_id"] == found["run_id"] and again["rows"] == found["rows"]
