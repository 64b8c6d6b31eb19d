"""A load is whole or nothing: of any policy and net, after anything that happened to the net that loads."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from gated_nets import KINDS, ready
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import fails, refused
from small_nets import NETS, POLICIES, fill_statistics, images, random_subnets, tiny

from slimnb.errors import StoreError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nn.gate import Gated
from slimnb.papers.ds_net.method import Ema, EnsembleBootstrapping
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.optim import make_optimizer
from slimnb.train.state import load_first_channels_, load_net

X = images(2, 16)


def saved(net) -> dict:
    """What `net.state_dict()` says, in tensors of its own; the rest has been JSON."""
    return {name: json.loads(json.dumps(value)) if name == "_extra_state" else value.clone()
            for name, value in net.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        for name, value in a.items())


def made(bn: str, count: int, seed: int = 0, kind=MobileNetV1, reverse: bool = False):
    net = tiny(kind, bn=bn, seed=seed)
    subnets = random_subnets(net, 4, step=8 if bn == "group" else 1)[:count]
    fill_statistics(net, subnets[::-1] if reverse else subnets, seed)
    return net, subnets


@pytest.mark.parametrize("bn", POLICIES)
@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_a_net_takes_the_slots_that_were_saved(kind, bn):
    """Fewer than it has, more, others, or the same in another order."""
    for count, own, reverse in ((1, 3, False), (3, 1, False), (2, 2, True), (0, 3, False), (2, 0, False)):
        net, subnets = made(bn, count, kind=kind)
        other, _ = made(bn, own, 1, kind, reverse)
        other.load_state_dict(net.state_dict())
        assert other.slots == net.slots and same(saved(other), saved(net))
        for subnet in subnets:
            assert torch.equal(other(X, subnet), net(X, subnet))
        if bn != "group" and own > count:
            with fails("NumericsError"):  # what it knew of others is of other weights
                other(X, random_subnets(net, 4)[own - 1])
        other.reserve([net.largest])
        other.train()(X, net.largest, momentum=0.5).sum().backward()


def test_a_state_loads_after_other_subnets_were_calibrated():
    net, (subnet, _) = made("calibrated", 2)
    state, expected = saved(net), net(X, subnet)
    calibrate_bn(net, [net.largest, *random_subnets(net, 3, seed=5)], [X])
    net.load_state_dict(state)
    assert same(saved(net), state) and torch.equal(net(X, subnet), expected)


DAMAGE = {
    "a name less": lambda state: state.pop("classifier.bias"),
    "a name more": lambda state: state.update(x=torch.zeros(1)),
    "another shape": lambda state: state.update({"classifier.weight": torch.zeros(3, 3)}),
    "no tensor": lambda state: state.update({"classifier.weight": None}),
    "a row less": lambda state: state.update({"features.0.norm.running_mean": torch.zeros(1, 8)}),
    "a channel less": lambda state: state.update({"features.0.norm.running_var": torch.ones(2, 7)}),
    "no slots": lambda state: state.pop("_extra_state"),
    "slots of another net": lambda state: state["_extra_state"]["slots"].append([{"widths": [8, 8]}, 0]),
    "slots without stamps": lambda state: state["_extra_state"].update(stamps=[]),
    "a slot that is no number": lambda state: state["_extra_state"]["slots"][0].__setitem__(1, "0"),
    "half of the rest": lambda state: state["_extra_state"].pop("slots"),
    "nothing as the rest": lambda state: state.update(_extra_state=None),
    "a list as the rest": lambda state: state.update(_extra_state=[1, 2]),
    "unknown padding": lambda state: state["_extra_state"].update(padding="match", scattered=[99]),
}


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated"))
@pytest.mark.parametrize("own", (3, *(pytest.param(own, marks=pytest.mark.sweep) for own in (1, 2, 4))))
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_leaves_everything_as_it_was(bn, own, damage):
    state = saved(made(bn, 2)[0])
    DAMAGE[damage](state)
    net, subnets = made(bn, own, 1)
    optimizer, before, outputs = make_optimizer(net), saved(net), [net(X, subnet) for subnet in subnets]
    refused("StoreError", net.load_state_dict, state, words="Nothing was loaded")
    if "_extra_state" in state:
        rest = state.pop("_extra_state")
        refused("StoreError", load_net, net, state, rest, words="Nothing was loaded")
    assert same(saved(net), before)
    assert all(torch.equal(net(X, subnet), output) for subnet, output in zip(subnets, outputs, strict=True))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(POLICIES), st.integers(0, 4), st.integers(0, 4), st.booleans(), st.booleans(), st.data())
def test_a_load_is_whole_or_nothing(bn, count, own, reverse, assign, data):
    state = saved(made(bn, count)[0])
    lost = data.draw(st.lists(st.sampled_from(sorted(state)), max_size=2, unique=True))
    cut = data.draw(st.lists(st.sampled_from(sorted(state.keys() - {"_extra_state"})), max_size=2, unique=True))
    for name in cut:
        state[name] = state[name][..., :-1]
    for name in lost:
        del state[name]
    net, _ = made(bn, own, 1, reverse=reverse)
    before = saved(net)
    try:
        net.load_state_dict(state, assign=assign)
    except StoreError as error:
        assert (lost or cut) and len(str(error)) <= 240 and same(saved(net), before)
    else:
        assert not lost and not cut and same(saved(net), state)


def test_part_of_a_state_loads_if_its_shapes_fit():
    net, _ = made("calibrated", 2)
    before, classifier = saved(net), {"classifier.bias": net.classifier.bias + 1}
    net.load_state_dict(classifier, strict=False)
    assert not same(saved(net), before)
    before = saved(net)
    refused("StoreError", net.load_state_dict, classifier | {"classifier.weight": torch.zeros(1)}, strict=False)
    assert same(saved(net), before)


def test_the_first_channels_are_loaded_whole_or_not_at_all():
    wide, thin = MobileNetV1(10, 32, 0.5), MobileNetV1(10, 32, 0.25, seed=1)
    before, tensors = saved(thin), dict(wide.named_parameters())
    refused("StoreError", load_first_channels_, thin, tensors | {"classifier.bias": torch.zeros(3)})
    assert same(saved(thin), before)
    load_first_channels_(thin, tensors)
    assert torch.equal(thin.classifier.bias, wide.classifier.bias)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_gated_nets_load_whole_or_not_at_all(kind):
    net, x = ready(kind)
    state, expected = saved(net), net(x, Gated()).logits
    other, _ = ready(kind, seed=4)
    if other.bn != "group":
        calibrate_bn(other, [net.largest, *net.paths[::-1]], [x])
    before, own = saved(other), other(x, Gated()).logits
    for name in sorted(state.keys() - {"_extra_state"})[::7]:
        refused("StoreError", other.load_state_dict, state | {name: state[name][None]})
    assert same(saved(other), before) and torch.equal(other(x, Gated()).logits, own)
    other.load_state_dict(state)
    assert same(saved(other), state) and torch.equal(other(x, Gated()).logits, expected)


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated"))
def test_an_average_loads_whole_or_not_at_all_and_follows_its_own_rows_only(bn):
    net, _ = made(bn, 2)
    objective = EnsembleBootstrapping(net, 0.5)
    state = {name: value + 1 if value.is_floating_point() else value for name, value in saved(net).items()
             if name != "_extra_state"}
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    for name in list(state)[::5]:
        refused("StoreError", objective.load_state_dict, state | {name: state[name][None]})
        refused("StoreError", objective.load_state_dict, {key: value for key, value in state.items() if key != name})
    assert same(objective.state_dict(), before)
    objective.load_state_dict(state)
    assert same(dict(objective.state_dict()), state)
    turned, _ = made(bn, 2, reverse=True)  # as many subnets, but each in another's row
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    refused("ParameterError", objective.ema.update, turned, words="same rows")
    assert same(objective.state_dict(), before)
    Ema(turned).update(turned)


# -- inference mode --------------------------------------------------------------------------------------

def loaded(net, subnets):
    net.load_state_dict(saved(made(net.bn, 3)[0]))


UNDER_INFERENCE = {
    "reserve": lambda net, subnets: net.reserve([net.largest]),
    "calibrate": lambda net, subnets: calibrate_bn(net, [*subnets, net.largest], [X]),
    "load": loaded,
    "evaluate": lambda net, subnets: net.eval()(X, subnets[0]),
    "pad": lambda net, subnets: net.set_padding("match", {0: range(8)}),
    "copy": lambda net, subnets: copy.deepcopy(net).eval()(X, subnets[0]),
    "frozen": lambda net, subnets: net.frozen_copy()(X, subnets[0]),
}


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated"))
@pytest.mark.parametrize("act", UNDER_INFERENCE)
def test_what_is_done_under_inference_mode_leaves_ordinary_tensors(bn, act):
    net, subnets = made(bn, 2)
    with torch.inference_mode():
        UNDER_INFERENCE[act](net, subnets)
    assert not any(t.is_inference() for t in (*net.parameters(), *net.buffers()))
    calibrate_bn(net, subnets, [X])
    net.train()(X, subnets[0]).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    net.reserve([net.largest])


def test_a_net_made_under_inference_mode_serves_there():
    with torch.inference_mode():
        net, subnets = made("calibrated", 2)
        net(X, subnets[0])
        net.classifier.bias.add_(1)
        with fails("NumericsError", "stale"):
            net(X, subnets[0])
