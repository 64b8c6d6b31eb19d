"""Batches of scenes that depend on seed and step alone: mirrored, normalised, and if set cropped as SSD does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimnb.data.augment import Normalise, draw_flips, resized_crop
from slimnb.errors import DataError
from slimnb.papers.ds_net.detection.scenes import SceneSplit
from slimnb.rng import keyed_choice, keyed_order, keyed_uniform

OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # that a random crop shall have with some box; 1: no crop
TRIALS = 40  # windows that are drawn for one overlap
ROUNDS = 4  # overlaps that are drawn; torchvision goes on until one succeeds


@dataclass(frozen=True)
class Targets:
    """The objects of a batch: boxes (B, M, 4), left, top, right, bottom in pixels, and labels (B, M), -1 for none."""

    boxes: Tensor
    labels: Tensor


class SceneBatches:
    """Batches of a split for training: images (B, 3, S, S) normalised, channels_last, and their `Targets`.

    `batch(step)` depends on seed and step alone. Scenes are shuffled and a short last batch is dropped; each scene is
    mirrored with probability one half. With `crop`, SSD's random crop (Liu et al. 2016, section 2.2) of the scene as it
    is stored comes first. Difficult objects are left out. Raises DataError if an epoch has no batch.
    """

    def __init__(self, split: SceneSplit, batch_size: int, *, mean: Sequence[float], std: Sequence[float],
                 seed: int = 0, crop: bool = False, dtype: torch.dtype = torch.float32,
                 device: torch.device | str | None = None):
        self.split, self.batch_size, self.seed, self.crop = split, batch_size, seed, crop
        self.device = split.images.device if device is None else torch.device(device)
        self.steps_per_epoch = len(split) // batch_size if batch_size > 0 else 0
        if not self.steps_per_epoch:
            raise DataError(f"{len(split)} scenes with batch_size = {batch_size}",
                            "gives 0 batches per epoch", f"Set batch_size to 1 to {len(split)}.")
        self._normalise = Normalise(mean, std, dtype, self.device)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def rows(self, step: int) -> Tensor:
        """Return the scenes in batch `step`, (B,) int64 on the CPU."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = keyed_order(self.seed, "order", epoch, torch.arange(len(self.split)))
        return order[position * self.batch_size : (position + 1) * self.batch_size]

    def batch(self, step: int) -> tuple[Tensor, Targets]:
        """Return images and targets of batch `step`, counted from the start of training."""
        rows, epoch = self.rows(step), step // self.steps_per_epoch
        images, boxes, labels, difficult = self._read(rows)
        labels = labels.masked_fill(difficult, -1)
        if self.crop:
            images, boxes, labels = random_crops(images, boxes, labels, self.seed, epoch, rows.to(images.device))
        flip = draw_flips(self.seed, epoch, rows).to(images.device)
        images, boxes = mirrored(images, boxes, flip)
        return self._normalise(images), Targets(boxes, labels)

    def images(self, count: int) -> Iterator[Tensor]:
        """Give batches of `count` images, plain and normalised, for calibration."""
        return plain_images(self.split, min(count, len(self.split)), self.batch_size, self._normalise, self.device)

    def _read(self, rows: Tensor) -> list[Tensor]:
        rows = rows.to(self.split.images.device)
        values = (self.split.images, self.split.boxes, self.split.labels, self.split.difficult)
        return [value[rows].to(self.device, non_blocking=True) for value in values]


def plain_images(split: SceneSplit, count: int, batch_size: int, normalise: Normalise,
                 device: torch.device | str) -> Iterator[Tensor]:
    """Give the first `count` images in batches (B, 3, S, S), only normalised."""
    for part in split.images[:count].split(batch_size):
        yield normalise(part.to(device))


def mirrored(images: Tensor, boxes: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror images (B, 3, S, S) and boxes (B, M, 4) left to right where `flip` (B,)."""
    side = images.shape[-1]
    turned = torch.stack((side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]), dim=-1)
    return (torch.where(flip[:, None, None, None], images.flip(-1), images),
            torch.where(flip[:, None, None], turned, boxes))


def random_crops(images: Tensor, boxes: Tensor, labels: Tensor, seed: int, epoch: int,
                 index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Crop each image at random and enlarge it to the old size, with the boxes whose centres it keeps.

    Images become float32, pixels 0..255. `index` (B,) are the scenes' rows, on the images' device.
    """
    side = images.shape[-1]
    windows = draw_windows(boxes, labels >= 0, side, seed, epoch, index)
    kept = _centred(windows[:, None], boxes)[:, 0] & (labels >= 0)
    corner, size = windows[:, None, :2].repeat(1, 1, 2), windows[:, None, 2:].repeat(1, 1, 2)
    moved = ((boxes[..., [1, 0, 3, 2]] - corner) / size * side).clamp(0, side)[..., [1, 0, 3, 2]]
    whole = torch.zeros(len(images), dtype=torch.bool, device=images.device)  # none is mirrored here
    return resized_crop(images, windows / side, whole, side), moved, labels.masked_fill(~kept, -1)


def draw_windows(boxes: Tensor, there: Tensor, side: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Draw random windows (B, 4): top, left, height, width in pixels, as SSD and torchvision's RandomIoUCrop do.

    Of `boxes` (B, M, 4) those count that are `there` (B, M). One of `OVERLAPS` is drawn. Then windows are drawn, with
    sides .3 to 1 of the image's and at most 1 : 2, until one holds the centre of a box and overlaps such a box by that
    much. After `TRIALS` the overlap is drawn anew, up to `ROUNDS` times. An overlap of 1 stands for the whole image, as
    does no success.
    """
    device, n = boxes.device, ROUNDS * TRIALS
    trial = index[:, None] * n + torch.arange(n, device=device)
    down, across, top, left = (keyed_uniform(seed, f"window {name}", epoch, trial)
                               for name in ("height", "width", "top", "left"))
    height, width = ((side * (0.3 + 0.7 * share)).floor() for share in (down, across))
    windows = torch.stack((((side - height) * top).floor(), ((side - width) * left).floor(), height, width), dim=2)
    again = index[:, None] * ROUNDS + torch.arange(ROUNDS, device=device)
    least = torch.tensor(OVERLAPS, device=device)[keyed_choice(seed, "window overlap", epoch, again, len(OVERLAPS))]
    least = least.repeat_interleave(TRIALS, dim=1)  # (B, n)
    inside = _centred(windows, boxes) & there[:, None]  # (B, n, M)
    overlap = torch.where(inside, _overlaps(windows, boxes), -1.0).amax(2)
    slim = (height <= 2 * width) & (width <= 2 * height)
    fits = (slim & (overlap >= least)) | (least >= 1)
    first = torch.where(fits.any(1), fits.int().argmax(1), 0)[:, None]
    chosen = windows.gather(1, first[..., None].expand(-1, -1, 4))[:, 0]
    whole = ~fits.any(1) | (least.gather(1, first)[:, 0] >= 1)
    return torch.where(whole[:, None], torch.tensor([0.0, 0.0, side, side], device=device), chosen)


def _centred(windows: Tensor, boxes: Tensor) -> Tensor:
    """Which windows (B, n, 4) hold which boxes' centres: (B, n, M)."""
    (top, left, height, width), (x, y) = windows[..., None].unbind(2), ((boxes[..., :2] + boxes[..., 2:]) / 2).unbind(2)
    x, y = x[:, None], y[:, None]
    return (left < x) & (x < left + width) & (top < y) & (y < top + height)


def _overlaps(windows: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of windows (B, n, 4) and boxes (B, M, 4): (B, n, M)."""
    top, left, height, width = windows[..., None].unbind(2)
    x, y, right, bottom = boxes[:, None].unbind(3)
    shared = (torch.minimum(right, left + width) - torch.maximum(x, left)).clamp(min=0)
    shared = shared * (torch.minimum(bottom, top + height) - torch.maximum(y, top)).clamp(min=0)
    return shared / (height * width + (right - x) * (bottom - y) - shared)
