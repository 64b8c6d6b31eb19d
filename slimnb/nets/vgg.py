"""VGG has 16 convolutions, batch norm, four max-pools, a global pool and one linear layer, as in SP-Net."""

from __future__ import annotations

from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import Chain, ConvNormAct, MaxPool
from slimnb.nn.layers import SlimmableLinear
from slimnb.rules import Channels, Rounding, Some, checked
from slimnb.subnet import scaled

LAYOUT = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)  # channels; a max-pool between rows


class VGG(SlimmableNet):
    """Slimmable 16-convolution VGG (SP-Net, section 4: no fifth max-pool), the same at 224 and 32 pixels."""

    rounding = "floor"

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224,
                 largest: float | tuple[int, ...] = 1.0, *, layout: Some[Some[Channels]] = LAYOUT,
                 bn: str = "calibrated", activation: str = "relu", rounding: Rounding = "floor",
                 seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout, self.rounding = tuple(map(tuple, layout)), rounding
        widths = self.resolve_largest(largest)
        blocks, sources, channels = [], (), 3
        for stage, row in enumerate(self.layout):
            if stage:
                blocks.append(MaxPool(2, 2, sources=sources))
            for i in range(len(row)):
                unit = self.new_unit(f"stage{stage}.{i}")
                blocks.append(ConvNormAct(self, channels, widths[unit], 3, unit=unit, sources=sources))
                sources, channels = (unit,), widths[unit]
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(channels, num_classes, sources=sources)
        self.finish(widths)

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Return the channels of the convolutions at `mult`."""
        return tuple(scaled(channels, mult, self.rounding) for row in self.layout for channels in row)
