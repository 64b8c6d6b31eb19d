"""Pruning against loops over every threshold and sets of channels, on nets with and without joins."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from refusals import refused
from small_nets import NETS, TINY, full, images, tiny

from slimnb.cost.macs import count_macs
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nets.vgg import VGG
from slimnb.nn.layers import SlimmableConv2d
from slimnb.papers.sp_net.pruning import filter_norms, gammas, importance_order, prune
from slimnb.subnet import Subnet

every_net = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)


def trained(kind, seed: int, largest: float = 1.0, ties: bool = False, **options):
    """A tiny net with random gammas of either sign, in tenths with `ties`."""
    net = kind(10, 32, largest, **TINY[kind], bn="shared_affine", seed=seed, **options)
    shake(net, seed, ties)
    return net


def shake(net, seed: int, ties: bool = False) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in net.norms():
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=rng).mul(10 if ties else 1e6).round() / 10)


# -- the same, slowly ------------------------------------------------------------------------------------


def layers_of(net, side: int) -> list[tuple[int, tuple[int, ...], int | None]]:
    """(MACs per channel in and out, units read, unit made) of every convolution and of the linear layer."""
    found = [(10, net.classifier.sources, None)]
    hooks = [module.register_forward_hook(lambda m, args, out: found.append(
        (out.shape[2] * out.shape[3] * m.kernel**2, m.sources, None if m.depthwise else m.unit)))
        for module in net.modules() if isinstance(module, SlimmableConv2d)]
    net(images(2, side, dtype=torch.float32), statistics="batch")
    for hook in hooks:
        hook.remove()
    return found


def macs_of(kept: list[set[int]], layers) -> int:
    """Convolutions and the linear layer, when unit u keeps the channels kept[u] and joins have their union."""
    return sum(rate * (len(set().union(*(kept[u] for u in units))) or 3) * (1 if made is None else len(kept[made]))
               for rate, units, made in layers)


def leader_of(net, name: str) -> str:
    """The unit whose count goes, under "shortcut", for the block end or projection `name`."""
    stage = name.partition(".")[0]
    if name.endswith((".out", ".project")):
        return f"{stage}.0.project" if f"{stage}.0.project" in net.unit_names else f"{stage}.0.out"
    return name


def by_threshold(net, scores, threshold: float, padding: str) -> list[int]:
    """Channels per unit by the rule in words, one channel at a time."""
    names, counts = net.unit_names, []
    for name, unit, width in zip(names, scores, net.largest.widths, strict=True):
        stage = name.partition(".")[0]
        joins = name.endswith((".out", ".project")) and {f"{stage}.1.out", f"{stage}.0.project"} & set(names)
        floor = max(1, width // 20 if joins and padding != "shortcut" else width // 10)
        counts.append(max(floor, sum(float(value) > threshold for value in unit[0])))
    if padding == "shortcut":
        counts = [counts[names.index(leader_of(net, name))] for name in names]
    return counts


def top(values, count: int) -> set[int]:
    return set(sorted(range(len(values)), key=lambda c: (-values[c], c))[:count])


def all_steps(net, scores, padding: str, kept_of) -> list[tuple[float, list[int], int]]:
    """(threshold, counts, MACs) of every threshold there is, lowest first; `kept_of(counts)` gives sets."""
    layers = layers_of(net, 32)
    pool = sorted({float(v) for unit in scores for v in np.ravel(unit) if v > -np.inf})
    steps, last = [], None
    for threshold in [-np.inf, *pool]:
        counts = by_threshold(net, scores, threshold, padding)
        if last is None or counts != last[1]:
            last = threshold, counts, macs_of(kept_of(counts), layers)
        steps.append((threshold, *last[1:]))
    return steps


def own_channels(net, scores, padding: str):
    """Which channels counts mean in `net`: the best of each unit, by its own scores or those of its leader."""
    def kept(counts):
        names = net.unit_names
        by = [names.index(leader_of(net, n)) if padding == "shortcut" else u for u, n in enumerate(names)]
        return [top(scores[by[u]][0], count) for u, count in enumerate(counts)]
    return kept


@pytest.mark.parametrize(("padding", "ties"), (("match", False), ("match", True), ("shortcut", True), ("ends", False)))
@every_net
def test_pruning_is_the_best_of_all_thresholds(kind, padding, ties):
    net = trained(kind, 3, ties=ties)
    scores = gammas(net)
    steps = all_steps(net, scores, padding, own_channels(net, scores, padding))
    macs = [m for *_, m in steps]
    assert macs == sorted(macs, reverse=True) and macs[0] == count_macs(net, net.largest, resolution=32)
    pool = np.sort(np.concatenate([unit.ravel() for unit in scores]))
    for target in (macs[0], macs[0] - 1, (macs[0] + macs[-1]) // 2, macs[-1]):
        threshold, counts, best = next(step for step in steps if step[2] <= target)
        found = prune(net, target, padding=padding, resolution=32)
        assert (list(found.counts), found.macs, found.target) == (counts, best, target)
        assert found.gap == 1 - best / target >= 0
        assert found.keep == (pool > threshold).mean()


@every_net
def test_pruning_leaves_the_base_alone(kind):
    net = trained(kind, 1)
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    prune(net, 0.5 * count_macs(net, net.largest))
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and not net.slots
    assert net.padding is None


@every_net
def test_counts_are_plain_numbers(kind):
    net = trained(kind, 2)
    found = prune(net, 0.6 * count_macs(net, net.largest))
    record = json.loads(json.dumps(asdict(found)))
    assert record["counts"] == list(found.counts) and record["macs"] == found.macs
    assert Subnet(tuple(record["counts"])) == Subnet(found.counts)


# -- survivors by hand -----------------------------------------------------------------------------------


def by_hand(**rows):
    """A chain of 10, 20, 30, 30, 40 channels whose gammas are `rows` by unit, else ones; depthwise ones at .5."""
    net = MobileNetV1(10, 32, layout=((10, 2), (20, 1), (30, 2), (30, 1), (40, 2)), rounding="floor")
    with torch.no_grad():
        for name, unit in zip(net.unit_names, net.channel_units(), strict=True):
            made, *follow = unit.norms
            net.get_submodule(made).weight.copy_(torch.as_tensor(rows.get(name, [1.0] * unit.channels)))
            for other in follow:
                net.get_submodule(other).weight.fill_(0.5)
    return net


def test_known_survivors():
    net = by_hand(stem=[0.1] * 4 + [-0.9] * 6, block1=[0.3] * 19 + [-0.2], block2=[0.01] * 30)
    counts = (6, 2, 3, 30, 40)  # above .5; of block1 and block2 nothing is, but a tenth stays
    found = prune(net, count_macs(net, Subnet(counts)))
    assert found.counts == counts and found.gap == 0
    assert [list(order[:n]) for order, n in zip(importance_order(gammas(net)), counts, strict=True)][:3] == [
        [4, 5, 6, 7, 8, 9], [0, 1], [0, 1, 2]]
    less = prune(net, found.macs - 1)
    assert less.counts == (1, 2, 3, 30, 40)
    assert prune(net, less.macs - 1).counts == (1, 2, 3, 3, 4), "all that is left are ones: they go together"


def test_depthwise_gammas_move_the_share_but_not_the_channels():
    one, other = by_hand(stem=[0.1] * 4 + [0.9] * 6), by_hand(stem=[0.1] * 4 + [0.9] * 6)
    with torch.no_grad():
        for module in other.norms()[1::2]:
            module.weight.fill_(0.01)
    target = count_macs(one, Subnet((6, 20, 30, 30, 40)))
    found = [prune(net, target) for net in (one, other)]
    assert found[0].counts == found[1].counts == (6, 20, 30, 30, 40)
    depthwise = 10 + 20 + 30 + 30
    assert found[0].keep == 1 - 4 / (130 + depthwise) and found[1].keep == 1 - (4 + depthwise) / (130 + depthwise)


@pytest.mark.parametrize(("padding", "share"), (("match", 20), ("ends", 20), ("shortcut", 10)))
def test_floors_are_lower_where_paths_join(padding, share):
    net = ResNet50(10, 32, layout=((20, 2), (30, 1)), stem=20)
    scores = [np.linspace(0, 1, width) for width in net.largest.widths]
    with pytest.raises(SlimnbError, match="ParameterError") as caught:
        prune(net, 1, score=lambda net: scores, padding=padding)
    least = int(str(caught.value).split("no less than ")[1].split(". ")[0].replace(",", ""))
    ends = [name.endswith((".out", ".project")) for name in net.unit_names]
    counts = tuple(width // (share if end else 10) for width, end in zip(net.largest.widths, ends, strict=True))
    assert prune(net, least, score=lambda net: scores, padding=padding).counts == counts
    assert prune(net, least, score=lambda net: scores, padding=padding).macs == least


# -- scores ----------------------------------------------------------------------------------------------


@every_net
def test_gammas_and_filter_norms_are_of_every_layer(kind):
    net = tiny(kind, bn="shared_affine")
    convs = [m for m in net.modules() if isinstance(m, SlimmableConv2d)]
    for scores, made in ((gammas(net), [n.weight[0].abs() for n in net.norms()]),
                         (filter_norms(net), [conv.weight.abs().flatten(1).sum(1) for conv in convs])):
        assert [unit.shape[1] for unit in scores] == list(net.largest.widths)
        rows = [0] * len(scores)
        for conv, expected in zip(convs, made, strict=True):  # in order: first who makes the channels
            np.testing.assert_allclose(scores[conv.unit][rows[conv.unit]], expected.detach(), rtol=1e-12)
            assert (rows[conv.unit] > 0) == conv.depthwise
            rows[conv.unit] += 1
        assert rows == [len(unit) for unit in scores]


def test_private_gammas_are_the_largest_subnets():
    net = tiny(MobileNetV1, bn="private")
    net.reserve([net.uniform(0.5), net.largest])
    with torch.no_grad():
        for norm in net.norms():
            norm.weight[0], norm.weight[1] = 3.0, -5.0
    assert all((unit == 5).all() for unit in gammas(net))


def test_a_score_may_be_any_function():
    net = trained(VGG, 0)
    target = 0.5 * count_macs(net, net.largest)
    rows = [np.arange(width)[::-1] for width in net.largest.widths]
    plain, doubled = (prune(net, target, score=lambda net, k=k: [k * row for row in rows]) for k in (1, 2))
    assert plain == doubled and plain != prune(net, target)


@pytest.mark.parametrize("spoil", (lambda s: s[:-1], lambda s: [*s[:-1], s[-1][:-1]],
                                   lambda s: [*s[:-1], s[-1] * float("nan")]), ids=("units", "channels", "nan"))
def test_scores_of_a_wrong_shape(spoil):
    net = trained(VGG, 0)
    with pytest.raises(SlimnbError, match="ParameterError") as caught:
        prune(net, 1e6, score=lambda net: spoil([np.ones(width) for width in net.largest.widths]))
    assert len(str(caught.value)) <= 240


# -- one-shot, multi-base, iterative ---------------------------------------------------------------------


@every_net
def test_counts_from_two_bases_need_not_be_nested(kind):
    whole, thin = trained(kind, 1), trained(kind, 2, largest=0.75, rounding="floor")
    target = count_macs(whole, whole.largest, resolution=32)
    first, second = (prune(base, share * target, into=whole, resolution=32)
                     for base, share in ((whole, 0.5), (thin, 0.45)))
    assert any(a < b for a, b in zip(first.counts, second.counts, strict=True)) and second.macs < first.macs
    one_shot = [prune(whole, share * target, resolution=32).counts for share in (0.5, 0.45)]
    assert one_shot[0] != one_shot[1] and all(a >= b for a, b in zip(*one_shot, strict=True))
    subnets = embed_(whole, importance_order(gammas(whole)), {"0.5x": first.counts, "0.45x": second.counts})
    for name, found in (("0.5x", first), ("0.45x", second)):
        assert subnets[name].widths == found.counts
        assert count_macs(whole, subnets[name], resolution=32, fused=True) == found.macs
        assert count_macs(whole, subnets[name], resolution=32) >= found.macs


@pytest.mark.parametrize("kind", (ResNet50, MobileNetV2), ids=lambda kind: kind.__name__)
def test_joins_are_counted_in_the_net_the_counts_are_for(kind):
    whole, thin = trained(kind, 1), trained(kind, 2, largest=0.75, rounding="floor")
    scores = gammas(thin)
    steps = all_steps(thin, scores, "match", own_channels(whole, gammas(whole), "match"))
    target = steps[len(steps) // 2][2]
    _, counts, best = next(step for step in steps if step[2] <= target)
    found = prune(thin, target, into=whole, resolution=32)
    assert (list(found.counts), found.macs) == (counts, best)
    in_base = prune(thin, target, resolution=32)
    assert (found.counts, found.macs) != (in_base.counts, in_base.macs)


@pytest.mark.parametrize("padding", ("match", "shortcut"))
@every_net
def test_iterative_pruning_goes_on_within_what_is_left(kind, padding):
    net = trained(kind, 1)
    full_macs = count_macs(net, net.largest, resolution=32)
    first = prune(net, 0.6 * full_macs, padding=padding, resolution=32)
    orders = importance_order(gammas(net))
    if padding == "shortcut":
        orders = [orders[net.unit_names.index(leader_of(net, name))] for name in net.unit_names]
    stage = embed_(net, orders, {"stage": first.counts}, padding)["stage"]
    shake(net, 7)  # as training the stage would
    second = prune(net, 0.3 * full_macs, within=stage, padding=padding, resolution=32)

    scores = gammas(net)
    for unit, width in zip(scores, stage.widths, strict=True):
        unit[:, width:] = -np.inf
    plain = trained(kind, 1)  # channels by the numbers they had at first
    now = own_channels(net, scores, padding)
    steps = all_steps(plain, scores, padding, lambda counts: [
        {int(order[c]) for c in kept} for order, kept in zip(orders, now(counts), strict=True)])
    assert steps[0][1] == list(stage.widths)
    _, counts, best = next(step for step in steps if step[2] <= 0.3 * full_macs)
    assert (list(second.counts), second.macs) == (counts, best)
    assert all(a <= b for a, b in zip(second.counts, stage.widths, strict=True)) and second.counts != first.counts
    again = embed_(net, importance_order(scores), {"next": second.counts}, padding)["next"]
    assert count_macs(net, again, resolution=32, fused=True) == second.macs


CONFIGS = ((ResNet50, "C", {0.75: 0.5, 1.0: 0.75}), (VGG, "C", {0.5: 0.25, 0.75: 0.5}),
           (MobileNetV1, "A", {0.75: 0.5, 1.0: 0.75, 1.3: 1.0}), (MobileNetV2, "A", {1.0: 0.75, 1.3: 1.0}))


@pytest.mark.parametrize(("kind", "convention", "pairs"), CONFIGS, ids=lambda value: getattr(value, "__name__", ""))
def test_sp_nets_bases_meet_their_targets(kind, convention, pairs):
    """The base of each width pruned to the MACs of the next thinner net (algorithm 2), on random scores."""
    rng = np.random.default_rng(0)
    for wide, thin in pairs.items():
        base = full(kind, largest=wide, rounding="floor" if kind is MobileNetV1 else None)
        scores = [rng.random((len(u.norms), u.channels)) for u in base.channel_units()]
        target = count_macs(base, base.uniform(thin), convention)
        found = prune(base, target, score=lambda net, s=scores: s, convention=convention)
        assert 0 <= found.gap < 0.003 and 0 < found.keep < 1
        assert found.counts != base.uniform(thin).widths


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", (1, 0, -5.0))
def test_an_unreachable_target_names_what_is_reachable(target):
    net = trained(ResNet50, 0)
    with pytest.raises(SlimnbError, match=r"ParameterError: target = .* MACs .* no less than ([\d,]+)\.") as caught:
        prune(net, target)
    assert len(str(caught.value)) <= 240
    least = int(str(caught.value).split("no less than ")[1].split(". ")[0].replace(",", ""))
    assert prune(net, least).macs == least
    refused("ParameterError", prune, net, least - 1)


@every_net
def test_a_target_beyond_the_base_is_the_whole_base(kind):
    net = trained(kind, 0)
    found = prune(net, float(10**12))
    assert found.counts == net.largest.widths and found.keep == 1 and found.macs == count_macs(net, net.largest)


@pytest.mark.parametrize("gamma", (0.5, 1.0, 0.0))
def test_an_untrained_base_is_told(gamma):
    net = tiny(MobileNetV2)
    with torch.no_grad():
        for i, norm in enumerate(net.norms()):
            norm.weight.fill_(gamma if i % 3 else 0.25)  # block ends may start at another value
    with pytest.warns(UserWarning, match="untrained"):
        found = prune(net, 0.9 * count_macs(net, net.largest))
    assert found.gap > 0.1


def test_counts_wider_than_the_supernet_are_refused():
    base, whole = trained(VGG, 0, largest=1.5), trained(VGG, 0)
    scores = [np.linspace(0, 1, width) for width in base.largest.widths]
    scores[0] = scores[0] + 2  # the first layer stays as it is, half as wide again as the supernet's

    def score(net):
        return [row[:width] for row, width in zip(scores, net.largest.widths, strict=True)]

    target = 0.3 * count_macs(whole, whole.largest)
    with pytest.raises(SlimnbError, match=r"ParameterError: width 24 in unit 'stage0\.0'"):
        prune(base, target, into=whole, score=score)
    with pytest.raises(SlimnbError, match=r"ParameterError: width 24 in unit 'stage0\.0'"):
        embed_(whole, importance_order(gammas(whole)), {"0.5x": prune(base, target, score=score).counts})


def test_padding_that_does_not_exist():
    with pytest.raises(SlimnbError, match="ParameterError: padding = 'zeros'"):
        prune(trained(ResNet50, 0), 1e6, padding="zeros")


def test_a_stage_of_another_net_is_refused():
    net = trained(VGG, 0)
    for widths, code in ((net.largest.widths[1:], "ParameterError"), ([w + 1 for w in net.largest.widths],
                                                                      "ParameterError")):
        with pytest.raises(SlimnbError, match=f"{code}"):
            prune(net, 1e6, within=Subnet(tuple(widths)))


def test_group_norm_is_refused():
    refused("ParameterError", prune, tiny(MobileNetV1, bn="group"), 1e5)
