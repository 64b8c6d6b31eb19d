"""Every slimmable net has this: channel units, slots of statistics, forward, `bind` and `extract`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimnb.errors import DataError, NumericsError, ParameterError
from slimnb.nets.slots import Slots
from slimnb.nn.blocks import Chain, Resize, resize
from slimnb.nn.gate import RoutedLogits
from slimnb.nn.layers import PLAIN_ACTIVATIONS, Selection, SlimmableConv2d, SlimmableLinear
from slimnb.nn.norm import GROUP, SlimmableGroupNorm, SwitchableBatchNorm2d
from slimnb.nn.zero_padding import ENDS, place_, places_of, reach_of
from slimnb.rules import Classes, Pixels, Seed, checked
from slimnb.subnet import SearchSpace, Subnet


@dataclass(frozen=True, slots=True)
class ChannelUnit:
    """A channel unit is kept or dropped as one; it names who makes its channels, who normalises and who reads them."""

    name: str
    channels: int  # of the largest subnet
    producers: tuple[str, ...]  # names of the convolutions whose filters they are
    norms: tuple[str, ...]  # names of the normalisation layers over them
    consumers: tuple[str, ...]  # names of the convolutions and linear layers that read them


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks give each sample a width of its own: a (B, C) mask of zeros and ones for each channel unit.

    `slot` names the batch-norm statistics, one row for all or (B,) one per sample; it is needed outside
    training. A (1, C) mask serves every sample.
    """

    widths: tuple[Tensor, ...]
    slot: Tensor | int | None = None
    depths: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    resolution: int | None = None


class BoundNet(nn.Module):
    """A supernet held at one subnet has a plain `forward(x)` and shares the supernet's parameters."""

    def __init__(self, net: SlimmableNet, subnet: Subnet):
        super().__init__()
        self.net, self.subnet = net, subnet

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, 3, H, W) to logits (B, classes)."""
        return self.net(x, self.subnet)


class SlimmableNet(Slots):
    """A supernet: `net(x, subnet)` runs the subnet, `net(x, masks)` one width per sample.

    Subclasses build `features` (a `Chain`) and `classifier`, name their channel units with `new_unit`, and
    say in `widths_at(mult)` how many channels each unit has at a width multiplier.
    """

    features: Chain
    classifier: SlimmableLinear

    rounding = "divisible"
    channels_per_group = 8  # of group norm

    @checked
    def __init__(self, num_classes: Classes, input_size: int, bn: str, activation: Literal[tuple(PLAIN_ACTIVATIONS)],
                 seed: Seed):
        super().__init__(bn)
        if input_size not in (32, 224):
            raise ParameterError(f"input_size = {input_size!r}"[:60],
                                 "nets are laid out for 224 or 32 pixels",
                                 "Set 32 for CIFAR-like images; any resolution then runs.")
        self.num_classes, self.input_size = num_classes, input_size
        self.activation, self.seed = activation, seed
        self.unit_names: list[str] = []
        self._checked: set[Subnet] = set()
        self.padding: str | None = None  # how joins are zero-padded, if the net was embedded: "match" or "ends"
        self._reach: dict[tuple, tuple[int, ...]] = {}
        self.mix: nn.Module | None = None  # layers between the global pool and the classifier
        self.register_load_state_dict_post_hook(_forget_reach)

    # -- construction ------------------------------------------------------------------------------------

    def new_unit(self, name: str) -> int:
        """Name a new channel unit and return its number."""
        self.unit_names.append(name)
        return len(self.unit_names) - 1

    def resolve_largest(self, largest: float | tuple[int, ...]) -> tuple[int, ...]:
        """Return the channels of every unit of the supernet; `largest` is a multiplier or these channels themselves."""
        if not isinstance(largest, Sequence) or isinstance(largest, str):
            return self.widths_at(_checked_mult("largest", largest))
        units = len(self.widths_at(1.0))
        if len(largest) != units:
            raise ParameterError(f"{len(largest)} widths for {units} channel units",
                                 "there is one width per unit", "Give a multiplier, or one width per unit.")
        if any(type(width) is not int or width < 1 for width in largest):
            raise ParameterError(f"largest = {tuple(largest)}"[:90], "widths are whole numbers >= 1",
                                 "Give a multiplier, or one width per unit.")
        return tuple(largest)

    def finish(self, widths: tuple[int, ...], depths: tuple[int, ...] = (), kernels: tuple[int, ...] = ()) -> None:
        """Fix the largest subnet, initial weights and the memory format; a constructor calls it last."""
        self.largest = Subnet(tuple(widths), depths, kernels)
        # The dicts that hold the parameters: walking the modules for them would cost more than a thin layer.
        self._held = [module._parameters for module in self.modules()]
        self.reset_parameters(self.seed)
        self.to(memory_format=torch.channels_last)  # one reorder per sliced convolution instead of three

    @torch.no_grad()  # not through .data: writes must leave a trace in the version of the weights
    def reset_parameters(self, seed: int) -> None:
        """Draw convolutions from N(0, sqrt(2 / (k k out))), linear ones from N(0, .01); norms are 1 and 0 (US-Net)."""
        if next(self.parameters()).is_meta:
            return  # shapes only: enough to count MACs and parameters
        rng = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, SlimmableConv2d):
                std = math.sqrt(2 / (module.kernel**2 * module.out_channels))
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * std)
            elif isinstance(module, (SlimmableLinear, nn.Linear)):
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * 0.01)
                module.bias.zero_()
            elif isinstance(module, (SwitchableBatchNorm2d, SlimmableGroupNorm)):
                module.weight.fill_(1)
                module.bias.zero_()

    def widths_at(self, mult: float) -> tuple[int, ...]:
        """Return the channels of every unit at width multiplier `mult` (1.0 is the paper's net)."""
        raise NotImplementedError

    # -- subnets -----------------------------------------------------------------------------------------

    def uniform(self, mult: float, resolution: int | None = None) -> Subnet:
        """Return the subnet whose every unit has `mult` times the paper's channels."""
        widths = self.widths_at(_checked_mult("mult", mult))
        subnet = replace(self.largest, widths=widths, resolution=resolution)
        self.check(subnet)
        return subnet

    @property
    def stages(self) -> tuple[int, ...]:
        """Return the stage of every unit, for `space(mults, tied=net.stages)`.

        An inverted residual's hidden layer goes with its input, of which it is a multiple.
        """
        labels: dict[str, int] = {}
        groups, group = [], 0
        for name in self.unit_names:
            if not name.endswith(".hidden"):
                group = labels.setdefault(name.partition(".")[0], len(labels))
            groups.append(group)
        return tuple(groups)

    @checked
    def space(self, mults: Sequence[float], resolutions: Sequence[Pixels] = (),
              tied: tuple[int, ...] = ()) -> SearchSpace:
        """Return the space where a unit has the width of any of `mults`, alone or with all of its group in `tied`."""
        if not len(mults):
            raise ParameterError("mults = ()", "a space has at least one width multiplier",
                                 "Set e.g. (0.25, 0.5, 1.0).")
        at = [self.uniform(mult).widths for mult in mults]
        group_of = tied or tuple(range(len(self.unit_names)))
        choices: list[tuple[int, ...]] = [()] * len(self.unit_names)
        for group in set(group_of):
            units = [unit for unit, other in enumerate(group_of) if other == group]
            rows = sorted({tuple(widths[unit] for unit in units) for widths in at})
            for unit, column in zip(units, zip(*rows, strict=True), strict=True):
                choices[unit] = column
        return SearchSpace(tuple(choices), tied, resolutions=tuple(sorted(set(resolutions))))

    def check(self, subnet: Subnet) -> None:
        """Raise unless `subnet` fits into this supernet."""
        if subnet in self._checked:
            return
        if len(subnet.widths) != len(self.unit_names):
            raise ParameterError(f"a subnet of {len(subnet.widths)} widths",
                                 f"{type(self).__name__} has {len(self.unit_names)} channel units",
                                 "Make it with net.uniform(mult) or net.space(mults).sample(rng).")
        for name, width, most in zip(self.unit_names, subnet.widths, self.largest.widths, strict=True):
            if not (1 <= width <= most or (width == 0 and subnet.depths)):  # 0: its block is dropped
                raise ParameterError(f"width {width} in unit {name!r}",
                                     f"this supernet has 1 to {most} channels there",
                                     "Build a wider supernet (largest=...) or ask for fewer channels.")
        if subnet.resolution is not None and subnet.resolution < 8:
            raise ParameterError(f"resolution {subnet.resolution}", "at least 8 pixels are needed",
                                 "Set e.g. 32.")
        self._checked.add(subnet)

    def reach(self, subnet: Subnet) -> tuple[int, ...]:
        """Return how many channels the residual stream of each unit has up to its end; () in a net not embedded.

        That is more than the unit's width where zeros lie in between: what reads the stream computes on them, too.
        """
        if self.padding is None:
            return ()
        key = self.padding, subnet.widths
        if key not in self._reach:
            self.check(subnet)
            self._reach[key] = reach_of(self, subnet.widths, self.padding == ENDS)
        return self._reach[key]

    def set_padding(self, padding: str | None, places: Mapping[int, Sequence[int] | Tensor] | None = None) -> None:
        """Pad joins as `padding` says, and scatter the channels of each unit in `places` to its places, (C,) int64."""
        self.padding = padding
        self._reach.clear()
        place_(self, places or {})

    @checked
    def masks(self, widths: Tensor, subnets: list[Subnet] | None = None) -> Masks:
        """Return masks of `widths` (B, units) ints; with `subnets`, one per sample, each has statistics of its own."""
        device, units = next(self.parameters()).device, len(self.unit_names)
        if widths.dim() != 2 or widths.shape[1] != units or widths.is_floating_point():
            raise ParameterError(f"widths {tuple(widths.shape)} {widths.dtype}"[:60],
                                 f"they are (B, {units}) whole numbers, one per channel unit", "Mend them.")
        widths = widths.to(device)
        each = tuple((torch.arange(most, device=device) < widths[:, unit, None]).float()
                     for unit, most in enumerate(self.largest.widths))
        slot = None if subnets is None else torch.tensor([self.slot_of(s) for s in subnets], device=device)
        sides = {subnet.resolution for subnet in subnets or ()} or {None}
        if len(sides) > 1:
            raise ParameterError(f"resolutions {', '.join(map(str, sides))} in one batch"[:60],
                                 "masks give every sample its own widths and depths, not its own resolution",
                                 "Run subnets with other resolutions one by one.")
        return Masks(each, slot, resolution=sides.pop())

    # -- running -----------------------------------------------------------------------------------------

    def select(self, route: Subnet | Masks, momentum: float | None = None,
               statistics: str = "auto") -> Selection:
        """Say how one forward pass runs `route`: see `forward` for `momentum` and `statistics`."""
        batch = self.training if statistics == "auto" else statistics == "batch"
        if isinstance(route, Masks):
            if [mask.shape[-1] for mask in route.widths] != list(self.largest.widths):
                raise ParameterError(f"masks of {len(route.widths)} channel units",
                                     f"{type(self).__name__} has one of (B, C) for each of its {len(self.unit_names)}",
                                     "Make them with net.masks(widths).")
            if self.padding == ENDS:
                raise ParameterError("masks in a net padded at the ends of its joins",
                                     "each width has joins of its own", "Run it subnet by subnet.")
            if not batch and route.slot is None and self.bn != GROUP:
                raise NumericsError("masks without slots",
                                    "evaluation needs statistics for every sample",
                                    "Make them with net.masks(widths, subnets).")
            slot = 0 if batch else route.slot
            return Selection(route.widths, route.depths, route.kernels, slot, batch, resolution=route.resolution)
        if not isinstance(route, Subnet):
            raise ParameterError(f"a route of class {type(route).__name__[:40]}",
                                 f"{type(self).__name__} runs a Subnet or Masks", "Make one with net.uniform(mult).")
        self.check(route)
        if not batch:
            slot = self.slot_of(route)
        elif momentum is not None:
            slot = 0 if self.bn == GROUP else self._reserved(route)
        elif statistics == "batch":
            slot = self.slots.get(route, 0)
        else:
            slot, momentum = self._training_slot(route)
        return Selection(route.widths, route.depths, route.kernels, slot, batch, momentum, self.reach(route),
                         self.padding == ENDS, resolution=route.resolution)

    def forward(self, x: Tensor, route: Subnet | Masks | None = None, *, dropout: float = 0.0,
                generator: torch.Generator | None = None, momentum: float | None = None,
                statistics: str = "auto") -> Tensor | RoutedLogits:
        """Run the subnet or masks `route` (None: the largest): x (B, 3, H, W) gives logits (B, num_classes) float32.

        With `statistics` "auto" the batch normalises while training, and the subnet's own slot otherwise; "batch" and
        "slot" say so for any mode. `momentum` is this batch's weight in the running statistics (None: 0.1 while
        training, where the policy tracks them). `dropout` acts before the classifier; `generator` draws its mask. For a
        route that gates choose (`slimnb.nn.gate.Gated`) the logits come with the gates' decisions.
        """
        if not isinstance(x, Tensor):
            raise DataError(f"images that are a {type(x).__name__[:40]}", "they are a tensor (B, 3, H, W)",
                            "Convert them, e.g. with torch.as_tensor.")
        route = self.largest if route is None else route
        self._touched = self._touched or torch.is_grad_enabled()
        return self.run(x, self.select(route, momentum, statistics), dropout, generator)

    def run(self, x: Tensor, s: Selection, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Run what `select` returned, without another check: x (B, 3, H, W) gives logits (B, num_classes) float32."""
        return self.classify(self.features(resize(x, s.resolution), s), s, dropout, generator)

    def classify(self, x: Tensor, s: Selection, dropout: float = 0.0,
                 generator: torch.Generator | None = None) -> Tensor | RoutedLogits:
        """Run what comes behind `features`: x (B, C, H, W) gives logits (B, num_classes) float32."""
        x = F.adaptive_avg_pool2d(x, 1)
        x = (x if self.mix is None else self.mix(x, s)).flatten(1)
        if dropout:
            keep = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator)
            x = x * keep / (1 - dropout)
        logits = self.classifier(x, s).float()
        return logits if s.routing is None else RoutedLogits(logits, tuple(s.decisions))

    def bind(self, subnet: Subnet) -> BoundNet:
        """Return a module with a plain `forward(x)` that shares this supernet's parameters.

        `torch.export` and `torch.compile` take it in one graph. Such a graph cannot check that statistics belong to
        the weights, so a net in eval mode checks it here, and raises NumericsError; other calls check every time.
        """
        self.select(subnet, statistics="batch" if self.training else "slot")
        return BoundNet(self, subnet)

    def extract(self, subnet: Subnet) -> nn.Sequential:
        """Copy the parameters and statistics of `subnet` into a stand-alone plain module in eval mode.

        All that depends on shapes is decided here, so torch.fx, TorchScript and `torch.export` take it.
        """
        if not isinstance(subnet, Subnet):
            raise ParameterError(f"extract of a route of class {type(subnet).__name__[:40]}",
                                 "a plain module has one width", "Give a Subnet.")
        s = self.select(subnet, statistics="slot")
        head = [Resize(subnet.resolution)] if subnet.resolution else []
        mix = [] if self.mix is None else [self.mix.extract(s)]
        plain = nn.Sequential(*head, self.features.extract(s), nn.AdaptiveAvgPool2d(1), *mix, nn.Flatten(),
                              self.classifier.extract(s))
        return plain.to(next(self.parameters()).device, memory_format=torch.channels_last).eval()

    # -- description -------------------------------------------------------------------------------------

    def channel_units(self) -> list[ChannelUnit]:
        """List all channel units: sorting, pruning and pairwise costs read this table."""
        named = list(self.named_modules())
        convs = [(n, m) for n, m in named if isinstance(m, SlimmableConv2d)]
        readers = convs + [(n, m) for n, m in named if isinstance(m, SlimmableLinear)]
        norms = [(n, m) for n, m in named if isinstance(m, (SwitchableBatchNorm2d, SlimmableGroupNorm))]
        return [ChannelUnit(name, self.largest.widths[u],
                            tuple(n for n, m in convs if m.unit == u),
                            tuple(n for n, m in norms if m.unit == u),
                            tuple(n for n, m in readers if u in m.sources))
                for u, name in enumerate(self.unit_names)]

    def frozen_copy(self) -> SlimmableNet:
        """Copy the net, in eval mode and without gradients; the copy shares process groups, but no tensor."""
        groups = {id(norm.group): norm.group for norm in self.norms() if norm.group is not None}  # cannot be copied
        return copy.deepcopy(self, groups).requires_grad_(False).eval()

    def get_extra_state(self) -> dict:
        """Return as JSON what `Slots` keeps, how joins are padded, and which units are scattered."""
        state = super().get_extra_state()
        return state if self.padding is None else state | {"padding": self.padding, "scattered": list(places_of(self))}

    def set_extra_state(self, state: dict) -> None:
        """Make the index buffers and slots of a saved net; runs before the layers' own tensors are loaded."""
        most = self.largest.widths
        self.set_padding(state.get("padding"), {u: range(most[u]) for u in state.get("scattered", ())})
        super().set_extra_state(state)


def _forget_reach(net: SlimmableNet, incompatible) -> None:
    net._reach.clear()


def _checked_mult(name: str, mult: float) -> float:
    if isinstance(mult, bool) or not isinstance(mult, (int, float)) or not (math.isfinite(mult) and mult > 0):
        raise ParameterError(f"{name} = {mult!r}"[:60], "a width multiplier is a finite number > 0",
                             f"Set e.g. {name}=0.5.")
    return mult
