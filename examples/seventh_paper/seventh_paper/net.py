"""A net that trains in seconds."""

from __future__ import annotations

from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import Chain, ConvNormAct
from slimnb.nn.layers import SlimmableLinear
from slimnb.subnet import scaled


class TinyNet(SlimmableNet):
    """3x3 convolutions, a global pool, one linear layer. A row of `layout` is channels and stride."""

    def __init__(self, num_classes: int = 10, input_size: int = 32, largest: float | tuple[int, ...] = 1.0, *,
                 layout: tuple[tuple[int, int], ...] = ((16, 2), (32, 2), (64, 2)), bn: str = "calibrated",
                 seed: int = 0):
        super().__init__(num_classes, input_size, bn, "relu", seed)
        self.layout = layout
        widths = self.resolve_largest(largest)
        blocks, sources, channels = [], (), 3  # the image is no channel unit
        for i, (_, stride) in enumerate(layout):
            unit = self.new_unit(f"layer{i}")
            blocks.append(ConvNormAct(self, channels, widths[unit], 3, stride, unit=unit, sources=sources))
            sources, channels = (unit,), widths[unit]
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(channels, num_classes, sources=sources)
        self.finish(widths)

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Channels of the convolutions at `mult`."""
        return tuple(scaled(channels, mult, self.rounding) for channels, _ in self.layout)
