"""The tables of chapter 00: the papers' figures digit for digit, MACs by layer, colour alone."""

from __future__ import annotations

import pytest
import torch

from slimnb.cost.macs import count_macs
from slimnb.data.datasets import Split
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.slimmable import tables

SMALL = ((8, 2), (16, 1), (24, 2))


@pytest.fixture(scope="module")
def printed():
    return tables.printed_macs()


def test_every_printed_figure_comes_out_digit_for_digit_but_the_one_that_cannot(printed):
    wrong = printed[printed["ours"] != printed["printed"]]
    assert list(zip(wrong["source"], wrong["printed"], wrong["ours"], strict=True)) == [
        ("DS-Net, Table 2, MobileNetV1", "317M", "325M")]
    assert wrong["fits"].tolist() == ["none"]


def test_the_figures_as_numbers_are_in_millions(printed):
    row = printed[(printed["net"] == "ResNet-50") & (printed["mult"] == 1.0)].iloc[0]
    assert (row["printed"], row["printed_m"], row["ours_m"]) == ("4.1G", 4100, 4100)
    assert row["macs"] == pytest.approx(4.122e9, rel=1e-4)


def test_digits_decide_between_conventions(printed):
    fits = printed.set_index(["source", "mult"])["fits"]
    assert fits["SP-Net, Table 3, S-MobileNetV1", 1.0] == "C"
    assert fits["SP-Net, Table 3, MobileNetV1", 0.5] == "A"
    assert fits["PSS-Net, Figure 3 (data), largest MobileNetV1", 1.0] == "BD"


@pytest.mark.parametrize(("macs", "like", "cut", "shown"), [
    (568_740_352, "1M", False, "569M"), (568_740_352, "1M", True, "568M"), (149_500_000, "1M", False, "150M"),
    (3_354_112, "1.00M", False, "3.35M"), (36_200_704, "1.00M", False, "36.20M"),
    (4_121_925_096, "1.0G", False, "4.1G"),
])
def test_a_count_is_shown_like_the_figure_it_is_compared_with(macs, like, cut, shown):
    assert tables.as_printed(macs, like, cut) == shown


@pytest.mark.parametrize("mult", [0.5, 1.0])
def test_layers_add_up_to_the_count(mult):
    net = MobileNetV1(10, 32, layout=SMALL)
    frame = tables.layer_macs(net, net.uniform(mult))
    assert frame["macs"].sum() == count_macs(net, net.uniform(mult))
    assert frame["layer"].unique().tolist() == ["stem", "block1", "block2", "FC"]
    block = ["depthwise convolution", "1×1 convolution"]
    assert frame["part"].tolist() == ["3×3 convolution", *block, *block, "linear"]


def test_conventions_are_counted_from_one_trace():
    net = MobileNetV1(10, 32, layout=SMALL)
    subnet = net.uniform(0.5)
    assert tables.counts(net, subnet) == {c: count_macs(net, subnet, c) for c in "ABCD"}


def test_colour_alone_knows_what_colour_tells_and_no_more():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[0, 0, 2:6, 2:6] = images[2, 0, 2:6, 2:6] = images[3, 0, 2:6, 2:6] = 200  # red in the middle
    images[:, 2, :2] = 255  # blue at the rim is not looked at
    train = Split(images[:2], torch.tensor([0, 1]), torch.tensor([0.0, 0.0]))
    other = Split(images[1:], torch.tensor([1, 0, 1]), torch.tensor([0.1, 0.2, 0.9]))
    frame = tables.colour_alone(train, other)
    assert frame["correct"].tolist() == [True, True, False]
    assert frame["difficulty"].tolist() == pytest.approx([0.1, 0.2, 0.9])
