"""Sources of real images: CIFAR as Parquet or as torchvision keeps it, and folders of image files."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from slimnb.errors import DataError, MissingDataError, SlimnbError, printable

CIFAR = {
    # name: classes, torchvision's class, its archive, its folder, size in MB, SHA-256 of the archive
    "cifar10": (10, "CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py", 170,
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "cifar100": (100, "CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python", 169,
                 "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
}
CIFAR_TRAIN = 50_000  # published train images of either
LABEL_COLUMNS = ("fine_label", "label")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
DECODING = 2  # raised when files give other pixels than before: caches of folders are then made anew
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Pillow's readers that are tried on a file, whatever its suffix: none of them runs another program."""


@dataclass(frozen=True)
class Rows:
    """One part (train, val or test) of a data set: labels (N,) int64, and pixels that are decoded on request."""

    labels: np.ndarray
    read: Callable[[int, int], np.ndarray]  # (start, stop) -> (stop - start, 3, S, S) uint8
    stamp: Callable[[int, int], str] = lambda start, stop: ""  # changes with the files of these rows


@dataclass(frozen=True)
class Source:
    """A data set on disk that is not decoded yet.

    `key` says which files it is made of, by content or by name. If by name, `stamp` says in what state they are, so
    that mending one file does not mean decoding all of them again.
    """

    name: str
    size: int  # side of its images once decoded, pixels
    key: str
    stamp: str
    class_names: tuple[str, ...]
    open: Callable[[], dict[str, Rows]]
    published: bool = False  # a known set, whose own duplicates are reported and not refused
    counts: tuple[str, ...] = ()  # what is in it, said when it is first read
    notes: tuple[str, ...] = ()  # what a reader should always know: files that are no part of it


def shown(path: str | os.PathLike) -> str:
    """Return a path as a line shows it: its last 50 characters, escaped."""
    text = printable(str(path))
    return text if len(text) <= 50 else "…" + text[-49:]


def _reason(error: Exception, limit: int = 60) -> str:
    return printable(" ".join(str(error).split()))[:limit]


@contextmanager
def _open_errors(path: Path):
    """Turn the errors of opening or listing `path` into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(shown(error.filename or path), f"cannot be read ({error.strerror})",
                        "Mend or remove it.") from error


def image_digest(image: np.ndarray) -> bytes:
    """Return 16 bytes that stand for an image's pixels (3, S, S) uint8; equal pixels have equal digests."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    """Raise DataError for labels outside 0..classes-1; -100 would give a loss of NaN and no error."""
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        what = f"{len(bad)} of {len(labels)} labels, first at row {bad[0]} of {where}: {labels[bad[0]]}"
        raise DataError(what, f"labels are 0 to {classes - 1}", "Mend the labels.")


# ------------------------------------------------------------------------------------------------ decoding


def _decode(data: bytes | Path, where: str, finish: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            return np.asarray(finish(image)).transpose(2, 0, 1)
    except SlimnbError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds, and each means the same here
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else _reason(error)
        kept = "Images decoded so far are kept." if isinstance(data, Path) else "Nothing was written."
        raise DataError(where, f"not a readable image ({reason})", "Fetch the file again.",
                        kept) from error


def _rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB as Pillow converts it; of deeper grey pixels the high byte, where Pillow cuts at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        bits = image.tag_v2[258][0] if image.format == "TIFF" else 16  # tag 258: bits per sample
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    image.info.pop("transparency", None)  # left out anyway, but in a palette Pillow would warn of it
    return image.convert("RGB")


def _square(image: Image.Image, size: int, where: str) -> Image.Image:
    if image.size != (size, size):
        size_text = f"{image.width} x {image.height}"
        rule = f"its images are {size} x {size}"
        raise DataError(f"{where}: {size_text} pixels", rule, "Fetch the file again.")
    return _rgb(image)


def _short_side(image: Image.Image, size: int) -> Image.Image:
    """Short side resized to `size`, then the middle square of it."""
    if max(image.size) > 1000 * min(image.size):  # resized, it would fill the memory
        raise ValueError(f"{image.width} x {image.height} pixels, too long a strip")
    image.draft("RGB", (size, size))  # JPEG only: decodes at 1/2, 1/4 or 1/8 where that is still larger
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = _rgb(image).resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


# ------------------------------------------------------------------------------------------------ CIFAR


def _sorted_rows(images: np.ndarray, labels: np.ndarray) -> Rows:
    """The rows in the order of their content, so that every copy of a set is the same set in the same order.

    That order is as good as random, and equal images stand side by side.
    """
    digests = [image_digest(image) for image in images]
    order = np.array(sorted(range(len(labels)), key=lambda i: (digests[i], labels[i])), dtype=np.int64)
    images = images[order]
    return Rows(labels[order], lambda start, stop: images[start:stop])


@contextmanager
def _parquet_errors(path: Path):
    try:
        yield
    except Exception as error:  # its readers raise many kinds, and each means the same here
        reason = _reason(error, 50) or "no columns img.bytes and label"
        raise DataError(shown(path), f"not a readable Parquet file of images ({reason})",
                        "Fetch the file again.") from error


def _parquet_classes(path: Path, classes: int) -> tuple[str, ...]:
    """Class names as the Hugging Face layout keeps them in the file's metadata, else numbers."""
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        about = json.loads((pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        named = next((features[label] for label in LABEL_COLUMNS if label in features), {})
        names = tuple(named.get("names") or map(str, range(classes)))
        if len(set(names)) != classes or not all(isinstance(name, str) for name in names):
            raise ValueError(f"it names {len(set(names))} classes, not {classes}")
        return names


def _read_parquet(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Encoded images and labels of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        image = next(name for name in ("img", "image") if name in names)
        label = next(name for name in LABEL_COLUMNS if name in names)
        table = file.read(columns=[f"{image}.bytes", label])
        if not pa.types.is_integer(table[label].type) or table[label].null_count or not len(table):
            raise ValueError(f"{len(table)} labels, and not one integer each" if len(table) else "no rows")
        encoded = table[image].combine_chunks().field("bytes").to_pylist()
        return encoded, table[label].to_numpy().astype(np.int64)


def _parquet_part(files: list[Path], classes: int) -> Rows:
    images, labels = [], []
    for path in files:
        encoded, part_labels = _read_parquet(path)
        check_labels(part_labels, classes, shown(path))
        for i, data in enumerate(encoded):  # so small that threads would only wait for each other
            where = f"row {i} of {shown(path)}"
            images.append(_decode(data, where, partial(_square, size=32, where=where)))
        labels.append(part_labels)
    return _sorted_rows(np.stack(images), np.concatenate(labels))


def _torchvision_part(name: str, folder: Path, train: bool) -> Rows:
    data = _torchvision(name, folder, train=train)
    labels = np.asarray(data.targets, dtype=np.int64)
    check_labels(labels, CIFAR[name][0], shown(folder))
    return _sorted_rows(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), labels)


def _torchvision(name: str, folder: Path, train: bool, download: bool = False):
    from torchvision import datasets

    try:
        return getattr(datasets, CIFAR[name][1])(str(folder), train=train, download=download)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        where = shown(folder / CIFAR[name][3])
        if download:
            raise MissingDataError(where, f"cannot be fetched ({_reason(error)})", "Try again later.") from error
        raise DataError(where, "its files fail torchvision's checks",
                        "Remove it and call load_data with download=True.") from error


def _files_key(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        if not os.path.isfile(path):
            raise DataError(shown(path), "it is no file, or a link to nothing", "Mend or remove it.")
        with _open_errors(path), open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_archive(name: str, path: Path) -> None:
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != CIFAR[name][5]:
        aside = path.with_name(path.name + ".bad")
        path.rename(aside)
        raise DataError(shown(path), f"its SHA-256 is {actual[:12]}, not {CIFAR[name][5][:12]}",
                        "Fetch it again.", f"It was moved to {aside.name}.")


def find_cifar(name: str, root: Path, download: bool = False) -> Source:
    """Find CIFAR-10 or CIFAR-100 under `root`: <root>/<name>/*.parquet, or torchvision's folder or archive.

    Nothing is fetched unless `download` is true; torchvision then checks what it fetched. There may be any number of
    train files. Raises DataError if nothing is there or something is damaged.
    """
    classes, _, archive, unpacked, megabytes, _ = CIFAR[name]
    parquet = {part: sorted((root / name).glob(f"**/{part}-*.parquet")) for part in ("train", "test")}
    if all(parquet.values()):
        files = [path for part in parquet.values() for path in part]
        key, names = _files_key(files), _parquet_classes(parquet["test"][0], classes)
        readers = {part: partial(_parquet_part, paths, classes) for part, paths in parquet.items()}
        return Source(name, 32, key, "", names, partial(_call_all, readers), published=True)
    home = next((home for home in (root / name, root) if (home / unpacked).is_dir()), None)
    if home is None:
        packed = next((home for home in (root / name, root) if (home / archive).is_file()), None)
        if packed is not None:
            _check_archive(name, packed / archive)
        elif not download:
            raise MissingDataError(shown(root / name), f"not there ({megabytes} MB to fetch)",
                            f"Run python -m slimnb fetch {name}, or use data='synthetic'.")
        home = packed or root / name
        _torchvision(name, home, train=False, download=True)  # a whole archive is only unpacked
    names = tuple(_torchvision(name, home, train=False).classes)
    files = sorted(path for path in (home / unpacked).iterdir() if path.is_file())
    readers = {part: partial(_torchvision_part, name, home, part == "train") for part in ("train", "test")}
    return Source(name, 32, _files_key(files), "", names, partial(_call_all, readers), published=True)


def _call_all(readers: dict[str, Callable[[], Rows]]) -> dict[str, Rows]:
    return {part: read() for part, read in readers.items()}


# ------------------------------------------------------------------------------------------------ folders


def _list_images(folder: Path) -> tuple[list[str], Counter[str]]:
    """Image files below `folder` as class/.../file, and counts of what is no part of it, by why: (files, skipped).

    These are the files that torchvision's ImageFolder finds, but for names that begin with a dot. Links are followed.
    The order looks random and is always the same. Raises DataError for a class without images, a link into a folder
    that it lies in, and whatever is neither a file nor a folder that can be read.
    """
    files, skipped, classes, pending = [], Counter(), set(), [("", ())]
    while pending:
        place, above = pending.pop()
        here = folder / place
        with _open_errors(here):
            status, entries = here.stat(), list(os.scandir(here))
            if (status.st_dev, status.st_ino) in above:
                raise DataError(shown(here), "it is a link to a folder that it lies in", "Remove the link.")
            for entry in entries:
                if entry.name.startswith("."):
                    skipped["hidden"] += 1
                elif entry.is_dir():
                    classes |= set() if place else {entry.name}
                    pending.append((f"{place}{entry.name}/", (*above, (status.st_dev, status.st_ino))))
                elif not entry.is_file():
                    raise DataError(shown(entry.path), "it is a pipe, a device or a link to nothing", "Remove it.")
                elif not place:
                    skipped["in no class"] += 1
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    files.append(place + entry.name)
                else:
                    skipped[printable(Path(entry.name).suffix.lower())[:9] or "without a suffix"] += 1
    if empty := sorted(classes - {name.split("/")[0] for name in files}):
        raise DataError(f"class {shown(empty[0])} in {shown(folder)}", f"no image in it, of {_listed(skipped)} skipped",
                        "Add its images, or remove it.")
    return sorted(files, key=lambda name: hashlib.blake2b(os.fsencode(name), digest_size=16).digest()), skipped


def _listed(skipped: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {why}" for why, count in sorted(skipped.items(), key=lambda kind: (-kind[1], kind))[:4])
    return f"{kinds}{', ...' * (len(skipped) > 4)}" or "no file"


def _stamp(folder: Path, files: list[str]) -> str:
    """Changes when one of the files does, as far as size and time of change tell."""
    with _open_errors(folder):
        states = [(folder / file).stat() for file in files]
    about = "\n".join(f"{state.st_size} {state.st_mtime_ns}" for state in states)
    return hashlib.sha256(about.encode()).hexdigest()


def _folder_part(folder: Path, files: list[str], class_names: tuple[str, ...], size: int) -> Rows:
    number = {name: k for k, name in enumerate(class_names)}
    owners = [file.split("/")[0] for file in files]
    strangers = sorted(set(owners) - set(class_names))
    if strangers:
        raise DataError(f"class {shown(strangers[0])!r} in {shown(folder)}", "train/ has no such class",
                        "Give every part the same class folders.")

    def read(start: int, stop: int) -> np.ndarray:
        def one(file: str) -> np.ndarray:
            return _decode(folder / file, shown(folder / file), partial(_short_side, size=size))

        # Pillow leaves Python's lock while it decodes and resizes a photograph, so threads are enough.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(one, files[start:stop])))

    def stamp(start: int, stop: int) -> str:
        return _stamp(folder, files[start:stop])

    return Rows(np.array([number[owner] for owner in owners], dtype=np.int64), read, stamp)


def find_folder(root: Path, size: int) -> Source:
    """Find a folder of images, <root>/train/<class>/..., with val/ or test/ or both laid out the same way.

    Each image's short side is resized to `size` pixels and the middle square kept. What is there and no image is
    counted in `notes`. Raises DataError.
    """
    listed = {part: _list_images(root / part) for part in ("train", "val", "test") if os.path.lexists(root / part)}
    parts = {part: files for part, (files, _) in listed.items()}
    if "train" not in parts or len(parts) < 2 or not all(parts.values()):
        raise MissingDataError(shown(root), "it needs images as train/<class>/*.jpg and val/<class>/*.jpg",
                        "Name the folder that holds train/ and val/.")
    key = hashlib.sha256(json.dumps([DECODING, str(root.resolve()), parts]).encode()).hexdigest()
    stamp = "".join(_stamp(root / part, files) for part, files in parts.items())
    class_names = tuple(sorted({file.split("/")[0] for file in parts["train"]}))
    readers = {part: partial(_folder_part, root / part, files, class_names, size)
               for part, files in parts.items()}
    counts = ", ".join(f"{len(files)} {part}" for part, files in parts.items())
    notes = tuple(f"skipped in {part}: {_listed(skipped)}" for part, (_, skipped) in listed.items() if skipped)
    return Source(printable(root.resolve().name)[:80], size, key, stamp, class_names, partial(_call_all, readers),
                  counts=(f"{counts} images, {len(class_names)} classes",), notes=notes)
