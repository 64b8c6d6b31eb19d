"""MobileNetV1: a stem and 13 depthwise-separable blocks; 14 channel units in a chain."""

from __future__ import annotations

from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import Chain, ConvNormAct
from slimnb.nn.layers import SlimmableLinear
from slimnb.subnet import scaled

LAYOUT = ((32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
          (1024, 2), (1024, 1))  # (channels, stride) of the stem and of each block, for 224 pixels
LAYOUT_32 = ((32, 1), *LAYOUT[1:])  # for 32 pixels: the stem keeps the resolution


class MobileNetV1(SlimmableNet):
    """Slimmable MobileNetV1 (Howard et al. 2017), for 224 or 32 pixels (stem stride 1).

    `largest` is the supernet's width: a multiplier, or the channels of all units. `layout` replaces the
    (channels, stride) of stem and blocks that `input_size` chooses.
    """

    def __init__(self, num_classes: int = 1000, input_size: int = 224,
                 largest: float | tuple[int, ...] = 1.0, *, layout: tuple[tuple[int, int], ...] | None = None,
                 bn: str = "calibrated", activation: str = "relu6", rounding: str = "divisible",
                 seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout = tuple(map(tuple, layout or (LAYOUT if input_size == 224 else LAYOUT_32)))
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
        """Channels of stem and blocks at `mult`."""
        return tuple(scaled(channels, mult, self.rounding) for channels, _ in self.layout)
