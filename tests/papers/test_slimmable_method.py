"""S-Net's and US-Net's samplers, and in-place distillation against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import refused
from small_training import small, us_net
from torch.testing import assert_close

from slimnb.errors import SlimnbError
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches, Uniform, any_width
from slimnb.rng import rng_at
from slimnb.train.protocols import Labels, Pass


def test_switches_run_largest_first_whatever_their_order():
    net = small()
    named = {f"{mult}x": net.uniform(mult) for mult in (0.75, 0.25, 1.0, 0.5)}
    sampler = Switches(named)
    assert [made.name for made in sampler.plan(0)] == ["1.0x", "0.75x", "0.5x", "0.25x"]
    assert [(made.route, made.target) for made in sampler.plan(7)] == [
        (named[made.name], "labels") for made in sampler.plan(0)
    ]
    assert sampler.subnets()[0] == net.largest and set(sampler.subnets()) == set(named.values())
    refused("ParameterError", Switches, {})


def test_sandwich_is_largest_smallest_and_random_ones():
    net = small()
    drawn = []

    def draw(rng):
        drawn.append(net.uniform((0.5, 0.625, 0.75)[rng.integers(3)]))
        return drawn[-1]

    sampler = Sandwich(net.largest, net.uniform(0.25), draw, n_random=3, seed=5)
    for step in range(4):
        drawn.clear()
        passes = sampler.plan(step)
        assert [made.name for made in passes] == ["largest", "smallest", "random", "random", "random"]
        assert [made.target for made in passes] == ["labels"] + ["teacher"] * 4
        assert [made.route for made in passes] == [net.largest, net.uniform(0.25), *drawn]
    assert sampler.subnets() == [net.largest, net.uniform(0.25)]
    assert len(Sandwich(net.largest, net.uniform(0.25), draw, n_random=0).plan(0)) == 2


def test_the_smallest_of_a_sandwich_may_learn_from_something_else():
    net = small()
    passes = Sandwich(net.largest, net.uniform(0.25), any_width(net, (0.5,)), seed=5, target="ensemble").plan(0)
    assert [made.target for made in passes] == ["labels", "ensemble", "teacher", "teacher"]
    usual = Sandwich(net.largest, net.uniform(0.25), any_width(net, (0.5,)), seed=5).plan(0)
    assert [made.target for made in usual] == ["labels", "teacher", "teacher", "teacher"]
    assert [made.route for made in usual] == [made.route for made in passes]


def test_uniform_is_the_largest_and_a_random_one_from_the_labels():
    net = small()
    passes = Uniform(net.largest, any_width(net, (0.5,))).plan(3)
    assert [(p.route, p.target) for p in passes] == [(net.largest, "labels"), (net.uniform(0.5), "labels")]


def test_any_width_draws_each_different_subnet_equally_often():
    net = small()
    mults = (0.5, 0.51, 0.75, 1.0)  # the first two round to the same channels
    assert net.uniform(0.5) == net.uniform(0.51)
    draw, rng = any_width(net, mults), rng_at(0, "test", 0)
    drawn = [draw(rng) for _ in range(3000)]
    assert set(drawn) == {net.uniform(mult) for mult in mults}
    assert all(abs(drawn.count(subnet) - 1000) < 150 for subnet in set(drawn))  # 5.8 standard deviations


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Y = torch.tensor([3, 0, 4, 4])
LARGEST, TAUGHT = Pass(None, name="largest"), Pass(None, target="teacher", name="smallest")


def softmax(row, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row.tolist()]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 1.0), (3.0, 0.9), (1.0, 0.0)])
def test_distillation_loss_by_hand(temperature, alpha):
    objective = InplaceDistillation(temperature, alpha)
    objective.begin(None, None, [])
    teacher, student = logits(1).requires_grad_(), logits(2).requires_grad_()
    loss, ce = objective(LARGEST, teacher, Y)
    hard = [-math.log(softmax(row)[label]) for row, label in zip(teacher, Y, strict=True)]
    assert_close(loss.tolist(), hard)
    assert_close(ce.tolist(), hard)

    loss, ce = objective(TAUGHT, student, Y)
    hard = [-math.log(softmax(row)[label]) for row, label in zip(student, Y, strict=True)]
    soft = [
        -sum(p * math.log(q) for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True))
        for t, s in zip(teacher, student, strict=True)
    ]
    assert_close(
        loss.tolist(),
        [alpha * temperature**2 * kd + (1 - alpha) * h for kd, h in zip(soft, hard, strict=True)],
    )
    assert_close(ce.tolist(), hard)
    loss.sum().backward()
    assert teacher.grad is None and student.grad is not None, "the teacher learns nothing from its pupils"
    assert not ce.requires_grad


def test_smoothing_is_for_the_labels_only():
    objective = InplaceDistillation(smoothing=0.1)
    objective.begin(None, None, [])
    z = logits(1)
    loss, ce = objective(LARGEST, z, Y)
    targets = 0.9 * torch.eye(5, dtype=z.dtype)[Y] + 0.1 / 5
    assert_close(loss, -(targets * z.log_softmax(1)).sum(1))
    assert_close(ce, -z.log_softmax(1)[torch.arange(4), Y])
    taught, _ = objective(TAUGHT, logits(2), Y)
    assert_close(taught, -(z.softmax(1) * logits(2).log_softmax(1)).sum(1))
    smoothed, plain = Labels(smoothing=0.1)(LARGEST, z, Y)
    assert torch.equal(smoothed, loss) and torch.equal(plain, ce)


def test_the_first_labelled_pass_is_the_teacher_of_its_step_only():
    objective = InplaceDistillation()
    objective.begin(None, None, [])
    objective(LARGEST, logits(1), Y)
    objective(Pass(None, name="another"), logits(3), Y)
    taught, _ = objective(TAUGHT, logits(2), Y)
    assert_close(taught, -(logits(1).softmax(1) * logits(2).log_softmax(1)).sum(1))
    objective.begin(None, None, [])
    with pytest.raises(SlimnbError, match="ParameterError: pass 'smallest' before any teacher"):
        objective(TAUGHT, logits(2), Y)


def test_random_subnets_of_a_space_can_be_drawn_too():
    net, _, _ = us_net()
    space = net.space((0.5, 1.0))
    passes = [
        Sandwich(net.largest, space.smallest, space.sample, n_random=4, seed=1).plan(step)
        for step in range(5)
    ]
    drawn = {made.route for plan in passes for made in plan if made.name == "random"}
    assert len(drawn) > 2 and all(space.contains(subnet) for subnet in drawn)
