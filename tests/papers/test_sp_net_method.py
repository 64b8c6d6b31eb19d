"""SP-Net's sparsity gradient and joint training, and the numbers that its paper prints."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small_nets import NETS, TINY, full
from small_training import Noise, NoSync, embedded, everything, fit, same_bits, small
from torch.testing import assert_close

from slimnb.cost.macs import count_macs, count_params
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nets.vgg import VGG
from slimnb.papers.slimmable.method import InplaceDistillation, Switches
from slimnb.papers.sp_net import recipes as sp_net_study
from slimnb.papers.sp_net.method import EmbeddedSwitches, Sparsity
from slimnb.papers.sp_net.pruning import gammas, importance_order, prune
from slimnb.subnet import Subnet
from slimnb.train.loop import train_step
from slimnb.train.optim import make_optimizer
from slimnb.train.protocols import Labels, Pass

# -- sparsity --------------------------------------------------------------------------------------------


def gradients(net, penalty=None) -> dict[str, torch.Tensor]:
    """Of one step of the largest subnet, on a net whose gammas are of either sign, some of them zero."""
    with torch.no_grad():
        for norm in net.norms():
            norm.weight.copy_(torch.linspace(-1, 1, norm.weight.numel()).reshape(norm.weight.shape))
            norm.weight[:, 1] = 0
    net.train()
    train_step(net, *Noise().batch(0), [Pass(net.largest)], Labels(), make_optimizer(net), penalty=penalty)
    return {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_gradient_is_the_losses_plus_strength_times_sign(kind):
    def net():
        return kind(10, 32, **TINY[kind])

    strength = 2.0**-7
    plain, sparse, of = gradients(net()), gradients(net(), Sparsity(strength)), net()
    norms = {f"{name}.weight": m for name, m in of.named_modules() if m in set(of.norms())}
    assert len(norms) == sum(p.dim() == 4 for p in of.parameters()), "one after every convolution, depthwise too"
    for name, gradient in plain.items():
        if name in norms:
            sign = torch.linspace(-1, 1, gradient.numel()).reshape(gradient.shape).sign()
            sign[:, 1] = 0
            assert torch.equal(sparse[name], gradient + strength * sign) and sign.abs().sum() > 3
        else:
            assert torch.equal(sparse[name], gradient)


def test_private_gammas_are_all_pushed_to_zero():
    net = small("private").train()
    net.reserve([net.largest, net.uniform(0.5)])
    train_step(net, *Noise().batch(0), [Pass(net.largest, weight=0.0)], Labels(), make_optimizer(net),
               penalty=Sparsity(0.5))
    for norm in net.norms():
        assert torch.equal(norm.weight.grad, torch.full_like(norm.weight, 0.5))


def test_strength_zero_is_plain_training():
    runs = []
    for penalty in (None, Sparsity(0.0), Sparsity(1e-3)):
        net = small()
        sampler = embedded(net)
        net.reserve(sampler.subnets())
        runs.append(everything(net, fit(net, sampler, InplaceDistillation(alpha=0.9), penalty=penalty)[1]))
    assert same_bits(runs[0], runs[1]) and not same_bits(runs[0], runs[2])


def test_sparsity_never_waits_for_the_device():
    net = small().train()
    optimizer = make_optimizer(net)
    with NoSync():
        train_step(net, *Noise().batch(0), [Pass(net.largest)], Labels(), optimizer, penalty=Sparsity(1e-4))


def test_a_penalty_that_is_not_finite_is_no_update():
    net = small().train()
    optimizer, before = make_optimizer(net), [p.clone() for p in net.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    def poison(net):
        net.norms()[0].weight.grad.mul_(float("nan"))

    train_step(net, *Noise().batch(0), [Pass(net.largest)], Labels(), optimizer, penalty=poison)
    assert optimizer.found_inf == 1
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("strength", [-1e-4, float("nan"), float("inf"), "1e-4", True, None])
def test_strength_is_a_number(strength):
    with pytest.raises(SlimnbError, match="ParameterError: strength = "):
        Sparsity(strength)


def test_sparsity_needs_batch_norm():
    net = small("group").train()
    with pytest.raises(SlimnbError, match="ParameterError: a sparsity penalty with bn='group'"):
        train_step(net, *Noise().batch(0), [Pass(net.largest)], Labels(), make_optimizer(net), penalty=Sparsity(1e-4))


# -- joint training --------------------------------------------------------------------------------------


def test_the_supernet_teaches_the_embedded_subnets_widest_first():
    net = small()
    thin, thinner = net.uniform(0.75), net.uniform(0.5)
    sampler = EmbeddedSwitches(net.largest, {"0.5x": thinner, "0.75x": thin})
    assert [(p.route, p.target, p.name) for p in sampler.plan(3)] == [
        (net.largest, "labels", "largest"), (thin, "teacher", "0.75x"), (thinner, "teacher", "0.5x")]
    assert sampler.subnets() == [net.largest, thin, thinner]
    twin = EmbeddedSwitches(net.largest, {"all of it": net.largest})
    assert [p.target for p in twin.plan(0)] == ["labels", "teacher"], "the first of equals is the teacher"


def test_joint_step_is_labels_and_distillation():
    net = small("shared_affine").train()
    sampler = embedded(net)
    net.reserve(sampler.subnets())
    x, y = Noise().batch(1)
    outcomes = train_step(net, x, y, sampler.plan(0), InplaceDistillation(2.0, alpha=0.9), make_optimizer(net))
    teacher = (net(x, net.largest) / 2).log_softmax(1)
    assert_close(outcomes[0].loss, outcomes[0].ce)
    for outcome in outcomes[1:]:
        z = net(x, outcome.a_pass.route)
        soft = -(teacher.exp() * (z / 2).log_softmax(1)).sum(1)
        hard = -z.log_softmax(1)[torch.arange(8), y]
        assert_close(outcome.loss, (0.9 * 4 * soft + 0.1 * hard).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ("match", "ends"), ids=("fine-tuned", "drawn anew"))
def test_from_bases_to_a_joint_net(padding):
    """Algorithm 2 on a residual net: bases of .75 and 1.0 give the subnets of .5 and .75."""
    def make(mult):
        return ResNet50(10, 32, mult, **TINY[ResNet50], bn="shared_affine")

    bases = {mult: make(mult) for mult in (0.75, 1.0)}
    for base in bases.values():
        base.reserve([base.largest])
        fit(base, Switches({"base": base.largest}), Labels(), steps=3, penalty=Sparsity(1e-2))
    net = bases[1.0]
    target = {thin: count_macs(net, net.uniform(thin)) for thin in (0.5, 0.75)}
    pruned = {"0.5x": prune(bases[0.75], target[0.5], into=net), "0.75x": prune(net, target[0.75])}
    counts = {name: found.counts for name, found in pruned.items()}
    embedded = embed_(net, importance_order(gammas(net)), counts, padding)
    if padding == "ends":
        net.reset_parameters(1)
    assert {name: subnet.widths for name, subnet in embedded.items()} == counts
    history, _ = fit(net, EmbeddedSwitches(net.largest, embedded), InplaceDistillation(alpha=0.9), steps=3,
                     penalty=Sparsity(1e-2))
    assert {row["name"] for row in history} == {"largest", "0.75x", "0.5x"}
    x, _ = Noise().batch(9)
    with torch.inference_mode():
        for (name, subnet), aim in zip(embedded.items(), target.values(), strict=True):
            assert 0.9 * aim < count_macs(net, subnet, fused=True) == pruned[name].macs <= aim
            assert_close(net.eval()(x, subnet), net.extract(subnet)(x))


# -- from a recipe ---------------------------------------------------------------------------------------

RECIPE = replace(sp_net_study.LAPTOP["smoke"][0].plain, arm="SP-Net", mults=(0.5, 1.0), method="switches",
                 bn="shared_affine")


def test_plan_says_who_teaches():
    net = RECIPE.build(10)
    alone, labels = replace(RECIPE, smoothing=0.1).sampler_and_objective(net, 10)
    assert type(alone) is Switches and [p.name for p in alone.plan(0)] == ["1x", "0.5x"] and labels.smoothing == 0.1
    joint = replace(RECIPE, method="embedded", alpha=0.9, temperature=2.0, smoothing=0.1)
    sampler, objective = joint.sampler_and_objective(net, 10)
    assert [(p.name, p.target) for p in sampler.plan(0)] == [("largest", "labels"), ("0.5x", "teacher")]
    assert (objective.alpha, objective.temperature, objective.smoothing) == (0.9, 2, 0.1)
    with pytest.raises(SlimnbError, match="ParameterError: method = 'wish'"):
        replace(RECIPE, method="wish").sampler_and_objective(net, 10)


def test_penalty_is_the_recipes_sparsity():
    assert RECIPE.penalty() is None
    assert replace(RECIPE, sparsity=1e-3).penalty().strength == 1e-3


def test_weights_are_drawn_anew_only_if_asked():
    recipe = replace(RECIPE, start="other")
    with torch.no_grad():
        other = {name: p + 1 for name, p in RECIPE.build(10).named_parameters()}
    store = SimpleNamespace(weights_of=lambda run_id: other)
    net = recipe.begin(10, store)
    assert all(torch.equal(p, other[name]) for name, p in net.named_parameters())
    net = replace(recipe, fresh=True, first_gamma=0.5).begin(10, store)
    twin = RECIPE.build(10)
    assert torch.equal(net.classifier.weight, twin.classifier.weight)
    assert all((norm.weight == 0.5).all() and (norm.bias == 0).all() for norm in net.norms())


def test_found_counts_macs_as_the_paper_does():
    net = ResNet50(10, 32, bn="shared_affine", **TINY[ResNet50])
    subnets = ((1.0, net.largest.widths), (0.5, net.uniform(0.5).widths))
    recipe = replace(RECIPE, mults=(), subnets=subnets)
    found = recipe.findings(net, None)["printed_macs"]
    assert found == [count_macs(net, Subnet(widths), fused=True) for _, widths in subnets]


# -- the paper's numbers ---------------------------------------------------------------------------------

PRINTED = pd.read_csv(Path(__file__).parents[2] / "data/literature/sp_net.csv")


def errors(table: int, net: str, method: str, dataset: str = "ImageNet") -> list[float]:
    rows = PRINTED.query("table == @table and net == @net and method == @method and dataset == @dataset")
    assert len(rows), (table, net, method)
    return rows.sort_values("macs_m", ascending=False).error.tolist()


def gains(table, net, other, method="SP-Net", dataset="ImageNet") -> tuple[float, float]:
    """Smallest and largest difference of two methods' errors, points."""
    pairs = zip(errors(table, net, other, dataset), errors(table, net, method, dataset), strict=True)
    found = [round(theirs - ours, 1) for theirs, ours in pairs]
    return min(found), max(found)


@pytest.mark.parametrize(("table", "dataset", "net", "over_s_net", "over_individual"), [
    (3, "ImageNet", "ResNet-50", (1.2, 1.5), (0.3, 2.0)), (3, "ImageNet", "VGG", (0.9, 4.4), (-1.1, 4.1)),
    (3, "ImageNet", "MobileNetV1", (1.3, 2.7), (0.8, 2.9)), (3, "ImageNet", "MobileNetV2", (1.4, 3.1), (0.7, 2.6)),
    (2, "CIFAR-100", "ResNet-50", (2.8, 3.3), (2.7, 3.0)), (2, "CIFAR-100", "VGG", (0.8, 3.7), (0.2, 3.6))])
def test_printed_errors_are_as_far_apart_as_the_text_says(table, dataset, net, over_s_net, over_individual):
    assert gains(table, net, "S-Net", dataset=dataset) == over_s_net
    assert gains(table, net, "individual", dataset=dataset) == over_individual


def test_printed_gains_of_the_ablations():
    for other in ("one-shot", "iterative"):
        assert gains(6, "ResNet-50", other, "multi-base")[0] > 0, "multi-base is best at every width"
    assert errors(6, "ResNet-50", "multi-base") == errors(8, "ResNet-50", "zero padding match, multi-base")
    assert gains(8, "ResNet-50", "shortcut first", "zero padding match") == (0.5, 2.4)
    assert gains(8, "ResNet-50", "shortcut first", "zero padding match, multi-base")[1] == 4.6
    assert errors(5, "MobileNetV1", "MetaPruning")[1] - errors(5, "MobileNetV1", "SP-Net")[1] == pytest.approx(1.9)
    assert gains(9, "ResNet-50", "network slimming", "L1 norm")[0] > 0, "alone, L1 norm is the better score"
    assert gains(9, "ResNet-50", "SP-Net by L1 norm", "SP-Net by network slimming")[0] > 0, "in SP-Net it is not"


def test_printed_latencies():
    ms = {method: rows.latency_ms.tolist() for method, rows in PRINTED.query("table == 7").groupby("method")}
    late = {m: [round(t - s, 1) for t, s in zip(ms[m], ms["S-Net"], strict=True)] for m in ms}
    assert max(late["SP-Net, sorted"]) == 3.4 and max(late["SP-Net, not sorted"]) == 14.2
    saved = [a - b for a, b in zip(ms["SP-Net, not sorted"], ms["SP-Net, sorted"], strict=True)]
    assert round(sum(saved) / 3, 1) == 10.2  # over the three thinner ones
    others = PRINTED.query("table == 10").pivot(index=["net", "mult"], columns="method", values="latency_ms")
    assert (others["SP-Net"] - others["S-Net"]).max().round(1) == 3.9


def test_printed_sizes_of_uniform_nets_are_ours():
    """Every uniform row of Tables 2, 3, 7 and 10: parameters to .1 M, MACs to the digits printed."""
    kinds = {"ResNet-50": (ResNet50, "C"), "VGG": (VGG, "C"), "MobileNetV1": (MobileNetV1, "A"),
             "MobileNetV2": (MobileNetV2, "A")}
    rows = PRINTED.query("method in ['individual', 'S-Net'] and table != 4")
    assert len(rows) == 2 * 6 + 2 * 12 + 4 + 9
    macs_at = cache(lambda net, mult, convention: count_macs(net, net.uniform(mult), convention) / 1e6)
    for row in rows.itertuples():
        kind, convention = kinds[row.net]
        mults = sorted(rows.query("table == @row.table and net == @row.net").mult.unique())
        largest = max(mults)
        net = full(kind, 100 if row.dataset == "CIFAR-100" else 1000, largest=largest, bn="private")
        if row.method == "S-Net" and row.net == "MobileNetV1":
            convention = "C"  # unlike the rows beside it
        subnet = net.uniform(row.mult)
        macs = macs_at(net, row.mult, convention)
        assert row.macs_m == (round(macs) if macs < 1000 else round(macs, -2)), row
        own = row.method == "individual" or row.mult < largest
        named = [subnet] if own else [net.uniform(mult) for mult in mults]
        assert row.params_m == round(count_params(net, named) / 1e6, 1), row


def test_search_costs_nothing():
    rows = PRINTED.query("table == 4")
    assert set(rows[rows.method == "SP-Net"].search_hours) == {0}
    assert (rows[rows.method != "SP-Net"].search_hours.dropna() >= 96).all()
    assert PRINTED.source.notna().all() and (PRINTED.query("table not in [4, 5]").source == "SP-Net").all()
