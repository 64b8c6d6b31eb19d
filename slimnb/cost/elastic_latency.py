"""Latency of elastic nets: this machine measures a table of milliseconds per block and choice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from slimnb.cost.elastic import ElasticTable, block_names, sample_structures, subnets_at
from slimnb.cost.latency import compare_latency, conditions
from slimnb.cost.latency_model import held_out_error, time_subnets
from slimnb.errors import ParameterError
from slimnb.nets.elastic import ElasticNet
from slimnb.rules import Amount, Count, Pixels, Seed, checked
from slimnb.subnet import Subnet


@torch.no_grad()
@checked
def elastic_latency(net: ElasticNet, batch: Count = 1, *, resolution: Pixels | None = None, rounds: Count = 20,
                    warmup: Count = 2, min_ms: Amount = 0.5,
                    progress: Callable[[int, int], None] | None = None) -> ElasticTable:
    """Measure the milliseconds of every block at every (expansion, kernel), for one batch of `batch` images.

    Blocks are timed as plain modules, as they are deployed, all in turn; blocks of equal shape are timed once. The
    least of `rounds` times counts. The constant is the time of whole nets that the blocks leave over: the median over
    uniform nets of full depth. `table.about` names device, threads, batch, dtype, date, resolution and the number of
    blocks that were timed. A busy machine spoils the table, so run `check_latency` before you trust it.
    """
    side = resolution or net.input_size
    net = copy.deepcopy(net)
    choices = tuple((expand, kernel) for expand in net.expands for kernel in net.kernels)
    uniform = {choice: net.elastic(None, *choice) for choice in choices}
    net.reserve(list(uniform.values()), shared=True)
    net.mark_calibrated(list(uniform.values()))  # which statistics a block has does not matter for its latency
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()))
    x = x.contiguous(memory_format=torch.channels_last)
    timed: dict[tuple, Callable[[], Tensor]] = {}
    keys: dict[tuple[int, tuple[int, int]], tuple] = {}
    for choice, subnet in uniform.items():
        timed["whole", choice] = partial(net.extract(subnet).eval(), x)
        for row, (key, call) in enumerate(_blocks(net, subnet, x)):
            keys[row, choice] = key
            timed.setdefault(key, call)
    latencies = compare_latency(timed, x, rounds, warmup, min_ms, progress)
    ms = {key: latency["min_ms"] for key, latency in latencies.items()}
    blocks = len(block_names(net))
    terms = np.array([[ms[keys[row, choice]] for choice in choices] for row in range(blocks)])
    rest = [ms["whole", choice] - terms[:, column].sum() for column, choice in enumerate(choices)]
    about = conditions(x) | {"resolution": side, "rounds": rounds, "layers": len(timed) - len(choices)}
    return ElasticTable("ms", net.search_space, choices, float(np.median(rest)), terms, about)


def _blocks(net: ElasticNet, subnet: Subnet, x: Tensor) -> list[tuple[tuple, Callable[[], Tensor]]]:
    """Of each block of `subnet`: what its latency depends on, and a call of it alone."""
    selection, inputs = net.select(subnet, statistics="slot"), {}
    modules = [net.get_submodule(name) for name in block_names(net)]
    hooks = [module.register_forward_pre_hook(lambda module, images: inputs.update({module: images[0]}))
             for module in modules]
    try:
        net(x, subnet, statistics="slot")
    finally:
        for hook in hooks:
            hook.remove()
    calls = []
    for module in modules:
        plain, images = module.extract(selection).eval(), inputs[module]
        shape = (*images.shape, *(_latency_key(layer) for layer in plain.modules()))
        calls.append((shape, partial(plain, images.contiguous(memory_format=torch.channels_last))))
    return calls


def _latency_key(layer: nn.Module) -> tuple:
    """What tells plain layers of different latency apart."""
    shapes = tuple(tuple(p.shape) for p in layer.parameters(recurse=False))
    return type(layer).__name__, shapes, getattr(layer, "stride", None)


@checked
def check_latency(table: ElasticTable, net: ElasticNet, subnets: Count = 40, *, seed: Seed = 0, rounds: Count = 5,
                  progress: Callable[[int, int], None] | None = None) -> dict:
    """Compare predicted with measured milliseconds of random subnets that were not timed for `table`.

    The keys are predicted and measured (lists, ms), about, and those of `held_out_error`. Raises ParameterError for
    fewer than 3 subnets.
    """
    if subnets < 3:
        raise ParameterError(f"{subnets} subnets", "an error needs 3 of them or more", "Time more.")
    structures = sample_structures(table.space, np.random.default_rng(seed), subnets)
    side, batch = table.about["resolution"], table.about["batch"]
    measured = time_subnets(net, subnets_at(table.space, structures), batch, resolution=side, rounds=rounds,
                            progress=progress)
    return {"predicted": table.predict(structures).round(5).tolist(), "measured": measured.round(5).tolist(),
            "about": table.about, **held_out_error(table, structures, measured)}
