"""Data sets as a whole: splits that do not meet, a test split that counts, fingerprints, errors."""

import re
import shutil

import numpy as np
import pytest
import torch
from small_images import encode, pictures, write_cifar10, write_folder, write_parquet

from slimnb.data import datasets
from slimnb.data.datasets import Batches, load_data, load_or_absent
from slimnb.errors import SlimnbError

SMALL = {"train": 200, "test": 50}


def rows_of(split):
    return {image.numpy().tobytes() for image in split.images}


def load(name, tmp_path, **options):
    return load_data(name, root=tmp_path, cache=tmp_path / "cache", **options)


def test_synthetic_is_complete():
    datasets = load_data(**SMALL, val_fraction=0.2)
    assert (datasets.name, datasets.num_classes, datasets.size) == ("synthetic", 10, 32)
    assert (len(datasets.train), len(datasets.val), len(datasets.test)) == (160, 40, 50)
    assert all(split.difficulty is not None for split in (datasets.train, datasets.val))
    assert "160 train, 40 val, 50 test" in repr(datasets)


def test_synthetic_splits_do_not_meet():
    datasets = load_data(**SMALL)
    splits = [rows_of(split) for split in (datasets.train, datasets.val, datasets.test)]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 250


def test_fingerprint_follows_content_and_cut():
    first = load_data(**SMALL)
    assert first.fingerprint == load_data(**SMALL).fingerprint
    others = [load_data(**SMALL, seed=1), load_data(train=210, test=50), load_data(**SMALL, val_fraction=0.2)]
    assert len({first.fingerprint, *(datasets.fingerprint for datasets in others)}) == 4


def test_mean_and_std_are_those_of_the_train_pixels():
    datasets = load_data(**SMALL)
    pixels = datasets.train.images.double() / 255
    np.testing.assert_allclose(datasets.mean, pixels.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(datasets.std, pixels.std((0, 2, 3), correction=0), atol=1e-4)
    x = torch.cat([x for x, _ in Batches(datasets.train, 64, augment="none", mean=datasets.mean, std=datasets.std)])
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)


def test_the_test_split_counts_its_openings():
    datasets = load_data(**SMALL)
    copy = datasets.to("cpu")
    repr(datasets), datasets.train, datasets.val, datasets.num_classes
    assert datasets.test_opened == 0
    assert len(datasets.test) == 50
    assert datasets.test_opened == copy.test_opened == 1
    copy.test.labels.sum()
    assert datasets.test_opened == 2


def test_parquet_from_root_or_environment(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    datasets = load("cifar10", tmp_path, val_fraction=0.25)
    assert (len(datasets.train), len(datasets.val), len(datasets.test)) == (48, 16, 16)
    assert datasets.class_names[3] == "class 3" and datasets.train.difficulty is None
    assert "64 of the 50,000 published train images" in repr(datasets)
    monkeypatch.setenv("SLIMNB_DATA", str(tmp_path))
    again = load_data("cifar10", cache=tmp_path / "other", val_fraction=0.25)
    assert again.fingerprint == datasets.fingerprint and torch.equal(again.val.images, datasets.val.images)


def test_equal_train_images_stay_on_one_side_of_the_cut(tmp_path):
    images, _ = write_cifar10(tmp_path)
    twice = [encode(image) for image in images for _ in range(2)]
    first, second = sorted((tmp_path / "cifar10").glob("train-*"))
    write_parquet(first, twice, np.repeat(np.arange(64) % 10, 2))
    second.unlink()
    for fraction in (0.1, 0.2, 0.3, 0.5):
        datasets = load("cifar10", tmp_path, val_fraction=fraction)
        assert len(datasets.train) + len(datasets.val) == 128
        assert not rows_of(datasets.train) & rows_of(datasets.val)
        assert "both" not in repr(datasets)


def test_published_test_images_in_train_are_reported(tmp_path):
    images, _ = write_cifar10(tmp_path)
    mixed = [*images[:3], *pictures(13, seed=9)]
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write_parquet(path, map(encode, mixed), np.arange(16) % 10)
    notes = load("cifar10", tmp_path, val_fraction=0.5).notes
    assert sum(int(note.split()[0]) for note in notes if "both" in note) == 3


def test_folder_without_test_tests_on_val_and_carves_val_from_train(tmp_path):
    write_folder(tmp_path / "pets", each=5)
    datasets = load("pets", tmp_path, size=8, val_fraction=0.3)
    assert (len(datasets.train), len(datasets.val), len(datasets.test)) == (7, 3, 10)
    assert (datasets.name, datasets.size, datasets.class_names) == ("pets", 8, ("cat", "dog"))
    assert load(str(tmp_path / "pets"), tmp_path, size=8, val_fraction=0.3).fingerprint == datasets.fingerprint


def test_folder_with_test_keeps_its_own_val(tmp_path):
    write_folder(tmp_path / "pets", ("train", "val", "test"), each=3)
    datasets = load("pets", tmp_path, size=8)
    assert (len(datasets.train), len(datasets.val), len(datasets.test)) == (6, 6, 6)


@pytest.mark.parametrize(("parts", "pair"), [(("train", "val", "test"), "train and val"),
                                             (("train", "val"), "train and test")])
def test_an_image_in_two_parts_is_refused_or_counted(tmp_path, parts, pair):
    root = write_folder(tmp_path / "pets", parts, each=3)
    shutil.copy(root / "train" / "dog" / "1.png", root / "val" / "dog" / "copy.png")
    options = {"size": 8, "val_fraction": 0.01}
    with pytest.raises(SlimnbError, match=f"DataError: 1 images are in both {pair} of pets") as caught:
        load("pets", tmp_path, **options)
    assert len(str(caught.value)) <= 240
    notes = load("pets", tmp_path, **options, allow_overlap=True).notes
    assert notes == (f"1 images are in both {pair}",)


def test_mending_the_one_bad_file_is_enough(tmp_path):
    root = write_folder(tmp_path / "pets", each=8)
    bad = root / "train" / "cat" / "5.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:60])
    with pytest.raises(SlimnbError, match=r"DataError: .*cat/5.png"):
        load("pets", tmp_path, size=8)
    bad.write_bytes(whole)
    assert len(load("pets", tmp_path, size=8).train) == 14


@pytest.mark.parametrize(("name", "options", "code", "says"), [
    ("cifar100", {}, "MissingDataError", "cifar100"), ("cifra10", {}, "ParameterError", "Did you mean 'cifar10'"),
    ("imagenet", {}, "ParameterError", "synthetic"), ("some/folder", {}, "MissingDataError", "some/folder"),
    ("synthetic", {"tset": 5}, "ParameterError", "tset"), ("synthetic", {"download": True}, "ParameterError",
                                                           "train, test, seed"),
    ("synthetic", {"train": 0}, "ParameterError", "train = 0"), ("synthetic", {"val_fraction": 0.0}, "ParameterError",
                                                                 "0.0"),
    ("synthetic", {"val_fraction": float("nan")}, "ParameterError", "nan"),
])
def test_wrong_calls_are_one_line(tmp_path, name, options, code, says):
    with pytest.raises(SlimnbError) as caught:
        load(name, tmp_path, **options)
    line = str(caught.value)
    assert type(caught.value).__name__ == code and says in line
    assert "\n" not in line and len(line) <= 240
    assert list(tmp_path.iterdir()) == []


def test_a_public_set_that_is_absent_still_names_its_finished_runs(tmp_path):
    absent = load_or_absent("cifar100", tmp_path)
    assert (absent.num_classes, absent.size) == (100, 32) and re.fullmatch("[0-9a-f]{64}", absent.fingerprint)
    with pytest.raises(SlimnbError, match="DataError"):
        absent.train  # noqa: B018
    for name, code in (("cifar10", "MissingDataError"), ("cifra100", "ParameterError")):  # not published here; misspelt
        with pytest.raises(SlimnbError, match=f"{code}"):
            load_or_absent(name, tmp_path)
    part = load_or_absent("cifar10", tmp_path, like=(10, 32, "ab" * 32))  # a copy that is not the whole published one
    assert (part.num_classes, part.size, part.fingerprint) == (10, 32, "ab" * 32)


def test_enlarged_images_are_the_middle_of_the_small_ones():
    datasets = load_data("synthetic", train=100, test=20)
    large = datasets.enlarged(224)
    assert large.val.images.shape == (10, 3, 224, 224) and large.val.images.dtype == torch.uint8
    assert large.train is datasets.train and torch.equal(large.val.labels, datasets.val.labels)
    opened = datasets.test_opened
    assert len(large.test) == 20 and large.test.images.shape[-1] == 224
    assert datasets.test_opened == opened + 2, "every opening counts, whatever the copy"
    middle = datasets.val.images[..., 2:30, 2:30].float()  # 28 of 32 pixels, each 8 times as large
    small = torch.nn.functional.avg_pool2d(large.val.images.float(), 8)
    assert (small - middle)[..., 1:-1, 1:-1].abs().mean() < 12, "smoothed, in place"
    even = datasets.enlarged(64)
    assert even.val.images.shape[-1] == 64


def test_a_set_too_large_for_the_device_stays_on_the_host(monkeypatch):
    small = load_data("synthetic", train=100, test=20)
    count = 120 * 3 * 32 * 32
    for free, place in ((2 * count, "meta"), (2 * count - 2, "cpu")):
        monkeypatch.setattr(datasets, "_free_bytes", lambda device, free=free: free)
        moved = small.to("meta")
        assert {split.images.device.type for split in (moved.train, moved.val, moved.test)} == {place}
    assert moved is small


def test_folder_is_256_pixels_of_which_the_middle_224_are_evaluated(tmp_path):
    write_folder(tmp_path / "pets", each=3)
    pets = load("pets", tmp_path)
    assert pets.size == 256
    plain = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "size": 224}
    x, _ = Batches(pets.val, len(pets.val), augment="none", **plain).batch(0)
    torch.testing.assert_close(x, pets.val.images[..., 16:240, 16:240].float())
