"""AutoAugment's ImageNet policy against torchvision's, one image at a time."""

from collections import Counter

import pytest
import torch
from scipy import stats
from small_images import noise
from torchvision.transforms import v2

from slimnb.data.auto_augment import POLICY, SIGNED, apply, auto_augment, draw_operations

THEIRS = v2.AutoAugment()
NAMES = {name.lower(): name for name in THEIRS._AUGMENTATION_SPACE}
OPERATIONS = sorted({(name, magnitude, sign) for pair in POLICY for name, _, magnitude in pair
                     for sign in ((1, -1) if name in SIGNED else (1,))})


def alone(image, operation):
    """Reference: torchvision's own way from (name, magnitude, sign) to a changed image (3, S, S)."""
    name, magnitude, sign = operation
    ranges, signed = THEIRS._AUGMENTATION_SPACE[NAMES[name]]
    values = ranges(10, *image.shape[1:])
    strength = 0.0 if values is None else float(values[magnitude])
    assert signed == (name in SIGNED)
    if signed:
        strength = sign * round(strength, 6)  # float32 there, whose last bit moves pixels on the edge of two levels
    return THEIRS._apply_image_or_video_transform(image, NAMES[name], strength, THEIRS.interpolation, THEIRS._fill)


def test_the_policy_is_the_published_one():
    theirs = [tuple((name.lower(), probability, magnitude or 0) for name, probability, magnitude in pair)
              for pair in THEIRS._policies]
    assert list(POLICY) == theirs


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_operation_equals_torchvision_one_image_at_a_time(operation):
    images = torch.cat((noise(3, 3, 15, 15), noise(1, 3, 15, 15) // 4 + 90))  # the last of little contrast
    for image, made in zip(images, apply(images, operation), strict=True):
        assert made.dtype == torch.uint8
        assert torch.equal(made, alone(image, operation))


def test_a_batch_is_its_images_one_at_a_time():
    images, rows = noise(60, 3, 12, 12), torch.arange(100, 160)
    before, drawn = images.clone(), draw_operations(1, 2, rows)
    made = auto_augment(images, drawn)
    for k, pair in enumerate(drawn):
        image = before[k]
        for operation in filter(None, pair):
            image = alone(image, operation)
        assert torch.equal(made[k], image)
    assert torch.equal(images, before) and not torch.equal(made, before)


def test_draws_follow_the_policy():
    """Pairs, probabilities and signs: chi-squared against the table, 20,000 draws."""
    drawn = draw_operations(0, 0, torch.arange(20_000))
    for position in range(2):
        expected = Counter()
        for pair in POLICY:
            name, probability, magnitude = pair[position]
            signs = (1, -1) if name in SIGNED else (1,)
            for sign in signs:
                expected[name, magnitude, sign] += probability * len(drawn) / len(POLICY) / len(signs)
            expected[None] += (1 - probability) * len(drawn) / len(POLICY)
        expected = {operation: count for operation, count in expected.items() if count > 1e-6}
        found = Counter(pair[position] for pair in drawn)
        assert found.keys() == expected.keys()
        assert stats.chisquare([found[key] for key in expected], list(expected.values())).pvalue > 1e-3


def test_draws_do_not_know_their_batch():
    rows = torch.tensor([5, 3, 900, 41])
    assert draw_operations(7, 1, rows) == [draw_operations(7, 1, row[None])[0] for row in rows]
    assert draw_operations(7, 1, torch.arange(50)) != draw_operations(7, 2, torch.arange(50))
