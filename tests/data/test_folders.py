"""Folders of images as they come: what torchvision's ImageFolder finds and Pillow reads, or one line and no more."""

import json
import os
import socket
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from refusals import refused
from small_images import encode, pictures, write_cifar10, write_parquet
from torchvision.datasets import ImageFolder

from slimnb.data.datasets import load_data, load_or_absent
from slimnb.data.sources import find_cifar, find_folder
from slimnb.errors import SlimnbError, printable

SIZE = 8


def image(seed, mode="RGB"):
    """A picture of 8 x 8 pixels of any mode; 16 bits in grey have their noise in both bytes."""
    picture = Image.fromarray(pictures(1, seed, SIZE)[0])
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(np.full((SIZE, SIZE), np.nan, np.float32))
    return picture.convert(mode)


def save(path, seed=0, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image(seed, mode).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Two classes, two images each, in train and val."""
    for number, (part, name, k) in enumerate((p, c, k) for p in ("train", "val") for c in ("cat", "dog") for k in "01"):
        save(tmp_path / "set" / part / name / f"{k}.png", 1000 + number)
    return tmp_path / "set"


def loaded(root):
    return load_data(root, cache=root.parent / "cache", size=SIZE, allow_overlap=True)


def scaled(path):
    """The pixels that the oracle reads: Pillow's, and the high byte of 16 bits of grey."""
    with Image.open(path) as opened:
        if opened.mode in ("I", "I;16", "I;16B"):
            return np.repeat((np.asarray(opened) >> 8).astype(np.uint8)[..., None], 3, 2)
        return np.asarray(opened.convert("RGB"))


def agrees(root):
    """Classes, labels and pixels are those of ImageFolder, in every part."""
    source = find_folder(root, SIZE)
    for part, rows in source.open().items():
        oracle = ImageFolder(root / part)
        assert set(oracle.classes) == set(source.class_names)
        expected = sorted((label, scaled(path).tobytes()) for path, label in oracle.samples)
        read = rows.read(0, len(rows.labels)).transpose(0, 2, 3, 1)
        assert sorted((int(k), pixels.tobytes()) for k, pixels in zip(rows.labels, read, strict=True)) == expected
    return loaded(root)


# -------------------------------------------------------------------------------------------- accepted

SAVED = {  # file, mode, options
    "grey": ("a.png", "L", {}), "grey jpeg": ("a.jpg", "L", {}), "rgba": ("a.png", "RGBA", {}),
    "palette": ("a.png", "P", {}), "palette with alpha": ("a.png", "P", {"transparency": bytes(range(200))}),
    "one transparent colour": ("a.png", "L", {"transparency": 7}), "grey and alpha": ("a.png", "LA", {}),
    "cmyk": ("a.jpg", "CMYK", {}), "cmyk tiff": ("a.tiff", "CMYK", {}), "one bit": ("a.png", "1", {}),
    "one bit tiff": ("a.tif", "1", {}), "16 bits": ("a.png", "I;16", {}), "16 bits tiff": ("a.tif", "I;16", {}),
    "16 bits pgm": ("a.pgm", "I;16", {}), "webp": ("a.webp", "RGB", {"lossless": True}), "bmp": ("a.bmp", "RGB", {}),
    "tiff": ("a.tiff", "RGB", {}), "ppm": ("a.ppm", "RGB", {}), "pgm": ("a.pgm", "L", {}),
    "jpeg": ("a.jpeg", "RGB", {}), "upper case": ("A.JPG", "RGB", {}), "upper-case tif": ("A.TIF", "RGB", {}),
    "gif in a png": ("a.png", "P", {"format": "GIF"}),
    "space": ("a b.png", "RGB", {}), "line end": ("a\nb.png", "RGB", {}), "escape": ("a\x1b[31m.png", "RGB", {}),
    "arrow": ("a → b.png", "RGB", {}), "not UTF-8": ("a\udcff.png", "RGB", {}), "nested": ("x/y/z.png", "RGB", {}),
    "two dots": ("a.tar.png", "RGB", {}),
}


@pytest.mark.filterwarnings("ignore:Palette images")  # of the oracle's own reading
@pytest.mark.parametrize("kind", SAVED)
def test_files_are_found_and_read_as_torchvision_does(root, kind):
    name, mode, options = SAVED[kind]
    save(root / "train" / "cat" / name, 5, mode, **options)
    data = agrees(root)
    assert len(data.train) + len(data.val) == 5 and data.notes == ()


def rotated(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "train" / "cat" / "a.jpg", exif=exif)


def only_one_class(root):
    for part in ("train", "val"):
        (root / part / "dog").rename(root / part / "cat" / "deeper")


def linked(target):
    def make(root):
        save(root.parent / "elsewhere" / "b.png", 3)
        place = root / "train" / "cat" / ("a.png" if target.endswith("png") else "linked")
        place.symlink_to(root.parent / target)
    return make


def linked_class(root):
    for number, part in enumerate(("train", "val")):
        save(root.parent / "elsewhere" / part / "deep" / "b.png", number)
        (root / part / "owl").symlink_to(root.parent / "elsewhere" / part)


def odd_classes(root):
    for number, name in enumerate(("o\nwl", "\udcffox", "a → b", "Ünder")):
        for k, part in enumerate(("train", "val")):
            save(root / part / name / "a.png", 2 * number + k)


ACCEPTED = {make.__name__: make for make in (rotated, only_one_class, linked_class, odd_classes)} | {
    "linked file": linked("elsewhere/b.png"), "linked folder": linked("elsewhere")}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_layouts_are_found_as_torchvision_does(root, kind):
    ACCEPTED[kind](root)
    assert agrees(root).notes == ()


@pytest.mark.parametrize(("names", "note"), [
    (["cat/readme.txt", "cat/a.gif", "dog/b.GIF", "cat/c"], "skipped in train: 2 .gif, 1 .txt, 1 without a suffix"),
    (["stray.png"], "skipped in train: 1 in no class"),
    ([".ipynb_checkpoints/cat.png", "cat/.a.png", "dog/.x/a.png", ".DS_Store"], "skipped in train: 4 hidden"),
    (["cat/a.\x1b[2J"], r"skipped in train: 1 .\x1b[2j"),
    ([f"cat/a.{k}" for k in range(6)], "skipped in train: 1 .0, 1 .1, 1 .2, 1 .3, ..."),
], ids=["no images", "no class", "hidden", "escape", "many"])
def test_what_is_no_part_of_the_set_is_counted_and_said(root, capsys, names, note):
    for name in sorted(names):
        save(root / "train" / name, format="PNG")
    data = loaded(root)
    assert data.class_names == ("cat", "dog") and len(data.train) + len(data.val) == 4
    assert data.notes == (note,) and note in repr(data)
    assert capsys.readouterr().out.splitlines() == ["set: 4 train, 4 val images, 2 classes", f"set: {note}"]
    assert loaded(root).notes == data.notes and capsys.readouterr().out == "", "counts are said once"


def test_sixteen_bits_and_twelve_keep_their_high_byte(root):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for part in ("train", "val"):
        for name in ("ramp", "low"):
            (root / part / name).mkdir()
        Image.fromarray(values * 1040).save(root / part / "ramp" / "a.png")
        _twelve_bits(root / part / "low" / "a.tif", values * 65)
    rows = find_folder(root, SIZE).open()["train"]
    low, ramp = (rows.read(0, 6)[rows.labels == k][0, 1] for k in (2, 3))
    assert np.array_equal(ramp, values * 1040 >> 8) and np.array_equal(low, values * 65 >> 4)


def _twelve_bits(path, values):
    """A grey TIFF of 8 x 8 pixels of 12 bits, which Pillow reads and cannot write."""
    bits = "".join(f"{value:012b}" for value in values.reshape(-1))
    data = int(bits, 2).to_bytes(96, "big")
    tags = ((256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 134), (277, 1), (278, 8), (279, 96))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags).ljust(124, b"\0") + data)


# -------------------------------------------------------------------------------------------- one line


def bomb(path):
    """A PNG whose header says 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + bytes(12))


def cut(path):
    save(path.with_suffix(".bmp"), 4)
    path.write_bytes(path.with_suffix(".bmp").read_bytes()[:150])
    path.with_suffix(".bmp").unlink()


def self_linked(path):
    path.symlink_to(path.name)


def socketed(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name has at most 108 characters
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)
    os.chdir(here)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
BAD_FILES = {
    "truncated": cut, "zero bytes": lambda path: path.write_bytes(b""), "text": lambda path: path.write_text("hello"),
    "page of html": lambda path: path.write_bytes(b"<html>"), "postscript": lambda path: path.write_bytes(EPS),
    "pdf": lambda path: path.write_bytes(b"%PDF-1.4\n"), "icon": lambda path: image(0).save(path, format="ICO"),
    "bomb": bomb, "float pixels (NaN)": lambda path: image(0, "F").save(path, format="TIFF"),
    "32 bits": lambda path: Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(path, format="TIFF"),
    "strip": lambda path: Image.new("RGB", (30_000, 1)).save(path), "link to itself": self_linked,
    "dangling link": lambda path: path.symlink_to("gone"), "pipe": os.mkfifo, "socket": socketed,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", ["bad.png", "b\x1b]0;x\x07\n\udcff" + "\x9b" * 40 + ".png"], ids=["plain", "escapes"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it(root, kind, name):
    BAD_FILES[kind](root / "train" / "dog" / name)
    unknown = kind in ("zero bytes", "text", "page of html", "postscript", "pdf", "icon")  # no reader for them is tried
    line = refused("DataError", loaded, root, words=r"\.png.*unknown format" if unknown else r"\.png")
    assert line.isprintable() and ("bad.png" in line or r"\x9b.png" in line)


def empty_class(root):
    (root / "train" / "owl").mkdir()


def class_of_other_files(root):
    save(root / "val" / "owl" / "a.gif")


def loop(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train")


def loop_of_two(root):
    for one, other in ("cat/x", "dog"), ("dog/y", "cat"):
        (root / "train" / one).symlink_to(root / "train" / other)


def dangling_class(root):
    (root / "train" / "owl").symlink_to("gone")


def dangling_part(root):
    (root / "test").symlink_to("gone")


def part_is_a_file(root):
    (root / "test").write_text("")


def empty_part(root):
    (root / "test").mkdir()


def stranger(root):
    save(root / "val" / ("\x1bwolf" * 40) / "a.png")


def one_image(root):
    (root / "train" / "cat" / "1.png").unlink()
    for part in ("train", "val"):
        (root / part / "dog").rename(root.parent / f"{part} dog")


LAYOUTS = (empty_class, class_of_other_files, loop, loop_of_two, dangling_class, dangling_part, part_is_a_file,
           empty_part, stranger, one_image)


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_bad_layout_is_one_line(root, make):
    make(root)
    refused("MissingDataError" if make is empty_part else "DataError", loaded, root)


@pytest.fixture
def nobody(root):
    """Root may read everything: be somebody else, in a folder that others may enter."""
    folder = root.parent
    parents = [path for path in (folder, *folder.parents) if path.stat().st_uid == os.geteuid() and str(path) != "/"]
    if os.geteuid():
        yield root
        return
    modes = [(path, path.stat().st_mode) for path in parents]
    (folder / "cache").mkdir(mode=0o777)
    (folder / "cache").chmod(0o777)
    for path, mode in modes:
        path.chmod(mode | 0o055)
    os.seteuid(65534)
    yield root
    os.seteuid(0)
    for path, mode in modes:
        path.chmod(mode)


@pytest.mark.parametrize("name", ["train/cat/0.png", "train/cat", "train"])
def test_what_may_not_be_read_is_one_line(root, nobody, name):
    euid = os.geteuid()
    os.seteuid(os.getuid())
    mode = (root / name).stat().st_mode
    (root / name).chmod(0)
    os.seteuid(euid)
    try:
        refused("DataError", loaded, root, words="Permission denied")
    finally:
        os.seteuid(os.getuid())
        (root / name).chmod(mode)
        os.seteuid(euid)


# -------------------------------------------------------------------------------------------- names and places


def test_a_line_escapes_what_a_terminal_would_obey():
    text = "é → \x1b[2J\x9b\r\n\u202e\u2028\udcff"
    assert printable(text) == r"é → \x1b[2J\x9b\r\n\u202e\u2028\udcff" == printable(printable(text))
    line = str(SlimnbError(text, text, text, text))
    assert line.isprintable() and line.count("é → ") == 4


def test_a_path_is_taken_where_a_name_is(root, monkeypatch):
    cache = root.parent / "cache"
    by_path, by_name = (load_data(name, cache=cache, size=SIZE) for name in (root, str(root)))
    assert by_path.fingerprint == by_name.fingerprint
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(load_data("~/set", cache=cache, size=SIZE).test) == 4
    assert len(load_data("set", root="~", cache=cache, size=SIZE).test) == 4
    assert load_or_absent(root.__class__("cifar100"), root).num_classes == 100
    for name in (None, 5, b"cifar100", ["cifar100"]):
        refused("ParameterError", load_data, name)
    refused("ParameterError", load_data, "\x1b" * 5000)
    refused("MissingDataError", load_data, root / ("x" * 5000))
    refused("MissingDataError", load_data, "~nosuchuser/set")


# -------------------------------------------------------------------------------------------- labels of Parquet


def columns(label):
    def write(path):
        rows = pa.array([{"bytes": encode(picture), "path": None} for picture in pictures(len(label))],
                        pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"img": rows, "label": label}), path)
    return write


def named(about):
    def write(path):
        write_parquet(path, map(encode, pictures(2)), [0, 1])
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": about}), path)
    return write


def features(names):
    return json.dumps({"info": {"features": {"label": {"names": names}}}})


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def dangling(path):
    path.unlink()
    path.symlink_to("gone")


WRONG = {
    "fractions": columns([0.0, 1.5]), "NaN": columns([0.0, float("nan")]), "nothing": columns(pa.array([0, None])),
    "texts": columns(["cat", "dog"]), "truth values": columns([True, False]), "too large": columns([0, 10]),
    "negative": columns([0, -1]), "huge": columns(pa.array([0, 2**64 - 1], pa.uint64())),
    "no rows": columns(pa.array([], pa.int64())), "seven names": named(features(list("abcdefg"))),
    "a name twice": named(features(["a"] * 10)), "numbers for names": named(features(list(range(10)))),
    "metadata is a list": named("[1]"), "metadata is no JSON": named("{"), "metadata is deep": named("[" * 100_000),
    "pipe": pipe, "dangling": dangling,
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_labels_and_names_of_classes_are_one_line(tmp_path, kind):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    WRONG[kind](path)
    refused("DataError", lambda: find_cifar("cifar10", tmp_path).open(), words="test-00000")


def test_sixteen_bits_in_parquet_keep_their_high_byte(tmp_path):
    write_cifar10(tmp_path)
    deep = np.arange(1024, dtype=np.uint16).reshape(1, 32, 32) * 63
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", [encode(deep[0])], [0])
    read = find_cifar("cifar10", tmp_path).open()["test"].read(0, 1)
    assert np.array_equal(read[0], np.repeat(deep >> 8, 3, 0))
