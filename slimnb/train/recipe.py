"""A recipe says what is trained, and lets a paper take part in its training.

A paper subclasses `Recipe`. It adds fields, and it overrides the methods below where it does something of its own. The
engine, `slimnb.train.experiment`, calls nothing else of a paper. The values, each with its source, are in the
`recipes.py` of each paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from annotated_types import Interval
from torch import Tensor

from slimnb import plugins
from slimnb.data.batches import Augmentation, Batches
from slimnb.data.datasets import ImageData
from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.rules import (
    Amount,
    Below1,
    Channels,
    Count,
    Mult,
    Pixels,
    Positive,
    Rounding,
    Scale,
    Seed,
    Share,
    Some,
    Whole,
    checked,
)
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet, elementwise_max
from slimnb.train.distributed import rank_of, world_of
from slimnb.train.measure import measure
from slimnb.train.optim import SCHEDULES
from slimnb.train.protocols import Objective, Penalty, Probe, Sampler
from slimnb.train.state import load_first_channels_

SCALES = ("smoke", "small", "full")
NO_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")  # capabilities of processors, as PyTorch names them
NET_OPTIONS = ("layout", "stem", "first", "tail", "head", "rounding", "depths", "expands", "kernels", "variant",
               "strides", "fixed", "grid", "num_choices", "channels_per_group", "shared")
"""Fields that a net's constructor takes under the same name; None leaves the choice to the net."""

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
@checked
class Recipe:
    """Describes one training run. Its fields, the code that trains it and the data decide the run's id."""

    # -- which run
    paper: str  # one of `slimnb.plugins.names("papers")`
    arm: str  # the method as figures name it, e.g. "US-Net"
    scale: Scale
    seed: Seed
    # -- net and subnets
    net: str  # one of `slimnb.plugins.names("nets")`
    method: str  # how it is trained: see the paper's `sampler_and_objective`
    bn: str  # batch-norm policy of slimnb.nn.norm, or "one": a single batch norm for all widths
    mults: tuple[Mult, ...]  # width multipliers that are evaluated (and trained, by "switches"); () with `subnets`
    train_mults: tuple[Mult, ...]  # width multipliers that "sandwich" and "uniform" draw from
    n_random: Annotated[int, Interval(ge=0, le=1000)]  # random subnets per step of "sandwich"
    # -- optimiser and schedule
    epochs: Annotated[int, Interval(ge=1, le=100_000)]
    batch_size: Annotated[int, Interval(ge=1, le=2**20)]
    lr: Positive
    schedule: Literal[SCHEDULES]
    momentum: Below1
    weight_decay: Amount
    decay: Literal["weights", "all"]  # "weights" spares norms, biases and depthwise filters; "all" nothing
    # -- data
    augment: Literal["crop_flip", "resized_crop", "none"]  # "crop_flip" | "resized_crop" | "none"
    calibration_images: Count
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"  # of activations while training
    # -- what most recipes leave as it is: optimiser and schedule
    warmup_epochs: Whole = 0
    gamma: Positive | None = None  # factor of schedule "exponential" per epoch, of "multistep" per milestone
    milestones: tuple[Whole, ...] | None = None  # epochs, of schedule "multistep"
    floor: Amount | None = None  # of the learning rate
    span: tuple[Amount, Positive] | None = None  # epochs of the schedule that this run makes, from and to; None: all
    sync_bn: bool = False  # normalise over the joined batch of all ranks
    ranks: Count | None = None  # that each normalise, or draw dropout, for their own rows: see `on_ranks`; None: one
    # -- net and subnets
    input_size: Pixels = 32
    layout: Some[tuple] | None = None  # None: the paper's
    stem: Channels | None = None  # channels of the stem, where that is no row of `layout`; None: the paper's
    rounding: Rounding | None = None  # of widths; None: the net's own
    subnets: tuple[tuple[str | float, tuple[int, ...]], ...] | None = None  # (name, widths) in place of `mults`
    calibrate: bool | None = None  # take statistics anew after training, even where they were tracked
    # -- what is learnt from
    temperature: Positive = 1.0  # of in-place distillation
    dropout: Below1 = 0.0
    smoothing: Below1 | None = None  # of the labels
    start: str | None = None  # run whose weights it starts from: see `load`
    teacher: str | None = None  # run whose net, frozen, teaches
    # -- augmentation: see `slimnb.data.batches.Augmentation`
    reflect: bool | None = None
    auto_augment: bool | None = None
    jitter: tuple[Amount, ...] | None = None
    lighting: Amount | None = None
    erasing: Share | None = None

    TRAINING: ClassVar = ("begin", "load", "sampler_and_objective", "penalty", "probe", "batches")
    MEASURING: ClassVar = ("measure", "findings", "named")
    """Methods whose code, with all that it reaches, makes a result stale; the second kind makes no training stale."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields that are not None as plain JSON, so that a field added later renames no old run."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def into(self, kind: type[R], **changes: Any) -> R:
        """Return a recipe of another class with the values of this one, apart from `changes`."""
        return kind(**{a_field.name: getattr(self, a_field.name) for a_field in fields(self)} | changes)

    def on_ranks(self, world: int) -> Recipe:
        """Return the recipe as `world` ranks train it; where they change its arithmetic, that is another recipe."""
        same = world == 1 or ((self.sync_bn or self.bn == "group") and not self.dropout)
        return self if same else replace(self, ranks=world)

    # -- the net ---------------------------------------------------------------------------------------------

    @property
    def largest(self) -> float | tuple[int, ...]:
        """The supernet's width: a multiplier, or with `subnets` the channels of every unit that hold all of them."""
        if self.subnets:
            return elementwise_max(Subnet(widths) for _, widths in self.subnets)
        return max(*self.mults, *self.train_mults, 0)

    def named(self, net: SlimmableNet) -> dict[str | float, Subnet]:
        """Return the subnets of `net` to evaluate, by name or by multiplier."""
        if self.subnets:
            return {name: Subnet(widths) for name, widths in self.subnets}
        return {mult: net.uniform(mult) for mult in self.mults}

    def net_type(self) -> type[SlimmableNet]:
        """Return the class of the net. Raises ParameterError for an unknown name."""
        return plugins.find("nets", self.net)

    def parts(self) -> list[Callable]:
        """What the recipe finds by the names in it, so that its code counts as the recipe's: here the net's class."""
        return [self.net_type()]

    @checked
    def build(self, num_classes: Count) -> SlimmableNet:
        """Build the supernet, untrained, with its rows of batch-norm statistics reserved."""
        chosen = {name: getattr(self, name, None) for name in NET_OPTIONS}
        net = self.net_type()(num_classes, self.input_size, self.largest,
                              bn="shared_affine" if self.bn == "one" else self.bn, seed=self.seed,
                              **{name: value for name, value in chosen.items() if value is not None})
        if self.bn != "calibrated":
            net.reserve(list(self.named(net).values()), shared=self.bn == "one")
        return net

    def begin(self, num_classes: int, store: RunStore) -> SlimmableNet:
        """Build the net that training starts from; with `start` it has the weights of that run.

        Raises StoreError if that run's weights are not there.
        """
        net = self.build(num_classes)
        if self.start:
            self.load(net, store)
        return net

    def load(self, net: SlimmableNet, store: RunStore) -> None:
        """Load the weights of the run `start` into `net`. If that run's net is wider, its first channels are taken."""
        load_first_channels_(net, store.weights_of(self.start))

    # -- training --------------------------------------------------------------------------------------------

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return the sampler and the objective that train `net` for `steps` steps.

        `store` holds the runs that the recipe names. Raises ParameterError for an unknown `method`.
        """
        raise NotImplementedError

    def penalty(self) -> Penalty | None:
        """Return a function that adds to the gradients of every step, or None."""
        return None

    def probe(self, net: SlimmableNet, epoch: int, images: Callable[[], Iterable[Tensor]],
              val: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Probe | None:
        """Return a probe that looks at the net while it trains, or None. An epoch has `epoch` steps.

        `images()` gives batches of calibration images, `val()` batches of validation images and labels.
        """
        return None

    def batches(self, data: ImageData, device: str, group=None) -> Batches:
        """Make shuffled, augmented training batches; with a process `group` they hold this rank's rows."""
        extra = {name: getattr(self, name) for name in ("reflect", "auto_augment", "jitter", "lighting", "erasing")}
        augment = Augmentation(self.augment, **{name: value for name, value in extra.items() if value is not None})
        return Batches(data.train, self.batch_size, seed=self.seed, augment=augment, mean=data.mean, std=data.std,
                       size=self.input_size, dtype=training_dtype(self.dtype, device), device=device, shuffle=True,
                       rank=rank_of(group), world=world_of(group))

    # -- afterwards ------------------------------------------------------------------------------------------

    def measure(self, net: SlimmableNet, sampler: Sampler, data: ImageData, *, device: str = "cpu",
                group=None) -> tuple[list[dict], dict]:
        """Return the rows of the result, one per subnet, and a dict of what is stored beside them."""
        subnets = self.named(net)
        rows = measure(net, data, list(subnets.values()), images=self.calibration_images,
                       calibrate=bool(self.calibrate), device=device, group=group)
        return [{"name" if isinstance(name, str) else "mult": name} | row
                for name, row in zip(subnets, rows, strict=True)], {}

    def findings(self, net: SlimmableNet, sampler: Sampler) -> dict[str, Any]:
        """Return what else the training found, as JSON by name; it is stored with the rows."""
        return {}

    @property
    def label(self) -> str:
        """The name of the run in lines of progress."""
        only = [f"{mult}x" for mult in self.mults] or [name for name, _ in self.subnets or ()]
        return f"{self.arm}{f' {only[0]}' if len(only) == 1 else ''} (seed {self.seed})"


def check_scale(scale: str, scales: Iterable[str] = SCALES) -> str:
    """`scale` itself if it is one of `scales`. Raises ParameterError."""
    if scale not in scales:
        raise ParameterError(f"scale = {scale!r}", f"it is one of {', '.join(scales)}", "Set scale='smoke'.")
    return scale


def unknown_method(recipe: Recipe, methods: Sequence[str]) -> ParameterError:
    """Make the error for a recipe whose method its paper does not have."""
    return ParameterError(f"method = {recipe.method!r}", f"it is one of {', '.join(methods)}",
                          f"Set method={methods[0]!r}.")


def training_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the dtype of activations while training: `dtype`, or float32 in place of a slow bfloat16.

    On processors without AVX-512 PyTorch runs bfloat16 convolutions in a reference loop that is several times as slow.
    """
    slow = torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() in NO_BFLOAT16
    return torch.float32 if dtype == "bfloat16" and slow else getattr(torch, dtype)
