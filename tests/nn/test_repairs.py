"""Repairs of slow and wrong kernels have the outputs and gradients of the functions they stand for."""

import pytest
import torch
import torch.nn.functional as F

from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nn.repairs import (
    DepthwiseConv2d,
    PointwiseConv2d,
    backward_is_slow,
    conv2d,
    depthwise_conv2d,
    group_norm,
    relu6,
)

SHAPES = [(side, stride, kernel) for side in (1, 2, 3, 4, 5, 8) for stride in (1, 2)
          for kernel in (1, 3, 5, 7)]


def gradients(convolve, x, weight, direction):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(x, weight)
    out.backward(direction[:, :, : out.shape[2], : out.shape[3]])
    return out.detach(), x.grad, weight.grad


def tensors(side, kernel, dtype, channels=6):
    rng = torch.Generator().manual_seed(side * 10 + kernel)
    image = (3, channels, side, side + 1)
    shapes = (image, (channels, 1, kernel, kernel), image)
    made = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    return [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in made]


@pytest.mark.parametrize(("side", "stride", "kernel"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6),
                                                  (torch.bfloat16, 0.02)])
def test_outputs_and_gradients_are_the_librarys(side, stride, kernel, dtype, tolerance):
    x, weight, direction = tensors(side, kernel, dtype)
    ours = gradients(lambda x, w: DepthwiseConv2d.apply(x, w, stride), x, weight, direction)
    exact = gradients(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2, 1, len(w)),
                      x.double(), weight.double(), direction.double())
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - true).abs().max() <= tolerance * true.abs().max()


def test_gradcheck():
    x, weight, _ = tensors(3, 3, torch.float64, channels=2)
    for stride in (1, 2):
        assert torch.autograd.gradcheck(lambda x, w, s=stride: DepthwiseConv2d.apply(x, w, s),
                                        (x.requires_grad_(), weight.requires_grad_()))


def test_taken_only_where_it_is_faster():
    wide, narrow = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 2, 2)
    assert not backward_is_slow(wide, 3, 1) and not backward_is_slow(wide, 3, 2)
    assert backward_is_slow(narrow, 3, 1) and backward_is_slow(wide.bfloat16(), 3, 2)
    assert backward_is_slow(wide, 5, 1) and backward_is_slow(wide.bfloat16(), 7, 1)
    assert not backward_is_slow(wide.bfloat16(), 3, 1) and not backward_is_slow(narrow.to("meta"), 7, 1)
    with torch.no_grad():
        assert not backward_is_slow(narrow, 3, 1) and not backward_is_slow(wide, 7, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_net_has_the_same_gradients_with_and_without(monkeypatch, dtype, tolerance):
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for slow in (True, False):
        net = MobileNetV1(5, 32, layout=((8, 2), (16, 2), (16, 1), (24, 2), (24, 2), (24, 1)))
        asked = []

        def decide(x, kernel, stride, slow=slow, asked=asked):
            asked.append(slow and backward_is_slow(x, kernel, stride))
            return asked[-1]

        monkeypatch.setattr("slimnb.nn.repairs.backward_is_slow", decide)
        logits = net(x.contiguous(memory_format=torch.channels_last), net.uniform(0.5))
        logits.square().sum().backward()
        assert any(asked) == slow
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert (found[0] - found[1]).norm() <= tolerance * found[1].norm()


@pytest.mark.parametrize("channels", [4, 8])
def test_a_strided_pointwise_convolution_of_few_channels_is_that_of_the_pixels_it_reads(channels):
    """oneDNN corrupts memory there on processors with AVX2 alone, so ours takes another way: equal both ways."""
    weight = torch.randn(8, channels, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(3, channels, 9, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = conv2d(x, weight, 2)
    expected = torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(out, expected)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = (torch.autograd.grad((y * towards).sum(), (x, weight), retain_graph=True) for y in (out, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_those_of_pytorch(kernel, stride):
    x, depthwise, _ = tensors(5, kernel, torch.float64)
    weight = depthwise[:4].expand(4, 6, kernel, kernel)
    for ours, expected in ((conv2d(x, weight, stride), F.conv2d(x, weight, None, stride, kernel // 2)),
                           (depthwise_conv2d(x, depthwise, stride), F.conv2d(x, depthwise, None, stride, kernel // 2,
                                                                             groups=6))):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_pointwise_convolution_takes_an_empty_batch_and_can_be_differentiated_twice():
    weight = torch.ones(4, 6, 1, 1, dtype=torch.bfloat16).requires_grad_()
    of_x, of_weight = torch.autograd.grad(PointwiseConv2d.apply(empty := torch.zeros(
        0, 6, 3, 3, dtype=torch.bfloat16).requires_grad_(), weight).sum(), (empty, weight))
    assert of_x.shape == empty.shape and not of_weight.any()
    x, weight, _ = tensors(5, 1, torch.float64)
    weight = weight[:4].expand(4, 6, 1, 1).clone()
    assert torch.autograd.gradgradcheck(PointwiseConv2d.apply, (x.requires_grad_(), weight.requires_grad_()))


def test_group_norm_is_that_of_pytorch_in_either_memory_format():
    x, weight, bias = tensors(5, 1, torch.float64)[0], torch.rand(6).double(), torch.rand(6).double()
    expected = F.group_norm(x.contiguous(), 2, weight, bias, 1e-5)
    for given in (x, x.contiguous()):
        torch.testing.assert_close(group_norm(given, 2, weight, bias, 1e-5), expected, rtol=0, atol=0)


def test_relu6_is_in_place_in_inference_mode_only():
    x = torch.linspace(-3, 9, 13)
    for mode, in_place in ((torch.enable_grad, False), (torch.no_grad, False), (torch.inference_mode, True)):
        with mode():
            copy = x.clone()
            out = relu6(copy)
            assert torch.equal(out, x.clamp(0, 6)) and (out.data_ptr() == copy.data_ptr()) == in_place
