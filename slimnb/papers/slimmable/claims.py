"""What chapters 00 and 01 claim: MACs that follow from the net alone, and what S-Net and US-Net say of widths."""

from __future__ import annotations

from slimnb.book.claims import Claim, by_id
from slimnb.papers.slimmable.recipes import CHAPTER
from slimnb.papers.slimmable.tables import PRINTED

NOTATION = "00_notation"
SNET, USNET = "S-Net (Yu et al. 2019)", "US-Net (Yu and Huang 2019)"

MACS = [Claim(row.claim, NOTATION, "The printed MACs follow from the net alone", row.source, "macs", "exact",
              ("slimnb", "paper"), delta=0, seeds=1, unit="M") for row in PRINTED]
"""Chapter 00: one claim for each table of a paper that prints MACs of uniform subnets."""

WIDTHS = [
    Claim("one-bn-fails", CHAPTER, "With one batch norm for all widths the slimmest net fails",
          SNET, "top1", "superiority", ("S-Net", "One BN"), delta=5),
    Claim("snet-matches-individual", CHAPTER, "S-Net at full width is as accurate as a separate net",
          "SP-Net, Table 3, MobileNetV1: 28.6 against 28.1 % error", "top1", "equivalence", ("S-Net", "Individual"),
          delta=1, paper_value=-0.5),
    Claim("snet-helps-slim", CHAPTER, "S-Net's slimmest net beats a separate net of that width",
          SNET, "top1", "superiority", ("S-Net", "Individual"), delta=0.5),
    Claim("usnet-matches-snet", CHAPTER, "US-Net is as accurate as S-Net at full width",
          USNET, "top1", "equivalence", ("US-Net", "S-Net"), delta=1)]
"""Chapter 01: accuracy at one width, in points."""

TIME = [
    Claim("slice-faster-than-mask", CHAPTER, "A sliced ResNet-50 is faster than a masked one",
          "DS-Net, Table 1: 7.9 against 12.4 ms", "ms", "superiority", ("slice", "mask"),
          delta=0, direction="less", paper_value=4.5, unit="ms")]

CLAIMS = by_id([*MACS, *WIDTHS, *TIME])
