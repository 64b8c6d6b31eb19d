"""Structures drawn by bucket, against all structures of a small space and their prior."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chisquare
from small_nets import tiny

from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.papers.pss_net.structure_samplers import ExactDistribution, StructureDistribution, trials
from slimnb.papers.pss_net.structures import Buckets, Resource, StructureCosts, structure_space


def costs_of(kind, noise: float = 0.0, lower: float = 0.25, resolutions=(20, 24, 32)) -> StructureCosts:
    """MACs of a tiny net's structures; with noise they are no whole numbers, nor do they grow with the widths."""
    net = tiny(kind)
    structures = structure_space(net, lower, resolutions)
    resource, rng = Resource.macs(net, structures), np.random.default_rng(1)
    if noise:
        resource = replace(resource, name="CPU latency", unit="ms", tables={
            side: replace(table, terms={ends: cost / 1e5 * rng.uniform(1 - noise, 1 + noise, cost.shape)
                                        for ends, cost in table.terms.items()})
            for side, table in resource.tables.items()})
    return StructureCosts.of(structures, resource)


def every(costs: StructureCosts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All structures, their costs and their prior probabilities."""
    index = np.array(list(itertools.product(*map(range, costs.structures.counts))))
    prior = np.prod([p[column] for p, column in zip(costs.structures.prior, index.T, strict=True)], axis=0)
    return index, costs.cost(index), prior


def buckets_of(costs: StructureCosts, count: int) -> Buckets:
    """`count` pools between the least and the greatest cost."""
    return Buckets(costs.cheapest, costs.dearest, (costs.dearest - costs.cheapest) / (count + 1))


def named(index: np.ndarray, like: StructureCosts) -> np.ndarray:
    return np.ravel_multi_index(index.T, like.structures.counts)


CASES = [(MobileNetV1, 0.0), (MobileNetV1, 0.9), (MobileNetV2, 0.0), (MobileNetV2, 0.9)]


@pytest.mark.parametrize("bins", [1, 64])
@pytest.mark.parametrize(("kind", "noise"), CASES)
def test_exact_structures_follow_the_prior_given_the_bucket(kind, noise, bins):
    costs = costs_of(kind, noise)
    buckets = buckets_of(costs, 6)
    sampler = ExactDistribution(costs, buckets, bins)
    index, cost, prior = every(costs)
    bucket = buckets.index(cost)
    for t in range(len(buckets)):
        inside = bucket == t
        assert sampler.support[t] == inside.any()
        if inside.any():
            n = 20_000
            drawn = np.bincount(named(sampler.draw(t, np.random.default_rng(t), n), costs), minlength=len(index))
            drawn = drawn[named(index, costs)]
            assert drawn[~inside].sum() == 0
            expected = n * prior[inside] / prior[inside].sum()
            found, often = drawn[inside], expected >= 5  # what is rarer counts together
            rest = [(found[~often].sum(), expected[~often].sum())] if (~often).any() else []
            table = np.array([*zip(found[often], expected[often], strict=True), *rest])
            if len(table) > 1:
                assert chisquare(*table.T).pvalue > 1e-4


@pytest.mark.parametrize(("kind", "noise"), CASES)
def test_what_is_proposed_has_the_mass_of_its_structures(kind, noise):
    costs = costs_of(kind, noise)
    buckets = buckets_of(costs, 5)
    sampler = ExactDistribution(costs, buckets, 16)
    index, cost, prior = every(costs)
    bin_ = buckets.step / 16
    rounded = np.rint(costs.tables / bin_)
    sums = sum(rounded[index[:, -1], g, index[:, g + 1], index[:, g]] for g in range(rounded.shape[1]))
    error = cost / bin_ - sums
    for t in range(len(buckets)):
        low, high = np.array(buckets.bounds(t)) / bin_
        ends = [error[index[:, -1] == side] for side in range(len(rounded))]
        least, most = (np.array([f(each) for each in ends])[index[:, -1]] for f in (np.min, np.max))
        may = (sums + most >= low - 1e-6) & (sums + least < high + 1e-6)
        assert sampler.mass[t] == pytest.approx(prior[may].sum(), rel=1e-12)
        exact = prior[buckets.index(cost) == t].sum()
        if exact:
            accepted = sampler.acceptance(t, np.random.default_rng(0), 50_000)
            assert sampler.mass[t] * accepted == pytest.approx(exact, rel=0.05)


def test_buckets_between_the_costs_of_two_structures_have_no_support():
    costs = costs_of(MobileNetV1, 0.5)
    cost = np.sort(every(costs)[1])
    gap = np.diff(cost[: len(cost) * 3 // 4]).argmax()
    step = (cost[gap + 1] - cost[gap]) / 3
    middle = (cost[gap] + cost[gap + 1]) / 2
    first = int((middle - cost[0]) // step)
    buckets = Buckets(middle - first * step, middle + 3 * step, step)
    sampler = ExactDistribution(costs, buckets, bins=8)
    assert_array_equal(sampler.support, np.isin(np.arange(len(buckets)), buckets.index(cost)))
    empty = first - 1  # the bucket around the middle of the gap
    assert not sampler.support[empty]
    with pytest.raises(SlimnbError,
                       match=rf"SearchError: bucket {empty}, .* ms to .* ms — no structure was found there; "
                       r"targets with structures reach from .* ms to .* ms\. Leave it out"):
        sampler.sample(empty, np.random.default_rng(0))


@pytest.mark.parametrize(("kind", "noise"), CASES)
def test_eq_4_counts_and_samples_each_bucket(kind, noise):
    costs = costs_of(kind, noise)
    buckets = buckets_of(costs, 6)
    sampler = StructureDistribution.fit(costs, buckets, np.random.default_rng(3), n=2000)
    index = costs.structures.draw(np.random.default_rng(3), 2000)
    bucket = buckets.index(costs.cost(index))
    for t in range(len(buckets)):
        seen = index[bucket == t]
        assert sampler.count[t] == len(seen) and sampler.support[t] == (len(seen) > 0)
        for coordinate, choices in enumerate(costs.structures.counts):
            expected = [np.mean(seen[:, coordinate] == choice) if len(seen) else 0 for choice in range(choices)]
            assert_allclose(sampler.marginals[t, coordinate, :choices], expected)
            assert not sampler.marginals[t, coordinate, choices:].any()
        if len(seen):
            drawn = sampler.draw(t, np.random.default_rng(t), 300)
            assert drawn.shape == (300, len(costs.structures.counts))
            assert (buckets.index(costs.cost(drawn)) == t).all()
            shares = np.bincount(sampler.propose(t, np.random.default_rng(t), 20_000)[:, 0],
                                 minlength=sampler.marginals.shape[2]) / 20_000
            assert_allclose(shares, sampler.marginals[t, 0], atol=0.02)


@pytest.mark.parametrize("make", [lambda *given: StructureDistribution.fit(*given, np.random.default_rng(0), 5000),
                                  ExactDistribution])
def test_samples_are_subnets_of_the_bucket_and_repeat_with_the_random_numbers(make):
    costs = costs_of(MobileNetV2)
    buckets = buckets_of(costs, 4)
    sampler = make(costs, buckets)
    for t in np.flatnonzero(sampler.support).tolist():
        subnets = sampler.sample(t, np.random.default_rng(5), n=20)
        assert len(subnets) == 20 and subnets == sampler.sample(t, np.random.default_rng(5), n=20)
        assert all(costs.structures.space.contains(subnet) for subnet in subnets)
        assert (buckets.index(np.array([costs.resource.of(subnet) for subnet in subnets])) == t).all()
        assert len(sampler.sample(t, np.random.default_rng(0))) == 1
    assert sampler.sample(t, np.random.default_rng(0), n=0) == []
    for wrong in (-1, 4):
        with pytest.raises(SlimnbError, match=f"SearchError: bucket {wrong} — there are 4. Give 0 to 3"):
            sampler.sample(wrong, np.random.default_rng(0))


def test_a_sampler_that_never_meets_its_bucket_gives_up(monkeypatch):
    costs = costs_of(MobileNetV1)
    buckets = buckets_of(costs, 6)
    fitted = StructureDistribution.fit(costs, buckets, np.random.default_rng(0), 5000)
    first, last = np.flatnonzero(fitted.support)[[0, -1]]
    histograms = fitted.marginals * fitted.count[:, None, None]
    histograms[last] = histograms[first] * fitted.count[last] / fitted.count[first]
    lost = StructureDistribution(costs, buckets, fitted.count, histograms)
    monkeypatch.setattr("slimnb.papers.pss_net.structure_samplers.TRIES", 10_000)
    with pytest.raises(SlimnbError, match=rf"SearchError: 0 of 2 structures after \d\d,\d{{3}} tries — next to none .* "
                       rf"bucket {last}, "):
        lost.sample(int(last), np.random.default_rng(0), 2)


def test_targets_and_numbers_that_make_no_sense_are_refused():
    costs = costs_of(MobileNetV1)
    beyond = Buckets(costs.cheapest, 3 * costs.dearest, costs.dearest / 2)
    for make in (lambda: StructureDistribution.fit(costs, beyond, np.random.default_rng(0)),
                 lambda: ExactDistribution(costs, beyond)):
        with pytest.raises(SlimnbError, match="SearchError: target "):
            make()
    with pytest.raises(SlimnbError, match="ParameterError: n = 0"):
        StructureDistribution.fit(costs, buckets_of(costs, 3), np.random.default_rng(0), n=0)


def test_trials_are_the_inverse_of_each_chance():
    costs = costs_of(MobileNetV1, 0.9)
    buckets = buckets_of(costs, 8)
    exact = ExactDistribution(costs, buckets)
    marginal = StructureDistribution.fit(costs, buckets, np.random.default_rng(0), n=60)
    found = trials(marginal, exact, np.random.default_rng(0))
    _, cost, prior = every(costs)
    chance = np.bincount(buckets.index(cost) + 1, prior, len(buckets) + 1)[1:]
    assert_allclose(found["target"], buckets.targets)
    assert_allclose(found["naive"], np.where(chance > 0, 1 / np.maximum(chance, 1e-300), np.nan), rtol=0.05)
    assert_array_equal(found["eq4"].isna(), ~marginal.support)
    assert (found["exact"].dropna() < 2).all() and (found["eq4"].dropna() >= 1).all()


def test_mobilenet_v1_of_the_paper_has_five_empty_buckets_under_eq_4():
    with torch.device("meta"):
        net = MobileNetV1()
    structures = structure_space(net)
    costs = StructureCosts.of(structures, Resource.macs(net, structures))
    buckets = Buckets(110e6, 570e6, 10e6)
    marginal = StructureDistribution.fit(costs, buckets, np.random.default_rng(0))  # of 100,000
    assert (buckets.targets[~marginal.support] / 1e6).tolist() == [520, 530, 540, 550, 560]
    exact = ExactDistribution(costs, buckets)
    assert exact.support.all()
    for t in (0, 20, 40, 44):
        (subnet,) = exact.sample(t, np.random.default_rng(t))
        assert abs(costs.resource.of(subnet) - buckets.targets[t]) <= 5e6
    found = trials(marginal, exact, np.random.default_rng(0), n=1000)
    assert found["naive"].max() > 1e11 and found["naive"][:40].max() > 1e4  # the paper speaks of 10^6 ...
    assert found["eq4"].max() < 100  # ... and of 10^1
