"""The training loop: one step against separate gradients, what stops it, what it says."""

from __future__ import annotations

import copy
import io
import math
import re
import sys
from inspect import signature

import pytest
import torch
from small_training import (
    FACTORIES,
    METHODS,
    Noise,
    NoSync,
    everything,
    fit,
    s_net,
    same_bits,
    sampler_classes,
    small,
    us_net,
)

from slimnb.errors import SlimnbError
from slimnb.nets.base import Masks
from slimnb.nets.mobilenet import MobileNetV2
from slimnb.papers.ds_net.nets import DSMobileNet
from slimnb.papers.slimmable.method import Switches
from slimnb.rng import rng_at
from slimnb.subnet import Subnet
from slimnb.train.loop import History, Reporter, Watch, train, train_step
from slimnb.train.optim import SCHEDULES, Schedule, make_optimizer
from slimnb.train.protocols import Labels, Outcome, Pass

# -- samplers --------------------------------------------------------------------------------------------

every_sampler = pytest.mark.parametrize("name", sorted(FACTORIES))


def shape_of(passes) -> list:
    """What a plan says, comparable; masks and tensors by their values."""
    return [repr((p.route, p.target, p.weight, p.dropout, p.name, p.tag)) for p in passes]


def outcomes_of(passes, step: int) -> list[Outcome]:
    loss = torch.linspace(0.1, 2, 8) * (1 + step % 3)
    return [Outcome(made, loss / (i + 1), loss / (i + 1)) for i, made in enumerate(passes)]


def advance(sampler, steps: int, first: int = 0) -> list:
    """The plans of `steps` steps, losses handed back after each."""
    plans = []
    for step in range(first, first + steps):
        plans.append(shape_of(sampler.plan(step)))
        sampler.observe(step, outcomes_of(sampler.plan(step), step))
    return plans


def test_every_sampler_has_a_factory():
    assert sampler_classes().keys() == FACTORIES.keys(), "add the new sampler to tests/small_training.py"
    for name, kind in sampler_classes().items():
        assert type(FACTORIES[name](small())) is kind


def widest(route) -> Subnet:
    """The least subnet that holds all those of a route."""
    return Subnet(tuple(int(mask.sum(1).max()) for mask in route.widths)) if isinstance(route, Masks) else route


@pytest.mark.parametrize("name", sorted(set(FACTORIES) - {"Draws", "Routed"}))  # a teacher beside the net; a frozen net
def test_plan_holds_the_largest_that_it_trains(name):
    net = small()
    sampler = FACTORIES[name](net)
    for step in range(8):
        passes = sampler.plan(step)
        most = [max(widths) for widths in zip(*(widest(made.route).widths for made in passes), strict=True)]
        assert tuple(most) == net.largest.widths and net.largest in [made.route for made in passes]
        assert passes[0].target == "labels", "the first pass teaches the others"
        for made in passes:
            net.check(widest(made.route))


@every_sampler
def test_plan_is_pure_in_seed_and_step(name):
    net = small()
    one, other = FACTORIES[name](net), FACTORIES[name](net)
    torch.manual_seed(1)
    forwards = [shape_of(one.plan(step)) for step in range(10)]
    torch.manual_seed(2)
    assert [shape_of(other.plan(step)) for step in reversed(range(10))] == forwards[::-1]
    assert shape_of(one.plan(3)) == forwards[3]


@every_sampler
def test_sampler_state_goes_on_where_it_was(name):
    net = small()
    straight, first, second = (FACTORIES[name](net) for _ in range(3))
    plans = advance(straight, 12)
    assert advance(first, 5) == plans[:5]
    state = {key: value.clone() for key, value in first.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    second.load_state_dict(state)
    assert advance(second, 7, first=5) == plans[5:]
    assert same_bits(second.state_dict(), straight.state_dict())


@pytest.mark.parametrize("name", [name for name, make in FACTORIES.items() if "seed" in signature(make).parameters])
def test_seed_and_step_change_the_random_subnets(name):
    net = small()
    plans = [
        [shape_of(FACTORIES[name](net, seed=seed).plan(step)) for step in range(12)] for seed in (0, 1)
    ]
    assert plans[0] != plans[1] and len({str(plan) for plan in plans[0]}) > 2


def test_random_numbers_depend_on_seed_stream_and_step():
    drawn = {
        tuple(rng_at(seed, stream, step).integers(1 << 30, size=2))
        for seed in (0, 1, 7)
        for stream in ("a", "b")
        for step in (0, 1, 10**6)
    }
    assert len(drawn) == 18
    assert rng_at(7, "a", 3).random() == rng_at(7, "a", 3).random()


# -- one step --------------------------------------------------------------------------------------------


def separate_gradients(net, passes, loss_of, x, y) -> dict[str, torch.Tensor]:
    """Sum of the passes' gradients, each taken on its own; what a pass does not reach counts as zero."""
    names, params = zip(*net.named_parameters(), strict=True)
    total = {name: torch.zeros_like(p) for name, p in zip(names, params, strict=True)}
    for made in passes:
        loss = made.weight * loss_of(made, net(x, made.route), x, y)
        for name, grad in zip(names, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
            total[name] += 0 if grad is None else grad
    return total


def cross_entropy(made, logits, x, y):
    return -(logits - logits.exp().sum(1, keepdim=True).log())[torch.arange(len(y)), y].mean()


@pytest.mark.parametrize("method", METHODS)
def test_step_adds_up_the_gradients_of_its_passes(method):
    net, sampler, objective = METHODS[method]()
    net.train()
    x, y = Noise().batch(0)
    passes = sampler.plan(4)
    assert len(passes) >= 3

    def by_hand(made, logits, x, y):
        if made.target == "labels":
            return cross_entropy(made, logits, x, y)
        teacher = net(x, net.largest).softmax(1).detach()
        return -(teacher * logits.log_softmax(1)).sum(1).mean()

    expected = separate_gradients(net, passes, by_hand, x, y)
    outcomes = train_step(net, x, y, passes, objective, make_optimizer(net))
    for name, p in net.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[name], rtol=1e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}"
        )
    assert [outcome.a_pass for outcome in outcomes] == list(passes)
    for outcome in outcomes:
        assert outcome.loss.shape == outcome.ce.shape == (8,)
        assert not outcome.loss.requires_grad and not outcome.ce.requires_grad


@pytest.mark.parametrize("weight", [0.5, 4.0, torch.tensor(0.5), torch.tensor(0.25), 2])
def test_weight_scales_the_gradient_exactly(weight):
    plain, scaled = (s_net()[0].train() for _ in range(2))
    x, y = Noise().batch(0)
    for net, factor in ((plain, 1.0), (scaled, weight)):
        train_step(net, x, y, [Pass(net.largest, weight=factor)], Labels(), make_optimizer(net))
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(float(weight) * a.grad, b.grad)


def test_weight_zero_still_moves_every_parameter_by_decay():
    net = small().train()
    optimizer = make_optimizer(net, momentum=0.0, weight_decay=0.1, decay="all")
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    before = copy.deepcopy(net.state_dict())
    train_step(net, *Noise().batch(0), [Pass(net.uniform(0.5), weight=0.0)], Labels(), optimizer)
    for name, p in net.named_parameters():  # channels outside the subnet have a zero gradient, not none
        torch.testing.assert_close(p, before[name] * 0.95)


class Broken(Labels):
    """A value that is not finite: in the loss of one pass, or only in a gradient."""

    def __init__(self, value: float, where: str, name: str):
        super().__init__()
        self.value, self.where, self.name, self.on = value, where, name, True

    def __call__(self, made, logits, y):
        if self.on and made.name == self.name and self.where == "gradient":
            logits.register_hook(lambda grad: grad * self.value)
        loss, ce = super().__call__(made, logits, y)
        return (
            loss + self.value if self.on and made.name == self.name and self.where == "loss" else loss
        ), ce


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_leaves_weights_and_momentum_alone(value, where):
    net, sampler, _ = s_net()
    net.train()
    objective = Broken(value, where, "0.75x")
    optimizer, watch = make_optimizer(net), Watch()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    objective.on = False
    watch.add(
        6,
        0.1,
        train_step(net, *Noise().batch(0), sampler.plan(6), objective, optimizer),
        optimizer.found_inf,
    )
    watch.check_finite()
    before = {
        name: value.clone() for name, value in everything(net, optimizer).items() if "running" not in name
    }
    objective.on = True
    watch.add(
        7,
        0.1,
        train_step(net, *Noise().batch(1), sampler.plan(7), objective, optimizer),
        optimizer.found_inf,
    )
    after = {name: value for name, value in everything(net, optimizer).items() if "running" not in name}
    assert len(before) > 20 and same_bits(before, after)
    objective.on = False
    watch.add(
        8,
        0.1,
        train_step(net, *Noise().batch(2), sampler.plan(8), objective, optimizer),
        optimizer.found_inf,
    )
    assert not same_bits(before, everything(net, optimizer))  # a skipped update ends nothing by itself
    with pytest.raises(SlimnbError) as caught:
        watch.check_finite()
    text = str(caught.value)
    assert "step 7" in text and "lr 0.1" in text and caught.value.exit_status == 5 and len(text) <= 240
    assert (
        ("NumericsError" in text and "0.75x" in text) if where == "loss" else "NumericsError: the gradient at" in text
    )
    watch.check_finite()  # told once


def test_training_stops_before_the_update_and_keeps_the_checkpoint():
    class Poisoned(Noise):
        def batch(self, step):
            x, y = super().batch(step)
            return (x * float("inf") if step == 4 else x), y

    kept = {}

    class Store:
        def load(self):
            return None

        def save(self, step, tensors, meta):
            kept[step] = {name: value.clone() for name, value in tensors.items()}

    net, sampler, objective = us_net()
    with pytest.raises(SlimnbError, match="NumericsError: loss = nan of subnet largest at step 4"):
        fit(net, sampler, objective, steps=8, run=Store(), save_seconds=0, batches=Poisoned())
    assert sorted(kept) == [1, 2, 3, 4]
    for name, p in net.named_parameters():
        assert torch.equal(p, kept[4][f"net/{name}"])


@pytest.mark.parametrize("method", METHODS)
def test_step_never_waits_for_the_device(method):
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        torch.ones(1).item()
    net, sampler, objective = METHODS[method]()
    net.train()
    optimizer, history, watch = make_optimizer(net), History([]), Watch()
    first, *others = sampler.plan(0)
    passes = [first, Pass(first.route, weight=torch.tensor(0.5), dropout=0.2, name="again"), *others]
    with NoSync():
        for step in range(3):
            outcomes = train_step(
                net, *Noise().batch(step), passes, objective, optimizer, torch.Generator()
            )
            sampler.observe(step, outcomes)
            history.add(outcomes)
            watch.add(step, 0.1, outcomes, optimizer.found_inf)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_step_never_waits_for_a_gpu():
    net, sampler, objective = us_net()
    net.cuda().train()
    optimizer, history, watch = make_optimizer(net), History([]), Watch()
    generator = torch.Generator("cuda")
    batches = [tuple(part.cuda() for part in Noise().batch(step)) for step in range(4)]
    train_step(net, *batches[0], sampler.plan(0), objective, optimizer, generator)  # libraries start up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            generator.manual_seed(step)
            outcomes = train_step(net, *batches[step], sampler.plan(step), objective, optimizer, generator)
            history.add(outcomes)
            watch.add(step, 0.1, outcomes, optimizer.found_inf)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.check_finite()


# -- optimiser and schedule ------------------------------------------------------------------------------


def test_decay_spares_depthwise_filters_norms_and_biases():
    net = MobileNetV2(10, 32, layout=((1, 8, 1, 1), (3, 16, 2, 2)), stem=16, tail=40)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = make_optimizer(net, weight_decay=0.3).param_groups
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert decayed | spared == set(names.values()) and not decayed & spared
    depthwise = {f"{name}.weight" for name, m in net.named_modules() if getattr(m, "depthwise", False)}
    assert len(depthwise) == 3 and depthwise <= spared
    assert spared - depthwise == {
        name for name in names.values() if "norm" in name or name.endswith("bias")
    }
    assert {"classifier.weight"} <= decayed and len(decayed) == 3 * 2 + 2 - 1 + 1


def test_decay_spares_gates():
    net = DSMobileNet(10, 32, strides=(2, 2, 2), fixed=(8, 8), grid=((8, 8, 1),), num_choices=3)
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in make_optimizer(net).param_groups)
    gates = {name for name in names.values() if any(part in name for part in (".reduce_", ".attend_", ".slim_"))}
    assert len(gates) == 2 * 4 + 1 and gates <= spared
    assert len(decayed) == 1 + 2 + 1 and "classifier.weight" in decayed  # stem, pointwise, classifier


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_frozen_parameters_are_left_out(decay):
    net = small().train()
    net.requires_grad_(False)
    free = [net.classifier.weight, net.norms()[0].weight]
    for p in free:
        p.requires_grad_(True)
    optimizer = make_optimizer(net, weight_decay=0.1, decay=decay)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in free} == {id(p) for p in optimizer.state} and len(held) == 2
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    train(net, Noise(), Switches({"1.0x": net.largest}), Labels(), Schedule(0.1, 2), optimizer, quiet=True)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in net.named_parameters() if any(p is other for other in free)}


def test_decay_all_is_one_group():
    net = small()
    (group,) = make_optimizer(net, momentum=0.7, weight_decay=0.2, decay="all").param_groups
    assert len(group["params"]) == len(list(net.parameters()))
    assert (group["weight_decay"], group["momentum"], group["nesterov"], group["fused"]) == (
        0.2,
        0.7,
        True,
        True,
    )
    assert make_optimizer(net, momentum=0.0).param_groups[0]["nesterov"] is False
    with pytest.raises(SlimnbError, match="ParameterError: decay = 'none'"):
        make_optimizer(net, decay="none")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0.4, 8), {0: 0.4, 2: 0.2 * (1 + math.sqrt(0.5)), 4: 0.2, 6: 0.2 * (1 - math.sqrt(0.5))}),
        (Schedule(0.4, 8, floor=0.1), {0: 0.4, 4: 0.25}),
        (Schedule(0.4, 8, "linear"), {0: 0.4, 2: 0.3, 7: 0.05}),
        (Schedule(0.4, 8, "linear", floor=0.2), {0: 0.4, 4: 0.3}),
        (Schedule(0.4, 8, "constant"), {0: 0.4, 7: 0.4}),
        (Schedule(0.4, 12, "linear", warmup=4), {0: 0.1, 1: 0.2, 3: 0.4, 4: 0.4, 8: 0.2, 11: 0.05}),
        (
            Schedule(0.4, 9, "multistep", milestones=(3, 6), gamma=0.5),
            {2: 0.4, 3: 0.2, 5: 0.2, 6: 0.1, 8: 0.1},
        ),
        (Schedule(0.4, 9, "exponential", gamma=0.5, period=2), {0: 0.4, 1: 0.4, 2: 0.2, 3: 0.2, 4: 0.1}),
    ],
    ids=lambda value: value.kind if isinstance(value, Schedule) else "",
)
def test_schedule_by_hand(schedule, expected):
    for step, lr in expected.items():
        assert schedule(step) == pytest.approx(lr, rel=1e-12)
        assert type(schedule(step)) is float


def test_unknown_schedule():
    with pytest.raises(SlimnbError, match=r"ParameterError: Schedule.kind = 'cosin'") as caught:
        Schedule(0.1, 10, "cosin")
    assert all(kind in str(caught.value) for kind in SCHEDULES)


def test_rate_of_the_schedule_reaches_every_group():
    net, sampler, objective = us_net()
    seen = []

    class Spy(Noise):
        def batch(self, step):
            seen.append([group["lr"] for group in optimizer.param_groups])
            return super().batch(step)

    optimizer = make_optimizer(net)
    schedule = Schedule(0.05, 4, "linear")
    train(net, Spy(), sampler, objective, schedule, optimizer, quiet=True)
    assert seen == [[schedule(step)] * 2 for step in range(4)]


def test_optimiser_made_before_the_slots_is_refused():
    net = small("private")
    sampler = Switches({"1.0x": net.largest, "0.5x": net.uniform(0.5)})
    optimizer = make_optimizer(net)
    net.reserve(sampler.subnets())
    with pytest.raises(SlimnbError, match=r"ParameterError: parameter .*norm\.weight") as caught:
        train(net, Noise(), sampler, Labels(), Schedule(0.1, 2), optimizer, quiet=True)
    assert "net.reserve" in str(caught.value)


# -- the loop --------------------------------------------------------------------------------------------


class Dropped(Switches):
    """The largest subnet alone, with dropout; keeps the losses."""

    def __init__(self, net):
        super().__init__({"largest": net.largest})
        self.passes = [Pass(net.largest, dropout=0.5, name="largest")]
        self.losses = []

    def observe(self, step, outcomes):
        self.losses.append(outcomes[0].loss)


class Same(Noise):
    """One batch again and again."""

    def batch(self, step):
        return super().batch(0)


def losses_with_dropout(seed: int, steps: int = 3) -> torch.Tensor:
    net = small()
    sampler = Dropped(net)
    train(net, Same(), sampler, Labels(), Schedule(0.0, steps), make_optimizer(net), seed=seed, quiet=True)
    return torch.stack(sampler.losses)


def test_dropout_is_keyed_by_seed_and_step():
    torch.manual_seed(1)
    one = losses_with_dropout(0)
    torch.manual_seed(2)
    assert torch.equal(losses_with_dropout(0), one)  # nothing is drawn from torch's global state
    assert torch.equal(losses_with_dropout(0, steps=2), one[:2])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(losses_with_dropout(1)[0], one[0])


def outcome(name: str, *ce: float) -> Outcome:
    return Outcome(Pass(small().largest, name=name), torch.tensor(ce) + 100, torch.tensor(ce))


def test_history_averages_each_name_over_the_interval():
    history = History([{"step": 1, "lr": 0.5, "name": "old", "ce": 9.0}])
    history.add([outcome("largest", 1.0, 2.0), outcome("random", 3.0, 5.0), outcome("random", 1.0, 1.0)])
    history.add([outcome("largest", 2.0, 3.0), outcome("random", 0.0, 2.0)])
    assert history.flush(2, 0.25) == 2.0
    rows = [("old", 9.0), ("largest", 2.0), ("random", 2.0)]
    assert [(row["name"], row["ce"]) for row in history.rows] == rows
    assert history.rows[1] == {"step": 2, "lr": 0.25, "name": "largest", "ce": 2.0}
    history.add([outcome("largest", 7.0, 7.0)])
    assert history.flush(3, 0.25) == 7.0 and len(history.rows) == 4


def test_train_closes_intervals_and_the_end():
    net, sampler, objective = us_net()
    history, _ = fit(net, sampler, objective, steps=7, intervals=3)
    assert sorted({row["step"] for row in history}) == [2, 4, 6, 7]
    assert [row["name"] for row in history[:3]] == ["largest", "smallest", "random"]
    schedule = Schedule(0.05, 7)
    assert [row["lr"] for row in history[::3]] == [schedule(step - 1) for step in (2, 4, 6, 7)]


LINE = r"name: step (\d+)/6, ce \d+\.\d{3}, \d+\.\d steps/s, \d+ s left"


def test_lines_when_not_on_a_terminal(capsys):
    fit(*us_net(), steps=6, label="name", quiet=False)
    said = capsys.readouterr()
    steps = [re.fullmatch(LINE, line)[1] for line in said.out.splitlines()]
    assert steps == ["2", "4", "6"] and said.err == ""
    fit(*us_net(), steps=6, quiet=True)
    said = capsys.readouterr()
    assert said.out == said.err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(*us_net(), steps=6, label="name", quiet=False)
    said = sys.stderr.getvalue()
    assert "name: 100%" in said and "6/6" in said and "ce=" in said
    monkeypatch.setattr(sys, "stderr", Terminal())
    report = Reporter("name", 2, 6)
    report.move(4)
    assert report.bar.n == 4 and "ce=" not in sys.stderr.getvalue()
    report(5, 1.5)
    report.close()
    assert report.bar.n == 5 and "ce=1.500" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_stop_without_a_store_says_that_nothing_is_kept():
    with pytest.raises(SlimnbError, match=r"BusyError: stopped at step 1 of 6.*Nothing was kept") as caught:
        fit(*us_net(), stop=lambda: True)
    assert caught.value.exit_status == 75


def test_same_seed_same_bits_whatever_the_global_state():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net, sampler, objective = us_net()
        states.append(everything(net, fit(net, sampler, objective)[1]))
    assert same_bits(*states)
    net, sampler, objective = us_net(seed=1)
    assert not same_bits(states[0], everything(net, fit(net, sampler, objective)[1]))
