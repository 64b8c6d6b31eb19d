"""The paper's one figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from slimnb.book.marks import TOP1, lines
from slimnb.book.style import METHODS, Look, described, label_ends, look, new_axes, styled

METHODS["halfsandwich"] = Look("Half-sandwich", "#CC79A7", "D")  # its name in lower case, letters and digits only


@styled("arm", "mult", "top1")
def accuracy(frame: pd.DataFrame, title: str) -> Axes:
    """Accuracy against width, one line per arm. Columns arm, mult, top1 (%)."""
    ax = new_axes(title)[0]
    ends, told = lines(ax, frame, "arm", "mult", "top1", look, ("×", "%"))
    ax.set(xlabel="Width multiplier", ylabel=TOP1)
    label_ends(ax, ends)
    return described(ax, f"Line chart of top-1 accuracy against width. {title}. {told}")
