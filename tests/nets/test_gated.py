"""Nets with gates: the papers' MACs and numbers of paths, and every way to run a path gives the same."""

import numpy as np
import pytest
import torch
from gated_nets import KINDS, build, pictures, ready

from slimnb.cost.macs import count_macs, count_params
from slimnb.cost.table import CostTable
from slimnb.errors import SlimnbError
from slimnb.nets.gated import equispaced, side_by_side, spaced
from slimnb.nn.gate import Gated
from slimnb.nn.norm import GROUP
from slimnb.papers.ds_net.nets import DSEfficientNet, DSMobileNet, DSResNet50
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.state import load_net, net_state

RELEASED = (132.9, 152.9, 175.2, 199.6, 226.2, 255.1, 286.2, 319.4, 354.9, 392.6, 432.5, 474.6, 518.9, 565.4)
BATCH_NORM = [DSMobileNet, DSEfficientNet]
each_kind = pytest.mark.parametrize("kind", KINDS)


def on_meta(kind, *args, **options):
    with torch.device("meta"):
        return kind(*args, **options)


def macs_of_paths(net, convention="D"):
    return CostTable.macs(net, net.path_space, convention).predict(np.array([path.widths for path in net.paths])) / 1e6


def test_the_14_released_paths_have_the_macs_of_the_readme():
    net = on_meta(DSMobileNet)
    assert [round(count_macs(net, path, "D") / 1e6, 1) for path in net.paths] == list(RELEASED)
    assert macs_of_paths(net).round(1).tolist() == list(RELEASED)
    assert round(count_macs(net, net.largest, "D") / 1e6) == 820 and net.largest not in net.paths
    gate, = net.gates
    assert gate.slim_weight.shape == (14, 66)  # 66 x 4 = 264 MACs with the four choices of DS-MBNet-S
    overhead = macs_of_paths(net) / macs_of_paths(net, "B") - 1
    assert (round(100 * overhead.min(), 1), round(100 * overhead.max(), 1)) == (0.6, 1.3)


def test_the_printed_grids_are_half_open_and_equispaced():
    printed, effnet = on_meta(DSMobileNet, variant="printed"), on_meta(DSEfficientNet)
    assert len(printed.paths) == 18 and len(effnet.paths) == 20
    for net in (printed, effnet):
        widths = np.array([path.widths for path in net.paths])
        assert (np.diff(widths, 2, axis=0) == 0).all() and (widths % 8 == 0).all()
    assert printed.path(0).widths[:6] == (16, 32, 64, 64, 128, 128)  # half of MobileNetV1's
    assert spaced(512, 0.35, 0.05, 18) == (176, 24, 18)


def test_resnet_50_has_256_paths_between_the_known_ends():
    net = on_meta(DSResNet50)
    macs = macs_of_paths(net, "A")
    assert len(set(net.paths)) == 256 and net.choices == (4, 4, 4, 4)
    assert macs.min() == pytest.approx(379, abs=1) and macs.max() == pytest.approx(4089, rel=0.002)
    assert count_macs(net, net.path(1)) / 1e6 == pytest.approx(1127, rel=0.003)  # uniform .5, without gates


def test_the_widest_efficientnet_at_the_paper_s_widths_is_b0():
    b0 = on_meta(DSEfficientNet, fixed_ratio=1.0, low=1.0, num_choices=2)
    assert count_macs(b0, b0.path(0)) / 1e6 == pytest.approx(386, abs=0.5)  # Tan and Le print 0.39 B
    assert count_params(b0, [b0.path(0)]) / 1e6 == pytest.approx(5.3, abs=0.05)  # and 5.3 M


@pytest.mark.parametrize("kind", [DSMobileNet, DSResNet50, DSEfficientNet])
def test_nets_for_32_pixels_have_the_same_paths(kind):
    small, large = on_meta(kind, 100, 32), on_meta(kind)
    assert small.choices == large.choices and small.paths == large.paths
    assert 0 < count_macs(small, small.widest) < count_macs(large, large.widest)


@each_kind
def test_macs_and_parameters_of_every_path_are_those_of_the_plain_net(kind):
    net, _ = ready(kind)
    table = macs_of_paths(net, "A") * 1e6
    for path, macs in zip(net.paths, table, strict=True):
        plain = net.extract(path)
        assert count_macs(net, path) == round(macs)
        assert count_params(net, [path]) == sum(p.numel() for p in plain.parameters())


@each_kind
def test_slice_mask_and_plain_net_agree_on_every_path(kind):
    net, x = ready(kind)
    for path in net.paths:
        with torch.no_grad():
            sliced = net(x[:4], path)
            masks = net.masks(torch.tensor([path.widths] * 4), [path] * 4 if net.bn != GROUP else None)
            torch.testing.assert_close(net(x[:4], masks), sliced, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(net.extract(path)(x[:4]).float(), sliced, atol=1e-5, rtol=1e-5)


@each_kind
@pytest.mark.parametrize("head", ["one-hot", "scalar"])
def test_a_routed_batch_is_each_image_on_its_own_path(kind, head):
    net, x = ready(kind, head=head)
    with torch.no_grad():
        together, decisions = net(x, Gated())
        chosen = torch.stack([each.weights.argmax(1) for each in decisions], 1)
        alone = torch.cat([net(x[i: i + 1], net.path(*chosen[i].tolist())) for i in range(len(x))])
    assert len(decisions) == len(net.gates) and (head == "scalar" or len(chosen.unique(dim=0)) > 2)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@each_kind
def test_a_route_that_is_sampled_is_the_same_forward_and_differentiable(kind):
    net, x = ready(kind)
    net.requires_grad_(False)
    for gate in net.gates:
        for p in gate.heads():
            p.requires_grad_(True)
    route = Gated(temperature=1.0, seed=1, step=2)
    logits, decisions = net.train()(x, route)  # batch norms use the paths' statistics all the same
    chosen = torch.stack([each.weights.argmax(1) for each in decisions], 1).tolist()
    with torch.no_grad():
        alone = torch.cat([net(x[i: i + 1], net.path(*row), statistics="slot") for i, row in enumerate(chosen)])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for gate in net.gates for p in gate.heads())


@each_kind
def test_the_gradient_of_a_choice_is_that_of_mixed_masks_and_statistics(kind):
    """Hard forward, soft backward: at temperature 1 the gradient is d loss / d weights times d softmax / d scores."""
    net, x = ready(kind)
    gate = net.gates[-1]
    logits, (*_, seen) = net(x, Gated(temperature=1.0))
    towards, = torch.autograd.grad(logits.square().sum(), seen.weights, retain_graph=True)
    by_head, = torch.autograd.grad(logits.square().sum(), gate.slim_weight, retain_graph=True)
    through, = torch.autograd.grad(seen.weights, gate.slim_weight, towards)
    torch.testing.assert_close(by_head, through)
    assert towards.any()


@each_kind
def test_the_open_choices_are_the_narrowest(kind):
    net, x = ready(kind)
    for lowest in (1, 2):
        with torch.no_grad():
            _, decisions = net(x, Gated(lowest))
        assert len(decisions) == len(net.gates)
        assert max(int(each.weights.argmax(1).max()) for each in decisions) < lowest


@each_kind
def test_a_gated_net_is_saved_and_loaded(kind):
    net, x = ready(kind)
    tensors, rest = net_state(net)
    other = build(kind, seed=9)
    load_net(other, {name.removeprefix("net/"): value for name, value in tensors.items()}, rest)
    with torch.no_grad():
        assert torch.equal(net(x, Gated()).logits, other.eval()(x, Gated()).logits)


@pytest.mark.parametrize("kind", BATCH_NORM)
def test_a_routed_forward_follows_slots_that_were_loaded_in_another_order(kind):
    net, x = ready(kind)
    other, _ = ready(kind)
    with torch.no_grad():
        expected = net(x, Gated()).logits
        other(x, Gated())  # keeps whose statistics its choices take
    again = build(kind)
    again.load_state_dict(dict(net.named_parameters()), strict=False)
    calibrate_bn(again, net.paths[::-1], [x])
    tensors, rest = net_state(again)
    load_net(other, {name.removeprefix("net/"): value for name, value in tensors.items()}, rest)
    assert list(other.slots) != list(net.slots)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x, Gated()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BATCH_NORM)
def test_a_look_in_inference_mode_does_not_keep_the_gate_from_learning(kind):
    net, x = ready(kind)
    with torch.inference_mode():
        net(x, Gated())
    net(x, Gated(temperature=1.0)).logits.sum().backward()
    assert net.gates[0].slim_weight.grad.abs().sum() > 0


@each_kind
def test_a_net_in_bfloat16_routes(kind):
    net, x = ready(kind)
    assert net.bfloat16()(x.bfloat16(), Gated()).logits.isfinite().all()


def test_residual_blocks_start_as_their_shortcuts():
    net = DSResNet50(10, 32, **KINDS[DSResNet50])
    assert all(not block.body[-1].norm.weight.any() for block in net.features if hasattr(block, "body"))


@pytest.mark.parametrize(("wrong", "code", "word"), [
    (lambda: DSMobileNet(10, 32, variant="renamed"), "ParameterError", "renamed"),
    (lambda: DSMobileNet(10, 32, strides=(1, 2)), "ParameterError", "2 strides for 14 layers"),
    (lambda: DSMobileNet(10, 32, largest=(16,) * 14), "ParameterError", "nowhere narrower"),
    (lambda: side_by_side(equispaced(8, 8, 3, 1), equispaced(8, 8, 4, 1)), "ParameterError", "3 and 4"),
    (lambda: DSResNet50(10, 32, bn="shared_affine"), "ParameterError", "4 gates"),
    (lambda: DSMobileNet(10, 32, bn="private"), "ParameterError", "private"),
    (lambda: DSResNet50(10, 32, layout=((16, 1),)), "ParameterError", "width 4"),
    (lambda: DSMobileNet(10, 32).uniform(0.5), "ParameterError", "0.5"),
    (lambda: DSMobileNet(10, 32).path(14), "ParameterError", "choice 14"),
    (lambda: DSResNet50(10, 32).path(1, 2), "ParameterError", "4 gates"),
    (lambda: DSMobileNet(10, 32).eval()(pictures(1).float(), Gated()), "NumericsError", "statistics"),
])
def test_bad_input_is_one_line(wrong, code, word):
    with pytest.raises(SlimnbError) as caught:
        wrong()
    assert type(caught.value).__name__ == code and word in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240
