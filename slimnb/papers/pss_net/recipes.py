"""Chapter 04: supernets that learn by themselves which subnets of each cost are worth training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval

from slimnb import plugins
from slimnb.cost.table import macs_function
from slimnb.data.datasets import ImageData
from slimnb.errors import SearchError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.pss_net.method import PrioritizedSubnetSampling, ReducedSandwich
from slimnb.papers.pss_net.pools import Listed, Source, Target
from slimnb.papers.pss_net.structure_samplers import ExactDistribution, StructureDistribution
from slimnb.papers.pss_net.structures import RESOLUTIONS, Buckets, Resource, StructureCosts, Structures, structure_space
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches, any_width
from slimnb.papers.slimmable.recipes import FULL, SMALL, SMOKE
from slimnb.rng import rng_at
from slimnb.rules import Count, Pixels, Share, Whole
from slimnb.runs.store import RunStore, code_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.experiment import Context, Result, once
from slimnb.train.measure import choose, chosen
from slimnb.train.protocols import Labels, Objective, Sampler
from slimnb.train.recipe import Recipe, check_scale, unknown_method

CHAPTER = "04_pss_net"
METHODS = ("prioritized", "random", "sandwich", "alone")
PSS = "PSS-F"
"""The arm, held to MACs, that later ones take structures and weights from; PSS-C, -G, -M: other resources, several."""


@dataclass(frozen=True)
class StructureRecipe(Recipe):
    """Trains a supernet for many targets (method "prioritized", "random" or "sandwich"), or one subnet of it ("alone").

    Widths go down to the least of `train_mults`, which are those of uniform subnets.
    """

    resolutions: tuple[Pixels, ...] = ()  # input sides, pixels
    buckets: tuple[tuple[str, float, float, float], ...] = ()  # resource, first and last target, step
    tables: tuple[str, ...] = ()  # runs that measured the latencies among these resources
    samples: Count = 100_000  # random structures that Eq. 4's marginals are taken of
    source: str = "marginals"  # of new structures: "marginals" (Eq. 4), "chain" (exact), "uniform" widths
    pool_size: Count = 50
    p_end: Share = 0.01
    eta_end: Annotated[float, Interval(gt=0, le=1)] = 0.01
    top_k: Count = 5  # subnets of each target that are calibrated and validated
    kept: tuple[tuple[str, tuple[int, ...], int], ...] = ()  # (name, widths, resolution) of given subnets
    kept_from: Whole = 0  # epoch from which they alone are trained

    @property
    def largest(self) -> float | tuple[int, ...]:
        """The supernet's width multiplier; of a subnet trained alone, its channels."""
        return self.kept[0][1] if self.method == "alone" else super().largest

    def named(self, net: SlimmableNet) -> dict[str | float, Subnet]:
        """Return the subnets that the recipe lists, by name."""
        return {name: Subnet(tuple(widths), resolution=side) for name, widths, side in self.kept}

    def parts(self) -> list[Callable]:
        """The net's class, and of each resource that is no measured one its function; of a class method the class."""
        resources = [plugins.find("resources", name) for name, *_ in self.buckets if name in plugins.names("resources")]
        return [*super().parts(), *(getattr(each, "__self__", each) for each in resources)]

    def structures(self, net: SlimmableNet) -> Structures:
        """Return the space of structures: widths down to the least of `train_mults`, and `resolutions`."""
        return structure_space(net, min(self.train_mults), self.resolutions)

    def targets(self, net: SlimmableNet, store: RunStore | None = None) -> list[Target]:
        """Return every bucket that has structures, resource by resource.

        `store` holds the latencies that `tables` name. Raises SearchError if a latency is missing, or if no bucket has
        any.
        """
        structures, targets = self.structures(net), []
        measured = [Resource.from_json(store.record_of(run_id)["result"]) for run_id in self.tables]
        known = {resource.name: resource for resource in measured}
        for name, *bounds in self.buckets:
            resource = known[name] if name in known else self._resource(name, net, structures)
            source = self._source(net, structures, resource, Buckets(*bounds))
            targets += [Target(resource, source, bucket) for bucket in np.flatnonzero(source.support).tolist()]
        if not targets:
            raise SearchError(f"buckets = {self.buckets}"[:100], "none of them has structures",
                              "Set targets within what structures cost, e.g. by Buckets.spanning.")
        return targets

    def _resource(self, name: str, net: SlimmableNet, structures: Structures) -> Resource:
        if name not in plugins.names("resources"):
            raise SearchError(f"resource {name!r}", f"there are {', '.join(plugins.names('resources'))}",
                              "Measure it, and name its run in `tables`.")
        return plugins.find("resources", name)(net, structures)

    def _source(self, net: SlimmableNet, structures: Structures, resource: Resource, buckets: Buckets) -> Source:
        if self.source == "uniform":
            uniform = [net.uniform(mult, side) for side in self.resolutions for mult in self.train_mults]
            return Listed(uniform, resource, buckets)
        costs = StructureCosts.of(structures, resource)
        if self.source == "chain":
            return ExactDistribution(costs, buckets)
        rng = rng_at(self.seed, f"structures by {resource.name}", 0)
        return StructureDistribution.fit(costs, buckets, rng, self.samples)

    def sampler_and_objective(self, net: SlimmableNet, steps: int,
                              store: RunStore | None = None) -> tuple[Sampler, Objective]:
        """Return what trains each method, see the class."""
        if self.method == "alone":
            return Switches(self.named(net)), Labels()
        if self.method not in METHODS:
            raise unknown_method(self, METHODS)
        return self._sampler(net, steps, store), InplaceDistillation(self.temperature)

    def _sampler(self, net: SlimmableNet, steps: int, store: RunStore | None) -> Sampler:
        space = self.structures(net)
        ends = (net.largest, space.space.smallest)
        if self.method == "prioritized":
            return PrioritizedSubnetSampling(
                net, self.targets(net, store), ends[1], steps, self.epochs, pool_size=self.pool_size,
                p_end=self.p_end, eta_end=self.eta_end, seed=self.seed)
        if self.method == "random":
            return Sandwich(*ends, lambda rng: space.subnets(space.draw(rng, 1))[0], self.n_random, self.seed)
        arguments = (*ends, any_width(net, self.train_mults, self.resolutions), self.n_random, self.seed)
        kept, since = list(self.named(net).values()), self.kept_from * steps // self.epochs
        return ReducedSandwich(*arguments, kept=kept, since=since) if kept else Sandwich(*arguments)

    def candidates(self, net: SlimmableNet, sampler: Sampler) -> dict[str, list[Subnet]]:
        """Return, by target, at most `top_k` subnets to choose from, most promising first; also "max" and "min".

        For "prioritized" these are the best of each pool, fewer if it holds fewer. For "random" they are random
        structures of the target. For uniform widths they are those of the bucket, dearest first; targets whose bucket
        has none are left out. For a sandwich of listed subnets they are those alone. A net that is trained for one
        subnet has no candidates.
        """
        if self.method == "alone":
            return {}
        space = self.structures(net).space
        ends = {"max": [space.largest], "min": [space.smallest]}
        if isinstance(sampler, PrioritizedSubnetSampling):
            sampler.settle()
            ranked = {target.name: pool.ranked() for target, pool in zip(sampler.targets, sampler.pools, strict=True)}
        elif self.kept and not self.kept_from:
            ranked = {name: [subnet] for name, subnet in self.named(net).items()}
        else:
            ranked = {}
            for number, target in enumerate(self.targets(net)):
                rng, uniform = rng_at(self.seed, "candidates", number), isinstance(target.source, Listed)
                ranked[target.name] = (target.source.members[target.bucket] if uniform
                                       else target.sample(rng, self.top_k))
        return ends | {name: subnets[: self.top_k] for name, subnets in ranked.items() if subnets}

    def measure(self, net: SlimmableNet, sampler: Sampler, data: ImageData, *, device: str = "cpu",
                group=None) -> tuple[list[dict], dict]:
        """Validate all `candidates` and test those that are chosen; if there are none, measure the one subnet."""
        candidates = self.candidates(net, sampler)
        if not candidates:
            return super().measure(net, sampler, data, device=device, group=group)
        rows = choose(net, data, candidates, images=self.calibration_images, device=device, group=group)
        return chosen(rows, self.top_k), {"candidates": rows}

    def findings(self, net: SlimmableNet, sampler: Sampler) -> dict:
        """Return `pools`: each target's name, cost, unit, how often it was trained, and from the pool (`reused`).

        Each has the pool's `structures` (widths, and last the resolution), best first, their `metrics`, nats, the step
        they came at (`since`), and how many metrics were `refused`.
        """
        if not isinstance(sampler, PrioritizedSubnetSampling):
            return {}
        sampler.settle()
        rows = zip(sampler.targets, sampler.pools, sampler.trained, sampler.reused, strict=True)
        return {"pools": [
            {"name": target.name, "cost": target.cost, "unit": target.resource.unit, "trained": int(trained),
             "reused": int(reused), "refused": pool.refused,
             "structures": [[*subnet.widths, subnet.resolution] for subnet in pool.ranked()],
             "metrics": [pool.metrics[subnet] for subnet in pool.ranked()],
             "since": [pool.since[subnet] for subnet in pool.ranked()]}
            for target, pool, trained, reused in rows]}


def mults_from(lower: float) -> tuple[float, ...]:
    """Return uniform width multipliers from `lower` to 1 in steps of .025, as US-Net and MutualNet have them."""
    return tuple(round(1 - 0.025 * i, 3) for i in range(round((1 - lower) / 0.025), -1, -1))


@dataclass(frozen=True)
class Family:
    """The arms of one net: how it is trained, and at which costs."""

    base: StructureRecipe
    step: float  # between targets, MACs
    targets: int  # of a latency, about
    tuned: tuple[str, ...]  # targets whose best subnet is trained further, Table 6
    us_net: float  # least width of US-Net, which has one resolution
    lowers: tuple[float, ...] = ()  # other least widths, Table 4
    more: bool = True  # whether arms beyond Table 1 are trained
    tuning: int = 1  # epochs of Table 6
    samples: int = 100_000  # of PSS-M, whose targets are many
    batch: int = 1  # images whose latency is measured


# Section 4.1 and the released code; US-Net's width and steps are its own. What is not named here comes from the shared
# FULL, SMALL and SMOKE of slimnb/papers/slimmable/recipes.py; a change of either gives new run ids.
_FULL = FULL.into(
    StructureRecipe, paper="pss_net", method="prioritized", bn="calibrated", mults=(), n_random=1, lr=0.3,
    schedule="cosine", calibration_images=8 * 1024, train_mults=mults_from(0.75), resolutions=RESOLUTIONS[224],
    jitter=(0.4, 0.4, 0.4), lighting=0.1)
_SMALL = replace(
    _FULL, scale="small", batch_size=SMALL.batch_size, lr=SMALL.lr, augment=SMALL.augment, input_size=SMALL.input_size,
    layout=SMALL.layout, dtype=SMALL.dtype, jitter=None, lighting=None, epochs=4, calibration_images=2048, pool_size=25,
    resolutions=RESOLUTIONS[32])
_SMOKE = replace(_SMALL, scale="smoke", epochs=2, batch_size=256, lr=SMOKE.lr, augment=SMOKE.augment,
                 layout=((16, 4), (32, 1), (64, 2), (64, 1)), dtype=SMOKE.dtype, calibration_images=256, pool_size=3,
                 top_k=2)

FAMILIES = {
    "smoke": (Family(_SMOKE, 0.03e6, 3, ("0.12 M",), 0.45),),
    "small": (Family(_SMALL, 1e6, 8, ("4 M", "6 M", "8 M"), 0.45, (0.25,), batch=8),),
    "full": (Family(_FULL, 10e6, 20, ("300 M", "400 M", "500 M"), 0.25, (0.25,), tuning=25,
                    samples=1_000_000),
             Family(replace(_FULL, net="mobilenet_v2"), 10e6, 20, (), 0.25, (0.7, 0.8), more=False)),
}
"""The nets of each scale; at small and smoke halves of MobileNetV1 at 20 to 32 pixels.

At small eight images are timed: one takes .8 ms whatever its structure, most of it spent on calls.
"""


# -- stage 1: what needs no other run --------------------------------------------------------------------


def arms(context: Context) -> list[Recipe]:
    """Return US-Net, MutualNet and random structures; prioritized sampling, by resource and with other structures.

    All make three passes per step. The latencies of this machine are measured first, once.
    """
    recipes, scale, classes = [], check_scale(context.scale), context.data.num_classes
    for family in FAMILIES[scale]:
        base = replace(family.base, seed=context.seed)
        base = replace(base, buckets=(macs_buckets(base, classes, family.step),))
        mutual = replace(base, arm="MutualNet", method="sandwich", source="uniform")
        recipes += [
            replace(mutual, arm="US-Net", train_mults=mults_from(family.us_net), resolutions=base.resolutions[-1:]),
            mutual, replace(base, arm=PSS, top_k=20 if scale != "smoke" else base.top_k)]
        if family.more:
            recipes += [replace(base, arm="Random", method="random"),
                        replace(base, arm="Uniform pools", source="uniform"),
                        replace(base, arm="Exact sampling", source="chain")]
        recipes += latency_arms(family, base, classes, context.store)
        for lower in family.lowers:
            ends = {"train_mults": mults_from(lower)}
            ends["buckets"] = (macs_buckets(replace(base, **ends), classes, family.step),)
            recipes += [replace(recipe, arm=f"{recipe.arm} from {lower:g}x", **ends)
                        for recipe in (mutual, replace(base, arm=PSS))]
    return recipes


def macs_buckets(recipe: StructureRecipe, num_classes: int, step: float) -> tuple[str, float, float, float]:
    """Return the resource "MACs" with targets over all that structures cost."""
    with torch.device("meta"):  # shapes are enough
        net = recipe.build(num_classes)
    sides = recipe.resolutions  # the ends are enough: MACs grow with the resolution
    space = replace(recipe, resolutions=(sides[0], sides[-1])).structures(net)
    buckets = Buckets.spanning(StructureCosts.of(space, Resource.macs(net, space)), step)
    return "MACs", buckets.start, buckets.stop, buckets.step


def latency_buckets(costs: StructureCosts, targets: int) -> tuple[str, float, float, float]:
    """Return about so many `targets` of a latency, over all but the fastest and slowest hundredth of random structures.

    Between the extremes there would be targets without structures as soon as one layer's time is an outlier.
    """
    drawn = costs.structures.draw(rng_at(0, "latency", 0), 10_000)
    low, high = np.quantile(costs.cost(drawn), (0.01, 0.99)).tolist()
    step = float(f"{(high - low) / (targets + 1):.1g}")
    start, stop = (round(round(end / step) * step, 9) for end in (low, high))
    return costs.resource.name, start, stop, step


def latency_arms(family: Family, base: StructureRecipe, num_classes: int, store: RunStore) -> list[StructureRecipe]:
    """Return PSS-C, at full PSS-G if there is a GPU, and PSS-M, which is held to all of these and to MACs."""
    devices = {"PSS-C": "cpu"}
    if base.scale == "full" and torch.cuda.is_available():
        devices["PSS-G"] = "cuda"
    parts = []
    for arm, device in devices.items():
        stored = latency(base, num_classes, store, device, family.batch)
        resource = Resource.from_json(stored)
        with torch.device("meta"):
            costs = StructureCosts.of(base.structures(base.build(num_classes)), resource)
        parts.append(replace(base, arm=arm, buckets=(latency_buckets(costs, family.targets),),
                            tables=(stored["run_id"],)))
    several = {name: tuple(value for part in parts for value in getattr(part, name)) for name in ("buckets", "tables")}
    several["buckets"] = base.buckets + several["buckets"]
    return [*parts, replace(base, arm="PSS-M", samples=family.samples, **several)]


def latency(recipe: StructureRecipe, num_classes: int, store: RunStore, device: str = "cpu", batch: int = 1) -> dict:
    """Measure a batch's latency over a recipe's structures, once: the `Resource.to_json` and run_id."""
    settings = {"paper": recipe.paper, "arm": "latency", "scale": recipe.scale, "net": recipe.net, "device": device,
                "batch": batch, "layout": recipe.layout, "lower": min(recipe.train_mults),
                "resolutions": recipe.resolutions}

    def take() -> dict:
        net = recipe.build(num_classes).to(device).eval()
        return Resource.latency(net, recipe.structures(net), batch, rounds=7).to_json()

    return once(store, settings, code_fingerprint([Resource, structure_space, recipe.net_type()]), take)


# -- stage 2: what looks at the subnets that were found --------------------------------------------------


def followers(context: Context) -> list[Recipe]:
    """Return arms that follow from finished ones: a reduced MutualNet, subnets in a sandwich of their own, fine-tuning.

    Arms whose run is not among `results` are left out. From halfway on, the reduced MutualNet draws from what validated
    best in MutualNet's run, as its trade-off curve; the paper does not say what it kept (Fig. 1, right). The sandwiches
    train the subnets that PSS chose for each target, and beside them the uniform widths of the nearest MACs at the same
    resolution (Fig. 1, left).
    """
    recipes = []
    for family in FAMILIES[check_scale(context.scale)]:
        by_arm = {result.recipe.arm: result for result in context.results if result.recipe.net == family.base.net}
        if not family.more:
            continue
        if "MutualNet" in by_arm:
            mutual = by_arm["MutualNet"]
            recipes.append(replace(mutual.recipe, arm="MutualNet, reduced", kept=best(mutual),
                                   kept_from=mutual.recipe.epochs // 2))
        if PSS in by_arm:
            recipes += _after(family, by_arm[PSS], context.data.num_classes)
    return recipes


def _after(family: Family, pss: Result, num_classes: int) -> list[StructureRecipe]:
    again = replace(pss.recipe, method="sandwich", source="uniform", top_k=family.base.top_k)
    tuned = replace(again, arm="Fine-tuned", method="alone", start=pss.run_id, epochs=family.tuning,
                    lr=pss.recipe.lr / 10)  # the paper names no rate
    winners = best(pss)
    return [replace(again, arm="Given widths", kept=winners),
            replace(again, arm="Given uniform widths", kept=uniform_twins(pss.recipe, winners, num_classes)),
            *(replace(tuned, kept=(winner,)) for winner in winners if winner[0] in family.tuned)]


def best(result: Result) -> tuple[tuple[str, tuple[int, ...], int], ...]:
    """Return (target, widths, resolution) of the subnets that a run has chosen, without its two ends."""
    chosen = {row["name"]: Subnet.from_json(row["subnet"]) for row in result.rows if row["name"] not in ("max", "min")}
    return tuple((name, subnet.widths, subnet.resolution) for name, subnet in chosen.items())


def uniform_twins(recipe: StructureRecipe, winners: Sequence[tuple[str, tuple[int, ...], int]],
                  num_classes: int) -> tuple[tuple[str, tuple[int, ...], int], ...]:
    """Return for each of `winners` the uniform width of the nearest MACs, at the same resolution."""
    with torch.device("meta"):
        net = recipe.build(num_classes)
    fine = range(round(1000 * min(recipe.train_mults)), 1001)
    uniform = dict.fromkeys(net.widths_at(mult / 1000) for mult in fine)
    macs = {side: macs_function(net, resolution=side) for side in recipe.resolutions}
    twins = []
    for name, widths, side in winners:
        own = macs[side](Subnet(widths, resolution=side))
        near = min(uniform, key=lambda candidate: abs(macs[side](Subnet(candidate, resolution=side)) - own))
        twins.append((name, near, side))
    return tuple(twins)


STAGES = (arms, followers)
