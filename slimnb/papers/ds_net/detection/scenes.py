"""Detection sets: images with boxes. The generated one shows one to three objects of chapter 00."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimnb.data import synthetic
from slimnb.data.datasets import _moments
from slimnb.data.synthetic import CLASS_NAMES, COLOUR_CUE, CONTRAST, NOISE
from slimnb.errors import DataError, ParameterError
from slimnb.rng import keyed_bits
from slimnb.rules import Count, Pixels, Seed, Share, checked

UNIT = synthetic.SIZE / 2
"""Pixels per unit of length of the drawing functions."""

RADIUS = (0.11, 0.27)  # of an object, as a share of the scene's side
REACH = 1.2  # radii from an object's centre that its shape may extend to
PLACES = 6  # that are tried for an object; the one with most room is taken

_CHUNK = 100  # scenes drawn at a time: 5 MB of pixels at 64 a side, which stays in cache


@dataclass(frozen=True)
class SceneSplit:
    """Scenes of one side S and their objects, padded to M per scene.

    Images are (N, 3, S, S) uint8; boxes (N, M, 4) float32, left, top, right, bottom in pixels; labels (N, M) int64, -1
    where there is no object; difficult (N, M) bool: neither trained on nor counted in testing.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """The side of a scene, pixels."""
        return self.images.shape[-1]

    def map(self, change: Callable[[Tensor], Tensor]) -> SceneSplit:
        """Return the split with `change` applied to each of its tensors."""
        return SceneSplit(*map(change, (self.images, self.boxes, self.labels, self.difficult)))

    def to(self, device: torch.device | str) -> SceneSplit:
        """Return the split with its tensors on `device`."""
        return self.map(lambda values: values.to(device))


@dataclass(frozen=True)
class Scenes:
    """A detection set. `mean` and `std` are those of the training images, pixels in 0..1.

    `fingerprint` is the SHA-256 of all images, boxes and labels, and of the class names.
    """

    name: str
    class_names: tuple[str, ...]
    train: SceneSplit
    test: SceneSplit
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str

    def at_least(self, size: int) -> Scenes:
        """Return these scenes: a detector's recipe says itself how large they are."""
        return self

    @property
    def num_classes(self) -> int:
        """The number of classes, without the background."""
        return len(self.class_names)

    @property
    def side(self) -> int:
        """The side of a scene, pixels."""
        return self.train.side

    def to(self, device: torch.device | str) -> Scenes:
        """Return the set with its tensors on `device`."""
        return Scenes(self.name, self.class_names, self.train.to(device), self.test.to(device), self.mean, self.std,
                      self.fingerprint)

    def __repr__(self) -> str:
        return (f"{self.name}: {len(self.train):,} train, {len(self.test):,} test scenes of {self.side} x {self.side} "
                f"pixels, {self.num_classes} classes")


def assemble(name: str, class_names: tuple[str, ...], train: SceneSplit, test: SceneSplit) -> Scenes:
    """Make a set, checked and with its fingerprint, on the CPU. Raises DataError as `check` does."""
    content = hashlib.sha256(json.dumps(class_names).encode())
    for part, split in (("train", train), ("test", test)):
        check(split, len(class_names), f"{name} {part}")
        for values in (split.images, split.boxes, split.labels, split.difficult):
            content.update(values.contiguous().numpy())
    mean, std = _moments(train.images)
    return Scenes(name, tuple(class_names), train, test, mean, std, content.hexdigest())


def check_targets(y, count: int) -> None:
    """Raise DataError unless `y` has boxes (count, M, 4) floats and labels (count, M) whole numbers, M >= 1."""
    boxes, labels = (getattr(y, name, None) for name in ("boxes", "labels"))
    fits = isinstance(boxes, Tensor) and isinstance(labels, Tensor) and labels.dim() == 2 and labels.shape[1] > 0
    fits = fits and len(labels) == count and boxes.shape == (*labels.shape, 4) and boxes.is_floating_point()
    if not fits or labels.is_floating_point() or labels.dtype == torch.bool:
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value) for value in (boxes, labels)]
        raise DataError(f"boxes {shapes[0]} and labels {shapes[1]} of {count} images"[:100],
                        "boxes are floats (B, M, 4), labels whole numbers (B, M), -1 for none", "Pad to M >= 1 each.")


def check(split: SceneSplit, classes: int, where: str) -> None:
    """Raise DataError for a split without scenes, labels outside -1 to classes - 1, bad boxes, other shapes or types.

    A box must have an area and lie inside its image.
    """
    if not len(split):
        raise DataError(f"0 scenes in {where}", "a set has at least one", "Check its lists.")
    check_targets(split, len(split))
    shape, difficult = tuple(split.images.shape), split.difficult
    square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and split.images.dtype == torch.uint8
    if not square or difficult.dtype != torch.bool or difficult.shape != split.labels.shape:
        raise DataError(f"images {split.images.dtype} {shape}, difficult {difficult.dtype} {tuple(difficult.shape)}",
                        "images are (N, 3, S, S) uint8, difficult is (N, M) bool", "Convert them.")
    wrong = ((split.labels < -1) | (split.labels >= classes)).nonzero().tolist()
    if wrong:
        row, column = wrong[0]
        raise DataError(f"label {split.labels[row, column]} in scene {row} of {where}",
                        f"labels are 0 to {classes - 1}, and -1 for none", "Mend the labels.")
    low, high = split.boxes[..., :2], split.boxes[..., 2:]
    good = ((low >= 0) & (high <= split.side) & (low < high)).all(2) | (split.labels < 0)
    if not good.all():
        row, column = (~good).nonzero()[0].tolist()
        box = ", ".join(f"{value:g}" for value in split.boxes[row, column].tolist())
        raise DataError(f"box ({box}) in scene {row} of {where}",
                        f"left < right and top < bottom, all within 0 to {split.side}", "Mend the box.")


# -- generated scenes ------------------------------------------------------------------------------------


@checked
def generated(train: Count = 600, test: Count = 200, side: Pixels = 64, seed: Seed = 0, hardest: Share = 0.5) -> Scenes:
    """Generate a set of textured shapes in ten classes; no scene exceeds the difficulty `hardest`.

    800 scenes of 64 pixels take a second. Raises ParameterError for numbers out of range.
    """
    if min(train, test) < 1 or side < 32 or side % 2 or not 0 <= hardest <= 1:
        raise ParameterError(f"train = {train}, test = {test}, side = {side}, hardest = {hardest}",
                             "at least one scene each, of an even side from 32 on, difficulty in [0, 1]",
                             "Set e.g. 600, 200, 64 and 0.5.")
    parts = {"train": train, "test": test}
    splits = (_all(count, seed, part, side, hardest) for part, count in parts.items())
    return assemble("generated scenes", CLASS_NAMES, *splits)


def _all(count: int, seed: int, part: str, side: int, hardest: float) -> SceneSplit:
    chunks = [render(chunk, seed, part, side, hardest) for chunk in torch.arange(count).split(_CHUNK)]
    images, boxes, labels = (torch.cat(values) for values in zip(*chunks, strict=True))
    return SceneSplit(images, boxes, labels, torch.zeros_like(labels, dtype=torch.bool))


def render(index: Tensor, seed: int = 0, part: str = "train", side: int = 64, hardest: float = 0.5,
           most: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the scenes number `index` (n,) of the endless sequence (seed, part).

    Images, boxes and labels are as in `SceneSplit`. A scene has one to `most` objects, whose circles do not overlap; an
    object that finds no room is left out. A box is that of the pixels of which its object covers half or more. All
    operations are correctly rounded, as in `slimnb.data.synthetic`, so the pixels are the same on all machines.
    """
    index = torch.as_tensor(index, dtype=torch.int64)
    draw = synthetic._Draws(seed, f"scene {part}", index)
    hard = np.float32(hardest) * draw("difficulty")
    background, images = _background(draw, side)
    counts = 1 + draw.choice("objects", most)
    boxes = np.zeros((len(index), most, 4), dtype=np.float32)
    labels = np.full((len(index), most), -1, dtype=np.int64)
    x, y, radius = (np.zeros((len(index), 0), dtype=np.float32) for _ in range(3))
    for k in range(most):
        placed, room = _place(draw, k, side, x, y, radius)
        kept = np.flatnonzero((k < counts) & (room > 0))
        x, y, radius = (np.column_stack(pair) for pair in zip((x, y, radius), placed, strict=True))
        absent = np.setdiff1d(np.arange(len(index)), kept)
        radius[absent, k] = -side / UNIT  # takes no room from those after it
        label = draw.choice(f"class {k}", len(CLASS_NAMES))[kept]
        draws = synthetic._Draws(seed, f"scene {part}", index[kept])
        pieces = images[kept]
        coverage = _add_object(pieces, draws, k, label, x[kept, k], y[kept, k], radius[kept, k], hard[kept],
                               background[kept])
        images[kept], labels[kept, k], boxes[kept, k] = pieces, label, boxes_of(coverage >= 0.5)
    _add_noise(images, seed, part, index, hard)
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(boxes), torch.from_numpy(labels)


def boxes_of(mask: np.ndarray) -> np.ndarray:
    """Return the tight boxes (n, 4) float32 of masks (n, H, W), none of them empty."""
    across, down = mask.any(1), mask.any(2)
    low = [line.argmax(1) for line in (across, down)]
    high = [line.shape[1] - line[:, ::-1].argmax(1) for line in (across, down)]
    return np.stack([*low, *high], axis=1).astype(np.float32)


def _grid(side: int) -> np.ndarray:
    return ((np.arange(side) + 0.5) / UNIT).astype(np.float32)


def _background(draw, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A colour (n, 3) and the images (n, 3, S, S) that shade it from side to side."""
    colour = 0.25 + 0.5 * draw.colour("background")
    grid = _grid(side) * np.float32(2 * UNIT / side) - 1
    shade = (synthetic._map(draw("shade x", -0.15, 0.15)) * grid
             + synthetic._map(draw("shade y", -0.15, 0.15)) * grid[:, None])
    return colour, colour[:, :, None, None] + shade[:, None]


def _place(draw, k: int, side: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray):
    """Centre and radius of object k, each (n,), and its room (n,): to the nearest earlier circle of (n, k)."""
    length = side / UNIT
    own = draw(f"radius {k}", RADIUS[0] * length, RADIUS[1] * length)
    margin = np.float32(REACH) * own
    tries = [(margin + (length - 2 * margin) * draw(f"x {k} {i}"), margin + (length - 2 * margin) * draw(f"y {k} {i}"))
             for i in range(PLACES if k else 1)]
    rooms = []
    for across, down in tries:
        apart = np.sqrt((x - across[:, None]) ** 2 + (y - down[:, None]) ** 2) - radius - own[:, None]
        rooms.append(apart.min(1, initial=length))
    best = np.argmax(rooms, axis=0)
    rows = np.arange(len(best))
    across, down = (np.stack(values)[best, rows] for values in zip(*tries, strict=True))
    return (across, down, own), np.stack(rooms)[best, rows]


def _add_object(images: np.ndarray, draw, k: int, label: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray,
                hard: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Paint an object into each image, coloured as `slimnb.data.synthetic` does; returns its coverage (n, S, S)."""
    grid = _grid(images.shape[-1])
    coverage, texture = synthetic._piece(draw, f"object {k}", label, grid - synthetic._map(x),
                                         grid[:, None] - synthetic._map(y), radius, 0.25, (2.4, 3.4))
    own = (label / len(CLASS_NAMES)).astype(np.float32) + draw(f"hue jitter {k}", -0.03, 0.03)
    cue = COLOUR_CUE[0] + (COLOUR_CUE[1] - COLOUR_CUE[0]) * hard
    hue = np.where(draw(f"cue {k}") < cue, own, draw(f"hue {k}"))
    contrast = (CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * hard)[:, None]
    dark, light = 0.55 * synthetic._hues(hue), 0.45 + 0.55 * synthetic._hues(hue)
    middle = background + contrast * ((light + dark) / 2 - background)
    swing = contrast * (light - dark) / 2
    synthetic._paint(images, coverage, middle[:, :, None, None] + swing[:, :, None, None] * texture[:, None])
    return coverage


def _add_noise(images: np.ndarray, seed: int, part: str, index: Tensor, hard: np.ndarray) -> None:
    side = images.shape[-1]
    words = 3 * side * side * 2 // 8  # two random bytes a pixel and channel
    bits = keyed_bits(seed, f"scene {part}/noise", 0, index[:, None] * words + torch.arange(words))
    pair = bits.numpy().view(np.uint8).reshape(len(images), 2, 3, side, side)
    noise = pair[:, 0].astype(np.float32) + pair[:, 1] - 255  # two bytes' sum: standard deviation 104.5
    images += noise * (NOISE[0] + (NOISE[1] - NOISE[0]) * hard)[:, None, None, None] / 104.5
