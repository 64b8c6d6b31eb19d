"""Elastic nets: their spaces and costs are the papers', a subnet is an independent plain network."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from refusals import refused
from small_nets import ELASTIC, images, meta
from small_nets import elastic as tiny
from torch.testing import assert_close

from slimnb.cost.macs import count_macs, count_params
from slimnb.errors import SlimnbError
from slimnb.nets.elastic import ElasticDepthwise
from slimnb.nets.mobilenet import MobileNetV3
from slimnb.nets.proxyless_nas import ProxylessNAS
from slimnb.nets.sorting import embed_, expand_order
from slimnb.subnet import Subnet, make_divisible
from slimnb.train.calibrate import calibrate_bn, evaluate

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # computed in float64, handed out as float32
every_net = pytest.mark.parametrize("kind", ELASTIC, ids=lambda kind: kind.__name__)
D_E = ((2, 3), (3, 3), (4, 3), (4, 4), (3, 6), (4, 6))


def drawn(net, n, seed=0):
    rng = np.random.default_rng(seed)
    return [net.search_space.sample(rng) for _ in range(n)]


def plain(net, subnet, x):
    """Logits by batch statistics, from the layer table in the papers: functional calls, no layer of slimnb."""
    p, small, mobile = dict(net.named_parameters()), net.input_size == 32, isinstance(net, MobileNetV3)
    act = {"relu": F.relu, "relu6": F.relu6, "hswish": lambda t: t * F.relu6(t + 3) / 6, "none": lambda t: t}

    def layer(name, x, width, stride, activation, kernel=1, depthwise=False):
        weight = p[f"{name}.conv.weight"][:width]
        if depthwise:
            for at, (large, little) in enumerate(((7, 5), (5, 3))):
                if kernel < large:
                    cut = (large - little) // 2
                    rows = weight[:, 0, cut:-cut, cut:-cut].flatten(1)
                    weight = (rows @ p[f"{name}.conv.transforms.{at}"].T).view(width, 1, little, little)
        else:
            weight = weight[:, : x.shape[1]]
        x = F.conv2d(x, weight, None, stride, kernel // 2, groups=width if depthwise else 1)
        gamma, beta = (p[f"{name}.norm.{kind}"][0, :width] for kind in ("weight", "bias"))
        return act[activation](F.batch_norm(x, None, None, gamma, beta, True, eps=1e-5))

    def attend(name, x):
        hidden = make_divisible(x.shape[1] // 4)
        w, b, v, c = (p[f"{name}.{which}"] for which in ("squeeze.weight", "squeeze.bias", "excite.weight",
                                                         "excite.bias"))
        z = F.relu(x.mean((2, 3)) @ w[:hidden, : x.shape[1]].T + b[:hidden])
        z = z @ v[: x.shape[1], :hidden].T + c[: x.shape[1]]
        return x * (F.relu6(z + 3) / 6)[:, :, None, None]

    widths, kernels = iter(subnet.widths), iter(subnet.kernels)
    x = layer("features.0", x, stem := next(widths), 1 if small else 2, "hswish" if mobile else "relu6", 3)
    body = "features.1.body" if stem == subnet.widths[1] else "features.1"
    y = F.conv2d(x, p[f"{body}.0.conv.weight"], None, 1, 1, groups=stem)
    gamma, beta = p[f"{body}.0.norm.weight"][0], p[f"{body}.0.norm.bias"][0]
    y = act["relu" if mobile else "relu6"](F.batch_norm(y, None, None, gamma, beta, True, eps=1e-5))
    y = layer(f"{body}.1", y, next(widths), 1, "none")
    x = x + y if "body" in body else y
    for stage, ((_, blocks, stride, activation, attention), depth) in enumerate(
            zip(net.layout, subnet.depths, strict=True)):
        for i in range(blocks):
            hidden, out, kernel = next(widths), next(widths), next(kernels)
            assert (hidden > 0) == (i < depth)
            if i >= depth:
                continue
            name = f"features.{stage + 2}.{i}" + (".body" if i else "")
            y = layer(f"{name}.0", x, hidden, 1, activation)
            by = 1 if i else stride
            y = layer(f"{name}.1", y, hidden, by, activation, kernel, depthwise=True)
            y = attend(f"{name}.2", y) if attention else y
            y = layer(f"{name}.{3 if attention else 2}", y, out, 1, "none")
            x = x + y if i else y
    x = layer(f"features.{len(net.layout) + 2}", x, next(widths), 1, net.activation)
    x = x.mean((2, 3))
    if mobile:
        x = act["hswish"](x @ p["mix.conv.weight"][:, :, 0, 0].T)
    return x @ p["classifier.weight"].T + p["classifier.bias"]


@pytest.mark.parametrize("size", (32, 224))
@every_net
def test_logits_and_gradients_are_a_plain_networks(kind, size):
    net, x = tiny(kind, size), images(4, 16 if size == 32 else 32)
    direction = torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    for subnet in (net.largest, net.search_space.smallest, *drawn(net, 4)):
        gradients = []
        for logits in (net(x, subnet), plain(net, subnet, x).float()):
            net.zero_grad()
            (logits * direction).sum().backward()
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()])
        assert_close(net(x, subnet), logits, **EXACT)
        for ours, expected in zip(*gradients, strict=True):
            assert_close(ours, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated", "group"))
@every_net
@torch.no_grad()
def test_extract_and_bind_agree_with_the_supernet(kind, bn):
    net = tiny(kind, bn=bn)
    subnets = [net.largest, *drawn(net, 4), replace(net.elastic(2, 4, 5), resolution=12)]
    if bn != "group":
        calibrate_bn(net, subnets, [images(8, 16, 3)])
    net.eval()
    x = images(3, 16)
    for subnet in subnets:
        logits = net(x, subnet)
        assert logits.std(0).max() > 1e-3
        thin = net.extract(subnet)
        assert_close(thin(x).float(), logits, **EXACT)
        assert_close(net.bind(subnet)(x), logits, rtol=0, atol=0)
        assert sum(p.numel() for p in thin.parameters()) == count_params(net, [subnet])


@every_net
@torch.no_grad()
def test_masks_give_samples_their_own_depths_and_widths(kind):
    net = tiny(kind)
    space = replace(net.search_space, kernels=((5,),) * len(net.block_units))
    subnets = [space.sample(np.random.default_rng(i)) for i in range(5)]
    assert len({subnet.depths for subnet in subnets}) > 1
    calibrate_bn(net, subnets, [images(8, 16, 3)])
    net.eval()
    x = images(5, 16)
    masks = net.masks(torch.tensor([subnet.widths for subnet in subnets]), subnets)
    assert_close(net(x, masks), torch.cat([net(x[i: i + 1], s) for i, s in enumerate(subnets)]), **EXACT)
    other = net.elastic(None, None, 3)
    calibrate_bn(net, [other], [x])
    refused("ParameterError", net.masks, torch.tensor([subnets[0].widths, other.widths]), [subnets[0], other])


@every_net
def test_statistics_are_kept_per_subnet_and_survive_a_save(kind):
    net, x = tiny(kind), images(6, 16)
    subnets = [*drawn(net, 3), net.elastic(1, 3, 3, 12)]
    calibrate_bn(net, subnets, [x[:4], x[4:]])
    found = evaluate(net, subnets, [(x, torch.arange(6))])
    twin = tiny(kind, seed=1)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    again = evaluate(twin, subnets, [(x, torch.arange(6))])
    assert [e.ce for e in again] == [e.ce for e in found] and len({e.ce for e in found}) == 4
    refused("NumericsError", evaluate, net, [net.largest], [(x, torch.arange(6))])


def test_kernel_transforms_start_as_identities():
    net = MobileNetV3(10, 32, **ELASTIC[MobileNetV3], kernels=(3, 5, 7))
    conv = next(m for m in net.modules() if isinstance(m, ElasticDepthwise))
    for kernel in (3, 5, 7):
        s = net.select(net.elastic(None, None, kernel), statistics="batch")
        cut = (7 - kernel) // 2
        centre = conv.weight[:8, :, cut: 7 - cut, cut: 7 - cut]
        assert_close(conv.filters(s, conv.weight[:8]), centre, rtol=0, atol=0)
    only = MobileNetV3(10, 32, **ELASTIC[MobileNetV3])
    assert not any("transforms" in name for name, _ in only.named_parameters())
    one = only.state_dict()
    assert all(torch.equal(one[name], t) for name, t in net.state_dict().items() if name in one and "extra" not in name)


# -- the papers' numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "macs"), [(224, (151.3, 222.0, 292.7, 383.7, 424.4, 566.2)),
                                            (32, (45.2, 68.4, 91.6, 120.9, 133.0, 179.8))])
def test_macs_of_the_six_reported_subnets(size, macs):
    net = meta(MobileNetV3, 1000 if size == 224 else 100, size)
    assert tuple(round(count_macs(net, net.elastic(d, e)) / 1e6, 1) for d, e in D_E) == macs


def test_macs_of_small_kernels_and_resolutions():
    net = meta(MobileNetV3, kernels=(3, 5, 7))
    assert round(count_macs(net, net.search_space.smallest) / 1e6, 1) == 121.3
    assert round(count_macs(net, net.elastic(2, 3, 7, 144)) / 1e6, 1) == 66.1
    assert round(count_macs(net, net.elastic(3, 3, 7, 176)) / 1e6, 1) == 141.5


def test_macs_of_proxyless():
    net = meta(ProxylessNAS)
    assert [round(count_macs(net, net.elastic(d, e)) / 1e6) for d, e in ((2, 3), (4, 6))] == [185, 607]


def test_sizes_of_the_spaces():
    paper, ofa = (meta(MobileNetV3, kernels=kernels).search_space for kernels in ((7,), (3, 5, 7)))
    assert paper.size == (3**2 + 3**3 + 3**4) ** 5 == 21_924_480_357  # 2.19e10
    assert ofa.size == (9**2 + 9**3 + 9**4) ** 5 == 21_758_655_492_572_485_851  # 2.18e19
    assert meta(ProxylessNAS).search_space.size == 3 * paper.size  # and the last block's expansions


def test_hidden_widths_are_rounded_multiples_of_the_input():
    net = meta(MobileNetV3, largest=1.2)
    at = dict(zip(net.unit_names, zip(net.search_space.widths, net.largest.widths, strict=True), strict=True))
    assert at["stage0.0.out"][1] == make_divisible(24 * 1.2) == 32
    assert at["stage0.1.hidden"][0] == (96, 128, 192) and at["tail"][1] == 1152


# -- names -----------------------------------------------------------------------------------------------


def test_one_network_has_one_name():
    net = meta(MobileNetV3, 10, 32, kernels=(3, 5, 7))
    smallest = net.elastic(2, 3, 3)
    assert smallest == net.search_space.smallest and net.elastic() == net.largest == net.search_space.largest
    assert net.uniform(1.0) == net.largest
    assert smallest.kernels == (3, 3, 0, 0) * 5 and smallest.widths[6:10] == (0, 0, 0, 0)
    assert net.elastic(2, 3, 3, 128).resolution == 128
    assert all(net.search_space.contains(subnet) for subnet in drawn(net, 20))


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: replace(s, depths=()), "0 depths"),
    (lambda s: replace(s, kernels=s.kernels[1:]), "19 kernels"),
    (lambda s: replace(s, widths=s.widths[1:]), "43 widths"),
    (lambda s: replace(s, depths=(1, *s.depths[1:])), "depth 1 of stage 0"),
    (lambda s: replace(s, depths=(3, *s.depths[1:])), "kernel 0 in block 2"),
    (lambda s: replace(s, kernels=(*s.kernels[:2], 7, *s.kernels[3:])), "kernel 7 in block 2"),
    (lambda s: replace(s, widths=(*s.widths[:6], 72, *s.widths[7:])), "as its block is dropped"),
    (lambda s: replace(s, kernels=(9, *s.kernels[1:])), "kernel 9 in block 0"),
    (lambda s: replace(s, widths=(16, 16, 50, *s.widths[3:])), "width 50 in unit 'stage0.0.hidden'"),
    (lambda s: replace(s, widths=(8, *s.widths[1:])), "width 8 in unit 'stem'"),
    (lambda s: replace(s, widths=(0, *s.widths[1:])), "width 0 in unit 'stem'"),
    (lambda s: replace(s, widths=(16, 16, 0, *s.widths[3:])), "width 0 in unit 'stage0.0.hidden'"),
])
def test_other_subnets_are_refused_in_one_line(change, words):
    net = meta(MobileNetV3, 10, 32, kernels=(3, 5, 7))
    with pytest.raises(SlimnbError, match="ParameterError") as caught:
        net.check(change(net.elastic(2, 3, 3)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_input_is_refused():
    net = meta(MobileNetV3, 10, 32)
    for call in (lambda: net.elastic(2, 5), lambda: net.elastic(5, 3), lambda: net.elastic(2, 3, 5),
                 lambda: net.uniform(0.5), lambda: net.check(Subnet(net.largest.widths))):
        refused("ParameterError", call)
    refused("ParameterError", net.elastic, 2, 3, 7, 4)
    for kernels in ((), (7, 5), (4,), (3, 3)):
        refused("ParameterError", meta, MobileNetV3, 10, 32, kernels=kernels)
    with pytest.raises(SlimnbError, match="stage of 4 blocks"):
        meta(MobileNetV3, 10, 32, depths=(2, 3))
    refused("ParameterError", meta, MobileNetV3, 10, 32, expands=(4, 3))


# -- sorting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", ((), (4,), (3, 4)))
@every_net
@torch.no_grad()
def test_sorting_hidden_channels_keeps_the_outputs(kind, levels):
    net, x = tiny(kind), images(4, 16)
    kept = {3: net.elastic(None, 3, 7), 4: net.elastic(1, 4, 3), 6: net.elastic(2, 6, 5)}
    calibrate_bn(net, [net.largest], [x])
    before = {expand: net(x, subnet, statistics="batch") for expand, subnet in kept.items()}
    evaluated = net(x, net.largest, statistics="slot")
    embed_(net, expand_order(net, levels))
    for expand, subnet in kept.items():
        same = torch.allclose(net(x, subnet, statistics="batch"), before[expand], rtol=1e-5, atol=1e-6)
        assert same == (expand in (*levels, 6))
    assert_close(net(x, net.largest, statistics="slot"), evaluated, **EXACT)
    for hidden, _ in net.block_units:  # sorted now: the order is that in which channels lie
        assert np.array_equal(expand_order(net, levels)[hidden], np.arange(net.largest.widths[hidden]))
