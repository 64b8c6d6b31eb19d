"""MobileNetV1, V2 and V3: depthwise-separable blocks, inverted residuals, inverted residuals in elastic stages."""

from __future__ import annotations

from slimnb.nets.base import SlimmableNet
from slimnb.nets.elastic import ElasticNet, Row, at_size
from slimnb.nn.blocks import Chain, ConvNormAct, Residual
from slimnb.nn.layers import SlimmableLinear
from slimnb.rules import Channels, Count, Index, Rounding, Some, Stride, checked
from slimnb.subnet import scaled

# -- MobileNetV1: a stem and 13 depthwise-separable blocks; 14 channel units in a chain ------------------------

LAYOUT_V1 = ((32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
             (1024, 2), (1024, 1))  # (channels, stride) of the stem and of each block, for 224 pixels
LAYOUT_V1_32 = ((32, 1), *LAYOUT_V1[1:])  # for 32 pixels: the stem keeps the resolution


class MobileNetV1(SlimmableNet):
    """Slimmable MobileNetV1 (Howard et al. 2017), for 224 or 32 pixels (stem stride 1).

    `largest` is the supernet's width: a multiplier, or the channels of all units. `layout` replaces the
    (channels, stride) of stem and blocks that `input_size` chooses.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224,
                 largest: float | tuple[int, ...] = 1.0, *, layout: Some[tuple[Channels, Stride]] | None = None,
                 bn: str = "calibrated", activation: str = "relu6", rounding: Rounding = "divisible",
                 seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout = tuple(map(tuple, layout or (LAYOUT_V1 if input_size == 224 else LAYOUT_V1_32)))
        self.rounding = rounding
        widths = self.resolve_largest(largest)
        blocks = []
        for i, ((_, stride), width) in enumerate(zip(self.layout, widths, strict=True)):
            unit = self.new_unit("stem" if i == 0 else f"block{i}")
            if i == 0:
                blocks.append(ConvNormAct(self, 3, width, 3, stride, unit=unit, sources=()))
                continue
            before, sources = widths[i - 1], (unit - 1,)
            blocks.append(Chain(
                ConvNormAct(self, before, before, 3, stride, unit=unit - 1, sources=sources, depthwise=True),
                ConvNormAct(self, before, width, 1, unit=unit, sources=sources)))
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(widths[-1], num_classes, sources=(len(widths) - 1,))
        self.finish(widths)

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Return the channels of stem and blocks at `mult`."""
        return tuple(scaled(channels, mult, self.rounding) for channels, _ in self.layout)


# -- MobileNetV2: inverted residual blocks; a channel unit for every hidden layer and every block's output -----

LAYOUT_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
             (6, 320, 1, 1))  # (expansion, channels, blocks, first stride) of each stage


class MobileNetV2(SlimmableNet):
    """Slimmable MobileNetV2 (Sandler et al. 2018), for 224 or 32 pixels (stem and second stage at stride 1).

    `layout` rows are (expansion t, channels, blocks, first stride). The tail is widened only above 1.0x.
    Blocks of one stage may differ in width: the narrower side of a join is padded with zeros.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224,
                 largest: float | tuple[int, ...] = 1.0, *, stem: Channels = 32, tail: Channels = 1280,
                 layout: Some[tuple[Count, Channels, Count, Stride]] = LAYOUT_V2, bn: str = "calibrated",
                 activation: str = "relu6", rounding: Rounding = "divisible", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout, self.stem, self.tail = tuple(map(tuple, layout)), stem, tail
        self.rounding = rounding
        widths = self.resolve_largest(largest)
        unit = self.new_unit("stem")
        blocks = [ConvNormAct(self, 3, widths[unit], 3, 2 if input_size == 224 else 1, unit=unit, sources=())]
        sources, channels = (unit,), widths[unit]
        for stage, (expansion, _, count, first_stride) in enumerate(self.layout):
            for i in range(count):
                stride = first_stride if i == 0 and (input_size == 224 or stage > 1) else 1
                name = f"stage{stage}.{i}"
                block, sources, channels = self._block(name, widths, sources, channels, expansion, stride,
                                                       identity=i > 0)
                blocks.append(block)
        unit = self.new_unit("tail")
        blocks.append(ConvNormAct(self, channels, widths[unit], 1, unit=unit, sources=sources))
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(widths[unit], num_classes, sources=(unit,))
        self.finish(widths)

    def _block(self, name, widths, sources, channels, expansion, stride, identity):
        layers, inner, hidden = [], sources, channels
        if expansion > 1:
            unit = self.new_unit(f"{name}.hidden")
            hidden, inner = widths[unit], (unit,)
            layers.append(ConvNormAct(self, channels, hidden, 1, unit=unit, sources=sources))
        # Only a single producer can feed a depthwise layer without a hidden layer: the stem.
        layers.append(ConvNormAct(self, hidden, hidden, 3, stride, unit=inner[0], sources=inner,
                                  depthwise=True))
        out = self.new_unit(f"{name}.out")
        layers.append(ConvNormAct(self, hidden, widths[out], 1, unit=out, sources=inner, activation="none"))
        if not identity:
            return Chain(*layers), (out,), widths[out]
        sources = (*sources, out)
        return Residual(Chain(*layers), None, "none", sources), sources, max(channels, widths[out])

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Return the channels of all units at `mult`; a hidden layer has t times its input, which is rounded first."""
        before = scaled(self.stem, mult, self.rounding)
        widths = [before]
        for expansion, channels, count, _ in self.layout:
            out = scaled(channels, mult, self.rounding)
            for _ in range(count):
                widths += [expansion * before, out] if expansion > 1 else [out]
                before = out
        return (*widths, scaled(self.tail, max(mult, 1), self.rounding))


# -- MobileNetV3 in the space of Once-for-All: squeeze-and-excitation, five elastic stages ---------------------

LAYOUT_V3: tuple[Row, ...] = ((24, 4, 2, "relu", False), (40, 4, 2, "relu", True), (80, 4, 2, "hswish", False),
                              (112, 4, 1, "hswish", True), (160, 4, 2, "hswish", True))


class MobileNetV3(ElasticNet):
    """Once-for-All MobileNetV3 (Cai et al. 2020), for 224 or 32 pixels (stem and first stage at stride 1).

    `layout` rows are (channels, blocks, first stride, activation, squeeze-and-excitation); `depths`, `expands`
    and `kernels` say what a stage or block may have. DepS trains 7 x 7 kernels only; OFA's space has
    `kernels=(3, 5, 7)`. `largest` multiplies all channels but is one number: stages are not elastic in width.
    Raises ParameterError unless kernels are odd and ascending and the other choices ascend.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *,
                 layout: Some[Row] | None = None, stem: Channels = 16, first: Channels = 16, tail: Channels = 960,
                 head: Index = 1280, depths: Some[Count] = (2, 3, 4), expands: Some[Count] = (3, 4, 6),
                 kernels: Some[Count] = (7,), bn: str = "calibrated", seed: int = 0):
        super().__init__(num_classes, input_size, bn, "hswish", seed)
        layout = layout or at_size(LAYOUT_V3, input_size)
        self.build(largest, layout, (stem, first, tail, head), depths, expands, kernels)
