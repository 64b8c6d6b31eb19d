"""What a run depends on besides its recipe: the code that matters, and the machine."""

from __future__ import annotations

import ast
import os
import platform
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from slimnb.durable import digest, to_json
from slimnb.errors import SlimnbError

NEUTRAL = ("errors", "durable", "checkpoint", "lock", "fingerprint", "results", "runs",
           "data", "sources", "cache", "synthetic")
"""Modules that cannot change a number, so that mending a message makes no stored result stale.

What the last four give is the data, whose own fingerprint is part of a run's identity.
"""

IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores")
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
"""The only environment variables ever recorded: those that choose other arithmetic."""


def code_fingerprint(modules: Sequence[str], root: Path | None = None, alone: Sequence[str] = ()) -> str:
    """SHA-256 of the named modules and of everything of the package they import, at any depth.

    `modules`: names such as "slimnb.train" or "train"; of those in `alone` only the file itself counts,
    not what it imports. Static: files are parsed, never imported. Comments, docstrings, layout and the
    Python version do not count; a statement does. A package's `__init__` counts only when a name is
    taken from it. `root` is the package folder (this one). Error P10 for an unknown name.
    """
    root = Path(root or Path(__file__).parent)
    by_itself = {_relative(name, root) for name in alone}
    todo = [_relative(name, root) for name in (*modules, *alone)]
    seen: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name in seen or name in NEUTRAL:
            continue
        path = _source(name, root)
        if path is None:
            what = f"module {'.'.join(filter(None, (root.name, name)))}"
            raise SlimnbError("P10", what, "there is no such file", "Check the name.")
        statements, seen[name] = _parsed(path.read_bytes())
        if name not in by_itself:
            todo += _imports(statements, name, path.name == "__init__.py", root)
    return digest(to_json(seen))


@lru_cache(maxsize=256)  # keyed by what a file holds, so a changed file is read anew
def _parsed(source: bytes) -> tuple[list[ast.Import | ast.ImportFrom], str]:
    """The import statements of a file, functions included, and the digest of all its statements."""
    tree = ast.parse(source)
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))], digest(_form(tree))


def machine_fingerprint(device: Any = "cpu") -> dict[str, Any]:
    """What decides the bits of a result on `device`, allow-listed: no host, user or path names.

    A CPU run names thread count and vector capability; a CUDA run the card, CUDA and cuDNN instead.
    """
    import torch

    device = torch.device(device)
    found: dict[str, Any] = {
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
        found |= {
            "name": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
            "cudnn_flags": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic],
        }
    else:
        found |= {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "mkldnn": torch.backends.mkldnn.enabled,
        }
    return found


def _ranks() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _tame(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_:.,=+-]", "?", text)[:40]


def _relative(name: str, root: Path) -> str:
    """A module name without the package's own: "slimnb.nets.vgg" and "nets.vgg" are the same."""
    return name.removeprefix(root.name).removeprefix(".") if _inside(name, root) else name


def _inside(name: str, root: Path) -> bool:
    return name == root.name or name.startswith(root.name + ".")


def _source(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split(".")) if name else root
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    # A folder without __init__.py is a package with nothing in it.
    return None


def _imports(statements: Sequence[ast.Import | ast.ImportFrom], name: str, is_package: bool, root: Path) -> list[str]:
    """Modules of the package that a module names in its import statements."""
    found = []
    for node in statements:
        if isinstance(node, ast.Import):
            inside = [alias.name for alias in node.names if _inside(alias.name, root)]
            found += [_relative(target, root) for target in inside]
        else:
            base = _base(node, name, is_package, root)
            if base is not None:
                found += [_target(base, alias.name, root) for alias in node.names]
    # `import slimnb` alone, or a name that only a folder carries, brings no code of its own.
    return [target for target in found if _source(target, root) is not None]


def _base(node: ast.ImportFrom, name: str, is_package: bool, root: Path) -> str | None:
    """The module after `from`, relative to the package; None when it is somebody else's."""
    if node.level == 0:
        return _relative(node.module, root) if _inside(node.module, root) else None
    parts = name.split(".") if name else []
    up = node.level - is_package
    kept = parts[: len(parts) - up] if up else parts
    return ".".join(kept + (node.module.split(".") if node.module else []))


def _target(base: str, alias: str, root: Path) -> str:
    """`from base import alias`: the submodule of that name, else the base itself."""
    inner = f"{base}.{alias}" if base else alias
    return inner if _source(inner, root) else base


def _form(node: Any) -> str:
    """A syntax tree as text that is the same on every Python version.

    `ast.dump` and `ast.unparse` are not: the one shows fields that come and go, the other changes its
    quoting. Empty fields are left out, and an f-string's literal pieces joined.
    """
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr[{','.join(_pieces(node))}]"
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_form(value)}"
            for name, value in ast.iter_fields(node)
            if name not in IGNORED_FIELDS and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(_form(item) for item in node if not _is_docstring(item))}]"
    return f"{type(node).__name__}:{node!r}"


def _pieces(node: ast.JoinedStr) -> list[str]:
    found: list[str] = []
    text = ""
    for value in node.values:
        if isinstance(value, ast.Constant):
            text += value.value
        else:
            found += [repr(text)] * bool(text) + [_form(value)]
            text = ""
    return found + [repr(text)] * bool(text)


def _is_docstring(node: Any) -> bool:
    """A string standing alone as a statement, wherever it stands: it says, it does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
