"""A slice of the supernet against the stand-alone thin net, and what changing the width costs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch import nn

from benchmarks.clock import Reading, compare
from slimnb.nets.base import SlimmableNet
from slimnb.train.calibrate import calibrate_bn

SWITCHES = 100  # width changes per timing: one takes microseconds


def sliced(name: str, net: SlimmableNet, batch: int, mults: Sequence[float],
           seconds: float) -> Iterator[Reading]:
    """C1, one reading per width: `net(x, subnet)` over a plain module of that width, in the faster memory format."""
    side = net.input_size
    subnets = [net.uniform(mult) for mult in mults]
    rng = torch.Generator().manual_seed(0)
    calibrate_bn(net, subnets, [torch.randn(4, 3, side, side, generator=rng)])
    net.eval()
    image = torch.randn(batch, 3, side, side, generator=rng)
    pixels_first = image.contiguous(memory_format=torch.channels_last)
    for mult, subnet in zip(mults, subnets, strict=True):
        thin_last = net.extract(subnet)
        thin = copy.deepcopy(thin_last).to(memory_format=torch.contiguous_format)
        with torch.inference_mode():
            torch.testing.assert_close(net(pixels_first, subnet), thin(image), rtol=1e-2, atol=1e-3)
            yield compare("C1", f"{name} {mult:g}x, batch {batch}, {side} px: slice / thin net",
                          {"thin": lambda thin=thin: thin(image),
                           "thin, channels_last": lambda thin=thin_last: thin(pixels_first),
                           "slice": lambda subnet=subnet: net(pixels_first, subnet)}, 1.05, seconds, ideals=2,
                          note="C1: the thin net is timed in NCHW and in channels_last; the faster one counts")


def summary(readings: Sequence[Reading], goal: float = 0.90) -> Reading:
    """C1's median over all nets and widths."""
    values = [reading.value for reading in readings]
    return Reading("C1", f"median of the {len(values)} above", median(values), min(values), max(values), goal)


def switching(name: str, net: SlimmableNet, mults: Sequence[float], seconds: float) -> Reading:
    """C5: selecting the next subnet, over writing its width into every module of the net."""
    subnets = [net.uniform(mult) for mult in mults]
    calibrate_bn(net, subnets, [torch.randn(4, 3, net.input_size, net.input_size)])
    net.eval()
    walked = net.extract(net.largest if net.largest in subnets else subnets[-1])

    def walk() -> None:
        for i in range(SWITCHES):
            _write_width(walked, mults[i % len(mults)])

    def select() -> None:
        for i in range(SWITCHES):
            net.select(subnets[i % len(subnets)])

    return compare("C5", f"{name}: selecting a width / writing it into every module",
                   {"walk": walk, "select": select}, 0.25, seconds,
                   note=f"C5: the times stored are of {SWITCHES} changes")


def _write_width(net: nn.Module, mult: float) -> None:
    """The usual way to switch: every module holds the width as an attribute, for its next forward pass."""
    for module in net.modules():
        module.width_mult = mult
