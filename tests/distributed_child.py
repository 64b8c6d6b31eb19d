"""One rank of the two that test_distributed.py starts: does everything once, writes what it found.

`python distributed_child.py FOLDER` with torchrun's variables in the environment. The cases are functions of
the joined batch and this rank's rows, so that the test runs the very same code as one process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_nets import images, tiny

from slimnb.data.datasets import load_data
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.nn.layers import Selection
from slimnb.nn.norm import SwitchableBatchNorm2d
from slimnb.papers.slimmable import recipes
from slimnb.papers.slimmable.method import InplaceDistillation, Sandwich, Switches, Uniform, any_width
from slimnb.runs.lock import stopping
from slimnb.runs.store import RunStore
from slimnb.train import distributed, experiment
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.loop import Watch, train, train_step
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels

MULTS = (0.5, 0.75, 1.0)
METHODS = ("switches", "sandwich")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 8


def build(method: str):
    """(net, sampler, objective): S-Net with private batch norm, or US-Net."""
    net = tiny(MobileNetV1, bn="private" if method == "switches" else "calibrated")
    if method == "switches":
        sampler, objective = Switches({f"{mult}x": net.uniform(mult) for mult in MULTS}), Labels()
        net.reserve(
            [*sampler.subnets(), net.uniform(0.625)]
        )  # the last row belongs to a subnet that never trains
        return net, sampler, objective
    sampler = Sandwich(net.largest, net.uniform(0.5), any_width(net, (0.5, 0.625, 0.75, 0.875)), seed=3)
    return net, sampler, InplaceDistillation()


def batch(step: int = 0, rows: slice = slice(None)):
    """The rows of a joined batch of 8 images whose halves differ a lot."""
    x = images(BATCH, 16, seed=step)
    x = (
        x * torch.linspace(0.5, 3, BATCH)[:, None, None, None]
        + torch.arange(BATCH)[:, None, None, None] % 2
    )
    y = torch.arange(BATCH) * 7 % 10
    return x[rows].contiguous(memory_format=torch.channels_last), y[rows]


def step_once(method: str, rows: slice, group=None, synchronised: bool = False) -> dict[str, torch.Tensor]:
    """Gradients, weights and statistics after one step on `rows` of the joined batch."""
    net, sampler, objective = build(method)
    if synchronised:
        distributed.synchronise_batch_norm(net, group)
    optimizer = make_optimizer(net)
    for param_group in optimizer.param_groups:
        param_group["lr"] = 0.1
    train_step(net.train(), *batch(0, rows), sampler.plan(5), objective, optimizer, group=group)
    found = {f"grad/{name}": p.grad for name, p in net.named_parameters()}
    return found | {
        f"after/{name}": value for name, value in net.state_dict().items() if name != "_extra_state"
    }


def norm_once(dtype: torch.dtype, rows: slice, group=None) -> dict[str, torch.Tensor]:
    """Output, gradients and statistics of one batch-norm layer; the mean is large against the spread."""
    norm = SwitchableBatchNorm2d(6, unit=0, policy="private")
    norm.reserve(2)
    if dtype == torch.float64:
        norm.double()
    norm.group = group
    x = (images(BATCH, 5, seed=1).repeat(1, 2, 1, 1)[:, :4] + 20).to(dtype)[rows].requires_grad_()
    out = norm(x, Selection((4,), slot=1, batch_statistics=True, momentum=0.1))
    pull = images(BATCH, 5, seed=2).repeat(1, 2, 1, 1)[:, :4].to(dtype)[rows]
    (out * pull).sum().backward()
    return {
        "out": out.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


SHARES = ((6, 6, 5), (6, 4), ())
"""Images of each batch that the ranks calibrate and evaluate on; the third of two ranks' is left over."""


def shares(rank: int):
    """Batches of one rank: images and labels."""
    x, y = images(27, 16, seed=9), torch.arange(27) * 3 % 10
    first = sum(sum(share) for share in SHARES[:rank])
    for size in SHARES[rank]:
        yield x[first : first + size], y[first : first + size]
        first += size


def measured(batches, group=None, alone=()):
    """Statistics, and (top1, ce, n) of subnets, over `batches`.

    `alone` is what another subnet is calibrated on; only rank 0 has any of it.
    """
    net, _, _ = build("sandwich")
    subnets = [net.uniform(mult) for mult in MULTS]
    if group is not None:
        distributed.synchronise_batch_norm(net, group)
    batches = list(batches)
    seen = calibrate_bn(net, subnets, [x for x, _ in batches], group)
    lonely = calibrate_bn(net, [net.uniform(0.625)], alone, group)
    found = evaluate(net, subnets, batches, group)
    buffers = {name: value for name, value in net.named_buffers() if "running" in name}
    return buffers, {
        "seen": seen,
        "lonely": lonely,
        "eval": [[e.top1, e.ce, e.n] for e in found],
        "correct": [e.correct.tolist() for e in found],
    }


def plans() -> list[str]:
    """What the samplers plan, as text."""
    net = build("sandwich")[0]
    draw = any_width(net, (0.5, 0.625, 0.75))
    samplers = build("switches")[1], build("sandwich")[1], Uniform(net.largest, draw, seed=2)
    return [
        str([str(made.route) for made in sampler.plan(step)]) for sampler in samplers for step in range(12)
    ]


class Rows:
    """Batches of this rank; asks the process to stop at a given step."""

    def __init__(self, rank: int, world: int, term: int | None = None):
        self.rows, self.term = slice(rank, None, world), term

    def batch(self, step: int):
        if step == self.term:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(step, self.rows)


class Diverged(Labels):
    """An infinite loss with a finite gradient: only the loss itself gives it away."""

    def __call__(self, made, logits, y):
        loss, ce = super().__call__(made, logits, y)
        return loss + float("inf"), ce


def run_to_end(root: Path, group, **trouble) -> dict[str, torch.Tensor] | SlimnbError:
    """One call of a two-rank program: final weights and history, or the error that ended it."""
    run = distributed.share(RunStore(root, root / "none").open({"seed": 0}, "c", "d"), group)
    rank, world = distributed.rank_of(group), distributed.world_of(group)
    try:
        with run.lock(), stopping.later():
            if run.result() is None:
                net, sampler, objective = build("switches")
                distributed.synchronise_batch_norm(net, group)
                train(
                    net,
                    Rows(rank, world, **trouble),
                    sampler,
                    objective,
                    Schedule(0.1, 8),
                    make_optimizer(net),
                    run=run,
                    save_seconds=0,
                    stop=lambda: run.preempted,
                    group=group,
                    quiet=True,
                )
                run.finish({"sum": sum(p.double().sum().item() for p in net.parameters())})
            return run.result()
    except SlimnbError as error:
        return {"error": type(error).__name__, "text": str(error)}


def diverged_on_one_rank(rank: int, group) -> dict:
    """A step whose loss is infinite on rank 1 only: what each rank says, and whether weights moved."""
    net, sampler, objective = build("switches")
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = make_optimizer(net)
    optimizer.param_groups[0]["lr"] = 0.1
    x, y = batch(0, slice(rank, None, 2))
    outcomes = train_step(
        net.train(), x, y, sampler.plan(0), Diverged() if rank else objective, optimizer, group=group
    )
    watch = Watch()
    watch.add(0, 0.1, outcomes, optimizer.found_inf)
    try:
        watch.check_finite()
        code = None
    except SlimnbError as error:
        code = type(error).__name__
    same = all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))
    return {"code": code, "same": same}


def folder_run(folder: Path, name: str, group=None) -> list[dict]:
    """Rows of a net trained on the folder of images at 224 pixels, with every augmentation there is."""
    data = load_data(str(folder / "pets"), cache=folder / "cache")
    recipe = replace(
        recipes.FULL, arm="S-Net", mults=(0.5, 1.0), layout=((32, 2), (32, 2), (64, 1)), epochs=2, batch_size=10,
        dtype="float32", sync_bn=True, calibration_images=20, auto_augment=True, jitter=(0.4, 0.4, 0.4, 0.1),
        lighting=0.1, erasing=0.2, smoothing=0.1,
    )  # fmt: skip
    store = RunStore(folder / name, folder / "none")
    return experiment.run(recipe, data, store, quiet=True, group=group).rows


OWN = replace(recipes.SMOKE, arm="S-Net", mults=(0.5, 1.0), layout=((8, 1), (16, 1)), epochs=2, batch_size=16,
              dtype="float32", calibration_images=16)


def own_run(folder: Path, group=None, recipe=OWN) -> experiment.Result:
    """The result of a net each of whose ranks normalises by its own rows."""
    store = RunStore(folder / "own", folder / "own committed")
    return experiment.run(recipe, load_data("synthetic", train=60, test=20), store, quiet=True, group=group)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)
    group = distributed.start()
    rank = distributed.rank_of(group)
    rows = slice(rank, None, 2)
    tensors, facts = {}, {"plans": plans(), "world": distributed.world_of(group), "folder at": str(folder)}
    for method in METHODS:
        for synchronised in (True, False):
            found = step_once(method, rows, group, synchronised)
            tensors |= {f"{method}/{synchronised}/{name}": value for name, value in found.items()}
    for name, dtype in DTYPES.items():
        tensors |= {f"norm/{name}/{key}": value for key, value in norm_once(dtype, rows, group).items()}
    buffers, facts["measured"] = measured(shares(rank), group, () if rank else [images(5, 16)])
    tensors |= {f"calibrated/{name}": value for name, value in buffers.items()}

    net = tiny(MobileNetV1, seed=rank, bn="private")
    distributed.broadcast_weights(net, group)
    tensors |= {f"broadcast/{name}": p.detach() for name, p in net.named_parameters()}
    mine = torch.arange(10)[rank::2]
    facts["joined"] = distributed.joined(mine % 3 == 0, mine, 10, group).tolist()
    facts["diverged"] = diverged_on_one_rank(rank, group)

    straight = run_to_end(folder / "straight", group)
    first = run_to_end(folder / "stopped", group, term=3 if rank == 1 else None)
    second = run_to_end(folder / "stopped", group, term=5 if rank == 0 else None)
    facts["runs"] = [straight, first, second, run_to_end(folder / "stopped", group)]
    if rank == 0:
        held = RunStore(folder / "held", folder / "none").open({"seed": 0}, "c", "d")
        with held.lock():
            facts["busy"] = run_to_end(folder / "held", group)
    else:
        facts["busy"] = run_to_end(folder / "held", group)

    facts["folder"] = folder_run(folder, "pets of two", group)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / f"rank{rank}.safetensors"
    )
    own = own_run(folder, group)
    facts["own"] = [own.run_id, own.recipe.ranks, own.rows]
    if rank == 0:
        try:
            own_run(folder, group, replace(OWN, seed=1))
        except SlimnbError as error:
            facts["alone"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(facts))
    if rank == 1:
        os._exit(0)  # in the middle of what rank 0 wants to do with it
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
