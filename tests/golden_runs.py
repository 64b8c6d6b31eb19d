"""Golden loss traces: what tiny runs of every chapter's recipes find, to the last bit, and the ids of all recipes.

`python -m tests.golden_runs` says which arms differ from tests/golden.json; with --write it rewrites the file.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from slimnb.data.datasets import ImageData, load_data
from slimnb.papers.ds_net.detection.recipes import recipes as detection_recipes
from slimnb.papers.ds_net.detection.scenes import generated
from slimnb.papers.ds_net.recipes import transfer_stages
from slimnb.runs.results import run_ids
from slimnb.runs.store import RunStore
from slimnb.train.experiment import Context, Result, Stage, paper_of, run, study
from slimnb.train.recipe import training_dtype

GOLDEN = Path(__file__).with_name("golden.json")
CHAPTERS = ("01_slimmable_networks", "02_sp_net", "03_platforms", "04_pss_net", "05_deps", "06_ds_net")
DETECTION, OTHERS = "detection", "other nets"
TRACED = (*CHAPTERS, DETECTION, OTHERS)
SCALES = ("smoke", "small", "full")
DTYPES = ("float32", "bfloat16")
STEPS = 10  # of every run that are kept
ROW = ("ce", "top1", "macs", "map", "map_50")  # what is kept of a row; of no image but those of the test split
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

ARMS = {
    "01_slimmable_networks": ("Individual", "One BN", "S-Net", "US-Net"),
    "02_sp_net": ("Individual", "S-Net", "Base", "SP-Net", "Uniform counts", "One-shot", "Shortcut first", "L1 norms",
                  "Drawn anew", "Slimming alone", "Iterative"),
    "03_platforms": ("OWS search", "RS-AOWS search", "Random-U", "Slim-U", "RS-AOWS-RS", "Slim alone"),
    "04_pss_net": ("US-Net", "MutualNet", "PSS-F", "Random", "Uniform pools", "Exact sampling", "MutualNet, reduced",
                   "Given widths", "Fine-tuned"),
    "05_deps": ("Full 50%", "Full", "DepS", "DepS without epsilon", "BigNAS", "OFA depth 2", "OFA", "CompOFA"),
    "06_ds_net": ("In-place distillation", "EMA target", "IEB", "DS-Net-S", "DS-Net-L", "Target", "Complexity",
                  "SGS, give up", "SGS, try best", "Scalar head", "Unshared reduction", "Without gate transfer",
                  "Gate transfer"),
}
"""What is run: each code path of each paper once. PSS-C and PSS-M are not: they depend on measured latencies."""

FEW = {
    "01_slimmable_networks": ("S-Net", "US-Net"), "02_sp_net": ("S-Net", "Base"), "03_platforms": ("RS-AOWS search",),
    "04_pss_net": ("PSS-F",), "05_deps": ("Full 50%", "Full", "DepS"),
    "06_ds_net": ("IEB", "DS-Net-L"),
}
"""Arms that are run by default: one way through the net and the method each. `-m sweep` runs all."""

ONE_OF_MANY = {"Individual": 0.5, "Slim alone": "#2"}
"""Arms that have a net for every width: the width, or the platform, whose net is run."""

# 160 training images: ten steps of 16. Rates are low where a difference in the last bit, as other processors make it,
# would otherwise grow so fast that nothing told it from a change of what is computed. Augmentations, dropout and
# smoothing that the recipes of smoke do without are switched on here and there, so that the traces hold them, too.
CHANGES = {
    "01_slimmable_networks": {"augment": "crop_flip"},
    "02_sp_net": {"smoothing": 0.1, "lr": 0.02},
    "03_platforms": {},
    "04_pss_net": {"epochs": 2, "batch_size": 32, "samples": 2000, "augment": "resized_crop",
                   "jitter": (0.4, 0.4, 0.4), "lighting": 0.1},
    "05_deps": {"augment": "crop_flip", "reflect": True, "auto_augment": True, "erasing": 0.25, "smoothing": 0.1},
    "06_ds_net": {},
}
BY_METHOD = {
    # A search must have drawn all its 14 choices of each unit before it looks at them.
    "ows": {"epochs": 2, "batch_size": 32, "window": 150},
    "aows": {"epochs": 2, "batch_size": 32, "window": 150, "refresh": 4}, "platforms": {"dropout": 0.2},
    # The full net and those that shrink train in two legs of ten steps each.
    "full": {"batch_size": 8}, "shrinking": {"batch_size": 8}, "in-place": {"dropout": 0.2},
    "progressive": {"lr": 0.02}, "compound": {"lr": 0.02}, "gates": {"lr": 1.0},
}


def toy(chapter: str, recipe, dtype: str):
    """The recipe with so little of everything that its run has about ten steps."""
    common = {"epochs": 1, "batch_size": 16, "calibration_images": 64, "dtype": dtype}
    return replace(recipe, **common | CHANGES[chapter] | BY_METHOD.get(recipe.method, {}))


def wanted(recipe, arms: Sequence[str]) -> bool:
    """Whether the arm is run, and of arms of many nets whether it is this one."""
    one = ONE_OF_MANY.get(recipe.arm)
    name = recipe.subnets[0][0] if recipe.subnets else (*recipe.mults, None)[0]
    return recipe.arm in arms and one in (None, name)


def shrunk(chapter: str, stages: Sequence[Stage], dtype: str, arms: Sequence[str]) -> list[Stage]:
    """The stages, of whose recipes those that are wanted are left, tiny."""
    def wrap(stage: Stage) -> Stage:
        return lambda *given: [toy(chapter, recipe, dtype) for recipe in stage(*given) if wanted(recipe, arms)]

    return [wrap(stage) for stage in stages]


# -- what a paper's recipes finds in place of its own -----------------------------------------


@contextmanager
def replaced(stages: Sequence[Stage], **names) -> Iterator[None]:
    """While it lasts the stages find `names` instead of their module's own."""
    found = stages[0].__globals__
    assert names.keys() <= found.keys(), f"{stages[0].__module__} has no {', '.join(names)}"
    with patch.dict(found, names):
        yield


@contextmanager
def as_traced(chapter: str, stages: Sequence[Stage]) -> Iterator[None]:
    """Chapter 04 measures no latency; the ResNet-50 of chapter 02 has at smoke the arms that it has elsewhere."""
    with ExitStack() as stack:
        if chapter == "04_pss_net":
            stack.enter_context(replaced(stages, latency_arms=lambda *given: []))
        if chapter == "02_sp_net":
            own = stages[0].__globals__["families"]
            stack.enter_context(replaced(stages, families=lambda *given: [
                replace(family, arms=ARMS[chapter]) if family.arms else family for family in own(*given)]))
        yield


# -- traces ----------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: sums do not depend on how many the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def traces(chapter: str, dtype: str, arms: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Of every arm (or of `arms` of the chapter) what `trace` gives, by `name_of` its recipe; runs it all."""
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "runs", Path(folder) / "none")
        if chapter == DETECTION:
            results = detected(dtype, store)
        elif chapter == OTHERS:
            results = other_nets(dtype, store)
        else:
            results = chapter_results(chapter, dtype, store, arms or ARMS[chapter])
        return {name_of(result.recipe): trace(result) for result in results}


def images(seed: int = 0) -> ImageData:
    """160 images to train on, 18 to validate on, 40 to test on."""
    return load_data("synthetic", train=178, test=40, seed=seed)


def chapter_results(chapter: str, dtype: str, store: RunStore, arms: Sequence[str]) -> list[Result]:
    """The runs of a chapter; of chapter 06 also those that move to other data."""
    stages = paper_of(chapter).STAGES
    with as_traced(chapter, stages):
        results = study(shrunk(chapter, stages, dtype, arms), "smoke", [0], images(), store, quiet=True)
        if chapter == "06_ds_net":
            moved = shrunk(chapter, transfer_stages(results, "synthetic"), dtype, arms)
            results += study(moved, "smoke", [0], images(1), store, quiet=True)
    missing = set(arms) - {result.recipe.arm for result in results}
    assert not missing, f"{chapter} has no arm {', '.join(sorted(missing))}"
    return results


def detected(dtype: str, store: RunStore) -> list[Result]:
    """The two detectors of chapter 06 on a few scenes."""
    recipes = [replace(recipe, epochs=1, batch_size=4, calibration_images=16, lr=0.001, dtype=dtype)
               for recipe in detection_recipes("smoke")]
    scenes = generated(train=40, test=10, side=recipes[0].side, hardest=0.3)
    return [run(recipe, scenes, store, quiet=True) for recipe in recipes]


def other_nets(dtype: str, store: RunStore) -> list[Result]:
    """Nets that no chapter trains at smoke, narrow or short, by the recipes of others."""
    plain, shrinking, gated = (only(*each, dtype) for each in (
        ("01_slimmable_networks", "Individual"), ("05_deps", "BigNAS"), ("06_ds_net", "IEB")))
    plain, gated = replace(plain, batch_size=32, lr=0.002, layout=None), replace(gated, lr=0.02)
    recipes = [replace(plain, net="mobilenet_v2", mults=(0.35,)), replace(plain, net="vgg", mults=(0.125,)),
               replace(shrinking, net="proxyless_nas", lr=0.02, head=None, layout=((8, 2, 2), (16, 2, 2))),
               replace(gated, net="ds_effnet", layout=((1, 8, 1, 1, 3), (3, 16, 7, 2, 3), (3, 24, 2, 2, 5)), stem=8,
                       strides=None, fixed=None, grid=None)]
    return [run(recipe, images(), store, quiet=True) for recipe in recipes]


def only(chapter: str, arm: str, dtype: str):
    """The first recipe that an arm has in its chapter's first stage, tiny."""
    stage = shrunk(chapter, paper_of(chapter).STAGES, dtype, (arm,))[0]
    return next(iter(stage(Context("smoke", 0, images()))))


def name_of(recipe) -> str:
    """Arm and net, and what else tells runs apart: the one width of a run that has one, the data it moved to."""
    one = [f"{mult}x" for mult in recipe.mults] if len(recipe.mults) == 1 else []
    if recipe.subnets and len(recipe.subnets) == 1:
        one = [str(recipe.subnets[0][0])]
    moved = ["moved"] if getattr(recipe, "source", "") == "synthetic" else []
    return ", ".join([recipe.arm, recipe.net, *one, *moved])


def trace(result: Result) -> dict[str, str]:
    """The numbers of a run by name, as hexadecimal floats, and the dtype that it was made in."""
    steps = sorted({row["step"] for row in result.history})[:STEPS]
    numbers = {f"step {row['step']:02} {row['name']}".strip(): row["ce"] for row in result.history
               if row["step"] in steps}
    for row in result.rows:
        name = row.get("name", row.get("mult"))
        numbers |= {f"row {name} {key}": row[key] for key in ROW if key in row}
    sums = {f"found {key}": total(value) for key, value in result.findings.items()}
    numbers |= {key: value for key, value in sums.items() if value}
    used = result.findings.get("dtype", result.recipe.dtype)
    return {"dtype": used} | {name: float(value).hex() for name, value in numbers.items()}


def total(value: Any) -> float:
    """The sum of all magnitudes in nested lists and dicts, whatever their order; what is no number counts nothing.

    Of magnitudes, for what cancels out differs too much from one kind of processor to another.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return math.fsum(map(total, value))
    return abs(float(value)) if isinstance(value, (int, float)) else 0.0


# -- ids of recipes --------------------------------------------------------------------------------------

SIZES = {"": SimpleNamespace(num_classes=100, size=32), ", 224 pixels": SimpleNamespace(num_classes=1000, size=224)}
CHAINED = ("05_deps", "06_ds_net")
"""Chapters whose later stages only want ids of runs: their runs are made up."""


def recipe_ids(chapter: str) -> dict[str, list[list[str]]]:
    """(arm, recipe id) of a chapter's recipes or of the detectors, by scale; at full also for large images.

    Of recipes that need results those of chapters 05 and 06 are there; they name arms in place of runs.
    """
    if chapter == DETECTION:
        return {scale: [id_of(recipe) for recipe in detection_recipes(scale)] for scale in SCALES}
    return {scale + words: ids_of(chapter, scale, data) for scale in SCALES for words, data in SIZES.items()
            if scale == "full" or not words}


def ids_of(chapter: str, scale: str, data) -> list[list[str]]:
    """Those of one chapter and scale."""
    stages, results, found = paper_of(chapter).STAGES, [], []
    with replaced(stages, latency_arms=lambda *given: []) if chapter == "04_pss_net" else ExitStack():
        for stage in stages:
            recipes = stage(Context(scale, 0, data, results))
            found += map(id_of, recipes)
            if chapter in CHAINED:
                results += [Result(recipe, [], [], 0.0, f"{recipe.net} {recipe.arm}") for recipe in recipes]
    return found


def id_of(recipe) -> list[str]:
    """Arm and recipe id."""
    return [recipe.arm, run_ids(recipe.to_json(), "code", "data")[1]]


# -- the file --------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What decides the bits of a run: on the same kind of processor, with the same PyTorch, they are the same."""
    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "processor": processor()}


def processor() -> str:
    """Maker, family and model of the processor and those of `FLAGS` that it has.

    Not the flags alone: libraries choose other blocks, hence another order of sums, for other caches.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    about = dict(re.findall(r"^(.+?)\s*:\s*(.*)$", text.split("\n\n")[0], re.M))
    named = [about.get(key, "?") for key in ("vendor_id", "cpu family", "model")]
    return " ".join(named + [flag for flag in FLAGS if flag in about.get("flags", "").split()])


def load() -> dict[str, Any]:
    """The file."""
    return json.loads(GOLDEN.read_text())


def made() -> dict[str, Any]:
    """What the file would hold if it were written now. Raises SystemExit where there is no bfloat16."""
    if training_dtype("bfloat16", "cpu") != torch.bfloat16:
        raise SystemExit("This processor trains in float32 what is asked for in bfloat16: make the file elsewhere.")
    return {"machine": machine(), "recipes": {chapter: recipe_ids(chapter) for chapter in (*CHAPTERS, DETECTION)},
            "traces": {chapter: {dtype: traces(chapter, dtype) for dtype in DTYPES} for chapter in TRACED}}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Which arms' traces, and which lists of recipes, differ, one a line."""
    lines = [f"recipes: {chapter}" for chapter in (*CHAPTERS, DETECTION)
             if old.get("recipes", {}).get(chapter) != new["recipes"][chapter]]
    for chapter in TRACED:
        for dtype in DTYPES:
            before, after = (each.get("traces", {}).get(chapter, {}).get(dtype, {}) for each in (old, new))
            lines += [f"{chapter}, {dtype}: {arm}" for arm in sorted(before.keys() | after.keys())
                      if before.get(arm) != after.get(arm)]
    return lines


def main() -> None:
    """Compare with the file, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite tests/golden.json")
    args = parser.parse_args()
    old, new = load() if GOLDEN.exists() else {}, made()
    print("\n".join(differences(old, new)) or "no arm differs")
    if args.write:
        GOLDEN.write_text(json.dumps(new, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
