"""Nets with gates: every sample may take a path of its own through one supernet (DS-Net, section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from slimnb.errors import ParameterError
from slimnb.nets.base import Masks, SlimmableNet
from slimnb.nn.gate import Gate, Gated
from slimnb.nn.layers import Selection
from slimnb.nn.norm import GROUP, PRIVATE
from slimnb.subnet import SearchSpace, Subnet, make_divisible


def equispaced(first: int, step: int, count: int, blocks: int) -> tuple[tuple[int, ...], ...]:
    """`count` choices for `blocks` units: first, first + step, ... channels in each (appendix A). Choices are rows."""
    return tuple((first + step * k,) * blocks for k in range(count))


def side_by_side(*grids: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """One grid whose choice k is choice k of all `grids`. Raises ParameterError where they differ in length."""
    lengths = sorted({len(grid) for grid in grids})
    if len(lengths) > 1:
        raise ParameterError(f"grids of {' and '.join(map(str, lengths))} widths",
                             "all layers that a gate rules have one width per choice", "Make the grids equally long.")
    return tuple(tuple(itertools.chain(*rows)) for rows in zip(*grids, strict=True))


def spaced(channels: int, low: float, step: float, count: int, divisor: int = 8) -> tuple[int, int, int]:
    """(first, step, count) of an equispaced grid nearest to the ratios low, low + step, ... of `channels`.

    Rounding every ratio by itself would give steps of unequal size. Grids are read as half-open: the paper's
    [.35 : .05 : 1.25] has the 18 values that it counts, [.75 : .05 : 1.75] 20.
    """
    return make_divisible(channels * low), max(divisor, round(channels * step / divisor) * divisor), count


class GatedNet(SlimmableNet):
    """A supernet whose gates can choose widths for each sample; `net.path(k)` is the subnet of given choices.

    `net(x, net.path(3))` runs that path for all samples, `net(x, Gated())` lets the gates decide: evaluated on masks,
    at full width, which is for training; DS-Net's `DynamicNet` runs the same decisions sliced. Batch-norm statistics of
    the channels before the first gate must not depend on the path: calibrate all paths together.
    Subclasses build `features` with gates in it and call `finish_gates`.
    """

    def finish_gates(self, widths: tuple[int, ...], fixed: dict[int, int]) -> None:
        """As `finish`; `fixed` are the widths that units not ruled by a gate have in every path.

        Raises ParameterError.
        """
        self.gates: list[Gate] = [m for m in self.modules() if isinstance(m, Gate) and m.rules]
        ruled = [unit for gate in self.gates for unit in gate.rules]
        if sorted([*ruled, *fixed]) != list(range(len(self.unit_names))):
            raise ValueError("every channel unit is either fixed or ruled by one gate")
        if len(self.gates) > 1 and self.bn != GROUP:
            raise ParameterError(f"bn = {self.bn!r} with {len(self.gates)} gates",
                                 "statistics would be needed for every combination of choices", f"Set bn={GROUP!r}.")
        if self.bn == PRIVATE:
            raise ParameterError("bn = 'private' with gates", "paths share their affine parameters",
                                 "Set bn='shared_affine'.")
        self.fixed = dict(fixed)
        chosen = [width for gate in self.gates for row in gate.widths for width in row]
        odd = [width for width in (*self.fixed.values(), *chosen) if width % self.channels_per_group]
        if self.bn == GROUP and odd:
            raise ParameterError(f"width {odd[0]} of a gate's choices",
                                 f"group norm needs multiples of {self.channels_per_group} channels",
                                 "Change the ratios, or channels_per_group.")
        self.finish(widths)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """As of any net; gates by `Gate.reset`."""
        super().reset_parameters(seed)
        if not next(self.parameters()).is_meta:
            rng = torch.Generator().manual_seed(seed + 1)
            for gate in self.modules():
                if isinstance(gate, Gate):
                    gate.reset(rng)

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Gated nets have paths, not width multipliers: ParameterError."""
        raise ParameterError(f"width multiplier {mult!r}"[:60], f"{type(self).__name__} is not scaled uniformly",
                             "Ask for a path, as in net.path(0).")

    # -- paths -------------------------------------------------------------------------------------------

    @property
    def choices(self) -> tuple[int, ...]:
        """How many choices each gate has."""
        return tuple(gate.choices for gate in self.gates)

    def path(self, *chosen: int) -> Subnet:
        """The subnet of one choice per gate, from 0, the narrowest; one number serves all gates.

        Raises ParameterError.
        """
        chosen = chosen * len(self.gates) if len(chosen) == 1 else chosen
        if len(chosen) != len(self.gates) or any(type(k) is not int for k in chosen):
            raise ParameterError(f"path {chosen!r}"[:60], f"this net has {len(self.gates)} gates",
                                 "Give one number for each, or one for all.")
        widths = [0] * len(self.unit_names)
        for unit, width in self.fixed.items():
            widths[unit] = width
        for gate, k in zip(self.gates, chosen, strict=True):
            if not 0 <= k < gate.choices:
                raise ParameterError(f"choice {k}", f"the gate has choices 0 to {gate.choices - 1}",
                                     "Choose one of them.")
            for unit, width in zip(gate.rules, gate.widths[k], strict=True):
                widths[unit] = width
        return Subnet(tuple(widths))

    @property
    def paths(self) -> list[Subnet]:
        """All paths, the last gate's choice varying fastest."""
        return [self.path(*chosen) for chosen in itertools.product(*map(range, self.choices))]

    @property
    def slimmest(self) -> Subnet:
        """Every gate at its narrowest."""
        return self.path(0)

    @property
    def widest(self) -> Subnet:
        """Every gate at its widest; not `largest`, where that is wider than any path."""
        return self.path(*(count - 1 for count in self.choices))

    @property
    def path_space(self) -> SearchSpace:
        """The space that holds the paths: the units that one gate rules are tied."""
        home = {unit: number for number, gate in enumerate(self.gates) for unit in gate.rules}
        units = range(len(self.unit_names))
        columns = {unit: column for gate in self.gates for unit, column in
                   zip(gate.rules, zip(*gate.widths, strict=True), strict=True)}
        tied = tuple(home.get(unit, len(self.gates) + unit) for unit in units)
        return SearchSpace(tuple(columns.get(unit) or (self.fixed[unit],) for unit in units), tied)

    def check_lowest(self, lowest: int | None) -> int | None:
        """`lowest` itself if every gate has as many choices, or None. Raises ParameterError."""
        if lowest is not None and not (type(lowest) is int and 1 <= lowest <= min(self.choices)):
            raise ParameterError(f"lowest = {lowest!r}"[:60], f"the gates have {min(self.choices)} choices or more",
                                 "Give a whole number from 1 on, or None for all.")
        return lowest

    # -- routing -----------------------------------------------------------------------------------------

    def select(self, route: Subnet | Masks | Gated, momentum: float | None = None,
               statistics: str = "auto") -> Selection:
        """As of any net; of a `Gated` route the widths are filled in by the gates, with the paths' own statistics."""
        if isinstance(route, Gated):
            return routed_selection(self, route)
        return super().select(route, momentum, statistics)


def routed_selection(net: SlimmableNet, route: Gated) -> Selection:
    """The selection of a net that has `gates`, `paths` and `fixed` widths, as its forward pass begins."""
    widths: list = [net.fixed.get(unit) for unit in range(len(net.unit_names))]
    if net.bn == GROUP:
        return Selection(widths, routing=route)
    slots = [net.slot_of(path) for path in net.paths]
    gate, rows = net.gates[0], max(net.slots.values()) + 1
    if gate.slots is None or gate.slots_of != (rows, *slots):
        with torch.inference_mode(False):  # else no later call could train with it
            gate.slots = torch.eye(rows, device=gate.reduce_weight.device)[slots]
        gate.slots_of = (rows, *slots)
    return Selection(widths, slot=slots[0], routing=route)


def check_contains(largest: Sequence[int], widest: Sequence[int]) -> None:
    """Raise ParameterError unless the supernet's widths `largest` hold the widest path."""
    if len(largest) != len(widest) or any(a < b for a, b in zip(largest, widest, strict=True)):
        raise ParameterError(f"largest = {tuple(largest)}"[:90], "the supernet is nowhere narrower than a path",
                             "Leave it out for the widest path.")
