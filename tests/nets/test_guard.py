"""The guard of statistics: whatever changes a weight makes them stale, and nothing else does."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import fails
from small_nets import NETS, fill_statistics, images, tiny

from slimnb.nets.mobilenet import MobileNetV1

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def at_random(change):
    """`change(flat, order)` as a change of w in place, `order` a permutation of its elements."""
    def act(w, rng):
        flat = w.flatten()
        w.copy_(change(flat.clone(), torch.randperm(w.numel(), generator=rng)).view_as(w))

    return act


CHANGES = {f"times {factor:g}": lambda w, rng, factor=factor: w.mul_(factor)
           for factor in (2, 0.5, 4, 0.25, 0.125, 1 / 1024, 1.5, -1, -2, 0)}
CHANGES |= {f"fill {value:g}": lambda w, rng, value=value: w.fill_(value) for value in (0, 0.5, 1, 2, -1)}
CHANGES |= {name: at_random(change) for name, change in {
    "some signs": lambda flat, order: flat.index_copy(0, order[::3], -flat[order[::3]]),
    "reversed": lambda flat, order: flat.flip(0),
    "permuted": lambda flat, order: flat[order],
    "two swapped": lambda flat, order: flat.index_copy(0, order[:2], flat[order[:2].flip(0)]),
    "one element": lambda flat, order: flat.index_fill(0, order[:1], 0.375),
    "one last bit": lambda flat, order: flat.index_copy(0, order[:1], flat[order[:1]].nextafter(flat.new_tensor(9))),
}.items()}
CHANGES["filters permuted"] = lambda w, rng: w.copy_(w[torch.randperm(len(w), generator=rng)])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def pairs_missed(net, names) -> list[tuple]:
    """The changes of whole tensors, each alone, after which the guard says nothing."""
    missed, parameters = [], dict(net.named_parameters())
    before, tried = net.weights_checksum(), 0
    for (change, act), name in itertools.product(CHANGES.items(), names):
        w = parameters[name]
        kept = w.detach().clone()
        with torch.no_grad():
            act(w, torch.Generator().manual_seed(len(name)))
            tried += 1
            if not same_bits(w.detach(), kept) and net.weights_checksum() == before:
                missed.append((change, name))
            w.copy_(kept)
        assert net.weights_checksum() == before  # and back again: what is as it was is not stale
    assert tried == len(CHANGES) * len(names)
    return missed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_change_of_a_tensor_is_missed(dtype):
    # Powers of two as sizes: of them a sum modulo 2^32 with regular factors forgets the most.
    net = tiny(MobileNetV1).to(dtype)
    assert pairs_missed(net, [name for name, _ in net.named_parameters()]) == []


@pytest.mark.sweep
@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_change_of_a_tensor_of_any_net_is_missed(kind, dtype):
    net = tiny(kind).to(dtype)
    assert pairs_missed(net, [name for name, _ in net.named_parameters()]) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_change_of_all_tensors_at_once_is_missed(dtype):
    for (_, act), seed in itertools.product(CHANGES.items(), range(2)):
        net = MobileNetV1(100, 32, 0.25, seed=seed).to(dtype)  # as it starts: its norms are all ones and zeros
        before, rng = net.weights_checksum(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in net.parameters():
                act(p, rng)
        assert net.weights_checksum() != before


NET = tiny(MobileNetV1)
X = images(2, 16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 20), st.integers(0, 9)), max_size=4),
       st.sampled_from(DTYPES))
def test_stale_exactly_if_a_bit_of_the_weights_differs(changes, dtype):
    net = copy.deepcopy(NET).to(dtype)
    net.reserve([net.largest])
    net.mark_calibrated([net.largest])
    kept, names = copy.deepcopy(net), [name for name, _ in net.named_parameters()]
    for change, which, seed in changes:
        with torch.no_grad():
            CHANGES[change](net.get_parameter(names[which % len(names)]), torch.Generator().manual_seed(seed))
    same = all(map(same_bits, [p.detach() for p in net.parameters()], [p.detach() for p in kept.parameters()]))
    if same:
        assert net.slot_of(net.largest) == 0
    else:
        with fails("NumericsError", "stale"):
            net.slot_of(net.largest)


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_an_unchanged_net_is_never_stale(kind):
    net = tiny(kind)
    fill_statistics(net, [net.largest])
    expected = net(X, net.largest)
    net(X, net.largest).sum().backward()
    net.zero_grad()
    net.train().eval().requires_grad_(False).requires_grad_(True)
    loaded = tiny(kind, seed=5).eval()
    loaded.load_state_dict(net.state_dict())
    laid_out = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    for other in (net, copy.deepcopy(net), net.frozen_copy(), loaded, laid_out):
        torch.testing.assert_close(other(X, net.largest), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32):
        net.to(dtype)
        net(X.to(dtype), net.largest)


@torch.no_grad()
def test_versions_that_begin_anew_hide_nothing():
    """As many writes to a copy as its original has seen, and parameters in the place of others as old as they."""
    made = tiny(MobileNetV1)
    fill_statistics(made, [made.largest])
    copied = copy.deepcopy(made)
    version = sum(p._version for p in made.parameters())
    for _ in range(version):
        copied.classifier.bias.add_(1)
    with fails("NumericsError", "stale"):
        copied(X, made.largest)
    replaced = copy.deepcopy(made)
    replaced(X, made.largest)
    replaced.classifier.weight = torch.nn.Parameter(2 * replaced.classifier.weight)
    with fails("NumericsError", "stale"):
        replaced(X, made.largest)


def test_layouts_have_one_checksum_of_48_bits():
    net = tiny(MobileNetV1)
    before = net.weights_checksum()
    again = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    assert again.weights_checksum() == before and abs(before) <= 2**47
