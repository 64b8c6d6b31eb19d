"""OWS and AOWS: losses against windows, draws against marginals, resuming; retraining subnets that are not nested."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.testing import assert_allclose
from refusals import fails
from small_training import (
    MULTS,
    Memory,
    Noise,
    NoSync,
    everything,
    same_bits,
    small,
    smoothed_viterbi,
    width_search,
)

from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.platforms.method import PlatformSandwich, SmoothedViterbi, WidthSearch, platform_subnets
from slimnb.papers.platforms.windows import GRAIN
from slimnb.papers.slimmable.method import InplaceDistillation
from slimnb.search.trellis import Trellis, best_under, exact_under, marginals
from slimnb.subnet import Subnet, elementwise_max
from slimnb.train.loop import train, train_step
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels, Outcome, Pass

# -- OWS -------------------------------------------------------------------------------------------------


def test_plan_runs_the_ends_and_random_widths_per_image():
    net = small()
    search = WidthSearch(net, net.space(MULTS), 64, seed=3)
    largest, smallest, random = search.plan(7)
    assert (largest.route, largest.target) == (net.largest, "labels")
    assert (smallest.route, smallest.target) == (net.uniform(0.5), "teacher") and random.target == "teacher"
    assert search.subnets() == [largest.route, smallest.route]
    for unit, (mask, choices) in enumerate(zip(random.route.widths, search.space.widths, strict=True)):
        widths = np.array(choices)[random.tag[:, unit].numpy()]
        assert mask.sum(1).tolist() == widths.tolist()
        assert set(widths) == set(choices)


def test_every_width_is_drawn_equally_often_and_on_its_own():
    net = small()
    search = WidthSearch(net, net.space(MULTS), 500)
    index = np.concatenate([search.draw(step) for step in range(20)])
    for unit, count in enumerate(search.counts):
        assert_allclose(np.bincount(index[:, unit]) / len(index), 1 / count, atol=0.025)  # 5 standard deviations
    assert np.abs(np.corrcoef(index.T) - np.eye(len(search.counts))).max() < 0.05


@pytest.mark.parametrize("images", [8, 5])
def test_windows_take_what_the_random_widths_cost(images):
    net, objective = small().train(), InplaceDistillation()
    search = width_search(net, window=100)
    x, y = Noise().batch(0)
    passes = search.plan(0)
    with NoSync():
        outcomes = train_step(net, x[:images], y[:images], passes, objective, make_optimizer(net))  # a short batch too
        search.observe(0, outcomes)
    assert [len(outcome.ce) for outcome in outcomes] == [images] * 3
    gain = (outcomes[0].ce - outcomes[2].ce).double().numpy() / 3
    means, counts = search.windows.means()
    index = passes[2].tag[:images].numpy()
    for unit, choice in np.ndindex(means.shape):
        drawn = gain[index[:, unit] == choice]
        assert counts[unit, choice] == len(drawn)
        assert_allclose(means[unit, choice], drawn.mean() if len(drawn) else 0, atol=2 * GRAIN)


def test_a_choice_without_losses_is_named():
    net = small()
    search = width_search(net)
    made = search.plan(0)[2]
    loss = torch.ones(8)
    unseen = torch.zeros(8, 3, dtype=torch.int64)
    with fails("SearchError", f"width {search.space.widths[0][0]} of unit 'stem'"):
        search.unary()
    search.observe(0, [Outcome(made, loss, loss), Outcome(Pass(None, tag=unseen), loss, loss)])
    with fails("SearchError", f"width {search.space.widths[0][1]} of unit 'stem'"):
        search.unary()


def test_unary_pads_units_of_fewer_choices():
    net = small()
    search = width_search(net, window=1000)
    for step in range(10):
        made = search.plan(step)[2]
        search.observe(step, [Outcome(made, torch.ones(8), torch.ones(8)), Outcome(made, None, torch.full((8,), 2.5))])
    assert sorted(set(search.counts)) == [2, 3]
    exists = np.arange(3) < search.counts[:, None]
    assert_allclose(search.unary(), np.where(exists, -0.5, -np.inf))


def test_unary_is_what_the_choices_cost_divided_by_the_units():
    net = small()
    search = WidthSearch(net, net.space(MULTS), 100)
    planted = torch.tensor([[0.3, 0.0, 9.0], [0.0, 0.2, 9.0], [0.5, 0.0, 0.1]])  # some widths cost more than wider ones
    for step in range(50):
        index = torch.from_numpy(search.draw(step))
        ce = planted[torch.arange(3), index].sum(1)
        search.observe(step, [Outcome(None, None, torch.zeros(100)), Outcome(Pass(None, tag=index), None, ce)])
    for row, cost, count in zip(search.unary(), planted.numpy(), search.counts, strict=True):
        assert_allclose((row - row[0])[:count], (cost[0] - cost)[:count] / 3, atol=0.015)  # 5 standard deviations
    macs = CostTable.macs(net, search.space)
    for found in best_under(search.unary(), Trellis.of(macs.chain()), np.array([1e9])):
        assert found.index.tolist() == planted.argmin(1).tolist()


def test_bad_searches_are_refused(monkeypatch):
    net = small()
    space = net.space(MULTS)
    with fails("ParameterError", "window = 7"):
        WidthSearch(net, space, 8, window=7)
    with fails("ParameterError", "tied"):
        WidthSearch(net, net.space(MULTS, tied=net.stages), 8)
    with fails("ParameterError"):
        WidthSearch(net, MobileNetV1(10, 32, 2.0, layout=((16, 2), (24, 1), (32, 2))).space((1.0, 2.0)), 8)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with fails("ParameterError", "2 ranks"):
        WidthSearch(net, space, 8)


# -- AOWS ------------------------------------------------------------------------------------------------


def lossy(search, step: int) -> None:
    """Hand `search` losses of `step` that fall with the widths, noise on top."""
    made = search.plan(step)[2]
    noise = torch.randn(8, generator=torch.Generator().manual_seed(step)) * 0.1
    ce = 3 - made.tag.float().mean(1) + noise
    search.observe(step, [Outcome(made, ce, torch.ones(8)), Outcome(made, ce, ce)])


def test_temperature_goes_through_the_breakpoints_linearly_in_log():
    search = smoothed_viterbi(small(), steps=50)  # epochs of the paper, breakpoints of methods.md 4.3
    for epoch, temperature in ((0, 1), (5, 1), (10, 1), (12, 0.01), (25, 0.001), (50, 5e-4)):
        assert_allclose(search.temperature(epoch), temperature)
    assert_allclose(search.temperature(11), 0.1)
    falling = [search.temperature(step) for step in range(10, 51)]
    assert sorted(falling, reverse=True) == falling and len(set(falling)) == 41


def test_marginals_are_those_of_the_windows_at_every_refresh():
    search = smoothed_viterbi(small(), steps=50, refresh=4, window=1000)
    uniform = search.cdf.copy()
    assert_allclose(np.diff(uniform, prepend=0)[:, search.counts == 3], 1 / 3)
    for step in range(30):
        held = search.cdf
        lossy(search, step)
        if step + 1 < 10:
            assert (search.cdf == uniform).all()
        elif (step + 1 - 10) % 4:
            assert search.cdf is held
        else:
            unary = search.unary()
            multipliers = [found.multiplier for found in best_under(unary, search.trellis, search.budgets)]
            p = marginals(unary, search.trellis, np.array(multipliers), search.temperature(step + 1))
            assert_allclose(np.diff(search.cdf, prepend=0), p, atol=1e-12)
    assert np.abs(np.diff(search.cdf[0], prepend=0) - np.diff(search.cdf[2], prepend=0)).max() > 0.5


def test_platforms_are_drawn_by_weight_and_widths_by_their_marginals():
    search = smoothed_viterbi(small())
    p = np.array([[[0.7, 0.3, 0], [0, 0.4, 0.6], [1, 0, 0]], [[0, 1, 0], [0.2, 0.2, 0.6], [0, 0, 1]],
                  [[0.5, 0.5, 0], [1, 0, 0], [0.1, 0.8, 0.1]]])  # fmt: skip
    search.cdf = p.cumsum(-1)
    expected = np.array([0.5, 0.2, 0.3])
    drawn = np.stack([search.draw(step) for step in range(2000)])  # (steps, images, units)
    for unit in range(3):
        share = np.bincount(drawn[:, :, unit].ravel(), minlength=3) / drawn[:, :, unit].size
        assert_allclose(share, expected @ p[:, unit], atol=0.06)
    last = drawn[:, :, 2]  # step by step one platform: #1 only takes 0, #2 only 2
    assert_allclose((last == 0).all(1).mean(), 0.5, atol=0.06)
    assert_allclose((last == 2).all(1).mean(), 0.2, atol=0.05)
    first_of_one = drawn[(last == 0).all(1)][:, :, 0]
    assert_allclose((first_of_one == 1).mean(), 0.3, atol=0.03)


def test_bad_adaptive_searches_are_refused():
    net = small()
    space, trellis = net.space(MULTS), Trellis.of(CostTable.macs(net, net.space(MULTS)).chain())
    macs = [count_macs(net, net.uniform(mult)) for mult in MULTS]

    def make(trellis=trellis, budgets=macs, weights=(0.5, 0.2, 0.3), steps=20, **options):
        return SmoothedViterbi(net, space, 8, trellis, budgets, weights, steps, **options)

    for weights in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.2, 0.2)):
        with fails("ParameterError", "weights"):
            make(weights=weights)
    with fails("SearchError", str(macs[0])):
        make(budgets=[macs[0] - 1, *macs[1:]])
    with fails("SearchError", "another space"):
        make(trellis=Trellis.of(CostTable.macs(net, net.space((0.5, 1.0))).chain()))
    with fails("ParameterError", "refresh = 0"):
        make(refresh=0)
    with fails("ParameterError", "steps = 0"):
        make(steps=0)
    for wrong in (((0, 1),), ((0, 1), (0.5, 0.1)), ((0, 1), (0.5, 0.1), (0.5, 0.2), (1, 0.1)), ((0, 1), (1, 0))):
        with fails("ParameterError", "temperatures = "):
            make(temperatures=wrong)


def test_a_warm_up_that_misses_a_choice_is_refused_at_its_end():
    search = smoothed_viterbi(small(), steps=10)
    widest = Pass(None, tag=torch.tensor(search.counts - 1).expand(8, 3))
    outcome = Outcome(widest, torch.ones(8), torch.ones(8))
    search.observe(0, [outcome, outcome])
    with fails("SearchError", "unit 'stem'"):
        search.observe(1, [outcome, outcome])


# -- resuming --------------------------------------------------------------------------------------------

STEPS, CUT = 15, 8
MAKE = {"OWS": width_search, "AOWS": smoothed_viterbi}


def run(method: str, store: Memory, until: int = -1) -> dict[str, torch.Tensor]:
    """Everything in the end; stopped and saved after `until` steps."""
    net = small()
    sampler, optimizer = MAKE[method](net), make_optimizer(net)
    asked = itertools.count(1 if store.data is None else CUT + 1)
    try:
        train(net, Noise(), sampler, InplaceDistillation(), Schedule(0.05, STEPS, "constant"), optimizer, run=store,
              stop=lambda: next(asked) == until, save_seconds=1e9, quiet=True)  # fmt: skip
    except SlimnbError as error:
        assert type(error).__name__ == "BusyError"
    return everything(net, optimizer) | sampler.state_dict()


@pytest.fixture(scope="module", params=MAKE)
def cut(request):
    """(method, the end of an uninterrupted run, the bytes of a checkpoint inside it)."""
    store = Memory()
    run(request.param, store, CUT)
    return request.param, run(request.param, Memory()), store.data


def test_resumed_is_uninterrupted(cut):
    method, straight, data = cut
    assert same_bits(run(method, Memory(data)), straight)


def test_every_part_of_the_state_matters(cut):
    method, straight, data = cut
    parts = [name for name in Memory(data).load()[0] if name.startswith("sampler/")]
    assert len(parts) == {"OWS": 3, "AOWS": 4}[method]
    for name in parts:

        def spoil(tensors, meta, name=name):
            flat = tensors[name].view(-1)
            flat[: 1 if name.endswith(("seen", "sum", "ring")) else None] += 1  # any platform may be drawn next

        assert not same_bits(run(method, Memory(data, spoil)), straight), name


# -- what a search gives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [best_under, exact_under])
def test_platform_subnets_keep_their_budgets(search):
    net = small()
    space = net.space(MULTS)
    trellis = Trellis.of(CostTable.macs(net, space).chain())
    budgets = [count_macs(net, net.uniform(mult)) for mult in MULTS]
    unary = np.random.default_rng(5).normal(size=trellis.exists.shape)
    subnets, found = platform_subnets(unary, space, trellis, budgets, search)
    every = np.array(list(itertools.product(*map(range, trellis.counts))))
    scores, costs = unary[np.arange(3), every].sum(1), trellis.cost(every)
    for subnet, budget, each in zip(subnets, budgets, found, strict=True):
        assert count_macs(net, subnet) == each.cost <= budget and space.contains(subnet)
        best = scores[costs <= budget].max()
        assert each.score <= best + 1e-12 and best <= each.bound + 1e-12
        assert search is best_under or abs(each.score - best) < 1e-12


# -- retraining ------------------------------------------------------------------------------------------

CROSSED = {"#1": (8, 8, 8), "#2": (8, 24, 8), "#3": (8, 8, 32), "#4": (16, 8, 16), "#5": (16, 16, 24)}


def crossed(**options) -> tuple[MobileNetV1, PlatformSandwich]:
    """(net, sampler) of five platforms of which none holds the others."""
    subnets = {name: Subnet(widths) for name, widths in CROSSED.items()}
    net = MobileNetV1(10, 32, elementwise_max(subnets.values()), layout=((16, 2), (24, 1), (32, 2)), bn="private")
    sampler = PlatformSandwich(subnets, **options)
    net.reserve(sampler.subnets())
    return net, sampler


def test_retraining_runs_the_last_the_first_and_one_between():
    _, sampler = crossed(seed=4)
    assert [str(subnet) for subnet in sampler.subnets()] == ["-".join(map(str, w)) for w in CROSSED.values()]
    drawn = []
    for step in range(3000):
        last, first, middle = sampler.plan(step)
        assert (last.name, last.dropout, first.name, first.dropout, middle.dropout) == ("#5", 0.6, "#1", 0, 0)
        assert last.target == first.target == middle.target == "labels"
        assert middle.route == Subnet(CROSSED[middle.name])
        drawn.append(middle.name)
    for name in ("#2", "#3", "#4"):
        assert abs(drawn.count(name) / 3000 - 1 / 3) < 0.05  # 5.8 standard deviations


def test_retraining_by_weight_and_by_distillation():
    _, sampler = crossed(weights=(0.25, 0.05, 0.0, 0.45, 0.25), target="teacher", dropout=0.1)
    plans = [sampler.plan(step) for step in range(2000)]
    names = [plan[2].name for plan in plans]
    assert abs(names.count("#2") / 2000 - 0.1) < 0.035 and set(names) == {"#2", "#4"}
    assert {tuple(made.target for made in plan) for plan in plans} == {("labels", "teacher", "teacher")}
    assert plans[0][0].dropout == 0.1


def test_two_platforms_may_share_a_subnet_and_two_are_enough():
    net = small("private")
    shared = PlatformSandwich({"#1": net.uniform(0.5), "#2": net.uniform(0.75), "#3": net.uniform(0.75)})
    net.reserve(shared.subnets())
    assert len(net.slots) == 2
    ends = PlatformSandwich({"#1": net.uniform(0.5), "#2": net.largest}, weights=(0.5, 0.5))
    assert [made.name for made in ends.plan(0)] == ["#2", "#1"]


def test_bad_platforms_are_refused():
    net = small()
    named = {f"#{k}": net.uniform(mult) for k, mult in enumerate(MULTS)}
    with fails("ParameterError", "1 platforms"):
        PlatformSandwich({"#1": net.largest})
    with fails("ParameterError", "3 platforms"):
        PlatformSandwich(named, (0.5, 0.5))
    with fails("ParameterError", "sum to 1"):
        PlatformSandwich(named, (0.5, 0.25, 0.35))
    with fails("ParameterError", "middle"):
        PlatformSandwich(named, (0.5, 0, 0.5))


def test_channels_that_nobody_uses_in_a_step_have_gradient_zero_and_are_moved_by_decay_alone():
    net, sampler = crossed(seed=1)
    assert net.largest.widths == (16, 24, 32) and net.largest not in sampler.subnets()
    net.train()
    plan = next(plan for plan in map(sampler.plan, range(100)) if plan[2].name == "#4")
    optimizer = make_optimizer(net, momentum=0.0, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.5
    before = {name: value.clone() for name, value in net.named_parameters()}
    train_step(net, *Noise().batch(0), plan, Labels(), optimizer, torch.Generator().manual_seed(0))
    assert all(p.grad is not None for p in net.parameters())
    filters = net.features[1][1].conv.weight  # block1: 24 filters, of which #5 uses 16 and #2 all
    assert filters.grad[:16].abs().amax((1, 2, 3)).min() > 0 and not filters.grad[16:].any()
    torch.testing.assert_close(filters[16:], 0.95 * before["features.1.1.conv.weight"][16:])
    gamma = net.features[1][1].norm.weight
    rows = {net.slots[made.route] for made in plan}
    for row in net.slots.values():
        assert gamma.grad[row].any() == (row in rows)
        assert row in rows or torch.equal(gamma[row], before["features.1.1.norm.weight"][row])


def test_crossed_platforms_train_and_each_has_statistics():
    net, sampler = crossed(target="teacher")
    history = train(net, Noise(), sampler, InplaceDistillation(), Schedule(0.1, 30, "constant"), make_optimizer(net),
                    intervals=1, quiet=True)  # fmt: skip
    assert sorted(row["name"] for row in history) == sorted(CROSSED)
    net.eval()
    for subnet in sampler.subnets():
        assert net(Noise().batch(0)[0], subnet).isfinite().all()
