"""What is timed once on this device: predicted latencies beside measured ones, and a switcher that serves."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from slimnb.cost.latency import conditions
from slimnb.cost.latency_model import compare_predicted
from slimnb.data.datasets import Batches, ImageData
from slimnb.papers.pss_net.recipes import StructureRecipe, latency
from slimnb.papers.pss_net.structures import Resource
from slimnb.papers.pss_net.switcher import PricedSubnet, SubnetSwitcher, storage
from slimnb.rng import rng_at
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.experiment import Result, once, trained


def predictions(recipe: StructureRecipe, num_classes: int, store: RunStore, device: str = "cpu",
                batch: int = 1) -> dict:
    """`compare_predicted` for 1,000 random structures (at smoke 50) by the tables of `latency` (Fig. 4), taken once."""
    tables = latency(recipe, num_classes, store, device, batch)
    many, rounds = (50, 1) if recipe.scale == "smoke" else (1000, 3)
    settings = {"paper": recipe.paper, "arm": "predicted latency", "scale": recipe.scale, "tables": tables["run_id"],
                "subnets": many, "rounds": rounds, "seed": recipe.seed}

    def take() -> dict:
        net = recipe.build(num_classes).to(device).eval()
        space = recipe.structures(net)
        index = space.draw(rng_at(recipe.seed, "predicted latency", 0), many)
        predicted = Resource.from_json(tables).predict(space.widths(index), space.resolutions(index))
        return compare_predicted(net, space.subnets(index), predicted, batch, rounds=rounds)

    return once(store, settings, code_fingerprint([compare_predicted, recipe.net_type()]), take)


def switching(result: Result, data: ImageData, budgets: Sequence[float], store: RunStore, images: int = 50,
              device: str = "cpu") -> dict:
    """A switcher over the subnets that a run has chosen serves test images, `images` a batch, taken once.

    Each batch has its budget, MACs. Plain JSON: rows (batch, budget, cost: MACs, top1_val of the subnet, right: share
    of the batch, ms); pick_us: median of a pick; difference: largest between logits of one thread and of two at
    once; storage: that of `slimnb.papers.pss_net.switcher`; about. Raises StoreError without the run's weights.
    """
    settings = {"paper": result.recipe.paper, "arm": "switching", "scale": result.recipe.scale, "of": result.run_id,
                "budgets": list(budgets), "images": images, "device": torch.device(device).type}

    def take() -> dict:
        choices = [PricedSubnet(Subnet.from_json(row["subnet"]), row["macs"], row["top1_val"]) for row in result.rows]
        net = trained(result, data.num_classes, store).to(device)
        feed = Batches(data.test, images, augment="none", mean=data.mean, std=data.std, size=net.input_size,
                       device=device)
        return serve(SubnetSwitcher(net, choices), [feed.batch(step) for step in range(len(budgets))], budgets)

    return once(store, settings, code_fingerprint([serve, SubnetSwitcher, result.recipe.net_type()]), take)


def serve(switcher: SubnetSwitcher, batches: Sequence[tuple[Tensor, Tensor]], budgets: Sequence[float]) -> dict:
    """What `switching` measures of a switcher, batch by batch."""
    x, rows, logits = batches[0][0], [], []
    for choice in switcher.choices:
        switcher(x, choice.cost)  # the first call of a shape is slow
    for batch, ((x, y), budget) in enumerate(zip(batches, budgets, strict=True)):
        began = time.perf_counter()
        logits.append(switcher(x, budget).cpu())  # which waits for the device
        ms, choice = 1e3 * (time.perf_counter() - began), switcher.pick(budget)
        right = (logits[-1].argmax(1) == y.cpu()).float().mean().item()
        rows.append({"batch": batch, "budget": budget, "cost": choice.cost, "top1_val": choice.top1_val,
                     "right": round(right, 4), "ms": round(ms, 4)})
    with ThreadPoolExecutor(2) as threads:
        again = list(threads.map(lambda pair: switcher(pair[0][0], pair[1]).cpu(),
                                 zip(batches, budgets, strict=True)))
    picks = timeit.repeat(lambda: switcher.pick(budgets[0]), number=1000, repeat=9)
    return {"rows": rows, "pick_us": round(1e3 * statistics.median(picks), 3), "about": conditions(x),
            "difference": max((a - b).abs().max().item() for a, b in zip(logits, again, strict=True)),
            "storage": storage(switcher.net, [choice.subnet for choice in switcher.choices])}
