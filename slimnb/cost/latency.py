"""Time on this device: of callables in turn, and in tables, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from slimnb.cost.macs import IMAGES
from slimnb.cost.table import CostTable, Node, fold, node_choices, node_of, refuse_padded
from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.nn.blocks import ConvNormAct, MaxPool, Residual
from slimnb.nn.layers import ACTIVATIONS, Selection, SlimmableLinear, join
from slimnb.subnet import SearchSpace, Subnet

# -- clocks ----------------------------------------------------------------------------------------------


def measure_latency(module: Callable[[Tensor], Tensor], x: Tensor, rounds: int = 30, warmup: int = 3,
                    min_ms: float = 1.0) -> dict:
    """Measure the latency of `module(x)` on the device of `x`; the keys are those of `compare_latency`."""
    return compare_latency({"": lambda: module(x)}, x, rounds, warmup, min_ms)[""]


@torch.inference_mode()
def compare_latency(callables: Mapping[Hashable, Callable[[], object]], x: Tensor, rounds: int = 30,
                    warmup: int = 3, min_ms: float = 1.0,
                    progress: Callable[[int, int], None] | None = None) -> dict[Hashable, dict]:
    """Measure the latency of several callables in turn, round after round, so that drift of the machine hits all alike.

    A sample repeats a short callable until about `min_ms` have passed. `x` tells the device and the batch; on a CUDA
    device samples are taken with events. Each value has median_ms, low_ms (the lower quartile), min_ms, iqr_ms (half of
    the samples lie that close together), rounds, calls (per sample), and device, threads, batch, dtype, date.
    `progress(done, rounds)` is called after every round.
    """
    if rounds < 1 or warmup < 1:
        raise ParameterError(f"rounds = {rounds}, warmup = {warmup}", "both are at least 1",
                             "Set rounds=30, warmup=3.")
    sample = _cuda_sample if x.is_cuda else _cpu_sample
    calls = {}
    for name, fn in callables.items():
        once = min(sample(fn, 1) for _ in range(warmup))
        calls[name] = max(1, int(min_ms / max(once, 1e-4)))
    samples: dict[Hashable, list[float]] = {name: [] for name in callables}
    for done in range(rounds):
        for name, fn in callables.items():
            samples[name].append(sample(fn, calls[name]))
        if progress is not None:
            progress(done + 1, rounds)
    about = conditions(x)
    return {name: _summary(samples[name]) | {"rounds": rounds, "calls": calls[name]} | about
            for name in callables}


def conditions(x: Tensor) -> dict:
    """Return what a latency depends on: device, threads, batch, dtype, and the date (UTC)."""
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "batch": len(x),
            "dtype": str(x.dtype).removeprefix("torch."), "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def _summary(samples: list[float]) -> dict:
    low, median, high = np.percentile(samples, (25, 50, 75)).tolist()
    return {"median_ms": median, "low_ms": low, "min_ms": min(samples), "iqr_ms": high - low}


def _cpu_sample(fn: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) * 1e3 / calls


def _cuda_sample(fn: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        fn()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


# -- tables ----------------------------------------------------------------------------------------------


def latency_table(net: SlimmableNet, space: SearchSpace, batch: int = 1, *, resolution: int | None = None,
                  **settings) -> CostTable:
    """Measure every layer at every pair of neighbouring width choices, in milliseconds: see `latency_tables`."""
    side = resolution or net.input_size
    return latency_tables(net, space, (side,), batch, **settings)[side]


@torch.inference_mode()
def latency_tables(net: SlimmableNet, space: SearchSpace, resolutions: Sequence[int], batch: int = 1, *,
                   rounds: int = 5, warmup: int = 2, min_ms: float = 0.2,
                   progress: Callable[[int, int], None] | None = None) -> dict[int, CostTable]:
    """Measure, for each input side, the milliseconds of every layer at every pair of width choices.

    Layers are timed on the net's device, sliced as `net(x, subnet)` slices them, with normalisation and activation.
    Equal layers are timed once, those of all sides in turn, so that drift of the machine hits all alike. The lower
    quartile over `rounds` is kept, since other programs on the machine spoil a median. `table.about` names device,
    threads, batch, dtype, date, resolution and the number of layers that were timed.

    A sum over layers leaves out what lies between them. Compare it with a few whole subnets before you trust it
    (`slimnb.cost.latency_model.compare_predicted`).
    """
    refuse_padded(net)
    net.check(Subnet(space.largest.widths))
    choices: dict[Node, np.ndarray] = {}
    places: list[tuple[int, tuple[Node, Node], tuple[int, int], Layer]] = []
    for side in resolutions:
        for module, height, width in _traced(net, side):
            ends = _ends(module)
            for node in ends:
                choices.setdefault(node, node_choices(space, node))
            places += [(side, ends, (i, j), _layer(module, int(a), int(b), height, width))
                       for i, a in enumerate(choices[ends[0]]) for j, b in enumerate(choices[ends[1]])]
    runner = _Runner(net, batch, [layer for *_, layer in places])
    timed = compare_latency({layer: partial(runner, layer) for *_, layer in places}, runner.first, rounds,
                            warmup, min_ms, progress)
    terms: dict[int, dict[tuple[Node, Node], np.ndarray]] = {side: {} for side in resolutions}
    for side, ends, at, layer in places:
        term = terms[side].setdefault(ends, np.zeros([len(choices[node]) for node in ends]))
        term[at] += timed[layer]["low_ms"]
    about = conditions(runner.first) | {"rounds": rounds, "layers": len(timed)}
    return {side: CostTable("ms", len(net.largest.widths), choices, fold(terms[side]), about | {"resolution": side})
            for side in resolutions}


@dataclass(frozen=True)
class Layer:
    """A layer to time. `shape` holds all that its latency depends on, and `module` is one layer of that shape."""

    shape: tuple
    inputs: tuple[tuple[int, int, int], ...]  # (C, H, W) of each input
    module: nn.Module
    selection: Selection | None

    def __hash__(self) -> int:
        return hash(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layer) and self.shape == other.shape


def _traced(net: SlimmableNet, side: int) -> Iterator[tuple[nn.Module, int, int]]:
    """Every layer of the largest subnet with the height and width of its input (of a join: its output)."""
    traced: list[tuple[nn.Module, int, int]] = []

    def note(module, inputs, output):
        shape = (output if isinstance(module, Residual) else inputs[0]).shape
        traced.append((module, *shape[2:]))

    def note_head(module, inputs, output):
        traced.append((net.classifier, *output.shape[2:]))

    layers = [m for m in net.modules() if isinstance(m, (ConvNormAct, MaxPool, Residual))]
    hooks = [m.register_forward_hook(note) for m in layers] + [net.features.register_forward_hook(note_head)]
    tensors = {name: t.to("meta") for name, t in [*net.named_parameters(), *net.named_buffers()]}
    try:
        images = torch.empty(IMAGES, 3, side, side, device="meta")
        functional_call(net, tensors, (images, net.largest), {"statistics": "batch"})
    finally:
        for hook in hooks:
            hook.remove()
    return iter(traced)


def _ends(module: nn.Module) -> tuple[Node, Node]:
    """The nodes (inputs, outputs) whose widths a layer's latency depends on."""
    if isinstance(module, ConvNormAct):
        return node_of(module.conv.sources), (() if module.conv.depthwise else (module.unit,))
    if isinstance(module, Residual):
        out = module.body[-1].unit
        return node_of(tuple(u for u in module.sources if u != out)), (out,)
    return node_of(module.sources), ()


def _layer(module: nn.Module, a: int, b: int, height: int, width: int) -> Layer:
    """`module` with `a` channels at its first end and `b` at its second."""
    side = (height, width)
    if isinstance(module, ConvNormAct):
        conv = module.conv
        inputs = a if conv.sources else conv.in_channels
        shape = (conv.kernel, conv.stride, conv.depthwise, module.activation, inputs, b, *side)
        selection = Selection({module.unit: a if conv.depthwise else b})
        return Layer(shape, ((inputs, *side),), module, selection)
    if isinstance(module, Residual):
        return Layer(("join", module.activation, a, b, *side), ((a, *side), (b, *side)), module, None)
    head = isinstance(module, SlimmableLinear)
    kind = ("head", module.out_features) if head else (module.kernel, module.stride)
    return Layer((*kind, a, *side), ((a, *side),), module, None)


class _Runner:
    """Calls layers on noise of their input shapes, which are views of two buffers: no memory per layer."""

    def __init__(self, net: SlimmableNet, batch: int, layers: list[Layer]):
        most = batch * max(c * h * w for layer in layers for c, h, w in layer.inputs)
        noise = torch.randn(most, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()))
        self.batch, self.buffers = batch, (noise, noise.flip(0))
        self.first = self.image(0, layers[0].inputs[0])

    def image(self, which: int, shape: tuple[int, int, int]) -> Tensor:
        """(B, C, H, W), channels_last."""
        c, h, w = shape
        flat = self.buffers[which][: self.batch * c * h * w]
        return flat.view(self.batch, h, w, c).permute(0, 3, 1, 2)

    def __call__(self, layer: Layer) -> Tensor:
        x, *rest = (self.image(i, shape) for i, shape in enumerate(layer.inputs))
        module = layer.module
        if isinstance(module, Residual):
            return ACTIVATIONS[module.activation](join(rest[0], x))
        if isinstance(module, SlimmableLinear):
            return module(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return module(x, layer.selection)
