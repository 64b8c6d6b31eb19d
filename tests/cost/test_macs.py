"""The papers' own numbers, and tables that agree with the traced forward on every net."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from oracle import Block, thin_net
from refusals import refused
from small_nets import NETS, full, random_subnets, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimnb.cost.macs import count_macs, count_params, trace_macs
from slimnb.cost.table import CostTable, macs_function
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nets.vgg import VGG
from slimnb.nn.layers import SlimmableSqueezeExcite
from slimnb.subnet import SearchSpace, Subnet

MULTS = (0.25, 0.5, 0.75, 1.0)
PLATFORMS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
every_net = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)


def macs(net, mult, convention="A", resolution=None):
    return count_macs(net, net.uniform(mult, resolution), convention)


def printed(value: float, digits: int, unit: float = 1e6) -> float:
    return round(value / unit, digits)


# -- MACs the papers print -------------------------------------------------------------------------------


def test_mobilenet_v1():
    net = full(MobileNetV1)
    assert [macs(net, m) for m in (1.0, 0.75, 0.5)] == [568_740_352, 325_400_448, 149_497_088]
    assert printed(macs(net, 1.0, "B"), 2) == 568.79
    assert printed(macs(net, 0.75, "B", resolution=128), 2) == 106.78
    # SP-Net's S-MobileNetV1 row counts by another convention than its rivals
    assert [printed(macs(net, m, "C"), 0) for m in (1.0, 0.75, 0.5)] == [584, 337, 157]
    assert count_macs(net, net.uniform(0.75), "B", resolution=128) == macs(net, 0.75, "B", resolution=128)


def test_published_minima_of_pss_net():
    assert printed(macs(full(MobileNetV1), 0.25, "B", 128), 2) == 13.57
    net = full(MobileNetV2, largest=1.3)
    assert printed(macs(net, 0.75, "B", 128), 2) == 69.15


def test_mobilenet_v1_above_one_uses_floor_rounding():
    for mult, millions, params in ((1.3, 946.5, 6.72), (1.5, 1257.7, 8.70)):
        net = full(MobileNetV1, largest=mult, rounding="floor")
        assert printed(count_macs(net, net.largest), 1) == millions
        assert printed(count_params(net, [net.largest]), 2) == params


def test_the_seven_cifar_platforms():
    net = full(MobileNetV1, 100, 32)
    assert [printed(macs(net, m), 3) for m in PLATFORMS] == [
        3.354, 7.341, 12.213, 19.018, 26.577, 36.201, 46.447]
    assert [printed(count_params(net, [net.uniform(m)]), 3) for m in PLATFORMS] == [
        0.239, 0.506, 0.870, 1.333, 1.893, 2.553, 3.309]
    assert net.uniform(0.625).widths == (24, 40, 80, 80, 160, 160, *(320,) * 6, 640, 640)


def test_platforms_are_told_apart_from_plain_floor_rounding():
    net = full(MobileNetV1, 100, 32, rounding="floor")
    assert [printed(macs(net, m), 3) for m in (0.375, 0.625, 0.875)] == [7.096, 18.707, 35.824]


def test_mobilenet_v2():
    net = full(MobileNetV2, largest=1.3)
    assert [printed(macs(net, m), 1) for m in (1.3, 1.0, 0.75)] == [509.4, 300.8, 209.1]
    assert printed(macs(net, 1.0, "B"), 2) == 300.84
    assert [printed(count_params(net, [net.uniform(m)]), 2) for m in (1.3, 1.0, 0.75)] == [5.39, 3.50, 2.64]


def test_resnet_50():
    net = full(ResNet50)
    assert [printed(macs(net, m, "C"), 3, 1e9) for m in (1.0, 0.75, 0.5)] == [4.122, 2.347, 1.069]
    assert printed(macs(net, 0.25, "C"), 4, 1e9) == 0.2863
    assert printed(macs(net, 0.25), 0) == 278  # by convention A: what SP-Net's 286 M is not
    assert printed(macs(net, 1.0), 3, 1e9) == 4.089
    assert [printed(count_params(net, [net.uniform(m)]), 2) for m in (1.0, 0.75, 0.5, 0.25)] == [
        25.56, 14.77, 6.92, 1.99]
    cifar = full(ResNet50, 100)
    params = [count_params(cifar, [cifar.uniform(m)]) for m in (1.0, 0.75, 0.5)]
    assert params == [23_712_932, 13_388_692, 5_995_140]


def test_vgg():
    net = full(VGG)
    assert [printed(macs(net, m, "C"), 2, 1e9) for m in (1.0, 0.5, 0.75)] == [19.56, 4.92, 11.03]
    assert printed(macs(net, 0.25, "C"), 3, 1e9) == 1.248
    assert [printed(count_params(net, [net.uniform(m)]), 2) for m in (1.0, 0.75, 0.5, 0.25)] == [
        20.54, 11.65, 5.27, 1.38]
    cifar = full(VGG, 100)
    params = [count_params(cifar, [cifar.uniform(m)]) for m in (1.0, 0.5, 0.25)]
    assert [printed(p, 2) for p in params] == [20.08, 5.04, 1.27]


@pytest.mark.parametrize(("kind", "classes", "largest", "mults", "millions"), (
    (ResNet50, 1000, 1.0, (0.5, 0.75, 1.0), 25.62), (ResNet50, 100, 1.0, (0.5, 0.75, 1.0), 23.78),
    (VGG, 1000, 1.0, (0.25, 0.5, 1.0), 20.55), (VGG, 100, 1.0, (0.25, 0.5, 1.0), 20.09),
    (MobileNetV1, 1000, 1.0, (0.5, 0.75, 1.0), 4.26), (MobileNetV2, 1000, 1.3, (0.75, 1.0, 1.3), 5.45)))
def test_parameters_with_private_batch_norm(kind, classes, largest, mults, millions):
    net = full(kind, classes, largest=largest, bn="private")
    subnets = [net.uniform(m) for m in mults]
    private = count_params(net, subnets)
    assert printed(private, 2) == millions
    shared = count_params(full(kind, classes, largest=largest), subnets)
    norms = sum(2 * s.widths[m.unit] for m in net.norms() for s in subnets[:-1])
    assert private == shared + norms  # gamma and beta once more for each further width


def test_sp_nets_parameters_of_the_real_tensors():
    for kind in NETS:
        net = full(kind)
        assert count_params(net, [net.largest]) == sum(p.numel() for p in net.parameters())


def test_multi_platforms_search_space():
    net = full(MobileNetV1, 100, 32, largest=1.5)
    space = net.space([round(0.2 + 0.1 * i, 1) for i in range(14)])
    assert [len(choices) for choices in space.widths] == [6, 11] + [14] * 12
    assert space.size == 3_741_798_216_769_536 and f"{space.size:.3g}" == "3.74e+15"
    table = CostTable.macs(net, space)
    assert [printed(table.of(s), 2) for s in (space.smallest, space.largest)] == [2.35, 102.70]


# -- traced MACs against a count by hand -----------------------------------------------------------------


def by_hand(thin: nn.Module, side: int, convention: str) -> int:
    """MACs of a plain net, added up in a walk that reads nothing but its layers' shapes."""
    total = 0
    add = {"A": {"conv", "linear"}, "B": {"conv", "linear", "pool"},
           "C": {"conv", "linear", "pool", "maxpool", "norm", "act", "bias"}}[convention]

    def walk(m, c, s):
        nonlocal total

        def count(kind, amount):
            nonlocal total
            total += amount * (kind in add)

        if isinstance(m, nn.Sequential):
            for child in m:
                c, s = walk(child, c, s)
        elif isinstance(m, Block):
            (cb, sb), (cs, _) = walk(m.body, c, s), walk(m.shortcut, c, s)
            c, s = max(cb, cs), sb
            count("act", c * s * s * m.relu)
        elif isinstance(m, nn.Conv2d):
            k, s = m.kernel_size[0], (s + 2 * m.padding[0] - m.kernel_size[0]) // m.stride[0] + 1
            c = m.out_channels
            count("conv", s * s * k * k * m.in_channels * m.out_channels // m.groups)
        elif isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
            count("norm", 2 * c * s * s)
        elif isinstance(m, (nn.ReLU, nn.ReLU6)):
            count("act", c * s * s)
        elif isinstance(m, nn.MaxPool2d):
            count("maxpool", c * s * s)
            s = s // 2
        elif isinstance(m, nn.AdaptiveAvgPool2d):
            count("pool", c * s * s)
        elif isinstance(m, nn.Linear):
            count("linear", m.in_features * m.out_features)
            count("bias", m.out_features)
        return c, s

    walk(thin, 3, side)
    return total


@pytest.mark.parametrize(("size", "bn"), ((32, "calibrated"), (224, "private"), (32, "group")))
@every_net
def test_count_macs_is_the_count_by_hand(kind, size, bn):
    net = tiny(kind, size, bn)
    side = 16 if size == 32 else 32
    for subnet in [net.largest, *random_subnets(net, 2, seed=1, step=8 if bn == "group" else 1)]:
        thin = thin_net(net, subnet.widths)
        for convention in "ABC":
            assert count_macs(net, subnet, convention, side) == by_hand(thin, side, convention)
        assert count_params(net, [subnet]) == sum(p.numel() for p in thin.parameters())


@every_net
def test_full_size_counts_are_the_counts_by_hand(kind):
    net = full(kind)
    for mult in (0.25, 1.0) if kind is not MobileNetV2 else (0.75, 1.0):
        thin = thin_net(net, net.uniform(mult).widths)
        assert macs(net, mult, "C") == by_hand(thin, 224, "C")  # of all conventions it counts the most


def test_tracing_computes_nothing_and_leaves_the_net_alone():
    net = tiny(MobileNetV1, bn="shared_affine")
    before = {name: t.clone() for name, t in net.named_buffers()}
    versions = [p._version for p in net.parameters()]
    net.train()
    traced = trace_macs(net, net.largest)
    assert net.training and versions == [p._version for p in net.parameters()]
    assert all(torch.equal(t, before[name]) for name, t in net.named_buffers())
    assert traced["classifier"] == {"linear": 320, "bias": 10}
    kinds = {kind for counts in traced.values() for kind in counts}
    assert kinds == {"conv", "norm", "activation", "pool", "linear", "bias"}


def test_squeeze_and_excitation_is_counted_but_not_tabulated():
    net, attended = tiny(MobileNetV1), tiny(MobileNetV1)
    attended.features.append(SlimmableSqueezeExcite(32, unit=4))
    subnet = Subnet((8, 16, 24, 24, 20))
    c, hidden, pixels = 20, 8, 2 * 2  # make_divisible(20 // 4) = 8; strides of 8 in all
    extra = {k: count_macs(attended, subnet, k, 16) - count_macs(net, subnet, k, 16) for k in "ABCD"}
    assert extra == {"A": 2 * c * hidden, "B": 0, "C": 0, "D": 2 * c * hidden + c * pixels}
    assert count_params(attended, [subnet]) - count_params(net, [subnet]) == 2 * c * hidden + c + hidden
    for table in (CostTable.macs, CostTable.params):
        refused("SearchError", table, attended, net.space((0.5, 1.0)))
    refused("SearchError", macs_function, attended)


def test_resolution_of_the_subnet_comes_first():
    net = tiny(MobileNetV1)
    at = Subnet(net.largest.widths, resolution=16)
    assert count_macs(net, at) == count_macs(net, net.largest, resolution=16)
    assert count_macs(net, at) == count_macs(net, at, resolution=64)


def test_parameters_of_several_subnets_are_those_of_their_union():
    for kind in NETS:
        net = tiny(kind)
        subnets = random_subnets(net, 4, seed=3)
        used = [torch.zeros_like(p, dtype=torch.bool) for p in net.parameters()]
        for subnet in subnets:
            for mark, small in zip(used, thin_net(net, subnet.widths).parameters(), strict=True):
                mark.squeeze_(0) if mark.dim() == small.dim() + 1 else mark
                mark[tuple(map(slice, small.shape))] = True
        assert count_params(net, subnets) == sum(int(mark.sum()) for mark in used)


# -- tables ----------------------------------------------------------------------------------------------


def space_of(net, rng) -> SearchSpace:
    """Two to four random choices for every unit."""
    return SearchSpace(tuple(tuple(sorted({int(w) for w in rng.integers(1, most + 1, size=4)}))
                             for most in net.largest.widths))


@pytest.mark.parametrize(("size", "conventions"), ((32, "AD"), (224, "BC")))
@every_net
def test_table_equals_the_traced_count(kind, size, conventions):
    net, rng = tiny(kind, size), np.random.default_rng(5)
    space = space_of(net, rng)
    subnets = [space.largest, space.smallest, *(space.sample(rng) for _ in range(2))]
    for convention in conventions:
        table = CostTable.macs(net, space, convention, resolution=32)
        for subnet in subnets:
            assert table.of(subnet) == count_macs(net, subnet, convention, 32)
    params = CostTable.params(net, space)
    predicted = params.predict(np.array([s.widths for s in subnets]))
    assert predicted.tolist() == [count_params(net, [s]) for s in subnets]


@pytest.mark.parametrize("padding", (None, "match", "ends"))
@every_net
def test_the_function_of_subnets_is_the_count_of_each(kind, padding):
    net, rng = tiny(kind, 224), np.random.default_rng(4)
    subnets = [net.largest, *random_subnets(net, 2, seed=2)]
    if padding:
        embed_(net, [rng.permutation(width) for width in net.largest.widths], {"one": subnets[1].widths}, padding)
    for convention in "AC":
        for fused in (False, True):
            macs = macs_function(net, convention, 32, fused=fused)
            for subnet in subnets:
                assert macs(subnet) == count_macs(net, subnet, convention, 32, fused=fused)
    refused("ParameterError", macs, Subnet((1, 2)))


def test_a_hundred_thousand_subnets_at_once():
    net = full(MobileNetV1, 100, 32)
    space = net.space((0.25, 0.5, 0.75, 1.0))
    widths = space.sample_widths(np.random.default_rng(0), 100_000)
    costs = CostTable.macs(net, space).predict(widths)
    assert costs.shape == (100_000,) and costs.dtype == np.int64
    # Multi-platform, section 3: 27 h w c for the stem, then h w (9 c + c c')
    sides = [32, 32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2]
    c = widths.T
    expected = 27 * 32**2 * c[0] + 100 * c[-1]
    for i, side in enumerate(sides[1:], 1):
        expected = expected + side**2 * (9 * c[i - 1] + c[i - 1] * c[i])
    assert np.array_equal(costs, expected)


@pytest.mark.parametrize("kind", (MobileNetV1, VGG), ids=("MobileNetV1", "VGG"))
def test_a_chains_pairs_add_up_to_the_cost(kind):
    net, rng = tiny(kind), np.random.default_rng(2)
    space = space_of(net, rng)
    for table in (CostTable.macs(net, space), CostTable.macs(net, space, "C"), CostTable.params(net, space)):
        pairs = table.chain()
        assert [p.shape for p in pairs] == [(len(a), len(b)) for a, b in pairwise(space.widths)]
        for _ in range(5):
            subnet = space.sample(rng)
            index = [choices.index(w) for choices, w in zip(space.widths, subnet.widths, strict=True)]
            assert table.of(subnet) == sum(p[i, j] for p, i, j in zip(pairs, index, index[1:], strict=False))


@pytest.mark.parametrize("kind", (MobileNetV2, ResNet50), ids=("MobileNetV2", "ResNet50"))
def test_nets_with_joins_are_no_chain(kind):
    net = tiny(kind)
    with pytest.raises(SlimnbError, match="SearchError"):
        CostTable.macs(net, net.space((0.5, 1.0))).chain()


def test_widths_outside_the_table_and_unknown_conventions():
    net = tiny(MobileNetV1)
    table = CostTable.macs(net, net.space((0.5, 1.0)))
    for widths in ((8, 16, 24, 24, 33), (8, 16, 24, 24, 31), (8, 16, 24, 24, 0), (8, 16, 24, 24, -1)):
        with pytest.raises(SlimnbError, match=rf"SearchError: width {widths[-1]} in channel unit 4"):
            table.predict(np.array([net.largest.widths, widths]))
    for widths in ((8, 16), (8,) * 6):
        refused("ParameterError", table.predict, np.array([widths]))
    refused("ParameterError", count_macs, net, net.largest, "E")
    refused("ParameterError", CostTable.macs, net, net.space((1.0,)), "E")


def test_a_table_says_which_resolution_it_is_for():
    net = tiny(MobileNetV1)
    space = SearchSpace(net.space((0.5, 1.0)).widths, resolutions=(16, 32))
    table = CostTable.macs(net, space, resolution=16)
    assert table.of(Subnet(net.largest.widths, resolution=16)) == count_macs(net, net.largest, resolution=16)
    refused("SearchError", table.of, Subnet(net.largest.widths, resolution=32))


# -- maps of one pixel -----------------------------------------------------------------------------------


def test_small_sides_have_a_number():
    cases = ((full(VGG, 10, 32), 24, 212_157_440), (full(MobileNetV1, 10, 32), 16, 11_596_288),
             (full(MobileNetV1), 32, 12_610_048))
    for net, side, number in cases:
        assert count_macs(net, net.uniform(1.0, side)) == number == by_the_plain_net(net, net.largest, side)
    refused("ParameterError", count_macs, full(VGG, 10, 32), full(VGG, 10, 32).uniform(1.0, 8), words="max-pooling")


@every_net
@pytest.mark.parametrize("size", (32, 224))
def test_at_any_side_macs_are_those_of_a_plain_net_in_eval_mode(kind, size):
    net = tiny(kind, size)
    for subnet, side in product(random_subnets(net, 2), (4, 9)):
        assert count_macs(net, subnet, resolution=side) == by_the_plain_net(net, subnet, side)


def by_the_plain_net(net, subnet, side: int) -> int:
    """MACs of convolutions and the classifier, for one image."""
    thin = thin_net(net, subnet.widths)
    with FlopCounterMode(display=False) as counter:
        thin(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2
