"""The detector: slice = mask, its loss = torchvision's, precision by hand, and runs that go on in the same bits."""

from dataclasses import replace

import pytest
import torch
from refusals import refused
from small_nets import POLICIES
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nn.gate import Gated
from slimnb.papers.ds_net.detection import recipes
from slimnb.papers.ds_net.detection.batches import SceneBatches, Targets
from slimnb.papers.ds_net.detection.detector import DetectionLoss, Detector, detector_macs, match
from slimnb.papers.ds_net.detection.precision import average_precision, evaluate_detector
from slimnb.papers.ds_net.detection.scenes import SceneSplit, generated
from slimnb.papers.ds_net.nets import DSMobileNet
from slimnb.papers.slimmable.method import Switches
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet
from slimnb.train import experiment
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.experiment import run
from slimnb.train.protocols import Pass
from slimnb.train.state import load_net, net_state

LAYOUT = ((8, 2), (16, 2), (24, 2), (32, 1))
SETTINGS = {"taps": (1, 2, 3), "channels": 16, "pyramid": (24, 16), "scales": (0.25, 0.45, 0.6), "ratios": ((2,), (2,))}


@pytest.fixture(scope="module")
def data():
    return generated(16, 8, seed=1)


def detector(bn: str = "calibrated", side: int = 64, backbone=None) -> Detector:
    backbone = backbone or MobileNetV1(10, 32, layout=LAYOUT, bn=bn)
    net = Detector(backbone, 10, side, **SETTINGS).double()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():  # far from where training begins
            p.add_(0.2 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return net


def gated() -> DSMobileNet:
    return DSMobileNet(10, 32, strides=(2, 2, 2, 1), fixed=(8, 16), grid=((8, 8, 1), (16, 8, 1)), num_choices=3)


def noise(n: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WIDTHS = ((8, 16, 16, 16), (8, 8, 24, 24), (8, 16, 24, 32))


# -- the net ---------------------------------------------------------------------------------------------


def test_images_and_maps_of_other_shapes():
    net = detector().eval()
    for x in (noise(2)[:, :2], noise(2).long()):
        refused("DataError", net, x, net.largest, statistics="batch", words=r"\(B, 3, H, W\)")
    assert detector_macs(net, Subnet(WIDTHS[0], resolution=8)) > 0  # one pixel at the last taps


@pytest.mark.parametrize("bn", POLICIES)
def test_a_mask_gives_what_a_slice_gives(bn):
    net, subnets = detector(bn), [Subnet(widths) for widths in WIDTHS]
    net.reserve(subnets)
    if bn != "group":
        calibrate_bn(net, subnets, [noise(8, seed=5)])
    net.eval()
    x = noise(3)
    masked = net(x, net.masks(torch.tensor(WIDTHS), subnets))
    for row, subnet in enumerate(subnets):
        sliced = net(x[row : row + 1], subnet)
        assert torch.allclose(masked[row], sliced[0].float(), atol=1e-6), bn
        assert torch.equal(net.bind(subnet)(x[row : row + 1]), sliced)
    assert not torch.allclose(masked[0], masked[1])


def test_a_gated_backbone_routes_its_detector():
    net = detector(backbone=gated())
    backbone = gated()
    calibrate_bn(net, backbone.paths, [noise(8, seed=5)])
    net.eval()
    x = noise(4)
    routed, (decision,) = net(x, Gated())
    for row, k in enumerate(decision.weights.argmax(1).tolist()):
        assert torch.allclose(routed[row], net(x[row : row + 1], backbone.path(k))[0], atol=1e-5)


@pytest.mark.parametrize("side", [64, 75])
def test_there_is_a_default_box_for_every_output(side):
    net = detector("group", side)
    x = noise(2, side)
    out, anchors = net(x, Subnet(WIDTHS[0])), net.anchors(x)
    assert out.shape == (2, len(anchors), 4 + 11) and out.dtype == torch.float32
    assert [tuple(m.shape[-2:]) for m in net.maps(x, net.select(net.largest))] == net.grids(side, side)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert (centres > 0).all() and (centres < side).all() and (anchors[:, :2] < anchors[:, 2:]).all()


def test_the_blocks_keep_the_weights_of_their_net():
    backbone = MobileNetV1(7, 32, layout=LAYOUT, seed=4)
    net = Detector(backbone, 10, 64, **SETTINGS)
    other = Detector(MobileNetV1(7, 32, layout=LAYOUT), 10, 64, **SETTINGS)
    other.load_backbone_(backbone.state_dict())
    x = noise(4).float()
    assert torch.equal(net(x), other(x)) and torch.equal(net(x), Detector(backbone, 10, 64, **SETTINGS)(x))
    assert not torch.equal(net(x), Detector(backbone, 10, 64, **SETTINGS, seed=1)(x))
    with torch.no_grad():
        net.features[0].conv.weight.zero_()
    assert backbone.features[0].conv.weight.any()  # its own are left alone
    wide = MobileNetV1(7, 32, largest=2.0, layout=LAYOUT).state_dict()
    other.load_backbone_(wide)
    assert torch.equal(other.features[0].conv.weight, wide["features.0.conv.weight"][:8])
    refused("StoreError", net.load_backbone_, MobileNetV1(7, 32, largest=0.5, layout=LAYOUT).state_dict())


@pytest.mark.parametrize("bn", ["private", "shared_affine"])
def test_a_saved_detector_is_the_same_detector(bn):
    subnets = [Subnet(widths) for widths in WIDTHS]
    net, other = detector(bn), detector(bn)
    net.reserve(subnets)
    calibrate_bn(net, subnets, [noise(8)])
    tensors, rest = net_state(net)
    load_net(other, {name.removeprefix("net/"): value for name, value in tensors.items()}, rest)
    assert torch.equal(net.eval()(noise(2), subnets[0]), other.eval()(noise(2), subnets[0]))


def test_statistics_of_other_weights_are_refused(data):
    net = detector()
    refused("NumericsError", evaluate_detector, net, [net.largest], data)
    calibrate_bn(net, [net.largest], [noise(4)])
    with torch.no_grad():
        net.projections[0].weight.add_(1)
    refused("NumericsError", evaluate_detector, net, [net.largest], data)


def test_the_papers_detectors_cost_what_it_says():
    dynamic = DSMobileNet(1000)
    net = Detector(dynamic, 20)
    found = [detector_macs(net, dynamic.path(k)) / 1e9 for k in (1, 7, 13)]
    assert [round(macs, 1) for macs in found] == [2.3, 2.7, 3.2]  # Table 4
    plain = MobileNetV1(1000)
    assert round(detector_macs(Detector(plain, 20), plain.largest) / 1e9, 1) == 3.2  # printed: 4.3
    assert net.anchors(torch.empty(1, 3, 300, 300)).shape == (11632, 4)
    assert net.grids(300, 300) == [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (2, 2)]


def test_bad_detectors_are_refused_in_one_line():
    net = MobileNetV1(10, 32, layout=LAYOUT)
    for code, change in (("ParameterError", {"taps": (1, 4)}), ("ParameterError", {"taps": ()}), ("ParameterError",
                                                                                                  {"taps": (2, 1)}),
                         ("ParameterError", {"channels": 12}), ("ParameterError", {"pyramid": ()}), ("ParameterError",
                                                                                                     {"pyramid": (24,
                                                                                                                  4)}),
                         ("ParameterError", {"scales": (0.2, 0.3)}), ("ParameterError", {"ratios": ((2,),)})):
        refused(code, Detector, net, 10, 64, **(SETTINGS | change))
    made = detector()
    refused("ParameterError", made.uniform, 0.5)
    refused("ParameterError", made.extract, made.largest)
    refused("ParameterError", made, noise(1), Subnet((8, 16, 24, 64)))


# -- the loss --------------------------------------------------------------------------------------------


def targets(n: int, most: int, side: int, seed: int = 0) -> Targets:
    """Random boxes, some scenes without any."""
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(n, most, 2, generator=rng) * side * 0.6
    boxes = torch.cat((low, low + side * (0.1 + 0.3 * torch.rand(n, most, 2, generator=rng))), dim=2)
    labels = torch.randint(0, 10, (n, most), generator=rng)
    labels[torch.arange(most) >= torch.arange(n)[:, None] % (most + 1)] = -1
    return Targets(boxes, labels)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_torchvisions(seed):
    net = detector("group").float()
    x, y = noise(7).float(), targets(7, 4, 64, seed)
    y.boxes[3, 1] = y.boxes[3, 0]  # two objects that ask for the same default box
    objective, made = DetectionLoss(), Pass(net.largest)
    objective.begin(net, x, [made])
    out = net(x, net.largest)
    loss, ce = objective(made, out, y)
    anchors = net.anchors(x)
    own = [{"boxes": box[label >= 0], "labels": label[label >= 0] + 1}
           for box, label in zip(y.boxes, y.labels, strict=True)]
    matched = [SSDMatcher(0.5)(box_iou(t["boxes"], anchors)) if len(t["boxes"])
               else torch.full((len(anchors),), -1) for t in own]
    head = {"bbox_regression": out[..., :4], "cls_logits": out[..., 4:]}
    theirs = net.ssd.compute_loss(own, head, [anchors] * 7, matched)
    assert torch.allclose(loss.mean(), theirs["bbox_regression"] + theirs["classification"], rtol=1e-5)
    assert torch.allclose(ce.mean(), theirs["classification"], rtol=1e-5) and loss.shape == ce.shape == (7,)
    assert not loss[0] and not ce.requires_grad  # a scene without objects
    gradients = [torch.autograd.grad(value, out, retain_graph=True)[0]
                 for value in (loss.mean(), sum(theirs.values()))]
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_batch_without_objects_has_no_loss():
    net = detector("group").float()
    x, y = noise(2).float(), targets(2, 3, 64)
    objective = DetectionLoss()
    objective.begin(net, x, [])
    loss, _ = objective(Pass(net.largest), net(x), Targets(y.boxes, torch.full_like(y.labels, -1)))
    assert not loss.any()


def test_matched_offsets_lead_back_to_the_objects():
    net, y = detector("group").float(), targets(6, 3, 64)
    anchors = net.anchors(noise(1).float())
    labels, offsets = match(anchors, y, net.ssd.box_coder)
    for row in range(6):
        found = labels[row] > 0
        back = net.ssd.box_coder.decode_single(offsets[row, found], anchors[found])
        pairs = {(int(label), *box) for label, box in zip(labels[row, found] - 1, back.round(decimals=2).tolist(),
                                                         strict=True)}
        there = y.labels[row] >= 0
        assert pairs == {(int(label), *box) for label, box in
                         zip(y.labels[row, there], y.boxes[row, there].round(decimals=2).tolist(), strict=True)}
        assert not offsets[row, ~found].any()


# -- precision -------------------------------------------------------------------------------------------


def split(boxes, labels, difficult=None) -> SceneSplit:
    labels = torch.tensor(labels)
    hard = torch.zeros_like(labels, dtype=torch.bool) if difficult is None else torch.tensor(difficult)
    return SceneSplit(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(boxes).float(), labels, hard)


def found(boxes, scores, labels) -> dict:
    return {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "scores": torch.tensor(scores),
            "labels": torch.tensor(labels).long()}


A, B = [0, 0, 10, 10], [20, 20, 30, 30]


def test_precision_by_hand():
    scenes = split([[A, B]], [[0, 1]])
    right = average_precision([found([A, B], [0.9, 0.8], [0, 1])], scenes, 3)
    assert right == {"map": 100, "map_50": 100, "map_voc": 100, "ap_50": [100, 100, None]}
    swapped = average_precision([found([A, B], [0.9, 0.8], [1, 0])], scenes, 3)
    assert swapped["map"] == swapped["map_50"] == 0
    half = average_precision([found([A], [0.9], [0])], scenes, 2)
    assert half["ap_50"] == [100, 0] and half["map_50"] == 50
    # A wrong box before the right one: precision 1/2 at every recall.
    late = average_precision([found([B, A], [0.9, 0.8], [0, 0])], split([[A]], [[0]]), 1)
    assert late["map_50"] == pytest.approx(50) and late["map_voc"] == pytest.approx(50)
    # An overlap of .8 counts for .5 to .75 and .8: six or seven of ten.
    near = average_precision([found([[0, 0, 10, 8]], [0.9], [0])], split([[A]], [[0]]), 1)
    assert near["map_50"] == 100 and near["map"] == pytest.approx(70)
    # One of two found: precision 1 up to recall .5, that is at 51 of 101 and at 6 of 11 points.
    one = average_precision([found([A], [0.9], [0])], split([[A, B]], [[0, 0]]), 1)
    assert one["map_50"] == pytest.approx(100 * 51 / 101) and one["map_voc"] == pytest.approx(100 * 6 / 11)


def test_difficult_objects_count_neither_way():
    scenes = split([[A, B]], [[0, 0]], [[False, True]])
    for boxes, scores in (([A], [0.5]), ([B, A], [0.9, 0.5])):
        assert average_precision([found(boxes, scores, [0] * len(boxes))], scenes, 1)["map_50"] == 100
    apart = average_precision([found([[50, 50, 60, 60], A], [0.9, 0.5], [0, 0])], scenes, 1)
    inside = average_precision([found([[22, 22, 25, 25], A], [0.9, 0.5], [0, 0])], scenes, 1)
    assert apart["map_50"] == inside["map_50"] == pytest.approx(50)  # a crowd would forgive the second


def test_precision_needs_objects_and_all_scenes(capsys):
    scenes = split([[A], [A]], [[0], [-1]])
    nothing = found([], [], [])
    assert average_precision([nothing, nothing], scenes, 1)["map"] == 0
    refused("ParameterError", average_precision, [nothing], scenes, 1)
    refused("DataError", average_precision, [nothing, nothing], split([[A], [A]], [[-1], [-1]]), 1)
    assert capsys.readouterr().out == ""


# -- runs ------------------------------------------------------------------------------------------------


def tiny() -> recipes.DetectionRecipe:
    return replace(recipes.recipes("smoke")[1], epochs=2, batch_size=8, warmup_epochs=0)


def test_an_interrupted_run_ends_in_the_same_bits(data, tmp_path, monkeypatch):
    straight, broken = (RunStore(tmp_path / name, tmp_path / "none") for name in "ab")
    recipe = tiny()
    whole = run(recipe, data, straight, quiet=True)
    assert [row["name"] for row in whole.rows] == ["S", "L"] and whole.rows[0]["macs"] < whole.rows[1]["macs"]
    assert all(0 <= row["map"] <= row["map_50"] <= 100 and row["n"] == 8 for row in whole.rows)

    plain, made = SceneBatches.batch, []

    def interrupted(self, step):
        made.append(step)
        if len(made) == 3:
            raise KeyboardInterrupt
        return plain(self, step)

    monkeypatch.setattr(SceneBatches, "batch", interrupted)
    trained = experiment.train
    monkeypatch.setattr(experiment, "train", lambda *given, **named: trained(*given, **named, save_seconds=0))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, data, broken, quiet=True)
    again = run(recipe, data, broken, quiet=True)
    assert made == [0, 1, 2, 2, 3] and again.rows == whole.rows and again.history == whole.history
    for stored in (straight, broken):
        (record,) = stored.records()
        assert record["run_id"] == whole.run_id
    ours, theirs = ({p.name: p.read_bytes() for p in (store.root / whole.run_id).glob("weights.*")}
                    for store in (straight, broken))
    assert ours == theirs and ours
    monkeypatch.setattr(SceneBatches, "batch", None)  # a finished run is not trained
    assert run(recipe, data, broken, quiet=True).rows == whole.rows


def test_runs_that_cannot_be_are_refused_in_one_line(data, tmp_path, monkeypatch):
    store = RunStore(tmp_path, tmp_path)
    refused("ParameterError", run, replace(tiny(), side=96), data, store)
    refused("StoreError", run, replace(tiny(), start="nobody"), data, store, quiet=True)
    monkeypatch.setenv("SLIMNB_NO_TRAINING", "1")
    refused("StoreError", run, tiny(), data, store)
    refused("ParameterError", recipes.recipes, "huge")


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_the_recipes_can_be_built(scale):
    for recipe in recipes.recipes(scale, seed=2):
        net = recipe.build(20)
        named = recipe.named(net)
        assert net.input_size == recipe.side and recipe.seed == 2
        macs = [detector_macs(net, subnet) for subnet in named.values()]
        assert macs == sorted(macs) and Switches(named).subnets()[-1] in named.values()
        if scale == "full":
            assert (recipe.batch_size, recipe.epochs, recipe.lr, recipe.milestones) == (128, 300, 0.004, (200, 250))


