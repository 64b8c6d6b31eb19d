"""Tables of what pruning left: thresholds, masks and joins that are those of the pruned net."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small_nets import TINY, images
from torch.testing import assert_close

from slimnb.cost.macs import count_macs
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nn.zero_padding import leader, streams
from slimnb.papers.sp_net.figures import errors, gamma_histogram, padding, survivors, widths_by_layer
from slimnb.papers.sp_net.gathered import random_gammas_
from slimnb.papers.sp_net.pruning import gammas, prune
from slimnb.papers.sp_net.recipes import families
from slimnb.papers.sp_net.tables import (
    counts_table,
    crossings,
    errors_of,
    gamma_table,
    join_paths,
    kept,
    macs_by_rule,
    masks_of,
    not_nested,
    order_of,
    paper_errors,
    width_name,
)
from slimnb.subnet import Subnet

LITERATURE = Path(__file__).parents[2] / "data/literature/sp_net.csv"


def pruned(kind, share=0.5):
    """(net of random gammas, its gammas as they are stored, what pruning leaves)."""
    net = kind(10, 32, bn="shared_affine", **TINY[kind])
    random_gammas_(net)
    stored = [[[float(f"{v:.6g}") for v in layer] for layer in unit] for unit in gammas(net)]
    return net, stored, prune(net, share * count_macs(net, net.largest))


@pytest.mark.parametrize("kind", [MobileNetV1, ResNet50], ids=lambda kind: kind.__name__)
def test_the_threshold_keeps_what_pruning_kept(kind):
    _, stored, found = pruned(kind)
    frame, threshold = gamma_table(stored, found.counts, found.keep)
    assert (frame["gamma"] > threshold).mean() == pytest.approx(found.keep)
    deciding = frame[frame["decides"]]
    assert deciding.groupby("unit")["kept"].sum().tolist() == list(found.counts)
    above = (deciding["gamma"] > threshold).groupby(deciding["unit"]).sum()
    counts = np.array(found.counts)
    assert (above <= counts).all() and (above == counts).mean() > 0.5, "floors apart, the same"
    assert len(frame) == sum(np.size(unit) for unit in stored)
    gamma_histogram(frame, "Title", threshold)


def test_everything_kept_has_threshold_zero():
    frame, threshold = gamma_table([[[0.2, 0.1]], [[0.5]]], (2, 1), 1.0)
    assert threshold == 0 and frame["kept"].all()


@pytest.mark.parametrize("kind", [MobileNetV1, MobileNetV2, ResNet50], ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_masks_of_an_unsorted_net_are_the_embedded_subnet(kind):
    net, stored, found = pruned(kind)
    order, x = order_of(stored), images(3, 16).float()
    dense = net(x, masks_of(order, found.counts), statistics="batch")
    subnet = embed_(net, order, {"thin": found.counts})["thin"]
    assert_close(net(x, subnet, statistics="batch"), dense, rtol=1e-4, atol=1e-5)


def test_kept_is_the_first_of_the_order():
    assert kept(np.array([2, 0, 1]), 2).tolist() == [True, False, True]
    survivors({"thin": kept(np.array([2, 0, 1]), 1)}, [2, 0, 1], "Title")


@pytest.mark.parametrize("kind", [MobileNetV2, ResNet50], ids=lambda kind: kind.__name__)
def test_paths_of_a_join_end_where_the_net_reaches(kind):
    net, stored, found = pruned(kind)
    order, counts = order_of(stored), {"thin": found.counts}
    paths, sequence = join_paths(net, order, counts, "thin")
    assert sorted(sequence) == list(range(len(sequence))) and set(paths) == {"Body", "Shortcut"}
    padding(paths, sequence, "Title")
    union = paths["Body"] | paths["Shortcut"]
    subnet = embed_(net, order, counts)["thin"]
    stream = next(units for units in streams(net) if len(units) > 1)
    first = leader(net, stream)
    body = next(unit for unit in stream if unit != first)
    reached = max(net.reach(subnet)[unit] for unit in (first, body))
    assert union.sum() == reached, "of one subnet, a stream is the union of its paths"
    assert union[sequence[: union.sum()]].all()


def test_units_that_are_not_nested_count_from_one():
    assert not_nested((3, 9, 4), Subnet((5, 7, 4))) == [2]
    assert not_nested((1, 1), (1, 1)) == []
    assert crossings({1.0: (5, 7), 0.5: (3, 9), 0.25: (4, 1)}) == {(0.25, 0.5): [1], (0.5, 1.0): [2]}


def test_counts_and_errors_make_their_figures():
    table = counts_table({"Uniform": {"0.5×": (4, 8)}, "SP-Net": {"0.5×": (2, 10)}}, (8, 16))
    assert table.to_numpy().tolist() == [["Uniform", "0.5×", 1, 4, 8], ["Uniform", "0.5×", 2, 8, 16],
                                     ["SP-Net", "0.5×", 1, 2, 8], ["SP-Net", "0.5×", 2, 10, 16]]
    widths_by_layer(table, "Title")
    frame = pd.DataFrame({"arm": ["SP-Net"] * 2, "seed": [0, 0], "mult": [0.5, 1.0], "top1": [60.0, 70.0]})
    found = errors_of(frame)
    assert found["name"].tolist() == ["1×", "0.5×"] and found["error"].tolist() == [30, 40]
    errors(found, "Title", paper_errors(LITERATURE, [3], "MobileNetV1", [0.5, 1.0]))


def test_the_papers_rows_are_found_by_our_names():
    rows = paper_errors(LITERATURE, [6, 3, 8], "ResNet-50", [0.5, 0.75, 1.0]).set_index(["arm", "name"])["error"]
    assert rows["SP-Net", "0.5×"] == 26.7, "Table 6 before Table 3"
    assert rows["One-shot", "0.5×"] == 27.4 and rows["Shortcut first", "0.5×"] == 29.8
    assert rows["Individual", "0.5×"] == 27.8 and len(rows) == 6 * 3
    cifar = paper_errors(LITERATURE, [2], "ResNet-50", [0.5], "CIFAR-100").set_index("arm")["error"]
    assert (cifar["SP-Net"], cifar["S-Net"], cifar["Individual"]) == (22.3, 25.6, 25.3)
    assert paper_errors(LITERATURE, [2], "ResNet-50", [0.5]).empty, "Table 2 is of CIFAR-100"


def test_macs_by_rule_tells_what_zeros_add():
    plain_recipe = families("smoke", None)[1].plain
    result = SimpleNamespace(recipe=replace(plain_recipe, arm="SP-Net", seed=3, supernet=(1,)),
                             rows=[{"mult": 0.5, "macs": 110}], findings={"printed_macs": [100]})
    plain = SimpleNamespace(recipe=SimpleNamespace(supernet=None), rows=[], findings={})
    (row,) = macs_by_rule([plain, result], 10).itertuples(index=False)
    net = ResNet50(10, 32, 0.5, stem=8, layout=((2, 1), (4, 1), (8, 2)))
    assert row[:7] == ("resnet", "SP-Net", 3, 0.5, count_macs(net, net.largest), 100, 110)
    assert row.more == pytest.approx(10)


@pytest.mark.parametrize(("size", "dataset", "tables"), [(32, "CIFAR-100", [2]), (224, "ImageNet", [6, 3, 8])])
def test_every_net_of_full_has_the_papers_errors_and_pairs_of_counts(size, dataset, tables):
    for family in families("full", SimpleNamespace(size=size)):
        rows = paper_errors(LITERATURE, tables, family.name, family.widths, dataset).set_index(["arm", "name"])
        for arm, mult in itertools.product(("SP-Net", "S-Net", "Individual"), family.widths):
            assert rows["error"][arm, width_name(mult)] > 20
        assert len(list(itertools.pairwise(sorted(family.bases)))) == len(family.bases) - 1 > 0


def test_widths_have_names():
    assert [width_name(mult) for mult in (0.5, 1.0, 0.75)] == ["0.5×", "1×", "0.75×"]
