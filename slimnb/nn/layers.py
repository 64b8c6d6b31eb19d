"""Layers whose width is an argument of the call: an int (slice) or a mask (one width per sample)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from slimnb.nn.depthwise import DepthwiseConv2d, backward_is_slow
from slimnb.errors import SlimnbError
from slimnb.subnet import Subnet, make_divisible

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: F.relu(x, inplace=True),
    # In place for inference only: while training, hardtanh_ keeps a copy of its input for the backward pass.
    "relu6": lambda x: F.relu6(x, inplace=torch.is_inference_mode_enabled()),
    "swish": F.silu,
    "hswish": F.hardswish,
    "none": lambda x: x,
}
PLAIN_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "swish": nn.SiLU, "hswish": nn.Hardswish,
                     "none": nn.Identity}

PRIVATE, SHARED_AFFINE, CALIBRATED, GROUP = "private", "shared_affine", "calibrated", "group"
BN_POLICIES = (PRIVATE, SHARED_AFFINE, CALIBRATED, GROUP)


@dataclass(slots=True)
class Selection:
    """What one forward pass selects: channels per unit, blocks, kernels, and how normalisation behaves.

    `widths[u]` is an int or a (B, C) mask of zeros and ones. `slot` is the row of batch-norm statistics, a
    (B,) tensor with one row per sample, or a (B, slots) one of weights that mix the rows. `batch_statistics`
    normalises by the batch at hand; `momentum` is then its weight in the running statistics of `slot` (None
    leaves them alone). `reach` is `net.reach` of the subnet and `ends` how its joins are padded with zeros: see
    slimnb/nn/zero_padding.py. With a `routing` gates fill in widths and slot on the way: see slimnb/nn/gate.py.
    """

    widths: tuple | list
    depths: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    slot: int | Tensor = 0
    batch_statistics: bool = False
    momentum: float | None = None
    reach: tuple[int, ...] = ()
    ends: bool = False
    routing: Any = None

    def reaching(self, units: tuple[int, ...], otherwise: int = 0) -> int:
        """Channels that a layer fed by channel units `units` reads, under int widths."""
        return max(((self.reach or self.widths)[u] for u in units), default=otherwise)


def narrow(x: Tensor, width: int | Tensor) -> Tensor:
    """The first `width` channels of x (B, C, H, W), or x times a (B, C) mask, of which a short batch takes the head."""
    if isinstance(width, int):
        return x if x.shape[1] <= width else x[:, :width]
    return x * width[: len(x), : x.shape[1], None, None].to(x.dtype)


def join(body: Tensor, shortcut: Tensor) -> Tensor:
    """Sum of two (B, C, H, W) tensors; channels that only the wider one has are added to zeros."""
    if body.shape[1] == shortcut.shape[1]:
        return body + shortcut
    thin, wide = sorted((body, shortcut), key=lambda t: t.shape[1])
    return torch.cat([wide[:, : thin.shape[1]] + thin, wide[:, thin.shape[1]:]], dim=1)


def join_ends(body: Tensor, shortcut: Tensor, width: int) -> Tensor:
    """Sum of two (B, C, H, W) tensors in `width` channels: the body in the first, the shortcut in the last."""
    if body.shape[1] == shortcut.shape[1] == width:
        return body + shortcut
    behind, before = width - body.shape[1], width - shortcut.shape[1]
    return F.pad(body, (0, 0, 0, 0, 0, behind)) + F.pad(shortcut, (0, 0, 0, 0, before, 0))


def _uninitialised(kind: type[nn.Module], like: Tensor, *args, **kwargs) -> nn.Module:
    # An ordinary constructor would draw from torch's global random numbers, only to be overwritten.
    return skip_init(kind, *args, **kwargs, device=like.device, dtype=like.dtype)


class SlimmableConv2d(nn.Module):
    """Convolution that uses the first `widths[unit]` filters and as many input channels as its input has.

    `sources` are the channel units its input may come from (none: the image). A depthwise convolution has no
    width of its own: it follows its input.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, unit: int,
                 sources: tuple[int, ...] = (), depthwise: bool = False):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride, self.padding = kernel, stride, kernel // 2
        self.kernels = (kernel,)  # sides that it can have, ascending
        self.unit, self.sources, self.depthwise = unit, sources, depthwise
        shape = (out_channels, 1 if depthwise else in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride) with I <= in_channels and O the selected width."""
        inputs = x.shape[1]
        if inputs > self.in_channels:
            raise SlimnbError("S06", f"{inputs} input channels for a convolution of {self.in_channels}",
                              "a subnet is nowhere wider than its supernet", "Use widths within net.largest.")
        # Casting here, not by autocast: autocast caches casts of parameters but not of their slices.
        if self.depthwise:
            weight = self.filters(s, inputs).to(x.dtype)
            if backward_is_slow(x, weight.shape[-1], self.stride):
                return DepthwiseConv2d.apply(x, weight, self.stride)
            return F.conv2d(x, weight, None, self.stride, weight.shape[-1] // 2, 1, inputs)
        width = s.widths[self.unit]
        outputs = width if isinstance(width, int) else self.out_channels
        weight = self.weight[:outputs, :inputs].to(x.dtype)
        if self.kernel == 1 and self.stride > 1 and inputs < 8:
            # oneDNN 3.x, where the processor has AVX2 but not AVX-512, writes beyond its buffers in the backward pass
            # of a strided 1 x 1 convolution of so few channels. Taking the pixels that it reads first gives the same.
            return F.conv2d(x[:, :, :: self.stride, :: self.stride], weight)
        return F.conv2d(x, weight, None, self.stride, self.padding)

    def kernel_at(self, s: Selection | Subnet) -> int:
        """Side of the selected kernel, pixels."""
        return self.kernel

    def filters(self, s: Selection, channels: int) -> Tensor:
        """The first `channels` filters, in the parameters' own precision."""
        return self.weight[:channels]

    def input_width(self, s: Selection) -> int:
        """Channels that reach this layer under an int-width selection."""
        return s.reaching(self.sources, self.in_channels)

    def extract(self, s: Selection) -> nn.Conv2d:
        """The selected part as a plain `nn.Conv2d` with its own parameters."""
        inputs = self.input_width(s)
        outputs = inputs if self.depthwise else s.widths[self.unit]
        groups = inputs if self.depthwise else 1
        weight = self.filters(s, outputs).detach()
        kernel = weight.shape[-1]
        plain = _uninitialised(nn.Conv2d, self.weight, inputs, outputs, kernel, self.stride, kernel // 2,
                               groups=groups, bias=False)
        plain.weight.data.copy_(weight[:, : plain.weight.shape[1]])
        return plain


class SlimmableLinear(nn.Module):
    """Linear layer on as many input features as its input has; all outputs are always computed."""

    def __init__(self, in_features: int, out_features: int, *, sources: tuple[int, ...]):
        super().__init__()
        self.in_features, self.out_features, self.sources = in_features, out_features, sources
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, s: Selection | None = None) -> Tensor:
        """(B, I) -> (B, out_features) with I <= in_features."""
        return F.linear(x, self.weight[:, : x.shape[1]].to(x.dtype), self.bias.to(x.dtype))

    def extract(self, s: Selection) -> nn.Linear:
        """The selected part as a plain `nn.Linear`."""
        inputs = s.reaching(self.sources)
        plain = _uninitialised(nn.Linear, self.weight, inputs, self.out_features)
        plain.weight.data.copy_(self.weight.detach()[:, :inputs])
        plain.bias.data.copy_(self.bias.detach())
        return plain


class _SumOverRanks(torch.autograd.Function):
    """Sum of x over the ranks of a group; what any rank's loss takes from the sum flows back to every x."""

    @staticmethod
    def forward(ctx, x: Tensor, group) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SwitchableBatchNorm2d(nn.Module):
    """Batch normalisation whose running statistics are rows of (slots, C) buffers, one row per subnet.

    Policies: "private" gives every slot its own gamma and beta too (S-Net), "shared_affine" shares them
    (SP-Net, DS-Net), "calibrated" shares them and takes statistics only by `calibrate_bn` (US-Net).
    With a process `group` the batch is the joined batch of all its ranks.
    """

    eps = 1e-5

    def __init__(self, channels: int, *, unit: int, policy: str):
        super().__init__()
        self.channels, self.unit, self.policy, self.group = channels, unit, policy, None
        self.weight = nn.Parameter(torch.ones(1, channels))
        self.bias = nn.Parameter(torch.zeros(1, channels))
        self.register_buffer("running_mean", torch.zeros(1, channels))
        self.register_buffer("running_var", torch.ones(1, channels))

    def reserve(self, slots: int) -> None:
        """Grow to `slots` rows; new statistics start at mean 0, variance 1, new affine rows at 1 and 0."""
        grow = slots - self.running_mean.shape[0]
        if grow <= 0:
            return
        rows = self.running_mean.new_zeros(grow, self.channels)
        self.running_mean = torch.cat([self.running_mean, rows])
        self.running_var = torch.cat([self.running_var, rows + 1])
        if self.policy == PRIVATE:
            self.weight = nn.Parameter(torch.cat([self.weight.detach(), rows + 1]))
            self.bias = nn.Parameter(torch.cat([self.bias.detach(), rows]))

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """(B, C, H, W) -> the same shape, C <= channels."""
        c = x.shape[1]
        if isinstance(s.slot, Tensor) and not s.batch_statistics:
            return self._per_sample(x, s.slot)
        slot = 0 if isinstance(s.slot, Tensor) else s.slot
        row = slot if self.policy == PRIVATE else 0
        weight, bias = self.weight[row, :c], self.bias[row, :c]
        if not s.batch_statistics:
            return F.batch_norm(x, self.running_mean[slot, :c], self.running_var[slot, :c], weight, bias,
                                eps=self.eps)
        if self.group is not None and not x.is_meta:  # a trace on the meta device has no other ranks
            return self._synchronised(x, weight, bias, slot, s.momentum)
        if s.momentum is None:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        return F.batch_norm(x, self.running_mean[slot, :c], self.running_var[slot, :c], weight, bias,
                            training=True, momentum=s.momentum, eps=self.eps)

    def _per_sample(self, x: Tensor, slot: Tensor) -> Tensor:
        c = x.shape[1]

        def of_each(rows: Tensor) -> Tensor:  # (slots, C) -> (B, C)
            return slot.to(rows.dtype) @ rows[:, :c] if slot.is_floating_point() else rows[slot, :c]

        affine = of_each if self.policy == PRIVATE else lambda rows: rows[0, :c]
        scale = affine(self.weight) * (of_each(self.running_var) + self.eps).rsqrt()
        shift = affine(self.bias) - of_each(self.running_mean) * scale
        return x * scale[:, :, None, None].to(x.dtype) + shift[:, :, None, None].to(x.dtype)

    def _synchronised(self, x: Tensor, weight: Tensor, bias: Tensor, slot: int,
                      momentum: float | None) -> Tensor:
        c, n = x.shape[1], x.shape[0] * x.shape[2] * x.shape[3] * dist.get_world_size(self.group)
        wide = x if x.dtype == torch.float64 else x.float()
        mean = _SumOverRanks.apply(wide.sum((0, 2, 3)), self.group) / n
        # Second pass on centred values: E[x^2] - E[x]^2 loses all digits when the mean is large.
        centred = wide - mean[:, None, None]
        var = _SumOverRanks.apply(centred.square().sum((0, 2, 3)), self.group) / n
        if momentum is not None:
            with torch.no_grad():
                self.running_mean[slot, :c].lerp_(mean, momentum)
                self.running_var[slot, :c].lerp_(var * (n / max(n - 1, 1)), momentum)
        scale = weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + bias[:, None, None]).to(x.dtype)

    def extract(self, s: Selection) -> nn.BatchNorm2d:
        """The selected channels as a plain `nn.BatchNorm2d`, statistics included."""
        c = s.widths[self.unit]
        row = s.slot if self.policy == PRIVATE else 0
        plain = _uninitialised(nn.BatchNorm2d, self.weight, c, eps=self.eps)
        plain.weight.data.copy_(self.weight.detach()[row, :c])
        plain.bias.data.copy_(self.bias.detach()[row, :c])
        plain.running_mean.copy_(self.running_mean[s.slot, :c])
        plain.running_var.copy_(self.running_var[s.slot, :c])
        plain.num_batches_tracked.zero_()
        return plain


class SlimmableGroupNorm(nn.Module):
    """Group normalisation with a fixed number of channels per group, so that a slice and a mask agree."""

    eps = 1e-5

    def __init__(self, channels: int, *, unit: int, channels_per_group: int = 8):
        super().__init__()
        self.channels, self.unit = channels, unit
        self.channels_per_group = min(channels_per_group, channels)
        if channels % self.channels_per_group:
            raise SlimnbError("S07", f"{channels} channels in groups of {channels_per_group}",
                              "the group size divides the channels",
                              f"Use a multiple of {channels_per_group}.")
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """(B, C, H, W) -> the same shape; C a multiple of channels_per_group."""
        c = x.shape[1]
        if c % self.channels_per_group:
            raise SlimnbError("S08", f"width {c} in channel unit {self.unit}",
                              f"group norm needs multiples of {self.channels_per_group} channels",
                              f"Use {max(1, c // self.channels_per_group) * self.channels_per_group}.")
        dtype = x.dtype
        groups = c // self.channels_per_group
        if x.device.type == "cpu":  # there the kernel for channels_last is 2 to 17 times as slow
            x = x.contiguous()
        return F.group_norm(x, groups, self.weight[:c].to(dtype), self.bias[:c].to(dtype), self.eps)

    def extract(self, s: Selection) -> nn.GroupNorm:
        """The selected channels as a plain `nn.GroupNorm`."""
        c = s.widths[self.unit]
        plain = _uninitialised(nn.GroupNorm, self.weight, c // self.channels_per_group, c, self.eps)
        plain.weight.data.copy_(self.weight.detach()[:c])
        plain.bias.data.copy_(self.bias.detach()[:c])
        return plain


class PlainSqueezeExcite(nn.Module):
    """Squeeze-and-excitation at one width: x * gate(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int, hidden: int, gate: str):
        super().__init__()
        self.squeeze, self.excite, self.gate = nn.Linear(channels, hidden), nn.Linear(hidden, channels), gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * _gate(gate, self.gate)[:, :, None, None]


def _gate(x: Tensor, kind: str) -> Tensor:
    return F.hardsigmoid(x) if kind == "hsigmoid" else torch.sigmoid(x)


class SlimmableSqueezeExcite(nn.Module):
    """Squeeze-and-excitation; its hidden width is `make_divisible(C // reduction)` of the width C at hand."""

    def __init__(self, channels: int, *, unit: int, reduction: int = 4, gate: str = "hsigmoid"):
        super().__init__()
        self.unit, self.gate = unit, gate
        hidden = [0] + [make_divisible(c // reduction) for c in range(1, channels + 1)]
        self.hidden = hidden  # hidden width of every possible C
        self.register_buffer("hidden_of", torch.tensor(hidden), persistent=False)
        self.squeeze = nn.Linear(channels, hidden[-1])
        self.excite = nn.Linear(hidden[-1], channels)

    def forward(self, x: Tensor, s: Selection) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        c, width, dtype = x.shape[1], s.widths[self.unit], x.dtype
        h = self.hidden[c] if isinstance(width, int) else self.squeeze.out_features
        weight, bias = self.squeeze.weight[:h, :c], self.squeeze.bias[:h]
        z = F.relu(F.linear(x.mean((2, 3)), weight.to(dtype), bias.to(dtype)))
        if not isinstance(width, int):
            per_sample = self.hidden_of[width.sum(1).long()]  # (B,)
            z = z * (torch.arange(h, device=x.device) < per_sample[:, None]).to(dtype)
        z = F.linear(z, self.excite.weight[:c, :h].to(dtype), self.excite.bias[:c].to(dtype))
        return x * _gate(z, self.gate)[:, :, None, None]

    def extract(self, s: Selection) -> PlainSqueezeExcite:
        """The selected channels as plain linear layers."""
        c = s.widths[self.unit]
        h = self.hidden[c]
        weight = self.squeeze.weight
        with torch.device("meta"):
            plain = PlainSqueezeExcite(c, h, self.gate).to(weight.dtype)
        plain.to_empty(device=weight.device)
        plain.squeeze.weight.data.copy_(self.squeeze.weight.detach()[:h, :c])
        plain.squeeze.bias.data.copy_(self.squeeze.bias.detach()[:h])
        plain.excite.weight.data.copy_(self.excite.weight.detach()[:c, :h])
        plain.excite.bias.data.copy_(self.excite.bias.detach()[:c])
        return plain


def normalisation(channels: int, *, unit: int, policy: str, channels_per_group: int = 8) -> nn.Module:
    """The normalisation layer of a policy: one of "private", "shared_affine", "calibrated", "group"."""
    if policy == GROUP:
        return SlimmableGroupNorm(channels, unit=unit, channels_per_group=channels_per_group)
    return SwitchableBatchNorm2d(channels, unit=unit, policy=policy)
