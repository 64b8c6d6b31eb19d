"""Pools of subnets against hand-worked cases and a plain list that is sorted anew."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimnb.errors import SlimnbError
from slimnb.papers.pss_net.pools import Pool, entries_of, fill_, pack_entries, unpack_entries
from slimnb.subnet import Subnet

A, B, C, D = (Subnet((8 * n, 8), resolution=32) for n in range(1, 5))


def filled(*entries, size=3):
    pool = Pool(size)
    for step, (subnet, metric) in enumerate(entries):
        pool.enter(subnet, metric, step)
    return pool


def test_a_pool_by_hand():
    pool = filled((A, -2.0), (B, -1.0), (C, -3.0))
    assert pool.ranked() == [B, A, C] and pool.full
    pool.enter(C, -1.0, 3)
    assert pool.metrics[C] == pytest.approx(0.9 * -3 + 0.1 * -1) and pool.since[C] == 2, "since its first entry"
    pool.enter(D, -2.5, 4)
    assert pool.ranked() == [B, A, D] and pool.since == {A: 0, B: 1, D: 4}, "the lowest has left"
    pool.enter(C, -9.0, 5)
    assert pool.ranked() == [B, A, D], "the lowest may be the one that came"
    pool.enter(C, -2.2, 6)
    assert pool.ranked() == [B, A, C] and pool.since[C] == 6, "its old metric is forgotten"


def test_equals_stand_in_order_of_entry_and_the_last_leaves():
    pool = filled((A, -1.0), (B, -1.0), (C, -1.0), (D, -1.0))
    assert pool.ranked() == [A, B, C] == pool.top(3)


def test_a_metric_that_is_not_finite_never_enters():
    pool = filled((A, math.nan), (B, -math.inf), (C, -1.0), (C, math.nan), (D, math.inf))
    assert pool.metrics == {C: -1.0} and pool.refused == 4


class Plain:
    """A pool as a list that is sorted after every entry."""

    def __init__(self, size):
        self.size, self.rows, self.number = size, [], 0

    def enter(self, subnet, metric):
        known = [row for row in self.rows if row[2] == subnet]
        if known:
            known[0][0] = -(0.9 * -known[0][0] + (1 - 0.9) * metric)
        else:
            self.rows.append([-metric, self.number, subnet])
        self.number += 1
        self.rows = sorted(self.rows, key=lambda row: row[:2])[: self.size]


METRICS = st.sampled_from([-3.0, -2.0, -1.5, -1.0])


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 7), METRICS), max_size=40))
def test_a_pool_is_a_sorted_list(size, entries):
    pool, plain = Pool(size), Plain(size)
    for step, (number, metric) in enumerate(entries):
        subnet = Subnet((number + 1,))
        pool.enter(subnet, metric, step)
        plain.enter(subnet, metric)
        assert pool.ranked() == [row[2] for row in plain.rows]
        assert [pool.metrics[s] for s in pool.ranked()] == [-row[0] for row in plain.rows]
        assert pool.metrics.keys() == pool.since.keys() and pool.full == (len(plain.rows) == size)


def test_draws_follow_the_softmax_of_metrics():
    pool, eta, n = filled((A, -2.0), (B, -1.0), (C, -1.5)), 0.7, 20_000
    rng = np.random.default_rng(0)
    drawn = [pool.sample(rng, eta) for _ in range(n)]
    weight = {subnet: math.exp(metric / eta) for subnet, metric in pool.metrics.items()}
    for subnet, value in weight.items():
        p = value / sum(weight.values())
        assert abs(drawn.count(subnet) / n - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("metrics", [(-1e3, -2e3), (-1e300, -1.0), (-800.0, -799.0)])
def test_a_cold_draw_takes_the_best_and_never_overflows(metrics):
    pool = filled(*zip((A, B), metrics, strict=True))
    rng = np.random.default_rng(0)
    assert {pool.sample(rng, 0.01) for _ in range(50)} == {pool.ranked()[0]}


def test_entries_are_packed_and_unpacked_in_order():
    pools = [filled((A, -2.0), (B, -1.0)), filled(), filled((Subnet((24, 8)), -0.1), (C, -1 / 3))]
    state = pack_entries(entries_of(pools), 2)
    again = [Pool(3) for _ in pools]
    again[1].enter(D, -1.0, 0)
    fill_(again, unpack_entries(state, 3, lambda subnet, pool: True))
    for pool, other in zip(pools, again, strict=True):
        assert list(pool.metrics.items()) == list(other.metrics.items()) and pool.since == other.since
    assert state["widths"].shape == (4, 2) and pack_entries([], 2)["widths"].shape == (0, 2)
    for count, fits in ((2, lambda subnet, pool: True), (3, lambda subnet, pool: subnet != B)):
        with pytest.raises(SlimnbError, match="StoreError"):
            unpack_entries(state, count, fits)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_pool_holds_a_whole_number(size):
    with pytest.raises(SlimnbError, match="ParameterError"):
        Pool(size)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_a_momentum_keeps_something_new(momentum):
    with pytest.raises(SlimnbError, match="ParameterError"):
        Pool(3, momentum)


@pytest.mark.parametrize("k", [0, 3, 50])
def test_more_than_there_are_is_refused_with_their_number(k):
    with pytest.raises(SlimnbError, match="it holds 2 subnets"):
        filled((A, -1.0), (B, -2.0)).top(k)


def test_an_empty_pool_cannot_be_drawn_from():
    with pytest.raises(SlimnbError, match="SearchError"):
        Pool(3).sample(np.random.default_rng(0), 1.0)
