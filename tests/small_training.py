"""A small net, its batches and the samplers there are, for the tests of training."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slimnb import plugins
from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.deps.method import DelayedShrinking, Draws, LinearRamp
from slimnb.papers.ds_net.method import Routed
from slimnb.papers.platforms.method import PlatformSandwich, SmoothedViterbi, WidthSearch
from slimnb.papers.pss_net.method import PrioritizedSubnetSampling, ReducedSandwich
from slimnb.papers.pss_net.pools import Target
from slimnb.papers.pss_net.structure_samplers import StructureDistribution
from slimnb.papers.pss_net.structures import Buckets, Resource, StructureCosts, structure_space
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches, Uniform, any_width
from slimnb.papers.sp_net.method import EmbeddedSwitches
from slimnb.rng import rng_at
from slimnb.runs.checkpoint import pack, unpack
from slimnb.search.trellis import Trellis
from slimnb.subnet import Subnet
from slimnb.train.experiment import Context
from slimnb.train.loop import train
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels, Pass
from slimnb.train.recipe import Recipe

LAYOUT = ((16, 2), (24, 1), (32, 2))  # so small that .875 rounds to the channels of 1.0
MULTS = (0.5, 0.75, 1.0)
ANY_DATA = SimpleNamespace(num_classes=10, size=32)  # as much as a stage may ask for


def small(bn: str = "calibrated", seed: int = 0) -> MobileNetV1:
    """A net of 16 to 32 channels and 10 classes whose logits are not near zero."""
    net = MobileNetV1(10, 32, layout=LAYOUT, bn=bn, seed=seed)
    with torch.no_grad():
        net.classifier.weight.mul_(20)
    return net


class Noise:
    """Batches of 8 noisy 12-pixel images that have something to do with their labels."""

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = torch.Generator().manual_seed(step)
        y = torch.randint(0, 10, (8,), generator=rng)
        x = torch.randn(8, 3, 12, 12, generator=rng) * 0.5
        x[torch.arange(8), 0, y] += 2
        return x.contiguous(memory_format=torch.channels_last), y


def sampler_classes() -> dict[str, type]:
    """Every class of the papers' modules, other packages' among them, that has all methods of the Sampler protocol."""
    needed = {"subnets", "plan", "observe", "state_dict", "load_state_dict"}
    found = {}
    for paper in plugins.names("papers"):
        package = plugins.find("papers", paper).__package__
        for entry in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not entry.name.endswith("__main__"):
                module = importlib.import_module(entry.name)
                found |= {name: kind for name, kind in inspect.getmembers(module, inspect.isclass)
                          if kind.__module__ == entry.name and needed <= set(dir(kind))}
    return found


def recipes_from_outside() -> list[Recipe]:
    """What the papers of other packages train first at scale smoke."""
    papers = [paper for paper in plugins.names("papers") if paper not in plugins.OURS["papers"]]
    return [recipe for paper in papers
            for recipe in plugins.find("papers", paper).STAGES[0](Context("smoke", 0, ANY_DATA))]


def factory_of(recipe: Recipe):
    """Makes the recipe's sampler on a net that is given."""
    return lambda net, seed=0: replace(recipe, seed=seed).sampler_and_objective(net, 12)[0]


def switches(net) -> Switches:
    """S-Net's, named by multiplier."""
    return Switches({f"{mult}x": net.uniform(mult) for mult in MULTS})


def sandwich(net, seed: int = 0) -> Sandwich:
    """US-Net's, with random subnets between the ends."""
    return Sandwich(net.largest, net.uniform(0.5), any_width(net, (0.5, 0.625, 0.75, 0.875)), seed=seed)


def uniform(net, seed: int = 0) -> Uniform:
    """One random subnet per step, beside the largest."""
    return Uniform(net.largest, any_width(net, (0.5, 0.625, 0.75)), seed=seed)


def width_search(net, seed: int = 0, window: int = 30) -> WidthSearch:
    """OWS's; some of its windows overflow after a few steps."""
    return WidthSearch(net, net.space(MULTS), 8, seed=seed, window=window)


def smoothed_viterbi(net, seed: int = 0, steps: int = 15, window: int = 30, **options) -> SmoothedViterbi:
    """AOWS's for three platforms; its marginals change at every other step."""
    space = net.space(MULTS)
    trellis = Trellis.of(CostTable.macs(net, space).chain())
    budgets = [count_macs(net, net.uniform(mult)) for mult in MULTS]
    options = {"refresh": 2} | options
    return SmoothedViterbi(net, space, 8, trellis, budgets, (0.5, 0.2, 0.3), steps, seed=seed, window=window, **options)


def platform_sandwich(net, seed: int = 0) -> PlatformSandwich:
    """Retraining of five platforms' subnets, the last of which holds the others."""
    widths = ((8, 16, 16), (8, 16, 24), (8, 24, 16), (16, 16, 24), net.largest.widths)
    return PlatformSandwich({f"#{k}": Subnet(w) for k, w in enumerate(widths, 1)}, seed=seed)


def embedded(net) -> EmbeddedSwitches:
    """SP-Net's, over two subnets that are not nested."""
    thin, flat = ([max(1, most * (3 + (unit + shift) % 2 * 3) // 8) for unit, most in enumerate(net.largest.widths)]
                  for shift in (0, 1))
    return EmbeddedSwitches(net.largest, {"0.75x": Subnet(tuple(thin)), "0.5x": Subnet(tuple(flat))})


def targets(net, lower: float = 0.5, parts: int = 5) -> list[Target]:
    """Targets of MACs of a net at 16 to 32 pixels."""
    structures = structure_space(net, lower, (16, 24, 32))
    resource = Resource.macs(net, structures)
    costs = StructureCosts.of(structures, resource)
    buckets = Buckets.spanning(costs, costs.dearest / parts)
    source = StructureDistribution.fit(costs, buckets, rng_at(0, "tests", 0), 2000)
    return [Target(resource, source, bucket) for bucket in range(len(buckets)) if source.support[bucket]]


def prioritized(net, seed: int = 0, steps: int = 12, **options) -> PrioritizedSubnetSampling:
    """PSS-Net's with pools that are full after a few steps."""
    options = {"pool_size": 2} | options
    smallest = Subnet(net.uniform(0.5).widths, resolution=16)
    return PrioritizedSubnetSampling(net, targets(net), smallest, steps, 3, seed=seed, **options)


def reduced(net, seed: int = 0) -> ReducedSandwich:
    """MutualNet's, of whose subnets two are left from step 5 on."""
    mults, sides = (0.5, 0.625, 0.75, 0.875), (16, 24, 32)
    return ReducedSandwich(net.largest, net.uniform(0.5, 16), any_width(net, mults, sides), seed=seed, since=5,
                           kept=[net.uniform(0.75, 24), net.uniform(0.875, 32)])


def delayed_shrinking(net, seed: int = 0) -> DelayedShrinking:
    """US-Net's sandwich after a warm-up of two steps, epsilon rising for four."""
    return DelayedShrinking(sandwich(net, seed), 2, LinearRamp(4))


def draws(net, seed: int = 0) -> Draws:
    """Three random subnets per step, as OFA's phases have them."""
    return Draws(net.space(MULTS).sample, 3, seed)


def routed(net, seed: int = 0) -> Routed:
    """DS-Net's second stage: one pass, whose route a net's own gates find."""
    return Routed(2, temperature=0.5, seed=seed)


FACTORIES = {
    "Switches": switches,
    "Sandwich": sandwich,
    "Uniform": uniform,
    "WidthSearch": width_search,
    "SmoothedViterbi": smoothed_viterbi,
    "PlatformSandwich": platform_sandwich,
    "EmbeddedSwitches": embedded,
    "PrioritizedSubnetSampling": prioritized,
    "ReducedSandwich": reduced,
    "DelayedShrinking": delayed_shrinking,
    "Draws": draws,
    "Routed": routed,
}
"""How to make each sampler on a `small` net; a new method adds its own here, but for those of other packages."""
for outside in recipes_from_outside():
    FACTORIES.setdefault(type(factory_of(outside)(small())).__name__, factory_of(outside))


class Memory:
    """A run store of one checkpoint, kept as the bytes a file would hold; may spoil what it hands out."""

    def __init__(self, data: bytes | None = None, spoil=lambda tensors, meta: None):
        self.data, self.spoil = data, spoil

    def load(self):
        if self.data is None:
            return None
        tensors, meta = unpack(self.data)
        self.spoil(tensors, meta)
        return tensors, meta

    def save(self, step, tensors, meta):
        self.data = pack(tensors, meta)


class NoSync(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "is_nonzero",
            "equal",
        ):
            raise AssertionError(f"the host waits in {func}")
        return func(*args, **kwargs or {})


def s_net(seed: int = 0):
    """(net, sampler, objective) of S-Net, batch norm private."""
    net = small("private", seed)
    sampler = switches(net)
    net.reserve(sampler.subnets())
    return net, sampler, Labels()


def us_net(seed: int = 0):
    """(net, sampler, objective) of US-Net."""
    net = small("calibrated", seed)
    return net, sandwich(net, seed), InplaceDistillation()


METHODS = {"S-Net": s_net, "US-Net": us_net}


class Curious:
    """A sampler around another one: reads the losses, and lets them change the weights of its passes."""

    def __init__(self, sampler):
        self.sampler, self.mean = sampler, torch.zeros(())

    def subnets(self) -> list:
        return self.sampler.subnets()

    def plan(self, step: int) -> list[Pass]:
        first, *others = self.sampler.plan(step)
        return [first, *(Pass(p.route, p.target, 1 + self.mean, 0.2, p.name) for p in others)]

    def observe(self, step: int, outcomes) -> None:
        self.mean = 0.7 * self.mean + 0.1 * outcomes[-1].loss.mean()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.mean = state["mean"].clone()


def fit(net, sampler, objective, steps: int = 6, **options) -> tuple[list[dict], torch.optim.Optimizer]:
    """(history, optimiser) after a short training."""
    optimizer = make_optimizer(net)
    history = train(
        net,
        options.pop("batches", Noise()),
        sampler,
        objective,
        Schedule(0.05, steps),
        optimizer,
        **{"quiet": True, "intervals": 3} | options,
    )
    return history, optimizer


def everything(net, optimizer) -> dict[str, torch.Tensor]:
    """All tensors of a net and its optimiser by name."""
    names = {id(p): name for name, p in net.named_parameters()}
    found = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    return found | {
        f"{names[id(p)]}/{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two states have the same names and, -0.0 and all, the same bits."""
    return one.keys() == other.keys() and all(
        a.shape == (b := other[name]).shape
        and a.dtype == b.dtype
        and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
        for name, a in one.items()
    )
