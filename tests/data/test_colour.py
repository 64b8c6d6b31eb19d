"""Colour jitter, lighting and erasing against torchvision, one image at a time."""

import numpy as np
import pytest
import torch
from scipy import stats
from small_images import noise
from torchvision.transforms.v2 import functional as vision

from slimnb.data.augment import draw_boxes
from slimnb.data.colour import draw_jitter, draw_lighting, erase_, jitter, lighting, turn_hue

ROWS = torch.arange(40)


def test_jitter_equals_torchvision_one_image_at_a_time():
    images = noise(40, 3, 9, 9)
    images[0], images[1] = 0, images[1, :1]  # black, and grey: no hue
    factors = draw_jitter(3, 1, ROWS, (0.4, 0.4, 0.4, 0.1))
    for image, four, made in zip(images, factors.tolist(), jitter(images, factors), strict=True):
        one = vision.adjust_brightness(image.float() / 255, four[0])
        one = vision.adjust_saturation(vision.adjust_contrast(one, four[1]), four[2])
        torch.testing.assert_close(made / 255, vision.adjust_hue(one, four[3]), atol=2e-5, rtol=0)


def test_jitter_of_strength_zero_changes_nothing():
    images = noise(40, 3, 8, 8)
    assert torch.equal(jitter(images, draw_jitter(0, 0, ROWS, (0, 0, 0))), images.float())
    turned = jitter(images, draw_jitter(0, 0, ROWS, (0, 0, 0, 0)))
    torch.testing.assert_close(turned, images.float(), atol=1e-3, rtol=0)


def test_turning_by_thirds_permutes_the_channels():
    images = noise(3, 3, 8, 8).float()
    turned = turn_hue(images, torch.tensor([1 / 3, 2 / 3, 1.0]))
    for k in range(3):
        torch.testing.assert_close(turned[k], images[k].roll(k + 1, 0), atol=1e-3, rtol=0)


def test_factors_are_uniform_independent_and_never_negative():
    factors = draw_jitter(0, 0, torch.arange(20_000), (0.4, 1.5, 0.2, 0.1)).double().numpy()
    for values, (low, high) in zip(factors.T, ((0.6, 1.4), (0, 2.5), (0.8, 1.2), (-0.1, 0.1)), strict=True):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 5 / 20_000**0.5


def test_lighting_is_alexnets():
    """Covariance of what is added: P diag(strength x eigenvalue)^2 P^T, in pixels of 0..1."""
    grey = torch.full((20_000, 3, 1, 1), 128, dtype=torch.uint8)
    weights = draw_lighting(0, 0, torch.arange(20_000), 0.1)
    assert stats.kstest(weights.double().numpy().ravel(), stats.norm(0, 0.1).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(weights.double().numpy().T) - np.eye(3)).max() < 5 / 20_000**0.5
    added = (lighting(grey, weights)[:, :, 0, 0].double().numpy() - 128) / 255
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(added.T), expected, atol=0.05 * expected.max())
    np.testing.assert_allclose(added, weights.numpy() * [0.2175, 0.0188, 0.0045] @ vectors.T, atol=1e-6)


def test_lighting_keeps_pixels_in_range_and_of_strength_zero_changes_nothing():
    images = noise(40, 3, 8, 8)
    assert torch.equal(lighting(images, draw_lighting(0, 0, ROWS, 0.0)), images.float())
    strong = lighting(images, draw_lighting(0, 0, ROWS, 5.0))
    assert strong.min() == 0 and strong.max() == 255


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_erasing_zeroes_the_box_of_the_chosen_and_nothing_else(layout):
    side = 20
    boxes = draw_boxes(2, 0, ROWS, (0.02, 0.33), (0.3, 1 / 0.3), stream="erase ")
    chosen = ROWS % 3 == 0
    x = torch.ones(40, 3, side, side).contiguous(memory_format=layout)
    assert erase_(x, boxes, chosen) is x
    for image, (top, left, height, width), erased in zip(x, boxes.tolist(), chosen.tolist(), strict=True):
        expected = np.ones((side, side))
        if erased:
            up, down = (int(np.ceil(edge * side - 0.5)) for edge in (top, top + height))
            from_, to = (int(np.ceil(edge * side - 0.5)) for edge in (left, left + width))
            expected[up:down, from_:to] = 0
            assert abs((down - up) - height * side) <= 1 and abs((to - from_) - width * side) <= 1
        assert np.array_equal(image.numpy(), np.broadcast_to(expected, (3, side, side)))


def test_erased_boxes_are_not_the_crops():
    index = torch.arange(5000)
    crops, erased = draw_boxes(0, 0, index), draw_boxes(0, 0, index, (0.02, 0.33), (0.3, 1 / 0.3), stream="erase ")
    area = erased[:, 2] * erased[:, 3]
    assert area.min() >= 0.02 - 1e-6 and area.max() <= 0.33 + 1e-6
    both = torch.corrcoef(torch.cat((crops, erased), 1).T)[:4, 4:]
    assert both.abs().max() < 5 / 5000**0.5
