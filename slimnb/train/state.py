"""What a training run needs to go on exactly where it was: tensors by name, and the rest as JSON."""

from __future__ import annotations

import torch
from torch import Tensor

from slimnb.errors import StoreError
from slimnb.nets.base import SlimmableNet
from slimnb.nets.slots import EXTRA, NOTHING, REBUILD
from slimnb.train.history import History
from slimnb.train.protocols import Objective, Sampler


def collect(net: SlimmableNet, optimizer, sampler: Sampler, history: History, step: int,
            objective: Objective | None = None) -> tuple[dict[str, Tensor], dict]:
    """Return the state after `step` steps: tensors by name, and the rest as JSON.

    Random numbers are keyed by step, so no generator is saved. If the objective has a `state_dict`, that is saved, too.
    """
    tensors, rest = net_state(net)
    names = {id(p): name for name, p in net.named_parameters()}
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{names[id(p)]}/{key}"] = value
    tensors |= {f"sampler/{name}": value for name, value in sampler.state_dict().items()}
    if hasattr(objective, "state_dict"):
        tensors |= {f"objective/{name}": value for name, value in objective.state_dict().items()}
    tensors |= {f"history/{name}": value for name, value in history.sums.items()}
    counts = [[name, n] for name, n in history.counts.items()]  # a list: JSON sorts an object's keys
    return tensors, {"net": rest, "step": step, "history": history.rows, "counts": counts, "probed": history.probed}


def restore(tensors: dict[str, Tensor], rest: dict, net: SlimmableNet, optimizer, sampler: Sampler,
            history: History, objective: Objective | None = None) -> int:
    """Put back what `collect` returned and return the number of steps made. Raises StoreError for what does not fit.

    Names, shapes and types must be those of the net, the optimiser and the sampler.
    """
    parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}, "sampler": {}, "objective": {},
                                          "history": {}}
    for name, value in tensors.items():
        kind, _, key = name.partition("/")
        if kind not in parts:
            raise StoreError(f"tensor {name!r}", "a checkpoint of slimnb holds no such tensor",
                             "Remove the run's folder to start anew.", "Nothing was loaded.")
        parts[kind][key] = value
    load_net(net, parts["net"], rest["net"])
    _load_optimizer(net, optimizer, parts["optimizer"])
    sampler.load_state_dict(parts["sampler"])
    if hasattr(objective, "load_state_dict"):
        objective.load_state_dict(parts["objective"])
    device = next(net.parameters()).device
    history.rows, history.counts = list(rest["history"]), dict(rest["counts"])
    history.probed[:] = rest.get("probed", ())
    history.sums = {name: value.to(device) for name, value in parts["history"].items()}
    return rest["step"]


def _load_optimizer(net: SlimmableNet, optimizer, tensors: dict[str, Tensor]) -> None:
    # By name and with shapes compared: torch's own load_state_dict goes by position and takes any shape.
    parameters = dict(net.named_parameters())
    optimizer.state.clear()
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        p = parameters.get(parameter)
        if p is None or value.shape not in (p.shape, ()):
            why = "the net has no such parameter" if p is None else f"its parameter is {tuple(p.shape)}"
            raise StoreError(f"optimizer state {name[:60]!r} {tuple(value.shape)}", why,
                             "Build the net the checkpoint was made with.", "Nothing was trained.")
        # Like the parameter, memory format included: the fused kernel walks both with one stride.
        state = torch.empty_like(p) if value.shape == p.shape else torch.empty_like(value, device=p.device)
        optimizer.state[p][key] = state.detach().copy_(value)


def net_state(net: SlimmableNet) -> tuple[dict[str, Tensor], dict]:
    """Return a net's tensors, named "net/...", and its slots as JSON."""
    state = net.state_dict()
    rest = state.pop(EXTRA)
    return {f"net/{name}": value for name, value in state.items()}, rest


def load_net(net: SlimmableNet, tensors: dict[str, Tensor], rest: dict) -> None:
    """Load what `net_state` returned, names without "net/". Raises StoreError for other names, shapes or types."""
    for name, value in net.state_dict().items():
        stored = tensors.get(name)
        if isinstance(stored, Tensor) and stored.dtype != value.dtype:
            raise StoreError(f"{name[:60]} is {stored.dtype}", f"the net has {value.dtype}", REBUILD, NOTHING)
    net.load_state_dict({**tensors, EXTRA: rest})


@torch.no_grad()  # not through .data: writes must leave a trace in the version of the weights
def load_first_channels_(net: SlimmableNet, tensors: dict[str, Tensor]) -> None:
    """Copy the first channels of each parameter of a net at least as wide; `tensors` are named without "net/".

    Batch-norm statistics are not copied, since every subnet has others. Raises StoreError for another architecture.
    """
    parameters = dict(net.named_parameters())
    for name, p in parameters.items():  # all of them before the first is written
        stored = tensors.get(name)
        if stored is None or stored.dim() != p.dim() or any(a < b for a, b in zip(stored.shape, p.shape, strict=True)):
            shape = "missing" if stored is None else str(tuple(stored.shape))
            raise StoreError(f"{name} is {shape}", f"the net has {tuple(p.shape)}",
                             "Start from a run of the same architecture, no narrower.", NOTHING)
    for name, p in parameters.items():
        p.copy_(tensors[name][tuple(slice(n) for n in p.shape)])
