"""Bytes that survive a kill or a power cut and are believed only with their checksum; strict JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slimnb.errors import ResourceError, SlimnbError, StoreError, printable

MAX_DEPTH = 32
MAX_INT = 2**63
STAGES = ("opened", "half", "written", "synced", "renamed", "dirsynced")
"""Places of `write_file` at which a `Failpoint` can strike, in order."""


class Damaged(Exception):
    """A stored file is not what was written; the text says how."""


class Failpoint:
    """Kills this process (signal 9) at the n-th pass through the place that SLIMNB_FAILPOINT=name:n names.

    It serves tests of crash safety only; without the variable every call does nothing.
    """

    def __init__(self):
        self.name, _, count = os.environ.get("SLIMNB_FAILPOINT", "").partition(":")
        self.left = int(count or 1)

    def __call__(self, name: str) -> None:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


# ---- strict JSON: what is written can be read back everywhere, and means one thing ----


def plain(value: Any, where: str = "value", depth: int = 0) -> Any:
    """Return the same value made of dict, list, str, bool, None, int64 and finite float only.

    Tuples become lists and numpy scalars Python numbers. Anything else, NaN and inf included, raises StoreError with
    its place (`where`).
    """
    if depth > MAX_DEPTH:
        raise _not_json(where, "nested too deep", f"at most {MAX_DEPTH} levels")
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int) and -MAX_INT <= value < MAX_INT:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    shown = repr(value)[:40] if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    raise _not_json(where, shown, "only text keys, text, bool, None, int64 and finite floats")


def to_json(value: Any, where: str = "value", indent: int | None = None) -> str:
    """Return canonical JSON text: sorted keys, no spare spaces (unless `indent`), ASCII."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        plain(value, where), sort_keys=True, separators=separators, indent=indent, allow_nan=False
    )


def from_json(data: bytes, where: str = "value") -> Any:
    """Parse UTF-8 JSON. NaN, infinities, duplicate keys, ints beyond 64 bits and deep nesting raise StoreError."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_float=_finite,
            parse_int=_int64,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:70]
        raise _not_json(where, "not valid JSON", reason) from None
    return plain(value, where)


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key[:30]!r} appears twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _int64(text: str) -> int:
    if len(text) > 20:  # Python is slow at, and then refuses, numbers of thousands of digits
        raise ValueError(f"{text[:22]} is beyond 64 bits")
    return int(text)  # `plain` looks at the rest


def _not_json(where: str, text: str, why: str) -> SlimnbError:
    fix = "Use None where there is no value."
    return StoreError(f"{where[:60]}: {text}", f"JSON here: {why}", fix)


# ---- files ----


def digest(data: bytes | str) -> str:
    """Return the SHA-256 as 64 hex digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def find_root(start: str | Path = ".") -> Path:
    """Return the repository that `start` lies in, else the one slimnb was installed from, else `start` itself.

    A kernel may stand in notebooks/, in build/ or on a node's scratch disk; figures and runs have one home.
    """
    start = Path(start).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[2]):
        if (folder / "pyproject.toml").is_file() and (folder / "slimnb").is_dir():
            return folder
    return start


def data_folder(root: Path | None = None) -> Path:
    """Return the folder of data sets: $SLIMNB_DATA, else data; ~ is the user's home.

    A relative one counts from the repository `root` (else `find_root()`), whatever folder a process stands in.
    """
    return (root or find_root()) / os.path.expanduser(os.environ.get("SLIMNB_DATA") or "data")


def label(path: Path) -> str:
    """Return a path's last two parts: enough to find the file, short enough for a one-line error."""
    return printable(f"{path.parent.name[:60]}/{path.name[:60]}")


def read_file(path: Path) -> bytes:
    """Return the content of a regular file. A link, pipe, device or folder in its place raises StoreError."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise os_error(error, path) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _not_a_file(path, "a folder, pipe or device")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes, fail: Failpoint, kind: str) -> None:
    """Put `data` at `path` whole or not at all, so that it survives a power cut.

    The temporary file lies in the same folder, since a rename never crosses file systems. Raises ResourceError for a
    full disk, StoreError for a read-only place; the file that was there before stays.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        refuse_strange(path)
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with open(fd, "wb", buffering=0) as file:
            fail(f"{kind}.opened")
            write_all(fd, data[: len(data) // 2])
            fail(f"{kind}.half")
            write_all(fd, data[len(data) // 2 :])
            fail(f"{kind}.written")
            os.fsync(file)
        fail(f"{kind}.synced")
        os.replace(temporary, path)
        fail(f"{kind}.renamed")
        sync_folder(path.parent)
        fail(f"{kind}.dirsynced")
    except OSError as error:
        raise os_error(error, path) from None
    finally:
        forget(temporary)


def write_checked(path: Path, data: bytes, fail: Failpoint, kind: str) -> str:
    """Write `path` and, before it, its sidecar `path.sha256` (as of sha256sum); return the digest.

    The sidecar comes first. So the appearance of the file itself is the moment of the commit, and a file without a
    sidecar was never ours.
    """
    hexdigest = digest(data)
    write_file(sidecar(path), f"{hexdigest}  {path.name}\n".encode(), fail, f"{kind}sum")
    write_file(path, data, fail, kind)
    return hexdigest


def read_checked(path: Path) -> bytes:
    """Return the content of a file whose sidecar agrees. Raises `Damaged` otherwise."""
    data = read_file(path)
    try:
        expected = read_file(sidecar(path))
    except FileNotFoundError:
        raise Damaged("its .sha256 file is missing") from None
    if expected != f"{digest(data)}  {path.name}\n".encode():
        raise Damaged("empty" if not data else "its SHA-256 differs")
    return data


def sidecar(path: Path) -> Path:
    """Return the path that keeps the checksum of `path`."""
    return path.with_name(path.name + ".sha256")


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably. Raises StoreError if that is not possible."""
    try:
        if not path.parent.is_dir():
            make_folder(path.parent)
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
    except OSError as error:
        raise os_error(error, path) from None


def check_place(path: Path) -> None:
    """Raise StoreError or ResourceError unless a file can be written at `path`; its folder is made and swept."""
    make_folder(path.parent)
    sweep(path.parent)
    probe = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        refuse_strange(path)
        probe.touch()
    except OSError as error:
        raise os_error(error, path) from None
    finally:
        forget(probe)


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however short the single writes are."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def refuse_link(path: Path) -> None:
    """Raise StoreError if `path` itself is a link."""
    if path.is_symlink():
        raise _not_a_file(path, "a link", "a folder")


def refuse_strange(path: Path) -> None:
    """Raise StoreError if something other than a regular file lies at `path`."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise _not_a_file(path, "a link" if stat.S_ISLNK(mode) else "a folder, pipe or device")


def os_error(error: OSError, path: Path) -> SlimnbError:
    """Make the one-line error for what the operating system refused."""
    state = "What was stored before is intact."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        why, fix = f"no space: {error.strerror}", "Free some space and run again; it resumes."
        return ResourceError(label(path), why, fix, state)
    if error.errno == errno.ELOOP:
        return _not_a_file(path, "a link")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        fix = "Choose another place or mend its permissions."
        return StoreError(label(path), f"not accessible: {error.strerror}", fix, state)
    return StoreError(label(path), f"disk error: {error.strerror}", "Run again.", state)


def _not_a_file(path: Path, kind: str, expected: str = "a regular file") -> SlimnbError:
    why = f"is {kind} where {expected} belongs; links are never followed"
    return StoreError(label(path), why, "Move it away.", "Nothing was read or written.")


def forget(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    # A left-over does no harm, and whoever holds the lock next sweeps again.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def sweep(folder: Path, prefix: str = ".tmp-") -> None:
    """Remove the files and folders PREFIX<process>-... in `folder` that killed processes of this machine have left."""
    for path in folder.glob(f"{prefix}[0-9]*-*"):
        try:
            os.kill(int(path.name[len(prefix):].partition("-")[0]), 0)
        except ProcessLookupError:
            forget(path)
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OverflowError, PermissionError):
            continue  # no name of ours, or a living process of somebody else
