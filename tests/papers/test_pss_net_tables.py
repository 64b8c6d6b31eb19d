"""Tables of chapter 04: what is chosen, priced, paired and read off pools, from results worked by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.papers.pss_net import recipes, tables
from slimnb.papers.pss_net.structure_samplers import StructureDistribution
from slimnb.papers.pss_net.structures import Buckets, Resource, StructureCosts
from slimnb.rng import rng_at
from slimnb.subnet import Subnet
from slimnb.train.experiment import Result

PRINTED = Path(__file__).parents[2] / "data/literature/pss_net.csv"
BASE = replace(recipes._SMOKE, seed=0, resolutions=(24, 32))
with torch.device("meta"):
    NET = BASE.build(10)


def row(name, rank, subnet, val, test=None):
    tested = {} if test is None else {"top1": test}
    return {"name": name, "rank": rank, "subnet": subnet.to_json(), "macs": count_macs(NET, subnet),
            "top1_val": val} | tested


def result(arm, shift=0.0, seed=0, method="prioritized"):
    """A run with two targets of two candidates each: of the first the second one validates best."""
    thin, wide, largest, smallest = (NET.uniform(mult, side) for mult, side in ((0.75, 32), (1.0, 24), (1.0, 32),
                                                                             (0.75, 24)))
    tried = [row("max", 0, largest, 60, 59 + shift), row("min", 0, smallest, 40, 39 + shift),
             row("0.1 M", 0, thin, 50, 52 + shift), row("0.1 M", 1, wide, 51, 49 + shift),
             row("0.15 M", 0, largest, 60, 59 + shift), row("0.15 M", 1, thin, 50)]
    pools = [{"name": "0.1 M", "cost": 1e5, "trained": 30, "reused": 10, "refused": 0, "metrics": [-1.0, -1.2, -1.5],
              "structures": [[*thin.widths, 32], [*wide.widths, 24], [*thin.widths, 24]], "since": [20, 7, 3]},
             {"name": "0.15 M", "cost": 1.5e5, "trained": 10, "reused": 0, "refused": 0, "metrics": [-1.0],
              "structures": [[*largest.widths, 32]], "since": [4]}]
    chosen = [tried[0], tried[1], tried[3], tried[4]]
    return Result(replace(BASE, arm=arm, seed=seed, method=method), chosen, [], 1.0, f"{arm} {seed}",
                  findings={"candidates": tried} | ({"pools": pools} if method == "prioritized" else {}))


def test_what_is_chosen_depends_on_how_many_are_tried():
    runs = [result("PSS-F"), Result(replace(BASE, arm="Fine-tuned"), [{"name": "0.1 M", "top1": 50.0}], [], 1.0, "x")]
    for k, top1 in ((1, 52), (2, 49)):
        frame = tables.chosen_frame(runs, k)
        assert list(frame["name"]) == ["max", "min", "0.1 M", "0.15 M"] and set(frame["arm"]) == {"PSS-F"}
        assert frame.set_index("name").loc["0.1 M", "top1"] == top1
    by_k = tables.by_k(runs[:1], ["0.1 M"], (1, 2, 20)).set_index("k")
    assert by_k["top1"].to_dict() == {1: 52, 2: 49, 20: 49} and by_k["top1_val"].is_monotonic_increasing


def test_arms_are_paired_by_seed_and_target():
    runs = [result("PSS-F", seed=0), result("PSS-F", seed=1), result("Random", 2.0, 1), result("Random", 4.0, 2)]
    frame = tables.chosen_frame(runs, 1)
    a, b = tables.over_targets(frame, ("PSS-F", "Random"))
    assert a.tolist() == [(52 + 59) / 2] and b.tolist() == [(54 + 61) / 2], "seed 1 alone has both"
    assert tables.over_targets(frame, ("Random", "PSS-F"), tables.ENDS)[0].tolist() == [(61 + 41) / 2]
    fewer = frame[~((frame["arm"] == "Random") & (frame["name"] == "0.1 M"))]
    assert tables.over_targets(fewer, ("PSS-F", "Random"))[0].tolist() == [59]
    assert [len(each) for each in tables.over_targets(frame, ("PSS-F", "Uniform pools"))] == [0, 0]


def test_prices_come_from_the_table_and_what_it_lacks_is_left_out():
    only_24 = CostTable.macs(NET, BASE.structures(NET).space, resolution=24)
    latency = Resource("CPU latency", "ms", {24: only_24})
    frame = tables.chosen_frame([result("PSS-F"), result("PSS-M")], 2)
    several = frame["arm"].eq("PSS-M") & frame["name"].eq("0.1 M")
    frame.loc[several, "name"] = "2 ms CPU"
    prices = tables.priced(frame, {"MACs": ["PSS-F", "PSS-M"], "CPU latency": ["PSS-F", "PSS-M"]}, [latency])
    shown = {key: sorted(rows["name"]) for key, rows in prices.groupby(["resource", "arm"])}
    assert shown == {("MACs", "PSS-F"): ["0.1 M", "0.15 M", "max", "min"], ("MACs", "PSS-M"): ["0.15 M", "max", "min"],
                     ("CPU latency", "PSS-F"): ["0.1 M", "min"], ("CPU latency", "PSS-M"): ["2 ms CPU", "min"]}
    wide = prices.query("resource == 'CPU latency' and name == '2 ms CPU'")["cost"].item()
    assert wide == pytest.approx(only_24.of(NET.uniform(1.0, 24)))
    offers = tables.within(prices, {"MACs": [1.0, wide * 1.01, 1e9]})
    assert set(offers["budget"]) == {wide * 1.01, 1e9}, "nothing fits the first"
    best = offers[offers["arm"] == "PSS-F"].set_index("budget")["top1"]
    assert best.to_dict() == {wide * 1.01: 49, 1e9: 59}


def test_what_pools_hold_and_how_it_relates():
    run = result("PSS-F")
    pool = tables.pool_table(run, ["0.1 M"])
    assert pool["since"].tolist() == [20, 7, 3] and pool["chosen"].tolist() == [False, True, False]
    (found,) = tables.pool_relations([run, result("Random", method="random")]).itertuples()
    assert (found.pool, found.trained, found.reused) == ("0.1 M", 30, 10), "the other has one structure"
    assert found.recency == pytest.approx(1) and found.foresight == pytest.approx(-1)
    assert tables._rank_correlation((1, 1), (1, 2)) == 0


def test_fine_tuning_is_compared_with_the_same_subnet():
    alone = Result(replace(BASE, arm="Fine-tuned"), [{"name": "0.1 M", "top1": 50.0}], [], 1.0, "x")
    frame = tables.tuned([result("PSS-F"), alone], "PSS-F").set_index("arm")
    assert frame["top1"].to_dict() == {"In the supernet": 49, "Fine-tuned": 50} and set(frame["pool"]) == {"0.1 M"}


def test_a_step_costs_what_it_drew():
    largest, smallest = (count_macs(NET, NET.uniform(*at)) for at in ((1.0, 32), (0.75, 24)))
    expected = (largest + (30 * 1e5 + 10 * 1.5e5) / 40 + smallest) / largest
    assert tables.macs_per_step(result("PSS-F")) == pytest.approx(expected)


def test_marginals_as_a_table():
    space = BASE.structures(NET)
    costs = StructureCosts.of(space, Resource.macs(NET, space))
    sampler = StructureDistribution.fit(costs, Buckets(60e3, 180e3, 30e3), rng_at(0, "x", 0), 2000)
    frame = tables.marginal_table(sampler, [0, 2])
    assert list(dict.fromkeys(frame["bucket"])) == ["0.09M MACs", "0.15M MACs"]
    assert list(dict.fromkeys(frame["unit"])) == ["1", "2", "3", "4"]
    sums = frame.groupby(["bucket", "unit"])[["probability", "prior"]].sum()
    assert np.allclose(sums, 1) and frame.groupby("unit")["mult"].max().eq(1).all()


# -- the paper's numbers ---------------------------------------------------------------------------------


def test_the_papers_tables_in_our_columns():
    table_3 = tables.cost_table(PRINTED, 30).set_index("method")
    assert table_3["training"].to_dict() == {"Pruning": 30, "US-Net": 4, "MutualNet": 4, "PSS-Net": 3}
    assert table_3["storage"].to_dict() == pytest.approx({"Pruning": 30, "US-Net": 1.6, "MutualNet": 1.6,
                                                          "PSS-Net": 1.6})
    both = tables.paper_by_resource(PRINTED, ["MACs", "GPU latency"])
    assert set(both["resource"]) == {"MACs", "GPU latency"} and "base" not in set(both["arm"])
    assert both.query("arm == 'PSS-G'")["cost"].max() == pytest.approx(0.238)
    assert both.query("arm == 'PSS-F'").set_index("row").loc["MACs 2", ["cost", "top1"]].tolist() == [306e6, 72.3]
    assert tables.paper_by_k(PRINTED).query("pool == '300 M' and k == 1")["top1"].item() == 71.4


def test_rivals_are_the_best_at_about_the_same_macs():
    frame = tables.rivals(PRINTED)
    assert (frame["its M MACs"] <= 1.04 * frame["M MACs"]).all()
    dmcp = frame[frame["best other"] == "DMCP"]
    assert len(dmcp) == 2 and (dmcp["ahead by"] == -0.1).all()
    assert frame.iloc[0].tolist() == ["MobileNetV1", "PSS-F", 569, 74.1, "PNAS", 588, 74.2, -0.1]


def test_unknown_targets_are_of_a_latency():
    assert [tables._resource_of(name, ("MACs", "CPU latency", "energy")) for name in (
        "9 M", "2.5 ms CPU", "3 mJ energy", "max")] == ["MACs", "CPU latency", "energy", ""]
    assert Subnet.from_json(result("x").rows[0]["subnet"]) == NET.uniform(1.0, 32)
