"""PASCAL VOC as a detection set: 2007 and 2012 trainval to train on, 2007 test to test on, by torchvision."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCDetection

from slimnb.data.sources import FORMATS, shown
from slimnb.errors import DataError, ParameterError
from slimnb.papers.ds_net.detection.scenes import Scenes, SceneSplit, assemble
from slimnb.runs.files import data_folder

CLASS_NAMES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
TRAIN = (("2007", "trainval"), ("2012", "trainval"))
TEST = (("2007", "test"),)


def load_voc(root: str | os.PathLike | None = None, side: int = 300, download: bool = False) -> Scenes:
    """Load VOC in images of `side` x `side` pixels, squeezed as SSD does it, which leaves overlaps as they are.

    `root` (else $SLIMNB_DATA, else data in the repository) holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012; `download`
    fetches what is missing (3 GB). It takes 6 GB of memory at 300 pixels. Raises DataError if a folder or list is
    missing, an image or annotation cannot be read, a class is unknown or a box lies outside its image; ParameterError
    for a bad side.
    """
    if side < 32:
        raise ParameterError(f"side = {side}", "scenes have 32 pixels a side or more", "Set side=300.")
    root = data_folder() if root is None else Path(os.path.expanduser(root))
    train, test = (_split([_opened(root, *part, download) for part in parts], side) for parts in (TRAIN, TEST))
    return assemble(f"VOC, {side} pixels", CLASS_NAMES, train, test)


def _opened(root: Path, year: str, part: str, download: bool) -> VOCDetection:
    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        return VOCDetection(root, year, part, download=download)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:60] if download else "it is not there"
        raise DataError(f"VOC{year} {part} in {shown(root)}/VOCdevkit", reason,
                        "Unpack it there, or pass download=True.") from error


def _split(sets: list[VOCDetection], side: int) -> SceneSplit:
    places = [(part, row) for part in sets for row in range(len(part))]
    images = np.empty((len(places), 3, side, side), dtype=np.uint8)

    def read(place: int) -> list[tuple]:
        part, row = places[place]
        name = os.path.basename(part.images[row])
        try:
            Image.open(part.images[row], formats=FORMATS).close()  # torchvision would try every reader of Pillow
            image, annotation = part[row]
            pixels = image.resize((side, side), Image.Resampling.BILINEAR)
            images[place] = np.asarray(pixels).transpose(2, 0, 1)
            objects = annotation["annotation"].get("object", [])
            objects = [(entry["name"], [float(entry["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")],
                        entry.get("difficult") == "1") for entry in objects]
        except Exception as error:  # readers of images and XML raise many kinds, and each means the same here
            reason = " ".join(str(error).split())[:60]
            raise DataError(name, f"not a readable image with its annotation ({reason})",
                            "Fetch the set again.") from error
        return [(_label(kind, name), _scaled(box, image.size, side, name), hard) for kind, box, hard in objects]

    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(read, range(len(places))))
    return _padded(torch.from_numpy(images), rows)


def _label(kind: str, name: str) -> int:
    if kind not in CLASS_NAMES:
        raise DataError(f"class {kind[:40]!r} in {name}", "VOC has twenty others", "Mend its annotation.")
    return CLASS_NAMES.index(kind)


def _scaled(box: list[float], size: tuple[int, int], side: int, name: str) -> list[float]:
    """A box of pixels numbered from 1, both ends included, as edges in a scene of `side` pixels."""
    (width, height), (left, top, right, bottom) = size, box
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height and max(right - left, bottom - top) > 0):
        raise DataError(f"box ({left:g}, {top:g}, {right:g}, {bottom:g}) in {name}",
                        f"its image has {width} x {height} pixels", "Mend its annotation.")
    edges = (max(left - 1, 0) / width, max(top - 1, 0) / height, right / width, bottom / height)
    return [edge * side for edge in edges]


def _padded(images: Tensor, rows: list[list[tuple]]) -> SceneSplit:
    most = max((len(row) for row in rows), default=0) or 1
    boxes, labels = torch.zeros(len(rows), most, 4), torch.full((len(rows), most), -1)
    difficult = torch.zeros(len(rows), most, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, (label, box, hard) in enumerate(row):
            labels[i, j], boxes[i, j], difficult[i, j] = label, torch.tensor(box), hard
    return SceneSplit(images, boxes, labels, difficult)
