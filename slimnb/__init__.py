"""slimnb: slimmable and once-for-all networks on one small core. The names a notebook needs most; the rest by module.

Names are imported on first use, so that checking a chapter's parameters does not wait for torch.
"""

from __future__ import annotations

import importlib

_HOME = {
    "Subnet": "subnet", "SearchSpace": "subnet",
    "MobileNetV1": "nets.mobilenet", "MobileNetV2": "nets.mobilenet",
    "ResNet50": "nets.resnet", "VGG": "nets.vgg",
    "MobileNetV3": "nets.mobilenet", "ProxylessNAS": "nets.proxyless_nas",
    "calibrate_bn": "train.calibrate", "evaluate": "train.calibrate",
    "count_macs": "cost.macs", "count_params": "cost.macs", "CostTable": "cost.table",
    "measure_latency": "cost.latency",
    "Trellis": "search.trellis", "best_under": "search.trellis", "marginals": "search.trellis",
    "chinese_restaurant_process": "papers.platforms.market", "prune": "papers.sp_net.pruning", "embed_": "nets.sorting",
    "load_data": "data.datasets", "Pass": "train.loop",
    "Switches": "papers.slimmable.method", "Sandwich": "papers.slimmable.method", "Uniform": "papers.slimmable.method",
    "InplaceDistillation": "papers.slimmable.method",
    "WidthSearch": "papers.platforms.method", "SmoothedViterbi": "papers.platforms.method",
    "PlatformSandwich": "papers.platforms.method",
    "DynamicNet": "papers.ds_net.dynamic", "EnsembleBootstrapping": "papers.ds_net.method",
    "SandwichGateSparsification": "papers.ds_net.method",
    "Recipe": "train.recipe", "run": "train.experiment", "SlimnbError": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'slimnb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"slimnb.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
