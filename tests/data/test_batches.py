"""Batches: a pure function of (seed, step), the same for any grouping, rank or process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_images import one_crop

from slimnb.data import colour
from slimnb.data.augment import Normalise, draw_boxes, draw_crops, draw_flips
from slimnb.data.auto_augment import auto_augment, draw_operations
from slimnb.data.batches import Augmentation, Batches, Split
from slimnb.data.synthetic import generate
from slimnb.errors import SlimnbError
from slimnb.rng import keyed_uniform

ALL = Augmentation("crop_flip", reflect=True, auto_augment=True, jitter=(0.4, 0.4, 0.4, 0.1), lighting=0.1, erasing=0.5)
GREY = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


@pytest.fixture(scope="module")
def split():
    return Split(*generate(100, seed=1))


def numbered(count):
    """A split whose pixels and labels say which row they are."""
    rows = torch.arange(count)
    return Split(rows.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 8, 8).contiguous(), rows)


def probe():
    """SHA-256 of generated images and of two batches of them, out of order."""
    feed = Batches(Split(*generate(60)), 16, seed=5, **GREY)
    content = hashlib.sha256(feed.split.images.numpy())
    for step in (7, 0):
        for values in feed.batch(step):
            content.update(values.contiguous().numpy())
    return content.hexdigest()


def test_a_batch_is_a_pure_function_of_seed_and_step(split):
    first, second = (Batches(split, 16, seed=3, **GREY) for _ in range(2))
    late = [second.batch(step) for step in (13, 0, 5)]
    for step, (x, y) in zip((13, 0, 5), late, strict=True):
        again_x, again_y = first.batch(step)
        assert torch.equal(x, again_x) and torch.equal(y, again_y)
    assert not torch.equal(first.batch(0)[0], Batches(split, 16, seed=4, **GREY).batch(0)[0])


def test_another_process_gives_the_same_bits():
    """Whatever PYTHONHASHSEED, the number of threads and torch's own generator are."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "2",
                   "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[1])))}
    code = "import torch; torch.manual_seed(9); import test_batches; print(test_batches.probe())"
    theirs = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE)
    torch.rand(3)
    assert theirs.stdout.decode().strip() == probe()


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order():
    feed = Batches(numbered(64), 16, **GREY)
    epochs = [torch.cat([feed.batch(step)[1] for step in range(4 * e, 4 * e + 4)]) for e in range(2)]
    assert all(torch.equal(labels.sort().values, torch.arange(64)) for labels in epochs)
    assert not torch.equal(*epochs)


def test_a_batch_equals_one_image_at_a_time(split):
    feed = Batches(split, 16, seed=2, **GREY)
    step = 9  # epoch 1
    x, y = feed.batch(step)
    normalise = Normalise(*GREY.values(), torch.float32, "cpu")
    for i, row in enumerate(feed.rows(step).tolist()):
        alone = torch.tensor([row])
        (down, across), flip = draw_crops(2, 1, alone, 8), draw_flips(2, 1, alone)
        crop = one_crop(split.images[row].numpy(), int(down) - 4, int(across) - 4, bool(flip), 32)
        assert torch.equal(x[i], normalise(torch.from_numpy(crop.copy())[None])[0])
        assert y[i] == split.labels[row]


def test_everything_at_once_equals_one_image_at_a_time(split):
    feed = Batches(split, 16, seed=2, augment=ALL, **GREY)
    x, _ = feed.batch(9)  # epoch 1
    normalise = Normalise(*GREY.values(), torch.float32, "cpu")
    for i, row in enumerate(feed.rows(9).tolist()):
        draw = 2, 1, torch.tensor([row])
        (down, across), flip = draw_crops(*draw, 8), draw_flips(*draw)
        crop = one_crop(split.images[row].numpy(), int(down) - 4, int(across) - 4, bool(flip), 32, "reflect")
        alone = auto_augment(torch.from_numpy(crop.copy())[None], draw_operations(*draw))
        alone = colour.jitter(alone, colour.draw_jitter(*draw, ALL.jitter))
        alone = normalise(colour.lighting(alone, colour.draw_lighting(*draw, 0.1)))
        boxes = draw_boxes(*draw, (0.02, 0.33), (0.3, 1 / 0.3), stream="erase ")
        alone = colour.erase_(alone, boxes, keyed_uniform(2, "erase", 1, draw[2]) < 0.5)
        torch.testing.assert_close(x[i], alone[0], atol=1e-5, rtol=0)


def test_strength_zero_is_no_augmentation(split):
    feeds = [Batches(split, 16, augment=augment, **GREY)
             for augment in ("crop_flip", Augmentation(jitter=(0.0, 0.0, 0.0, 0.0), lighting=0.0, erasing=0.0))]
    assert torch.equal(*(feed.batch(3)[0] for feed in feeds))


@pytest.mark.parametrize("change", [{"reflect": True}, {"auto_augment": True}, {"jitter": (0.4, 0.4, 0.4)},
                                    {"lighting": 0.1}, {"erasing": 0.2}])
@pytest.mark.parametrize("crop", ["crop_flip", "resized_crop"])
def test_each_augmentation_changes_some_pixels_and_not_the_crop(split, crop, change):
    """Of "resized_crop" nothing is padded, so that `reflect` is without effect."""
    plain, changed = (Batches(split, 50, augment=augment, **GREY).batch(0)
                      for augment in (crop, Augmentation(crop, **change)))
    assert torch.equal(plain[1], changed[1])
    assert torch.equal(plain[0], changed[0]) == (change == {"reflect": True} and crop == "resized_crop")
    if crop == "crop_flip" and change.keys() & {"reflect", "erasing"}:  # most pixels are the same ones
        assert 0.5 < (plain[0] == changed[0]).float().mean() < 1


def test_a_split_off_the_device_is_sent_batch_by_batch(split):
    """Another device that keeps no values shows where batches go; what is read ahead is what is read."""
    feed = Batches(split, 20, seed=1, device="meta", **GREY)
    x, y = feed.batch(0)
    assert x.device == y.device == torch.device("meta") and x.shape == (20, 3, 32, 32)
    here = Batches(split, 20, seed=1, **GREY)
    for step in (1, 2, 9, 9, 0, 4, 5, 6):  # in order, back, and from one epoch into the next
        rows = here.rows(step)
        images, labels = feed._sent(step)
        assert torch.equal(images, split.images[rows]) and torch.equal(labels, split.labels[rows])
        assert list(feed._reading) == [step + 1], "one batch ahead, no more"
    assert split.images.device.type == "cpu"


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop"])
def test_a_sample_is_augmented_alike_in_any_batch_size(split, augment):
    options = {"seed": 1, "augment": augment, "drop_last": False, **GREY}
    small, large = (Batches(split, size, **options) for size in (7, 50))
    ours, theirs = (torch.cat([feed.batch(step)[0] for step in range(len(feed))]) for feed in (small, large))
    assert len(small) == 15 and len(large) == 2
    torch.testing.assert_close(ours, theirs, atol=0 if augment == "crop_flip" else 1e-5, rtol=0)


def test_all_augmentations_know_neither_batch_nor_rank(split):
    options = {"seed": 1, "augment": ALL, "drop_last": False, **GREY}
    ours, theirs = (torch.cat([feed.batch(step)[0] for step in range(len(feed))])
                    for feed in (Batches(split, 7, **options), Batches(split, 50, **options)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for rank in range(2):
        part, _ = Batches(split, 20, rank=rank, world=2, **options).batch(3)
        torch.testing.assert_close(part, Batches(split, 20, **options).batch(3)[0][rank::2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment", ["crop_flip", "none"])
def test_two_ranks_see_what_one_sees(split, augment):
    alone = Batches(split, 20, seed=1, augment=augment, **GREY)
    ranks = [Batches(split, 20, seed=1, augment=augment, rank=rank, world=2, **GREY) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == 5
    for step in (0, 3, 6):
        x, y = alone.batch(step)
        parts = [rank.batch(step) for rank in ranks]
        for rank, (part_x, part_y) in enumerate(parts):
            assert torch.equal(part_x, x[rank::2]) and torch.equal(part_y, y[rank::2])


def test_without_augmentation_one_pass_in_order():
    feed = Batches(numbered(50), 16, augment="none", mean=(0.0,) * 3, std=(1 / 255,) * 3)
    batches = list(feed)
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    x, y = (torch.cat(values) for values in zip(*batches, strict=True))
    assert torch.equal(y, torch.arange(50))
    torch.testing.assert_close(x[:, 1, 3, 3], torch.arange(50.0))
    assert torch.equal(feed.batch(len(feed))[1], y[:16])  # a second pass is the same pass


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 16, 40, 99])
def test_images_for_calibration_are_as_many_as_asked_for(world, count):
    options = {"augment": "none", "world": world, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    feeds = [Batches(numbered(50), 12, rank=rank, **options) for rank in range(world)]
    seen = torch.cat([x[:, 0, 0, 0] for feed in feeds for x in feed.images(count)])
    torch.testing.assert_close(seen.sort().values, torch.arange(float(min(count, 50))))


@pytest.mark.parametrize(("augment", "size"), [("crop_flip", 24), ("crop_flip", 40), ("resized_crop", 48),
                                               ("none", 20)])
def test_sizes_and_layout(split, augment, size):
    x, y = Batches(split, 8, augment=augment, size=size, dtype=torch.bfloat16, **GREY).batch(0)
    assert x.shape == (8, 3, size, size) and y.shape == (8,)
    assert x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)


def test_batches_leave_the_images_alone(split):
    before = split.images.clone()
    for augment in ("crop_flip", "resized_crop", "none", ALL):
        for x, _ in Batches(split, 25, augment=augment, **GREY):
            x.zero_()
    assert torch.equal(split.images, before)


@pytest.mark.parametrize(("options", "code"), [
    ({"batch_size": 101}, "DataError"), ({"batch_size": 0}, "ParameterError"), ({"batch_size": 9, "world": 2},
                                                                                "ParameterError"),
    ({"batch_size": 8, "rank": 2, "world": 2}, "ParameterError"), ({"batch_size": 8, "augment": "mixup"},
                                                                   "ParameterError"),
    ({"batch_size": 8, "size": 41}, "ParameterError"), ({"batch_size": 8, "size": 33, "augment": "none"},
                                                        "ParameterError"),
    ({"batch_size": 8, "augment": "resized_crop", "size": 0}, "ParameterError"),
    ({"batch_size": 8, "augment": Augmentation(pad=32, reflect=True)}, "ParameterError")])
def test_impossible_batches_are_refused_in_one_line(split, options, code):
    with pytest.raises(SlimnbError) as caught:
        Batches(split, **options, **GREY)
    assert type(caught.value).__name__ == code
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240


@pytest.mark.parametrize(("options", "code"), [
    ({"crop": "mixup"}, "ParameterError"), ({"jitter": (0.4,)}, "ParameterError"), ({"jitter": (0.4, 0.4, -0.1)},
                                                                                    "ParameterError"),
    ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "ParameterError"), ({"jitter": (0.4, 0.4, float("nan"))}, "ParameterError"),
    ({"erasing": 1.5}, "ParameterError"), ({"erasing": float("nan")}, "ParameterError"), ({"lighting": -0.1},
                                                                                          "ParameterError")])
def test_impossible_augmentations_are_refused_in_one_line(options, code):
    with pytest.raises(SlimnbError) as caught:
        Augmentation(**options)
    assert type(caught.value).__name__ == code
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240


def test_too_few_images_says_zero_batches(split):
    with pytest.raises(SlimnbError, match=r"DataError: 3 images with batch_size = 8 — gives 0 batches"):
        Batches(split.head(3), 8, **GREY)


def test_head_and_map_keep_rows_together(split):
    head = split.head(5)
    assert len(head) == 5 and torch.equal(head.difficulty, split.difficulty[:5])
    assert split.map(lambda values: values[[3]]).labels.item() == split.labels[3]
    assert Split(split.images, split.labels).head(2).difficulty is None
