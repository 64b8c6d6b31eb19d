"""Sums over many batches are float32 at least, whatever the precision of the net: they neither stall nor drift."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gated_nets import KINDS, ready
from torch.testing import assert_close

from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.deps.probes import by_layer, gradients, norm
from slimnb.papers.ds_net.dynamic import DynamicNet
from slimnb.papers.ds_net.method import Ema
from slimnb.papers.platforms.windows import Windows
from slimnb.papers.slimmable.method import Switches
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.history import History
from slimnb.train.loop import train_step
from slimnb.train.optim import make_optimizer
from slimnb.train.protocols import Labels, Pass

LOW = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
BATCHES = 300


def small(bn: str = "calibrated", **options):
    return MobileNetV1(10, 32, layout=((8, 2), (16, 2)), bn=bn, **options)


def images(count: int = BATCHES, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 16, 16, generator=rng) * (0.5 + i / count)).to(dtype) for i in range(count)]


def statistics_of(net) -> list[torch.Tensor]:
    return [values for layer in net.norms() for values in (layer.running_mean, layer.running_var)]


def batch_statistics(net, subnet, data) -> list[torch.Tensor]:
    """What each batch-norm layer sees, batch by batch: mean and variance, stacked (batches, C), in float64."""
    seen: dict = {layer: [] for layer in net.norms()}
    hooks = [layer.register_forward_pre_hook(lambda layer, args: seen[layer].append(torch.var_mean(
        args[0].double(), (0, 2, 3)))) for layer in seen]
    with torch.no_grad():
        for x in data:
            net(x, subnet, statistics="batch")
    for hook in hooks:
        hook.remove()
    return [torch.stack(rows) for layer in seen for rows in reversed(list(zip(*seen[layer], strict=True)))]


@LOW
def test_calibration_is_the_mean_of_what_the_layers_saw(dtype):
    net, data = small().to(dtype), images(dtype=dtype)
    calibrate_bn(net, [net.largest], data)
    expected = batch_statistics(net, net.largest, data)
    for found, seen in zip(statistics_of(net), expected, strict=True):
        assert_close(found[0].double(), seen.mean(0), rtol=1e-4, atol=1e-5)


@LOW
@pytest.mark.parametrize("bn", ("private", "shared_affine"))
def test_tracked_statistics_are_the_moving_mean_of_what_the_layers_saw(bn, dtype):
    net, data = small(bn).to(dtype), images(40, dtype)
    net.reserve([net.largest])
    seen = batch_statistics(net.train(), net.largest, data)
    weights = 0.1 * 0.9 ** torch.arange(len(data)).flip(0).double()[:, None]
    with torch.no_grad():
        for x in data:
            net(x, net.largest)
    for at, (found, rows) in enumerate(zip(statistics_of(net), seen, strict=True)):
        start = at % 2 * 0.9 ** len(data)  # variances begin at 1
        assert_close(found[0].double(), start + (weights * rows).sum(0), rtol=1e-4, atol=1e-5)


@LOW
def test_a_net_in_low_precision_keeps_its_statistics_in_full(dtype):
    net = small("private")
    net.reserve([net.largest])
    calibrate_bn(net, [net.largest], images(5))
    kept = [values.clone() for values in statistics_of(net)]
    net.to(dtype).eval()
    net.reserve([net.uniform(0.5)])
    assert all(torch.equal(a[:1], b) for a, b in zip(statistics_of(net), kept, strict=True))
    assert {t.dtype for layer in net.norms() for t in layer.state_dict().values()} == {torch.float32}
    x = images(1, dtype)[0]
    with torch.no_grad():
        assert torch.equal(net.extract(net.largest)(x).float(), net(x, net.largest))
        assert net(x, net.masks(torch.tensor([net.largest.widths] * 4), [net.largest] * 4)).isfinite().all()
    assert {t.dtype for t in net.double().state_dict().values() if isinstance(t, torch.Tensor)} == {torch.float64}
    assert {t.dtype for t in net.float().state_dict().values() if isinstance(t, torch.Tensor)} == {torch.float32}


@LOW
def test_evaluation_adds_up_in_full(dtype):
    net, data = small().to(dtype), [(x, torch.arange(4)) for x in images(dtype=dtype)]
    calibrate_bn(net, [net.largest], [x for x, _ in data[:5]])
    (found,) = evaluate(net, [net.largest], data)
    with torch.no_grad():
        logits = torch.cat([net.eval()(x, net.largest) for x, _ in data]).double()
    y = torch.arange(4).repeat(BATCHES)
    assert found.ce == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert found.top1 == 100 * (logits.argmax(1) == y).double().mean().item()


@LOW
def test_a_moving_average_arrives(dtype):
    net = small().to(dtype)
    ema = Ema(net, 0.99)
    start = {name: value.double().clone() for name, value in ema.tensors().items()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    for _ in range(BATCHES):
        ema.update(net)
    share = 0.99**BATCHES
    for name, value in net.named_parameters():
        assert_close(ema.tensors()[name].double(), share * start[name] + (1 - share) * value.double(), rtol=1e-4,
                     atol=1e-4)
    net.reserve([net.largest])
    ema = Ema(net)
    assert ema.net(images(1, dtype)[0], net.largest).isfinite().all()  # and it teaches in the net's own precision


class InLow(Labels):
    """An objective that answers in the precision of `dtype`."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __call__(self, a_pass, logits, y):
        return tuple(values.to(self.dtype) for values in super().__call__(a_pass, logits, y))


@LOW
def test_losses_of_many_batches_are_added_in_full(dtype):
    net = small("shared_affine").to(dtype)
    sampler, objective, history = Switches({"1.0": net.largest}), InLow(dtype), History([])
    net.reserve(sampler.subnets())
    x, y = images(1, dtype)[0], torch.arange(4)
    (outcome,) = train_step(net.train(), x, y, sampler.plan(0), objective, make_optimizer(net))
    for _ in range(3000):
        history.add([outcome])
    assert history.flush(1, 0.1) == pytest.approx(outcome.ce.double().mean().item(), rel=1e-4)


@LOW
def test_windows_hold_what_was_entered(dtype):
    windows, rng = Windows(2, 3, 50), torch.Generator().manual_seed(0)
    index = torch.randint(3, (200, 2), generator=rng)
    values = (torch.rand(200, generator=rng) * 10).to(dtype)
    for at in range(0, 200, 50):
        windows.add(index[at : at + 50], values[at : at + 50])
    means, _ = windows.means()
    for unit in range(2):
        for choice in range(3):
            last = values[index[:, unit] == choice][-50:].double().numpy()
            assert means[unit, choice] == pytest.approx(np.mean(last), rel=1e-6)


@LOW
def test_gradients_that_a_probe_adds_are_in_full(dtype):
    net = small().to(dtype).train()
    x, y = images(1, dtype)[0], torch.arange(4)
    passes = [Pass(net.largest), Pass(net.uniform(0.5)), Pass(net.uniform(0.25))]
    full, others = gradients(net, x, y, passes, Labels())
    assert {g.dtype for g in (*full.values(), *others.values())} == {torch.float32}
    squares = sum(g.double().square().sum() for g in full.values())
    assert norm(full).item() == pytest.approx(squares.sqrt().item(), rel=1e-5)
    assert all(row["cosine"] is None or -1.0001 <= row["cosine"] <= 1.0001 for row in by_layer(full, others))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_gated_nets_in_low_precision_run_on_every_path(kind):
    net, x = ready(kind)
    low = copy.deepcopy(net).bfloat16()
    x = x.bfloat16()
    for packed in (False, True):
        routed = DynamicNet(low, packed=packed)(x)
        assert routed.isfinite().all() and routed.shape == (len(x), 10)
