"""The moderated t against Smyth's equations solved by hand, against truths that are known, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from slimnb.book.claims import Claim, judge, settle
from slimnb.book.moderated import Prior, holm, inverse_trigamma, quantile, two_sided

VAR, DF = [0.2, 1.1, 0.6, 9.0, 0.05], [4, 4, 4, 2, 2]
D0, S0 = 1.4103429907, 0.357819458147  # with 40 digits, by mpmath


def digamma(x):
    """By its recurrence, then its asymptotic series."""
    if x < 40:
        return digamma(x + 1) - 1 / x
    return math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4)


def trigamma(x):
    if x < 40:
        return trigamma(x + 1) + 1 / x**2
    return 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3) - 1 / (30 * x**5)


def bisected(x):
    """The y with trigamma(y) = x."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if trigamma(middle) > x else (low, middle)
    return low


def by_hand(var, df):
    """d0 and s0 squared by the equations of section 6.2."""
    e = [math.log(s) - digamma(d / 2) + math.log(d / 2) for s, d in zip(var, df, strict=True)]
    mean = sum(e) / len(e)
    right = sum((x - mean) ** 2 for x in e) / (len(e) - 1) - sum(trigamma(d / 2) for d in df) / len(df)
    half = bisected(right)
    return 2 * half, math.exp(mean + digamma(half) - math.log(half))


def test_the_prior_of_a_worked_example():
    prior = Prior.of(VAR, DF)
    assert (prior.df, prior.var) == pytest.approx(by_hand(VAR, DF), rel=1e-8)
    assert (prior.df, prior.var) == pytest.approx((D0, S0), rel=1e-6)
    # A contrast of sd .5 over 5 seeds: s~2 = (d0 s0^2 + 4 * .25) / (d0 + 4), its t has d0 + 4 degrees of freedom.
    error, df = prior.error(0.5, 5)
    assert error == pytest.approx(math.sqrt((D0 * S0 + 4 * 0.25) / (D0 + 4) / 5), rel=1e-6)
    assert df == pytest.approx(D0 + 4, rel=1e-6)
    assert two_sided(1.0, error, df) == pytest.approx(2 * stats.t.sf(1 / error, df), rel=1e-9)
    assert quantile(df, 0.975) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


@pytest.mark.parametrize("x", [1e-5, 0.003, 0.2, 1.0, 30.0, 1e5])
def test_inverse_trigamma(x):
    assert inverse_trigamma(x) == pytest.approx(bisected(x), rel=1e-7)


def test_a_known_prior_is_found_again():
    rng = np.random.default_rng(0)
    true = 6 * 2.0 / rng.chisquare(6, 20_000)  # d0 = 6, s0 squared = 2
    prior = Prior.of(true * rng.chisquare(4, 20_000) / 4, np.full(20_000, 4))
    assert (prior.df, prior.var) == pytest.approx((6, 2), rel=0.05)


def test_edges_of_the_prior():
    assert Prior.of([], []) == Prior.of([1.0], [4]) == Prior.of([0.0, 1.0], [4, 4]) == Prior()
    assert Prior().error(2.0, 4) == (1.0, 3)  # nothing to learn from: Student's
    alike = Prior.of(np.full(5, 0.3), np.full(5, 2))
    assert alike.df == np.inf and alike.error(9.0, 3)[1] == 10  # no more than all variances have together
    assert alike.error(9.0, 3)[0] == alike.error(0.0, 3)[0] == pytest.approx(math.sqrt(alike.var / 3))
    assert (two_sided(0.0, 0.0, 4), two_sided(0.1, 0.0, 4)) == (1.0, 0.0)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 gives .04 .06 .06 .04; monotone: .04 .06 .06 .06.
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def contrasts(rng, claims, seeds, spread, effect=0.0):
    """Differences (claims, seeds) from one reference arm, half of them with an effect in typical sd; sds vary."""
    sd = np.exp(rng.normal(0, spread, (claims, 1)))
    d = sd * (rng.normal(size=(claims, seeds)) - rng.normal(size=seeds)) / 2**0.5
    return d + effect * (np.arange(claims) < claims // 2)[:, None]


def rates(seeds, spread, effect, chapters=400, claims=12):
    """Chapters with a false verdict and the share of effects found, by Student's t and by the moderated one."""
    rng, out = np.random.default_rng(1), []
    for _ in range(chapters):
        d = contrasts(rng, claims, seeds, spread, effect)
        mean, sd = d.mean(1), d.std(1, ddof=1)
        # as published: the table is of Smyth's t, without our bound on its degrees of freedom
        prior = replace(Prior.of(sd**2, np.full(claims, seeds - 1)), most=np.inf)
        for one in (Prior(), prior):
            p = [two_sided(abs(m), *one.error(s, seeds)) for m, s in zip(mean, sd, strict=True)]
            shown = holm(np.array(p)) <= 0.05
            out.append((shown[claims // 2:].any(), shown[:claims // 2].mean()))
    return np.mean(np.reshape(out, (chapters, 2, 2)), axis=0)


TABLE = {  # seeds, spread: false verdicts by t, moderated; found at 2 sd by t, moderated
    (3, 0): (0.02, 0.06, 0.06, 0.61), (3, 0.3): (0.03, 0.10, 0.07, 0.56), (3, 0.6): (0.03, 0.08, 0.09, 0.42),
    (5, 0): (0.03, 0.06, 0.38, 0.91), (5, 0.3): (0.04, 0.08, 0.41, 0.83), (5, 0.6): (0.03, 0.06, 0.46, 0.67),
    (8, 0): (0.04, 0.05, 0.92, 1.00), (8, 0.3): (0.04, 0.06, 0.84, 0.96), (8, 0.6): (0.04, 0.06, 0.75, 0.83)}


@pytest.mark.parametrize("seeds, spread", TABLE)
def test_the_simulated_table_of_the_plan(seeds, spread):
    """Its errors are two simulations' standard errors, of 400 chapters here."""
    (false_t, found_t), (false, found) = rates(seeds, spread, 2)
    expected = TABLE[seeds, spread]
    assert (false_t, false) == pytest.approx(expected[:2], abs=0.035)
    assert (found_t, found) == pytest.approx(expected[2:], abs=0.05)


CLAIM = Claim("c0", "01", "A beats B", "ours", "top1", ("A", "B"), margin=0)  # B is as good: each verdict is false


@pytest.mark.parametrize("claims, seeds", [(2, 3), (3, 3), (3, 5)])
def test_a_metric_of_two_or_three_claims_has_few_false_verdicts(claims, seeds):
    """Without the bound on degrees of freedom they are 10 to 14 % of chapters in which nothing is true."""
    rng, false = np.random.default_rng(2), 0
    for _ in range(600):
        rows = [judge(replace(CLAIM, id=f"c{k}", seeds=seeds), d, np.zeros(seeds), scale="small").row()
                for k, d in enumerate(contrasts(rng, claims, seeds, 0.3))]
        false += any(row["verdict"] != "inconclusive" for row in settle(rows))
    assert 0 < false / 600 <= 0.09
