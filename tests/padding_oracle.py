"""Pruned nets with joins, written twice more to hold slimnb's prefix form against: masked, and as SP-Net does it.

Both take a net before it was sorted and read its layers and weights only; batch norm uses the batch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from oracle import cut_parameters, thin_net
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "none": lambda x: x}


def random_order(net, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(channels) for channels in net.largest.widths]


def run_masked(net, kept: list[np.ndarray], x: Tensor) -> Tensor:
    """Logits of the full-width plain net with all channels but `kept` (per unit) put to zero after each layer."""
    thin = thin_net(net, net.largest.widths).train()
    layers = [m for m in thin.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
    units = [m.unit for m in net.modules() if hasattr(m, "depthwise")]
    for layer, unit in zip(layers, units, strict=True):
        mask = torch.zeros(net.largest.widths[unit], dtype=x.dtype)
        mask[kept[unit]] = 1
        layer.register_forward_hook(lambda m, i, y, mask=mask[:, None, None]: y * mask)
    return torch.func.functional_call(thin, cut_parameters(net, thin), (x,))


class GatherForm:
    """SP-Net, A.3: un-sort each path, add it to zeros of full width where its mask is set, gather the fused mask.

    `order` and `counts` per unit; with `ends` the paths' numbers alone count: body first, shortcut last.
    `macs` counts convolutions and the classifier while running (for one image).
    """

    def __init__(self, net, order: list[np.ndarray], counts: tuple[int, ...], ends: bool = False):
        self.net, self.order, self.counts, self.ends, self.macs = net, order, counts, ends, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.macs = 0
        state = x, np.arange(3), None  # features, their channels in order of storage, their mask
        for block in self.net.features:
            state = self.block(block, state)
        x, channels, _ = state
        head = self.net.classifier
        self.macs += head.out_features * len(channels)
        return F.linear(x.mean((2, 3)), head.weight[:, channels], head.bias)

    def block(self, block, state):
        kind = type(block).__name__
        if kind == "MaxPool":
            return F.max_pool2d(state[0], block.kernel, block.stride, block.padding), *state[1:]
        if kind == "Chain":
            for part in block:
                state = self.block(part, state)
            return state
        if kind == "Residual":
            body = self.block(block.body, state)
            shortcut = state if block.shortcut is None else self.block(block.shortcut, state)
            x, *rest = self.joined(body, shortcut)
            return ACTIVATIONS[block.activation](x), *rest
        return self.layer(block, state)

    def layer(self, layer, state):
        x, channels, mask = state
        conv, unit = layer.conv, layer.conv.unit
        if conv.depthwise:
            taken, weight = channels, conv.weight[channels]
        else:
            n = self.counts[unit]
            taken = np.arange(n) if self.ends else self.order[unit][:n]
            weight = conv.weight[taken][:, channels]
            mask = np.zeros(self.net.largest.widths[unit], dtype=bool)
            mask[self.order[unit][:n]] = True
        x = F.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, len(channels) if conv.depthwise else 1)
        self.macs += x[0].numel() * weight[0].numel()
        x = F.batch_norm(x, None, None, layer.norm.weight[0, taken], layer.norm.bias[0, taken], True)
        return ACTIVATIONS[layer.activation](x), taken, mask

    def joined(self, body, shortcut):
        fused = body[2] | shortcut[2]
        if self.ends:
            total = body[0].new_zeros(len(body[0]), int(fused.sum()), *body[0].shape[2:])
            total[:, : len(body[1])] += body[0]
            total[:, total.shape[1] - len(shortcut[1]):] += shortcut[0]
            return total, np.arange(total.shape[1]), fused
        total = body[0].new_zeros(len(body[0]), len(fused), *body[0].shape[2:])
        for x, channels, mask in (body, shortcut):
            total[:, mask] += x[:, np.argsort(channels)]
        return total[:, fused], np.flatnonzero(fused), fused
