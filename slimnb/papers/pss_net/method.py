"""PSS-Net: a pool of good subnets for every resource target, and training that prefers those (Chen et al.)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from slimnb.errors import ParameterError, SearchError, StoreError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.pss_net.pools import Listed, Pool, Target, entries_of, fill_, pack_entries, unpack_entries
from slimnb.papers.pss_net.samplers import ExactDistribution, StructureDistribution
from slimnb.papers.pss_net.structures import Buckets, Resource, StructureCosts, Structures, structure_space
from slimnb.papers.slimmable.method import Draw, InplaceDistillation, Sandwich, Switches, any_of, any_width
from slimnb.rng import rng_at
from slimnb.subnet import Subnet
from slimnb.train.loop import average_
from slimnb.train.protocols import Labels, Objective, Outcome, Pass, Sampler

# -- prioritized subnet sampling -------------------------------------------------------------------------


class Drawn(NamedTuple):
    """Tag of the pooled pass: for which target it was drawn, and whether from the space or from its pool."""

    target: int
    fresh: bool


class PrioritizedSubnetSampling:
    """The largest subnet from the labels, then one of a random target and the smallest from the largest (Alg. 1, 2).

    The middle one comes from the space with probability p = p_end^((e-1)/E) in epoch e of E, else from its target's
    pool, by softmax(metric / eta), eta = eta_end^((e-1)/E). Until a pool is full its p and eta are 1: the indicator
    in Eq. 3 is printed the wrong way round (the prose has it so, and the released code). All targets are equally
    likely, which draws a resource with probability proportional to its targets (PSS-M). A pool is also full when it
    holds all structures of its target, where these are listed.

    The metric is minus the mean cross-entropy of the middle pass itself, before the update: the released code
    computes the same number in a forward pass of its own, which is left out; the training loss that the text names
    is a divergence from the teacher. It reaches the pool a step late, so that nobody waits for the device; with
    several ranks it is their mean. Errors: SearchError for p_end or eta_end outside (0, 1] and by `Pool`.
    """

    def __init__(self, net: SlimmableNet, targets: Sequence[Target], smallest: Subnet, steps: int, epochs: int, *,
                 pool_size: int = 50, p_end: float = 0.01, eta_end: float = 0.01, momentum: float = 0.9,
                 seed: int = 0):
        for name, value in (("p_end", p_end), ("eta_end", eta_end)):
            if not 0 < value <= 1:
                raise SearchError(f"{name} = {value!r}"[:60], "it is > 0 and at most 1", f"Set {name}=0.01.")
        self.targets = list(targets)
        self.pools = [Pool(min(pool_size, target.size), momentum) for target in self.targets]
        self.steps, self.epochs, self.p_end, self.eta_end, self.seed = steps, epochs, p_end, eta_end, seed
        self.units = len(net.largest.widths)
        self.largest = Pass(net.largest, name="largest")
        self.smallest = Pass(smallest, target="teacher", name="smallest")
        self.trained = np.zeros(len(self.pools), dtype=np.int64)  # steps by target
        self.reused = np.zeros(len(self.pools), dtype=np.int64)  # those of them that were drawn from the pool
        self.pending: tuple[int, Subnet, Callable[[], float], int] | None = None

    def subnets(self) -> list[Subnet]:
        """The two ends."""
        return [self.largest.route, self.smallest.route]

    def rates(self, step: int) -> tuple[float, float]:
        """(p, eta) of a full pool: constant within an epoch."""
        gone = step * self.epochs // self.steps / self.epochs  # (e - 1) / E
        return self.p_end**gone, self.eta_end**gone

    def plan(self, step: int) -> list[Pass]:
        """Largest, pooled, smallest; the tag of the second is a `Drawn`."""
        rng = rng_at(self.seed, "prioritized", step)
        number = int(rng.integers(len(self.targets)))
        pool, (p, eta) = self.pools[number], self.rates(step)
        fresh = not pool.full or rng.random() < p
        subnet = self.targets[number].sample(rng)[0] if fresh else pool.sample(rng, eta)
        return [self.largest, Pass(subnet, "teacher", name="pooled", tag=Drawn(number, fresh)), self.smallest]

    def observe(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Enter the last step's metric, and set this one's on its way."""
        self.settle()
        middle = outcomes[1]
        number, fresh = middle.made.tag
        self.trained[number] += 1
        self.reused[number] += not fresh
        ce = middle.ce.mean()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            average_([ce], dist.group.WORLD)
        self.pending = number, middle.made.route, towards_host(ce), step

    def settle(self) -> None:
        """Enter the metric that is on its way, if there is one: `observe` does it, and who reads the pools."""
        if self.pending:
            number, subnet, ce, step = self.pending
            self.pools[number].enter(subnet, -ce(), step)
            self.pending = None

    def state_dict(self) -> dict[str, Tensor]:
        """Pools, counts, and the metric that is on its way."""
        late = []
        if self.pending:
            number, subnet, ce, step = self.pending
            late = [(number, subnet, -ce(), step)]
        counts = np.stack([self.trained, self.reused, [pool.refused for pool in self.pools]])
        entries = {"pools": pack_entries(entries_of(self.pools), self.units), "late": pack_entries(late, self.units)}
        return {"counts": torch.from_numpy(counts)} | {f"{name}/{key}": value for name, state in entries.items()
                                                       for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave. Raises StoreError if it is of another space or other targets."""
        if state["counts"].shape != (3, len(self.pools)):
            raise StoreError(f"{state['counts'].shape[-1]} pools", f"this training has {len(self.pools)}",
                             "Go on with the targets it was trained with.", "Nothing was trained.")
        entries, late = (unpack_entries({key.removeprefix(f"{name}/"): value for key, value in state.items()},
                                        len(self.pools), lambda subnet, pool: self.targets[pool].holds(subnet))
                         for name in ("pools", "late"))
        fill_(self.pools, entries)
        self.trained, self.reused, refused = state["counts"].cpu().numpy().copy()
        for pool, count in zip(self.pools, refused.tolist(), strict=True):
            pool.refused = count
        self.pending = None
        for number, subnet, metric, step in late:
            self.pending = number, subnet, partial(float, -metric), step


def towards_host(value: Tensor) -> Callable[[], float]:
    """Sets a scalar on its way to the host; calling what comes back waits for this copy alone, and gives it."""
    if not value.is_cuda:
        return lambda: float(value.numpy())
    host = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return float(host.numpy())

    return read


class ReducedSandwich(Sandwich):
    """The sandwich rule that from step `since` on draws from the `kept` subnets alone (Fig. 1)."""

    def __init__(self, largest: Subnet, smallest: Subnet, draw: Draw, n_random: int = 1, seed: int = 0, *,
                 kept: Sequence[Subnet], since: int):
        super().__init__(largest, smallest, draw, n_random, seed)
        self.reduced, self.since = Sandwich(largest, smallest, any_of(kept), n_random, seed), since

    def plan(self, step: int) -> list[Pass]:
        """Largest, smallest, random ones: a pure function of (seed, step)."""
        return super().plan(step) if step < self.since else self.reduced.plan(step)


# -- from a recipe ---------------------------------------------------------------------------------------


def structures_of(recipe, net: SlimmableNet) -> Structures:
    """The structure space of a recipe: widths down to the least of `train_mults`, and its resolutions."""
    return structure_space(net, min(recipe.train_mults), recipe.resolutions)


def targets_of(recipe, net: SlimmableNet, tables: Sequence[dict] = ()) -> list[Target]:
    """Every bucket of a recipe that has structures, resource by resource; `tables` are stored latencies.

    Raises SearchError if a latency is missing, or if no bucket has any.
    """
    structures, targets = structures_of(recipe, net), []
    known = {resource.name: resource for resource in map(Resource.from_json, tables)}
    known["MACs"] = Resource.macs(net, structures)
    for name, *bounds in recipe.buckets:
        if name not in known:
            raise SearchError(f"resource {name!r}", f"there are tables of {', '.join(known)}",
                              "Measure it, and name its run in `tables`.")
        resource, buckets = known[name], Buckets(*bounds)
        if recipe.source == "uniform":
            uniform = [net.uniform(mult, side) for side in recipe.resolutions for mult in recipe.train_mults]
            source = Listed(uniform, resource, buckets)
        elif recipe.source == "chain":
            source = ExactDistribution(StructureCosts.of(structures, resource), buckets)
        else:
            costs, rng = StructureCosts.of(structures, resource), rng_at(recipe.seed, f"structures by {name}", 0)
            source = StructureDistribution.fit(costs, buckets, rng, recipe.samples)
        targets += [Target(resource, source, bucket) for bucket in np.flatnonzero(source.support).tolist()]
    if not targets:
        raise SearchError(f"buckets = {recipe.buckets}"[:100], "none of them has structures",
                          "Set targets within what structures cost, e.g. by Buckets.spanning.")
    return targets


def plan(recipe, net: SlimmableNet, steps: int, tables: Sequence[dict] = ()) -> tuple[Sampler, Objective]:
    """Sampler and objective of a `slimnb.papers.pss_net.recipes.StructureRecipe`."""
    if recipe.method == "alone":
        return Switches(recipe.named(net)), Labels()
    space = structures_of(recipe, net)
    ends, seed = (net.largest, space.space.smallest), recipe.seed
    if recipe.method == "prioritized":
        sampler = PrioritizedSubnetSampling(
            net, targets_of(recipe, net, tables), ends[1], steps, recipe.epochs, pool_size=recipe.pool_size,
            p_end=recipe.p_end, eta_end=recipe.eta_end, seed=seed)
    elif recipe.method == "random":
        sampler = Sandwich(*ends, lambda rng: space.subnets(space.draw(rng, 1))[0], recipe.n_random, seed)
    elif recipe.method == "sandwich":
        given = (*ends, any_width(net, recipe.train_mults, recipe.resolutions), recipe.n_random, seed)
        kept, since = list(recipe.named(net).values()), recipe.kept_from * steps // recipe.epochs
        sampler = ReducedSandwich(*given, kept=kept, since=since) if kept else Sandwich(*given)
    else:
        raise ParameterError(f"method = {recipe.method!r}", "it is prioritized, random, sandwich or alone",
                             "Set method='prioritized'.")
    return sampler, InplaceDistillation(recipe.temperature)


def candidates(recipe, net: SlimmableNet, sampler: Sampler) -> dict[str, list[Subnet]]:
    """By target, most promising first, at most `top_k` subnets to choose from; also "max" and "min".

    Prioritized: the best of each pool, fewer if it holds fewer, none of a pool that is empty. Random: random
    structures of the target. Uniform widths: those of its bucket, dearest first; targets in whose bucket there is
    none are left out. A sandwich of given subnets alone: those. {} of a net that is trained for one subnet.
    """
    if recipe.method == "alone":
        return {}
    space = structures_of(recipe, net).space
    named = {"max": [space.largest], "min": [space.smallest]}
    if isinstance(sampler, PrioritizedSubnetSampling):
        sampler.settle()
        ranked = {target.name: pool.ranked() for target, pool in zip(sampler.targets, sampler.pools, strict=True)}
    elif recipe.kept and not recipe.kept_from:
        ranked = {name: [subnet] for name, subnet in recipe.named(net).items()}
    else:
        ranked = {}
        for number, target in enumerate(targets_of(recipe, net)):
            rng, uniform = rng_at(recipe.seed, "candidates", number), isinstance(target.source, Listed)
            ranked[target.name] = target.source.members[target.bucket] if uniform else target.sample(rng, recipe.top_k)
    return named | {name: subnets[: recipe.top_k] for name, subnets in ranked.items() if subnets}


def found(recipe, net: SlimmableNet, sampler: Sampler) -> dict:
    """`pools`: for each target its name, cost, unit, how often it was trained, and from the pool (`reused`).

    With them the pool's `structures` (widths, and last the resolution), best first, their `metrics`, nats, the step
    they came at (`since`), and how many metrics were `refused`.
    """
    if not isinstance(sampler, PrioritizedSubnetSampling):
        return {}
    sampler.settle()
    return {"pools": [
        {"name": target.name, "cost": target.cost, "unit": target.resource.unit, "trained": int(trained),
         "reused": int(reused), "refused": pool.refused,
         "structures": [[*subnet.widths, subnet.resolution] for subnet in pool.ranked()],
         "metrics": [pool.metrics[subnet] for subnet in pool.ranked()],
         "since": [pool.since[subnet] for subnet in pool.ranked()]}
        for target, pool, trained, reused in zip(sampler.targets, sampler.pools, sampler.trained, sampler.reused,
                                                 strict=True)]}
