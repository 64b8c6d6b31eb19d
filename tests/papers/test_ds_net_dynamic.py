"""Dynamic inference: a grouped batch equals masks and per-sample runs, whatever the batch; what paths cost."""

import itertools

import numpy as np
import pytest
import torch
from gated_nets import KINDS, ready
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from slimnb.cost.macs import count_macs
from slimnb.nn.gate import Gated
from slimnb.nn.norm import GROUP
from slimnb.papers.ds_net.dynamic import MIXING, DynamicNet, Pointwise, cheapest_runs, pack_, path_macs
from slimnb.papers.ds_net.nets import DSMobileNet, DSResNet50

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize(("ways", "options"), [
    ({"packed": False}, {}), ({"overhead": 0}, {}), ({"overhead": 3}, {}), ({"overhead": 1e9}, {}),
    ({}, {"head": "scalar"}), ({}, {"shared": False}), ({"packed": False}, {"shared": False})], ids=str)
def test_grouped_equals_masked_and_per_sample(kind, ways, options):
    net, x = ready(kind, **options)
    dynamic = DynamicNet(net, **ways)
    with torch.no_grad():
        masked, decisions = net(x, Gated())
    logits, chosen = dynamic.route(x)
    assert torch.equal(chosen, torch.stack([each.weights.argmax(1) for each in decisions], 1))
    torch.testing.assert_close(logits.float(), masked, atol=1e-5, rtol=1e-5)
    for i in (0, 7, 21):
        with torch.no_grad():
            alone = net(x[i: i + 1], net.path(*chosen[i].tolist()))
        torch.testing.assert_close(logits[i: i + 1].float(), alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(dynamic(x), logits)


@each_kind
def test_an_image_s_path_and_logits_do_not_depend_on_its_batch(kind):
    net, x = ready(kind)
    dynamic = DynamicNet(net.float())
    x = x.float()
    logits, chosen = dynamic.route(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    for rows in (order, order[:17], order[:1], torch.arange(len(x)).repeat(3)):
        again, same = dynamic.route(x[rows])
        assert torch.equal(same, chosen[rows])
        torch.testing.assert_close(again, logits[rows], atol=1e-4, rtol=1e-4)
    torch.manual_seed(123)  # and no global random number has a say
    assert torch.equal(dynamic.route(x)[1], chosen)


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 31), min_size=1, max_size=60), kind=st.sampled_from(list(KINDS)))
def test_any_batch_is_put_back_in_order(rows, kind):
    _, x, dynamic, logits, chosen = _kept(kind)
    again, same = dynamic.route(x[rows])
    assert torch.equal(same, chosen[rows])
    torch.testing.assert_close(again, logits[rows], atol=1e-6, rtol=1e-6)


_ready: dict = {}


def _kept(kind):
    if kind not in _ready:
        net, x = ready(kind)
        dynamic = DynamicNet(net)
        _ready[kind] = net, x, dynamic, *dynamic.route(x)
    return _ready[kind]


def test_groups_are_joined_again_so_that_gates_do_not_multiply_them():
    net, x = ready(DSResNet50, layout=((16, 2), (32, 1), (32, 1)), strides=(2, 1, 2, 1))
    dynamic = DynamicNet(net)
    calls = []
    inner = dynamic._run
    dynamic._run = lambda i, step, group: calls.append(i) or inner(i, step, group)
    _, chosen = dynamic.route(x)
    counts = np.bincount(calls)
    last = int(np.flatnonzero(counts)[-1])  # the last block, a stage's first: one group per pair of widths at most
    pairs = len(chosen[:, 1:].unique(dim=0))
    assert counts[last] == pairs and len(chosen.unique(dim=0)) > pairs


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not DSResNet50])
@pytest.mark.parametrize("merging", [False, True])
def test_small_groups_are_run_as_one_where_that_is_cheaper(kind, merging):
    net, x = ready(kind)
    dynamic = DynamicNet(net, overhead=1e9 if merging else 0)
    calls = []
    inner = dynamic._run
    dynamic._run = lambda i, step, group: calls.append((i, group.last)) or inner(i, step, group)
    _, chosen = dynamic.route(x)
    paths = chosen.unique().tolist()
    assert len(paths) > 2
    assert [last for i, last in calls if i == len(dynamic.steps) - 1] == (paths[-1:] if merging else paths)
    dynamic.route(x[:1])
    assert calls[-1][1] == int(chosen[0])  # one path alone is not mixed with others


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 1)), min_size=1, max_size=7), st.floats(0, 20))
def test_the_cheapest_runs_are_those_of_brute_force(groups, overhead):
    counts = [count for count, _ in groups]
    costs = sorted(cost for _, cost in groups)

    def cost_of(lengths) -> float:
        total, at = 0.0, 0
        for n in lengths:
            total += overhead + sum(counts[at: at + n]) * costs[at + n - 1] * (MIXING if n > 1 else 1)
            at += n
        return total

    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, len(counts)), k) for k in range(len(counts)))
    least = min(cost_of(np.diff([0, *cut, len(counts)])) for cut in cuts)
    found = cheapest_runs(counts, costs, overhead)
    assert sum(found) == len(counts) and min(found) > 0
    assert cost_of(found) == pytest.approx(least)


@pytest.mark.parametrize("overhead", [-1, float("inf"), float("nan")])
def test_an_overhead_that_is_none_is_refused(overhead):
    refused("ParameterError", DynamicNet, ready(DSMobileNet)[0], overhead=overhead)


@each_kind
@pytest.mark.parametrize("overhead", [0, 1e9])
def test_the_open_choices_are_those_of_the_masks(kind, overhead):
    net, x = ready(kind)
    with torch.no_grad():
        masked = net(x, Gated(2)).logits
    logits, chosen = DynamicNet(net, lowest=2, overhead=overhead).route(x)
    assert chosen.max() < 2
    torch.testing.assert_close(logits.float(), masked, atol=1e-5, rtol=1e-5)


@each_kind
def test_path_macs_are_those_of_the_paths_and_the_slimming_heads(kind):
    net, _ = ready(kind)
    heads = sum(gate.choices * gate.hidden for gate in net.gates)
    macs = path_macs(net)
    assert macs.shape == net.choices
    assert macs.ravel().tolist() == [count_macs(net, path, "D") + heads for path in net.paths]


@each_kind
def test_packing_changes_nothing(kind):
    net, x = ready(kind)
    plain = net.extract(net.widest)
    with torch.no_grad():
        before = plain(x[:4])
        torch.testing.assert_close(pack_(plain)(x[:4]), before, atol=1e-9, rtol=1e-9)
    if net.bn != GROUP:
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
        assert any(isinstance(m, Pointwise) for m in plain.modules())


def test_statistics_that_depend_on_the_path_before_the_gate_are_refused():
    net, _ = ready(DSMobileNet)
    net.norms()[0].running_mean[1] += 0.1
    refused("NumericsError", DynamicNet, net)


def test_variances_that_depend_on_the_path_before_the_gate_are_refused():
    net, _ = ready(DSMobileNet)
    net.norms()[0].running_var[1] *= 1.1
    refused("NumericsError", DynamicNet, net)


@each_kind
def test_it_is_a_snapshot_that_can_be_moved(kind):
    net, x = ready(kind)
    dynamic = DynamicNet(net)
    logits = dynamic(x)
    with torch.no_grad():
        for p in net.parameters():
            p += 1
    assert torch.equal(dynamic(x), logits)
    moved = dynamic.float()(x.float())  # after its layers were packed
    torch.testing.assert_close(moved, logits, atol=1e-3, rtol=1e-3)
    assert next(net.parameters()).dtype == torch.float64  # the net itself stays


@each_kind
@pytest.mark.parametrize("packed", [True, False])
def test_images_may_be_of_another_dtype_and_none_at_all(kind, packed):
    net, x = ready(kind)
    dynamic = DynamicNet(net.float(), packed=packed)
    logits, half = dynamic(x.float()), dynamic(x.bfloat16())
    assert logits.dtype == half.dtype == torch.float32 and half.isfinite().all()
    assert dynamic(x[:0].float()).shape == (0, net.num_classes)


def test_uncalibrated_paths_are_refused():
    refused("NumericsError", DynamicNet, DSMobileNet(10, 32, **KINDS[DSMobileNet]))
