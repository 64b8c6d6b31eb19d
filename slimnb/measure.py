"""What is measured on every trained net and stored with its run: accuracy and cost of each subnet."""

from __future__ import annotations

import numpy as np

from slimnb.batches import Batches, Split
from slimnb.calibrate import Evaluation, calibrate_bn, evaluate
from slimnb.cost import count_macs, count_params
from slimnb.data import ImageData
from slimnb.distributed import rank_of, world_of
from slimnb.layers import CALIBRATED
from slimnb.nets.base import SlimmableNet
from slimnb.subnet import Subnet

EVALUATION_BATCH = 500
TERCILES = ("easy", "medium", "hard")


def plain_batches(data: ImageData, split: Split, size: int, device: str, group=None) -> Batches:
    """One pass over a split in float32, without shuffling or augmentation: for calibration and evaluation."""
    rank, world = rank_of(group), world_of(group)
    return Batches(split, EVALUATION_BATCH, augment="none", mean=data.mean, std=data.std, size=size, device=device,
                   rank=rank, world=world)


def measure(net: SlimmableNet, data: ImageData, subnets: list[Subnet], *, images: int, calibrate: bool = False,
            device: str = "cpu", group=None) -> list[dict]:
    """A row for each of `subnets` of a trained net, calibrated on `images` images if it must be or `calibrate` says so.

    Validation comes first, then the test split, opened here and once. Rows: macs, params, top1 (test, percent),
    top1_val, ce (nats), n, and where the data know difficulty top1_easy, top1_medium, top1_hard: the thirds of the
    test images. With a process `group` all but these thirds are of all ranks.
    """
    size = net.input_size
    if calibrate or net.bn == CALIBRATED:
        calibrate_bn(net, subnets, plain_batches(data, data.train, size, device, group).images(images), group)
    on_val = evaluate(net, subnets, plain_batches(data, data.val, size, device, group), group)
    test = data.test
    on_test = evaluate(net, subnets, plain_batches(data, test, size, device, group), group)
    return [{"macs": count_macs(net, tested.subnet), "params": count_params(net, [tested.subnet]),
             "top1": tested.top1, "top1_val": validated.top1, "ce": tested.ce, "n": tested.n,
             **_by_difficulty(tested, test)}
            for tested, validated in zip(on_test, on_val, strict=True)]


def _by_difficulty(found: Evaluation, split: Split) -> dict[str, float]:
    if split.difficulty is None or len(found.correct) < len(split):  # another rank has the rest
        return {}
    order = np.argsort(split.difficulty.cpu().numpy(), kind="stable")
    parts = zip(TERCILES, np.array_split(order, len(TERCILES)), strict=True)
    return {f"top1_{name}": 100 * float(found.correct.numpy()[part].mean()) for name, part in parts}
