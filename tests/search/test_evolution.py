"""Searches in elastic spaces against brute force; latency tables of elastic nets."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from slimnb.cost.elastic import ElasticTable, sample_structures, structures_of, subnets_at
from slimnb.cost.elastic_latency import check_latency, elastic_latency
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV3
from slimnb.papers.deps.deploy import Validated
from slimnb.search.evolution import all_structures, canonical, cost_range, evolve, random_search
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn, evaluate

LAYOUT = ((24, 3, 2, "relu", True), (32, 2, 2, "hswish", False))


def tiny(**options):
    made = {"layout": LAYOUT, "depths": (1, 2, 3), "expands": (3, 6), "kernels": (3, 5)} | options
    return MobileNetV3(10, 32, stem=8, first=8, tail=24, head=24, **made)


@pytest.fixture(scope="module")
def net():
    return tiny()


@pytest.fixture(scope="module")
def table(net):
    return ElasticTable.macs(net)


def worth(space, seed=0):
    """A score of structures that does not add up over blocks, and of subnets the same."""
    weights = np.random.default_rng(seed).normal(size=(2, len(space.depths) + len(space.kernels)))

    def of_rows(rows):
        return np.sin(rows @ weights[0]) + rows @ np.abs(weights[1])

    return of_rows, lambda subnets: of_rows(structures_of(space, subnets))


def test_all_structures_are_all_subnets_once(net):
    rows = all_structures(net.search_space)
    assert len(rows) == net.search_space.size == (4 + 4**2 + 4**3) * (4 + 4**2)
    assert len(set(subnets_at(net.search_space, rows))) == len(rows)
    assert (canonical(net.search_space, rows) == rows).all()
    assert (structures_of(net.search_space, subnets_at(net.search_space, rows[:50])) == rows[:50]).all()


def test_the_cost_range_is_that_of_all_subnets(table):
    costs = table.predict(all_structures(table.space))
    assert cost_range(table) == (costs.min(), costs.max())
    noise = np.random.default_rng(0).random(table.terms.shape)
    rough = ElasticTable("ms", table.space, table.choices, 0.5, noise)
    costs = rough.predict(all_structures(table.space))
    assert cost_range(rough) == pytest.approx((costs.min(), costs.max()))


@pytest.mark.parametrize("search", [evolve, random_search])
def test_a_search_that_may_ask_for_everything_finds_the_best(search, table):
    of_rows, score = worth(table.space)
    low, high = cost_range(table)
    target = low + 0.15 * (high - low)
    rows = all_structures(table.space)
    costs = table.predict(rows)
    best = rows[costs <= target]
    best = best[np.argsort(-of_rows(best), kind="stable")]
    found = search(table, target, score, 10**6)
    assert found.subnet == subnets_at(table.space, best[:1])[0] and found.score == of_rows(best[:1])[0]
    assert len(found.rows) == len(best)  # all of them, each once


def test_evolution_comes_nearer_to_the_best_than_as_many_random_draws(table):
    score = worth(table.space, 3)[1]
    target = sum(cost_range(table)) / 2
    gained = [evolve(table, target, score, 100, seed=seed, population=20).score
              - random_search(table, target, score, 100, seed=seed, batch=20).score for seed in range(6)]
    assert np.mean(gained) > 0


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.9), st.floats(0.1, 1), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_no_search_asks_for_what_breaks_the_constraint(table, start, share, evaluations, evolving, seed):
    low, high = cost_range(table)
    least, most = low + start * (high - low), low + (start + share * (1 - start)) * (high - low)
    asked: list[Subnet] = []

    def score(subnets):
        asked.extend(subnets)
        return [sum(subnet.widths) % 13 for subnet in subnets]

    search, sizes = (evolve, {"population": 8}) if evolving else (random_search, {"batch": 8})
    found = search(table, most, score, evaluations, least=least, seed=seed, **sizes)
    assert len(asked) == len(set(asked)) == len(found.rows) <= evaluations
    assert all(least <= table.of(subnet) <= most and table.space.contains(subnet) for subnet in asked)
    assert found.score == max(row["score"] for row in found.rows) and found.cost == table.of(found.subnet)
    assert [row["evaluation"] for row in found.rows] == list(range(1, len(asked) + 1))
    assert [row["best"] for row in found.rows] == np.maximum.accumulate([r["score"] for r in found.rows]).tolist()


def test_the_same_seed_finds_the_same_and_both_searches_begin_alike(table):
    score = worth(table.space)[1]
    target = sum(cost_range(table)) / 2
    one, two = (evolve(table, target, score, 60, seed=5, population=20) for _ in range(2))
    assert one == two and json.loads(json.dumps(one.rows)) == one.rows
    assert one.rows != evolve(table, target, score, 60, seed=6, population=20).rows
    assert random_search(table, target, score, 60, seed=5, batch=20).rows[:20] == one.rows[:20]


def test_a_score_of_validation_accuracy_is_calibrate_and_evaluate(net):
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 3, 16, 16, generator=rng), torch.arange(6)) for _ in range(2)]
    subnets = subnets_at(net.search_space, sample_structures(net.search_space, np.random.default_rng(0), 5))
    scored = Validated(net, lambda: (x for x, _ in batches), lambda: iter(batches), chunk=2)(subnets)
    assert not net.slots
    own = tiny()
    own.load_state_dict(net.state_dict())
    calibrate_bn(own, subnets, (x for x, _ in batches))
    assert scored == [found.top1 for found in evaluate(own, subnets, batches)]


def test_a_target_out_of_the_cost_range_is_named_with_the_range(table):
    low, high = cost_range(table)
    for target, least in ((low - 1, 0.0), (2 * high, high + 1), (low + 1, low + 2)):
        with pytest.raises(SlimnbError, match=re.escape(f"cost {low:,.4g} to {high:,.4g} MACs")):
            evolve(table, target, lambda subnets: [0.0] * len(subnets), least=least)


def test_an_interval_that_is_never_met_and_bad_numbers_are_one_line(table):
    low, high = cost_range(table)
    calls = [("SearchError", {"target": low + 1, "least": low + 0.5}), ("ParameterError", {"target": high,
                                                                                           "population": 1}),
             ("ParameterError", {"target": high, "mutate": 0.0}), ("ParameterError", {"target": high,
                                                                                      "evaluations": 0})]
    for code, options in calls:
        with pytest.raises(SlimnbError, match=code) as caught:
            evolve(table, score=lambda subnets: [0.0] * len(subnets), **options)
        assert len(str(caught.value)) <= 240
    refused("SearchError", all_structures, MobileNetV3().search_space)


def test_a_latency_table_has_a_time_for_every_block_and_knows_its_conditions():
    net = tiny(layout=((16, 3, 2, "relu", True), (16, 2, 1, "hswish", False)), depths=(1, 2, 3))
    before = (dict(net.slots), net.training)
    table = elastic_latency(net, 2, resolution=16, rounds=2, warmup=1, min_ms=0.0)
    assert table.terms.shape == (5, 4) and (table.terms > 0).all() and table.unit == "ms"
    assert table.choices == ((3, 3), (3, 5), (6, 3), (6, 5))
    assert (table.terms[1] == table.terms[2]).all()  # equal shapes are timed once
    assert (table.terms[0] != table.terms[1]).all()
    assert table.about["layers"] == 4 * 4 and table.about["batch"] == 2 and table.about["resolution"] == 16
    assert before == (dict(net.slots), net.training)
    found = check_latency(table, net, 3, rounds=1)
    assert len(found["predicted"]) == len(found["measured"]) == 3 and {"mape", "r2", "rank"} <= set(found)
    structures = sample_structures(table.space, np.random.default_rng(0), 3)
    assert found["predicted"] == pytest.approx(table.predict(structures), abs=1e-5)
    refused("ParameterError", check_latency, table, net, 2)
