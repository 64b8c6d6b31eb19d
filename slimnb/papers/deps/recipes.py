"""Chapter 05: when shrinking should begin. DepS and its rivals are chained: a run starts from another run's net.

The full net is trained once, in legs; every arm that delays shrinking starts from the leg that ends where it begins.
One thing differs from one long run: momentum starts anew at each leg. The released code keeps it for channels that it
has moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from slimnb.cost.elastic import ElasticTable, structures_of
from slimnb.cost.macs import count_macs
from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.sorting import embed_, expand_order
from slimnb.papers.deps.method import DelayedShrinking, Draws, FixedTeacher, compound, delayed, phase
from slimnb.papers.deps.probes import LayerGradients, NormRatio
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches
from slimnb.papers.slimmable.recipes import SMALL, SMOKE
from slimnb.rules import Amount, Below1, Channels, Count, Index, Some
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet
from slimnb.train.experiment import Context
from slimnb.train.measure import Accuracy, Probes
from slimnb.train.optim import Schedule
from slimnb.train.protocols import Labels, Objective, Probe, Sampler
from slimnb.train.recipe import Recipe, check_scale, unknown_method
from slimnb.train.state import load_first_channels_

CHAPTER = "05_deps"
METHODS = ("full", "shrinking", "progressive", "compound")
LEGS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the training of the full net after which a leg ends: Fig. 7a's P, and the whole."""

SHOWN = ((2, 3), (3, 3), (4, 3), (4, 4), (3, 6), (4, 6))
"""(depth, expansion) of the subnets that the paper's figures show, least MACs first."""


@dataclass(frozen=True)
class ShrinkingRecipe(Recipe):
    """Trains one link of a chain.

    Its method is "full" (the full net), "shrinking" (DepS or BigNAS), "progressive" (OFA) or "compound" (CompOFA).
    """

    tail: Channels | None = None  # channels before and after the global pool; None: the paper's
    head: Index | None = None
    first: Channels | None = None  # channels of the first block
    depths: Some[Count] = (2, 3, 4)  # blocks of a stage
    expands: Some[Count] = (3, 4, 6)  # hidden channels of a block over its input channels
    kernels: Some[Count] = (7,)  # sides, pixels
    shown: tuple[tuple[int, int], ...] = SHOWN  # (depth, expansion) of the subnets that are evaluated
    smoothing: Below1 = 0.0  # of labels
    warm_up: Below1 | None = None  # the paper's P, of "shrinking"
    ramp: Literal["linear", "rate"] | None = None  # None: no epsilon
    ramp_epochs: Amount = 0.0
    levels: tuple[Count, ...] | None = None  # hidden channels are sorted within these expansions first; None: no
    looked_at: bool = False  # take the looks of `probe`
    choices: tuple[Count, Count, Count] | None = None  # largest kernels, depths, expansions that OFA's phase draws from

    @property
    def largest(self) -> float:
        """The width multiplier of the supernet."""
        return 1.0

    def named(self, net) -> dict[str, Subnet]:
        """Return the subnets to evaluate: D2E3 has 2 blocks in every stage and expansion 3 in every block."""
        return {f"D{depth}E{expand}": net.elastic(depth, expand) for depth, expand in self.shown}

    def begin(self, num_classes: int, store: RunStore) -> SlimmableNet:
        """Build the net; with `levels` its hidden channels are sorted by importance, within these expansions."""
        net = super().begin(num_classes, store)
        if self.levels is not None:
            embed_(net, expand_order(net, self.levels), {})
        return net

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return what trains each method, see the class.

        Raises ParameterError if a phase of OFA or CompOFA has no teacher.
        """
        if self.method == "full":
            return Switches({"largest": net.largest}, self.dropout), Labels(self.smoothing)
        if self.method == "shrinking":
            return self._shrinking(net, steps), InplaceDistillation(self.temperature, smoothing=self.smoothing)
        if self.method not in METHODS:
            raise unknown_method(self, METHODS)
        if self.teacher is None:
            raise ParameterError(f"method = {self.method!r} without a teacher", "it learns from a full net, fixed",
                                 "Set teacher to the id of its run.")
        space = phase(net.search_space, *self.choices)
        draw = compound(space) if self.method == "compound" else space.sample
        teacher = self.build(net.num_classes).to(next(net.parameters()).device).requires_grad_(False)
        load_first_channels_(teacher, store.weights_of(self.teacher))
        return Draws(draw, self.n_random, self.seed), FixedTeacher(teacher, smoothing=self.smoothing)

    def _shrinking(self, net: SlimmableNet, steps: int) -> DelayedShrinking:
        space, epoch = net.search_space, steps / self.epochs
        rates = Schedule.of(self, round(epoch))
        sampler = Sandwich(space.largest, space.smallest, space.sample, self.n_random, self.seed, self.dropout)
        return delayed(sampler, rates, self.warm_up, self.ramp, round(self.ramp_epochs * epoch))

    def probe(self, net: SlimmableNet, epoch: int, images: Callable, val: Callable) -> Probe | None:
        """Return the probes behind Figs. 2, 3, 4 and 7b, for a recipe that is `looked_at`.

        As shrinking begins, they take gradients layer by layer and validate the shown subnets. From then on they take
        the norms' ratio ten times an epoch, and validate the full net four times an epoch for two epochs.
        """
        if not self.looked_at:
            return None
        sampler, objective = self.sampler_and_objective(net, epoch * self.epochs)
        start, inner = sampler.warm_up, sampler.sampler.plan
        quarters = [start + epoch * k // 4 for k in range(9)]
        return Probes([LayerGradients(inner, objective, [start]),
                       NormRatio(inner, objective, sampler.epsilon, max(1, epoch // 10), start),
                       Accuracy(self.named(net), images, val, [start]),
                       Accuracy({"full": net.largest}, images, val, quarters)])

    def findings(self, net: SlimmableNet, sampler: Sampler) -> dict:
        """Return what a step costs after the warm-up: passes (forward and backward), and MACs of one forward per image.

        `macs_per_step` is the mean over the plans of 256 steps; `teacher_macs` are those of a fixed teacher's forward.
        """
        first = sampler.warm_up if isinstance(sampler, DelayedShrinking) else 0
        plans = [sampler.plan(first + i) for i in range(256)]
        structures = structures_of(net.search_space, [a_pass.route for passes in plans for a_pass in passes])
        macs = ElasticTable.macs(net).predict(structures)
        return {"passes_per_step": len(plans[0]), "macs_per_step": macs.sum().item() / len(plans),
                "teacher_macs": count_macs(net, net.largest) if self.teacher else 0}


@dataclass(frozen=True)
class Family:
    """The arms of one net: the epochs of each, and the rates of OFA's phases."""

    full: ShrinkingRecipe  # the whole training of the full net; DepS trains as long
    ramp_epochs: float
    bignas: int  # epochs
    phases: tuple[tuple[str, tuple[int, int, int], int, int, float, int], ...]
    """OFA's after the full net: name, choices, subnets per step, epochs, lr, of which epochs of warm-up."""
    compound: tuple[tuple[str, tuple[int, int, int], int, int, float, int], ...]
    teacher: int | None = None  # epochs of OFA's full net; None: it is the one of DepS
    shares: tuple[float, ...] = LEGS
    rate: bool = False  # whether to train with the released code's epsilon too


# Methods of the paper and the released code, per 2048 images (16 GPUs of 128): lr .1625, .03, .0025, .0075 each.
_BASE = SMOKE.into(
    ShrinkingRecipe, paper="deps", net="mobilenet_v3", method="full", bn="calibrated", mults=(), scale="full",
    epochs=270, batch_size=2048, lr=2.6, weight_decay=3e-5, floor=2.5e-3, augment="resized_crop", input_size=224,
    layout=None, dropout=0.1, smoothing=0.1, calibration_images=2000, dtype="bfloat16")


def _phases(lr: float, kernels: int = 1, epochs: tuple[int, int] = (25, 125), warmup: int = 5) -> tuple:
    """OFA's phases for a full net trained at `lr`: kernels where they are elastic, depths, expansions."""
    short, long = epochs
    rows = [("kernel", (kernels, 1, 1), 1, long, 0.03, warmup)] if kernels > 1 else []
    for name, choices, nets in (("depth", lambda n: (kernels, n, 1), 2), ("expand", lambda n: (kernels, 3, n), 4)):
        rows += [(f"{name} 1", choices(2), nets, short, 0.0025, 0),
                 (f"{name} 2", choices(3), nets, long, 0.0075, warmup)]
    return tuple((*row[:4], lr * row[4] / 0.1625, row[5]) for row in rows)


def _compound(lr: float, epochs: tuple[int, int] = (25, 125), warmup: int = 5) -> tuple:
    return (("1", (1, 2, 2), 4, epochs[0], lr * 0.0025 / 0.1625, 0),
            ("2", (1, 3, 3), 4, epochs[1], lr * 0.0075 / 0.1625, warmup))


_CIFAR = replace(_BASE, epochs=200, batch_size=128, lr=0.1, floor=1e-4, augment="crop_flip", input_size=32,
                 smoothing=0.0)
_IMAGENET_100 = replace(_BASE, epochs=180, lr=16 * 0.143)
_PROXYLESS = replace(_BASE, net="proxyless_nas", epochs=300, lr=3.2, weight_decay=5e-5)
IMAGENET = (Family(_BASE, 5, 400, _phases(2.6), _compound(2.6), 180, rate=True),
            Family(_PROXYLESS, 5, 400, _phases(3.2), _compound(3.2), 180))
IMAGENET_100 = (Family(_IMAGENET_100, 5, 180, _phases(16 * 0.143), _compound(16 * 0.143), rate=True),)
CIFAR = (Family(_CIFAR, 5, 200, _phases(0.1, epochs=(25, 75)), _compound(0.1, (25, 75)), rate=True),)

# Ours, for two CPU cores: 8.3 M MACs, 3 x 3 kernels, stages of up to three blocks. OFA's phases have a sixth and a
# half of the full net's rate: at the paper's they would not move in so few steps.
_SMALL = replace(_CIFAR, scale="small", batch_size=SMALL.batch_size, dtype=SMALL.dtype, augment=SMALL.augment,
                 layout=((16, 3, 2, "relu", False), (32, 3, 2, "relu", True), (64, 3, 2, "hswish", True)), epochs=6,
                 stem=8, first=8, tail=192, head=256, depths=(1, 2, 3), kernels=(3,), dropout=0.0, floor=1e-3,
                 shown=((1, 3), (2, 3), (3, 3), (2, 6), (3, 4), (3, 6)))
_SMOKE = replace(_SMALL, scale="smoke", epochs=1, batch_size=64, lr=0.1, dtype="float32", augment="none", tail=64,
                 head=64, layout=((8, 2, 2, "relu", False), (16, 2, 2, "hswish", True)), depths=(1, 2), expands=(2, 4),
                 shown=((1, 2), (2, 2), (1, 4), (2, 4)), calibration_images=200)
SMOKE_IMAGES = {"train": 1_300, "test": 400}
"""How many generated images chapter 05 trains and tests on at smoke."""


def _laptop(full: ShrinkingRecipe, ramp_epochs: float, short: int, long: int) -> Family:
    rate = full.lr * 0.1625 / 0.0075 / 2
    every = len(full.depths)

    def cut(phases):
        return tuple((name, tuple(min(n, every) for n in choices), *rest) for name, choices, *rest in phases
                     if every > 2 or name[-1] != "1")

    return Family(full, ramp_epochs, full.epochs, cut(_phases(rate, epochs=(short, long), warmup=0)),
                  cut(_compound(rate, (short, long), 0)), shares=LEGS if every > 2 else (0.5, 1.0))


LAPTOP = {"smoke": (_laptop(_SMOKE, 0.25, 1, 1),), "small": (_laptop(_SMALL, 0.5, 1, 2),)}


def families(scale: str, data) -> tuple[Family, ...]:
    """Return the nets of a scale.

    At full these are the nets for CIFAR-10 and CIFAR-100, for 100 classes of larger images, or for ImageNet.
    """
    if check_scale(scale) != "full":
        return LAPTOP[scale]
    if data.size <= 32:
        return CIFAR
    return IMAGENET_100 if data.num_classes == 100 else IMAGENET


def arms_of(family: Family, seed: int) -> list[ShrinkingRecipe]:
    """Return all recipes of one net.

    Their `start` and `teacher` name arms of this list, each of which stands before its user.
    """
    full, epochs = replace(family.full, seed=seed), family.full.epochs
    legs = {share: "Full" if share == 1 else f"Full {share:.0%}" for share in family.shares}
    recipes = [replace(full, arm=legs[to], span=(since * epochs, to * epochs), start=legs.get(since))
               for since, to in pairwise((0, *family.shares))]

    def shrunk(arm: str, share: float, ramp: str | None = "linear") -> ShrinkingRecipe:
        steps = {"ramp": ramp, "ramp_epochs": family.ramp_epochs} if ramp else {}
        return replace(full, arm=arm, method="shrinking", warm_up=share, start=legs[share],
                       levels=sorted_within(full.expands, len(full.expands)), looked_at=share == 0.5,
                       span=(share * epochs, epochs), **steps)

    recipes += [shrunk("DepS" if share == 0.5 else f"DepS, P = {share:.0%}", share) for share in family.shares[:-1]]
    recipes.append(shrunk("DepS without epsilon", 0.5, None))
    recipes += [shrunk("DepS, epsilon by rate", 0.5, "rate")] if family.rate else []
    recipes.append(replace(full, arm="BigNAS", method="shrinking", warm_up=0.0, epochs=family.bignas))
    taught = "OFA full" if family.teacher else "Full"
    recipes += [replace(full, arm=taught, epochs=family.teacher)] if family.teacher else []
    return recipes + _phased(full, "OFA", "progressive", taught, family.phases) + _phased(
        full, "CompOFA", "compound", taught, family.compound)


def sorted_within(expands: tuple[int, ...], choices: int) -> tuple[int, ...]:
    """Return the expansions across which no channel moves when the largest `choices` are about to train.

    DepS's released code has (4,), as if 4 and 6 had been trained.
    """
    return expands[1 - choices: -1]


def _phased(full: ShrinkingRecipe, arm: str, method: str, taught: str, phases) -> list[ShrinkingRecipe]:
    """A chain of phases, of which the last has the name of the arm; one with a new expansion sorts channels first."""
    recipes, start, sorted_for = [], taught, 1
    for i, (name, choices, nets, epochs, lr, warmup) in enumerate(phases):
        named = arm if i == len(phases) - 1 else f"{arm} {name}"
        levels = sorted_within(full.expands, choices[2]) if choices[2] > sorted_for else None
        recipes.append(replace(full, arm=named, method=method, choices=choices, n_random=nets, epochs=epochs, lr=lr,
                               warmup_epochs=warmup, floor=None, dropout=0.0, start=start, teacher=taught,
                               levels=levels))
        start, sorted_for = named, choices[2]
    return recipes


def ready(context: Context) -> list[Recipe]:
    """Return the recipes that have not run and whose start and teacher have: each stage runs all that it can."""
    recipes, seed = [], context.seed
    for family in families(context.scale, context.data):
        ids = {r.recipe.arm: r.run_id for r in context.results
               if (r.recipe.net, r.recipe.seed) == (family.full.net, seed)}
        for recipe in arms_of(family, seed):
            if recipe.arm not in ids and {recipe.start, recipe.teacher} - {None} <= ids.keys():
                recipes.append(replace(recipe, start=ids.get(recipe.start), teacher=ids.get(recipe.teacher)))
    return recipes


STAGES = (ready,) * 9  # the four legs of the full net, then OFA's phases, at most five
