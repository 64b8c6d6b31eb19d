"""What chapters train: recipes of every scale, stage by stage, without training any."""

from types import SimpleNamespace

import numpy as np
import pytest

from slimnb.crp import WEIGHTS
from slimnb.errors import SlimnbError
from slimnb.experiment import Result, build
from slimnb.studies import platforms
from slimnb.subnet import Subnet

CIFAR100 = SimpleNamespace(num_classes=100, size=32)


def searched(scale, seed=0):
    """Results of all searches of a scale, as if their windows held made-up means that prefer wide units."""
    recipes = platforms.searches(scale, seed, CIFAR100)
    exists = platforms.problem(scale, 100).trellis.exists
    rng = np.random.default_rng(7)
    made = []
    for recipe in recipes:
        scores = np.sort(rng.random(exists.shape), axis=1)
        table = np.where(exists, scores.astype(object), None).tolist()
        made.append(Result(recipe, [], [], 0.0, recipe.arm, found={"unary": table}))
    return made


def test_the_full_problem_is_table_1():
    problem = platforms.problem("full", 100)
    assert problem.budgets == (3354112, 7341312, 12213248, 19018496, 26577408, 36200704, 46446592)
    assert problem.trellis.counts == (6, 11, *[14] * 12)
    assert problem.space.size == pytest.approx(3.74e15, rel=1e-3)
    assert (problem.trellis.cheapest, problem.trellis.dearest) == (2345120, 102700032)


def test_the_full_search_is_section_4_1():
    ows, *aows = platforms.searches("full", 0, CIFAR100)
    assert (ows.lr, ows.schedule, ows.epochs, ows.batch_size, ows.largest) == (0.1, "constant", 50, 128, 1.5)
    assert [recipe.searched_for for recipe in aows] == list(WEIGHTS)
    assert all(recipe.weights == WEIGHTS[recipe.searched_for] for recipe in aows)
    assert all(recipe.budgets == platforms.problem("full", 100).budgets for recipe in aows)


def test_the_full_retraining_is_section_4_1():
    recipes = platforms.retrainings("full", 0, CIFAR100, searched("full"))
    retrained = [r for r in recipes if r.method == "platforms"]
    for r in retrained:
        assert (r.epochs, r.lr, r.schedule, r.gamma, r.weight_decay, r.dropout) == (300, 0.1, "exponential", 0.985,
                                                                                   5e-4, 0.6)
        assert r.momentum == 0.9 and r.batch_size == 128 and r.bn == "private" and r.layout is None
        assert r.weights == (None if r.sampled_for == "U" else WEIGHTS[r.sampled_for])
    # Methods.md 4.6: Slim 6 with U shared by all rows, OWS 6, AOWS 12, of which U's two are one; and random widths.
    names = [r.arm for r in retrained]
    assert len(set(names)) == len(names) == 6 + 6 + 11 + 1
    assert {"Slim-U", "Slim-RL", "OWS-S", "RS-AOWS-U", "RS-AOWS-RS", "U-AOWS-U", "Random-U"} <= set(names)
    alone = [r for r in recipes if r.method == "alone"]
    assert len(alone) == 14 and all(len(r.subnets) == 1 and not r.dropout for r in alone)


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_every_source_stays_within_the_budgets(scale):
    problem = platforms.problem(scale, 100)
    choices = [np.asarray(unit) for unit in problem.space.widths]
    for recipe in platforms.retrainings(scale, 1, CIFAR100, searched(scale, 1)):
        for name, widths in recipe.subnets:
            index = [np.flatnonzero(c == w) for c, w in zip(choices, widths, strict=True)]
            budget = problem.budgets[platforms.PLATFORMS.index(name)]
            if all(len(i) for i in index):  # uniform widths need not be choices of the search
                assert problem.trellis.cost(np.array([int(i[0]) for i in index])) <= budget
            else:
                assert recipe.source == "Slim" and Subnet(widths) in problem.uniform


def test_sources_without_their_search_are_left_out():
    recipes = platforms.retrainings("small", 0, CIFAR100, [])
    assert {r.source for r in recipes} == {"Random", "Slim"}
    only = platforms.retrainings("small", 0, CIFAR100, searched("small")[:1])
    assert {r.source for r in only} == {"Random", "Slim", "OWS"}


def test_the_supernet_of_retraining_holds_every_platform():
    for recipe in platforms.retrainings("smoke", 0, CIFAR100, searched("smoke")):
        net = build(recipe, 100)
        for subnet in recipe.named(net).values():
            net.check(subnet)


def test_another_seed_has_other_random_widths():
    random = [next(r for r in platforms.retrainings("full", seed, CIFAR100, []) if r.source == "Random")
              for seed in (0, 0, 1)]
    assert random[0].subnets == random[1].subnets != random[2].subnets


def test_an_unknown_scale_is_refused():
    with pytest.raises(SlimnbError, match="SNB-P10"):
        platforms.searches("huge", 0, CIFAR100)
