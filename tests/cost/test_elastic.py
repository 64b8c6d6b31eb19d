"""Arrays of structures and tables over blocks say what subnets and `count_macs` say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from small_nets import ELASTIC, meta

from slimnb.cost.elastic import ElasticTable, kept_blocks, sample_structures, structures_of, subnets_at
from slimnb.cost.macs import CONVENTIONS, count_macs, count_params
from slimnb.cost.table import CostTable, macs_function
from slimnb.nets.mobilenet import MobileNetV3
from slimnb.nets.proxyless_nas import ProxylessNAS

every_net = pytest.mark.parametrize("kind", ELASTIC, ids=lambda kind: kind.__name__)
NETS = {kind: meta(kind, 10, 32, **options, depths=(1, 3), kernels=(3, 5)) for kind, options in ELASTIC.items()}
PAPER = meta(MobileNetV3, 100, 32, kernels=(3, 5, 7))


@given(st.integers(0, 2**32), st.sampled_from(sorted(NETS.values(), key=str)))
@settings(max_examples=40, deadline=None)
def test_structures_and_subnets_name_each_other(seed, net):
    space = net.search_space
    structures = sample_structures(space, np.random.default_rng(seed), 20)
    subnets = subnets_at(space, structures)
    assert all(space.contains(subnet) for subnet in subnets)
    again = structures_of(space, subnets)
    stages, kept = len(space.depths), kept_blocks(space, structures)
    assert np.array_equal(again[:, :stages], structures[:, :stages])
    assert np.array_equal(again[:, stages:], structures[:, stages:] * kept)
    assert subnets_at(space, again) == subnets
    assert kept.sum(1).tolist() == [sum(subnet.depths) for subnet in subnets]


def test_every_choice_is_drawn_equally_often():
    space = PAPER.search_space
    structures = sample_structures(space, np.random.default_rng(0), 9000)
    assert structures.shape == (9000, 5 + 20)
    for column, choices in zip(structures.T, [3] * 5 + [9] * 20, strict=True):
        counts = np.bincount(column, minlength=choices)
        assert len(counts) == choices and abs(counts - 9000 / choices).max() < 5 * (9000 / choices) ** 0.5
    some = subnets_at(space, structures[:3], resolution=24)
    assert [subnet.resolution for subnet in some] == [24] * 3


@pytest.mark.parametrize("convention", CONVENTIONS)
@every_net
def test_macs_of_the_table_are_counted_macs(kind, convention):
    net = NETS[kind]
    table = ElasticTable.macs(net, convention, resolution=24)
    structures = sample_structures(net.search_space, np.random.default_rng(0), 6)
    subnets = subnets_at(net.search_space, structures)
    expected = [count_macs(net, subnet, convention, 24) for subnet in subnets]
    assert table.predict(structures).tolist() == expected
    assert [table.of(subnet) for subnet in subnets] == expected
    assert table.terms.shape == (len(net.block_units), len(table.choices))


@every_net
def test_parameters_of_the_table_are_counted_parameters(kind):
    net = NETS[kind]
    structures = sample_structures(net.search_space, np.random.default_rng(1), 20)
    expected = [count_params(net, [subnet]) for subnet in subnets_at(net.search_space, structures)]
    assert ElasticTable.params(net).predict(structures).tolist() == expected
    assert len(set(expected)) > 10


def test_a_supernet_of_all_kernels_counts_its_transforms():
    net = NETS[MobileNetV3]
    blocks = len(net.block_units)
    pair = [net.elastic(None, None, 3), net.elastic(None, None, 5)]
    assert count_params(net, pair) == count_params(net, [net.largest]) + blocks * 3**4
    assert count_params(net, pair) == sum(p.numel() for p in net.parameters())


def test_the_papers_space_lies_between_its_smallest_and_largest():
    table, space = ElasticTable.macs(PAPER), PAPER.search_space
    costs = table.predict(sample_structures(space, np.random.default_rng(0), 100_000))
    low, high = (table.of(subnet) for subnet in (space.smallest, space.largest))
    assert low == count_macs(PAPER, space.smallest) and high == count_macs(PAPER, space.largest)
    assert costs.dtype == np.int64 and low < costs.min() < costs.max() < high
    refused("SearchError", table.of, PAPER.elastic(2, 3, 7, 24))
    assert table.of(PAPER.elastic(2, 3, 7, 32)) == count_macs(PAPER, PAPER.elastic(2, 3, 7))


def test_measured_costs_add_up_alike():
    net = NETS[ProxylessNAS]
    table = ElasticTable.by_layer("ms", net, lambda subnet: {"features.0": 0.5, "features.2.0.0": 0.25,
                                                             "features.2.0": 0.125}, {})
    assert table.constant == 0.5
    assert table.predict(np.zeros((2, 9), dtype=int)).tolist() == [0.875] * 2


def test_bad_input_is_refused():
    space = PAPER.search_space
    bad = np.zeros((1, 25), dtype=int)
    bad[0, 7] = 9
    for call in (lambda: subnets_at(space, bad), lambda: kept_blocks(space, np.zeros((1, 24), dtype=int)),
                 lambda: kept_blocks(space, -bad), lambda: kept_blocks(space, np.zeros(25, dtype=int)),
                 lambda: structures_of(space, [replace(PAPER.largest, depths=(7, 4, 4, 4, 4))])):
        refused("ParameterError", call)
    for call in (lambda: CostTable.macs(PAPER, space), lambda: CostTable.params(PAPER, space),
                 lambda: macs_function(PAPER)):
        refused("SearchError", call)
