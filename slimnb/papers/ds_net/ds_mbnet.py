"""DS-MBNet (DS-Net): MobileNetV1 with channel attention in every block and one gate that rules the last ones."""

from __future__ import annotations

from slimnb.errors import SlimnbError
from slimnb.nn.gate import LEAST_HIDDEN, Gate
from slimnb.nn.layers import SlimmableLinear
from slimnb.nn.blocks import Chain, ConvNormAct
from slimnb.nets.gated import GatedNet, check_contains, equispaced, side_by_side, spaced

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
    """Dynamic slimmable MobileNetV1: the stem and first blocks have one width, the others that of the gate's choice.

    `variant` "released" or "printed" gives all widths; `fixed`, `grid`, `num_choices` and `largest` replace them. Each
    block has attention between its depthwise and its pointwise convolution, with a hidden width a quarter of the
    largest net's; the gate is that of the first ruled block. `head` and `shared`: see `slimnb.nn.gate.Gate`.
    """

    def __init__(self, num_classes: int = 1000, input_size: int = 224, largest: float | tuple[int, ...] = 1.0, *,
                 variant: str = "released", strides: tuple[int, ...] | None = None,
                 fixed: tuple[int, ...] | None = None, grid: Grid | None = None, num_choices: int | None = None,
                 head: str = "one-hot", shared: bool = True,
                 bn: str = "shared_affine", activation: str = "swish", seed: int = 0):
        super().__init__(num_classes, input_size, bn, activation, seed)
        if variant not in VARIANTS:
            raise SlimnbError("P10", f"variant = {variant!r}"[:60], f"it is one of {', '.join(VARIANTS)}",
                              "Set variant='released'.")
        given = VARIANTS[variant]
        supernet = given[3] if fixed is None and grid is None else None
        fixed, grid, num_choices = tuple(fixed or given[0]), grid or given[1], num_choices or given[2]
        self.strides = tuple(strides or (STRIDES if input_size == 224 else (1, *STRIDES[1:])))
        rows = side_by_side(*(equispaced(first, step, num_choices, blocks) for first, step, blocks in grid))
        units = len(fixed) + len(rows[0])
        if len(self.strides) != units:
            raise SlimnbError("S77", f"{len(self.strides)} strides for {units} layers",
                              "the stem and every block have one", "Give as many strides as widths.", "")
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
