"""What chapter 05 claims: that a half-trained net shrinks better, gently, and at less cost."""

from __future__ import annotations

from typing import Any

from slimnb.book.claims import Claim, by_id
from slimnb.papers.deps.recipes import CHAPTER


def ahead(id: str, statement: str, metric: str, arms: tuple[str, str], where: str, paper_value: float | None = None,
          delta: float = 0.5, **more: Any) -> Claim:
    """The claim that one arm is ahead of another."""
    return Claim(id, CHAPTER, statement, f"DepS, {where}", metric, "superiority", arms, delta,
                 paper_value=paper_value, **more)


EXACT = [
    Claim("deps-cost-arithmetic", CHAPTER, "OFA, BigNAS and DepS cost 10, 6 and 4 units",
          "DepS, Figure 1", "passes", "exact", ("computed", "printed"), 0, seeds=1, unit="Tn"),
    Claim("deps-plotted-macs", CHAPTER, "Figure 5's points are six uniform subnets",
          "DepS, Figure 5", "macs", "exact", ("traced", "plotted"), 0.06, seeds=1, unit="M MACs"),
    Claim("deps-mean-pareto", CHAPTER, "Mean Pareto accuracy is the area under Figure 5d up to 566 M",
          "DepS, Table 2", "mean_pareto", "exact", ("area", "printed"), 0.03, seeds=1),
    Claim("deps-gpu-hours", CHAPTER, "Epochs times minutes are the GPU hours of Table 2",
          "DepS, Table 2", "hours", "exact", ("computed", "printed"), 5, seeds=1, unit="hours")]
"""Arithmetic on the paper's own numbers."""

SUPERNETS = [
    ahead("deps-small-beats-ofa", "DepS's smallest beats OFA's", "smallest", ("DepS", "OFA"), "Table 2", 2.0),
    ahead("deps-small-beats-bignas", "DepS's smallest beats BigNAS's", "smallest", ("DepS", "BigNAS"), "Table 2", 3.2),
    ahead("deps-pareto-beats-bignas", "DepS's mean Pareto accuracy beats BigNAS's", "mean_pareto",
          ("DepS", "BigNAS"), "Table 2", 3.3),
    ahead("deps-half-beats-quarter", "Half of training is a better warm-up than a quarter", "mean_pareto",
          ("DepS", "DepS, P = 25%"), "Figure 7a", delta=0),
    ahead("deps-half-beats-three-quarters", "Half of training is a better warm-up than three quarters", "mean_pareto",
          ("DepS", "DepS, P = 75%"), "Figure 7a", delta=0),
    ahead("epsilon-pays-small", "Epsilon helps the smallest", "smallest", ("DepS", "DepS without epsilon"),
          "Figure 7b", 1.9),
    ahead("epsilon-pays-large", "Epsilon helps the full net", "largest", ("DepS", "DepS without epsilon"),
          "Figure 7b", 1.85),
    ahead("ikd-pays-large", "Distilling from a warm net helps the largest subnet", "largest", ("DepS", "BigNAS"),
          "Figure 7c", 3.1)]
"""Of trained supernets: smallest and largest are of their six subnets."""

SHRINKING = [
    ahead("half-trained-shrinks-better", "Unshrunk, the smallest subnet of a half-trained net beats that of "
          "a trained one", "top1", ("Full 50%", "Full"), "Figure 2"),
    ahead("epsilon-keeps-direction", "Epsilon-shrinking points more where the full net's gradient does",
          "cosine", ("epsilon-shrinking", "shrinking"), "Figure 3", delta=0.05, unit="cosine"),
    ahead("epsilon-keeps-norm", "Along the ramp epsilon-shrinking has the smaller gradient", "ratio",
          ("DepS", "DepS without epsilon"), "Figure 4", direction="less", delta=0.1, unit="of the full net's"),
    ahead("epsilon-softens-drop", "Epsilon prevents the full net's drop as shrinking starts", "drop",
          ("DepS without epsilon", "DepS"), "Figure 7b", 2.0)]
"""Of a net as shrinking begins."""

SEARCH = [
    Claim("evolution-beats-random", CHAPTER, "Evolution finds better subnets than random search",
          "ours", "top1", "superiority", ("Evolution", "Random search"), 0.25)]

CLAIMS = by_id([*EXACT, *SUPERNETS, *SHRINKING, *SEARCH])
