"""What is measured on a trained net and stored with its run: accuracy and cost of each width, and looks inside."""

from __future__ import annotations  # noqa: I001

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from slimnb.calibrate import Evaluation, calibrate_bn, evaluate
from slimnb.cost import count_macs, count_params
from slimnb.batches import Batches, Split
from slimnb.data import ImageData
from slimnb.distributed import rank_of, world_of
from slimnb.layers import CALIBRATED
from slimnb.nets.base import SlimmableNet
from slimnb.subnet import Subnet

EVALUATION_BATCH = 500
TERCILES = ("easy", "medium", "hard")
CALIBRATION_IMAGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


Images = Callable[[int], Iterable[Tensor]]
"""Gives batches of the first n training images, normalised."""


def calibration(net: SlimmableNet, named: dict[float, Subnet], first: Images, val: list) -> list[dict]:
    """Validation accuracy of each width against the number of images its statistics were taken from.

    `named` maps multipliers to subnets. Rows: mult, images, top1 (percent).
    """
    subnets, rows = list(named.values()), []
    for images in CALIBRATION_IMAGES:
        if calibrate_bn(net, subnets, first(images)) < images:
            break  # there are no more
        rows += [{"mult": mult, "images": images, "top1": found.top1}
                 for mult, found in zip(named, evaluate(net, subnets, val), strict=True)]
    return rows


def statistics(net: SlimmableNet, named: dict[float, Subnet], first: Images, val: list) -> list[dict]:
    """Running mean and variance of the same channels at each width, in the middle batch-norm layer.

    The channels are those that the narrowest subnet has. Rows: mult, channel, mean, var.
    """
    norms = net.norms()
    norm = norms[len(norms) // 2]
    kept = min(subnet.widths[norm.unit] for subnet in named.values())
    return [{"mult": mult, "channel": c, "mean": norm.running_mean[net.slots[subnet], c].item(),
             "var": norm.running_var[net.slots[subnet], c].item()}
            for mult, subnet in named.items() for c in range(kept)]


def borrowed(net: SlimmableNet, named: dict[float, Subnet], first: Images, val: list) -> list[dict]:
    """Validation accuracy of each width with the statistics of each width: the diagonal is its own.

    Rows: mult, statistics_mult, top1 (percent).
    """
    rows = []
    own = dict(net.slots)
    for giver_mult, giver in named.items():
        net.slots = {subnet: own[giver] for subnet in named.values()}  # noqa: C420
        rows += [{"mult": mult, "statistics_mult": giver_mult, "top1": found.top1}
                 for mult, found in zip(named, evaluate(net, list(named.values()), val), strict=True)]
    net.slots = own
    return rows


PROBES = {"statistics": statistics, "borrowed": borrowed, "calibration": calibration}
"""By name; those that leave other statistics behind come last."""


def plain_batches(data: ImageData, split: Split, size: int, device: str, group=None) -> Batches:
    """One pass over a split in float32, without shuffling or augmentation: for calibration and evaluation."""
    rank, world = rank_of(group), world_of(group)
    return Batches(split, EVALUATION_BATCH, augment="none", mean=data.mean, std=data.std, size=size, device=device,
                   rank=rank, world=world)


def measure(net: SlimmableNet, data: ImageData, mults: Sequence[float], *, images: int, names: Sequence[str] = (),
            probe_mults: Sequence[float] = (), device: str = "cpu",
            group=None) -> tuple[list[dict], dict[str, list[dict]]]:
    """(rows, probes) of a trained net at the uniform widths `mults`; calibrated on `images` images where it must be.

    Validation comes first, then the probes `names` at `probe_mults`, then the test split, opened here and once.
    Rows: mult, macs, params, top1 (test, percent), top1_val, ce (nats), n, and where the data know difficulty
    top1_easy, top1_medium, top1_hard: the thirds of the test images. With a process `group` all but these thirds
    are of all ranks.
    """
    named = {mult: net.uniform(mult) for mult in mults}
    subnets, size = list(named.values()), net.input_size
    first = plain_batches(data, data.train, size, device, group).images

    def evaluated(split: Split) -> list[Evaluation]:
        if net.bn == CALIBRATED:
            calibrate_bn(net, subnets, first(images), group)
        return evaluate(net, subnets, plain_batches(data, split, size, device, group), group)

    on_val = evaluated(data.val)
    val = list(plain_batches(data, data.val, size, device))
    seen = {mult: named[mult] for mult in probe_mults}
    taken = {name: probe(net, seen, first, val) for name, probe in PROBES.items() if name in names}
    test = data.test
    rows = [{"mult": mult, "macs": count_macs(net, tested.subnet), "params": count_params(net, [tested.subnet]),
             "top1": tested.top1, "top1_val": validated.top1, "ce": tested.ce, "n": tested.n,
             **_by_difficulty(tested, test)}
            for mult, tested, validated in zip(named, evaluated(test), on_val, strict=True)]
    return rows, taken


def _by_difficulty(found: Evaluation, split: Split) -> dict[str, float]:
    if split.difficulty is None or len(found.correct) < len(split):  # another rank has the rest
        return {}
    order = np.argsort(split.difficulty.cpu().numpy(), kind="stable")
    parts = zip(TERCILES, np.array_split(order, len(TERCILES)), strict=True)
    return {f"top1_{name}": 100 * float(found.correct.numpy()[part].mean()) for name, part in parts}
