"""Chapter 06: dynamic slimmable nets. Stage I trains supernets, stage II their gates; then both move to other data.

Arms of a net have like names, and `Recipe.net` tells nets apart. A run of stage II starts from the weights of a run of
stage I.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slimnb.data.datasets import ImageData
from slimnb.nets.gated import GatedNet
from slimnb.papers.ds_net.method import (
    GIVE_UP,
    TRY_BEST,
    EnsembleBootstrapping,
    Routed,
    SandwichGateSparsification,
    any_path,
    freeze_all_but_heads_,
    measure_paths,
    measure_routes,
    tensors_of,
)
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches
from slimnb.papers.slimmable.recipes import SMALL, SMOKE
from slimnb.rules import Amount, Below1, Channels, Count, Whole
from slimnb.runs.store import RunStore
from slimnb.train.experiment import Context, Result
from slimnb.train.measure import Accuracy
from slimnb.train.protocols import Labels, Objective, Probe, Sampler
from slimnb.train.recipe import Recipe, check_scale, unknown_method
from slimnb.train.state import load_first_channels_, load_net

CHAPTER = "06_ds_net"
METHODS = ("plain", "in-place", "bootstrapping", "gates")
SUPERNET = "IEB"
"""The arm of stage I that gates are trained on."""

TRANSFER = {"smoke": "synthetic", "small": "cifar10", "full": "cifar10"}
"""The data set that a supernet and its gates move to, by scale; at smoke generated images of another seed."""


@dataclass(frozen=True)
class GatedRecipe(Recipe):
    """Trains a supernet ("plain": only its widest path, "in-place", "bootstrapping") or the gates of one ("gates")."""

    variant: str | None = None  # of DSMobileNet
    strides: tuple[int, ...] | None = None
    fixed: tuple[int, ...] | None = None
    grid: tuple[tuple[int, int, int], ...] | None = None
    num_choices: Count | None = None
    channels_per_group: Channels | None = None
    head: str | None = None  # design of the slimming heads; None: one-hot
    shared: bool | None = None  # False: slimming heads have reductions of their own
    shown: tuple[tuple[int, ...], ...] | None = None  # paths that are evaluated; None: all
    ensemble: bool = False  # the slimmest path learns from an ensemble
    ema: Below1 = 0.997
    looks: Whole = 0  # at the slimmest path while training
    lowest: Count | None = None  # of each gate's choices so many are open, the narrowest; None: all
    losses: tuple[Amount, Amount, Amount] = (1.0, 0.5, 1.0)  # weights of classification, complexity and SGS
    strategy: str = TRY_BEST
    gate: str | None = None  # run whose slimming heads these begin from
    source: str | None = None  # data that the weights come from, where it is not the data at hand

    @property
    def largest(self) -> float:
        """The width of the net's own variant, which is the supernet."""
        return 1.0

    def named(self, net) -> dict[str, object]:
        """Return the paths to evaluate by their choices, "3" or "0-2-3-1", and the largest net where no path is it."""
        if self.method == "plain":
            return {"widest": net.widest}
        chosen = self.shown or [(k,) for k in range(net.choices[0])]
        paths = {"-".join(map(str, path)): net.path(*path) for path in chosen}
        return paths | ({"largest": net.largest} if net.largest not in paths.values() else {})

    def load(self, net: GatedNet, store: RunStore) -> None:
        """Load the weights of `start` into `net`, for stage II with the statistics of all paths.

        Slimming heads begin anew, or with `gate` as that run left them. So does the classifier of a supernet that goes
        on from another data set.
        """
        weights = store.weights_of(self.start)
        if self.method != "gates":
            weights |= {name: value for name, value in net.state_dict().items() if name.startswith("classifier.")}
            load_first_channels_(net, weights)
            return
        heads = store.weights_of(self.gate) if self.gate else tensors_of(net)
        weights = {name: value for name, value in weights.items() if ".slim_" not in name}
        weights |= {name: value for name, value in heads.items() if ".slim_" in name}
        load_net(net, weights, net.get_extra_state())
        net.mark_calibrated(list(net.slots))

    def begin(self, num_classes: int, store: RunStore) -> GatedNet:
        """Build the net; for stage II all but the slimming heads are frozen."""
        net = super().begin(num_classes, store)
        if self.method == "gates":
            freeze_all_but_heads_(net)
        return net

    def sampler_and_objective(self, net: GatedNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return what trains each method, see the class."""
        if self.method == "gates":
            return (Routed(self.lowest, seed=self.seed),
                    SandwichGateSparsification(net, self.losses, self.strategy, self.lowest))
        if self.method not in METHODS:
            raise unknown_method(self, METHODS)
        if self.method == "plain":
            return Switches({"widest": net.widest}, self.dropout), Labels()
        target = "ensemble" if self.ensemble else "teacher"
        sampler = Sandwich(net.largest, net.slimmest, any_path(net), self.n_random, self.seed, self.dropout, target)
        if self.method == "in-place":
            return sampler, InplaceDistillation(self.temperature)
        return sampler, EnsembleBootstrapping(net, self.ema, self.temperature)

    def probe(self, net: GatedNet, epoch: int, images: Callable, val: Callable) -> Probe | None:
        """Return a probe that validates the slimmest path `looks` times while a supernet trains (Fig. 6), or None."""
        if not self.looks:
            return None
        steps = {round(epoch * self.epochs * k / self.looks) for k in range(self.looks)}
        return Accuracy({"slimmest": net.slimmest}, images, val, steps)

    def measure(self, net: GatedNet, sampler: Sampler, data: ImageData, *, device: str = "cpu",
                group=None) -> tuple[list[dict], dict]:
        """Return rows of paths, or of the gates' routes.

        A supernet's paths are calibrated together, validated and tested. Gates route all validation and test images;
        nothing is calibrated, for only slimming heads have moved.
        """
        if self.method == "gates":
            return measure_routes(net, self.lowest, data, device)
        return measure_paths(net, self.named(net), data, self.calibration_images, device, group)


@dataclass(frozen=True)
class Family:
    """The arms of one net: its supernet's recipe, its gates', and which arms are trained."""

    supernet: GatedRecipe
    gates: GatedRecipe
    spaces: tuple[tuple[str, int | None], ...] = ()  # names and open choices of gates with all three losses
    schemes: bool = True  # whether the arms of Table 5 and Table 10 are trained
    ablations: bool = False  # whether the arms of Tables 6 and 7 are
    plain: bool = True  # the widest path alone


def _family(base: GatedRecipe, epochs: int, lr: float, **more) -> Family:
    """The gates of `base` learn for `epochs`, at a rate that falls to .9 of itself with each (section 4)."""
    gates = replace(base, method="gates", epochs=epochs, lr=lr, schedule="exponential", gamma=0.9, floor=None, looks=0,
                    dropout=0.0, warmup_epochs=0)
    return Family(base, gates, **more)


_UNIFORM = tuple((k,) * 4 for k in range(4))  # of DS-ResNet's 256 paths those of one width throughout
_ML = (("DS-Net-L", None),)

# Section 4 and appendix A; dropout and the number of random paths are the released code's.
_MBNET = SMOKE.into(
    GatedRecipe, paper="ds_net", arm="", net="ds_mbnet", method="bootstrapping", bn="shared_affine", mults=(),
    scale="full", epochs=150, batch_size=512, lr=0.08, floor=0.0008, augment="resized_crop", input_size=224,
    layout=None, calibration_images=1001 * 256, dropout=0.2, dtype="bfloat16", looks=30)
_RESNET = replace(_MBNET, net="ds_resnet", bn="group", lr=0.2, floor=0.002, shown=_UNIFORM)
_EFFNET = replace(_MBNET, net="ds_effnet", lr=0.2, floor=0.002)
_SPACES_MB = (("DS-Net-S", 4), ("DS-Net-M", 8), ("DS-Net-L", None))


def _paper(mbnet: GatedRecipe, resnet: GatedRecipe, effnet: GatedRecipe) -> tuple[Family, ...]:
    return (_family(mbnet, 10, 0.05, spaces=_SPACES_MB),
            _family(resnet, 10, 0.05, spaces=_ML, schemes=False, ablations=True),
            _family(effnet, 10, 0.05, spaces=_SPACES_MB[1:], schemes=False))


IMAGENET = _paper(_MBNET, _RESNET, _EFFNET)
CIFAR = _paper(*(replace(recipe, augment="crop_flip", input_size=32, calibration_images=10_000)
                 for recipe in (_MBNET, _RESNET, _EFFNET)))

# Ours, for two CPU cores: MobileNetV1 of half depth, 0.8 to 3.7 M MACs, and a ResNet of one block a stage, 3.0 M.
_SMALL_MB = replace(
    _MBNET, scale="small", batch_size=SMALL.batch_size, augment=SMALL.augment,
    calibration_images=SMALL.calibration_images, dtype="float32", input_size=32,
    strides=(2, 2, 1, 1, 2, 1, 1, 1), fixed=(16, 32, 48, 48), grid=((48, 16, 2), (96, 32, 2)), num_choices=8,
    epochs=4, lr=0.1, floor=0.001, ema=0.99, dropout=0.0, looks=16)
_SMALL_RES = replace(_SMALL_MB, net="ds_resnet", bn="group", stem=16, layout=((16, 1), (32, 1), (64, 1), (128, 1)),
                     strides=(2, 2, 2, 2, 1), channels_per_group=4, fixed=None, grid=None, num_choices=None,
                     shown=_UNIFORM, looks=0)
_SMOKE_MB = replace(_SMALL_MB, scale="smoke", epochs=2, batch_size=64, augment="none", ema=0.5, fixed=(16, 24),
                    strides=(2, 2, 1, 2, 1), grid=((8, 24, 1), (8, 40, 2)), num_choices=4, looks=3,
                    calibration_images=256)
_SMOKE_RES = replace(_SMALL_RES, scale="smoke", epochs=2, batch_size=64, augment="none", ema=0.5, stem=8,
                     layout=((8, 1), (16, 1), (32, 1)), strides=(2, 2, 2, 2), channels_per_group=2,
                     shown=tuple((k,) * 3 for k in range(4)), calibration_images=256)
IMAGES = {"smoke": {"train": 900, "test": 300}, "small": {"train": 10_000, "test": 2_000},
          "full": {"train": 10_000, "test": 2_000}}
"""How many generated images chapter 06 trains and tests on, by scale."""

LAPTOP = {
    "smoke": (_family(_SMOKE_MB, 1, 4.0, spaces=(("DS-Net-S", 2), ("DS-Net-L", None)), plain=False),
              _family(_SMOKE_RES, 1, 4.0, spaces=_ML, schemes=False, ablations=True, plain=False)),
    "small": (_family(_SMALL_MB, 2, 1.0, spaces=(("DS-Net-S", 3), ("DS-Net-M", 5), ("DS-Net-L", None)), plain=False),
              _family(_SMALL_RES, 1, 1.0, spaces=_ML, schemes=False, ablations=True)),
}

KNOWN = _family(replace(_SMOKE_MB, scale="small", epochs=6, ema=0.99, looks=0, calibration_images=512), 4, 4.0,
                spaces=_ML, schemes=False, ablations=True, plain=False)
"""A small net for generated images, whose difficulty is known; not at smoke, where all nets see such images."""


def families(scale: str, data) -> tuple[Family, ...]:
    """Return the nets of a scale; at full those for the size of the images."""
    if check_scale(scale) != "full":
        return LAPTOP[scale]
    return CIFAR if data.size <= 32 else IMAGENET


def supernets(family: Family, seed: int) -> list[GatedRecipe]:
    """Return stage I: the arms of Table 5 and, except at smoke, those of Table 10 with another temperature."""
    base = replace(family.supernet, seed=seed)
    arms = [replace(base, arm=SUPERNET, ensemble=True)]
    if family.schemes:
        arms = [replace(base, arm="In-place distillation", method="in-place"), replace(base, arm="EMA target"), *arms,
                replace(base, arm="Temperature 4", method="in-place", temperature=4.0, looks=0)]
        arms = arms[: -1] if base.scale == "smoke" else arms
    return arms + ([replace(base, arm="Plain", method="plain", looks=0)] if family.plain else [])


LOSSES = {"Target": (1.0, 0.0, 0.0), "Complexity": (0.0, 0.5, 0.0), "SGS, give up": (0.0, 0.0, 1.0),
          "SGS, try best": (0.0, 0.0, 1.0), "Target + complexity": (1.0, 0.5, 0.0), "Complexity + SGS": (0.0, 0.5, 1.0)}
"""Arms of Table 6 beside all three losses, which are a net's DS-Net arms; at smoke the first four are trained."""


def gated(family: Family, seed: int, supernet: str) -> list[GatedRecipe]:
    """Return stage II, on the run `supernet`: routing spaces, the losses of Table 6 and the designs of Table 7."""
    base = replace(family.gates, seed=seed, start=supernet)
    arms = [replace(base, arm=name, lowest=lowest) for name, lowest in family.spaces]
    if family.ablations:
        tried = list(LOSSES)[:4] if base.scale == "smoke" else LOSSES
        arms += [replace(base, arm=name, losses=LOSSES[name],
                         strategy=GIVE_UP if name.endswith("give up") else TRY_BEST) for name in tried]
        sgs = replace(base, losses=LOSSES["SGS, try best"])
        arms += [replace(sgs, arm="Scalar head", head="scalar"), replace(sgs, arm="Unshared reduction", shared=False)]
    return arms


def stage_one(context: Context) -> list[Recipe]:
    """Return the supernets of all nets."""
    return [recipe for family in families(context.scale, context.data)
            for recipe in supernets(family, context.seed)]


def stage_two(context: Context) -> list[Recipe]:
    """Return the gates of every net whose supernet is trained."""
    ids = {r.recipe.net: r.run_id for r in context.results
           if (r.recipe.arm, r.recipe.seed) == (SUPERNET, context.seed)}
    return [recipe for family in families(context.scale, context.data) if family.supernet.net in ids
            for recipe in gated(family, context.seed, ids[family.supernet.net])]


STAGES = (stage_one, stage_two)


def known_one(context: Context) -> list[Recipe]:
    """Return the supernet of `KNOWN`."""
    return supernets(replace(KNOWN, supernet=replace(KNOWN.supernet, scale=check_scale(context.scale))),
                     context.seed)


def known_two(context: Context) -> list[Recipe]:
    """Return the gates of `KNOWN`."""
    family = replace(KNOWN, gates=replace(KNOWN.gates, scale=check_scale(context.scale)))
    return [recipe for r in context.results if r.recipe.arm == SUPERNET
            for recipe in gated(family, context.seed, r.run_id)]


KNOWN_STAGES = (known_one, known_two)
"""Stages on generated images."""


# -- Table 3 ---------------------------------------------------------------------------------------------

FINE_TUNING = {"smoke": (1, 1, 0.05), "small": (2, 1, 0.05), "full": (70, 10, 0.7)}
"""Epochs of supernet and of gates, and the learning rate of the supernet, on the data that is moved to."""


def moved_to(scale: str, store: RunStore) -> tuple[int, int, str] | None:
    """Return classes, side and fingerprint of the data of finished runs of Table 3 at `scale`, or None."""
    records = [r["data"] for r in store.records() if r["recipe"].get("paper") == "ds_net" and r["recipe"].get("source")
             and r["recipe"]["scale"] == scale]
    return (10, 32, records[-1]) if records else None


def transfer_stages(results: Sequence[Result], source: str) -> tuple:
    """Return stages that move the DS-ResNet of `results` to other data.

    Arms are "Plain", the widest path alone, moved; IEB, the supernet; then gates on it, from the start ("Without gate
    transfer") and from those of all three losses ("Gate transfer"). `source` is the name of the data set of `results`.
    """
    def tuned(context: Context) -> list[Recipe]:
        scale, seed = context.scale, context.seed
        epochs, _, lr = FINE_TUNING[scale]
        as_printed = {"warmup_epochs": 15, "batch_size": 1024} if scale == "full" else {}
        return [replace(r.recipe, epochs=epochs, lr=lr, floor=lr / 100, start=r.run_id, source=source, looks=0,
                        **as_printed)
                for r in results if r.recipe.seed == seed and r.recipe.net == "ds_resnet"
                and r.recipe.arm in (SUPERNET, "Plain")]

    def gates(context: Context) -> list[Recipe]:
        scale, seed = context.scale, context.seed
        supernet = [r.run_id for r in context.results if r.recipe.arm == SUPERNET]
        old = [r for r in results if (r.recipe.net, r.recipe.arm, r.recipe.seed) == ("ds_resnet", "DS-Net-L", seed)]
        if not supernet or not old:
            return []
        base = replace(old[0].recipe, epochs=FINE_TUNING[scale][1], start=supernet[0], source=source)
        return [replace(base, arm="Without gate transfer"), replace(base, arm="Gate transfer", gate=old[0].run_id)]

    return tuned, gates
