"""The four nets once more, as plain PyTorch at one list of widths, to hold slimnb's sliced ones against.

Written from the papers' layer tables; nothing here imports slimnb. A thin net is made on the meta device and
run by `torch.func.functional_call` with parameters cut out of a supernet: first rows, first columns.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def add_padded(a: Tensor, b: Tensor) -> Tensor:
    """Sum of two feature maps, the narrower one padded with zero channels."""
    most = max(a.shape[1], b.shape[1])
    return sum(F.pad(t, (0, 0, 0, 0, 0, most - t.shape[1])) for t in (a, b))


class Block(nn.Module):
    """Plain residual block: relu(body + shortcut), or no relu."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, relu: bool):
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, relu

    def forward(self, x: Tensor) -> Tensor:
        total = add_padded(self.body(x), self.shortcut(x))
        return F.relu(total) if self.relu else total


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, *, act=None,
         group_norm: bool = False) -> nn.Sequential:
    norm = nn.GroupNorm(cout // 8, cout) if group_norm else nn.BatchNorm2d(cout)
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), norm,
                         *([act()] if act else []))


def head(layers: list, channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def mobilenet_v1(widths, classes, small, layout, gn=False):
    """3x3 stem, then depthwise 3x3 and pointwise 1x1 in turn; `layout` gives all strides."""
    kw = {"act": nn.ReLU6, "group_norm": gn}
    strides = [stride for _, stride in layout]
    layers = [conv(3, widths[0], 3, strides[0], **kw)]
    for (cin, cout), stride in zip(pairwise(widths), strides[1:], strict=True):
        layers += [conv(cin, cin, 3, stride, cin, **kw), conv(cin, cout, 1, **kw)]
    return head(layers, widths[-1], classes)


def mobilenet_v2(widths, classes, small, layout, gn=False):
    """Inverted residuals; widths: stem, (hidden, out) of each block (no hidden where t = 1), tail."""
    kw = {"group_norm": gn}
    widths = iter(widths)
    channels = next(widths)
    layers = [conv(3, channels, 3, 1 if small else 2, act=nn.ReLU6, **kw)]
    for row, (t, _, count, first) in enumerate(layout):
        for i in range(count):
            stride = first if i == 0 and not (small and row <= 1) else 1
            hidden = channels if t == 1 else next(widths)
            body = [] if t == 1 else [conv(channels, hidden, 1, act=nn.ReLU6, **kw)]
            out = next(widths)
            body += [conv(hidden, hidden, 3, stride, hidden, act=nn.ReLU6, **kw), conv(hidden, out, 1, **kw)]
            body = nn.Sequential(*body)
            layers.append(body if i == 0 else Block(body, nn.Identity(), relu=False))
            channels = out if i == 0 else max(out, channels)
    tail = next(widths)
    return head([*layers, conv(channels, tail, 1, act=nn.ReLU6, **kw)], tail, classes)


def vgg(widths, classes, small, layout, gn=False):
    """3x3 convolutions, a 2x2 max-pool between the rows of `layout`."""
    layers, channels, widths = [], 3, iter(widths)
    for row in layout:
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in row:
            out = next(widths)
            layers.append(conv(channels, out, 3, act=nn.ReLU, group_norm=gn))
            channels = out
    return head(layers, channels, classes)


def resnet50(widths, classes, small, layout, gn=False):
    """Bottlenecks 1x1, 3x3 (strided), 1x1; a strided 1x1 projection in the first block of each stage."""
    widths = iter(widths)
    channels = next(widths)
    stem = conv(3, channels, 3 if small else 7, 1 if small else 2, act=nn.ReLU, group_norm=gn)
    layers = [stem] if small else [stem, nn.MaxPool2d(3, 2, 1)]
    for stage, (_, count) in enumerate(layout):
        for i in range(count):
            stride = 2 if stage and not i else 1
            mid1, mid2, out = next(widths), next(widths), next(widths)
            body = nn.Sequential(conv(channels, mid1, 1, act=nn.ReLU, group_norm=gn),
                                 conv(mid1, mid2, 3, stride, act=nn.ReLU, group_norm=gn),
                                 conv(mid2, out, 1, group_norm=gn))
            if i:
                layers.append(Block(body, nn.Identity(), relu=True))
                channels = max(channels, out)
                continue
            short = next(widths)
            layers.append(Block(body, conv(channels, short, 1, stride, group_norm=gn), relu=True))
            channels = max(out, short)
    return head(layers, channels, classes)


def thin_net(net, widths: tuple[int, ...]) -> nn.Module:
    """The plain net with the layers of `net` (read for its layout only) at `widths`; on the meta device."""
    build = {"MobileNetV1": mobilenet_v1, "MobileNetV2": mobilenet_v2, "VGG": vgg, "ResNet50": resnet50}
    with torch.device("meta"):
        return build[type(net).__name__](widths, net.num_classes, net.input_size == 32, net.layout,
                                         net.bn == "group").eval()


def cut(wide: Tensor, like: Tensor, row: int) -> Tensor:
    """The first rows and columns of `wide`, as many as `like` has; row `row` of per-slot vectors."""
    if wide.dim() == 2 and like.dim() == 1:
        wide = wide[row]
    return wide[tuple(slice(n) for n in like.shape)]


def cut_parameters(net, thin: nn.Module, slot: int = 0) -> dict[str, Tensor]:
    """Parameters and statistics for `thin`, cut out of the supernet `net` in order of definition."""
    affine = slot if net.bn == "private" else 0
    wide, small = list(net.parameters()), list(thin.named_parameters())
    out = {name: cut(w, p, affine) for w, (name, p) in zip(wide, small, strict=True)}
    rows = [b for n, b in net.named_buffers() if n.endswith(("running_mean", "running_var"))]
    buffers = [(n, b) for n, b in thin.named_buffers() if "num_batches" not in n]
    out |= {name: cut(r, b, slot) for r, (name, b) in zip(rows, buffers, strict=True)}
    return out | {n: torch.zeros((), dtype=torch.long) for n, _ in thin.named_buffers() if "num_batches" in n}


def run_thin(net, x: Tensor, subnet, slot: int = 0, training: bool = False) -> Tensor:
    """Logits of the independent net for `subnet` with parameters cut out of `net`."""
    thin = thin_net(net, subnet.widths).train(training)
    return torch.func.functional_call(thin, cut_parameters(net, thin, slot), (x,))
