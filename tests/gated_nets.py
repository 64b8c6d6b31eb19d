"""Small gated nets in double precision, with gates that route images to several paths."""

from __future__ import annotations

import torch

from slimnb.nn.gate import Gated
from slimnb.nn.norm import GROUP
from slimnb.papers.ds_net.nets import DSEfficientNet, DSMobileNet, DSResNet50
from slimnb.train.calibrate import calibrate_bn

KINDS = {
    DSMobileNet: {"strides": (2, 1, 2, 2, 1), "fixed": (8, 16, 16), "grid": ((8, 8, 1), (16, 8, 1)), "num_choices": 4},
    DSResNet50: {"layout": ((16, 2), (32, 1)), "stem": 8, "strides": (2, 1, 2), "channels_per_group": 4},
    DSEfficientNet: {"layout": ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 2, 2, 5)), "stem": 16, "tail": 32,
                     "fixed_blocks": 2, "num_choices": 4},
}


def build(kind, seed: int = 0, **options):
    """A net of `kind` for 10 classes, all its parameters far from their start."""
    net = kind(10, 32, **KINDS[kind] | options, seed=seed).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            if "slim_" in name:
                p.copy_(noise)
            elif p.dim() > 2:
                p.copy_(1.4 * noise / p[0].numel() ** 0.5)
            elif p.dim() == 2 and min(p.shape) > 1:
                p.copy_(noise / p.shape[1] ** 0.5)
            else:
                p.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
    return net


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    """(n, 3, 16, 16) noise of many strengths and tints, so that gates tell images apart; channels_last."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    x = draw(n, 3, 16, 16) * draw(n, 1, 1, 1).exp() + 2 * draw(n, 3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def ready(kind, seed: int = 0, **options):
    """A built net in eval mode, all its paths calibrated, and 32 images whose choices differ in every gate."""
    net, x = build(kind, seed, **options), pictures(32, seed)
    if net.bn != GROUP:
        calibrate_bn(net, net.paths, [x])
    net.eval()
    for at, gate in enumerate(net.gates):
        _centre(net, x, at, gate)
    return net, x


@torch.no_grad()
def _centre(net, x, at: int, gate) -> None:
    """Give all choices of a gate the same mean score over x."""
    seen = []
    hook = gate.register_forward_hook(lambda module, inputs, output: seen.append(module.look(inputs[0])[1]))
    net(x, Gated())
    hook.remove()
    mean = seen[0].mean(0)
    gate.slim_weight -= torch.outer(gate.slim_weight @ mean, mean) / mean.square().sum()
