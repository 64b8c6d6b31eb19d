"""DS-EffNet-B0 (DS-Net, appendix B): EfficientNet-B0 with one gate that rules its last eight blocks."""

from __future__ import annotations

from slimnb.nn.gate import Gate
from slimnb.nn.layers import SlimmableLinear
from slimnb.nn.blocks import Chain, ConvNormAct, Residual
from slimnb.nets.gated import GatedNet, spaced
from slimnb.subnet import make_divisible

LAYOUT = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))
"""EfficientNet-B0 (Tan and Le 2019, table 1): expansion, channels, blocks, first stride, kernel of each stage."""

LAYOUT_32 = (LAYOUT[0], (6, 24, 2, 1, 3), *LAYOUT[2:])  # with a stem of stride 1, for 32 pixels


class DSEfficientNet(GatedNet):
    """Dynamic slimmable EfficientNet-B0: stem and first `fixed_blocks` at `fixed_ratio`, the others at the gate's.

    Squeeze-and-excitation is the attention head of a gate in every block, with a sigmoid; its hidden width is a quarter
    of the block's input, in the largest net. The slimming head sits in the first ruled block, before its projection.
    Choices are equispaced in each layer: `low`, low + `step`, ... times the paper's channels.
    """

    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float = 1.0, *,
                 layout: tuple[tuple[int, ...], ...] | None = None, stem: int = 32, tail: int = 1280,
                 fixed_blocks: int = 8, fixed_ratio: float = 0.5, low: float = 0.75, step: float = 0.05,
                 num_choices: int = 20, head: str = "one-hot", shared: bool = True, bn: str = "shared_affine",
                 activation: str = "swish", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        self.layout = tuple(map(tuple, layout or (LAYOUT if input_size == 224 else LAYOUT_32)))
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
