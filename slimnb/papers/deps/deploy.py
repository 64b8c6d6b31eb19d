"""Subnets to deploy: the best below a cost on a finished run's weights, by evolution and by random search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from slimnb.cost.elastic import ElasticTable
from slimnb.cost.elastic_latency import check_latency, elastic_latency
from slimnb.data.datasets import ImageData
from slimnb.nets.base import SlimmableNet
from slimnb.rules import Share, checked
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.search.evolution import SearchResult, cost_range, evolve, random_search
from slimnb.subnet import Subnet
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.experiment import Result, once, trained
from slimnb.train.measure import measure, plain_batches


def latency_table(result: Result, num_classes: int, store: RunStore, *, batch: int = 8, rounds: int = 20,
                  subnets: int = 40, device: str = "cpu") -> tuple[ElasticTable, dict]:
    """Measure the milliseconds per block and choice of a run's net on this device, and their error on whole subnets.

    It is measured once per store and settings; the errors are those of `check_latency`.
    """
    net = result.recipe.build(num_classes)
    settings = {"paper": "deps", "arm": "latency", "scale": result.recipe.scale, "net": result.recipe.net,
                "classes": num_classes, "batch": batch, "rounds": rounds, "subnets": subnets,
                "device": torch.device(device).type}
    code = code_fingerprint([elastic_latency, check_latency, result.recipe.net_type()])

    def take() -> dict:
        timed = net.to(device).eval()
        table = elastic_latency(timed, batch, rounds=rounds)
        return {"constant": table.constant, "terms": table.terms.tolist(), "about": table.about,
                "check": check_latency(table, timed, subnets)}

    stored = once(store, settings, code, take)
    choices = tuple((expand, kernel) for expand in net.expands for kernel in net.kernels)
    table = ElasticTable("ms", net.search_space, choices, stored["constant"], np.array(stored["terms"]),
                         stored["about"])
    return table, stored["check"]


@checked
def between(table: ElasticTable, share: Share) -> float:
    """The cost at `share` of the way from the cheapest subnet to the dearest."""
    cheapest, dearest = cost_range(table)
    return cheapest + share * (dearest - cheapest)


def deploy(result: Result, data: ImageData, store: RunStore, table: ElasticTable, share: float, evaluations: int, *,
           device: str = "cpu") -> dict:
    """Search a run's net for the best subnet up to a cost, by evolution and by random search of as many evaluations.

    Both validate; test images are opened for the two winners. The target is `between(table, share)`. It is searched
    once per store and settings. Keys: target, rows (arm, evaluation, cost, score, best), winners (arm, subnet, cost,
    macs, top1, top1_val), run_id.
    """
    recipe, target = result.recipe, between(table, share)
    settings = {"paper": "deps", "arm": f"search by {table.unit}", "scale": recipe.scale, "of": result.run_id,
                "share": share, "target": target, "evaluations": evaluations, "images": recipe.calibration_images,
                "seed": recipe.seed}
    code = code_fingerprint([Validated, evolve, random_search, measure, recipe.net_type()])

    def take() -> dict:
        net = trained(result, data.num_classes, store).to(device)
        calibration, val = (plain_batches(data, split, net.input_size, device) for split in (data.train, data.val))
        validated = Validated(net, lambda: calibration.images(recipe.calibration_images), lambda: val)
        known: dict[Subnet, float] = {}

        def score(subnets: Sequence[Subnet]) -> list[float]:  # both searches begin with the same subnets
            fresh = [subnet for subnet in subnets if subnet not in known]
            known.update(zip(fresh, validated(fresh), strict=True))
            return [known[subnet] for subnet in subnets]

        population = max(2, evaluations // 4)
        least = 0.9 * target if table.unit == "MACs" else 0.0
        searches = {"Random search": random_search(table, target, score, evaluations, least=least, seed=recipe.seed,
                                                batch=population),
                 "Evolution": evolve(table, target, score, evaluations, least=least, seed=recipe.seed,
                                     population=population)}
        tested = measure(net, data, [search.subnet for search in searches.values()], images=recipe.calibration_images,
                         calibrate=True, device=device)
        return {"target": target, "rows": [row for arm, search in searches.items() for row in _progress(arm, search)],
                "winners": [{"arm": arm, "subnet": search.subnet.to_json(), "cost": search.cost}
                            | {name: row[name] for name in ("macs", "top1", "top1_val")}
                            for (arm, search), row in zip(searches.items(), tested, strict=True)]}

    return once(store, settings, code, take)


def _progress(arm: str, search: SearchResult) -> list[dict]:
    return [{"arm": arm} | {name: row[name] for name in ("evaluation", "cost", "score", "best")} for row in search.rows]


class Validated:
    """A `Score`: top-1 accuracy (percent) on validation images, with statistics of each subnet's own.

    `images()` gives batches of calibration images, `val()` batches of images and labels; `chunk` subnets share one pass
    over them. They are calibrated in a copy of `net`, so that a search leaves no statistics behind, nor their memory.
    """

    def __init__(self, net: SlimmableNet, images: Callable[[], Iterable[Tensor]],
                 val: Callable[[], Iterable[tuple[Tensor, Tensor]]], chunk: int = 16):
        self.net, self.images, self.val, self.chunk = net, images, val, chunk

    def __call__(self, subnets: Sequence[Subnet]) -> list[float]:
        """Return the percentage that each subnet classifies rightly."""
        scores = []
        for start in range(0, len(subnets), self.chunk):
            chunk, net = subnets[start: start + self.chunk], copy.deepcopy(self.net)
            calibrate_bn(net, chunk, self.images())
            scores += [evaluation.top1 for evaluation in evaluate(net, chunk, self.val())]
        return scores
