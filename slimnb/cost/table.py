"""Costs of all subnets of a space as sums of terms over neighbouring widths, so that 100,000 are priced at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from slimnb.cost.macs import _counted, _widest, _without_gaps, trace_macs
from slimnb.errors import ParameterError, SearchError
from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import ConvNormAct, MaxPool, Residual
from slimnb.nn.gate import Gate
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear, SlimmableSqueezeExcite
from slimnb.nn.norm import SlimmableGroupNorm, SwitchableBatchNorm2d
from slimnb.rules import Pixels, checked
from slimnb.subnet import SearchSpace, Subnet

Node = tuple[int, ...]
"""Channel units whose largest width is what a layer sees; () is the image or the classes: no choice."""


@dataclass(frozen=True)
class CostTable:
    """Costs of all subnets of a space, each a sum of terms that two neighbouring width choices index.

    `terms[(a, b)]` is an array (choices of node a, choices of node b), and `choices[node]` its ascending widths. A
    prediction looks terms up; in a net that is a chain, Viterbi searches them.
    """

    unit: str  # of the costs: "MACs", "parameters", "ms"
    units: int  # channel units of a subnet
    choices: dict[Node, np.ndarray]
    terms: dict[tuple[Node, Node], np.ndarray]
    about: dict = field(default_factory=dict)  # what it holds for: convention, resolution, device, batch

    @classmethod
    @checked
    def macs(cls, net: SlimmableNet, space: SearchSpace, convention: str = "A",
             resolution: Pixels | None = None) -> CostTable:
        """Make the table of exact MACs: one trace of the largest subnet gives every layer's coefficient."""
        about = {"convention": convention, "resolution": resolution or net.input_size}
        costs, constant = _macs_by_layer(net, convention, resolution)
        return cls._proportional("MACs", net, space, costs, about).plus_constant(constant)

    @classmethod
    @checked
    def params(cls, net: SlimmableNet, space: SearchSpace) -> CostTable:
        """Make the table of exact parameters of one subnet, with one row of batch norm's gamma and beta."""
        costs = {}
        for name, module in net.named_modules():
            if isinstance(module, (SlimmableConv2d, SlimmableLinear)):
                costs[name] = module.weight.numel()
            elif isinstance(module, (SwitchableBatchNorm2d, SlimmableGroupNorm)):
                costs[name] = 2 * module.channels
        table = cls._proportional("parameters", net, space, costs, {})
        return table.plus_constant(net.num_classes)

    @classmethod
    def _proportional(cls, unit, net, space, costs: dict[str, int], about: dict) -> CostTable:
        """Terms that scale with the widths at both ends of each module, from costs at the largest subnet."""
        refuse_padded(net)
        choices: dict[Node, np.ndarray] = {}
        terms: dict[tuple[Node, Node], np.ndarray] = {}
        for _, ends, rate in _rates(net, costs):
            for node in ends:
                choices.setdefault(node, node_choices(space, node))
            a, b = (choices[node] if node else np.ones(1, dtype=np.int64) for node in ends)
            term = rate * np.multiply.outer(a, b)
            terms[ends] = terms[ends] + term if ends in terms else term
        return cls(unit, len(net.unit_names), choices, fold(terms), about)

    def plus_constant(self, cost: float) -> CostTable:
        """Return the same table with `cost` added to every subnet."""
        (key, term), *rest = self.terms.items()
        return replace(self, terms={key: term + cost, **dict(rest)})

    def predict(self, widths: np.ndarray) -> np.ndarray:
        """Return the costs (N,) of widths (N, units), exact for MACs and parameters.

        Raises SearchError for a width that is no choice of the table, ParameterError for another number of units.
        """
        widths = np.atleast_2d(widths)
        if widths.shape[1] != self.units:
            raise ParameterError(f"subnets of {widths.shape[1]} widths",
                                 f"the table is for {self.units} channel units",
                                 "Give (N, units) widths of the net the table was made for.")
        index: dict[Node, np.ndarray | int] = {(): 0}
        for node, choices in self.choices.items():
            if node:
                index[node] = self._index(widths, node, choices)
        total = 0
        for (a, b), term in self.terms.items():
            flat = index[a] * term.shape[1] + index[b]
            total = total + term.ravel().take(flat)
        return np.broadcast_to(total, len(widths))

    def _index(self, widths: np.ndarray, node: Node, choices: np.ndarray) -> np.ndarray:
        column = widths[:, node[0]] if len(node) == 1 else widths[:, list(node)].max(1)
        look_up = np.full(choices[-1] + 1, -1, dtype=np.int64)
        look_up[choices] = np.arange(len(choices))
        index = look_up.take(column, mode="clip")
        if index.min() < 0 or column.max() > choices[-1]:
            bad = column[(index < 0) | (column > choices[-1])][0]
            raise SearchError(f"width {bad} in channel unit {node[0]}",
                              f"the table holds {_widths_text(choices)}",
                              "Make the table over a space that contains it.")
        return index

    def of(self, subnet: Subnet) -> float:
        """Return the cost of one subnet. Raises SearchError if it has another resolution than the table."""
        side = self.about.get("resolution")
        if subnet.resolution and side and subnet.resolution != side:
            raise SearchError(f"resolution {subnet.resolution}",
                              f"the table was made for {side} pixels",
                              "Make one table per resolution.")
        return self.predict(np.array([subnet.widths]))[0].item()

    def chain(self) -> list[np.ndarray]:
        """Return the pairwise costs [(choices of unit i, choices of unit i + 1)] that Viterbi searches.

        Raises SearchError for a net with joins.
        """
        expected = [((u,), (u + 1,)) for u in range(self.units - 1)]
        if set(self.terms) != set(expected):
            raise SearchError("a net with joins", "Viterbi needs channel units in a chain",
                              "Use MobileNetV1 or VGG, or search by sampling.")
        return [self.terms[pair] for pair in expected]


@checked
def macs_function(net: SlimmableNet, convention: str = "A", resolution: Pixels | None = None, *,
                  fused: bool = False) -> Callable[[Subnet], int]:
    """Return `count_macs` as a function of the subnet that is traced once, for searches that call it often.

    Raises SearchError for nets with squeeze-and-excitation.
    """
    net = _without_gaps(net) if fused else net
    costs, constant = _macs_by_layer(net, convention, resolution)
    makers = SlimmableConv2d, ConvNormAct, SwitchableBatchNorm2d, SlimmableGroupNorm
    # A layer reads what joined paths hold together; what it makes is its own unit's.
    layers = [(rate, *ends, isinstance(module, makers)) for module, ends, rate in _rates(net, costs)]

    def macs(subnet: Subnet) -> int:
        net.check(subnet)
        widths, reach = subnet.widths, net.reach(subnet) or subnet.widths
        return constant + sum(rate * _widest(reach, inputs, 1) * _widest(widths if own else reach, outputs, 1)
                              for rate, inputs, outputs, own in layers)

    return macs


def _macs_by_layer(net: SlimmableNet, convention: str, resolution: int | None) -> tuple[dict[str, int], int]:
    """MACs of every module of the largest subnet, and those that no width changes."""
    counted = _counted(convention)
    costs = {name: sum(m for kind, m in kinds.items() if kind in counted - {"bias"})
             for name, kinds in trace_macs(net, net.largest, resolution).items()}
    return costs, net.num_classes if "bias" in counted else 0


def _rates(net: SlimmableNet, costs: dict[str, int]) -> Iterator[tuple[nn.Module, tuple[Node, Node], int]]:
    """(module, its ends, cost per channel at both) of the modules that cost something in the largest subnet."""
    most = net.largest.widths
    if net.largest.depths:
        raise SearchError("an elastic net", "its cost is a sum over blocks, not over widths",
                          "Make an ElasticTable (slimnb.cost.elastic), or use count_macs.")
    if any(isinstance(module, SlimmableSqueezeExcite) for module in net.modules()):
        raise SearchError("squeeze-and-excitation",
                          "its hidden width is rounded, so its cost is not proportional to its widths",
                          "Count subnets one by one with count_macs.")
    for name, cost in costs.items():
        if cost:
            module = net.get_submodule(name)
            ends = module_ends(net, module)
            scale = math.prod(_widest(most, node, 1) for node in ends)
            if cost % scale:
                raise SearchError(f"cost {cost} of {name}", "it is not proportional to its widths",
                                  "Measure it instead, with slimnb.cost.latency.latency_table.")
            yield module, ends, cost // scale


def refuse_padded(net: SlimmableNet) -> None:
    """Raise SearchError if joins are zero-padded: a layer then reads more channels than the maximum of widths."""
    if net.padding is not None:
        raise SearchError("a net with zero-padded joins", "a table knows widths, not unions of channels",
                          "Price its subnets one by one, with count_macs or measure_latency.")


def module_ends(net: SlimmableNet, module) -> tuple[Node, Node]:
    """Return the nodes (inputs, outputs) whose widths a module's cost depends on."""
    if isinstance(module, SlimmableConv2d):
        return node_of(module.sources), (() if module.depthwise else (module.unit,))
    if isinstance(module, (SlimmableLinear, Gate)):
        return node_of(module.sources), ()
    if isinstance(module, (ConvNormAct, SwitchableBatchNorm2d, SlimmableGroupNorm)):
        return (), (module.unit,)
    if isinstance(module, (Residual, MaxPool)):
        return (), node_of(module.sources)
    return (), node_of(net.classifier.sources)  # the global pool


def node_of(sources: tuple[int, ...]) -> Node:
    """Return the node that layers see which the channel units `sources` feed."""
    return tuple(sorted(set(sources)))


def node_choices(space: SearchSpace, node: Node) -> np.ndarray:
    """Return the ascending widths that the widest unit of `node` can have."""
    return np.array(sorted({width for unit in node for width in space.widths[unit]} or {1}), dtype=np.int64)


def fold(terms: dict[tuple[Node, Node], np.ndarray]) -> dict[tuple[Node, Node], np.ndarray]:
    """Add the terms of one node to a neighbouring pair: that means fewer look-ups, and a chain has pairs only."""
    pairs = {ends: term for ends, term in terms.items() if ends[0] and ends[1] and ends[0] != ends[1]}
    for ends, term in terms.items():
        if ends in pairs:
            continue
        node = ends[0] or ends[1]
        vector = np.diagonal(term) if ends[0] and ends[1] else term.ravel()
        home = next((pair for pair in pairs if node in pair), None)
        if home is None:
            pairs[ends] = pairs.get(ends, 0) + term
        else:
            pairs[home] = pairs[home] + (vector[:, None] if home[0] == node else vector[None, :])
    return pairs


def _widths_text(choices: np.ndarray) -> str:
    if len(choices) < 9:
        return ", ".join(map(str, choices))
    return f"{len(choices)} widths from {choices[0]} to {choices[-1]}"
