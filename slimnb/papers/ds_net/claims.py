"""What chapter 06 claims: that an averaged target and gates pay, and what its nets cost."""

from __future__ import annotations

from typing import Any

from slimnb.book.claims import Claim, by_id
from slimnb.papers.ds_net.recipes import CHAPTER


def ahead(id: str, statement: str, metric: str, arms: tuple[str, str], where: str, paper_value: float | None = None,
          delta: float = 0.5, **more: Any) -> Claim:
    """The claim that one arm is ahead of another."""
    return Claim(id, CHAPTER, statement, f"DS-Net, {where}", metric, "superiority", arms, delta,
                 paper_value=paper_value, **more)


def gain(name: str, label: str, paper_value: float | None) -> Claim:
    """The claim that a net's gates are more accurate than its static paths of the gates' mean MACs."""
    return ahead(f"gate-gain-{name}", f"Gates of {label} gain on static paths of equal MACs", "top1",
                 ("Gate", "Static"), "Table 9", paper_value)


TRAINING = [
    ahead("ema-helps-slimmest", "An averaged target helps the slimmest", "slimmest",
          ("EMA target", "In-place distillation"), "Table 5", 1.6),
    ahead("ema-helps-widest", "... and the widest", "widest", ("EMA target", "In-place distillation"),
          "Table 5", 0.3, 0.2),
    ahead("ensemble-helps-slimmest", "An ensemble helps the slimmest", "slimmest", ("IEB", "EMA target"),
          "Table 5", 0.2, 0.1),
    ahead("ensemble-helps-widest", "... and the widest", "widest", ("IEB", "EMA target"), "Table 5", 0.3, 0.1),
    ahead("temperature-hurts-slimmest", "Temperature 4 hurts the slimmest", "slimmest",
          ("In-place distillation", "Temperature 4"), "Table 10", 10.2),
    ahead("temperature-helps-widest", "... and helps the widest", "widest",
          ("Temperature 4", "In-place distillation"), "Table 10", 2.0)]
"""Stage I: a supernet's slimmest and widest path."""

LOSSES = [
    ahead("target-costs-more", "The target loss alone asks for more MACs than all three", "macs",
          ("Target", "DS-Net-L"), "Table 6", 1400, delta=0, unit="M MACs"),
    ahead("complexity-costs-less", "Complexity alone asks for fewer", "macs", ("DS-Net-L", "Complexity"),
          "Table 6", 1900, delta=0, unit="M MACs"),
    ahead("try-best-beats-give-up", "Trying is better than giving up", "top1", ("SGS, try best", "SGS, give up"),
          "Table 6", 2.9),
    ahead("shared-beats-unshared", "A shared reduction beats one of its own", "top1",
          ("SGS, try best", "Unshared reduction"), "Table 7", 3.9),
    ahead("one-hot-beats-scalar", "A one-hot head beats a scalar", "top1", ("SGS, try best", "Scalar head"),
          "Table 7", 3.0)]

GATES = [
    gain("mbnet", "DS-MBNet-S", 0.8), gain("resnet", "DS-ResNet", 1.2),
    gain("known", "a net for generated images", None),
    ahead("gate-beats-blind", "The gate knows more than a blind router of its MACs", "top1", ("Gate", "Blind router"),
          "ours"),
    ahead("gate-transfer", "A gate that was trained elsewhere is better", "top1",
          ("Gate transfer", "Without gate transfer"), "Table 3", 0.4, 0.2)]

EXACT = [
    Claim("ds-simulation", CHAPTER, "At every mean cost some dynamic scheme is at least as accurate",
          "DS-Net, Figure 2", "top1", "exact", ("points lost by the best scheme", "none"), 0, seeds=1),
    Claim("ds-macs", CHAPTER, "The 14 paths of DS-MBNet cost 132.9 to 565.4 M MACs", "DS-Net, released README",
          "macs", "exact", ("traced", "printed"), 0.051, seeds=1, unit="M MACs"),
    Claim("ds-averages-are-paths", CHAPTER, "The averages printed for DS-MBNet-S, M and L are static paths' MACs",
          "ours, of DS-Net, Table 2", "macs", "exact", ("printed", "nearest path"), 0.5, seeds=1, unit="M MACs"),
    Claim("ds-detection-macs", CHAPTER, "The four detectors cost 4.3, 2.3, 2.7 and 3.2 billion MACs",
          "DS-Net, Table 4", "macs", "exact", ("traced", "printed"), 0.051, seeds=1, unit="G MACs")]
"""Decided without a training."""

CLAIMS = by_id([*EXACT, *TRAINING, *LOSSES, *GATES])
