"""What is said before anything is run, and how it is judged afterwards."""

from __future__ import annotations

import pandas as pd

from slimnb.book.claims import Claim, Verdict, by_id, judge, paired

OURS, CONTROL = "Half-sandwich", "US-Net"

WIDE_SUBNETS_GAIN = Claim(
    "seventh-wide-subnets-gain", "seventh", "Draws in proportion to MACs make the 0.75x subnet more accurate",
    "a template, no paper", "top1", "superiority", (OURS, CONTROL), delta=0.5)
CLAIMS = by_id([WIDE_SUBNETS_GAIN])


def verdict(frame: pd.DataFrame, scale: str) -> Verdict:
    """What the seeds say. Columns of `frame`: arm, seed, mult, top1 (%)."""
    return judge(WIDE_SUBNETS_GAIN, *paired(frame, WIDE_SUBNETS_GAIN, mult=0.75), scale=scale)
