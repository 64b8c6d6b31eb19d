"""Elastic depth, expansion and kernel size (Once-for-All, section 3), for supernets of inverted residuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.errors import ParameterError
from slimnb.nets.base import Masks, SlimmableNet
from slimnb.nn.blocks import Chain, ConvNormAct, Residual
from slimnb.nn.layers import (
    ACTIVATIONS,
    PLAIN_ACTIVATIONS,
    Selection,
    SlimmableConv2d,
    SlimmableLinear,
    SlimmableSqueezeExcite,
    narrow,
)
from slimnb.subnet import SearchSpace, Subnet, make_divisible, scaled


class ElasticDepthwise(SlimmableConv2d):
    """A depthwise convolution whose kernel is `kernels[block]` pixels a side.

    A smaller filter is the centre of the next larger one times a matrix that all its channels share (7 -> 5: 25 x 25,
    5 -> 3: 9 x 9). The matrices are learned and start as identities.
    """

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int, *, unit: int, block: int):
        super().__init__(channels, channels, kernels[-1], stride, unit=unit, sources=(unit,), depthwise=True)
        self.kernels, self.block = kernels, block
        self.transforms = nn.ParameterList(torch.empty(k * k, k * k) for k in reversed(kernels[:-1]))

    def filters(self, s: Selection, weight: Tensor) -> Tensor:
        """Return the filters (C, 1, k, k) of the selected size that rows (C, 1, K, K) of `self.weight` stand for."""
        channels, kernel = len(weight), self.kernel_at(s)
        for (larger, smaller), matrix in zip(pairwise(reversed(self.kernels)), self.transforms, strict=True):
            if larger <= kernel:
                break
            edge = (larger - smaller) // 2
            centre = weight[:, :, edge: larger - edge, edge: larger - edge].reshape(channels, -1)
            weight = F.linear(centre, matrix).view(channels, 1, smaller, smaller)
        return weight

    def kernel_at(self, s: Selection | Subnet) -> int:
        """Return the side of the selected kernel in pixels: 0 in a dropped block, the largest where nothing is said."""
        return s.kernels[self.block] if s.kernels else self.kernel


class ElasticStage(Chain):
    """A stage of blocks, of which a subnet runs the first `depths[stage]`, so always the strided one."""

    def __init__(self, stage: int, blocks: Sequence[nn.Module]):
        super().__init__(*blocks)
        self.stage = stage

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, C, H, W) to the output of the last block that the subnet keeps."""
        for block in self._kept(s):
            x = block(x, s)
        return x

    def extract(self, s: Selection) -> nn.Sequential:
        """Extract the blocks that the subnet keeps."""
        return nn.Sequential(*(block.extract(s) for block in self._kept(s)))

    def _kept(self, s: Selection):
        return islice(self, s.depths[self.stage] if s.depths else None)


class FeatureMix(nn.Module):
    """A pointwise convolution and an activation, without bias or norm: MobileNetV3's layer after the pool."""

    def __init__(self, in_channels: int, out_channels: int, activation: str, *, unit: int, sources: tuple[int, ...]):
        super().__init__()
        self.unit, self.activation = unit, activation
        self.conv = SlimmableConv2d(in_channels, out_channels, 1, unit=unit, sources=sources)

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """Map x (B, I, 1, 1) to (B, O, 1, 1)."""
        return narrow(ACTIVATIONS[self.activation](self.conv(x, s)), s.widths[self.unit])

    def extract(self, s: Selection) -> nn.Sequential:
        """Extract convolution and activation."""
        return nn.Sequential(self.conv.extract(s), PLAIN_ACTIVATIONS[self.activation]())


Row = tuple[int, int, int, str, bool]
"""Of one stage: channels, blocks, stride of the first block, activation, squeeze-and-excitation."""


def at_size(layout: tuple[Row, ...], input_size: int) -> tuple[Row, ...]:
    """Fit a layout for 224 pixels to `input_size`: for 32 its first stage keeps the resolution."""
    first, *others = layout
    return layout if input_size == 224 else ((*first[:2], 1, *first[3:]), *others)


class ElasticNet(SlimmableNet):
    """A supernet of inverted residuals with elastic depth, expansion and kernel size; `net.elastic` names subnets.

    A subnet keeps the first blocks of each stage, the first channels of each hidden layer and a kernel size
    per block; blocks it drops have width and kernel 0 (`SearchSpace.canonical`). `net.search_space` holds
    all of them. Subclasses call `build`.
    """

    search_space: SearchSpace

    def build(self, largest: float, layout: tuple[Row, ...], ends: tuple[int, int, int, int], depths: tuple[int, ...],
              expands: tuple[int, ...], kernels: tuple[int, ...]) -> None:
        """Make all layers; `ends` has the channels of stem, first block, tail and head (0: no layer after the pool)."""
        _check_kernels(kernels)
        self.layout, self.ends = tuple(map(tuple, layout)), ends
        self.depths = tuple(_up_to(depths, blocks) for _, blocks, *_ in self.layout)
        self.expands, self.kernels = tuple(expands), tuple(kernels)
        widths = self.resolve_largest(largest)
        unit = self.new_unit("stem")
        layers = [ConvNormAct(self, 3, widths[0], 3, 2 if self.input_size == 224 else 1, unit=unit, sources=()),
                  self._first_block(widths)]
        sources, self.block_units = (0, 1) if widths[0] == widths[1] else (1,), []
        for stage, (_, count, stride, activation, attention) in enumerate(self.layout):
            blocks = []
            for i in range(count):
                block, sources = self._block(f"stage{stage}.{i}", widths, sources, 1 if i else stride, activation,
                                             attention)
                blocks.append(block)
            layers.append(ElasticStage(stage, blocks))
        tail = self.new_unit("tail")
        layers.append(ConvNormAct(self, widths[sources[0]], widths[tail], 1, unit=tail, sources=sources))
        self.features = Chain(*layers)
        if ends[3]:
            head = self.new_unit("head")
            self.mix = FeatureMix(widths[tail], widths[head], self.activation, unit=head, sources=(tail,))
            tail = head
        self.classifier = SlimmableLinear(widths[tail], self.num_classes, sources=(tail,))
        self.search_space = self._space(widths)
        self.finish(widths, tuple(c[-1] for c in self.depths), (self.kernels[-1],) * len(self.block_units))

    def _first_block(self, widths: tuple[int, ...]) -> nn.Module:
        out, activation = self.new_unit("first"), "relu" if self.activation == "hswish" else self.activation
        body = Chain(ConvNormAct(self, widths[0], widths[0], 3, unit=0, sources=(0,), depthwise=True,
                                 activation=activation),
                     ConvNormAct(self, widths[0], widths[out], 1, unit=out, sources=(0,), activation="none"))
        return Residual(body, None, "none", (0, out)) if widths[0] == widths[out] else body

    def _block(self, name, widths, sources, stride, activation, attention):
        hidden, out = self.new_unit(f"{name}.hidden"), self.new_unit(f"{name}.out")
        depthwise = ConvNormAct(self, widths[hidden], widths[hidden], self.kernels[-1], stride, unit=hidden,
                                sources=(hidden,), depthwise=True, activation=activation)
        depthwise.conv = ElasticDepthwise(widths[hidden], self.kernels, stride, unit=hidden,
                                          block=len(self.block_units))
        layers = [ConvNormAct(self, widths[sources[0]], widths[hidden], 1, unit=hidden, sources=sources,
                              activation=activation), depthwise]
        if attention:
            layers.append(SlimmableSqueezeExcite(widths[hidden], unit=hidden))
        layers.append(ConvNormAct(self, widths[hidden], widths[out], 1, unit=out, sources=(hidden,),
                                  activation="none"))
        self.block_units.append((hidden, out))
        if name.endswith(".0"):
            return Chain(*layers), (out,)
        sources = (*sources, out)
        return Residual(Chain(*layers), None, "none", sources), sources

    def _space(self, widths: tuple[int, ...]) -> SearchSpace:
        choices = [(width,) for width in widths]
        before = widths[1]
        for hidden, out in self.block_units:
            choices[hidden] = tuple(make_divisible(round(before * expand)) for expand in self.expands)
            before = widths[out]
        return SearchSpace(tuple(choices), depths=self.depths, kernels=(self.kernels,) * len(self.block_units),
                           block_units=tuple(self.block_units))

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Return the channels of all units at full depth and expansion, the paper's numbers times `mult`."""
        stem, first, tail, head = (scaled(channels, mult) if channels else 0 for channels in self.ends)
        widths, before = [stem, first], first
        for channels, blocks, *_ in self.layout:
            for _ in range(blocks):
                widths += [make_divisible(round(before * max(self.expands))), scaled(channels, mult)]
                before = widths[-1]
        return (*widths, tail, *((head,) if head else ()))

    # -- subnets -----------------------------------------------------------------------------------------

    def elastic(self, depth: int | None = None, expand: int | None = None, kernel: int | None = None,
                resolution: int | None = None) -> Subnet:
        """Return the subnet whose every stage keeps `depth` blocks and whose every block has `expand` and `kernel`.

        None stands for the largest; a stage with fewer blocks keeps them all. `elastic(2, 3, 7)` is the
        papers' D2E3 with 7 x 7 kernels. Raises ParameterError if that is no subnet of this net.
        """
        deepest = sorted({depth for choices in self.depths for depth in choices})
        allowed = {"depth": deepest, "expand": self.expands, "kernel": self.kernels}
        for name, value in (("depth", depth), ("expand", expand), ("kernel", kernel)):
            if value not in (*allowed[name], None):
                raise ParameterError(f"{name} = {value!r}"[:60], f"this net has {_listed(allowed[name])}",
                                     f"Choose one of them, or build the net with it among {name}s.")
        depth, expand, kernel = depth or deepest[-1], expand or self.expands[-1], kernel or self.kernels[-1]
        depths = tuple(min(depth, choices[-1]) for choices in self.depths)
        widths = list(self.largest.widths)
        for hidden, _ in self.block_units:
            widths[hidden] = self.search_space.widths[hidden][self.expands.index(expand)]
        subnet = Subnet(tuple(widths), depths, (kernel,) * len(self.block_units), resolution)
        subnet = self.search_space.canonical(subnet)
        self.check(subnet)
        return subnet

    def check(self, subnet: Subnet) -> None:
        """Raise ParameterError unless `search_space` has `subnet`, in canonical form; its resolution may be any."""
        if subnet not in self._checked and not self.search_space.contains(replace(subnet, resolution=None)):
            what, why = self._misfit(subnet)
            raise ParameterError(what, why, "Make it with net.elastic(depth, expand, kernel) or "
                                 "net.search_space.canonical(subnet).")
        super().check(subnet)

    def _misfit(self, subnet: Subnet) -> tuple[str, str]:
        """Say what is wrong with a subnet that `search_space` does not contain, and which rule it breaks."""
        space, kinds = self.search_space, ("widths", "depths", "kernels")
        for kind in kinds:
            count, expected = len(getattr(subnet, kind)), len(getattr(space, kind))
            if count != expected:
                return f"a subnet of {count} {kind}", f"{type(self).__name__} has {expected}"
        for stage, (depth, choices) in enumerate(zip(subnet.depths, space.depths, strict=True)):
            if depth not in choices:
                return f"depth {depth} of stage {stage}", f"it keeps {_listed(choices)} blocks"
        ones = [(1,) * len(values) for values in (subnet.widths, subnet.kernels)]
        kept = space.canonical(replace(subnet, widths=ones[0], kernels=ones[1]))  # 0 where a block is dropped
        places = [(f"kernel {{}} in block {block}", *row) for block, row in enumerate(
            zip(subnet.kernels, space.kernels, kept.kernels, strict=True))]
        places += [(f"width {{}} in unit {name!r}", *row) for name, *row in
                   zip(self.unit_names, subnet.widths, space.widths, kept.widths, strict=True)]
        what, value, choices, keep = next(place for place in places if place[1] not in (place[2] if place[3] else (0,)))
        return what.format(value), f"it is {_listed(choices)}" if keep else "it is 0, as its block is dropped"

    def masks(self, widths: Tensor, subnets: list[Subnet] | None = None) -> Masks:
        """Return masks as any net does, with dropped blocks at width 0; samples may not differ in kernels."""
        masks = super().masks(widths, subnets)
        if not subnets:
            return masks
        columns = zip(*(subnet.kernels for subnet in subnets), strict=True)
        kernels = [set(column) - {0} or {self.kernels[-1]} for column in columns]
        block = next((b for b, sizes in enumerate(kernels) if len(sizes) > 1), None)
        if block is not None:
            raise ParameterError(f"kernels {_listed(sorted(kernels[block]))} in block {block} of one batch",
                                 "masks give every sample its own widths and depths, not its own kernels",
                                 "Run subnets with other kernels one by one.")
        return replace(masks, kernels=tuple(size for (size,) in kernels))

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw weights as any net does; kernel transforms start as identities."""
        super().reset_parameters(seed)
        for module in self.modules():
            if isinstance(module, ElasticDepthwise):
                for matrix in module.transforms:
                    torch.nn.init.eye_(matrix)


def _up_to(depths: Sequence[int], blocks: int) -> tuple[int, ...]:
    """Return the depths that a stage of `blocks` blocks has; a larger one stands for all of its blocks."""
    if max(depths, default=0) < blocks:
        raise ParameterError(f"depths = {depths!r} of a stage of {blocks} blocks"[:90],
                             "no subnet keeps its last block", f"Add {blocks} to depths, or lay out fewer blocks.")
    return tuple(sorted({min(depth, blocks) for depth in depths}))


def _check_kernels(kernels: Sequence[int]) -> None:
    if not kernels or list(kernels) != sorted(set(kernels)) or any(k % 2 == 0 or k < 1 for k in kernels):
        raise ParameterError(f"kernels = {kernels!r}"[:60], "they are odd, ascending and not repeated",
                             "Set kernels=(7,) or (3, 5, 7).")


def _listed(values: Sequence[int]) -> str:
    return " or ".join(map(str, values))
