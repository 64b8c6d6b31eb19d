"""Figures of the chapter on SP-Net, from small frames and real masks, and the checks of all figures."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from figure_checks import holds_for, refuses
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import StepPatch
from small_nets import tiny

from slimnb.book import style
from slimnb.nets.resnet import ResNet50
from slimnb.nets.sorting import embed_
from slimnb.nn.zero_padding import places_of, streams
from slimnb.papers.sp_net import figures
from slimnb.papers.sp_net.figures import KEPT, PRUNED
from slimnb.papers.sp_net.pruning import gammas, importance_order
from slimnb.papers.sp_net.recipes import ARMS

WIDTHS = ["0.25×", "0.5×", "1×"]
ORDER = [4, 1, 6, 0, 5, 2, 7, 3]
MASKS = {name: [np.argsort(ORDER)[c] < n for c in range(8)] for name, n in zip(WIDTHS, (2, 5, 8), strict=True)}
# The stream's order puts first what a thinner subnet used: here channel 7, which this one prunes.
PATHS, STREAM = {"Body": [1, 1, 0, 1, 0, 0, 0, 0], "Shortcut": [0, 1, 0, 0, 0, 1, 0, 0]}, [1, 0, 7, 3, 5, 2, 4, 6]


def _gammas(units: int = 3) -> pd.DataFrame:
    rows = [(unit, (-1) ** k * (k + 1) / 10, k >= 10 - 2 * unit, True) for unit in range(1, units + 1)
            for k in range(10)]
    depthwise = [(2, 2.0, False, False)] * 4
    return pd.DataFrame(rows + depthwise, columns=["unit", "gamma", "kept", "decides"])


def _widths(units: int = 14) -> pd.DataFrame:
    arms = {"uniform": lambda unit, share: share, "SP-Net": lambda unit, share: share * (0.6 + 0.4 * (unit % 2))}
    rows = [(arm, name, unit, round(32 * share_of(unit, share)), 32) for arm, share_of in arms.items()
            for name, share in zip(WIDTHS, (0.25, 0.5, 1), strict=True) for unit in range(1, units + 1)]
    return pd.DataFrame(rows, columns=["arm", "name", "unit", "channels", "full"])


def _bases() -> pd.DataFrame:
    macs = {"0.25×": 3e6, "0.5×": 12e6, "0.75×": 26e6, "1× base": 46e6, "0.75× base": 26e6, "0.5× base": 12e6}
    pairs = {"One-shot": ["1× base"] * 3, "Iterative": ["0.5×", "0.75×", "1× base"],
             "SP-Net": ["0.5× base", "0.75× base", "1× base"]}
    rows = [(arm, base, name, macs[base], macs[name]) for arm, bases in pairs.items()
            for base, name in zip(bases, ("0.25×", "0.5×", "0.75×"), strict=True)]
    return pd.DataFrame(rows, columns=["arm", "base", "name", "base_macs", "macs"])


def _latency(nets=("ResNet-50", "VGG", "MobileNetV1")) -> pd.DataFrame:
    grid = itertools.product(nets, (0.25, 0.5, 1.0), ("snet", "spnet_sorted", "spnet_unsorted"), (0, 1))
    frame = pd.DataFrame(grid, columns=["net", "width", "way", "repeat"])
    extra = frame["way"].map({"snet": 0, "spnet_sorted": 3, "spnet_unsorted": 20})
    return frame.assign(ms=100 * frame["width"] + extra + frame["repeat"])


PAPER = pd.DataFrame([("ResNet-50", "snet", 1.0, 53.0), ("ResNet-50", "snet", 0.75, 35.0),
                      ("ResNet-50", "snet", 0.5, 20.1), ("ResNet-50", "spnet_unsorted", 0.5, 34.3)],
                     columns=["net", "way", "width", "ms"])


def _errors(arms=("individual", "snet", "spnet"), seeds=2) -> pd.DataFrame:
    frame = pd.DataFrame(itertools.product(arms, WIDTHS, range(seeds)), columns=["arm", "name", "seed"])
    return frame.assign(error=30 - 2 * frame["name"].map(WIDTHS.index) - frame["arm"].map(arms.index) + frame["seed"])


LONG = "Where the counts come from changes which layers stay wide"  # fits the line by its letters, not its width
FAMILY = ("SP-Net", *ARMS)
MANY = ("individual", "snet", *FAMILY, "Slimming alone")
DRAW = {
    "gamma_histogram": lambda: figures.gamma_histogram(_gammas(), "One threshold for all layers", 0.65),
    "gamma_histogram of 60 units": lambda: figures.gamma_histogram(_gammas(60).drop(columns="decides"), "One", 0.65),
    "widths_by_layer": lambda: figures.widths_by_layer(_widths(), LONG),
    "widths_by_layer of 60 units": lambda: figures.widths_by_layer(_widths(60), "Shares are uneven"),
    "survivors": lambda: figures.survivors(MASKS, ORDER, "Sorted channels are prefixes"),
    "padding": lambda: figures.padding(PATHS, STREAM, "Each path keeps its own channels"),
    "multi_base": lambda: figures.multi_base(_bases(), "Each subnet has a base of its own"),
    "latency_pairs": lambda: figures.latency_pairs(_latency(), "Sorting pays", PAPER),
    "latency_pairs of one net": lambda: figures.latency_pairs(_latency(["ResNet-50"]), "Sorting pays"),
    "errors": lambda: figures.errors(_errors(), "SP-Net errs least", _errors(seeds=1)),
    "errors of a family": lambda: figures.errors(_errors(MANY), "Multi-base errs least", _errors(MANY, 1)),
}


test_every_figure_holds = holds_for(DRAW)


def _areas(ax) -> list[tuple[str, float]]:
    """Colour and width of every filled profile."""
    steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    return [(to_hex(step.get_facecolor()), np.ptp(step.get_data().edges)) for step in steps]


def test_the_green_part_of_a_unit_is_the_share_it_keeps():
    together, by_unit = figures.gamma_histogram(_gammas(), "t", 0.65)
    assert _areas(together) == [(KEPT.lower(), pytest.approx(100 * 16 / 34)),
                                (PRUNED.lower(), pytest.approx(100 * 18 / 34))]
    kept = [width / 0.92 for colour, width in _areas(by_unit) if colour == KEPT.lower()]
    assert kept == pytest.approx([0.2, 0.4, 0.6])  # four depthwise gammas of unit 2 decide nothing


def test_kept_channels_below_the_threshold_are_green():
    floor = pd.DataFrame({"unit": 1, "gamma": [0.1, 0.2, 0.3], "kept": [False, False, True]})
    together, by_unit = figures.gamma_histogram(floor, "t", 0.5)
    assert [colour for colour, _ in _areas(together)] == [PRUNED.lower()]
    assert _areas(by_unit)[0] == (KEPT.lower(), pytest.approx(0.92 / 3))


def test_shares_are_of_the_supernet_and_a_panel_is_a_subnet():
    axes = figures.widths_by_layer(_widths(), "t")
    uniform, pruned = ([step.get_data() for ax in axes for step in ax.patches][k::2] for k in (0, 1))
    assert [set(data[0]) for data in uniform] == [{25}, {50}, {100}]
    assert pruned[1][0][:2].tolist() == [50, pytest.approx(100 * 10 / 32)]


def test_every_arm_is_in_the_legend_though_the_first_panel_lacks_it():
    frame = _widths().query("name != '0.25×' or arm == 'uniform'")
    (legend,) = style.figure_of(figures.widths_by_layer(frame, "t")).legends
    assert [text.get_text() for text in legend.get_texts()] == ["Uniform widths", "SP-Net"]


def _cells(ax) -> list[np.ndarray]:
    return [mesh.get_array().reshape(mesh.get_coordinates().shape[0] - 1, -1) for mesh in ax.collections]


def test_sorted_survivors_are_prefixes():
    ax = figures.survivors(MASKS, ORDER, "t")
    trained, sorted_ = _cells(ax)
    assert trained.tolist() == [list(map(int, mask)) for mask in MASKS.values()]
    assert sorted_.tolist() == [[1] * n + [0] * (8 - n) for n in (2, 5, 8)]
    assert "0.25× keeps 2 of 8" in style.alt_text(ax)


def test_zeros_fill_what_other_paths_have_and_the_gaps_of_the_slice():
    ax = figures.padding(PATHS, STREAM, "t")
    base, stream = _cells(ax)
    assert base.tolist() == [[1, 1, 0, 1, 0, 2, 0, 0], [2, 1, 0, 2, 0, 1, 0, 0], [1, 1, 0, 1, 0, 1, 0, 0]]
    assert stream.tolist() == [[1, 1, 2, 1, 2, 0, 0, 0], [1, 2, 2, 2, 1, 0, 0, 0], [1, 1, 2, 1, 1, 0, 0, 0]]


def test_many_channels_are_not_hidden_by_the_edges_of_their_cells():
    every = np.ones(2048, dtype=bool)
    ax = figures.padding({"Body": every, "Shortcut": every}, np.arange(2048), "t")
    figure = style.figure_of(ax)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    (left, top), (right, bottom) = (ax.transData.transform(point) for point in ((0, -0.2), (2047, 0.2)))
    strip = pixels[len(pixels) - int(top):len(pixels) - int(bottom), int(left):int(right)]
    assert (np.abs(strip - 255 * np.array(to_rgb(KEPT))).max(-1) < 8).mean() > 0.5


def test_the_slice_of_a_real_join_is_the_one_the_net_computes():
    net = tiny(ResNet50, bn="shared_affine")
    order = importance_order(gammas(net))
    rng = np.random.default_rng(0)
    counts = {name: rng.integers(1, np.array(net.largest.widths) + 1).tolist() for name in ("a", "b", "c")}
    subnets, joined = embed_(net, order, counts), [stream for stream in streams(net) if len(stream) > 1]
    for stream, subnet in itertools.product(joined, subnets.values()):
        in_stream = np.empty(net.largest.widths[stream[0]], dtype=int)
        in_stream[places_of(net)[stream[0]]] = order[stream[0]]
        paths = {net.unit_names[unit]: np.isin(np.arange(len(in_stream)), order[unit][:subnet.widths[unit]])
                 for unit in stream}
        ax = figures.padding(paths, in_stream, "t")
        reach = max(net.reach(subnet)[unit] for unit in stream)
        assert f"In the stream's order: a slice of {reach}" in {text.get_text() for text in ax.texts}
        assert (_cells(ax)[1][:, :reach] > 0).all() and not _cells(ax)[1][:, reach:].any()


def test_iterative_pruning_is_a_chain():
    one_shot, iterative, multi_base = figures.multi_base(_bases(), "t")
    nodes = [[(*line.get_xdata(), *line.get_ydata()) for line in ax.lines if line.get_marker() != "s"]
             for ax in (one_shot, iterative, multi_base)]
    assert nodes == [[(1, 26), (1, 12), (1, 3)], [(1, 26), (2, 12), (3, 3)], [(1, 26), (1, 12), (1, 3)]]
    arrows = [(text.xyann, text.xy) for text in iterative.texts if text.arrow_patch]
    assert arrows == [((0, 46), (1, 26)), ((1, 26), (2, 12)), ((2, 12), (3, 3))]


def test_the_papers_latencies_are_scaled_to_our_widest_s_net_and_to_the_widths_that_were_run():
    axes = figures.latency_pairs(_latency(), "t", PAPER)
    assert len(axes) == len(style.figure_of(axes).axes) == 3
    paper = [line for ax in axes for line in ax.lines if line.get_color() == style.GREY]
    points = {(line.get_marker(), x): y for line in paper for x, y in line.get_xydata()}
    scale = 100.5 / 53  # two repeats of 100 and 101 ms
    markers = style.look("snet").marker, style.look("spnet_unsorted").marker
    assert points == {(markers[0], 1.0): pytest.approx(100.5), (markers[0], 0.5): pytest.approx(20.1 * scale),
                      (markers[1], 0.5): pytest.approx(34.3 * scale)}
    assert axes[1].lines[3].get_ydata() == pytest.approx([28.5, 53.5, 103.5])  # sorted, the mean of its repeats


def test_errors_are_means_of_seeds_and_the_description_names_the_least():
    axes = figures.errors(_errors(), "t", _errors(seeds=1))
    large = [line for line in axes[0].lines if line.get_markersize() == 6.5]
    assert [line.get_xdata().tolist() for line in large if line.get_marker() == "v"] == [[28.5, 26.5, 24.5]]
    assert "0.25×: SP-Net, 28.5 %" in style.alt_text(axes)


@pytest.mark.parametrize(("arm", "key", "label"), [
    ("One-shot", "oneshot", "One-shot"), ("one_shot", "oneshot", "One-shot"), ("L1 norms", "l1norms", "L1 norms"),
    ("Shortcut first", "shortcutfirst", "Shortcut first"), ("spnet_unsorted", "spnetunsorted", "SP-Net, unsorted"),
    ("SP-Net", "spnet", "SP-Net"), ("spnet_sorted", "spnet", "SP-Net, sorted"),
    ("SP-Net, all widths", "spnetallwidths", "SP-Net, all widths"),
    ("Uniform counts", "uniformcounts", "Uniform counts"),
])
def test_an_arm_of_sp_net_has_a_look_of_its_own(arm, key, label):
    found = style.look(arm)
    assert (found.label, found.colour, found.marker) == (label, style.METHODS[key].colour, style.METHODS[key].marker)


def test_all_arms_of_the_study_but_the_control_are_greens_and_markers_tell_them_apart():
    looks = [style.look(arm) for arm in FAMILY]
    assert all((np.argmax(to_rgb(look.colour)) == 1) == (look.label != "Uniform counts") for look in looks)
    assert len({look.marker for look in looks}) == len(FAMILY)


test_bad_input_is_one_line = refuses(
    (lambda: figures.gamma_histogram(_gammas().drop(columns="kept"), "t", 0.5), "kept"),
    (lambda: figures.widths_by_layer(_widths().drop(columns="full"), "t"), "full"),
    (lambda: figures.multi_base(_bases().drop(columns="base_macs"), "t"), "base_macs"),
    (lambda: figures.latency_pairs(_latency().drop(columns="way"), "t"), "way"),
    (lambda: figures.errors(_errors().iloc[:0], "t"), "0 rows"),
    (lambda: figures.survivors({}, [], "t"), "0 rows"),
)
