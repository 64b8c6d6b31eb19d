"""Diagnostics of a trained net: what a chapter draws, taken again at any time from the weights of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from slimnb.data.datasets import ImageData
from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import ConvNormAct
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.experiment import Result, once
from slimnb.train.measure import plain_batches
from slimnb.train.state import load_net

CALIBRATION_IMAGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

Images = Callable[[int], Iterable[Tensor]]
"""Gives batches of the first n training images, normalised."""


def calibration(net: SlimmableNet, named: dict[float, Subnet], first: Images, val: list) -> list[dict]:
    """Validate each width with statistics taken from more and more images.

    `named` maps multipliers to subnets. Rows: mult, images, top1 (percent).
    """
    subnets, rows = list(named.values()), []
    for images in CALIBRATION_IMAGES:
        if calibrate_bn(net, subnets, first(images)) < images:
            break  # there are no more
        rows += [{"mult": mult, "images": images, "top1": evaluation.top1}
                 for mult, evaluation in zip(named, evaluate(net, subnets, val), strict=True)]
    return rows


def statistics(net: SlimmableNet, named: dict[float, Subnet], first: Images, val: list) -> list[dict]:
    """Read the running mean and variance of the same channels at each width.

    They are those after the middle convolution that mixes channels; a depthwise convolution reads one channel and would
    show nothing. The channels are those of the narrowest subnet. Rows: mult, channel, mean, var.
    """
    mixing = [m for m in net.modules() if isinstance(m, ConvNormAct) and not m.conv.depthwise]
    norm = mixing[len(mixing) // 2].norm
    kept = min(subnet.widths[norm.unit] for subnet in named.values())
    return [{"mult": mult, "channel": c, "mean": norm.running_mean[net.slots[subnet], c].item(),
             "var": norm.running_var[net.slots[subnet], c].item()}
            for mult, subnet in named.items() for c in range(kept)]


def borrowed(net: SlimmableNet, named: dict[float, Subnet], first: Images, val: list) -> list[dict]:
    """Validate each width with the statistics of each width; on the diagonal they are its own.

    Rows: mult, statistics_mult, top1 (percent).
    """
    rows = []
    own = dict(net.slots)
    for giver_mult, giver in named.items():
        net.slots = dict.fromkeys(named.values(), own[giver])
        rows += [{"mult": mult, "statistics_mult": giver_mult, "top1": evaluation.top1}
                 for mult, evaluation in zip(named, evaluate(net, list(named.values()), val), strict=True)]
    net.slots = own
    return rows


DIAGNOSTICS = {"statistics": statistics, "borrowed": borrowed, "calibration": calibration}
"""By name; those that leave other statistics behind come last."""


def take_diagnostics(net: SlimmableNet, data: ImageData, mults: Sequence[float], *, images: int,
                device: str = "cpu") -> dict:
    """Take all `DIAGNOSTICS` at the uniform widths `mults`, calibrated on `images` images: rows by name.

    The test split is not used.
    """
    named = {mult: net.uniform(mult) for mult in mults}
    first = plain_batches(data, data.train, net.input_size, device).images
    val = list(plain_batches(data, data.val, net.input_size, device))
    calibrate_bn(net, list(named.values()), first(images))
    return {name: measure(net, named, first, val) for name, measure in DIAGNOSTICS.items()}


def diagnose(result: Result, data: ImageData, mults: Sequence[float], store: RunStore, device: str = "cpu") -> dict:
    """Return the rows of all `DIAGNOSTICS` on a finished run's weights; they are taken once, then loaded."""
    recipe = result.recipe
    settings = {"paper": recipe.paper, "arm": f"{recipe.arm} probes", "scale": recipe.scale, "of": result.run_id,
                "mults": list(mults), "images": recipe.calibration_images}

    def take() -> dict:
        net = recipe.build(data.num_classes)
        net.reserve([net.uniform(mult) for mult in recipe.mults])
        load_net(net, store.weights_of(result.run_id), net.get_extra_state())
        return take_diagnostics(net.to(device), data, mults, images=recipe.calibration_images, device=device)

    return once(store, settings, code_fingerprint([take_diagnostics, recipe.net_type()]), take)
