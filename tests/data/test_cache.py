"""The decoded cache: loads equal, is rebuilt when damaged, resumes where it stopped."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refused
from small_images import write_cifar10, write_folder

from slimnb.data import cache
from slimnb.data.cache import load_cached
from slimnb.data.sources import Rows, Source, find_cifar, find_folder
from slimnb.errors import DataError, SlimnbError


class Spy:
    """A source of 50 + 8 random 4 x 4 images that notes what is decoded, and can fail at a row."""

    def __init__(self, fail_at=None):
        self.fail_at, self.read_from = fail_at, []
        self.stamps = ["a"] * 50
        self.images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
        self.labels = np.arange(50) % 5

    def read(self, start, stop):
        if self.fail_at is not None and start <= self.fail_at < stop:
            raise DataError(f"row {self.fail_at}", "not a readable image", "Fetch it again.")
        self.read_from.append(start)
        return self.images[start:stop]

    def source(self):
        train = Rows(self.labels, self.read, lambda start, stop: "".join(self.stamps[start:stop]))
        test = Rows(self.labels[:8], lambda start, stop: 255 - self.images[start:stop])
        parts = {"train": train, "test": test}
        return Source("spy", 4, "key", "".join(self.stamps), tuple("abcde"), lambda: parts)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_BYTES", 10 * 48)  # ten of the spy's images


def home_of(folder):
    return next(path for path in folder.iterdir() if path.is_dir())


def same(part, spy):
    same_labels = part.labels.tolist() == spy.labels.tolist()
    return same_labels and torch.equal(part.images, torch.from_numpy(spy.images))


def test_first_and_second_load_are_equal_and_the_second_decodes_nothing(tmp_path):
    spy = Spy()
    first = load_cached(spy.source(), tmp_path)
    assert same(first["train"], spy) and spy.read_from == [0, 10, 20, 30, 40]
    again = load_cached(replace(spy.source(), open=None), tmp_path)
    assert same(again["train"], spy) and torch.equal(again["test"].images, first["test"].images)
    assert again["train"].sha256 == first["train"].sha256 != first["test"].sha256
    assert np.array_equal(again["train"].digests, first["train"].digests)


def test_writing_to_the_images_does_not_reach_the_file(tmp_path):
    spy = Spy()
    load_cached(spy.source(), tmp_path)["train"].images.zero_()
    assert same(load_cached(spy.source(), tmp_path)["train"], spy)


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("name", "damage", "decoded"), [
    ("train.images", lambda path: flip_byte(path, 25 * 48), [20, 30, 40]),
    ("train.images", lambda path: os.truncate(path, 41 * 48), [40]),
    ("train.images", lambda path: path.unlink(), [0, 10, 20, 30, 40]),
    ("train.labels", lambda path: flip_byte(path, 3), []),
    ("train.digests", lambda path: os.truncate(path, 5), []),
    ("index.json", lambda path: path.write_text("{}"), []),
    ("index.json", lambda path: path.write_text("<html>"), []),
    ("index.json", lambda path: path.unlink(), []),
])
def test_a_damaged_cache_is_rebuilt_from_the_damage_on(tmp_path, name, damage, decoded):
    spy = Spy()
    before = load_cached(spy.source(), tmp_path)["train"].sha256
    damage(home_of(tmp_path) / name)
    spy.read_from.clear()
    part = load_cached(spy.source(), tmp_path)["train"]
    assert same(part, spy) and part.sha256 == before
    assert spy.read_from == decoded


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path):
    spy = Spy(fail_at=33)
    with pytest.raises(SlimnbError, match="row 33"):
        load_cached(spy.source(), tmp_path)
    assert spy.read_from == [0, 10, 20]
    spy.fail_at = None
    assert same(load_cached(spy.source(), tmp_path)["train"], spy)
    assert spy.read_from == [0, 10, 20, 30, 40]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("tail", [b"half a chunk", b""])
@pytest.mark.parametrize("line", [b'{"sha256": "0', b"\xff\n"])
def test_a_half_written_or_damaged_chunk_is_cut_off(tmp_path, tail, line):
    spy = Spy(fail_at=22)
    with pytest.raises(SlimnbError):
        load_cached(spy.source(), tmp_path)
    work = home_of(tmp_path)
    with open(work / "train.images", "ab") as file:
        file.write(tail)
    with open(work / "train.jsonl", "ab") as file:
        file.write(line)
    spy.fail_at = None
    assert same(load_cached(spy.source(), tmp_path)["train"], spy)
    assert spy.read_from == [0, 10, 20, 30, 40]


def test_changed_files_are_decoded_again(tmp_path):
    spy = Spy()
    before = load_cached(spy.source(), tmp_path)["train"].sha256
    spy.read_from.clear()
    spy.stamps[37], spy.images = "b", spy.images.copy()
    spy.images[37] = 0
    part = load_cached(spy.source(), tmp_path)["train"]
    assert same(part, spy) and part.sha256 != before and spy.read_from == [30, 40]


def test_one_of_two_builds_and_the_other_waits(tmp_path):
    spies, parts = [Spy(), Spy()], []
    threads = [threading.Thread(target=lambda spy=spy: parts.append(load_cached(spy.source(), tmp_path)))
               for spy in spies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(part["train"], spies[0]) for part in parts) and len(parts) == 2
    assert sorted(len(spy.read_from) for spy in spies) == [0, 5]


@pytest.mark.parametrize("wrong", [{"labels": np.full(50, 5)}, {"labels": np.full(50, -100)}])
def test_labels_outside_the_classes_are_refused(tmp_path, wrong):
    spy = Spy()
    spy.labels = wrong["labels"]
    with pytest.raises(SlimnbError, match="DataError: 50 of 50 labels, first at row 0"):
        load_cached(spy.source(), tmp_path)


def test_pixels_of_another_shape_are_refused(tmp_path):
    spy = Spy()
    for images in (np.zeros((50, 1, 4, 4), np.uint8), np.full((50, 3, 4, 4), np.nan, np.float32)):
        spy.images = images
        refused("DataError", load_cached, spy.source(), tmp_path)


def test_no_space_is_said_before_decoding(tmp_path, monkeypatch):
    spy = Spy()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: _Usage)
    refused("ResourceError", load_cached, spy.source(), tmp_path)
    assert spy.read_from == []


class _Usage:
    free = 100


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SlimnbError, match="ResourceError") as caught:
        load_cached(Spy().source(), tmp_path / "file")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240


def test_large_sets_are_verified_by_sample(tmp_path, monkeypatch):
    spy = Spy()
    load_cached(spy.source(), tmp_path)
    monkeypatch.setattr(cache, "VERIFY_BYTES", 50 * 48 // 2)
    flip_byte(home_of(tmp_path) / "train.images", 15 * 48)  # chunk 1, between the samples
    load_cached(replace(spy.source(), open=None), tmp_path)
    flip_byte(home_of(tmp_path) / "train.images", 25 * 48)  # chunk 2, sampled
    spy.read_from.clear()
    assert same(load_cached(spy.source(), tmp_path)["train"], spy)
    assert spy.read_from[0] == 10


def test_parquet_and_folder_through_the_cache(tmp_path):
    write_cifar10(tmp_path)
    folder = write_folder(tmp_path / "pets")
    for source in (find_cifar("cifar10", tmp_path), find_folder(folder, 8)):
        rows = source.open()["train"]
        part = load_cached(source, tmp_path / "cache")["train"]
        assert np.array_equal(part.images.numpy(), rows.read(0, len(rows.labels)))
        assert np.array_equal(part.labels.numpy(), rows.labels)


def test_a_touched_folder_is_read_again_to_the_same_content(tmp_path):
    folder = write_folder(tmp_path / "pets")
    first = load_cached(find_folder(folder, 8), tmp_path / "cache")["train"].sha256
    image = folder / "train" / "cat" / "1.png"
    os.utime(image, (1, 1))
    assert load_cached(find_folder(folder, 8), tmp_path / "cache")["train"].sha256 == first
