"""Data sets: what they hold, where val and test come from, and what identifies them."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from slimnb.data import synthetic
from slimnb.data.batches import AUGMENTATIONS, Augmentation, Batches, Split, check_split
from slimnb.data.cache import Part, load_cached
from slimnb.data.sources import CIFAR, CIFAR_TRAIN, Source, find_cifar, find_folder, shown
from slimnb.errors import DataError, MissingDataError, ParameterError, SlimnbError
from slimnb.rng import keyed_uniform
from slimnb.rules import Count, Pixels, Portion, Seed, checked
from slimnb.runs.files import data_folder

PUBLISHED = {"cifar100": (100, 32, "f8793db4136b2ae0b2b8399381f021042c233246470a20132b28861109b6f922")}
"""Classes, side in pixels and fingerprint (at the default val_fraction) of whole copies of the public sets."""

__all__ = ["AUGMENTATIONS", "Absent", "Augmentation", "Batches", "ImageData", "Split", "keyed_uniform", "load_data",
           "load_or_absent"]

MOMENT_IMAGES = 50_000  # mean and standard deviation are taken over at most so many train images
DEVICE_SHARE = 0.5  # of a device's free memory may hold images; larger sets stay on the host


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set: its train and val splits, and a test split that counts how often it is opened.

    `mean` and `std` are three floats each, of pixels in 0..1 over the train images. `fingerprint` is the SHA-256 of all
    pixels and labels and of where val was cut off. `notes` says what a reader should know.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    unopened: Split  # the test split: go through `test`, which counts
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    notes: tuple[str, ...] = ()
    opens: Counter

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def size(self) -> int:
        """The side of an image, pixels."""
        return self.train.images.shape[-1]

    @property
    def test(self) -> Split:
        """The test split. Each access counts as one opening, so keep the value."""
        self.opens["test"] += 1
        return self.unopened.to(self.train.images.device)

    @property
    def test_opened(self) -> int:
        """The number of times that `test` was opened, here and in every copy that `to` made."""
        return self.opens["test"]

    def to(self, device: torch.device | str) -> ImageData:
        """Return the data set with train and val on `device`; test follows when it is opened.

        Images that would fill more than half of the device's free memory stay where they are: `Batches` sends them.
        """
        count = sum(split.images.nbytes for split in (self.train, self.val, self.unopened))
        if count > DEVICE_SHARE * _free_bytes(device):
            return self
        return replace(self, train=self.train.to(device), val=self.val.to(device))

    def at_least(self, size: int) -> ImageData:
        """Return these data, enlarged if their images are smaller than `size` pixels a side."""
        return self if size <= self.size else self.enlarged(size)

    def enlarged(self, size: int) -> ImageData:
        """Return the data set with val and test images of `size` pixels: the middle 7/8 of each, resized bilinearly.

        Nets laid out for 224 pixels are evaluated on these. Train stays as it is, since training draws its own crops.
        """
        return replace(self, val=_enlarged(self.val, size), unopened=_enlarged(self.unopened, size))

    def __repr__(self) -> str:
        counts = f"{len(self.train):,} train, {len(self.val):,} val, {len(self.unopened):,} test images"
        about = f"{self.name}: {counts} of {self.size} x {self.size} pixels, {self.num_classes} classes"
        return "; ".join((about, *self.notes))


def _free_bytes(device: torch.device | str) -> float:
    return torch.cuda.mem_get_info(device)[0] if torch.device(device).type == "cuda" else math.inf


def _enlarged(split: Split, size: int) -> Split:
    whole, edge = round(size * 8 / 7), round(size / 14)
    parts = [interpolate(part.float(), (whole, whole), mode="bilinear").round().to(torch.uint8)
             [..., edge:edge + size, edge:edge + size] for part in split.images.split(500)]
    return replace(split, images=torch.cat(parts))


@dataclass(frozen=True)
class Absent:
    """A public data set that is not on this machine: it serves to find finished runs on it, and has no images."""

    name: str
    num_classes: int
    size: int
    fingerprint: str
    error: SlimnbError  # raised when its images are asked for
    test_opened: ClassVar[int] = 0

    def __getattr__(self, name: str):
        if name in ("train", "val", "test", "mean", "std"):
            raise self.error
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"{self.name}: not on this machine; only finished runs can be shown"


@checked
def load_or_absent(name: str | os.PathLike = "synthetic", root: str | os.PathLike | None = None,
                   device: torch.device | str = "cpu",
                   cache: str | os.PathLike = "data/cache",
                   like: tuple[int, int, str] | None = None) -> ImageData | Absent:
    """Return `load_data`, or for a public set that is not there an `Absent` that finds the finished runs on it.

    `like` holds the classes, side and fingerprint of the copy those runs used, if it is not the whole published one.
    """
    try:
        return load_data(name, root, device, cache=cache)
    except MissingDataError as error:
        like = like or PUBLISHED.get(os.fspath(name))
        if like is None:
            raise
        return Absent(os.fspath(name), *like, error)


@checked
def load_data(name: str | os.PathLike = "synthetic", root: str | os.PathLike | None = None,
              device: torch.device | str = "cpu", val_fraction: Portion = 0.1,
              cache: str | os.PathLike = "data/cache", **options) -> ImageData:
    """Load the data set `name`: "synthetic", "cifar10", "cifar100", or a folder with train/ and val/ or test/.

    `root` (else $SLIMNB_DATA, else data in the repository) holds cifar10/ and cifar100/, as Parquet in the Hugging Face
    layout or as torchvision keeps them. Decoded images are kept in `cache`. `val_fraction` of train becomes val, the
    same rows everywhere. A folder with both val/ and test/ keeps its own val; without test/ its val/ is the test split.
    A set too large for the device stays on the host, see `ImageData.to`.

    Options are `train`, `test` (numbers of images) and `seed` for synthetic; `download` (False) for CIFAR; for folders
    `size` (256: the short side in pixels, the middle of which is cut to what a net reads) and `allow_overlap` (False).
    A relative $SLIMNB_DATA counts from the repository; ~ is the user's home. Raises DataError if images are missing,
    damaged or in two splits, ParameterError, ResourceError.
    """
    if not 0 < val_fraction < 1:
        raise ParameterError(f"val_fraction = {val_fraction}", "it is between 0 and 1", "Set e.g. 0.1.")
    name = os.path.expanduser(name)
    root = data_folder() if root is None else Path(os.path.expanduser(root))
    folder = next((path for path in (Path(name), root / name) if os.path.isdir(path / "train")), None)
    if name == "synthetic":
        data = _with(_synthetic, options, val_fraction)
    elif name in CIFAR:
        data = _with(_cifar, options, name, root, val_fraction, Path(cache))
    elif folder is not None or os.sep in name:
        data = _with(_folder, options, folder or Path(name), val_fraction, Path(cache))
    else:
        known = ("synthetic", *CIFAR)
        close = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Or make {shown(root / name[:20])}/train."
        rule = f"known are {', '.join(known)} and folders of images"
        raise ParameterError(f"data = {repr(name)[:60]}", rule, hint)
    return data.to(device)


def _with(load, options: dict, *arguments) -> ImageData:
    allowed = list(inspect.signature(load).parameters)[len(arguments) :]
    for option in options:
        if option not in allowed:
            rule = f"options here are {', '.join(allowed)}"
            raise ParameterError(f"load_data(..., {option}=...)", rule, "Mend the name.")
    return load(*arguments, **options)


# -------------------------------------------------------------------------------------------- the three kinds


@checked
def _synthetic(val_fraction: float, train: Count = 6_000, test: Count = 1_200, seed: Seed = 0) -> ImageData:
    if min(train, test) < 10:
        what = f"synthetic train = {train}, test = {test}"
        raise ParameterError(what, "at least 10 images each", "Raise it.")
    whole = Split(*synthetic.generate(train, seed, "train"))
    unopened = Split(*synthetic.generate(test, seed, "test"))
    content = hashlib.sha256()
    for split in (whole, unopened):
        for values in (split.images, split.labels, split.difficulty):
            content.update(values.numpy())
    return _assemble("synthetic", synthetic.CLASS_NAMES, whole, unopened, _share(train, val_fraction),
                     content.hexdigest())


def _cifar(name: str, root: Path, val_fraction: float, cache: Path, download: bool = False) -> ImageData:
    source = find_cifar(name, root, download)
    parts = load_cached(source, cache)
    train, notes = parts["train"], list(source.notes)
    if len(train.labels) != CIFAR_TRAIN:
        notes.append(f"{len(train.labels):,} of the {CIFAR_TRAIN:,} published train images were found")
    cut = _share(len(train.labels), val_fraction)
    while cut < len(train.labels) - 1 and train.digests[cut] == train.digests[cut - 1]:
        cut += 1  # rows are sorted by content: equal images stay on one side
    return _from_parts(source, train, None, parts["test"], cut, notes, allow_overlap=False)


@checked
def _folder(root: Path, val_fraction: float, cache: Path, size: Pixels = 256,
            allow_overlap: bool = False) -> ImageData:
    source = find_folder(root, size)
    parts = load_cached(source, cache)
    train, val, test = (parts.get(part) for part in ("train", "val", "test"))
    if val is not None and test is not None:
        return _from_parts(source, train, val, test, 0, list(source.notes), allow_overlap)
    cut = _share(len(train.labels), val_fraction)
    return _from_parts(source, train, None, test or val, cut, list(source.notes), allow_overlap)


def _share(count: int, fraction: float) -> int:
    if count < 2:
        raise DataError(f"{count} train images", "one goes to val and one stays", "Add images, or a val/ beside test/.")
    return min(max(1, round(count * fraction)), count - 1)


def _from_parts(source: Source, train: Part, val: Part | None, test: Part, cut: int, notes: list[str],
                allow_overlap: bool) -> ImageData:
    """Put decoded parts together; val is its own part, or the first `cut` rows of train."""
    kept, held = train.digests[cut:], train.digests[:cut] if val is None else val.digests
    notes += _overlap(source, "train and val", held, kept, allow_overlap)
    # The published CIFARs have a few test images among their train images: said, and left as published.
    for pair, others in (("train and test", kept), ("val and test", held)):
        notes += _overlap(source, pair, test.digests, others, allow_overlap or source.published)
    shas = [part.sha256 for part in (train, val, test) if part is not None]
    content = hashlib.sha256("".join(shas).encode()).hexdigest()
    whole, unopened = Split(train.images, train.labels), Split(test.images, test.labels)
    own = None if val is None else Split(val.images, val.labels)
    return _assemble(source.name, source.class_names, whole, unopened, cut, content, own, notes)


def _overlap(source: Source, pair: str, first: np.ndarray, second: np.ndarray, allowed: bool) -> list[str]:
    count = int(np.isin(first, second).sum())
    if count and not allowed:
        raise DataError(f"{count} images are in both {pair} of {source.name}",
                        "no image may be in two splits", "Remove them, or pass allow_overlap=True.")
    return [f"{count} images are in both {pair}"] if count else []


def _assemble(name: str, class_names: Sequence[str], whole: Split, unopened: Split, cut: int, content: str,
              val: Split | None = None, notes: Sequence[str] = ()) -> ImageData:
    whole, unopened = check_split(whole, len(class_names)), check_split(unopened, len(class_names))
    val = None if val is None else check_split(val, len(class_names))
    train = whole.map(lambda values: values[cut:])
    mean, std = _moments(train.images[:MOMENT_IMAGES])
    identity = json.dumps([content, cut, list(class_names)])
    return ImageData(name=name, class_names=tuple(class_names), train=train, val=val or whole.head(cut),
                     unopened=unopened, mean=mean, std=std, notes=tuple(notes), opens=Counter(test=0),
                     fingerprint=hashlib.sha256(identity.encode()).hexdigest())


def _moments(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, pixels in 0..1, from exact counts; four decimals."""
    values = np.arange(256) / 255
    sums = []
    for channel in range(3):
        counts = sum(np.bincount(part[:, channel].reshape(-1).numpy(), minlength=256) for part in images.split(1000))
        mean = float(counts @ values / counts.sum())
        sums.append((round(mean, 4), round(float(counts @ (values - mean) ** 2 / counts.sum()) ** 0.5, 4)))
    mean, std = zip(*sums, strict=True)
    return mean, tuple(max(s, 1e-4) for s in std)
