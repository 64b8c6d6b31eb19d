"""The generated images: what they are, that they never change, and what difficulty does to them."""

import hashlib

import pytest
import torch
from refusals import refused

from slimnb.data import synthetic
from slimnb.data.synthetic import CLASS_NAMES, generate, render

PIXELS = "cb37926000eafaf3867796d48e88f4ac5a8b264a8b7436546f1fa7326ece4339"


def test_shapes_and_ranges():
    images, labels, difficulty = generate(700, seed=3)
    assert images.shape == (700, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(10))
    assert difficulty.dtype == torch.float32 and difficulty.min() >= 0 and difficulty.max() <= 1
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 10


def test_classes_and_difficulties_are_even_and_independent():
    index = torch.arange(20_000)
    draw = synthetic._Draws(0, "train", index)
    labels, difficulty = torch.from_numpy(draw.choice("class", 10)), torch.from_numpy(draw("difficulty"))
    counts = torch.bincount(labels, minlength=10)
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()
    means = torch.stack([difficulty[labels == k].mean() for k in range(10)])
    assert ((means - 0.5).abs() < 5 * (1 / 12 / 2000) ** 0.5).all()


def test_pixels_are_the_same_on_every_machine():
    content = hashlib.sha256()
    for values in generate(40, seed=0):
        content.update(values.numpy())
    assert content.hexdigest() == PIXELS


def test_an_image_depends_on_its_own_number_only():
    images, labels, difficulty = generate(1100, seed=5)
    some = torch.tensor([1099, 3, 499, 500])
    again = render(some, seed=5)
    for whole, picked in zip((images, labels, difficulty), again, strict=True):
        assert torch.equal(whole[some], picked)


@pytest.mark.parametrize("other", [{"seed": 1}, {"part": "test"}])
def test_seed_and_part_give_other_images(other):
    ours, theirs = generate(50)[0], generate(50, **other)[0]
    assert not any(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_difficulty_changes_the_scene_and_not_its_class():
    index = torch.full((5,), 7)
    images, labels, difficulty = render(index, difficulty=torch.linspace(0, 1, 5))
    assert len(set(labels.tolist())) == 1 and difficulty.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_easy_images_wear_their_class_colour_and_hard_ones_do_not():
    """The hue inside the object follows the label at difficulty 0 and is anything at difficulty 1."""
    def spread(difficulty):
        images = render(torch.arange(200), labels=4, difficulty=difficulty)[0].float()
        middle = images[:, :, 12:20, 12:20].mean((2, 3))
        return (middle - middle.mean(1, keepdim=True)).std(0).mean()

    assert spread(0.0) < 0.5 * spread(1.0)


def test_noise_grows_with_difficulty():
    def roughness(difficulty):
        images = render(torch.arange(100), difficulty=difficulty)[0].float()
        return (images[..., 1:] - images[..., :-1]).abs().median()

    assert roughness(0.0) < roughness(0.5) < roughness(1.0)


def test_given_labels_are_drawn():
    _, labels, _ = render(torch.arange(10), labels=torch.arange(10))
    assert labels.tolist() == list(range(10))


@pytest.mark.parametrize("wrong", [{"labels": 10}, {"labels": -1}, {"difficulty": 1.5},
                                   {"difficulty": float("nan")}])
def test_impossible_labels_and_difficulties_are_refused(wrong):
    refused("ParameterError", render, torch.arange(2), **wrong)
