"""A table learnt from sums of unknown pairwise costs predicts other sums; one tiny net is timed for real."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from refusals import refused
from small_nets import NETS, tiny

import slimnb.cost.latency_model as latency_model
from slimnb.cost.latency_model import compare_predicted, fit_latency, held_out_error, time_random, time_subnets
from slimnb.cost.table import CostTable
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.subnet import Subnet

MULTS = tuple(round(mult, 1) for mult in np.linspace(0.2, 1.5, 14).tolist())


def physical(space, rng) -> list[np.ndarray]:
    """Pairwise costs a + b c + d c' + e c c' with random coefficients, of about 1 ms together."""
    costs = []
    for left, right in zip(space.widths, space.widths[1:], strict=False):
        a, b, d, e = rng.random(4)
        c, to = np.array(left) / left[-1], np.array(right) / right[-1]
        costs.append((a + b * c[:, None] + d * to + e * np.multiply.outer(c, to)) / len(space.widths))
    return costs


def total(costs: list[np.ndarray], space, widths: np.ndarray) -> np.ndarray:
    """(N,) sums of the pairs along each row of widths."""
    index = [np.searchsorted(choices, column) for choices, column in zip(space.widths, widths.T, strict=True)]
    return sum(cost[index[u], index[u + 1]] for u, cost in enumerate(costs))


def every_path(space) -> np.ndarray:
    return np.array(list(product(*space.widths)))


# -- fitting ---------------------------------------------------------------------------------------------


def test_a_physical_table_is_recovered_from_noisy_sums():
    with torch.device("meta"):
        net = MobileNetV1(100, 32, 1.5)
    space, rng = net.space(MULTS), np.random.default_rng(0)
    costs = physical(space, rng)
    widths, others = space.sample_widths(rng, 200), space.sample_widths(rng, 500)
    ms = total(costs, space, widths) * (1 + 0.01 * rng.standard_normal(200))
    table = fit_latency(net, space, widths, ms, {"batch": 1})
    truth = total(costs, space, others)
    assert np.abs(table.predict(others) / truth - 1).max() < 0.02  # a hundred times fewer sums than pairs
    assert table.unit == "ms" and table.units == 14 and table.about["batch"] == 1 and table.about["subnets"] == 160
    assert 0.4 < table.about["held_out"]["mape"] < 1.6  # the noise that was put in: .8 % on average
    assert table.about["held_out"] == held_out_error(table, widths[160:], ms[160:])


def test_its_chain_adds_up_for_viterbi():
    net = tiny(MobileNetV1)
    space, rng = net.space((0.25, 0.5, 1.0)), np.random.default_rng(0)
    paths = every_path(space)
    chosen = rng.permutation(len(paths))[:80]
    table = fit_latency(net, space, paths[chosen], total(physical(space, rng), space, paths[chosen]))
    chain = table.chain()
    shapes = [(len(a), len(b)) for a, b in zip(space.widths, space.widths[1:], strict=False)]
    assert [pair.shape for pair in chain] == shapes
    assert total(chain, space, paths) == pytest.approx(table.predict(paths))


def test_steps_that_no_physics_explains_are_found_by_the_ridge(monkeypatch):
    net = tiny(MobileNetV1)
    space, rng = net.space((0.25, 0.5, 0.75, 1.0)), np.random.default_rng(1)
    costs = [1 + rng.random(cost.shape) for cost in physical(space, rng)]  # any pairwise table
    paths = every_path(space)
    widths = rng.permutation(paths)[:350]
    ms = total(costs, space, widths)
    table = fit_latency(net, space, widths, ms)
    truth = total(costs, space, paths)
    assert table.about["strength"] > 0 and np.abs(table.predict(paths) / truth - 1).mean() < 0.002
    monkeypatch.setattr(latency_model, "_STRENGTHS", (0.0,))
    physics = fit_latency(net, space, widths, ms)
    assert physics.about["held_out"]["mape"] > 10 * table.about["held_out"]["mape"]


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_nets_with_joins_have_tables_too(kind):
    net = tiny(kind)
    space, rng = net.space((0.25, 0.5, 1.0)), np.random.default_rng(0)
    widths = space.sample_widths(rng, 300)
    macs = CostTable.macs(net, space).predict(widths)
    table = fit_latency(net, space, widths, 0.2 + macs / 1e6)
    assert table.predict(widths) == pytest.approx(0.2 + macs / 1e6, rel=1e-6)
    assert set(table.terms) == set(CostTable.macs(net, space).terms)


def test_the_error_is_what_it_says():
    net = tiny(MobileNetV1)
    space = net.space((0.5, 1.0))
    table, widths = CostTable.macs(net, space), every_path(space)[:4]
    predicted = table.predict(widths)
    perfect = held_out_error(table, widths, predicted)
    assert perfect == pytest.approx({"mape": 0, "r2": 1, "rank": 1})
    assert held_out_error(table, widths, 2 * predicted)["mape"] == 50
    assert held_out_error(table, widths, predicted.max() * 2 - predicted)["rank"] == pytest.approx(-1)
    assert held_out_error(table, widths, 2 * predicted.mean() - predicted)["r2"] == pytest.approx(1 - 2**2)
    assert held_out_error(table, widths, np.ones(4)) | {"mape": 0} == {"mape": 0, "r2": 0, "rank": 0}
    alike = held_out_error(table, widths[:1].repeat(3, 0), predicted[:1] * np.array([0.5, 1, 2]))
    assert alike["rank"] == 0 and alike["r2"] < 0


# -- timing ----------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_their_lower_quartile_is_kept(monkeypatch):
    net = tiny(MobileNetV1)
    subnets = [net.uniform(mult) for mult in (0.5, 1.0)]
    timed, ticks = [], []

    def measure(module, x, rounds, warmup, min_ms):
        timed.append((module[-1].in_features, tuple(x.shape), rounds, warmup, module.training))
        return {"median_ms": float(len(timed) ** 2)}

    monkeypatch.setattr(latency_model, "measure_latency", measure)
    ms = time_subnets(net, subnets, 3, resolution=16, rounds=3, warmup=1, progress=lambda *at: ticks.append(at))
    assert timed == [(width, (3, 3, 16, 16), 1, 1, False) for width in (16, 32)] * 3
    assert ms.tolist() == [5, 10] and ticks == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("bn", ("private", "shared_affine", "calibrated", "group"))
def test_a_tiny_net_is_timed_for_real_and_left_as_it_was(bn):
    net = tiny(MobileNetV1, bn=bn).float()
    net.reserve([net.largest])
    before = {name: t.clone() for name, t in net.state_dict().items() if isinstance(t, torch.Tensor)}
    state = net.get_extra_state()
    ms = time_subnets(net, [net.largest, Subnet((8, 8, 16, 16, 16))], rounds=1, warmup=1, min_ms=0)
    assert ms.shape == (2,) and (ms > 0).all()
    assert net.get_extra_state() == state and net.training
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in before.items())


def test_all_of_it_on_a_tiny_net():
    net = tiny(MobileNetV1).float()
    space = net.space((0.25, 0.5, 1.0))
    timed = time_random(net, space, 40, batch=2, resolution=16, rounds=1)
    assert json.loads(json.dumps(timed)) == timed
    table = fit_latency(net, space, **timed)
    assert table.unit == "ms" and set(table.about) == {
        "device", "threads", "batch", "dtype", "date", "resolution", "rounds", "subnets", "strength", "held_out"}
    assert (table.about["batch"], table.about["resolution"], table.about["subnets"]) == (2, 16, 32)
    assert all(math.isfinite(value) for value in table.about["held_out"].values())
    assert len(table.chain()) == 4 and table.of(net.largest) > 0


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "code"), [
    (lambda w, ms: (w[:12], ms[:12]), "ParameterError"),
    (lambda w, ms: (w, ms[:-1]), "ParameterError"),
    (lambda w, ms: (w, np.where(ms == ms[3], np.nan, ms)), "ParameterError"),
    (lambda w, ms: (w, np.where(ms == ms[3], np.inf, ms)), "ParameterError"),
    (lambda w, ms: (w, np.where(ms == ms[3], 0, ms)), "ParameterError"),
    (lambda w, ms: (w, ms[:, None]), "ParameterError"),
    (lambda w, ms: (np.where(w == 32, 33, w), ms), "SearchError"),
    (lambda w, ms: (w[:, :4], ms), "ParameterError"),
])
def test_bad_input_gets_its_line(change, code):
    net = tiny(MobileNetV1)
    space = net.space((0.25, 0.5, 1.0))
    widths = space.sample_widths(np.random.default_rng(0), 60)
    with pytest.raises(SlimnbError, match=f"{code}") as caught:
        fit_latency(net, space, *change(widths, 1 + np.arange(60.0)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240


def test_other_bad_input():
    net = tiny(MobileNetV1)
    with pytest.raises(SlimnbError, match="ParameterError: rounds = 0"):
        time_subnets(net, [net.largest], rounds=0)
    refused("ParameterError", time_subnets, net, [Subnet((8, 8, 8, 8, 999))])
    table = CostTable.macs(net, net.space((0.5, 1.0)))
    with pytest.raises(SlimnbError, match="ParameterError: 2 subnets"):
        held_out_error(table, np.array([net.largest.widths] * 2), np.ones(2))


# -- predicted against measured --------------------------------------------------------------------------


def test_predictions_are_held_against_times_of_the_resolution_each_subnet_names(monkeypatch):
    net, sides = tiny(MobileNetV1), []

    def clock(module, x, *_):
        sides.append(x.shape[-1])
        return {"median_ms": x.shape[-1] / 10}

    monkeypatch.setattr(latency_model, "measure_latency", clock)
    subnets = [net.uniform(mult, side) for mult, side in ((0.5, 20), (1.0, 24), (0.75, 28), (0.5, None))]
    found = compare_predicted(net, subnets, np.array([2.0, 2.5, 2.8, 3.3]), batch=2, rounds=3)
    assert sides == [20, 24, 28, 32] * 3
    assert [row["measured"] for row in found["rows"]] == [2.0, 2.4, 2.8, 3.2]
    assert found["rows"][1] == {"resolution": 24, "predicted": 2.5, "measured": 2.4}
    assert found["rmse_ms"] == pytest.approx(math.sqrt(0.02 / 4))
    assert found["pearson"] == pytest.approx(np.corrcoef([2.0, 2.5, 2.8, 3.3], [2.0, 2.4, 2.8, 3.2])[0, 1])
    assert found["rank"] == 1.0 and found["mape"] == pytest.approx(100 * (0.1 / 2.4 + 0.1 / 3.2) / 4)
    assert found["about"]["batch"] == 2 and found["about"]["rounds"] == 3
    assert json.loads(json.dumps(found)) == found
    refused("ParameterError", compare_predicted, net, subnets[:2], np.ones(2))
