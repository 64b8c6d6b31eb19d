"""Labels are (B,) whole numbers of classes, images normalised floats: all else is one line, and never a number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from small_nets import tiny

from slimnb.data.batches import Batches, Split, check_split, class_numbers
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.ds_net.detection.batches import Targets
from slimnb.papers.ds_net.detection.precision import average_precision
from slimnb.papers.ds_net.detection.scenes import SceneSplit, check, check_targets, generated
from slimnb.papers.slimmable.method import Switches
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.loop import train, train_step
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels

N = 10  # images, as many as classes: what is one-hot has the shape of logits
X = torch.randn(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N).flip(0)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MISSHAPEN = {
    "one-hot": torch.eye(N).long(), "soft": torch.eye(N), "a column": Y[:, None], "a row": Y[None], "scalar": Y[0],
    "float": Y.float(), "half": Y.half(), "bool": Y > 3, "complex": Y * 1j, "short": Y[:-1], "long": Y.repeat(2),
    "none": Y[:0], "a list": Y.tolist(), "an array": Y.numpy(), "nothing": None,
}
OUT_OF_RANGE = {"-1": -1, "ignored": -100, "one more": N, "far": 2**40}


def ready():
    net = MobileNetV1(N, 32, layout=((8, 2), (16, 2)))
    calibrate_bn(net, [net.largest], [X])
    return net.eval()


NET = ready()


def spoilt(value: int) -> torch.Tensor:
    y = Y.clone()
    y[3] = value
    return y


class Always:
    def __init__(self, y):
        self.y = y

    def batch(self, step):
        return X, self.y


def fit(y):
    net = ready().train()
    sampler = Switches({"1.0": net.largest})
    before = [p.detach().clone() for p in net.parameters()]
    try:
        return train(net, Always(y), sampler, Labels(), Schedule(0.1, 1), make_optimizer(net), quiet=True)
    except Exception:
        assert all(map(torch.equal, before, net.parameters()))
        raise


@pytest.mark.parametrize("y", MISSHAPEN.values(), ids=MISSHAPEN)
def test_labels_of_another_shape_or_type_are_one_line(y):
    refused("DataError", evaluate, NET, [NET.largest], [(X, Y), (X, y)])
    refused("DataError", class_numbers, y, N)
    if isinstance(y, torch.Tensor):
        refused("DataError", fit, y)
        refused("DataError", train_step, NET, X, y, [], Labels(), None)
        split = Split(torch.zeros(N, 3, 8, 8, dtype=torch.uint8), y)
        refused("DataError", Batches, split, 2, mean=[0] * 3, std=[1] * 3)


@pytest.mark.parametrize("value", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_labels_of_no_class_are_one_line(value):
    refused("DataError", evaluate, NET, [NET.largest] * 2, [(X, Y), (X, spoilt(value))], words="1 labels out of range")
    refused("DataError", fit, spoilt(value), words=str(value))
    split = Split(torch.zeros(N, 3, 8, 8, dtype=torch.uint8), spoilt(value))
    refused("DataError", check_split, split, N, words=str(value))


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_whole_numbers_of_any_width_are_labels(dtype):
    (expected,), (found,) = (evaluate(NET, [NET.largest], [(X, y)]) for y in (Y, Y.to(dtype)))
    assert (found.top1, found.ce, found.n) == (expected.top1, expected.ce, N)
    assert fit(Y.to(dtype)) == fit(Y)
    split = Split(torch.zeros(N, 3, 8, 8, dtype=torch.uint8), Y.to(dtype))
    assert torch.equal(Batches(split, N, augment="none", mean=[0] * 3, std=[1] * 3).batch(0)[1], Y)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from((*WHOLE, torch.float32, torch.bool)), st.lists(st.integers(0, 11), max_size=3),
       st.integers(-3, 12))
def test_what_is_not_refused_is_right(dtype, shape, value):
    y = torch.full(shape, value % 256 if dtype == torch.uint8 else value).to(dtype)
    right = dtype in WHOLE and shape == [N] and 0 <= value < N
    if right:
        (found,) = evaluate(NET, [NET.largest], [(X, y)])
        with torch.no_grad():
            assert found.top1 == 100 * (NET(X, NET.largest).argmax(1) == value).double().mean()
    else:
        refused("DataError", evaluate, NET, [NET.largest], [(X, y)])


IMAGES = {"pixels": (X.abs() * 60).clamp(max=255), "bytes": torch.zeros(N, 3, 16, 16, dtype=torch.uint8),
          "one image": X[0], "flat": X.flatten(1), "a pair": (X, Y), "an array": X.numpy()}


@pytest.mark.parametrize("x", IMAGES.values(), ids=IMAGES)
def test_images_that_are_not_normalised_floats_are_one_line(x):
    refused("DataError", evaluate, NET, [NET.largest], [(x, Y)])
    if x is not IMAGES["pixels"]:
        refused("DataError", calibrate_bn, tiny(MobileNetV1), [tiny(MobileNetV1).largest], [x])


@pytest.mark.parametrize("scale", (0.01, 1, 30))
def test_normalised_images_of_any_strength_are_evaluated(scale):
    evaluate(NET, [NET.largest], [(X * scale, Y), (X[:0], Y[:0]), (X.abs().clamp(max=1), Y), (X * 0, Y)])


@pytest.mark.parametrize("images", (torch.rand(N, 3, 8, 8), torch.rand(N, 3, 8, 8) * 255, torch.zeros(N, 3, 8, 8).int(),
                                    torch.zeros(N, 8, 8, 3).byte(), torch.zeros(N, 1, 8, 8).byte(),
                                    torch.zeros(N, 3, 8, 9).byte(), torch.zeros(N + 1, 3, 8, 8).byte()))
def test_a_split_holds_bytes(images):
    refused("DataError", Batches, Split(images, Y), 2, mean=[0] * 3, std=[1] * 3)


# -- boxes -----------------------------------------------------------------------------------------------

BOXES, CLASSES = torch.tensor([[[4.0, 4.0, 20.0, 24.0]]]).repeat(2, 1, 1), torch.tensor([[0], [1]])
TARGETS = {"one box": (BOXES[:, 0], CLASSES), "three corners": (BOXES[..., :3], CLASSES),
           "whole boxes": (BOXES.long(), CLASSES), "labels of another shape": (BOXES, CLASSES[:, 0]),
           "more labels": (BOXES, CLASSES.repeat(1, 2)), "soft labels": (BOXES, CLASSES.float()),
           "no room": (BOXES[:, :0], CLASSES[:, :0]), "fewer scenes": (BOXES[:1], CLASSES[:1]), "lists": ([], [])}


@pytest.mark.parametrize("pair", TARGETS.values(), ids=TARGETS)
def test_boxes_of_another_shape_are_one_line(pair):
    refused("DataError", check_targets, Targets(*pair), 2)
    if isinstance(pair[0], torch.Tensor):
        difficult = torch.zeros(pair[1].shape, dtype=torch.bool)
        split = SceneSplit(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), *pair, difficult)
        refused("DataError", check, split, 2, "train")


@pytest.mark.parametrize("y", (CLASSES[:, 0], None, (BOXES, CLASSES)), ids=("classes", "nothing", "a pair"))
def test_what_are_no_targets_is_one_line(y):
    refused("DataError", check_targets, y, 2)


def test_targets_that_fit_are_taken():
    check_targets(Targets(BOXES, CLASSES), 2)
    check_targets(Targets(BOXES.double(), CLASSES.int()), 2)


def test_detections_of_another_shape_or_class_are_one_line():
    split = generated(2, 2, 32).test
    good = {"boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]]), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
    average_precision([good, good], split, 10)
    for change in ({"labels": torch.tensor([10])}, {"labels": torch.tensor([-1])}, {"labels": torch.zeros(2).long()},
                   {"scores": torch.ones(1, 1)}, {"scores": torch.ones(0)}, {"boxes": torch.zeros(1, 5)},
                   {"boxes": torch.zeros(4)}):
        refused("DataError", average_precision, [good, good | change], split, 10, words="scene 1")
