"""MobileNetV2: inverted residual blocks; a channel unit for every hidden layer and every block's output."""

from __future__ import annotations

from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import Chain, ConvNormAct, Residual
from slimnb.nn.layers import SlimmableLinear
from slimnb.subnet import scaled

STEM, TAIL = 32, 1280
LAYOUT = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
          (6, 320, 1, 1))  # (expansion, channels, blocks, first stride) of each stage


class MobileNetV2(SlimmableNet):
    """Slimmable MobileNetV2 (Sandler et al. 2018), for 224 or 32 pixels (stem and second stage at stride 1).

    `layout` rows are (expansion t, channels, blocks, first stride). The tail is widened only above 1.0x.
    Blocks of one stage may differ in width: the narrower side of a join is padded with zeros.
    """

    def __init__(self, num_classes: int = 1000, input_size: int = 224,
                 largest: float | tuple[int, ...] = 1.0, *, stem: int = STEM, tail: int = TAIL,
                 layout: tuple[tuple[int, int, int, int], ...] = LAYOUT, bn: str = "calibrated",
                 activation: str = "relu6", rounding: str = "divisible", seed: int = 0):
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
        """Channels of all units at `mult`: hidden layers are t times the input, rounded before that."""
        before = scaled(self.stem, mult, self.rounding)
        widths = [before]
        for expansion, channels, count, _ in self.layout:
            out = scaled(channels, mult, self.rounding)
            for _ in range(count):
                widths += [expansion * before, out] if expansion > 1 else [out]
                before = out
        return (*widths, scaled(self.tail, max(mult, 1), self.rounding))
