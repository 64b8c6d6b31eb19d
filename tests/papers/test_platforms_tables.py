"""Weighted accuracies, regrets and forecasts against sums by hand, on invented results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slimnb.errors import SlimnbError
from slimnb.papers.platforms.market import WEIGHTS
from slimnb.papers.platforms.tables import (
    best_of,
    choice_scores,
    forecast,
    over_markets,
    platform_widths,
    regret,
    retrained,
    shared_units,
    stand_alone,
    weighted,
)
from slimnb.subnet import SearchSpace, Subnet

LITERATURE = Path(__file__).resolve().parents[2] / "data/literature/platforms.csv"
NAMES = [f"#{k}" for k in range(1, 8)]
RAMP = np.arange(7.0)


def net(source, sampled, top1, searched=None, seed=0, method="platforms"):
    """Rows of one net, `top1` (7,) by platform."""
    arm = f"{searched}-{source}-{sampled}" if searched else f"{source}-{sampled}"
    return [{"source": source, "arm": arm, "method": method, "searched_for": searched, "sampled_for": sampled,
             "seed": seed, "name": name, "top1": value, "macs": 1} for name, value in zip(NAMES, top1, strict=True)]


def alone(source, top1, seed=0):
    return [row | {"sampled_for": None} for row in net(source, "x", top1, seed=seed, method="alone")]


@pytest.fixture
def frame():
    rows = net("Slim", "U", 50 + RAMP) + net("Slim", "S", 50 + RAMP**2 / 6) + net("OWS", "U", 52 + RAMP)
    rows += net("OWS", "S", 51 + 1.5 * RAMP) + net("OWS", "RS", 54 - RAMP)
    rows += net("AOWS", "U", 53 + RAMP, "S") + net("AOWS", "S", 52.5 + RAMP, "S") + net("AOWS", "U", 40 + RAMP, "RS")
    rows += alone("Slim", 60 + RAMP) + alone("OWS", 61 + RAMP)
    rows += [{"source": "OWS", "method": "ows", "seed": 0, "mult": 0.2, "top1": 1.0, "arm": "OWS search"}]
    return pd.DataFrame(rows)


def at(found, market, arm, seed=0):
    (value,) = found.loc[(found["market"] == market) & (found["arm"] == arm) & (found["seed"] == seed), "top1"]
    return value


def test_weighted_accuracy_is_the_sum_by_hand(frame):
    found = weighted(frame)
    for market, shares in WEIGHTS.items():
        assert at(found, market, "OWS-U") == pytest.approx(sum(w * (52 + k) for k, w in enumerate(shares)))
    assert at(found, "S", "OWS-W") == pytest.approx(51 + 1.5 * np.dot(WEIGHTS["S"], RAMP))
    assert at(found, "S", "AOWS-U") - at(found, "S", "AOWS-W") == pytest.approx(0.5)


def test_weighted_has_each_arm_where_it_was_trained_and_nowhere_else(frame):
    found = weighted(frame)
    markets = found.groupby("arm")["market"].agg(set).to_dict()
    assert markets == {"Slim-U": set(WEIGHTS), "OWS-U": set(WEIGHTS), "Slim-W": {"S"}, "OWS-W": {"S", "RS"},
                       "AOWS-U": {"S", "RS"}, "AOWS-W": {"S"}}
    assert at(found, "RS", "AOWS-U") == pytest.approx(40 + np.dot(WEIGHTS["RS"], RAMP))  # not the net searched for S
    assert not found.duplicated(["market", "arm", "seed"]).any()


def test_seeds_stay_apart(frame):
    two = pd.concat([frame, frame.assign(seed=1, top1=frame["top1"] + 10)])
    found = weighted(two)
    assert at(found, "S", "OWS-W", 1) == pytest.approx(at(found, "S", "OWS-W") + 10)
    assert set(stand_alone(two)["seed"]) == set(forecast(two)["seed"]) == {0, 1}


def test_platforms_keep_their_order_whatever_the_names_sort_to(frame):
    renamed = frame.assign(name=frame["name"].replace({"#1": "watch", "#7": "desk"}))
    assert list(retrained(renamed)) == ["watch", *NAMES[1:6], "desk"]
    pd.testing.assert_frame_equal(weighted(renamed), weighted(frame))


def test_stand_alone_nets_are_weighted_by_u(frame):
    found = stand_alone(frame).set_index("arm")["top1"]
    assert found["Slim"] == pytest.approx(60 + np.dot(WEIGHTS["U"], RAMP)) == pytest.approx(63)
    assert found["OWS"] - found["Slim"] == pytest.approx(1)


def test_a_claim_on_several_markets_is_about_their_mean(frame):
    found = weighted(frame)
    a, b = over_markets(found, ("OWS-W", "OWS-U"))
    ahead = {m: at(found, m, "OWS-W") - at(found, m, "OWS-U") for m in ("S", "RS")}
    assert a - b == pytest.approx([np.mean(list(ahead.values()))])
    a, b = over_markets(found, ("OWS-W", "OWS-U"), ["S"])
    assert a - b == pytest.approx([ahead["S"]])
    assert all(np.size(each) == 0 for each in over_markets(found, ("OWS-W", "OWS-U"), ["M"]))
    assert all(np.size(each) == 0 for each in over_markets(found, ("OWS-W", "absent")))


def test_means_over_markets_are_paired_by_seed(frame):
    found = weighted(frame)
    turned = found.assign(seed=1, top1=found["top1"] * np.where(found["arm"] == "OWS-U", -1, 1))
    a, b = over_markets(pd.concat([turned, found]), ("OWS-W", "OWS-U"))
    assert a[0] == a[1] and b[0] == -b[1] > 0


def test_the_best_of_a_source(frame):
    best = best_of(weighted(frame), "AOWS").set_index("market")["top1"]
    assert best["S"] == pytest.approx(53 + np.dot(WEIGHTS["S"], RAMP)) and set(best.index) == {"S", "RS"}


def test_the_best_of_a_source_may_be_chosen_by_other_images(frame):
    turned = weighted(frame.assign(top1_val=-frame["top1"]))
    for source, arm in {"AOWS": "AOWS-W", "OWS": "OWS-U"}.items():
        best = best_of(turned, source, by="top1_val")
        test, val = best.loc[best["market"] == "S", ["top1", "top1_val"]].to_numpy()[0]
        assert test == pytest.approx(at(turned, "S", arm)) == -val
        assert test < best_of(turned, source).set_index("market")["top1"]["S"]


def test_regret_is_zero_for_the_best_arm_of_a_platform_and_positive_for_others(frame):
    lost = regret(frame)
    assert list(lost) == NAMES and (lost >= 0).all(axis=None) and (lost.min() == 0).all()
    assert lost.loc["OWS-RS", "#1"] == 0 and lost.loc["OWS-RS", "#7"] == pytest.approx(60 - 48)
    assert lost.loc["Slim-U"].tolist() == pytest.approx((frame[frame["method"] == "platforms"].groupby("name")["top1"]
                                                         .max() - 50 - RAMP).tolist())


def test_a_right_forecast_costs_nothing_and_a_wrong_one_the_difference(frame):
    found = forecast(frame)
    table = found.pivot_table("lost", "trained", "used", sort=False)
    assert list(table.index) == ["S", "RS", "U"] and set(table) == {"S", "RS", "U"}
    assert np.diag(table.loc[table.index, table.index]).tolist() == [0, 0, 0]
    assert table.loc["RS", "S"] == pytest.approx(np.dot(WEIGHTS["S"], (51 + 1.5 * RAMP) - (54 - RAMP)))
    of_aows = forecast(frame, "AOWS")
    assert of_aows[["trained", "used"]].to_numpy().tolist() == [["S", "S"]]  # no net is searched and sampled for RS


def test_another_number_of_platforms_than_weights_is_refused(frame):
    with pytest.raises(SlimnbError, match="one weight per platform"):
        weighted(frame[frame["name"] != "#7"])


def test_units_shared_and_widths_as_rows():
    a, b = Subnet((8, 16, 24)), Subnet((8, 24, 24))
    assert (shared_units(a, b), shared_units(a), shared_units(a, b, Subnet((16, 24, 24)))) == (2, 3, 1)
    rows = platform_widths({"OWS": {"#1": a, "#2": b}}, Subnet((16, 32, 48)))
    assert rows["unit"].tolist() == [1, 2, 3, 1, 2, 3]
    of_2 = rows.loc[rows["platform"] == "#2", ["channels", "mult"]]
    assert of_2.to_numpy().tolist() == [[8, 0.5], [24, 0.75], [24, 0.5]]


def test_scores_of_padded_choices_are_left_out():
    space = SearchSpace(widths=((8, 16), (8, 16, 24)))
    rows = choice_scores(np.array([[-2, -1, -np.inf], [-3, -2, -1]]), space, Subnet((16, 16)))
    assert rows.to_numpy().tolist() == [[1, 0.5, -2], [1, 1, -1], [2, 0.5, -3], [2, 1, -2], [2, 1.5, -1]]


def test_the_papers_own_tables_say_what_its_text_says():
    literature = pd.read_csv(LITERATURE)
    table_2 = literature[literature["table"] == "2"].rename(columns={"row": "market", "value": "top1"}).assign(seed=0)
    assert table_2.groupby("market", sort=False).size().to_dict() == dict.fromkeys(WEIGHTS, 6)
    with_best = pd.concat([table_2, best_of(table_2, "OWS"), best_of(table_2, "AOWS")])

    def margin(a, b, markets=tuple(WEIGHTS)):
        return np.subtract(*over_markets(with_best, (a, b), markets)).item()

    for market in WEIGHTS:
        assert margin("OWS-U", "Slim-U", [market]) > 1.4
        assert margin("OWS-U", "OWS-W", [market]) >= 0 and margin("AOWS-W", "AOWS-U", [market]) >= 0
        assert (margin("Slim-W", "Slim-U", [market]) < 0) == (market == "RS")
        assert (margin("best AOWS", "best OWS", [market]) > 0) == (market in ("S", "RS", "L"))
    assert margin("best AOWS", "best OWS", ["L"]) == pytest.approx(0.01)
    assert margin("OWS-U", "Slim-U") == pytest.approx((1.47 + 1.52 + 1.52 + 1.57 + 1.45 + 1.55) / 6)
    table_3 = literature[literature["table"] == "3"].set_index("arm")["value"]
    assert table_3["OWS"] - table_3["Slim"] == pytest.approx(0.85)
