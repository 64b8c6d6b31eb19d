"""What chapter 04 claims: that pools and structures pay, and at what cost. Leads in Table 1 are the printed ones."""

from __future__ import annotations

from functools import cache
from typing import Any

from slimnb.book.chapter import literature
from slimnb.book.claims import Claim, by_id
from slimnb.papers.pss_net import tables
from slimnb.papers.pss_net.recipes import CHAPTER

IN_TABLE_1 = {"pss-f-beats-mutualnet": "MACs", "pss-mutualnet-beats-us-net": "MACs",
              "pss-c-beats-mutualnet": "CPU latency", "pss-m-equals-f": "MACs", "pss-m-equals-c": "CPU latency"}
"""The resource within whose budgets a claim on Table 1 compares its arms, by id."""


def compared(name: str, statement: str, where: str, arms: tuple[str, str], delta: float = 0.5,
             kind: str = "superiority", **more: Any) -> Claim:
    """A claim on the accuracies of two arms, in points; `where` is in the paper, "" for a claim of ours."""
    return Claim(f"pss-{name}", CHAPTER, statement, f"PSS-Net, {where}" if where else "ours", "top1", kind, arms,
                 delta, **more)


def within(name: str, statement: str, arms: tuple[str, str], *rule: Any) -> Claim:
    """A claim of Table 1, MobileNetV1, with the paper's lead, a mean over three budgets."""
    lead = tables.paper_lead(literature("pss_net"), IN_TABLE_1[f"pss-{name}"], arms)
    return compared(name, statement, "Table 1", arms, *rule, paper_value=lead)


def of_table_1() -> list[Claim]:
    """The claims of `IN_TABLE_1`."""
    return [
        within("f-beats-mutualnet", "PSS-F beats MutualNet within MACs", ("PSS-F", "MutualNet")),
        within("mutualnet-beats-us-net", "MutualNet beats US-Net within MACs", ("MutualNet", "US-Net")),
        within("c-beats-mutualnet", "PSS-C beats MutualNet within CPU latency", ("PSS-C", "MutualNet")),
        within("m-equals-f", "PSS-M is as good as PSS-F", ("PSS-M", "PSS-F"), 1, "equivalence"),
        within("m-equals-c", "PSS-M is as good as PSS-C", ("PSS-M", "PSS-C"), 1, "equivalence")]


FIGURE_1 = [
    compared("given-widths-win", "Given non-uniform widths beat uniform ones of equal MACs", "Figure 1, left",
             ("Given widths", "Given uniform widths"), 0.25),
    compared("reduced-space-wins", "MutualNet is better in a reduced space", "Figure 1, right",
             ("MutualNet, reduced", "MutualNet"), 0.25)]

PARTS = [
    compared("pools-beat-random", "Pools beat random structures", "", ("PSS-F", "Random"), 0.25),
    compared("structures-beat-uniform-pools", "Pools of structures beat pools of uniform widths", "",
             ("PSS-F", "Uniform pools"), 0.25),
    compared("exact-beats-eq4", "Exact sampling beats Eq. 4", "", ("Exact sampling", "PSS-F"), 0.25)]
"""Which part pays?"""

CHOICES = [
    compared("lower-bound-wins", "PSS-Net beats MutualNet at both ends from .25x", "Table 4",
             ("PSS-F from 0.25x", "MutualNet from 0.25x"), 0.25, paper_value=2.85),
    compared("five-beat-one", "Calibrating five subnets beats one", "Table 5", ("k = 5", "k = 1"), 0, paper_value=0.4),
    compared("twenty-equal-five", "Calibrating twenty subnets adds nothing to five", "Table 5", ("k = 20", "k = 5"),
             0.1, "equivalence", paper_value=0.03),
    compared("fine-tuning-idle", "Fine-tuning does not help", "Table 6", ("Fine-tuned", "In the supernet"), 0,
             direction="less", paper_value=-0.33),
    Claim("pss-recency", CHAPTER, "In a pool, structures that came late have the higher metrics", "ours",
          "rank correlation", "superiority", ("observed", "none"), 0.2, unit="rank correlation")]
"""A lower bound, how many to calibrate, fine-tuning, what a pool holds."""

EXACT = [
    Claim("pss-ends-macs", CHAPTER, "MACs of the largest and smallest subnets are as printed",
          "PSS-Net, Tables 1 and 4", "macs", "exact", ("MACs", "printed"), delta=1, seeds=1, unit="million"),
    Claim("pss-eq4-trials", CHAPTER, "Trial and error takes about 10^6 tries, Eq. 4 about 10 (median bucket)",
          "PSS-Net, Prioritized Subnet Sampling", "trials", "exact", ("log10 of tries", "6 and 1"), delta=1, seeds=1,
          unit="orders of magnitude")]
"""Decided before anything is trained."""

COSTS = [
    Claim("pss-latency-rmse", CHAPTER, "Sums of layer times predict a subnet's latency",
          "PSS-Net, Figure 4: .5 us, of 69 to 241", "rmse", "quantity", ("RMSE", "range"), 0.3, seeds=1,
          paper_value=0.3, unit="% of the range"),
    Claim("pss-training-cost", CHAPTER, "A step of PSS-Net costs at most three of the largest net",
          "PSS-Net, Table 3", "macs", "exact", ("MACs above 3", "none"), 0, seeds=1, unit="of the largest"),
    Claim("pss-bn-share", CHAPTER, "A subnet's batch norms are about 2 % of the parameters",
          "PSS-Net, Table 3", "bytes", "exact", ("MobileNetV1, V2", "2"), 0.5, seeds=1, unit="%"),
    Claim("pss-switcher-budget", CHAPTER, "The switcher never spends more than its budget", "ours",
          "macs", "exact", ("MACs above the budget", "none"), 0, seeds=1, unit="MACs")]


@cache
def claims() -> dict[str, Claim]:
    """All of them. Raises BookError outside a clone of the repository, which has the printed numbers."""
    return by_id([*EXACT, *of_table_1(), *FIGURE_1, *PARTS, *CHOICES, *COSTS])


def __getattr__(name: str) -> Any:
    """CLAIMS is made when it is asked for, so that the module can be imported without the printed numbers."""
    if name == "CLAIMS":
        return claims()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
