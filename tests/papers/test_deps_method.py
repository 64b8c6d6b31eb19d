"""Delayed shrinking: eq. 4 for any epsilon, both ramps in numbers, any sampler; OFA's and CompOFA's draws."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from small_training import FACTORIES, Memory, Noise, everything, fit, same_bits, sandwich, small, us_net

from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV3
from slimnb.papers.deps.method import (
    DelayedShrinking,
    Draws,
    FixedTeacher,
    LinearRamp,
    RateRamp,
    compound,
    delayed,
    phase,
)
from slimnb.papers.slimmable.method import InplaceDistillation, Switches
from slimnb.rng import rng_at
from slimnb.subnet import SearchSpace
from slimnb.train.loop import train, train_step
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels, Pass

LAYOUT = ((8, 2, 2, "relu", False), (16, 3, 2, "hswish", True))


def elastic(seed: int = 0, **options) -> MobileNetV3:
    """Two stages of up to two and three blocks, expansions 3, 4 and 6."""
    given = {"layout": LAYOUT, "stem": 8, "first": 8, "tail": 24, "head": 32, "kernels": (3,)} | options
    net = MobileNetV3(10, 32, seed=seed, **given)
    with torch.no_grad():
        net.classifier.weight.mul_(20)
    return net


# -- epsilon ---------------------------------------------------------------------------------------------


def test_the_linear_ramp_begins_at_1e_4_and_rises_by_equal_steps_to_1():
    ramp = LinearRamp(2500)
    values = [ramp(i) for i in range(2501)]
    assert values[0] == 1e-4 and values[-1] == 1
    assert all(b - a == pytest.approx((1 - 1e-4) / 2500) for a, b in pairwise(values))


def test_the_released_constants():
    # 5.2: 270 epochs, ramp in epochs 145 to 149, batches of 2048 of ImageNet; its tables are read one epoch late.
    epoch = 625
    rates = Schedule(2.6, 270 * epoch)
    ramp = RateRamp(rates, 145 * epoch, 5 * epoch, reference=151 * epoch)
    assert ramp(0) == pytest.approx(3.0e-4, abs=1e-5) and ramp(5 * epoch - 1) == pytest.approx(0.986, abs=5e-4)


@pytest.mark.parametrize("kind", [{}, {"kind": "linear"}, {"kind": "constant"}, {"kind": "exponential", "gamma": 0.9,
                                                                                 "period": 10}])
def test_the_rate_ramp_makes_the_subnets_rate_rise_linearly(kind):
    rates = Schedule(0.4, 100, floor=0.001, **kind)
    ramp = delayed(sandwich(small()), rates, 0.5, "rate", 20).ramp
    own = [ramp(i) * rates(50 + i) for i in range(20)]
    assert own == pytest.approx([rates(70) * (i + 1) / 20 for i in range(20)])


@given(st.integers(0, 60), st.integers(1, 40), st.integers(0, 120))
def test_epsilon_is_a_function_of_the_step(warm_up, ramp, step):
    shrinking = DelayedShrinking(sandwich(small()), warm_up, LinearRamp(ramp))
    expected = 0 if step < warm_up else min(1, 1e-4 + 0.9999 * (step - warm_up) / ramp)
    assert shrinking.epsilon(step) == pytest.approx(expected, rel=1e-12)
    passes = shrinking.plan(step)
    assert len(passes) == (1 if step < warm_up else 4) and passes[0].weight == 1
    assert {made.weight for made in passes[1:]} <= {shrinking.epsilon(step)}


def gradients(net, passes, objective) -> list[torch.Tensor]:
    """Gradients of all parameters after one step of `passes`, zero where a pass does not reach."""
    x, y = Noise().batch(0)
    train_step(net, x.to(next(net.parameters()).dtype), y, passes, objective, make_optimizer(net))
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("warm_up", [0, 3, 4, 7, 9, 30])
def test_the_gradient_of_a_step_is_equation_4(warm_up):
    step, net = 9, elastic().double().train()
    space, objective = net.search_space, InplaceDistillation()
    inner = FACTORIES["Sandwich"](small())
    inner.largest, inner.smallest = Pass(space.largest), Pass(space.smallest, target="teacher")
    inner.draw = space.sample
    shrinking = DelayedShrinking(inner, warm_up, LinearRamp(6))
    full, *others = inner.plan(step)
    epsilon = shrinking.epsilon(step)
    assert epsilon == (1 if warm_up in (0, 3) else 0 if warm_up == 30 else 1e-4 + (1 - 1e-4) * (step - warm_up) / 6)

    def separate(made):  # the others' losses alone: the full net's pass only teaches
        return gradients(copy.deepcopy(net), [full, made], objective)

    of_full = gradients(copy.deepcopy(net), [full], objective)
    expected = [g.clone() for g in of_full]
    for made in others:
        for total, both, alone in zip(expected, separate(made), of_full, strict=True):
            total += epsilon * (both - alone)
    got = gradients(net, shrinking.plan(step), objective)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # losses are in float32
    if warm_up == 30:
        assert all(torch.equal(a, b) for a, b in zip(got, of_full, strict=True))


def test_without_a_ramp_the_others_count_fully_at_once():
    inner = sandwich(small())
    shrinking = DelayedShrinking(inner, 3)
    assert shrinking.plan(3) == inner.plan(3) and shrinking.plan(2) == inner.plan(2)[:1]


@pytest.mark.parametrize("name", sorted(set(FACTORIES) - {"Draws", "Routed"}))
def test_any_sampler_can_be_delayed(name):
    net = small("private" if name == "Switches" else "calibrated").train()
    shrinking = DelayedShrinking(FACTORIES[name](net), 2, LinearRamp(2))
    net.reserve(shrinking.subnets())
    history, _ = fit(net, shrinking, InplaceDistillation(), intervals=6)
    steps = [sum(row["step"] == step for row in history) for step in range(1, 7)]
    assert steps[:2] == [1, 1] and all(n > 1 for n in steps[2:])


def test_a_run_interrupted_within_the_ramp_ends_in_the_same_bits():
    def trained(memory, until):
        net, sampler, objective = us_net()
        looked = iter(range(1, 100))
        stop = (lambda: next(looked) >= until) if until else (lambda: False)
        shrinking = DelayedShrinking(sampler, 3, LinearRamp(6))
        _, optimizer = fit(net, shrinking, objective, 12, run=memory, save_seconds=0, stop=stop)
        return everything(net, optimizer)

    straight, memory = trained(Memory(), 0), Memory()
    for until in (2, 3, 1):  # in the warm-up, in the ramp, and once more
        refused("BusyError", trained, memory, until)
    assert same_bits(trained(memory, 0), straight)


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "given"), [
    ("ParameterError", {"share": 1.0}), ("ParameterError", {"share": -0.1}), ("ParameterError",
                                                                              {"share": float("nan")}),
    ("ParameterError", {"ramp_steps": 51}), ("ParameterError", {"ramp": "cosine"}), ("ParameterError",
                                                                                     {"ramp_steps": 0}),
    ("ParameterError", {"ramp": "rate", "ramp_steps": 50}), ("ParameterError", {"ramp": "rate", "rates": Schedule(0.1,
                                                                                                                  100,
                                                                                                                  warmup=90)}),
])
def test_bad_input(code, given):
    usual = {"rates": Schedule(0.1, 100), "share": 0.5, "ramp": "linear", "ramp_steps": 10}
    with pytest.raises(SlimnbError) as caught:
        delayed(sandwich(small()), **usual | given)
    assert type(caught.value).__name__ == code and "\n" not in str(caught.value)


@pytest.mark.parametrize("first", [0.0, -1e-4, 1.1, float("nan")])
def test_epsilon_lies_in_0_to_1(first):
    refused("ParameterError", LinearRamp, 4, first, words="first")


def test_what_cannot_be_delayed():
    net = small()
    refused("ParameterError", DelayedShrinking, Switches({"1.0x": net.largest}), 5)
    backwards = Switches({"1.0x": net.largest, "0.5x": net.uniform(0.5)})
    backwards.passes = [Pass(net.uniform(0.5), target="teacher"), Pass(net.largest)]
    refused("ParameterError", DelayedShrinking, backwards, 5)
    refused("ParameterError", DelayedShrinking, sandwich(net), -1)


# -- OFA and CompOFA -------------------------------------------------------------------------------------


def drawn(draw, n: int) -> set:
    return {draw(rng_at(0, "test", step)) for step in range(n)}


def test_a_phase_draws_of_each_choice_the_largest():
    net = elastic(kernels=(3, 5, 7))
    whole = net.search_space
    assert phase(whole).size == 1 and phase(whole).largest == net.largest
    kernel = phase(whole, 3)
    assert {k for s in drawn(kernel.sample, 60) for k in s.kernels} == {3, 5, 7}
    assert {s.depths for s in drawn(kernel.sample, 60)} == {net.largest.depths}
    depth = phase(whole, 3, 2)
    assert depth.depths == ((2,), (2, 3)) and depth.smallest.widths[-4:] == (0, 0, *net.largest.widths[-2:])
    expand = phase(whole, 3, 3, 2)
    hidden = [whole.widths[units[0]] for units in whole.block_units]
    assert [expand.widths[units[0]] for units in whole.block_units] == [c[1:] for c in hidden]
    assert phase(whole, 3, 3, 3) == whole


def test_compofa_has_243_subnets_of_tied_depth_and_expansion():
    net = MobileNetV3(10, 32)
    subnets = drawn(compound(net.search_space), 4000)
    assert len(subnets) == 243
    assert {net.elastic(2, 3), net.elastic(3, 4), net.elastic(4, 6)} <= subnets
    for subnet in subnets:
        net.check(subnet)
        assert set(subnet.kernels) <= {0, 7}


def test_compofa_refuses_choices_that_do_not_pair():
    space = SearchSpace(((8,), (8, 16)), depths=((0, 1, 2),), kernels=((3,), (3,)), block_units=((0,), (1,)))
    refused("ParameterError", compound, space)


def test_a_fixed_teacher_adds_its_cross_entropy_and_is_left_alone():
    net, teacher = elastic().double().train(), elastic(1).double().requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    x, y = Noise().batch(0)
    x = x.double()
    objective, made = FixedTeacher(teacher, ratio=0.7), Pass(net.search_space.smallest)
    objective.begin(net, x, [made])
    logits = net(x, made.route)
    loss, ce = objective(made, logits, y)
    taught, own = teacher.train()(x).softmax(1), logits.log_softmax(1)
    hard = -own[torch.arange(8), y]
    torch.testing.assert_close(loss, hard - 0.7 * (taught * own).sum(1))
    torch.testing.assert_close(ce, hard.detach())
    state = teacher.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.items() if isinstance(value, torch.Tensor))


def test_draws_of_no_subnet_are_refused():
    refused("ParameterError", Draws, lambda rng: None, 0)


# -- a look into training, and a part of it --------------------------------------------------------------


class Spoiler:
    """A probe that does to its net and to randomness whatever a probe should be able to do."""

    def __init__(self):
        self.rows = []

    def at(self, step):
        return step % 3 == 1

    def __call__(self, step, net, x, y):
        assert net.training
        torch.manual_seed(step)
        net.eval().reserve([net.uniform(0.625)])
        net(x, net.largest, statistics="batch").sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        return [{"step": step, "noise": torch.rand(()).item()}]


def test_a_probe_disturbs_nothing_and_its_rows_survive_an_interruption():
    def trained(probe, memory=None, until=0):
        torch.manual_seed(5)
        net, sampler, objective = us_net()
        looked = iter(range(1, 100))
        stop = (lambda: next(looked) >= until) if until else (lambda: False)
        history, optimizer = fit(net, sampler, objective, 9, probe=probe, run=memory, save_seconds=0, stop=stop)
        return history, everything(net, optimizer), torch.rand(()).item()

    plain, probe = trained(None), Spoiler()
    seen = trained(probe)
    assert seen[0] == plain[0] and same_bits(seen[1], plain[1]) and seen[2] == plain[2]
    assert [row["step"] for row in probe.rows] == [1, 4, 7]
    memory, again = Memory(), Spoiler()
    refused("BusyError", trained, Spoiler(), memory, 5)
    assert same_bits(trained(again, memory)[1], plain[1]) and again.rows == probe.rows


def test_two_spans_make_the_steps_of_one_run():
    whole, parts = us_net(), us_net()
    history, optimizer = fit(*whole, 8, intervals=4)
    rates, other = Schedule(0.05, 8), make_optimizer(parts[0])
    rows = [train(*parts[:1], Noise(), *parts[1:], rates, other, quiet=True, intervals=2, span=span)
            for span in ((0, 4), (4, 8))]
    assert rows[0] + rows[1] == history
    assert same_bits(everything(parts[0], other), everything(whole[0], optimizer))


@pytest.mark.parametrize("span", [(-1, 4), (4, 4), (0, 9)])
def test_a_span_outside_the_schedule_is_refused(span):
    net = small()
    refused("ParameterError", fit, net, Switches({"1.0x": net.largest}), Labels(), 8, span=span)
