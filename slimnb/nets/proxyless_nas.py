"""ProxylessNAS in the space of Once-for-All: inverted residuals with ReLU6, five elastic stages and a last block."""

from __future__ import annotations

from slimnb.nets.elastic import ElasticNet, at_size
from slimnb.rules import Channels, Count, Some, Stride, checked

LAYOUT = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))


class ProxylessNAS(ElasticNet):
    """Once-for-All ProxylessNAS (Cai et al. 2019), for 224 or 32 pixels (stem and first stage at stride 1).

    `layout` rows are (channels, blocks, first stride); all other options are those of `MobileNetV3`.
    """

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *,
                 layout: Some[tuple[Channels, Count, Stride]] | None = None, stem: Channels = 32, first: Channels = 16,
                 tail: Channels = 1280, depths: Some[Count] = (2, 3, 4), expands: Some[Count] = (3, 4, 6),
                 kernels: Some[Count] = (7,), bn: str = "calibrated", seed: int = 0):
        super().__init__(num_classes, input_size, bn, "relu6", seed)
        rows = tuple((*row, "relu6", False) for row in layout or at_size(LAYOUT, input_size))
        self.build(largest, rows, (stem, first, tail, 0), depths, expands, kernels)
