"""From a recipe to a result: load the finished run, resume the interrupted one, or train it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch

from slimnb import plugins
from slimnb.data.datasets import Absent, ImageData
from slimnb.errors import ParameterError, StoreError
from slimnb.nets.base import SlimmableNet
from slimnb.rules import Scale, Seed, checked
from slimnb.runs.fingerprint import code_fingerprint, machine_fingerprint
from slimnb.runs.lock import stopping
from slimnb.runs.store import Run, RunStore
from slimnb.subnet import Subnet
from slimnb.train.distributed import broadcast_weights, rank_of, share, synchronise_batch_norm, together, world_of
from slimnb.train.history import History
from slimnb.train.loop import train
from slimnb.train.measure import plain_batches
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Probe
from slimnb.train.recipe import Recipe, training_dtype
from slimnb.train.state import collect, load_net, net_state

NO_DATA = "none"  # data fingerprint of what was measured once, not trained
PATIENCE = 600.0  # seconds that a process waits for what another one measures
NO_TRAINING = "SLIMNB_NO_TRAINING"  # in the environment: an unfinished run is an error, not a reason to train
ALLOW_DRIFT = "SLIMNB_ALLOW_DRIFT"  # in the environment: a run that was begun on another machine goes on here
RANKS = "SLIMNB_RANKS"  # in the environment of one process: the number of ranks whose finished runs it looks for


@runtime_checkable
class Data(Protocol):
    """What runs train on: `slimnb.data.datasets.ImageData`, or a paper's own kind."""

    fingerprint: str


@dataclass(frozen=True)
class Result:
    """A finished run: its recipe, and what was measured on its net."""

    recipe: Recipe
    rows: list[dict]  # one per subnet: mult, macs, params, top1 (test, percent), top1_val, ce, ...
    history: list[dict]  # step, lr, name, ce
    seconds: float  # of training
    run_id: str
    stale_code: bool = False  # an earlier version of the code has trained it
    stale_measure: bool = False  # an earlier version has measured it, or one that left no fingerprint
    resumed_with_drift: str = ""  # what had changed of the machine when it was resumed: then its bits are no others'
    findings: dict = field(default_factory=dict)  # what the paper's method found beside the rows


@dataclass(frozen=True)
class Context:
    """What a stage of a paper's study gets, from which it decides which recipes come next."""

    scale: str
    seed: int
    data: ImageData | Absent
    results: Sequence[Result] = ()  # of this seed so far
    store: RunStore | None = None


Stage = Callable[[Context], list[Recipe]]
"""One step of what a chapter trains. It sees the results of the steps before it, so that a recipe may hold what a
search found or what pruning left. A paper's `STAGES` are all of them, in order."""


def code_of(recipe: Recipe) -> str:
    """Fingerprint of the code that can change what this recipe's training leaves."""
    return code_fingerprint(["slimnb.train.loop.train", make_optimizer, Schedule, *recipe.parts(),
                             *methods_of(recipe, recipe.TRAINING)])


def measuring_code_of(recipe: Recipe) -> str:
    """Return the fingerprint of the code that measures a trained net; it makes no training stale."""
    return code_fingerprint(methods_of(recipe, recipe.MEASURING))


def methods_of(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Return the dotted names of a recipe's methods."""
    return [f"{type(recipe).__module__}.{type(recipe).__qualname__}.{name}" for name in names]


def trained(result: Result, num_classes: int, store: RunStore) -> SlimmableNet:
    """Return the net of a finished run in eval mode, with the statistics it was measured with.

    Raises StoreError if its weights are not there.
    """
    net = result.recipe.begin(num_classes, store)
    candidates = [Subnet.from_json(row["subnet"]) for row in result.findings.get("candidates", ())]
    subnets = list(dict.fromkeys(candidates)) or list(result.recipe.named(net).values())
    net.reserve(subnets)
    load_net(net, store.weights_of(result.run_id), net.get_extra_state())
    net.mark_calibrated(subnets)
    return net.eval()


@checked
def run(recipe: Recipe, data: Data, store: RunStore | None = None, *, device: str = "cpu", quiet: bool = False,
        allow_drift: bool = False, group=None) -> Result:
    """Return the result of `recipe` on `data`: a finished run is loaded, an interrupted one resumed, a new one trained.

    A committed result of an earlier version of the code counts as finished, and one line says so; delete its file to
    train anew. If SLIMNB_NO_TRAINING is set in the environment, an unfinished run raises StoreError. On another machine
    so does an interrupted one, without `allow_drift` or SLIMNB_ALLOW_DRIFT; the result says what differed. With a
    process `group` (see `slimnb.train.distributed`) all its ranks call this and train together; if that changes the
    arithmetic (see `Recipe.on_ranks`), it is a run of its own. A signal to stop raises BusyError; nothing is lost.
    """
    store, recipe = store or RunStore(), _on_ranks(recipe, group)
    stored = share(store.open(recipe.to_json(), code_of(recipe), data.fingerprint, machine_fingerprint(device),
                              allow_drift or bool(os.environ.get(ALLOW_DRIFT))), group)
    quiet = quiet or rank_of(group) > 0
    with together(group):
        result = finished(stored, lambda: _train(recipe, data, store, stored, device, quiet, group))
    result = as_result(recipe, result)
    if (result.stale_code or result.stale_measure) and not quiet:
        work = " and ".join(["trained"] * result.stale_code + ["measured"] * result.stale_measure)
        print(f"{recipe.label}: {work} by an earlier version of the code, run {result.run_id}")
    if result.resumed_with_drift and not quiet:
        print(f"{recipe.label}: resumed on another machine ({result.resumed_with_drift}), so not bit for bit")
    return result


def _on_ranks(recipe: Recipe, group) -> Recipe:
    named = os.environ.get(RANKS, "1")
    if not re.fullmatch("[1-9][0-9]{0,4}", named):
        raise ParameterError(f"{RANKS} = {named[:20]!r}", "it is a number of ranks", f"Set {RANKS}=1.")
    return recipe.on_ranks(int(named) if group is None else world_of(group))


def finished(stored: Run, work: Callable[[], None], wait: float = 0.0) -> dict:
    """Return the result of a stored run; if it has none, let `work` finish it first, in one process at a time.

    If another process is at it, wait `wait` seconds, then raise BusyError. With SLIMNB_NO_TRAINING in the environment
    raise StoreError in place of any work.
    """
    result = stored.result()
    if result is None:
        if os.environ.get(NO_TRAINING):
            raise StoreError(f"run {stored.id}", "it is not finished, and training is switched off",
                             f"Run the chapter at scale={stored.recipe.get('scale')!r} first.")
        with stored.lock(wait=wait):
            if stored.result() is None:  # another process may have finished it while we waited
                work()
        result = stored.result()
    return result


def as_result(recipe: Recipe, stored: dict) -> Result:
    """Make a `Result` of a stored result."""
    plain = {"rows", "history", "seconds", "run_id", "measured_by", "stale_code", "resumed_with_drift"}
    return Result(recipe, stored["rows"], stored["history"], stored["seconds"], stored["run_id"],
                  stored.get("stale_code", False), stored.get("measured_by") != measuring_code_of(recipe),
                  str(stored.get("resumed_with_drift", "")),
                  {k: v for k, v in stored.items() if k not in plain})


def _is_finished(recipe: Recipe, data: ImageData, store: RunStore, group) -> bool:
    recipe = _on_ranks(recipe, group)
    opened = share(store.open(recipe.to_json(), code_of(recipe), data.fingerprint), group)
    return opened.result() is not None


def paper_of(chapter: str) -> ModuleType:
    """Return the recipes module of the paper that a chapter ("04_pss_net") is about, or that has this name ("pss_net").

    Raises ParameterError if there is none.
    """
    for name in plugins.names("papers"):
        module = plugins.find("papers", name)
        if chapter in (name, getattr(module, "CHAPTER", None)):
            return module
    raise ParameterError(f"chapter {chapter}", f"it trains nothing; those of {', '.join(plugins.names('papers'))} do",
                         "Run its notebook.")


@stopping
@checked
def study(stages: Sequence[Stage], scale: Scale, seeds: Iterable[Seed], data: Data,
          store: RunStore | None = None, *, arms: Collection[str] = (), **settings) -> list[Result]:
    """Return the results of all stages of a chapter (see `Stage`), seed by seed; `settings` go to `run`.

    With `arms` only those arms are run and returned. A stage may need results of arms before it; those that are
    finished are used, even if `arms` does not name them. Raises ParameterError for an arm that no stage has.
    """
    store = store or RunStore()
    results, known = [], set()
    for seed in seeds:
        of_seed: list[Result] = []
        for stage in stages:
            for recipe in stage(Context(scale, seed, data, tuple(of_seed), store)):
                known.add(recipe.arm)
                is_named = not arms or recipe.arm in arms
                if is_named or _is_finished(recipe, data, store, settings.get("group")):
                    of_seed.append(run(recipe, data, store, **settings))
                    results += of_seed[-1:] if is_named else []
    unknown = sorted(set(arms) - known)
    if unknown:
        raise ParameterError(f"arm = {unknown[0]!r}", f"it is one of {', '.join(sorted(known))}"[:160],
                             "Leave it out for all of them.")
    return results


def _train(recipe: Recipe, data: ImageData, store: RunStore, run: Run, device: str, quiet: bool, group) -> None:
    if recipe.ranks not in (None, world_of(group)):
        raise ParameterError(f"ranks = {recipe.ranks}", f"there are {world_of(group)} to train it",
                             f"Start it with torchrun --nproc-per-node {recipe.ranks}.", "Nothing was written.")
    net = recipe.begin(data.num_classes, store).to(device)
    broadcast_weights(net, group)
    if recipe.sync_bn:
        synchronise_batch_norm(net, group)
    feed = recipe.batches(data, device, group)
    rates = Schedule.of(recipe, feed.steps_per_epoch)
    sampler, objective = recipe.sampler_and_objective(net, rates.steps, store)
    optimizer = make_optimizer(net, recipe.momentum, recipe.weight_decay, recipe.decay)
    images = data.at_least(recipe.input_size)
    probe = _probe(recipe, net, images, feed.steps_per_epoch, device)
    span = tuple(round(at * feed.steps_per_epoch) for at in recipe.span) if recipe.span else None
    began = time.perf_counter()
    with stopping.later():  # the loop saves when it is asked to stop
        history = train(net, feed, sampler, objective, rates, optimizer, seed=recipe.seed, label=recipe.label, run=run,
                        stop=lambda: run.preempted, quiet=quiet, group=group, penalty=recipe.penalty(), probe=probe,
                        span=span)
        seconds, last = time.perf_counter() - began, span[1] if span else rates.steps
        so_far = History(history, [] if probe is None else probe.rows)
        run.save(last, *collect(net, optimizer, sampler, so_far, last, objective))  # measuring takes its time, too
    synchronise_batch_norm(net, None)
    broadcast_weights(net, group)
    rows, beside = recipe.measure(net, sampler, images, device=device, group=group)
    beside |= {} if probe is None else {"probed": probe.rows}
    run.finish({"rows": rows, "history": history, "seconds": round(seconds, 1),
                "measured_by": measuring_code_of(recipe), **recipe.findings(net, sampler), **beside,
                **_trained_in(recipe, device)}, net_state(net)[0])


def _trained_in(recipe: Recipe, device: str) -> dict[str, str]:
    """The dtype of the training, where it is not the recipe's."""
    dtype = training_dtype(recipe.dtype, device)
    return {} if dtype == getattr(torch, recipe.dtype) else {"dtype": str(dtype).removeprefix("torch.")}


def _probe(recipe: Recipe, net: SlimmableNet, data: ImageData, epoch: int, device: str) -> Probe | None:
    """The recipe's probe; it sees training and validation images, never test images."""
    def split(name: str):
        return plain_batches(data, getattr(data, name), net.input_size, device)

    return recipe.probe(net, epoch, lambda: split("train").images(recipe.calibration_images), lambda: split("val"))


def once(store: RunStore, settings: dict, code: str, take: Callable[[], dict]) -> dict:
    """Return what `take` gives, stored under its settings and code; a second call loads it.

    A call in another process at the same time waits for it.
    """
    stored = store.open(settings, code, NO_DATA)

    def measure_it() -> None:
        stored.load()
        stored.finish(take())

    return finished(stored, measure_it, PATIENCE)


def commit(recipes: Sequence[Recipe], data: ImageData, store: RunStore, folder: str | Path) -> list[Path]:
    """Write the small committed record, without weights, of each recipe's finished run into `folder`.

    The measurements that were taken once at the same scales go with them: latencies, and diagnostics of these runs.
    """
    opened = [store.open(recipe.to_json(), code_of(recipe), data.fingerprint) for recipe in recipes]
    about = {(recipe.paper, recipe.scale) for recipe in recipes}
    ids = {stored.id for stored in opened}
    opened += [store.open(r["recipe"], r["code"], r["data"]) for r in store.records() if r["data"] == NO_DATA
               and (r["recipe"].get("paper"), r["recipe"].get("scale")) in about
               and r["recipe"].get("of", next(iter(ids))) in ids]
    return [store.commit(stored, Path(folder) / f"{stored.id}.json") for stored in opened]


def commit_all(paper: str, scale: str, store: RunStore, folder: str | Path) -> list[Path]:
    """Write the small committed records of all finished local runs of a paper at a scale, whatever data they are on."""
    records = [r for r in store.records() if (r["recipe"].get("paper"), r["recipe"].get("scale")) == (paper, scale)]
    opened = [store.open(r["recipe"], r["code"], r["data"]) for r in records]
    return [store.commit(stored, Path(folder) / f"{stored.id}.json") for stored in opened
            if (stored.path / "result.json").exists()]
