"""Write the README's result table from the committed results; with `--check` only say by exit status if it differs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from slimnb.results import read_committed, results_frame

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(<!-- results:[^\n]*-->\n).*?(<!-- end of results -->)", re.DOTALL)


def table(folder: Path) -> str:
    """Markdown: test accuracy of each arm at each width, mean over seeds, from the records in `folder`."""
    records = [r for r in read_committed(folder) if r["recipe"]["paper"] == "slimmable" and "rows" in r["result"]]
    frame = results_frame(records)
    widths = [0.25, 0.5, 0.75, 1.0]
    frame = frame[frame["mult"].isin(widths)]
    pivot = frame.pivot_table(index="arm", columns="mult", values="top1", aggfunc="mean", sort=False)
    macs = frame.groupby("mult")["macs"].first()
    seeds = frame["seed"].nunique()
    lines = [f"CIFAR-100, test accuracy in percent, {seeds} seed{'s' * (seeds > 1)}, scale `small`; one row is one"
             " set of weights, except the first.", "",
             "| | " + " | ".join(f"{width:g}x ({macs[width] / 1e6:.1f} M MACs)" for width in widths) + " |",
             "|---|" + "---:|" * len(widths)]
    order = [arm for arm in ("Individual", "One BN", "S-Net", "US-Net") if arm in pivot.index]
    lines += [f"| {arm} | " + " | ".join(f"{pivot.loc[arm, width]:.1f}" for width in widths) + " |" for arm in order]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite or check README.md; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = PLACE.sub(lambda found: found[1] + table(ROOT / "data/results") + found[2], old)
    if parser.parse_args().check:
        return int(old != new)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
