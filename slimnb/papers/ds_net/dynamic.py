"""Dynamic inference on batches: rows that take the same path run together, sliced; and what each path costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from slimnb.cost.table import CostTable
from slimnb.errors import NumericsError, ParameterError
from slimnb.nets.gated import GatedNet
from slimnb.nn.blocks import Chain
from slimnb.nn.gate import Gate
from slimnb.nn.layers import Selection
from slimnb.nn.norm import GROUP, SwitchableBatchNorm2d

OVERHEAD = 4.0
"""What a group costs beside its images, in images on the widest path: on a CPU core, at 32 pixels."""
MIXING = 1.1
"""Cost of an image in a group of several paths over that of the widest of them: its norms are not folded."""


def path_macs(net: GatedNet, convention: str = "D") -> np.ndarray:
    """Count the MACs of every path for one image, an axis per gate, slimming heads included, by one trace."""
    table = CostTable.macs(net, net.path_space, convention)
    heads = sum(gate.slim_weight.numel() for gate in net.gates)
    return table.predict(np.array([path.widths for path in net.paths])).reshape(net.choices) + heads


class Pointwise(nn.Module):
    """A 1 x 1 convolution of stride 1 as one matrix product over all pixels.

    On channels_last that is a view, and needs none of the reordering of weights that a convolution does at every call.
    For the few images of a group it is up to twice as fast.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).clone())
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, O, H, W)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def pack_(plain: nn.Module) -> nn.Module:
    """Prepare a plain module for inference: fold batch norms into convolutions, turn pointwise ones into products."""
    for parent in plain.modules():
        if isinstance(parent, nn.Sequential):
            layers = list(parent)
            for i, (conv, norm) in enumerate(zip(layers, layers[1:], strict=False)):  # noqa: RUF007
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent[i], parent[i + 1] = fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()
    for name, conv in list(plain.named_modules()):
        if isinstance(conv, nn.Conv2d) and (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1):
            plain.set_submodule(name, Pointwise(conv))
    return plain.to(memory_format=torch.channels_last)


class PathNorm(nn.Module):
    """Batch norms of several paths as one, for rows that each have a path of their own.

    A row's channels beyond the width of its path become zero, as under a mask. `norms` are those of the paths, the
    narrowest first. `paths` (B,) says which one each row takes; set it before a call.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm2d]):
        super().__init__()
        most = norms[-1].num_features
        scales = [norm.weight * (norm.running_var + norm.eps).rsqrt() for norm in norms]
        shifts = [norm.bias - norm.running_mean * scale for norm, scale in zip(norms, scales, strict=True)]
        for name, rows in (("scale", scales), ("shift", shifts)):
            table = torch.stack([F.pad(row.detach(), (0, most - len(row))) for row in rows])
            self.register_buffer(name, table[:, :, None, None])  # (paths, C, 1, 1)
        self.paths: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return torch.addcmul(self.shift[self.paths], x, self.scale[self.paths])


class Mixed(nn.Module):
    """One step of a net for rows of several paths, at the width of the widest: see `PathNorm`."""

    def __init__(self, plains: Sequence[nn.Module]):
        super().__init__()
        self.plain = plains[-1]
        norms = zip(*(_named_norms(plain) for plain in plains), strict=True)
        joint = {same[-1][0]: PathNorm([norm for _, norm in same]) for same in norms}
        for name, norm in joint.items():
            self.plain.set_submodule(name, norm)
        self.norms = list(joint.values())
        pack_(self.plain)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'); `paths` (B,) says which path each row takes."""
        for norm in self.norms:
            norm.paths = paths
        return self.plain(x)


def _named_norms(plain: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    return [(name, m) for name, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)]


@dataclass
class Group:
    """Rows of a batch that go on together."""

    rows: Tensor  # (n,) int64: which rows of the batch
    x: Tensor  # (n, C, H, W)
    widths: list[int]  # per channel unit; 0 where no gate has decided yet
    last: int = 0  # choice of the last gate passed; of several that are run as one, the widest
    choices: Tensor | None = None  # (n,) int64 where they are several


class DynamicNet(nn.Module):
    """A net whose gates route every image, for inference on batches: `dynamic(x)` gives what `net(x, Gated())` gives.

    At each gate, rows are grouped by its choice, and every group runs sliced, on its own. Behind the first block of a
    stage, groups of equal width are joined again, so that several gates do not split a batch ever further. An image's
    path does not depend on its batch. It is a snapshot, a copy of the net: its layers are extracted when a width first
    occurs, packed (`pack_`) and kept, so make another one after training. With `packed` False every call slices the
    supernet's own weights, as they are then, which costs time and no memory. `lowest` is as in `Gated`.

    A group costs something beside its images: its weights are read, its layers called. So behind a lone gate small
    groups run as one where that is cheaper, at the width of the widest of them, with masks (`Mixed`). `overhead` is
    that cost in images on the widest path; 0 never merges. It is not for several threads at once. Raises ParameterError
    for a negative overhead or a bad `lowest`, NumericsError if statistics before the first gate depend on the path.
    """

    def __init__(self, net: GatedNet, lowest: int | None = None, packed: bool = True, overhead: float = OVERHEAD):
        super().__init__()
        if not isinstance(net, GatedNet):
            raise ParameterError(f"a net of class {type(net).__name__[:40]}", "only gates route images",
                                 "Give a GatedNet, e.g. DSMobileNet.")
        if not 0 <= overhead < float("inf"):
            raise ParameterError(f"overhead = {overhead!r}"[:60], "it is a finite number >= 0",
                                 f"Set {OVERHEAD}, or 0 to merge no groups.")
        self.net, self.lowest, self.packed = net.frozen_copy() if packed else net, net.check_lowest(lowest), packed
        self.steps = list(_flat(self.net.features))
        self.splits = [i for i, step in enumerate(self.steps) if isinstance(step, Gate) and step.rules]
        self.kept: dict[tuple, nn.Module] = {}
        # Nets of several gates have group norm, which has no statistics. Before a lone gate all paths have the same.
        self.slots = [] if net.bn == GROUP else [net.slot_of(path) for path in net.paths]
        self._check_statistics()
        self.overhead = overhead if packed and self.slots else 0.0
        macs = path_macs(net).ravel()
        self.costs = macs / macs.max()

    def _apply(self, fn, recurse: bool = True) -> DynamicNet:
        self.kept.clear()  # they are made anew, where the net has moved to
        return super()._apply(fn, recurse)

    def _check_statistics(self) -> None:
        before = [m for step in self.steps[: self.splits[0]] for m in step.modules()
                  if isinstance(m, SwitchableBatchNorm2d)]
        for norm in before if self.slots else ():
            for statistics in (norm.running_mean, norm.running_var):
                rows = statistics[self.slots, : self.net.fixed[norm.unit]]
                if not torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-4, atol=1e-6):
                    raise NumericsError("statistics before the first gate differ from path to path",
                                        "there the path is not known yet", "Call calibrate_bn(net, net.paths, images).")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) of x (B, 3, H, W)."""
        return self.route(x)[0]

    @torch.inference_mode()
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, classes) of x (B, 3, H, W) and the choices (B, gates) int64 that led there."""
        self.steps[0].conv.check_images(x)  # packed, it is a plain layer
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
        logits = x.new_empty(len(x), self.net.num_classes, dtype=torch.float32)
        for group in groups:
            logits[group.rows] = self.net.classify(group.x, Selection(group.widths))
        return logits, choices

    def _split(self, gate: Gate, group: Group, column: Tensor) -> list[Group]:
        """The group's parts by the choice of `gate`, attended; the choices are written into `column` (B,)."""
        hidden, features = gate.look(group.x)
        wide = self.lowest or gate.choices
        best = gate.best(gate.scores(features, wide), wide)
        column[group.rows] = best
        x, rows = gate.attended(group.x, hidden), group.rows
        counts = torch.bincount(best, minlength=wide).tolist()  # the one wait for the device
        if max(counts) < len(best):
            order = best.argsort(stable=True)
            x, rows, best = x[order], rows[order], best[order]
        parts, at = [], 0
        for run in self._runs([k for k in range(wide) if counts[k]], counts):
            part = slice(at, at := at + sum(counts[k] for k in run))
            parts.append(Group(rows[part], x[part], self._ruled(group.widths, gate, run[-1]), run[-1],
                               best[part] if len(run) > 1 else None))
        return parts

    def _runs(self, taken: list[int], counts: list[int]) -> list[list[int]]:
        """The choices taken, in runs that go on as one group each."""
        if not self.overhead:
            return [[k] for k in taken]
        ends = np.cumsum(cheapest_runs([counts[k] for k in taken], self.costs[taken], self.overhead))
        return [taken[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    @staticmethod
    def _ruled(widths: list[int], gate: Gate, choice: int) -> list[int]:
        of_unit = dict(zip(gate.rules, gate.widths[choice], strict=True))
        return [of_unit.get(unit, width) for unit, width in enumerate(widths)]

    def _run(self, i: int, step: nn.Module, group: Group) -> Tensor:
        """`step` on a group; of its width packed layers are kept."""
        slot = self.slots[group.last] if self.slots else 0
        if not self.packed:
            return step(group.x, Selection(group.widths, slot=slot))
        key = i, group.x.shape[1], group.last, group.choices is None, group.x.dtype
        if key not in self.kept:
            self.kept[key] = self._packed(step, group).to(group.x.dtype)
        layers = self.kept[key]
        return layers(group.x) if group.choices is None else layers(group.x, group.choices)

    def _packed(self, step: nn.Module, group: Group) -> nn.Module:
        """The layers of `step` for the group's path, or for all up to the widest of its paths."""
        def plain(choice: int, widths: Sequence[int]) -> nn.Module:
            return step.extract(Selection(widths, slot=self.slots[choice] if self.slots else 0)).eval()

        if group.choices is None:
            return pack_(plain(group.last, group.widths))
        return Mixed([plain(k, self.net.path(k).widths) for k in range(group.last + 1)])


def cheapest_runs(counts: Sequence[int], costs: Sequence[float], overhead: float) -> list[int]:
    """Return the lengths of the runs of neighbours in which groups of `counts` images are cheapest.

    It is a dynamic programme. An image costs the `costs` of its group, ascending; in a run of several groups it costs
    `MIXING` times the dearest. Each run costs `overhead` more.
    """
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(counts) + 1):
        options = []
        for start in range(end):
            per_image = costs[end - 1] * (MIXING if end - start > 1 else 1.0)
            cost, lengths = best[start]
            options.append((cost + overhead + sum(counts[start:end]) * per_image, [*lengths, end - start]))
        best.append(min(options))
    return best[-1][1]


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
