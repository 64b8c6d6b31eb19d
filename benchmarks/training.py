"""A sandwich step, calibration of many subnets and augmentation, each over the same done plainly."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from benchmarks.clock import Reading, compare
from slimnb.data.batches import Batches, Split
from slimnb.nets.base import SlimmableNet
from slimnb.nn.kernels import kernels
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, any_width
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.loop import train_step
from slimnb.train.optim import make_optimizer

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def sandwich(gate: str, name: str, net: SlimmableNet, batch: int, mults: Sequence[float], dtype: torch.dtype,
             goal: float, seconds: float, rounds: int = 5) -> Iterator[Reading]:
    """C7 and C8: a sandwich step of four subnets over a step each of four thin nets; with compiled kernels, too.

    The thin nets are ordinary modules: float32, contiguous layout, fused SGD.
    """
    side, classes = net.input_size, net.num_classes
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=rng)
    labels = torch.randint(classes, (batch,), generator=rng)
    sampler = Sandwich(net.largest, net.uniform(mults[0]), any_width(net, mults))
    routes = {net.uniform(mult) for mult in mults}
    passes = next(plan for plan in map(sampler.plan, range(10_000)) if {each.route for each in plan} == routes)
    thin_steps = [_thin_step(net, subnet, images, labels) for subnet in routes]
    objective, optimizer = InplaceDistillation(), make_optimizer(net)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    pixels_first = images.to(dtype).contiguous(memory_format=torch.channels_last)
    net.train()

    kind = "bfloat16" if dtype == torch.bfloat16 else "float32"
    for compiled, how in (("0", ""), ("1", ", compiled kernels")):
        with mock.patch.dict(os.environ, SLIMNB_KERNELS=compiled):
            kernels.cache_clear()
            if compiled == "1" and kernels() is None:
                break
            reading = compare(gate, f"{name}, batch {batch}, {side} px, {kind}{how}: sandwich step / four thin nets",
                              {"thin": lambda: [thin_step() for thin_step in thin_steps],
                               "sandwich": lambda: train_step(net, pixels_first, labels, passes, objective,
                                                              optimizer)},
                              goal, seconds, rounds=rounds,
                              note="C7, C8: thin nets are plain, float32, NCHW; compiled: SLIMNB_KERNELS=1")
        kernels.cache_clear()
        yield reading


def _thin_step(net: SlimmableNet, subnet: Subnet, images: Tensor, labels: Tensor):
    calibrate_bn(net, [subnet], [images])
    plain = net.extract(subnet).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, nesterov=True,
                                weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()

    return step


def noise(count: int, side: int) -> Split:
    """`count` images of random bytes: nothing here depends on what they show."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=rng)
    return Split(images, torch.randint(10, (count,), generator=rng))


def calibration(name: str, net: SlimmableNet, batch: int, mults: Sequence[float], steps: int,
                goal: float | None, seconds: float, rounds: int = 5) -> Reading:
    """C12: statistics of all subnets in one pass, over one plain thin net after the other."""
    batches = Batches(noise(batch * steps, net.input_size), batch, mean=MEAN, std=STD)
    subnets = [net.uniform(mult) for mult in mults]

    def images():
        return (batches.batch(step)[0] for step in range(steps))

    calibrate_bn(net, subnets, images())
    thin = [net.extract(subnet).to(memory_format=torch.contiguous_format) for subnet in subnets]

    @torch.no_grad()
    def singly() -> None:
        for module in thin:
            _restart_statistics(module)
            for x in images():
                module(x.contiguous())

    singly()
    expected = [m.running_var for m in net.extract(subnets[0]).modules() if isinstance(m, nn.BatchNorm2d)]
    found = [m.running_var for m in thin[0].modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    what = f"{name}, {len(subnets)} widths, {steps} batches of {batch}: calibrated together / singly"
    return compare("C12", what, {"singly": singly, "together": lambda: calibrate_bn(net, subnets, images())},
                   goal, seconds, rounds=rounds,
                   note="C12: singly = plain contiguous thin nets, each with its own pass over the data")


def _restart_statistics(net: nn.Module) -> None:
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative mean


def augmentation(batch: int, side: int, goal: float, seconds: float) -> Reading:
    """C13: crop, mirror and normalise a whole batch, over image by image with Pillow."""
    split = noise(batch, side)
    batches = Batches(split, batch, mean=MEAN, std=STD)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in split.images]
    per_image = transforms.Compose([transforms.RandomCrop(side, padding=4), transforms.RandomHorizontalFlip(),
                                    transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    step = iter(range(10**9))
    return compare("C13", f"batch {batch}, {side} px: augmented as one batch / image by image",
                   {"image by image": lambda: torch.stack([per_image(picture) for picture in pictures]),
                    "batch": lambda: batches.batch(next(step))}, goal, seconds,
                   note="C13: image by image = torchvision on decoded Pillow images, in this process")
