"""What chapter 05 trains: the chain of runs, each arm's recipe, and what a smoke run of it finds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from slimnb.cost.macs import count_macs
from slimnb.errors import ParameterError
from slimnb.papers.deps import recipes as deps
from slimnb.papers.deps.method import DelayedShrinking, Draws, FixedTeacher
from slimnb.papers.slimmable.method import InplaceDistillation, Switches
from slimnb.train.experiment import Context, Result

CIFAR100, IMAGENET = SimpleNamespace(num_classes=100, size=32), SimpleNamespace(num_classes=1000, size=224)
IMAGENET_100 = SimpleNamespace(num_classes=100, size=224)
EVERY = [(scale, data) for scale in ("smoke", "small", "full") for data in (CIFAR100, IMAGENET, IMAGENET_100)]


def chained(scale, data, seed=0) -> list:
    """The recipes of all stages in the order they run, as if each had a result named after its arm."""
    results = []
    for stage in deps.STAGES:
        results += [Result(recipe, [], [], 0.0, recipe.arm) for recipe in stage(Context(scale, seed, data, results))]
    return [result.recipe for result in results]


@pytest.mark.parametrize(("scale", "data"), EVERY)
def test_the_stages_run_every_arm_once_and_after_what_it_needs(scale, data):
    recipes = chained(scale, data)
    wanted = [recipe for family in deps.families(scale, data) for recipe in deps.arms_of(family, 0)]
    assert sorted((r.net, r.arm) for r in recipes) == sorted((r.net, r.arm) for r in wanted)
    assert len({(r.net, r.arm) for r in recipes}) == len(recipes)
    for i, recipe in enumerate(recipes):
        assert {recipe.start, recipe.teacher} - {None} <= {r.arm for r in recipes[:i] if r.net == recipe.net}


@pytest.mark.parametrize(("scale", "data"), EVERY)
def test_the_legs_of_the_full_net_are_its_training_and_shrinking_goes_on_where_they_end(scale, data):
    for family in deps.families(scale, data):
        arms = {recipe.arm: recipe for recipe in deps.arms_of(family, 0)}
        leg, at = arms["Full"], family.full.epochs
        while leg is not None:
            assert leg.span[1] == at and leg.lr == family.full.lr and leg.epochs == family.full.epochs
            leg, at = arms.get(leg.start), leg.span[0]
        assert at == 0
        for share in family.shares[:-1]:
            deps_arm = arms["DepS" if share == 0.5 else f"DepS, P = {share:.0%}"]
            assert deps_arm.warm_up == share and deps_arm.start == f"Full {share:.0%}"
            assert deps_arm.span == (arms[deps_arm.start].span[1], family.full.epochs)


def test_the_full_recipes_are_those_of_the_released_code():
    arms = {(r.net, r.arm): r for r in chained("full", IMAGENET)}
    main = arms["mobilenet_v3", "DepS"]
    assert (main.epochs, main.lr, main.batch_size, main.weight_decay, main.floor) == (270, 2.6, 2048, 3e-5, 2.5e-3)
    assert (main.smoothing, main.dropout, main.ramp_epochs, main.n_random, main.temperature) == (0.1, 0.1, 5, 2, 1)
    assert main.kernels == (7,) and main.levels == (4,)
    assert arms["mobilenet_v3", "BigNAS"].epochs == 400
    # 5.3: OFA 605 epochs of which 125 are the kernel phase, which 7 x 7 kernels alone do not need; CompOFA 330.
    for arm, epochs in (("OFA", 605 - 125), ("CompOFA", 330)):
        recipe, total = arms["mobilenet_v3", arm], 0
        while recipe is not None:
            total, recipe = total + recipe.epochs, arms.get(("mobilenet_v3", recipe.start))
        assert total == epochs
    kernel, *_ = deps._phases(2.6, kernels=3)
    assert kernel == ("kernel", (3, 1, 1), 1, 125, pytest.approx(16 * 0.03), 5)


def test_cifar_10_has_the_recipe_of_cifar_100_and_imagenet_100_its_own():
    cifar_10 = SimpleNamespace(num_classes=10, size=32)
    assert chained("full", cifar_10) == chained("full", CIFAR100)
    arms = {r.arm: r for r in chained("full", IMAGENET_100)}
    assert {r.net for r in arms.values()} == {"mobilenet_v3"}
    assert (arms["DepS"].epochs, arms["DepS"].lr) == (180, pytest.approx(16 * 0.143))  # .143 per GPU of 128 images
    assert (arms["DepS"].input_size, arms["DepS"].weight_decay) == (224, 3e-5)


def test_a_recipe_makes_what_it_describes():
    for recipe in chained("smoke", CIFAR100, 3):
        net = recipe.build(100)
        assert list(recipe.named(net)) == [f"D{d}E{e}" for d, e in recipe.shown]
        store = SimpleNamespace(weights_of=lambda run_id, net=net: dict(net.named_parameters()))
        sampler, objective = recipe.sampler_and_objective(net, 40 * recipe.epochs, store)
        kinds = {"full": (Switches, None), "shrinking": (DelayedShrinking, InplaceDistillation)}
        kind, of = kinds.get(recipe.method, (Draws, FixedTeacher))
        assert type(sampler) is kind and (of is None or type(objective) is of)
        if kind is DelayedShrinking:
            first = round((recipe.span or (0,))[0] * 40)
            assert sampler.warm_up == first and len(sampler.plan(first)) == 4
            assert sampler.epsilon(first) == (1 if recipe.ramp is None else 1e-4)
            assert sampler.plan(first)[0].route == net.largest
        work = recipe.findings(net, sampler)
        assert work["passes_per_step"] == {"full": 1, "shrinking": 4}.get(recipe.method, recipe.n_random)
        most = count_macs(net, net.largest)
        assert work["macs_per_step"] <= most * work["passes_per_step"]
        assert work["teacher_macs"] == (most if recipe.teacher else 0)


def test_a_small_net_has_the_macs_that_its_comment_says():
    recipe = deps.LAPTOP["small"][0].full
    net = recipe.build(100)
    macs = [count_macs(net, subnet) for subnet in recipe.named(net).values()]
    assert macs == sorted(macs) and macs[-1] == count_macs(net, net.largest) == pytest.approx(8.3e6, rel=0.01)


def test_another_paper_method_is_refused():
    recipe = deps.LAPTOP["smoke"][0].full
    net = recipe.build(10)
    with pytest.raises(ParameterError):
        replace(recipe, method="switches").sampler_and_objective(net, 10)
    with pytest.raises(ParameterError):
        replace(recipe, method="progressive", choices=(1, 2, 2)).sampler_and_objective(net, 10)
