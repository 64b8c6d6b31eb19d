"""Subnets that gather their scattered channels compute what the sorted ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from small_nets import NETS, TINY, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

from slimnb.cost.execution import IndexedConv2d
from slimnb.cost.macs import count_macs
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.papers.sp_net import gathered as module
from slimnb.papers.sp_net.gathered import numbered, random_gammas_, sorting_latencies, unsorted
from slimnb.papers.sp_net.pruning import gammas, importance_order
from slimnb.runs.store import RunStore

X = images(3, 16)


def prepared(kind):
    """(net before, the same embedded, its numbered copy, subnet) with random gammas of all sizes."""
    before = tiny(kind, bn="shared_affine")
    random_gammas_(before)
    order, counts = importance_order(gammas(before)), {"thin": random_subnets(before, 1, seed=2)[0].widths}
    net, numbers = copy.deepcopy(before), numbered(before)
    embed_(numbers, order, counts)
    subnet = embed_(net, order, counts)["thin"]
    fill_statistics(net, [net.largest, subnet])
    return before, net.eval(), numbers, subnet


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_gathering_gives_what_slicing_gives(kind):
    before, net, numbers, subnet = prepared(kind)
    plain = unsorted(net, subnet, numbers)
    expected = net(X, subnet)
    assert_close(plain(X).float(), expected, rtol=1e-5, atol=1e-6)
    layers = [m for m in plain.modules() if isinstance(m, IndexedConv2d)]
    assert any((m.out_index.diff() < 0).any() for m in layers), "scattered"
    convs = [m for m in before.modules() if type(m).__name__ == "SlimmableConv2d"]
    for layer, original in zip(layers, convs, strict=True):
        assert torch.equal(layer.source.weight, original.weight), "they lie where training left them"
    assert_close(net(X, subnet), expected)  # the sorted net is as it was


@torch.no_grad()
def test_latencies_are_measured_once_for_every_way(monkeypatch, tmp_path):
    def small(largest, bn):
        return ResNet50(10, 32, largest, bn=bn, **TINY[ResNet50])

    gathered = []
    monkeypatch.setattr(module, "unsorted", lambda net, subnet, *rest: gathered.append(subnet) or unsorted(
        net, subnet, *rest))
    monkeypatch.setattr(module, "SMOKE", {"tiny": (small, (0.5, 1.0))})
    store = RunStore(tmp_path / "runs", tmp_path / "results")
    found = sorting_latencies("smoke", 5, store)
    ways = {(row["way"], row["width"], row["repeat"]) for row in found["rows"]}
    assert len(ways) == len(found["rows"]) == 6 * module.REPEATS
    macs = {(row["way"], row["width"]): row["macs"] for row in found["rows"]}
    net = small(1.0, "shared_affine")
    assert macs["S-Net", 0.5] == count_macs(net, net.uniform(0.5)) < count_macs(net, net.largest)
    assert {macs[way, 1.0] for way, _ in macs} == {count_macs(net, net.largest)}
    assert all(row["ms"] > 0 for row in found["rows"]) and found["difference"] < 1e-4
    assert gathered and all(subnet.widths != net.largest.widths for subnet in gathered), "all channels need no index"
    monkeypatch.setattr(module, "_timed", lambda *args: pytest.fail("measured again"))
    assert sorting_latencies("smoke", 5, store) == found
