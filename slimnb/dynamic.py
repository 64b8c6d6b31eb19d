"""Dynamic inference on batches: rows that take the same path are run together, sliced; what each path costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from slimnb.cost import CostTable
from slimnb.errors import SlimnbError
from slimnb.gates import Gate
from slimnb.layers import GROUP, Selection, SwitchableBatchNorm2d
from slimnb.nets.blocks import Chain
from slimnb.nets.gated import GatedNet


def path_macs(net: GatedNet, convention: str = "D") -> np.ndarray:
    """MACs of every path for one image, an axis per gate; slimming heads included. Traced once."""
    table = CostTable.macs(net, net.path_space, convention)
    heads = sum(gate.slim_weight.numel() for gate in net.gates)
    return table.predict(np.array([path.widths for path in net.paths])).reshape(net.choices) + heads


class Pointwise(nn.Module):
    """A 1 x 1 convolution of stride 1 as one matrix product over all pixels.

    On channels_last that is a view, and needs none of the reordering of weights that a convolution does at every call:
    for the few images of a group it is up to twice as fast.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.detach().flatten(1).clone()), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def pack_(plain: nn.Module) -> nn.Module:
    """A plain module for inference: batch norms folded into the convolutions before, pointwise ones as products."""
    for parent in plain.modules():
        if isinstance(parent, nn.Sequential):
            layers = list(parent)
            for i, (conv, norm) in enumerate(zip(layers, layers[1:], strict=False)):  # noqa: RUF007
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    folded = fuse_conv_bn_eval(conv.eval(), norm.eval())
                    plain_1x1 = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
                    parent[i], parent[i + 1] = Pointwise(folded) if plain_1x1 else folded, nn.Identity()
    return plain.to(memory_format=torch.channels_last)


@dataclass
class Group:
    """Rows of a batch that go on together."""

    rows: Tensor  # (n,) int64: which rows of the batch
    x: Tensor  # (n, C, H, W)
    widths: list[int]  # per channel unit; 0 where no gate has decided yet
    last: int = 0  # choice of the last gate passed


class DynamicNet(nn.Module):
    """A net whose gates route every image, for inference on batches: `dynamic(x)` gives what `net(x, Gated())` does.

    At each gate rows are grouped by its choice and every group is run sliced, on its own; behind the first block of a
    stage groups of equal width are joined again, so that several gates do not split a batch ever further. An image's
    path does not depend on its batch. It is a snapshot: layers are extracted from the net when a width is first met,
    packed (`pack_`) and kept; make another one after training. With `packed` False every call slices the supernet's
    own weights, which costs time and no memory. `lowest` as in `Gated`. Raises S70; N15 where statistics before the
    first gate depend on the path.
    """

    def __init__(self, net: GatedNet, lowest: int | None = None, packed: bool = True):
        super().__init__()
        self.net, self.lowest, self.packed = net, net.check_lowest(lowest), packed
        self.steps = list(_flat(net.features))
        self.splits = [i for i, step in enumerate(self.steps) if isinstance(step, Gate) and step.rules]
        self.kept: dict[tuple, nn.Module] = {}
        # Nets of several gates have group norm, which has no statistics. Before a lone gate all paths have the same.
        self.slots = [] if net.bn == GROUP else [net.slot_of(path) for path in net.paths]
        self._check_statistics()

    def _check_statistics(self) -> None:
        before = [m for step in self.steps[: self.splits[0]] for m in step.modules()
                  if isinstance(m, SwitchableBatchNorm2d)]
        for norm in before if self.slots else ():
            rows = norm.running_mean[self.slots, : self.net.fixed[norm.unit]]
            if not torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6):
                raise SlimnbError("N15", "statistics before the first gate differ from path to path",
                                  "there the path is not known yet", "Call calibrate_bn(net, net.paths, images).", "")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, classes)."""
        return self.route(x)[0]

    @torch.inference_mode()
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) of x (B, 3, H, W) and the choices (B, gates) int64 that led there."""
        widths = [self.net.fixed.get(unit, 0) for unit in range(len(self.net.unit_names))]
        groups = [Group(torch.arange(len(x), device=x.device), x, widths)]
        choices = torch.zeros(len(x), len(self.splits), dtype=torch.int64, device=x.device)
        for i, step in enumerate(self.steps):
            if i in self.splits:
                column = choices[:, self.splits.index(i)]
                groups = [part for group in groups for part in self._split(step, group, column)]
            else:
                for group in groups:
                    group.x = self._run(i, step, group)
                groups = _joined(groups)
        logits = x.new_empty(len(x), self.net.num_classes, dtype=torch.promote_types(x.dtype, torch.float32))
        for group in groups:
            pooled = F.adaptive_avg_pool2d(group.x, 1).flatten(1)
            logits[group.rows] = self.net.classifier(pooled).to(logits.dtype)
        return logits, choices

    def _split(self, gate: Gate, group: Group, column: Tensor) -> list[Group]:
        """The group's parts by the choice of `gate`, attended; the choices are written into `column` (B,)."""
        hidden, seen = gate.look(group.x)
        wide = self.lowest or gate.choices
        best = gate.best(gate.scores(seen, wide), wide)
        column[group.rows] = best
        x, rows = gate.attended(group.x, hidden), group.rows
        counts = torch.bincount(best, minlength=wide).tolist()  # the one wait for the device
        if max(counts) < len(best):
            order = best.argsort(stable=True)
            x, rows = x[order], rows[order]
        return [Group(own, part, self._ruled(group.widths, gate, k), k) for k, (part, own) in
                enumerate(zip(x.split(counts), rows.split(counts), strict=True)) if len(own)]

    @staticmethod
    def _ruled(widths: list[int], gate: Gate, choice: int) -> list[int]:
        of_unit = dict(zip(gate.rules, gate.widths[choice], strict=True))
        return [of_unit.get(unit, width) for unit, width in enumerate(widths)]

    def _run(self, i: int, step: nn.Module, group: Group) -> Tensor:
        """`step` on a group; of its width packed layers are kept."""
        slot = self.slots[group.last] if self.slots else 0
        if not self.packed:
            return step(group.x, Selection(group.widths, slot=slot))
        key = i, group.x.shape[1], group.last
        if key not in self.kept:
            self.kept[key] = pack_(step.extract(Selection(group.widths, slot=slot)).eval())
        return self.kept[key](group.x)


def _flat(chain: Chain) -> Iterator[nn.Module]:
    """The steps of a chain of chains, one after the other."""
    for module in chain:
        if isinstance(module, Chain):
            yield from _flat(module)
        else:
            yield module


def _joined(groups: list[Group]) -> list[Group]:
    """Groups with the same last choice and equally wide activations as one: what follows treats them alike."""
    alike: dict[tuple[int, int], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.last, group.x.shape[1]), []).append(group)
    return [parts[0] if len(parts) == 1 else
            Group(torch.cat([part.rows for part in parts]), torch.cat([part.x for part in parts]), parts[0].widths,
                  parts[0].last) for parts in alike.values()]
