"""What gates do to images, as tables for chapter 06: shares of paths, other routers beside them, throughput."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy
from scipy.stats.contingency import crosstab
from torch import Tensor

from slimnb.cost.latency import compare_latency, conditions
from slimnb.data.datasets import ImageData
from slimnb.nets.gated import GatedNet
from slimnb.nn.gate import Gated
from slimnb.papers.ds_net.dynamic import OVERHEAD, DynamicNet, pack_
from slimnb.papers.ds_net.method import unpacked_bits
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.experiment import Result, once, trained
from slimnb.train.measure import plain_batches

COLLAPSED = 0.99
"""A gate that sends more than this share of all images one way has collapsed."""

DIGITS = string.digits + string.ascii_uppercase


def accuracies(results: Iterable[Result]) -> pd.DataFrame:
    """Return rows of net, arm, method, seed, run_id, name, macs, top1, top1_val: one per path, or one of gates."""
    columns = ["net", "arm", "method", "seed", "run_id", "name", "macs", "top1", "top1_val"]
    rows = [(r.recipe.net, r.recipe.arm, r.recipe.method, r.recipe.seed, r.run_id,
             *(row[name] for name in columns[5:])) for r in results for row in r.rows]
    return pd.DataFrame(rows, columns=columns)


def one(results: Iterable[Result], net: str, arm: str, seed: int) -> Result:
    """Return the result of that net, arm and seed."""
    return next(r for r in results if (r.recipe.net, r.recipe.arm, r.recipe.seed) == (net, arm, seed))


def static_paths(supernet: Result) -> pd.DataFrame:
    """Return the supernet's paths of one choice throughout, cheapest first: name, macs, top1, top1_val."""
    rows = [row for row in supernet.rows if row["name"] != "largest"]
    return pd.DataFrame(rows)[["name", "macs", "top1", "top1_val"]].sort_values("macs").reset_index(drop=True)


def static_at(supernet: Result, macs: float, column: str = "top1") -> float:
    """Return the accuracy (percent) of static paths at `macs`.

    It is linear between neighbours, as if two paths shared the images.
    """
    static = static_paths(supernet)
    return float(np.interp(macs, static["macs"], static[column]))


# -- what the gates chose --------------------------------------------------------------------------------


def chosen(routed: Result) -> np.ndarray:
    """Return the choices (N, gates) of all test images, in their order."""
    return np.array([[DIGITS.index(digit) for digit in column] for column in routed.findings["choices"]]).T


def right(result: Result, name: str, count: int) -> np.ndarray:
    """Return whether a path, or "routed", classified each test image rightly, (N,)."""
    return unpacked_bits(result.findings["correct"][name], count)


def shares(routed: Result) -> pd.DataFrame:
    """Return Fig. 7, right: gate (from 1), choice (from 0), share of test images."""
    open_choices = routed.recipe.lowest or np.shape(routed.findings["path_macs"])[0]
    rows = [(gate + 1, choice, float(np.mean(column == choice))) for gate, column in enumerate(chosen(routed).T)
            for choice in range(open_choices)]
    return pd.DataFrame(rows, columns=["gate", "choice", "share"])


def bits(labels: np.ndarray) -> float:
    """Return the entropy of a sample of labels (N,), bits."""
    return float(entropy(np.unique(labels, return_counts=True)[1], base=2))


def information(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mutual information of two samples of labels (N,), bits.

    It is biased up by about (|a| - 1)(|b| - 1) / (2 N ln 2).
    """
    joint = crosstab(a, b).count
    return bits(a) + bits(b) - float(entropy(joint.ravel(), base=2))


def paths_of(choices: np.ndarray) -> np.ndarray:
    """Return the number (N,) of each image's path, from its choices (N, gates)."""
    return np.unique(choices, axis=0, return_inverse=True)[1].ravel()


def collapses(results: Iterable[Result]) -> list[str]:
    """Return a line for each net with collapsed gates: which gates, to which choice, how many images."""
    lines = []
    for r in results:
        if "choices" in r.findings:
            top = shares(r).sort_values("share").groupby("gate").last()
            stuck = [f"gate {gate} to choice {row['choice']:.0f} ({row['share']:.1%})" for gate, row in top.iterrows()
                     if row["share"] > COLLAPSED]
            if stuck:
                lines.append(f"{r.recipe.net}, {r.recipe.arm} (seed {r.recipe.seed}): {', '.join(stuck)}")
    return lines


def diversity(routed: Result, easy: np.ndarray) -> dict[str, float]:
    """Measure how dynamic routing is, in bits.

    It has the entropy of gates (mean) and of paths, and the information between path and `easy` (N,).
    """
    choices = chosen(routed)
    paths = paths_of(choices)
    return {"gate_bits": float(np.mean([bits(column) for column in choices.T])), "path_bits": bits(paths),
            "paths": len(np.unique(paths)), "information": information(paths, easy), "easy_bits": bits(easy)}


# -- against other routers (one gate) --------------------------------------------------------------------


def routers(routed: Result, supernet: Result) -> pd.DataFrame:
    """Compare routers over the paths of a net with one gate by accuracy and mean MACs; index router.

    They are the gate's; a blind one that gives the same share of images to each path, at random (exact, not sampled);
    the static path or mixture of neighbours of the gate's MACs; the widest; the SGS labels, taken from the test labels
    themselves; and an oracle that knows the cheapest path that is right, and gives up if there is none.
    """
    choices = chosen(routed)[:, 0]
    count, lowest = len(choices), int(routed.recipe.lowest or len(routed.findings["path_macs"]))
    macs = np.array(routed.findings["path_macs"])[:lowest]
    hits = np.stack([right(supernet, str(k), count) for k in range(lowest)], 1)  # (N, choices)
    image = np.arange(count)
    labels = np.where(hits[:, 0], 0, lowest - 1)
    oracle = np.where(hits.any(1), hits.argmax(1), 0)
    spread = np.bincount(choices, minlength=lowest) / count
    rows = {"Gate": (macs[choices].mean(), hits[image, choices].mean()),
            "Blind router": (spread @ macs, spread @ hits.mean(0)),
            "Static": (macs[choices].mean(), static_at(supernet, macs[choices].mean()) / 100),
            "Widest": (macs[-1], hits[:, -1].mean()),
            "SGS labels": (macs[labels].mean(), hits[image, labels].mean()),
            "Oracle": (macs[oracle].mean(), hits[image, oracle].mean())}
    return pd.DataFrame([(name, cost, 100 * top1) for name, (cost, top1) in rows.items()],
                        columns=["router", "macs", "top1"]).set_index("router")


def easy_images(supernet: Result, count: int) -> np.ndarray:
    """Return whether the slimmest path is right, (N,): these are SGS's easy test images."""
    return right(supernet, static_paths(supernet)["name"].iloc[0], count)


def agreement(routed: Result, supernet: Result) -> dict[str, float]:
    """Compare one gate with SGS's own labels on test images.

    It has the shares that agree, and the mean choice of easy and other images.
    """
    choices = chosen(routed)[:, 0]
    easy = easy_images(supernet, len(choices))
    widest = int(routed.recipe.lowest or len(routed.findings["path_macs"])) - 1
    return {"agree": float(np.mean(choices == np.where(easy, 0, widest))), "easy": float(choices[easy].mean()),
            "others": float(choices[~easy].mean()), "share_easy": float(easy.mean())}


def by_difficulty(choices: np.ndarray, difficulty: np.ndarray, bins: int = 5) -> pd.DataFrame:
    """Return shares of the choices (N,) of one gate by difficulty (N,): difficulty (bin centre), choice, share."""
    bin_of = np.minimum((difficulty * bins).astype(int), bins - 1)
    rows = [((b + 0.5) / bins, k, float(np.mean(choices[bin_of == b] == k)))
            for b in range(bins) if (bin_of == b).any() for k in range(int(choices.max()) + 1)]
    return pd.DataFrame(rows, columns=["difficulty", "choice", "share"])


# -- Fig. 2 ----------------------------------------------------------------------------------------------


def simulated(schemes: int = 20, points: int = 40) -> pd.DataFrame:
    """Simulate Fig. 2, left: static nets, and `schemes` dynamic ones, on half easy and half hard images.

    The numbers are hypothetical. Accuracy is an exponential of cost: 95 - 30 exp(-8 c) on easy images, 85 - 70 exp(-3
    c) on hard ones; the paper does not print its own. A scheme gives hard images a fixed share of the cost. Columns are
    scheme, kind, macs, top1, share.
    """
    mean = np.linspace(0.05, 1, points)

    def accuracy(easy: np.ndarray, hard: np.ndarray) -> np.ndarray:
        return ((95 - 30 * np.exp(-8 * easy)) + (85 - 70 * np.exp(-3 * hard))) / 2

    frames = [pd.DataFrame({"scheme": "static", "kind": "static", "macs": mean, "top1": accuracy(mean, mean),
                            "share": 0.5})]
    for share in np.linspace(0.05, 0.95, schemes):
        frames.append(pd.DataFrame({"scheme": f"{share:.2f}", "kind": "dynamic", "macs": mean, "share": share,
                                    "top1": accuracy(2 * (1 - share) * mean, 2 * share * mean)}))
    return pd.concat(frames, ignore_index=True)


# -- throughput ------------------------------------------------------------------------------------------


def throughput(routed: Result, supernet: Result, data: ImageData, store: RunStore, *,
               batches: Sequence[int] = (1, 16, 64, 256), rounds: int = 9, device: str = "cpu") -> dict:
    """Measure how fast each way to run a trained net of one gate is, on validation images, at several batch sizes.

    Modes are Grouped (rows of a path together, packed layers, small groups merged by `measured_overhead`), Sliced (the
    same on the supernet's own weights, nothing merged), Masked (full width), Widest and Static: stand-alone nets with
    folded norms, of the widest path and of the cheapest with no fewer MACs than the gate spends. Indexed is left out,
    since chapter 01 has it. It is measured once per store, settings and run. Keys: rows (mode, batch, ms, ratio: images
    per second over those of Widest), difference (the largest of Grouped's logits from Masked's), static (name of that
    path), overhead, about, run_id.
    """
    settings = {"paper": "ds_net", "arm": f"{routed.recipe.arm} throughput", "scale": routed.recipe.scale,
                "of": routed.run_id, "batches": list(batches), "rounds": rounds, "device": torch.device(device).type}
    spent = np.array(routed.findings["path_macs"]) >= routed.rows[0]["macs"] - 1e-6 * max(routed.findings["path_macs"])
    name = str(int(spent.argmax()))

    def take() -> dict:
        net = trained(routed, data.num_classes, store).to(device)
        x = next(iter(plain_batches(data, data.val, net.input_size, device)))[0]
        while len(x) < max(batches):
            x = torch.cat([x, x])
        x = x.contiguous(memory_format=torch.channels_last)
        overhead = measured_overhead(net, x[: max(2, *batches)], rounds)
        ways = execution_ways(net, net.path(int(name)), routed.recipe.lowest, overhead)
        rows = []
        with torch.inference_mode():
            difference = (ways["Grouped"](x[:256]) - ways["Masked"](x[:256])).abs().max().item()
        for batch in batches:
            part = x[:batch].contiguous(memory_format=torch.channels_last)
            calls = {way: lambda run=run, part=part: run(part) for way, run in ways.items()}
            timed = compare_latency(calls, part, rounds)
            widest = timed["Widest"]["median_ms"]
            rows += [{"mode": way, "batch": batch, "ms": round(latency["median_ms"], 4),
                      "ratio": round(widest / latency["median_ms"], 4)} for way, latency in timed.items()]
        return {"rows": rows, "difference": difference, "static": name, "overhead": round(overhead, 2),
                "about": conditions(x[:1])}

    code = code_fingerprint([measured_overhead, execution_ways, routed.recipe.net_type()])
    return once(store, settings, code, take)


@torch.inference_mode()
def measured_overhead(net: GatedNet, x: Tensor, rounds: int = 9) -> float:
    """Measure what a group costs beside its images, for `DynamicNet`.

    The unit is images of x (B > 1, 3, H, W) on the widest path.
    """
    widest = pack_(net.eval().extract(net.widest))
    timed = compare_latency({count: lambda part=x[:count]: widest(part) for count in (1, len(x))}, x, rounds)
    one, many = (timed[count]["median_ms"] for count in (1, len(x)))
    per_image = (many - one) / (len(x) - 1)
    return max(0.0, one / per_image - 1) if per_image > 0 else OVERHEAD


def execution_ways(net: GatedNet, static: Subnet, lowest: int | None = None, overhead: float = OVERHEAD) -> dict:
    """Return callables of x (B, 3, H, W), by mode: see `throughput`."""
    net = net.eval()
    return {"Grouped": DynamicNet(net, lowest, overhead=overhead), "Sliced": DynamicNet(net, lowest, packed=False),
            "Masked": lambda x: net(x, Gated(lowest)).logits,
            "Widest": pack_(net.extract(net.widest if lowest is None else net.path(lowest - 1))),
            "Static": pack_(net.extract(static))}
