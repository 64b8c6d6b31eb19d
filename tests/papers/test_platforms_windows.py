"""Moving means against deques of whole numbers."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import same_bits

from slimnb.errors import SlimnbError
from slimnb.papers.platforms.windows import GRAIN, Windows


def fill(windows: Windows, deques: dict, batches) -> None:
    for index, values in batches:
        windows.add(torch.tensor(index), torch.tensor(values))
        for row, value in zip(index, np.float32(values), strict=True):
            for unit, choice in enumerate(row):
                deques[unit, choice].append(round(float(value) / GRAIN))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 12), st.integers(1, 3), st.integers(1, 4), st.integers(0, 12))
def test_windows_are_those_of_a_deque(seed, size, units, choices, cut):
    rng = np.random.default_rng(seed)
    batches = [
        (rng.integers(choices, size=(n, units)).tolist(), (rng.normal(size=n) * 10 ** rng.uniform(-6, 1, n)).tolist())
        for n in rng.integers(1, 5, size=12)  # never longer than a window
    ]
    windows = Windows(units, choices, size)
    deques = {key: deque(maxlen=size) for key in itertools.product(range(units), range(choices))}
    fill(windows, deques, batches[:cut])
    again = Windows(units, choices, size)
    fill(again, {key: deque() for key in deques}, batches[5:9])  # of an earlier use: must go
    again.load_state_dict({name: value.clone() for name, value in windows.state_dict().items()})
    fill(windows, {key: deque() for key in deques}, batches[cut:])
    fill(again, deques, batches[cut:])
    assert same_bits(again.state_dict(), windows.state_dict())
    means, counts = again.means()
    for key, held in deques.items():
        assert counts[key] == len(held)
        assert means[key] == sum(held) * GRAIN / max(1, len(held))


def test_a_huge_loss_is_capped_and_leaves_no_trace():
    windows = Windows(1, 1, 2)
    for value, mean in ((1e9, 32), (-1e9, 0), (-1e9, -32), (0.5, -15.75), (0.25, 0.375)):
        windows.add(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([value]))
        assert windows.means()[0].item() == mean


def test_only_the_filled_part_of_the_windows_is_kept():
    windows = Windows(2, 3, 1000)
    windows.add(torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.tensor([1.0, 2.0, 3.0]))
    assert windows.state_dict()["ring"].shape == (2, 2, 3)
    with pytest.raises(SlimnbError, match=r"StoreError: windows \(2, 2, 3\)"):
        Windows(2, 4, 1000).load_state_dict(windows.state_dict())
    with pytest.raises(SlimnbError, match=r"has \(1, 2, 3\)"):
        Windows(2, 3, 1).load_state_dict(windows.state_dict())
