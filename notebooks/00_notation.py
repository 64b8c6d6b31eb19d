# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notation
#
# > What is a subnet, a width, a MAC?
#
# | | |
# |---|---|
# | Papers | none of its own: it fixes the words and units for the other chapters |
# | Regenerated | MACs of SP-Net Tables 3 and 6, PSS-Net Table 4 and Figure 3 |
# | | MACs of DS-Net Table 2 and Multi-platform Table 1; the size of the latter's space |
# | Not reproduced | any accuracy: nothing is trained here |
# | Cost | about 20 seconds on two CPU cores, at every scale |
#
# Every method of this book takes one network and runs parts of it. Before we ask which parts, we
# need a way to say *this part* and to say what it costs. We also meet the images on which the
# book runs by default, and the rules by which it calls a claim held or failed.

# %% tags=["parameters"]
scale = "smoke"  # "smoke" | "small" | "full": chooses the data of "Three splits"
seed = 0  # first seed: of the random subnets and of the example run
seeds = 1  # number of seeds; nothing here depends on it
device = "auto"  # "auto" | "cpu" | "cuda"
data = "auto"  # "auto": synthetic at smoke, CIFAR-100 above; or a name or folder
out = ""  # folder for figures; "" is build/ at smoke and figures/ above
samples = 100_000  # random subnets to price

# %%
import itertools

import numpy as np
import pandas as pd

from slimnb import CostTable, MobileNetV1, MobileNetV2, SlimnbError, Subnet, count_macs, count_params, load_data
from slimnb.book.chapter import Chapter
from slimnb.book.claims import Claim, judge
from slimnb.book.moderated import Prior, holm, two_sided
from slimnb.book.parameters import Int
from slimnb.book.registered import claims_of
from slimnb.cost import macs as cost
from slimnb.cost.macs import trace_macs
from slimnb.data import synthetic
from slimnb.data.datasets import load_or_absent
from slimnb.nn.layers import Selection, SlimmableConv2d, narrow
from slimnb.papers.slimmable import figures, tables
from slimnb.papers.slimmable.recipes import arms
from slimnb.rng import rng_at
from slimnb.runs.store import RunStore
from slimnb.subnet import scaled
from slimnb.train.experiment import Context, code_of

chapter = Chapter.begin("00_notation", globals(), samples=Int(1_000, 1_000_000))
CLAIMS = claims_of("slimmable")

# %% [markdown]
# ## The words
#
# A **supernet** is a network trained so that parts of it work on their own. A **subnet** is one
# such part. Its **widths** are the numbers of channels it keeps, one number for each **channel
# unit**: channels that are made, normalised and read together. A **width multiplier** scales all
# units at once.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $s$ | `subnet` | | a subnet, a value of type `Subnet` |
# | $c_u$ | `subnet.widths[u]` | int | channels that $s$ keeps in unit $u$ |
# | $C_u$ | `net.largest.widths[u]` | int | channels the supernet has there |
# | $w$ | `mult` | number | width multiplier; 1.0 is the paper's net |
# | $r$ | `subnet.resolution` | int | input side in pixels; `None` means as given |
# | $x,\ y$ | `x`, `y` | `(B, 3, H, W)`, `(B,)` | images and labels of a batch |
# | $z$ | `net(x, subnet)` | `(B, classes)` | logits |
# | $W$ | `conv.weight` | `(C_out, C_in, k, k)` | filters of a convolution |
# | $\gamma,\ \beta$ | `norm.weight`, `norm.bias` | `(1 or slots, C)` | scale and shift of a batch norm |
# | $\mu$ | `norm.running_mean` | `(slots, C)` | its means, one row ("slot") per subnet |
# | $\sigma^2$ | `norm.running_var` | `(slots, C)` | its variances |
# | $\mathcal S$ | `space`, `space.size` | | the subnets a search may choose; how many |
# | $\mathrm{MACs}(s)$ | `count_macs(net, subnet)` | int | multiply-accumulates for one image |
# | $d$ | `split.difficulty` | `(N,)` | difficulty of each synthetic image, 0 to 1 |
#
# Where we say MACs, the papers say FLOPs or MAdds. They mean the same thing, but for small items
# that "Four ways to count" sorts out.
#
# ## The idea on three channels
#
# To slice a layer is to use its first filters and, of each, the first input channels. We take a
# 1x1 convolution whose inputs are 1, 10 and 100 at a single pixel. Each output then spells the
# weights that made it, digit by digit, the first input in the last place.

# %%
conv = SlimmableConv2d(3, 3, kernel=1, unit=0, sources=(0,))
weight = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
conv.weight.data = conv.weight.new_tensor(weight).reshape(3, 3, 1, 1)
x = conv.weight.new_tensor([1, 10, 100]).reshape(1, 3, 1, 1)
for width in (3, 2, 1):
    y = conv(x[:, :width], Selection(widths=(width,)))  # (1, width, 1, 1)
    print(f"width {width}: {y.flatten().int().tolist()}")

# %% [markdown]
# At full width the first output is 321: weights 1, 2 and 3. At width 2 it is 21, and the third
# output is gone. A slice drops filters *and* the part of every other filter that read a dropped
# channel. The top left corner of the matrix is left.

# %%
axes = figures.slicing_diagram(weight, (1, 2, 3), "A slice is the top left corner")
chapter.save(axes, "slicing")

# %% [markdown]
# A width can also be a **mask**: all channels are computed, and a row of ones and zeros per image
# silences some of them. A mask saves no work, but lets every image of a batch have its own width.

# %%
mask = x.new_tensor([[1, 1, 0]])  # (B, C): the first two channels
y = narrow(conv(narrow(x, mask), Selection(widths=(mask,))), mask)  # (1, 3, 1, 1)
print(y.flatten().int().tolist())
assert y[:, :2].equal(conv(x[:, :2], Selection(widths=(2,))))

# %% [markdown]
# The numbers of width 2, and a zero. Mask and slice are one function, run in two ways.
#
# ## A subnet is a value
#
# MobileNetV1 has 14 channel units in a chain, the stem and 13 blocks. `uniform` takes a width
# multiplier and answers with a `Subnet`. It holds no weights and changes no network. It is a
# frozen value, like a number: two that look alike are equal, it can be a key in a dictionary, and
# it can be written down and read back.

# %%
net = MobileNetV1()  # for 224 pixels and 1,000 classes
half = net.uniform(0.5)
print(net.largest)
print(half.to_json())
assert Subnet.from_json(half.to_json()) == half
price = {half: count_macs(net, half)}
print(f"{price[Subnet(half.widths)]:,} MACs")

# %% [markdown]
# We looked the price up with another object of equal content, and found it. So a subnet can name
# prices, batch-norm statistics and finished runs throughout the book. It need not be uniform, it
# must only fit. One that is too wide somewhere is refused in one line that says where.

# %%
pear = Subnet((32, 64, 128, 128, *[256] * 10))  # wide early, slim late
print(f"{count_macs(net, pear):,} MACs")
try:
    net.check(Subnet((48, *pear.widths[1:])))
except SlimnbError as error:
    print(error)

# %% [markdown]
# ## Rounding to eight
#
# Half of 32 channels is 16, but what is 0.7 of 32? Hardware likes multiples of 8, so most papers
# round to the nearest one, never below 8, and take the next one up if rounding lost more than a
# tenth. S-Net and SP-Net round down to whole channels on ResNet and VGG.

# %%
for mult in (0.1, 0.3, 0.7, 0.9):
    down = scaled(32, mult, "floor")
    print(f"{mult} x 32 = {32 * mult:4.1f}: keep {scaled(32, mult):2}, or down {down:2}")
for mult in (0.525, 1 - 19 * 0.025):
    print(f"{mult} x 160: keep {scaled(160, mult)}")

# %% [markdown]
# The last line is a trap. On paper $1 - 19 \cdot 0.025 = 0.525$, and $0.525 \cdot 160 = 84$
# rounds up to 88. In binary the difference falls a hair short and a stage loses 8 channels. We
# read a multiplier as the decimal it prints as, and never add multipliers up.
#
# ## What is a MAC?
#
# One multiplication, and one addition to a running sum. A convolution with kernel $k$ makes
# $c_\mathrm{out}$ maps of $H \times W$ outputs, each a sum of $k^2 c_\mathrm{in}$ products; a
# depthwise one reads a single channel per output:
#
# $$\mathrm{MACs} = H\,W\,k^2\,c_\mathrm{in}\,c_\mathrm{out}, \qquad
# \mathrm{MACs}_\text{depthwise} = H\,W\,k^2\,c .$$
#
# The first formula has two widths in it, the second has one. We work out the 1x1 convolution of
# the first block, from 32 to 64 channels on a map of 112 by 112, and ask the library for the same
# layer.

# %%
by_hand = 112 * 112 * 1 * 1 * 32 * 64
traced = trace_macs(net, net.largest)["features.1.1.conv"]["conv"]
print(f"{by_hand:,} by hand, {traced:,} traced")
assert by_hand == traced

# %% [markdown]
# The library has no formula for a network. It runs the real forward pass on tensors without data
# and notes what each operation would do, so that the count cannot drift away from the code. Now
# all layers:

# %%
layers = tables.layer_macs(net, net.largest)
title = "Nineteen of twenty MACs are in the 1×1 convolutions"
chapter.save(figures.layer_macs(layers, title), "layers")

# %% [markdown]
# Nearly all the cost carries two widths, so it should fall almost with the square of the
# multiplier.

# %%
full = count_macs(net, net.largest)
for mult in (1.0, 0.75, 0.5, 0.25):
    macs = count_macs(net, net.uniform(mult))
    share = f"{macs / full:.3f} of full; square {mult**2:.3f}"
    print(f"{mult:4}x {macs / 1e6:6.2f} M, {share}")

# %% [markdown]
# The slimmer the net, the further it stays above the square: stem, depthwise layers and
# classifier carry one width each and shrink more slowly.
#
# ## Four ways to count
#
# And batch norms, activations, pooling? Papers differ and seldom say. Four **conventions**
# explain the figures we have met. They are options of one counter (*attention* is
# squeeze-and-excitation, which MobileNetV1 lacks, so that B and D agree here):

# %%
found = tables.counts(net, net.largest)
for name, counted in cost.CONVENTIONS.items():
    print(f"{name}: {found[name] / 1e6:.2f} M with {', '.join(sorted(counted))}")

# %% [markdown]
# The differences look small, yet they decide whether a printed figure comes out. We take printed
# figures that depend on the net alone and give ours in as many digits, cut off and not rounded
# for PSS-Net's Table 4, which does so. Under *fits* stand, figure by figure, all conventions that
# give the printed digits; *ours* is counted by the one that fits the whole row best.

# %%
printed = tables.printed_macs()
printed.groupby("source", sort=False)[["printed", "ours", "fits"]].agg(" ".join)

# %% [markdown]
# Most figures are too coarse to tell the conventions apart. Some are not: 149 M needs A, 150 M
# for the same net needs B or D, and 584 M, 286 M and 19.6 G need C. SP-Net's Table 3 counts
# MobileNetV1 by A in some rows and by C in others, so that one net stands there with 569 and with
# 584 M.
#
# Each source becomes a **claim** of kind *exact*: ours equals the paper's, digit for digit. A paper's
# claims stand in a file of their own, `slimnb/papers/.../claims.toml`, and are fixed before a chapter runs.
# Below are the verdicts, and the last one's card as later chapters show it.

# %%
for name, rows in printed.groupby("claim", sort=False):
    verdict = chapter.claim(CLAIMS[name], rows["ours_m"], rows["printed_m"])
    print(verdict)
verdict

# %% [markdown]
# One claim fails and stays in the ledger. DS-Net's Table 2 gives MobileNetV1 at 0.75 a count of
# 317 M, and no convention does; ours is 325 M.
#
# ## A space and its size
#
# A **search space** lists the widths each unit may take. Multi-platform (section 4.1) lets each
# of 14 units of MobileNetV1 choose among 14 multipliers from 0.2 to 1.5, on 32-pixel images. Are
# these $14^{14}$ networks?

# %%
mults = [round(0.2 + 0.1 * i, 1) for i in range(14)]
wide = MobileNetV1(100, 32, largest=1.5)  # CIFAR-100; 1.5 times the paper's net
space = wide.space(mults)
print([len(choices) for choices in space.widths])
print(f"{space.size:.3g} subnets, {14**14:.3g} names")

# %% [markdown]
# Fewer: rounded to eight, a stem of 32 channels has 6 different widths. Two names for one network
# would be trained, priced and ranked as if they were two, so a `Subnet` holds channels and not
# multipliers.
#
# Nobody prices so many one by one. In a chain the cost of a layer depends on two neighbouring
# widths, so tables of pairs $T_u$ price a subnet by 13 look-ups:
#
# $$\mathrm{MACs}(s) = \sum_{u=1}^{13} T_u[c_u, c_{u+1}] .$$

# %%
table = CostTable.macs(wide, space)
rng = rng_at(chapter.seed, "notation", 0)
widths = space.sample_widths(rng, chapter.parameters["samples"])  # (N, 14)
costs = table.predict(widths)  # (N,)
assert count_macs(wide, Subnet(tuple(widths[0].tolist()))) == costs[0]
ends = table.of(space.smallest), table.of(space.largest)
for name, low, high in (("drawn", costs.min(), costs.max()), ("possible", *ends)):
    print(f"{name}: {low / 1e6:.1f} to {high / 1e6:.1f} M MACs")
uniform = {mult: table.of(wide.uniform(mult)) for mult in mults}
title = "Random subnets crowd in the middle of what the space can cost"
chapter.save(figures.cost_histogram(costs, uniform, title), "random_subnets")

# %% [markdown]
# The cost is a sum of many independent choices, and sums gather around their mean. Whoever draws
# subnets at random while training hardly ever sees the cheap ones that a watch needs, nor the
# dearest. The uniform ones (triangles, from 0.2x to 1.5x) reach both ends. That is why US-Net
# trains the smallest and the largest in every step, and why PSS-Net sorts its draws into buckets
# of equal cost.
#
# ## The images
#
# The default data are generated, so that the book needs no download. A class is a shape with a
# texture, ten in all. Every image has a **difficulty** $d$, known because we chose it. Each row
# below is one scene of one class, and only $d$ changes along it. The printed lines say what $d$
# turns, from its value at $d=0$ to its value at $d=1$.

# %%
images = load_data("synthetic")
scenes = [(k, k, (step + 0.5) / 8) for k in range(10) for step in range(8)]
index, labels, difficulty = zip(*scenes, strict=True)
pixels, *_ = synthetic.render(index, labels=labels, difficulty=difficulty)
title = "One dial takes every scene from easy to hard"
axes = figures.image_grid(pixels, labels, difficulty, images.class_names, title)
chapter.save(axes, "difficulty")
for name in ("COLOUR_CUE", "RADIUS", "CONTRAST", "COVERED", "NOISE", "CLUTTER"):
    easy, hard = getattr(synthetic, name)
    print(f"{name:10} {easy:5} to {hard:5}")

# %% [markdown]
# Radius and the bar that covers the object (none below zero) are in half images and radii, noise
# in parts of the pixel range, clutter in pieces. `COLOUR_CUE` matters most. Clipped to 0 and 1,
# it is the probability that the object wears its class's own hue. Easy images always do. On hard
# ones the hue is drawn at random, clutter repeats the shapes and textures of other classes, and
# only shape *and* texture together give the class away.
#
# How far does colour alone go? We give each validation image three numbers, the mean colour of
# its middle, and choose the class whose mean is nearest. No network, no training.

# %%
answers = tables.colour_alone(images.train, images.val)
title = "Colour gives the easy images away, and hardly any of the hard ones"
chapter.save(figures.difficulty_profile(answers, title), "colour_alone")

# %% [markdown]
# Difficulties are spread evenly, and accuracy falls from above 90 % nearly to chance. So
# difficulty says how much computation an image deserves: a few channels see colour, but shape and
# texture need more. Chapter 01 asks whether slim networks indeed lose on the hard images first;
# DS-Net, in chapter 06, gives each image its own width.
#
# ## Three splits
#
# **Train** is for weights and batch-norm statistics. **Validation**, carved from train, is for
# every choice: an epoch, a width, a pool. **Test** is opened once, when a run is over. To report
# the best test error of all epochs, as SP-Net does (captions of Tables 2 and 3), is to choose on
# the test set. The data object counts openings, so that we cannot forget.

# %%
cache = chapter.root / "data/cache"
here = load_or_absent(chapter.data_name, chapter.data_root, cache=cache)
print(here)
print(f"test opened {here.test_opened} times; content {here.fingerprint[:12]}")

# %% [markdown]
# The **fingerprint** is a hash of all pixels and labels, and of the cut between train and
# validation. Every result names the fingerprint of its data.
#
# ## What counts as evidence
#
# A claim is written down before the runs: what is compared, in which unit, and the smallest
# difference that would matter. A **seed** fixes initial weights, data order and sampled subnets.
# Two arms are compared seed by seed, and the **verdict** is *holds*, *contradicted*,
# *inconclusive*, *estimate only* (fewer seeds than planned) or *not run*. With invented accuracies:

# %%
toy = Claim("toy", chapter.name, "A beats B", "invented", metric="top1",
            arms=("A", "B"), margin=1, family="primary")  # points
b = [70.2, 70.6, 69.9, 70.4, 70.1]  # %, one per seed
for a in ([72.0, 72.5, 71.8, 72.6, 71.9], [71.9, 69.8, 72.8, 70.9, 71.8],
          [70.3, 70.5, 70.2, 70.4, 70.3], [74.0]):
    print(judge(toy, a, b[:len(a)], scale=chapter.scale).headline)

# %% [markdown]
# The second A is more than a point ahead in the mean, and yet five seeds that scatter so much
# decide nothing. The last has one seed of five planned: an estimate, however large its lead.
#
# Five seeds say little of how much seeds scatter, three say less. But a chapter has many claims on
# one metric, and their scatter is alike. The **moderated t** (Smyth 2004) shrinks each variance
# towards the chapter's, the more the more alike they are:
#
# $$\tilde s^2 = \frac{d_0 s_0^2 + d\, s^2}{d_0 + d}, \qquad t = \frac{\bar d}{\tilde s / \sqrt n}
# \ \text{with}\ d_0 + d\ \text{degrees of freedom},$$
#
# where $d = n - 1$, and $d_0$ and $s_0^2$ follow from the spread of all the variances. (We allow no
# more degrees of freedom than all variances have together, which matters where they are few.) Where many
# claims are tested, more is asked of each: **Holm's correction**, over a chapter's one to three
# *primary* claims (five seeds), over its *secondary* ones (three) and over its timings. What that
# buys, we simulate: chapters of 12 claims, half of them true by two standard deviations.

# %%
rng = np.random.default_rng(chapter.seed)
rows = []
for seeds_each, spread in itertools.product((3, 5), (0, 0.3, 0.6)):
    for _ in range(200):
        sd = np.exp(rng.normal(0, spread, (12, 1)))  # of each claim; all share one reference arm
        d = sd * (rng.normal(size=(12, seeds_each)) - rng.normal(size=seeds_each)) / 2**0.5
        d[:6] += 2
        mean, s = d.mean(1), d.std(1, ddof=1)
        for name, prior in (("t", Prior()), ("moderated t", Prior.of(s**2, np.full(12, seeds_each - 1)))):
            p = [two_sided(abs(x), *prior.error(y, seeds_each)) for x, y in zip(mean, s, strict=True)]
            shown = holm(np.array(p)) <= 0.05
            rows.append((seeds_each, spread, name, shown[:6].mean(), shown[6:].any()))
columns = ["seeds", "spread", "test", "effects found", "chapters with a false verdict"]
pd.DataFrame(rows, columns=columns).pivot_table(index="test", columns=["seeds", "spread"]).round(2)

# %% [markdown]
# *Spread* is that of the claims' true standard deviations: the more alike they are, the more a claim
# learns from the others. A test by itself finds hardly anything with three seeds.
#
# A verdict belongs to a **scale**. `smoke` means generated images and tiny nets, to see that all
# works. `small` is CIFAR-100 with several seeds. `full` is the paper's own recipe. A claim may
# fail at one and hold at another, so we say which we ran.
#
# ## A run is found again
#
# Whoever runs a chapter twice should wait once. A **run** is named by a hash of its recipe, of
# the code that can change its result, and of the data. A finished run is loaded, an interrupted
# one resumes, a new one trains.

# %%
store = RunStore(chapter.root / "data/runs", chapter.root / "data/results")
for number in (chapter.seed, chapter.seed, chapter.seed + 1):
    recipe = arms(Context(chapter.scale, number, here))[-1]
    run = store.open(recipe.to_json(), code_of(recipe), here.fingerprint)
    print(f"seed {number}: {run.id}")

# %% [markdown]
# The same recipe has the same name, another seed has another. Rewording a comment in the library
# changes no name; changing a line of code does.
#
# ## What surprised us
#
# - One net, one paper, two prices: 569 and 584 M. "At equal FLOPs" deserves a recount.
# - One printed figure, 317 M, follows from no rule of counting that we know.
# - Half the width costs more than a quarter, and random widths are hardly ever cheap.
# - A decimal that is 0.525 on paper but not in binary removes 8 channels from a stage.
#
# ## Summary
#
# - A subnet is a value: channels per unit. It slices the top left corner of every layer.
# - MACs grow nearly with the square of the width. What is counted is a convention, to be stated.
# - Easy images yield to colour, hard ones need shape and texture. A verdict names its claim, its
#   seeds and its scale.
#
# ## Exercises
#
# 1. *Recall.* `subnet.widths[5]` changes from 256 to 128. Which layers of MobileNetV1 change
#    their MACs?
# 2. *By hand.* For 32-pixel images the stem has stride 1. How many MACs has it at 0.5x?
# 3. *Code.* Which is the widest uniform MobileNetV1, in steps of 0.025, with at most half the
#    MACs of the full net?
# 4. *Code.* S-Net gives every width its own $\gamma$ and $\beta$. How many parameters does that
#    add to MobileNetV1 with widths 0.25, 0.5, 0.75 and 1.0? SP-Net's Table 3 prints 4.2 M for the
#    plain net and 4.3 M for S-Net.
# 5. *Ablation.* PSS-Net ties the units of each stage of MobileNetV2 together. If every unit may
#    take nine multipliers, 0.2 to 1.0, how many subnets are there without and with ties?
# 6. *Open.* Draw non-uniform subnets whose costs spread evenly over the whole range. How does the
#    histogram above change? Chapter 04 has PSS-Net's answer.
#
# The cells below hold checkable answers to the first five.

# %% tags=["hide-cell"]
others = net.largest.widths
before, after = (trace_macs(net, Subnet((*others[:5], c, *others[6:])))
                 for c in (256, 128))
changed = [name for name, kinds in before.items()
           if "conv" in kinds and kinds != after[name]]
print("1. The 1x1 convolution that makes the unit, both of the next block:")
print("  ", *changed)

# %% tags=["hide-cell"]
cifar = MobileNetV1(100, 32)
traced = trace_macs(cifar, cifar.uniform(0.5))["features.0.conv"]["conv"]
print(f"2. 32 x 32 x 9 x 3 x 16 = {32 * 32 * 9 * 3 * 16:,}, traced {traced:,}")

# %% tags=["hide-cell"]
steps = [round(0.025 * i, 3) for i in range(1, 41)]
costs_of = {mult: count_macs(net, net.uniform(mult)) for mult in steps}
mult = max(mult for mult, macs in costs_of.items() if macs <= full / 2)
print(f"3. {mult}x with {costs_of[mult] / 1e6:.1f} M of {full / 1e6:.1f} M")

# %% tags=["hide-cell"]
private = MobileNetV1(bn="private")
switches = [private.uniform(mult) for mult in (0.25, 0.5, 0.75, 1.0)]
one, four = (count_params(private, some) for some in (switches[-1:], switches))
print(f"4. {four - one:,} on top of {one:,}, which makes {four / 1e6:.2f} M")

# %% tags=["hide-cell"]
v2 = MobileNetV2()
free, tied = v2.space(mults[:9]), v2.space(mults[:9], tied=v2.stages)
print(f"5. {free.size:.3g} without and {tied.size:,} with ties")

# %% [markdown]
# ## References
#
# - Howard et al. 2017, *MobileNets*: layers (Table 1), width multiplier (section 3.3).
# - Smyth 2004, *Linear Models and Empirical Bayes Methods for Assessing Differential Expression in
#   Microarray Experiments*: the moderated t (sections 3 and 6.2, appendix).
# - Yu et al. 2019, *Slimmable Neural Networks* (S-Net). Yu and Huang 2019, *Universally Slimmable
#   Networks* (US-Net).
# - Kuratsu and Nakamura, *Slimmable Pruned Neural Networks* (SP-Net): Tables 3 and 6.
# - Chen et al., *Prioritized Subnet Sampling* (PSS-Net): Table 4, Figure 3 (the data plotted
#   there come with the authors' code).
# - Li et al., *Dynamic Slimmable Network* (DS-Net): Table 2.
# - Wang and Blaschko, *Optimizing Slimmable Networks for Multiple Target Platforms*
#   (Multi-platform): section 4.1, Table 1.
# - Code: `slimnb/subnet.py`, `slimnb/cost/macs.py`, `slimnb/data/synthetic.py`. The printed figures:
#   `slimnb/papers/slimmable/tables.py`, tested in `tests/test_tables.py`.

# %%
chapter.end()
