"""What channel sorting saves: subnets whose channels lie where training left them, so that every call gathers them."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from slimnb.cost.execution import IndexedBatchNorm2d, IndexedConv2d, IndexedLinear, execution_modes, indexed
from slimnb.cost.latency import compare_latency, conditions
from slimnb.cost.macs import count_macs
from slimnb.nets.base import SlimmableNet
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nets.vgg import VGG
from slimnb.nn.layers import SlimmableConv2d, SlimmableLinear
from slimnb.nn.norm import SwitchableBatchNorm2d
from slimnb.papers.sp_net.pruning import gammas, importance_order, prune
from slimnb.rules import checked
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.experiment import once

TABLES = {"ResNet-50": (ResNet50, (0.25, 0.5, 0.75, 1.0)), "VGG": (VGG, (0.25, 0.5, 1.0)),
          "MobileNetV1": (MobileNetV1, (0.5, 0.75, 1.0)), "MobileNetV2": (MobileNetV2, (0.75, 1.0, 1.3))}
"""Nets and widths of SP-Net's Tables 7 and 10."""

SMOKE = {"ResNet-50": (ResNet50, (0.25, 0.5))}
REPEATS = 5
LAYERS = SlimmableConv2d, SwitchableBatchNorm2d, SlimmableLinear


@torch.no_grad()
def numbered(net: SlimmableNet) -> SlimmableNet:
    """Return a copy whose weights are the numbers of their channels; embedded, they tell where each channel went."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, SlimmableConv2d):
            outputs, inputs = module.weight.shape[:2]
            module.weight.copy_(torch.arange(outputs * inputs).view(outputs, inputs, 1, 1))  # exact below 2^24
        elif isinstance(module, (SlimmableLinear, SwitchableBatchNorm2d)):
            module.weight.copy_(torch.arange(module.weight.shape[1]))
    return net


@torch.no_grad()
def unsorted(net: SlimmableNet, subnet: Subnet, numbers: SlimmableNet) -> nn.Module:
    """Return `subnet` of an embedded net as SP-Net would run it without sorting; it gives the same outputs.

    All channels lie where they were before `embed_`, and at each call every layer gathers the weights of the channel
    numbers that the subnet keeps. `numbers` is the net's `numbered` copy, embedded in the same way.
    """
    plain = indexed(copy.deepcopy(net), subnet)
    gathering = [m for m in plain.modules() if isinstance(m, (IndexedConv2d, IndexedBatchNorm2d, IndexedLinear))]
    layers = [m for m in numbers.modules() if isinstance(m, LAYERS)]
    for layer, tags in zip(gathering, layers, strict=True):
        source = layer.source
        if isinstance(layer, IndexedConv2d):
            inputs = source.weight.shape[1]
            where = tags.weight[:, :, 0, 0].long()
            out, into = where[:, 0] // inputs, where[0] % inputs
            source.weight.copy_(_put_back(_put_back(source.weight, 0, out), 1, into))
            layer.out_index = out[: len(layer.out_index)]
            layer.in_index = layer.out_index if source.depthwise else into[: len(layer.in_index)]
            continue
        where = tags.weight[0].long()
        rows = [source.weight]
        if isinstance(layer, IndexedBatchNorm2d):
            rows += [source.bias, source.running_mean, source.running_var]
        for row in rows:
            row.copy_(_put_back(row, 1, where))
        layer.index = where[: len(layer.index)]
    return plain


def _put_back(values: Tensor, dim: int, where: Tensor) -> Tensor:
    """`values` with the slice k of `dim` at where[k]."""
    return torch.empty_like(values).index_copy_(dim, where, values)


def sorting_latencies(scale: str, rounds: int, store: RunStore, device: str = "cpu") -> dict:
    """Measure S-Net's subnets and pruned ones of the same MACs, sorted and unsorted, in ms (Tables 7 and 10).

    The batch is one image of 224 pixels, and gammas are random by layer and channel; at smoke there are two widths of
    ResNet-50. It is measured once per store and settings. Keys: rows (net, width, macs, way, repeat, ms: the median of
    `rounds` interleaved calls), difference (the largest between logits of sorted and unsorted, as a share of the
    largest logit), about, run_id. If all channels are kept nothing is gathered: the widest unsorted net is the plain
    one.
    """
    tables = SMOKE if scale == "smoke" else TABLES
    settings = {"paper": "sp_net", "arm": "sorting latency", "scale": scale, "rounds": rounds, "repeats": REPEATS,
                "nets": {name: list(widths) for name, (_, widths) in tables.items()},
                "device": torch.device(device).type}
    code = code_fingerprint(["slimnb.papers.sp_net.gathered._timed"])

    def take() -> dict:
        latencies = [_timed(name, kind, widths, rounds, device) for name, (kind, widths) in tables.items()]
        return {"rows": [row for rows, *_ in latencies for row in rows], "difference": max(d for _, d, _ in latencies),
                "about": latencies[0][2]}

    return once(store, settings, code, take)


def _timed(name: str, kind: type[SlimmableNet], widths: tuple[float, ...], rounds: int,
           device: str) -> tuple[list[dict], float, dict]:
    net = kind(largest=max(widths), bn="shared_affine")
    random_gammas_(net)
    uniform = {width: net.uniform(width) for width in widths}
    order = importance_order(gammas(net))
    counts = {str(width): prune(net, count_macs(net, subnet)).counts for width, subnet in uniform.items()}
    numbers, plain = numbered(net), copy.deepcopy(net).to(device).eval()
    embed_(numbers, order, counts)
    pruned = dict(zip(widths, embed_(net, order, counts).values(), strict=True))
    net, numbers = net.to(device).eval(), numbers.to(device)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    calibrate_bn(plain, list(uniform.values()), [x])
    calibrate_bn(net, list(pruned.values()), [x])
    image = x.contiguous(memory_format=torch.channels_last)
    ways = {}
    for width, subnet in pruned.items():
        ways["S-Net", width] = execution_modes(plain, uniform[width], x)["slice"]
        ways["SP-Net, sorted", width] = execution_modes(net, subnet, x)["slice"]
        ways["SP-Net, unsorted", width] = (execution_modes(plain, plain.largest, x)["slice"] if width == max(widths)
                                           else partial(unsorted(net, subnet, numbers), image))
    with torch.inference_mode():
        pairs = [(ways["SP-Net, sorted", width](), ways["SP-Net, unsorted", width]()) for width in widths]
    macs = {(way, width): count_macs(net if way != "S-Net" else plain, route) for width in widths for way, route in (
        ("S-Net", uniform[width]), ("SP-Net, sorted", pruned[width]), ("SP-Net, unsorted", pruned[width]))}
    difference = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    rows = []
    for repeat in range(REPEATS):
        timed = compare_latency(ways, x, max(1, rounds // REPEATS), warmup=1)
        rows += [{"net": name, "width": width, "macs": macs[way, width], "way": way, "repeat": repeat,
                  "ms": round(latency["median_ms"], 4)}
                 for (way, width), latency in timed.items()]
    return rows, difference, conditions(x)


@torch.no_grad()
@checked
def random_gammas_(net: SlimmableNet) -> None:
    """Set all gammas to random sizes > 0 that differ from layer to layer, in place of training."""
    rng = np.random.default_rng(0)
    for norm in net.norms():
        sizes = np.exp(rng.normal(0, 0.3)) * rng.uniform(0.5, 1.5, norm.channels)
        norm.weight.copy_(torch.from_numpy(sizes).float())
