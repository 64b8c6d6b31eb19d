"""Batch-norm calibration and evaluation, each of many subnets in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from slimnb.data.batches import class_numbers
from slimnb.errors import DataError, NumericsError
from slimnb.nets.base import SlimmableNet
from slimnb.nn.norm import SwitchableBatchNorm2d
from slimnb.rules import checked
from slimnb.subnet import Subnet

PIXELS = 16
"""Images without a negative value and with one above this are pixels of 0..255: normalised ones have a mean near 0."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate` for one subnet."""

    subnet: Subnet
    n: int  # images
    top1: float  # percent
    ce: float  # mean cross-entropy, nats
    correct: Tensor  # (n,) bool, in the order of the images; with several ranks this rank's images only


@torch.no_grad()
@checked
def calibrate_bn(net: SlimmableNet, subnets: Sequence, batches: Iterable[Tensor], group=None) -> int:
    """Set the batch-norm statistics of `subnets` to their mean over `batches`; return the number of images.

    A batch is (B, 3, H, W), normalised as for training. It counts by its images, so that a short last batch weighs
    less: mean and unbiased variance are averaged cumulatively with momentum B_t / sum B (US-Net, section 3.3). Every
    subnet runs on a batch before the next one is read. Weights and training mode stay as they are.

    With a process `group` the result is that of one process with the batches of all ranks; ranks may have different
    numbers of them. Raises DataError without images, NumericsError for subnets that share a row of statistics and for
    statistics that are not finite.
    """
    subnets = list(dict.fromkeys(subnets))  # a subnet named twice would count each batch twice
    net.reserve(subnets)
    rows = [net.slots[subnet] for subnet in subnets]
    if len(set(rows)) < len(rows):
        raise NumericsError("subnets that share batch-norm statistics",
                            "each would overwrite the others'", "Calibrate one of them at a time.")
    net.mark_uncalibrated(subnets)
    norms = net.norms()
    for norm in norms:  # a NaN of old would survive the first batch: 0 x NaN
        norm.running_mean[rows] = 0.0
        norm.running_var[rows] = 1.0
    images = 0
    with _without_groups(norms):
        for x in batches:
            _check_images(x)
            if len(x):  # a rank's share of a short last batch may be empty
                images += len(x)
                for subnet in subnets:
                    net(x, subnet, statistics="batch", momentum=len(x) / images)
    if group is not None:
        images = _average_over_ranks(norms, rows, images, next(net.parameters()).device, group)
    if not images:
        raise DataError("0 calibration images", "statistics need at least one batch",
                        "Pass batches of images, e.g. (x for x, _ in data).")
    _refuse_not_finite(net, norms, subnets)
    net.mark_calibrated(subnets)
    return images


def _check_images(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__[:40]}"
        raise DataError(f"a batch that is {what}", "images are floats (B, 3, H, W), normalised",
                        "Pass e.g. (x for x, _ in data).")


@contextmanager
def _without_groups(norms: list[SwitchableBatchNorm2d]) -> Iterator[None]:
    """Normalise by this rank's own batches: other ranks may have fewer, and would be waited for in vain."""
    groups = [norm.group for norm in norms]
    try:
        for norm in norms:
            norm.group = None
        yield
    finally:
        for norm, group in zip(norms, groups, strict=True):
            norm.group = group


def _average_over_ranks(norms: list[SwitchableBatchNorm2d], rows: list[int], images: int, device, group) -> int:
    """Mean of the ranks' statistics, weighted by the images each has seen; returns the images of all."""
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    one = torch.ones(1, dtype=torch.float64, device=device)
    flat = torch.cat([*(buffer[rows].flatten().double() for buffer in buffers), one]) * images
    dist.all_reduce(flat, group=group)
    means = (flat[:-1] / flat[-1]).split([buffer[rows].numel() for buffer in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer[rows] = mean.view(len(rows), -1).to(buffer.dtype)
    return int(flat[-1].item())


def _refuse_not_finite(net: SlimmableNet, norms: list[SwitchableBatchNorm2d], subnets: list[Subnet]) -> None:
    rows = [net.slots[subnet] for subnet in subnets]
    sums = [(norm.running_mean[rows] + norm.running_var[rows]).sum(1) for norm in norms]
    bad = (~torch.stack(sums).isfinite()).nonzero().tolist() if sums else []
    if bad:
        layer, which = bad[0]
        name = next(name for name, module in net.named_modules() if module is norms[layer])
        raise NumericsError(f"batch-norm statistics of {name[:40]}, subnet {str(subnets[which])[:40]}",
                            "they are not finite", "Look for NaN in the images or in the weights.")


@checked
def evaluate(net: SlimmableNet, subnets: Sequence, batches: Iterable[tuple[Tensor, Tensor]],
             group=None) -> list[Evaluation]:
    """Measure the accuracy of each subnet in one pass over `batches` of images (B, 3, H, W) and labels (B,).

    With a process `group` the numbers are those of all ranks together. The net's training mode stays as it was. Raises
    NumericsError, before any work, for a subnet whose statistics are missing or stale; DataError without images, for
    labels that are not (B,) whole numbers of classes, and for pixels that were not normalised.
    """
    for subnet in subnets:
        net.slot_of(subnet)
    odd: list[Tensor] = []
    correct: list[list[Tensor]] = [[] for _ in subnets]
    ce: list[list[Tensor]] = [[] for _ in subnets]
    was_training = net.training
    net.eval()
    try:
        for x, y in batches:  # made outside inference mode: a data set may keep some for training
            _check_images(x)
            y = class_numbers(y, len(x))
            if not len(x):  # a rank's share of a short last batch
                continue
            with torch.inference_mode():
                wrong = (y < 0) | (y >= net.num_classes)
                low, high = x.aminmax()
                odd.append(torch.stack([wrong.sum(), (low >= 0) & (high > PIXELS), wrong.new_zeros(())]).double())
                y = y.masked_fill(wrong, 0)
                for i, subnet in enumerate(subnets):
                    logits = net(x, subnet)
                    correct[i].append(logits.argmax(1) == y)
                    ce[i].append(F.cross_entropy(logits, y, reduction="none"))
    finally:
        net.train(was_training)
    return _summaries(subnets, correct, ce, odd, next(net.parameters()).device, group)


def _summaries(subnets: Sequence[Subnet], correct: list[list[Tensor]], ce: list[list[Tensor]], odd: list[Tensor],
               device, group) -> list[Evaluation]:
    none = torch.zeros(0, device=device)  # a rank may have no images at all
    hits = [torch.cat([none.bool(), *parts]) for parts in correct]
    sums = torch.zeros(len(hits) + 1, 3, dtype=torch.float64, device=device)
    if odd:
        sums[-1] = torch.stack(odd).sum(0)
    for row, hit, losses in zip(sums[:-1], hits, ce, strict=True):
        row[0], row[1], row[2] = hit.sum(), torch.cat([none, *losses]).double().sum(), len(hit)
    if group is not None:
        dist.all_reduce(sums, group=group)
    *numbers, (wrong, raw, _) = sums.tolist()
    if not numbers or not numbers[0][2]:
        raise DataError("0 images to evaluate" if numbers else "0 subnets to evaluate",
                        "accuracy needs at least one batch and one subnet", "Pass batches of data.")
    if wrong or raw:
        what, why, fix = ((f"{int(wrong)} labels out of range", "a label is one of the net's classes", "Mend them.")
                          if wrong else (f"{int(raw)} batches of pixels up to 255", "a net takes normalised images",
                                         "Use slimnb.data.batches.Batches, or its Normalise."))
        raise DataError(what, why, fix)
    return [Evaluation(subnet, int(n), 100 * right / n, loss / n, hit.cpu())
            for subnet, hit, (right, loss, n) in zip(subnets, hits, numbers, strict=True)]
