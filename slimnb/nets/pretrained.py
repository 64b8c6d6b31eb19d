"""The slimmable ResNet-50 and MobileNetV2 load ImageNet weights in torchvision's layout."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.error import URLError

import torch
from torch import Tensor

from slimnb.errors import DataError, ParameterError, StoreError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.mobilenet import MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nn.blocks import ConvNormAct
from slimnb.nn.norm import GROUP, PRIVATE
from slimnb.rules import checked

UNTOUCHED = "The net is as it was."


@checked
def load_torchvision_(net: ResNet50 | MobileNetV2, state: dict[str, Tensor], head: bool = True) -> None:
    """Load torchvision's state dict at full width; the statistics go into the slot of `net.largest`.

    `state` maps torchvision's names to tensors, in any order. With private batch norm every slot that is
    reserved starts from the same gamma and beta. `head=False` keeps the net's own classifier (for another number
    of classes). Raises ParameterError for another net, and StoreError for a name, shape or value that does not fit,
    before anything is written.
    """
    names, classifier = _layers_of(net)
    blocks = [module for module in net.modules() if isinstance(module, ConvNormAct)]
    conv_writes, norm_writes = [], []
    for block, (conv, norm) in zip(blocks, names, strict=True):
        conv_writes.append((block.conv.weight, _tensor(state, f"{conv}.weight", block.conv.weight.shape)))
        kinds = ("weight", "bias", "running_mean", "running_var")
        norm_writes.append([_tensor(state, f"{norm}.{kind}", (block.norm.channels,)) for kind in kinds])
    if head:
        for kind in ("weight", "bias"):
            parameter = getattr(net.classifier, kind)
            conv_writes.append((parameter, _tensor(state, f"{classifier}.{kind}", parameter.shape)))

    net.reserve([net.largest])
    slot = net.slots[net.largest]
    with torch.no_grad():
        for parameter, value in conv_writes:
            parameter.copy_(value)
        for block, (gamma, beta, mean, var) in zip(blocks, norm_writes, strict=True):
            norm = block.norm
            norm.weight.copy_(gamma.expand_as(norm.weight))
            norm.bias.copy_(beta.expand_as(norm.bias))
            norm.running_mean[slot].copy_(mean)
            norm.running_var[slot].copy_(var)
    net.mark_calibrated([net.largest])


@checked
def load_imagenet_(net: ResNet50 | MobileNetV2, weights: str = "DEFAULT", head: bool = True) -> None:
    """Download torchvision's own ImageNet weights (ResNet-50 98 MB, MobileNetV2 14 MB) and load them.

    `weights` names a member of torchvision's enum: "IMAGENET1K_V1", "IMAGENET1K_V2" or "DEFAULT", its best.
    The file stays in torch's cache and its checksum is verified; only tensors are read from it. Raises ParameterError
    for an unknown member and DataError if it cannot be fetched.
    """
    from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights

    _layers_of(net)
    enum = ResNet50_Weights if isinstance(net, ResNet50) else MobileNet_V2_Weights
    if weights not in enum.__members__:
        raise ParameterError(f"weights = {weights!r}"[:60], f"it is one of {', '.join(enum.__members__)}",
                             "Set weights='DEFAULT'.", UNTOUCHED)
    try:
        state = enum[weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        why = f"they could not be fetched ({' '.join(str(error).split())[:50]})"
        raise DataError(f"weights {enum[weights].url}"[:90], why,
                        "Connect, or load a file of them with load_torchvision_.", UNTOUCHED) from None
    load_torchvision_(net, state, head)


def _layers_of(net: SlimmableNet) -> tuple[list[tuple[str, str]], str]:
    """Return torchvision's names of (convolution, batch norm) in the net's order, and of the classifier."""
    if net.bn == GROUP:
        raise ParameterError("bn = 'group'", "torchvision's weights are for batch norm",
                             f"Build the net with bn={PRIVATE!r} or another batch norm.", UNTOUCHED)
    if net.input_size == 224 and isinstance(net, ResNet50):
        return list(_resnet_names(net.layout)), "fc"
    if net.input_size == 224 and isinstance(net, MobileNetV2):
        return list(_mobilenet_v2_names(net.layout)), "classifier.1"
    raise ParameterError(f"{type(net).__name__} for {net.input_size} pixels",
                         "weights are at hand for ResNet50 and MobileNetV2 at 224",
                         "Build one of these with input_size=224.", UNTOUCHED)


def _resnet_names(layout) -> Iterator[tuple[str, str]]:
    yield "conv1", "bn1"
    for stage, (_, count) in enumerate(layout, 1):
        for i in range(count):
            block = f"layer{stage}.{i}"
            yield from ((f"{block}.conv{j}", f"{block}.bn{j}") for j in (1, 2, 3))
            if i == 0:
                yield f"{block}.downsample.0", f"{block}.downsample.1"


def _mobilenet_v2_names(layout) -> Iterator[tuple[str, str]]:
    yield "features.0.0", "features.0.1"
    expansions = [t for t, _, count, _ in layout for _ in range(count)]
    for block, t in enumerate(expansions, 1):
        inner = f"features.{block}.conv"
        last = 1 if t == 1 else 2  # an expanding block has one more convolution before its last, linear one
        yield from ((f"{inner}.{j}.0", f"{inner}.{j}.1") for j in range(last))
        yield f"{inner}.{last}", f"{inner}.{last + 1}"
    tail = len(expansions) + 1
    yield f"features.{tail}.0", f"features.{tail}.1"


def _tensor(state: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state:
        raise StoreError(f"no {name!r} among {len(state)} tensors", "torchvision's state dict has it",
                         "Pass the state_dict() of the same torchvision model.", UNTOUCHED)
    value = state[name]
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise StoreError(f"{name} is {got}", f"the net has {tuple(shape)}",
                         "Build the net at largest=1.0 with as many classes, or pass head=False.", UNTOUCHED)
    if not value.isfinite().all():
        raise StoreError(f"{name} holds NaN or inf", "weights are finite", "Fetch the file again.",
                         UNTOUCHED)
    return value
