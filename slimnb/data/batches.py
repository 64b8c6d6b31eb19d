"""Batches that depend on seed and step alone, cut and augmented on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from slimnb.data import colour
from slimnb.data.augment import Normalise, centre_crop, crop_flip, draw_boxes, draw_crops, draw_flips, resized_crop
from slimnb.data.auto_augment import auto_augment, draw_operations
from slimnb.errors import DataError, ParameterError
from slimnb.rng import keyed_order, keyed_uniform
from slimnb.rules import Amount, Count, Pixels, Portion, Seed, Share, Whole, checked

AUGMENTATIONS = ("crop_flip", "resized_crop", "none")


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8, labels (N,) int64 and, where it is known, difficulty (N,) float32 in [0, 1]."""

    images: Tensor
    labels: Tensor
    difficulty: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, change: Callable[[Tensor], Tensor]) -> Split:
        """Return the split with `change` applied to each of its tensors."""
        hard = self.difficulty
        return Split(change(self.images), change(self.labels), None if hard is None else change(hard))

    def head(self, count: int) -> Split:
        """Return the first `count` images, as views; rows are in random order, so this is a fair sample."""
        return self.map(lambda values: values[:count])

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its tensors on `device`."""
        return self.map(lambda values: values.to(device))


def check_split(split: Split, classes: int | None = None) -> Split:
    """Return the split with int64 labels. Raises DataError for images that are not (N, 3, S, S) uint8 and bad labels.

    With `classes` the values of labels are read, too.
    """
    shape = tuple(split.images.shape)
    if split.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise DataError(f"images {split.images.dtype} {shape}", "a split has (N, 3, S, S) uint8, pixels 0 to 255",
                        "Convert them, e.g. by (255 * x).round().to(torch.uint8).")
    return Split(split.images, class_numbers(split.labels, len(split.images), classes), split.difficulty)


def class_numbers(y: Tensor, count: int, classes: int | None = None) -> Tensor:
    """Return the labels `y` of `count` images as int64. Raises DataError unless they are whole numbers (count,).

    With `classes` their values are read, too: 0 to classes - 1, or DataError. On a GPU that waits for the device.
    """
    whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole or y.shape != (count,):
        what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__[:40]
        raise DataError(f"labels {what} of {count} images", f"labels are whole numbers ({count},), one class per image",
                        "Of one-hot or soft labels pass y.argmax(1).")
    y = y.long()
    if classes is not None and count and not 0 <= (low := int(y.min())) <= (high := int(y.max())) < classes:
        raise DataError(f"label {low if low < 0 else high}", f"labels are 0 to {classes - 1}", "Mend the labels.")
    return y


@dataclass(frozen=True)
@checked
class Augmentation:
    """The augmentation of training images; hashes of (seed, epoch, row) decide each image's own.

    The steps, in order: crop and mirror; AutoAugment's ImageNet policy; colour jitter (strengths of brightness,
    contrast, saturation and, if there is a fourth, hue); PCA lighting (standard deviation); after normalisation random
    erasing (probability; area .02 to .33, width over height .3 to 1 / .3). `crop` is "crop_flip" (padding of `pad`
    pixels, zero or with `reflect` mirrored, and a random crop), "resized_crop" (a random box of area `scale`) or "none"
    (the middle, not mirrored). Raises ParameterError for other values.
    """

    crop: str = "crop_flip"
    pad: Whole = 4
    reflect: bool = False
    scale: tuple[Portion, Portion] = (0.25, 1.0)
    auto_augment: bool = False
    jitter: tuple[Amount, ...] = ()
    lighting: Amount = 0.0
    erasing: Share = 0.0

    def __post_init__(self) -> None:
        if self.crop not in AUGMENTATIONS:
            known = f"known are {', '.join(AUGMENTATIONS)}"
            raise ParameterError(f"augment = {self.crop!r}", known, "Use one of them.")
        if len(self.jitter) not in (0, 3, 4) or max(self.jitter[3:], default=0) > 0.5:
            raise ParameterError(f"jitter = {self.jitter}", "it is three strengths, and of hue one up to .5",
                                 "Set e.g. (0.4, 0.4, 0.4).")

    def largest(self, side: int) -> int | None:
        """Return the size of the largest crop of an image of `side` pixels; None means any size."""
        return {"crop_flip": side + 2 * self.pad, "resized_crop": None, "none": side}[self.crop]

    def pixels(self, images: Tensor, seed: int, epoch: int, rows: Tensor, index: Tensor, size: int) -> Tensor:
        """Make all steps before normalisation: (B, 3, S, S) uint8 to (B, 3, size, size), pixels 0..255.

        `rows` (B,) are the samples' rows on the CPU, `index` the same on the images' device. The result is uint8 or
        float32.
        """
        images = self._cropped(images, seed, epoch, index, size)
        if self.auto_augment:
            whole = images if images.dtype == torch.uint8 else images.round().to(torch.uint8)
            images = auto_augment(whole, draw_operations(seed, epoch, rows))
        if any(self.jitter):
            images = colour.jitter(images, colour.draw_jitter(seed, epoch, index, self.jitter))
        if self.lighting:
            images = colour.lighting(images, colour.draw_lighting(seed, epoch, index, self.lighting))
        return images

    def _cropped(self, images: Tensor, seed: int, epoch: int, index: Tensor, size: int) -> Tensor:
        if self.crop == "none":
            return centre_crop(images, size)
        flip = draw_flips(seed, epoch, index)
        if self.crop == "resized_crop":
            return resized_crop(images, draw_boxes(seed, epoch, index, self.scale), flip, size)
        down, across = draw_crops(seed, epoch, index, images.shape[-1] + 2 * self.pad - size)
        return crop_flip(images, down - self.pad, across - self.pad, flip, size, self.reflect)

    def erased_(self, x: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
        """Set a box in some of the normalised images (B, 3, size, size) to zero, in place."""
        if not self.erasing:
            return x
        boxes = draw_boxes(seed, epoch, index, (0.02, 0.33), (0.3, 1 / 0.3), stream="erase ")
        return colour.erase_(x, boxes, keyed_uniform(seed, "erase", epoch, index) < self.erasing)


class Batches:
    """Batches of a split: normalised images (B, 3, size, size) channels_last of `dtype`, and labels (B,).

    `batch(step)` depends on seed and step alone: hashes of (seed, epoch, row) give the epoch's order and every sample's
    augmentation, so that grouping, device and rank change nothing. `augment` is an `Augmentation` or the name of its
    crop. Unless it is "none", rows are shuffled and a short last batch is dropped; `shuffle` overrules that. Rank r of
    `world` gets rows r, r + world, ... of the same batch of `batch_size`.

    A split on the device stays there. Of any other, each batch's bytes are sent, and the next batch is read meanwhile.
    Raises DataError if an epoch has no batch, ParameterError for a bad argument.
    """

    @checked
    def __init__(self, split: Split, batch_size: Annotated[int, Interval(ge=1, le=2**20)], *, seed: Seed = 0,
                 augment: str | Augmentation = "crop_flip", mean: Sequence[float], std: Sequence[float],
                 size: Pixels | None = None, dtype: torch.dtype = torch.float32,
                 device: torch.device | str | None = None, rank: Whole = 0, world: Count = 1,
                 shuffle: bool | None = None, drop_last: bool | None = None):
        split = check_split(split)
        side = split.images.shape[-1]
        self.augment = Augmentation(augment) if isinstance(augment, str) else augment
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.size = side if size is None else size
        self.device = split.images.device if device is None else torch.device(device)
        self.rank, self.world = rank, world
        self.shuffle = self.augment != Augmentation("none") if shuffle is None else shuffle
        self.drop_last = self.shuffle if drop_last is None else drop_last
        self._check(side)
        whole, rest = divmod(len(split), batch_size)
        self.steps_per_epoch = whole + (0 if self.drop_last else rest > 0)
        if self.steps_per_epoch == 0:
            what = f"{len(split)} images with batch_size = {batch_size}"
            raise DataError(what, "gives 0 batches per epoch",
                            f"Set batch_size to at most {len(split)}.")
        self._normalise = Normalise(mean, std, dtype, self.device)
        self._shuffled = (-1, None)  # the order of one epoch, kept while its batches are asked for
        self._reader = ThreadPoolExecutor(1) if split.images.device.type != self.device.type else None
        self._reading: dict[int, Future] = {}  # the batch after the last one, by its step

    def _check(self, side: int) -> None:
        uneven = self.drop_last and self.batch_size % self.world
        if self.batch_size < 1 or uneven or not 0 <= self.rank < self.world:
            what = f"batch_size = {self.batch_size}, rank {self.rank} of {self.world}"
            raise ParameterError(what, "ranks get equal shares", "Use a positive multiple of the ranks.")
        largest = self.augment.largest(side)
        if self.size < 1 or (largest is not None and self.size > largest):
            rule = f"crops of these images are 1 to {largest} pixels" if largest else "crops are at least 1 pixel"
            raise ParameterError(f"size = {self.size}", rule,
                                 "Lower it, or load the data at a larger size.")
        if self.augment.reflect and not self.augment.pad < side:
            raise ParameterError(f"pad = {self.augment.pad} of images of {side} pixels",
                                 "reflected padding is narrower than the image", "Set pad=4.")

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of one pass, epoch 0."""
        return (self.batch(step) for step in range(self.steps_per_epoch))

    def rows(self, step: int) -> Tensor:
        """Return the rows of the split in this rank's part of batch `step`, (B,) int64 on the CPU."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        return self._order(epoch)[first : first + self.batch_size][self.rank :: self.world]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of batch `step`, counted from the start of training."""
        rows = self.rows(step)
        index = rows.to(self.device, non_blocking=True)
        epoch = step // self.steps_per_epoch
        pair = self._sent(step) if self._reader else self._read(rows.to(self.split.images.device, non_blocking=True))
        images, labels = (values.to(self.device, non_blocking=True) for values in pair)
        x = self._normalise(self.augment.pixels(images, self.seed, epoch, rows, index, self.size))
        return self.augment.erased_(x, self.seed, epoch, index), labels

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.split.images[rows], self.split.labels[rows]

    def _sent(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels, still off the device, that the last call began to read; the next batch's are begun."""
        reading = self._reading.pop(step, None) or self._begin(step)
        self._reading = {step + 1: self._begin(step + 1)}
        return reading.result()

    def _begin(self, step: int) -> Future:
        rows = self.rows(step)  # here: the thread that reads must not touch the order that is kept
        return self._reader.submit(lambda: tuple(self._pinned(values) for values in self._read(rows)))

    def _pinned(self, values: Tensor) -> Tensor:
        return values.pin_memory() if self.device.type == "cuda" else values  # only then is sending asynchronous

    def images(self, count: int) -> Iterator[Tensor]:
        """Give batches of images alone, `count` images over all ranks together, for calibration."""
        count = min(count, len(self.split))
        for step, first in enumerate(range(0, count, self.batch_size)):
            share = len(range(self.rank, count - first, self.world))  # of what is left, this rank's rows
            if share:
                yield self.batch(step)[0][:share]

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            epoch = 0
        if self._shuffled[0] != epoch:
            order = torch.arange(len(self.split))
            if self.shuffle:
                order = keyed_order(self.seed, "order", epoch, order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]
