"""Detection sets: the generated scenes and their boxes, batches of them, and the reader of VOC."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from slimnb.data import synthetic
from slimnb.papers.ds_net.detection import scenes, voc
from slimnb.papers.ds_net.detection.batches import SceneBatches, draw_windows, mirrored, random_crops
from slimnb.papers.ds_net.detection.scenes import SceneSplit, boxes_of, generated, render

SCENES = "7ddc8f72d04671b4145578d118d8e3c1c84f065d03b1c3291240d65011753f96"


@pytest.fixture(scope="module")
def data():
    return generated(60, 20, seed=3)


# -- generated scenes ------------------------------------------------------------------------------------


def test_scenes_have_one_to_three_objects_of_every_class(data):
    labels = generated(300, 1).train.labels
    assert data.train.images.shape == (60, 3, 64, 64) and data.train.images.dtype == torch.uint8
    assert set((labels >= 0).sum(1).tolist()) == {1, 2, 3} and (labels[:, 0] >= 0).all()
    assert set(labels[labels >= 0].tolist()) == set(range(data.num_classes)) and not data.train.difficult.any()


@pytest.mark.parametrize("side", [32, 64, 96])
def test_boxes_are_inside_vary_and_do_not_overlap_much(side):
    split = generated(200, 1, side=side).train
    boxes = split.boxes[split.labels >= 0]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= side).all() and (boxes == boxes.round()).all()
    size = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert size.min() >= 2 * 0.1 * side - 2 and size.max() <= 2 * 0.3 * side and size.std() > 0.05 * side
    for box, label in zip(split.boxes, split.labels, strict=True):
        own = box[label >= 0]
        low, high = torch.maximum(own[:, None, :2], own[None, :, :2]), torch.minimum(own[:, None, 2:], own[None, :, 2:])
        area = (own[:, 2:] - own[:, :2]).prod(1)
        shared = (high - low).clamp(min=0).prod(2) / torch.minimum(area[:, None], area)
        assert (shared.fill_diagonal_(0) < 0.35).all()


def test_a_box_is_tight_around_the_pixels_its_object_painted(monkeypatch):
    seen = []

    def recorded(images, coverage, colour):
        seen.append(coverage)
        images += coverage[:, None] * (colour - images)

    monkeypatch.setattr(synthetic, "_paint", recorded)
    _, boxes, labels = render(torch.arange(1), seed=1)
    assert len(seen) >= int((labels >= 0).sum())
    for coverage, box in zip([c for c in seen if len(c)], boxes[labels >= 0], strict=True):
        rows, columns = np.nonzero(coverage[0] >= 0.5)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_of_masks_by_hand():
    mask = np.zeros((2, 5, 7), dtype=bool)
    mask[0, 1:3, 2:6] = True
    mask[1, 4, 0] = mask[1, 0, 6] = True
    assert boxes_of(mask).tolist() == [[2, 1, 6, 3], [0, 0, 7, 5]]


def test_scenes_are_the_same_on_every_machine():
    content = hashlib.sha256()
    for values in render(torch.arange(20)):
        content.update(values.numpy())
    assert content.hexdigest() == SCENES


def test_a_scene_depends_on_its_own_number_only(data):
    some = torch.tensor([59, 0, 17])
    for whole, picked in zip((data.train.images, data.train.boxes, data.train.labels),
                             render(some, seed=3), strict=True):
        assert torch.equal(whole[some], picked)
    assert data.fingerprint == generated(60, 20, seed=3).fingerprint != generated(60, 20, seed=4).fingerprint


def test_bad_sets_are_refused_in_one_line(data):
    for given in ({"train": 0}, {"side": 33}, {"side": 16}, {"hardest": 2}):
        refused("ParameterError", generated, **given)
    images, boxes, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 4), torch.zeros(2, 1).long()
    boxes[..., 2:] = 8
    none = torch.zeros(2, 1, dtype=torch.bool)
    scenes.check(SceneSplit(images, boxes, labels, none), 1, "x")
    refused("DataError", scenes.check, SceneSplit(images, boxes, labels + 1, none), 1, "x")
    for bad in (boxes + 1, boxes * 0, boxes.flip(2), boxes * torch.nan):
        refused("DataError", scenes.check, SceneSplit(images, bad, labels, none), 1, "x")
        scenes.check(SceneSplit(images, bad, labels - 1, none), 1, "x")  # nothing is there
    refused("DataError", scenes.check, SceneSplit(images, boxes, labels, none).map(lambda t: t[:0]), 1, "x")


# -- batches ---------------------------------------------------------------------------------------------


def batches(data, **settings) -> SceneBatches:
    return SceneBatches(data.train, 8, mean=data.mean, std=data.std, **settings)


@pytest.mark.parametrize("crop", [False, True])
def test_a_batch_is_a_function_of_seed_and_step(data, crop):
    state = torch.get_rng_state()
    ours, theirs = batches(data, crop=crop), batches(data, crop=crop)
    first = [ours.batch(step) for step in (0, 9, 3)]
    again = [theirs.batch(step) for step in (3, 9, 0)][::-1]
    for (x, y), (other, targets) in zip(first, again, strict=True):
        assert torch.equal(x, other) and torch.equal(y.boxes, targets.boxes) and torch.equal(y.labels, targets.labels)
    assert not torch.equal(first[0][0], batches(data, seed=1, crop=crop).batch(0)[0])
    assert torch.equal(state, torch.get_rng_state())
    assert len(set(torch.cat([ours.rows(step) for step in range(7)]).tolist())) == 7 * 8  # an epoch repeats nothing


def test_mirroring_moves_boxes_with_the_pixels():
    image = torch.zeros(2, 1, 6, 6)
    image[:, :, 1:3, 0:4] = 1
    boxes = torch.tensor([[[0.0, 1, 4, 3]]]).repeat(2, 1, 1)
    images, turned = mirrored(image, boxes, torch.tensor([True, False]))
    assert torch.equal(torch.from_numpy(boxes_of(images[:, 0].bool().numpy())), turned[:, 0])
    assert turned[0, 0].tolist() == [2, 1, 6, 3] and torch.equal(images[1], image[1])
    twice = mirrored(images, turned, torch.tensor([True, False]))
    assert torch.equal(twice[0], image) and torch.equal(twice[1], boxes)


def test_targets_are_ragged_and_leave_difficult_objects_out(data):
    hard = data.train.labels == data.train.labels[0, 0]
    split = SceneSplit(data.train.images, data.train.boxes, data.train.labels, hard)
    feed = SceneBatches(split, 60, mean=data.mean, std=data.std)
    _, y = feed.batch(0)
    rows = feed.rows(0)
    assert torch.equal(y.labels, split.labels[rows].masked_fill(hard[rows], -1))
    assert len(set((y.labels >= 0).sum(1).tolist())) > 2  # some scenes have none left
    refused("DataError", SceneBatches, split, 61, mean=data.mean, std=data.std)


def test_random_crops_keep_boxes_on_their_objects():
    side, n = 40, 30
    images = torch.zeros(n, 3, side, side, dtype=torch.uint8)
    images[:, :, 10:30, 5:20] = 255
    boxes = torch.tensor([[5.0, 10, 20, 30], [0, 0, 0, 0]]).repeat(n, 1, 1)
    labels = torch.tensor([4, -1]).repeat(n, 1)
    out, moved, kept = random_crops(images, boxes, labels, 0, 0, torch.arange(n))
    assert (kept[:, 0] == 4).all() and (kept[:, 1] == -1).all()  # a crop holds the centre of some object
    tight = torch.from_numpy(boxes_of((out[:, 0] > 127).numpy()))
    assert (tight - moved[:, 0]).abs().max() <= 1.5 and not torch.equal(moved[:, 0], boxes[:, 0])
    empty = random_crops(images, boxes, torch.full_like(labels, -1), 0, 0, torch.arange(n))
    for window in draw_windows(boxes, labels >= 0, side, 0, 0, torch.arange(n)):
        top, left, height, width = window.tolist()
        assert 0 <= top <= side - height and 0 <= left <= side - width and 0.5 <= height / width <= 2
    assert torch.allclose(empty[0], images.float(), atol=1e-3) and (empty[2] == -1).all()


# -- VOC -------------------------------------------------------------------------------------------------

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>
<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""
PARTS = {("2007", "trainval"): ("000001", "000002"), ("2012", "trainval"): ("2008_000001",),
         ("2007", "test"): ("000003",)}


def write_voc(root, box=(11, 21, 30, 40), name="dog") -> None:
    """Three lists of images of 60 x 80 pixels, white where the one object is; of the first there is another, hard."""
    for (year, part), names in PARTS.items():
        base = root / "VOCdevkit" / f"VOC{year}"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for each in names:
            pixels = np.zeros((80, 60, 3), dtype=np.uint8)
            pixels[20:40, 10:30] = 255
            Image.fromarray(pixels).save(base / "JPEGImages" / f"{each}.jpg", quality=95)
            found = OBJECT.format(name=name, difficult=0, box=box)
            found += OBJECT.format(name="cat", difficult=1, box=(1, 1, 60, 80)) if each == "000001" else ""
            (base / "Annotations" / f"{each}.xml").write_text(f"<annotation>{found}</annotation>")


def test_voc_is_read_squeezed_and_padded(tmp_path):
    write_voc(tmp_path)
    found = voc.load_voc(tmp_path, side=40)
    assert (len(found.train), len(found.test), found.num_classes) == (3, 1, 20)
    assert found.train.labels.tolist() == [[11, 7], [11, -1], [11, -1]]
    assert found.train.difficult.tolist() == [[False, True], [False, False], [False, False]]
    assert torch.allclose(found.train.boxes[0, 0], torch.tensor([10 / 60, 20 / 80, 30 / 60, 40 / 80]) * 40)
    assert found.train.boxes[0, 1].tolist() == [0, 0, 40, 40]
    tight = torch.from_numpy(boxes_of((found.train.images[:, 0] > 127).numpy()))
    assert (tight - found.train.boxes[:, 0]).abs().max() <= 1
    assert found.fingerprint == voc.load_voc(tmp_path, side=40).fingerprint != voc.load_voc(tmp_path, 32).fingerprint
    x, y = SceneBatches(found.train, 3, mean=found.mean, std=found.std).batch(0)
    assert x.shape == (3, 3, 40, 40) and (y.labels >= 0).sum() == 3


def test_a_voc_that_is_not_there_or_damaged_is_refused_in_one_line(tmp_path):
    refused("DataError", voc.load_voc, tmp_path / "nowhere")
    refused("ParameterError", voc.load_voc, tmp_path, side=8)
    for box in ((0, 0, 61, 10), (20, 5, 10, 10), (-1, 1, 5, 5)):
        write_voc(tmp_path, box)
        refused("DataError", voc.load_voc, tmp_path, 40)
    write_voc(tmp_path, name="unicorn")
    refused("DataError", voc.load_voc, tmp_path, 40)
    write_voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/Annotations/000002.xml").write_text("<annotation><object>")
    refused("DataError", voc.load_voc, tmp_path, 40)
    write_voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages/000003.jpg").write_bytes(b"\xff\xd8 no")
    refused("DataError", voc.load_voc, tmp_path, 40)
    Image.new("RGB", (64, 64)).save(tmp_path / "VOCdevkit/VOC2007/JPEGImages/000003.jpg", format="ICO")
    refused("DataError", voc.load_voc, tmp_path, 40, words="000003.jpg")  # no reader but those of photographs is tried
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    refused("DataError", voc.load_voc, tmp_path, 40)
