"""Latency of a ResNet-50 run in five ways (chapter 01; DS-Net, Table 1)."""

from __future__ import annotations

import torch

from slimnb.cost.execution import execution_modes
from slimnb.cost.latency import compare_latency, conditions
from slimnb.nets.resnet import ResNet50
from slimnb.papers.slimmable.recipes import WIDTHS
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.experiment import once


def latencies(scale: str, mult: float, rounds: int, store: RunStore, device: str = "cpu", repeats: int = 5) -> dict:
    """Measure five ways to run a ResNet-50 at width `mult`, and three of them at every width, in ms.

    The batch is one image of 224 pixels. It is measured once per store and settings, as a run is. Keys: modes (rows of
    mode, repeat, ms: the median of `rounds` interleaved calls), widths (mode, mult, ms), difference (the largest
    between the outputs of mask, index, slice and ideal), about (device, threads, dtype, date), run_id.
    """
    settings = {"paper": "slimmable", "arm": "latency", "scale": scale, "net": "resnet", "mult": mult, "rounds": rounds,
                "repeats": repeats, "device": torch.device(device).type}
    code = code_fingerprint([_latencies])
    return once(store, settings, code, lambda: _latencies(mult, rounds, repeats, device))


def _latencies(mult: float, rounds: int, repeats: int, device: str) -> dict:
    net = ResNet50().to(device).eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    named = {width: net.uniform(width) for width in sorted({*WIDTHS, mult})}
    calibrate_bn(net, list(named.values()), [x])
    modes = execution_modes(net, named[mult], x)
    with torch.inference_mode():
        outputs = {name: run_it() for name, run_it in modes.items() if name != "full"}
    difference = max((out - outputs["ideal"]).abs().max().item() for out in outputs.values())
    rows = [{"mode": name, "repeat": repeat, "ms": round(latency["median_ms"], 4)} for repeat in range(repeats)
            for name, latency in compare_latency(modes, x, max(1, rounds // repeats)).items()]
    ways = {(width, name): run_it for width, subnet in named.items()
            for name, run_it in execution_modes(net, subnet, x).items() if name in ("slice", "index", "ideal")}
    timed = compare_latency({f"{name} {width}": run_it for (width, name), run_it in ways.items()}, x,
                            max(1, rounds // repeats))
    widths = [{"mode": name, "mult": width, "ms": round(timed[f"{name} {width}"]["median_ms"], 4)}
              for width, name in ways]
    return {"modes": rows, "widths": widths, "difference": difference, "about": conditions(x)}
