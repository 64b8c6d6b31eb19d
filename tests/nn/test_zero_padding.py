"""Zero padding match: the prefix form equals a masked dense net and SP-Net's gather form, and travels with the net."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from padding_oracle import GatherForm, random_order, run_masked
from refusals import fails
from small_nets import TINY, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

from slimnb.cost.execution import execution_modes
from slimnb.cost.latency import latency_table
from slimnb.cost.macs import count_macs, count_params
from slimnb.cost.table import CostTable
from slimnb.nets.mobilenet import MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nn.zero_padding import ENDS, MATCH, SHORTCUT, leader, stream_order, streams
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.state import load_net, net_state

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # computed in float64, handed out as float32
JOINED = (MobileNetV2, ResNet50)
with_joins = pytest.mark.parametrize("kind", JOINED, ids=lambda kind: kind.__name__)
X = images(3, 16)


def random_counts(net, n: int = 3, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Neither uniform nor nested."""
    return {f"net {i}": subnet.widths for i, subnet in enumerate(random_subnets(net, n, seed))}


def embedded(kind, padding: str = MATCH, bn: str = "shared_affine", seed: int = 0):
    """The net before, the same embedded, its named subnets, order and counts."""
    before = tiny(kind, bn=bn, seed=seed)
    order, counts = random_order(before, seed), random_counts(before, seed=seed)
    net = copy.deepcopy(before)
    return before, net, embed_(net, order, counts, padding), order, counts


def with_statistics(kind, bn="shared_affine"):
    _, net, subnets, *_ = embedded(kind, bn=bn)
    fill_statistics(net, [net.largest, *subnets.values()])
    return net, subnets


# -- the same network as ... -----------------------------------------------------------------------------


@with_joins
@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_a_subnet_is_the_masked_net_and_the_gather_form(kind, seed):
    before, net, subnets, order, _ = embedded(kind, seed=seed)
    for name, subnet in {**subnets, "largest": net.largest, "unnamed": random_subnets(net, 1, 7)[0]}.items():
        kept = [channels[:n] for channels, n in zip(order, subnet.widths, strict=True)]
        sliced = net(X, subnet, statistics="batch")
        assert sliced.std(0).max() > 1e-3, name
        assert_close(sliced, run_masked(before, kept, X).float(), **EXACT)
        gathered = GatherForm(before, order, subnet.widths)
        assert_close(sliced, gathered(X).float(), **EXACT)
        assert count_macs(net, subnet, resolution=16, fused=True) == gathered.macs


@with_joins
def test_gradients_are_those_of_the_masked_net(kind):
    before, net, subnets, order, counts = embedded(kind, bn="calibrated")
    direction = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
    for name, subnet in subnets.items():
        net.train().zero_grad()
        (net(X, subnet) * direction).sum().backward()
        kept = [channels[:n] for channels, n in zip(order, subnet.widths, strict=True)]
        copied = copy.deepcopy(before)
        (run_masked(copied, kept, X) * direction).sum().backward()
        with torch.no_grad():  # gradients sorted as weights are
            for p in copied.parameters():
                p.copy_(p.grad)
        embed_(copied, order, counts)
        for (parameter, p), expected in zip(net.named_parameters(), copied.parameters(), strict=True):
            assert_close(p.grad, expected.detach(), rtol=1e-5, atol=1e-6, msg=f"{name}: {parameter}")


@with_joins
@torch.no_grad()
def test_ends_puts_the_body_first_and_the_shortcut_last(kind):
    before, net, subnets, order, _ = embedded(kind, ENDS)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))
    for subnet in [*subnets.values(), net.largest, *random_subnets(net, 1, 7)]:
        oracle = GatherForm(before, order, subnet.widths, ends=True)
        assert_close(net(X, subnet, statistics="batch"), oracle(X).float(), **EXACT)
        assert count_macs(net, subnet, resolution=16) == oracle.macs
        assert oracle.macs == count_macs(net, subnet, resolution=16, fused=True)
    fill_statistics(net, list(subnets.values()))
    for subnet in subnets.values():
        assert_close(net.extract(subnet)(X).float(), net(X, subnet), **EXACT)
    with fails("ParameterError"):
        net(X, net.masks(torch.tensor([net.largest.widths])), statistics="batch")


@with_joins
@torch.no_grad()
def test_without_padding_the_shortcut_wins(kind):
    before, net, subnets, order, counts = embedded(kind, SHORTCUT)
    for name, subnet in subnets.items():
        kept = [channels[:n] for channels, n in zip(order, counts[name], strict=True)]
        for stream in streams(net):
            first = leader(net, stream)
            names = {net.unit_names[first]} | {net.unit_names[unit] for unit in stream if len(stream) == 1}
            assert len(stream) == 1 or names <= {"stage0.0.project", "stage1.0.project", "stage1.0.out",
                                                 "stage2.0.out"}
            for unit in stream:
                kept[unit] = kept[first]
                assert subnet.widths[unit] == counts[name][first]
        assert_close(net(X, subnet, statistics="batch"), run_masked(before, kept, X).float(), **EXACT)
        assert count_macs(net, subnet) == count_macs(net, subnet, fused=True)
    assert net.padding is None and not [n for n, _ in net.named_buffers() if n.endswith("index")]


@with_joins
@torch.no_grad()
def test_masks_of_an_embedded_net_are_its_slices(kind):
    net, subnets = with_statistics(kind)
    each = [net.largest, *subnets.values()]
    x = images(len(each), 16)
    one_by_one = torch.cat([net(x[i: i + 1], subnet) for i, subnet in enumerate(each)])
    masks = net.masks(torch.tensor([s.widths for s in each]), each)
    assert_close(net(x, masks), one_by_one, **EXACT)


@with_joins
@torch.no_grad()
def test_embedding_again_composes(kind):
    before, net, _, order, _ = embedded(kind)
    then, counts = random_order(before, 5), random_counts(before, seed=6)
    assert list(embed_(net, then, counts)) == list(counts)
    both = [first[second] for first, second in zip(order, then, strict=True)]
    for widths in (*counts.values(), net.largest.widths):
        kept = [channels[:n] for channels, n in zip(both, widths, strict=True)]
        assert_close(net(X, Subnet(widths), statistics="batch"), run_masked(before, kept, X).float(), **EXACT)
    plain = embed_(net, random_order(net, 8), counts, SHORTCUT)  # from scattered to one order per stream
    assert net.padding is None
    assert_close(net(X, net.largest, statistics="batch"), before(X, before.largest, statistics="batch"), **EXACT)
    assert count_macs(net, plain["net 0"]) < count_macs(net, net.largest)


# -- how streams are ordered -----------------------------------------------------------------------------


def test_streams_are_the_units_that_meet():
    net = tiny(ResNet50)
    names = [tuple(net.unit_names[unit] for unit in stream) for stream in streams(net) if len(stream) > 1]
    assert names == [("stage0.0.out", "stage0.0.project", "stage0.1.out"),
                     ("stage1.0.out", "stage1.0.project", "stage1.1.out", "stage1.2.out")]
    assert sorted(unit for stream in streams(net) for unit in stream) == list(range(len(net.unit_names)))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_a_subnet_uses_is_a_prefix(data):
    channels, units = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    orders = [np.array(data.draw(st.permutations(range(channels)))) for _ in range(units)]
    kept = data.draw(st.lists(st.tuples(*[st.integers(1, channels)] * units), max_size=3))
    sequence = stream_order(orders, kept, orders[0]).tolist()
    assert sorted(sequence) == list(range(channels))
    unions = [set().union(*(order[:n].tolist() for order, n in zip(orders, counts, strict=True)))
              for counts in kept]
    seen: set[int] = set()
    for union in sorted(unions, key=len):
        seen |= union
        assert set(sequence[: len(seen)]) == seen
    if kept:  # the smallest subnet's union grows block by block as a prefix: nothing but its own is executed
        smallest, grown = kept[min(range(len(kept)), key=lambda i: len(unions[i]))], set()
        for order, n in zip(orders, smallest, strict=True):
            grown |= set(order[:n].tolist())
            assert set(sequence[: len(grown)]) == grown
    else:
        assert sequence == orders[0].tolist()


@with_joins
def test_executed_macs_are_the_papers_for_a_lone_subnet_and_never_fewer(kind):
    _, net, subnets, *_ = embedded(kind)
    executed, paper = ([count_macs(net, s, fused=fused) for s in subnets.values()] for fused in (False, True))
    assert all(e >= p for e, p in zip(executed, paper, strict=True)) and executed != paper
    alone = copy.deepcopy(net)
    name, subnet = next(iter(subnets.items()))
    embed_(alone, [np.arange(c) for c in net.largest.widths], {name: subnet.widths})
    assert count_macs(alone, subnet) == count_macs(alone, subnet, fused=True) == paper[0]
    assert count_params(alone, [subnet]) == count_params(net, [subnet], fused=True)
    assert count_macs(net, net.largest) == count_macs(net, net.largest, fused=True)


@with_joins
def test_costs_need_no_weights(kind):
    _, net, subnets, order, counts = embedded(kind)
    with torch.device("meta"):
        shapes = kind(10, 32, **TINY[kind], bn="shared_affine")
    assert embed_(shapes, order, counts) == subnets
    for subnet in subnets.values():
        for fused in (False, True):
            assert count_macs(shapes, subnet, fused=fused) == count_macs(net, subnet, fused=fused)


# -- it travels with the net -----------------------------------------------------------------------------


@with_joins
@pytest.mark.parametrize(("padding", "bn"), ((MATCH, "private"), (MATCH, "shared_affine"), (ENDS, "calibrated")))
@torch.no_grad()
def test_index_buffers_travel_with_checkpoints_and_copies(kind, padding, bn):
    _, net, subnets, *_ = embedded(kind, padding, bn)
    fill_statistics(net, list(subnets.values()))
    fresh = [kind(10, 32, **TINY[kind], bn=bn, seed=9).double() for _ in range(3)]
    state = net.state_dict()
    state["_extra_state"] = json.loads(json.dumps(state["_extra_state"]))
    fresh[0].load_state_dict(state)
    tensors, rest = net_state(net)
    load_net(fresh[1], {name.removeprefix("net/"): t for name, t in tensors.items()}, json.loads(json.dumps(rest)))
    embed_(fresh[2], random_order(fresh[2], 4), random_counts(fresh[2], seed=4))  # embedded otherwise before
    fresh[2](X, next(iter(subnets.values())), statistics="batch")
    fresh[2].load_state_dict(state)
    for other in (*fresh, copy.deepcopy(net)):
        other.eval()
        for subnet in subnets.values():
            assert_close(other(X, subnet), net(X, subnet), rtol=0, atol=0)
    single = copy.deepcopy(net).float()
    assert {b.dtype for n, b in single.named_buffers() if n.endswith("index")} <= {torch.int64}
    assert_close(single(X.float(), subnet), net(X, subnet), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_tensors_loaded_alone_bring_their_places():
    (_, net, subnets, *_), (_, other, *_) = (embedded(ResNet50, bn="calibrated", seed=seed) for seed in (0, 1))
    for subnet in subnets.values():
        other(X, subnet, statistics="batch")  # by the old places
    tensors = {name: t for name, t in net.state_dict().items() if isinstance(t, torch.Tensor)}
    other.load_state_dict(tensors, strict=False)
    for subnet in subnets.values():
        assert_close(other(X, subnet, statistics="batch"), net(X, subnet, statistics="batch"), rtol=0, atol=0)


@with_joins
def test_a_plain_checkpoint_takes_the_padding_away(kind):
    plain = tiny(kind)
    assert not {"padding", "scattered"} & plain.get_extra_state().keys() and plain.reach(plain.largest) == ()
    _, net, subnets, *_ = embedded(kind, bn="calibrated")
    plain.reserve(list(subnets.values()))
    net.load_state_dict(plain.state_dict())
    assert net.padding is None and net.state_dict().keys() == plain.state_dict().keys()
    subnet = random_subnets(net, 1)[0]
    assert_close(net(X, subnet, statistics="batch"), plain(X, subnet, statistics="batch"), rtol=0, atol=0)


@with_joins
@pytest.mark.parametrize("bn", ("private", "shared_affine"))
@torch.no_grad()
def test_an_extracted_subnet_is_plain_equal_and_exports(kind, bn):
    net, subnets = with_statistics(kind, bn)
    for subnet in [net.largest, *subnets.values()]:
        plain = net.extract(subnet)
        assert_close(plain(X).float(), net(X, subnet), **EXACT)
        assert not {t.data_ptr() for t in plain.state_dict().values()} & {
            t.data_ptr() for t in net.state_dict().values() if isinstance(t, torch.Tensor)}
    exported = torch.export.export(plain, (X,)).module()
    assert_close(exported(X).float(), net(X, subnet), **EXACT)
    modes = execution_modes(net, subnet, X)
    for name in ("mask", "index", "ideal"):
        assert_close(modes[name]().float(), modes["slice"](), **EXACT)


@with_joins
def test_training_tracks_statistics_and_calibration_replaces_them(kind):
    _, net, subnets, *_ = embedded(kind)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        for subnet in subnets.values():
            net(images(8, 16), subnet).square().sum().backward()
        optimizer.step()
    data = [(images(8, 16), torch.zeros(8, dtype=torch.int64))]
    tracked = evaluate(net, list(subnets.values()), data)
    assert [found.subnet for found in tracked] == list(subnets.values())
    calibrate_bn(net, list(subnets.values()), [images(8, 16)])
    assert all(a.ce != b.ce for a, b in zip(tracked, evaluate(net, list(subnets.values()), data), strict=True))


def test_a_placement_is_no_norm():
    before, net, *_ = embedded(ResNet50)
    assert net.channel_units() == before.channel_units()


def test_tables_refuse_what_they_cannot_price():
    _, net, *_ = embedded(ResNet50)
    space = tiny(ResNet50).space((0.5, 1.0))
    for table in (CostTable.macs, CostTable.params, latency_table):
        with fails("SearchError"):
            table(net, space)


@torch.no_grad()
def test_a_full_size_resnet():
    net = ResNet50(10, 32, bn="shared_affine").eval()
    net.reserve([net.largest])
    x = images(2, 32, dtype=torch.float32)
    net(x, net.largest, statistics="batch", momentum=1.0)
    net.mark_calibrated([net.largest])
    expected = net(x, net.largest)
    counts = {"half": net.uniform(0.5).widths, "most": net.uniform(0.75).widths}
    subnets = embed_(net, random_order(net), counts)
    assert_close(net(x, net.largest), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    with fails("NumericsError"):
        net(x, subnets["half"])
    fill_statistics(net, [subnets["half"]])
    sliced, plain = net(x, subnets["half"]), net.extract(subnets["half"])
    exported = torch.export.export(plain, (x,)).module()
    for alone in (plain, exported):
        assert_close(alone(x), sliced, rtol=0, atol=1e-4 * sliced.abs().max().item())
