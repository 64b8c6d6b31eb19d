"""Real images in their layouts on disk, and what is said when they are missing or damaged."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_images import NAMES, encode, pictures, write_cifar10, write_folder, write_parquet

from slimnb.data import sources
from slimnb.data.sources import find_cifar, find_folder
from slimnb.errors import SlimnbError


def line_of(caught, code):
    """The error's line, checked against the rules for all of them."""
    assert type(caught.value).__name__ == code
    line = str(caught.value)
    assert "\n" not in line and len(line) <= 240
    return line


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_parquet_gives_back_the_pixels_and_their_labels(tmp_path, form):
    images, labels = write_cifar10(tmp_path, form=form)
    source = find_cifar("cifar10", tmp_path)
    assert source.class_names == tuple(NAMES) and source.size == 32
    rows = source.open()["train"]
    pixels = [image.tobytes() for image in rows.read(0, 64)]
    expected = [image.transpose(2, 0, 1).tobytes() for image in images]
    assert dict(zip(pixels, rows.labels, strict=True)) == dict(zip(expected, labels, strict=True))


def test_rows_come_in_the_order_of_their_content(tmp_path):
    """Another file layout of the same images is the same data set, row by row."""
    images, labels = write_cifar10(tmp_path)
    order = np.random.default_rng(5).permutation(64)
    folder = tmp_path / "other" / "cifar10"
    write_parquet(folder / "train-0.parquet", map(encode, images[order]), labels[order], image="image")
    write_parquet(folder / "test-0.parquet", map(encode, pictures(16, 1)), np.arange(16) % 10, image="image")
    ours, theirs = (find_cifar("cifar10", root).open()["train"] for root in (tmp_path, tmp_path / "other"))
    assert np.array_equal(ours.read(0, 64), theirs.read(0, 64)) and np.array_equal(ours.labels, theirs.labels)
    assert not np.array_equal(ours.labels, labels)


def test_torchvision_layout_is_the_same_data_set(tmp_path, monkeypatch):
    images, _ = write_cifar10(tmp_path)
    (tmp_path / "tv" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "tv" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"read by torchvision")

    def fake(name, folder, train, download=False):
        assert (name, folder, download) == ("cifar10", tmp_path / "tv", False)
        data = images if train else pictures(16, 1)
        return SimpleNamespace(data=data, targets=list(np.arange(len(data)) % 10), classes=NAMES)

    monkeypatch.setattr(sources, "_torchvision", fake)
    source = find_cifar("cifar10", tmp_path / "tv")
    assert source.class_names == tuple(NAMES)
    for part, rows in find_cifar("cifar10", tmp_path).open().items():
        theirs = source.open()[part]
        assert np.array_equal(rows.labels, theirs.labels)
        assert np.array_equal(rows.read(3, 9), theirs.read(3, 9))


def test_missing_cifar_names_place_size_and_command(tmp_path):
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar100", tmp_path / "nowhere")
    line = line_of(caught, "MissingDataError")
    assert "nowhere/cifar100" in line and "169 MB" in line and "slimnb fetch cifar100" in line and "synthetic" in line
    assert not (tmp_path / "nowhere").exists()


def test_wrong_archive_is_put_aside(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"<html>404</html>")
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path)
    line = line_of(caught, "DataError")
    assert "not 6d958be07457" in line and archive.name in line
    assert not archive.exists() and (tmp_path / f"{archive.name}.bad").read_bytes() == b"<html>404</html>"


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(*args, **kwargs):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution> " * 9)

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path, download=True)
    assert "Temporary failure" in line_of(caught, "MissingDataError")


def test_torchvision_files_that_fail_its_check_are_refused(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "test").write_bytes(b"not what it was")
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar100", tmp_path)
    assert "cifar-100-python" in line_of(caught, "DataError")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"",
                                    lambda data: b"<html>"])
def test_corrupt_parquet_is_named(tmp_path, damage):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar10" / "train-00001-of-00002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path).open()
    assert path.name in line_of(caught, "DataError")


def test_parquet_without_images_is_named(tmp_path):
    write_cifar10(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "cifar10" / "test-00000-of-00001.parquet")
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path).open()
    line_of(caught, "DataError")


def test_one_undecodable_image_is_named_by_file_and_row(tmp_path):
    write_cifar10(tmp_path)
    encoded = [encode(image) for image in pictures(64)]
    encoded[41] = encoded[41][:50]
    path = tmp_path / "cifar10" / "train-00001-of-00002.parquet"
    write_parquet(path, encoded, np.arange(64) % 10)
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path).open()
    line = line_of(caught, "DataError")
    assert "row 41 of" in line and path.name in line


@pytest.mark.parametrize("bad", [10, -1, -100])
def test_labels_outside_the_classes_are_counted(tmp_path, bad):
    write_cifar10(tmp_path)
    labels = np.arange(64) % 10
    labels[[7, 9]] = bad
    write_parquet(tmp_path / "cifar10" / "train-00000-of-00002.parquet", map(encode, pictures(64)), labels)
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path).open()
    line = line_of(caught, "DataError")
    assert "2 of 64 labels, first at row 7" in line and str(bad) in line


def test_an_image_of_another_size_is_named(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write_parquet(path, [encode(pictures(1)[0]), encode(pictures(1, size=31)[0])], [0, 1])
    with pytest.raises(SlimnbError) as caught:
        find_cifar("cifar10", tmp_path).open()
    assert "row 1 of" in line_of(caught, "DataError") and "31 x 31" in str(caught.value)


def test_folder_is_resized_by_its_short_side_and_cut_in_the_middle(tmp_path):
    source = find_folder(write_folder(tmp_path / "pets"), 10)
    assert (source.name, source.class_names) == ("pets", ("cat", "dog"))
    rows = source.open()["train"]
    images = rows.read(0, 8)
    assert images.shape == (8, 3, 10, 10) and sorted(rows.labels) == [0] * 4 + [1] * 4
    with Image.open(tmp_path / "pets" / "train" / "dog" / "2.png") as image:  # 28 wide, 22 high
        expected = np.asarray(image.resize((13, 10), Image.Resampling.BILINEAR).crop((1, 0, 11, 10)))
    assert any(np.array_equal(image.transpose(1, 2, 0), expected) for image in images)
    assert sum(bool((image == image[:1]).all()) for image in images) == 1  # the grey one


@pytest.mark.parametrize("parts", [(), ("train",), ("val",)])
def test_a_folder_without_its_parts_is_refused(tmp_path, parts):
    root = write_folder(tmp_path / "pets", parts)
    with pytest.raises(SlimnbError) as caught:
        find_folder(root, 10)
    assert "val/" in line_of(caught, "MissingDataError")


def test_a_class_that_train_lacks_is_named(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(SlimnbError) as caught:
        find_folder(root, 10).open()
    assert "'wolf'" in line_of(caught, "DataError")


def test_an_undecodable_file_is_named(tmp_path):
    root = write_folder(tmp_path / "pets", each=32)
    bad = root / "train" / "cat" / "17.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    with pytest.raises(SlimnbError) as caught:
        find_folder(root, 10).open()["train"].read(0, 64)
    assert "cat/17.png" in line_of(caught, "DataError")
