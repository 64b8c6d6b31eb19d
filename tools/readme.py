"""Write the README's result tables from the committed results; with `--check` only say by exit status if it differs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from slimnb.papers.platforms.tables import weighted
from slimnb.runs.results import read_committed, results_frame

ROOT = Path(__file__).resolve().parents[1]
PLACE = r"(<!-- {}:[^\n]*-->\n).*?(<!-- end of {} -->)"


def frame_of(paper: str) -> pd.DataFrame:
    """Rows of all committed runs of a paper."""
    return results_frame(r for r in read_committed(ROOT / "data/results" / paper) if "rows" in r["result"])


def about(frame: pd.DataFrame, what: str) -> str:
    """The line over a table: data, seeds, scale, and what a row is."""
    seeds = frame["seed"].nunique()
    return f"CIFAR-100, test accuracy in percent, {seeds} seed{'s' * (seeds > 1)}, scale `small`; {what}"


def widths_table() -> str:
    """Markdown: accuracy of each arm of chapter 01 at each width, mean over seeds."""
    frame = frame_of("slimmable")
    widths = [0.25, 0.5, 0.75, 1.0]
    frame = frame[frame["mult"].isin(widths)]
    pivot = frame.pivot_table(index="arm", columns="mult", values="top1", aggfunc="mean", sort=False)
    macs = frame.groupby("mult")["macs"].first()
    lines = [about(frame, "one row is one set of weights, except the first."), "",
             "| | " + " | ".join(f"{width:g}x ({macs[width] / 1e6:.1f} M MACs)" for width in widths) + " |",
             "|---|" + "---:|" * len(widths)]
    order = [arm for arm in ("Individual", "One BN", "S-Net", "US-Net") if arm in pivot.index]
    lines += [f"| {arm} | " + " | ".join(f"{pivot.loc[arm, width]:.1f}" for width in widths) + " |" for arm in order]
    return "\n".join(lines) + "\n"


def markets_table() -> str:
    """Markdown: accuracy of each arm of chapter 03 weighted by market, mean over seeds."""
    frame = frame_of("platforms")
    arms = [f"{source}-{suffix}" for source in ("Random", "Slim", "OWS", "AOWS") for suffix in "UW"]
    pivot = weighted(frame).pivot_table("top1", "market", "arm", sort=False)
    arms = [arm for arm in arms if arm in pivot]
    lines = [about(frame, "one network for seven platforms, weighted by market (rows of Table 1 of the paper)."), "",
             "| | " + " | ".join(arms) + " |", "|---|" + "---:|" * len(arms)]
    for market, row in pivot.iterrows():
        lines.append(f"| {market} | " + " | ".join("" if pd.isna(top1) else f"{top1:.1f}" for top1 in row[arms]) + " |")
    return "\n".join(lines) + "\n"


def gates_table() -> str:
    """Markdown: what the gates of chapter 06 spend and reach, beside their supernet's static paths, mean over seeds."""
    frame = frame_of("ds_net")
    frame = frame[(frame["net"] == "ds_mbnet") & (frame["augment"] == "crop_flip")]  # not those on generated images
    static = frame[(frame["arm"] == "IEB") & (frame["name"] != "largest")].groupby("name")[["macs", "top1"]].mean()
    static = static.sort_values("macs")
    routed = frame[frame["name"] == "routed"].groupby("arm")[["macs", "top1"]].mean().sort_values("macs")
    lines = [about(frame, "one supernet, a gate choosing among its 3, 5 or 8 narrowest paths."), "",
             "| | M MACs per image | DS-Net | static paths of equal MACs |", "|---|---:|---:|---:|"]
    for arm, row in routed.iterrows():
        equal = np.interp(row["macs"], static["macs"], static["top1"])
        lines.append(f"| {arm} | {row['macs'] / 1e6:.2f} | {row['top1']:.1f} | {equal:.1f} |")
    return "\n".join(lines) + "\n"


TABLES = {"results": widths_table, "markets": markets_table, "gates": gates_table}
"""What stands between the marks of the same name in README.md."""


def main() -> int:
    """Rewrite or check README.md; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = old
    for name, table in TABLES.items():
        written = table()
        place = re.compile(PLACE.format(name, name), re.DOTALL)
        new = place.sub(lambda found, text=written: found[1] + text + found[2], new)
    if parser.parse_args().check:
        return int(old != new)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
