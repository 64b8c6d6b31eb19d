"""slice = mask = extract = an independent plain network, on random subnets of every net."""

from __future__ import annotations

import pytest
import torch
from oracle import cut_parameters, run_thin, thin_net
from small_nets import NETS, POLICIES, TINY, fill_statistics, images, random_subnets, tiny
from torch.testing import assert_close

from slimnb.errors import SlimnbError
from slimnb.nets.base import Masks
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nets.resnet import ResNet50
from slimnb.subnet import Subnet

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # computed in float64, handed out as float32
SIZES = (32, 224)
every_net = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
every_size = pytest.mark.parametrize("size", SIZES)
every_policy = pytest.mark.parametrize("bn", POLICIES)


def pixels(size: int) -> int:
    return 16 if size == 32 else 32  # the layout for 224 pixels runs at any size


def prepared(kind, size=32, bn="calibrated", n=4, seed=0):
    """A tiny net and n random subnets with statistics, the largest first."""
    net = tiny(kind, size, bn, seed)
    subnets = [net.largest, *random_subnets(net, n, seed, step=8 if bn == "group" else 1)]
    fill_statistics(net, subnets, seed)
    return net, subnets


@every_policy
@every_size
@every_net
@torch.no_grad()
def test_slice_extract_and_oracle_agree(kind, size, bn):
    net, subnets = prepared(kind, size, bn)
    x = images(3, pixels(size))
    for slot, subnet in enumerate(subnets):
        sliced = net(x, subnet)
        assert sliced.dtype == torch.float32 and sliced.std(0).max() > 1e-3  # the images make a difference
        assert_close(sliced, run_thin(net, x, subnet, slot).float(), **EXACT)
        assert_close(net.extract(subnet)(x).float(), sliced, **EXACT)
        assert_close(net.bind(subnet)(x), sliced, rtol=0, atol=0)


@every_policy
@every_size
@every_net
@torch.no_grad()
def test_one_batch_of_masks_is_one_slice_per_sample(kind, size, bn):
    net, subnets = prepared(kind, size, bn)
    x = images(len(subnets), pixels(size))
    masks = net.masks(torch.tensor([s.widths for s in subnets]), subnets)
    one_by_one = torch.cat([net(x[i: i + 1], subnet) for i, subnet in enumerate(subnets)])
    assert_close(net(x, masks), one_by_one, **EXACT)


@every_net
@torch.no_grad()
def test_a_single_mask_serves_the_batch(kind):
    net, (_, subnet, *_) = prepared(kind)
    rows = net.masks(torch.tensor([subnet.widths])).widths
    x = images(3, 16)
    assert_close(net(x, Masks(rows, net.slots[subnet])), net(x, subnet), **EXACT)


@every_policy
@every_net
def test_training_gradients_are_the_oracles(kind, bn):
    net, (_, subnet, *_) = prepared(kind, 32, bn)
    net.train().zero_grad()
    x, direction = images(4, 16, seed=1), torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    slot = net.slots[subnet]
    thin = thin_net(net, subnet.widths).train()
    cut = {n: t.detach().clone().requires_grad_(t.is_floating_point() and "running" not in n)
           for n, t in cut_parameters(net, thin, slot).items()}

    logits = net(x, subnet)
    (logits * direction).sum().backward()
    expected = torch.func.functional_call(thin, cut, (x,))
    (expected * direction).sum().backward()

    assert_close(logits, expected.float(), **EXACT)
    affine = slot if bn == "private" else 0
    for wide, (name, _) in zip(net.parameters(), thin.named_parameters(), strict=True):
        small = cut[name].grad
        row = (affine,) if wide.dim() == small.dim() + 1 else ()
        inside = (*row, *map(slice, small.shape))
        assert_close(wide.grad[inside], small, rtol=1e-9, atol=1e-9)
        outside = wide.grad.clone()
        outside[inside] = 0
        assert not outside.any(), f"{name}: gradient outside the slice"
    if bn in ("private", "shared_affine"):  # the policies that track statistics while training
        for norm, name in zip(net.norms(), (n for n in cut if n.endswith("running_mean")), strict=True):
            c = len(cut[name])
            assert_close(norm.running_mean[slot, :c], cut[name], rtol=1e-9, atol=1e-9)
            variance = cut[name.replace("mean", "var")]
            assert_close(norm.running_var[slot, :c], variance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bn", ("shared_affine", "calibrated", "group"))
@every_net
def test_masked_training_is_sliced_training(kind, bn):
    net, (_, subnet, *_) = prepared(kind, 32, bn)
    net.train()
    x = images(4, 16)
    masks = net.masks(torch.tensor([subnet.widths] * 4))
    grads = []
    for route in (subnet, masks):
        net.zero_grad()
        out = net(x, route)
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for sliced, masked in zip(*grads, strict=True):
        assert_close(masked, sliced, rtol=1e-5, atol=1e-6)


@every_policy
def test_only_the_trained_slot_learns(bn):
    net, (_, first, second, *_) = prepared(NETS[0], 32, bn)
    before = {n: t.clone() for n, t in net.named_buffers()}
    net.train()
    net(images(2, 16), first).sum().backward()
    for name, after in net.named_buffers():
        changed = (after != before[name]).any(1)
        tracked = bn in ("private", "shared_affine")
        assert changed.tolist() == [tracked and row == net.slots[first] for row in range(len(changed))]
    if bn == "private":
        gradient = net.norms()[0].weight.grad
        assert gradient[net.slots[first]].any() and not gradient[net.slots[second]].any()


@every_net
@torch.no_grad()
def test_resolution_resizes_with_aligned_corners(kind):
    net, (_, subnet, *_) = prepared(kind)
    small = Subnet(subnet.widths, resolution=12)
    fill_statistics(net, [subnet, small])
    x = images(2, 20)
    resized = torch.nn.functional.interpolate(x, (12, 12), mode="bilinear", align_corners=True)
    expected = run_thin(net, resized, small, net.slots[small]).float()
    assert_close(net(x, small), expected, **EXACT)
    assert_close(net.extract(small)(x).float(), expected, **EXACT)
    wide = torch.cat([x, x])[:, :, :12].repeat(1, 1, 2, 1)[:, :, :, :12]  # width already 12, height not
    assert wide.shape[-2:] == (24, 12)
    assert_close(net(wide, small), net.extract(small)(wide).float(), **EXACT)


@pytest.mark.parametrize(("size", "side"), ((32, 32), (224, 96)))
@every_net
@torch.no_grad()
def test_full_size_nets_agree_with_the_oracle(kind, size, side):
    net = kind(10, size).eval()
    subnets = [net.largest, net.uniform(0.5)]
    net.reserve(subnets)
    x = images(2, side, dtype=torch.float32)
    for subnet in subnets:
        net(x, subnet, statistics="batch", momentum=1.0)
    net.mark_calibrated(subnets)
    for subnet in subnets:
        sliced = net(x, subnet)
        assert sliced.std(0).max() > 1e-3 * sliced.abs().max() > 0
        tolerance = {"rtol": 0, "atol": 1e-4 * sliced.abs().max().item()}  # float32, other memory formats
        assert_close(sliced, run_thin(net, x, subnet, net.slots[subnet]), **tolerance)
        assert_close(net.extract(subnet)(x), sliced, **tolerance)


@every_net
def test_extracted_net_is_plain_and_exports(kind):
    net, (_, subnet, *_) = prepared(kind)
    random_state = torch.get_rng_state()
    plain = net.extract(subnet)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in net.parameters()}
    x = images(2, 16)
    with torch.no_grad():
        exported = torch.export.export(plain, (x,)).module()
        assert_close(exported(x).float(), net(x, subnet), **EXACT)


@every_net
def test_bind_shares_parameters_and_follows_them(kind):
    net, (_, subnet, *_) = prepared(kind, bn="private")
    bound = net.bind(subnet)
    assert {id(p) for p in bound.parameters()} == {id(p) for p in net.parameters()}
    with torch.no_grad():
        net.classifier.bias.add_(1)
        x = images(2, 16)
        assert_close(bound(x), net(x, subnet), rtol=0, atol=0)


@every_net
@torch.no_grad()
def test_a_bound_net_is_exported_for_any_batch(kind):
    net, (_, subnet, *_) = prepared(kind, bn="calibrated")
    bound, x = net.bind(subnet), images(3, 16)
    program = torch.export.export(bound, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    for batch in (x, images(5, 16, seed=1)):
        assert_close(program.module()(batch), net(batch, subnet), rtol=0, atol=0)


@pytest.mark.parametrize("mode", (torch.enable_grad, pytest.param(torch.inference_mode, marks=pytest.mark.sweep)))
@every_net
def test_a_bound_net_compiles_to_one_graph(kind, mode):
    net, (_, subnet, *_) = prepared(kind, bn="calibrated")
    torch.compiler.reset()
    compiled, x = torch.compile(net.bind(subnet), fullgraph=True, backend="eager"), images(3, 16)
    with mode():
        assert_close(compiled(x), net(x, subnet), rtol=0, atol=0)


@torch.no_grad()
def test_a_bound_net_still_checks_its_statistics_where_that_is_possible():
    net, (_, subnet, *_) = prepared(MobileNetV1, bn="calibrated")
    bound = net.bind(subnet)
    net.classifier.weight.mul_(2)
    other, = random_subnets(net, 1, 99)
    for run in (lambda: bound(images(2, 16)), lambda: net.bind(subnet), lambda: net.bind(other)):
        with pytest.raises(SlimnbError, match="NumericsError"):
            run()
    net.train().bind(subnet)  # training needs none


@every_net
def test_channel_units_name_every_producer_norm_and_consumer(kind):
    net = tiny(kind)
    units = net.channel_units()
    modules = dict(net.named_modules())
    assert [u.name for u in units] == net.unit_names
    assert [u.channels for u in units] == list(net.largest.widths)
    producers = [name for unit in units for name in unit.producers]
    convs = [name for name, m in modules.items() if hasattr(m, "depthwise")]
    assert sorted(producers) == sorted(convs)
    for unit in units:
        assert unit.consumers, f"nothing reads {unit.name}"
        assert all(modules[norm].channels == unit.channels for norm in unit.norms)
    # Cutting a unit in half changes the input of its consumers at most, and nobody else's.
    widths = list(net.largest.widths)
    for index, unit in enumerate(units):
        subnet = Subnet(tuple(w // 2 if i == index else w for i, w in enumerate(widths)))
        thin = dict(zip(convs, [m for m in thin_net(net, subnet.widths).modules()
                                if isinstance(m, torch.nn.Conv2d)], strict=True))
        smaller = {name for name in convs if thin[name].in_channels < modules[name].in_channels
                   and not modules[name].depthwise}
        assert smaller <= set(unit.consumers)
        assert set(unit.producers) == {
            name for name in convs if thin[name].out_channels < modules[name].out_channels}


@every_net
def test_uniform_subnets_are_the_papers_layers(kind):
    net = kind(10)
    full = thin_net(net, net.uniform(1.0).widths)
    assert [tuple(p.shape) for p in full.parameters() if p.dim() == 4] == [
        tuple(p.shape) for p in net.parameters() if p.dim() == 4]


def test_resnet_join_of_a_narrow_body_and_a_wide_shortcut():
    net = tiny(ResNet50)
    widths = list(net.largest.widths)
    names = net.unit_names
    widths[names.index("stage0.0.out")], widths[names.index("stage0.0.project")] = 5, 9
    widths[names.index("stage0.1.out")] = 20  # wider than both: the stream grows
    subnet = Subnet(tuple(widths))
    fill_statistics(net, [subnet])
    x = images(2, 16)
    with torch.no_grad():
        assert_close(net(x, subnet), run_thin(net, x, subnet).float(), **EXACT)


@pytest.mark.parametrize(("kind", "times"), tuple(zip(NETS, (2, 4, 1, 4), strict=True)))
@torch.no_grad()
def test_layouts_for_32_pixels_reduce_less(kind, times):
    side = {}
    for size in SIZES:
        net = kind(10, size, **({} if kind is NETS[0] else TINY[kind]))
        s = net.select(net.largest, statistics="batch")
        side[size] = net.features(images(1, 64, dtype=torch.float32), s).shape[-1]
    assert side[32] == times * side[224]
