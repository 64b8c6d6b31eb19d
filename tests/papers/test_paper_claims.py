"""The ledger and the papers' claims agree, field by field; each paper's claims stand beside its recipes."""

import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from slimnb import plugins
from slimnb.book.chapter import literature
from slimnb.book.claims import Claim, ledger_frame
from slimnb.book.registered import claims_of
from slimnb.papers.platforms import tables as platforms
from slimnb.papers.platforms.recipes import problem
from slimnb.papers.pss_net import tables as pss_net
from slimnb.papers.slimmable.tables import PRINTED

ROOT = Path(__file__).resolve().parents[2]
BY_PAPER = {paper: claims_of(paper) for paper in plugins.OURS["papers"]}
CLAIMS = {id: claim for claims in BY_PAPER.values() for id, claim in claims.items()}
NOT_AT_SMALL = {f"{claim}-{net}" for net in ("vgg", "mobilenet-v2") for claim in (
    "sp-net-beats-s-net", "sp-net-beats-individual", "pruned-counts-beat-uniform-counts")}  # nets of scale full


def as_row(claim: Claim) -> dict:
    """The ledger's columns that are the claim's."""
    return {"claim": claim.id, "chapter": claim.chapter, "family": claim.family, "direction": claim.direction,
            "kind": claim.kind, "metric": claim.metric, "unit": claim.unit,
            "arms": " / ".join(claim.arms), "statement": claim.statement, "source": claim.source,
            "seeds_planned": claim.seeds, "margin": claim.margin,
            "paper_value": float("nan") if claim.paper_value is None else float(f"{claim.paper_value:.6g}")}


def test_every_row_of_the_ledger_is_a_papers_claim_and_the_other_way_round():
    ledger = ledger_frame(ROOT / "data/claims.csv").query("scale == 'small'").set_index("claim", drop=False)
    assert set(CLAIMS) == set(ledger.index) | NOT_AT_SMALL and not NOT_AT_SMALL & set(ledger.index)
    ours = pd.DataFrame([as_row(CLAIMS[id]) for id in ledger.index])
    theirs = ledger[ours.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(theirs, ours, check_dtype=False, check_exact=True)


def test_what_was_run_has_a_verdict_or_is_an_estimate():
    ledger = ledger_frame(ROOT / "data/claims.csv")
    assert set(ledger.query("kind != 'exact' and seeds_run < seeds_planned")["verdict"]) <= {"estimate only", "not run"}
    timings = ledger.query("family == 'timing' and kind != 'exact'").set_index("claim")["verdict"]
    assert len(timings) == 4 and set(timings) == {"holds"}, "68 ms with an interval of 66 to 70 is a difference"


def test_each_paper_has_its_claims_and_no_id_is_given_twice():
    assert {paper: len(claims) for paper, claims in BY_PAPER.items()} == {
        "slimmable": 16, "sp_net": 22, "platforms": 15, "pss_net": 21, "deps": 17, "ds_net": 20}
    assert len(CLAIMS) == sum(map(len, BY_PAPER.values()))
    assert all((ROOT / f"notebooks/{claim.chapter}.py").is_file() for claim in CLAIMS.values())
    primary = Counter(claim.chapter for claim in CLAIMS.values() if claim.family == "primary")
    assert len(primary) == 6 and set(primary.values()) <= {1, 2, 3}, "each chapter that trains names one to three"
    assert all(claim.source != "ours" for claim in CLAIMS.values() if claim.family == "primary")


def test_arms_that_claims_name_are_those_that_recipes_train():
    for paper in BY_PAPER:
        text = (ROOT / f"slimnb/papers/{paper}/claims.toml").read_text(encoding="utf-8")
        records = (json.loads(path.read_text()) for path in (ROOT / "data/results" / paper).glob("*.json"))
        ran = {record["recipe"]["arm"] for record in records}
        registered = tomllib.loads(text)
        assert set(registered["trained"]) - {"Drawn anew"} <= ran, "that one is of scale full"
        assert not set(registered["derived"]) & ran
        used = {arm for claim in BY_PAPER[paper].values() if claim.kind != "exact" for arm in claim.arms}
        assert used == {*registered["trained"], *registered["derived"]}, "no arm without a claim"


def test_the_printed_macs_are_the_claims_of_chapter_00():
    of_00 = {claim.id: claim.source for claim in CLAIMS.values() if claim.chapter == "00_notation"}
    assert of_00 == {row.claim: row.source for row in PRINTED}


def test_no_chapter_makes_a_claim_but_the_toy():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        made = ["".join(cell["source"]) for cell in cells if " Claim(" in "".join(cell["source"])]
        assert all(text.startswith('toy = Claim("toy"') for text in made), path.stem


def test_margins_over_table_2_are_those_of_the_printed_rows():
    printed = platforms.with_best(platforms.paper_table_2(literature("platforms")), "top1")
    of_table = [claim for claim in BY_PAPER["platforms"].values() if claim.where]
    for claim in of_table:
        a, b = platforms.over_markets(printed, claim.arms, claim.where["markets"])
        assert claim.paper_value == round((a - b).item(), 2), claim.id
    assert len(of_table) == 6 and CLAIMS["ows-beats-slim"].paper_value == 1.51  # of 1.47 1.52 1.52 1.57 1.45 1.55


def test_the_share_of_equal_units_is_that_of_section_4_3():
    ours = pd.read_csv(literature("platforms")).query("row == '#6 = #7'")["value"].item()
    uniform = platforms.shared_units(*problem("full", 100).uniform[5:])
    assert (ours, uniform) == (8, 1) and CLAIMS["ows-shares-units"].paper_value == (ours - uniform) / 14


def test_leads_in_table_1_are_means_over_three_budgets():
    rows = pss_net.paper(literature("pss_net"), "1")
    in_table = [claim for claim in BY_PAPER["pss_net"].values() if claim.where]
    for claim in in_table:
        prefix = {"MACs": "MAC", "CPU latency": "CPU"}[claim.where["resource"]]
        means = rows[rows["row"].str.startswith(prefix)].groupby("arm")["top1"].mean()
        assert claim.paper_value == round(means[claim.arms[0]] - means[claim.arms[1]], 2), claim.id
    assert len(in_table) == 5


def test_a_papers_number_has_the_sign_of_a_minus_b():
    for claim in CLAIMS.values():
        if claim.kind == "superiority" and claim.paper_value is not None:
            assert np.sign(claim.paper_value) == (-1 if claim.direction == "less" else 1), claim.id


def test_a_paper_without_claims_has_none(monkeypatch):
    monkeypatch.setitem(plugins.OURS["papers"], "seventh", "slimnb.search.pareto")
    assert claims_of("seventh") == {}
