"""Strict JSON, files that are whole or absent, and what happens when the disk says no."""

import errno
import json
import os

import numpy as np
import pytest
from refusals import refused

from slimnb.errors import SlimnbError
from slimnb.runs import files
from slimnb.runs.files import Damaged, Failpoint, from_json, plain, to_json

FAIL = Failpoint()
VALUES = [
    {}, [], None, True, False, 0, -(2**63), 2**63 - 1, 0.1, -0.0, 5e-324, 1.7976931348623157e308, "",
    "a\u2028\u0000\"\\", {"a": [1, {"b": [None, "x"]}]}, {"": 1}, [1, 1.0, True, "1"],
]  # fmt: skip
BAD_TEXTS = {
    "NaN": b'{"a": NaN}',
    "infinity": b"[Infinity]",
    "minus infinity": b"[-Infinity]",
    "overflow": b"[1e999]",
    "duplicate": b'{"a": 1, "a": 2}',
    "inner duplicate": b'[{"x": {"b": 1, "b": 1}}]',
    "huge int": b"[" + b"9" * 5000 + b"]",
    "just too big an int": str(2**63).encode(),
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 40 + b"]" * 40,
    "empty": b"",
    "cut": b'{"a": 1',
    "two": b"1 2",
    "merge marker": b'{\n<<<<<<< HEAD\n"a": 1}',
    "not UTF-8": b'{"a": "\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "single quotes": b"{'a': 1}",
    "a pickle": b"\x80\x04}\x94.",
}


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json_comes_back_the_same(value):
    back = from_json(to_json(value).encode())
    assert repr(back) == repr(value)  # repr tells -0.0 from 0.0 and 1 from True
    assert json.loads(to_json(value)) == back


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_bad_json_is_refused_in_one_line(text):
    with pytest.raises(SlimnbError) as caught:
        from_json(text, "file.json")
    line = str(caught.value)
    assert type(caught.value).__name__ == "StoreError" and "file.json" in line
    assert len(line) <= 240 and line.isprintable()


@pytest.mark.parametrize(
    "value",
    [{"a": float("nan")}, [float("inf")], {1: 2}, {"a": {2}}, b"x", 2**63, np.float32("nan"), object()],
    ids=["nan", "inf", "number as key", "set", "bytes", "65 bits", "numpy nan", "object"],
)
def test_what_json_cannot_say_is_not_written(value):
    refused("StoreError", to_json, value)


def test_error_names_the_place():
    with pytest.raises(SlimnbError, match=r"recipe\.lr\[1\]: nan"):
        plain({"lr": [0.1, float("nan")]}, "recipe")


def test_numpy_scalars_and_tuples_become_plain():
    value = plain({"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(False), "d": (1, (2,))})
    assert repr(value) == "{'a': 3, 'b': 0.5, 'c': False, 'd': [1, [2]]}"


def test_json_text_does_not_depend_on_order():
    assert to_json({"b": 1, "a": [1, 2]}) == to_json({"a": (1, 2), "b": 1}) == '{"a":[1,2],"b":1}'


def test_checked_file_comes_back_and_sha256sum_could_check_it(tmp_path):
    path = tmp_path / "x.bin"
    hexdigest = files.write_checked(path, b"abc", FAIL, "x")
    assert files.read_checked(path) == b"abc"
    assert files.sidecar(path).read_text() == f"{hexdigest}  x.bin\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.bin.sha256"]


@pytest.mark.parametrize("change", ["flip", "cut", "grow", "empty", "swap", "nosum", "badsum"])
def test_changed_file_is_not_believed(tmp_path, change):
    path, other = tmp_path / "x.bin", tmp_path / "y.bin"
    files.write_checked(path, b"abcdef", FAIL, "x")
    files.write_checked(other, b"another", FAIL, "x")
    if change == "swap":  # a good file with its good checksum, under another's name
        path.write_bytes(other.read_bytes())
        files.sidecar(path).write_bytes(files.sidecar(other).read_bytes())
    elif change == "nosum":
        files.sidecar(path).unlink()
    elif change == "badsum":
        files.sidecar(path).write_text("?")
    else:
        path.write_bytes({"flip": b"abcdeg", "cut": b"abc", "grow": b"abcdefg", "empty": b""}[change])
    with pytest.raises(Damaged):
        files.read_checked(path)


KINDS = ["link", "dangling", "pipe", "folder"]


def put(kind, path, target):
    """Place something that is no regular file at `path`."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target if kind == "link" else target.with_name("nowhere"))


@pytest.mark.parametrize("kind", KINDS)
def test_strange_files_are_neither_read_nor_written(tmp_path, kind):
    target, path = tmp_path / "target", tmp_path / "x"
    target.write_bytes(b"precious")
    put(kind, path, target)
    before = os.lstat(path)
    for call in (
        lambda: files.read_file(path),
        lambda: files.write_file(path, b"new", FAIL, "x"),
        lambda: files.refuse_strange(path),
    ):
        refused("StoreError", call)
    assert target.read_bytes() == b"precious" and os.lstat(path) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "ResourceError"), (errno.EDQUOT, "ResourceError"), (errno.EROFS, "StoreError"), (errno.EIO,
                                                                                                     "StoreError")],
)
def test_refusal_by_the_system_leaves_the_old_file(tmp_path, monkeypatch, call, number, code):
    path = tmp_path / "x.bin"
    files.write_file(path, b"old", FAIL, "x")

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(SlimnbError) as caught:
            files.write_file(path, b"newer", FAIL, "x")
    assert type(caught.value).__name__ == code and len(str(caught.value)) <= 240
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_short_writes_are_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    files.write_file(tmp_path / "x", bytes(range(100)), FAIL, "x")
    assert (tmp_path / "x").read_bytes() == bytes(range(100))


def test_folder_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    refused("StoreError", files.make_folder, tmp_path / "file" / "runs" / "x")
