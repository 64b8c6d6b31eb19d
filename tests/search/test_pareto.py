"""Pareto fronts against brute force, DepS's mean Pareto accuracy and costs against what it prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimnb.errors import SlimnbError
from slimnb.search.pareto import (
    PHASES,
    best_per_bucket,
    delayed_cost,
    gpu_hours,
    mean_pareto_accuracy,
    pareto_front,
    passes,
    step_cost,
)

PRINTED = pd.read_csv(Path(__file__).parents[2] / "data/literature/deps.csv", dtype={"table": str})
POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30)


def printed(table: str, method: str) -> pd.DataFrame:
    return PRINTED[(PRINTED["table"] == table) & (PRINTED["method"] == method)]


@given(POINTS)
def test_the_front_is_what_no_point_beats(points):
    cost, accuracy = np.array(points).T
    beaten = [any((c <= cost[i] and a >= accuracy[i]) and (c < cost[i] or a > accuracy[i] or j < i)
                  for j, (c, a) in enumerate(points)) for i in range(len(points))]
    front = pareto_front(cost, accuracy)
    assert sorted(front) == [i for i, lost in enumerate(beaten) if not lost]
    assert (np.diff(cost[front]) > 0).all() and (np.diff(accuracy[front]) > 0).all()


@given(POINTS, st.integers(1, 7))
def test_each_bucket_gives_its_best(points, buckets):
    cost, accuracy = np.array(points).T
    edges = np.linspace(cost.min(), cost.max(), buckets + 1)
    found = best_per_bucket(cost, accuracy, buckets)
    where = np.clip(np.searchsorted(edges, cost + 1e-9, side="right") - 1, 0, buckets - 1)
    if cost.min() == cost.max():
        where[:] = 0
    expected = [max(np.flatnonzero(where == b), key=lambda i: (accuracy[i], -cost[i], -i)) for b in np.unique(where)]
    assert found.tolist() == expected


def test_a_bucket_without_points_is_left_out_and_points_outside_the_span_too():
    assert best_per_bucket([1, 2, 9, 50], [3, 4, 5, 99], 6, span=(0, 12)).tolist() == [0, 1, 2]
    assert best_per_bucket([1, 1, 12], [3, 4, 1], 6, span=(0, 12)).tolist() == [1, 2]


@pytest.mark.parametrize(("method", "area"), [("DepS", 75.82), ("OFA", 75.77)])
def test_figure_5d_gives_table_2s_mean_pareto_accuracy(method, area):
    rows = printed("fig5d", method)
    found = mean_pareto_accuracy(rows["macs_m"], rows["top1"])
    assert round(found, 2) == area
    assert found == pytest.approx(printed("2", method)["mean_pareto"].dropna().item(), abs=0.02)


def test_it_is_a_mean_whatever_the_unit_and_order_of_costs():
    macs, top1 = np.array([300.0, 100.0, 200.0]), np.array([4.0, 2.0, 6.0])
    assert mean_pareto_accuracy(macs, top1) == mean_pareto_accuracy(1e6 * macs + 5e6, top1) == 4.5
    assert mean_pareto_accuracy(macs, np.full(3, 7.0)) == 7


def test_the_largest_subnet_of_table_2_has_566_and_not_230_million_macs():
    curve, cells = printed("fig5d", "DepS"), printed("2", "DepS")
    largest = curve.loc[curve["macs_m"].idxmax()]
    assert cells.set_index("variant").loc["largest", ["macs_m", "top1"]].tolist() == [230, 77.3]
    assert largest[["macs_m", "top1"]].tolist() == [566.2, 77.3]
    below = curve[curve["macs_m"] <= 230]
    assert mean_pareto_accuracy(below["macs_m"], below["top1"]) < 75.81 - 1  # what Table 2 prints needs the whole range


def test_table_1s_row_at_230_million_lies_above_figure_5ds_curve():
    rows = printed("fig5d", "DepS")
    (claim,) = printed("1", "DepS").query("macs_m == 230")["top1"]
    curve = np.interp(230, rows["macs_m"], rows["top1"])
    assert claim == rows["top1"].max() and claim - curve > 2
    below = printed("1", "DepS").query("macs_m < @rows['macs_m'].min()")["macs_m"]
    assert below.tolist() == [67, 141]  # no subnet of the space at 224 pixels is as small as these


def test_figure_1s_bars():
    assert {name: passes(phases) for name, phases in PHASES.items()} == {"OFA": 10, "BigNAS": 6, "DepS": 4}


def test_a_step_of_four_nets_and_what_bignas_costs_beside_deps():
    four = step_cost([566.2, 151.3, 312, 312])  # 312 M is the mean of the random subnets
    assert round(four, 2) == 2.37
    assert round(delayed_cost(400, 0, four) / delayed_cost(270, 145, four), 2) == 2.15


def test_table_2s_hours_and_ratios():
    rows = PRINTED[(PRINTED["table"] == "2") & PRINTED["gpu_hours"].notna()].set_index("method")
    hours = gpu_hours(rows["epochs"], rows["minutes"])
    assert (hours - rows["gpu_hours"]).abs().max() < 6
    assert (rows["dollars"] / rows["gpu_hours"]).to_numpy() == pytest.approx(np.full(4, 2.13), abs=0.01)
    assert round(rows["gpu_hours"]["OFA"] / rows["gpu_hours"]["DepS"], 2) == 1.79
    assert round(rows["gpu_hours"]["BigNAS"] / rows["gpu_hours"]["DepS"], 2) == 2.54


@pytest.mark.parametrize("call", [
    lambda: pareto_front([], []), lambda: pareto_front([1, 2], [1]), lambda: pareto_front([1, 2], [1, np.nan]),
    lambda: best_per_bucket([1], [1], 0), lambda: best_per_bucket([1], [1], span=(2, 1)),
    lambda: mean_pareto_accuracy([3, 3], [1, 2]), lambda: delayed_cost(10, 11, 2.0),
])
def test_bad_input_is_one_line(call):
    with pytest.raises(SlimnbError, match="ParameterError") as caught:
        call()
    assert len(str(caught.value)) <= 240
