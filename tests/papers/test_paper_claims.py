"""The ledger and the papers' claims agree, field by field; each paper's claims stand beside its recipes."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from slimnb import plugins
from slimnb.book import chapter
from slimnb.book.claims import Claim, by_id, ledger_frame, overview
from slimnb.errors import BookError, ParameterError
from slimnb.papers.platforms import claims as platforms
from slimnb.papers.pss_net import claims as pss_net

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = by_id(claim for paper in plugins.OURS["papers"] for claim in plugins.claims(paper).values())
NOT_AT_SMALL = {f"{claim}-{net}" for net in ("vgg", "mobilenet-v2") for claim in (
    "sp-net-beats-s-net", "sp-net-beats-individual", "pruned-counts-beat-uniform-counts")}  # nets of scale full


def as_row(claim: Claim) -> dict:
    """The ledger's columns that are the claim's."""
    return {"claim": claim.id, "chapter": claim.chapter, "kind": claim.kind, "metric": claim.metric, "unit": claim.unit,
            "arms": " / ".join(claim.arms), "statement": claim.statement, "source": claim.source,
            "seeds_planned": claim.seeds, "delta": claim.delta,
            "paper_value": float("nan") if claim.paper_value is None else float(f"{claim.paper_value:.6g}")}


def test_every_row_of_the_ledger_is_a_papers_claim_and_the_other_way_round():
    ledger = ledger_frame(ROOT / "data/claims.csv").query("scale == 'small'").set_index("claim", drop=False)
    assert set(CLAIMS) == set(ledger.index) | NOT_AT_SMALL and not NOT_AT_SMALL & set(ledger.index)
    ours = pd.DataFrame([as_row(CLAIMS[id]) for id in ledger.index])
    theirs = ledger[ours.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(theirs, ours, check_dtype=False, check_exact=True)


def test_a_claim_stands_under_its_own_id_and_names_a_chapter():
    assert all(id == claim.id and (ROOT / f"notebooks/{claim.chapter}.py").is_file() for id, claim in CLAIMS.items())
    less = {claim.id for claim in CLAIMS.values() if claim.direction == "less"}
    of_errors = {claim.id for claim in CLAIMS.values() if claim.metric == "error"}
    assert less == of_errors | {"slice-faster-than-mask", "sorted-faster-than-unsorted", "sorted-near-s-net",
                                "pss-fine-tuning-idle", "epsilon-keeps-norm"}, "the ledger does not hold directions"


def test_no_chapter_makes_a_claim_but_the_toy():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        made = ["".join(cell["source"]) for cell in cells if " Claim(" in "".join(cell["source"])]
        assert all(text.startswith('toy = Claim("toy"') for text in made), path.stem


def test_leads_are_those_of_the_printed_tables():
    assert platforms.CLAIMS["ows-beats-slim"].paper_value == 1.51  # mean of 1.47, 1.52, 1.52, 1.57, 1.45, 1.55
    assert platforms.CLAIMS["ows-shares-units"].paper_value == 0.5  # 8 and 1 of 14
    assert pss_net.CLAIMS["pss-f-beats-mutualnet"].paper_value == pytest.approx(2.9, abs=0.05)
    with pytest.raises(AttributeError, match="no attribute 'CLAIM'"):
        _ = pss_net.CLAIM
    with pytest.raises(AttributeError, match="no attribute 'CLAIM'"):
        _ = platforms.CLAIM


def test_without_the_printed_numbers_the_modules_can_be_imported_and_claims_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, "find_root", lambda: tmp_path)
    for module in (platforms, pss_net):
        module.claims.cache_clear()
        with pytest.raises(BookError, match="there is no such file") as caught:
            _ = module.CLAIMS
        assert len(str(caught.value)) <= 240
    names = "platforms", "pss_net"
    code = "from slimnb.book import chapter; chapter.find_root = None\n" + "".join(
        f"import slimnb.papers.{name}.claims\n" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_paper_without_claims_has_none_and_an_id_is_given_once(monkeypatch):
    monkeypatch.setitem(plugins.OURS["papers"], "seventh", "slimnb.search.pareto")
    assert plugins.claims("seventh") == {}
    monkeypatch.setitem(plugins.OURS["papers"], "seventh", "slimnb.book.chapter")  # its claims.py has no CLAIMS
    assert plugins.claims("seventh") == {}
    with pytest.raises(ParameterError, match="two claims have it"):
        by_id([CLAIMS["one-bn-fails"], CLAIMS["one-bn-fails"]])


def test_an_overview_says_when_each_claim_holds():
    head, _, first, second = overview([CLAIMS["slice-faster-than-mask"], CLAIMS["macs-platforms"]]).data.splitlines()
    assert head == "| id | claim | holds if | seeds | source |"
    assert first == ("| `slice-faster-than-mask` | A sliced ResNet-50 is faster than a masked one | ms: slice below "
                     "mask by at least 0 ms | 5 | DS-Net, Table 1: 7.9 against 12.4 ms (paper: 4.5 ms) |")
    assert second.endswith("| macs: slimnb equal to paper within 0 M | 1 | Multi-platform, Table 1, MobileNetV1 |")
