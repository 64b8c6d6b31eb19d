"""A sandwich step, calibration of many subnets and augmentation, each over the same done plainly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from benchmarks.clock import Reading, compare
from slimnb.cost.macs import count_macs
from slimnb.data.batches import Batches, Split
from slimnb.nets.base import SlimmableNet
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, any_width
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.loop import train_step
from slimnb.train.optim import make_optimizer

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def sandwich(name: str, net: SlimmableNet, batch: int, mults: Sequence[float], dtype: torch.dtype,
             goal: float, seconds: float, rounds: int = 5) -> Reading:
    """C8: a sandwich step of four subnets over a plain net's step, times the ratio of their MACs.

    The plain net is the largest subnet as an ordinary module: float32, contiguous layout, fused SGD.
    """
    side, classes = net.input_size, net.num_classes
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=rng)
    labels = torch.randint(classes, (batch,), generator=rng)
    plain_step = _plain_step(net, images, labels)
    sampler = Sandwich(net.largest, net.uniform(mults[0]), any_width(net, mults))
    objective, optimizer = InplaceDistillation(), make_optimizer(net)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    pixels_first = images.to(dtype).contiguous(memory_format=torch.channels_last)
    macs: dict[Subnet, int] = {}
    work: list[float] = []  # MACs of every sandwich, as a multiple of the plain step's

    def sandwich_step() -> None:
        passes = sampler.plan(len(work))
        for made in passes:
            if made.route not in macs:
                macs[made.route] = count_macs(net, made.route)
        work.append(sum(macs[made.route] for made in passes) / macs[net.largest])
        train_step(net, pixels_first, labels, passes, objective, optimizer)

    for mult in mults:
        macs[net.uniform(mult)] = count_macs(net, net.uniform(mult))
    net.train()
    kind = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return compare("C8", f"{name}, batch {batch}, {side} px, {kind}: sandwich step / FLOP bound",
                   {"plain": plain_step, "sandwich": sandwich_step}, goal, seconds, rounds=rounds,
                   scale=lambda turn: work[turn + 1],  # the first was the warm-up
                   note="C8: FLOP bound = a plain full-width step in float32 x the ratio of the MACs")


def _plain_step(net: SlimmableNet, images: Tensor, labels: Tensor):
    calibrate_bn(net, [net.largest], [images])
    plain = net.extract(net.largest).to(memory_format=torch.contiguous_format).train()
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
