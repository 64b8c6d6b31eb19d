"""Compiled batch norm and activation have the outputs, gradients and statistics of PyTorch's functions."""

import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from refusals import refused
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nn.kernels import BOUNDS, NormAct, _work, kernels, serves
from slimnb.nn.layers import ACTIVATIONS

compiled = pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="needs a C compiler")
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.fixture
def switch(monkeypatch):
    """Sets SLIMNB_KERNELS and forgets what was compiled."""
    def to(value: str, **env: str) -> None:
        for name, text in {"SLIMNB_KERNELS": value, **env}.items():
            monkeypatch.setenv(name, text)
        kernels.cache_clear()

    yield to
    kernels.cache_clear()


def maps(batch, channels, side, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, side, side, generator=rng) * 2 + torch.linspace(-30, 30, channels)[:, None, None]
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@compiled
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", BOUNDS)
@pytest.mark.parametrize(("batch", "channels", "side"), [(4, 1, 5), (3, 8, 7), (2, 13, 16), (5, 64, 3), (1, 130, 4),
                                                         (7, 700, 1)])
def test_outputs_gradients_and_statistics_are_pytorchs(switch, dtype, activation, batch, channels, side):
    switch("1")
    x = maps(batch, channels, side, dtype).requires_grad_()
    weight, bias = (torch.rand(channels, generator=torch.Generator().manual_seed(seed)).add(0.5).requires_grad_()
                    for seed in (1, 2))
    assert serves(x, weight, activation)
    out, mean, var = NormAct.apply(x, weight, bias, activation, 1e-5)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    normal = F.batch_norm(exact[0], None, None, *exact[1:], training=True, eps=1e-5)
    assert_close(out.double(), ACTIVATIONS[activation](normal.clone()), **CLOSE[dtype])
    assert_close(mean.double(), exact[0].mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert_close(var.double(), exact[0].var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)
    towards = maps(batch, channels, side, dtype, seed=3) / 30
    low, high = BOUNDS[activation]  # an output that rounding puts on the other side of a bound counts as ours does
    passed = (out > low) & (out < high)
    found = torch.autograd.grad(out, (x, weight, bias), towards)
    expected = torch.autograd.grad(normal, exact, towards.double() * passed)
    for ours, true in zip(found, expected, strict=True):
        assert ours.dtype in (dtype, torch.float32)
        assert (ours.double() - true).abs().max() <= 3 * CLOSE[dtype]["rtol"] * true.abs().max().clamp(min=0.1)


@compiled
@pytest.mark.parametrize("bn", ["private", "calibrated"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_a_net_trains_as_without(switch, bn, dtype, most):
    x = maps(8, 3, 16, dtype)
    found = []
    for value in "01":
        switch(value)
        net = MobileNetV1(5, 32, layout=((8, 2), (16, 2), (16, 1), (24, 2)), bn=bn).train()
        net.reserve([net.uniform(0.5), net.largest])
        net(x, net.uniform(0.5)).square().sum().backward()
        found.append([torch.cat([t.flatten() for t in tensors]) for tensors in (
            [p.grad for p in net.parameters() if p.grad is not None],
            [b for n, b in net.named_buffers() if "running" in n])])
    for plain, ours in zip(*found, strict=True):
        assert (plain - ours).norm() <= most * plain.norm()
    assert not torch.equal(*(gradients for gradients, _ in found)), "kernels were at work"


@compiled
def test_infinite_and_missing_numbers_stay_visible(switch):
    switch("1")
    for bad in (float("nan"), float("inf")):
        x = maps(2, 8, 4, torch.bfloat16)
        x[0, 3, 1, 1] = bad
        out = NormAct.apply(x, torch.ones(8), torch.zeros(8), "relu6", 1e-5)[0]
        assert out[:, 3].isnan().any() and not out[:, :3].isnan().any()


@compiled
def test_parameters_need_not_lie_densely(switch):
    switch("1")
    x, one = maps(3, 64, 4, torch.float32), torch.full((1,), 0.7)
    out = NormAct.apply(x, one.expand(64), torch.zeros(64, 9)[:, 0], "relu", 1e-5)[0]
    assert_close(out, F.batch_norm(x, None, None, one.expand(64), None, training=True).relu(), **CLOSE[torch.float32])


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_workspace_is_float32_whatever_the_default_is(switch, dtype):
    switch("1")
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            work = _work(torch.ones(300, dtype=torch.float32, device="cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (work.dtype, work.device.type, work.numel()) == (torch.float32, "cpu", 1200)


@compiled
def test_what_looks_on_sees_pytorchs_functions(switch, monkeypatch):
    switch("1")
    weight, x = torch.ones(8), maps(2, 8, 4, torch.float32)
    assert serves(x, weight, "relu")
    seen = []
    with FakeTensorMode() as mode:
        seen.append(serves(mode.from_tensor(x), mode.from_tensor(weight), "relu"))
    with FlopCounterMode(display=False):
        seen.append(serves(x, weight, "relu"))
    torch.func.grad(lambda w: seen.append(serves(x, w, "relu")) or w.sum())(weight)
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    seen.append(serves(x, weight, "relu"))
    assert seen == [False] * 4


def test_they_are_used_only_where_they_serve(switch):
    weight, x = torch.ones(8), maps(2, 8, 4, torch.float32)
    switch("0")
    assert kernels() is None and not serves(x, weight, "relu")
    for compiler in ("no-such-compiler", "true", "'"):  # true says that all went well, and makes nothing
        switch("1", CC=compiler)
        with pytest.warns(UserWarning, match="no C compiler works here"):
            assert not serves(x, weight, "relu")
    switch("yes")
    refused("ParameterError", serves, x, weight, "relu", words="it is 0 or 1")


@compiled
def test_a_compiler_may_come_with_options(switch):
    switch("1", CC=f"{os.environ.get('CC', 'cc')} -DNOTHING")
    assert kernels()


@compiled
def test_what_they_cannot_do_is_left_to_pytorch(switch):
    switch("1")
    weight, x = torch.ones(8), maps(2, 8, 4, torch.float32)
    assert serves(x, weight, "relu6")
    assert not any(serves(*each) for each in (
        (x, weight, "swish"), (x.double(), weight, "relu"), (x.to("meta"), weight, "relu"),
        (x, weight.bfloat16(), "relu"), (x.contiguous(), weight, "relu"), (x[:1, :, :1, :1], weight, "relu")))
