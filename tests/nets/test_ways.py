"""Every net gives the same logits in every way that it can be run, or says in one line that it cannot."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from gated_nets import KINDS as GATED
from gated_nets import ready
from padding_oracle import random_order
from refusals import refused
from small_nets import ELASTIC, NETS, POLICIES, elastic, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

from slimnb.cost.execution import execution_modes
from slimnb.nets.base import Masks
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2, MobileNetV3
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nn.gate import Gated
from slimnb.nn.layers import Selection, SlimmableConv2d
from slimnb.nn.zero_padding import ENDS, PADDINGS
from slimnb.papers.ds_net.dynamic import DynamicNet
from slimnb.papers.ds_net.nets import DSMobileNet
from slimnb.papers.pss_net.switcher import PricedSubnet, SubnetSwitcher
from slimnb.train.calibrate import calibrate_bn, evaluate

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # computed in float64, handed out as float32
X = images(3, 16)

PLAIN_CASES = [*product(NETS, POLICIES, (None,)), *product(ELASTIC, POLICIES, (None,)),
               *product((MobileNetV2, ResNet50), POLICIES[:3], PADDINGS)]
GATED_CASES = [(kind, None, None) for kind in GATED]
ALWAYS = {*zip(NETS, POLICIES, (None,) * 4, strict=True), (MobileNetV3, "calibrated", None), (DSMobileNet, None, None),
          *((ResNet50, "shared_affine", padding) for padding in PADDINGS[:2])}
"""A net of each sort and policy runs always; `-m sweep` runs the others."""
FEW = {(ResNet50, "shared_affine", ENDS), (MobileNetV3, "calibrated", None)}  # of what takes long


def label(case) -> str:
    return "-".join(part if isinstance(part, str) else part.__name__ for part in case if part)


def cases(*which, always=ALWAYS):
    return pytest.mark.parametrize("case", [pytest.param(case, id=label(case), marks=[] if case in always else
                                                         pytest.mark.sweep) for case in which])


def prepared(case):
    """A net of a case in eval mode, and subnets with statistics: narrow, shallow, of small kernels, of a resolution."""
    kind, bn, padding = case
    if kind in GATED:
        net, _ = ready(kind)
        return net, [net.path(0), net.path(1), net.widest]
    if kind in ELASTIC:
        net, rng = elastic(kind, bn=bn), np.random.default_rng(0)
        subnets = [net.elastic(1, 3, 5), net.elastic(2, 4, 3), *(net.search_space.sample(rng) for _ in range(2))]
    else:
        net = tiny(kind, bn=bn)
        subnets = random_subnets(net, 3, step=8 if bn == "group" else 1)
        if padding:
            counts = {f"{i}": subnet.widths for i, subnet in enumerate(subnets)}
            subnets = list(embed_(net, random_order(net), counts, padding).values())
    subnets = list(dict.fromkeys([*subnets, net.largest, replace(subnets[0], resolution=20)]))
    fill_statistics(net, subnets)
    return net, subnets


def scripted(plain):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.script(plain)


def pickled(plain):
    return pickle.loads(pickle.dumps(plain))  # noqa: S301, our own bytes


def exported(module):
    return torch.export.export(module, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()


def ways_of(net, subnet):
    """Name -> a call that gives the logits of X."""
    modes = execution_modes(net, subnet, X)
    ways = {"index": modes["index"], "slice": modes["slice"], "ideal": modes["ideal"],
            "bound": lambda: net.bind(subnet)(X), "extracted": lambda: net.extract(subnet)(X),
            "switcher": lambda: SubnetSwitcher(net, [PricedSubnet(subnet, 1.0, 50.0)])(X, 2.0)}
    if net.padding == ENDS:
        refused("ParameterError", modes["mask"], words="masks in a net padded at the ends")
        return ways
    rows = net.masks(torch.tensor([subnet.widths] * len(X)), [subnet] * len(X))
    return ways | {"mask": modes["mask"], "masks": lambda: net(X, rows)}


@cases(*PLAIN_CASES, *GATED_CASES)
@torch.no_grad()
def test_all_ways_give_the_same_logits(case):
    net, subnets = prepared(case)
    x, expected = X.clone(), [net(X, subnet) for subnet in subnets]
    assert all(logits.std(0).max() > 1e-3 for logits in expected)  # the images make a difference, and the subnets
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(expected))
    for subnet, logits in zip(subnets, expected, strict=True):
        for name, way in ways_of(net, subnet).items():
            assert_close(way().float(), logits, **EXACT, msg=lambda text, at=(name, subnet): f"{at}: {text}")
    assert torch.equal(x, X)  # no way writes into its images


@cases(*PLAIN_CASES, *GATED_CASES, always=FEW)
@torch.no_grad()
def test_tools_take_extracted_and_bound_subnets(case):
    net, subnets = prepared(case)
    subnet = subnets[-1]
    plain, bound, expected = net.extract(subnet), net.bind(subnet), net(X, subnet)
    for tool in (torch.fx.symbolic_trace, scripted, copy.deepcopy, pickled, exported):
        assert_close(tool(plain)(X).float(), expected, **EXACT)
    assert_close(exported(bound)(X), expected, **EXACT)


@cases(*GATED_CASES)
@pytest.mark.parametrize("packed", (True, False))
@torch.no_grad()
def test_groups_of_images_give_what_their_paths_give(case, packed):
    net, x = ready(case[0])
    logits, choices = DynamicNet(net, packed=packed, overhead=0.0).route(x)
    assert len(choices.unique(dim=0)) > 1
    each = torch.cat([net(x[i: i + 1], net.path(*chosen)) for i, chosen in enumerate(choices.tolist())])
    assert_close(logits, each, **EXACT)
    assert_close(net(x, Gated()).logits, each, **EXACT)


@cases(*PLAIN_CASES)
@torch.no_grad()
def test_only_gates_route_images(case):
    net, _ = prepared(case)
    refused("ParameterError", DynamicNet, net, words="must be a GatedNet")
    refused("ParameterError", net, X, Gated(), words="Gated")
    refused("ParameterError", net.bind, Gated(), words="Gated")
    for route in (Gated(), Masks(tuple(torch.ones(1, most) for most in net.largest.widths), 0)):
        refused("ParameterError", net.extract, route, words=type(route).__name__)


@torch.no_grad()
def test_masks_keep_the_resolution_of_their_subnets_or_refuse():
    net, (subnet, *_, smaller) = prepared((MobileNetV1, "calibrated", None))
    assert smaller.resolution == 20 and net.masks(torch.tensor([smaller.widths]), [smaller]).resolution == 20
    both = torch.tensor([subnet.widths, smaller.widths])
    refused("ParameterError", net.masks, both, [subnet, smaller], words="resolution")
    for columns in ([torch.ones(1, most) for most in net.largest.widths[1:]], [torch.ones(1, 1)] * 5):
        refused("ParameterError", net, X, Masks(tuple(columns), 0), words="masks of")


# -- images and features of the wrong shape ----------------------------------------------------------------

WRONG = {"1 channel": X[:, :1], "2 channels": X[:, :2], "4 channels": torch.cat([X, X[:, :1]], 1), "one image": X[0],
         "bytes": (40 * X).to(torch.uint8), "integers": (40 * X).long(), "flat": X.flatten(1)}


@cases(*PLAIN_CASES, *GATED_CASES)
def test_images_that_the_stem_does_not_take_are_refused(case):
    net, (subnet, *_) = prepared(case)
    y = torch.zeros(len(X), dtype=torch.int64)
    calls = {"slice": lambda x: net(x, subnet), "batch": lambda x: net(x, subnet, statistics="batch"),
             "bound": net.bind(subnet), "evaluation": lambda x: evaluate(net, [subnet], [(x, y)]),
             "switcher": lambda x: SubnetSwitcher(net, [PricedSubnet(subnet, 1.0, 50.0)])(x, 2.0)}
    if net.padding != ENDS:
        masks = net.masks(torch.tensor([subnet.widths] * len(X)), [subnet] * len(X))
        calls["mask"] = lambda x: net(x, masks)
    if case[0] in GATED:
        calls |= {"gates": lambda x: net(x, Gated()), "groups": DynamicNet(net),
                  "groups, sliced": DynamicNet(net, packed=False)}
    calls["calibration"] = lambda x: calibrate_bn(net, [subnet], [x])  # last: it forgets statistics
    for call, x in product(calls.values(), WRONG.values()):
        refused("DataError", call, x, words=r"\(B, 3, H, W\)")


@cases(*PLAIN_CASES, *GATED_CASES)
@torch.no_grad()
def test_features_of_another_width_are_refused(case):
    net, subnets = prepared(case)
    width = net.classifier.in_features
    for subnet in subnets:
        s = net.select(subnet)
        features = net.features(X, s)
        assert_close(net.classify(features, s), net.run(X, replace(s, resolution=None)), rtol=0, atol=0)
        if net.mix is not None:
            continue  # a convolution reads them
        narrow = features[:, :-1]
        refused("ParameterError", net.classify, narrow, s, words=f"{narrow.shape[1]} features")
        if features.shape[1] < width:
            refused("ParameterError", net.classify, features, net.select(net.largest, None, "batch"))
    for rows in (slice(None, width - 1), slice(None, width // 2)):
        x = torch.zeros(2, width)[:, rows].double()
        refused("ParameterError", net.classifier, x, net.select(net.largest, None, "batch"))


def test_a_stem_takes_its_own_channels_whatever_they_are():
    stem, s = SlimmableConv2d(1, 4, 3, unit=0), Selection((4,))
    with torch.no_grad():
        stem.weight.fill_(1)
    assert stem(torch.ones(2, 1, 5, 5), s).shape == (2, 4, 5, 5)
    refused("DataError", stem, torch.ones(2, 3, 5, 5), s, words="1 channels")


# -- one value per channel ---------------------------------------------------------------------------------

def small_images(case, n, seed=0):
    """Images of which the last maps have one pixel, and the first more."""
    return images(n, 4 if case[0] is MobileNetV1 else 2, seed)


ONE_POINT = [case for case in PLAIN_CASES if case[1] != "group" and not case[2]]


@cases(*ONE_POINT)
@torch.no_grad()
def test_an_image_alone_on_a_map_of_one_pixel_calibrates_behind_others(case):
    net, (subnet, *_) = prepared(case)
    several, single = small_images(case, 8, 1), small_images(case, 1, 2)
    calibrate_bn(net, [subnet], [several])
    row = net.slots[subnet]
    before = [norm.running_var[row].clone() for norm in net.norms()]
    assert calibrate_bn(net, [subnet], [several, single]) == 9
    kept = [torch.equal(norm.running_var[row], var) for norm, var in zip(net.norms(), before, strict=True)]
    assert any(kept) and not all(kept)  # where the map has one pixel, and before
    net.eval()
    assert net(single, subnet).isfinite().all()
    assert "channel unit" in refused("NumericsError", calibrate_bn, net, [subnet], [single, several], words="1 image")


@cases(*ONE_POINT)
def test_training_on_one_value_per_channel_is_refused(case):
    net, (subnet, *_) = prepared(case)
    refused("NumericsError", net.train(), small_images(case, 1), subnet, words="1 image on a map of 1 x 1")
    assert net(small_images(case, 2), subnet).isfinite().all()
