"""What a training loop keeps track of: whether numbers are finite, how far it is, its losses so far.

Sums stay on the device until they are read, so that no step waits for it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from slimnb.errors import NumericsError
from slimnb.train.protocols import Outcome


class Watch:
    """Finds the first step whose loss or gradient was not finite, without waiting at every step."""

    def __init__(self, ranks: int = 1):
        self.other = "the gradient" if ranks == 1 else "the gradient or another rank's loss"
        self.recent: list[tuple[int, float, list[str], Tensor, Tensor]] = []

    def add(self, step: int, lr: float, outcomes: Sequence[Outcome], skipped: Tensor) -> None:
        """Remember a step's mean losses and whether its update was `skipped` (0-dim, 1 or 0), all on the device."""
        names = [outcome.a_pass.name or str(outcome.a_pass.route)[:40] for outcome in outcomes]
        means = torch.stack([outcome.loss.mean() for outcome in outcomes])
        self.recent.append((step, lr, names, means, skipped))

    def check_finite(self) -> None:
        """Raise NumericsError for the first skipped update since the last call; it names the loss or the gradient.

        If all is well, this waits for the device once.
        """
        recent, self.recent = self.recent, []
        if not recent or not torch.stack([skipped for *_, skipped in recent]).any():
            return
        step, lr, names, losses, _ = next(entry for entry in recent if entry[-1].item())
        pairs = zip(names, losses.tolist(), strict=True)
        bad = [(name, loss) for name, loss in pairs if not math.isfinite(loss)]
        what = f"loss = {bad[0][1]} of subnet {bad[0][0]}" if bad else self.other
        raise NumericsError(f"{what} at step {step}, lr {lr:.4g}",
                            "it must be finite; this update was not made",
                            "Lower lr, or look at the data.", "The last checkpoint is intact.")


class Reporter:
    """Reports how far training is: a bar with loss, rate and time left on a terminal, lines elsewhere."""

    def __init__(self, label: str, start: int, steps: int, quiet: bool = False):
        self.label, self.start, self.steps, self.quiet = label, start, steps, quiet
        self.began = time.perf_counter()
        interactive = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=steps, initial=start, desc=label, unit="step") if interactive else None

    def __call__(self, step: int, ce: float) -> None:
        """Report after `step` steps with the interval's mean cross-entropy of the first pass."""
        if self.bar is not None:
            self.bar.set_postfix(ce=f"{ce:.3f}")
            self.bar.update(step - self.bar.n)
        elif not self.quiet:
            rate = (step - self.start) / max(time.perf_counter() - self.began, 1e-9)
            left = (self.steps - step) / max(rate, 1e-9)
            print(f"{self.label}: step {step}/{self.steps}, ce {ce:.3f}, "
                  f"{rate:.1f} steps/s, {left:.0f} s left", flush=True)

    def move(self, step: int) -> None:
        """Move the bar, if there is one; the loss stays as last reported."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Finish the bar."""
        if self.bar is not None:
            self.bar.close()


class History:
    """Sums the cross-entropy of each named pass on the device, and makes one row of means per interval.

    `probed` holds the rows of a probe, which are saved and restored with the history.
    """

    def __init__(self, rows: list[dict], probed: list[dict] | None = None):
        self.rows, self.sums, self.counts = rows, {}, {}
        self.probed = [] if probed is None else probed

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Add the outcomes of a step without waiting for the device."""
        for outcome in outcomes:
            name = outcome.a_pass.name
            mean = outcome.ce.mean()
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean
            self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, step: int, lr: float) -> float:
        """Close the interval at `step` with one row per name; return the mean of the first name."""
        means = {name: self.sums[name].item() / n for name, n in self.counts.items()}
        for name, mean in means.items():
            self.rows.append({"step": step, "lr": float(lr), "name": name, "ce": mean})
        self.sums, self.counts = {}, {}
        return next(iter(means.values()))
