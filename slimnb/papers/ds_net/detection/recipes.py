"""Recipes of detectors (DS-Net, Table 4).

A detector is trained on all paths of its row of the table in every step, and is evaluated at each: one net serves all
of them, as DS-Net means it. The paper does not say how its three were trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.nn.norm import CALIBRATED
from slimnb.papers.ds_net.detection import detector
from slimnb.papers.ds_net.detection.batches import SceneBatches
from slimnb.papers.ds_net.detection.detector import DetectionLoss, Detector, detector_macs
from slimnb.papers.ds_net.detection.precision import evaluate_detector
from slimnb.papers.ds_net.detection.scenes import Scenes, generated
from slimnb.papers.ds_net.detection.voc import load_voc
from slimnb.papers.slimmable.method import Switches
from slimnb.papers.slimmable.recipes import SMALL, SMOKE
from slimnb.rules import Channels, Count, Pixels, Positive, Share, Some, Whole
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.protocols import Objective, Sampler
from slimnb.train.recipe import Recipe, check_scale, training_dtype

BASELINE, DYNAMIC = "MobileNetV1 + FSSD", "DS-MBNet + FSSD"
"""The two detectors of Table 4."""


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """Trains a detector on a backbone; `start` names the classification run whose blocks it begins with.

    The subnets are those of any recipe, or of a gated backbone its `paths`.
    """

    side: Pixels = 300  # of the scenes, pixels
    taps: Some[Whole] = detector.TAPS  # this and what follows: see `Detector`
    channels: Channels = 256
    pyramid: Some[Channels] = detector.PYRAMID
    scales: Some[Positive] = detector.SCALES
    ratios: Some[tuple[Positive, ...]] = detector.RATIOS
    threshold: Share = 0.01  # of scores that count as detections
    crop: bool = False  # SSD's random crops while training
    paths: tuple[tuple[str, int], ...] | None = None  # (name, choice of every gate)
    variant: str | None = None  # of DSMobileNet, as what follows
    strides: tuple[int, ...] | None = None
    fixed: tuple[int, ...] | None = None
    grid: tuple[tuple[int, int, int], ...] | None = None
    num_choices: Count | None = None

    @property
    def largest(self) -> float | tuple[int, ...]:
        """The width of any recipe; of a gated backbone its own."""
        return 1.0 if self.paths else super().largest

    def named(self, net: SlimmableNet) -> dict[str, Subnet]:
        """Return the subnets to train and evaluate, by name; they are those of the backbone of `net`."""
        if isinstance(net, Detector):
            with torch.device("meta"):  # shapes are enough
                net = super().build(net.num_classes)
        if self.paths:
            return {name: net.path(k) for name, k in self.paths}
        return {name if isinstance(name, str) else f"{name}x": subnet for name, subnet in super().named(net).items()}

    def build(self, num_classes: int) -> Detector:
        """Build the detector, untrained."""
        return Detector(super().build(num_classes), num_classes, self.side, taps=self.taps, channels=self.channels,
                        pyramid=self.pyramid, scales=self.scales, ratios=self.ratios, seed=self.seed,
                        score_thresh=self.threshold)

    def load(self, net: Detector, store: RunStore) -> None:
        """Load the blocks of the classification run `start`."""
        net.load_backbone_(store.weights_of(self.start))

    def sampler_and_objective(self, net: Detector, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return a sampler of all subnets in every step, and SSD's loss."""
        return Switches(self.named(net)), DetectionLoss()

    def batches(self, data: Scenes, device: str, group=None) -> SceneBatches:
        """Make shuffled, augmented scenes and their boxes. Raises ParameterError for scenes of another side."""
        if data.side != self.side:
            raise ParameterError(f"scenes of {data.side} pixels", f"the recipe is for {self.side}",
                                 "Load them at that size.")
        return SceneBatches(data.train, self.batch_size, mean=data.mean, std=data.std, seed=self.seed, crop=self.crop,
                            dtype=training_dtype(self.dtype, device), device=device)

    def measure(self, net: Detector, sampler: Sampler, data: Scenes, *, device: str = "cpu",
                group=None) -> tuple[list[dict], dict]:
        """Return rows of name, macs (of the whole detector, convention A), the keys of `average_precision`, and n."""
        named = self.named(net)
        subnets = list(named.values())
        if net.bn == CALIBRATED or self.calibrate:
            calibrate_bn(net, subnets, self.batches(data, device).images(self.calibration_images))
        return [{"name": name, "macs": detector_macs(net, subnet)} | row for (name, subnet), row in
                zip(named.items(), evaluate_detector(net, subnets, data), strict=True)], {}


# Section 4.1: batch 128, 300 epochs, lr .004, a tenth of it from epochs 200 and 250 on. Weight decay, default boxes and
# head are those of the FSSD for MobileNet that its author released. The paths are those of Table 2's S, M and L: with
# them the detectors have the paper's 2.3, 2.7 and 3.2 G MACs. MobileNetV1 has 3.2 G, not the 4.3 G printed.
_FULL = SMOKE.into(
    DetectionRecipe, paper="ds_net", arm=BASELINE, scale="full", net="mobilenet_v1", bn="shared_affine", mults=(1.0,),
    epochs=300, batch_size=128, lr=0.004, schedule="multistep", milestones=(200, 250), weight_decay=5e-4, decay="all",
    input_size=224, layout=None, warmup_epochs=6, dtype="bfloat16", crop=True)
_PATHS = {"net": "ds_mbnet", "arm": DYNAMIC, "mults": (), "layout": None}
_SMALL = replace(  # ours, for two CPU cores: scenes of 96 pixels, and the nets of chapter 06 at small
    _FULL, scale="small", epochs=5, batch_size=16, lr=0.02, milestones=(3, 4), warmup_epochs=1, crop=False, side=96,
    input_size=32, layout=SMALL.layout, taps=(5, 7), channels=64, pyramid=(128, 64), scales=(0.25, 0.45, 0.6),
    ratios=((2,),) * 2, threshold=0.05, dtype="float32")
_SMOKE = replace(_SMALL, scale="smoke", epochs=3, batch_size=8, lr=0.03, schedule="cosine", milestones=None,
                 momentum=0.8, side=64, layout=((16, 2), (24, 2), (48, 2), (64, 1)), taps=(2, 3), channels=32,
                 pyramid=(48, 32))
TABLE_4 = {
    "full": (_FULL, replace(_FULL, **_PATHS, paths=(("S", 1), ("M", 7), ("L", 13)))),
    "small": (_SMALL, replace(_SMALL, **_PATHS, paths=(("S", 1), ("M", 4), ("L", 7)), strides=(2, 1, 2, 1, 2, 1, 1, 1),
                              fixed=(16, 32, 64, 64), grid=((64, 32, 2), (128, 64, 2)), num_choices=8)),
    "smoke": (_SMOKE, replace(_SMOKE, **_PATHS, paths=(("S", 0), ("L", 4)), strides=(2, 1, 2, 2, 1), taps=(3, 4),
                              fixed=(8, 16, 24), grid=((16, 16, 1), (24, 24, 1)), num_choices=5)),
}
GENERATED = {"small": {"train": 1_000, "test": 300, "side": 96, "hardest": 0.8},
             "smoke": {"train": 160, "test": 80, "hardest": 0.3}}
"""What scenes are generated at the scales that use them."""


def recipes(scale: str, seed: int = 0, starts: dict[str, str] | None = None) -> list[DetectionRecipe]:
    """Return the detectors of Table 4; `starts` names, by arm, the classification runs that they begin with."""
    return [replace(recipe, seed=seed, start=(starts or {}).get(recipe.arm)) for recipe in TABLE_4[check_scale(scale)]]


def load_scenes(scale: str, root: str | os.PathLike | None = None, download: bool = False) -> Scenes:
    """Load the set of a scale: VOC at full, see `load_voc`, else generated scenes."""
    return load_voc(root, download=download) if check_scale(scale) == "full" else generated(**GENERATED[scale])
