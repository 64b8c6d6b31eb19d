"""Decoded images on disk: memory-mapped uint8 with checksums. Decoding happens once and resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from slimnb.data.sources import Rows, Source, check_labels, image_digest, shown
from slimnb.errors import DataError, ResourceError

SCHEMA = 1
CHUNK_BYTES = 1 << 26  # decoded, checksummed and made durable at a time
VERIFY_BYTES = 1 << 30  # checksummed at each load; of a larger set, that much spread evenly over it
DIGEST_BYTES = 16


class _Damaged(Exception):
    """A cache that is not what its index says; it is built again."""


@dataclass(frozen=True)
class Part:
    """One decoded part: images (N, 3, S, S) uint8, mapped from a file, and labels (N,) int64."""

    images: Tensor
    labels: Tensor
    digests: np.ndarray  # (N,) of 16-byte strings: equal pixels, equal digest
    sha256: str  # of images and labels


def load_cached(source: Source, cache: Path) -> dict[str, Part]:
    """Return the parts of `source`; what is not in a folder of `cache`, whole, is decoded into it first.

    Decoding starts at the first chunk that is missing or damaged or whose files changed, so an interruption costs one
    chunk. Of two processes one decodes and the other waits. Raises DataError if something is wrong with the source,
    ResourceError if the disk is full.
    """
    key = hashlib.sha256(f"{SCHEMA} {source.name} {source.size} {source.key}".encode()).hexdigest()
    home = cache / f"{source.name}-{source.size}-{key[:16]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            if home.is_dir():
                try:
                    return _load(home, source)
                except (_Damaged, OSError, ValueError, KeyError, TypeError):
                    _reopen(home)
            _build(source, home)
            return _load(home, source)
    except OSError as error:
        raise ResourceError(shown(cache), f"cannot keep decoded images there ({error.strerror})",
                            "Free some space, or name another folder: load_data(..., cache=...).",
                            "Images decoded so far are kept.") from error


# ------------------------------------------------------------------------------------------------ writing


def _work(home: Path) -> Path:
    return home.with_name(home.name + ".part")


def _reopen(home: Path) -> None:
    """Make a damaged or stale cache an unfinished one; its good chunks are found again by checksum."""
    if _work(home).exists():
        shutil.rmtree(_work(home))
    home.rename(_work(home))


def _build(source: Source, home: Path) -> None:
    work = _work(home)
    parts = source.open()
    count = sum(len(rows.labels) for rows in parts.values())
    needed, free = count * 3 * source.size**2, shutil.disk_usage(home.parent).free
    if needed > free:
        raise ResourceError(shown(home.parent), f"needs {needed / 1e9:.1f} GB, has {free / 1e9:.1f} GB",
                            "Name another folder, load_data(..., cache=...), or a smaller size.")
    work.mkdir(exist_ok=True)
    for note in (*source.counts, *source.notes):
        print(f"{source.name}: {note}", flush=True)
    with tqdm(total=count, desc=f"decoding {source.name}", unit=" images", disable=None) as bar:
        index = {name: _write_part(work, name, rows, source, bar) for name, rows in parts.items()}
    about = {"schema": SCHEMA, "stamp": source.stamp, "parts": index}
    _write(work / "index.json", json.dumps(about, indent=1).encode())
    _sync_folder(work)
    work.rename(home)  # a cache without this last step does not exist
    _sync_folder(home.parent)


def _write_part(work: Path, name: str, rows: Rows, source: Source, bar: tqdm) -> dict:
    """Decode one part chunk by chunk; a line in its journal makes each chunk count."""
    check_labels(rows.labels, len(source.class_names), f"{name} of {source.name}")
    count, pixels = len(rows.labels), 3 * source.size**2
    chunk = max(1, CHUNK_BYTES // pixels)
    journal = work / f"{name}.jsonl"
    with open(work / f"{name}.images", "a+b") as file:
        sums, digests = _resume(journal, file, rows, chunk, pixels)
        bar.update(min(len(sums) * chunk, count))
        for start in range(len(sums) * chunk, count, chunk):
            stop = min(start + chunk, count)
            stamp, images = rows.stamp(start, stop), np.ascontiguousarray(rows.read(start, stop))
            if images.shape[1:] != (3, source.size, source.size) or images.dtype != np.uint8:
                what = f"{name} of {source.name}: {images.dtype} {images.shape[1:]}"
                rule = f"images are uint8 (3, {source.size}, {source.size})"
                raise DataError(what, rule, "Mend the reader.")
            data = images.tobytes()
            file.write(data)
            os.fsync(file.fileno())
            digests += [image_digest(image) for image in images]
            sums.append(hashlib.sha256(data).hexdigest())
            _append(journal, _entry(sums[-1], stamp))
            bar.update(len(images))
    _write(work / f"{name}.labels", rows.labels.astype("<i8").tobytes())
    _write(work / f"{name}.digests", b"".join(digests))
    return {"count": count, "chunk": chunk, "images": sums,
            "labels": _sha256(work / f"{name}.labels"), "digests": _sha256(work / f"{name}.digests")}


def _resume(journal: Path, file, rows: Rows, chunk: int, pixels: int) -> tuple[list[str], list[bytes]]:
    """Checksums and digests of the chunks that need no decoding; file and journal are cut after them."""
    sums: list[str] = []
    digests: list[bytes] = []
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    file.seek(0)
    for start, line in zip(range(0, len(rows.labels), chunk), lines, strict=False):
        stop = min(start + chunk, len(rows.labels))
        data = file.read((stop - start) * pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        if line != _entry(sha256, rows.stamp(start, stop)):
            break
        sums.append(sha256)
        digests += [image_digest(image) for image in np.frombuffer(data, np.uint8).reshape(-1, pixels)]
    file.truncate(min(len(sums) * chunk, len(rows.labels)) * pixels)
    _write(journal, b"".join(lines[: len(sums)]))
    return sums, digests


def _entry(sha256: str, stamp: str) -> bytes:
    return json.dumps({"sha256": sha256, "stamp": stamp}).encode() + b"\n"


def _append(path: Path, line: bytes) -> None:
    with open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------ reading


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(home: Path, source: Source) -> dict[str, Part]:
    index = json.loads((home / "index.json").read_text())
    if index["schema"] != SCHEMA or index["stamp"] != source.stamp:
        raise _Damaged("files changed since")
    return {name: _load_part(home, name, about, source.size) for name, about in index["parts"].items()}


def _load_part(home: Path, name: str, about: dict, size: int) -> Part:
    count, path = about["count"], home / f"{name}.images"
    labels, digests = (home / f"{name}.{kind}" for kind in ("labels", "digests"))
    if path.stat().st_size != count * 3 * size**2:
        raise _Damaged(f"{path.name} has another size")
    if _sha256(labels) != about["labels"] or _sha256(digests) != about["digests"]:
        raise _Damaged(f"labels or digests of {name}")
    _verify_images(path, about, count, 3 * size**2)
    # Mapped privately: writing to the tensor could never reach the file.
    images = torch.from_file(str(path), shared=False, size=count * 3 * size**2, dtype=torch.uint8)
    content = hashlib.sha256("".join([*about["images"], about["labels"]]).encode()).hexdigest()
    return Part(images.view(count, 3, size, size), torch.from_numpy(np.fromfile(labels, "<i8")),
                np.fromfile(digests, f"S{DIGEST_BYTES}"), content)


def _verify_images(path: Path, about: dict, count: int, pixels: int) -> None:
    sums, chunk = about["images"], about["chunk"]
    every = max(1, -(-count * pixels // VERIFY_BYTES))
    with open(path, "rb") as file:
        for k in range(0, len(sums), every):
            file.seek(k * chunk * pixels)
            data = file.read(min(chunk, count - k * chunk) * pixels)
            if hashlib.sha256(data).hexdigest() != sums[k]:
                raise _Damaged(f"chunk {k} of {path.name}")
