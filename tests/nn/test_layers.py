"""Each layer alone: an int slices, a mask zeroes, and both are the plain layer on the first channels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from refusals import refused
from torch.testing import assert_close

from slimnb.errors import SlimnbError
from slimnb.nn.layers import Selection, SlimmableConv2d, SlimmableLinear, SlimmableSqueezeExcite, join, narrow
from slimnb.nn.norm import SlimmableGroupNorm, SwitchableBatchNorm2d, normalisation


def noise(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    module.double()
    with torch.no_grad():
        for i, tensor in enumerate([*module.parameters(), *module.buffers()]):
            if tensor.is_floating_point():
                tensor.copy_(noise(*tensor.shape, seed=i).abs() + 0.1)
    return module


def mask(widths: list[int], most: int) -> torch.Tensor:
    return (torch.arange(most) < torch.tensor(widths)[:, None]).double()


@pytest.mark.parametrize(("inputs", "outputs"), ((1, 1), (3, 7), (6, 8), (5, 2)))
@pytest.mark.parametrize(("kernel", "stride"), ((1, 1), (3, 1), (3, 2), (5, 2)))
def test_conv_slices_both_axes(inputs, outputs, kernel, stride):
    layer = randomise(SlimmableConv2d(6, 8, kernel, stride, unit=1, sources=(0,)))
    x, s = noise(2, inputs, 9, 9), Selection((inputs, outputs))
    expected = F.conv2d(x, layer.weight[:outputs, :inputs], stride=stride, padding=kernel // 2)
    assert_close(layer(x, s), expected)
    assert_close(layer.extract(s)(x), expected)


@pytest.mark.parametrize("width", (1, 4, 6))
def test_depthwise_conv_follows_its_input(width):
    layer = randomise(SlimmableConv2d(6, 6, 3, 2, unit=0, sources=(0,), depthwise=True))
    x, s = noise(2, width, 8, 8), Selection((width,))
    each = [F.conv2d(x[:, c: c + 1], layer.weight[c: c + 1], stride=2, padding=1) for c in range(width)]
    assert_close(layer(x, s), torch.cat(each, 1))
    assert_close(layer.extract(s)(x), torch.cat(each, 1))


def test_conv_refuses_more_inputs_than_it_has():
    layer = SlimmableConv2d(6, 8, 1, unit=1, sources=(0,))
    with pytest.raises(SlimnbError, match="ParameterError: 7 input channels"):
        layer(torch.zeros(1, 7, 4, 4), Selection((7, 8)))


def test_linear_takes_the_first_features():
    layer = randomise(SlimmableLinear(6, 3, sources=(0,)))
    x = noise(2, 4)
    expected = x @ layer.weight[:, :4].T + layer.bias
    assert_close(layer(x), expected)
    assert_close(layer.extract(Selection((4,)))(x), expected)


def test_narrow():
    x = noise(2, 6, 3, 3)
    assert narrow(x, 6) is x and narrow(x, 9) is x
    assert torch.equal(narrow(x, 4), x[:, :4])
    masked = narrow(x, mask([4, 2], 6))
    assert torch.equal(masked[0, :4], x[0, :4]) and torch.equal(masked[1, :2], x[1, :2])
    assert not masked[0, 4:].any() and not masked[1, 2:].any()
    assert torch.equal(narrow(x[:, :5], mask([4, 2], 6)), masked[:, :5])
    assert narrow(x.bfloat16(), mask([4, 2], 6)).dtype == torch.bfloat16


def test_join_pads_the_narrower_side_whichever_it_is():
    a, b = noise(2, 3, 4, 4), noise(2, 5, 4, 4, seed=1)
    padded = torch.cat([a, torch.zeros(2, 2, 4, 4)], 1)
    assert torch.equal(join(a, b), padded + b) and torch.equal(join(b, a), padded + b)
    assert torch.equal(join(b, b), 2 * b)
    a.requires_grad_()
    join(a, b).sum().backward()
    assert torch.equal(a.grad, torch.ones_like(a))


# -- batch norm ------------------------------------------------------------------------------------------


def batch_norm(policy: str, slots: int = 3) -> SwitchableBatchNorm2d:
    layer = SwitchableBatchNorm2d(6, unit=0, policy=policy)
    layer.reserve(slots)
    return randomise(layer)


def plain_norm(x, mean, var, weight, bias):
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


@pytest.mark.parametrize("policy", ("private", "shared_affine", "calibrated"))
def test_batch_norm_uses_the_slots_rows(policy):
    layer = batch_norm(policy)
    assert layer.weight.shape == ((3, 6) if policy == "private" else (1, 6))
    x = noise(2, 4, 3, 3)
    for slot in range(3):
        row = slot if policy == "private" else 0
        expected = plain_norm(x, layer.running_mean[slot, :4], layer.running_var[slot, :4],
                              layer.weight[row, :4], layer.bias[row, :4])
        s = Selection((4,), slot=slot)
        assert_close(layer(x, s), expected)
        assert_close(layer.extract(s).eval()(x), expected)
    each = torch.cat([layer(x[i: i + 1], Selection((4,), slot=slot)) for i, slot in enumerate((2, 0))])
    assert_close(layer(x, Selection((4,), slot=torch.tensor([2, 0]))), each)


@pytest.mark.parametrize("policy", ("private", "shared_affine", "calibrated"))
def test_batch_norm_mixes_statistics_by_weight(policy):
    layer, x = batch_norm(policy), noise(3, 4, 3, 3)
    slots = torch.tensor([2, 0, 1])
    one_hot = torch.eye(3).double()[slots]
    assert_close(layer(x, Selection((4,), slot=one_hot)), layer(x, Selection((4,), slot=slots)))
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.75, 0.25], [1.0, 0.0, 0.0]]).double().requires_grad_()

    def mixed(rows, i):
        return sum(weights[i, k] * rows[k, :4] for k in range(3))

    expected = []
    for i in range(3):
        gamma, beta = ((mixed(p, i) if policy == "private" else p[0, :4]) for p in (layer.weight, layer.bias))
        expected.append(plain_norm(x[i: i + 1], mixed(layer.running_mean, i), mixed(layer.running_var, i), gamma, beta))
    found, expected = layer(x, Selection((4,), slot=weights)), torch.cat(expected)
    assert_close(found, expected)
    towards = noise(*x.shape, seed=9)
    assert_close(*(torch.autograd.grad((out * towards).sum(), weights, retain_graph=True)[0]
                   for out in (found, expected)))


def test_batch_norm_with_weights_leaves_its_statistics_alone():
    layer = batch_norm("shared_affine")
    before = [b.clone() for b in layer.buffers()]
    layer.train()(noise(2, 6, 3, 3), Selection((6,), slot=torch.eye(3).double()[:2]))
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


def test_batch_norm_statistics_have_unbiased_variance_and_the_given_momentum():
    layer = batch_norm("shared_affine")
    before = layer.running_mean.clone(), layer.running_var.clone()
    x = noise(4, 5, 3, 3)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    out = layer(x, Selection((5,), slot=1, batch_statistics=True, momentum=0.25))
    assert_close(out, plain_norm(x, mean, var, layer.weight[0, :5], layer.bias[0, :5]))
    assert_close(layer.running_mean[1, :5], 0.75 * before[0][1, :5] + 0.25 * mean)
    assert_close(layer.running_var[1, :5], 0.75 * before[1][1, :5] + 0.25 * x.var((0, 2, 3)))
    for rows in ((slice(None), 5), (0,), (2,)):
        assert torch.equal(layer.running_mean[rows], before[0][rows])
    after = layer.running_mean.clone()
    layer(x, Selection((5,), slot=1, batch_statistics=True, momentum=None))
    assert torch.equal(layer.running_mean, after)


def test_batch_norm_of_one_value_adds_to_the_mean_and_has_the_variance_of_before():
    layer, x = batch_norm("private"), noise(1, 5, 1, 1)
    before = layer.running_mean.clone(), layer.running_var.clone()
    s = Selection((5,), slot=1, batch_statistics=True, momentum=0.25)
    refused("NumericsError", layer, x, s, words="channel unit 0")  # while training
    with torch.no_grad():
        for momentum in (None, 1.0):
            refused("NumericsError", layer, x, replace(s, momentum=momentum))
        assert torch.equal(layer.running_mean, before[0])
        out = layer(x, s)
    mean = 0.75 * before[0][1, :5] + 0.25 * x.flatten()
    assert_close(layer.running_mean[1, :5], mean)
    assert torch.equal(layer.running_var, before[1])
    assert_close(out, plain_norm(x, mean, before[1][1, :5], layer.weight[1, :5], layer.bias[1, :5]))


def test_reserve_grows_and_never_shrinks():
    layer = batch_norm("private", slots=2)
    kept = layer.weight[1].detach().clone(), layer.running_var[1].clone()
    layer.reserve(4)
    assert layer.weight.shape == layer.running_mean.shape == (4, 6)
    assert torch.equal(layer.weight[1], kept[0]) and torch.equal(layer.running_var[1], kept[1])
    assert torch.equal(layer.weight[3], torch.ones(6).double()) and not layer.bias[3].any()
    assert torch.equal(layer.running_var[3], torch.ones(6).double()) and not layer.running_mean[3].any()
    layer.reserve(1)
    assert layer.weight.shape == (4, 6)


# -- group norm and squeeze-excite -----------------------------------------------------------------------


@pytest.mark.parametrize("width", (8, 16, 24))
def test_group_norm_is_the_same_for_a_slice_and_a_mask(width):
    layer = randomise(SlimmableGroupNorm(24, unit=0))
    x = noise(2, 24, 3, 3)
    sliced = layer(x[:, :width], Selection((width,)))
    groups = x[:, :width].reshape(2, width // 8, -1)
    variance = groups.var(2, unbiased=False, keepdim=True)
    normal = (groups - groups.mean(2, keepdim=True)) / (variance + 1e-5).sqrt()
    shape = (1, -1, 1, 1)
    expected = normal.view(2, width, 3, 3) * layer.weight[:width].view(shape) + layer.bias[:width].view(shape)
    assert_close(sliced, expected)
    m = mask([width, width], 24)
    assert_close(narrow(layer(narrow(x, m), Selection((m,))), m)[:, :width], sliced)
    assert_close(layer.extract(Selection((width,)))(x[:, :width]), sliced)


@pytest.mark.parametrize("channels_per_group", (4, 8))
def test_group_norm_does_not_depend_on_the_memory_format(channels_per_group):
    layer = randomise(normalisation(24, unit=0, policy="group", channels_per_group=channels_per_group))
    x, s, found = noise(3, 16, 5, 5), Selection((16,)), []
    for form in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=form).requires_grad_()
        out = layer(given, s)
        towards = noise(*out.shape, seed=3)
        found.append((out, *torch.autograd.grad((out * towards).sum(), (given, layer.weight, layer.bias))))
    for plain, last in zip(*found, strict=True):
        assert_close(last, plain, rtol=0, atol=1e-12)
    groups = x.reshape(3, 16 // channels_per_group, -1)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = normal.view(x.shape) * layer.weight[:16, None, None] + layer.bias[:16, None, None]
    assert_close(found[0][0], expected)


@pytest.mark.parametrize("gate", ("hsigmoid", "sigmoid"))
def test_squeeze_excite_slice_mask_extract_and_by_hand(gate):
    layer = randomise(SlimmableSqueezeExcite(96, unit=0, gate=gate))
    x = noise(3, 96, 4, 4)
    widths = [96, 40, 64]
    m = mask(widths, 96)
    masked = layer(narrow(x, m), Selection((m,)))
    for i, c in enumerate(widths):
        h = {96: 24, 40: 16, 64: 16}[c]  # make_divisible(c // 4): 24, 10 -> 16, 16
        pooled = x[i: i + 1, :c].mean((2, 3))
        z = (pooled @ layer.squeeze.weight[:h, :c].T + layer.squeeze.bias[:h]).relu()
        z = z @ layer.excite.weight[:c, :h].T + layer.excite.bias[:c]
        gates = z.sigmoid() if gate == "sigmoid" else ((z + 3) / 6).clamp(0, 1)
        expected = x[i: i + 1, :c] * gates[:, :, None, None]
        s = Selection((c,))
        assert_close(layer(x[i: i + 1, :c], s), expected)
        assert_close(layer.extract(s)(x[i: i + 1, :c]), expected)
        assert_close(masked[i: i + 1, :c], expected)
        assert not masked[i, c:].any()


def test_the_policy_chooses_the_layer():
    assert isinstance(normalisation(8, unit=0, policy="group"), SlimmableGroupNorm)
    for policy in ("private", "shared_affine", "calibrated"):
        assert normalisation(8, unit=0, policy=policy).policy == policy


def test_layers_cast_their_weights_to_the_inputs_precision():
    s = Selection((4, 8))
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    layers = (SlimmableConv2d(4, 8, 3, unit=1, sources=(0,)), SlimmableGroupNorm(8, unit=1),
              SlimmableSqueezeExcite(8, unit=1))
    with torch.no_grad():
        for layer in layers:
            for p in layer.parameters():
                p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(1)))
            wide = layer(x.float(), s)
            x = layer(x, s)
            assert x.dtype == torch.bfloat16
            assert_close(x.float(), wide, rtol=0.05, atol=0.05)
