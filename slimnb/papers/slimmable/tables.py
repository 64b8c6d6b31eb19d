"""Tables that chapter 00 shows: where the MACs go, what the papers print, what colour alone can tell."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from slimnb.cost.macs import CONVENTIONS, trace_macs
from slimnb.data.datasets import Split
from slimnb.nets.base import SlimmableNet
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.vgg import VGG
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear
from slimnb.subnet import Subnet

SUFFIX = {"M": 6, "G": 9}  # powers of ten


@dataclass(frozen=True, slots=True)
class Printed:
    """MACs of uniform subnets as one table of a paper prints them."""

    claim: str  # its name in the ledger
    source: str
    net: str
    convention: str  # the one of `slimnb.cost.macs.CONVENTIONS` that explains the most digits
    figures: Mapping[float, str]  # width multiplier: the figure as printed, "4.1G"
    pixels: int = 224
    cut: bool = False  # digits are cut off, not rounded


# The individual nets of SP-Net's Table 3 and its S-MobileNetV1 are the same nets, counted by two conventions.
PRINTED = (
    Printed("macs-sp-net-mobilenet-v1", "SP-Net, Table 3, MobileNetV1",
            "MobileNetV1", "A", {1.0: "569M", 0.75: "325M", 0.5: "149M"}),
    Printed("macs-sp-net-s-mobilenet-v1", "SP-Net, Table 3, S-MobileNetV1",
            "MobileNetV1", "C", {1.0: "584M", 0.75: "337M", 0.5: "157M"}),
    Printed("macs-sp-net-mobilenet-v2", "SP-Net, Table 3, MobileNetV2",
            "MobileNetV2", "A", {1.3: "509M", 1.0: "301M", 0.75: "209M"}),
    Printed("macs-sp-net-resnet-50", "SP-Net, Tables 3 and 6, ResNet-50",
            "ResNet-50", "C", {1.0: "4.1G", 0.75: "2.3G", 0.5: "1.1G", 0.25: "286M"}),
    Printed("macs-sp-net-vgg", "SP-Net, Table 3, VGG",
            "VGG", "C", {1.0: "19.6G", 0.5: "4.9G", 0.25: "1.2G"}),
    Printed("macs-pss-net-largest", "PSS-Net, Figure 3 (data), largest MobileNetV1",
            "MobileNetV1", "B", {1.0: "568.79M"}),
    Printed("macs-pss-net-smallest", "PSS-Net, Figure 3 (data), smallest MobileNetV1",
            "MobileNetV1", "B", {0.75: "106.78M"}, pixels=128),
    Printed("macs-pss-net-mobilenet-v1", "PSS-Net, Table 4, MobileNetV1",
            "MobileNetV1", "B", {0.25: "13M"}, pixels=128, cut=True),
    Printed("macs-pss-net-mobilenet-v2", "PSS-Net, Table 4, MobileNetV2",
            "MobileNetV2", "B", {0.7: "57M", 0.8: "73M"}, pixels=128, cut=True),
    Printed("macs-platforms", "Multi-platform, Table 1, MobileNetV1",
            "MobileNetV1", "A", {0.25: "3.35M", 0.375: "7.34M", 0.5: "12.21M", 0.625: "19.02M",
                                 0.75: "26.58M", 0.875: "36.20M", 1.0: "46.45M"}, pixels=32),
    Printed("macs-ds-net-mobilenet-v1", "DS-Net, Table 2, MobileNetV1",
            "MobileNetV1", "B", {1.0: "569M", 0.75: "317M", 0.5: "150M"}),
)
"""The papers' MACs that depend on nothing but the net, so that they must come out digit for digit."""


def printed_macs(rows: Iterable[Printed] = PRINTED) -> pd.DataFrame:
    """Compare our counts with the MACs that papers print, one row per printed figure.

    Columns: claim, source, net, mult, pixels, convention, printed, ours, fits, macs. `ours` is our count in the
    figure's own digits. `fits` names every convention that gives the printed digits. `printed_m` and `ours_m` are the
    two figures as numbers, in millions.
    """
    build = functools.lru_cache(1)(_build)  # one net at a time: together they would take 300 MB

    @functools.cache
    def count(name: str, mult: float, pixels: int) -> dict[str, int]:
        net = build(name, 32 if pixels == 32 else 224)  # the two layouts; 128 pixels run on the latter
        return counts(net, net.uniform(mult), pixels)

    out = []
    for row in rows:
        for mult, text in row.figures.items():
            macs = count(row.net, mult, row.pixels)
            shown = {c: as_printed(number, text, row.cut) for c, number in macs.items()}
            fits = "".join(c for c in CONVENTIONS if shown[c] == text) or "none"
            out.append({"claim": row.claim, "source": row.source, "net": row.net, "mult": mult,
                        "pixels": row.pixels, "convention": row.convention, "printed": text,
                        "ours": shown[row.convention], "fits": fits, "macs": macs[row.convention],
                        "printed_m": _millions(text), "ours_m": _millions(shown[row.convention])})
    return pd.DataFrame(out)


def _build(name: str, layout: int) -> SlimmableNet:
    classes = 100 if layout == 32 else 1000  # CIFAR-100 or ImageNet
    if name == "ResNet-50":
        return ResNet50(classes, layout)
    if name == "VGG":
        return VGG(classes, layout)
    return MobileNetV1(classes, layout) if name == "MobileNetV1" else MobileNetV2(classes, layout, 1.3)


def counts(net: SlimmableNet, subnet: Subnet, pixels: int | None = None) -> dict[str, int]:
    """Count the MACs of `subnet` for one image by each convention, from one trace."""
    kinds = [pair for module in trace_macs(net, subnet, pixels).values() for pair in module.items()]
    return {c: sum(macs for kind, macs in kinds if kind in counted) for c, counted in CONVENTIONS.items()}


def as_printed(macs: int, like: str, cut: bool = False) -> str:
    """Write `macs` in the unit and with the decimals of the printed figure `like` ("4.1G").

    It is rounded, or with `cut` cut off.
    """
    decimals = len(like[:-1].partition(".")[2])
    digits = macs * 10**decimals / 10 ** SUFFIX[like[-1]]
    whole = math.floor(digits) if cut else math.floor(digits + 0.5)
    return f"{whole / 10**decimals:.{decimals}f}{like[-1]}"


def _millions(text: str) -> float:
    return float(text[:-1]) * 10 ** (SUFFIX[text[-1]] - 6)


def layer_macs(net: SlimmableNet, subnet: Subnet) -> pd.DataFrame:
    """Count the MACs of `subnet` (convention A) per layer of a chain. Columns: layer (channel unit), part, macs."""
    traced = trace_macs(net, subnet)
    out = []
    for name, module in net.named_modules():
        if isinstance(module, SlimmableConv2d):
            part = "depthwise" if module.depthwise else f"{module.kernel}×{module.kernel}"
            # A depthwise layer has its input's unit; it belongs to the block that reads it next.
            unit = module.unit + module.depthwise
            out.append((net.unit_names[unit], f"{part} convolution", traced[name]["conv"]))
        elif isinstance(module, SlimmableLinear):
            out.append(("FC", "linear", traced[name]["linear"]))
    return pd.DataFrame(out, columns=["layer", "part", "macs"])


def colour_alone(train: Split, other: Split) -> pd.DataFrame:
    """Classify images by three numbers alone: the class whose mean colour is nearest to the image's.

    The colour is the mean over the middle half of each side. There is one row per image of `other`: difficulty and
    correct (bool).
    """
    known, queries = _middle_colour(train), _middle_colour(other)
    classes = int(train.labels.max()) + 1
    centres = torch.stack([known[train.labels == k].mean(0) for k in range(classes)])  # (classes, 3)
    guess = torch.cdist(queries, centres).argmin(1)
    return pd.DataFrame({"difficulty": other.difficulty.cpu().numpy(),
                         "correct": (guess == other.labels).cpu().numpy()})


def _middle_colour(split: Split) -> torch.Tensor:
    side = split.images.shape[-1]
    middle = slice(side // 4, side - side // 4)
    return split.images[:, :, middle, middle].float().mean((2, 3)) / 255  # (N, 3)
