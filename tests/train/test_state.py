"""A state put back is the state, and each part of it matters: without it training ends in other bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from small_training import METHODS, Curious, Memory, Noise, everything, same_bits, small, switches

from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.slimmable.method import Switches
from slimnb.runs.checkpoint import pack, unpack
from slimnb.runs.files import from_json, to_json
from slimnb.subnet import Subnet
from slimnb.train.loop import History, train, train_step
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels, Pass
from slimnb.train.state import collect, load_first_channels_, load_net, net_state, restore

STEPS, CUT = 8, 5  # with intervals of 4 steps the cut lies inside one


class Remembering:
    """An objective around another one: losses weigh more the larger those of the steps before were."""

    def __init__(self, objective):
        self.objective, self.mean = objective, torch.zeros(())

    def begin(self, net, x, passes):
        self.objective.begin(net, x, passes)

    def __call__(self, made, logits, y):
        loss, ce = self.objective(made, logits, y)
        loss = loss * (1 + self.mean)
        self.mean = 0.8 * self.mean + 0.02 * ce.mean()
        return loss, ce

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"].clone()


def make(method: str):
    """(net, sampler, objective), of which sampler and objective have a state."""
    net, sampler, objective = METHODS[method]()
    return net, Curious(sampler), Remembering(objective)


def run(method: str, store: Memory, until: int = STEPS, steps: int = STEPS):
    """(everything in the end, history); stopped and saved after `until` steps."""
    net, sampler, objective = make(method)
    optimizer = make_optimizer(net)
    asked = iter(range(1, 100))
    first = 0 if store.data is None else CUT
    try:
        history = train(
            net,
            Noise(),
            sampler,
            objective,
            Schedule(0.05, steps),
            optimizer,
            run=store,
            intervals=2,
            save_seconds=1e9,
            stop=lambda: first + next(asked) == until,
            quiet=True,
        )
    except SlimnbError as error:
        assert type(error).__name__ == "BusyError"
        history = None
    return everything(net, optimizer) | sampler.state_dict() | {"objective": objective.mean}, history


@pytest.fixture(scope="module", params=METHODS)
def cut(request):
    """(method, the end of an uninterrupted run, the bytes of a checkpoint inside it)."""
    straight = run(request.param, Memory(), until=-1)
    store = Memory()
    run(request.param, store, until=CUT)
    return request.param, straight, store.data


def test_resumed_is_uninterrupted(cut):
    method, (state, history), data = cut
    again, found = run(method, Memory(data), until=-1)
    assert same_bits(again, state) and found == history and len(history) == 6


def drop(kind):
    return lambda tensors, meta: [tensors.pop(name) for name in list(tensors) if name.startswith(kind)]


def nudge(part):
    def spoil(tensors, meta):
        name = next(name for name in tensors if part in name)
        tensors[name].view(-1)[0] += 1e-3

    return spoil


def spoil_meta(key, value):
    return lambda tensors, meta: meta.__setitem__(key, value)


def miscount(tensors, meta):
    meta["counts"][0][1] += 1


def reorder(tensors, meta):
    meta["counts"].reverse()  # the order of the history's rows


MUTANTS = {
    "momentum lost": drop("optimizer/"),
    "momentum of one weight": nudge("conv.weight/momentum_buffer"),
    "weight": nudge("net/features.0.conv.weight"),
    "gamma": nudge("norm.weight"),
    "statistics": nudge("running_mean"),
    "sampler": nudge("sampler/mean"),
    "objective": nudge("objective/mean"),
    "loss of the interval": nudge("history/"),
    "rows": spoil_meta("history", []),
    "counts": miscount,
    "order": reorder,
    "step": spoil_meta("step", CUT - 1),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_part_of_the_state_matters(cut, name):
    method, (state, history), data = cut
    again, found = run(method, Memory(data, MUTANTS[name]), until=-1)
    assert not same_bits(again, state) or found != history


def test_checkpoint_of_the_last_step_ends_at_once():
    store = Memory()
    net, sampler, objective = make("US-Net")
    with pytest.raises(SlimnbError, match="BusyError: stopped at step 8 of 8"):
        train(
            net,
            Noise(),
            sampler,
            objective,
            Schedule(0.05, 8),
            make_optimizer(net),
            run=store,
            quiet=True,
            intervals=2,
            stop=lambda: store.data is None and history_length(sampler) == 8,
        )
    again, sampler, objective = make("US-Net")
    history = train(
        again, SimpleNamespace(batch=pytest.fail), sampler, objective, Schedule(0.05, 8), make_optimizer(again),
        run=store, quiet=True,
    )
    assert [row["step"] for row in history] == [4, 4, 4, 8, 8, 8]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


def history_length(sampler) -> int:
    sampler.asked = getattr(sampler, "asked", 0) + 1
    return sampler.asked


def trained(method: str = "S-Net"):
    """(net, optimiser, sampler, history) after two steps, in the middle of an interval."""
    net, sampler, objective = make(method)
    optimizer, history = (
        make_optimizer(net),
        History([{"step": 1, "lr": 0.1, "name": "old", "ce": 0.1 + 0.2}]),
    )
    net.train()
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        history.add(train_step(net, *Noise().batch(step), sampler.plan(step), objective, optimizer))
    return net, optimizer, sampler, history


@pytest.mark.parametrize("method", METHODS)
def test_round_trip_through_bytes(method):
    net, optimizer, sampler, history = trained(method)
    tensors, meta = unpack(pack(*collect(net, optimizer, sampler, history, 2)))
    other, fresh, _ = make(method)
    other.to(memory_format=torch.contiguous_format)
    again, rows = make_optimizer(other), History([])
    assert restore(tensors, meta, other, again, fresh, rows) == 2
    assert same_bits(everything(net, optimizer), everything(other, again))
    assert list(rows.counts.items()) == list(history.counts.items())  # the order decides that of the rows
    assert rows.rows == history.rows and rows.sums == history.sums
    assert other.slots == net.slots and other.get_extra_state() == net.get_extra_state()
    for p, state in again.state.items():
        assert state["momentum_buffer"].stride() == p.stride()  # the fused kernel walks both alike


def test_an_objective_that_remembers_is_part_of_the_state():
    net, optimizer, sampler, history = trained()
    given, forgetful = Remembering(Labels()), Labels()
    given.mean = torch.tensor(0.375)
    tensors, meta = unpack(pack(*collect(net, optimizer, sampler, history, 2, given)))
    assert [name for name in tensors if name.startswith("objective/")] == ["objective/mean"]
    other, fresh, _ = make("S-Net")
    taken = Remembering(Labels())
    assert restore(tensors, meta, other, make_optimizer(other), fresh, History([]), taken) == 2
    assert same_bits(taken.state_dict(), given.state_dict())
    for objective in (forgetful, None):
        plain, rest = collect(net, optimizer, sampler, history, 2, objective)
        assert not any(name.startswith("objective/") for name in plain)
        other, fresh, _ = make("S-Net")
        assert restore(plain, rest, other, make_optimizer(other), fresh, History([]), objective) == 2
        assert plain.keys() == tensors.keys() - {"objective/mean"}


def test_frozen_parameters_are_saved_and_have_no_momentum():
    def frozen(seed):
        net = small(seed=seed)
        net.requires_grad_(False)
        net.classifier.bias.requires_grad_(True)
        return net, make_optimizer(net)

    (net, optimizer), (other, again) = frozen(0), frozen(1)
    train_step(net.train(), *Noise().batch(0), [Pass(net.largest)], Labels(), optimizer)
    tensors, meta = collect(net, optimizer, switches(net), History([]), 1)
    assert [name for name in tensors if name.startswith("optimizer/")] == ["optimizer/classifier.bias/momentum_buffer"]
    restore(tensors, meta, other, again, switches(other), History([]))
    assert same_bits(everything(net, optimizer), everything(other, again))


def test_parameters_without_momentum_get_none():
    net = small()
    optimizer = make_optimizer(net)
    unused, *others = optimizer.param_groups[0]["params"]
    del optimizer.state[unused]
    for p in others:
        optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    tensors, meta = collect(net, optimizer, switches(net), History([]), 1)
    again = make_optimizer(other := small())
    for p in other.parameters():
        again.state[p]["momentum_buffer"] = torch.full_like(p, 9.0)  # of an earlier use: must go
    restore(tensors, from_json(to_json(meta).encode()), other, again, switches(other), History([]))
    named = dict(zip(net.parameters(), other.parameters(), strict=True))
    assert named[unused] not in again.state and len(again.state) == len(optimizer.state)
    assert all((again.state[named[p]]["momentum_buffer"] == 1).all() for p in others)


def test_state_of_another_kind_is_refused():
    def attempt(change, net=None):
        given, optimizer, sampler, history = trained()
        tensors, meta = collect(given, optimizer, sampler, history, 2)
        change(tensors, meta)
        net, sampler, _ = make("S-Net") if net is None else (net, Curious(switches(net)), None)
        restore(tensors, meta, net, make_optimizer(net), sampler, History([]))

    stem = "features.0.conv.weight"
    momentum = f"optimizer/{stem}/momentum_buffer"
    cases = [
        ("StoreError", lambda t, m: t.update({"extra/x": torch.zeros(1)}), "extra/x"),
        ("StoreError", lambda t, m: t.pop(f"net/{stem}"), stem),
        ("StoreError", lambda t, m: t.update({"net/x": torch.zeros(1)}), "'x' is only in the checkpoint"),
        ("StoreError", lambda t, m: t.update({f"net/{stem}": t[f"net/{stem}"][1:]}), stem),
        ("StoreError", lambda t, m: t.update({f"net/{stem}": t[f"net/{stem}"].double()}), "float64"),
        ("StoreError", lambda t, m: t.update({momentum: t[momentum][:3]}), stem),
        ("StoreError", lambda t, m: t.update({"optimizer/gone/momentum_buffer": torch.zeros(1)}), "gone"),
    ]
    for code, change, named in cases:
        with pytest.raises(SlimnbError) as caught:
            attempt(change)
        assert type(caught.value).__name__ == code and named in str(caught.value) and len(str(caught.value)) <= 240
        assert caught.value.exit_status == 4
    with pytest.raises(SlimnbError, match="StoreError"):
        attempt(lambda t, m: None, net=small("calibrated"))  # no private rows
    attempt(lambda t, m: None)


def test_slots_of_a_checkpoint_that_the_optimiser_does_not_know():
    net, _, sampler, history = trained()
    net.reserve([net.uniform(0.625)])  # e.g. evaluated in the middle of training
    tensors, meta = collect(net, make_optimizer(net), sampler, history, 2)
    store = Memory(pack(tensors, meta))
    other = small("private")
    plain = Switches({str(mult): other.uniform(mult) for mult in (0.5, 0.75, 1.0)})
    other.reserve(plain.subnets())
    with pytest.raises(SlimnbError, match="ParameterError"):
        train(
            other,
            Noise(),
            Curious(plain),
            Labels(),
            Schedule(0.1, 4),
            make_optimizer(other),
            run=store,
            quiet=True,
        )


def test_net_state_is_enough_for_the_same_outputs():
    net, *_ = trained()
    tensors, rest = net_state(net)
    tensors = {name.removeprefix("net/"): value.clone() for name, value in tensors.items()}
    other = small("private", seed=5)
    load_net(other, tensors, from_json(to_json(rest).encode()))
    x, _ = Noise().batch(3)
    for subnet in net.slots:
        with torch.inference_mode():
            assert torch.equal(net.eval()(x, subnet), other.eval()(x, subnet))


def test_negative_zero_and_denormals_survive():
    net, optimizer, sampler, history = trained("US-Net")
    odd = torch.tensor([-0.0, 1e-42, float("inf"), 0.1])
    with torch.no_grad():
        net.classifier.bias[:4] = odd
    history.sums["largest"] = torch.tensor(-0.0)
    tensors, meta = unpack(pack(*collect(net, optimizer, sampler, history, 2)))
    other, fresh, _ = make("US-Net")
    rows = History([])
    restore(tensors, meta, other, make_optimizer(other), fresh, rows)
    assert same_bits({"b": other.classifier.bias.detach()[:4]}, {"b": odd})
    assert torch.signbit(rows.sums["largest"])


LAYOUT = ((32, 2), (64, 2), (64, 1))


def test_the_first_channels_of_a_wider_net_are_its_subnet():
    wide = MobileNetV1(5, 32, 1.0, layout=LAYOUT, seed=1)
    subnet = Subnet((8, 24, 40))
    thin = MobileNetV1(5, 32, subnet.widths, layout=LAYOUT, seed=2)
    load_first_channels_(thin, dict(wide.named_parameters()))
    x = torch.randn(4, 3, 32, 32)
    found = thin(x, statistics="batch")
    torch.testing.assert_close(found, wide(x, subnet, statistics="batch"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flaw", ["missing", "narrower", "flat"])
def test_only_a_wider_net_of_the_same_architecture_gives_its_channels(flaw):
    thin = MobileNetV1(5, 32, (16, 32, 64), layout=LAYOUT)
    tensors = dict(thin.named_parameters())
    name = next(name for name, p in tensors.items() if p.dim() == 4)
    given = {"narrower": tensors[name][:8], "flat": tensors[name][0]}
    tensors |= {name: given[flaw]} if flaw in given else {}
    if flaw == "missing":
        del tensors[name]
    refused("StoreError", load_first_channels_, thin, tensors)
