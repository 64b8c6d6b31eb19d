"""Batches that are a pure function of (seed, step), cut and augmented on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimnb.augment import (
    Normalise,
    centre_crop,
    crop_flip,
    draw_boxes,
    draw_crops,
    draw_flips,
    keyed_order,
    resized_crop,
)
from slimnb.errors import SlimnbError

AUGMENTATIONS = ("crop_flip", "resized_crop", "none")


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8, labels (N,) int64 and, where known, difficulty (N,) float32 in [0, 1]."""

    images: Tensor
    labels: Tensor
    difficulty: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, change: Callable[[Tensor], Tensor]) -> Split:
        """The split with `change` applied to each of its tensors."""
        hard = self.difficulty
        return Split(change(self.images), change(self.labels), None if hard is None else change(hard))

    def head(self, count: int) -> Split:
        """The first `count` images (rows are in random order, so a fair sample), as views."""
        return self.map(lambda values: values[:count])

    def to(self, device: torch.device | str) -> Split:
        """The split with its tensors on `device`."""
        return self.map(lambda values: values.to(device))


class Batches:
    """Batches of a split: normalised images (B, 3, size, size) channels_last of `dtype`, and labels (B,).

    `batch(step)` is a pure function of (seed, step): the epoch's order and every sample's augmentation come
    from hashes of (seed, epoch, row), so that grouping, device and rank change nothing. `augment`:
    "crop_flip" (zero padding of `pad` pixels, random crop, mirror), "resized_crop" (random box of area
    `scale`, mirror) or "none" (middle crop). Rank r of `world` gets rows r, r + world, ... of the same batch
    of `batch_size`. Shuffles, and drops a short last batch, unless `augment` is "none" or told otherwise.
    A split that lies on the device stays there; of one that is too large for it, each batch's bytes are sent.
    Raises D06 (no batch in an epoch), P04, P10.
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int = 0, augment: str = "crop_flip",
                 mean: Sequence[float], std: Sequence[float], size: int | None = None,
                 dtype: torch.dtype = torch.float32, device: torch.device | str | None = None, rank: int = 0,
                 world: int = 1, shuffle: bool | None = None, drop_last: bool | None = None, pad: int = 4,
                 scale: tuple[float, float] = (0.25, 1.0)):
        side = split.images.shape[-1]
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment
        self.size, self.pad, self.scale = side if size is None else size, pad, scale
        self.device = split.images.device if device is None else torch.device(device)
        self.rank, self.world = rank, world
        self.shuffle = augment != "none" if shuffle is None else shuffle
        self.drop_last = self.shuffle if drop_last is None else drop_last
        self._check(side)
        whole, rest = divmod(len(split), batch_size)
        self.steps_per_epoch = whole + (0 if self.drop_last else rest > 0)
        if self.steps_per_epoch == 0:
            what = f"{len(split)} images with batch_size = {batch_size}"
            raise SlimnbError("D06", what, "gives 0 batches per epoch",
                              f"Set batch_size to at most {len(split)}.")
        self._normalise = Normalise(mean, std, dtype, self.device)
        self._shuffled = (-1, None)  # the order of one epoch, kept while its batches are asked for

    def _check(self, side: int) -> None:
        if self.augment not in AUGMENTATIONS:
            known = f"known are {', '.join(AUGMENTATIONS)}"
            raise SlimnbError("P10", f"augment = {self.augment!r}", known, "Use one of them.")
        uneven = self.drop_last and self.batch_size % self.world
        if self.batch_size < 1 or uneven or not 0 <= self.rank < self.world:
            what = f"batch_size = {self.batch_size}, rank {self.rank} of {self.world}"
            raise SlimnbError("P04", what, "ranks get equal shares", "Use a positive multiple of the ranks.")
        largest = side + 2 * self.pad if self.augment == "crop_flip" else side
        if self.augment != "resized_crop" and not 1 <= self.size <= largest:
            rule = f"crops of these images are 1 to {largest} pixels"
            raise SlimnbError("P04", f"size = {self.size}", rule,
                              "Lower it, or load the data at a larger size.")

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: the batches of epoch 0."""
        return (self.batch(step) for step in range(self.steps_per_epoch))

    def rows(self, step: int) -> Tensor:
        """Which rows of the split this rank's part of batch `step` holds, (B,) int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        return self._order(epoch)[first : first + self.batch_size][self.rank :: self.world]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of batch `step`, counted from the start of training."""
        rows = self.rows(step)
        found = self.split.images[rows], self.split.labels[rows], rows
        images, labels, rows = (values.to(self.device, non_blocking=True) for values in found)
        return self._normalise(self._augmented(images, step // self.steps_per_epoch, rows)), labels

    def images(self, count: int) -> Iterator[Tensor]:
        """Batches of images alone, `count` images over all ranks together: what calibration reads."""
        count = min(count, len(self.split))
        for step, first in enumerate(range(0, count, self.batch_size)):
            share = len(range(self.rank, count - first, self.world))  # of what is left, this rank's rows
            if share:
                yield self.batch(step)[0][:share]

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            epoch = 0
        if self._shuffled[0] != epoch:
            count, device = len(self.split), self.split.images.device
            order = torch.arange(count, device=device)
            if self.shuffle:
                order = keyed_order(self.seed, "order", epoch, order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]

    def _augmented(self, images: Tensor, epoch: int, rows: Tensor) -> Tensor:
        if self.augment == "none":
            return centre_crop(images, self.size)
        flip = draw_flips(self.seed, epoch, rows)
        if self.augment == "resized_crop":
            return resized_crop(images, draw_boxes(self.seed, epoch, rows, self.scale), flip, self.size)
        spare = images.shape[-1] + 2 * self.pad - self.size
        down, across = draw_crops(self.seed, epoch, rows, spare)
        return crop_flip(images, down - self.pad, across - self.pad, flip, self.size)
