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


def average_precision(detections: Sequence[Mapping[str, Tensor]], split: SceneSplit, classes: int) -> dict:
    """Measure the precision of the `detections` in each scene of `split`, in percent.

    Detections have boxes (n, 4), scores (n,), labels (n,). Keys: map (COCO's: mean over classes and over overlaps of .5
    to .95), map_50 (overlap .5), map_voc (overlap .5, read at VOC 2007's eleven recalls), ap_50 (overlap .5, of each
    class; None without an object of it). A match with a difficult object counts neither way. Raises DataError without
    objects and for detections of another shape or class, ParameterError for another number of scenes.
    """
    if len(detections) != len(split):
        raise ParameterError(f"detections of {len(detections)} scenes", f"there are {len(split)}",
                             "Give one entry per scene.")
    if not ((split.labels >= 0) & ~split.difficult).any():
        raise DataError("0 objects to find", "precision needs one", "Pass scenes with objects.")
    for scene, detection in enumerate(detections):
        boxes, scores, labels = (detection[name] for name in ("boxes", "scores", "labels"))
        shaped = boxes.shape == (len(labels), 4) and scores.shape == labels.shape == (len(labels),)
        if not shaped or ((labels < 0) | (labels >= classes)).any():
            raise DataError(f"detections of scene {scene}",
                            f"boxes are (n, 4), scores (n,), labels (n,) of 0 to {classes - 1}",
                            "Pass what Detector.detect returns.")
    with redirect_stdout(io.StringIO()):
        objects, detections = (_coco(rows, len(split), classes) for rows in (_objects(split), _detections(detections)))
        evaluation = COCOeval(objects, detections, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, LARGEST]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # (overlaps, recalls, classes); -1 for classes without objects
    precision = precision[:, :, (precision >= 0).all((0, 1))]
    values = iter(precision[0].mean(0))
    present = set(split.labels[~split.difficult].tolist())
    return {"map": _percent(precision), "map_50": _percent(precision[0]), "map_voc": _percent(precision[0, ::10]),
            "ap_50": [_percent(next(values)) if label in present else None for label in range(classes)]}


def _percent(precision: np.ndarray) -> float:
    return round(100 * float(np.mean(precision)), 6)  # pycocotools has added an epsilon


def _coco(rows: list[dict], scenes: int, classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {"images": [{"id": i} for i in range(scenes)], "categories": [{"id": k} for k in range(classes)],
                    "annotations": [row | {"id": number} for number, row in enumerate(rows, 1)]}
    coco.createIndex()
    return coco


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


def _detections(detections: Sequence[Mapping[str, Tensor]]) -> list[dict]:
    return [_row(scene, label, box) | {"score": score} for scene, detection in enumerate(detections)
            for label, box, score in
            zip(detection["labels"].tolist(), detection["boxes"].tolist(), detection["scores"].tolist(), strict=True)]


def evaluate_detector(net: Detector, routes: Sequence[Subnet], scenes: Scenes, batch_size: int = BATCH) -> list[dict]:
    """Return `average_precision` on the test scenes for each of `routes`, and the number of scenes (n).

    The net's mode stays as it was. Raises NumericsError, before any work, for a subnet whose statistics are missing or
    stale.
    """
    for route in routes:
        if isinstance(route, Subnet):
            net.slot_of(route)
    device = next(net.parameters()).device
    normalise = Normalise(scenes.mean, scenes.std, next(net.parameters()).dtype, device)
    detections: list[list[dict]] = [[] for _ in routes]
    was_training = net.training
    net.eval()
    try:
        for x in plain_images(scenes.test, len(scenes.test), batch_size, normalise, device):
            for route, of_route in zip(routes, detections, strict=True):
                of_route += [{name: value.cpu() for name, value in detection.items()}
                     for detection in net.detect(x, route)]
    finally:
        net.train(was_training)
    test = scenes.test.to("cpu")
    return [average_precision(of_route, test, scenes.num_classes) | {"n": len(test)} for of_route in detections]
