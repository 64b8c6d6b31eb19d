"""DS-Net by hand: the average that teaches, routed losses, what each stage may change, and a study from end to end."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gated_nets import _centre as centre
from gated_nets import build, pictures, ready
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from small_training import Memory, NoSync, everything, same_bits

from slimnb.cost.macs import count_macs
from slimnb.data.datasets import load_data
from slimnb.errors import SlimnbError
from slimnb.nn.gate import Gated
from slimnb.papers.ds_net import recipes as study
from slimnb.papers.ds_net.dynamic import DynamicNet, path_macs
from slimnb.papers.ds_net.method import (
    GIVE_UP,
    TRY_BEST,
    Ema,
    EnsembleBootstrapping,
    Routed,
    SandwichGateSparsification,
    any_path,
    freeze_all_but_heads_,
    measure_routes,
    packed_bits,
    routed_macs,
    unpacked_bits,
)
from slimnb.papers.ds_net.nets import DSMobileNet, DSResNet50
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches
from slimnb.rng import rng_at
from slimnb.train import experiment
from slimnb.train.loop import train, train_step
from slimnb.train.measure import plain_batches
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels, Pass

WIDER = {"largest": (16, 24, 24, 32, 48)}  # wider than any path, in the fixed layers, too
each_stage_one = pytest.mark.parametrize(("kind", "options"), [(DSMobileNet, WIDER), (DSResNet50, {})])
THREE = {"layout": ((16, 1), (32, 1), (32, 1)), "strides": (2, 1, 2, 1)}  # gates
GATES = [(DSMobileNet, {}), (DSResNet50, {}), (DSResNet50, THREE)]


def supernet(kind, seed: int = 0, **options):
    """A float32 net in training, with a row of statistics for every path and the largest."""
    net = build(kind, seed, **options).float().train()
    net.reserve([*net.paths, net.largest])
    return net


def tensors_of(net) -> dict[str, torch.Tensor]:
    """Copies of parameters and buffers by name."""
    return {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}


class Images:
    """Batches of 8 pictures and labels by step."""

    def batch(self, step: int):
        return pictures(8, step).float(), torch.randint(0, 10, (8,), generator=torch.Generator().manual_seed(step))


# -- the average -----------------------------------------------------------------------------------------


@each_stage_one
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.997])
def test_the_average_is_equation_3_over_parameters_and_statistics(kind, options, decay):
    net = supernet(kind, **options)
    net.register_buffer("steps_seen", torch.tensor(3))
    ema, expected, rng = Ema(net, decay), tensors_of(net), torch.Generator().manual_seed(4)
    for step in range(4):
        with torch.no_grad():
            for value in net.state_dict().values():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=rng))
            net.steps_seen += step + 5
        ema.update(net)
        for name, value in tensors_of(net).items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
        found = ema.tensors()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert ema.net.steps_seen.dtype == torch.int64 and ema.net.steps_seen == net.steps_seen == 29


def test_the_average_is_frozen_evaluates_every_subnet_and_shares_nothing():
    net = supernet(DSMobileNet, **WIDER)
    ema, x = Ema(net), pictures(2).float()
    assert not any(p.requires_grad for p in ema.net.parameters()) and net.training
    assert not any(module.training for module in ema.net.modules())
    refused("NumericsError", net, x, net.path(1), statistics="slot")
    for subnet in [*net.paths, net.largest]:
        assert ema.net(x, subnet).isfinite().all()
    ours, theirs = ({t.untyped_storage().data_ptr() for t in (*n.parameters(), *n.buffers())} for n in (ema.net, net))
    assert not ours & theirs
    before = copy.deepcopy(ema.tensors())
    with torch.no_grad():
        for value in (*net.parameters(), *net.norms()[0].buffers()):
            value.add_(1)
    assert same_bits(ema.tensors(), before)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_a_decay_outside_0_to_1_is_one_line(decay):
    with pytest.raises(SlimnbError) as caught:
        EnsembleBootstrapping(supernet(DSResNet50), decay)
    line = str(caught.value)
    assert "ParameterError" in line and str(decay) in line and "\n" not in line


# -- bootstrapping ---------------------------------------------------------------------------------------


class Recorder:
    """An objective around another one: the net as each step finds it, and what every pass gave."""

    def __init__(self, objective):
        self.objective, self.states, self.steps = objective, [], []

    def begin(self, net, x, passes):
        self.states.append(tensors_of(net))
        self.steps.append((x, []))
        self.objective.begin(net, x, passes)

    def __call__(self, made, logits, y):
        loss, ce = self.objective(made, logits, y)
        self.steps[-1][1].append((made, logits.detach(), y, loss.detach(), ce))
        return loss, ce


def cross_entropy(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(B,) by definition, target (B, classes) probabilities."""
    return -(target * (logits - logits.logsumexp(1, keepdim=True))).sum(1)


@each_stage_one
@pytest.mark.parametrize(("target", "temperature"), [("ensemble", 1.0), ("ensemble", 4.0), ("teacher", 1.0)])
def test_bootstrapping_is_equations_4_and_5_of_the_average_of_all_steps_before(kind, options, target, temperature):
    decay, net = 0.4, supernet(kind, **options)
    start = tensors_of(net)
    objective = Recorder(EnsembleBootstrapping(net, decay, temperature))
    sampler = Sandwich(net.largest, net.slimmest, any_path(net), n_random=2, seed=3, target=target)
    optimizer = make_optimizer(net)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05
        train_step(net, *Images().batch(step), sampler.plan(step), objective, optimizer)
    average, other = start, supernet(kind, 1, **options).eval()
    for step, (state, (x, passes)) in enumerate(zip(objective.states, objective.steps, strict=True)):
        assert (step == 0) == same_bits(state, start), "training moves the net"
        average = {name: decay * value + (1 - decay) * state[name] for name, value in average.items()}
        other.load_state_dict({**average, "_extra_state": net.get_extra_state()})
        other.mark_calibrated(list(other.slots))

        def soft(route, x=x):
            with torch.no_grad():
                return (other(x, route) / temperature).softmax(1)

        routes = [made.route for made, *_ in passes]
        assert routes == [net.largest, net.slimmest, *(p.route for p in sampler.plan(step)[2:])]
        alone = soft(net.largest)
        mean = (alone + soft(routes[2]) + soft(routes[3])) / 3
        assert (mean - alone).abs().max() > 1e-3
        for made, logits, y, loss, ce in passes:
            hard = cross_entropy(torch.eye(10)[y], logits)
            torch.testing.assert_close(ce, hard)
            labels = {"teacher": alone, "ensemble": mean}.get(made.target)
            expected = hard if labels is None else temperature**2 * cross_entropy(labels, logits / temperature)
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        assert [made.target for made, *_ in passes] == ["labels", target, "teacher", "teacher"]
    inner = objective.objective
    for name, value in inner.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in inner.ema.net.parameters())


def test_no_gradient_reaches_what_teaches():
    net = supernet(DSMobileNet)
    objective = EnsembleBootstrapping(net, 0.5)
    x, y = Images().batch(0)
    passes = [Pass(net.largest), Pass(net.slimmest, "ensemble"), Pass(net.path(1), "teacher")]
    objective.begin(net, x, passes)
    assert not any(soft.requires_grad for soft in objective.soft.values())
    logits = net(x, net.slimmest)
    loss, ce = objective(passes[1], logits, y)
    got, = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(got, logits.softmax(1) - objective.soft["ensemble"], rtol=1e-4, atol=1e-6)
    assert not ce.requires_grad


def test_bootstrapping_never_waits_for_the_device():
    net = supernet(DSMobileNet)
    objective, optimizer = EnsembleBootstrapping(net), make_optimizer(net)
    sampler = Sandwich(net.largest, net.slimmest, any_path(net), target="ensemble")
    with NoSync():
        for step in range(2):
            train_step(net, *Images().batch(step), sampler.plan(step), objective, optimizer)


def bootstrapped(memory, until: int = 0, forgetful: bool = False, kind=DSMobileNet):
    """Everything after a training of 6 steps, stopped after `until` where that is not 0."""
    net = supernet(kind, **(WIDER if kind is DSMobileNet else {}))
    objective, optimizer = EnsembleBootstrapping(net, 0.6), make_optimizer(net)
    if forgetful:
        objective.load_state_dict = lambda state: None
    sampler = Sandwich(net.largest, net.slimmest, any_path(net), seed=2, dropout=0.2, target="ensemble")
    looked = iter(range(1, 100))
    stop = (lambda: next(looked) >= until) if until else (lambda: False)
    train(net, Images(), sampler, objective, Schedule(0.05, 6), optimizer, run=memory, stop=stop, quiet=True)
    return everything(net, optimizer) | {f"average/{name}": value for name, value in objective.state_dict().items()}


@pytest.mark.parametrize("kind", [DSMobileNet, DSResNet50])
def test_an_interrupted_training_ends_in_the_same_bits_and_only_with_its_average(kind):
    straight, memory = bootstrapped(Memory(), kind=kind), Memory()
    for until in (2, 1):
        refused("BusyError", bootstrapped, memory, until, kind=kind)
    assert same_bits(bootstrapped(Memory(memory.data), kind=kind), straight)

    def spoil(tensors, meta):
        name = next(name for name in tensors if name.startswith("objective/") and name.endswith("conv.weight"))
        tensors[name].view(-1)[0] += 1e-2

    assert not same_bits(bootstrapped(Memory(memory.data, spoil), kind=kind), straight)
    without = bootstrapped(Memory(memory.data), forgetful=True, kind=kind)
    assert not same_bits({name: value for name, value in without.items() if "average/" not in name},
                         {name: value for name, value in straight.items() if "average/" not in name})


def test_the_state_of_bootstrapping_goes_round():
    net = supernet(DSMobileNet)
    one, x = EnsembleBootstrapping(net, 0.5), pictures(4).float()
    with torch.no_grad():
        net.classifier.weight.add_(1)
    one.ema.update(net)
    other = EnsembleBootstrapping(supernet(DSMobileNet, 5), 0.5)
    state = {name: value.clone() for name, value in one.state_dict().items()}
    other.load_state_dict(state)
    assert same_bits(other.state_dict(), one.state_dict())
    for path in net.paths:
        assert torch.equal(other.ema.net(x, path), one.ema.net(x, path))
    state["classifier.weight"].zero_()
    assert same_bits(other.state_dict(), one.state_dict())


# -- random paths and routes -----------------------------------------------------------------------------


def test_of_one_gate_any_path_but_the_slimmest_is_drawn():
    net = build(DSMobileNet)
    draw = any_path(net)
    drawn = [draw(rng_at(0, "test", step)) for step in range(600)]
    assert set(drawn) == set(net.paths) - {net.slimmest}
    assert all(abs(drawn.count(path) - 200) < 60 for path in set(drawn))  # 5 standard deviations


def test_of_several_gates_each_choice_is_drawn_alone():
    net = build(DSResNet50)
    draw = any_path(net)
    drawn = [draw(rng_at(0, "test", step)) for step in range(1600)]
    assert set(drawn) == set(net.paths) and len(net.paths) == 16
    assert all(abs(drawn.count(path) - 100) < 50 for path in net.paths)


@pytest.mark.parametrize("kind", [DSMobileNet, DSResNet50])
def test_random_paths_are_pure_in_seed_and_step(kind):
    net = build(kind)

    def routes(seed, steps):
        torch.manual_seed(len(steps))
        sampler = Sandwich(net.largest, net.slimmest, any_path(net), seed=seed)
        return [[made.route for made in sampler.plan(step)] for step in steps]

    steps = list(range(30))
    assert routes(1, steps) == routes(1, steps[::-1])[::-1] != routes(2, steps)
    assert len({tuple(plan) for plan in routes(1, steps)}) > 5


def test_a_routed_step_is_one_pass_whose_noise_is_keyed_by_seed_and_step():
    sampler = Routed(3, 0.7, seed=5)
    (made,) = sampler.plan(9)
    assert made.route == Gated(3, 0.7, 5, 9) and (made.target, made.weight, made.dropout) == ("labels", 1, 0)
    assert sampler.plan(10)[0].route != made.route and sampler.plan(9)[0].route == made.route
    assert sampler.subnets() == [] and sampler.state_dict() == {} and Routed().plan(0)[0].route == Gated(None, 1.0)
    net, x = ready(DSMobileNet)
    net.train().requires_grad_(False)

    def chosen(step):
        _, (decision,) = net(x, Routed(temperature=5.0, seed=1).plan(step)[0].route)
        return decision.weights.argmax(1).tolist()

    assert chosen(4) == chosen(4) != chosen(5)


# -- sandwich gate sparsification ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 2**16), st.booleans())
def test_routed_macs_are_the_sum_over_all_paths(choices, batch, seed, one_hot):
    rng = torch.Generator().manual_seed(seed)
    macs = torch.rand(choices, generator=rng, dtype=torch.float64)
    weights = [torch.rand(batch, count, generator=rng, dtype=torch.float64) for count in choices]
    if one_hot:
        weights = [torch.eye(w.shape[1]).double()[w.argmax(1)] for w in weights]
    for w in weights:
        w.requires_grad_()
    expected = sum(macs[path] * torch.stack([w[:, k] for w, k in zip(weights, path, strict=True)]).prod(0)
                   for path in itertools.product(*map(range, choices)))
    found = routed_macs(macs, weights)
    assert found.shape == (batch,)
    torch.testing.assert_close(found, expected)
    towards = torch.rand(batch, generator=rng, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(found @ towards, weights), torch.autograd.grad(expected @ towards, weights),
                    strict=True):
        torch.testing.assert_close(a, b)


def labelled(net, x, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels that make all four cases, and whether the slimmest path and the widest open one get them right."""
    with torch.no_grad():
        slim, wide = (net.extract(path)(x).argmax(1) for path in (net.slimmest, net.path(top)))
    y = slim.clone()
    for i in range(len(y)):
        other = next(k for k in range(10) if k not in (slim[i], wide[i]))
        y[i] = (slim[i], wide[i], other)[i % 3]
    return y, slim == y, wide == y


@pytest.mark.parametrize("lowest", [None, 2])
@pytest.mark.parametrize("strategy", [TRY_BEST, GIVE_UP])
@pytest.mark.parametrize(("kind", "options"), GATES[:2])
def test_what_sgs_asks_for_in_all_four_cases(kind, options, strategy, lowest):
    net, x = ready(kind, **options)
    top = 3 if lowest is None else 1
    y, slim, wide = labelled(net, x, top)
    assert len({*zip(slim.tolist(), wide.tolist(), strict=True)}) == 4
    objective = SandwichGateSparsification(net, strategy=strategy, lowest=lowest)
    objective.begin(net.train(), x, [])
    asked = {(True, True): 0, (True, False): 0, (False, True): top,
             (False, False): 0 if strategy == GIVE_UP else top}
    assert objective.targets(y).tolist() == [asked[case] for case in zip(slim.tolist(), wide.tolist(), strict=True)]


@cache
def macs_of(gates: int, path: tuple[int, ...]) -> int:
    """Of a path of the net with so many gates, traced alone; slimming heads not counted."""
    kind, options = GATES[gates - 1]
    net = build(kind, **options)
    return count_macs(net, net.path(*path), "D")


@pytest.mark.parametrize(("head", "lowest"), [("one-hot", None), ("one-hot", 3), ("scalar", 2)])
@pytest.mark.parametrize(("kind", "options"), GATES, ids=["1 gate", "2 gates", "3 gates"])
def test_the_loss_of_every_image_by_hand(kind, options, head, lowest):
    net, x = ready(kind, head=head, **options)
    x = x[:6]
    y, slim, _ = labelled(net, x, 0)
    made, top = Pass(Gated(lowest, 1.0, seed=2, step=1)), (lowest or 4) - 1
    with torch.no_grad():
        output = net(x, made.route)
    logits, decisions = output
    heads = sum((4 if head == "one-hot" else 1) * gate.hidden for gate in net.gates)
    gates, terms = len(net.gates), []
    most = macs_of(gates, (3,) * gates) + heads
    for i in range(len(x)):
        path = tuple(int(seen.weights[i].argmax()) for seen in decisions)
        asked, sgs = 0 if slim[i] else top, []
        for seen in decisions:
            if head == "scalar":
                above = 1 / (1 + (-seen.scores[i, 0]).exp())
                sgs.append(-(above if asked else 1 - above).log())
            else:
                assert seen.scores.shape[1] == top + 1
                sgs.append(-(seen.scores[i, asked].exp() / seen.scores[i].exp().sum()).log())
        terms.append([float(-logits[i].log_softmax(0)[y[i]]), ((macs_of(gates, path) + heads) / most) ** 2,
                      float(sum(sgs)) / gates])
    terms = torch.tensor(terms)
    objective = SandwichGateSparsification(net, lowest=lowest)
    assert objective.weights == (1.0, 0.5, 1.0)  # the paper's
    for weights in (objective.weights, (0.0, 0.5, 0.0), (0.3, 0.0, 2.0)):
        objective.weights = weights
        objective.begin(net, x, [made])
        loss, ce = objective(made, output, y)
        torch.testing.assert_close(loss.float(), terms @ torch.tensor(weights), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ce, terms[:, 0], rtol=1e-5, atol=1e-5)


def test_complexity_is_of_each_image_not_of_the_batch():
    net, x = ready(DSMobileNet)
    objective = SandwichGateSparsification(net, (0.0, 1.0, 0.0))
    route = Gated()
    output = net(x, route)
    loss, _ = objective(Pass(route), output, torch.zeros(32, dtype=torch.long))
    chosen = output.decisions[0].weights.argmax(1)
    macs = path_macs(net)[chosen.numpy()] / path_macs(net).max()
    assert len(chosen.unique()) > 1 and loss.detach().numpy() == pytest.approx(macs**2, rel=1e-5)
    assert float(loss.detach().mean()) > macs.mean() ** 2 + 1e-3


@pytest.mark.parametrize(("kind", "options", "weights"), [
    (DSMobileNet, {}, (1.0, 0.0, 0.0)), (DSMobileNet, {}, (0.0, 0.5, 0.0)), (DSMobileNet, {}, (0.0, 0.0, 1.0)),
    *((kind, options, (1.0, 0.5, 1.0)) for kind, options in ((DSMobileNet, {"head": "scalar"}),
                                                             (DSMobileNet, {"shared": False}), (DSResNet50, {})))])
def test_only_slimming_heads_move_in_stage_two(kind, options, weights):
    net, x = ready(kind, **options)
    freeze_all_but_heads_(net)
    net.train()
    optimizer = make_optimizer(net, weight_decay=0.1, decay="all")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    heads = {name for name, p in net.named_parameters() if id(p) in held}
    assert heads == {name for name in net.state_dict() if ".slim_" in name} and heads
    before, y = tensors_of(net), labelled(net, x, 3)[0]
    sampler, objective = Routed(seed=1), SandwichGateSparsification(net, weights)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for step in range(2):
        train_step(net, x, y, sampler.plan(step), objective, optimizer)
        for name, p in net.named_parameters():
            assert (p.grad is not None and bool(p.grad.any())) == (name in heads), name
    after = tensors_of(net)
    moved = {name for name in before if not same_bits({"": before[name]}, {"": after[name]})}
    assert moved == heads


@pytest.mark.parametrize(("given", "code"), [
    ({"strategy": "try harder"}, "ParameterError"), ({"weights": (1, 0.5)}, "ParameterError"), ({"weights": (1, -0.5,
                                                                                                             1)},
                                                                                                "ParameterError"),
    ({"weights": (0, 0, 0)}, "ParameterError"), ({"weights": (float("nan"), 0, 0)}, "ParameterError"),
])
def test_bad_input_is_one_line(given, code):
    with pytest.raises(SlimnbError) as caught:
        SandwichGateSparsification(build(DSMobileNet), **given)
    assert type(caught.value).__name__ == code and "\n" not in str(caught.value) and len(str(caught.value)) <= 240


# -- from a recipe ---------------------------------------------------------------------------------------

MB, RES = study.LAPTOP["smoke"]


def test_a_recipe_makes_what_it_describes():
    net = MB.supernet.build(10)
    base = replace(MB.supernet, seed=3, temperature=4.0, dropout=0.2, n_random=3)
    kinds = {"in-place": InplaceDistillation, "bootstrapping": EnsembleBootstrapping}
    for method, ensemble in (("in-place", False), ("bootstrapping", False), ("bootstrapping", True)):
        sampler, objective = replace(base, method=method, ensemble=ensemble).sampler_and_objective(net, 10)
        largest, smallest, *others = sampler.plan(2)
        assert type(objective) is kinds[method] and objective.temperature == 4 and sampler.seed == 3
        assert len(others) == 3
        assert [made.dropout for made in (largest, smallest, *others)] == [0.2, 0, 0, 0, 0]
        assert (largest.route, smallest.route) == (net.largest, net.slimmest)
        assert (largest.target, smallest.target) == ("labels", "ensemble" if ensemble else "teacher")
        assert {made.target for made in others} == {"teacher"}
    assert objective.ema.decay == MB.supernet.ema
    sampler, objective = replace(base, method="plain").sampler_and_objective(net, 10)
    assert type(sampler) is Switches and type(objective) is Labels
    assert [(made.route, made.dropout) for made in sampler.plan(0)] == [(net.widest, 0.2)]
    gates = replace(MB.gates, lowest=2, seed=4, losses=(0, 0, 1), strategy=GIVE_UP)
    sampler, objective = gates.sampler_and_objective(net, 10)
    assert sampler.plan(6)[0].route == Gated(2, 1.0, 4, 6)
    assert (objective.weights, objective.strategy, objective.top) == ((0, 0, 1), GIVE_UP, 1)
    refused("ParameterError", replace(base, method="sandwich").sampler_and_objective, net, 10)


def test_looks_are_spread_over_the_training():
    net = MB.supernet.build(10)
    made = replace(MB.supernet, looks=4, epochs=3).probe(net, 20, None, None)
    assert {step for step in range(60) if made.at(step)} == {0, 15, 30, 45}
    assert made.subnets == {"slimmest": net.slimmest}
    assert MB.gates.probe(net, 20, None, None) is None


def shaken(recipe, classes: int = 10, seed: int = 1):
    """Tensors of a net of `recipe` as a training would leave them: all of them other than at the start."""
    net, rng = recipe.build(classes), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*net.parameters(), *(b for norm in net.norms() for b in norm.buffers())):
            value.add_(0.1 * torch.rand(value.shape, generator=rng))
    return tensors_of(net)


def stored(weights):
    """A stand-in for a run store that holds the weights of some runs."""
    return SimpleNamespace(weights_of=lambda run_id: dict(weights[run_id]))


@pytest.mark.parametrize("options", [{}, {"head": "scalar"}, {"shared": False}], ids=str)
@pytest.mark.parametrize("family", [MB, RES], ids=["mbnet", "resnet"])
def test_stage_two_takes_everything_but_slimming_heads(family, options):
    recipe = replace(family.gates, seed=2, start="super", **options)
    runs = {"super": shaken(family.supernet), "gates": shaken(recipe, seed=5)}
    fresh, net = tensors_of(recipe.build(10)), recipe.build(10)
    recipe.load(net, stored(runs))
    loaded = tensors_of(net)
    heads = {name for name in loaded if ".slim_" in name}
    assert same_bits(loaded, {name: (fresh if name in heads else runs["super"])[name] for name in loaded})
    x, old = pictures(2).float(), family.supernet.build(10)
    old.load_state_dict({**runs["super"], "_extra_state": old.get_extra_state()})
    old.mark_calibrated(list(old.slots))
    for path in recipe.named(net).values():
        assert torch.equal(net.eval()(x, path), old.eval()(x, path))
    again = recipe.build(10)
    replace(recipe, gate="gates").load(again, stored(runs))
    assert all(torch.equal(value, runs["gates" if name in heads else "super"][name])
               for name, value in tensors_of(again).items())


@pytest.mark.parametrize("family", [MB, RES], ids=["mbnet", "resnet"])
def test_a_supernet_moves_to_other_classes(family):
    recipe = replace(family.supernet, seed=2, start="super")
    given = shaken(family.supernet)
    net = recipe.build(7)
    fresh = tensors_of(net)
    recipe.load(net, stored({"super": given}))
    for name, p in net.named_parameters():
        assert torch.equal(p, (fresh if name.startswith("classifier.") else given)[name]), name
    assert all(torch.equal(value, fresh[name]) for name, value in tensors_of(net).items() if "running" in name)


def test_a_supernet_trains_whole():
    net = MB.supernet.begin(10, None)
    assert all(p.requires_grad for p in net.parameters())


@given(st.lists(st.booleans(), max_size=70))
def test_bits_are_packed_and_unpacked(flags):
    text = packed_bits(np.array(flags, dtype=bool))
    assert len(text) == 2 * -(-len(flags) // 8) and not set(text) - set("0123456789abcdef")
    assert unpacked_bits(text, len(flags)).tolist() == flags


def test_bits_are_written_from_the_left():
    assert packed_bits(np.array([1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=bool)) == "a180"


# -- a study ---------------------------------------------------------------------------------------------

ARMS = (study.SUPERNET, "DS-Net-S", "DS-Net-L")


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", train=150, test=40)


@pytest.fixture(scope="module")
def results(data, store):
    """The two nets of smoke, gates on both."""
    return experiment.study(study.STAGES, "smoke", [0], data, store, arms=ARMS, quiet=True)


def test_a_study_trains_supernets_and_then_their_gates_and_is_loaded_again(results, data, store, monkeypatch):
    assert [(r.recipe.net, r.recipe.arm) for r in results] == [
        ("ds_mbnet", study.SUPERNET), ("ds_resnet", study.SUPERNET), ("ds_mbnet", "DS-Net-S"), ("ds_mbnet", "DS-Net-L"),
        ("ds_resnet", "DS-Net-L")]
    assert [r.recipe.start for r in results[2:]] == [results[0].run_id, results[0].run_id, results[1].run_id]
    assert {row["name"] for row in results[0].findings["probed"]} == {"slimmest"}
    json.dumps([r.findings for r in results])
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    again = experiment.study(study.STAGES, "smoke", [0], data, store, arms=ARMS, quiet=True)
    assert [(r.run_id, r.rows, r.findings) for r in again] == [(r.run_id, r.rows, r.findings) for r in results]


def test_rows_of_a_supernet_are_its_paths(results, data):
    for result in results[:2]:
        net = result.recipe.build(10)
        names = ["0", "1", "2", "3"] if len(net.gates) == 1 else [f"{k}-{k}-{k}" for k in range(4)]
        assert [row["name"] for row in result.rows] == names
        for k, row in enumerate(result.rows):
            assert row["macs"] == count_macs(net, net.path(k), "D") and row["n"] == 40
            correct = unpacked_bits(result.findings["correct"][row["name"]], 40)
            assert row["top1"] == pytest.approx(100 * correct.mean())


def test_what_is_stored_of_routing_is_what_the_trained_net_does(results, data, store):
    for result in results[2:]:
        (row,) = result.rows
        net = experiment.trained(result, data.num_classes, store)
        assert not net.training
        stored = np.array([[int(digit, 36) for digit in column] for column in result.findings["choices"]]).T
        assert stored.shape == (40, len(net.gates))
        macs = np.array(result.findings["path_macs"])
        assert macs.shape == net.choices and np.array_equal(macs, path_macs(net))
        spent = [macs[tuple(path)] for path in stored]
        assert row["macs"] == pytest.approx(sum(spent) / 40)
        correct = unpacked_bits(result.findings["correct"]["routed"], 40)
        assert row["top1"] == pytest.approx(100 * correct.mean()) and row["n"] == 40
        dynamic, rows, right, ce = DynamicNet(net, result.recipe.lowest), [], [], []
        for x, y in plain_batches(data, data.test, 32, "cpu"):
            logits, chosen = dynamic.route(x)
            rows += chosen.tolist()
            right += (logits.argmax(1) == y).tolist()
            ce += cross_entropy(torch.eye(10)[y], logits).tolist()
        assert rows == stored.tolist() and right == correct.tolist()
        assert row["ce"] == pytest.approx(np.mean(ce), rel=1e-4)
        assert stored.max() < (result.recipe.lowest or 4)
        validated = [(*dynamic.route(x), y) for x, y in plain_batches(data, data.val, 32, "cpu")]
        seen = np.concatenate([chosen.numpy() for _, chosen, _ in validated])
        hits = np.concatenate([(logits.argmax(1) == y).numpy() for logits, _, y in validated])
        assert row["macs_val"] == pytest.approx(np.mean([macs[tuple(path)] for path in seen]))
        assert row["top1_val"] == pytest.approx(100 * hits.mean())


@pytest.mark.parametrize("lowest", [None, 2])
def test_images_are_routed_within_the_open_choices(data, lowest):
    net = ready(DSMobileNet)[0].float()
    ((x, y),) = plain_batches(data, data.test, 32, "cpu")
    centre(net, x, 0, net.gates[0])
    (row,), stored = measure_routes(net, lowest, data, "cpu")
    chosen = [int(digit, 36) for digit in stored["choices"][0]]
    assert (max(chosen) < 2) == (lowest == 2) and len(set(chosen)) > 1
    assert row["macs"] == pytest.approx(np.mean(path_macs(net)[chosen]))
    with torch.no_grad():
        logits, (decision,) = net(x, Gated(lowest))
        right = (logits.argmax(1) == y).numpy()
    assert decision.weights.argmax(1).tolist() == chosen
    assert unpacked_bits(stored["correct"]["routed"], 40).tolist() == right.tolist()


def test_gates_change_nothing_but_slimming_heads_in_a_study(results, store):
    for result in results[2:]:
        before, after = (store.weights_of(run_id) for run_id in (result.recipe.start, result.run_id))
        same = {name for name in after if name in before and same_bits({"": before[name]}, {"": after[name]})}
        assert after.keys() - same == {name for name in after if ".slim_" in name}


def test_a_supernet_and_its_gates_move_to_other_data(results, store):
    other = load_data("synthetic", train=150, test=40, seed=1)
    stages = study.transfer_stages(results, "synthetic")
    moved = experiment.study(stages, "smoke", [0], other, store, quiet=True)
    assert [(r.recipe.net, r.recipe.arm) for r in moved] == [
        ("ds_resnet", arm) for arm in (study.SUPERNET, "Without gate transfer", "Gate transfer")]
    supernet, without, transferred = moved
    old = next(r for r in results if r.recipe.net == "ds_resnet" and r.recipe.arm == "DS-Net-L")
    assert supernet.recipe.start == old.recipe.start and supernet.run_id != old.recipe.start
    assert without.recipe.start == transferred.recipe.start == supernet.run_id
    assert (without.recipe.gate, transferred.recipe.gate) == (None, old.run_id)
    begun = tensors_of(transferred.recipe.begin(10, store))
    heads, body = (store.weights_of(run_id) for run_id in (old.run_id, supernet.run_id))
    assert same_bits(begun, {name: (heads if ".slim_" in name else body)[name] for name in begun})
    assert all(len(r.rows) == 1 and len(r.findings["choices"]) == 3 for r in moved[1:])
