"""Moving means, kept on the device, of what every choice of every channel unit cost."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slimnb.errors import StoreError

GRAIN = 2.0**-24
"""To whose multiples losses are rounded, nats: 6e-8, below the seventh digit of a cross-entropy of 1."""

MOST = 2**29
"""Grains of a loss at most, 32 nats per unit: differences still fit 32 bits."""


class Windows:
    """Exact means of the last `size` values of every (channel unit, choice), for which nothing waits for the device.

    Each choice has a ring of its own, so memory is size x units x choices x 4 bytes: 78 MB for 100,000 x 14 x 14. The
    part that is filled goes into checkpoints. Values are rounded to multiples of `GRAIN`, so that sums are whole
    numbers: the same in any order, on any device, and after any number of additions and subtractions.
    """

    def __init__(self, units: int, choices: int, size: int, device: torch.device | str = "cpu"):
        self.ring = torch.zeros(size, units, choices, dtype=torch.int32, device=device)  # windows fill alike: so laid
        self.counts = torch.zeros(units, choices, dtype=torch.int64, device=device)  # out, a step's writes lie together
        self.sum = torch.zeros_like(self.counts)
        self.number = torch.arange(units * choices, device=device)

    def add(self, index: Tensor, values: Tensor) -> None:
        """Enter values (B,) into the windows of the choices `index` (B, units), in order of B; B <= size."""
        ring, counts, total = self.ring.view(-1), self.counts.view(-1), self.sum.view(-1)
        units, choices = self.counts.shape
        window, order = (index + self.number[::choices]).view(-1).sort(stable=True)
        begin = torch.searchsorted(window, self.number)  # of each window's run in `window`
        nth = (counts - begin).take(window) + torch.arange(len(window), device=window.device)  # since the start
        place = nth % len(self.ring) * len(counts) + window
        new = (values.double() / GRAIN).round().clamp(-MOST, MOST).int()[order // units]
        total.index_add_(0, window, (new - ring.take(place)).long())
        counts.index_add_(0, window, torch.ones_like(window))
        ring.scatter_(0, place, new)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (means, counts) of the windows, each (units, choices); this waits for the device."""
        counts = self.counts.clamp(max=len(self.ring)).cpu().numpy()
        return self.sum.cpu().numpy() * GRAIN / counts.clip(1), counts

    def state_dict(self) -> dict[str, Tensor]:
        """Return the filled part of the rings, the number of values so far, and the running sums as they are."""
        filled = min(int(self.counts.max()), len(self.ring))
        return {"ring": self.ring[:filled], "seen": self.counts, "sum": self.sum}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned. Raises StoreError for windows of another shape."""
        ring, filled = state["ring"], len(state["ring"])
        if ring.shape[1:] != self.ring.shape[1:] or filled > len(self.ring):
            raise StoreError(f"windows {tuple(ring.shape)}", f"this search has {tuple(self.ring.shape)}",
                             "Search the space the checkpoint was made with.", "Nothing was trained.")
        self.ring[:filled], self.ring[filled:] = ring, 0
        self.counts.copy_(state["seen"])
        self.sum.copy_(state["sum"])
