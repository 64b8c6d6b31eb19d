"""Every search finds what trying all paths finds, or says by how much it may have missed it."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from refusals import refused

from slimnb.cost.table import CostTable
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.search.trellis import BestPath, Trellis, best_under, exact_under, marginals, viterbi

PLATFORMS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


KINDS = ("whole", "tenths", "real")


def random_problem(seed: int, kind: str = "whole"):
    """Chain and unary scores of two to five units with one to five choices each.

    Whole numbers make many ties, scores in tenths ties that rounding breaks, real numbers none. Costs may be
    zero, scores have any sign, padding is not a number.
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, rng.integers(2, 6))
    draw = rng.standard_normal if kind == "real" else lambda size: rng.integers(-6, 7, size)
    chain = [np.abs(draw((a, b))) * rng.integers(1, 9) for a, b in pairwise(counts)]
    unary = np.full((len(counts), counts.max()), np.nan)
    for row, count in zip(unary, counts, strict=True):
        row[:count] = draw(count) / (10 if kind == "tenths" else 1)
    return Trellis.of(chain), unary, chain


def every_path(trellis, unary, chain):
    """All paths in lexicographic order, their scores and costs, added up from the tables as given."""
    paths = np.indices(trellis.counts).reshape(trellis.units, -1)
    score = sum(unary[unit][choice] for unit, choice in enumerate(paths))
    cost = sum(table[a, b] for table, a, b in zip(chain, paths[:-1], paths[1:], strict=True))
    return paths.T, score, cost


def budgets_for(cost, n=12):
    """Below, at and above costs that paths have."""
    return np.unique([*np.linspace(cost.min(), cost.max(), n), *np.unique(cost)[:: max(1, len(cost) // n)],
                      cost.max() + 1, np.inf])


def best_scores(score, cost, budgets):
    return np.array([score[cost <= budget].max() for budget in budgets])


@cache
def mobilenet():
    """The space of Multi-platform, its exact MACs, and those of its seven platforms."""
    with torch.device("meta"):
        net = MobileNetV1(100, 32, largest=1.5)
    table = CostTable.macs(net, net.space([round(0.2 + 0.1 * i, 1) for i in range(14)]))
    platforms = CostTable.macs(net, net.space(PLATFORMS))
    return Trellis.of(table.chain()), table, [platforms.of(net.uniform(mult)) for mult in PLATFORMS]


def saturating(trellis, seed=0):
    """Scores that grow with the width, less and less, differently in every unit."""
    rng, width = np.random.default_rng(seed), np.linspace(0.2, 1.5, trellis.choices)
    depth, rate = rng.uniform(0.02, 0.1, (trellis.units, 1)), rng.uniform(1, 4, (trellis.units, 1))
    return -depth * np.exp(-rate * width) + 1e-3 * rng.standard_normal((trellis.units, trellis.choices))


# -- Viterbi ---------------------------------------------------------------------------------------------


def test_viterbi_is_the_first_of_the_best_paths():
    multipliers = np.array([0, 0.25, 1, 3, 64])  # with whole scores and costs every sum is exact, and ties are
    tied = 0
    for seed in range(2000):
        trellis, unary, chain = random_problem(seed)
        paths, score, cost = every_path(trellis, unary, chain)
        value = score - multipliers[:, None] * cost
        assert_array_equal(viterbi(unary, trellis, multipliers), paths[value.argmax(1)])
        tied += ((value == value.max(1, keepdims=True)).sum(1) > 1).sum()
    assert tied > 1000


def test_all_multipliers_at_once_are_each_on_its_own():
    trellis, _, _ = mobilenet()
    unary, multipliers = saturating(trellis), np.geomspace(1e-12, 1e-6, 64)
    together = viterbi(unary, trellis, multipliers)
    assert together.shape == (64, 14) and len(np.unique(together, axis=0)) > 20
    assert_array_equal(together, np.concatenate([viterbi(unary, trellis, m) for m in multipliers]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sets(st.integers(0, 10**5), min_size=2, max_size=8))
def test_cost_never_grows_with_the_multiplier(seed, sixteenths):
    trellis, unary, _ = random_problem(seed)
    cost = trellis.cost(viterbi(unary, trellis, np.sort(list(sixteenths)) / 16))
    # equally good paths may differ in cost, but at a greater multiplier none costs more than any of them
    assert (np.diff(cost) <= 0).all()


def test_padding_is_never_chosen_whatever_it_holds():
    trellis, unary, _ = random_problem(3)
    assert len(set(trellis.counts)) > 1
    expected = viterbi(unary, trellis, [0, 1])
    for padding in (-np.inf, np.inf, 1e9, 0):
        padded = np.where(trellis.exists, unary, padding)
        assert_array_equal(viterbi(padded, trellis, [0, 1]), expected)
        assert (marginals(padded, trellis, 1.0, 1.0)[~trellis.exists] == 0).all()
        assert best_under(padded, trellis, trellis.dearest).index.tolist() == expected[0].tolist()


# -- budgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_best_under_is_within_its_bound_of_the_best_path(kind):
    missed = exact = 0
    for seed in range(700):
        trellis, unary, chain = random_problem(seed, kind)
        _, score, cost = every_path(trellis, unary, chain)
        budgets = budgets_for(cost)
        truth = best_scores(score, cost, budgets)
        for found, best in zip(best_under(unary, trellis, budgets), truth, strict=True):
            assert found.cost == trellis.cost(found.index) <= found.budget
            assert found.score == pytest.approx(unary[np.arange(trellis.units), found.index].sum(), abs=1e-9)
            assert found.score <= best + 1e-9 <= found.bound + 2e-9 and found.gap >= 0 <= found.multiplier
            missed, exact = missed + (found.score < best - 1e-9), exact + (found.gap == 0)
    assert missed > 50 and exact > 500  # both happen, so that both are tested


def test_bound_is_the_least_of_all_multipliers():
    # The dual is convex and bends where two paths are worth the same, so its least value is at such a bend or 0.
    for seed in range(150):
        trellis, unary, chain = random_problem(seed, "real")
        _, score, cost = every_path(trellis, unary, chain)
        with np.errstate(divide="ignore", invalid="ignore"):
            bends = np.subtract.outer(score, score) / np.subtract.outer(cost, cost)
        bends = np.append(np.random.default_rng(seed).permutation(bends[bends > 0])[:300], 0)
        dual = (score - bends[:, None] * cost).max(1)
        for found in best_under(unary, trellis, budgets_for(cost)[:-1]):
            assert found.bound <= (dual + bends * found.budget).min() + 1e-9
            at_it = (score - found.multiplier * (cost - found.budget)).max()
            assert found.bound == pytest.approx(at_it, abs=1e-9)  # attained at the multiplier given


@pytest.mark.parametrize("kind", KINDS)
def test_exact_under_is_the_best_path(kind):
    for seed in range(700):
        trellis, unary, chain = random_problem(seed, kind)
        _, score, cost = every_path(trellis, unary, chain)
        budgets = budgets_for(cost)
        found = exact_under(unary, trellis, budgets)
        assert_allclose([f.score for f in found], best_scores(score, cost, budgets), atol=1e-9)
        assert [f.budget for f in found] == budgets.tolist()
        for f in found:
            assert f.cost == trellis.cost(f.index) <= f.budget
            assert f.bound == f.score and f.gap == 0 and f.multiplier is None


def test_a_path_that_ties_with_both_ends_is_taken():
    worth = np.array([[1.0, 0, 2]])  # the first of the three ties at multiplier 1, and only it is within 1
    found = best_under(np.vstack([np.zeros(3), worth]), Trellis.of([worth]), 1.0)
    assert (found.score, found.cost, found.gap, found.multiplier) == (1, 1, 0, 1)


def test_just_above_its_multiplier_viterbi_gives_the_path_found():
    for seed in range(100):
        trellis, unary, _ = random_problem(seed, "real")
        budgets = np.linspace(trellis.cheapest, trellis.dearest, 9)
        for found in best_under(unary, trellis, budgets):
            if found.multiplier:
                path = viterbi(unary, trellis, found.multiplier * (1 + 1e-9))[0]
                assert_array_equal(path, found.index)


def test_a_budget_that_holds_nothing_back():
    trellis, _, _ = mobilenet()
    unary = saturating(trellis)
    free = viterbi(unary, trellis, 0)[0]
    for budget in (trellis.dearest, 2 * trellis.dearest, np.inf):
        found, = exact_under(unary, trellis, budget)
        relaxed = best_under(unary, trellis, budget)
        assert relaxed.multiplier == relaxed.gap == 0
        assert relaxed.index.tolist() == found.index.tolist() == free.tolist()
    wider_is_better = np.broadcast_to(np.arange(trellis.choices), unary.shape)
    largest = best_under(wider_is_better, trellis, np.inf)
    assert largest.index.tolist() == [count - 1 for count in trellis.counts]
    assert largest.cost == trellis.dearest


def test_the_cheapest_path_is_found_where_wider_is_cheaper():
    trellis = Trellis.of([np.array([[5, 3], [4, 9]]), np.array([[7.5, 2], [1, 6]])])
    assert (trellis.cheapest, trellis.dearest) == (4, 15)
    assert trellis.ends.tolist() == [[0, 1, 0], [1, 1, 1]]
    assert best_under(np.zeros((3, 2)), trellis, 4.0).index.tolist() == [0, 1, 0]


@pytest.mark.parametrize("search", (best_under, exact_under))
def test_a_budget_below_the_cheapest_names_the_minimum(search):
    trellis, _, targets = mobilenet()
    unary = saturating(trellis)
    for budget in (0, -1.0, np.nan, np.nextafter(trellis.cheapest, 0)):
        with pytest.raises(SlimnbError, match=r"SearchError: budget .* the cheapest subnet costs 2345120\.0"):
            search(unary, trellis, [targets[0], budget])
    found, = search(unary, trellis, [trellis.cheapest])
    assert found.cost == trellis.cheapest and not found.index.any()
    assert search(unary, trellis, []) == []


# -- MobileNetV1 on 32x32 --------------------------------------------------------------------------------


def test_seven_platforms_of_multi_platform():
    trellis, table, targets = mobilenet()
    assert trellis.counts == (6, 11, *(14,) * 12) and trellis.units == trellis.choices == 14
    assert [round(macs / 1e6, 2) for macs in (trellis.cheapest, trellis.dearest)] == [2.35, 102.70]
    assert [round(macs / 1e6, 3) for macs in targets] == [3.354, 7.341, 12.213, 19.018, 26.577, 36.201, 46.447]
    unary = saturating(trellis)
    relaxed, exact = best_under(unary, trellis, targets), exact_under(unary, trellis, targets)
    for one, best, target in zip(relaxed, exact, targets, strict=True):
        widths = [table.choices[unit,][choice] for unit, choice in enumerate(best.index)]
        assert table.predict(np.array([widths]))[0] == best.cost <= target
        assert one.cost <= target and one.score <= best.score + 1e-12 <= one.bound + 2e-12
    assert (np.diff([f.multiplier for f in relaxed]) < 0).all() and (np.diff([f.score for f in exact]) > 0).all()
    assert any(one.score < best.score for one, best in zip(relaxed, exact, strict=True))


def test_costs_of_a_trellis_are_those_of_the_table():
    trellis, table, _ = mobilenet()
    index = np.random.default_rng(0).integers(trellis.counts, size=(50, 14))
    widths = np.stack([table.choices[unit,][choice] for unit, choice in enumerate(index.T)], 1)
    assert_array_equal(trellis.cost(index), table.predict(widths))
    assert trellis.cost(index.reshape(5, 10, 14)).shape == (5, 10) and trellis.cost(index[0]).shape == ()


def test_one_budget_is_one_of_many():
    trellis, _, targets = mobilenet()
    unary = saturating(trellis)
    many = best_under(unary, trellis, targets)
    for target, found in zip(targets, many, strict=True):
        alone = best_under(unary, trellis, target)
        assert isinstance(alone, BestPath) and alone.index.tolist() == found.index.tolist()
        assert (alone.score, alone.multiplier, alone.bound) == (found.score, found.multiplier, found.bound)


def test_costs_in_milliseconds_and_in_anything_else_give_the_same_paths():
    trellis, table, targets = mobilenet()
    unary = saturating(trellis)
    scaled = Trellis.of([pair * 1e-7 for pair in table.chain()])
    for search in (best_under, exact_under):
        for ms, macs in zip(search(unary, scaled, np.array(targets) * 1e-7 * (1 + 1e-12)),
                            search(unary, trellis, targets), strict=True):
            assert ms.index.tolist() == macs.index.tolist() and ms.cost <= ms.budget
            assert ms.bound == pytest.approx(macs.bound, abs=1e-9)


# -- smoothed Viterbi ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", (0.3, 1.0, 20.0))
def test_marginals_are_those_of_all_paths(temperature):
    multipliers = np.array([0, 0.25, 3])
    for seed in range(100):
        trellis, unary, chain = random_problem(seed, KINDS[seed % 3])
        paths, score, cost = every_path(trellis, unary, chain)
        found = marginals(unary, trellis, multipliers, temperature)
        for multiplier, given_it in zip(multipliers, found, strict=True):
            energy = (score - multiplier * cost) / temperature
            share = np.exp(energy - energy.max())
            expected = [np.bincount(choice, share / share.sum(), trellis.choices) for choice in paths.T]
            assert_allclose(given_it, expected, atol=1e-12)
            assert_allclose(marginals(unary, trellis, multiplier, temperature), given_it, atol=1e-15)


@pytest.mark.parametrize("temperature", (5e-324, 1e-310, 1e-100, 1e-15, 1e-9, 5e-4, 1.0, 1e9, 1.7e308))
def test_marginals_are_probabilities_at_any_temperature(temperature):
    trellis, _, targets = mobilenet()
    unary = saturating(trellis)
    multipliers = np.array([f.multiplier for f in best_under(unary, trellis, targets)])
    found = marginals(unary, trellis, multipliers, temperature)
    assert found.shape == (7, 14, 14) and (found >= 0).all()
    assert_allclose(found.sum(2), 1, rtol=1e-12)


def test_marginals_from_the_coldest_to_the_hottest():
    trellis, _, targets = mobilenet()
    unary = saturating(trellis)
    # away from the multiplier at which two paths are worth the same
    multipliers = 1.0001 * np.array([f.multiplier for f in best_under(unary, trellis, targets)])
    cold, hot = (marginals(unary, trellis, multipliers, t) for t in (1e-9, 1e9))
    assert_allclose(cold, np.eye(14)[viterbi(unary, trellis, multipliers)], atol=1e-12)
    assert_allclose(hot, np.broadcast_to(trellis.exists / trellis.exists.sum(1, keepdims=True), hot.shape), atol=1e-6)


def test_equally_good_paths_share_at_temperature_zero():
    trellis = Trellis.of([np.array([[1, 1], [1, 3]])])
    assert_allclose(marginals(np.zeros((2, 2)), trellis, 1.0, 1e-12), [[2 / 3, 1 / 3]] * 2)


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", (
    [], [np.ones(3)], [np.ones((2, 0))], [np.ones((2, 3)), np.ones((2, 3))], [np.array([[1.0, np.nan]])],
    [np.array([[1.0, np.inf]])]), ids=("none", "a vector", "no choices", "no chain", "nan", "inf"))
def test_a_chain_that_is_none(chain):
    refused("SearchError", Trellis.of, chain)


@pytest.mark.parametrize("index", ([0, 0], [0, 0, 2], [0, -1, 0], 0))
def test_choices_that_do_not_exist_have_no_cost(index):
    trellis = Trellis.of([np.ones((2, 3)), np.ones((3, 2))])
    refused("SearchError", trellis.cost, np.array(index))


@pytest.mark.parametrize("search", (lambda u, t: viterbi(u, t, 0), lambda u, t: best_under(u, t, 99),
                                    lambda u, t: exact_under(u, t, 99), lambda u, t: marginals(u, t, 0, 1)))
def test_scores_that_are_no_scores(search):
    trellis = Trellis.of([np.ones((2, 3)), np.ones((3, 2))])
    for value in (np.nan, np.inf, -np.inf):
        unary = np.zeros((3, 3))
        unary[1, 2] = value
        with pytest.raises(SlimnbError, match=f"SearchError: unary score {value} of channel unit 1, choice 2"):
            search(unary, trellis)
    for shape in ((3, 2), (2, 3), (3,), (1, 3, 3)):
        with pytest.raises(SlimnbError, match="SearchError: unary scores"):
            search(np.zeros(shape), trellis)


@pytest.mark.parametrize("multiplier", (-1e-9, np.nan, np.inf, [[1.0]]))
def test_multipliers_are_finite_and_not_negative(multiplier):
    trellis = Trellis.of([np.ones((2, 3))])
    for search in (viterbi, lambda *given: marginals(*given, 1.0)):
        with pytest.raises(SlimnbError, match="SearchError: multipliers"):
            search(np.zeros((2, 3)), trellis, multiplier)


@pytest.mark.parametrize("temperature", (0, -1, np.nan, np.inf))
def test_temperatures_are_positive(temperature):
    with pytest.raises(SlimnbError, match="ParameterError: temperature"):
        marginals(np.zeros((2, 3)), Trellis.of([np.ones((2, 3))]), 0, temperature)
