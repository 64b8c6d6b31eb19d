"""Mean average precision of detections, by pycocotools, and the evaluation of a detector at many subnets."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from slimnb.data.augment import Normalise
from slimnb.errors import DataError, ParameterError
from slimnb.papers.ds_net.detection.batches import plain_images
from slimnb.papers.ds_net.detection.detector import Detector
from slimnb.papers.ds_net.detection.scenes import Scenes, SceneSplit
from slimnb.subnet import Subnet

LARGEST = 1e10  # square pixels: the area of an object that pycocotools may count
BATCH = 100


def average_precision(found: Sequence[Mapping[str, Tensor]], split: SceneSplit, classes: int) -> dict:
    """Precision of what was `found` in each scene of `split`: boxes (n, 4), scores (n,), labels (n,). In percent.

    Keys: map (COCO's: mean over classes and over overlaps of .5 to .95), map_50 (overlap .5), map_voc (overlap .5,
    read at VOC 2007's eleven recalls), ap_50 (overlap .5, of each class; None without an object of it). What matches a
    difficult object counts neither way. Raises DataError without objects, ParameterError for another number of scenes.
    """
    if len(found) != len(split):
        raise ParameterError(f"detections of {len(found)} scenes", f"there are {len(split)}",
                             "Give one entry per scene.")
    if not ((split.labels >= 0) & ~split.difficult).any():
        raise DataError("0 objects to find", "precision needs one", "Pass scenes with objects.")
    with redirect_stdout(io.StringIO()):
        objects, detections = (_coco(rows, len(split), classes) for rows in (_objects(split), _detections(found)))
        evaluation = COCOeval(objects, detections, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, LARGEST]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # (overlaps, recalls, classes); -1 for classes without objects
    precision = precision[:, :, (precision >= 0).all((0, 1))]
    each = iter(precision[0].mean(0))
    present = set(split.labels[~split.difficult].tolist())
    return {"map": _percent(precision), "map_50": _percent(precision[0]), "map_voc": _percent(precision[0, ::10]),
            "ap_50": [_percent(next(each)) if label in present else None for label in range(classes)]}


def _percent(precision: np.ndarray) -> float:
    return round(100 * float(np.mean(precision)), 6)  # pycocotools has added an epsilon


def _coco(rows: list[dict], scenes: int, classes: int) -> COCO:
    made = COCO()
    made.dataset = {"images": [{"id": i} for i in range(scenes)], "categories": [{"id": k} for k in range(classes)],
                    "annotations": [row | {"id": number} for number, row in enumerate(rows, 1)]}
    made.createIndex()
    return made


def _row(scene: int, label: int, box: list[float]) -> dict:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return {"image_id": scene, "category_id": label, "bbox": [left, top, width, height], "area": width * height,
            "iscrowd": 0}


def _objects(split: SceneSplit) -> list[dict]:
    rows = []
    for scene, column in (split.labels >= 0).nonzero().tolist():
        row = _row(scene, int(split.labels[scene, column]), split.boxes[scene, column].tolist())
        # pycocotools ignores what is out of the range of areas, by its usual overlap; crowds have one of their own.
        rows.append(row | ({"area": 2 * LARGEST} if split.difficult[scene, column] else {}))
    return rows


def _detections(found: Sequence[Mapping[str, Tensor]]) -> list[dict]:
    return [_row(scene, label, box) | {"score": score} for scene, each in enumerate(found) for label, box, score in
            zip(each["labels"].tolist(), each["boxes"].tolist(), each["scores"].tolist(), strict=True)]


def evaluate_detector(net: Detector, routes: Sequence[Subnet], scenes: Scenes, batch_size: int = BATCH) -> list[dict]:
    """`average_precision` on the test scenes for each of `routes`, and how many scenes (n) they are.

    Raises NumericsError before any work if a subnet has no statistics or stale ones. The net's mode stays as it was.
    """
    for route in routes:
        if isinstance(route, Subnet):
            net.slot_of(route)
    device = next(net.parameters()).device
    normalise = Normalise(scenes.mean, scenes.std, next(net.parameters()).dtype, device)
    found: list[list[dict]] = [[] for _ in routes]
    was_training = net.training
    net.eval()
    try:
        for x in plain_images(scenes.test, len(scenes.test), batch_size, normalise, device):
            for route, mine in zip(routes, found, strict=True):
                mine += [{name: value.cpu() for name, value in each.items()} for each in net.detect(x, route)]
    finally:
        net.train(was_training)
    test = scenes.test.to("cpu")
    return [average_precision(mine, test, scenes.num_classes) | {"n": len(test)} for mine in found]
