"""torchvision's state dicts give torchvision's outputs; whatever does not fit is refused in one line."""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
import torchvision
from refusals import fails
from small_nets import images
from torch.testing import assert_close

from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.pretrained import load_imagenet_, load_torchvision_
from slimnb.nets.resnet import ResNet50

MODELS = {ResNet50: torchvision.models.resnet50, MobileNetV2: torchvision.models.mobilenet_v2}
every_model = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)


def random_model(kind, classes: int = 10) -> torch.nn.Module:
    """torchvision's model with random weights and random batch-norm statistics, outputs of about 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind](num_classes=classes).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                torch.nn.init.normal_(module.bias, std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("bn", ("calibrated", "private", "shared_affine"))
@every_model
@torch.no_grad()
def test_outputs_are_torchvisions_at_full_width(kind, bn):
    model = random_model(kind)
    net = kind(10, 224, bn=bn).eval()
    half = net.uniform(0.5)
    net.reserve([half])  # the largest need not own the first slot
    load_torchvision_(net, dict(sorted(model.state_dict().items())))  # alphabetical: order must not matter
    x = images(2, 64, dtype=torch.float32)
    expected = model(x)
    assert expected.std() > 0.1
    scale = expected.abs().max().item()
    assert_close(net(x, net.largest) / scale, expected / scale, rtol=0, atol=1e-5)
    with fails("NumericsError"):  # only the largest subnet has statistics of its own
        net(x, half)
    if bn == "private":
        norm = net.norms()[0]
        assert torch.equal(norm.weight[net.slots[half]], norm.weight[net.slots[net.largest]])


@every_model
@torch.no_grad()
def test_another_number_of_classes_keeps_its_own_head(kind):
    state = random_model(kind).state_dict()
    net = kind(7, 224).eval()
    before = net.classifier.weight.clone()
    with fails("StoreError"):
        load_torchvision_(net, state)
    load_torchvision_(net, state, head=False)
    assert torch.equal(net.classifier.weight, before)
    assert torch.equal(net.features[0].conv.weight, next(iter(state.values())))


@every_model
def test_what_does_not_fit_is_refused_and_nothing_is_written(kind):
    state = random_model(kind).state_dict()
    name = list(state)[-8]
    missing = {key: value for key, value in state.items() if key != name}
    poisoned = {**state, name: torch.full_like(state[name], float("nan"))}
    net = kind(10, 224)
    before = {key: value.clone() for key, value in net.state_dict().items() if key != "_extra_state"}
    for bad, code in ((missing, "StoreError"), ({}, "StoreError"), ({**state, name: torch.zeros(3)}, "StoreError"),
                      ({**state, name: None}, "ParameterError"), (poisoned, "StoreError")):
        with fails(code):
            load_torchvision_(net, bad)
    assert net.slots == {}
    for key, value in before.items():
        assert torch.equal(net.state_dict()[key], value)
    with fails("StoreError"):
        load_torchvision_(kind(10, 224, 0.5), state)


def test_nets_without_weights():
    for net in (MobileNetV1(10, 224), ResNet50(10, 32), MobileNetV2(10, 32), ResNet50(10, 224, bn="group")):
        with fails("ParameterError"):
            load_torchvision_(net, {})
        with fails("ParameterError"):
            load_imagenet_(net)


@every_model
def test_torchvisions_enum_is_asked_for_the_file(kind, monkeypatch):
    state = random_model(kind, 1000).state_dict()
    asked = []

    def get_state_dict(self, **kwargs):
        asked.append((self.name, kwargs))
        return state

    for enum in (torchvision.models.ResNet50_Weights, torchvision.models.MobileNet_V2_Weights):
        monkeypatch.setattr(enum, "get_state_dict", get_state_dict)
    net = kind(1000, 224)
    load_imagenet_(net, "IMAGENET1K_V1")
    assert asked == [("IMAGENET1K_V1", {"progress": True, "check_hash": True, "weights_only": True})]
    assert torch.equal(net.features[0].conv.weight, next(iter(state.values())))
    with fails("ParameterError"):
        load_imagenet_(net, "IMAGENET21K")


def test_without_a_network(monkeypatch):
    def get_state_dict(self, **kwargs):
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", get_state_dict)
    with fails("DataError"):
        load_imagenet_(ResNet50(1000, 224))
