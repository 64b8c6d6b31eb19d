"""PSS-Net's structures: widths and resolutions with their prior, what they cost, and buckets of like cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slimnb.cost.latency import latency_tables
from slimnb.cost.table import CostTable, Node, fold
from slimnb.errors import ParameterError, SearchError
from slimnb.nets.base import SlimmableNet
from slimnb.rules import Count, Pixels, Positive, checked
from slimnb.search.random_paths import cumulative
from slimnb.search.trellis import Trellis
from slimnb.subnet import SearchSpace, Subnet

RESOLUTIONS = {224: tuple(range(128, 225, 8)), 32: tuple(range(20, 33, 4))}
"""Input sides (pixels) of the structures of a net laid out for 224 or 32 pixels."""


# -- the space -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Structures:
    """A structure space, and how likely each choice is before any cost is considered.

    A structure is a row of choices: of each group of channel units, and last of the resolution. It stands for the
    rounded channels, so no network has two.
    """

    space: SearchSpace
    unit_names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]  # channel units that move together
    prior: tuple[np.ndarray, ...]  # probabilities of the choices of each group, and last of the resolutions

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of choices of each group, and last of resolutions."""
        return tuple(map(len, self.prior))

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw random structures from the prior: (n, groups + 1) choices."""
        index = np.empty((len(self.prior), n), dtype=np.int64)
        for row, p in zip(index, self.prior, strict=True):
            row[:] = np.searchsorted(cumulative(p), rng.random(n), side="right")
        return index.T

    def widths(self, index: np.ndarray) -> np.ndarray:
        """Return the channels (N, units) of structures (N, groups + 1)."""
        widths = np.empty((len(self.unit_names), len(index)), dtype=np.int64)
        for group, units in enumerate(self.groups):
            for unit in units:
                widths[unit] = np.take(self.space.widths[unit], index[:, group])
        return widths.T

    def resolutions(self, index: np.ndarray) -> np.ndarray:
        """Return the input sides (N,) of structures (N, groups + 1), pixels."""
        return np.take(self.space.resolutions, index[:, -1])

    def subnets(self, index: np.ndarray) -> list[Subnet]:
        """Return the subnets that structures (N, groups + 1) stand for."""
        rows = zip(self.widths(index).tolist(), self.resolutions(index).tolist(), strict=True)
        return [Subnet(tuple(widths), resolution=side) for widths, side in rows]


@checked
def structure_space(net: SlimmableNet, lower: Positive = 0.75, resolutions: Sequence[Pixels] = (),
                    upper: Positive = 1.0) -> Structures:
    """Return the structures of PSS-Net: a width multiplier from `lower` to `upper` per stage, and a resolution.

    In MobileNetV1 every layer is a stage. A multiplier is drawn uniformly and rounded to three decimals, and the net
    makes channels of it. The resolution is drawn uniformly between the first and the last and rounded to the nearest of
    `resolutions` (default: `RESOLUTIONS` of the net). The prior follows from that, so ends have half the weight of
    others. Raises SearchError for bad bounds, ParameterError for a supernet that is too narrow.
    """
    default = RESOLUTIONS[net.input_size]
    resolutions, step = tuple(resolutions) or default, default[1] - default[0]
    bounds = [round(1000 * bound) for bound in (lower, upper)]
    if [bound / 1000 for bound in bounds] != [lower, upper] or lower > upper:
        raise SearchError(f"lower = {lower}, upper = {upper}",
                          "multipliers are > 0, ascending and have at most three decimals",
                          "Set lower=0.75, upper=1.0.")
    if any(side % step or side < 4 * step for side in resolutions):
        raise SearchError(f"resolutions = {resolutions}"[:100],
                          f"those of a net laid out for {net.input_size} pixels are multiples of {step}, "
                          f"{4 * step} at least", f"Set e.g. {default}.")
    mults = [mult / 1000 for mult in range(bounds[0], bounds[1] + 1)]
    space = net.space(mults, resolutions, tied=net.stages)
    groups = tuple(tuple(unit for unit, stage in enumerate(net.stages) if stage == group)
                   for group in range(max(net.stages) + 1))
    at, weight = np.array([net.widths_at(mult) for mult in mults]), _nearest(mults)
    prior = [np.bincount(np.searchsorted(space.widths[units[0]], at[:, units[0]]), weight) for units in groups]
    return Structures(space, tuple(net.unit_names), groups, (*prior, _nearest(space.resolutions)))


def _nearest(grid: Sequence[float]) -> np.ndarray:
    """How likely each point of an ascending grid is the nearest to a number drawn uniformly between its ends."""
    grid = np.asarray(grid, dtype=np.float64)
    edges = np.concatenate([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])
    return np.diff(edges) / (edges[-1] - edges[0]) if len(grid) > 1 else np.ones(1)


# -- what structures cost --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Resource:
    """A cost that subnets are held to, as one table for each resolution.

    A new one is a function (net, structures) that returns a `Resource` of `slimnb.cost.table.CostTable`s and has a name
    in `slimnb.plugins` or an entry point; a recipe holds subnets to it by that name in its `buckets`.
    """

    name: str  # "MACs" | "CPU latency" | "GPU latency"
    unit: str  # "MACs" | "ms"
    tables: Mapping[int, CostTable]  # by input side, pixels

    @classmethod
    @checked
    def macs(cls, net: SlimmableNet, structures: Structures, convention: str = "B") -> Resource:
        """Count exact MACs of one image by one of `CONVENTIONS`; PSS-Net counts by B."""
        tables = {side: CostTable.macs(net, structures.space, convention, side)
                  for side in structures.space.resolutions}
        return cls("MACs", "MACs", tables)

    @classmethod
    @checked
    def latency(cls, net: SlimmableNet, structures: Structures, batch: Count = 1, *, rounds: Count = 5,
                progress: Callable[[int, int], None] | None = None) -> Resource:
        """Measure milliseconds of a batch on the net's device, by `latency_tables`."""
        tables = latency_tables(net, structures.space, structures.space.resolutions, batch, rounds=rounds,
                                progress=progress)
        return cls(f"{next(net.parameters()).device.type.replace('cuda', 'gpu').upper()} latency", "ms", tables)

    def table(self, resolution: int) -> CostTable:
        """Return the table of one input side. Raises SearchError if there is none."""
        if resolution not in self.tables:
            raise SearchError(f"resolution {resolution}", f"the tables of {self.name} hold "
                              f"{', '.join(map(str, sorted(self.tables)))} pixels",
                              "Make them over structures that have it.")
        return self.tables[resolution]

    def predict(self, widths: np.ndarray, resolutions: np.ndarray) -> np.ndarray:
        """Return the costs (N,) of widths (N, units) at input sides (N,)."""
        cost = np.empty(len(widths))
        for side in np.unique(resolutions).tolist():
            at = np.flatnonzero(resolutions == side)
            cost[at] = self.table(side).predict(widths[at])
        return cost

    def of(self, subnet: Subnet) -> float:
        """Return the cost of one subnet that names its resolution."""
        return self.table(subnet.resolution).of(subnet)

    def show(self, cost: float) -> str:
        """Write a cost with its unit: "568.79M MACs", "12.3 ms"."""
        return f"{cost / 1e6:,.2f}M MACs" if self.unit == "MACs" else f"{cost:,.4g} {self.unit}"

    def to_json(self) -> dict:
        """Return a plain dict, with the conditions of every table."""
        return {"name": self.name, "unit": self.unit, "tables": [_table_to_json(t) for t in self.tables.values()]}

    @classmethod
    def from_json(cls, data: dict) -> Resource:
        """Return the resource that `to_json` wrote. Raises SearchError for anything else."""
        try:
            tables = [_table_from_json(table) for table in data["tables"]]
            return cls(data["name"], data["unit"], {table.about["resolution"]: table for table in tables})
        except (KeyError, TypeError, ValueError) as error:
            raise SearchError(f"stored tables: {type(error).__name__} {error}"[:100],
                              "a resource is stored as name, unit and tables", "Measure it again.", "") from error


def _table_to_json(table: CostTable) -> dict:
    choices = [{"node": list(node), "widths": widths.tolist()} for node, widths in table.choices.items()]
    terms = [{"ends": [list(end) for end in ends], "costs": costs.tolist()} for ends, costs in table.terms.items()]
    return {"unit": table.unit, "units": table.units, "choices": choices, "terms": terms, "about": table.about}


def _table_from_json(data: dict) -> CostTable:
    choices = {tuple(entry["node"]): np.array(entry["widths"], dtype=np.int64) for entry in data["choices"]}
    terms = {tuple(map(tuple, entry["ends"])): np.array(entry["costs"]) for entry in data["terms"]}
    for ends, costs in terms.items():
        if costs.shape != tuple(len(choices[node]) if node else 1 for node in ends):
            raise ValueError(f"costs {costs.shape} between {ends}")
    return CostTable(data["unit"], data["units"], choices, terms, data["about"])


@dataclass(frozen=True, eq=False)
class StructureCosts:
    """A resource over a structure space: for each resolution a chain of groups, priced by their choices."""

    structures: Structures
    resource: Resource
    chains: tuple[Trellis, ...]  # of the resolutions

    @classmethod
    @checked
    def of(cls, structures: Structures, resource: Resource) -> StructureCosts:
        """Fold the tables onto the groups. Raises SearchError if groups form no chain or a table lacks a choice."""
        chains = [Trellis.of(_chain(resource.table(side), structures)) for side in structures.space.resolutions]
        return cls(structures, resource, tuple(chains))

    @property
    def cheapest(self) -> float:
        """The least cost of any structure; in latencies it is not always that of the smallest."""
        return min(chain.cheapest for chain in self.chains)

    @property
    def dearest(self) -> float:
        """The greatest cost of any structure."""
        return max(chain.dearest for chain in self.chains)

    @cached_property
    def tables(self) -> np.ndarray:
        """(resolutions, groups - 1, choices of the next group, choices of this group) costs, padded."""
        return np.stack([chain.tables for chain in self.chains])

    def cost(self, index: np.ndarray) -> np.ndarray:
        """Return the costs (N,) of structures (N, groups + 1)."""
        _, pairs, choices, _ = self.tables.shape
        table, flat = index[:, -1] * pairs, self.tables.ravel()
        total = np.zeros(len(index))
        for group in range(pairs):
            at = ((table + group) * choices + index[:, group + 1]) * choices + index[:, group]
            total += flat.take(at)
        return total


def _chain(table: CostTable, structures: Structures) -> list[np.ndarray]:
    """Costs between neighbouring groups, (choices of this group, choices of the next)."""
    if table.units != len(structures.unit_names):
        raise ParameterError(f"tables of {table.units} channel units", f"the structures have "
                             f"{len(structures.unit_names)}", "Make the tables with the same net.")
    home = {unit: group for group, units in enumerate(structures.groups) for unit in units}
    terms: dict[tuple[Node, Node], np.ndarray] = {}
    for nodes, costs in table.terms.items():
        ends = tuple(tuple(sorted({home[unit] for unit in node})) for node in nodes)
        block = costs[np.ix_(*(_places(table, node, structures) for node in nodes))]
        ends, block = (ends[::-1], block.T) if ends[0] > ends[1] else (ends, block)
        terms[ends] = terms.get(ends, 0) + block
    terms, expected = fold(terms), [((g,), (g + 1,)) for g in range(len(structures.groups) - 1)]
    if set(terms) != set(expected):
        raise SearchError("a net whose joins mix groups", "structures are priced along a chain of groups",
                          "Tie the units of each stage: structure_space(net).")
    return [terms[pair] for pair in expected]


def _places(table: CostTable, node: Node, structures: Structures) -> np.ndarray:
    """Where a table has the widths that a node takes, as its group goes through its choices."""
    if not node:
        return np.zeros(1, dtype=np.int64)
    widths = np.max([structures.space.widths[unit] for unit in node], axis=0)
    known = table.choices[node]
    place = np.searchsorted(known, widths).clip(max=len(known) - 1)
    missing = widths[known[place] != widths]
    if len(missing):
        raise SearchError(f"width {missing[0]} of layer {structures.unit_names[node[0]]!r} at "
                          f"{table.about.get('resolution')} pixels", f"its table holds {known[0]} to {known[-1]}, "
                          f"{len(known)} widths", "Make the table over these structures.")
    return place


# -- buckets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
@checked
class Buckets:
    """Targets from `start` to `stop` in steps of `step`, in the unit of the costs.

    A cost belongs to the nearest target: to target t if t - step / 2 <= cost < t + step / 2. The first and the last
    target are ends only: as in the released code they have no pool, and costs nearest to them are in no bucket. Raises
    SearchError for bounds without a target in between.
    """

    start: float
    stop: float
    step: Positive

    def __post_init__(self):
        text = f"buckets from {self.start:,g} to {self.stop:,g} by {self.step:,g}"
        if self.start > self.stop:
            raise SearchError(text, "start <= stop", "Set e.g. Buckets(110e6, 570e6, 10e6).")
        if not len(self):
            raise SearchError(text, "without the two ends no target is left", "Set a smaller step.")

    @classmethod
    @checked
    def spanning(cls, costs: StructureCosts, step: Positive) -> Buckets:
        """Return buckets from the least to the greatest cost, both rounded to a multiple of `step`, as in the paper."""
        start, stop = (round(cost / step) * step for cost in (costs.cheapest, costs.dearest))
        return cls(start, stop, step)

    def __len__(self) -> int:
        return max(0, round((self.stop - self.start) / self.step) - 1)

    @property
    def targets(self) -> np.ndarray:
        """The targets (T,) that have a pool."""
        return self.start + self.step * np.arange(1, len(self) + 1)

    def index(self, costs: np.ndarray) -> np.ndarray:
        """Return the buckets (N,) of costs (N,), 0 to T - 1, or -1 for a cost in none."""
        index = np.floor((costs - self.start) / self.step + 0.5).astype(np.int64) - 1
        return np.where(index < len(self), np.maximum(index, -1), -1)

    def bounds(self, bucket: int) -> tuple[float, float]:
        """Return the least cost in a bucket, and the least beyond it."""
        return self.start + (bucket + 0.5) * self.step, self.start + (bucket + 1.5) * self.step

    def check(self, costs: StructureCosts) -> None:
        """Raise SearchError if a target lies outside of what structures cost."""
        low, high, show = costs.cheapest, costs.dearest, costs.resource.show
        outside = self.targets[(self.targets < low) | (self.targets > high)]
        if len(outside):
            raise SearchError(f"target {show(outside[0])}", f"structures cost {show(low)} to {show(high)}",
                              "Set start and stop to that, or call Buckets.spanning(costs, step).")
