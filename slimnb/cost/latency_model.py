"""A latency table that is learnt from whole subnets. Nothing inside the device is timed, so it may be a black box."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import pearsonr, spearmanr

from slimnb.cost.latency import conditions, measure_latency
from slimnb.cost.table import CostTable, Node, fold
from slimnb.errors import ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.rules import Amount, Array, Count, Pixels, Seed, Some, checked
from slimnb.subnet import SearchSpace, Subnet

_STRENGTHS = (0.0, *np.geomspace(1e-2, 1e4, 13).tolist())


@checked
def time_random(net: SlimmableNet, space: SearchSpace, subnets: Count = 400, batch: Count = 1, *, seed: Seed = 0,
                resolution: Pixels | None = None, rounds: Count = 5,
                progress: Callable[[int, int], None] | None = None) -> dict:
    """Time random subnets of `space`, for `fit_latency` to learn from: widths, ms and about, as plain JSON.

    `fit_latency(net, space, **time_random(net, space))` is the latency table of this device (AOWS's black-box model;
    paper 003, section 3.2 and equation 3). Its `about["held_out"]` also tells whether the machine was idle enough:
    MobileNetV1 at 32 pixels, batch 1 and one thread, had 2 % on a quiet one, 3 to 6 % beside two other programs on two
    cores, and 40 % beside five.
    """
    widths = space.sample_widths(np.random.default_rng(seed), subnets).tolist()
    ms = time_subnets(net, [Subnet(tuple(row)) for row in widths], batch, resolution=resolution, rounds=rounds,
                      progress=progress)
    side = resolution or net.input_size
    about = conditions(_noise(net, batch, side)) | {"resolution": side, "rounds": rounds}
    return {"widths": widths, "ms": ms.round(5).tolist(), "about": about}


@checked
def time_subnets(net: SlimmableNet, subnets: Some[Subnet], batch: Count = 1, *, resolution: Pixels | None = None,
                 rounds: Count = 5, warmup: Count = 2, min_ms: Amount = 1.0,
                 progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Measure the milliseconds of each subnet on the net's device, (N,): the lower quartile over `rounds`.

    Images have `resolution` pixels a side, or the side that a subnet names. Stand-alone nets are timed, as they would
    be deployed: slices reorder weights, and what that costs is no sum over pairs (held-out error 2.7 % where
    stand-alone nets had 2.2 %, MobileNetV1, batch 1, one thread). Nets are made one at a time, and all again in every
    round, so that drift of the machine hits all alike and memory holds one. The quartile is used because other programs
    spoil a median (2.2 % against 2.0 %) and a moment of faster clock spoils a minimum (6.4 %). `progress(done, rounds)`
    is called after every round.
    """
    if rounds < 1:
        raise ParameterError(f"rounds = {rounds}", "it is at least 1", "Set rounds=5.")
    sides = [subnet.resolution or resolution or net.input_size for subnet in subnets]
    x = {side: _noise(net, batch, side) for side in set(sides)}
    net = copy.deepcopy(net)  # which statistics a subnet has does not matter for its latency
    net.reserve(list(subnets), shared=True)
    net.mark_calibrated(subnets)
    ms = np.empty((rounds, len(subnets)))
    for done in range(rounds):
        for i, subnet in enumerate(subnets):
            ms[done, i] = measure_latency(net.extract(subnet), x[sides[i]], 1, warmup, min_ms)["median_ms"]
        if progress is not None:
            progress(done + 1, rounds)
    return np.quantile(ms, 0.25, axis=0)


def _noise(net: SlimmableNet, batch: int, side: int) -> torch.Tensor:
    image = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return image.to(next(net.parameters())).contiguous(memory_format=torch.channels_last)


@checked
def fit_latency(net: SlimmableNet, space: SearchSpace, widths: Array, ms: Array,
                about: dict | None = None) -> CostTable:
    """Fit a pairwise table whose sums predict the milliseconds `ms` (N,) of the subnets `widths` (N, units).

    The subnets are in random order and the last fifth is held out: `about["held_out"]` is the table's error on it
    (`held_out_error`). A random subnet says little about any one of thousands of pairs. So the cost of a pair has the
    form that the physics of a layer allow, a + b c + d c' + e c c' with no negative coefficient, fitted to relative
    errors. A ridge then adds deviations of single widths and pairs, as strongly (`about["strength"]`) as its own
    leave-one-out errors advise. On the CPU they advise none (strength 0); on a device whose latency goes in steps they
    may.

    Only sums over a whole subnet mean something: what one pair is charged, its neighbour may be spared. Raises
    ParameterError for too few subnets and for times that are not positive numbers.
    """
    table, widths, ms = CostTable.macs(net, space), np.asarray(widths), np.asarray(ms, dtype=np.float64)
    table.predict(widths)  # raises if the space lacks a width
    if ms.shape != (len(widths),) or not (np.isfinite(ms) & (ms > 0)).all():
        raise ParameterError(f"ms of shape {ms.shape} for {len(widths)} subnets",
                             "there is a finite time > 0 for each", "Time those subnets again.")
    forms, cells = _terms(table, widths)
    used, unknowns = len(ms) - len(ms) // 5, 1 + len(forms)
    if used <= unknowns:
        raise ParameterError(f"{len(ms)} subnets, of which {used} are fitted",
                             f"the model has {unknowns} unknowns", f"Time at least {4 * unknowns}.")
    cells = [cell[:used] for cell in cells]
    columns = [form.take(cell) for form, cell in zip(forms.values(), cells, strict=True)]
    physics = np.stack([np.ones(used), *columns], 1)
    weight = 1 / ms[:used]  # relative errors: small platforms matter as much as large ones
    constant, *coefficients = nnls(physics * weight[:, None], np.ones(used))[0]
    residual = 1 - physics @ [constant, *coefficients] * weight
    strength, deviation = _deviations(cells, weight, residual)
    terms = {ends: coefficient * form + np.bincount(cell, deviation, form.size).reshape(form.shape)
             for (ends, form), coefficient, cell in zip(forms.items(), coefficients, cells, strict=True)}
    fitted = CostTable("ms", table.units, table.choices, fold(terms)).plus_constant(constant)
    error = held_out_error(fitted, widths[used:], ms[used:])
    return replace(fitted, about=(about or {}) | {"subnets": used, "strength": strength, "held_out": error})


@checked
def held_out_error(table, widths: Array, ms: Array) -> dict[str, float]:
    """Measure how well `table` predicts `ms` (N,) of subnets `widths` (N, units) that it was not fitted to.

    mape is the mean absolute error in percent of the time, r2 the share of the variance that is explained, rank
    Spearman's rank correlation. If all times are equal there is nothing to explain or to rank, and both are 0.
    """
    if len(ms) < 3:
        raise ParameterError(f"{len(ms)} subnets", "an error needs 3 of them or more", "Time more.")
    return _errors(table.predict(widths), ms)


@checked
def compare_predicted(net: SlimmableNet, subnets: Some[Subnet], predicted: Array, batch: Count = 1, *,
                      rounds: Count = 5, progress: Callable[[int, int], None] | None = None) -> dict:
    """Compare sums of layer times, `predicted` (N,) ms, with what `time_subnets` measures (PSS-Net, Fig. 4).

    It is plain JSON: rows (resolution, predicted, measured: ms), rmse_ms, pearson, the keys of `held_out_error`, and
    about with the conditions. Raises ParameterError for fewer than 3 subnets.
    """
    if len(subnets) < 3:
        raise ParameterError(f"{len(subnets)} subnets", "an error needs 3 of them or more", "Time more.")
    ms, predicted = time_subnets(net, subnets, batch, rounds=rounds, progress=progress), np.asarray(predicted)
    sides = [subnet.resolution or net.input_size for subnet in subnets]
    rows = [{"resolution": side, "predicted": round(p, 5), "measured": round(m, 5)}
            for side, p, m in zip(sides, predicted.tolist(), ms.tolist(), strict=True)]
    ranked = np.ptp(predicted) > 0 and np.ptp(ms) > 0
    return {"rows": rows, "rmse_ms": float(np.sqrt(np.square(predicted - ms).mean())),
            "pearson": float(pearsonr(predicted, ms).statistic) if ranked else 0.0, **_errors(predicted, ms),
            "about": conditions(_noise(net, batch, min(sides))) | {"rounds": rounds}}


def _errors(predicted: np.ndarray, ms: np.ndarray) -> dict[str, float]:
    spread = np.square(ms - np.mean(ms)).sum()
    ranked = np.ptp(predicted) > 0 and spread > 0
    return {"mape": float(100 * np.abs(predicted / ms - 1).mean()),
            "r2": float(1 - np.square(predicted - ms).sum() / spread) if spread > 0 else 0.0,
            "rank": float(spearmanr(predicted, ms).statistic) if ranked else 0.0}


def _terms(table: CostTable, widths: np.ndarray) -> tuple[dict[tuple[Node, Node], np.ndarray], list]:
    """Each term's form, c or c c' as shares of the largest, and (N,) the entry of it that each subnet reads."""
    nodes = [node for node in table.choices if node]
    share = {node: table.choices[node] / table.choices[node][-1] for node in nodes} | {(): np.ones(1)}
    index = {node: np.searchsorted(table.choices[node], widths[:, list(node)].max(1)) for node in nodes}
    index[()] = np.zeros(len(widths), dtype=np.int64)
    ends = [(node, ()) for node in nodes] + [pair for pair in table.terms if all(pair)]
    return ({(a, b): np.multiply.outer(share[a], share[b]) for a, b in ends},
            [index[a] * len(share[b]) + index[b] for a, b in ends])


def _deviations(cells: list[np.ndarray], weight: np.ndarray, residual: np.ndarray) -> tuple[float, np.ndarray]:
    """Ridge on one unknown per entry of all terms: its strength, and (N,) what each subnet adds to its entries.

    Solved in as many unknowns as subnets; two subnets are as alike as the entries they share.
    """
    unit = weight.mean()
    alike = sum((cell[:, None] == cell).astype(float) for cell in cells) * np.outer(weight, weight) / unit**2
    values, vectors = np.linalg.eigh(alike / len(cells))
    along, errors = vectors.T @ residual, []
    for strength in _STRENGTHS:
        shrink = 1 / (1 + strength * values)
        left_out = vectors @ (shrink * along) / (vectors**2 @ shrink)
        errors.append(np.square(left_out).mean())
    strength = _STRENGTHS[int(np.argmin(errors))]
    solved = vectors @ (along / (1 + strength * values))
    return strength, strength / len(cells) * solved * weight / unit**2
