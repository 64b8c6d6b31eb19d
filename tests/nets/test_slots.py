"""Slots of statistics: who may be evaluated, what is saved, and how bad subnets are refused."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from refusals import fails
from small_nets import NETS, TINY, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

from slimnb.nets.mobilenet import MobileNetV1
from slimnb.subnet import Subnet

X = images(2, 16)


def calibrated(bn: str = "calibrated"):
    net = tiny(MobileNetV1, bn=bn)
    subnets = random_subnets(net, 2)
    fill_statistics(net, subnets)
    return net, subnets


# -- evaluation needs statistics, taken from these very weights ------------------------------------------


@pytest.mark.parametrize("bn", ("calibrated", "shared_affine", "private"))
def test_no_statistics(bn):
    net = tiny(MobileNetV1, bn=bn).eval()
    subnet = net.largest
    for run in (lambda: net(X, subnet), lambda: net.extract(subnet), lambda: net.bind(subnet)(X),
                lambda: net.masks(torch.tensor([subnet.widths]), [subnet])):
        with fails("NumericsError"):
            run()
    net.reserve([subnet])  # a slot alone holds no statistics yet
    with fails("NumericsError"):
        net(X, subnet)
    with fails("NumericsError"):
        net(X, net.masks(torch.tensor([subnet.widths] * 2)))


OPTIMISERS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.mark.parametrize("kwargs", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("optimiser", (torch.optim.SGD, torch.optim.AdamW))
def test_stale_after_an_optimiser_step(optimiser, kwargs):
    net, (subnet, other) = calibrated()
    net(X, subnet)  # evaluation leaves statistics valid, with gradients recorded or without
    with torch.no_grad():
        net(X, subnet)
    step = optimiser(net.parameters(), lr=1e-3, **kwargs)
    net.train()
    net(X, net.largest).sum().backward()
    net.eval()
    net(X, subnet)  # gradients alone change nothing
    step.step()
    for subnet_ in (subnet, other):
        with fails("NumericsError"), torch.no_grad():
            net(X, subnet_)
    with fails("NumericsError"):
        net.extract(subnet)
    net.mark_calibrated([subnet])
    net(X, subnet)
    with fails("NumericsError"):
        net(X, other)


def test_tracked_policies_are_never_stale():
    for bn in ("private", "shared_affine"):
        net, (subnet, _) = calibrated(bn)
        net.train()
        net(X, subnet).sum().backward()
        torch.optim.SGD(net.parameters(), lr=0.1, fused=True).step()
        net.eval()
        net(X, subnet)


def test_stale_after_writing_permuting_or_resetting_weights():
    def double(net):
        net.classifier.weight.mul_(2)

    def reorder(net):
        weight = net.features[0].conv.weight
        weight.copy_(weight.flip(0))

    for change in (double, reorder, lambda net: net.reset_parameters(5)):
        net, (subnet, _) = calibrated()
        with torch.no_grad():
            change(net)
            with fails("NumericsError"):
                net(X, subnet)


@torch.no_grad()
def test_mark_changed_is_for_writes_nobody_counts():
    net, (subnet, _) = calibrated()
    net.classifier.weight.data.mul_(2)
    net(X, subnet)  # unseen
    net.mark_changed()
    with fails("NumericsError"):
        net(X, subnet)


def test_casts_copies_and_layouts_keep_statistics():
    net, (subnet, _) = calibrated()
    net(X, subnet)
    expected = net(X, subnet)
    assert_close(copy.deepcopy(net)(X, subnet), expected, rtol=0, atol=0)
    assert_close(net.to(memory_format=torch.contiguous_format)(X, subnet), expected, rtol=1e-5, atol=1e-5)
    assert_close(net.float()(X.float(), subnet), expected, rtol=1e-3, atol=1e-3)


# -- training needs a slot where statistics are private --------------------------------------------------


@pytest.mark.parametrize("bn", ("private", "shared_affine"))
def test_unreserved_slot(bn):
    net = tiny(MobileNetV1, bn=bn).train()
    with fails("NumericsError"):
        net(X, net.largest)
    with fails("NumericsError"):
        net(X, net.largest, momentum=0.5)
    net.reserve([net.largest])
    net(X, net.largest)


@pytest.mark.parametrize("bn", ("calibrated", "group"))
def test_shared_policies_train_without_slots(bn):
    net = tiny(MobileNetV1, bn=bn).train()
    net(X, net.largest).sum().backward()
    assert net.slots == {}


def test_group_norm_evaluates_without_statistics_and_names_bad_widths():
    net = tiny(MobileNetV1, bn="group").eval()
    net(X, net.largest)
    odd = Subnet((8, 12, 16, 16, 32))
    with fails("ParameterError"):
        net(X, odd)
    with fails("ParameterError"):
        MobileNetV1(10, 32, (12, 16), layout=((12, 1), (16, 1)), bn="group")


def test_reserving_more_slots_keeps_the_old_ones():
    for bn in ("private", "shared_affine", "calibrated"):
        net, (subnet, _) = calibrated(bn)
        before = net(X, subnet)
        net.reserve([net.largest])
        assert_close(net(X, subnet), before, rtol=0, atol=0)
        rows = {tuple(norm.running_mean.shape[:1] + norm.weight.shape[:1]) for norm in net.norms()}
        assert rows == {(3, 3 if bn == "private" else 1)}


def test_all_subnets_in_one_row():
    net = tiny(MobileNetV1, bn="shared_affine")
    subnets = random_subnets(net, 3)
    net.reserve(subnets, shared=True)
    assert set(net.slots.values()) == {0} and net.norms()[0].running_mean.shape[0] == 1


def test_dropout_acts_before_the_classifier_by_its_own_generator():
    net, (subnet, _) = calibrated()
    draws = [net(X, subnet, dropout=0.5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# -- saving and loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated", "group"))
@pytest.mark.parametrize("assign", (False, True))
@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_state_dict_round_trip(kind, bn, assign):
    net = tiny(kind, bn=bn)
    subnets = random_subnets(net, 2, step=8 if bn == "group" else 1)
    fill_statistics(net, subnets)
    state = net.state_dict()
    state["_extra_state"] = json.loads(json.dumps(state["_extra_state"]))  # nothing but JSON in it
    fresh = kind(10, 32, **TINY[kind], bn=bn, seed=9).double().eval()
    fresh.load_state_dict(state, assign=assign)
    assert fresh.slots == net.slots
    for subnet in subnets:
        assert_close(fresh(X, subnet), net(X, subnet), rtol=0, atol=0)


def test_stale_stays_stale_and_missing_stays_missing_after_a_load():
    net, (stale, current) = calibrated()
    with torch.no_grad():
        net.classifier.bias.add_(1)
    net.mark_calibrated([current])
    net.reserve([net.largest])
    fresh = tiny(MobileNetV1, seed=4).eval()
    fresh.load_state_dict(net.state_dict())
    fresh(X, current)
    with fails("NumericsError"):
        fresh(X, stale)
    with fails("NumericsError"):
        fresh(X, fresh.largest)


@torch.no_grad()
def test_loading_other_weights_alone_makes_statistics_stale():
    net, (subnet, _) = calibrated()
    weights = {n: t for n, t in tiny(MobileNetV1, seed=7).state_dict().items() if n.endswith("conv.weight")}
    net.load_state_dict(weights, strict=False)
    with fails("NumericsError"):
        net(X, subnet)


@torch.no_grad()
def test_assigning_other_weights_of_the_same_age_makes_statistics_stale():
    (net, (subnet, _)), (other, _) = calibrated(), calibrated()
    other.classifier.bias.copy_(other.classifier.bias + 1)
    net.classifier.bias.copy_(net.classifier.bias + 0)
    net.mark_calibrated([subnet])
    net.load_state_dict(dict(other.named_parameters()), strict=False, assign=True)
    with fails("NumericsError"):
        net(X, subnet)


# -- bad input, one line each ----------------------------------------------------------------------------


@pytest.mark.parametrize("mult", (0, -1, math.nan, math.inf, True, "0.5", None))
def test_bad_multipliers(mult):
    net = tiny(MobileNetV1)
    with fails("ParameterError"):
        net.uniform(mult)
    with fails("ParameterError"):
        MobileNetV1(10, 32, mult)
    with fails("ParameterError"):
        net.space((0.5, mult))


def test_multipliers_beyond_the_supernet():
    net = tiny(MobileNetV1)
    with fails("ParameterError"):
        net.uniform(1.5)
    with fails("ParameterError"):
        tiny(NETS[2]).uniform(0.001)  # floor rounding leaves no channel
    with fails("ParameterError"):
        net.space(())


@pytest.mark.parametrize(("widths", "code"), (
    ((8, 16, 24), "ParameterError"), ((), "ParameterError"), ((8, 16, 24, 24, 33), "ParameterError"), ((0, 16, 24, 24,
                                                                                                        32),
                                                                                                       "ParameterError")))
def test_subnets_that_do_not_fit(widths, code):
    net = tiny(MobileNetV1)
    for use in (lambda s: net(X, s), net.bind, net.extract, lambda s: net.reserve([s])):
        with fails(code):
            use(Subnet(widths))


def test_resolution_too_small():
    net = tiny(MobileNetV1)
    with fails("ParameterError"):
        net(X, Subnet(net.largest.widths, resolution=4))


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("largest", ((8, 16), (0,) * 100, [8.0, 16.0]))
def test_bad_largest(kind, largest):
    with fails("ParameterError"):
        kind(10, 32, largest, **TINY[kind])


def test_zero_width_in_largest():
    with fails("ParameterError"):
        MobileNetV1(10, 32, (8, 16, 24, 0, 32), layout=TINY[MobileNetV1]["layout"])


def test_unknown_policy_and_size():
    with fails("ParameterError"):
        MobileNetV1(bn="switchable")
    with fails("ParameterError"):
        MobileNetV1(input_size=64)


def test_a_supernet_may_be_given_by_its_widths():
    net = MobileNetV1(10, 32, (8, 24, 16, 40, 8), layout=TINY[MobileNetV1]["layout"])
    assert net.largest == Subnet((8, 24, 16, 40, 8))


def test_the_same_seed_gives_the_same_weights_whatever_torch_drew_before():
    first = MobileNetV1(10, 32, seed=3, **TINY[MobileNetV1]).state_dict()
    torch.rand(7)
    state = torch.get_rng_state()
    second = MobileNetV1(10, 32, seed=3, **TINY[MobileNetV1])
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in second.state_dict().items():
        assert torch.equal(value, first[name]) if isinstance(value, torch.Tensor) else value == first[name]
    with torch.no_grad():
        second.norms()[0].weight.fill_(3)
    second.reset_parameters(3)
    for name, value in second.named_parameters():
        assert torch.equal(value, first[name])


# -- spaces of a net -------------------------------------------------------------------------------------


def test_space_of_a_net():
    net = MobileNetV1(10, 32)
    space = net.space((0.25, 0.5, 1.0), resolutions=(24, 32))
    assert space.largest == Subnet(net.largest.widths, resolution=32)
    assert space.smallest == net.uniform(0.25, resolution=24)
    assert space.size == 3**14 * 2


def test_space_with_one_choice_per_stage():
    net = NETS[1](10, 224)  # MobileNetV2
    mults = (0.75, 0.8, 0.9, 1.0)
    space = net.space(mults, tied=net.stages)
    groups = sorted(set(net.stages))
    assert len(groups) == 9  # stem, seven stages, tail (PSS-Net, section 4)
    choices = [len(space.widths[net.stages.index(g)]) for g in groups]
    assert choices[-1] == 1 and space.size == math.prod(choices)
    for mult in mults:
        assert space.contains(net.uniform(mult))
    subnet = space.sample(np.random.default_rng(0))
    at = dict(zip(net.unit_names, subnet.widths, strict=True))
    assert at["stage2.0.hidden"] == 6 * at["stage1.1.out"] and at["stage2.1.hidden"] == 6 * at["stage2.0.out"]
    assert len({at[f"stage3.{i}.out"] for i in range(4)}) == 1


def test_resnet_has_four_stages_and_a_stem():
    net = NETS[3](10, 224)
    space = net.space((0.25, 0.5, 0.75, 1.0), tied=net.stages)
    assert space.size == 4**5
