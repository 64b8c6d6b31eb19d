"""A subnet is a value that names the channels, blocks, kernels and resolution with which a supernet runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate

import numpy as np

from slimnb.errors import ParameterError
from slimnb.rules import Mult, Pixels, Rounding, Whole, checked


def make_divisible(value: float | Fraction, divisor: int = 8, minimum: int = 8) -> int:
    """Return the multiple of `divisor` nearest to `value` channels, at least `minimum`, at most 10 % below `value`."""
    rounded = max(minimum, math.floor((value + Fraction(divisor, 2)) / divisor) * divisor)
    return rounded + divisor if rounded < Fraction(9, 10) * Fraction(value) else rounded


@checked
def scaled(channels: Whole, mult: Mult, rounding: Rounding = "divisible") -> int:
    """Return `channels` times the width multiplier `mult`, in multiples of 8 ("divisible") or floored ("floor").

    `mult` is read as the decimal that it prints as: 0.525 means 525/1000. The nearest binary fraction would move the
    160-channel stage of MobileNetV2 from 88 to 80 channels.
    """
    exact = channels * Fraction(str(mult))
    return make_divisible(exact) if rounding == "divisible" else math.floor(exact)


@dataclass(frozen=True, slots=True)
class Subnet:
    """One network inside a supernet. It is frozen and hashable, so that it can be the key of a cache.

    Raises ParameterError for a field that is not made of whole numbers.
    """

    widths: tuple[int, ...]  # channels kept in each channel unit
    depths: tuple[int, ...] = ()  # blocks kept in each stage
    kernels: tuple[int, ...] = ()  # kernel size of each elastic block, pixels (0 = block dropped)
    resolution: int | None = None  # input side, pixels; None = as given

    def __post_init__(self):
        for name in ("widths", "depths", "kernels"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or any(type(v) is not int or v < 0 for v in values):
                raise ParameterError(f"Subnet.{name} = {values!r}"[:100], "they are whole numbers >= 0",
                                     f"Give a tuple of ints as {name}.")
            object.__setattr__(self, name, tuple(values))
        if self.resolution is not None and (type(self.resolution) is not int or self.resolution < 1):
            raise ParameterError(f"Subnet.resolution = {self.resolution!r}"[:100],
                                 "it is a whole number of pixels or None", "Set e.g. 32.")

    def __str__(self) -> str:
        parts = ["-".join(map(str, values)) for values in (self.widths, self.depths, self.kernels) if values]
        return "/".join(parts) + (f"@{self.resolution}" if self.resolution else "")

    def to_json(self) -> dict:
        """Return a plain dict of lists and ints, without the fields that are at their default."""
        fields = {"widths": list(self.widths), "depths": list(self.depths), "kernels": list(self.kernels)}
        out = {name: values for name, values in fields.items() if values}
        return out | ({"resolution": self.resolution} if self.resolution else {})

    @classmethod
    def from_json(cls, data: dict) -> Subnet:
        """Return the subnet that `to_json` wrote. Raises ParameterError for unknown fields."""
        known = ("widths", "depths", "kernels", "resolution")
        if not isinstance(data, dict) or "widths" not in data or not set(data) <= set(known):
            raise ParameterError(f"subnet {data!r}"[:100], "a subnet is written as widths, with or "
                                 "without depths, kernels, resolution", 'Give e.g. {"widths": [8, 16]}.')
        return cls(**data)


@checked
def elementwise_max(subnets: Iterable[Subnet]) -> tuple[int, ...]:
    """Return the widths of the smallest supernet that contains all `subnets`, which need not be nested.

    Raises ParameterError for subnets of different nets.
    """
    widths = [subnet.widths for subnet in subnets]
    if len({len(row) for row in widths}) != 1:
        raise ParameterError(f"subnets of {sorted({len(row) for row in widths})} widths",
                             "subnets of one supernet have as many widths as it has channel units",
                             "Give one or more subnets of one net.")
    return tuple(map(max, zip(*widths, strict=True)))


@dataclass(frozen=True)
@checked
class SearchSpace:
    """All subnets that a search may name: the choices of every channel unit, stage, elastic block and resolution.

    Units with the same number in `tied` move together: they take the choice of the same index (PSS-Net's one multiplier
    per stage). `depths` holds the block counts that a stage may keep. `block_units` holds the channel units of each
    elastic block, stage after stage; `canonical` needs them to rename what a dropped block leaves behind. Raises
    ParameterError for choices that contradict each other.
    """

    widths: tuple[tuple[int, ...], ...]  # ascending choices of each channel unit, channels
    tied: tuple[Whole, ...] = ()  # group of each unit; () = every unit on its own
    depths: tuple[tuple[int, ...], ...] = ()  # ascending choices of each stage, blocks
    kernels: tuple[tuple[int, ...], ...] = ()  # ascending choices of each elastic block, pixels
    block_units: tuple[tuple[int, ...], ...] = ()  # channel units of each elastic block
    resolutions: tuple[Pixels, ...] = ()  # ascending, pixels

    def __post_init__(self):
        for name in ("widths", "depths", "kernels"):
            for i, choices in enumerate(getattr(self, name)):
                _check_choices(f"{name}[{i}]", choices, least=0 if name == "depths" else 1)
        if self.resolutions:
            _check_choices("resolutions", self.resolutions)
        blocks = sum(max(choices) for choices in self.depths) if self.depths else None
        counts = (("ties", self.tied, len(self.widths)), ("kernel choices", self.kernels, blocks),
                  ("block units", self.block_units, blocks))
        for name, values, expected in counts:
            if values and expected is not None and len(values) != expected:
                raise ParameterError(f"{len(values)} {name}", f"this space needs {expected} of them",
                                     "Give one per channel unit (ties) or per elastic block, or ().")
        home = {unit: block for block, units in enumerate(self.block_units) for unit in units}
        for group in self._groups():
            alike = {(len(self.widths[unit]), home.get(unit)) for unit in group}
            if len(alike) > 1:
                raise ParameterError(f"tied channel units {group}"[:100], "tied units have equally many "
                                     "choices and lie in one elastic block", "Tie others, or none.")

    def _groups(self) -> list[list[int]]:
        tied = self.tied or range(len(self.widths))
        groups: dict[int, list[int]] = {}
        for unit, group in enumerate(tied):
            groups.setdefault(group, []).append(unit)
        return list(groups.values())

    def _stage_blocks(self) -> list[range]:
        ends = list(accumulate(max(choices) for choices in self.depths))
        return [range(end - max(choices), end) for end, choices in zip(ends, self.depths, strict=True)]

    def _pick(self, index: int) -> Subnet:
        chosen = tuple(choices[index] for choices in self.widths)
        return Subnet(chosen, tuple(c[index] for c in self.depths), tuple(c[index] for c in self.kernels),
                      self.resolutions[index] if self.resolutions else None)

    @property
    def largest(self) -> Subnet:
        """The subnet with every choice at its maximum."""
        return self._pick(-1)

    @property
    def smallest(self) -> Subnet:
        """The subnet with every choice at its minimum, in canonical form."""
        return self.canonical(self._pick(0))

    def at(self, index: np.ndarray) -> list[Subnet]:
        """Return the subnets whose units have the choices `index` (N, units); the space must have widths alone."""
        return [Subnet(tuple(choices[at] for choices, at in zip(self.widths, row, strict=True)))
                for row in index.tolist()]

    @checked
    def sample(self, rng: np.random.Generator) -> Subnet:
        """Draw one subnet, every choice uniformly; it is in canonical form."""
        widths = tuple(int(w) for w in self.sample_widths(rng, 1)[0])
        depths, kernels = (tuple(int(rng.choice(c)) for c in table) for table in (self.depths, self.kernels))
        resolution = int(rng.choice(self.resolutions)) if self.resolutions else None
        return self.canonical(Subnet(widths, depths, kernels, resolution))

    def sample_widths(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw (n, units) widths, each unit or tied group uniformly from its choices."""
        out = np.empty((n, len(self.widths)), dtype=np.int64)
        for group in self._groups():
            index = rng.integers(len(self.widths[group[0]]), size=n)
            for unit in group:
                out[:, unit] = np.asarray(self.widths[unit])[index]
        return out

    def canonical(self, subnet: Subnet) -> Subnet:
        """Return `subnet` with the widths and kernels of dropped blocks set to 0, so that one network has one name."""
        if not self.depths:
            return subnet
        widths, kernels = list(subnet.widths), list(subnet.kernels)
        for depth, blocks in zip(subnet.depths, self._stage_blocks(), strict=True):
            for block in blocks[depth:]:
                if kernels:
                    kernels[block] = 0
                for unit in self.block_units[block] if self.block_units else ():
                    widths[unit] = 0
        return replace(subnet, widths=tuple(widths), kernels=tuple(kernels))

    def contains(self, subnet: Subnet) -> bool:
        """Return whether `subnet`, which is in canonical form, is one of this space's."""
        dropped_units, dropped_blocks = self._dropped(subnet)
        pairs = [(subnet.widths, self.widths, dropped_units), (subnet.depths, self.depths, set()),
                 (subnet.kernels, self.kernels, dropped_blocks)]
        if any(len(values) != len(table) for values, table, _ in pairs):
            return False
        inside = all(value == 0 if i in dropped else value in table[i]
                     for values, table, dropped in pairs for i, value in enumerate(values))
        tied = all(len({self.widths[u].index(subnet.widths[u]) for u in group}) == 1
                   for group in self._groups() if inside and not dropped_units & set(group))
        return inside and tied and subnet.resolution in (self.resolutions or (None,))

    def _dropped(self, subnet: Subnet) -> tuple[set[int], set[int]]:
        if len(subnet.depths) != len(self.depths):
            return set(), set()
        blocks = {block for depth, stage in zip(subnet.depths, self._stage_blocks(), strict=True)
                  for block in stage[depth:]}
        units = {unit for block in blocks for unit in (self.block_units[block] if self.block_units else ())}
        return units, blocks

    @property
    def size(self) -> int:
        """The number of different subnets; names that mean the same network count once."""
        home = {unit: block for block, units in enumerate(self.block_units) for unit in units}
        blocks = max(len(self.block_units), len(self.kernels), sum(max(choices) for choices in self.depths))
        free, per_block = max(1, len(self.resolutions)), [1] * blocks
        for block, choices in enumerate(self.kernels):
            per_block[block] *= len(choices)
        for group in self._groups():
            if group[0] in home:
                per_block[home[group[0]]] *= len(self.widths[group[0]])
            else:
                free *= len(self.widths[group[0]])
        if not self.depths:
            return free * math.prod(per_block)
        return free * math.prod(sum(math.prod(per_block[b] for b in stage[:depth]) for depth in choices)
                                for choices, stage in zip(self.depths, self._stage_blocks(), strict=True))


def _check_choices(name: str, choices: tuple[int, ...], least: int = 1) -> None:
    valid = isinstance(choices, (tuple, list)) and all(type(c) is int and c >= least for c in choices)
    if not valid or not choices or list(choices) != sorted(set(choices)):
        raise ParameterError(f"{name} = {choices!r}"[:100],
                             f"choices are whole numbers >= {least}, ascending, not repeated",
                             "Give e.g. (8, 16, 24).")
