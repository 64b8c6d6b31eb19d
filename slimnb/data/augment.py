"""Augmentation of whole batches, on whatever device they lie, with random numbers keyed by image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from slimnb.rng import keyed_choice, keyed_uniform


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int, reflect: bool = False) -> Tensor:
    """Cut each image's own crop and mirror it where `flip`: (B, 3, S, S) uint8 to (B, 3, size, size), in one gather.

    `top` and `left` (B,) int64 are pixels. A crop may leave the image by up to S - 1 pixels on any side. There it reads
    zero, or with `reflect` the image mirrored about its outermost pixels, which are not repeated.
    """
    batch, channels, side, _ = images.shape
    along = torch.arange(size, device=images.device)
    rows = top[:, None] + along
    columns = left[:, None] + torch.where(flip[:, None], size - 1 - along, along)
    if reflect:
        rows, columns = (side - 1 - (side - 1 - places.abs()).abs() for places in (rows, columns))
    pixel = (rows.clamp(0, side - 1) * side)[:, :, None] + columns.clamp(0, side - 1)[:, None, :]
    index = pixel.view(batch, 1, -1).expand(-1, channels, -1)
    crops = images.reshape(batch, channels, -1).gather(2, index).view(batch, channels, size, size)
    if reflect:
        return crops
    inside = _within(rows, side)[:, :, None] & _within(columns, side)[:, None, :]
    return crops.mul_(inside[:, None])


def _within(places: Tensor, side: int) -> Tensor:
    return (places >= 0) & (places < side)


def draw_crops(seed: int, epoch: int, index: Tensor, spare: int) -> tuple[Tensor, Tensor]:
    """Draw offsets down and across in range(spare + 1), int64, for each sample (B,)."""
    down, across = (keyed_choice(seed, name, epoch, index, spare + 1) for name in ("down", "across"))
    return down, across


def draw_flips(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Flip a fair coin for each sample: (B,) bool."""
    return keyed_uniform(seed, "flip", epoch, index) < 0.5


def draw_boxes(seed: int, epoch: int, index: Tensor, scale: tuple[float, float] = (0.25, 1.0),
               ratio: tuple[float, float] = (3 / 4, 4 / 3), tries: int = 10, stream: str = "") -> Tensor:
    """Draw random boxes (B, 4): top, left, height, width as fractions of a square image.

    The area is uniform in `scale`, the logarithm of width over height uniform in `ratio`. The first of `tries` draws
    that fits in the image counts, else the whole image (Szegedy et al. 2015, section 6, in the form in common use).
    Boxes of another `stream` are independent.
    """
    draw = index[:, None] * tries + torch.arange(tries, device=index.device)
    area = scale[0] + (scale[1] - scale[0]) * keyed_uniform(seed, f"{stream}area", epoch, draw)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * keyed_uniform(seed, f"{stream}aspect", epoch, draw))
    sides = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()))  # (2, B, tries): height, width
    fits = (sides <= 1).all(0)
    first = fits.int().argmax(1, keepdim=True)
    height, width = (side.gather(1, first).squeeze(1) for side in sides)
    whole = torch.ones_like(height)
    height, width = (torch.where(fits.any(1), side, whole) for side in (height, width))
    top = keyed_uniform(seed, f"{stream}top", epoch, index) * (1 - height)
    left = keyed_uniform(seed, f"{stream}left", epoch, index) * (1 - width)
    return torch.stack((top, left, height, width), dim=1)


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Resize each image's own box bilinearly and mirror it where `flip`: (B, 3, size, size) float32.

    `images` is (B, 3, S, S) and `boxes` as from `draw_boxes`. Nothing is smoothed before it shrinks, so keep S below
    about twice `size`.
    """
    top, left, height, width = boxes.unbind(1)
    zero = torch.zeros_like(top)
    mirror = torch.where(flip, -width, width)
    across = torch.stack((mirror, zero, 2 * left + width - 1), dim=1)
    down = torch.stack((zero, height, 2 * top + height - 1), dim=1)
    shape = (len(images), 3, size, size)
    grid = F.affine_grid(torch.stack((across, down), dim=1), shape, align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Return the middle (B, 3, size, size) of (B, 3, S, S), as a view."""
    start = (images.shape[-1] - size) // 2
    return images[:, :, start : start + size, start : start + size]


class Normalise:
    """Turns pixels 0..255 (B, 3, H, W) of any type into (pixel / 255 - mean) / std, channels_last, of `dtype`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype,
                 device: torch.device | str):
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
        self.scale = (1 / (255 * std)).to(device, torch.float32)
        self.shift = (-mean / std).to(device, torch.float32)
        self.dtype = dtype

    def __call__(self, images: Tensor) -> Tensor:
        # copy=True: what follows is in place and must never reach the data set. Arithmetic runs along rows of
        # pixels and the layout changes last: on a CPU twice as fast as the other way round.
        x = images.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)
        return torch.empty_like(x, dtype=self.dtype, memory_format=torch.channels_last).copy_(x)
