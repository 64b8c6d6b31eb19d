"""slimnb: slimmable and once-for-all networks on one small core. The names a notebook needs most; the rest by module.

Names are imported on first use, so that checking a chapter's parameters does not wait for torch.
"""

from __future__ import annotations

import importlib

_HOME = {
    "Subnet": "subnet", "SearchSpace": "subnet",
    "MobileNetV1": "nets.mobilenet_v1", "MobileNetV2": "nets.mobilenet_v2",
    "ResNet50": "nets.resnet", "VGG": "nets.vgg",
    "MobileNetV3": "nets.mobilenet_v3", "ProxylessNAS": "nets.proxyless_nas",
    "calibrate_bn": "calibrate", "evaluate": "calibrate",
    "count_macs": "cost", "count_params": "cost", "CostTable": "cost", "measure_latency": "latency",
    "Trellis": "search", "best_under": "search", "marginals": "search",
    "chinese_restaurant_process": "crp", "prune": "pruning", "embed_": "nets.sorting",
    "load_data": "data", "Pass": "train",
    "Switches": "methods.slimmable", "Sandwich": "methods.slimmable", "Uniform": "methods.slimmable",
    "InplaceDistillation": "methods.slimmable",
    "WidthSearch": "methods.platforms", "SmoothedViterbi": "methods.platforms",
    "PlatformSandwich": "methods.platforms",
    "DynamicNet": "dynamic", "EnsembleBootstrapping": "methods.ds_net",
    "SandwichGateSparsification": "methods.ds_net",
    "Recipe": "recipes", "run": "experiment", "SlimnbError": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'slimnb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"slimnb.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
