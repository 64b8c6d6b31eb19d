"""What chapter 03 claims: that searched widths and markets pay. Table 2's margins are taken from the printed table."""

from __future__ import annotations

from functools import cache
from typing import Any

from slimnb.book.chapter import literature
from slimnb.book.claims import Claim, by_id
from slimnb.papers.platforms import tables
from slimnb.papers.platforms.market import WEIGHTS
from slimnb.papers.platforms.recipes import CHAPTER, problem

IN_TABLE_2 = {
    "ows-beats-slim": tuple(WEIGHTS), "ows-u-beats-w": tuple(WEIGHTS), "aows-w-beats-u": tuple(WEIGHTS),
    "slim-w-beats-u": ("S", "M", "L", "RL"), "aows-beats-ows": ("S", "RS", "L"), "ows-beats-aows": ("U", "M", "RL")}
"""The markets that a claim on Table 2 is about, by id. Where it names rows, the paper's result chose them."""


def ahead(id: str, statement: str, arms: tuple[str, str], delta: float) -> Claim:
    """The claim that one arm is ahead of another over its markets, with the paper's margin there."""
    paper = tables.with_best(tables.paper_table_2(literature("platforms")), "top1")
    a, b = tables.over_markets(paper, arms, IN_TABLE_2[id])
    return Claim(id, CHAPTER, statement, "Multi-platform, Table 2", "top1", "superiority", arms, delta,
                 paper_value=round((a - b).item(), 2))


def of_table_2() -> list[Claim]:
    """The claims on weighted accuracy in points, of `IN_TABLE_2`."""
    return [
        ahead("ows-beats-slim", "OWS-U beats Slim-U, mean over markets", ("OWS-U", "Slim-U"), 0.5),
        ahead("ows-u-beats-w", "OWS is better retrained uniformly", ("OWS-U", "OWS-W"), 0),
        ahead("aows-w-beats-u", "AOWS is better retrained by weight", ("AOWS-W", "AOWS-U"), 0),
        ahead("slim-w-beats-u", "Slim is better retrained by weight, but in RS", ("Slim-W", "Slim-U"), 0),
        ahead("aows-beats-ows", "The best AOWS beats the best OWS in S, RS and L", ("best AOWS", "best OWS"), 0),
        ahead("ows-beats-aows", "The best OWS beats the best AOWS in U, M and RL", ("best OWS", "best AOWS"), 0)]


def of_widths() -> list[Claim]:
    """The claims on which widths a search finds; the paper's uniform subnets are those of its own net."""
    in_paper = tables.shared_units_in_paper(literature("platforms"))
    uniform = tables.shared_units(*problem("full", 100).uniform[5:])
    return [
        Claim("ows-shares-units", CHAPTER, "OWS gives #6 and #7 more units of equal width",
              "Multi-platform, section 4.3", "units", "superiority", ("OWS", "Original"), 0.1,
              paper_value=(in_paper - uniform) / 14, unit="of the units"),
        Claim("ows-wide-early", CHAPTER, "OWS's #7 is wider in its first half than in its second",
              "Multi-platform, Figure 2", "mult", "superiority", ("first half", "second half"), 0.1,
              unit="of full width"),
        Claim("aows-wide-late", CHAPTER, "RS-AOWS is wider than OWS in the last two layers (#6, #7)",
              "Multi-platform, Figure 3", "mult", "superiority", ("RS-AOWS", "OWS"), 0.05, unit="of full width")]


GAINS = [
    Claim("ows-gains-together", CHAPTER, "OWS gains more in one network than in stand-alone nets",
          "Multi-platform, Tables 2 and 3", "top1", "superiority", ("joint", "alone"), 0.25, paper_value=0.67),
    Claim("ows-beats-random", CHAPTER, "OWS beats random widths within the same budgets in market U",
          "ours", "top1", "superiority", ("OWS-U", "Random-U"), 0.5),
    Claim("forecast-matters", CHAPTER, "Retraining for the wrong market costs accuracy",
          "ours", "top1", "superiority", ("right", "wrong"), 0.25)]
"""Accuracy, in points, beyond Table 2."""

EXACT = [
    Claim("crp-rows-usual", CHAPTER, "Every share of S and L lies between the 5 % and 95 % quantiles of its rank",
          "ours", "share", "exact", ("ranks outside", "none"), delta=0, seeds=1, unit="of 5 ranks"),
    Claim("market-weights-sum", CHAPTER, "Each row of Table 1 sums to 1", "Multi-platform, Table 1",
          "share", "exact", ("rows", "1"), delta=1e-9, seeds=1, unit="of the market"),
    Claim("ows-spends-budget", CHAPTER, "Searched and original subnets have the same MACs",
          "Multi-platform, section 4.1", "macs", "exact", ("OWS", "original"), 1, seeds=1, unit="%")]
"""Decided without a training of ours."""


@cache
def claims() -> dict[str, Claim]:
    """All of them. Raises BookError outside a clone of the repository, which has the printed numbers."""
    return by_id([*EXACT, *of_table_2(), *GAINS, *of_widths()])


def __getattr__(name: str) -> Any:
    """CLAIMS is made when it is asked for, so that the module can be imported without the printed numbers."""
    if name == "CLAIMS":
        return claims()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
