"""What chapter 06 trains: the paper's numbers at full, the arms of its tables at every scale, small nets' costs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from slimnb.cost.macs import count_macs
from slimnb.papers.ds_net import recipes as ds_net
from slimnb.papers.ds_net.dynamic import path_macs
from slimnb.papers.ds_net.method import GIVE_UP, TRY_BEST
from slimnb.train.experiment import Context, Result
from slimnb.train.optim import Schedule

CIFAR100, IMAGENET = SimpleNamespace(num_classes=100, size=32), SimpleNamespace(num_classes=1000, size=224)
EVERY = [(scale, data) for scale in ("smoke", "small", "full") for data in (CIFAR100, IMAGENET)]
every_scale = pytest.mark.parametrize(("scale", "data"), EVERY, ids=[f"{s}-{d.size}" for s, d in EVERY])


def chained(stages, scale, data, seed=0, name="{0.net} {0.arm}") -> list[Result]:
    """The recipes of all stages, as if each had been run and its run were named after it."""
    results = []
    for stage in stages:
        results += [Result(r, [], [], 0.0, name.format(r)) for r in stage(Context(scale, seed, data, results))]
    return results


def arms_of(net, scale, data):
    """Recipes of one net by arm."""
    return {r.recipe.arm: r.recipe for r in chained(ds_net.STAGES, scale, data) if r.recipe.net == net}


def on_meta(recipe, classes=100):
    with torch.device("meta"):
        return (replace(recipe, bn="calibrated") if recipe.bn == "shared_affine" else recipe).build(classes)


@every_scale
def test_every_arm_is_trained_once_and_gates_after_the_supernet_of_their_net(scale, data):
    results = chained(ds_net.STAGES, scale, data, 3)
    recipes = [r.recipe for r in results]
    assert len({(r.net, r.arm) for r in recipes}) == len(recipes)
    assert {(r.scale, r.seed, r.paper) for r in recipes} == {(scale, 3, "ds_net")}
    trained = set()
    for r in results:
        assert (r.recipe.method == "gates") == (r.recipe.start is not None)
        if r.recipe.start:
            assert r.recipe.start == f"{r.recipe.net} {ds_net.SUPERNET}" and r.recipe.start in trained
        trained.add(r.run_id)
    started = [r.recipe.method == "gates" for r in results]
    assert started == sorted(started)


@pytest.mark.parametrize(("scale", "data"), EVERY[2:], ids=["small-32", "small-224", "full-32", "full-224"])
def test_the_arms_of_every_table_are_there(scale, data):
    mbnet, resnet = (arms_of(net, scale, data) for net in ("ds_mbnet", "ds_resnet"))
    # Table 5: neither, the average, the average and the ensemble. Table 10: temperature 4 beside the first.
    schemes = [mbnet[arm] for arm in ("In-place distillation", "EMA target", "IEB", "Temperature 4")]
    assert [(r.method, r.ensemble, r.temperature) for r in schemes] == [
        ("in-place", False, 1), ("bootstrapping", False, 1), ("bootstrapping", True, 1), ("in-place", False, 4)]
    same = [replace(r, arm="", method="", ensemble=False, temperature=1, looks=0) for r in schemes]
    assert same == same[:1] * 4, "one thing differs"
    # Table 6, by the losses that are ticked: target, complexity, SGS; all three are DS-Net's own.
    ticked = {arm: (tuple(weight > 0 for weight in r.losses), r.strategy) for arm, r in resnet.items()}
    assert {arm: ticked[arm] for arm in (*ds_net.LOSSES, "DS-Net-L")} == {
        "Target": ((True, False, False), TRY_BEST), "Complexity": ((False, True, False), TRY_BEST),
        "SGS, give up": ((False, False, True), GIVE_UP), "SGS, try best": ((False, False, True), TRY_BEST),
        "Target + complexity": ((True, True, False), TRY_BEST), "Complexity + SGS": ((False, True, True), TRY_BEST),
        "DS-Net-L": ((True, True, True), TRY_BEST)}
    assert all(weight in (0, paper) for losses in ds_net.LOSSES.values()
               for weight, paper in zip(losses, (1, 0.5, 1), strict=True))
    # Table 7: a scalar head and one of its own reduction, against the one-hot head with a shared one.
    plain, scalar, unshared = (resnet[arm] for arm in ("SGS, try best", "Scalar head", "Unshared reduction"))
    assert replace(scalar, arm=plain.arm, head=None) == plain and scalar.head == "scalar"
    assert replace(unshared, arm=plain.arm, shared=None) == plain and unshared.shared is False
    assert resnet["Plain"].method == "plain"


def test_smoke_tries_some_of_the_same_arms():
    for net in ("ds_mbnet", "ds_resnet"):
        few, all_of_them = (arms_of(net, scale, CIFAR100) for scale in ("smoke", "small"))
        assert few.keys() < all_of_them.keys()
        for arm, r in few.items():
            for name in ("method", "ensemble", "temperature", "losses", "strategy", "head", "shared"):
                assert getattr(r, name) == getattr(all_of_them[arm], name)


@pytest.mark.parametrize("data", [IMAGENET, CIFAR100], ids=["imagenet", "cifar"])
def test_full_recipes_are_section_4(data):
    nets = {net: arms_of(net, "full", data) for net in ("ds_mbnet", "ds_resnet", "ds_effnet")}
    rates = {"ds_mbnet": 0.08, "ds_resnet": 0.2, "ds_effnet": 0.2}
    for net, arms in nets.items():
        for r in arms.values():
            assert (r.batch_size, r.input_size, r.momentum) == (512, data.size, 0.9)
            assert (r.weight_decay, r.decay) == (1e-4, "weights")
            assert r.bn == ("group" if net == "ds_resnet" else "shared_affine") and r.layout is None
            assert r.calibration_images == (1001 * 256 if data is IMAGENET else 10_000)
            rate = Schedule.of(r, 100)
            if r.method == "gates":
                assert (r.epochs, r.lr, r.losses[1] in (0, 0.5), r.dropout, r.looks) == (10, 0.05, True, 0, 0)
                assert [rate(step) for step in (0, 99, 100, 999)] == pytest.approx([0.05, 0.05, 0.045, 0.05 * 0.9**9])
            else:
                assert (r.epochs, r.lr, r.dropout, r.n_random, r.ema) == (150, rates[net], 0.2, 2, 0.997)
                assert rate(0) == rates[net] and rate(15_000) == pytest.approx(rates[net] / 100)
                assert rate(7_500) == pytest.approx(rates[net] * 0.505)  # halfway down a cosine
    assert [(arm, nets["ds_mbnet"][arm].lowest) for arm in ("DS-Net-S", "DS-Net-M", "DS-Net-L")] == [
        ("DS-Net-S", 4), ("DS-Net-M", 8), ("DS-Net-L", None)]
    assert {nets[net]["DS-Net-L"].losses for net in nets} == {(1.0, 0.5, 1.0)}
    sizes = [len(on_meta(nets[net]["IEB"]).paths) for net in nets]
    assert sizes == [14, 256, 20]
    for net, arms in nets.items():
        made = on_meta(arms["IEB"], data.num_classes)
        assert made.input_size == data.size and all(count >= 4 for count in made.choices), net


def test_what_the_small_nets_cost():
    mbnet, resnet = (on_meta(family.supernet) for family in ds_net.LAPTOP["small"])
    macs = [count_macs(mbnet, path, "D") / 1e6 for path in mbnet.paths]
    assert macs == sorted(macs) and (round(macs[0], 1), round(macs[-1], 1)) == (0.8, 3.7)
    assert round(count_macs(resnet, resnet.widest, "D") / 1e6, 1) == 3.0
    assert len(resnet.gates) == 4 and [count for _, count in resnet.layout] == [1] * 4


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_spaces_of_routing_are_nested_and_open_in_every_gate(scale):
    for family in ds_net.LAPTOP[scale]:
        net = on_meta(family.supernet)
        spaces = [lowest or min(net.choices) for _, lowest in family.spaces]
        assert spaces == sorted(set(spaces)) and spaces[0] > 1 and spaces[-1] == max(net.choices)
        macs = path_macs(net)
        assert macs.flat[0] == macs.min() and macs.flat[-1] == macs.max()


@every_scale
def test_gates_are_evaluated_on_the_net_that_their_supernet_trained(scale, data):
    free = {"arm", "method", "epochs", "lr", "schedule", "gamma", "floor", "looks", "dropout", "lowest",
            "losses", "strategy", "start", "head", "shared", "ensemble", "temperature"}
    results = chained(ds_net.STAGES, scale, data)
    supernets = {r.run_id: r.recipe for r in results}
    for r in results:
        if r.recipe.start:
            mine, theirs = vars(r.recipe), vars(supernets[r.recipe.start])
            assert {name for name in mine if mine[name] != theirs[name]} <= free
            assert r.recipe.warmup_epochs == 0


@every_scale
def test_recipes_survive_json(scale, data):
    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    for r in chained(ds_net.STAGES, scale, data):
        written = json.loads(json.dumps(r.recipe.to_json()))
        assert ds_net.GatedRecipe(**{name: tuples(value) for name, value in written.items()}) == r.recipe


def test_what_is_evaluated():
    mbnet, resnet = ds_net.LAPTOP["small"]
    net = mbnet.supernet.build(10)
    assert list(mbnet.supernet.named(net)) == [str(k) for k in range(8)]
    assert mbnet.supernet.named(net)["7"] == net.widest
    assert list(replace(mbnet.supernet, method="plain").named(net).values()) == [net.widest]
    assert list(resnet.supernet.named(on_meta(resnet.supernet))) == [f"{k}-{k}-{k}-{k}" for k in range(4)]
    released = on_meta(ds_net.CIFAR[0].supernet)
    assert list(ds_net.CIFAR[0].supernet.named(released)) == [*map(str, range(14)), "largest"]
    assert set(net.slots) == set(mbnet.supernet.named(net).values()), "each has statistics of its own"


@pytest.mark.parametrize("scale", ["small", "full"])
def test_generated_images_have_a_study_of_their_own(scale):
    data = SimpleNamespace(num_classes=10, size=32)
    supernet, *gates = results = chained(ds_net.KNOWN_STAGES, scale, data, 2)
    assert (supernet.recipe.arm, supernet.recipe.method, supernet.recipe.ensemble) == ("IEB", "bootstrapping", True)
    assert "DS-Net-L" in {r.recipe.arm for r in gates} and len({r.recipe.arm for r in results}) == len(results)
    assert {(r.recipe.method, r.recipe.start) for r in gates} == {("gates", supernet.run_id)}
    assert {(r.recipe.scale, r.recipe.seed) for r in results} == {(scale, 2)}
    names = {(r.recipe.net, r.recipe.arm, r.recipe.grid) for r in chained(ds_net.STAGES, scale, data)}
    assert not {(r.recipe.net, r.recipe.arm, r.recipe.grid) for r in results} & names


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_what_moves_to_other_data(scale):
    results = chained(ds_net.STAGES, scale, CIFAR100)
    cifar10 = SimpleNamespace(num_classes=10, size=32)
    stages = ds_net.transfer_stages(results, "cifar100")
    moved = [r.recipe for r in chained(stages, scale, cifar10, name="moved {0.arm}")]
    plain = [] if scale == "smoke" else ["Plain"]
    assert [r.arm for r in moved] == ["IEB", *plain, "Without gate transfer", "Gate transfer"]
    epochs, gate_epochs, lr = ds_net.FINE_TUNING[scale]
    for r in moved[:-2]:
        assert (r.epochs, r.lr, r.floor, r.source, r.start) == (epochs, lr, lr / 100, "cifar100", f"ds_resnet {r.arm}")
    without, transferred = moved[-2:]
    assert {r.start for r in (without, transferred)} == {"moved IEB"} and {r.net for r in moved} == {"ds_resnet"}
    assert replace(transferred, arm=without.arm, gate=None) == without and transferred.gate == "ds_resnet DS-Net-L"
    assert without.epochs == gate_epochs and without.losses == (1, 0.5, 1) and without.lowest is None
    if scale == "full":  # 3.5: 70 epochs of which 15 are warm-up, rate .7
        assert (moved[0].epochs, moved[0].warmup_epochs, moved[0].lr) == (70, 15, 0.7)
    assert chained(ds_net.transfer_stages(results, "cifar100"), scale, cifar10, seed=1) == []


def test_without_a_supernet_there_are_no_gates():
    results = [r for r in chained(ds_net.STAGES[:1], "small", CIFAR100) if r.recipe.net == "ds_mbnet"]
    assert {r.net for r in ds_net.stage_two(Context("small", 0, CIFAR100, results))} == {"ds_mbnet"}
    assert ds_net.stage_two(Context("small", 1, CIFAR100, results)) == []
    assert ds_net.known_two(Context("small", 0, CIFAR100)) == []


def test_an_unknown_scale_is_refused():
    for stage in (ds_net.stage_one, ds_net.known_one):
        refused("ParameterError", stage, Context("huge", 0, CIFAR100))
