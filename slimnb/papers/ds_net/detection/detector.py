"""A slimmable detector: feature fusion (FSSD) on a net's blocks, torchvision's SSD for boxes, scores and loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import box_iou

from slimnb.cost.macs import IMAGES
from slimnb.errors import ParameterError
from slimnb.nets.base import Masks, SlimmableNet
from slimnb.nets.gated import GatedNet, routed_selection
from slimnb.nn.blocks import ConvNormAct, resize
from slimnb.nn.gate import Gated, RoutedLogits
from slimnb.nn.layers import Selection, SlimmableConv2d
from slimnb.nn.norm import GROUP, normalisation
from slimnb.papers.ds_net.detection.batches import Targets
from slimnb.subnet import Subnet
from slimnb.train.protocols import Pass
from slimnb.train.state import load_first_channels_

TAPS = (5, 11, 13)
"""DS-Net, section 4.3: the depthwise blocks whose outputs are fused, at strides 8, 16 and 32."""
PYRAMID = (512, 512, 256, 256, 128, 128)  # channels of the maps that predict: FSSD's author's, for MobileNet
SCALES = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)  # of default boxes, shares of the side: his, for VOC at 300 pixels
RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))  # aspect ratios beside 1, and their inverses


class Detector(SlimmableNet):
    """FSSD (Li and Zhou 2017) on a copy of the blocks of `backbone`, a chain; its subnets are the backbone's.

    `detector(x, route)`, x (B, 3, H, W), gives (B, boxes, 4 + 1 + classes) float32: for every default box its offsets,
    then scores of the background and the classes. The outputs of the blocks `taps` (0 is the stem), of any width, are
    each projected to `channels` channels, enlarged to the first one's size, put side by side and normalised by the
    backbone's policy. From there a pyramid of depthwise-separable blocks, each but the first at half the resolution,
    makes one map of `pyramid` channels per level. It has group norms, since its last maps have few pixels. `scales` are
    the sides of default boxes per level and one more, as shares of the image, `ratios` their aspect ratios.

    The blocks keep the backbone's weights; what is new starts from `seed`. Raises ParameterError for taps that are no
    blocks and for a pyramid that does not fit.
    """

    def __init__(self, backbone: SlimmableNet, num_classes: int, side: int = 300, *, taps: Sequence[int] = TAPS,
                 channels: int = 256, pyramid: Sequence[int] = PYRAMID, scales: Sequence[float] = SCALES,
                 ratios: Sequence[Sequence[float]] = RATIOS, seed: int = 0, score_thresh: float = 0.01):
        super().__init__(num_classes, backbone.input_size, backbone.bn, backbone.activation, seed)
        _check(backbone, taps, channels, pyramid, scales, ratios)
        self.input_size, self.taps, self.channels = side, tuple(taps), channels
        self.unit_names = list(backbone.unit_names)
        self.slots, self._stamps = dict(backbone.slots), [None] * len(backbone._stamps)
        self.features = copy.deepcopy(backbone.features[: self.taps[-1] + 1])
        if isinstance(backbone, GatedNet):
            self.fixed, self.paths = backbone.fixed, backbone.paths
            self.gates = [m for m in self.features.modules() if getattr(m, "rules", ())]
        unit = len(self.unit_names)  # of the neck: it has one width, which subnets do not name
        self.projections = nn.ModuleList()
        for tap in self.taps:
            last = [m for m in self.features[tap].modules() if isinstance(m, ConvNormAct)][-1]
            wide = last.conv.out_channels
            self.projections.append(SlimmableConv2d(wide, channels, 1, unit=unit, sources=(last.unit,)))
        self.norm = normalisation(channels * len(self.taps), unit=unit, policy=self.bn)
        if self.bn != GROUP:
            self.norm.reserve(max(1, len(self._stamps)))
        with torch.random.fork_rng([]):  # `reset_parameters` draws again, from `seed`
            inputs = (channels * len(self.taps), *pyramid)
            self.pyramid = nn.ModuleList(_separable(i, o, 2 if level else 1)
                                         for level, (i, o) in enumerate(zip(inputs, pyramid, strict=False)))
            boxes = DefaultBoxGenerator([list(row) for row in ratios], scales=list(scales))
            head = SSDHead(list(pyramid), boxes.num_anchors_per_location(), num_classes + 1)
            self.ssd = SSD(nn.Identity(), boxes, (side, side), num_classes + 1, head=head, score_thresh=score_thresh)
        self._anchors: dict[tuple, Tensor] = {}
        self.finish(*(getattr(backbone.largest, name) for name in ("widths", "depths", "kernels")))
        # Statistics depend on no weights of the pyramid, whose convolutions have no bias: those need not be watched.
        self._held = [held for held in self._held if None not in held.values()]

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw the weights of neck and head anew.

        Convolutions of the neck start as He's, those of the head as Xavier's, biases at 0.
        """
        if next(self.parameters()).is_meta:
            return
        rng = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if name.startswith("features."):
                continue
            if p.dim() < 4:
                p.fill_(float(name.endswith("weight")))
            elif name.startswith("ssd."):
                nn.init.xavier_uniform_(p, generator=rng)
            else:
                p.copy_(torch.randn(p.shape, generator=rng) * math.sqrt(2 / p[0].numel()))

    def load_backbone_(self, tensors: dict[str, Tensor]) -> None:
        """Copy the blocks of a classification net at least as wide, by name.

        Raises StoreError for another architecture.
        """
        blocks = nn.Module()
        blocks.features = self.features
        load_first_channels_(blocks, tensors)

    def uniform(self, mult: float, resolution: int | None = None) -> Subnet:
        """Raise ParameterError: the backbone knows its subnets, which are the detector's."""
        raise ParameterError(f"width multiplier {mult!r}"[:60], "a detector's subnets are its backbone's",
                             "Ask the backbone for it.")

    def extract(self, subnet: Subnet) -> nn.Sequential:
        """Raise ParameterError: a detector is not extracted. `bind` gives a module with a plain forward."""
        raise ParameterError("extract of a detector", "it is run in place", "Use bind(subnet).")

    def select(self, route: Subnet | Masks | Gated, momentum: float | None = None,
               statistics: str = "auto") -> Selection:
        """Select as the backbone does."""
        if isinstance(route, Gated) and hasattr(self, "gates"):
            return routed_selection(self, route)
        return super().select(route, momentum, statistics)

    def forward(self, x: Tensor, route: Subnet | Masks | Gated | None = None, *, dropout: float = 0.0,
                generator: torch.Generator | None = None, momentum: float | None = None,
                statistics: str = "auto") -> Tensor | RoutedLogits:
        """Return offsets and scores, see the class.

        `SlimmableNet.forward` explains the keywords; there is no dropout.
        """
        route = self.largest if route is None else route
        self._touched = self._touched or torch.is_grad_enabled()
        s = self.select(route, momentum, statistics)
        outputs = self.ssd.head(self.maps(resize(x, route.resolution), s))
        out = torch.cat((outputs["bbox_regression"], outputs["cls_logits"]), dim=2).float()
        return out if s.routing is None else RoutedLogits(out, tuple(s.decisions))

    def maps(self, x: Tensor, s: Selection) -> list[Tensor]:
        """Return the maps that predict, largest first, each (B, C, h, w), in the head's precision."""
        tapped = []
        for i, block in enumerate(self.features):
            x = block(x, s)
            if i in self.taps:
                tapped.append(x)
        s = replace(s, widths=(*s.widths, self.channels))  # last: gates may have changed it on the way
        x = F.relu(self.norm(self.fused(tapped, s), s)).to(self.pyramid[0][0].weight.dtype)
        return [x := level(x) for level in self.pyramid]

    def fused(self, tapped: Sequence[Tensor], s: Selection) -> Tensor:
        """Project the outputs of the taps, enlarge them to the first one's size and put them side by side.

        The result is (B, channels * taps, h, w).
        """
        size = tapped[0].shape[-2:]
        projected = [layer(x, s) for layer, x in zip(self.projections, tapped, strict=True)]
        return torch.cat([x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear")
                          for x in projected], dim=1)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the sizes of the maps that predict, for images of a size."""
        strides = [m.stride for m in self.features[: self.taps[0] + 1].modules() if isinstance(m, SlimmableConv2d)]
        sizes = [(height, width)]
        for stride in (*strides, *(block[0].stride[0] for block in self.pyramid)):
            sizes.append(tuple(math.ceil(length / stride) for length in sizes[-1]))
        return sizes[-len(self.pyramid):]

    def anchors(self, x: Tensor) -> Tensor:
        """Return the default boxes (boxes, 4) for images like x (B, 3, H, W): left, top, right, bottom in pixels."""
        size = tuple(x.shape[-2:])
        if (size, x.device) not in self._anchors:
            maps = [torch.empty(1, 1, *grid, device=x.device) for grid in self.grids(*size)]
            image = torch.empty(1, 3, *size, device="meta")
            with torch.no_grad():
                (self._anchors[size, x.device],) = self.ssd.anchor_generator(ImageList(image, [size]), maps)
        return self._anchors[size, x.device]

    @torch.inference_mode()
    def detect(self, x: Tensor, route: Subnet | Masks | Gated) -> list[dict[str, Tensor]]:
        """Detect the objects in each image of x: boxes (n, 4), scores (n,), labels (n,), without doubles.

        The net's own mode decides which statistics are used: call `eval` first.
        """
        out, anchors = self(x, route), self.anchors(x)
        out = out.logits if isinstance(out, RoutedLogits) else out
        predicted = {"bbox_regression": out[..., :4], "cls_logits": out[..., 4:]}
        detections = self.ssd.postprocess_detections(predicted, [anchors] * len(x), [tuple(x.shape[-2:])] * len(x))
        # SSD's label 0 is the background.
        return [detection | {"labels": detection["labels"] - 1} for detection in detections]


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    def norm(channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(channels // 8, channels)

    return nn.Sequential(nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), norm(inputs), nn.ReLU(),
                         nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs), nn.ReLU())


def _check(backbone: SlimmableNet, taps: Sequence[int], channels: int, pyramid: Sequence[int], scales: Sequence[float],
           ratios: Sequence[Sequence[float]]) -> None:
    last = len(backbone.features) - 1
    if not taps or list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] <= last:
        raise ParameterError(f"taps = {tuple(taps)}"[:60], f"they ascend, and this backbone has blocks 0 to {last}",
                             "Set e.g. taps=(5, 11, 13) for MobileNetV1.")
    if not pyramid or any(wide < 8 or wide % 8 for wide in (channels, *pyramid)):
        raise ParameterError(f"channels = {channels}, pyramid = {tuple(pyramid)}"[:90],
                             "widths of neck and pyramid are multiples of 8", "Set e.g. 256 and (512, 256).")
    if not len(scales) - 1 == len(ratios) == len(pyramid):
        raise ParameterError(f"{len(pyramid)} levels, {len(scales)} scales, {len(ratios)} rows of ratios",
                             "each level has one of both, and one scale follows the last", "Give as many.")


def detector_macs(net: Detector, subnet: Subnet) -> int:
    """Count the multiply-accumulates of convolutions and linear layers (convention A) for one image, by a trace."""
    tensors = {name: t.to("meta") for name, t in [*net.named_parameters(), *net.named_buffers()]}
    side = subnet.resolution or net.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        images = torch.empty(IMAGES, 3, side, side, device="meta")
        functional_call(net, tensors, (images, subnet), {"statistics": "batch"})
    return counter.get_total_flops() // (2 * IMAGES)


# -- the loss --------------------------------------------------------------------------------------------


class DetectionLoss:
    """SSD's loss (Liu et al. 2016, eq. 1) as torchvision computes it, for a whole batch at once.

    It is smooth L1 on the offsets of matched default boxes, plus cross-entropy on these and on the worst others of the
    image, `negatives` times as many, over the number of matched boxes in the batch. It is returned per image, so that
    the mean over the batch is torchvision's sum. The second value is the part of the classes.
    """

    def __init__(self, overlap: float = 0.5, negatives: float = 3.0):
        self.overlap, self.negatives = overlap, negatives
        self.anchors: Tensor | None = None
        self.coder = None
        self._matched: tuple[Targets | None, Tensor | None, Tensor | None] = None, None, None

    def begin(self, net: Detector, x: Tensor, passes: Sequence[Pass]) -> None:
        """Compute the default boxes for this batch."""
        self.anchors, self.coder = net.anchors(x), net.ssd.box_coder

    def __call__(self, a_pass: Pass, out: Tensor, y: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) and its part of the classes (B,), detached."""
        if self._matched[0] is not y:  # all passes of a step share it
            self._matched = (y, *match(self.anchors, y, self.coder, self.overlap))
        _, labels, offsets = self._matched
        foreground = labels > 0
        share = len(labels) / foreground.sum().clamp(min=1)
        near = F.smooth_l1_loss(out[..., :4], offsets, reduction="none").sum(2).mul(foreground).sum(1)
        ce = F.cross_entropy(out[..., 4:].flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        with torch.no_grad():
            order = ce.masked_fill(foreground, -math.inf).argsort(1, descending=True).argsort(1)
            counted = foreground | (order < self.negatives * foreground.sum(1, keepdim=True))
        classes = ce.mul(counted).sum(1)
        return (near + classes) * share, classes.detach() * share


@torch.no_grad()
def match(anchors: Tensor, y: Targets, coder, overlap: float = 0.5) -> tuple[Tensor, Tensor]:
    """Match default boxes to objects: the label of each, 0 for background, and its offsets, (B, A) int64 and (B, A, 4).

    A box gets the object that it overlaps most if that is `overlap` or more. Each object gets the box that overlaps it
    most, whatever the overlap. If two objects claim the same box, the later one has it.
    """
    there = y.labels >= 0  # (B, M)
    batch, most = there.shape
    quality = box_iou(y.boxes.reshape(-1, 4), anchors).view(batch, most, -1).masked_fill(~there[..., None], -1.0)
    value, which = quality.max(1)  # (B, A)
    which = torch.where(value >= overlap, which, -1)
    rank = torch.arange(most, device=anchors.device).where(there, -1)
    claimants = torch.full_like(which, -1).scatter_reduce(1, quality.argmax(2), rank, "amax")
    which = torch.where(claimants >= 0, claimants, which)
    chosen = which.clamp(min=0)
    labels = torch.where(which >= 0, y.labels.gather(1, chosen) + 1, 0)
    boxes = y.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    boxes = torch.where((which >= 0)[..., None], boxes, anchors)  # of the others any box will do that has an area
    offsets = coder.encode_single(boxes.reshape(-1, 4), anchors.repeat(batch, 1))
    return labels, offsets.view(batch, -1, 4)
