"""A state as bytes (safetensors with a JSON header), its generations on disk, and its events."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimnb.errors import NumericsError, SlimnbError, StoreError
from slimnb.runs import files, results
from slimnb.runs.files import Damaged, Failpoint, digest, from_json, label, to_json

if TYPE_CHECKING:
    from torch import Tensor

EVENTS = "events.jsonl"
KEY = "slimnb"
"""The one entry of the safetensors metadata, so that its order cannot vary."""


def pack(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """Turn tensors of any device and layout and a JSON header into safetensors bytes.

    Equal input gives equal bytes, -0.0 and denormals included. Raises NumericsError for NaN, StoreError for what is no
    tensor; inf is kept, since a table may say "unreachable".
    """
    import torch
    from safetensors.torch import save

    copies = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            what = f"state {name[:60]!r} is a {type(tensor).__name__}"
            raise StoreError(what, "only tensors are stored here", "Put it into meta.")
        # The format wants contiguous memory that no two tensors share; layout is not state.
        copies[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    refuse_nan(copies, "state to save")
    return save(copies, {KEY: to_json(header, "header")})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (CPU) and the header that `pack` wrote. Raises `Damaged` for all else, pickles too."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > len(data) - 8:
            raise Damaged("not a safetensors file")
        index = from_json(data[8 : 8 + length], "safetensors header")
        header = from_json(index["__metadata__"][KEY].encode(), "header")
        if not isinstance(header, dict):
            raise Damaged("its header is no object")
        return load(data), header
    except SlimnbError as error:
        raise Damaged(error.why[:60]) from None
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError
    ) as error:  # fmt: skip  # whatever a crafted index makes the reader stumble over
        raise Damaged(f"unreadable: {type(error).__name__}") from None


def refuse_nan(tensors: dict[str, Tensor], where: str) -> None:
    """Raise NumericsError if a tensor holds a NaN, with the first such tensor, how many and where the first lies."""
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        bad = tensor.isnan()
        if bad.any():
            first = bad.flatten().int().argmax().item()
            what = f"{where}: {name[:60]!r} holds {int(bad.sum())} NaN (first at {first})"
            fix = "Lower the learning rate, or find the step that made it."
            raise NumericsError(what, "a state with NaN cannot go on", fix)


def check_like(state: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    """Raise StoreError with the first difference in names, shapes or dtypes; their order does not matter.

    Call it before anything like `load_state_dict`, which casts dtypes without a word.
    """
    for name in [*reference, *state]:
        stored, needed = state.get(name), reference.get(name)
        if stored is None or needed is None:
            why = "missing in the stored state" if stored is None else "unknown to this net"
        elif stored.shape != needed.shape:
            why = f"stored shape {tuple(stored.shape)}, needed {tuple(needed.shape)}"
        elif stored.dtype != needed.dtype:
            why = f"stored as {stored.dtype}, needed {needed.dtype}"
        else:
            continue
        fix = "Build the net as it was trained, or train anew."
        raise StoreError(f"tensor {name[:60]!r}", why, fix, "Nothing was loaded.")


def mark(data: bytes) -> dict[str, Any]:
    """Return the length and SHA-256 of the events up to here."""
    return {"bytes": len(data), "sha256": digest(data)}


class Events:
    """An append-only file of lines, opened at a mark: what came after the mark is dropped.

    So a resumed run repeats no line and misses none. `sync()` makes the lines durable and returns the mark that a
    checkpoint then holds.
    """

    def __init__(self, path: Path, at: dict[str, Any], fail: Failpoint):
        self._path, self._fail = path, fail
        known = files.read_file(path)[: at["bytes"]] if path.exists() else b""
        self._hash, self._size = hashlib.sha256(known), len(known)
        try:
            files.refuse_strange(path)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o666)
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            raise files.os_error(error, path) from None
        fail("recover.truncated")

    def append(self, line: bytes) -> None:
        """Add a line. If the disk is full, nothing of it stays and ResourceError is raised."""
        try:
            files.write_all(self._fd, line[: len(line) // 2])
            self._fail("log.half")
            files.write_all(self._fd, line[len(line) // 2 :])
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise files.os_error(error, self._path) from None
        self._fail("log.written")
        self._hash.update(line)
        self._size += len(line)

    def sync(self) -> dict[str, Any]:
        """Make every line durable and return the mark at this point."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise files.os_error(error, self._path) from None
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Generations:
    """The checkpoints in one run's folder, ordered by the number in their names, since clocks jump."""

    NAME = re.compile(r"ck-(\d{6,})\.safetensors")

    def __init__(self, folder: Path, fail: Failpoint):
        self._folder, self._fail = folder, fail

    def add(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Write a new generation. Its header needs step, meta, events, machine and drifted."""
        # Numbers of damaged or unfinished ones are not used again: nothing is ever overwritten.
        numbers = [int(match[1]) for name in self._names() if (match := self.NAME.match(name))]
        number = max(numbers, default=0) + 1
        data = pack(tensors, header | {"generation": number})
        path = self._folder / f"ck-{number:06d}.safetensors"
        files.write_checked(path, data, self._fail, "checkpoint")

    def newest(self, identity: dict[str, Any]) -> tuple[Any, list[tuple[Path, str]]]:
        """Return (tensors, header) of the newest good one or None, and the damaged files after it with reasons.

        If all that is wrong with every one is its events, the newest is good and the events are the damaged file.
        The header must have the schema, run_id, recipe, code and data of `identity`. Raises StoreError if it has others
        or if all generations are damaged, NumericsError for a NaN.
        """
        bad, without_events = [], None
        for path in reversed(self._paths()):
            try:
                tensors, header = self._read(path, identity)
                if self._has_events(header):
                    return (tensors, header), bad
                # One bit of a report must not cost the state, but an older state may have its events.
                lost = [*bad, (self._folder / EVENTS, "cut or changed")]
                without_events = without_events or ((tensors, header | {"events": mark(b"")}), lost)
                bad.append((path, f"its {EVENTS} is cut or changed"))
            except Damaged as error:
                bad.append((path, str(error)))
        if without_events:
            return without_events
        if bad:
            reasons = "; ".join(f"{path.stem} {reason}" for path, reason in bad)[:80]
            what, why = self._folder.name, f"no good checkpoint ({reasons})"
            fix = "Move the run's folder away to start anew."
            raise StoreError(what, why, fix, "All is kept.")
        return None, bad

    def set_aside(self, path: Path) -> None:
        """Rename a damaged one to `.bad`."""
        for name in (files.sidecar(path), path):
            if os.path.lexists(name):
                os.replace(name, name.with_name(name.name + ".bad"))
                self._fail("recover.aside")

    def sweep(self) -> None:
        """Remove what a killed process left half done: temporary files, and checksums without a file."""
        for name in self._names():
            file = (self._folder / name).with_suffix("")
            orphan = name.endswith(".sha256") and not os.path.lexists(file)
            if name.startswith(".tmp-") or orphan:
                files.forget(self._folder / name)
        self._fail("recover.swept")

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep`."""
        paths = self._paths()
        for path in paths[: max(0, len(paths) - keep)]:
            files.forget(path)
            self._fail("prune.one")
            files.forget(files.sidecar(path))

    def _names(self) -> list[str]:
        return sorted(os.listdir(self._folder))

    def _paths(self) -> list[Path]:
        numbered = [(int(m[1]), m[0]) for name in self._names() if (m := self.NAME.fullmatch(name))]
        return [self._folder / name for _, name in sorted(numbered)]

    def _read(self, path: Path, identity: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, header = unpack(files.read_checked(path))
        results.refuse_foreign(header, identity, path)
        try:
            self._has_events(header)
            if path.name != f"ck-{header['generation']:06d}.safetensors":
                raise Damaged("it was renamed")
            dict(header["meta"], step=header["step"], also=(header["machine"], header["drifted"]))
        except (KeyError, TypeError, ValueError):
            raise Damaged("its header is incomplete") from None
        refuse_nan(tensors, label(path))
        return tensors, header

    def _has_events(self, header: dict[str, Any]) -> bool:
        path = self._folder / EVENTS
        known = files.read_file(path) if os.path.lexists(path) else b""
        return mark(known[: header["events"]["bytes"]]) == header["events"]
