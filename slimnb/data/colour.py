"""Colour jitter, PCA lighting and random erasing of whole batches, each image by its own draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slimnb.rng import keyed_uniform

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it
PCA = ((0.2175, (-0.5675, -0.5808, -0.5836)),  # (eigenvalue, eigenvector) of ImageNet's RGB values in 0..1
       (0.0188, (0.7192, -0.0045, -0.6948)),
       (0.0045, (0.4009, -0.8140, 0.4203)))
TURN = 6  # sectors of the hue circle


def draw_jitter(seed: int, epoch: int, index: Tensor, strengths: Sequence[float]) -> Tensor:
    """Draw factors (B, len(strengths)) float32 of brightness, contrast, saturation and, if there are four, hue.

    A factor is uniform in [max(0, 1 - s), 1 + s]; that of hue is uniform in [-s, s], a fraction of the circle.
    """
    factors = []
    for name, strength in zip(("brightness", "contrast", "saturation", "hue"), strengths, strict=False):
        middle = 0 if name == "hue" else 1
        low, high = middle - strength, middle + strength
        if middle:
            low = max(low, 0)
        factors.append(low + (high - low) * keyed_uniform(seed, name, epoch, index))
    return torch.stack(factors, dim=1)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Jitter the colours of (B, 3, H, W), pixels 0..255, by `factors` (B, 3 or 4) of `draw_jitter`: float32.

    The order is always brightness, contrast (about the image's mean grey), saturation, hue, with a cut at 0 and 255
    after each. These are torchvision's four `adjust_` functions, except that nothing is rounded in between.
    """
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in factors[:, :3].unbind(1))
    x = (images.float() * brightness).clamp_(0, 255)
    x = _blend(x, grey(x).mean((2, 3), keepdim=True), contrast)
    x = _blend(x, grey(x), saturation)
    return turn_hue(x, factors[:, 3]) if factors.shape[1] == 4 else x


def grey(images: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of float images (B, 3, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 255)


def turn_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Turn the hue of each float image (B, 3, H, W) by its `angle` (B,), a fraction of the circle (HSV)."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(value == red, (green - blue) / safe,
                      torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4))
    hue = hue + TURN * angle.view(-1, 1, 1)
    sectors = ((hue + shift) % TURN for shift in (5, 3, 1))  # HSV to RGB, one formula for the three channels
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in sectors], dim=1)


def draw_lighting(seed: int, epoch: int, index: Tensor, strength: float) -> Tensor:
    """Draw weights (B, 3) float32 of the three principal components: normal, with standard deviation `strength`."""
    draw = index[:, None] * 3 + torch.arange(3, device=index.device)
    radius, angle = (keyed_uniform(seed, name, epoch, draw) for name in ("lighting radius", "lighting angle"))
    return strength * (-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * angle).cos()  # Box and Muller


def lighting(images: Tensor, weights: Tensor) -> Tensor:
    """Add weights (B, 3) times ImageNet's principal colours to (B, 3, H, W), pixels 0..255: float32, cut at both ends.

    The source is AlexNet (Krizhevsky et al. 2012), section 4.1. Its eigenvalues are those of pixels in 0..1.
    """
    colours = torch.tensor([[255 * value * part for part in vector] for value, vector in PCA])
    added = weights @ colours.to(weights.device, non_blocking=True)
    return (images.float() + added[:, :, None, None]).clamp_(0, 255)


def erase_(x: Tensor, boxes: Tensor, chosen: Tensor) -> Tensor:
    """Set a box of the images where `chosen` (B,) bool to zero, in place: random erasing (Zhong et al. 2017).

    `x` (B, C, S, S) is normalised, so that zero is the mean colour; `boxes` (B, 4) are as from `draw_boxes`.
    """
    place = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]
    top, left, height, width = (part[:, None] for part in boxes.unbind(1))
    down = chosen[:, None] & (place >= top) & (place < top + height)
    across = (place >= left) & (place < left + width)
    return x.masked_fill_((down[:, :, None] & across[:, None, :])[:, None], 0)
