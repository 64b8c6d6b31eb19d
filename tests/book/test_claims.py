"""Verdicts against brute force, by hand and on thousands of null data sets; the ledger as a file."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from slimnb.book import claims
from slimnb.book.claims import Claim, holm, interval, judge, ledger_frame, paired, record, sign_flip, tost
from slimnb.errors import SlimnbError

CLAIM = Claim(id="01.us-beats-s", chapter="01", statement="US-Net beats S-Net at 0.25x",
              source="US-Net, Table 2", metric="top1", kind="superiority", arms=("US-Net", "S-Net"),
              delta=0.5, paper_value=1.2)
SPREAD = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
BASE = np.array([60.0, 61.0, 59.5, 60.5, 60.2])


def refused(call, *texts):
    with pytest.raises(SlimnbError) as caught:
        call()
    line = str(caught.value)
    assert len(line) <= 240 and "\n" not in line
    assert all(text in line for text in texts), line


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", " =1", "a\t=1", "a\n=1", "a\r=1"])
def test_no_formula_reaches_the_ledger(tmp_path, cell):
    for field in ("chapter", "statement", "source", "metric", "unit"):
        refused(lambda field=field: replace(CLAIM, **{field: cell}), field)
    for arms in ((cell, "b"), ("a", cell)):
        refused(lambda arms=arms: replace(CLAIM, arms=arms), "Claim.arms")
    refused(lambda: judge(CLAIM, BASE, BASE, scale=cell), "leading")
    refused(lambda: judge(CLAIM, BASE, BASE, scale="small", runs=["a", cell]), "leading")
    refused(lambda: record(tmp_path / "claims.csv", replace(judge(CLAIM, [], scale="small"), scale=cell)), "leading")
    assert not (tmp_path / "claims.csv").exists()


# ---- the statistics ----


@pytest.mark.parametrize("n", [2, 5, 8])
def test_sign_flip_equals_enumeration(n):
    rng = np.random.default_rng(n)
    for d in (rng.normal(0.4, 1, n), np.ones(n), np.zeros(n), np.round(rng.normal(0, 1, n), 1)):
        flips = np.array(list(itertools.product([1, -1], repeat=n)))
        expected = np.mean(flips @ d >= d.sum() - 1e-9)
        assert sign_flip(d) == pytest.approx(expected)


def test_five_seeds_are_the_least_that_can_reach_five_percent():
    assert [sign_flip(np.ones(n)) <= claims.ALPHA for n in (3, 4, 5)] == [False, False, True]


def test_interval_by_hand():
    d = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # mean 3, sd 1.5811, t(.975, 4) = 2.7764
    half = 2.77645 * 1.58114 / 5**0.5
    assert interval(d) == pytest.approx((3 - half, 3 + half), rel=1e-5)
    assert interval(np.full(5, 0.1)) == pytest.approx((0.1, 0.1))
    assert np.isnan(interval(np.ones(1))).all()


def test_tost_agrees_with_its_interval():
    # TOST at 5 % rejects exactly when the 90 % interval lies within the margin.
    from scipy import stats

    rng = np.random.default_rng(0)
    for _ in range(50):
        d = rng.normal(0.3, 0.5, 6)
        low, high = stats.ttest_1samp(d, 0).confidence_interval(0.9)
        assert (tost(d, 0.7) <= 0.05) == (low > -0.7 and high < 0.7)
    assert (tost(np.zeros(5), 0.0), tost(np.ones(5), 0.5)) == (0.0, 1.0)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 gives .04 .06 .06 .04; monotone: .04 .06 .06 .06.
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def test_detectable_effect_is_detected_four_times_in_five():
    # The formula approximates a non-central t, so the simulated power may miss 80 % a little.
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (2000, 10))
    effect = np.median([claims.detectable(d) for d in draws])
    shown = np.mean([interval(d + effect)[0] > 0 for d in draws])
    assert 0.7 < shown < 0.9


# ---- verdicts ----


@pytest.mark.parametrize(("d", "verdict"), [
    (1.0 + SPREAD, "holds"),
    (0.3 + SPREAD, "contradicted"),  # better, but its interval stays below delta
    (-1.0 + SPREAD, "contradicted"),
    (0.0 + SPREAD * 20, "inconclusive"),
    (0.45 + SPREAD, "inconclusive"),  # clearly above 0, the mean below delta
    (np.array([0.1, 0.1, 0.1, 0.1, 10.0]), "inconclusive"),  # p = 1/32, but the interval contains 0
    (np.array([1.0, 1.1, 0.9, 1.0, -0.01]), "inconclusive"),  # the interval is above 0, but p = 2/32
])
def test_superiority(d, verdict):
    assert judge(CLAIM, BASE + d, BASE, scale="small").verdict == verdict


def test_less_is_better_is_the_mirror():
    claim = replace(CLAIM, direction="less")
    assert judge(claim, BASE - 1 + SPREAD, BASE, scale="small").verdict == "holds"
    assert judge(claim, BASE + 1 + SPREAD, BASE, scale="small").verdict == "contradicted"


@pytest.mark.parametrize(("d", "verdict"), [
    (0.1 + SPREAD, "holds"), (1.0 + SPREAD, "contradicted"), (-1.0 + SPREAD, "contradicted"),
    (0.3 + SPREAD * 4, "inconclusive"),
])
def test_equivalence(d, verdict):
    assert judge(replace(CLAIM, kind="equivalence"), BASE + d, BASE, scale="small").verdict == verdict


def test_ordering_counts_pairs_in_order():
    claim = replace(CLAIM, kind="ordering", arms=("US-Net", "MACs"), delta=0.6, paper_value=1.0)
    macs = np.array([1.0, 2.0, 3.0, 4.0])
    rising = macs * 5 + BASE[:, None]
    found = judge(claim, rising, macs, scale="small")
    assert (found.verdict, found.mean) == ("holds", 1.0)
    assert judge(claim, -rising, macs, scale="small").verdict == "contradicted"
    swapped = rising[:, [1, 0, 2, 3]]  # one of six pairs discordant: tau = (5 - 1) / 6
    assert judge(claim, swapped, macs, scale="small").mean == pytest.approx(4 / 6)
    assert judge(claim, np.ones((5, 4)), macs, scale="small").mean == 0.0


def test_exact_needs_no_seeds():
    claim = replace(CLAIM, kind="exact", delta=0.05, unit="M MACs", paper_value=325.4)
    assert judge(claim, 325.42, scale="smoke").verdict == "holds"
    assert judge(claim, 325.5, scale="smoke").verdict == "contradicted"
    assert judge(claim, [1, 2], [1, 3], scale="smoke").verdict == "contradicted"
    assert "p =" not in judge(claim, 325.42, scale="smoke")._repr_html_()


def test_quantity_is_judged_at_full_scale_only():
    claim = replace(CLAIM, kind="quantity", paper_value=60.0, delta=1.0)
    assert judge(claim, 60.1 + SPREAD, scale="small").verdict == "not run"
    assert judge(claim, 60.1 + SPREAD, scale="full").verdict == "holds"
    assert judge(claim, 65.0 + SPREAD, scale="full").verdict == "contradicted"


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_fewer_seeds_than_planned_decide_nothing(n):
    found = judge(CLAIM, BASE[:n] + 9, BASE[:n], scale="smoke")
    assert found.verdict == "not run" and np.isnan(found.p)


@pytest.mark.parametrize("kind", ["superiority", "equivalence"])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_fewer_than_five_seeds_never_decide_even_when_planned(kind, n):
    claim = replace(CLAIM, seeds=n, kind=kind, delta=1.0)
    for shift in (9.0, 0.0):
        assert judge(claim, BASE[:n] + shift, BASE[:n], scale="small").verdict == "inconclusive"


def test_one_seed_reads_well():
    assert str(judge(CLAIM, [61.0], [60.0], scale="smoke")) == (
        "01.us-beats-s: not run at smoke with the planned seeds (1 of 5): observed +1 points")
    assert judge(CLAIM, [], [], scale="full").headline == "not run at full"
    single = judge(replace(CLAIM, seeds=1), [61.0], [60.0], scale="smoke")
    assert single.headline == "inconclusive at smoke: observed +1 points"
    assert "nan" not in single._repr_html_()


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_the_same_arm_never_holds_and_a_crippled_arm_loses(delta):
    claim = replace(CLAIM, delta=delta)
    assert judge(claim, BASE, BASE, scale="small").verdict != "holds"
    crippled = np.full(5, 10.0)  # chance level
    assert judge(claim, crippled, BASE, scale="small").verdict == "contradicted"
    assert judge(claim, BASE, crippled, scale="small").verdict == "holds"


@pytest.mark.parametrize(("kind", "effect", "delta", "n"), [
    ("superiority", 0.0, 0.0, 5), ("superiority", 0.0, 0.0, 8), ("equivalence", 0.8, 0.8, 5)])
def test_null_data_hold_at_most_at_the_nominal_rate(kind, effect, delta, n):
    """The worst null of each kind: no effect at all, or one exactly at the margin."""
    claim = replace(CLAIM, kind=kind, delta=delta, seeds=n)
    rng = np.random.default_rng(1)
    a, b = rng.normal(60 + effect, 1, (1000, n)), rng.normal(60, 1, (1000, n))
    rate = np.mean([judge(claim, x, y, scale="small").verdict == "holds" for x, y in zip(a, b, strict=True)])
    assert rate <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5  # two standard errors of a rate of 5 %
    assert rate > 0  # the rule can say "holds" at all


@pytest.mark.parametrize(("a", "b", "text"), [
    (BASE, BASE[:4], "paired"), ([np.nan] * 5, BASE, "diverged"), (np.ones((5, 2)), np.ones((5, 2)), "shape"),
    (np.ones(6), np.ones(6), "6 seeds, 5 planned"), (["x"] * 5, BASE, "numbers")])
def test_bad_arms_are_refused(a, b, text):
    refused(lambda: judge(CLAIM, a, b, scale="small"), "ParameterError", "01.us-beats-s", text)


@pytest.mark.parametrize("change", [
    {"id": "../x"}, {"kind": "better"}, {"direction": "up"}, {"delta": -1.0}, {"delta": float("nan")},
    {"seeds": 0}, {"seeds": 99}, {"statement": "=HYPERLINK(1)"}])
def test_bad_claims_are_refused(change):
    refused(lambda: replace(CLAIM, **change), "ParameterError", next(iter(change)))


def test_paired_takes_seeds_that_both_arms_have():
    frame = pd.DataFrame({"arm": ["S-Net", "US-Net", "US-Net", "S-Net", "US-Net", "other"], "mult": 0.25,
                          "seed": [1, 1, 0, 0, 2, 0], "top1": [10.0, 11.0, 21.0, 20.0, 31.0, 99.0]})
    a, b = paired(frame, CLAIM, mult=0.25)
    assert a.tolist() == [21.0, 11.0] and b.tolist() == [20.0, 10.0]
    assert paired(frame, CLAIM, mult=0.5)[0].size == 0
    refused(lambda: paired(pd.concat([frame, frame]), CLAIM), "ParameterError", "mult=0.25")


def test_the_card_escapes_what_it_shows():
    claim = replace(CLAIM, statement="<script>alert(1)</script>", unit='"><img>')
    card = judge(claim, BASE + 1 + SPREAD, BASE, scale="<b>")._repr_html_()
    assert "<script" not in card and "<img" not in card and "<b>" not in card and "&lt;script&gt;" in card


# ---- the ledger ----


def test_ledger_replaces_rows_and_writes_the_same_bytes_in_any_order(tmp_path):
    one = judge(CLAIM, BASE + 1 + SPREAD, BASE, scale="small", runs=("run-a", "run-b"))
    two = judge(replace(CLAIM, id="00.macs", kind="exact"), 1.0, 1.0, scale="small")
    record(tmp_path / "x.csv", [one, two])
    for verdict in (two, replace(one, mean=-5.0), one):
        record(tmp_path / "y.csv", verdict)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    frame = ledger_frame(tmp_path / "x.csv")
    assert frame["claim"].tolist() == ["00.macs", "01.us-beats-s"]
    assert frame["runs"].tolist() == ["", "run-a run-b"]
    assert frame["mean"].tolist() == pytest.approx([0.0, 1.0]) and frame["p"].isna().tolist() == [True, False]


def test_ledger_corrects_for_all_claims_of_a_scale_and_only_of_that(tmp_path):
    path = tmp_path / "claims.csv"
    strong = judge(CLAIM, BASE + 1 + SPREAD, BASE, scale="small")
    assert record(path, strong)[0].verdict == "holds"  # 1/32 alone
    other = replace(CLAIM, id="02.other")
    assert record(path, judge(other, BASE + 1 + SPREAD, BASE, scale="full"))[0].verdict == "holds"
    late = record(path, judge(other, BASE + 1 + SPREAD, BASE, scale="small"))[0]
    assert (late.verdict, late.alone, late.p_holm) == ("inconclusive", "holds", 2 / 32)
    assert "holds before Holm" in late.headline
    rows = ledger_frame(path).set_index(["claim", "scale"])["verdict"]
    assert rows.to_dict() == {("01.us-beats-s", "small"): "inconclusive", ("02.other", "full"): "holds",
                              ("02.other", "small"): "inconclusive"}


def test_ledger_keeps_every_row_of_writers_at_the_same_time(tmp_path):
    path = tmp_path / "claims.csv"
    verdicts = [judge(replace(CLAIM, id=f"c{k}"), [], scale="full") for k in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda v: record(path, v), verdicts))
    assert sorted(ledger_frame(path)["claim"]) == sorted(v.claim.id for v in verdicts)


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path):
    path = tmp_path / "claims.csv"
    assert ledger_frame(path).empty
    path.write_text("a,b\n1,2\n")
    refused(lambda: record(path, judge(CLAIM, [], scale="full")), "StoreError", "claims.csv")
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("change", [
    lambda text: b"", lambda text: b"\n", lambda text: b"\xff\xfe\x00" * 99,
    lambda text: text.replace(b"claim,", b"c,", 1),
    lambda text: text + b"x,small,holds\n", lambda text: text[:-9], lambda text: text + text[text.index(b"\n") + 1:],
    lambda text: text.replace(b"holds,holds", b"hold,holds"), lambda text: text.replace(b",5,5,", b",5,five,"),
    lambda text: text + b'"', lambda text: text.replace(b"01.us", b"\x00", 1)[:200]])
def test_a_damaged_ledger_is_one_line_and_is_left_alone(tmp_path, change):
    path = tmp_path / "claims.csv"
    record(path, judge(CLAIM, BASE + 1 + SPREAD, BASE, scale="small"))
    path.write_bytes(damage := change(path.read_bytes()))
    for call in (lambda: ledger_frame(path), lambda: record(path, judge(CLAIM, [], scale="full"))):
        refused(call, "StoreError", "claims.csv", "Restore it")
    assert path.read_bytes() == damage
    path.unlink()
    path.mkdir()
    refused(lambda: ledger_frame(path), "StoreError", "claims.csv")
