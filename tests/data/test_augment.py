"""Counter-based random numbers, and augmentation against one-image-at-a-time references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_images import noise, one_crop

from slimnb import rng
from slimnb.data.augment import Normalise, centre_crop, crop_flip, draw_boxes, draw_crops, draw_flips, resized_crop
from slimnb.rng import keyed_bits, keyed_order, keyed_uniform

# ---------------------------------------------------------------------------------------- random numbers


def test_the_hash_is_splitmix64():
    """First outputs of SplitMix64 from seed 1234567, as its authors' C code prints them."""
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    state = 1234567
    for expected in published:
        state = (state + rng._STEP) % 2**64
        assert rng._mix(state) == expected


@given(st.integers(0, 2**32 - 1), st.sampled_from(["order", "flip", 3]), st.integers(0, 10**6),
       st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_tensor_bits_equal_python_integers(seed, stream, epoch, index):
    key = rng._key(seed, stream, epoch)
    expected = [rng._mix((key + i * rng._STEP) % 2**64) for i in index]
    bits = keyed_bits(seed, stream, epoch, torch.tensor(index))
    assert [word % 2**64 for word in bits.tolist()] == expected


@pytest.mark.parametrize("stream", ["order", "flip", "down"])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_uniform_is_uniform(seed, stream):
    draws = keyed_uniform(seed, stream, 4, torch.arange(50_000)).double().numpy()
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert stats.kstest(np.sort(draws[1:] - draws[:-1]), stats.triang(0.5, -1, 2).cdf).pvalue > 1e-3


def test_seeds_streams_epochs_and_neighbours_are_uncorrelated():
    index = torch.arange(20_000)
    keys = [(s, name, e) for s in (0, 1) for name in ("down", "across", "flip") for e in (0, 1)]
    draws = torch.stack([keyed_uniform(*key, index) for key in keys])
    shifted = draws[0].roll(1)
    correlation = torch.corrcoef(torch.cat((draws, shifted[None])))
    off_diagonal = correlation[~torch.eye(len(correlation), dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / 20_000**0.5


@given(st.permutations(range(30)), st.integers(1, 29))
@settings(max_examples=20, deadline=None)
def test_a_draw_does_not_know_its_batch(order, cut):
    whole = keyed_uniform(7, "flip", 2, torch.arange(30))
    order = torch.tensor(order)
    parts = torch.cat([keyed_uniform(7, "flip", 2, rows) for rows in (order[:cut], order[cut:])])
    assert torch.equal(parts, whole[order])


def test_order_is_a_permutation_and_each_epoch_has_its_own():
    orders = [keyed_order(0, "order", epoch, torch.arange(1000)) for epoch in range(3)]
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert (orders[0] == orders[1]).sum() < 10 and (orders[1] == orders[2]).sum() < 10


# ---------------------------------------------------------------------------------------- pixels


@given(st.integers(0, 2**32 - 1), st.integers(4, 16), st.integers(0, 5), st.integers(1, 16), st.booleans())
@settings(max_examples=80, deadline=None)
def test_crop_flip_equals_one_image_at_a_time(seed, side, pad, size, reflect):
    pad = min(pad, side - 1) if reflect else pad
    size = min(size, side + 2 * pad)
    rows = torch.arange(12)
    images = noise(12, 3, side, side)
    before = images.clone()
    down, across = draw_crops(seed, 1, rows, side + 2 * pad - size)
    flip = draw_flips(seed, 1, rows)
    batch = crop_flip(images, down - pad, across - pad, flip, size, reflect)
    mode = "reflect" if reflect else "constant"
    for i in rows.tolist():
        alone = one_crop(images[i].numpy(), int(down[i]) - pad, int(across[i]) - pad, bool(flip[i]), size, mode)
        assert np.array_equal(batch[i].numpy(), alone)
    assert torch.equal(images, before)


def test_every_offset_and_both_flips_are_drawn():
    down, across = draw_crops(0, 0, torch.arange(2000), 8)
    for offsets in (down, across):
        assert offsets.unique().tolist() == list(range(9))
        assert stats.chisquare(torch.bincount(offsets).numpy()).pvalue > 1e-3
    assert 900 < draw_flips(0, 0, torch.arange(2000)).sum() < 1100


def test_resized_crop_of_the_whole_and_of_a_quarter_are_the_pixels_themselves():
    images = noise(2, 3, 16, 16)
    flip = torch.tensor([False, True])
    whole = resized_crop(images, torch.tensor([[0.0, 0, 1, 1]] * 2), flip, 16)
    torch.testing.assert_close(whole[0], images[0].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole[1], images[1].flip(2).float(), atol=1e-3, rtol=0)
    quarter = resized_crop(images, torch.tensor([[0.5, 0.25, 0.5, 0.5]] * 2), flip, 8)
    cut = images[:, :, 8:16, 4:12].float()
    torch.testing.assert_close(quarter[0], cut[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(quarter[1], cut[1].flip(2), atol=1e-3, rtol=0)


def test_boxes_lie_inside_with_the_area_and_shape_asked_for():
    top, left, height, width = draw_boxes(1, 0, torch.arange(5000), scale=(0.25, 1.0)).unbind(1)
    assert min(top.min(), left.min()) >= 0 and max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, aspect = height * width, width / height
    assert area.min() >= 0.25 - 1e-5 and area.max() <= 1 + 1e-5
    assert aspect.min() >= 3 / 4 - 1e-5 and aspect.max() <= 4 / 3 + 1e-5
    assert top.std() > 0.05 and left.std() > 0.05


def test_boxes_that_never_fit_are_the_whole_image():
    boxes = draw_boxes(0, 0, torch.arange(4), scale=(1.0, 1.0), ratio=(1.2, 1.3))
    assert torch.equal(boxes, torch.tensor([[0.0, 0, 1, 1]] * 4))


def test_centre_crop():
    images = torch.arange(36).view(1, 1, 6, 6)
    assert centre_crop(images, 2).flatten().tolist() == [14, 15, 20, 21]
    assert torch.equal(centre_crop(images, 6), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given_dtype", [torch.uint8, torch.float32])
def test_normalise(dtype, given_dtype):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    images = noise(4, 3, 8, 8).to(given_dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    x = Normalise(mean, std, dtype, "cpu")(images)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.double(), expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
    assert torch.equal(images, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_bits():
    rows = torch.arange(10_000)
    assert torch.equal(keyed_bits(3, "flip", 5, rows), keyed_bits(3, "flip", 5, rows.cuda()).cpu())
    assert torch.equal(keyed_order(3, "order", 5, rows), keyed_order(3, "order", 5, rows.cuda()).cpu())
    images = noise(64, 3, 32, 32)
    crops = []
    for device in ("cpu", "cuda"):
        index = rows[:64].to(device)
        down, across = draw_crops(0, 0, index, 8)
        crops.append(crop_flip(images.to(device), down - 4, across - 4, draw_flips(0, 0, index), 32).cpu())
    assert torch.equal(*crops)
