"""ResNet-50 is built of bottlenecks; every convolution is a channel unit, so that any pruned net has a name."""

from __future__ import annotations

from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import Chain, ConvNormAct, MaxPool, Residual
from slimnb.nn.layers import SlimmableLinear
from slimnb.rules import Channels, Count, Rounding, Some, checked
from slimnb.subnet import scaled

LAYOUT = ((64, 3), (128, 4), (256, 6), (512, 3))  # (bottleneck channels, blocks) of each stage
EXPANSION = 4


class ResNet50(SlimmableNet):
    """Slimmable ResNet-50 with its strides in 3x3 convolutions; for 32 pixels it has a 3x3 stem and no max-pool.

    Body and projection of a block may differ in width: the narrower side is padded with zeros.
    """

    rounding = "floor"

    @checked
    def __init__(self, num_classes: int = 1000, input_size: int = 224,
                 largest: float | tuple[int, ...] = 1.0, *, stem: Channels = 64,
                 layout: Some[tuple[Channels, Count]] = LAYOUT, bn: str = "calibrated",
                 activation: str = "relu", rounding: Rounding = "floor", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout, self.stem, self.rounding = tuple(map(tuple, layout)), stem, rounding
        widths = self.resolve_largest(largest)
        unit = self.new_unit("stem")
        kernel, stride = (7, 2) if input_size == 224 else (3, 1)
        blocks = [ConvNormAct(self, 3, widths[unit], kernel, stride, unit=unit, sources=())]
        if input_size == 224:
            blocks.append(MaxPool(3, 2, 1, sources=(unit,)))
        sources, channels = (unit,), widths[unit]
        for stage, (_, count) in enumerate(self.layout):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage{stage}.{i}"
                block, sources, channels = bottleneck(self, name, widths, sources, channels, stride, i == 0)
                blocks.append(block)
        self.features = Chain(*blocks)
        self.classifier = SlimmableLinear(channels, num_classes, sources=sources)
        self.finish(widths)

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Return the channels of all units at `mult`: out = round(4 x channels x mult), bottleneck = out // 4."""
        widths = [scaled(self.stem, mult, self.rounding)]
        for channels, count in self.layout:
            out = scaled(channels * EXPANSION, mult, self.rounding)
            for i in range(count):
                widths += [out // EXPANSION, out // EXPANSION, out] + [out] * (i == 0)
        return tuple(widths)


def bottleneck(net: SlimmableNet, name: str, widths: tuple[int, ...], sources: tuple[int, ...], channels: int,
               stride: int, project: bool) -> tuple[Residual, tuple[int, ...], int]:
    """Make a block of `net`; return it, and the channel units and most channels of the stream behind it."""
    reduce, spatial, out = (net.new_unit(f"{name}.{part}") for part in ("reduce", "spatial", "out"))
    body = Chain(
        ConvNormAct(net, channels, widths[reduce], 1, unit=reduce, sources=sources),
        ConvNormAct(net, widths[reduce], widths[spatial], 3, stride, unit=spatial, sources=(reduce,)),
        ConvNormAct(net, widths[spatial], widths[out], 1, unit=out, sources=(spatial,),
                    activation="none"))
    if not project:
        sources = (*sources, out)
        return Residual(body, None, net.activation, sources), sources, max(channels, widths[out])
    unit = net.new_unit(f"{name}.project")
    shortcut = ConvNormAct(net, channels, widths[unit], 1, stride, unit=unit, sources=sources,
                           activation="none")
    block = Residual(body, shortcut, net.activation, (out, unit))
    return block, (out, unit), max(widths[out], widths[unit])
