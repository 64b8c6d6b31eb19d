"""Normalisation takes its width with every call: batch norm with a row of statistics per subnet, and group norm."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.errors import NumericsError, ParameterError
from slimnb.nn.kernels import NormAct, serves
from slimnb.nn.layers import ACTIVATIONS, Selection, _uninitialised
from slimnb.nn.repairs import group_norm

PRIVATE, SHARED_AFFINE, CALIBRATED, GROUP = "private", "shared_affine", "calibrated", "group"

BN_POLICIES = (PRIVATE, SHARED_AFFINE, CALIBRATED, GROUP)


class _SumOverRanks(torch.autograd.Function):
    """Sum x over the ranks of a group; the gradients of all ranks flow back to every x."""

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

    The policy "private" gives every slot its own gamma and beta too (S-Net), "shared_affine" shares them
    (SP-Net, DS-Net), "calibrated" shares them and leaves statistics to `calibrate_bn` (US-Net).
    With a process `group` the batches of all its ranks count as one. In a net of 16-bit floats this layer keeps 32.
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
        """Have `slots` rows: the first stay, new ones start at mean 0 and variance 1, with gamma 1 and beta 0."""
        grow = slots - self.running_mean.shape[0]
        if not grow:
            return
        with torch.inference_mode(False):  # else no later call could train with them
            rows = torch.zeros_like(self.running_mean[:1]).expand(max(grow, 0), -1)
            self.running_mean = torch.cat([self.running_mean[:slots], rows])
            self.running_var = torch.cat([self.running_var[:slots], rows + 1])
            if self.policy == PRIVATE:
                self.weight = nn.Parameter(torch.cat([self.weight.detach()[:slots], rows + 1]))
                self.bias = nn.Parameter(torch.cat([self.bias.detach()[:slots], rows]))

    def _apply(self, fn, recurse=True):
        # Statistics are sums over many batches, and batch norm takes them, gamma and beta in one type: of a net cast to
        # 16 bits all four have 32.
        def cast(t: Tensor) -> Tensor:
            out = fn(t)
            return t.to(out.device, torch.float32) if out.dtype in (torch.bfloat16, torch.float16) else out

        return super()._apply(cast, recurse)

    def forward(self, x: Tensor, s: Selection, activation: str = "none") -> Tensor:
        """Map x (B, C, H, W), C <= channels, to the same shape, and activate it."""
        if s.batch_statistics and self.group is None and serves(x, self.weight, activation):
            return self._compiled(x, s, activation)
        return ACTIVATIONS[activation](self._normalise(x, s))

    def _compiled(self, x: Tensor, s: Selection, activation: str) -> Tensor:
        c, slot = x.shape[1], 0 if isinstance(s.slot, Tensor) else s.slot
        row = slot if self.policy == PRIVATE else 0
        out, mean, var = NormAct.apply(x, self.weight[row, :c], self.bias[row, :c], activation, self.eps)
        if s.momentum is not None:
            self._move_statistics(slot, mean, var, x.numel() // c, s.momentum)
        return out

    @torch.no_grad()
    def _move_statistics(self, slot: int, mean: Tensor, var: Tensor, n: int, momentum: float) -> None:
        """Move the running statistics towards those of a batch of n values per channel."""
        self.running_mean[slot, : len(mean)].lerp_(mean, momentum)
        self.running_var[slot, : len(mean)].lerp_(var * (n / max(n - 1, 1)), momentum)

    def _normalise(self, x: Tensor, s: Selection) -> Tensor:
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
        if x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return self._of_one(x, weight, bias, slot, s.momentum)
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

    def _of_one(self, x: Tensor, weight: Tensor, bias: Tensor, slot: int, momentum: float | None) -> Tensor:
        """Normalise x (1, C, 1, 1) while calibrating: it adds to the mean, and takes its variance from batches before.

        One value has no variance, so without batches before, and while training, that is a NumericsError.
        """
        c = x.shape[1]
        if momentum is None or momentum >= 1 or torch.is_grad_enabled():
            raise NumericsError(f"1 image on a map of 1 x 1 in channel unit {self.unit} ({c} channels)",
                                "batch norm takes the variance of two values per channel or more",
                                "Begin with a batch of several images, or make them larger.")
        mean, var = self.running_mean[slot, :c], self.running_var[slot, :c]
        mean.lerp_(x.flatten().to(mean.dtype), momentum)
        return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)

    def _synchronised(self, x: Tensor, weight: Tensor, bias: Tensor, slot: int,
                      momentum: float | None) -> Tensor:
        n = x.shape[0] * x.shape[2] * x.shape[3] * dist.get_world_size(self.group)
        if n == 1:
            return self._of_one(x, weight, bias, slot, momentum)
        wide = x if x.dtype == torch.float64 else x.float()
        mean = _SumOverRanks.apply(wide.sum((0, 2, 3)), self.group) / n
        # Second pass on centred values: E[x^2] - E[x]^2 loses all digits when the mean is large.
        centred = wide - mean[:, None, None]
        var = _SumOverRanks.apply(centred.square().sum((0, 2, 3)), self.group) / n
        if momentum is not None:
            self._move_statistics(slot, mean, var, n, momentum)
        scale = weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + bias[:, None, None]).to(x.dtype)

    def extract(self, s: Selection) -> nn.BatchNorm2d:
        """Copy the selected channels, with their statistics, into a plain `nn.BatchNorm2d`."""
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
    """Group normalisation whose groups have the same number of channels at any width, so that slice and mask agree."""

    eps = 1e-5

    def __init__(self, channels: int, *, unit: int, channels_per_group: int = 8):
        super().__init__()
        self.channels, self.unit = channels, unit
        self.channels_per_group = min(channels_per_group, channels)
        if channels % self.channels_per_group:
            raise ParameterError(f"{channels} channels in groups of {channels_per_group}",
                                 "the group size divides the channels",
                                 f"Use a multiple of {channels_per_group}.")
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, s: Selection, activation: str = "none") -> Tensor:
        """Map x (B, C, H, W) to the same shape; raises ParameterError unless channels_per_group divides C."""
        c = x.shape[1]
        if c % self.channels_per_group:
            raise ParameterError(f"width {c} in channel unit {self.unit}",
                                 f"group norm needs multiples of {self.channels_per_group} channels",
                                 f"Use {max(1, c // self.channels_per_group) * self.channels_per_group}.")
        dtype = x.dtype
        groups = c // self.channels_per_group
        weight, bias = self.weight[:c].to(dtype), self.bias[:c].to(dtype)
        return ACTIVATIONS[activation](group_norm(x, groups, weight, bias, self.eps))

    def extract(self, s: Selection) -> nn.GroupNorm:
        """Copy the selected channels into a plain `nn.GroupNorm`."""
        c = s.widths[self.unit]
        plain = _uninitialised(nn.GroupNorm, self.weight, c // self.channels_per_group, c, self.eps)
        plain.weight.data.copy_(self.weight.detach()[:c])
        plain.bias.data.copy_(self.bias.detach()[:c])
        return plain


def normalisation(channels: int, *, unit: int, policy: str, channels_per_group: int = 8) -> nn.Module:
    """Make the normalisation layer of a policy: "private", "shared_affine", "calibrated" or "group"."""
    if policy == GROUP:
        return SlimmableGroupNorm(channels, unit=unit, channels_per_group=channels_per_group)
    return SwitchableBatchNorm2d(channels, unit=unit, policy=policy)
