"""Five ways to run a subnet give the same logits, and a latency table is the sum of the layers that run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import refused
from small_nets import NETS, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

import slimnb.cost.execution as execution
import slimnb.cost.latency as latency
from slimnb.cost.execution import execution_modes, in_faster_format
from slimnb.cost.latency import compare_latency, latency_table, measure_latency
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nets.resnet import ResNet50
from slimnb.nn.blocks import ConvNormAct, MaxPool, Residual
from slimnb.subnet import Subnet

every_net = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
KEYS = {"median_ms", "low_ms", "min_ms", "iqr_ms", "rounds", "calls", "device", "threads", "batch", "dtype", "date"}


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated", "group"))
@every_net
@torch.no_grad()
def test_mask_index_slice_and_ideal_give_the_same_logits(kind, bn):
    net = tiny(kind, bn=bn)
    subnet, = random_subnets(net, 1, seed=3, step=8 if bn == "group" else 1)
    if kind is MobileNetV1:
        subnet = Subnet(subnet.widths, resolution=12)
    fill_statistics(net, [net.largest, subnet])
    net.train()  # modes are for evaluation whatever state the net is in
    x = images(3, 16)
    modes = execution_modes(net, subnet, x)
    assert list(modes) == ["full", "mask", "index", "slice", "ideal"]
    logits = {name: run().float() for name, run in modes.items()}
    for name in ("mask", "index", "ideal"):
        assert_close(logits[name], logits["slice"], rtol=1e-6, atol=1e-6)
    net.eval()
    assert torch.equal(logits["full"], net(x, net.largest)) and torch.equal(logits["slice"], net(x, subnet))
    assert (logits["full"] - logits["slice"]).abs().max() > 1e-3


def test_the_index_mode_gathers_at_every_call_and_the_ideal_net_has_its_own_weights():
    net = tiny(MobileNetV1)
    subnet, = random_subnets(net, 1)
    fill_statistics(net, [net.largest, subnet])
    modes = execution_modes(net, subnet, images(2, 16))
    before = {name: run() for name, run in modes.items()}
    with torch.no_grad():
        net.classifier.weight.mul_(1.5)
    net.mark_calibrated([net.largest, subnet])
    assert not torch.equal(modes["index"](), before["index"])
    assert torch.equal(modes["ideal"](), before["ideal"])


@pytest.mark.parametrize("faster", (0, 1))
@pytest.mark.parametrize("size", (32, 224))
@torch.no_grad()
def test_the_ideal_net_is_held_in_the_faster_memory_format(monkeypatch, faster, size):
    net = tiny(ResNet50, size)
    subnet, = random_subnets(net, 1)
    fill_statistics(net, [net.largest, subnet])
    form = (torch.contiguous_format, torch.channels_last)[faster]
    monkeypatch.setattr(execution, "compare_latency",
                        lambda ways, *_, **settings: {way: {"min_ms": 1.0 + (way != faster)} for way in ways})
    for x in (images(3, 16), images(3, 16).contiguous()):
        ideal = execution_modes(net, subnet, x)["ideal"]
        for tensor in (*ideal.args, *(p for p in ideal.func.parameters() if p.dim() == 4)):
            assert tensor.is_contiguous(memory_format=form)
        assert_close(ideal().float(), net(x, subnet), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_one_of_both_formats_is_timed_and_chosen():
    plain, x = torch.nn.Conv2d(3, 4, 3).eval(), images(2, 8, dtype=torch.float32)
    assert_close(in_faster_format(plain, x)(), plain(x))


def test_statistics_are_needed():
    net = tiny(MobileNetV1)
    refused("NumericsError", execution_modes, net, net.largest, images(1, 16))


def test_measure_and_compare():
    x = torch.ones(4, 3)
    order = []
    rounds = []
    both = compare_latency({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, x, rounds=3,
                           warmup=2, min_ms=0.0, progress=lambda *done: rounds.append(done))
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3  # warm-up, then in turn
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    for found in both.values():
        assert set(found) == KEYS
        assert (found["rounds"], found["calls"], found["batch"], found["dtype"]) == (3, 1, 4, "float32")
        assert 0 <= found["min_ms"] <= found["low_ms"] <= found["median_ms"]
    one = measure_latency(torch.nn.Linear(3, 2), x, rounds=2, warmup=1)
    assert set(one) == KEYS and one["min_ms"] > 0
    refused("ParameterError", measure_latency, torch.nn.Linear(3, 2), x, rounds=0)


def test_short_callables_are_repeated_within_a_sample(monkeypatch):
    def sample(fn, calls):
        fn()
        return 0.125

    monkeypatch.setattr(latency, "_cpu_sample", sample)
    found = measure_latency(lambda x: x, torch.ones(1), rounds=2, warmup=1, min_ms=1.0)
    assert found["calls"] == 8 and found["median_ms"] == found["min_ms"] == 0.125 and found["iqr_ms"] == 0


def test_latency_is_measured_without_gradients():
    seen = []
    measure_latency(lambda x: seen.append(torch.is_inference_mode_enabled()), torch.ones(1), rounds=1)
    assert all(seen)


class Clock:
    """Stands in for `compare_latency`: runs every layer once, and its shape says how long it took."""

    def __init__(self):
        self.outputs = {}

    def __call__(self, callables, x, rounds, warmup, min_ms, progress):
        self.outputs = {layer: run() for layer, run in callables.items()}
        return {layer: {"low_ms": self.cost(layer.shape)} for layer in callables}

    @staticmethod
    def cost(shape) -> float:
        return sum((i + 1) ** 2 * float(v) for i, v in enumerate(shape) if not isinstance(v, str))


def layers_that_run(net, subnet, x) -> list[tuple]:
    """Shapes of all layers of one forward pass, from hooks on the running net."""
    shapes = []

    def note(module, inputs, output):
        a, side = inputs[0].shape[1], inputs[0].shape[2:]
        if isinstance(module, ConvNormAct):
            conv = module.conv
            b = 1 if conv.depthwise else output.shape[1]
            shapes.append((conv.kernel, conv.stride, conv.depthwise, module.activation, a, b, *side))
        elif isinstance(module, MaxPool):
            shapes.append((module.kernel, module.stride, a, *side))
        else:
            shortcut = a if module.shortcut is None else subnet.widths[module.shortcut.unit]
            body = subnet.widths[module.body[-1].unit]
            shapes.append(("join", module.activation, shortcut, body, *output.shape[2:]))

    layers = [m for m in net.modules() if isinstance(m, (ConvNormAct, MaxPool, Residual))]
    hooks = [m.register_forward_hook(note) for m in layers]
    hooks.append(net.features.register_forward_hook(
        lambda m, i, out: shapes.append(("head", net.num_classes, out.shape[1], *out.shape[2:]))))
    net(x, subnet, statistics="batch")
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize("size", (32, 224))
@every_net
def test_a_table_is_the_sum_of_the_layers_that_run(kind, size, monkeypatch):
    net = tiny(kind, size).float()
    rng = np.random.default_rng(0)
    space = net.space((0.25, 0.5, 1.0))
    clock = Clock()
    monkeypatch.setattr(latency, "compare_latency", clock)
    side = 16 if size == 32 else 32
    table = latency_table(net, space, batch=2, resolution=side)
    assert table.unit == "ms" and table.about["resolution"] == side and table.about["batch"] == 2
    assert table.about["layers"] == len(clock.outputs) == len({layer.shape for layer in clock.outputs})
    x = images(2, side, dtype=torch.float32)
    for subnet in (space.largest, space.smallest, *(space.sample(rng) for _ in range(4))):
        shapes = layers_that_run(net, subnet, x)
        assert table.of(subnet) == pytest.approx(sum(map(clock.cost, shapes)))
        assert set(shapes) <= {layer.shape for layer in clock.outputs}
    for layer, output in clock.outputs.items():
        assert output.isfinite().all()
        if layer.shape[0] == "join":
            assert output.shape[1] == max(layer.shape[2:4])
        elif layer.selection is not None:
            assert output.shape[1] == (layer.shape[4] if layer.shape[2] else layer.shape[5])


def test_a_real_table_is_a_chain_for_viterbi():
    net = tiny(MobileNetV1).float()
    ticks = []
    table = latency_table(net, net.space((0.5, 1.0)), rounds=2, warmup=1, min_ms=0.0, resolution=16,
                          progress=lambda *done: ticks.append(done))
    assert ticks == [(1, 2), (2, 2)]
    assert [pair.shape for pair in table.chain()] == [(1, 2), (2, 2), (2, 2), (2, 2)]
    assert all((pair > 0).all() for pair in table.chain())
    conditions = {"device", "threads", "batch", "dtype", "date", "resolution", "rounds", "layers"}
    assert set(table.about) == conditions
    refused("SearchError", table.of, Subnet(net.largest.widths, resolution=32))


def test_a_space_wider_than_the_net():
    net = tiny(MobileNetV1)
    wide = MobileNetV1(10, 32, 2.0, layout=net.layout)
    refused("ParameterError", latency_table, net, wide.space((1.0, 2.0)))
