"""Chapter 01: plain nets, one batch norm for all widths, S-Net, US-Net; all papers start from its values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches, Uniform, any_width
from slimnb.runs.store import RunStore
from slimnb.train.experiment import Context
from slimnb.train.protocols import Labels, Objective, Sampler
from slimnb.train.recipe import Recipe, check_scale, unknown_method

CHAPTER = "01_slimmable_networks"
METHODS = ("switches", "sandwich", "uniform")


@dataclass(frozen=True)
class SlimmableRecipe(Recipe):
    """Fixed subnets (method "switches"), the sandwich rule ("sandwich"), or random subnets alone ("uniform")."""

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return what trains each of `METHODS`; the sandwich rule comes with in-place distillation."""
        if self.method == "switches":
            return Switches({name if isinstance(name, str) else f"{name}x": subnet
                             for name, subnet in self.named(net).items()}), Labels(self.smoothing)
        draw = any_width(net, self.train_mults)
        if self.method == "sandwich":
            smallest = net.uniform(min(self.train_mults))
            return (Sandwich(net.largest, smallest, draw, self.n_random, self.seed),
                    InplaceDistillation(self.temperature, smoothing=self.smoothing))
        if self.method == "uniform":
            return Uniform(net.largest, draw, self.seed), Labels(self.smoothing)
        raise unknown_method(self, METHODS)


WIDTHS = (0.25, 0.5, 0.75, 1.0)  # S-Net, section 4: the four switches

SMOKE = SlimmableRecipe(  # sized so that all arms together train in about half a minute on two cores
    paper="slimmable", arm="", scale="smoke", seed=0, net="mobilenet_v1", method="switches", bn="private",
    mults=WIDTHS, train_mults=(), n_random=2, epochs=2, batch_size=64, lr=0.1, schedule="cosine", momentum=0.9,
    weight_decay=1e-4, decay="weights", augment="none", calibration_images=1024,
    layout=((16, 2), (32, 1), (64, 2), (64, 1)))

SMALL = replace(  # US-Net's optimiser settings on half of MobileNetV1, 10.6 M MACs: ours, for two CPU cores
    SMOKE, scale="small", epochs=6, batch_size=128, lr=0.2, augment="crop_flip", calibration_images=4096,
    layout=((32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 1), (512, 1)), dtype="bfloat16")

FULL = replace(  # US-Net: MobileNetV1, lr .5 linear to 0, batch 1024, 250 epochs, 5 calibration batches of 1024
    SMOKE, scale="full", epochs=250, batch_size=1024, lr=0.5, schedule="linear", augment="resized_crop",
    calibration_images=5 * 1024, input_size=224, layout=None, dtype="bfloat16")

FULL_32 = replace(FULL, augment="crop_flip", input_size=32, lr=0.1, batch_size=128)  # the same on CIFAR

SANDWICH_MULTS = tuple(round(0.25 + 0.025 * i, 3) for i in range(31))  # US-Net: any width in [.25, 1]


def arms(context: Context) -> list[Recipe]:
    """Return the arms of chapter 01: plain nets of each width, one batch norm for all, S-Net, US-Net."""
    full = FULL if context.data.size > 32 else FULL_32
    base = replace({"smoke": SMOKE, "small": SMALL, "full": full}[check_scale(context.scale)], seed=context.seed)
    plain = [replace(base, arm="Individual", mults=(mult,)) for mult in WIDTHS]
    evaluated = tuple(round(0.25 + 0.125 * i, 3) for i in range(7))
    us_net = replace(base, arm="US-Net", method="sandwich", bn="calibrated", mults=evaluated,
                     train_mults=SANDWICH_MULTS)
    return [*plain, replace(base, arm="One BN", bn="one"), replace(base, arm="S-Net"), us_net]


STAGES = (arms,)
