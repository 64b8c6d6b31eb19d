# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Slimmable networks
#
# > Can one set of weights run at many widths?
#
# | | |
# |---|---|
# | Papers | S-Net (Yu et al. 2019) and US-Net (Yu and Huang 2019), the baselines of all five papers of this book |
# | Regenerated | why one batch norm fails; accuracy against MACs; calibration; latency (the shape of DS-Net Table 1) |
# | Not reproduced | the ImageNet accuracies: scale `full` holds the recipe, and it has not been run here |
# | Cost | `smoke`: about a minute on one CPU core. `small`: half an hour per seed on one CPU core. `full`: not measured |
#
# A phone, a watch and a server have different budgets. The plain answer is one network for each. This chapter
# builds the other answer, one network whose layers can be sliced thinner, and finds the one part of it that
# refuses to be shared.

# %% tags=["parameters"]
scale = "smoke"  # "smoke" | "small" | "full": data and recipe, see slimnb/papers/slimmable/recipes.py
seed = 0  # first seed
seeds = 1  # number of seeds; the papers report one run each
device = "auto"  # "auto" | "cpu" | "cuda"
data = "auto"  # synthetic at smoke, CIFAR-100 above; or a data set's name or folder
out = ""  # folder for figures; "" is build/ at smoke and figures/ above
latency_mult = 0.25  # width whose latency is taken apart; DS-Net Table 1 has .25
latency_rounds = 15  # timed rounds of each way to run it; medians are reported

# %%
import numpy as np
import pandas as pd
import torch

from slimnb import InplaceDistillation, MobileNetV1, Pass, Sandwich, SlimnbError, calibrate_bn, count_params, evaluate
from slimnb.book.chapter import Chapter, source
from slimnb.book.claims import overview, paired
from slimnb.book.parameters import Float, Int
from slimnb.book.registered import claims_of
from slimnb.data.datasets import load_or_absent
from slimnb.nn.layers import Selection, SlimmableConv2d
from slimnb.nn.norm import SwitchableBatchNorm2d
from slimnb.papers.slimmable import figures, recipes
from slimnb.papers.slimmable.diagnostics import diagnose
from slimnb.papers.slimmable.latency import latencies
from slimnb.papers.slimmable.method import any_width
from slimnb.runs.results import results_frame
from slimnb.runs.store import RunStore
from slimnb.train.experiment import study

chapter = Chapter.begin("01_slimmable_networks", globals(),
                        latency_mult=Float(0, 1), latency_rounds=Int(1, 1000))
WIDTHS = recipes.WIDTHS
CLAIMS = claims_of("slimmable")

# %% [markdown]
# ## The idea on three channels
#
# A 1x1 convolution with three input and three output channels is a 3x3 matrix. At width 2 we use its top left
# 2x2 corner: two filters, each reading two channels. Nothing is copied and nothing is trained again.

# %%
conv = SlimmableConv2d(3, 3, kernel=1, unit=0, sources=(0,))
conv.weight.data = torch.tensor([[1., 2, 3], [-1, 1, 2], [2, -2, 1]]).reshape(3, 3, 1, 1)
x = torch.tensor([1., 2, 3]).reshape(1, 3, 1, 1)
for width in (1, 2, 3):
    y = conv(x[:, :width], Selection(widths=(width,)))  # (1, width, 1, 1)
    print(f"width {width}: {y.flatten().tolist()}")

# %%
title = "A slimmer width uses the top left corner"
axes = figures.slicing_diagram(conv.weight.detach().squeeze(), [1, 2, 3], title)
chapter.save(axes, "slicing")

# %% [markdown]
# Look at the first output channel: 1, then 5, then 14. The same filter answers differently at each width, because
# it hears fewer channels. Slimmer is not "the same features, fewer of them". Every number after the first layer
# has another scale, and normalisation is the layer that cares about scales.
#
# ## Why one batch norm fails
#
# Let a filter have independent weights of variance $\sigma_w^2$ and its $n$ inputs second moment $m_2$. Its output,
# `conv(x)`, has variance
#
# $$\operatorname{Var}[y] = n\,\sigma_w^2\, m_2 ,$$
#
# so at a quarter of the input width the variance is a quarter. Batch normalisation divides by the root of a
# running variance, and there is one number for all widths. We check the formula on random features.

# %%
rng = torch.Generator().manual_seed(chapter.seed)
wide = SlimmableConv2d(64, 64, kernel=1, unit=0, sources=(0,))
wide.weight.data = torch.randn(64, 64, 1, 1, generator=rng)
features = torch.randn(256, 64, 4, 4, generator=rng).relu()
for width in (16, 32, 64):
    y = wide(features[:, :width], Selection(widths=(width,)))
    formula = width * features.square().mean()
    print(f"{width} inputs: variance {y[:, :16].var():.1f}, by the formula {formula:.1f}")

# %% [markdown]
# That is a random layer. In a trained network the effect decides between working and guessing. We now train every
# network of this chapter with one call each: seven arms, all with the same optimiser, epochs and data order.
# `run` looks for a finished run first, resumes an interrupted one second, and trains last.
#
# The claims come before the runs, so that the results cannot choose them. The last one is about time.

# %%
overview(claim for claim in CLAIMS.values() if claim.chapter == chapter.name)

# %%
images = load_or_absent(chapter.data_name, chapter.data_root, chapter.device,
                        chapter.root / "data/cache")
print(images)
store = RunStore(chapter.root / "data/runs", chapter.root / "data/results")
results = study(recipes.STAGES, chapter.scale, chapter.all_seeds, images, store,
                device=chapter.device)
frame = results_frame(results)
minutes = sum(result.seconds for result in results) / 60
print(f"{len(results)} runs, {minutes:.1f} minutes of training")

# %% [markdown]
# The arm *One BN* trains four widths together and keeps one batch norm for all. Its training loss looks healthy,
# as each batch is normalised by its own statistics. The test shows what the running statistics are worth.

# %%
shown = frame[frame["mult"].isin(WIDTHS)]
shown.pivot_table(index="arm", columns="mult", values="top1", sort=False).round(1)

# %%
def verdict(claim):
    """Judge a claim about two arms at one width, seed by seed."""
    runs = sorted({r.run_id for r in results if r.recipe.arm in claim.arms})
    return chapter.claim(claim, *paired(frame, claim), runs)


verdict(CLAIMS["one-bn-fails"])

# %% [markdown]
# To see the cause, we take a network whose statistics we may set at will (US-Net, below) and lend the statistics
# of one width to another. Each row is a width that runs, each column the width whose statistics it uses.

# %%
us_net = [r for r in results if r.recipe.arm == "US-Net"]
looks = [diagnose(r, images, WIDTHS, store, chapter.device) for r in us_net]
borrowed = pd.concat([pd.DataFrame(look["borrowed"]) for look in looks])
borrowed.pivot_table(index="mult", columns="statistics_mult", values="top1").round(1)

# %%
title = "The same channels have other statistics at every width"
axes = figures.statistics(pd.DataFrame(looks[0]["statistics"]), title)
chapter.save(axes, "statistics")

# %% [markdown]
# On the diagonal of the table every width uses its own statistics and works. Off the diagonal the weights are the
# same and the accuracy is gone, further off the further apart the widths are. The weights can be shared; two
# vectors per layer cannot.
#
# ## Switchable batch norm
#
# S-Net keeps a private batch norm for each of $k$ fixed widths and shares every convolution (Yu et al. 2019).
# In slimnb the statistics are rows of a `(slots, C)` buffer; a subnet knows its row. This is the whole forward pass:

# %%
source(SwitchableBatchNorm2d.forward)

# %% [markdown]
# One training step runs all four widths on the same batch, adds their gradients and updates once:
#
# $$g = \sum_{w \in \{.25, .5, .75, 1\}} \nabla\, \mathrm{CE}\big(y, \mathrm{net}(x, w)\big).$$
#
# The private parameters are few. We count those of MobileNetV1 for ImageNet.

# %%
full = MobileNetV1(bn="private")
widths = [full.uniform(mult) for mult in (0.5, 0.75, 1.0)]
alone, together = count_params(full, [full.largest]), count_params(full, widths)
print(f"one width {alone / 1e6:.2f} M parameters, three {together / 1e6:.2f} M:",
      f"{100 * (together / alone - 1):.1f} % more")

# %%
history = pd.concat([pd.DataFrame(r.history).assign(arm=r.recipe.arm) for r in results
                     if r.recipe.arm in ("One BN", "S-Net") and r.recipe.seed == seed])
history["mult"] = history["name"].str.rstrip("x").astype(float)
title = "All widths learn together, with one batch norm or with four"
axes = figures.training_curves(history.rename(columns={"ce": "loss"}), title)
chapter.save(axes, "training")

# %% [markdown]
# In training the two arms are alike: normalising by the batch hides the fault. It appears when the running
# statistics take over, which is why a training curve would never have shown it.

# %%
verdict(CLAIMS["snet-matches-individual"])

# %%
verdict(CLAIMS["snet-helps-slim"])

# %% [markdown]
# ## Any width: the sandwich rule and in-place distillation
#
# Four switches are four networks. US-Net asks for every width in between, and so it can neither train nor
# normalise each of them. Its sandwich rule (Yu and Huang 2019) runs, in every step, the largest, the
# smallest and $n - 2$ random widths; the paper takes $n = 4$. Their reason: a width in between computes with
# channels that both ends have trained, so the ends bound its loss.

# %%
source(Sandwich.plan)

# %% [markdown]
# The largest network learns from the labels. All others learn from the largest, on the same batch, at no extra
# forward pass, which the paper calls in-place distillation:
#
# $$\ell_{w} = \mathrm{CE}\big(\operatorname{softmax}(z_{\text{largest}}),\, z_w\big), \qquad z_{\text{largest}}\ \text{detached}.$$

# %%
source(InplaceDistillation.__call__)

# %% [markdown]
# We check that code against the equation on four random predictions, in two lines of NumPy.

# %%
objective, labels = InplaceDistillation(), torch.arange(4)
teacher, student = torch.randn(4, 10, generator=rng), torch.randn(4, 10, generator=rng)
objective.begin(None, x, [])
objective(Pass(widths[0]), teacher, labels)
loss, _ = objective(Pass(widths[0], target="teacher"), student, labels)
p, log_q = teacher.softmax(1).numpy(), student.log_softmax(1).numpy()
assert np.allclose(loss.numpy(), -(p * log_q).sum(1), atol=1e-6)
print("loss per sample:", np.round(-(p * log_q).sum(1), 3))

# %% [markdown]
# ## Calibration
#
# Thousands of widths cannot keep statistics while training. US-Net computes them afterwards: run some training
# images at the width wanted and average the batch statistics exactly,
#
# $$\mu \leftarrow \Big(1 - \tfrac{B_t}{\sum_{s \le t} B_s}\Big)\,\mu + \tfrac{B_t}{\sum_{s \le t} B_s}\,\mu_{t},$$
#
# where $B_t$ is the size of batch $t$. `calibrate_bn` does this for many subnets in one
# pass over the data. It takes no labels and no gradient. How many images does it need?

# %%
calibration = pd.concat([pd.DataFrame(look["calibration"]).assign(seed=r.recipe.seed)
                         for look, r in zip(looks, us_net, strict=True)])
ax = figures.calibration(calibration, "A few hundred images are enough to calibrate a width")
chapter.save(ax, "calibration")

# %%
by_images = calibration.groupby(["images", "mult"])["top1"].mean().unstack()
gap = (by_images.iloc[-1] - by_images).abs().max(axis=1).round(2)
gap.rename("largest gap to the last row, points").to_frame()

# %% [markdown]
# slimnb refuses to evaluate a subnet whose statistics are missing or were taken from other weights. The error
# names the call that mends it.

# %%
net = MobileNetV1(10, 32, layout=((8, 2), (16, 1)))
half, batch = net.uniform(0.5), torch.randn(8, 3, 32, 32, generator=rng)
labelled = [(batch, torch.zeros(8, dtype=torch.long))]
try:
    evaluate(net, [half], labelled)
except SlimnbError as error:
    print(error)
calibrate_bn(net, [half], [batch])
print("after calibration:", evaluate(net, [half], labelled)[0].n, "images evaluated")

# %% [markdown]
# ## Accuracy against MACs
#
# The question of the chapter, in one figure. Each point is a width; a line is one set of weights, except for the
# individual nets, where every point is trained on its own.

# %%
working = frame[frame["arm"] != "One BN"]
ax = figures.accuracy(working, "One set of weights serves every budget")
chapter.save(ax, "accuracy")

# %%
verdict(CLAIMS["usnet-matches-snet"])

# %% [markdown]
# The generated images come with a known difficulty, so that at `smoke` scale we can ask who needs the width.
# CIFAR-100 has no such label and the next figure is left out there.

# %%
if "top1_hard" in frame:
    axes = figures.easy_and_hard(working, "Width is spent on the hard images")
    chapter.save(axes, "easy-and-hard")

# %% [markdown]
# ## What a slim network costs in time
#
# MACs fall with the square of the width. Time need not: it depends on how the slim network is run. DS-Net's Table 1
# times five ways for a ResNet-50 at a quarter of its channels on a GPU, and we repeat it on this device. *Mask*
# computes everything and multiplies by zeros; *index* gathers the weights by a list; *slice* takes the corner;
# *ideal* is an ordinary thin network that never was part of a larger one.

# %%
timed = latencies(chapter.scale, latency_mult, latency_rounds, store, chapter.device)
print(timed["about"])
print(f"largest difference between the slim nets' outputs: {timed['difference']:.1e}")
modes = pd.DataFrame(timed["modes"])
modes["paper_ms"] = modes["mode"].map(  # DS-Net, Table 1: GPU, 25 % of the channels
    {"full": 12.2, "mask": 12.4, "index": 16.6, "slice": 7.9, "ideal": 7.2})
title = "Slicing keeps up with a thin network of its own; masking saves nothing"
ax = figures.latency_bars(modes, title)
chapter.save(ax, "latency")

# %%
ms = modes.pivot_table(index="repeat", columns="mode", values="ms")
chapter.claim(CLAIMS["slice-faster-than-mask"], ms["slice"], ms["mask"], [timed["run_id"]])

# %%
title = "Gathering weights by index costs time at every width"
ax = figures.latency_by_width(pd.DataFrame(timed["widths"]), title)
chapter.save(ax, "latency-by-width")

# %% [markdown]
# ## What surprised us
#
# - Training curves cannot show the failure of a shared batch norm, only evaluation can. A library that lets you
#   evaluate with the wrong statistics will, so ours does not.
# - A shared batch norm does not fail evenly. Its running statistics are a mixture of all widths, and the widths that
#   dominate the mixture survive. Read its row in the table above from left to right.
# - US-Net is not a free lunch at this scale: read its full width against S-Net's. The largest network shares every
#   step with three others and with their summed gradients, and a short training is the place where that costs most.
# - The papers select nothing on a validation split; we pick nothing at all here, and the test split is opened once
#   per run.
#
# ## Summary
#
# - A slimmer width is the corner of each weight. The corner hears fewer channels, so its statistics differ.
# - Convolutions can be shared; batch-norm statistics cannot. S-Net keeps them apart, US-Net takes them afterwards.
# - Slicing costs about as much time as a thin network of its own; masking costs as much as the full one.
#
# ## Exercises
#
# 1. *Recall.* Which tensors of an S-Net with widths .25, .5, .75 and 1 exist once, and which four times?
# 2. *By hand.* A 1x1 convolution has 64 inputs and 128 outputs on an 8x8 map. How many MACs has it at width .5?
# 3. *Code.* Draw 10,000 sandwich steps. How often does a step's random pair hold the same width twice, when 31 widths
#    are equally likely?
# 4. *Ablation.* Set `n_random=0` with `dataclasses.replace(recipe, n_random=0)` and run US-Net again: which widths
#    lose? What does that say about the sandwich's bread?
# 5. *Code.* Calibrate with a batch of 8 images and then one of 1,000. Which wrong result would a plain mean of the
#    two batch means give, and what does `calibrate_bn` do instead?
# 6. *Open.* Group normalisation has no running statistics. Does a slimmable net with it need anything private?
#
# The cells below hold the checkable answers.

# %% tags=["hide-cell"]
switches = MobileNetV1(10, 32, layout=((8, 2), (16, 1)), bn="private")
switches.reserve([switches.uniform(mult) for mult in (0.5, 1.0)])
rows = {name: len(p) for name, p in switches.named_parameters() if "norm" in name}
print("1. convolutions and the classifier exist once; gamma, beta and statistics have",
      set(rows.values()), "rows, one per width")

# %% tags=["hide-cell"]
print("2.", 32 * 64 * 8 * 8, "MACs: half the inputs and half the outputs, a quarter of",
      64 * 128 * 8 * 8)

# %% tags=["hide-cell"]
draw = any_width(full, recipes.SANDWICH_MULTS)
sandwich = Sandwich(full.largest, full.uniform(0.25), draw, n_random=2, seed=1)
pairs = [sandwich.plan(step)[2:] for step in range(10_000)]
same = np.mean([a.route == b.route for a, b in pairs])
print(f"3. {same:.3f} of the steps; equally likely widths give 1/31 = {1 / 31:.3f}")

# %% tags=["hide-cell"]
net = MobileNetV1(10, 32, layout=((8, 2), (16, 1)))
few = torch.randn(8, 3, 32, 32, generator=rng) + 3
many = torch.randn(1000, 3, 32, 32, generator=rng)
calibrate_bn(net, [net.largest], [few, many])
stem, s = net.features[0], net.select(net.largest, statistics="batch")
means = [stem.conv(batch, s).mean((0, 2, 3)) for batch in (few, many)]
exact, plain = (8 * means[0] + 1000 * means[1]) / 1008, (means[0] + means[1]) / 2
calibrated = stem.norm.running_mean[0]
print(f"5. largest error of the plain mean {(plain - calibrated).abs().max():.3f},",
      f"of the mean by images {(exact - calibrated).abs().max():.0e}")

# %% [markdown]
# ## References
#
# - J. Yu, L. Yang, N. Xu, J. Yang, T. Huang. *Slimmable Neural Networks*. ICLR 2019: switchable batch norm, S-Net.
# - J. Yu, T. Huang. *Universally Slimmable Networks and Improved Training Techniques*. ICCV 2019: sandwich rule,
#   in-place distillation, batch-norm statistics after training.
# - C. Li et al. *Dynamic Slimmable Network*. CVPR 2021: Table 1, latency of slicing, masking and indexing.
# - Library: `slimnb/papers/slimmable/method.py`, `slimnb/nn/layers.py`, `slimnb/train/calibrate.py`; their tests are
#   `tests/test_slimmable.py`, `tests/test_layers.py`, `tests/test_calibrate.py`.

# %%
chapter.end()
