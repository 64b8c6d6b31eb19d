"""Small instances of the nets for the tests, and statistics that are not zeros and ones."""

from __future__ import annotations

import functools

import numpy as np
import torch

from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2, MobileNetV3
from slimnb.nets.proxyless_nas import ProxylessNAS
from slimnb.nets.resnet import ResNet50
from slimnb.nets.vgg import VGG
from slimnb.subnet import Subnet

TINY = {
    MobileNetV1: {"layout": ((8, 2), (16, 1), (24, 2), (24, 1), (32, 2))},
    MobileNetV2: {"layout": ((1, 8, 1, 1), (3, 16, 2, 2), (2, 24, 3, 2)), "stem": 16, "tail": 40},
    VGG: {"layout": ((16, 16), (24, 32))},
    ResNet50: {"layout": ((8, 2), (16, 3)), "stem": 16},
}
ELASTIC = {
    MobileNetV3: {"layout": ((8, 3, 2, "relu", True), (16, 2, 2, "hswish", False), (16, 3, 2, "hswish", True)),
                  "stem": 8, "first": 8, "tail": 40, "head": 24},
    ProxylessNAS: {"layout": ((8, 3, 2), (16, 2, 1), (24, 1, 2)), "stem": 16, "first": 8, "tail": 40},
}
NETS = tuple(TINY)
POLICIES = ("private", "shared_affine", "calibrated", "group")


def tiny(kind, size: int = 32, bn: str = "calibrated", seed: int = 0):
    """A net of `kind` with 8 to 64 channels and 10 classes, in double precision, weights far from zero."""
    net = kind(10, size, **TINY[kind], bn=bn, seed=seed).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            if p.dim() > 2:
                p.copy_(1.4 * noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
    return net


def elastic(kind, size=32, bn="calibrated", kernels=(3, 5, 7), seed=0):
    """A small net of `kind` in double precision, its weights, transforms too, far from where they start."""
    net = kind(10, size, **ELASTIC[kind], depths=(1, 2, 3), kernels=kernels, bn=bn, seed=seed).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            if "transforms" in name:
                p.add_(0.2 * noise)
            elif p.dim() > 2:
                p.copy_(1.4 * noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
    return net


def random_subnets(net, n: int, seed: int = 0, step: int = 1) -> list[Subnet]:
    """Subnets with every width drawn on its own from multiples of `step`: not uniform, not nested."""
    rng = np.random.default_rng(seed)
    return [Subnet(tuple(step * int(rng.integers(1, most // step + 1)) for most in net.largest.widths))
            for _ in range(n)]


def fill_statistics(net, subnets, seed: int = 0) -> None:
    """Give `subnets` slots with statistics of noise images, shaken, and random gamma and beta."""
    net.reserve(list(subnets))
    rng = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=rng, dtype=like.dtype)

    with torch.no_grad():
        for norm in net.norms():
            norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
            norm.bias.copy_(uniform(norm.bias, -0.3, 0.5))
        if net.norms():
            for subnet in subnets:  # purely random statistics would leave most channels dead
                x = images(8, 16, seed + 1, next(net.parameters()).dtype)
                net(x, subnet, statistics="batch", momentum=1.0)
        for norm in net.norms():
            norm.running_mean.add_(uniform(norm.running_mean, -0.2, 0.2) * norm.running_var.sqrt())
            norm.running_var.mul_(uniform(norm.running_var, 0.7, 1.4))
    net.mark_calibrated(list(subnets))
    net.eval()


def images(n: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(n, 3, size, size) normal noise, channels_last."""
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.to(memory_format=torch.channels_last)


@functools.cache
def full(kind, classes=1000, size=224, largest=1.0, bn="calibrated", rounding=None):
    """A full-size net on the meta device: counting needs shapes only."""
    with torch.device("meta"):
        return kind(classes, size, largest, bn=bn, **({"rounding": rounding} if rounding else {}))


def meta(kind, *args, **kwargs):
    """A net of `kind` on the meta device."""
    with torch.device("meta"):
        return kind(*args, **kwargs)
