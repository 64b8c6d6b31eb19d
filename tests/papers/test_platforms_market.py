"""The Chinese restaurant process against its formula and brute force, and the weights of Table 1."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimnb.cost.table import CostTable
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.platforms.market import (
    WEIGHTS,
    check_weights,
    chinese_restaurant_process,
    expected,
    expected_shares,
    market,
    seating,
    table_count_probabilities,
)

S_OF, L_OF = (0.3, 0.15), (0.15, 0.15)  # (alpha, theta) that the paper drew S and L with
REGIMES = [S_OF, L_OF, (0, 1.0), (0.5, -0.3), (0.5, 0), (-0.1, 0.3), (-2, 4), (-0.7, 0.7)]
PLATFORMS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
every_regime = pytest.mark.parametrize(("alpha", "theta"), REGIMES)


def plans(customers: int, alpha: Fraction, theta: Fraction) -> dict[tuple[int, ...], Fraction]:
    """Exact probability of every list of table sizes in order of opening, by following every customer."""
    now = {(1,): Fraction(1)}
    for seated in range(1, customers):
        after: Counter = Counter()
        for sizes, chance in now.items():
            options = [(size - alpha) for size in sizes] + [theta + alpha * len(sizes)]
            for table, weight in enumerate(options):
                grown = list(sizes) + [0] * (table == len(sizes))
                grown[table] += 1
                after[tuple(grown)] += chance * weight / (seated + theta)
        now = {sizes: chance for sizes, chance in after.items() if chance}
    return now


def exact(value: float) -> Fraction:
    return Fraction(str(value))


# -- seating ---------------------------------------------------------------------------------------------


def test_seating_is_the_papers_formula():
    found = seating([62, 26, 9], *S_OF)
    assert found == pytest.approx([61.7 / 97.15, 25.7 / 97.15, 8.7 / 97.15, (0.15 + 0.3 * 3) / 97.15])
    assert seating([], 0.5, 0).tolist() == seating([], 0.5, -0.3).tolist() == [1.0]
    assert seating([3, 1], -0.1, 0.2)[-1] == 0  # both tables there are


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(0, 19), st.integers(1, 100))
def test_seating_probabilities_sum_to_one_exactly(sizes, alpha, theta):
    alpha = Fraction(alpha, 20)
    found = seating(sizes, alpha, Fraction(theta, 20) - alpha)
    assert sum(found) == 1 and all(p > 0 for p in found) and isinstance(found[0], Fraction)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 30), st.integers(0, 3))
def test_a_bounded_number_of_tables(sizes, alpha, free):
    alpha = Fraction(-alpha, 10)
    found = seating(sizes, alpha, -(len(sizes) + free) * alpha)
    assert sum(found) == 1 and (found[-1] == 0) == (free == 0)


@every_regime
def test_realisations_follow_the_seating_probabilities(alpha, theta):
    truth = plans(5, exact(alpha), exact(theta))
    drawn = chinese_restaurant_process(5, alpha, theta, np.random.default_rng(0), 40_000)
    assert (drawn.sum(1) == 5).all() and ((drawn == 0) | (drawn.cumsum(1) > 0)).all()
    counted = Counter(tuple(size for size in sizes if size) for sizes in drawn.tolist())
    assert set(counted) <= set(truth)
    for sizes, chance in truth.items():
        spread = math.sqrt(chance * (1 - chance) / 40_000)
        assert abs(counted[sizes] / 40_000 - chance) <= 5 * spread + 1e-9, sizes


def test_one_realisation_and_its_seed():
    one = chinese_restaurant_process(100, *S_OF, np.random.default_rng(3))
    again = chinese_restaurant_process(100, *S_OF, np.random.default_rng(3), realisations=1)
    assert one.ndim == 1 and one.min() >= 1 and one.sum() == 100
    assert again.shape == (1, len(one)) and again[0].tolist() == one.tolist()
    assert chinese_restaurant_process(1, *S_OF, np.random.default_rng(0)).tolist() == [1]


def test_the_last_table_is_never_passed():
    drawn = chinese_restaurant_process(60, -0.1, 0.3, np.random.default_rng(0), 2000)
    assert drawn.shape == (2000, 3) and (drawn.sum(1) == 60).all()


# -- exact probabilities and means -----------------------------------------------------------------------


def test_five_tables_of_a_hundred_customers():
    found = [table_count_probabilities(100, *p)[5] for p in (S_OF, L_OF)]
    assert [round(p, 2) for p in found] == [0.11, 0.09]


@every_regime
def test_table_counts_and_sorted_shares_against_every_seating_plan(alpha, theta):
    truth = plans(8, exact(alpha), exact(theta))
    counts = table_count_probabilities(8, alpha, theta)
    for tables in range(9):
        chance = sum(p for sizes, p in truth.items() if len(sizes) == tables)
        assert counts[tables] == pytest.approx(float(chance), abs=1e-14)
        of_these = {sizes: p / chance for sizes, p in truth.items() if len(sizes) == tables}
        if of_these:
            assert expected_shares(8, alpha, theta, 9, given=tables) == pytest.approx(
                ranked(of_these), abs=1e-12)
    assert expected_shares(8, alpha, theta, 9) == pytest.approx(ranked(truth), abs=1e-12)


def ranked(truth: dict[tuple[int, ...], Fraction]) -> list[float]:
    """Mean share of the largest table, the second largest, ..., of eight customers."""
    return [float(sum(p * (sorted(sizes, reverse=True) + [0] * 9)[k] for sizes, p in truth.items())) / 8
            for k in range(9)]


def test_sorted_shares_of_a_hundred_customers():
    for p in (S_OF, L_OF):
        shares = expected_shares(100, *p, 40)
        assert shares.sum() == pytest.approx(1, abs=1e-6) and (np.diff(shares) < 0).all()
        drawn = np.sort(chinese_restaurant_process(100, *p, np.random.default_rng(0), 4000))[:, ::-1] / 100
        error = drawn.std(0)[:4] / math.sqrt(4000)
        assert (np.abs(drawn.mean(0) - shares[:drawn.shape[1]])[:4] < 5 * error).all()


def test_many_customers_for_few_tables_of_equal_chance():
    # alpha to minus infinity at theta = -5 alpha: every customer picks one of five tables, all alike
    drawn = np.sort(np.random.default_rng(0).multinomial(60, [0.2] * 5, size=20_000))[:, ::-1] / 60
    found = expected_shares(60, -1e7, 5e7, 5)
    assert (np.abs(found - drawn.mean(0)) < 5 * drawn.std(0) / math.sqrt(20_000) + 1e-6).all()


def test_the_first_table_keeps_its_closed_form_mean():
    # size - alpha grows by the factor (t + theta + 1) / (t + theta): the stick-breaking mean for large t
    alpha, theta = S_OF
    first = chinese_restaurant_process(100, alpha, theta, np.random.default_rng(1), 20_000)[:, 0]
    mean = alpha + (1 - alpha) * (100 + theta) / (1 + theta)
    assert abs(first.mean() - mean) < 5 * first.std() / math.sqrt(20_000)


# -- weights ---------------------------------------------------------------------------------------------


def test_table_1():
    rows = {"S": ".25 .005 .010 .045 .130 .310 .25", "RS": ".25 .310 .130 .045 .010 .005 .25",
            "U": ".25 .1 .1 .1 .1 .1 .25", "M": ".25 .025 .0625 .325 .0625 .025 .25",
            "L": ".25 .005 .010 .020 .040 .425 .25", "RL": ".25 .425 .040 .020 .010 .005 .25"}
    assert {name: tuple(map(float, row.split())) for name, row in rows.items()} == WEIGHTS
    for row in WEIGHTS.values():
        assert sum(map(exact, row)) == 1 and check_weights(row, 7).tolist() == list(row)


def test_expected_macs_per_request():
    with torch.device("meta"):
        net = MobileNetV1(100, 32, 1.0)
    widths = [net.uniform(mult).widths for mult in PLATFORMS]
    macs = CostTable.macs(net, net.space(PLATFORMS)).predict(np.array(widths)) / 1e6
    found = {name: round(expected(row, macs), 1) for name, row in WEIGHTS.items()}
    assert found == {"S": 28.1, "RS": 17.6, "U": 22.6, "M": 22.1, "L": 29.4, "RL": 16.9}


def arrival_probability(tables: list[int], p: tuple[float, float]) -> float:
    """Probability that customers sit down at these tables, one after the other."""
    sizes, chance = [], 1.0
    for table in tables:
        chance *= seating(sizes, *p)[table]
        sizes += [0] * (table == len(sizes))
        sizes[table] += 1
    return chance


@pytest.mark.parametrize(("name", "p", "sizes", "one_in"),
                         [("S", S_OF, (62, 26, 9, 2, 1), 7366), ("L", L_OF, (85, 8, 4, 2, 1), 888)])
def test_s_and_l_are_100_customers_at_five_tables_halved(name, p, sizes, one_in):
    assert [exact(weight) * 200 for weight in WEIGHTS[name][1:-1]] == list(reversed(sizes))
    in_turn = [table for table, size in enumerate(sizes) for _ in range(size)]
    first_five_apart = list(range(5)) + [table for table in range(5) for _ in range(sizes[table] - 1)]
    chance = arrival_probability(in_turn, p)
    assert arrival_probability(first_five_apart, p) == pytest.approx(chance)  # exchangeable
    ways = math.factorial(100) / math.prod(map(math.factorial, sizes))
    assert table_count_probabilities(100, *p)[5] / (chance * ways) == pytest.approx(one_in, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from((S_OF, L_OF)))
def test_a_market_looks_like_s_and_l(seed, p):
    row = market(*p, np.random.default_rng(seed))
    inner = [exact(weight) * 200 for weight in row[1:-1]]
    assert row[0] == row[-1] == 0.25 and len(row) == 7 and sum(map(exact, row)) == 1
    assert inner == sorted(inner) and all(n.denominator == 1 and n >= 1 for n in inner)
    assert row == market(*p, np.random.default_rng(seed))


def test_a_market_of_other_sizes():
    row = market(-1, 3, np.random.default_rng(0), customers=10, tables=3)
    assert len(row) == 5 and sum(row) == pytest.approx(1)


def test_markets_have_the_law_of_the_process_given_five_tables():
    rng = np.random.default_rng(0)
    peaks = 2 * np.array([market(*S_OF, rng)[5] for _ in range(200)])
    mean = expected_shares(100, *S_OF, 1, given=5)[0]
    assert abs(peaks.mean() - mean) < 5 * peaks.std() / math.sqrt(200)


def test_a_product_that_is_not_quite_its_decimal_is_taken_for_it():
    assert 3 * 0.1 != 0.3
    assert seating([3, 2], -0.1, 3 * 0.1) == pytest.approx(seating([3, 2], -0.1, 0.3), abs=1e-12)


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "theta"), [
    (1, 1), (1.2, 0.5), (0.3, -0.3), (0.3, -0.5), (0, 0), (0, -1), (-0.1, 0.25), (-0.1, 0), (-0.1, -0.1),
    (-0.1, 0.05), (math.nan, 1), (0.3, math.inf), (-math.inf, 1)])
def test_other_parameters_are_refused(alpha, theta):
    rng = np.random.default_rng(0)
    calls = (lambda: chinese_restaurant_process(9, alpha, theta, rng), lambda: seating([2], alpha, theta),
             lambda: table_count_probabilities(9, alpha, theta), lambda: expected_shares(9, alpha, theta, 2),
             lambda: market(alpha, theta, rng))
    for call in calls:
        with pytest.raises(SlimnbError, match=r": alpha = .*0 <= alpha < 1|must be a finite number") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("call", "words"), [
    (lambda rng: chinese_restaurant_process(0, *S_OF, rng), "ParameterError: customers = 0"),
    (lambda rng: chinese_restaurant_process(2.5, *S_OF, rng), "ParameterError: customers = 2.5"),
    (lambda rng: chinese_restaurant_process(9, *S_OF, rng, realisations=0), "ParameterError: realisations = 0"),
    (lambda rng: seating([3, 0], *S_OF), "ParameterError: sizes\\[1\\] = 0"),
    (lambda rng: seating([2.5], *S_OF), "ParameterError: sizes\\[0\\] = 2.5"),
    (lambda rng: seating([3, 1, 1], -0.1, 0.2), "ParameterError: 3 tables"),
    (lambda rng: expected_shares(9, *S_OF, 0), "ParameterError: tables = 0"),
    (lambda rng: expected_shares(9, *S_OF, 2, given=10), "ParameterError: 10 tables of 9 customers"),
    (lambda rng: market(*S_OF, rng, customers=4), "ParameterError: 5 tables of 4 customers"),
    (lambda rng: market(*S_OF, rng, tables=60), "ParameterError: 60 tables of 100 customers"),
    (lambda rng: market(-0.1, 0.3, rng), "ParameterError: 5 tables"),
    (lambda rng: check_weights((0.5, 0.5), 7), "ParameterError: weights of shape"),
    (lambda rng: check_weights((0.5, 0.6), 2), "ParameterError: weights = "),
    (lambda rng: check_weights((1.5, -0.5), 2), "ParameterError: weights = "),
    (lambda rng: check_weights((math.nan, 0.5), 2), "ParameterError: weights = "),
    (lambda rng: check_weights((0.5, 0.5 + 1e-8), 2), "ParameterError: weights = "),
    (lambda rng: expected((0.5, 0.5), (1, 2, 3)), "ParameterError: weights of shape"),
])
def test_bad_input_gets_its_line(call, words):
    with pytest.raises(SlimnbError, match=words) as caught:
        call(np.random.default_rng(0))
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240
