"""Papers, nets and resources by their names: ours are listed here, other packages' are entry points.

A package of your own adds to them in its pyproject.toml, with no change in this repository:

    [project.entry-points."slimnb.papers"]
    seventh = "seventh_paper.recipes"
    [project.entry-points."slimnb.nets"]
    tiny_net = "seventh_paper.net:TinyNet"

Names stand in recipes and so in the ids of runs: they are keys, and stay as they are when code moves.
"""

from __future__ import annotations

import importlib
import textwrap
from importlib.metadata import entry_points
from typing import Any

from slimnb.errors import ParameterError

OURS = {
    # a module with STAGES (see `slimnb.train.experiment.Stage`), and CHAPTER where the book has one on it; beside it,
    # its claims.toml (see `slimnb.book.registered`)
    "papers": {
        "slimmable": "slimnb.papers.slimmable.recipes",
        "sp_net": "slimnb.papers.sp_net.recipes",
        "platforms": "slimnb.papers.platforms.recipes",
        "pss_net": "slimnb.papers.pss_net.recipes",
        "deps": "slimnb.papers.deps.recipes",
        "ds_net": "slimnb.papers.ds_net.recipes",
    },
    # a `SlimmableNet`
    "nets": {
        "mobilenet_v1": "slimnb.nets.mobilenet:MobileNetV1",
        "mobilenet_v2": "slimnb.nets.mobilenet:MobileNetV2",
        "mobilenet_v3": "slimnb.nets.mobilenet:MobileNetV3",
        "proxyless_nas": "slimnb.nets.proxyless_nas:ProxylessNAS",
        "resnet": "slimnb.nets.resnet:ResNet50",
        "vgg": "slimnb.nets.vgg:VGG",
        "ds_mbnet": "slimnb.papers.ds_net.nets:DSMobileNet",
        "ds_resnet": "slimnb.papers.ds_net.nets:DSResNet50",
        "ds_effnet": "slimnb.papers.ds_net.nets:DSEfficientNet",
    },
    # (net, structures) -> `slimnb.papers.pss_net.structures.Resource`, for targets that structures are held to
    "resources": {"MACs": "slimnb.papers.pss_net.structures:Resource.macs"},
}


def names(kind: str) -> list[str]:
    """Return the names of all there are of a kind, ours first; a kind is "papers", "nets" or "resources"."""
    return list(dict.fromkeys([*OURS[kind], *sorted(entry.name for entry in entry_points(group=f"slimnb.{kind}"))]))


def find(kind: str, name: str) -> Any:
    """Return the module, class or function of that name. Raises ParameterError if there is none."""
    if name in OURS[kind]:
        module, _, attribute = OURS[kind][name].partition(":")
        thing = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            thing = getattr(thing, part)
        return thing
    for entry in entry_points(group=f"slimnb.{kind}", name=name):
        return entry.load()
    raise ParameterError(f"{kind.removesuffix('s')} = {str(name)[:20]!r}",
                         f"there are {textwrap.shorten(', '.join(names(kind)), 120, placeholder=' ...')}",
                         f"Correct it, or install its package (entry points slimnb.{kind}).")
