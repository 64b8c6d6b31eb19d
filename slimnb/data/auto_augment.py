"""AutoAugment's ImageNet policy on whole batches: images that share an operation change together."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from slimnb.rng import keyed_choice, keyed_uniform

POLICY = (  # Cubuk et al. 2019, found on ImageNet: two times (operation, probability, magnitude 0 to 9)
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shearx", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)))

SIGNED = ("rotate", "shearx", "color", "contrast", "sharpness")

Operation = tuple[str, int, int]
"""Name, magnitude 0 to 9, and sign: +1, or of those in `SIGNED` also -1."""


def apply(images: Tensor, operation: Operation) -> Tensor:
    """Apply one operation to all `images` (B, 3, H, W) uint8, in the paper's ranges.

    Magnitude 9 rotates by 30 degrees, shears by .3, keeps 4 bits, inverts from 0 up, and enhances by 1.9 or .1. Images
    that turn are sampled at the nearest pixel and are black outside, as in torchvision's `AutoAugment`.
    """
    from torchvision.transforms.v2 import functional as vision  # a second to import, for this alone

    name, magnitude, sign = operation
    share = sign * magnitude / 9
    if name in ("equalize", "autocontrast", "invert"):
        return getattr(vision, name)(images)
    if name == "rotate":
        return vision.rotate(images, 30 * share)
    if name == "shearx":
        tilt = math.degrees(math.atan(0.3 * share))
        return vision.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=[tilt, 0.0], center=[0, 0])
    if name == "posterize":
        return vision.posterize(images, 8 - round(magnitude * 4 / 9))
    if name == "solarize":
        return vision.solarize(images, 255 - 255 * magnitude / 9)
    enhance = {"color": vision.adjust_saturation, "contrast": vision.adjust_contrast,
               "sharpness": vision.adjust_sharpness}[name]
    return enhance(images, 1 + 0.9 * share)


def draw_operations(seed: int, epoch: int, index: Tensor) -> list[tuple[Operation | None, Operation | None]]:
    """Draw the first and the second operation for each sample (B,); None where the policy's probability says so.

    Each of the 25 pairs is equally likely, and so is either sign. `index` (B,) lies on the CPU.
    """
    pairs = keyed_choice(seed, "policy", epoch, index, len(POLICY)).tolist()
    place = index[:, None] * 2 + torch.arange(2)
    happens, signs = (keyed_uniform(seed, name, epoch, place).tolist() for name in ("happens", "sign"))
    return [tuple((name, magnitude, -1 if name in SIGNED and sign < 0.5 else 1) if draw < probability else None
                  for (name, probability, magnitude), draw, sign in zip(POLICY[pair], draws, both, strict=True))
            for pair, draws, both in zip(pairs, happens, signs, strict=True)]


def auto_augment(images: Tensor, drawn: list[tuple[Operation | None, Operation | None]]) -> Tensor:
    """Return the images (B, 3, H, W) uint8 after the operations of `draw_operations`, on their device."""
    images = images.clone()
    for position in range(2):
        places = defaultdict(list)
        for place, pair in enumerate(drawn):
            places[pair[position]].append(place)
        places.pop(None, None)
        for operation, those in places.items():
            those = torch.tensor(those).to(images.device, non_blocking=True)
            images.index_copy_(0, those, apply(images[those], operation))
    return images
