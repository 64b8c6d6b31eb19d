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
# # SP-Net: slimmable pruned networks
#
# > Which channels should a small subnet keep?
#
# | | |
# |---|---|
# | Paper | Kuratsu and Nakamura, *Slimmable Pruned Neural Networks* |
# | Regenerated | Tables 2, 3 at the scale that runs; 6, 8 and 9 as arms, at `smoke` one of them; 7, 10 on this device (at `smoke` two widths of 7); Fig. 2 to 4, real masks |
# | Not reproduced | the accuracies at 224 pixels: scale `full` holds the recipes, and they have not been run here |
# | Cost | `smoke`: about a minute on two CPU cores. `small`: about an hour per seed on one CPU core. `full`: not measured |
#
# S-Net cuts every layer to the same share: half the width is half of each layer. Pruning knows better which
# channels matter, but leaves a different number in each layer, and they lie anywhere. This chapter puts pruned
# subnets into a slimmable network and keeps them slices.

# %% tags=["parameters"]
scale = "smoke"  # "smoke" | "small" | "full": data and recipes, see slimnb/papers/sp_net/recipes.py
seed = 0  # first seed
seeds = 1  # number of seeds; the paper has five on CIFAR-100, one on ImageNet
device = "auto"  # "auto" | "cpu" | "cuda"
data = "auto"  # synthetic at smoke, CIFAR-100 above; or a data set's name or folder
out = ""  # folder for figures; "" is build/ at smoke and figures/ above
toy_share = 0.5  # of its MACs that pruning leaves of the untrained net we look at first
latency_rounds = 25  # timed rounds per way to run a subnet: five repeats of five; the paper's batch is 64, ours 1

# %%
import copy
import warnings

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from slimnb import VGG, MobileNetV1, MobileNetV2, ResNet50, SlimnbError, calibrate_bn, count_macs, embed_, prune
from slimnb.book.chapter import Chapter, source
from slimnb.book.claims import overview, paired
from slimnb.book.parameters import Float, Int
from slimnb.book.registered import claims_of
from slimnb.data.datasets import load_or_absent
from slimnb.papers.sp_net import figures, recipes, tables
from slimnb.papers.sp_net.gathered import random_gammas_, sorting_latencies
from slimnb.papers.sp_net.method import EmbeddedSwitches, Sparsity
from slimnb.papers.sp_net.pruning import gammas, importance_order
from slimnb.runs.store import RunStore, results_frame
from slimnb.train.experiment import Context, study

chapter = Chapter.begin("02_sp_net", globals(), toy_share=Float(0, 1), latency_rounds=Int(1, 1000))
CLAIMS = claims_of("sp_net")

# %% [markdown]
# ## The idea on three channels
#
# Two layers, three channels between them. Each channel $c$ is scaled by a factor $\gamma_c$ before a ReLU, and the
# size of $\gamma_c$ tells how much the second layer hears of it. We want a subnet of two channels. The two largest
# $|\gamma|$ are channels 0 and 2: not neighbours, so a slice `[:2]` would take the wrong ones.

# %%
first = np.array([[1., 2], [3, -1], [2, -1]])  # (channels, inputs)
gamma = np.array([0.5, 0.1, 0.9])
second = np.array([[1., -1, 2], [0, 4, 1]])  # (outputs, channels)
x = np.array([2., 1])


def run(first, gamma, second):
    return second @ np.maximum(gamma * (first @ x), 0)


order = np.argsort(-np.abs(gamma))
ours = first[order], gamma[order], second[:, order]
print("order", order.tolist(), "| before", run(first, gamma, second), "| sorted", run(*ours))
assert np.allclose(run(*ours), run(first, gamma, second))
thin = [part[:2] for part in ours[:2]] + [ours[2][:, :2]]
print("two most important channels, as a slice:", run(*thin))
masks = {f"{n} of 3": tables.kept(order, n) for n in (1, 2, 3)}
ax = figures.survivors(masks, order, "Sorted by importance, every subnet is a slice")
chapter.save(ax, "three-channels")

# %% [markdown]
# We permuted the rows of the first matrix, the factors, and the columns of the second. The sum runs over the same
# three terms in another order, so the whole net computes what it did. The paper calls this *slimmable channel
# sorting*, SCS. It costs nothing once it is done.
#
# ## Sorting leaves a whole network as it was
#
# In a real net a channel is made by one convolution, scaled by one batch norm, and read by all that follows:
# depthwise layers, 1x1 convolutions, shortcuts, the classifier. `embed_` permutes all of them. We give the
# paper's four nets random gammas and running statistics, sort, and compare. Sums are taken in float64: in float32 those
# of untrained nets of fifty layers differ by some 1e-4, as other orders of the same terms do. So that "nothing
# changed" means something, we count the gammas that no longer lie where they did.

# %%
image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(chapter.seed)).double()
changes = {}
with torch.no_grad():
    for kind in (ResNet50, VGG, MobileNetV1, MobileNetV2):
        net = kind().double().eval()
        random_gammas_(net)
        calibrate_bn(net, [net.largest], [image])
        before, lay = net(image), np.hstack([np.ravel(unit) for unit in gammas(net)])
        embed_(net, importance_order(gammas(net)))
        moved = np.mean(lay != np.hstack([np.ravel(unit) for unit in gammas(net)]))
        assert moved > 0.9, "there is something to compare"
        changes[kind.__name__] = ((net(image) - before).abs().max() / before.abs().max()).item()
        print(f"{kind.__name__}: {moved:.0%} of the gammas moved, logits by {changes[kind.__name__]:.0e}")
chapter.claim(CLAIMS["sorting-changes-nothing"], list(changes.values()), np.zeros(4))

# %% [markdown]
# ## Where importance comes from: network slimming
#
# A channel whose $\gamma$ is near zero says nothing. Network slimming (Liu et al. 2017) makes such channels on
# purpose: it adds the sizes of all $\gamma$ to the loss (eq. 7),
#
# $$L = \sum_{(x, y)} \ell\big(f(x, W), y\big) + \lambda \sum_{\gamma \in \Gamma} |\gamma| .$$
#
# Its subgradient is $\lambda \operatorname{sign}(\gamma)$, added to the gradients once all passes of a step have run:

# %%
source(Sparsity.__call__)

# %% [markdown]
# The place of that line matters. The authors' code trains in half precision and adds $\lambda
# \operatorname{sign}(\gamma)$ to gradients that still carry the loss scale; the scale is divided out afterwards,
# from the penalty, too. Ours comes last. A second quantity hides in $\lambda$: a $\gamma$ that the loss leaves alone
# moves by $\lambda \sum_t \eta_t / (1 - \mu)$ in a whole training, so a shorter one needs a larger $\lambda$.

# %%
print(f"lambda 1e-5 under a loss scale of 65536 acts as {1e-5 / 65536:.1e}")
rates = 391 * (60 * 0.1 + 30 * 0.02 + 20 * 0.004 + 10 * 0.0008)  # 120 epochs of 391 steps, SP-Net's milestones
print(f"SP-Net's ResNet-50 on CIFAR-100: such a gamma moves by {1e-5 * rates / (1 - 0.9):.2f}")

# %% [markdown]
# ## Claims, then runs
#
# The claims come before the runs. Accuracy claims are about the thinnest subnet, where the paper's gains are
# largest; what this scale does not train is "not run".
#
# SP-Net differs from S-Net in more than its counts: it distils, shares gamma and beta, has the penalty, and with
# shortcuts trains longer. So claims against S-Net and single nets are about the whole recipe. Our control *Uniform
# counts* has all of it, the same start, order, objective and epochs, but the counts of the uniform widths: it isolates
# what pruning found. Of the claims about time, the bound of one half more is ours, and generous: the paper has 1.31
# times at .25×.

# %%
overview(CLAIMS.values())

# %%
images = load_or_absent(chapter.data_name, chapter.data_root, chapter.device,
                        chapter.root / "data/cache")
print(images)
store = RunStore(chapter.root / "data/runs", chapter.root / "data/results")
results = study(recipes.STAGES, chapter.scale, chapter.all_seeds, images, store, device=chapter.device)
frame = tables.errors_of(results_frame(results))
minutes = sum(result.seconds for result in results) / 60
print(f"{len(results)} runs, {minutes:.1f} minutes of training")

# %% [markdown]
# Up to four stages run: individual nets, S-Net and sparse *bases* first; then what pruning left of the bases,
# trained jointly; then, where the scale has it, iterative pruning, which has to wait for itself. Each stage sees the results of those before
# it, and what pruning found is stored like a run.

# %%
nets = {family.plain.net: family for family in recipes.families(chapter.scale, images)}
mine = [r for r in results if r.recipe.seed == chapter.seed]
context = Context(chapter.scale, chapter.seed, images, mine, store)
made = {net: recipes.Pruning(family, context) for net, family in nets.items()}
found = {net: pruning.pruned(nets[net].bases) for net, pruning in made.items()}
frame.pivot_table(index=["net", "arm"], columns="name", values="top1", sort=False).round(1)

# %% [markdown]
# ## Pruning to a MAC target
#
# One threshold over all gammas of a base decides everything: a unit keeps the channels above it, at least a
# tenth of them (a twentieth where paths join), and a depthwise layer follows the layer before it. The authors tune the share that is kept by hand for
# every net. Since MACs only fall as the threshold rises, bisection finds the largest subnet that fits.

# %%
source(prune)

# %%
net = "resnet"
family, pruning = nets[net], made[net]
base = pruning.of("Base", 1.0)
looked = recipes.scores(base, images, store)["gammas"]
table, threshold = tables.gamma_table(looked, found[net][0.75]["counts"], found[net][0.75]["keep"])
share = found[net][0.75]["keep"]
axes = figures.gamma_histogram(table, f"One threshold for all layers leaves {share:.0%} of the gammas", threshold)
chapter.save(axes, "gammas")

# %%
rows = [(name, mult, family_of.bases[mult], p["target"], p["macs"], 100 * (1 - p["macs"] / p["target"]), p["keep"])
        for name, family_of in nets.items() for mult, p in found[name].items()]
cut = pd.DataFrame(rows, columns=["net", "width", "base", "target", "MACs", "unused %", "keep"])
cut.round({"unused %": 2, "keep": 3})

# %% [markdown]
# Channels come in whole numbers and several may share a threshold, hence the unused share. Is the target kept by the
# nets that were trained, in every arm and seed? *Uniform counts* is no pruned net; in it, too, paths join.

# %%
rule = tables.macs_by_rule(results, images.num_classes)
judged = rule[rule["arm"].ne("Uniform counts")]
chapter.claim(CLAIMS["pruned-macs-within-target"], np.maximum(judged["union"] - judged["target"], 0), np.zeros(len(judged)),
              [r.run_id for r in results if r.recipe.supernet and r.recipe.arm != "Uniform counts"])

# %% [markdown]
# Three things can go wrong, and each is one line: a target that the floors alone exceed, a base that nobody has
# trained, and counts that are wider than the supernet they are meant for.

# %%
toy = ResNet50(10, 32, stem=16, layout=((4, 2), (16, 2)), bn="shared_affine")
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    prune(toy, toy_share * count_macs(toy, toy.largest))
print(told[0].message)
random_gammas_(toy)
wide = ResNet50(10, 32, 1.5, stem=16, layout=((4, 2), (16, 2)), bn="shared_affine")
random_gammas_(wide)
for bad in (lambda: prune(toy, 1000), lambda: prune(wide, count_macs(wide, wide.largest), into=toy)):
    try:
        bad()
    except SlimnbError as error:
        print(error)

# %% [markdown]
# ## Several bases
#
# Where do the counts of the half-width subnet come from? *One-shot* pruning cuts the widest base to half the
# width at once. *Iterative* pruning cuts it to three quarters, trains, and cuts again. SP-Net's *multi-base* pruning
# trains a uniform base of three quarters on its own and cuts that. Nothing is inherited but the counts, so the
# bases can train at the same time on different machines. Pruning then needs their weights in one store.

# %%
full = base.recipe.build(images.num_classes)
macs = {mult: count_macs(full, full.uniform(mult)) for mult in (0.5, 0.75, 1.0)}
schemes = {"One-shot": {0.75: "base 1×", 0.5: "base 1×"}, "Iterative": {0.75: "base 1×", 0.5: "0.75×"},
           "SP-Net": {0.75: "base 1×", 0.5: "base 0.75×"}}
drawn = pd.DataFrame([(arm, source_of, tables.width_name(mult), macs[0.75 if "0.75" in source_of else 1.0], macs[mult])
                      for arm, steps in schemes.items() for mult, source_of in steps.items()],
                     columns=["arm", "base", "name", "base_macs", "macs"])
axes = figures.multi_base(drawn, "Multi-base pruning cuts every base once, by one step")
chapter.save(axes, "multi-base")

# %% [markdown]
# Counts from different bases know nothing of each other. The thinner subnet may be the *wider* one in some layer.
# We count such units; slimnb allows them, because a slice of 9 channels and a slice of 7 need not be told who is
# thinner elsewhere.

# %%
for name, prunings in found.items():
    for (thin, wide), units in tables.crossings({mult: p["counts"] for mult, p in prunings.items()}).items():
        print(f"{nets[name].name}: {thin:g}x is wider than {wide:g}x in units", units or "none")

# %%
counts = {tables.width_name(mult): p["counts"] for mult, p in found[net].items()}
uniform = {tables.width_name(mult): full.uniform(mult).widths for mult in found[net]}
table = tables.counts_table({"Uniform": uniform, "SP-Net": counts}, full.largest.widths)
axes = figures.widths_by_layer(table, "At the same MACs by the paper's count, pruning spends channels unevenly")
chapter.save(axes, "widths-by-layer")

# %% [markdown]
# The supernet of a net with shortcuts is its widest base, and its channels are sorted by its *own* gammas; nets drawn
# anew take only the counts. Below is one real unit of it (the paper's Fig. 2 and 3): above where training left the
# channels that each subnet keeps, below where sorting puts them.

# %%
importance = tables.order_of(looked)
small_units = [u for u, most in enumerate(full.largest.widths) if 8 <= most <= 64]
unit = small_units[len(small_units) // 2]
masks = {name: tables.kept(importance[unit], widths[unit]) for name, widths in counts.items()}
ax = figures.survivors(masks, importance[unit], f"Scattered channels become slices: {full.unit_names[unit]}")
chapter.save(ax, "survivors")

# %% [markdown]
# ## Zero padding match
#
# In a residual block two paths are added, channel by channel, and pruning has kept different channels on each. Older
# work lets the shortcut win: the body's mask is overwritten by the shortcut's. *Zero padding match*, ZPM, lets
# each path keep its own channels and fills zeros where the other has more. Sorting then fights with adding:
# channel 3 of one path would meet channel 5 of the other. The authors un-sort both paths at every join and gather what
# is left. slimnb stores the stream in an order in which all that a subnet uses comes first: paths are
# scattered into it, readers slice.

# %%
paths, sequence = tables.join_paths(full, importance, counts, tables.width_name(min(found[net])))
ax = figures.padding(paths, sequence, "Body and shortcut keep channels of their own")
chapter.save(ax, "padding")

# %% [markdown]
# Is the sliced form right? The reference is a dense net of full width in which every channel that was pruned is
# multiplied by zero, on both paths. It must give the same logits.

# %%
left = prune(toy, toy_share * count_macs(toy, toy.largest))
order, small = importance_order(gammas(toy)), image[:, :, :32, :32].float()
with torch.no_grad():
    dense = toy(small, tables.masks_of(order, left.counts), statistics="batch")
    sliced = copy.deepcopy(toy)
    subnet = embed_(sliced, order, {"thin": left.counts})["thin"]
    difference = (sliced(small, subnet, statistics="batch") - dense).abs().max().item()
print(f"{left.macs:,} of {count_macs(toy, toy.largest):,} MACs, largest difference {difference:.0e}")
assert difference < 1e-4 * dense.abs().max()

# %% [markdown]
# The union of two masks is wider than either, so ZPM raises MACs: they must be counted after joining, and bisection
# does. The paper counts the union. Our slice may hold zeros that another subnet's channels left between, and
# computes on them. How much more is that?

# %%
excess = rule.assign(over=100 * (rule["executed"] / rule["target"] - 1))[rule["net"] == net]
excess.groupby("arm", sort=False)[["more", "over"]].max().round(2).rename(
    columns={"more": "executed above the paper's count, %", "over": "executed above the target, %"})

# %% [markdown]
# So "the same MACs" holds by the paper's count only; the second column is what this machine computes beyond the target,
# at worst over widths and seeds. *Uniform counts* pays for joins that its target does not know: its paths keep
# different channels. By the paper's count, too, it has at least the MACs of its target, and SP-Net at most.

# %% [markdown]
# ## Training all of it at once
#
# Every step runs the supernet on the labels, then the embedded subnets, widest first. Those learn from the supernet's
# softened predictions and a little from the labels ($\alpha = .9$),
#
# $$\ell_w = \alpha\, T^2\, \mathrm{CE}\big(\operatorname{softmax}(z_1 / T),\, z_w / T\big)
#   + (1 - \alpha)\, \mathrm{CE}(y, z_w).$$
#
# Gamma and beta are shared, statistics private. Nets with shortcuts go on from the base's weights; others do better,
# says the paper, with weights drawn anew, and then nothing of pruning survives but its counts.

# %%
source(EmbeddedSwitches)

# %%
literature = chapter.root / "data/literature/sp_net.csv"
dataset, numbers = ("CIFAR-100", [2]) if scale == "full" and images.size == 32 else ("ImageNet", [6, 3, 8])
for name, family_of in nets.items():
    shown = frame[frame["net"].eq(name) & frame["arm"].ne("Base")]
    paper = tables.paper_errors(literature, numbers, family_of.name, sorted(shown["mult"].unique()), dataset)
    title = "one change at a time" if family_of.arms else "pruned and uniform subnets at equal MACs"
    axes = figures.errors(shown, f"{family_of.name}: {title}", paper)
    chapter.save(axes, f"errors-{name.replace('_', '-')}")

# %% [markdown]
# The paper's panels are of ImageNet, but for CIFAR-100 at `full`. That of ResNet-50 mixes tables: in Tables 6
# and 8 one supernet holds four nets, in Table 3, of S-Net and individual nets, three.
#
# In the net with shortcuts each arm changes one thing of SP-Net; *Shortcut first* is pruned one-shot, as in Table 8,
# and is to be held against *One-shot* (at `small`). *L1 norms* prunes the same bases, whose penalty favours
# gammas; and raw norms grow with fan-in, so thin layers fall to their floors.

# %%
def verdict(claim):
    """Judge a claim about two arms of a net at its thinnest width, seed by seed."""
    runs = sorted({r.run_id for r in results if r.recipe.arm in claim.arms and r.recipe.net == claim.where["net"]})
    return chapter.claim(claim, *paired(frame, claim), runs)


of_nets, ablations = [], []
for claim in CLAIMS.values():
    if claim.metric == "error" and claim.where["net"] in nets:
        (of_nets if claim.id.endswith(claim.where["net"].replace("_", "-")) else ablations).append(claim)
display(*map(verdict, sorted(of_nets, key=lambda claim: list(nets).index(claim.where["net"]))))

# %% [markdown]
# The gain over S-Net is of the whole recipe; the third verdict of each net is about counts alone. Next the arms of
# Tables 6, 8 and 9 that this scale trains.

# %%
judged = [verdict(claim) for claim in ablations]
print(*judged, sep="\n")
pd.DataFrame([(v.claim.statement, v.claim.paper_value, round(v.mean, 2)) for v in judged],
             columns=["claim", "error, A - B: paper, points", "here, points"])

# %% [markdown]
# What a pruned subnet is worth against architecture search is a matter of other people's budgets. The paper's Table 4
# sets SP-Net, which searches nothing, beside what AutoSlim and others found; Table 5 sets it beside other pruning,
# Table 9 sets gammas beside L1 norms, with SP-Net and without. These figures are data here, with sources; none of
# them is ours.

# %%
rows = pd.read_csv(literature).query("table == 4 and method in ['AutoSlim', 'SP-Net']")
display(rows.sort_values(["net", "macs_m"])[["net", "method", "macs_m", "params_m", "error", "search_hours", "source"]])
rows = pd.read_csv(literature).query("table in [5, 9] and net == 'ResNet-50'").sort_values(["table", "macs_m"])
rows[["table", "method", "macs_m", "params_m", "error", "source"]]

# %% [markdown]
# ## What sorting saves in time
#
# Without sorting, a subnet's channels lie where training left them, and every layer gathers its weights by index at
# each call; only the widest, which keeps all channels, needs no index. We time that, the sorted form, and S-Net's
# uniform subnet of the same MACs by the paper's count, in turn, round after round (Tables 7 and 10, at `smoke` two
# widths of Table 7; the logits of sorted and unsorted agree). Random gammas will do: latency does not ask what a
# channel has learned, only how many each layer keeps, which we draw at random here.

# %%
timed = sorting_latencies(chapter.scale, latency_rounds, store, chapter.device)
times = pd.DataFrame(timed["rows"])
print(", ".join(f"{key} {value}" for key, value in timed["about"].items()))
print(f"sorted and unsorted logits differ by {timed['difference']:.0e} of the largest")
theirs = pd.read_csv(literature).query("table in [7, 10]").rename(columns={"mult": "width", "latency_ms": "ms"})
theirs["way"] = theirs["method"].replace({"SP-Net": "SP-Net, sorted", "SP-Net, not sorted": "SP-Net, unsorted"})
by_way = times.pivot_table(index=["net", "width"], columns="way", values="ms")
slower = (by_way["SP-Net, unsorted"] / by_way["SP-Net, sorted"]).max()
title = f"Unsorted, a pruned subnet takes up to {slower:.1f} times as long"
axes = figures.latency_pairs(times, title, theirs[["net", "width", "way", "ms"]])
chapter.save(axes, "latency")

# %%
ms = times.pivot_table(index=["net", "width", "repeat"], columns="way", values="ms")
ratio = ms.div(ms["S-Net"], axis=0)
ours, gathered = (ratio.loc["ResNet-50", 0.25][way] for way in ("SP-Net, sorted", "SP-Net, unsorted"))
of_ten = ratio.drop(index="ResNet-50", level="net")["SP-Net, sorted"].groupby("repeat").mean()
display(chapter.claim(CLAIMS["sorted-faster-than-unsorted"], ours, gathered, [timed["run_id"]]),
        chapter.claim(CLAIMS["sorted-near-s-net"], ours, np.full(len(ours), 1.5), [timed["run_id"]]),
        chapter.claim(CLAIMS["sorted-as-fast-as-s-net"], of_ten, np.ones(len(of_ten)), [timed["run_id"]]))

# %% [markdown]
# The five are repeats on one machine, not seeds: they say how steady this machine is, and nothing of others.

# %% [markdown]
# ## What surprised us
#
# - Channels need not be scattered for gathering to cost time: chapter 01's *index* gathers neighbours. It is the copy
#   of every weight at every call that a slice saves.
# - A base differs from an individual net in its penalty alone: read *Base* against *Individual* in the first table. The
#   authors' code also begins its gammas at .5. In a training as short as `smoke` that alone costs several points,
#   so at `smoke` and `small` all arms begin at 1; only `full` keeps the .5.
# - A penalty's strength means nothing without the learning rates and the length of training. In the paper's own
#   half-precision code the printed $\lambda$ is as good as zero: its results come almost without the penalty.
# - SP-Net's fine-tuned nets have been trained longer than those they are compared with: 120 epochs as a base and 60
#   more jointly, in the paper's Table 2. The arm *Drawn anew* (at `full`) has no such lead.
# - The paper reports the best test error over all epochs, which picks an epoch by the test images. We report the last.
# - The same model has different numbers in the paper's Tables 3, 5 and 6, and Table 9 compares nets of 2.0 and 2.3 G
#   MACs. Our arms share their targets. Each changes one thing of SP-Net, or of One-shot; only *Drawn anew* also trains
#   longer, as long as the bases.
#
# ## Summary
#
# - Pruning chooses how many channels each layer keeps; sorting makes any such choice a slice, and changes no output.
# - Where paths join, each may keep its own channels if zeros fill the gaps; MACs are counted after that.
# - Bases give counts only. Each is pruned once, by one step, and all can train at the same time.
#
# ## Exercises
#
# 1. *Recall.* Which layers does sorting one unit of MobileNetV1 touch, and on which side?
# 2. *By hand.* A body keeps channels {0, 2, 5}, its shortcut {2, 3}. How many channels does the next layer read with
#    zero padding match, and how many when the shortcut comes first?
# 3. *Code.* Give all channels of a net the same gamma and prune it. What decides the counts?
# 4. *Code.* A penalty of 1e-4 acts for 1,000 steps at learning rate .1 with momentum .9. How far does a gamma move that
#    the loss leaves alone?
# 5. *Ablation.* `prune` takes any score. Score channels at random and count MACs: what is lost, and what is not?
# 6. *Open.* Counts of two bases need not be nested. Would training profit if they were?
#
# The cells below hold the checkable answers.

# %% tags=["hide-cell"]
small_net = MobileNetV1(10, 32, layout=((8, 2), (16, 1)))
unit = small_net.channel_units()[0]
print("1. filters of", *unit.producers, "and gamma, beta, mean, variance of", *unit.norms, "by output;",
      *unit.consumers, "by input")

# %% tags=["hide-cell"]
print("2.", len({0, 2, 5} | {2, 3}), "with zeros; the shortcut's", len({2, 3}), "otherwise")

# %% tags=["hide-cell"]
untrained = MobileNetV1(10, 32, layout=((20, 2), (40, 1)))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    flat = prune(untrained, 0.5 * count_macs(untrained, untrained.largest))
print("3. the floors, a tenth of each unit:", flat.counts)
print(told[0].message)

# %% tags=["hide-cell"]
velocity = position = 0.0
for _ in range(1000):
    velocity = 0.9 * velocity + 1e-4
    position += 0.1 * velocity
print(f"4. {position:.4f} in 1,000 steps; the formula gives {1e-4 * 1000 * 0.1 / (1 - 0.9):.4f}")

# %% tags=["hide-cell"]
rng = np.random.default_rng(chapter.seed)
noise = prune(toy, left.target, score=lambda net: [rng.random(most) for most in net.largest.widths])
print(f"5. MACs still meet the target: {noise.macs:,} of {left.target:,.0f}; what is kept means nothing")

# %% [markdown]
# ## References
#
# - H. Kuratsu, A. Nakamura. *Slimmable Pruned Neural Networks*: sections 3.2 to 3.5, A.3, A.4; Tables 2 to 10.
# - Z. Liu et al. *Learning Efficient Convolutional Networks through Network Slimming*. ICCV 2017: eq. 1, the penalty.
# - H. Li et al. *Pruning Filters for Efficient ConvNets*. ICLR 2017: L1 norms, the shortcut's mask first.
# - J. Yu et al. *Slimmable Neural Networks*. ICLR 2019: what SP-Net is compared with; chapter 01.
# - Library: `slimnb/papers/sp_net/pruning.py`, `slimnb/nets/sorting.py`, `slimnb/nn/zero_padding.py`, `slimnb/papers/sp_net/method.py`,
#   `slimnb/papers/sp_net/recipes.py`; their tests are `tests/test_pruning.py`, `tests/test_sorting.py`,
#   `tests/test_zero_padding.py`, `tests/test_sp_net.py`, `tests/test_studies.py`.

# %%
chapter.end()
