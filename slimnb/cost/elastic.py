"""Structures of elastic nets as rows of choices, and tables in which the costs of their blocks add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from slimnb.cost.macs import macs_by_layer, params_by_layer
from slimnb.errors import ParameterError, SearchError
from slimnb.nets.elastic import ElasticNet, ElasticStage
from slimnb.rules import Array, Count, Pixels, checked
from slimnb.subnet import SearchSpace, Subnet

# A structure is a row of (stages + blocks) choice numbers: of each stage its depth, of each block its
# (expansion, kernel) pair, numbered expansion by expansion. What a row says of dropped blocks has no effect.


@checked
def sample_structures(space: SearchSpace, rng: np.random.Generator, n: Count) -> np.ndarray:
    """Draw (n, stages + blocks) choice numbers, every choice uniformly as `space.sample` does."""
    return rng.integers(choices_per_column(space), size=(n, len(space.depths) + len(space.kernels)))


@checked
def structures_of(space: SearchSpace, subnets: Sequence[Subnet]) -> np.ndarray:
    """Return the choice numbers (N, stages + blocks) of canonical subnets; dropped blocks get choice 0.

    Raises ParameterError for a subnet of another space.
    """
    rows = np.zeros((len(subnets), len(space.depths) + len(space.kernels)), dtype=np.int64)
    for row, subnet in zip(rows, subnets, strict=True):
        try:
            row[: len(space.depths)] = [c.index(d) for c, d in zip(space.depths, subnet.depths, strict=True)]
            row[len(space.depths):] = [
                space.widths[units[0]].index(subnet.widths[units[0]]) * len(kernels) + kernels.index(kernel)
                if kernel else 0
                for units, kernels, kernel in zip(space.block_units, space.kernels, subnet.kernels, strict=True)]
        except ValueError:
            raise ParameterError(f"subnet {subnet}"[:90], "it is not one of this space",
                                 "Make it with net.elastic or space.sample of the same net.") from None
    return rows


@checked
def subnets_at(space: SearchSpace, structures: Array, resolution: Pixels | None = None) -> list[Subnet]:
    """Return the canonical subnets of `structures` (N, stages + blocks)."""
    stages, kept = len(space.depths), kept_blocks(space, structures)
    widths = np.tile([choices[-1] for choices in space.widths], (len(structures), 1))
    sides = np.empty(kept.shape, dtype=np.int64)
    for block, (units, kernels) in enumerate(zip(space.block_units, space.kernels, strict=True)):
        which, side = np.divmod(structures[:, stages + block], len(kernels))
        sides[:, block] = np.asarray(kernels)[side]
        widths[:, units[0]] = np.asarray(space.widths[units[0]])[which]
        widths[:, list(units)] *= kept[:, block, None]
    sides *= kept
    depths = _depths(space, structures)
    rows = zip(widths.tolist(), depths.tolist(), sides.tolist(), strict=True)
    return [Subnet(*map(tuple, row), resolution) for row in rows]


def kept_blocks(space: SearchSpace, structures: np.ndarray) -> np.ndarray:
    """Return which blocks each structure keeps, (N, blocks) bool. Raises ParameterError for other shapes."""
    _check(space, structures)
    place = np.concatenate([np.arange(choices[-1]) for choices in space.depths])
    stage = np.repeat(np.arange(len(space.depths)), [choices[-1] for choices in space.depths])
    return place < _depths(space, structures)[:, stage]


def _depths(space: SearchSpace, structures: np.ndarray) -> np.ndarray:
    columns = zip(space.depths, structures.T, strict=False)  # further columns are the blocks'
    return np.stack([np.asarray(choices)[column] for choices, column in columns], 1)


def choices_per_column(space: SearchSpace) -> list[int]:
    """Return how many choices each column of a structure has."""
    pairs = zip(space.block_units, space.kernels, strict=True)
    return [len(c) for c in space.depths] + [len(space.widths[units[0]]) * len(sides) for units, sides in pairs]


def _check(space: SearchSpace, structures: np.ndarray) -> None:
    counts = choices_per_column(space)
    if structures.ndim != 2 or structures.shape[1] != len(counts):
        raise ParameterError(f"structures of shape {structures.shape}",
                             f"they are (N, {len(counts)}): a choice per stage and per block",
                             "Make them with sample_structures.")
    if ((structures < 0) | (structures >= counts)).any():
        raise ParameterError("a choice number out of range", f"choices are counted from 0, {counts}"[:120],
                             "Make them with sample_structures.")


@dataclass(frozen=True)
class ElasticTable:
    """Costs of all subnets of an elastic net: a constant, and a term for the choice of every block that is kept.

    `terms` is (blocks, choices); choices are numbered as in a structure, and `choices[c]` is (expansion, kernel).
    """

    unit: str  # of the costs: "MACs", "parameters", "ms"
    space: SearchSpace
    choices: tuple[tuple[int, int], ...]
    constant: float  # of everything outside the elastic blocks
    terms: np.ndarray
    about: dict = field(default_factory=dict)  # what it holds for: convention, resolution, device, batch

    @classmethod
    @checked
    def macs(cls, net: ElasticNet, convention: str = "A", resolution: Pixels | None = None) -> ElasticTable:
        """Make the table of exact MACs, from one trace for each (expansion, kernel)."""
        about = {"convention": convention, "resolution": resolution or net.input_size}
        layers = partial(macs_by_layer, net, convention=convention, resolution=resolution)
        return cls.by_layer("MACs", net, layers, about)

    @classmethod
    @checked
    def params(cls, net: ElasticNet) -> ElasticTable:
        """Make the table of exact parameters of one subnet, whose small kernels are computed once and stored."""
        return cls.by_layer("parameters", net, lambda subnet: params_by_layer(net, [subnet]), {})

    @classmethod
    def by_layer(cls, unit: str, net: ElasticNet, costs: Callable[[Subnet], dict[str, float]],
                 about: dict) -> ElasticTable:
        """Make a table of `costs(subnet)`, a dict by layer name, for the full depth at each (expansion, kernel)."""
        choices = tuple((expand, kernel) for expand in net.expands for kernel in net.kernels)
        blocks = block_names(net)
        terms = np.zeros((len(blocks), len(choices)), dtype=np.int64 if unit != "ms" else float)
        for column, (expand, kernel) in enumerate(choices):
            of_layer = costs(net.elastic(None, expand, kernel))
            for row, block in enumerate(blocks):
                terms[row, column] = sum(c for name, c in of_layer.items() if (name + ".").startswith(block + "."))
            constant = sum(of_layer.values()) - terms[:, column].sum().item()
        return cls(unit, net.search_space, choices, constant, terms, about)

    def predict(self, structures: np.ndarray) -> np.ndarray:
        """Return the costs (N,) of choice numbers (N, stages + blocks), exact for MACs and parameters.

        Raises ParameterError for other shapes and choices that do not exist.
        """
        kept = kept_blocks(self.space, structures)
        chosen = structures[:, len(self.space.depths):]
        return (self.terms[np.arange(len(self.terms)), chosen] * kept).sum(1) + self.constant

    def of(self, subnet: Subnet) -> float:
        """Return the cost of one subnet.

        Raises SearchError if the subnet has another resolution than the table, ParameterError if it is of another net.
        """
        side = self.about.get("resolution")
        if subnet.resolution and side and subnet.resolution != side:
            raise SearchError(f"resolution {subnet.resolution}", f"the table was made for {side} pixels",
                              "Make one table per resolution.")
        return self.predict(structures_of(self.space, [subnet]))[0].item()


def block_names(net: ElasticNet) -> list[str]:
    """Return the module names of the elastic blocks, in order."""
    return [f"{name}.{i}" for name, stage in net.named_modules() if isinstance(stage, ElasticStage)
            for i in range(len(stage))]
