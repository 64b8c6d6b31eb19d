"""What is trained at which scale: frozen recipes, every value with its source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slimnb.errors import ParameterError
from slimnb.subnet import Subnet, elementwise_max

SCALES = ("smoke", "small", "full")


@dataclass(frozen=True)
class Recipe:
    """One training run. Its fields, the code they reach and the data decide the run's id.

    A paper that needs more fields adds them in a subclass, in its folder of `slimnb.papers`.
    """

    paper: str  # folder of slimnb.papers
    arm: str  # the method as figures name it, e.g. "US-Net"
    scale: str
    seed: int
    net: str  # see slimnb.train.experiment.NETS
    method: str  # one that the paper's `plan` knows, e.g. "switches"
    bn: str  # batch-norm policy of slimnb.nn.layers, or "one": a single batch norm for all widths
    mults: tuple[float, ...]  # width multipliers that are evaluated (and trained, by "switches"); () with `subnets`
    train_mults: tuple[float, ...]  # width multipliers that "sandwich" and "uniform" draw from
    n_random: int  # random subnets per step of "sandwich"
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    momentum: float
    weight_decay: float
    decay: str  # "weights" spares norms, biases and depthwise filters; "all" nothing
    augment: str  # "crop_flip" | "resized_crop" | "none"
    calibration_images: int
    dtype: str = "float32"  # of activations while training
    warmup_epochs: int = 0
    input_size: int = 32
    layout: tuple[tuple[int, ...], ...] | None = None  # None: the paper's
    temperature: float = 1.0  # of in-place distillation
    dropout: float = 0.0
    sync_bn: bool = False  # normalise over the joined batch of all ranks
    calibrate: bool | None = None  # take statistics anew after training, even where they were tracked
    subnets: tuple[tuple[str | float, tuple[int, ...]], ...] | None = None  # (name, widths) in place of `mults`
    gamma: float | None = None  # factor of schedule "exponential" per epoch, of "multistep" per milestone
    milestones: tuple[int, ...] | None = None  # epochs, of schedule "multistep"
    stem: int | None = None  # channels of the stem, where that is no row of `layout`; None: the paper's
    rounding: str | None = None  # of widths; None: the net's own
    start: str | None = None  # run whose weights it starts from: see `slimnb.train.experiment.begin`
    teacher: str | None = None  # run whose net, frozen, teaches
    smoothing: float | None = None  # of the labels
    reflect: bool | None = None  # padding of "crop_flip" mirrored, not zero; this and what follows: see `Augmentation`
    auto_augment: bool | None = None
    jitter: tuple[float, ...] | None = None
    lighting: float | None = None
    erasing: float | None = None
    span: tuple[float, float] | None = None  # epochs of the schedule that this run makes, from and to; None: all
    floor: float | None = None  # of the learning rate

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of all fields but those that are None, so that a field added later renames no old run."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def largest(self) -> float | tuple[int, ...]:
        """The supernet's width: a multiplier, or of `subnets` the channels of every unit, widest of all."""
        if self.subnets:
            return elementwise_max(Subnet(widths) for _, widths in self.subnets)
        return max(*self.mults, *self.train_mults, 0)

    def named(self, net) -> dict[str | float, Subnet]:
        """The subnets of `net` that are evaluated, by name or by multiplier."""
        if self.subnets:
            return {name: Subnet(widths) for name, widths in self.subnets}
        return {mult: net.uniform(mult) for mult in self.mults}


def check_scale(scale: str) -> str:
    """`scale` itself if there is such a scale. Raises ParameterError."""
    if scale not in SCALES:
        raise ParameterError(f"scale = {scale!r}", f"it is one of {', '.join(SCALES)}", "Set scale='smoke'.")
    return scale


