"""DS-ResNet-50 (DS-Net): a gate before every residual block, and in each stage one that rules the stage's width."""

from __future__ import annotations

import torch

from slimnb.nn.gate import LEAST_HIDDEN, Gate
from slimnb.nn.layers import SlimmableLinear
from slimnb.nn.blocks import Chain, ConvNormAct, MaxPool, Residual
from slimnb.nets.gated import GatedNet
from slimnb.nets.resnet import EXPANSION, LAYOUT, bottleneck

RATIOS = (0.25, 0.5, 0.75, 1.0)


class DSResNet50(GatedNet):
    """Dynamic slimmable ResNet-50: in each stage all widths are those of the stage's gate, at any of `ratios`.

    Attention acts on the input of every block; the gate of a stage is that of its first block. The projection follows
    its block's width, other blocks that of the first. Group norm with a fixed number of channels per group, which
    divides the steps between widths. `strides` are those of the stem and of each stage's first block. The paper leaves
    three things open: here the stem is `stem` channels wide in every path, a group has `channels_per_group`, and the
    hidden width of attention is a sixteenth of its input's, at least 4, and of a gate that chooses `LEAST_HIDDEN`.
    """

    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *, stem: int = 64,
                 layout: tuple[tuple[int, int], ...] = LAYOUT, strides: tuple[int, ...] | None = None,
                 ratios: tuple[float, ...] = RATIOS, channels_per_group: int = 8, head: str = "one-hot",
                 shared: bool = True, bn: str = "group", activation: str = "relu", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout, self.ratios = tuple(map(tuple, layout)), tuple(ratios)
        self.strides = tuple(strides or (2 if input_size == 224 else 1, 1, 2, 2, 2))
        self.channels_per_group = channels_per_group
        widths = [stem]
        for channels, count in self.layout:
            out = channels * EXPANSION
            for i in range(count):
                widths += [channels, channels, out] + [out] * (i == 0)
        widths = tuple(widths)
        unit = self.new_unit("stem")
        kernel = 7 if input_size == 224 else 3
        blocks = [ConvNormAct(self, 3, stem, kernel, self.strides[0], unit=unit, sources=())]
        if input_size == 224:
            blocks.append(MaxPool(3, 2, 1, sources=(unit,)))
        sources, channels = (unit,), stem
        for stage, ((_, count), stage_stride) in enumerate(zip(self.layout, self.strides[1:], strict=False)):
            first = len(self.unit_names)
            ruled = tuple(range(first, first + 3 * count + 1))
            rules = {"rules": ruled, "most": tuple(widths[u] for u in ruled), "head": head, "shared": shared,
                     "widths": tuple(tuple(round(widths[u] * ratio) for u in ruled) for ratio in self.ratios)}
            for i in range(count):
                hidden = max(4, channels // 16)
                blocks.append(Gate(channels, hidden, sources=sources) if i else
                              Gate(channels, max(LEAST_HIDDEN, hidden), sources=sources, **rules))
                block, sources, channels = bottleneck(self, f"stage{stage}.{i}", widths, sources, channels,
                                                      1 if i else stage_stride, i == 0)
                blocks.append(block)
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(channels, num_classes, sources=sources)
        self.finish_gates(widths, {0: stem})

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """As of any gated net, but the last norm of every block begins at gamma 0 (appendix A)."""
        super().reset_parameters(seed)
        for module in self.modules():
            if isinstance(module, Residual):
                module.body[-1].norm.weight.zero_()
