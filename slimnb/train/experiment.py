"""From a recipe to a result: find the finished run, resume the interrupted one, or train it."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from slimnb.data.datasets import Augmentation, Batches, ImageData
from slimnb.errors import ParameterError, StoreError
from slimnb.nets.base import SlimmableNet
from slimnb.papers.sp_net.pruning import SCORES, embed_counts_
from slimnb.runs.store import Run, RunStore, code_fingerprint, machine_fingerprint
from slimnb.subnet import Subnet
from slimnb.train.distributed import broadcast_weights, rank_of, share, synchronise_batch_norm, world_of
from slimnb.train.loop import train
from slimnb.train.measure import choose, chosen, measure, plain_batches
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Probe, Sampler
from slimnb.train.recipe import Recipe
from slimnb.train.state import load_first_channels_, load_net, net_state

PAPERS = ("slimmable", "sp_net", "platforms", "pss_net", "deps", "ds_net")  # folders of slimnb.papers
CHAPTERS = {"slimmable_networks": "slimmable"}  # whose paper has another name
NETS = {"mobilenet_v1": "nets.mobilenet.MobileNetV1", "mobilenet_v2": "nets.mobilenet.MobileNetV2",
        "vgg": "nets.vgg.VGG", "resnet": "nets.resnet.ResNet50", "mobilenet_v3": "nets.mobilenet.MobileNetV3",
        "proxyless_nas": "nets.proxyless_nas.ProxylessNAS", "ds_mbnet": "papers.ds_net.nets.DSMobileNet",
        "ds_resnet": "papers.ds_net.nets.DSResNet50", "ds_effnet": "papers.ds_net.nets.DSEfficientNet"}
OPTIONS = ("layout", "stem", "first", "tail", "head", "rounding", "depths", "expands", "kernels", "variant", "strides",
           "fixed", "grid", "num_choices", "channels_per_group", "shared")  # of a net
NO_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")  # capabilities of processors, as PyTorch names them
NO_DATA = "none"  # data fingerprint of what was measured once, not trained
PATIENCE = 600.0  # seconds that a process waits for what another one measures
NO_TRAINING = "SLIMNB_NO_TRAINING"  # in the environment: an unfinished run is an error, not a reason to train


Stage = Callable[[str, int, ImageData, list["Result"], RunStore], list[Recipe]]
"""(scale, seed, data, results of this seed so far, store) -> recipes; data may be an `Absent`."""


@dataclass(frozen=True)
class Result:
    """A finished run: its recipe and what was measured."""

    recipe: Recipe
    rows: list[dict]  # one per subnet: mult, macs, params, top1 (test, percent), top1_val, ce, ...
    history: list[dict]  # step, lr, name, ce
    seconds: float  # of training
    run_id: str
    stale_code: bool = False  # the result is of an earlier version of the code
    found: dict = field(default_factory=dict)  # what the paper's method found beside the rows


def build(recipe: Recipe, num_classes: int) -> SlimmableNet:
    """The untrained supernet of a recipe, its batch-norm slots reserved."""
    module, _, name = net_name(recipe).rpartition(".")
    bn = "shared_affine" if recipe.bn == "one" else recipe.bn
    kind = getattr(importlib.import_module(module), name)
    given = {name: getattr(recipe, name, None) for name in OPTIONS}
    net = kind(num_classes, recipe.input_size, recipe.largest, bn=bn, seed=recipe.seed,
               **{name: value for name, value in given.items() if value or value is False})
    if recipe.bn != "calibrated":
        net.reserve(list(recipe.named(net).values()), shared=recipe.bn == "one")
    return net


def method_of(recipe: Recipe) -> ModuleType:
    """The paper's module: its `plan` gives sampler and objective, its `found` what goes into the result.

    With `recipe.teacher` its `plan` is also given that run's net, frozen, as `teacher`; with `recipe.tables`, the
    results of those runs, as `tables`.
    """
    if recipe.paper not in PAPERS:
        raise ParameterError(f"paper = {recipe.paper!r}", f"it is one of {', '.join(PAPERS)}",
                             "Set paper='slimmable'.")
    return importlib.import_module(f"slimnb.papers.{recipe.paper}.method")


def code_of(recipe: Recipe) -> str:
    """Fingerprint of the code that can change what this recipe's training leaves."""
    embeds = [embed_counts_, "slimnb.papers.sp_net.pruning.SCORES"] if hasattr(recipe, "score") else []
    starts = [load_first_channels_, *embeds]
    return code_fingerprint(["slimnb.train.loop.train", make_optimizer, Schedule, batches, net_name(recipe),
                             *_hooks(recipe, "plan", "load", "prepare", "penalty", "probe"),
                             *(starts if recipe.start else [])])


def measuring_code_of(recipe: Recipe) -> str:
    """Fingerprint of the code that measures a trained net: it makes no training stale."""
    return code_fingerprint([measure, choose, chosen, *_hooks(recipe, "found", "results", "candidates")])


def _hooks(recipe: Recipe, *names: str) -> list[Callable]:
    method = method_of(recipe)
    return [getattr(method, name) for name in names if hasattr(method, name)]


def net_name(recipe: Recipe) -> str:
    """The dotted name of the class of a recipe's net. Raises ParameterError if there is none."""
    if recipe.net not in NETS:
        raise ParameterError(f"net = {recipe.net!r}", f"it is one of {', '.join(NETS)}", "Set net='mobilenet_v1'.")
    return f"slimnb.{NETS[recipe.net]}"


def begin(recipe: Recipe, num_classes: int, store: RunStore) -> SlimmableNet:
    """The net as its training finds it: built, and with `recipe.start` with that run's weights.

    Of a wider net's weights it takes the first channels. A recipe that says in `score` and `padding` how has its
    channels sorted, and its `subnets` embedded (`embed_counts_`). A paper that takes other parts of the weights than
    the first channels does so in its module's `load`; what else it does to them is `prepare`. Raises StoreError
    without the weights.
    """
    if recipe.start and hasattr(recipe, "score"):
        net = build(replace(recipe, subnets=(("", recipe.largest),)), num_classes)
        load_net(net, weights_of(store, recipe.start), net.get_extra_state())
        net.mark_calibrated([net.largest])
        embed_counts_(net, {name: subnet.widths for name, subnet in recipe.named(net).items() if subnet != net.largest},
                      recipe.padding, SCORES[recipe.score])
    else:
        net = build(recipe, num_classes)
        load = getattr(method_of(recipe), "load", None)
        if recipe.start and load:
            load(recipe, net, lambda run_id: weights_of(store, run_id))
        elif recipe.start:
            load_first_channels_(net, weights_of(store, recipe.start))
    prepare = getattr(method_of(recipe), "prepare", None)
    if prepare:
        prepare(recipe, net)
    return net


def weights_of(store: RunStore, run_id: str) -> dict[str, Tensor]:
    """The tensors of the net that the run `run_id` has trained, by name.

    Raises StoreError if they are not on this machine.
    """
    record = _record(store, run_id)
    opened = store.open(record["recipe"], record["code"], record["data"])
    if not (opened.path / "result.json").exists():
        raise StoreError(f"weights of run {run_id}", "they are not on this machine",
                         "Train the run here first.")
    return {name.removeprefix("net/"): value for name, value in opened.weights().items()}


def _record(store: RunStore, run_id: str) -> dict:
    for record in store.records():
        if record["run_id"] == run_id:
            return record
    raise StoreError(f"run {run_id}", "it is not on this machine", "Train or measure it here first.")


def trained(result: Result, num_classes: int, store: RunStore) -> SlimmableNet:
    """The net of a finished run, in eval mode, with the statistics it was measured with.

    StoreError without the weights.
    """
    net = begin(result.recipe, num_classes, store)
    tried = [Subnet.from_json(row["subnet"]) for row in result.found.get("candidates", ())]
    measured = list(dict.fromkeys(tried)) or list(result.recipe.named(net).values())
    net.reserve(measured)
    load_net(net, weights_of(store, result.run_id), net.get_extra_state())
    net.mark_calibrated(measured)
    return net.eval()


def run(recipe: Recipe, data: ImageData, store: RunStore | None = None, *, device: str = "cpu", quiet: bool = False,
        allow_drift: bool = False, group=None) -> Result:
    """The result of `recipe` on `data`: loaded if it is finished, resumed if interrupted, else trained.

    A committed result of an earlier version of the code counts as finished, and a line says so: delete its file to
    train anew. With SLIMNB_NO_TRAINING set in the environment an unfinished run is error StoreError. With a process
    `group` (see `slimnb.train.distributed`) all its ranks call this and train together.
    """
    store = store or RunStore()
    stored = share(store.open(recipe.to_json(), code_of(recipe), data.fingerprint, machine_fingerprint(device),
                              allow_drift), group)
    quiet = quiet or rank_of(group) > 0
    found = finished(stored, lambda: _train(recipe, data, store, stored, device, quiet, group))
    if found.get("stale_code") and not quiet:
        print(f"{label(recipe)}: result of an earlier version of the code, run {found['run_id']}")
    return as_result(recipe, found)


def finished(stored: Run, work: Callable[[], None], wait: float = 0.0) -> dict:
    """The result of a stored run; if it has none, `work` finishes it first, in one process at a time.

    Another process is waited for `wait` seconds (BusyError). With SLIMNB_NO_TRAINING in the environment: StoreError, no
    work.
    """
    found = stored.result()
    if found is None:
        if os.environ.get(NO_TRAINING):
            raise StoreError(f"run {stored.id}", "it is not finished, and training is switched off",
                             f"Run the chapter at scale={stored.recipe.get('scale')!r} first.")
        with stored.lock(wait=wait):
            if stored.result() is None:  # another process may have finished it while we waited
                work()
        found = stored.result()
    return found


def as_result(recipe: Recipe, found: dict) -> Result:
    """A stored result as a `Result`."""
    plain = {"rows", "history", "seconds", "run_id", "measured_by", "stale_code", "resumed_with_drift"}
    return Result(recipe, found["rows"], found["history"], found["seconds"], found["run_id"],
                  found.get("stale_code", False), {k: v for k, v in found.items() if k not in plain})


def _is_finished(recipe: Recipe, data: ImageData, store: RunStore, group) -> bool:
    opened = share(store.open(recipe.to_json(), code_of(recipe), data.fingerprint), group)
    return opened.result() is not None


def stages_of(chapter: str) -> tuple[Stage, ...]:
    """What a chapter trains, stage by stage: `STAGES` of its paper's recipes. ParameterError if it has none."""
    name = CHAPTERS.get(chapter[3:], chapter[3:])
    if name not in PAPERS:
        raise ParameterError(f"chapter {chapter}", f"it trains nothing; those of {', '.join(PAPERS)} do",
                             "Run its notebook.")
    return importlib.import_module(f"slimnb.papers.{name}.recipes").STAGES


def study(stages: Sequence[Stage], scale: str, seeds: Iterable[int], data: ImageData, store: RunStore | None = None, *,
          arms: Collection[str] = (), **settings) -> list[Result]:
    """The results of all stages of a chapter (see `slimnb.papers`), seed by seed; `settings` go to `run`.

    With `arms` only those are run and returned; ParameterError if there is no such arm. A stage may want the results of
    arms before it: those that are finished serve, whether they were asked for or not.
    """
    store = store or RunStore()
    results, known = [], set()
    for seed in seeds:
        mine: list[Result] = []
        for stage in stages:
            for recipe in stage(scale, seed, data, mine, store):
                known.add(recipe.arm)
                asked = not arms or recipe.arm in arms
                if asked or _is_finished(recipe, data, store, settings.get("group")):
                    mine.append(run(recipe, data, store, **settings))
                    results += mine[-1:] if asked else []
    unknown = sorted(set(arms) - known)
    if unknown:
        raise ParameterError(f"arm = {unknown[0]!r}", f"it is one of {', '.join(sorted(known))}"[:160],
                             "Leave it out for all of them.")
    return results


def label(recipe: Recipe) -> str:
    """How progress lines call a run."""
    width = f" {recipe.mults[0]}x" if len(recipe.mults) == 1 else ""
    if recipe.subnets and len(recipe.subnets) == 1:
        width = f" {recipe.subnets[0][0]}"
    return f"{recipe.arm}{width} (seed {recipe.seed})"


def training_dtype(wanted: str, device: str) -> torch.dtype:
    """The dtype of activations while training: `wanted`, but float32 for bfloat16 on processors without AVX-512.

    There PyTorch has no bfloat16 convolution but a reference loop, several times as slow.
    """
    slow = torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() in NO_BFLOAT16
    return torch.float32 if wanted == "bfloat16" and slow else getattr(torch, wanted)


def made_in(recipe: Recipe, device: str) -> dict[str, str]:
    """What a result says of its dtype: nothing where it is the recipe's, else `training_dtype` by name."""
    dtype = training_dtype(recipe.dtype, device)
    return {} if dtype == getattr(torch, recipe.dtype) else {"dtype": str(dtype).removeprefix("torch.")}


def batches(recipe: Recipe, data: ImageData, device: str, group=None) -> Batches:
    """Shuffled, augmented training batches of a recipe; this rank's rows of them."""
    wanted = {name: getattr(recipe, name) for name in ("reflect", "auto_augment", "jitter", "lighting", "erasing")}
    augment = Augmentation(recipe.augment, **{name: value for name, value in wanted.items() if value is not None})
    return Batches(data.train, recipe.batch_size, seed=recipe.seed, augment=augment, mean=data.mean, std=data.std,
                   size=recipe.input_size, dtype=training_dtype(recipe.dtype, device), device=device, shuffle=True,
                   rank=rank_of(group), world=world_of(group))


def _train(recipe: Recipe, data: ImageData, store: RunStore, stored: Run, device: str, quiet: bool, group) -> None:
    net = begin(recipe, data.num_classes, store).to(device)
    broadcast_weights(net, group)
    if recipe.sync_bn:
        synchronise_batch_norm(net, group)
    method = method_of(recipe)
    feed = batches(recipe, data, device, group)
    rates = Schedule.of(recipe, feed.steps_per_epoch)
    given = {}
    if recipe.teacher:
        given["teacher"] = build(recipe, data.num_classes).to(device).requires_grad_(False)
        load_first_channels_(given["teacher"], weights_of(store, recipe.teacher))
    if getattr(recipe, "tables", ()):
        given["tables"] = [_record(store, run_id)["result"] for run_id in recipe.tables]
    sampler, objective = method.plan(recipe, net, rates.steps, **given)
    penalty = method.penalty(recipe) if hasattr(method, "penalty") else None
    optimizer = make_optimizer(net, recipe.momentum, recipe.weight_decay, recipe.decay)
    probe = _probe(recipe, net, data, feed.steps_per_epoch, device)
    span = tuple(round(at * feed.steps_per_epoch) for at in recipe.span) if recipe.span else None
    began = time.perf_counter()
    history = train(net, feed, sampler, objective, rates, optimizer, seed=recipe.seed, label=label(recipe),
                    run=stored, stop=lambda: stored.preempted, quiet=quiet, group=group, penalty=penalty,
                    probe=probe, span=span)
    seconds = time.perf_counter() - began
    synchronise_batch_norm(net, None)
    broadcast_weights(net, group)
    rows, found = _measured(recipe, net, sampler, data, device, group)
    if probe is not None:
        found["probed"] = probe.rows
    stored.finish({"rows": rows, "history": history, "seconds": round(seconds, 1),
                   "measured_by": measuring_code_of(recipe), **method.found(recipe, net, sampler), **found,
                   **made_in(recipe, device)}, net_state(net)[0])


def _seen(recipe: Recipe, data: ImageData) -> ImageData:
    return data if recipe.input_size <= data.size else data.enlarged(recipe.input_size)


def _probe(recipe: Recipe, net: SlimmableNet, data: ImageData, epoch: int, device: str) -> Probe | None:
    """What looks at the net while it trains, where the paper's module has a `probe`; test images are not used."""
    method = method_of(recipe)
    if not hasattr(method, "probe"):
        return None
    seen = _seen(recipe, data)
    train_split, val = (plain_batches(seen, split, net.input_size, device) for split in (seen.train, seen.val))
    return method.probe(recipe, net, epoch, lambda: train_split.images(recipe.calibration_images), lambda: val)


def _measured(recipe: Recipe, net: SlimmableNet, sampler: Sampler, data: ImageData, device: str,
              group) -> tuple[list[dict], dict]:
    """The rows of a result, and what is stored beside them.

    A paper whose subnets are only known after training gives `candidates` in its module and `top_k` in its recipes:
    the candidates' rows are stored, and those chosen become the result's. One that measures in a way of its own gives
    `results`.
    """
    seen = _seen(recipe, data)
    settings = {"images": recipe.calibration_images, "device": device, "group": group}
    if hasattr(method_of(recipe), "results"):
        return method_of(recipe).results(recipe, net, seen, **settings)
    candidates = getattr(method_of(recipe), "candidates", lambda *given: {})(recipe, net, sampler)
    if candidates:
        tried = choose(net, seen, candidates, **settings)
        return chosen(tried, recipe.top_k), {"candidates": tried}
    subnets = recipe.named(net)
    measured = measure(net, seen, list(subnets.values()), calibrate=bool(recipe.calibrate), **settings)
    return [{"name" if isinstance(name, str) else "mult": name} | row
            for name, row in zip(subnets, measured, strict=True)], {}


def once(store: RunStore, settings: dict, code: str, take: Callable[[], dict]) -> dict:
    """What `take` gives, stored under its settings and code; a second call loads it, one meanwhile waits for it."""
    stored = store.open(settings, code, NO_DATA)

    def measure_it() -> None:
        stored.load()
        stored.finish(take())

    return finished(stored, measure_it, PATIENCE)


def commit(recipes: Sequence[Recipe], data: ImageData, store: RunStore, folder: str | Path) -> list[Path]:
    """Write the small committed record (no weights) of each recipe's finished run into `folder`.

    With them go what was measured once at the same scales: latency, and the probes of these runs.
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
    found = [r for r in store.records() if (r["recipe"].get("paper"), r["recipe"].get("scale")) == (paper, scale)]
    opened = [store.open(r["recipe"], r["code"], r["data"]) for r in found]
    return [store.commit(stored, Path(folder) / f"{stored.id}.json") for stored in opened
            if (stored.path / "result.json").exists()]
