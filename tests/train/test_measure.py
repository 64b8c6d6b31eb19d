"""Candidates: all validated, the best of every prefix tested, and any top k chosen without a look at the test."""

import numpy as np
import pytest

from slimnb.cost.macs import count_macs, count_params
from slimnb.data.datasets import load_data
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.rng import rng_at
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.measure import choose, chosen, plain_batches

IMAGES = 64


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", train=300, test=200)


@pytest.fixture(scope="module")
def net(data):
    return MobileNetV1(data.num_classes, 32, layout=((32, 2), (32, 2), (64, 1)))


@pytest.fixture(scope="module")
def candidates(net):
    space, rng = net.space((0.25, 0.5, 1.0), (16, 32)), rng_at(0, "candidates", 0)
    drawn = {name: [space.sample(rng) for _ in range(6)] for name in ("thin", "wide")}
    return drawn | {"max": [net.largest, drawn["thin"][0]]}


@pytest.fixture(scope="module")
def rows(net, data, candidates):
    opened = data.test_opened
    found = choose(net, data, candidates, images=IMAGES)
    assert data.test_opened == opened + 1
    return found


def test_every_candidate_has_its_row_in_order_of_promise(net, candidates, rows):
    listed = [(name, rank, subnet) for name, each in candidates.items() for rank, subnet in enumerate(each)]
    assert [(row["name"], row["rank"], Subnet.from_json(row["subnet"])) for row in rows] == listed
    assert [row["macs"] for row in rows] == [count_macs(net, subnet) for *_, subnet in listed]


def test_accuracies_are_those_of_calibrated_subnets(net, data, candidates, rows):
    calibrate_bn(net, candidates["wide"], plain_batches(data, data.train, 32, "cpu").images(IMAGES))
    on = [evaluate(net, candidates["wide"], list(plain_batches(data, split, 32, "cpu")))
          for split in (data.val, data.test)]
    mine = [row for row in rows if row["name"] == "wide"]
    for row, validated, tested in zip(mine, *on, strict=True):
        assert row["top1_val"] == validated.top1
        if "top1" in row:
            assert (row["top1"], row["ce"], row["n"]) == (tested.top1, pytest.approx(tested.ce), 200)
            assert row["params"] == count_params(net, [tested.subnet])


@pytest.mark.parametrize("top_k", [1, 2, 3, 6, 99])
def test_the_best_of_the_first_k_is_chosen_and_tested(candidates, rows, top_k):
    picked = {row["name"]: row for row in chosen(rows, top_k)}
    assert picked.keys() == candidates.keys()
    for name, row in picked.items():
        validated = [other["top1_val"] for other in rows if other["name"] == name][:top_k]
        assert row["rank"] == int(np.argmax(validated)) and "top1" in row


def test_what_no_prefix_prefers_is_not_tested(candidates, rows):
    subnets = [Subnet.from_json(row["subnet"]) for row in rows]
    best = set()
    for name in candidates:
        mine = [(row["top1_val"], subnet) for row, subnet in zip(rows, subnets, strict=True) if row["name"] == name]
        best |= {subnet for i, (top1, subnet) in enumerate(mine) if all(top1 > other for other, _ in mine[:i])}
    assert {subnet for row, subnet in zip(rows, subnets, strict=True) if "top1" in row} == best
    assert best < set(subnets)
