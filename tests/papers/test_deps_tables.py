"""Tables of chapter 05: costs of chains by hand, what probes saw, and a search on a trained net's weights."""

from dataclasses import replace

import numpy as np
import pytest
from small_images import write_folder

from slimnb.cost.elastic import ElasticTable
from slimnb.cost.macs import count_macs
from slimnb.data.datasets import load_data
from slimnb.papers.deps import deploy, recipes, tables
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet
from slimnb.train import experiment
from slimnb.train.experiment import Result, study

ROWS = [{"name": name, "macs": macs, "top1": top1, "top1_val": top1 - 1}
        for name, macs, top1 in (("D1E2", 100, 40.0), ("D2E4", 300, 60.0))]


def chained() -> list[Result]:
    """Results of all arms of the small family, as if trained: a subnet costs half of the full net."""
    results, family = [], recipes.LAPTOP["small"][0]
    ids = {}
    for recipe in recipes.arms_of(family, 0):
        recipe = replace(recipe, start=ids.get(recipe.start), teacher=ids.get(recipe.teacher))
        n = {"full": 1, "shrinking": 4}.get(recipe.method, recipe.n_random)
        macs = 300 if n == 1 else 150 * n + 150 * (recipe.method == "shrinking")
        ids[recipe.arm] = f"run of {recipe.arm}"
        found = {"passes_per_step": n, "macs_per_step": macs, "teacher_macs": 300 if recipe.teacher else 0}
        results.append(Result(recipe, ROWS, [], 60.0, ids[recipe.arm], findings=found))
    return results


def test_costs_are_those_of_whole_chains():
    costs = tables.training_costs(chained()).set_index("arm")
    # DepS: 3 epochs of one pass, 3 of four passes, of which three cost half as much.
    assert tuple(costs.loc["DepS", ["epochs", "passes", "minutes"]]) == (6, 3 + 3 * 4, 3)
    assert costs.loc["DepS", "work"] == pytest.approx(3 + 3 * 2.5)
    assert tuple(costs.loc["BigNAS", ["epochs", "passes", "work", "minutes"]]) == (6, 24, 15, 1)
    # OFA: the full net, then one and two epochs of two nets, one and two of four; its teacher a third of a pass.
    assert tuple(costs.loc["OFA", ["epochs", "passes"]]) == (12, 6 + 3 * 2 + 3 * 4)
    assert costs.loc["OFA", "work"] == pytest.approx(6 + 3 * (1 + 1 / 3) + 3 * (2 + 1 / 3))
    assert tuple(costs.loc["DepS", ["smallest", "largest", "mean_pareto"]]) == (40, 60, 50)
    assert costs.loc["DepS, P = 25%", "passes"] > costs.loc["DepS", "passes"] > costs.loc["DepS, P = 75%", "passes"]


def test_phases_join_the_legs_of_the_full_net():
    results = chained()
    of = {r.recipe.arm: r for r in results}
    assert tables.phases(of["DepS"], results)[["subnets", "length"]].values.tolist() == [[1, 3], [4, 3]]
    assert tables.phases(of["OFA"], results)[["subnets", "length"]].values.tolist() == [[1, 6], [2, 3], [4, 3]]


def test_shares_say_when_a_leg_ends_and_shrinking_begins():
    frame = tables.accuracies(chained()).drop_duplicates("arm").set_index("arm")["share"]
    assert frame[["Full 25%", "Full", "DepS", "DepS, P = 75%", "BigNAS"]].tolist() == [0.25, 1, 0.5, 0.75, 0]
    assert frame[["OFA", "CompOFA"]].isna().all()


def test_a_drop_is_the_worst_within_an_epoch_of_the_start():
    deps_arm = next(r for r in chained() if r.recipe.arm == "DepS")
    top1 = {300: 50, 325: 47, 350: 49, 400: 51, 450: 40}  # 100 steps an epoch; the last is too late
    probed = [{"look": "accuracy", "name": name, "step": step, "top1": value}
              for step, value in top1.items() for name in ("full", "D1E2")]
    seen = tables.probe_rows([replace(deps_arm, findings=deps_arm.findings | {"probed": probed})], "accuracy")
    assert seen["epoch"].drop_duplicates().tolist() == [3, 3.25, 3.5, 4, 4.5]
    assert tables.drops(seen)[["arm", "drop"]].values.tolist() == [["DepS", 3]]
    assert tables.probe_rows(chained(), "norms").empty


def test_layers_are_convolutions_and_linear_layers_in_order():
    deps_arm = next(r for r in chained() if r.recipe.arm == "DepS")
    names = ["features.0.conv.weight", "features.0.norm.weight", "features.0.norm.bias", "mix.conv.weight",
             "classifier.weight", "classifier.bias"]
    probed = [{"look": "layers", "step": 300, "gradient": gradient, "layer": layer, "name": name, "norm": 1.0,
               "cosine": 1.0} for gradient in ("full", "shrinking") for layer, name in enumerate(names, 1)]
    seen = tables.layers([replace(deps_arm, findings=deps_arm.findings | {"probed": probed})])
    assert seen[["layer", "name"]].values.tolist() == 2 * [[1, names[0]], [2, names[3]], [3, names[4]]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A full net trained for a few steps, its data and its store."""
    data = load_data("synthetic", train=300, test=60)
    folder = tmp_path_factory.mktemp("shop")
    store = RunStore(folder / "runs", folder / "results")
    return study(recipes.STAGES, "smoke", [0], data, store, arms=["Full 50%"], quiet=True)[0], data, store


def test_the_chain_trains(shop):
    """On the data and the full net of the shop."""
    first, data, store = shop
    arms = ("Full 50%", "DepS")
    results = study(recipes.STAGES, "smoke", [0], data, store, arms=arms, quiet=True)
    assert [r.recipe.arm for r in results] == list(arms) and results[0].run_id == first.run_id
    steps = [row["step"] for row in results[-1].history]
    assert steps == sorted(steps) and results[0].history[-1]["step"] < steps[0]
    looks = {row["look"] for row in results[-1].findings["probed"]}
    assert looks == {"layers", "norms", "accuracy"}
    net = experiment.trained(results[-1], data.num_classes, store)
    assert not net.training and set(results[-1].recipe.named(net).values()) <= set(net.slots)


def test_both_searches_stay_below_the_target_and_are_kept(shop, monkeypatch):
    result, data, store = shop
    net = result.recipe.build(data.num_classes)
    table = ElasticTable.macs(net)
    found = deploy.deploy(result, data, store, table, 0.5, 6)
    ends = [count_macs(net, net.elastic(*ends)) for ends in ((1, 2), (2, 4))]
    assert found["target"] == pytest.approx(np.mean(ends))
    assert [row["arm"] for row in found["winners"]] == ["Random search", "Evolution"]
    for winner in found["winners"]:
        mine = [row for row in found["rows"] if row["arm"] == winner["arm"]]
        assert winner["macs"] == winner["cost"] == count_macs(net, Subnet.from_json(winner["subnet"]))
        assert all(0.9 * found["target"] <= row["cost"] <= found["target"] for row in mine)
        assert [row["best"] for row in mine] == np.maximum.accumulate([row["score"] for row in mine]).tolist()
        assert mine[-1]["best"] == winner["top1_val"]
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    assert deploy.deploy(result, data, store, table, 0.5, 6)["run_id"] == found["run_id"]


def test_the_table_of_latency_comes_back_as_it_was_measured(shop):
    result, data, store = shop
    settings = {"batch": 2, "rounds": 1, "subnets": 3}
    table, check = deploy.latency_table(result, data.num_classes, store, **settings)
    again, _ = deploy.latency_table(result, data.num_classes, store, **settings)
    assert np.array_equal(table.terms, again.terms) and table.constant == again.constant
    assert len(check["measured"]) == len(check["predicted"]) == 3 and (table.terms > 0).all()
    least, most = deploy.between(table, 0), deploy.between(table, 1)
    assert least < deploy.between(table, 0.3) < most


@pytest.mark.sweep
def test_the_full_imagenet_recipe_trains_on_a_folder_of_images(tmp_path):
    data = load_data(str(write_folder(tmp_path / "pets", each=5)), cache=tmp_path / "cache")
    store, ids = RunStore(tmp_path / "runs", tmp_path / "none"), {}
    family = recipes.families("full", data)[0]
    assert family is recipes.IMAGENET[0]
    arms = {r.arm: r for r in recipes.arms_of(family, 0)}
    small = {"epochs": 2, "batch_size": 4, "lr": 2.6 * 4 / 2048, "calibration_images": 4, "shown": ((2, 3),)}
    spans = {"Full 50%": {"span": (0, 1), "start": None}, "DepS": {"span": (1, 2), "ramp_epochs": 0.5},
             "OFA depth 1": {"epochs": 1}}
    for arm, changed in spans.items():
        recipe = replace(arms[arm], **(small | changed), looked_at=False)
        recipe = replace(recipe, start=recipe.start and ids["Full 50%"], teacher=recipe.teacher and ids["Full 50%"])
        result = experiment.run(recipe, data, store, quiet=True)
        ids[arm] = result.run_id
        assert result.rows[0]["macs"] == pytest.approx(150.0e6, rel=0.005)  # D2E3 at 224 pixels, two classes
        assert result.history and np.isfinite(result.rows[0]["ce"])
