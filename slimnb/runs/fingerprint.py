"""What a run depends on besides its recipe: the code that matters, and the machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from slimnb.runs.definitions import reached
from slimnb.runs.files import digest, to_json

NEUTRAL = ("slimnb.errors", "slimnb.rules", "slimnb.plugins", "slimnb.runs", "slimnb.data.datasets",
           "slimnb.data.sources", "slimnb.data.cache", "slimnb.data.synthetic")
"""Modules that cannot change a number, so that mending a message makes no stored result stale.

What the last four give is the data, whose own fingerprint is part of a run's identity.
"""

ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA", "SLIMNB_KERNELS",
)  # fmt: skip
"""The only environment variables ever recorded: those that choose other arithmetic."""


def code_fingerprint(roots: Sequence[Any], folders: Mapping[str, Path] | None = None) -> str:
    """Return the SHA-256 of all definitions that `roots` reach, each with its own name.

    A root is a function or class, or the dotted name of one, of a method or of a module (see
    `slimnb.runs.definitions.reached`). Files and modules do not count, so moving code changes nothing. Nor do comments,
    docstrings, annotations, imports and the words of errors; a statement does. Definitions in `NEUTRAL` modules are
    left out.
    """
    names = tuple(root if isinstance(root, str) else f"{root.__module__}.{root.__qualname__}" for root in roots)
    return _fingerprint(names) if folders is None else _digest(reached(names, folders))


@lru_cache(maxsize=1024)  # the code that runs is the code that was there when it was first asked for
def _fingerprint(names: tuple[str, ...]) -> str:
    return _digest(reached(names))


def _digest(definitions: Mapping[str, str]) -> str:
    texts = {f"{target.partition(':')[2]}={text}" for target, text in definitions.items() if not _is_neutral(target)}
    return digest(to_json(sorted(texts)))


def _is_neutral(target: str) -> bool:
    module = target.partition(":")[0]
    return any(module == name or module.startswith(f"{name}.") for name in NEUTRAL)


def machine_fingerprint(device: Any = "cpu") -> dict[str, Any]:
    """Return what decides the bits of a result on `device`; host, user and path names are not among it.

    A CPU run names thread count and vector capability, a CUDA run the card, CUDA and cuDNN.
    """
    import torch

    device = torch.device(device)
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "device": device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "environment": {key: _tame(os.environ[key]) for key in ENVIRONMENT if key in os.environ},
        "ranks": _ranks(),
    }
    if device.type == "cuda":
        cudnn = torch.backends.cudnn
        facts |= {
            "name": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
            "cudnn_flags": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic],
        }
    else:
        facts |= {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "mkldnn": torch.backends.mkldnn.enabled,
        }
    return facts


def _ranks() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _tame(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_:.,=+-]", "?", text)[:40]
