"""MobileNetV3 in the space of Once-for-All: inverted residuals with squeeze-and-excitation, five elastic stages."""

from __future__ import annotations

from slimnb.nets.elastic import ElasticNet, Row, at_size

LAYOUT: tuple[Row, ...] = ((24, 4, 2, "relu", False), (40, 4, 2, "relu", True), (80, 4, 2, "hswish", False),
                           (112, 4, 1, "hswish", True), (160, 4, 2, "hswish", True))


class MobileNetV3(ElasticNet):
    """Once-for-All MobileNetV3 (Cai et al. 2020), for 224 or 32 pixels (stem and first stage at stride 1).

    `layout` rows are (channels, blocks, first stride, activation, squeeze-and-excitation); `depths`, `expands`
    and `kernels` what a stage or block may have. DepS trains 7 x 7 kernels only; OFA's space has
    `kernels=(3, 5, 7)`. `largest` multiplies all channels but is one number: stages are not elastic in width.
    Errors: ParameterError kernels that are not odd and ascending, ParameterError other choices that are not ascending.
    """

    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *,
                 layout: tuple[Row, ...] | None = None, stem: int = 16, first: int = 16, tail: int = 960,
                 head: int = 1280, depths: tuple[int, ...] = (2, 3, 4), expands: tuple[int, ...] = (3, 4, 6),
                 kernels: tuple[int, ...] = (7,), bn: str = "calibrated", seed: int = 0):
        super().__init__(num_classes, input_size, bn, "hswish", seed)
        self.build(largest, layout or at_size(LAYOUT, input_size), (stem, first, tail, head), depths, expands, kernels)
