"""What a subnet costs: MACs traced from the real forward, parameters, tables that price 100,000 at once."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from slimnb.errors import SlimnbError
from slimnb.nn.gate import Gate
from slimnb.nn.layers import PRIVATE, SlimmableConv2d, SlimmableGroupNorm, SlimmableLinear, SlimmableSqueezeExcite, SwitchableBatchNorm2d
from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import ConvNormAct, MaxPool, Residual
from slimnb.nn.zero_padding import ENDS
from slimnb.subnet import SearchSpace, Subnet

aten = torch.ops.aten

CONVENTIONS = {
    "A": frozenset({"conv", "linear", "attention"}),
    "B": frozenset({"conv", "linear", "pool"}),
    "C": frozenset({"conv", "linear", "pool", "max pool", "norm", "activation", "bias"}),
    "D": frozenset({"conv", "linear", "pool", "attention", "attention pool"}),
}
"""What each counting convention includes; the papers print MACs by all four (A: SP-Net's mobile nets,
Multi-platform, DepS; B: US-Net, PSS-Net; C: SP-Net's ResNet-50 and VGG; D: DS-Net)."""

# FlopCounterMode counts two per multiply-accumulate, so everything else is counted double and halved with it.
_PER_ELEMENT = {"norm": ((aten.native_batch_norm, aten.native_group_norm), 2),
                "activation": ((aten.relu_, aten.relu, aten.hardtanh, aten.hardtanh_, aten.silu, aten.hardswish), 1),
                "pool": ((aten.mean,), 1),
                "max pool": ((aten.max_pool2d_with_indices,), 1)}
_KINDS = {op: kind for kind, (ops, _) in _PER_ELEMENT.items() for op in ops}
_KINDS |= {aten.convolution: "conv", aten.addmm: "linear", aten.mm: "linear"}


def _input_elements(times: int):
    return lambda x, *args, out_shape=None, **kwargs: 2 * times * math.prod(x)


# torch 2.11 looks for the overload before it counts by the packet, and takes apart what it does not find.
_MAPPING = {key: _input_elements(times) for ops, times in _PER_ELEMENT.values() for op in ops
            for key in (op, *(getattr(op, overload) for overload in op.overloads()))}


class _ShapesOnly(TorchDispatchMode):
    """Answers norms and activations of meta tensors with empty ones: their own kernels there are Python, and slow."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = _KINDS.get(func.overloadpacket)
        if kind == "norm":
            return torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in range(2))
        if kind == "activation":
            return args[0] if func.overloadpacket.__name__.endswith("_") else torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def trace_macs(net: SlimmableNet, subnet: Subnet, resolution: int | None = None,
               fused: bool = False) -> dict[str, dict[str, int]]:
    """MACs of every module's own operations by kind, for one image; traced without computing anything.

    Kinds: conv, linear, bias, norm (2 per element), activation (1 per element), pool and max pool (input
    elements), attention. `fused`: see `count_macs`.
    """
    net = _without_gaps(net) if fused else net
    net.reach(subnet)  # kept by the net: it depends on values, which the meta device has not
    side = subnet.resolution or resolution or net.input_size
    tensors = {name: t.to("meta") for name, t in [*net.named_parameters(), *net.named_buffers()]}
    counter = FlopCounterMode(display=False, custom_mapping=_MAPPING)
    with _ShapesOnly(), counter, torch.no_grad():
        image = torch.empty(1, 3, side, side, device="meta")
        functional_call(net, tensors, (image, subnet), {"statistics": "batch"})
    root = type(net).__name__
    totals = {name.removeprefix(root).lstrip("."): counts
              for name, counts in counter.get_flop_counts().items() if name != "Global"}
    own = {name: {op: flops // 2 for op, flops in counts.items()} for name, counts in totals.items()}
    for name, counts in totals.items():
        if name:
            parent = name.rpartition(".")[0]
            while parent not in own:  # a list of modules is never called itself
                parent = parent.rpartition(".")[0]
            for op, flops in counts.items():
                own[parent][op] -= flops // 2
    return {name: _by_kind(net.get_submodule(name), counts) for name, counts in own.items()}


def _by_kind(module, counts: dict) -> dict[str, int]:
    kinds: dict[str, int] = defaultdict(int)
    for op, macs in counts.items():
        kinds[_KINDS[op]] += macs
    if isinstance(module, SlimmableConv2d):
        kinds = {"conv": kinds["conv"]}  # transforms make smaller kernels once, not for every image
    if isinstance(module, SlimmableLinear):
        kinds["bias"] = module.out_features
    if isinstance(module, (SlimmableSqueezeExcite, Gate)):
        kinds = {"attention": kinds["linear"], "attention pool": kinds["pool"]}
    return {kind: macs for kind, macs in kinds.items() if macs}


def count_macs(net: SlimmableNet, subnet: Subnet, convention: str = "A", resolution: int | None = None, *,
               fused: bool = False) -> int:
    """Multiply-accumulates of `subnet` for one image, by a counting convention of `CONVENTIONS`.

    The input side is the subnet's resolution, else `resolution`, else the size the net is laid out for. Where
    joins are zero-padded, counts what is executed, zeros included, or with `fused` what SP-Net prints: layers
    after a join read as many channels as its paths have between them.
    """
    return sum(macs_by_layer(net, subnet, convention, resolution, fused=fused).values())


def macs_by_layer(net: SlimmableNet, subnet: Subnet, convention: str = "A", resolution: int | None = None, *,
                  fused: bool = False) -> dict[str, int]:
    """`count_macs` of every module's own operations, by its name."""
    counted = _counted(convention)
    return {name: sum(macs for kind, macs in kinds.items() if kind in counted)
            for name, kinds in trace_macs(net, subnet, resolution, fused).items()}


def _without_gaps(net: SlimmableNet) -> SlimmableNet:
    """The same net, its parameters too, whose joins hold the union of their paths and no zeros besides."""
    twin = copy.copy(net)
    twin.padding = net.padding and ENDS
    return twin


def _counted(convention: str) -> frozenset[str]:
    if convention not in CONVENTIONS:
        raise SlimnbError("P10", f"convention = {convention!r}"[:60],
                          f"it is one of {', '.join(CONVENTIONS)}", "Set convention='A'.", "")
    return CONVENTIONS[convention]


def count_params(net: SlimmableNet, subnets: Sequence[Subnet], *, fused: bool = False) -> int:
    """Parameters that the union of `subnets` uses; private gamma and beta count once per subnet.

    `fused`: as in `count_macs`, exact for one subnet.
    """
    net = _without_gaps(net) if fused else net
    return sum(params_by_layer(net, subnets).values())


def params_by_layer(net: SlimmableNet, subnets: Sequence[Subnet]) -> dict[str, int]:
    """`count_params` of every layer, by its name."""
    reaches = [net.reach(s) or s.widths for s in subnets]
    found = {}
    for name, module in net.named_modules():
        total = 0
        if isinstance(module, SlimmableConv2d):
            inputs = [1 if module.depthwise else _widest(reach, module.sources, module.in_channels)
                      for reach in reaches]
            outputs = [s.widths[module.unit] for s in subnets]
            sides = {module.kernel_at(s) for s in subnets} - {0} or {0}
            total += _staircase(inputs, outputs) * max(sides) ** 2
            total += sum(k**4 for k in module.kernels if min(sides) <= k < max(sides))  # what makes small ones of large
        elif isinstance(module, SlimmableLinear):
            inputs = max(_widest(reach, module.sources, 0) for reach in reaches)
            total += module.out_features * (inputs + 1)
        elif isinstance(module, (SwitchableBatchNorm2d, SlimmableGroupNorm)):
            widths = [s.widths[module.unit] for s in subnets]
            private = getattr(module, "policy", None) == PRIVATE
            total += 2 * (sum(widths) if private else max(widths))
        elif isinstance(module, SlimmableSqueezeExcite):
            c = max(s.widths[module.unit] for s in subnets)
            total += 2 * c * module.hidden[c] + c + module.hidden[c]
        elif isinstance(module, Gate):  # attention; a slimming head serves no path by itself
            c = max(_widest(reach, module.sources, 0) for reach in reaches)
            total += 2 * c * module.hidden + c + module.hidden
        if total:
            found[name] = total
    return found


def _widest(widths: tuple[int, ...], units: tuple[int, ...], otherwise: int) -> int:
    return max((widths[u] for u in units), default=otherwise)


def _staircase(inputs: list[int], outputs: list[int]) -> int:
    """Area of the union of rectangles inputs x outputs that share a corner: subnets need not be nested."""
    area = reach = 0
    for wide, tall in sorted(zip(inputs, outputs, strict=True), reverse=True):
        if tall > reach:
            area += wide * (tall - reach)
            reach = tall
    return area


Node = tuple[int, ...]
"""Channel units whose largest width is what a layer sees; () is the image or the classes: no choice."""


@dataclass(frozen=True)
class CostTable:
    """Costs of all subnets of a space as a sum of terms, each indexed by two neighbouring width choices.

    `terms[(a, b)]` is an array (choices of node a, choices of node b); `choices[node]` its ascending widths.
    Predicts by look-up; in a chain its terms are what Viterbi searches.
    """

    unit: str  # of the costs: "MACs", "parameters", "ms"
    units: int  # channel units of a subnet
    choices: dict[Node, np.ndarray]
    terms: dict[tuple[Node, Node], np.ndarray]
    about: dict = field(default_factory=dict)  # what it holds for: convention, resolution, device, batch

    @classmethod
    def macs(cls, net: SlimmableNet, space: SearchSpace, convention: str = "A",
             resolution: int | None = None) -> CostTable:
        """Exact MACs: one trace of the largest subnet gives every layer's coefficient."""
        about = {"convention": convention, "resolution": resolution or net.input_size}
        costs, constant = _macs_by_layer(net, convention, resolution)
        return cls._proportional("MACs", net, space, costs, about).plus_constant(constant)

    @classmethod
    def params(cls, net: SlimmableNet, space: SearchSpace) -> CostTable:
        """Exact parameters of one subnet (one row of batch-norm affine)."""
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
        """The same table with `cost` added to every subnet."""
        (key, term), *rest = self.terms.items()
        return replace(self, terms={key: term + cost, **dict(rest)})

    def predict(self, widths: np.ndarray) -> np.ndarray:
        """(N, units) widths, all of them choices of the table -> (N,) costs, exact for MACs and params."""
        widths = np.atleast_2d(widths)
        if widths.shape[1] != self.units:
            raise SlimnbError("S09", f"subnets of {widths.shape[1]} widths",
                              f"the table is for {self.units} channel units",
                              "Give (N, units) widths of the net the table was made for.", "")
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
            raise SlimnbError("S21", f"width {bad} in channel unit {node[0]}",
                              f"the table holds {_some(choices)}",
                              "Make the table over a space that contains it.", "")
        return index

    def of(self, subnet: Subnet) -> float:
        """Cost of one subnet, whose resolution must be the table's if both have one."""
        side = self.about.get("resolution")
        if subnet.resolution and side and subnet.resolution != side:
            raise SlimnbError("S23", f"resolution {subnet.resolution}",
                              f"the table was made for {side} pixels",
                              "Make one table per resolution.", "")
        return self.predict(np.array([subnet.widths]))[0].item()

    def chain(self) -> list[np.ndarray]:
        """Pairwise costs [(choices of unit i, choices of unit i+1)] of a net without joins, for Viterbi."""
        expected = [((u,), (u + 1,)) for u in range(self.units - 1)]
        if set(self.terms) != set(expected):
            raise SlimnbError("S22", "a net with joins", "Viterbi needs channel units in a chain",
                              "Use MobileNetV1 or VGG, or search by sampling.", "")
        return [self.terms[pair] for pair in expected]


def macs_function(net: SlimmableNet, convention: str = "A", resolution: int | None = None, *,
                  fused: bool = False) -> Callable[[Subnet], int]:
    """`count_macs` as a function of the subnet, traced once: for searches that ask again and again.

    Error S20 with squeeze-and-excitation.
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
        raise SlimnbError("S20", "an elastic net", "its cost is a sum over blocks, not over widths",
                          "Make an ElasticTable (slimnb.cost.elastic), or count subnets one by one with count_macs.", "")
    if any(isinstance(module, SlimmableSqueezeExcite) for module in net.modules()):
        raise SlimnbError("S20", "squeeze-and-excitation",
                          "its hidden width is rounded, so its cost is not proportional to its widths",
                          "Count subnets one by one with count_macs.", "")
    for name, cost in costs.items():
        if cost:
            module = net.get_submodule(name)
            ends = module_ends(net, module)
            scale = math.prod(_widest(most, node, 1) for node in ends)
            if cost % scale:
                raise SlimnbError("S20", f"cost {cost} of {name}", "it is not proportional to its widths",
                                  "Measure it instead, with slimnb.cost.latency.latency_table.", "")
            yield module, ends, cost // scale


def refuse_padded(net: SlimmableNet) -> None:
    """Raise S20 if joins are zero-padded: what a layer reads is then no maximum of widths."""
    if net.padding is not None:
        raise SlimnbError("S20", "a net with zero-padded joins", "a table knows widths, not unions of channels",
                          "Price its subnets one by one, with count_macs or measure_latency.", "")


def module_ends(net: SlimmableNet, module) -> tuple[Node, Node]:
    """The nodes (inputs, outputs) whose widths a module's cost depends on."""
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
    """The node that layers fed by the channel units `sources` see."""
    return tuple(sorted(set(sources)))


def node_choices(space: SearchSpace, node: Node) -> np.ndarray:
    """Ascending widths that the widest unit of `node` can have."""
    return np.array(sorted({width for unit in node for width in space.widths[unit]} or {1}), dtype=np.int64)


def fold(terms: dict[tuple[Node, Node], np.ndarray]) -> dict[tuple[Node, Node], np.ndarray]:
    """Terms of one node added into a neighbouring pair: fewer look-ups, and a chain has pairs only."""
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


def _some(choices: np.ndarray) -> str:
    if len(choices) < 9:
        return ", ".join(map(str, choices))
    return f"{len(choices)} widths from {choices[0]} to {choices[-1]}"
