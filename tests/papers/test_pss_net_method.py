"""PSS-Net's sampler: rates, targets, metrics a step late, counts; its candidates and what it stores."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refused
from small_images import write_folder
from small_training import Memory, Noise, NoSync, everything, fit, prioritized, reduced, same_bits, small, targets

from slimnb.cost.macs import count_macs
from slimnb.data.datasets import load_data
from slimnb.errors import SlimnbError
from slimnb.papers.pss_net import recipes
from slimnb.papers.pss_net.method import Drawn
from slimnb.papers.pss_net.pools import Listed
from slimnb.papers.pss_net.structures import Buckets, Resource, structure_space
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich
from slimnb.papers.slimmable.recipes import SMOKE
from slimnb.rng import rng_at
from slimnb.runs.checkpoint import unpack
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet
from slimnb.train import experiment
from slimnb.train.loop import train_step
from slimnb.train.optim import make_optimizer
from slimnb.train.protocols import Outcome


def handed_back(sampler, step, ce=None):
    """One step whose pooled subnet has a mean cross-entropy of `ce`, by default one that depends on its widths."""
    passes = sampler.plan(step)
    losses = [torch.full((8,), sum(made.route.widths) / 50 if ce is None else ce) for made in passes]
    sampler.observe(step, [Outcome(made, loss, loss) for made, loss in zip(passes, losses, strict=True)])
    return passes[1]


def test_rates_fall_epoch_by_epoch():
    sampler = prioritized(small(), steps=12, p_end=0.01, eta_end=0.25)
    assert [sampler.rates(step)[0] for step in (0, 3, 4, 7, 8, 11)] == pytest.approx([1, 1] + [0.01 ** (1 / 3)] * 2
                                                                                   + [0.01 ** (2 / 3)] * 2)
    assert sampler.rates(11)[1] == pytest.approx(0.25 ** (2 / 3))


def test_a_pool_that_is_not_full_is_never_drawn_from():
    """Eq. 3 as the prose has it: as printed, p would fall before the pool is full and be 1 afterwards."""
    sampler = prioritized(small(), steps=600, pool_size=3, p_end=1e-9)
    early, late = [], []
    for step in range(600):
        full = [pool.full for pool in sampler.pools]
        drawn = handed_back(sampler, step).tag
        (late if full[drawn.target] and step >= 400 else early if not full[drawn.target] else []).append(drawn.fresh)
    assert len(early) > 9 and all(early) and len(late) > 150 and not any(late)


def test_targets_and_sources_are_drawn_as_often_as_they_should():
    sampler, n = prioritized(small(), steps=3000, pool_size=1, p_end=0.3), 3000
    for step in range(n):
        handed_back(sampler, step)
    share = 1 / len(sampler.targets)
    assert sampler.trained.sum() == n
    assert np.abs(sampler.trained - n * share).max() < 4 * math.sqrt(n * share)
    p = np.mean([sampler.rates(step)[0] for step in range(n)])
    assert sampler.reused.sum() / n == pytest.approx(1 - p, abs=0.04)


def test_every_pooled_subnet_is_in_its_bucket():
    net = small()
    sampler = prioritized(net, steps=60)
    for step in range(60):
        made = handed_back(sampler, step)
        target = sampler.targets[made.tag.target]
        low, high = target.source.buckets.bounds(target.bucket)
        assert low <= count_macs(net, made.route, "B") < high and target.holds(made.route)


def test_a_metric_enters_its_pool_one_step_late():
    sampler = prioritized(small())
    made = handed_back(sampler, 0, 1.5)
    pool = sampler.pools[made.tag.target]
    assert not pool.metrics
    handed_back(sampler, 1, 2.5)
    assert pool.metrics[made.route] == -1.5 and pool.since[made.route] == 0
    sampler.settle()
    assert sum(len(each.metrics) for each in sampler.pools) + (pool.metrics[made.route] != -1.5) == 2
    before = [dict(each.metrics) for each in sampler.pools]
    sampler.settle()
    assert [each.metrics for each in sampler.pools] == before


def test_a_loss_that_is_not_finite_leaves_the_pools_alone():
    sampler = prioritized(small())
    for step, ce in enumerate((math.nan, math.inf)):
        handed_back(sampler, step, ce)
    state = sampler.state_dict()
    again = prioritized(small())
    again.load_state_dict(state)
    for each in (sampler, again):
        each.settle()
        assert not any(pool.metrics for pool in each.pools) and sum(pool.refused for pool in each.pools) == 2


def test_the_metric_is_the_ce_of_the_pass_itself_and_nobody_waits():
    net, sampler = small().train(), prioritized(small())
    x, y = Noise().batch(0)
    with NoSync():
        outcomes = train_step(net, x, y, sampler.plan(0), InplaceDistillation(), make_optimizer(net))
        sampler.observe(0, outcomes)
        sampler.observe(1, outcomes)
    middle = outcomes[1]
    assert middle.a_pass.target == "teacher" and not torch.equal(middle.loss, middle.ce)
    assert sampler.pools[middle.a_pass.tag.target].metrics == {middle.a_pass.route: -float(middle.ce.mean())}


def test_training_moves_by_labels_and_teacher_and_fills_pools():
    net = small()
    sampler = prioritized(net, steps=9)
    history, _ = fit(net, sampler, InplaceDistillation(), steps=9)
    assert {row["name"] for row in history} == {"largest", "pooled", "smallest"}
    assert [made.target for made in sampler.plan(0)] == ["labels", "teacher", "teacher"]
    assert sampler.trained.sum() == 9 and sum(len(pool.metrics) for pool in sampler.pools) > 1


def test_an_interrupted_training_ends_in_the_same_bits():
    def trained(run, stop=lambda: False):
        net = small()
        sampler = prioritized(net, steps=9)
        try:
            _, optimizer = fit(net, sampler, InplaceDistillation(), steps=9, run=run, stop=stop)
        except SlimnbError as error:
            assert type(error).__name__ == "BusyError"
            return None
        return everything(net, optimizer), sampler.state_dict()

    memory, looks = Memory(), iter([False] * 3 + [True])
    assert trained(memory, lambda: next(looks)) is None
    assert len(unpack(memory.data)[0]["sampler/late/metric"]) == 1, "a metric was on its way"
    for resumed, straight in zip(trained(memory), trained(Memory()), strict=True):
        assert same_bits(resumed, straight)


def test_state_of_another_space_is_refused():
    state = prioritized(small()).state_dict()
    sampler = prioritized(small())
    for step in range(12):
        handed_back(sampler, step)
    state, net = sampler.state_dict(), small()
    fewer = type(sampler)(net, sampler.targets[1:], net.uniform(0.5), 12, 3)
    other = type(sampler)(net, targets(net, 0.875, 30)[: len(sampler.targets)], net.uniform(0.5), 12, 3)
    for wrong in (fewer, other):
        refused("StoreError", wrong.load_state_dict, state)
    assert same_bits(sampler.state_dict(), state)


@pytest.mark.parametrize("wrong", [{"p_end": 0}, {"p_end": 1.5}, {"eta_end": -1}, {"eta_end": math.nan},
                                   {"pool_size": 0}, {"momentum": 1}])
def test_settings_out_of_range_are_refused(wrong):
    refused("ParameterError", prioritized, small(), **wrong)


def test_a_reduced_sandwich_keeps_to_what_is_left():
    sampler = reduced(small())
    drawn = [sampler.plan(step)[-1].route for step in range(60)]
    assert set(drawn[5:]) == {small().uniform(0.75, 24), small().uniform(0.875, 32)}
    assert len(set(drawn[:5])) > 2 or set(drawn[:5]) - set(drawn[5:])


def test_listed_subnets_by_bucket():
    net = small()
    resource = Resource.macs(net, structure_space(net, 0.5, (16, 24, 32)))
    subnets = [net.uniform(mult, side) for mult in (0.5, 0.75, 1.0) for side in (16, 24, 32)]
    cost = {subnet: count_macs(net, subnet, "B") for subnet in subnets}
    buckets = Buckets(0, max(cost.values()), max(cost.values()) / 4)
    listed = Listed(subnets, resource, buckets)
    for bucket, members in enumerate(listed.members):
        low, high = buckets.bounds(bucket)
        inside = [subnet for subnet in subnets if low <= cost[subnet] < high]
        assert sorted(inside, key=cost.get, reverse=True) == members and listed.support[bucket] == bool(inside)
        if members:
            assert set(listed.sample(bucket, rng_at(0, "x", 0), 200)) == set(members)


# -- from a recipe ---------------------------------------------------------------------------------------

BASE = replace(recipes._SMOKE, arm="x", layout=SMOKE.layout, buckets=(("MACs", 2e5, 7e5, 1e5),), samples=3000)


def made(**changes):
    recipe = replace(BASE, **changes)
    net = recipe.build(10)
    return recipe, net, recipe.sampler_and_objective(net, 40)[0]


@pytest.mark.parametrize("source", ["marginals", "chain", "uniform"])
def test_candidates_are_the_best_of_each_pool(source):
    recipe, net, sampler = made(source=source)
    for step in range(40):
        handed_back(sampler, step)
    named = recipe.candidates(net, sampler)
    assert list(named)[:4] == ["max", "min", "0.3 M", "0.4 M"]
    assert named["max"] == [Subnet(net.largest.widths, resolution=32)]
    assert named["min"] == [Subnet(net.uniform(0.75).widths, resolution=20)]
    stored = recipe.findings(net, sampler)["pools"]
    assert sum(pool["trained"] for pool in stored) == 40
    for pool in stored:
        rows = [Subnet(tuple(row[:-1]), resolution=row[-1]) for row in pool["structures"]]
        assert pool["metrics"] == sorted(pool["metrics"], reverse=True)
        assert named[pool["name"]] == rows[: recipe.top_k] and len(pool["since"]) == len(rows) <= 3
        uniform = {net.uniform(mult).widths for mult in recipe.train_mults}
        assert source != "uniform" or {row.widths for row in rows} <= uniform


@pytest.mark.parametrize("changes", [{"method": "random"}, {"method": "sandwich", "source": "uniform"}])
def test_candidates_of_baselines_are_in_their_bucket(changes):
    recipe, net, sampler = made(**changes, top_k=4)
    assert type(sampler) is Sandwich and len(sampler.plan(0)) == 3
    named = recipe.candidates(net, sampler)
    assert {"max", "min", "0.3 M", "0.6 M"} <= named.keys() and recipe.findings(net, sampler) == {}
    for name, subnets in named.items():
        if name not in ("max", "min"):
            low, high = (1e6 * (float(name[:-2]) + side) for side in (-0.05, 0.05))
            assert 1 <= len(subnets) <= 4 and all(low <= count_macs(net, s, "B") < high for s in subnets)
    space = recipe.structures(net).space
    for step in range(20):
        assert space.contains(sampler.plan(step)[-1].route)


def test_an_empty_pool_has_no_candidates():
    recipe, net, sampler = made()
    assert recipe.candidates(net, sampler).keys() == {"max", "min"}


def test_several_resources_have_pools_of_their_own():
    recipe, net, _ = made()
    table = Resource.macs(net, recipe.structures(net), "A")
    stored = replace(table, name="CPU latency", unit="ms").to_json()
    both = replace(recipe, buckets=(*recipe.buckets, ("CPU latency", 2e5, 6e5, 2e5)), tables=("timed",))
    store = SimpleNamespace(record_of=lambda run_id: {"timed": {"result": stored}}[run_id])
    assert [target.name for target in both.targets(net, store)] == [
        "0.3 M", "0.4 M", "0.5 M", "0.6 M", "400000 ms CPU"]
    with pytest.raises(SlimnbError, match="SearchError: resource 'CPU latency'"):
        replace(both, tables=()).targets(net)
    nothing = replace(recipe, source="uniform", train_mults=(0.75, 1.0), buckets=(("MACs", 3.0e5, 3.02e5, 1e3),))
    refused("SearchError", nothing.targets, net)


def test_a_method_that_there_is_not():
    with pytest.raises(SlimnbError, match="ParameterError: method = 'wish'"):
        made(method="wish")


def test_a_tag_says_where_a_subnet_came_from():
    assert prioritized(small()).plan(0)[1].tag == Drawn(prioritized(small()).plan(0)[1].tag.target, True)


@pytest.mark.sweep
@pytest.mark.parametrize("net", ["mobilenet_v1", "mobilenet_v2"])
def test_the_full_imagenet_recipe_trains_on_a_folder_of_images(tmp_path, net):
    data = load_data(str(write_folder(tmp_path / "pets", each=5)), cache=tmp_path / "cache")
    family = next(each for each in recipes.FAMILIES["full"] if each.base.net == net)
    largest = {"mobilenet_v1": 569e6, "mobilenet_v2": 301e6}[net]
    recipe = replace(family.base, arm="PSS-F", epochs=2, batch_size=4, lr=0.3 * 4 / 1024, calibration_images=4, top_k=1,
                     pool_size=1, samples=2000, buckets=(("MACs", 0.4 * largest, 0.7 * largest, 0.1 * largest),))
    result = experiment.run(recipe, data, RunStore(tmp_path / "runs", tmp_path / "none"), quiet=True)
    rows = {row["name"]: row for row in result.rows}
    assert rows["max"]["macs"] == pytest.approx(largest, rel=0.01) and {"max", "min"} < rows.keys()
    assert result.history and all(np.isfinite(row["ce"]) for row in result.rows)
    assert sum(pool["trained"] for pool in result.findings["pools"]) == 2 * (len(data.train) // 4)
