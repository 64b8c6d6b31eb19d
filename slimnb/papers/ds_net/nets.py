"""DS-Net's own nets: MobileNetV1, ResNet-50 and EfficientNet-B0 with gates that choose widths for each image."""

from __future__ import annotations

import torch

from slimnb.errors import ParameterError
from slimnb.nets.gated import GatedNet, check_contains, equispaced, side_by_side, spaced
from slimnb.nets.resnet import EXPANSION, LAYOUT, bottleneck
from slimnb.nn.blocks import Chain, ConvNormAct, MaxPool, Residual
from slimnb.nn.gate import LEAST_HIDDEN, Gate
from slimnb.nn.layers import SlimmableLinear
from slimnb.rules import Channels, Count, Positive, Some, Stride, Whole, checked
from slimnb.subnet import make_divisible

# -- DS-MBNet: channel attention in every block, and one gate that rules the last ones ------------------------

STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of the stem and the 13 blocks, for 224 pixels

Grid = tuple[tuple[int, int, int], ...]
"""Of the ruled blocks in order: channels of the first choice, step between choices, number of blocks."""

VARIANTS = {
    "released": ((16, 32, 48, 48, 96, 96), ((224, 32, 6), (736, 32, 2)), 14,
                 (24, 88, 168, 168, 264, 264, *(640,) * 6, *(1152,) * 2)),
    "printed": ((16, 32, 64, 64, 128, 128),
                tuple((*spaced(c, 0.35, 0.05, 18)[:2], n) for c, n in ((512, 6), (1024, 2))), 18, None),
}
"""Widths of stem and fixed blocks, grid, number of choices, and the net that is trained as the largest (None: the
widest path): as the code has them, where the largest net is wider than any path in the fixed blocks, too, and as the
paper says."""


class DSMobileNet(GatedNet):
    """Dynamic slimmable MobileNetV1: stem and first blocks have one width, the others the width of the gate's choice.

    `variant` "released" or "printed" gives all widths; `fixed`, `grid`, `num_choices` and `largest` replace them. Each
    block has attention between its depthwise and its pointwise convolution, with a hidden width a quarter of the
    largest net's. The gate is that of the first block it rules. For `head` and `shared` see `slimnb.nn.gate.Gate`.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float | tuple[int, ...] = 1.0, *,
                 variant: str = "released", strides: Some[Stride] | None = None,
                 fixed: tuple[Channels, ...] | None = None, grid: Grid | None = None, num_choices: Count | None = None,
                 head: str = "one-hot", shared: bool = True,
                 bn: str = "shared_affine", activation: str = "swish", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        if variant not in VARIANTS:
            raise ParameterError(f"variant = {variant!r}"[:60], f"it is one of {', '.join(VARIANTS)}",
                                 "Set variant='released'.")
        values = VARIANTS[variant]
        supernet = values[3] if fixed is None and grid is None else None
        fixed, grid, num_choices = tuple(fixed or values[0]), grid or values[1], num_choices or values[2]
        self.strides = tuple(strides or (STRIDES if input_size == 224 else (1, *STRIDES[1:])))
        rows = side_by_side(*(equispaced(first, step, num_choices, blocks) for first, step, blocks in grid))
        units = len(fixed) + len(rows[0])
        if len(self.strides) != units:
            raise ParameterError(f"{len(self.strides)} strides for {units} layers",
                                 "the stem and every block have one", "Give as many strides as widths.")
        widths = tuple(largest) if isinstance(largest, (tuple, list)) else supernet or (*fixed, *rows[-1])
        check_contains(widths, (*fixed, *rows[-1]))
        for i in range(units):
            self.new_unit("stem" if i == 0 else f"block{i}")
        ruled = tuple(range(len(fixed), units))
        blocks = [ConvNormAct(self, 3, widths[0], 3, self.strides[0], unit=0, sources=())]
        for i in range(1, units):
            before, sources = widths[i - 1], (i - 1,)
            rules = {"rules": ruled, "widths": rows, "most": widths[len(fixed):], "head": head, "shared": shared}
            blocks.append(Chain(
                ConvNormAct(self, before, before, 3, self.strides[i], unit=i - 1, sources=sources, depthwise=True),
                Gate(before, max(LEAST_HIDDEN, round(before / 4)), sources=sources, **rules) if i == len(fixed) else
                Gate(before, round(before / 4), sources=sources),
                ConvNormAct(self, before, widths[i], 1, unit=i, sources=sources)))
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(widths[-1], num_classes, sources=(units - 1,))
        self.finish_gates(widths, dict(enumerate(fixed)))

# -- DS-ResNet-50: a gate before every residual block, and in each stage one that rules the stage's width ------

RATIOS = (0.25, 0.5, 0.75, 1.0)


class DSResNet50(GatedNet):
    """Dynamic slimmable ResNet-50: in each stage all widths are those of the stage's gate, at any of `ratios`.

    Attention acts on the input of every block; the gate of a stage is that of its first block. The projection follows
    its block's width, other blocks that of the first. Group norm has a fixed number of channels per group, which
    divides the steps between widths. `strides` are those of the stem and of each stage's first block. The paper leaves
    three things open. Here the stem is `stem` channels wide in every path, and a group has `channels_per_group`. The
    hidden width of attention is a sixteenth of its input's, at least 4; that of a gate that chooses is `LEAST_HIDDEN`
    or more.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *, stem: Channels = 64,
                 layout: Some[tuple[Channels, Count]] = LAYOUT, strides: Some[Stride] | None = None,
                 ratios: Some[Positive] = RATIOS, channels_per_group: Channels = 8, head: str = "one-hot",
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
        """Draw the weights as in any gated net, but start the last norm of every block at gamma 0 (appendix A)."""
        super().reset_parameters(seed)
        for module in self.modules():
            if isinstance(module, Residual):
                module.body[-1].norm.weight.zero_()

# -- DS-EffNet-B0 (appendix B): one gate that rules the last eight blocks --------------------------------------

EFFNET = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))
"""EfficientNet-B0 (Tan and Le 2019, table 1): expansion, channels, blocks, first stride, kernel of each stage."""

EFFNET_32 = (EFFNET[0], (6, 24, 2, 1, 3), *EFFNET[2:])  # with a stem of stride 1, for 32 pixels


class DSEfficientNet(GatedNet):
    """Dynamic slimmable EfficientNet-B0: stem and first `fixed_blocks` at `fixed_ratio`, the others at the gate's.

    Squeeze-and-excitation is the attention head of a gate in every block, with a sigmoid. Its hidden width is a quarter
    of the block's input in the largest net. The slimming head sits in the first block it rules, before its projection.
    Choices are equispaced in each layer: `low`, low + `step`, ... times the paper's channels.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *,
                 layout: Some[tuple] | None = None, stem: Channels = 32, tail: Channels = 1280,
                 fixed_blocks: Whole = 8, fixed_ratio: Positive = 0.5, low: Positive = 0.75, step: Positive = 0.05,
                 num_choices: Count = 20, head: str = "one-hot", shared: bool = True, bn: str = "shared_affine",
                 activation: str = "swish", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout = tuple(map(tuple, layout or (EFFNET if input_size == 224 else EFFNET_32)))
        blocks = [(expand, channels, stride if i == 0 else 1, kernel) for expand, channels, count, stride, kernel
                  in self.layout for i in range(count)]
        columns = self._columns(blocks, make_divisible(stem * fixed_ratio), fixed_blocks, fixed_ratio,
                                (low, step, num_choices))
        widths = (*(column[-1] for column in columns), tail)
        ruled = tuple(unit for unit, column in enumerate(columns) if len(column) > 1)
        rules = {"rules": ruled, "widths": tuple(zip(*(columns[u] for u in ruled), strict=True)),
                 "most": tuple(widths[u] for u in ruled), "head": head, "shared": shared}
        unit = self.new_unit("stem")
        layers = [ConvNormAct(self, 3, widths[0], 3, 2 if input_size == 224 else 1, unit=unit, sources=())]
        sources = (unit,)
        for i, row in enumerate(blocks):
            block, sources = self._block(i, row, widths, sources, rules if i == fixed_blocks else {})
            layers.append(block)
        unit = self.new_unit("tail")
        layers.append(ConvNormAct(self, max(widths[u] for u in sources), tail, 1, unit=unit, sources=sources))
        self.features = Chain(*layers)
        self.classifier = SlimmableLinear(tail, num_classes, sources=(unit,))
        self.finish_gates(widths, {u: widths[u] for u in range(len(widths)) if u not in ruled})

    def _columns(self, blocks, stem: int, fixed_blocks: int, ratio: float, grid) -> list[tuple[int, ...]]:
        """Widths of every unit but the tail by choice, narrowest first; one where all paths agree."""
        columns, before = [(stem,)], (stem,)
        for i, (expand, channels, *_) in enumerate(blocks):
            if expand > 1:
                columns.append(tuple(expand * width for width in before))
            if i < fixed_blocks:
                before = (make_divisible(channels * ratio),)
            else:
                first, step, count = spaced(channels, *grid)
                before = tuple(first + step * k for k in range(count))
            columns.append(before)
        return columns

    def _block(self, i: int, row, widths, sources, rules):
        expand, _, stride, kernel = row
        channels, layers, hidden = max(widths[u] for u in sources), [], sources[-1]
        if expand > 1:
            hidden = self.new_unit(f"block{i}.hidden")
            layers.append(ConvNormAct(self, channels, widths[hidden], 1, unit=hidden, sources=sources))
        out = self.new_unit(f"block{i}.out")
        inside = (hidden,) if expand > 1 else sources
        layers += [ConvNormAct(self, widths[hidden], widths[hidden], kernel, stride, unit=hidden, sources=inside,
                               depthwise=True),
                   Gate(widths[hidden], max(1, channels // 4), sources=inside, delta="sigmoid", **rules),
                   ConvNormAct(self, widths[hidden], widths[out], 1, unit=out, sources=inside, activation="none")]
        body = Chain(*layers)
        if stride == 1 and channels == widths[out] and not rules:
            joined = (*sources, out)
            return Residual(body, None, "none", joined), joined
        return body, (out,)
