"""The one training loop: a Sampler plans the passes of a step, an Objective turns logits into losses."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from slimnb.data.batches import class_numbers
from slimnb.errors import BusyError, ParameterError
from slimnb.nets.base import SlimmableNet
from slimnb.rules import Amount, Count, Seed, checked, short
from slimnb.train.history import History, Reporter, Watch
from slimnb.train.optim import Schedule
from slimnb.train.protocols import Objective, Outcome, Pass, Penalty, Probe, Sampler
from slimnb.train.state import collect, restore

# -- one step --------------------------------------------------------------------------------------------


def train_step(net: SlimmableNet, x: Tensor, y: Tensor, passes: Sequence[Pass], objective: Objective,
               optimizer, generator: torch.Generator | None = None, group=None,
               penalty: Penalty | None = None) -> list[Outcome]:
    """Make one optimiser step from all `passes` on one batch; their gradients add up, each times its weight.

    `x` is (B, 3, H, W) and `y` is (B,), classes; what is no tensor, as boxes, goes to the objective as it is. With a
    process `group` one all-reduce averages the gradients over its ranks.
    After that `penalty` adds its own in place. If a loss or the gradient is not finite on any rank, the device skips
    the update, and `Watch` reports it later. Raises DataError for labels of another shape or type.
    """
    y = class_numbers(y, len(x)) if isinstance(y, Tensor) else y
    optimizer.zero_grad(set_to_none=True)
    objective.begin(net, x, passes)
    outcomes = []
    for a_pass in passes:
        logits = net(x, a_pass.route, dropout=a_pass.dropout, generator=generator)
        loss, ce = (values.to(torch.promote_types(values.dtype, torch.float32))  # they will be summed
                    for values in objective(a_pass, logits, y))
        mean = loss.mean()
        weighted = isinstance(a_pass.weight, Tensor) or a_pass.weight != 1
        (a_pass.weight * mean if weighted else mean).backward()
        outcomes.append(Outcome(a_pass, loss.detach(), ce))
    bad = (~torch.stack([o.loss for o in outcomes]).isfinite().all()).float()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    if group is not None:
        average_([*gradients, bad], group)
    if penalty is not None:
        penalty(net)
    norm = torch.nn.utils.get_total_norm(gradients)
    # A fused optimiser leaves weights and momentum alone where this is 1, and nobody waits for the device.
    optimizer.found_inf = ((bad > 0) | ~norm.isfinite()).float()
    optimizer.grad_scale = None
    optimizer.step()
    return outcomes


def average_(tensors: Sequence[Tensor], group) -> None:
    """Replace each tensor by its mean over the ranks of `group`, in one coalesced all-reduce.

    The ranks' plans are the same, so that they all bring the gradients of the same parameters.
    """
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view(t.shape))


# -- the loop --------------------------------------------------------------------------------------------

CHECK_INTERVAL = 50
"""Steps on a GPU between two reads of its results; on the CPU every step is read."""


@checked
def train(net: SlimmableNet, batches, sampler: Sampler, objective: Objective, schedule: Schedule,
          optimizer: Optimizer, *, seed: Seed = 0, label: str = "train", run=None, save_seconds: Amount = 60.0,
          intervals: Count = 20, stop: Callable[[], bool] = lambda: False, group=None,
          quiet: bool = False, penalty: Penalty | None = None, probe: Probe | None = None,
          span: tuple[int, int] | None = None) -> list[dict]:
    """Train `net` for `schedule.steps` steps and return the history: rows of step, lr, name, ce.

    `batches.batch(step)` gives (x, y). `penalty` adds to the gradients of every step. `probe` looks at copies of the
    net, and its rows are stored with the run. With `span` (from, to) only these steps are made, with the rates, batches
    and plans that they have in the whole schedule; another run makes the others.

    With a `run` (see `slimnb.runs.store`) training starts from the newest checkpoint and saves one every
    `save_seconds`. It ends in the same bits however often it was interrupted. `stop` is called when losses are read,
    every `CHECK_INTERVAL` steps on a GPU. If it returns true, the state is saved and BusyError is raised.

    Raises ParameterError for a span outside the schedule, an optimiser that lacks one of the net's parameters, and
    parts that cannot do their work;
    DataError for labels that are not (B,) whole numbers of classes; NumericsError where `Watch` does.
    """
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    for name, part, method in (("batches", batches, "batch"), ("sampler", sampler, "plan"),
                               ("objective", objective, "begin")):
        if not callable(getattr(part, method, None)):
            raise ParameterError(f"{name} = {short(part)}", f"it has a method `{method}`",
                                 "See slimnb/train/protocols.py.")
    first, last = span or (0, schedule.steps)
    if not 0 <= first < last <= schedule.steps:
        raise ParameterError(f"span = {span}", f"it lies in the schedule's steps, 0 to {schedule.steps}",
                             "Leave it out for all of them.")
    history, watch = History([], [] if probe is None else probe.rows), Watch(ranks)
    loaded = run.load() if run is not None else None
    start = restore(*loaded, net, optimizer, sampler, history, objective) if loaded else first
    _check_optimizer(net, optimizer)
    interval = max(1, (last - first) // intervals)
    generator = torch.Generator(next(net.parameters()).device)
    often = 1 if generator.device.type == "cpu" else CHECK_INTERVAL
    saved = time.perf_counter()
    net.train()
    with closing(Reporter(label, start, last, quiet)) as report:
        for step in range(start, last):
            lr, done = schedule(step), step + 1
            for param_group in optimizer.param_groups:
                param_group["lr"] = lr
            generator.manual_seed(zlib.crc32(f"{seed}/dropout/{step}{f'/{rank}' if rank else ''}".encode()))
            x, y = batches.batch(step)
            if isinstance(y, Tensor) and (step == start or often == 1):  # later on, a GPU would be waited for
                class_numbers(y, len(x), net.num_classes)
            if probe is not None and probe.at(step):
                take_probe(probe, step, net, x, y, group)
            outcomes = train_step(net, x, y, sampler.plan(step), objective, optimizer, generator, group,
                                  penalty)
            sampler.observe(step, outcomes)
            history.add(outcomes)
            watch.add(step, lr, outcomes, optimizer.found_inf)
            due = done % interval == 0 or done == last
            if not due and done % often:
                continue  # nothing above waits for the device
            watch.check_finite()
            report.move(done)
            if due:
                report(done, history.flush(done, lr))
            stopping = stop()
            old = done < last and time.perf_counter() - saved > save_seconds
            if run is not None and (stopping or old):
                run.save(done, *collect(net, optimizer, sampler, history, done, objective))
                saved = time.perf_counter()
            if stopping:
                raise BusyError(f"stopped at step {done} of {last}",
                                "the process was asked to end", "Run the same command again to go on.",
                                "Progress is kept." if run is not None else "Nothing was kept.")
    return history.rows


def take_probe(probe: Probe, step: int, net: SlimmableNet, x: Tensor, y: Tensor, group=None) -> None:
    """Run `probe` on a copy of `net` before `step` and keep its rows; the training itself does not notice."""
    copied = copy.deepcopy(net, {id(group): group})  # mode, statistics, gradients: all its own
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        probe.rows += probe(step, copied, x, y)


def _check_optimizer(net: SlimmableNet, optimizer) -> None:
    held = {id(p) for param_group in optimizer.param_groups for p in param_group["params"]}
    for name, p in net.named_parameters():
        if p.requires_grad and id(p) not in held:
            raise ParameterError(f"parameter {name[:60]}",
                                 "the optimiser does not hold it, so it would never move",
                                 "Call net.reserve([...]) first and make_optimizer(net) then.")
