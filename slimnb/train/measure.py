"""What is measured on every trained net and stored with its run: accuracy and cost of each subnet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from slimnb.cost.macs import count_macs, count_params
from slimnb.cost.table import macs_function
from slimnb.data.batches import Batches, Split
from slimnb.data.datasets import ImageData
from slimnb.nets.base import SlimmableNet
from slimnb.nn.norm import CALIBRATED
from slimnb.subnet import Subnet
from slimnb.train.calibrate import Evaluation, calibrate_bn, evaluate
from slimnb.train.distributed import rank_of, world_of
from slimnb.train.protocols import Probe

EVALUATION_BATCH = 500
TERCILES = ("easy", "medium", "hard")


def plain_batches(data: ImageData, split: Split, size: int, device: str, group=None) -> Batches:
    """Make batches of one pass over a split, in float32, without shuffling or augmentation."""
    rank, world = rank_of(group), world_of(group)
    return Batches(split, EVALUATION_BATCH, augment="none", mean=data.mean, std=data.std, size=size, device=device,
                   rank=rank, world=world)


def measure(net: SlimmableNet, data: ImageData, subnets: list[Subnet], *, images: int, calibrate: bool = False,
            device: str = "cpu", group=None) -> list[dict]:
    """Measure `subnets` of a trained net: one row of accuracy and cost for each.

    The net is calibrated on `images` training images if its policy asks for it or `calibrate` is true. Validation comes
    first, then the test split, which is opened here and once. A row has macs, params, top1 (test, percent), top1_val,
    ce (nats), n. Where the data know their difficulty, it also has top1_easy, top1_medium and top1_hard: the accuracy
    on each third of the test images. With a process `group` all but these thirds are of all ranks.
    """
    return [row for row, _ in measured(net, data, subnets, images=images, calibrate=calibrate, device=device,
                                       group=group)]


def measured(net: SlimmableNet, data: ImageData, subnets: list[Subnet], *, images: int, calibrate: bool = False,
             device: str = "cpu", group=None) -> list[tuple[dict, Evaluation]]:
    """Return the rows of `measure`, each with the evaluation on the test split that it sums up."""
    on_val = _validated(net, data, subnets, images, calibrate or net.bn == CALIBRATED, device, group)
    size, test = net.input_size, data.test
    on_test = evaluate(net, subnets, plain_batches(data, test, size, device, group), group)
    return [({"macs": count_macs(net, tested.subnet), "params": count_params(net, [tested.subnet]),
              "top1": tested.top1, "top1_val": validated.top1, "ce": tested.ce, "n": tested.n,
              **_by_difficulty(tested, test)}, tested)
            for tested, validated in zip(on_test, on_val, strict=True)]


def choose(net: SlimmableNet, data: ImageData, candidates: Mapping[str, Sequence[Subnet]], *, images: int,
           device: str = "cpu", group=None) -> list[dict]:
    """Validate `candidates`, which are listed under each name in order of promise, and test the promising ones.

    All are calibrated on `images` training images and validated (PSS-Net, section 3.4). The test split is opened once,
    for those that validate best among the first k of their name for some k. So `chosen` can pick for any k without
    opening the test split again. A row has name, rank (from 0), subnet (JSON), macs, top1_val (percent); if it was
    tested also params, top1, ce, n. A subnet may stand under several names.
    """
    subnets = list(dict.fromkeys(subnet for several in candidates.values() for subnet in several))
    validated = {evaluation.subnet: evaluation.top1
                 for evaluation in _validated(net, data, subnets, images, True, device, group)}
    price = {side: macs_function(net, resolution=side) for side in {subnet.resolution for subnet in subnets}}
    rows, winners = [], {}
    for name, ranked in candidates.items():
        best = -1.0
        for rank, subnet in enumerate(ranked):
            rows.append({"name": name, "rank": rank, "subnet": subnet.to_json(),
                         "macs": price[subnet.resolution](subnet), "top1_val": validated[subnet]})
            if validated[subnet] > best:
                best, winners[subnet] = validated[subnet], None
    batches = plain_batches(data, data.test, net.input_size, device, group)
    tested = {winner.subnet: {"params": count_params(net, [winner.subnet]), "top1": winner.top1, "ce": winner.ce,
                              "n": winner.n}
              for winner in evaluate(net, list(winners), batches, group)}
    return [row | tested.get(Subnet.from_json(row["subnet"]), {}) for row in rows]


def chosen(rows: Sequence[dict], top_k: int) -> list[dict]:
    """Pick, of the rows of `choose`, the one that validates best among the first `top_k` of each name.

    Of equals the earlier one is picked. A name with fewer candidates gives the best of those it has.
    """
    best: dict[str, dict] = {}
    for row in rows:
        if row["rank"] < top_k and row["top1_val"] > best.get(row["name"], {"top1_val": -1.0})["top1_val"]:
            best[row["name"]] = row
    return list(best.values())


def _validated(net: SlimmableNet, data: ImageData, subnets: list[Subnet], images: int, calibrate: bool, device: str,
               group) -> list[Evaluation]:
    if calibrate:
        train = plain_batches(data, data.train, net.input_size, device, group)
        calibrate_bn(net, subnets, train.images(images), group)
    return evaluate(net, subnets, plain_batches(data, data.val, net.input_size, device, group), group)


def _by_difficulty(evaluation: Evaluation, split: Split) -> dict[str, float]:
    if split.difficulty is None or len(evaluation.correct) < len(split):  # another rank has the rest
        return {}
    order = np.argsort(split.difficulty.cpu().numpy(), kind="stable")
    parts = zip(TERCILES, np.array_split(order, len(TERCILES)), strict=True)
    return {f"top1_{name}": 100 * float(evaluation.correct.numpy()[part].mean()) for name, part in parts}


class Accuracy:
    """A probe: at `steps` it validates named subnets, calibrated for the weights of that step.

    In a net that has only been trained at full size these are zero-shot subnets (DepS, Fig. 2); of the full net alone
    it is the curve across the start of shrinking (Fig. 7b). `images()` gives batches of calibration images, `val()`
    batches of images and labels. A row has look "accuracy", step, name, top1 (percent), ce (nats).
    """

    def __init__(self, subnets: Mapping[str, Subnet], images: Callable[[], Iterable[Tensor]],
                 val: Callable[[], Iterable[tuple[Tensor, Tensor]]], steps: Collection[int]):
        self.subnets, self.images, self.val, self.steps = dict(subnets), images, val, frozenset(steps)
        self.rows: list[dict] = []

    def at(self, step: int) -> bool:
        """Return whether `step` is one of the steps."""
        return step in self.steps

    def __call__(self, step: int, net: SlimmableNet, x: Tensor, y: Tensor) -> list[dict]:
        """Return a row per subnet; the batch is not used."""
        return self.rows_of(step, net)

    def rows_of(self, step: int, net: SlimmableNet) -> list[dict]:
        """Return the rows at the weights that `net` has now; they replace the net's calibration."""
        calibrate_bn(net, list(self.subnets.values()), self.images())
        evaluations = evaluate(net, list(self.subnets.values()), self.val())
        return [{"look": "accuracy", "step": step, "name": name, "top1": evaluation.top1, "ce": evaluation.ce}
                for name, evaluation in zip(self.subnets, evaluations, strict=True)]


class Probes:
    """Several probes as one: each looks where it is due.

    Those of accuracy come last, for they leave statistics behind.
    """

    def __init__(self, probes: Sequence[Probe]):
        self.probes = sorted(probes, key=lambda probe: isinstance(probe, Accuracy))
        self.rows: list[dict] = []

    def at(self, step: int) -> bool:
        """Return whether one of them is due before `step`."""
        return any(probe.at(step) for probe in self.probes)

    def __call__(self, step: int, net: SlimmableNet, x: Tensor, y: Tensor) -> list[dict]:
        """Return the rows of those that are due."""
        return [row for probe in self.probes if probe.at(step) for row in probe(step, net, x, y)]
