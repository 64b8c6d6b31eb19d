"""What a subnet costs: MACs, traced from the real forward, and parameters."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.nn.gate import Gate
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear, SlimmableSqueezeExcite
from slimnb.nn.norm import PRIVATE, SlimmableGroupNorm, SwitchableBatchNorm2d
from slimnb.nn.zero_padding import ENDS
from slimnb.subnet import Subnet

aten = torch.ops.aten

CONVENTIONS = {
    "A": frozenset({"conv", "linear", "attention"}),
    "B": frozenset({"conv", "linear", "pool"}),
    "C": frozenset({"conv", "linear", "pool", "max pool", "norm", "activation", "bias"}),
    "D": frozenset({"conv", "linear", "pool", "attention", "attention pool"}),
}
"""What each counting convention includes; the papers print MACs by all four (A: SP-Net's mobile nets,
Multi-platform, DepS; B: US-Net, PSS-Net; C: SP-Net's ResNet-50 and VGG; D: DS-Net)."""

IMAGES = 2  # in a trace: of one on a map of 1 x 1, batch norm could not take a variance
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
    """Trace the MACs of every module's own operations by kind, for one image, without computing anything.

    Kinds are conv, linear, bias, norm (2 per element), activation (1 per element), pool and max pool (input elements),
    attention. For `fused` see `count_macs`.
    """
    net = _without_gaps(net) if fused else net
    net.reach(subnet)  # kept by the net: it depends on values, which the meta device has not
    side = subnet.resolution or resolution or net.input_size
    tensors = {name: t.to("meta") for name, t in [*net.named_parameters(), *net.named_buffers()]}
    counter = FlopCounterMode(display=False, custom_mapping=_MAPPING)
    with _ShapesOnly(), counter, torch.no_grad():
        images = torch.empty(IMAGES, 3, side, side, device="meta")
        functional_call(net, tensors, (images, subnet), {"statistics": "batch"})
    root = type(net).__name__
    totals = {name.removeprefix(root).lstrip("."): counts
              for name, counts in counter.get_flop_counts().items() if name != "Global"}
    own = {name: {op: flops // (2 * IMAGES) for op, flops in counts.items()} for name, counts in totals.items()}
    for name, counts in totals.items():
        if name:
            parent = name.rpartition(".")[0]
            while parent not in own:  # a list of modules is never called itself
                parent = parent.rpartition(".")[0]
            for op, flops in counts.items():
                own[parent][op] -= flops // (2 * IMAGES)
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
    """Count the multiply-accumulates of `subnet` for one image, by one of the counting `CONVENTIONS`.

    The input side is the subnet's resolution, else `resolution`, else the size the net is laid out for. Where joins are
    zero-padded, it counts what is executed, zeros included. With `fused` it counts what SP-Net prints: layers after a
    join read as many channels as its paths have between them.
    """
    return sum(macs_by_layer(net, subnet, convention, resolution, fused=fused).values())


def macs_by_layer(net: SlimmableNet, subnet: Subnet, convention: str = "A", resolution: int | None = None, *,
                  fused: bool = False) -> dict[str, int]:
    """Count, as `count_macs` does, the operations of every module, by its name."""
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
        raise ParameterError(f"convention = {convention!r}"[:60],
                             f"it is one of {', '.join(CONVENTIONS)}", "Set convention='A'.")
    return CONVENTIONS[convention]


def count_params(net: SlimmableNet, subnets: Sequence[Subnet], *, fused: bool = False) -> int:
    """Count the parameters that the union of `subnets` uses; private gamma and beta count once per subnet.

    `fused` is as in `count_macs`; it is exact for one subnet.
    """
    net = _without_gaps(net) if fused else net
    return sum(params_by_layer(net, subnets).values())


def params_by_layer(net: SlimmableNet, subnets: Sequence[Subnet]) -> dict[str, int]:
    """Count, as `count_params` does, the parameters of every layer, by its name."""
    reaches = [net.reach(s) or s.widths for s in subnets]
    counts = {}
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
            counts[name] = total
    return counts


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


