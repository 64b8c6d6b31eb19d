"""Slots hold batch-norm statistics, a row per subnet; a guard sees that they belong to the weights at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimnb.errors import NumericsError, ParameterError, StoreError
from slimnb.nn.norm import BN_POLICIES, CALIBRATED, GROUP, SwitchableBatchNorm2d
from slimnb.rng import keyed_bits
from slimnb.rules import checked
from slimnb.subnet import Subnet

EXTRA = "_extra_state"  # PyTorch's name of what is saved beside tensors
REBUILD, NOTHING = "Build the net that was saved.", "Nothing was loaded."


class Slots(nn.Module):
    """A net with slots knows its statistics: `slots` maps a subnet to its row, a stamp says of which weights a row is.

    A net inherits it, has its parameters' dicts in `_held` and a `check(subnet)` that raises for a subnet that does
    not fit. Raises ParameterError for an unknown policy `bn`.
    """

    momentum = 0.1  # of running statistics that are tracked while training

    def __init__(self, bn: str):
        super().__init__()
        if bn not in BN_POLICIES:
            raise ParameterError(f"bn = {bn!r}"[:60], f"it is one of {', '.join(BN_POLICIES)}",
                                 f"Set bn={CALIBRATED!r}.")
        self.bn = bn
        self.slots: dict[Subnet, int] = {}
        self._stamps: list[int | None] = []  # per slot: checksum of the weights its statistics belong to
        self._summed: tuple[int, int] | None = None  # version and checksum of the weights, as last computed
        self._touched = False  # whether the weights may have changed without a new version

    def norms(self) -> list[SwitchableBatchNorm2d]:
        """List the switchable batch-norm layers in order."""
        return [m for m in self.modules() if isinstance(m, SwitchableBatchNorm2d)]

    @checked
    def reserve(self, subnets: Sequence[Subnet], shared: bool = False) -> None:
        """Give each subnet a row of batch-norm statistics, and of gamma and beta where they are private.

        Do it before making the optimiser. With `shared` all of them use one row: the single batch norm that
        slimmable networks start from.
        """
        for subnet in subnets:
            self.check(subnet)
            if subnet not in self.slots:
                self.slots[subnet] = 0 if shared else len(self._stamps)
                self._stamps += [None] * (self.slots[subnet] == len(self._stamps))
        for norm in self.norms():
            norm.reserve(max(1, len(self._stamps)))

    def weights_checksum(self) -> int:
        """Return 48 bits that change with the weights, the same on every device and after a save and load.

        They are summed anew only if a parameter is another, has a new version, or may have changed without one: fused
        optimisers write weights without counting it, so after a forward pass that records gradients nothing is taken
        on trust. Writes through `.data` go unseen; say `mark_changed()` after them.
        """
        # With its identity, since the versions of a copy, and of a parameter that takes another's place, begin anew.
        try:
            version = sum(id(p) + p._version for held in self._held for p in held.values() if p is not None)
        except RuntimeError:  # tensors made under inference mode count no writes
            version = None
        if self._touched or version is None or self._summed is None or self._summed[0] != version:
            self._summed = version, _checksum(self.parameters())
        return self._summed[1]

    def _apply(self, fn, recurse=True):
        # A cast changes every bit of the weights, yet their statistics remain theirs.
        before = self.weights_checksum() if any(self._stamps) else None
        super()._apply(fn, recurse)
        if before is not None and not next(self.parameters()).is_meta:
            self._summed = None
            after = self.weights_checksum()
            self._stamps = [after if stamp == before else stamp for stamp in self._stamps]
        return self

    def mark_changed(self) -> None:
        """Say that the weights may have changed in a way PyTorch does not count, e.g. in a CUDA graph."""
        self._touched = True

    def mark_calibrated(self, subnets: Sequence[Subnet]) -> None:
        """Record that the statistics of `subnets` belong to the weights as they are now."""
        self._touched, self._summed = False, None
        stamp = self.weights_checksum() if self.bn == CALIBRATED else 0
        for subnet in subnets:
            self._stamps[self.slots[subnet]] = stamp

    def mark_uncalibrated(self, subnets: Sequence[Subnet]) -> None:
        """Forget that `subnets` have statistics, e.g. before they are taken anew."""
        for subnet in subnets:
            self._stamps[self.slots[subnet]] = None

    def slot_of(self, subnet: Subnet) -> int:
        """Return the row of a subnet's statistics; raises NumericsError if it has none or they are of other weights.

        Inside `torch.compile` and `torch.export` the weights are not looked at: see `SlimmableNet.bind`.
        """
        if self.bn == GROUP:
            return 0
        slot = self.slots.get(subnet)
        if slot is None or self._stamps[slot] is None:
            raise NumericsError(f"subnet {_short(subnet)} has no batch-norm statistics",
                                "a subnet is evaluated with statistics of its own",
                                "Call calibrate_bn(net, [subnet], images) first.")
        # Tensors that are being traced have no values to sum, and a graph can raise no error of ours later.
        traced = torch.compiler.is_compiling()
        if self.bn == CALIBRATED and not traced and self._stamps[slot] != self.weights_checksum():
            raise NumericsError(f"statistics of subnet {_short(subnet)} are stale",
                                "the weights changed after they were taken",
                                "Call calibrate_bn(net, [subnet], images) again.")
        return slot

    def _training_slot(self, subnet: Subnet) -> tuple[int, float | None]:
        if self.bn in (CALIBRATED, GROUP):
            return self.slots.get(subnet, 0), None
        slot = self._reserved(subnet)
        self._stamps[slot] = 0  # tracked while training
        return slot, self.momentum

    def _reserved(self, subnet: Subnet) -> int:
        if subnet not in self.slots:
            raise NumericsError(f"subnet {_short(subnet)} has no batch-norm slot",
                                f"bn={self.bn!r} keeps statistics per subnet",
                                "Call net.reserve([...]) before making the optimiser.")
        return self.slots[subnet]

    def get_extra_state(self) -> dict:
        """Return as JSON which slot is whose, and the checksum of the weights that its statistics belong to."""
        slots = [[subnet.to_json(), slot] for subnet, slot in self.slots.items()]
        return {"slots": slots, "stamps": list(self._stamps)}

    def set_extra_state(self, state: dict) -> None:
        """Have the slots of a saved net, and no others; runs before the layers' own tensors are loaded."""
        slots = {Subnet.from_json(subnet): slot for subnet, slot in state["slots"]}
        if not set(slots.values()) <= set(range(len(state["stamps"]))):
            raise ValueError("slots without stamps")
        self.slots, self._stamps = slots, list(state["stamps"])
        self.reserve(list(slots))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """Load a saved net as PyTorch does, but whole or not at all: its slots take the place of those here.

        Raises StoreError for other shapes, for slots that do not fit and, if `strict`, for other names.
        """
        own = dict(vars(self))
        kept = [(part, dict(part)) for m in self.modules() for part in (m._parameters, m._buffers, m._modules)]
        try:
            if EXTRA in state_dict:
                self.set_extra_state(state_dict[EXTRA])
            self._check_fits(state_dict, strict)
        except Exception as error:  # a damaged state raises many kinds, and each means the same here
            for part, before in kept:
                part.clear()
                part.update(before)
            vars(self).update(own)
            if isinstance(error, StoreError):
                raise
            raise StoreError("slots of a saved net", f"they do not fit: {' '.join(str(error).split())}"[:90], REBUILD,
                             NOTHING) from None
        return super().load_state_dict(state_dict, strict, assign)

    def _check_fits(self, stored: Mapping[str, Any], strict: bool) -> None:
        values = self.state_dict()
        for name in sorted(values.keys() ^ stored.keys()) if strict else ():
            where = "the checkpoint" if name in stored else "the net"
            raise StoreError(f"tensor {name[:60]!r} is only in {where}", "a checkpoint fits one architecture", REBUILD,
                             NOTHING)
        for name in values.keys() & stored.keys() - {EXTRA}:
            shape = getattr(stored[name], "shape", None)
            if shape != values[name].shape:
                raise StoreError(f"{name[:60]} is {shape if shape is None else tuple(shape)}",
                                 f"the net has {tuple(values[name].shape)}", REBUILD, NOTHING)


def _checksum(parameters: Iterable[Tensor]) -> int:
    total: int | Tensor = 0
    keys = None
    for p in parameters:
        bits = p.detach().flatten().view(torch.int32 if p.element_size() >= 4 else torch.int16)
        if keys is None:
            keys = keyed_bits(0, "checksum", 0, torch.arange(2**14, device=p.device))
        for piece in bits.split(len(keys)):  # small enough to stay in cache
            # Random factors of 64 bits: of small regular ones the sum, modulo 2^32, forgets a change of all exponents.
            total = 31 * total + (piece * keys[: len(piece)]).sum()
    return int(total) >> 16  # one wait for the device; the lowest bits depend on few of the weights'


def _short(subnet: Subnet) -> str:
    text = str(subnet)
    return text if len(text) < 40 else f"{text[:18]}...{text[-18:]}"
