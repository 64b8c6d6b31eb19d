"""Calibration against a brute-force mean of batch statistics; evaluation against counting by hand."""

from __future__ import annotations

import pytest
import torch
from refusals import refused
from small_nets import NETS, fill_statistics, images, random_subnets, tiny
from small_training import METHODS, MULTS, Noise, everything, fit, same_bits, small, us_net
from torch.testing import assert_close

from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.train.calibrate import calibrate_bn, evaluate

SIZES = (6, 6, 3)
"""Images per calibration batch: the last one is short."""


def batches(seed: int = 0, dtype=torch.float64, sizes=SIZES) -> list[torch.Tensor]:
    return [images(n, 16, seed=seed + i, dtype=dtype) * (i + 1) + i for i, n in enumerate(sizes)]


def brute_force(net, subnet, data) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean over batches, by their images, of what each batch-norm layer sees: mean and unbiased variance."""
    sums: dict = {}

    def see(name):
        def hook(module, args):
            x = args[0].double()
            n, c = len(x), x.shape[1]
            values = x.transpose(0, 1).reshape(c, -1)
            centre = values.mean(1, keepdim=True)
            var = (values - centre).square().sum(1) / (values.shape[1] - 1)
            before = sums.get(name, (0, 0))
            sums[name] = before[0] + n * centre[:, 0], before[1] + n * var

        return hook

    hooks = [m.register_forward_pre_hook(see(name)) for name, m in net.named_modules() if m in net.norms()]
    with torch.no_grad():
        for x in data:
            net(x, subnet, statistics="batch")
    for hook in hooks:
        hook.remove()
    total = sum(len(x) for x in data)
    return {name: (mean / total, var / total) for name, (mean, var) in sums.items()}


def rows(net, subnet) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    slot = net.slots[subnet]
    return {
        name: (m.running_mean[slot], m.running_var[slot])
        for name, m in net.named_modules()
        if m in net.norms()
    }


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_statistics_are_the_mean_over_batches(kind):
    net = tiny(kind)
    subnets = [net.largest, *random_subnets(net, 2)]
    assert calibrate_bn(net, subnets, batches()) == sum(SIZES)
    for subnet in subnets:
        expected = brute_force(net, subnet, batches())
        assert len(expected) == len(net.norms())
        for name, (mean, var) in rows(net, subnet).items():
            c = len(expected[name][0])
            assert_close(mean[:c], expected[name][0], rtol=1e-10, atol=1e-10)
            assert_close(var[:c], expected[name][1], rtol=1e-10, atol=1e-10)
            assert (mean[c:] == 0).all() and (var[c:] == 1).all()  # channels the subnet does not have


@pytest.mark.parametrize("bn", ["calibrated", "shared_affine", "private"])
def test_many_subnets_together_are_each_one_alone(bn):
    together, alone = small(bn), small(bn)
    data = batches(dtype=torch.float32)
    subnets = [together.uniform(mult) for mult in MULTS]
    calibrate_bn(together, subnets, iter(data))
    for subnet in reversed(subnets):
        calibrate_bn(alone, [subnet], data)
    for subnet in subnets:
        one, other = rows(together, subnet), rows(alone, subnet)
        for name in one:
            assert torch.equal(one[name][0], other[name][0]) and torch.equal(one[name][1], other[name][1])


def test_a_subnet_named_twice_counts_once():
    net, other = small(), small()
    data = batches(dtype=torch.float32)
    twice = net.uniform(0.5), net.largest, net.uniform(0.51)
    assert twice[0] == twice[2]
    calibrate_bn(net, twice, data)
    calibrate_bn(other, twice[:2], data)
    for subnet in twice[:2]:
        assert all(
            torch.equal(a, b)
            for one, two in zip(rows(net, subnet).values(), rows(other, subnet).values(), strict=True)
            for a, b in zip(one, two, strict=True)
        )


def test_calibrating_again_forgets_what_was_there():
    net, fresh = small(), small()
    data = batches(dtype=torch.float32)
    calibrate_bn(net, [net.largest], batches(seed=50, dtype=torch.float32))
    for norm in net.norms():
        norm.running_mean.fill_(float("nan"))
        norm.running_var.fill_(float("inf"))
    calibrate_bn(net, [net.largest], data)
    calibrate_bn(fresh, [net.largest], data)
    assert str(rows(net, net.largest)) == str(rows(fresh, net.largest))


def test_empty_batches_are_passed_over():
    net, other = small(), small()
    data = batches(dtype=torch.float32)
    calibrate_bn(net, [net.largest], [data[0], data[1][:0], *data[1:]])
    calibrate_bn(other, [net.largest], data)
    assert str(rows(net, net.largest)) == str(rows(other, net.largest))


def test_calibration_refuses_what_it_cannot_do():
    net = small()
    with pytest.raises(SlimnbError, match="DataError: 0 calibration images"):
        calibrate_bn(net, [net.largest], [])
    with pytest.raises(SlimnbError, match="NumericsError"):
        evaluate(net, [net.largest], [Noise().batch(0)])  # none were taken
    poisoned = batches(dtype=torch.float32)
    poisoned[1][2, 1, 3, 3] = float("nan")
    with pytest.raises(SlimnbError, match=r"NumericsError: .* of features\.0\.norm, subnet \d+-") as caught:
        calibrate_bn(net, [net.uniform(0.5), net.largest], poisoned)
    assert caught.value.exit_status == 5 and len(str(caught.value)) <= 240
    refused("NumericsError", evaluate, net, [net.largest], [Noise().batch(0)])
    shared = small("shared_affine")
    shared.reserve([shared.largest, shared.uniform(0.5)], shared=True)
    refused("NumericsError", calibrate_bn, shared, [shared.largest, shared.uniform(0.5)], poisoned)


# -- evaluation ------------------------------------------------------------------------------------------


def test_evaluation_counts_what_an_extracted_net_gets_right():
    net = tiny(MobileNetV1)
    subnets = [net.largest, *random_subnets(net, 2)]
    fill_statistics(net, subnets)
    data = [(x, torch.arange(len(x)) * 3 % 10) for x in batches(seed=3)]
    for subnet, found in zip(subnets, evaluate(net, subnets, iter(data)), strict=True):
        plain = net.extract(subnet)
        with torch.no_grad():
            z = torch.cat([plain(x) for x, _ in data]).float()
        y = torch.cat([y for _, y in data])
        right = z.argmax(1) == y
        assert found.subnet == subnet and found.n == sum(SIZES) and torch.equal(found.correct, right)
        assert found.top1 == 100 * int(right.sum()) / len(y)
        assert found.ce == pytest.approx(
            -z.double().log_softmax(1)[torch.arange(len(y)), y].mean().item(), rel=1e-5
        )
        assert not found.correct.is_inference()


def test_evaluation_refuses_before_any_work_and_leaves_the_mode():
    def untouched():
        raise AssertionError("the data was asked for")
        yield

    net = small().train()
    refused("NumericsError", evaluate, net, [net.largest], untouched())
    calibrate_bn(net, [net.largest], batches(dtype=torch.float32))
    refused("NumericsError", evaluate, net, [net.largest, net.uniform(0.5)], untouched())
    assert net.training
    evaluate(net, [net.largest], [Noise().batch(0)])
    assert net.training
    with pytest.raises(ZeroDivisionError):
        evaluate(net, [net.largest], (1 / 0 for _ in range(2)))
    assert net.training
    for subnets, data, said in (([net.largest], [], "0 images"), ([], [Noise().batch(0)], "0 subnets")):
        with pytest.raises(SlimnbError, match=f"DataError: {said}"):
            evaluate(net, subnets, data)
    net.eval()
    evaluate(net, [net.largest], [Noise().batch(0)])
    assert not net.training


def test_statistics_go_stale_with_the_weights():
    net, sampler, objective = us_net()
    calibrate_bn(net, [net.largest], batches(dtype=torch.float32))
    evaluate(net, [net.largest], [Noise().batch(0)])
    fit(net, sampler, objective, steps=1)
    refused("NumericsError", evaluate, net, [net.largest], [Noise().batch(0)])
    calibrate_bn(net, [net.largest], batches(dtype=torch.float32))
    evaluate(net, [net.largest], [Noise().batch(0)])


def test_images_made_while_evaluating_can_be_trained_on():
    net, sampler, objective = us_net()
    calibrate_bn(net, [net.largest], batches(dtype=torch.float32))
    kept = []

    def lazily():
        for step in range(2):
            kept.append(Noise().batch(step))
            yield kept[-1]

    class Kept:
        def batch(self, step):
            return kept[step % 2]

    evaluate(net, [net.largest], lazily())
    fit(net, sampler, objective, steps=2, batches=Kept())


# -- neutrality ------------------------------------------------------------------------------------------


class Nosy:
    """A sampler that evaluates in the middle of training, and calibrates if the net needs it."""

    def __init__(self, sampler, net):
        self.sampler, self.net, self.looks = sampler, net, 0
        self.plan, self.state_dict, self.load_state_dict = (
            sampler.plan,
            sampler.state_dict,
            sampler.load_state_dict,
        )

    def observe(self, step, outcomes):
        self.sampler.observe(step, outcomes)
        if step % 2:
            subnets = [self.net.uniform(mult) for mult in MULTS]
            if self.net.bn == "calibrated":
                calibrate_bn(self.net, subnets, batches(dtype=torch.float32))
            evaluate(self.net, subnets, [Noise().batch(90), Noise().batch(91)])
            self.looks += 1


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_and_calibration_leave_training_its_bits(method):
    net, sampler, objective = METHODS[method]()
    history, optimizer = fit(net, sampler, objective)
    watched, sampler, objective = METHODS[method]()
    nosy = Nosy(sampler, watched)
    found, other = fit(watched, nosy, objective)
    assert nosy.looks == 3 and found == history
    keep = (lambda name: "running" not in name) if method == "US-Net" else (lambda name: True)
    plain, looked = (
        {name: value for name, value in everything(*pair).items() if keep(name)}
        for pair in ((net, optimizer), (watched, other))
    )
    assert len(plain) > 20 and same_bits(plain, looked)


def test_private_statistics_are_those_of_plain_batch_norm():
    net = tiny(MobileNetV1, bn="private")
    subnets = [net.largest, *random_subnets(net, 2)]
    fill_statistics(net, [*subnets, net.uniform(0.5)])
    plain = [net.extract(subnet).train() for subnet in subnets]
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.train()
    for x in batches():
        for subnet, module in zip(subnets, plain, strict=True):
            assert_close(net(x, subnet), module(x).float(), rtol=1e-6, atol=1e-6)
    for slot, module in enumerate(plain):
        tracked = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm, other in zip(net.norms(), tracked, strict=True):
            c = other.num_features
            assert_close(norm.running_mean[slot, :c], other.running_mean, rtol=1e-12, atol=1e-12)
            assert_close(norm.running_var[slot, :c], other.running_var, rtol=1e-12, atol=1e-12)
    for name, value in net.named_buffers():
        assert torch.equal(value[-1], before[name][-1]), "a subnet that did not run keeps its statistics"
