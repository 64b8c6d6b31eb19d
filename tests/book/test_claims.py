"""Verdicts by hand, against Student's t and on null data; the ledger, in which claims settle each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slimnb.book.claims import Claim, judge, ledger_frame, overview, paired, record, settle, tally
from slimnb.errors import SlimnbError

CLAIM = Claim(id="01.us-beats-s", chapter="01", statement="US-Net beats S-Net at 0.25x",
              source="US-Net, Table 2", metric="top1", kind="superiority", arms=("US-Net", "S-Net"),
              margin=0.5, paper_value=1.2, family="primary")
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
        refused(lambda arms=arms: replace(CLAIM, arms=arms), "arms")
    refused(lambda: judge(CLAIM, BASE, BASE, scale=cell), "leading")
    refused(lambda: judge(CLAIM, BASE, BASE, scale="small", runs=["a", cell]), "leading")
    refused(lambda: record(tmp_path / "claims.csv", replace(judge(CLAIM, [], scale="small"), scale=cell)), "leading")
    assert not (tmp_path / "claims.csv").exists()


# ---- one claim: Student's t ----


@pytest.mark.parametrize("direction", ["greater", "less"])
def test_one_claim_alone_is_students_t(direction):
    rng = np.random.default_rng(0)
    claim = replace(CLAIM, margin=0, direction=direction)
    for _ in range(50):
        d = rng.normal(0.5, 1, 5)
        found, test = judge(claim, BASE + d, BASE, scale="small"), stats.ttest_1samp(d, 0)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-4)
        assert found.p == pytest.approx(test.pvalue, rel=1e-4)
        side = "holds" if (d.mean() > 0) == (direction == "greater") else "contradicted"
        assert found.verdict == (side if test.pvalue <= 0.05 else "inconclusive")
        assert (found.verdict != "inconclusive") == (found.low > 0 or found.high < 0), "the interval says the same"


def test_interval_by_hand():
    d = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # mean 3, sd 1.5811, t(.975, 4) = 2.7764
    half = 2.77645 * 1.58114 / 5**0.5
    found = judge(CLAIM, BASE + d, BASE, scale="small")
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-5)
    constant = judge(CLAIM, BASE + 0.6, BASE, scale="small")
    assert (constant.sd, constant.low, constant.high) == pytest.approx((0, 0.6, 0.6))


def test_detectable_effect_is_detected_four_times_in_five():
    # The formula approximates a non-central t, so the simulated power may miss 80 % a little.
    rng = np.random.default_rng(0)
    claim, zero = replace(CLAIM, margin=0, seeds=10), np.zeros(10)
    draws = rng.normal(0, 1, (400, 10))
    effect = np.median([judge(claim, d, zero, scale="small").detectable for d in draws])
    shown = np.mean([judge(claim, d + effect, zero, scale="small").verdict == "holds" for d in draws])
    assert 0.7 < shown < 0.9


# ---- verdicts ----


@pytest.mark.parametrize(("d", "verdict"), [
    (1.0 + SPREAD, "holds"),
    (0.3 + SPREAD, "contradicted"),  # better, but its interval stays below the margin
    (-1.0 + SPREAD, "contradicted"),
    (0.0 + SPREAD * 20, "inconclusive"),
    (0.45 + SPREAD, "inconclusive"),  # clearly above 0, the mean below the margin
    (np.array([0.1, 0.1, 0.1, 0.1, 10.0]), "inconclusive"),  # all above 0, but the interval contains it
    (np.array([1.0, 1.1, 0.9, 1.0, -0.01]), "holds"),
])
def test_superiority(d, verdict):
    assert judge(CLAIM, BASE + d, BASE, scale="small").verdict == verdict


def test_less_is_better_is_judged_in_its_direction_and_shown_as_a_minus_b():
    claim = replace(CLAIM, direction="less")
    found = judge(claim, BASE - 1 + SPREAD, BASE, scale="small")
    assert found.verdict == "holds" and found.mean == pytest.approx(-1) and found.low < -1 < found.high < 0
    assert "A - B = -1 points" in found.headline
    assert judge(claim, BASE + 1 + SPREAD, BASE, scale="small").verdict == "contradicted"


@pytest.mark.parametrize(("ours", "theirs", "margin", "kind", "verdict"), [
    ([30.1, 30.9, 29.8, 31.2, 30.0], [98.4, 99.0, 98.9, 97.1, 100.2], 0, "superiority", "holds"),  # 68 ms faster
    ([1.07, 1.068, 1.072, 1.071, 1.069], [1.0] * 5, 0.1, "equivalence", "holds"),
    ([1.41, 1.405, 1.415, 1.41, 1.41], [1.5] * 5, 0, "superiority", "holds"),
    ([98.4, 99.0, 98.9, 97.1, 100.2], [30.1, 30.9, 29.8, 31.2, 30.0], 0, "superiority", "contradicted")])
def test_a_timing_gets_the_verdict_that_a_reader_would_give(ours, theirs, margin, kind, verdict):
    claim = replace(CLAIM, metric="ms", family="timing", direction="less", kind=kind, margin=margin, unit="ms")
    found = judge(claim, ours, theirs, scale="small")
    assert found.verdict == verdict and found.headline.endswith("5 repeats")


@pytest.mark.parametrize(("d", "verdict"), [
    (0.1 + SPREAD, "holds"), (1.0 + SPREAD, "contradicted"), (-1.0 + SPREAD, "contradicted"),
    (0.3 + SPREAD * 4, "inconclusive"),
])
def test_equivalence(d, verdict):
    assert judge(replace(CLAIM, kind="equivalence"), BASE + d, BASE, scale="small").verdict == verdict


def test_ordering_counts_pairs_in_order():
    claim = replace(CLAIM, kind="ordering", arms=("US-Net", "MACs"), margin=0.6, paper_value=1.0)
    macs = np.array([1.0, 2.0, 3.0, 4.0])
    rising = macs * 5 + BASE[:, None]
    found = judge(claim, rising, macs, scale="small")
    assert (found.verdict, found.mean) == ("holds", 1.0)
    assert judge(claim, -rising, macs, scale="small").verdict == "contradicted"
    swapped = rising[:, [1, 0, 2, 3]]  # one of six pairs discordant: tau = (5 - 1) / 6
    assert judge(claim, swapped, macs, scale="small").mean == pytest.approx(4 / 6)
    assert judge(claim, np.ones((5, 4)), macs, scale="small").mean == 0.0


def test_exact_needs_no_seeds():
    claim = replace(CLAIM, kind="exact", margin=0.05, unit="M MACs", paper_value=325.4)
    assert judge(claim, 325.42, scale="smoke").verdict == "holds"
    assert judge(claim, 325.5, scale="smoke").verdict == "contradicted"
    assert judge(claim, [1, 2], [1, 3], scale="smoke").verdict == "contradicted"
    assert "p =" not in judge(claim, 325.42, scale="smoke")._repr_html_()


def test_quantity_is_judged_at_full_scale_only():
    claim = replace(CLAIM, kind="quantity", paper_value=60.0, margin=1.0)
    assert judge(claim, 60.1 + SPREAD, scale="small").verdict == "estimate only"
    assert judge(claim, 60.1 + SPREAD, scale="full").verdict == "holds"
    assert judge(claim, 65.0 + SPREAD, scale="full").verdict == "contradicted"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fewer_seeds_than_planned_are_an_estimate(n):
    found = judge(CLAIM, BASE[:n] + 9, BASE[:n], scale="smoke")
    assert found.verdict == found.alone == "estimate only" and np.isnan(found.p)
    assert judge(CLAIM, [], [], scale="smoke").verdict == "not run"


def test_seeds_beyond_the_plan_are_not_looked_at():
    claim = replace(CLAIM, family="secondary", seeds=3)
    five, three = (judge(claim, (BASE + 1 + SPREAD)[:n], BASE[:n], scale="small") for n in (5, 3))
    assert five == three and five.n == 3


def test_a_verdict_in_one_line():
    assert str(judge(CLAIM, [61.0], [60.0], scale="smoke")) == (
        "01.us-beats-s: estimate only at smoke: A - B = +1 points, 1 of 5 seeds")
    assert judge(CLAIM, [], [], scale="full").headline == "not run at full"
    assert judge(CLAIM, BASE + SPREAD * 20, BASE, scale="small").headline == (
        "inconclusive at small: A - B = +0 points, 95% interval -3.93 to +3.93, 5 seeds, which could have shown "
        "5.3 points")
    assert judge(replace(CLAIM, kind="quantity"), BASE, scale="small").headline.startswith(
        "estimate only at small, a quantity is judged at full scale only: A - B = +59")
    assert "nan" not in judge(CLAIM, [61.0], [60.0], scale="smoke")._repr_html_()


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_same_arm_never_holds_and_a_crippled_arm_loses(margin):
    claim = replace(CLAIM, margin=margin)
    assert judge(claim, BASE, BASE, scale="small").verdict != "holds"
    crippled = np.full(5, 10.0)  # chance level
    assert judge(claim, crippled, BASE, scale="small").verdict == "contradicted"
    assert judge(claim, BASE, crippled, scale="small").verdict == "holds"


@pytest.mark.parametrize(("kind", "effect", "margin", "n"), [
    ("superiority", 0.0, 0.0, 5), ("superiority", 0.0, 0.0, 8), ("equivalence", 0.8, 0.8, 5)])
def test_null_data_hold_at_most_at_the_nominal_rate(kind, effect, margin, n):
    """The worst null of each kind: no effect at all, or one exactly at the margin."""
    claim = replace(CLAIM, kind=kind, margin=margin, seeds=n)
    rng = np.random.default_rng(1)
    a, b = rng.normal(60 + effect, 1, (1000, n)), rng.normal(60, 1, (1000, n))
    rate = np.mean([judge(claim, x, y, scale="small").verdict == "holds" for x, y in zip(a, b, strict=True)])
    assert rate <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5  # two standard errors of a rate of 5 %
    assert rate > 0  # the rule can say "holds" at all


@pytest.mark.parametrize(("a", "b", "text"), [
    (BASE, BASE[:4], "paired"), ([np.nan] * 5, BASE, "diverged"), (np.ones((5, 2)), np.ones((5, 2)), "shape"),
    (["x"] * 5, BASE, "numbers")])
def test_bad_arms_are_refused(a, b, text):
    refused(lambda: judge(CLAIM, a, b, scale="small"), "ParameterError", "01.us-beats-s", text)


@pytest.mark.parametrize("change", [
    {"id": "../x"}, {"kind": "better"}, {"direction": "up"}, {"margin": -1.0}, {"margin": float("nan")},
    {"margin": "1"}, {"margin": True}, {"statement": "=HYPERLINK(1)"}, {"statement": 3}, {"arms": ("A",)},
    {"arms": "AB"}, {"family": "main"}, {"paper_value": "2"}, {"seeds": 2.5}, {"where": 3}])
def test_bad_claims_are_refused(change):
    refused(lambda: replace(CLAIM, **change), "ParameterError", next(iter(change)))


@pytest.mark.parametrize("change", [
    {"seeds": 1}, {"seeds": 4}, {"family": "secondary", "seeds": 2}, {"family": "timing", "seeds": -1},
    {"kind": "equivalence", "margin": 0}, {"kind": "quantity", "margin": 0}, {"kind": "ordering", "margin": 1.5},
    {"kind": "quantity", "paper_value": None}])
def test_a_claim_that_no_result_could_decide_is_refused(change):
    refused(lambda: replace(CLAIM, **change), "ParameterError", "Claim.", "must be")


@pytest.mark.parametrize("kind", ["superiority", "equivalence", "ordering", "quantity"])
@pytest.mark.parametrize("family", ["primary", "secondary", "timing", "check"])
def test_every_claim_that_is_accepted_can_hold_and_be_contradicted(kind, family):
    claim = replace(CLAIM, kind=kind, family=family, seeds=0, margin=0.5, paper_value=10.0)
    n = claim.seeds
    order, b = np.arange(4.0), np.full(n, 10.0)
    good, bad = (np.tile(order, (n, 1)), np.tile(-order, (n, 1))) if kind == "ordering" else (
        (b + 5, b - 5) if kind == "superiority" else (b, b + 5))
    words = [judge(claim, a, order if kind == "ordering" else b, scale="full").verdict for a in (good, bad)]
    assert words == ["holds", "contradicted"]


def test_paired_takes_seeds_that_both_arms_have():
    frame = pd.DataFrame({"arm": ["S-Net", "US-Net", "US-Net", "S-Net", "US-Net", "other"], "mult": 0.25,
                          "seed": [1, 1, 0, 0, 2, 0], "top1": [10.0, 11.0, 21.0, 20.0, 31.0, 99.0]})
    a, b = paired(frame, CLAIM, mult=0.25)
    assert a.tolist() == [21.0, 11.0] and b.tolist() == [20.0, 10.0]
    assert paired(frame, CLAIM, mult=0.5)[0].size == 0
    refused(lambda: paired(pd.concat([frame, frame]), CLAIM), "ParameterError", "mult=0.25")
    wrong = replace(CLAIM, where={"width": 1})
    refused(lambda: paired(frame, wrong), "ParameterError", "01.us-beats-s", "'width'", "mult")


def test_a_claims_where_narrows_its_rows():
    frame = pd.DataFrame({"arm": ["S-Net", "US-Net"] * 3 + ["other"], "mult": [0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 0.1],
                          "net": "vgg", "seed": 0, "top1": [10.0, 11, 20, 22, 30, 33, 0]})
    for where, pair in (({"mult": "smallest"}, (11, 10)), ({"mult": "largest", "net": "vgg"}, (33, 30)),
                        ({"mult": 0.5}, (22, 20))):
        assert tuple(x.item() for x in paired(frame, replace(CLAIM, where=where))) == pair
    assert paired(frame, replace(CLAIM, where={"net": "resnet", "mult": "smallest"}))[0].size == 0


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


def test_holm_is_over_a_family_of_a_chapter_at_a_scale(tmp_path):
    path = tmp_path / "claims.csv"
    d = np.array([0.6, 1.9, 0.7, 1.9, 0.4])  # p = .028 by itself
    kept = [judge(replace(CLAIM, **change), BASE + d, BASE, scale=scale) for change, scale in (
        ({}, "small"), ({"id": "02.x", "chapter": "02"}, "small"),
        ({"id": "01.x", "family": "timing", "metric": "ms"}, "small"), ({"id": "01.y", "metric": "loss"}, "full"))]
    assert [v.verdict for v in record(path, kept)] == ["holds"] * 4
    rival = replace(CLAIM, id="01.z", metric="top5")  # another metric: no common prior, but the same family
    assert record(path, judge(rival, BASE[:1], BASE[:1], scale="small"))[0].verdict == "estimate only"
    rows = ledger_frame(path).set_index(["claim", "scale"])
    now = rows.loc["01.us-beats-s", "small"]
    assert (now["verdict"], now["alone"]) == ("inconclusive", "holds")
    assert now["p_holm"] == pytest.approx(2 * now["p"], rel=1e-5)
    assert rows["verdict"].drop("01.z").value_counts().to_dict() == {"holds": 3, "inconclusive": 1}
    again = record(path, kept[0])[0]
    assert "holds before Holm" in again.headline and again.detectable > kept[0].detectable


@pytest.mark.parametrize("sign", [1, -1])
def test_contradicted_passes_the_same_correction_as_holds(sign):
    d = sign * np.array([0.6, 1.9, 0.7, 1.9, 0.4])
    rows = [judge(replace(CLAIM, id=f"c{k}", margin=0, metric=f"m{k}"), BASE + d, BASE, scale="small").row()
            for k in range(2)]
    assert [row["verdict"] for row in settle(rows[:1])] == ["holds" if sign > 0 else "contradicted"]
    assert [row["verdict"] for row in settle(rows)] == ["inconclusive"] * 2


def test_claims_on_one_metric_share_their_scatter():
    """Three seeds that scatter as the others' do hold by their chapter's variances, and not by their own."""
    rng = np.random.default_rng(3)
    claim = replace(CLAIM, family="secondary", seeds=3, margin=0)
    d = [1.0 + rng.normal(0, 0.2, 3) for _ in range(8)] + [np.array([0.6, 1.0, 1.5])]
    verdicts = [judge(replace(claim, id=f"c{k}"), x, np.zeros(3), scale="small") for k, x in enumerate(d)]
    rows = settle(v.row() for v in verdicts)
    assert [row["verdict"] for row in rows] == ["holds"] * 9
    assert verdicts[-1].verdict == "inconclusive" and verdicts[-1].low < 0 < rows[-1]["low"]
    elsewhere = settle([v.row() | {"metric": f"m{k}"} for k, v in enumerate(verdicts)])
    assert elsewhere[-1]["verdict"] == "inconclusive"


def test_checks_of_ours_are_counted_apart():
    rows = [judge(replace(CLAIM, id=f"c{k}", kind="exact", family=family), 1.0, b, scale="small").row()
            for k, (family, b) in enumerate([("secondary", 1.0), ("secondary", 9.0), ("check", 1.0)])]
    rows.append(judge(CLAIM, [], scale="small").row())
    assert tally(pd.DataFrame(rows)) == "3 claims: 1 holds, 1 contradicted, 1 not run; 1 checks of ours: 1 holds"


def test_an_overview_says_when_each_claim_holds():
    head, _, row = overview([replace(CLAIM, direction="less")]).data.splitlines()
    assert head == "| id | claim | holds if | family | seeds | source |"
    assert row == ("| `01.us-beats-s` | US-Net beats S-Net at 0.25x | top1: US-Net below S-Net by at least 0.5 points "
                   "| primary | 5 | US-Net, Table 2 (paper: 1.2 points) |")


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
