"""Slimmable channel sorting: the full net computes what it did, and every subnet is a contiguous slice."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from padding_oracle import random_order, run_masked
from refusals import fails
from small_nets import NETS, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

from slimnb.errors import SlimnbError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nets.vgg import VGG
from slimnb.nn.blocks import Chain, ConvNormAct, Residual
from slimnb.nn.layers import SlimmableLinear, SlimmableSqueezeExcite
from slimnb.nn.zero_padding import ENDS, MATCH, SHORTCUT, streams
from slimnb.subnet import Subnet

every_net = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
EXACT = {"rtol": 1e-6, "atol": 1e-6}
X = images(3, 16)


def logits(net, x: torch.Tensor, subnet: Subnet) -> torch.Tensor:
    """Logits in the precision of the weights."""
    seen = []
    with net.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        net(x, subnet)
    return seen[0]


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated"))
@every_net
@torch.no_grad()
def test_the_full_net_computes_what_it_did(kind, bn):
    net = tiny(kind, bn=bn)
    fill_statistics(net, [net.largest, *random_subnets(net, 2)])
    single = copy.deepcopy(net).float()
    for precise, dtype, tolerance in ((net, torch.float64, 1e-12), (single, torch.float32, 1e-5)):
        x = X.to(dtype)
        expected = logits(precise, x, net.largest)
        held = list(precise.parameters())
        embed_(precise, random_order(net))
        assert all(p is q for p, q in zip(precise.parameters(), held, strict=True))
        assert_close(logits(precise, x, net.largest), expected, rtol=tolerance,
                     atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("kind", (MobileNetV1, VGG), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("padding", (MATCH, SHORTCUT))
@torch.no_grad()
def test_a_subnet_of_a_chain_keeps_the_first_of_the_order(kind, padding):
    net, before = tiny(kind, bn="shared_affine"), tiny(kind, bn="shared_affine")
    order = random_order(net)
    counts = {str(i): subnet.widths for i, subnet in enumerate(random_subnets(net, 3))}
    subnets = embed_(net, [torch.from_numpy(channels) for channels in order], counts, padding)
    assert net.padding is None and net.reach(net.largest) == ()
    assert {name: subnet.widths for name, subnet in subnets.items()} == counts
    assert list(net.slots) == list(subnets.values())
    for subnet in subnets.values():
        kept = [channels[:n] for channels, n in zip(order, subnet.widths, strict=True)]
        assert_close(net(X, subnet, statistics="batch"), run_masked(before, kept, X).float(), **EXACT)


@every_net
def test_one_order_per_stream_scatters_nothing(kind):
    net = tiny(kind)
    names, order = set(net.state_dict()), random_order(net)
    for stream in streams(net):
        for unit in stream:
            order[unit] = order[stream[0]]
    embed_(net, order, {"a": random_subnets(net, 1)[0].widths})
    assert net.padding is None and set(net.state_dict()) == names


@pytest.mark.parametrize("padding", (MATCH, SHORTCUT, ENDS))
@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated"))
@torch.no_grad()
def test_statistics_of_the_full_net_stay_and_others_are_forgotten(bn, padding):
    net = tiny(ResNet50, bn=bn)
    (subnet,) = random_subnets(net, 1)
    small = Subnet(net.largest.widths, resolution=12)
    fill_statistics(net, [net.largest, subnet, small])
    expected = net(X, net.largest), net(X, small)
    (named,) = embed_(net, random_order(net), {"a": subnet.widths}, padding).values()
    assert net.slots[subnet] == 1 and len(net.slots) == (3 if named == subnet else 4)
    for lost in {subnet, named}:
        with fails("NumericsError"):
            net(X, lost)
    if padding == ENDS:  # its weights are about to be drawn anew
        with fails("NumericsError"):
            net(X, net.largest)
        return
    assert_close((net(X, net.largest), net(X, small)), expected, **EXACT)


class Attended(SlimmableNet):
    """A stem and a block with squeeze-and-excitation; joined to its input or not."""

    def __init__(self, joined: bool = False, bn: str = "calibrated"):
        super().__init__(10, 32, bn, "relu", 0)
        stem, hidden, out = (self.new_unit(name) for name in ("stem", "hidden", "out"))
        body = Chain(ConvNormAct(self, 16, 16, 3, unit=stem, sources=(stem,), depthwise=True),
                     ConvNormAct(self, 16, 24, 1, unit=hidden, sources=(stem,)),
                     SlimmableSqueezeExcite(24, unit=hidden),
                     ConvNormAct(self, 24, 16, 1, unit=out, sources=(hidden,)))
        last = Residual(body, None, "none", (stem, out)) if joined else body
        self.features = Chain(ConvNormAct(self, 3, 16, 3, unit=stem, sources=()), last)
        self.classifier = SlimmableLinear(16, 10, sources=(stem, out) if joined else (out,))
        self.finish((16, 24, 16))


@torch.no_grad()
def test_attention_follows_its_channels():
    net = Attended().double()
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)), dtype=p.dtype))
    expected = net(X, net.largest, statistics="batch")
    embed_(net, random_order(net))
    assert_close(net(X, net.largest, statistics="batch"), expected, rtol=1e-5, atol=1e-5)


# -- bad input, one line each; nothing is changed --------------------------------------------------------


def test_bad_orders_and_counts():
    net = tiny(MobileNetV2, bn="shared_affine")
    before = {name: t.clone() for name, t in net.named_parameters()}
    order, most = random_order(net), net.largest.widths
    doubled = [np.r_[channels[:-1], channels[0]] for channels in order]
    for given in (doubled, [channels[:-1] for channels in order], [channels.astype(float) for channels in order],
                  order[1:], []):
        with fails("ParameterError"):
            embed_(net, given)
    for code, counts in (("ParameterError", (most[0] + 1, *most[1:])), ("ParameterError", (0, *most[1:])),
                         ("ParameterError", most[1:]),
                         ("ParameterError", (1.5, *most[1:]))):
        with fails(code):
            embed_(net, order, {"a": most, "b": counts})
    with fails("ParameterError"):
        embed_(net, order, padding="none")
    assert net.padding is None and not net.slots
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name])


def test_nets_that_cannot_be_sorted():
    grouped = tiny(MobileNetV1, bn="group")
    with fails("ParameterError"):
        embed_(grouped, random_order(grouped))
    uneven = ResNet50(10, 32, (8, 4, 4, 24, 16), layout=((4, 1),), stem=8)
    with fails("ParameterError"):
        embed_(uneven, random_order(uneven))
    read = Attended(joined=True)
    before = read.features[0].conv.weight.clone()
    with fails("ParameterError"):
        embed_(read, random_order(read), {"a": (8, 12, 8)})
    assert torch.equal(read.features[0].conv.weight, before) and read.padding is None
    embed_(read, random_order(read), {"a": (8, 12, 8)}, SHORTCUT)


def test_an_unknown_subnet_is_told_what_to_call():
    net = tiny(ResNet50, bn="shared_affine").train()
    embed_(net, random_order(net), {"a": random_subnets(net, 1)[0].widths})
    with pytest.raises(SlimnbError, match=r"NumericsError: .*net\.reserve"):
        net(X, net.largest)
    with pytest.raises(SlimnbError, match=r"NumericsError: .*calibrate_bn"):
        net.eval()(X, net.largest)
