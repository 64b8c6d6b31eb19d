"""Chapter 02: sparse bases, what pruning leaves of them, and joint training of all of it in one net."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch

from slimnb.cost.macs import count_macs
from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable.method import InplaceDistillation, Switches
from slimnb.papers.slimmable.recipes import SMALL, SMOKE
from slimnb.papers.sp_net.method import EmbeddedSwitches, Sparsity
from slimnb.papers.sp_net.pruning import SCORES, embed_counts_, prune
from slimnb.rules import Amount, Channels, Share
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.experiment import Context, Result, once, trained
from slimnb.train.protocols import Labels, Objective, Penalty, Sampler
from slimnb.train.recipe import Recipe, check_scale, unknown_method
from slimnb.train.state import load_net

CHAPTER = "02_sp_net"
BASE, TUNED = "Base", "Slimming alone"
"""Arms that others are pruned from: a sparse net of uniform width, and a pruned one trained further on its own."""


@dataclass(frozen=True)
class PrunedRecipe(Recipe):
    """Trains fixed subnets from the labels (method "switches") or from the supernet (method "embedded")."""

    supernet: tuple[Channels, ...] | None = None  # channels of the net that `subnets` are embedded in
    padding: str | None = None  # of `slimnb.nets.sorting.embed_`, with `start`
    score: str | None = None  # one of `slimnb.papers.sp_net.pruning.SCORES`, by which channels are sorted, with `start`
    fresh: bool = False  # weights are drawn anew
    first_gamma: Amount | None = None  # of every batch norm; None: as they are
    sparsity: Amount = 0.0  # strength of network slimming's penalty
    alpha: Share = 1.0  # share of the supernet in what the others learn from

    @property
    def largest(self) -> float | tuple[int, ...]:
        """The channels of the supernet, or its width multiplier."""
        return self.supernet or super().largest

    def begin(self, num_classes: int, store: RunStore) -> SlimmableNet:
        """Build the net; with `start` load that run's, sort its channels by `score` and embed `subnets` in it.

        If the recipe is `fresh`, weights are then drawn anew and gammas set to `first_gamma`.
        """
        net = self._embedded(num_classes, store) if self.start and self.score else super().begin(num_classes, store)
        if self.fresh:
            net.reset_parameters(self.seed)
        if self.first_gamma is not None:
            with torch.no_grad():
                for norm in net.norms():
                    norm.weight.fill_(self.first_gamma)
        return net

    def _embedded(self, num_classes: int, store: RunStore) -> SlimmableNet:
        net = replace(self, subnets=(("", self.largest),)).build(num_classes)
        load_net(net, store.weights_of(self.start), net.get_extra_state())
        net.mark_calibrated([net.largest])
        counts = {name: subnet.widths for name, subnet in self.named(net).items() if subnet != net.largest}
        embed_counts_(net, counts, self.padding, SCORES[self.score])
        return net

    def penalty(self) -> Penalty | None:
        """Return network slimming's penalty, if there is a `sparsity`."""
        return Sparsity(self.sparsity) if self.sparsity else None

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return what trains each method, see the class."""
        named = {f"{mult:g}x": subnet for mult, subnet in self.named(net).items()}
        if self.method == "switches":
            return Switches(named), Labels(self.smoothing)
        if self.method == "embedded":
            pupils = {name: subnet for name, subnet in named.items() if subnet != net.largest}
            return (EmbeddedSwitches(net.largest, pupils),
                    InplaceDistillation(self.temperature, self.alpha, self.smoothing))
        raise unknown_method(self, ("switches", "embedded"))

    def findings(self, net: SlimmableNet, sampler: Sampler) -> dict:
        """Return `printed_macs` of every subnet, as SP-Net counts them.

        A join costs what its paths have between them.
        """
        return {"printed_macs": [count_macs(net, subnet, fused=True) for subnet in self.named(net).values()]}


@dataclass(frozen=True)
class Family:
    """The arms of one net: its widths, the base that each width is pruned from, and how all of them are trained."""

    name: str  # of the net, in SP-Net's tables
    plain: PrunedRecipe  # individual nets, S-Net; bases beside their sparsity
    sparsity: float
    bases: dict[float, float]  # width -> width of the base that is pruned to its MACs
    full: float  # width of the supernet
    joint: dict  # what joint training changes
    arms: tuple[str, ...] = ()  # of Tables 6, 8 and 9
    ablated: tuple[float, ...] = (0.5, 0.75)  # widths that these arms prune to, one after the other
    first_gamma: float | None = 0.5  # of bases and of what is drawn anew, as in SP-Net's code; None: 1, as all others
    shown: tuple[float, ...] | None = None  # widths of individual nets and S-Net; None: those of the bases, and full

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths that are trained one by one and as S-Net, narrowest first."""
        return (*self.bases, self.full) if self.shown is None else self.shown

    @property
    def steps(self) -> dict[float, float]:
        """Maps each width to the next wider one, over all widths of `arms`."""
        return dict(pairwise((*self.ablated, self.full))) if self.arms else {}

    @property
    def fresh(self) -> bool:
        """Whether joint training draws its weights anew."""
        return self.joint["fresh"]


ARMS = ("Uniform counts", "One-shot", "Shortcut first", "Iterative", "L1 norms", "Drawn anew", "SP-Net, all widths")
"""Arms that change one thing of SP-Net (but "all widths", what the paper's Tables 6 and 8 compare)."""

ANEW, TUNE = {"fresh": True}, {"fresh": False}

# Labels are smoothed by 0.0 and not by None, as the ids of finished runs have it.
# SP-Net, section 4.1; table 2.2 of its code where the text contradicts itself: VGG is trained anew, not tuned.
_HEAVY = SMOKE.into(PrunedRecipe, paper="sp_net", scale="full", layout=None, input_size=224, augment="resized_crop",
                    dtype="bfloat16", decay="all", weight_decay=1e-4, lr=0.1, schedule="multistep", gamma=0.2,
                    mults=(), smoothing=0.0)
_CIFAR = replace(_HEAVY, batch_size=128, epochs=120, milestones=(60, 90, 110))
_IMAGENET = replace(_HEAVY, batch_size=256, epochs=90, milestones=(30, 50, 70))
_MOBILE = replace(_IMAGENET, epochs=150, lr=0.05, warmup_epochs=5, schedule="cosine", gamma=None, milestones=None,
                  smoothing=0.1, weight_decay=4e-5, decay="weights")
_RESNET, _VGG = {0.5: 0.75, 0.75: 1.0}, {0.25: 0.5, 0.5: 0.75}

CIFAR = (
    Family("ResNet-50", replace(_CIFAR, net="resnet"), 1e-5, _RESNET, 1.0,
           TUNE | {"epochs": 60, "gamma": 0.1, "milestones": (50,)}),
    Family("VGG", replace(_CIFAR, net="vgg"), 1e-4, _VGG, 1.0, ANEW))
IMAGENET = (
    Family("ResNet-50", replace(_IMAGENET, net="resnet"), 1e-5, _RESNET, 1.0,
           TUNE | {"epochs": 60, "lr": 0.01, "gamma": 0.1, "milestones": (30, 45)}, ARMS, (0.25, 0.5, 0.75)),
    Family("VGG", replace(_IMAGENET, net="vgg"), 1e-5, _VGG, 1.0, ANEW),
    Family("MobileNetV1", replace(_MOBILE, net="mobilenet_v1", rounding="floor"), 1e-5,
           {0.5: 0.75, 0.75: 1.0, 1.0: 1.3}, 1.5,
           ANEW | {"lr": 0.08, "warmup_epochs": 0, "smoothing": 0.0, "temperature": 2.0}, shown=(0.5, 0.75, 1.0)),
    Family("MobileNetV2", replace(_MOBILE, net="mobilenet_v2"), 1e-5, {0.75: 1.0, 1.0: 1.3}, 1.3,
           TUNE | {"lr": 0.08, "warmup_epochs": 0}))

# A gamma that the loss leaves alone moves by sparsity x the sum of the learning rates / (1 - momentum): by .26 in
# SP-Net's ResNet-50 on CIFAR-100. A short training needs a larger strength for that; at smoke it gets half.
_SMALL = SMALL.into(PrunedRecipe, paper="sp_net", epochs=4, mults=(), smoothing=0.0)
_SMOKE = SMOKE.into(PrunedRecipe, paper="sp_net", epochs=1, batch_size=128, mults=(), smoothing=0.0, dtype="bfloat16")
LAPTOP = {
    "small": (
        Family("MobileNetV1", _SMALL, 2e-4, _RESNET, 1.0, ANEW, ARMS[:1], first_gamma=None),
        Family("ResNet-50", replace(_SMALL, net="resnet", stem=16, layout=((4, 1), (8, 1), (32, 2), (64, 2))), 2e-4,
               _RESNET, 1.0, TUNE | {"epochs": 2, "lr": 0.1}, ARMS[:5], first_gamma=None)),
    "smoke": (
        Family("MobileNetV1", _SMOKE, 4e-3, _RESNET, 1.0, ANEW, first_gamma=None),
        Family("ResNet-50", replace(_SMOKE, net="resnet", stem=8, layout=((2, 1), (4, 1), (8, 2))), 4e-3,
               _RESNET, 1.0, TUNE | {"lr": 0.05}, ("Shortcut first",), first_gamma=None, shown=())),
}
"""SP-Net's nets in small: MobileNetV1 of chapter 01, and a ResNet-50 of few and narrow blocks.

Their gammas begin at 1 in all arms: at .5 a base that trains for 140 steps loses seven points.
"""


def families(scale: str, data) -> tuple[Family, ...]:
    """Return the nets of a scale; at full those of Table 2 for CIFAR-100, of Table 3 for larger images."""
    if check_scale(scale) != "full":
        return LAPTOP[scale]
    return IMAGENET if data.size > 32 else CIFAR


# -- stage 1: what needs no other run --------------------------------------------------------------------


def bases(context: Context) -> list[Recipe]:
    """Return the individual nets and S-Net, with which SP-Net is compared, and the sparse bases it is pruned from."""
    recipes = []
    for family in families(context.scale, context.data):
        plain = replace(family.plain, seed=context.seed, method="switches")
        sparse = replace(plain, arm=BASE, bn="shared_affine", sparsity=family.sparsity,
                         first_gamma=family.first_gamma)
        tuned = () if family.fresh else (family.full,)
        recipes += [replace(plain, arm="Individual", mults=(mult,)) for mult in family.widths]
        recipes += [replace(plain, arm="S-Net", mults=family.widths)] if family.widths else []
        mults = sorted({*family.bases.values(), *family.steps.values(), *tuned})
        recipes += [replace(sparse, mults=(mult,)) for mult in mults]
    return recipes


# -- stage 2: pruned bases, trained jointly --------------------------------------------------------------


def joint(context: Context) -> list[Recipe]:
    """Return SP-Net of every net, and the arms that change one thing of it.

    An arm whose bases are not among `results` is left out. One-shot prunes every width from the widest base, and so
    does "Shortcut first", as in the paper's Table 8. Iterative pruning begins here: the widest base is pruned one step
    and trained further on its own.
    """
    recipes = []
    for family in families(context.scale, context.data):
        pruning, plain = Pruning(family, context), family.plain
        widest = dict.fromkeys(family.steps, family.full)
        recipes += pruning.arm("SP-Net", family.bases)
        recipes += pruning.unpruned("Uniform counts", family.bases)
        recipes += pruning.arm("SP-Net, all widths", family.steps)
        recipes += pruning.arm("One-shot", widest)
        recipes += pruning.arm("Shortcut first", widest, padding="shortcut")
        recipes += pruning.arm("L1 norms", family.bases, score="filter norms")
        recipes += pruning.arm("Drawn anew", family.bases, padding="ends", epochs=plain.epochs, lr=plain.lr,
                            gamma=plain.gamma, milestones=plain.milestones, **ANEW)
        recipes += pruning.next_step()
    return recipes


def iterative(context: Context) -> list[Recipe]:
    """Return the next step of iterative pruning, or after the last one the joint training of its subnets.

    SP-Net draws the weights anew for it (section 4.2); here it starts from what all other arms start from.
    """
    prunings = (Pruning(family, context) for family in families(context.scale, context.data))
    return [recipe for pruning in prunings for recipe in pruning.next_step()]


@dataclass(frozen=True)
class Pruning:
    """The finished bases of one net and seed, and the recipes that follow from them."""

    family: Family
    context: Context

    def of(self, arm: str, mult: float) -> Result | None:
        """Return the finished run of an arm that has one width."""
        for result in self.context.results:
            recipe = result.recipe
            if (recipe.arm, recipe.net) == (arm, self.family.plain.net) and result.rows[0]["mult"] == mult:
                return result
        return None

    def arm(self, name: str, from_: dict[float, float], padding: str = "match", score: str = "gammas",
            **changes) -> list[Recipe]:
        """Return the joint training of the widths in `from_`, each pruned from the base of the width that it names.

        The list is empty if the net has no such arm.
        """
        if name not in ("SP-Net", *self.family.arms):
            return []
        prunings = self.pruned(from_, padding, score)
        return [self.joint(name, prunings, padding, score, **changes)] if prunings else []

    def unpruned(self, name: str, mults: Iterable[float]) -> list[Recipe]:
        """Return SP-Net's training of the uniform widths: a control that shares everything but the pruned counts."""
        if name not in self.family.arms or (self.host is None and not self.family.fresh):
            return []
        with torch.device("meta"):
            net = replace(self.family.plain, mults=(self.family.full,)).build(self.context.data.num_classes)
        return [self.joint(name, {mult: {"counts": net.uniform(mult).widths} for mult in mults})]

    @property
    def host(self) -> Result | None:
        """The base that joint training starts from, whose gammas sort its channels; None if weights are drawn anew."""
        return None if self.family.fresh else self.of(BASE, self.family.full)

    def pruned(self, from_: dict[float, float], padding: str = "match", score: str = "gammas") -> dict[float, dict]:
        """Return, by width, what is left of the base that `from_` names for it (see `prune`).

        It is {} if a base is missing.
        """
        sources = {mult: self.of(BASE, base) for mult, base in from_.items()}
        if None in sources.values() or (self.host is None and not self.family.fresh):
            return {}
        return {mult: self.prune(base, mult, padding, score) for mult, base in sources.items()}

    def next_step(self) -> list[Recipe]:
        """Return the next recipe of iterative pruning.

        The widest base is pruned, tuned, pruned further, and so on; then all subnets are trained jointly.
        """
        base, prunings = self.host, {}
        if base is None or "Iterative" not in self.family.arms:
            return []
        *steps, last = sorted(self.family.ablated, reverse=True)
        for mult in steps:
            prunings[mult] = self.prune(base, mult)
            base = self.of(TUNED, mult)
            if base is None:
                return [replace(self.joint(TUNED, {mult: prunings[mult]}), method="switches",
                                subnets=((mult, tuple(prunings[mult]["counts"])),))]
        if any(r.recipe.arm == "Iterative" and r.recipe.net == base.recipe.net for r in self.context.results):
            return []
        prunings[last] = self.prune(base, last)
        return [self.joint("Iterative", prunings)]

    def joint(self, name: str, prunings: dict[float, dict], padding: str = "match", score: str = "gammas",
              **changes) -> PrunedRecipe:
        """Return the recipe that trains what pruning left together with the supernet."""
        family, host = self.family, self.host
        base = replace(family.plain, arm=name, seed=self.context.seed, method="embedded", bn="shared_affine",
                       sparsity=family.sparsity, alpha=0.9, **family.joint)
        with torch.device("meta"):
            full = replace(family.plain, mults=(family.full,)).build(self.context.data.num_classes).largest.widths
        kept = sorted(prunings.items(), reverse=True)
        subnets = ((family.full, full), *((mult, tuple(pruned["counts"])) for mult, pruned in kept))
        start = {"start": host.run_id, "padding": padding, "score": score} if host else {}
        recipe = replace(base, **{"subnets": subnets, "supernet": full, **start, **changes})
        return replace(recipe, first_gamma=family.first_gamma) if recipe.fresh else recipe

    def prune(self, base: Result, mult: float, padding: str = "match", score: str = "gammas") -> dict:
        """Return a `Pruned` of `base` at the MACs of the uniform width `mult`; it is computed once and then loaded."""
        recipe, classes, host = base.recipe, self.context.data.num_classes, self.host
        settings = {"paper": recipe.paper, "arm": "pruned", "scale": recipe.scale, "net": recipe.net,
                    "seed": self.context.seed, "of": base.run_id, "into": host.run_id if host else None, "mult": mult,
                    "padding": padding, "score": score}

        def take() -> dict:
            scores(base, self.context.data, self.context.store)  # while the weights are here
            net, into = trained(base, classes, self.context.store), host and trained(host, classes, self.context.store)
            with torch.device("meta"):
                uniform = replace(self.family.plain, mults=(mult,)).build(classes)
            within = Subnet(recipe.subnets[0][1]) if recipe.subnets else None
            result = prune(net, count_macs(uniform, uniform.largest), score=SCORES[score], within=within, into=into,
                          padding=padding)
            return asdict(result)

        code = code_fingerprint([prune, "slimnb.papers.sp_net.pruning.SCORES", recipe.net_type()])
        return once(self.context.store, settings, code, take)


def scores(result: Result, data, store: RunStore) -> dict:
    """Return the `gammas` of a base to six digits: a list of (layers, channels) per channel unit.

    They are stored when the base is pruned.
    """
    recipe = result.recipe
    settings = {"paper": recipe.paper, "arm": "gammas", "scale": recipe.scale, "net": recipe.net, "of": result.run_id}

    def take() -> dict:
        units = SCORES["gammas"](trained(result, data.num_classes, store))
        return {"gammas": [[[float(f"{value:.6g}") for value in layer] for layer in unit] for unit in units]}

    return once(store, settings, code_fingerprint(["slimnb.papers.sp_net.pruning.SCORES", recipe.net_type()]), take)


STAGES = (bases, joint, iterative, iterative)
