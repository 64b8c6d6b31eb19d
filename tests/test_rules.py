"""Every public call with one bad argument at a time is refused in one line; right values are still accepted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gated_nets import ready as gated
from refusals import fails
from small_nets import fill_statistics, tiny

import slimnb
from slimnb import DynamicNet, MobileNetV1, MobileNetV2, MobileNetV3, ProxylessNAS, Recipe, SearchSpace, Trellis
from slimnb.book.claims import Claim
from slimnb.cost.elastic import ElasticTable, sample_structures
from slimnb.cost.latency import compare_latency, latency_table
from slimnb.cost.latency_model import time_random
from slimnb.data import synthetic
from slimnb.data.batches import Augmentation, Batches
from slimnb.papers.deps.method import DelayedShrinking, Draws, LinearRamp, RateRamp, delayed, phase
from slimnb.papers.deps.recipes import ShrinkingRecipe
from slimnb.papers.ds_net.detection.detector import DetectionLoss, Detector
from slimnb.papers.ds_net.detection.scenes import generated
from slimnb.papers.ds_net.method import Ema, Routed
from slimnb.papers.ds_net.nets import DSMobileNet
from slimnb.papers.ds_net.recipes import GatedRecipe
from slimnb.papers.platforms.market import expected_shares, market, seating, table_count_probabilities
from slimnb.papers.platforms.recipes import PlatformRecipe
from slimnb.papers.pss_net.pools import Pool
from slimnb.papers.pss_net.recipes import StructureRecipe
from slimnb.papers.pss_net.structures import Buckets, structure_space
from slimnb.papers.pss_net.switcher import PricedSubnet, SubnetSwitcher
from slimnb.papers.slimmable.method import any_of, any_width
from slimnb.papers.slimmable.recipes import SMOKE, SlimmableRecipe
from slimnb.papers.sp_net.method import EmbeddedSwitches, Sparsity
from slimnb.papers.sp_net.recipes import PrunedRecipe
from slimnb.rng import rng_at
from slimnb.rules import checked
from slimnb.runs.store import RunStore
from slimnb.search import pareto
from slimnb.search.evolution import evolve, random_search
from slimnb.search.random_paths import random_under
from slimnb.subnet import scaled
from slimnb.train.experiment import run, study
from slimnb.train.loop import train
from slimnb.train.optim import Schedule, make_optimizer
from slimnb.train.protocols import Labels

NAN, INF, HUGE = math.nan, math.inf, 10**13
COUNT = ("1", True, 1.5, 0, -1, HUGE, [1])
WHOLE = ("1", True, 1.5, -1, HUGE, [1])
SEED = ("0", True, 0.0, -1, 2**32, [0])
AMOUNT = ("0.1", True, -1.0, NAN, INF, [0.1])
POSITIVE = (*AMOUNT, 0)
BELOW1 = (*AMOUNT, 1, 2)
SHARE = (*AMOUNT, 1.5)
CHOICE = ("huge", 3, True, ["smoke"])
BOOL = ("True", 1, 0.0)
OBJECT = ("x", 3, {})
LIST = ("x", 3, None, ())
ITEMS = (*LIST, (0,), (-1,), ("8",), (True,))
ARRAY = ("x", ["a"], {}, object())
MULTS = (*LIST, (0.0,), (NAN,), ("0.5",), (-1,))

NET, GATED = tiny(MobileNetV1), gated(DSMobileNet)[0]
fill_statistics(NET, [NET.largest])
NET.float()
ELASTIC = MobileNetV3(10, 32, layout=((8, 2, 2, "relu", False),), stem=8, first=8, tail=16, head=8, depths=(1, 2),
                      expands=(2, 3), kernels=(3,))
SPACE = NET.space((0.5, 1.0))
LARGEST, SMALLEST = NET.largest, SPACE.smallest
TABLE = slimnb.CostTable.macs(NET, SPACE)
TRELLIS, ELASTIC_TABLE = Trellis.of(TABLE.chain()), ElasticTable.macs(ELASTIC)
UNARY = np.zeros(TRELLIS.exists.shape)
DATA = slimnb.load_data("synthetic", train=40, test=10)
RNG = np.random.default_rng(0)
LAYOUT = {MobileNetV1: ((8, 2),), MobileNetV2: ((1, 8, 1, 1),), slimnb.VGG: ((8,),), slimnb.ResNet50: ((8, 1),),
          MobileNetV3: ((8, 2, 2, "relu", False),), ProxylessNAS: ((8, 2, 2),)}
ELASTIC_NET = {"first": COUNT, "tail": COUNT, "depths": ITEMS, "expands": ITEMS, "kernels": ITEMS, "stem": COUNT}
OF_NET = {MobileNetV1: {"rounding": CHOICE}, MobileNetV2: {"stem": COUNT, "tail": COUNT}, slimnb.VGG: {},
          slimnb.ResNet50: {"stem": COUNT}, MobileNetV3: ELASTIC_NET | {"head": WHOLE}, ProxylessNAS: ELASTIC_NET}
RECIPE = {name: getattr(SMOKE, name) for name in (a_field.name for a_field in fields(Recipe)) if name != "smoothing"}


def sampler(**changes):
    return slimnb.Sandwich(**{"largest": LARGEST, "smallest": SMALLEST, "draw": SPACE.sample} | changes)


def a_run(**changes):
    batches = Batches(DATA.train, 4, mean=DATA.mean, std=DATA.std)
    return train(**{"net": NET, "batches": batches, "sampler": sampler(), "objective": Labels(),
                    "schedule": Schedule(0.1, 1), "optimizer": make_optimizer(NET)} | changes)


TIMING = {"rounds": COUNT, "warmup": COUNT, "min_ms": AMOUNT}
BUDGET = {"unary": ARRAY, "trellis": OBJECT}
OPTIONAL = {
    "gamma": POSITIVE, "floor": AMOUNT, "smoothing": BELOW1, "stem": COUNT, "lighting": AMOUNT, "erasing": SHARE,
    "jitter": ("x", (-1.0,), (NAN,)), "milestones": ("x", (-1,), (1.5,)), "span": ("x", (-1.0, 1.0), (0.0, 0.0)),
    "layout": ("x", (), (3,)), "rounding": CHOICE, "calibrate": BOOL, "reflect": BOOL}
OF_RECIPE = {"scale": CHOICE, "seed": SEED, "net": (3, None), "arm": (3, None), "lr": POSITIVE, "momentum": BELOW1,
             "weight_decay": AMOUNT, "decay": CHOICE, "schedule": CHOICE, "augment": CHOICE, "dtype": CHOICE,
             "epochs": COUNT, "batch_size": ("0.1", *COUNT), "n_random": WHOLE, "calibration_images": COUNT,
             "mults": ("x", 3, None, (0.0,), (NAN,), ("0.5",)), "train_mults": ("x", (-1.0,)), "warmup_epochs": WHOLE,
             "input_size": COUNT, "temperature": POSITIVE, "dropout": BELOW1, "sync_bn": BOOL} | OPTIONAL


def recipe(kind, **changes):
    return lambda **bad: kind(**RECIPE | changes | bad)


# (call, right arguments, bad values of each argument); a call that is the same for None has no None among them
CALLS = {
    "Recipe": (recipe(Recipe), {}, OF_RECIPE),
    "SlimmableRecipe": (recipe(SlimmableRecipe), {}, {"lr": (-1,), "momentum": (2,), "seed": (-1, 2**32)}),
    "ShrinkingRecipe": (recipe(ShrinkingRecipe), {}, {
        "lr": POSITIVE, "tail": COUNT, "depths": ITEMS, "warm_up": BELOW1, "ramp": CHOICE, "ramp_epochs": AMOUNT,
        "looked_at": BOOL, "choices": ("x", (1, 1), (0, 1, 1))}),
    "GatedRecipe": (recipe(GatedRecipe), {}, {"ema": BELOW1, "looks": WHOLE, "lowest": COUNT, "ensemble": BOOL,
                                              "losses": ("x", (1.0, 1.0), (-1.0, 1.0, 1.0), (NAN, 1.0, 1.0))}),
    "PlatformRecipe": (recipe(PlatformRecipe), {}, {"window": COUNT, "refresh": COUNT, "weights": ("x", (-1.0,))}),
    "StructureRecipe": (recipe(StructureRecipe), {}, {
        "samples": COUNT, "pool_size": COUNT, "p_end": SHARE, "eta_end": POSITIVE, "top_k": COUNT, "kept_from": WHOLE,
        "resolutions": ("x", (0,), ("32",))}),
    "PrunedRecipe": (recipe(PrunedRecipe), {}, {"sparsity": AMOUNT, "alpha": SHARE, "first_gamma": AMOUNT}),
    "Recipe.build": (recipe(SlimmableRecipe)().build, {"num_classes": 10}, {"num_classes": COUNT}),
    "Schedule": (Schedule, {"lr": 0.1, "steps": 10}, {
        "lr": AMOUNT, "steps": (*COUNT[:-2], [1]), "kind": CHOICE, "warmup": WHOLE, "floor": AMOUNT,
        "gamma": POSITIVE, "period": COUNT, "milestones": ("x", (-1,), ("1",), (1.5,))}),
    "SearchSpace": (SearchSpace, {"widths": ((8, 16),)}, {
        "widths": ("x", 3, None, ((),), ((0,),), (("8",),), ((True,),), ((16, 8),), ((8, 8),)),
        "resolutions": ("x", (0,), ("32",), (NAN,)), "tied": ("x", ("0",), (-1,), (0, 1)),
        "depths": ("x", ((1.5,),)), "kernels": ("x", ((0,),))}),
    "Subnet": (slimnb.Subnet, {"widths": (8,)}, {"widths": ("x", 3, None, ("8",), (-1,), (True,), (8.0,), (NAN,)),
                                                "resolution": ("32", 0, -1, 32.0, True)}),
    "Augmentation": (Augmentation, {}, {"crop": CHOICE[:3], "pad": WHOLE, "reflect": BOOL, "lighting": AMOUNT,
                                        "jitter": ("x", (-1.0,), (NAN,), (0.1,)), "erasing": SHARE,
                                        "scale": ("x", (0.0, 1.0), (0.1,), (0.1, NAN))}),
    "Buckets": (Buckets, {"start": 1.0, "stop": 9.0, "step": 1.0}, {
        "start": ("1", True, NAN, INF, 10.0), "stop": ("9", NAN, INF, 0.0), "step": POSITIVE}),
    "Claim": (Claim, {"id": "a", "chapter": "01", "statement": "s", "source": "t", "metric": "top1",
                      "kind": "superiority", "arms": ("A", "B"), "margin": 0.5}, {
        "id": ("", "A B", 3, None), "chapter": (3, None), "kind": CHOICE, "margin": AMOUNT, "family": CHOICE,
        "arms": ("x", ("A",), 3), "seeds": ("5", -1, 2, True, 1.5, NAN), "direction": CHOICE,
        "paper_value": ("1", NAN, INF)}),
    **{kind.__name__: (kind, {"num_classes": 10, "input_size": 32, "layout": layout},
                       {"num_classes": COUNT, "input_size": COUNT, "seed": SEED, "bn": CHOICE,
                        "layout": ("x", 3, (), (3,), ((0,) * len(layout[0]),), (("8",) * len(layout[0]),)),
                        "largest": ("1", 0, -1.0, NAN, INF, (), (0,))} | OF_NET[kind])
       for kind, layout in LAYOUT.items()},
    "DSMobileNet": (DSMobileNet, {"num_classes": 10, "input_size": 32, "bn": "shared_affine"}, {
        "num_classes": COUNT, "variant": CHOICE[:3], "seed": SEED, "strides": ("x", (), (0,), ("2",)),
        "fixed": ("x", (0,), ("8",)), "num_choices": COUNT}),
    "uniform": (NET.uniform, {"mult": 0.5}, {"mult": (*POSITIVE, None)}),
    "space": (NET.space, {"mults": (0.5, 1.0)}, {"mults": MULTS, "resolutions": ("x", (0,), ("32",))}),
    "scaled": (scaled, {"channels": 32, "mult": 0.5}, {"channels": WHOLE, "mult": POSITIVE, "rounding": CHOICE}),
    "Switches": (slimnb.Switches, {"named": {"a": LARGEST}}, {"named": ("x", {}, None, {"a": 3}, [LARGEST]),
                                                             "dropout": BELOW1}),
    "Sandwich": (sampler, {}, {"largest": OBJECT, "smallest": OBJECT, "draw": ("x", 3, None), "n_random": WHOLE,
                               "seed": SEED, "dropout": BELOW1, "target": CHOICE}),
    "Uniform": (slimnb.Uniform, {"largest": LARGEST, "draw": SPACE.sample}, {"largest": OBJECT, "draw": ("x", None),
                                                                            "seed": SEED}),
    "any_of": (any_of, {"subnets": [LARGEST]}, {"subnets": ("x", (), None, (3,), LARGEST)}),
    "any_width": (any_width, {"net": NET, "mults": (0.5, 1.0)}, {"net": OBJECT, "mults": MULTS,
                                                                "resolutions": ("x", (), (0,))}),
    "InplaceDistillation": (slimnb.InplaceDistillation, {}, {"temperature": POSITIVE, "alpha": SHARE,
                                                            "smoothing": BELOW1}),
    "Labels": (Labels, {}, {"smoothing": BELOW1}),
    "chinese_restaurant_process": (slimnb.chinese_restaurant_process,
                                   {"customers": 5, "alpha": 0.3, "theta": 0.15, "rng": RNG}, {
        "customers": (*COUNT, None), "alpha": ("0.3", True, NAN, INF, 1.0, None), "theta": ("1", NAN, -1.0),
        "rng": (3, None, "x"), "realisations": (*COUNT, 10**12)}),
    "market": (market, {"alpha": 0.3, "theta": 0.15, "rng": RNG}, {"customers": COUNT, "tables": COUNT,
                                                                  "alpha": ("0.3", NAN)}),
    "seating": (seating, {"sizes": (2, 1), "alpha": 0.3, "theta": 0.15}, {"sizes": ("x", 3, (0,), ("1",)),
                                                                         "alpha": ("x", NAN)}),
    "expected_shares": (expected_shares, {"customers": 5, "alpha": 0.3, "theta": 0.1, "tables": 2},
                        {"customers": COUNT, "tables": COUNT, "given": COUNT}),
    "table_count_probabilities": (table_count_probabilities, {"customers": 5, "alpha": 0.3, "theta": 0.1},
                                  {"customers": COUNT, "theta": ("x", NAN, None)}),
    "WidthSearch": (slimnb.WidthSearch, {"net": NET, "space": SPACE, "batch_size": 8}, {
        "net": OBJECT, "space": OBJECT, "batch_size": COUNT, "seed": SEED, "window": COUNT}),
    "SmoothedViterbi": (slimnb.SmoothedViterbi, {
        "net": NET, "space": SPACE, "batch_size": 8, "trellis": TRELLIS, "budgets": [TRELLIS.dearest],
        "weights": [1.0], "steps": 10}, {"trellis": OBJECT, "budgets": ("x", ["a"], [NAN]), "weights": ("x", [2.0], []),
                                        "steps": COUNT, "refresh": COUNT, "temperatures": ("x", ((0, 0), (1, 1)))}),
    "PlatformSandwich": (slimnb.PlatformSandwich, {"named": {"a": SMALLEST, "b": LARGEST}}, {
        "named": ("x", {}, {"a": LARGEST}, {"a": 3, "b": 4}), "weights": ("x", [1.0], [-1.0, 2.0], [NAN, 1.0]),
        "dropout": BELOW1, "target": CHOICE, "seed": SEED}),
    "LinearRamp": (LinearRamp, {"steps": 5}, {"steps": COUNT, "first": (*POSITIVE, 2.0)}),
    "RateRamp": (RateRamp, {"rates": Schedule(0.1, 10, floor=0.01), "start": 1, "steps": 2, "reference": 3},
                 {"rates": OBJECT, "start": WHOLE, "steps": COUNT, "reference": WHOLE}),
    "DelayedShrinking": (DelayedShrinking, {"sampler": sampler(), "warm_up": 1}, {"warm_up": WHOLE}),
    "delayed": (delayed, {"sampler": sampler(), "rates": Schedule(0.1, 10), "share": 0.5, "ramp_steps": 2},
                {"rates": OBJECT, "share": BELOW1, "ramp": CHOICE, "ramp_steps": WHOLE}),
    "Draws": (Draws, {"draw": SPACE.sample, "n": 2}, {"draw": ("x", None), "n": COUNT, "seed": SEED}),
    "phase": (phase, {"space": SPACE}, {"space": OBJECT, "kernels": COUNT, "depths": COUNT, "expands": COUNT}),
    "Ema": (Ema, {"net": NET}, {"net": OBJECT, "decay": BELOW1}),
    "EnsembleBootstrapping": (slimnb.EnsembleBootstrapping, {"net": GATED}, {"net": OBJECT, "decay": BELOW1,
                                                                            "temperature": POSITIVE}),
    "Routed": (Routed, {}, {"lowest": COUNT, "temperature": POSITIVE, "seed": SEED}),
    "SandwichGateSparsification": (slimnb.SandwichGateSparsification, {"net": GATED}, {
        "net": (*OBJECT, NET), "strategy": CHOICE, "lowest": COUNT,
        "weights": ("x", (1.0, 1.0), (-1.0, 1.0, 1.0), (NAN, 1.0, 1.0), (0.0, 0.0, 0.0))}),
    "DynamicNet": (DynamicNet, {"net": GATED}, {"net": (*OBJECT, NET), "lowest": COUNT, "overhead": AMOUNT,
                                               "packed": BOOL}),
    "Detector": (Detector, {"backbone": NET, "num_classes": 3, "side": 64, "taps": (1, 2), "channels": 8,
                            "pyramid": (8, 8), "scales": (0.1, 0.4, 0.8), "ratios": ((2,), (2,))}, {
        "backbone": OBJECT, "num_classes": COUNT, "side": COUNT, "taps": ("x", (), (-1,), (99,), ("1",)),
        "channels": COUNT, "pyramid": ITEMS, "scales": ("x", (0.1, NAN, 0.8), (0.1, -1.0, 0.8), ("a", "b", "c")),
        "ratios": ("x", ((NAN,), (2,)), ((0,), (2,))), "seed": SEED, "score_thresh": SHARE}),
    "DetectionLoss": (DetectionLoss, {}, {"overlap": SHARE, "negatives": AMOUNT}),
    "generated": (generated, {"train": 4, "test": 4, "side": 32}, {"train": COUNT, "side": COUNT, "seed": SEED,
                                                                  "hardest": SHARE}),
    "Pool": (Pool, {}, {"size": COUNT, "momentum": BELOW1}),
    "structure_space": (structure_space, {"net": NET}, {"net": OBJECT, "lower": POSITIVE, "upper": POSITIVE,
                                                       "resolutions": ("x", (0,), ("32",))}),
    "Sparsity": (Sparsity, {"strength": 0.1}, {"strength": (*AMOUNT, None)}),
    "EmbeddedSwitches": (EmbeddedSwitches, {"largest": LARGEST, "embedded": {"a": SMALLEST}},
                         {"largest": OBJECT, "embedded": ("x", 3, {"a": 3})}),
    "prune": (slimnb.prune, {"base": tiny(MobileNetV1), "target": 0.6 * TRELLIS.dearest}, {
        "base": OBJECT, "target": ("1", True, -1, 0, NAN, None), "padding": CHOICE[:3], "convention": CHOICE[:3],
        "resolution": COUNT, "score": ("x", 3)}),
    "embed_": (slimnb.embed_, {"net": tiny(MobileNetV1), "order": [np.arange(w) for w in LARGEST.widths]}, {
        "net": OBJECT, "order": ("x", 3, (), None), "padding": CHOICE[:3]}),
    "count_macs": (slimnb.count_macs, {"net": NET, "subnet": LARGEST}, {"net": OBJECT, "subnet": OBJECT, "fused": BOOL,
                                                                       "convention": CHOICE[:3], "resolution": COUNT}),
    "count_params": (slimnb.count_params, {"net": NET, "subnets": [LARGEST]}, {"net": OBJECT,
                                                                              "subnets": ("x", (3,), LARGEST)}),
    "CostTable.macs": (slimnb.CostTable.macs, {"net": NET, "space": SPACE}, {"net": OBJECT, "space": OBJECT,
                                                                            "resolution": COUNT}),
    "measure_latency": (slimnb.measure_latency, {"module": torch.nn.ReLU(), "x": torch.ones(1), "rounds": 1}, {
        "module": ("x", 3, None), "x": ("x", 3, None)} | TIMING),
    "compare_latency": (compare_latency, {"callables": {"a": int}, "x": torch.ones(1), "rounds": 1, "min_ms": 0.0},
                        {"callables": ("x", 3, {"a": 3})} | TIMING),
    "latency_table": (latency_table, {"net": NET, "space": SPACE, "rounds": 1, "warmup": 1, "min_ms": 0.0}, {
        "net": OBJECT, "space": OBJECT, "batch": COUNT, "resolution": COUNT}),
    "time_random": (time_random, {"net": NET, "space": SPACE, "subnets": 1, "rounds": 1}, {
        "net": OBJECT, "subnets": COUNT, "batch": COUNT, "seed": SEED}),
    "ElasticTable.macs": (ElasticTable.macs, {"net": ELASTIC}, {"net": (*OBJECT, NET), "resolution": COUNT}),
    "sample_structures": (sample_structures, {"space": ELASTIC.search_space, "rng": RNG, "n": 3},
                          {"space": OBJECT, "rng": OBJECT, "n": COUNT}),
    "Trellis.of": (Trellis.of, {"chain": [np.ones((2, 2))]}, {"chain": ("x", 3, (), ["x"], [np.full((2, 2), NAN)])}),
    "best_under": (slimnb.best_under, {"unary": UNARY, "trellis": TRELLIS, "budget": TRELLIS.dearest},
                   BUDGET | {"budget": ("x", NAN, -1, None)}),
    "marginals": (slimnb.marginals, {"unary": UNARY, "trellis": TRELLIS, "multiplier": 0.0, "temperature": 1.0},
                  BUDGET | {"multiplier": ("x", -1, NAN), "temperature": POSITIVE}),
    "random_under": (random_under, {"space": SPACE, "trellis": TRELLIS, "budget": TRELLIS.dearest, "rng": RNG,
                                    "least": 0.0}, {"space": OBJECT, "budget": ("x", NAN, None), "n": COUNT,
                                                    "least": SHARE, "rng": OBJECT}),
    "evolve": (evolve, {"table": ELASTIC_TABLE, "target": 1e9, "score": lambda subnets: [0.0] * len(subnets),
                        "evaluations": 2, "population": 2}, {
        "table": OBJECT, "target": ("x", NAN, None), "score": ("x", None), "evaluations": COUNT, "least": AMOUNT,
        "seed": SEED, "population": COUNT, "parents": (*POSITIVE, 2.0), "mutate": (*POSITIVE, 2.0)}),
    "random_search": (random_search, {"table": ELASTIC_TABLE, "target": 1e9, "score": lambda s: [0.0] * len(s),
                                      "evaluations": 2}, {"table": OBJECT, "evaluations": COUNT, "batch": COUNT}),
    "pareto_front": (pareto.pareto_front, {"cost": [1.0, 2.0], "accuracy": [1.0, 2.0]},
                     {"cost": (*ARRAY, [NAN, 1.0], []), "accuracy": ARRAY}),
    "best_per_bucket": (pareto.best_per_bucket, {"cost": [1.0, 2.0], "accuracy": [1.0, 2.0]},
                        {"buckets": COUNT, "span": ("x", (2.0, 1.0), (NAN, 1.0))}),
    "delayed_cost": (pareto.delayed_cost, {"epochs": 4.0, "delay": 2.0, "step": 3.0}, {
        "epochs": AMOUNT, "delay": AMOUNT, "step": AMOUNT}),
    "make_optimizer": (make_optimizer, {"net": NET}, {"net": OBJECT, "momentum": BELOW1, "weight_decay": AMOUNT,
                                                     "decay": CHOICE}),
    "calibrate_bn": (slimnb.calibrate_bn, {"net": NET, "subnets": [LARGEST], "batches": [torch.ones(2, 3, 32, 32)]},
                     {"net": OBJECT, "subnets": ("x", 3, None), "batches": (3, None)}),
    "evaluate": (slimnb.evaluate, {"net": NET, "subnets": [LARGEST],
                                   "batches": [(torch.ones(2, 3, 32, 32), torch.zeros(2).long())]}, {
        "net": OBJECT, "batches": (3, None), "subnets": ("x", 3, None)}),
    "train": (a_run, None, {"net": OBJECT, "batches": OBJECT, "sampler": OBJECT, "objective": OBJECT,
                            "optimizer": OBJECT, "schedule": OBJECT, "seed": SEED, "save_seconds": AMOUNT,
                            "intervals": COUNT, "quiet": BOOL}),
    "run": (lambda **bad: run(**{"recipe": recipe(Recipe)(), "data": DATA} | bad), None,
            {"recipe": OBJECT, "data": OBJECT}),
    "study": (lambda **bad: study(**{"stages": (), "scale": "smoke", "seeds": [0], "data": DATA} | bad), {}, {
        "scale": CHOICE, "data": OBJECT}),
    "load_data": (slimnb.load_data, {"name": "synthetic", "train": 20, "test": 10}, {
        "name": (3, None, "cifra10"), "val_fraction": (*SHARE, 0, 1), "train": COUNT, "test": COUNT, "seed": SEED}),
    "Batches": (Batches, {"split": DATA.train, "batch_size": 4, "mean": DATA.mean, "std": DATA.std}, {
        "split": OBJECT, "batch_size": COUNT, "seed": SEED, "size": COUNT, "rank": WHOLE, "world": COUNT,
        "shuffle": BOOL, "augment": CHOICE, "mean": ("x", ("a",) * 3), "std": ("x", 3)}),
    "generate": (synthetic.generate, {"count": 4}, {"count": COUNT, "seed": SEED, "part": (3, None)}),
    "render": (synthetic.render, {"index": torch.arange(2)},
               {"index": ("x", ["a"], {}, object()), "seed": SEED, "labels": ("x", 10, -1),
                "difficulty": ("x", 2.0, NAN)}),
    "SubnetSwitcher": (SubnetSwitcher, {"net": NET, "choices": [PricedSubnet(LARGEST, 1.0, 50.0)]}, {
        "net": OBJECT, "choices": (*OBJECT, None, (3,), [LARGEST], [PricedSubnet(LARGEST, NAN, 50.0)])}),
    "RunStore": (RunStore, {}, {"root": (3, b"x", ["a"], None), "committed": (3, b"x", ["a"], None)}),
    "net": (NET, {"x": torch.ones(2, 3, 32, 32), "route": LARGEST}, {
        "x": ("x", 3, None, np.ones((2, 3, 32, 32))), "route": (*OBJECT, (1, 2))}),
    "reserve": (NET.reserve, {"subnets": [LARGEST]}, {"subnets": (*OBJECT, None, [3], ["x"]), "shared": BOOL}),
    "masks": (NET.masks, {"widths": torch.tensor([LARGEST.widths])}, {
        "widths": (*OBJECT, torch.zeros(2, 3).long(), torch.zeros(3).long(), torch.ones(1, len(LARGEST.widths)))}),
    "sample": (SPACE.sample, {"rng": RNG}, {"rng": (*OBJECT, None)}),
    "rng_at": (rng_at, {"seed": 0, "stream": "a", "step": 0}, {"seed": SEED[:1] + SEED[2:], "step": ("0", -1, 0.5)}),
}
BAD = [(name, argument, value) for name, (_, _, rules) in CALLS.items() for argument, values in rules.items()
       for value in values]


@pytest.mark.parametrize("called", sorted({name for name, _, _ in BAD}))
def test_bad_arguments_are_refused_in_one_line(called):
    call, right, _ = CALLS[called]
    for argument, value in ((argument, value) for name, argument, value in BAD if name == called):
        with fails(r"\w+Error"):
            call(**(right or {}) | {argument: value})


@pytest.mark.parametrize("name", [name for name, (_, right, _) in CALLS.items() if right is not None])
def test_right_arguments_are_accepted(name):
    call, right, _ = CALLS[name]
    call(**right)


GOOD = [("Recipe", "span", (0.0, 0.5)), ("Recipe", "seed", 2**32 - 1), ("Recipe", "mults", ()), ("Recipe", "lr", 1),
        ("Recipe", "gamma", 0.985), ("Recipe", "jitter", (0.4, 0.4, 0.4)), ("Recipe", "dtype", "bfloat16"),
        ("Recipe", "subnets", (("a", (8, 16)),)), ("Recipe", "layout", ((8, 2), (16, 1))), ("Recipe", "n_random", 0),
        ("Schedule", "lr", np.float64(0.1)), ("Schedule", "milestones", (3, 6)), ("Schedule", "floor", 0),
        ("SearchSpace", "widths", [[8, 16], [8]]), ("SearchSpace", "resolutions", (24, 32)), ("Subnet", "widths", [8]),
        ("Augmentation", "jitter", (0.4, 0.4, 0.4, 0.1)), ("Augmentation", "erasing", 1),
        ("Claim", "paper_value", -2.5),
        ("MobileNetV1", "layout", [[8, 2], [16, 1]]),
        ("MobileNetV1", "largest", [8]), ("MobileNetV1", "largest", 2),
        ("MobileNetV3", "layout", ((8, 2, 1, "hswish", True),)),
        ("VGG", "layout", [[8, 16], [24]]),
        ("space", "mults", np.linspace(0.5, 1, 3)), ("uniform", "mult", np.float64(0.5)), ("Draws", "n", 1000),
        ("Switches", "named", {0.5: SMALLEST, "1x": LARGEST}),
        ("Sandwich", "n_random", 0), ("any_of", "subnets", (LARGEST,)),
        ("chinese_restaurant_process", "realisations", 1000),
        ("seating", "sizes", np.array([2, 1])), ("seating", "sizes", ()),
        ("SmoothedViterbi", "budgets", np.array([1e12])), ("PlatformSandwich", "weights", np.array([0.5, 0.5])),
        ("LinearRamp", "first", 1), ("Ema", "decay", 0), ("DynamicNet", "overhead", 0), ("Detector", "taps", [0, 3]),
        ("Detector", "ratios", [[2, 3], [2]]),
        ("best_under", "budget", [1e12, 2e12]), ("best_under", "unary", UNARY.tolist()),
        ("marginals", "temperature", 5e-324),
        ("count_params", "subnets", (LARGEST, SMALLEST)), ("count_macs", "resolution", 16),
        ("pareto_front", "cost", (1, 2)), ("calibrate_bn", "batches", iter([torch.ones(2, 3, 32, 32)])),
        ("load_data", "val_fraction", 0.5), ("Batches", "augment", Augmentation("none")), ("Batches", "size", 24)]


@pytest.mark.parametrize(("name", "argument", "value"), GOOD, ids=range(len(GOOD)))
def test_a_right_value_is_accepted(name, argument, value):
    call, right, _ = CALLS[name]
    call(**right | {argument: value})


def test_a_pool_does_not_divide_by_nothing():
    pool = Pool(1)
    pool.metrics[LARGEST] = 1.0
    for eta in (0, -1.0, NAN):
        with fails("ParameterError", "eta"):
            pool.sample(RNG, eta)


def test_a_subclass_and_a_changed_copy_are_held_to_the_rules_too():
    made = recipe(SlimmableRecipe)()
    assert replace(made, lr=0.2).lr == 0.2
    with fails("ParameterError", "SlimmableRecipe.lr = -1 . must be greater than 0"):
        replace(made, lr=-1)
    with fails("ParameterError", "ShrinkingRecipe.ramp"):
        made.into(ShrinkingRecipe, smoothing=0.0, ramp="steep")


def test_an_iterator_is_not_run_and_a_value_not_changed():
    @checked
    def call(numbers: Iterable[int], pairs: tuple[int, ...]) -> tuple:
        return numbers, pairs

    numbers, pairs = iter([1, 2]), [1, 2]
    assert call(numbers, pairs)[1] is pairs and list(numbers) == [1, 2]
    with fails("ParameterError", r"pairs\[1\] = 'x'"):
        call(numbers, (1, "x"))
