"""The structure space of PSS-Net, its costs and buckets, against the paper's numbers and plain counting."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from small_nets import tiny

from slimnb.cost.macs import count_macs
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.papers.pss_net.structures import RESOLUTIONS, Buckets, Resource, StructureCosts, structure_space


def made(kind, **options):
    """A net of the paper's size: shapes without weights."""
    with torch.device("meta"):
        return kind(**options)


@pytest.mark.parametrize(("kind", "lower", "least", "most", "pools"), [
    (MobileNetV1, 0.75, "106.78", "568.79", 45),
    (MobileNetV2, 0.75, "69.15", "300.84", 22),
    (MobileNetV1, 0.25, "13.57", "568.79", 55),
    (MobileNetV2, 0.7, "57.58", "300.84", 23),
    (MobileNetV2, 0.8, "73.53", "300.84", 22),
])
def test_macs_and_targets_of_the_paper(kind, lower, least, most, pools):
    net = made(kind)
    structures = structure_space(net, lower, (128, 224))
    costs = StructureCosts.of(structures, Resource.macs(net, structures))
    assert (f"{costs.cheapest / 1e6:.2f}", f"{costs.dearest / 1e6:.2f}") == (least, most)
    buckets = Buckets.spanning(costs, 10e6)
    assert len(buckets) == len(buckets.targets) == pools
    buckets.check(costs)


def test_groups_are_layers_of_mobilenet_v1_and_stages_of_mobilenet_v2():
    first, second = structure_space(made(MobileNetV1)), structure_space(made(MobileNetV2))
    assert first.counts == (2, 3, 5, 5, 9, 9, *(17,) * 6, 33, 33, 13)
    assert len(second.groups) == 9 and second.counts == (2, 1, 1, 2, 3, 4, 6, 11, 1, 13)  # the tail keeps its 1280
    assert sorted(unit for group in second.groups for unit in group) == list(range(len(second.unit_names)))
    for structures, kind in ((first, MobileNetV1), (second, MobileNetV2)):
        last = np.array([structures.counts]) - 1
        (largest,) = structures.subnets(last)
        assert replace(largest, resolution=None) == made(kind).largest and largest.resolution == 224
        assert structures.space.contains(largest)


def test_prior_is_that_of_uniform_multipliers_rounded():
    structures = structure_space(made(MobileNetV1))
    # Of 32 channels, 24 for 0.750 to 0.833, which is within 10 %; 0.750 and 1.000 have half the chance of others.
    assert_allclose(structures.prior[0], [83.5 / 250, 166.5 / 250])
    assert_allclose(structures.prior[-1], [1 / 24, *(1 / 12,) * 11, 1 / 24])
    rng = np.random.default_rng(0)
    mults = rng.uniform(0.75, 1, 20_000).round(3)
    for prior, choices, channels in zip(structures.prior, structures.space.widths, (32, 64, 128), strict=False):
        rounded = np.floor((channels * mults + 4) / 8) * 8
        rounded += 8 * (rounded < 0.9 * channels * mults)
        found = np.array([np.mean(rounded == width) for width in choices])
        assert_allclose(found, prior, atol=5 * math.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("kind", [MobileNetV1, MobileNetV2])
def test_structures_drawn_follow_the_prior_and_belong_to_the_space(kind):
    structures = structure_space(tiny(kind), 0.25)
    n = 20_000
    index = structures.draw(np.random.default_rng(0), n)
    for column, prior in zip(index.T, structures.prior, strict=True):
        assert prior.sum() == pytest.approx(1) and (prior > 0).all()
        assert_allclose(np.bincount(column, minlength=len(prior)) / n, prior, atol=5 * math.sqrt(0.25 / n))
    assert all(structures.space.contains(subnet) for subnet in structures.subnets(index[:200]))
    named = {tuple(row): subnet for row, subnet in zip(index.tolist(), structures.subnets(index), strict=True)}
    assert len(set(named.values())) == len(named)  # no network has two names


@pytest.mark.parametrize("kind", [MobileNetV1, MobileNetV2])
def test_costs_are_those_of_every_subnet_on_its_own(kind):
    net = tiny(kind)
    structures = structure_space(net, 0.25)
    resource = Resource.macs(net, structures)
    costs = StructureCosts.of(structures, resource)
    index = structures.draw(np.random.default_rng(1), 500)
    subnets = structures.subnets(index)
    expected = [count_macs(net, subnet, "B") for subnet in subnets[:15]]
    assert_array_equal(costs.cost(index)[:15], expected)
    assert_array_equal(resource.predict(structures.widths(index), structures.resolutions(index)), costs.cost(index))
    assert [resource.of(subnet) for subnet in subnets[:15]] == expected
    assert costs.cheapest <= costs.cost(index).min() and costs.cost(index).max() <= costs.dearest


def test_latency_is_measured_at_every_resolution_and_read_back():
    net = tiny(MobileNetV1)
    structures = structure_space(net, 0.5, (20, 32))
    resource = Resource.latency(net, structures, batch=2, rounds=1)
    assert (resource.name, resource.unit) == ("CPU latency", "ms")
    assert [table.about["resolution"] for table in resource.tables.values()] == [20, 32]
    back = Resource.from_json(json.loads(json.dumps(resource.to_json())))
    assert back.tables[32].about == resource.tables[32].about and back.tables[32].about["batch"] == 2
    costs, again = (StructureCosts.of(structures, each) for each in (resource, back))
    index = structures.draw(np.random.default_rng(0), 50)
    assert_array_equal(costs.cost(index), again.cost(index))
    assert_allclose(costs.cost(index), resource.predict(structures.widths(index), structures.resolutions(index)))
    assert (costs.cost(index) > 0).all()


# -- buckets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bounds", "pools"), [
    ((110e6, 570e6, 10e6), 45), ((70, 240, 10), 16), ((10_000, 31_000, 1000), 20),  # MobileNetV1
    ((70e6, 300e6, 10e6), 22), ((100, 270, 10), 16), ((12_000, 28_000, 1000), 15),  # MobileNetV2
])
def test_neither_end_of_the_released_targets_has_a_pool(bounds, pools):
    buckets = Buckets(*bounds)
    assert len(buckets) == pools
    assert (buckets.targets[0], buckets.targets[-1]) == (bounds[0] + bounds[2], bounds[1] - bounds[2])
    assert buckets.index(np.array(bounds[:2])).tolist() == [-1, -1]


def test_a_bucket_has_its_lower_edge_but_not_its_upper():
    buckets = Buckets(10, 50, 10)
    costs = np.array([-1e9, 10, 14.9, 15, 20, 24.9, 25, 34.9, 35, 44.9, 45, 50, 1e9])
    assert buckets.index(costs).tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 2, 2, -1, -1, -1]
    assert buckets.bounds(0) == (15, 25) and buckets.targets.tolist() == [20, 30, 40]


@given(st.integers(-50, 50), st.integers(2, 40), st.integers(1, 9), st.lists(st.integers(-500, 500), min_size=1))
def test_every_cost_is_in_the_bucket_of_the_nearest_target(start, count, step, costs):
    buckets = Buckets(start, start + count * step, step)
    every = start + step * np.arange(count + 1)
    for cost, bucket in zip(costs, buckets.index(np.array(costs)), strict=True):
        near = np.flatnonzero((every - step / 2 <= cost) & (cost < every + step / 2))
        expected = near[0] - 1 if len(near) and 0 < near[0] < count else -1
        assert bucket == expected


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "wrong"), [
    ("SearchError: lower = 0.9, upper = 0.8", {"lower": 0.9, "upper": 0.8}),
    ("ParameterError: lower = 0 ", {"lower": 0}),
    ("ParameterError: lower = nan", {"lower": math.nan}),
    ("SearchError: lower = 0.7505", {"lower": 0.7505}),
    ("ParameterError: width", {"upper": 1.5}),
    (r"SearchError: resolutions = \(20, 30\).*multiples of 4, 16 at least", {"resolutions": (20, 30)}),
    (r"SearchError: resolutions = \(8,", {"resolutions": (8, 32)}),
    ("ParameterError: resolutions", {"resolutions": (24, 32, 28.0)}),
])
def test_bounds_of_a_space_are_checked(code, wrong):
    with pytest.raises(SlimnbError, match=f"{code}"):
        structure_space(tiny(MobileNetV1), **wrong)


@pytest.mark.parametrize(("bounds", "what"), [
    ((20, 10, 1), "buckets from 20 to 10 by 1 .*start <= stop"), ((10, 20, 0), "greater than 0"),
    ((10, 20, -1), "greater than 0"), ((10, 20, 10), "no target is left"), ((10, 10, 1), "no target is left"),
    ((math.nan, 20, 1), "finite"), ((10, math.inf, 1), "finite"), ((10, 20, math.nan), "finite"),
])
def test_buckets_without_a_target_are_refused(bounds, what):
    with pytest.raises(SlimnbError, match=f"(Search|Parameter)Error: .*{what}"):
        Buckets(*bounds)


def test_targets_that_nothing_costs_are_refused():
    net = tiny(MobileNetV1)
    structures = structure_space(net)
    costs = StructureCosts.of(structures, Resource.macs(net, structures))
    for bounds in ((0, costs.dearest, costs.dearest / 50), (costs.cheapest, 2 * costs.dearest, costs.dearest / 4)):
        with pytest.raises(SlimnbError, match=r"SearchError: target .*M MACs — structures cost .*M MACs to .*M MACs"):
            Buckets(*bounds).check(costs)


def test_what_tables_lack_is_named():
    net = tiny(MobileNetV1)
    narrow, wide = structure_space(net, 0.75), structure_space(net, 0.25)
    resource = Resource.macs(net, narrow)
    with pytest.raises(SlimnbError,
                       match="SearchError: width 8 of layer 'block1' at 20 pixels — its table holds 16 to 16"):
        StructureCosts.of(wide, resource)
    del resource.tables[24]
    with pytest.raises(SlimnbError, match="SearchError: resolution 24 — the tables of MACs hold 20, 28, 32 pixels"):
        StructureCosts.of(narrow, resource)
    with pytest.raises(SlimnbError, match="SearchError: resolution None"):
        resource.of(net.largest)
    other = tiny(MobileNetV2)
    with pytest.raises(SlimnbError, match="ParameterError: tables of "):
        StructureCosts.of(narrow, Resource.macs(other, structure_space(other)))


def test_groups_that_form_no_chain_are_refused():
    net = tiny(MobileNetV2)
    structures = structure_space(net)
    units = len(structures.unit_names)
    prior = [np.full(len(choices), 1 / len(choices)) for choices in structures.space.widths]
    loose = replace(structures, groups=tuple((unit,) for unit in range(units)), prior=(*prior, structures.prior[-1]))
    with pytest.raises(SlimnbError, match="SearchError: a net whose joins mix groups"):
        StructureCosts.of(loose, Resource.macs(net, structures))


@pytest.mark.parametrize("damage", [
    lambda data: [], lambda data: data.pop("unit"), lambda data: data["tables"][0]["about"].clear(),
    lambda data: data["tables"][0]["terms"][0]["costs"].pop(), lambda data: data["tables"][0]["choices"].clear(),
])
def test_damaged_tables_are_refused(damage):
    net = tiny(MobileNetV1)
    data = Resource.macs(net, structure_space(net, 0.5, (32,))).to_json()
    data = damaged if (damaged := damage(data)) == [] else data
    with pytest.raises(SlimnbError, match="SearchError: stored tables: "):
        Resource.from_json(data)


def test_resolutions_of_the_paper_and_of_small_images():
    assert RESOLUTIONS[224][::12] == (128, 224) and len(RESOLUTIONS[224]) == 13
    assert RESOLUTIONS[32] == (20, 24, 28, 32)
    assert structure_space(tiny(MobileNetV1), resolutions=(32,)).space.resolutions == (32,)
