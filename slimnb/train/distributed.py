"""Several processes train one net: what a program that `torchrun` started puts around the training loop.

Every rank plans the same passes and reads its own rows of the same batch. `train(..., group=group)` averages the
gradients; `calibrate_bn` and `evaluate` reduce over the ranks. Only rank 0 uses the run store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slimnb import errors
from slimnb.errors import ResourceError, SlimnbError
from slimnb.nets.base import SlimmableNet
from slimnb.runs.checkpoint import pack, unpack
from slimnb.runs.files import from_json, to_json
from slimnb.runs.lock import stopping
from slimnb.runs.store import Run

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(minutes=30)
"""How long a rank waits for another, e.g. while rank 0 decodes a data set."""


# -- the group of processes ------------------------------------------------------------------------------


def start(device: str = "cpu"):
    """Join the process group of this torchrun job: nccl for `device` "cuda", gloo for "cpu". Outside a job return None.

    On "cuda" each process takes the device of its local rank, which plain "cuda" means from then on. Raises
    ResourceError if the processes do not find each other or if there are more local ranks than devices.
    """
    if any(name not in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        return None
    own = {}
    if device.startswith("cuda"):
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ResourceError(f"local rank {local} of {torch.cuda.device_count()} CUDA devices",
                                "each process needs a device of its own", "Lower torchrun --nproc-per-node.")
        torch.cuda.set_device(local)
        own = {"device_id": torch.device("cuda", local)}
    try:
        dist.init_process_group("nccl" if own else "gloo", timeout=PATIENCE, **own)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"[:60]
        why = f"no group: {str(error).splitlines()[0]}"[:90]
        raise ResourceError(f"rank {os.environ['RANK'][:9]} at {where}", why,
                            "Start all ranks with one torchrun command.") from None
    return dist.group.WORLD


def finish() -> None:
    """Leave the group; outside one do nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_of(group) -> int:
    """Return this process's number in `group`; without a group 0."""
    return 0 if group is None else dist.get_rank(group)


def world_of(group) -> int:
    """Return the number of processes in `group`; without a group 1."""
    return 1 if group is None else dist.get_world_size(group)


@contextmanager
def together(group) -> Iterator[None]:
    """Within it, that another rank of `group` has ended is one line: ResourceError."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or re.search("gloo|onnection (closed|reset)", str(error))
        if group is None or not lost:
            raise
        stopping.check()  # as the others we were asked to stop, and were only slower
        what, why = f"rank {rank_of(group)} of {world_of(group)}", "another rank has ended (out of memory?)"
        raise ResourceError(what, why, "See its message, then run the same command again.",
                            "The last checkpoint is kept.") from None


# -- the net ---------------------------------------------------------------------------------------------


def broadcast_weights(net: SlimmableNet, group) -> None:
    """Copy the parameters and batch-norm statistics of rank 0 to every rank; call `calibrate_bn` after it.

    Before training this makes the ranks start equal. After training without synchronised batch norm, each rank has
    tracked the statistics of its own rows; then those of rank 0 stay, as its checkpoints hold them, too.
    """
    if group is None:
        return
    with torch.no_grad():
        for values in (*net.parameters(), *net.buffers()):
            sent = values.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(sent, group=group, group_src=0)
            values.copy_(sent)


def synchronise_batch_norm(net: SlimmableNet, group) -> None:
    """Normalise by the joined batch of all ranks from now on, as one process with that batch would.

    This costs two small all-reduces per layer, forward and backward. Without it each rank normalises by its own rows
    ("ghost" batches), which is cheaper and regularises more. With `group` None the ranks normalise by their own rows
    again.
    """
    for norm in net.norms():
        norm.group = group


def joined(values: Tensor, rows: Tensor, total: int, group) -> Tensor:
    """Join the ranks' values: on every rank (total,), in which this rank's `values` (n,) stand at its `rows` (n,).

    An Evaluation's `correct` becomes that of the whole data set in its order; `Batches.rows` gives the rows.
    """
    device = _device(group) if group is not None else values.device
    out = torch.zeros(total, dtype=torch.float64, device=device)
    out[rows.to(device)] = values.to(device, torch.float64)
    if group is not None:
        dist.all_reduce(out, group=group)
    return out.to(values.dtype)


# -- agreeing --------------------------------------------------------------------------------------------


def any_rank(flag: bool, group) -> bool:
    """Return whether `flag` is true on any rank; every rank must call this."""
    if group is None:
        return flag
    count = torch.tensor(int(flag), device=_device(group))
    dist.all_reduce(count, group=group)
    return bool(count.item())


def _device(group) -> torch.device:
    on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _from_first(data: bytes, group) -> bytes:
    """Rank 0's bytes on every rank; the others give none."""
    device = _device(group)
    size = torch.tensor(len(data), device=device)
    dist.broadcast(size, group=group, group_src=0)
    sent = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
    if rank_of(group) == 0 and data:
        sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(sent, group=group, group_src=0)
    return sent.cpu().numpy().tobytes()


# -- the run store ---------------------------------------------------------------------------------------


def share(run: Run, group):
    """`run` for use by all ranks together: rank 0 reads and writes, the others get what it read."""
    return run if group is None else SharedRun(run, group)


class SharedRun:
    """A run of which rank 0 is reader and writer. Every rank must make the same calls in the same order.

    An error of rank 0 in `result`, `lock`, `load` or `finish` is raised on every rank, so that none waits for
    it in vain.
    """

    def __init__(self, run: Run, group):
        self.run, self.group = run, group
        self.id, self.recipe_id, self.recipe = run.id, run.recipe_id, run.recipe
        self.first = rank_of(group) == 0

    def _from_first(self, act: Callable[[], bytes]) -> bytes:
        """What `act` gives on rank 0, on every rank; its error likewise."""
        data, error = b"", None
        if self.first:
            try:
                data = b"+" + act()
            except SlimnbError as caught:
                data, error = type(caught).__name__.encode(), caught
        data = _from_first(data, self.group)
        if error is not None:
            raise error
        if data[:1] != b"+":
            kind = getattr(errors, data.decode(), errors.BusyError)
            raise kind(f"run {self.id}", "rank 0 could not go on", "See its message.")
        return data[1:]

    def result(self) -> dict[str, Any] | None:
        """As `Run.result`."""
        return from_json(self._from_first(lambda: to_json(self.run.result()).encode()))

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[SharedRun]:
        """As `Run.lock`, held by rank 0; a signal to stop counts on every rank."""
        with ExitStack() as held:
            def enter() -> bytes:
                held.enter_context(self.run.lock(wait) if self.first else stopping)
                return b""

            if not self.first:
                enter()
            self._from_first(enter)
            yield self

    @property
    def preempted(self) -> bool:
        """Whether a signal asked any rank to stop; every rank must ask."""
        return any_rank(stopping.requested, self.group)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """As `Run.load`, on every rank."""
        data = self._from_first(lambda: b"" if (state := self.run.load()) is None else pack(*state))
        return unpack(data) if data else None

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """As `Run.save`, by rank 0."""
        if self.first:
            self.run.save(step, tensors, meta)

    def log(self, event: dict[str, Any]) -> None:
        """As `Run.log`, by rank 0."""
        if self.first:
            self.run.log(event)

    def finish(self, result: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        """As `Run.finish`, by rank 0; the others wait for it."""
        self._from_first(lambda: self.run.finish(result, tensors) or b"")
