"""Batch norm and activation in one go, for training on the CPU: compiled if SLIMNB_KERNELS=1 and there is a C compiler.

PyTorch takes longer for them in channels_last, for it reads and writes every map several times (C7 and C8 in
data/benchmarks.json). Compiling takes part of a second in each process. Without a compiler PyTorch's functions are
used, and a warning says so.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from slimnb.errors import ParameterError

BOUNDS = {"none": (-float("inf"), float("inf")), "relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}
"""Activations that clip, and where."""

ARGUMENTS = {"forward": "pnnppfffpppp", "backward": "pppnnpppfffpppp"}
TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_size_t, "f": ctypes.c_float}
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@functools.cache
def kernels() -> dict[torch.dtype, dict[str, Callable]] | None:
    """Compile kernels.c and return its functions by dtype and name; None where they are not asked for or cannot be.

    Raises ParameterError if SLIMNB_KERNELS is set to anything but 0 and 1.
    """
    switch = os.environ.get("SLIMNB_KERNELS", "")
    if switch not in ("", "0", "1"):
        raise ParameterError(f"SLIMNB_KERNELS = {switch!r}"[:60], "it is 0 or 1", "Set 1 for compiled kernels.")
    if switch != "1":
        return None
    try:
        library = _compiled()
    except (OSError, ValueError, subprocess.CalledProcessError):  # no compiler, none that works, no folder for it
        warnings.warn("slimnb: SLIMNB_KERNELS=1, but no C compiler works here: PyTorch's batch norm is used, "
                      "which is slower. Install gcc or name a compiler in CC.", stacklevel=2)
        return None
    return {dtype: {name: _function(library, f"{name}_{suffix}", letters) for name, letters in ARGUMENTS.items()}
            for dtype, suffix in NAMES.items()}


def _compiled() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CC") or "cc")  # with its options, as make takes it
    flags = ["-O3", "-march=native", "-fno-trapping-math", "-fno-math-errno", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        source = Path(__file__).with_name("kernels.c")
        subprocess.run([*compiler, *flags, "-o", library, source], capture_output=True, check=True)
        return ctypes.CDLL(str(library))


def _function(library: ctypes.CDLL, name: str, letters: str) -> Callable:
    function = library[name]
    function.argtypes, function.restype = [TYPES[letter] for letter in letters], None
    return function


def serves(x: Tensor, weight: Tensor, activation: str) -> bool:
    """Say whether `NormAct` can take x (B, C, H, W) here, with this weight and activation."""
    return (not _is_watched(x, weight) and x.device.type == "cpu" and x.dtype in NAMES and x.numel() > x.shape[1]
            and weight.dtype == torch.float32 and activation in BOUNDS
            and x.is_contiguous(memory_format=torch.channels_last) and kernels() is not None)


def _is_watched(*tensors: Tensor) -> bool:
    """Say whether something looks on that sees PyTorch's functions alone, or tensors have no memory to point to."""
    return (torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode()
            or any(type(t) not in (Tensor, Parameter) or is_functorch_wrapped_tensor(t) for t in tensors))


class NormAct(torch.autograd.Function):
    """Batch norm by the statistics of the batch, and an activation that clips, of maps in channels_last.

    `apply(x, weight, bias, activation, eps)` takes x (B, C, H, W) and weight and bias (C,) in float32, and returns the
    activated maps and the mean and variance (C,) of the batch. It is differentiable once.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, activation: str, eps: float):
        """Return maps like x, and two (C,) tensors that carry no gradient."""
        pixels, channels, ctx.limits = x.numel() // x.shape[1], x.shape[1], (eps, *BOUNDS[activation])
        weight, bias = weight.contiguous(), bias.contiguous()
        out, mean, var, work = torch.empty_like(x), *weight.new_empty(2, channels), _work(weight)
        kernels()[x.dtype]["forward"](x.data_ptr(), pixels, channels, weight.data_ptr(), bias.data_ptr(), *ctx.limits,
                                      out.data_ptr(), mean.data_ptr(), var.data_ptr(), work.data_ptr())
        ctx.save_for_backward(x, out, weight, mean, var)
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        """Return the gradients of x, weight and bias."""
        x, out, weight, mean, var = ctx.saved_tensors
        gradient, channels = gradient.contiguous(memory_format=torch.channels_last), x.shape[1]
        of_x, of_weight, of_bias, work = torch.empty_like(x), *weight.new_empty(2, channels), _work(weight)
        kernels()[x.dtype]["backward"](gradient.data_ptr(), x.data_ptr(), out.data_ptr(), x.numel() // channels,
                                       channels, weight.data_ptr(), mean.data_ptr(), var.data_ptr(), *ctx.limits,
                                       of_x.data_ptr(), of_weight.data_ptr(), of_bias.data_ptr(), work.data_ptr())
        return of_x, of_weight, of_bias, None, None


def _work(weight: Tensor) -> Tensor:
    return weight.new_empty(4 * max(len(weight), 128))
