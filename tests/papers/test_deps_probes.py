"""Gradients against autograd by hand, what probes report, and that a training does not notice them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_training import Noise, sandwich, small

from slimnb.nets.mobilenet import MobileNetV3
from slimnb.papers.deps.probes import LayerGradients, NormRatio, added, by_layer, gradients, norm
from slimnb.papers.slimmable.method import InplaceDistillation
from slimnb.train.loop import train, train_step
from slimnb.train.measure import Accuracy, Probes
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels, Pass


def by_hand(net, x, y, passes, epsilon):
    """Gradient of CE(full) + epsilon sum CE(subnet, softmax of full), from one call of autograd."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    full, *others = (net(x, made.route) for made in passes)
    teacher = full.detach().softmax(1)
    loss = F.cross_entropy(full, y) + epsilon * sum(F.cross_entropy(z, teacher) for z in others)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.3, 1.0])
def test_the_gradient_of_any_epsilon_is_equation_4(epsilon):
    net, (x, y) = small().double(), Noise().batch(0)
    x = x.double()
    passes = sandwich(net).plan(0)
    found = added(*gradients(net, x, y, passes, InplaceDistillation()), epsilon)
    expected = by_hand(net, x, y, passes, epsilon)
    assert set(found) == set(expected)
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-6, atol=1e-8)
    assert norm(found).item() == pytest.approx(torch.cat([g.flatten() for g in expected.values()]).norm().item())


def test_it_is_what_a_step_of_training_follows():
    net, (x, y) = small(), Noise().batch(0)
    full, *others = sandwich(net).plan(0)
    found = added(*gradients(net, x, y, [full, *others], InplaceDistillation()), 0.25)
    train_step(net, x, y, [full, *(replace(made, weight=0.25) for made in others)], InplaceDistillation(),
               make_optimizer(net))
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_layers_are_the_weights_in_order_and_cosines_are_with_the_full_gradient():
    net, (x, y) = small(), Noise().batch(0)
    full, others = gradients(net, x, y, sandwich(net).plan(0), InplaceDistillation())
    rows = by_layer(full, added(full, others, 1.0))
    assert [row["name"] for row in rows] == [name for name, p in net.named_parameters() if p.dim() > 1]
    assert [row["layer"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        a, b = full[row["name"]], full[row["name"]] + others[row["name"]]
        assert row["norm"] == pytest.approx(b.norm().item(), rel=1e-4)
        assert row["cosine"] == pytest.approx(F.cosine_similarity(a.flatten(), b.flatten(), 0).item(), abs=1e-5)
    assert [row["cosine"] for row in by_layer(full, full)] == pytest.approx([1.0] * len(rows), abs=1e-5)
    nothing = {name: torch.zeros_like(g) for name, g in full.items()}
    assert {row["cosine"] for row in by_layer(full, nothing)} == {None}


def test_kernel_transforms_that_the_full_net_does_not_use_are_no_layers():
    net = MobileNetV3(10, 32, layout=((24, 2, 2, "relu", True),), depths=(1, 2), expands=(3, 6), kernels=(3, 5),
                      stem=8, first=8, tail=16, head=16)
    x, y = Noise().batch(0)
    passes = [Pass(net.largest), Pass(net.elastic(1, 3, 3))]
    full, others = gradients(net, x, y, passes, Labels())
    only = set(others) - set(full)
    assert only and all("transforms" in name for name in only)
    both = added(full, others, 0.5)
    assert all(torch.equal(both[name], 0.5 * others[name]) for name in only)
    assert len(by_layer(full, both)) == sum(g.dim() > 1 for g in full.values())


def looks(net, steps=(2, 5)):
    plan = sandwich(net).plan
    batches = [Noise().batch(100 + i) for i in range(2)]
    accuracy = Accuracy({"full": net.largest, "smallest": net.uniform(0.5)}, lambda: (x for x, _ in batches),
                        lambda: iter(batches), steps)
    norms = NormRatio(plan, InplaceDistillation(), lambda step: 0.1 * step, every=2, first=1)
    return Probes([accuracy, LayerGradients(plan, InplaceDistillation(), steps), norms])


def trained(probe_of=None):
    net = small()
    probe = probe_of and probe_of(net)
    optimizer = make_optimizer(net)
    rows = train(net, Noise(), sandwich(net), InplaceDistillation(), Schedule(0.05, 7), optimizer, quiet=True,
                 probe=probe)
    momenta = [optimizer.state[p]["momentum_buffer"] for p in net.parameters()]
    return probe, rows, [*net.parameters(), *net.buffers(), *momenta], (net.slots, torch.random.get_rng_state())


def test_a_training_does_not_notice_that_it_is_looked_at():
    torch.manual_seed(3)
    _, rows, tensors, (slots, state) = trained()
    torch.manual_seed(3)
    probe, rows_, tensors_, (slots_, state_) = trained(looks)
    assert rows == rows_ and slots == slots_ and torch.equal(state, state_)
    assert len(tensors) == len(tensors_) and all(map(torch.equal, tensors, tensors_))
    assert json.loads(json.dumps(probe.rows)) == probe.rows


def test_each_probe_looks_where_it_is_due():
    probe, *_ = trained(looks)
    steps = {kind: [row["step"] for row in probe.rows if row["look"] == kind]
             for kind in ("layers", "norms", "accuracy")}
    assert set(steps["layers"]) == {2, 5} and steps["norms"] == [1, 3, 5] and steps["accuracy"] == [2, 2, 5, 5]
    norms = [row for row in probe.rows if row["look"] == "norms"]
    assert [row["epsilon"] for row in norms] == pytest.approx([0.1, 0.3, 0.5])
    assert all(row["ratio"] != row["ratio_at_1"] for row in norms)
    layers = [row for row in probe.rows if row["look"] == "layers" and row["step"] == 2]
    assert [row["gradient"] for row in layers] == sorted((row["gradient"] for row in layers),
                                                        key=["full", "shrinking", "epsilon-shrinking"].index)
    assert all(row["cosine"] == pytest.approx(1, abs=1e-4) for row in layers if row["gradient"] == "full")


def test_the_ratio_is_that_of_the_gradients_at_these_weights():
    net, (x, y) = small(), Noise().batch(0)
    plan = sandwich(net).plan
    (row,) = NormRatio(plan, InplaceDistillation(), lambda step: 0.2)(4, net, x, y)
    lengths = {e: torch.cat([g.flatten() for g in by_hand(net, x, y, plan(4), e).values()]).norm() for e in (0, 0.2, 1)}
    assert row["ratio"] == pytest.approx((lengths[0.2] / lengths[0]).item(), rel=1e-4)
    assert row["ratio_at_1"] == pytest.approx((lengths[1] / lengths[0]).item(), rel=1e-4)
