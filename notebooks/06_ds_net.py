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
# # DS-Net: dynamic slimmable networks
#
# > Which width does this image need?
#
# | | |
# |---|---|
# | Paper | Li et al., *Dynamic Slimmable Network*, CVPR 2021 |
# | Regenerated | Figures 1 (without US-Net's curve), 2, 5, 6 and 7; Tables 1 and 3 to 10 in shape, at the scale that runs; Table 2's own rows as data |
# | Not reproduced | the accuracies: ImageNet, CIFAR-10 at 224 pixels and PASCAL VOC are scale `full`, not run here; DS-EffNet's training (Table 8; its paths are counted); gates on detection; GPU latencies; Figures 3 and 4 are diagrams |
# | Cost | `smoke`: about a minute on two CPU cores. `small`: about an hour and a half of training per seed on one CPU core. `full`: not run |
#
# So far a subnet was chosen for a device. DS-Net chooses one for every image: a small gate looks at early features and
# says how wide the rest of the net is to be. Easy images should cost little, hard ones may cost much.

# %% tags=["parameters"]
scale = "smoke"  # "smoke" | "small" | "full": data and recipes, see slimnb/papers/ds_net/recipes.py
seed = 0  # first seed
seeds = 1  # number of seeds; the paper reports one run each
device = "auto"  # "auto" | "cpu" | "cuda"
data = "auto"  # synthetic at smoke, CIFAR-100 above; or a data set's name or folder
out = ""  # folder for figures; "" is build/ at smoke and figures/ above
schemes = 20  # dynamic schemes of the simulation; the paper's Fig. 2 has 20
largest_batch = 256  # images of the largest timed batch
throughput_rounds = 5  # timings of each way to run a batch; medians are reported
latency_rounds = 15  # timed rounds of Table 1; as in chapter 01, whose measurement is shared

# %%
import numpy as np
import pandas as pd
import torch

from slimnb import CostTable, DynamicNet, SlimnbError, load_data
from slimnb.book.chapter import Chapter, source
from slimnb.book.claims import overview, paired
from slimnb.book.parameters import Int
from slimnb.book.registered import claims_of
from slimnb.data.datasets import load_or_absent
from slimnb.nn.gate import Gate, Gated
from slimnb.papers.ds_net import figures as ds_net_figures
from slimnb.papers.ds_net import method, tables
from slimnb.papers.ds_net import recipes as ds_net
from slimnb.papers.ds_net.detection import detector, recipes
from slimnb.papers.ds_net.dynamic import path_macs
from slimnb.papers.ds_net.nets import DSMobileNet, DSResNet50
from slimnb.papers.slimmable import figures as slimmable_figures
from slimnb.papers.slimmable.latency import latencies
from slimnb.runs.store import RunStore
from slimnb.train.experiment import run, study

chapter = Chapter.begin("06_ds_net", globals(), schemes=Int(2), largest_batch=Int(), throughput_rounds=Int(),
                        latency_rounds=Int(1, 1000))
CLAIMS = claims_of("ds_net")

# %% [markdown]
# ## Why one width for all is a waste
#
# The paper's motivation is a simulation (Figure 2): accuracy rises exponentially with cost, faster on easy images than
# on hard ones, and half of the images are easy. A dynamic net may split its cost unevenly. The paper does not print its
# exponentials; ours are in the docstring of `routing.simulated`.

# %%
simulated = tables.simulated(schemes)
static = simulated[simulated["kind"] == "static"].set_index("macs")["top1"]
best = simulated[simulated["kind"] == "dynamic"].groupby("macs")["top1"].max()
title = f"At a quarter of the cost the best dynamic scheme gains {np.interp(0.25, best.index, best - static):.1f} points"
chapter.save(ds_net_figures.simulation(simulated, title), "simulation")
print(f"largest gain: {(best - static).max():.1f} points, at {(best - static).idxmax():.2f} of the cost")
chapter.claim(CLAIMS["ds-simulation"], np.maximum(static - best, 0), 0)

# %% [markdown]
# The gain is largest in the middle: with little cost hard images are lost either way, with much of it easy ones want no
# more. It assumes that somebody knows which images are easy, and that switching width is free. Gates are to provide the
# first, slicing the second.
#
# ## Five ways to run a quarter of the channels
#
# Table 1 times a ResNet-50 at a quarter of its channels. Multiplying by zero saves nothing; gathering channels by index
# costs, on the paper's GPU more than it saves; slices save. Chapter 01 measured it: the same run is shown.

# %%
store = RunStore(chapter.root / "data/runs", chapter.root / "data/results")
literature = pd.read_csv(chapter.root / "data/literature/ds_net.csv", dtype={"table": str})
names = {"full": "full", "masking": "mask", "indexing": "index", "slicing": "slice", "ideal": "ideal"}
printed = literature[literature["table"] == "1"].set_index("method")["latency_ms"].rename(names)
timed = latencies(chapter.scale, 0.25, latency_rounds, store, chapter.device)
modes = pd.DataFrame(timed["modes"]).groupby("mode", sort=False)["ms"].median()
table_1 = pd.DataFrame({"here, ms": modes, "here, full = 1": modes / modes["full"],
                        "paper, ms": printed, "paper, full = 1": printed / printed["full"]})
about = timed["about"]
print(f"{about['device']}, {about['threads']} thread, batch {about['batch']}; largest difference {timed['difference']:.1e}")
table_1.loc[["full", "mask", "index", "slice", "ideal"]].round(2)

# %% [markdown]
# ## The idea on three channels
#
# A gate chooses among one, two and three channels. While it is trained all three are computed, and each image's
# choice becomes a mask: the cumulative form of its one-hot vector. The mask is one-hot forward and soft backward.

# %%
widths = torch.tensor([1, 2, 3])
masks = (torch.arange(3) < widths[:, None]).float()  # row k: the channels of choice k
scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 2.0]], requires_grad=True)  # two images
soft = scores.softmax(1)
hard = torch.nn.functional.one_hot(soft.argmax(1), 3)
chosen = hard + (soft - soft.detach())
mask = chosen @ masks
mask[:, 2].sum().backward()  # "more of channel 3, please"
print("masks:", mask.detach().tolist())
print("gradient of the scores:", *scores.grad.numpy().round(3))

# %% [markdown]
# In use nobody will run channel 3 of the first image. In training it is computed and multiplied by zero, so that its gate
# learns from what it would have changed.
#
# ## The mathematics
#
# **Stage I** trains the supernet without gates. Its target net is a moving average of itself,
#
# $$\theta'_t = \alpha \theta'_{t-1} + (1 - \alpha)\,\theta_t, \tag{3}$$
#
# over parameters and batch-norm statistics, $\alpha = 0.997$ in the released code. In each step the widest subnet $L$ learns the labels, $n$
# random ones $R$ what the target's widest makes of the images, and the slimmest $S$ an ensemble of the target's
# $L$ and the very $R$ of this step:
#
# $$\widehat{\mathcal Y}'_{L,R} = \tfrac{1}{n+1}\Big(\mathcal Y'_L + \sum_i \mathcal Y'_{R_i}\Big), \tag{4}$$
#
# $$\mathcal L_L = CE(\mathcal Y_L, Y), \quad \mathcal L_R = CE(\mathcal Y_R, \mathcal Y'_L), \quad
# \mathcal L_S = CE(\mathcal Y_S, \widehat{\mathcal Y}'_{L,R}). \tag{5}$$
#
# The released code has the ensemble switched off, and when on it draws other subnets than the student's.
#
# **The gate** has two heads on one reduction of the pooled features, $h = \sigma(W_1[:, :\rho C]\,\mathcal E(\mathcal
# X))$: a choice among $g$ widths and an attention over channels,
#
# $$\mathcal F = \operatorname{argmax}(W_2 h), \qquad \hat{\mathcal X} = \mathcal X * \big(1 + \tanh(W_3[:\rho C]\,
# h)\big). \tag{8, 9}$$
#
# (Eq. 9 prints $W_3[:, :\rho C]$, columns; the output channels are rows.) $W_3$ starts at zero: attention begins as the
# identity.

# %% [markdown]
# **Stage II** freezes all but $W_2$ and minimises
#
# $$\mathcal L = \lambda_1 \mathcal L_{cls} + \lambda_2 \Big(\frac{\text{MAdds}(\mathcal X)}{T}\Big)^2 + \lambda_3
# \mathcal L_{SGS}, \qquad \lambda = (1, \tfrac12, 1). \tag{11, 12}$$
#
# The first two terms reach $W_2$ through Gumbel-softmax. The second is per image, not of a batch's mean; $T$ is the cost
# of the widest path (the paper: of the supernet, which in the released code is wider than any path). The third is
# *sandwich gate sparsification*: an image that the slimmest path classifies rightly is easy, its label for every gate is
# the narrowest width, and any other's the widest:
#
# $$\mathcal L_{SGS} = \mathbb T_{slim}\, CE(\mathcal X, \mathcal T_{easy}) + \neg \mathbb T_{slim}\, CE(\mathcal X,
# \mathcal T_{hard}). \tag{10}$$
#
# That is *Try Best*. *Give Up* also sends to the narrowest what even the widest gets wrong. The released code takes the
# cross-entropy of a softmax of noisy scores, a second softmax; we take the scores. It also draws Gumbel noise at test
# time, so that its routing is random: ours is an argmax, ties to the narrowest. Other differences of that code: attention
# is a plain sigmoid, $T$ is $10^9$ and the batch's mean is squared, labels are smoothed.
#
# ## The smallest code

# %%
source(method.EnsembleBootstrapping.begin, Gate.forward, method.SandwichGateSparsification.targets)

# %% [markdown]
# `s` is the selection that travels through the net: the gate writes masks into it, and from there on every layer is as
# wide as its image needs. For inference the same decisions are run sliced. Rows are grouped by path, each group runs on
# its own channels, and the results are put back in order. A group costs as much as some images beside its own (four on
# the full DS-MBNet, at 32 pixels on this CPU), since its weights are read and its layers called; small groups are
# therefore run as one where that is cheaper, at the width of the widest of them, each row with the norm of its own path,
# zero beyond that path's width:

# %%
source(DynamicNet.route)

# %% [markdown]
# We hold the three ways to run a routed batch against each other, on a small net with a gate of random weights.

# %%
recipe = ds_net.supernets(ds_net.LAPTOP["smoke"][0], 0)[0]
net = recipe.build(10)
torch.nn.init.normal_(net.gates[0].slim_weight, generator=torch.Generator().manual_seed(chapter.seed))
x = 2 * torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * torch.rand(32, 1, 1, 1)
method.calibrate_bn(net, net.paths, [x])
with torch.no_grad():
    masked, decisions = net.eval()(x, Gated())
    grouped, choices = DynamicNet(net).route(x)
    alone = torch.cat([net(x[i:i + 1], net.path(*k)) for i, k in enumerate(choices.tolist())])
print("images per path:", torch.bincount(choices[:, 0], minlength=net.choices[0]).tolist())
for name, other in (("masked", masked), ("one by one", alone)):
    print(f"grouped and {name}: logits differ by {(grouped - other).abs().max():.0e}")
    assert torch.allclose(grouped, other, atol=1e-5)

# %% [markdown]
# ## The nets
#
# DS-MBNet's first five blocks have a fixed width each, its gate rules the other eight. The code has 14 paths, and their MACs can
# be checked to the last digit that is printed; the paper speaks of 18, which is its grid $[0.35 : 0.05 : 1.25]$ read as
# half-open. DS-ResNet-50 has a gate in each of its four stages, DS-EffNet-B0 one gate and 20 paths.

# %%
with torch.device("meta"):
    full = [family.supernet.build(1000) for family in ds_net.IMAGENET]
    nets = dict(zip(("DS-MBNet, released", "DS-ResNet-50", "DS-EffNet-B0"), full, strict=True))
    nets["DS-MBNet, printed"] = DSMobileNet(variant="printed")
for name, each in nets.items():
    macs = path_macs(each) / 1e6
    print(f"{name}: {macs.size} paths, {macs.min():,.1f} to {macs.max():,.1f} M MACs; gates: {len(each.gates)}")
readme = literature[literature["table"] == "readme"]
released = nets["DS-MBNet, released"]
table = CostTable.macs(released, released.path_space, "D")
chapter.claim(CLAIMS["ds-macs"], table.predict(np.array([path.widths for path in released.paths])) / 1e6, readme["macs_m"])

# %% [markdown]
# Attention and its pools are counted (convention D of chapter 00); they are about one percent. What the gate itself
# adds, 66 hidden features times 14 choices, is less than a hundred-thousandth.
#
# **A cell that gives pause.** Table 2's dynamic DS-MBNet-S, M and L are said to have 153, 319 and 565 M MACs on average.
# Those are, to the million, the *static* paths 1, 7 and 13:

# %%
own = literature[(literature["table"] == "2") & (literature["method"] == "DS-Net") & (literature["net"] == "MobileNetV1")]
nearest = [readme["macs_m"].iloc[(readme["macs_m"] - macs).abs().argmin()] for macs in own["macs_m"]]
print(chapter.claim(CLAIMS["ds-averages-are-paths"], own["macs_m"], nearest))
static_ones = readme[readme["top1"].notna()].assign(macs_m=lambda rows: rows["macs_m"].round())
static_ones[["variant", "macs_m", "top1"]].rename(columns={"variant": "path", "top1": "static, %"}).merge(
    own[["variant", "macs_m", "top1"]].rename(columns={"variant": "DS-MBNet-", "top1": "dynamic, %"}), how="left")

# %% [markdown]
# The released README reports these static paths at 70.4, 72.7 and 74.6 %; the paper's dynamic nets have 70.1, 72.8 and
# 74.5 %. For DS-MBNet the released checkpoint thus does not support that gates gain anything (Table 9 says +0.8).
#
# What cannot be meant is refused in one line:

# %%
wrong = [lambda: DSMobileNet(10, 32, grid=((48, 16, 6), (96, 32, 1))), lambda: net.path(9), lambda: Gated(lowest=0),
         lambda: net(x, Gated(lowest=5)), lambda: DSResNet50(10, 32, bn="shared_affine"),
         lambda: DSResNet50(10, 32, layout=((16, 1),)), lambda: Gated(temperature=0.0),
         lambda: recipe.build(10).eval()(x, Gated()), lambda: method.Ema(net, decay=1.0),
         lambda: method.SandwichGateSparsification(net, strategy="try harder")]
for attempt in wrong:
    try:
        attempt()
    except SlimnbError as error:
        print(error)

# %% [markdown]
# ## Claims, and the runs
#
# Written down before the runs. A gate's *gain* is its accuracy less that of the static paths at its mean MACs.

# %%
overview(CLAIMS.values())

# %%
def load(name, like=None, **options):
    """A data set; of generated images as many as the scale has."""
    options |= ds_net.IMAGES[chapter.scale]
    return (load_data(name, device=chapter.device, **options) if name == "synthetic" else
            load_or_absent(name, chapter.data_root, chapter.device, chapter.root / "data/cache", like))


images = load(chapter.data_name)
results = study(ds_net.STAGES, chapter.scale, chapter.all_seeds, images, store, device=chapter.device, quiet=True)
stale, unlike = (sum(getattr(r, name) for r in results) for name in ("stale_code", "stale_measure"))
print(f"{len(results)} runs, {sum(r.seconds for r in results) / 60:.1f} minutes of training",
      f"({stale} trained, {unlike} measured by an earlier version of the code)" * (stale + unlike > 0))
print(*tables.collapses(results) or ["no gate has collapsed"], sep="\n")
frame = tables.accuracies(results)
mbnet, resnet = (frame[frame["net"] == net] for net in ("ds_mbnet", "ds_resnet"))


def ids(*arms, among=None):
    """Run ids of these arms."""
    rows = frame if among is None else among
    return rows.loc[rows["arm"].isin(arms), "run_id"].unique()

# %% [markdown]
# The lines say where a gate sends nearly all images one way. Complexity alone *should*: nothing in it depends on the
# image. Elsewhere it is a failure, which the paper calls collapse and SGS is to prevent. On CIFAR-100 at `small` (seed
# 0) it does not: DS-MBNet's slimmest path is right on 26 % of the test images, three labels in four say *widest*, and
# so do the gates. (On ImageNet the paper's slimmest is right on two of three.)
#
# ## Stage I: Table 5 and Figure 6
#
# Three ways to teach the paths of one DS-MBNet: by its own widest path, by that of the average, by the average's
# ensemble.

# %%
SCHEMES = ["In-place distillation", "EMA target", "IEB"]
looks = pd.DataFrame([{"arm": r.recipe.arm, "seed": r.recipe.seed, **row} for r in results
                      for row in r.findings.get("probed", ()) if r.recipe.arm in SCHEMES])
steps = max(row["step"] for r in results if r.recipe.arm == "IEB" and r.recipe.net == "ds_mbnet" for row in r.history)
epochs = ds_net.families(chapter.scale, images)[0].supernet.epochs
looks["epoch"] = looks["step"] / steps * epochs
last = looks[looks["step"] == looks["step"].max()].groupby("arm")["top1"].mean()
title = "At the last look the slimmest path has {:.1f} % (in-place), {:.1f} % (EMA), {:.1f} % (IEB)".format(*last[SCHEMES])
falls = looks.sort_values("step").groupby(["arm", "seed"])["top1"].diff().clip(upper=0).abs().groupby(looks["arm"]).max()
print("largest fall between two looks:", ", ".join(f"{arm} {falls[arm]:.1f}" for arm in SCHEMES), "points")
chapter.save(ds_net_figures.slimmest_over_training(looks[["arm", "epoch", "top1", "seed"]], title), "slimmest")

# %%
def ends(rows):
    """Accuracy of each arm's slimmest and widest path: arm, seed, slimmest, widest."""
    paths = rows[~rows["name"].isin(["largest", "routed"])].sort_values("macs")
    by_run = paths.groupby(["arm", "seed"], sort=False)["top1"]
    return pd.DataFrame({"slimmest": by_run.first(), "widest": by_run.last()}).reset_index()


trained = mbnet[mbnet["arm"].isin([*SCHEMES, "Temperature 4"])]
title = "Accuracy of the paths of one DS-MBNet, trained in three ways"
chapter.save(slimmable_figures.accuracy(trained[trained["arm"].isin(SCHEMES) & (trained["name"] != "largest")], title), "schemes")
both_ends = ends(trained)
print(*[chapter.claim(claim, *paired(both_ends, claim), ids(*claim.arms, among=mbnet))
        for claim in CLAIMS.values() if claim.metric in both_ends], sep="\n")
in_paper = literature[literature["table"].isin(["5", "10"])][["table", "method", "temperature", "slimmest", "widest"]]
both_ends.groupby("arm", sort=False)[["slimmest", "widest"]].mean().round(1)

# %% [markdown]
# The average needs time: at first it is the untrained net, and who learns from it learns nothing. At `small` (seed 0)
# the slimmest path stays at chance for the first of four epochs, where in-place distillation has begun, and then
# overtakes it: a teacher that does not fluctuate is worth 1.4 points at the slimmest path and 2.5 at the widest
# (the paper: 1.6 and .3). The ensemble adds half a point at the widest and costs .3 at the slimmest: one seed cannot tell that
# from chance. (`alpha`, `ema` in the recipes, is smaller here than the code's, whose average would span a quarter of a
# run.) The paper sees sudden falls in Figure 6 that the ensemble removes: the line above has the largest between two
# looks, and there are none here. Its numbers follow; those of temperature are of "in-place distillation", it says, in a
# section on IEB, so that which of the two was trained is open:

# %%
in_paper.set_index("table").astype(object).fillna("")

# %% [markdown]
# ## Stage II: dynamic against static, Figures 1 and 5, Table 9
#
# Gates on the IEB supernet, all else frozen. DS-MBNet-S, M and L differ in how many of the narrowest widths are open. The
# line is what the supernet's own static paths do.

# %%
supernet = tables.one(results, "ds_mbnet", "IEB", chapter.seed)
spaces = [name for name, _ in ds_net.families(chapter.scale, images)[0].spaces]
gated = mbnet[mbnet["arm"].isin(spaces)].rename(columns={"arm": "setting"})
gains = {arm: rows["top1"].mean() - tables.static_at(supernet, rows["macs"].mean())
         for arm, rows in gated.groupby("setting", sort=False)}
title = "Gated less static, at equal MACs: " + ", ".join(f"{arm[-1]} {gain:+.1f}" for arm, gain in gains.items())
title = title.replace("-0.0", "+0.0").replace("-", "−") + " points"
chapter.save(ds_net_figures.loss_ablation(gated[["setting", "macs", "top1", "seed"]], title, tables.static_paths(supernet)),
             "dynamic")

# %% tags=["hide-cell"]
printed_rows = literature[literature["table"].isin(["2", "9"])].sort_values(["table", "net", "macs_m"])
printed_rows.set_index(["table", "net", "method", "variant"])[["macs_m", "top1", "latency_ms"]]

# %% [markdown]
# The cell above holds the paper's Table 2, with the rivals it cites, and Table 9. That one compares at unequal MACs
# (DS-MBNet-S at 153 M with a static net of 140 M, which none of the released paths costs); we compare at equal ones. Is
# a gain the gate's merit? For one gate it can be told exactly. A *blind router* sends the same shares of images down the
# same paths, whatever they show; the *SGS labels* are what the gate is taught, read off the test labels; and an *oracle* takes the cheapest path that is right.

# %%
by_router = {arm: [tables.routers(tables.one(results, "ds_mbnet", arm, s), tables.one(results, "ds_mbnet", "IEB", s))
                   for s in chapter.all_seeds] for arm in spaces}
for claim, arm in ((CLAIMS["gate-gain-mbnet"], spaces[0]), (CLAIMS["gate-beats-blind"], spaces[-1])):
    rows = pd.concat([each.reset_index().rename(columns={"router": "arm"}).assign(seed=s)
                      for s, each in zip(chapter.all_seeds, by_router[arm], strict=True)])
    print(chapter.claim(claim, *paired(rows, claim), ids(arm, "IEB", among=mbnet)))
table = pd.concat({arm: sum(each) / len(each) for arm, each in by_router.items()})
table.assign(macs=table["macs"] / 1e6).rename(columns={"macs": "M MACs", "top1": "top-1, %"}).round(2)

# %% [markdown]
# Between the oracle and the gate lies what gates could gain; between the gate and the blind router what this one knows.
# SGS's own labels show how good Try Best can be: they pay for the widest path even where it is wrong. At `small` (seed
# 0) the gate of DS-MBNet-L has collapsed: it knows nothing, gains nothing and loses nothing. That of S is .2 points ahead
# of its blind router. The oracle is 4 to 8 points ahead of them all.
#
# ## Which losses: Table 6 and Figure 7 left
#
# On DS-ResNet, whose stages have a gate each. The paper's DS-ResNet-L, M and S are rows of its Table 6 (SGS alone, all
# three, complexity and SGS), though its appendix A says that targets are reached by adjusting the routing space. Here
# DS-Net-L is all three losses with every width open.

# %%
everything = {"DS-Net-L": "All three", "SGS, try best": "SGS, try best", "SGS, give up": "SGS, give up", "Target": "Target",
              "Complexity": "Complexity", "Target + complexity": "Target + compl.", "Complexity + SGS": "Compl. + SGS",
              "Scalar head": "Scalar head", "Unshared reduction": "Unshared"}
of_resnet = resnet[resnet["arm"].isin(everything)]
uniform = tables.static_paths(tables.one(results, "ds_resnet", "IEB", chapter.seed))
named = of_resnet.assign(setting=of_resnet["arm"].map(everything))
spread = of_resnet.groupby("arm")["macs"].mean() / 1e6
title = f"Losses move the gates from {spread.min():.2g} to {spread.max():.2g} M MACs"
chapter.save(ds_net_figures.loss_ablation(named[["setting", "macs", "top1", "seed"]], title, uniform), "losses")

# %%
in_millions = of_resnet.assign(macs=of_resnet["macs"] / 1e6)
print(*[chapter.claim(claim, *paired(in_millions, claim), ids(*claim.arms, among=resnet))
        for claim in CLAIMS.values() if set(claim.arms) <= set(everything)], sep="\n")
of_resnet = of_resnet.assign(static=[tables.static_at(tables.one(results, "ds_resnet", "IEB", row.seed), row.macs)
                                     for row in of_resnet.itertuples()])
gate = of_resnet[of_resnet["arm"] == "DS-Net-L"]
rows = pd.concat([gate.assign(arm="Gate"), gate.assign(arm="Static", top1=gate["static"])])
claim = CLAIMS["gate-gain-resnet"]
print(chapter.claim(claim, *paired(rows, claim), ids("DS-Net-L", "IEB", among=resnet)))
ours = in_millions.assign(static=of_resnet["static"]).groupby("arm", sort=False)[["macs", "top1", "static"]].mean().round(2)
paper = literature[literature["table"].isin(["6", "7"])][["table", "method", "variant", "macs_m", "top1"]]
print(paper.fillna("").to_string(index=False))
ours

# %% [markdown]
# The line joins the four paths of one width throughout; gates may mix widths, 256 paths in all. At `small` (seed 0) the
# order of MACs is the paper's, target above all three above complexity. Every setting lies within .2 points of the static
# line, so that what the claims above observe in accuracy is bought with MACs: giving up collapses to the narrowest width,
# trying does not. Of the designs of Table 7, a reduction of its own costs nothing here (in the paper 3.9 points). This
# ResNet of 3 M MACs is weak (19 %). In the paper's rows, which losses the first, second and sixth had is inferred.
#
# "SGS improves the final performance by 2 %", the paper says; no two rows of its Table 6 at equal MACs differ by that.
#
# ## How dynamic is it? Figure 7 right
#
# In the paper about half of all images take the narrowest width in the first two stages and about half the widest in the
# last two.

# %%
routed = tables.one(results, "ds_resnet", "DS-Net-L", chapter.seed)
of_gate = tables.shares(routed)
ratios = DSResNet50(2, 32, layout=((16, 1),), channels_per_group=4).ratios
of_gate["choice"] = [f"{ratios[k]:g}x" for k in of_gate["choice"]]
count = len(tables.chosen(routed))
easy = tables.easy_images(tables.one(results, "ds_resnet", "IEB", chapter.seed), count)
found = tables.diversity(routed, easy)
title = f"{found['paths']} of {np.size(routed.findings['path_macs'])} paths are taken; {found['gate_bits']:.2f} bits a gate"
chapter.save(ds_net_figures.gate_distribution(of_gate, title), "gates")
print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
pd.DataFrame({r.recipe.arm: tables.diversity(r, easy) for r in results if r.recipe.net == "ds_resnet"
              and "choices" in r.findings and r.recipe.seed == chapter.seed}).T.round(3)

# %% [markdown]
# `gate_bits` is the mean entropy of a gate, at most 2 bits; `information` is what an image's path says about whether it
# is easy, at most `easy_bits`. A gate can have high entropy and know nothing: the last column but one tells.
#
# ## Where the truth is known
#
# Nobody can say how hard a photograph is. Of our generated images we can: each was drawn with a difficulty. Does
# the gate, which was taught by the slimmest path's mistakes and never saw that number, follow it?

# %%
generated = images if chapter.data_name == "synthetic" and chapter.scale == "smoke" else load("synthetic")
known = results if generated is images else study(ds_net.KNOWN_STAGES, chapter.scale, chapter.all_seeds, generated, store,
                                                  device=chapter.device, quiet=True)
judge, base = (tables.one(known, "ds_mbnet", arm, chapter.seed) for arm in ("DS-Net-L", "IEB"))
choices = tables.chosen(judge)[:, 0]
difficulty = generated.test.difficulty.cpu().numpy()
follows = pd.Series(choices).corr(pd.Series(difficulty), "spearman") if np.ptp(choices) else 0.0
title = f"Choices and a difficulty that the gate never saw: rank correlation {follows:.2f}"
chapter.save(ds_net_figures.routing_by_difficulty(tables.by_difficulty(choices, difficulty), title), "difficulty")
told = tables.agreement(judge, base)
print(f"choice and SGS label agree on {told['agree']:.0%} of test images; mean choice of easy ones {told['easy']:.2f}, "
      f"of others {told['others']:.2f}")

# %%
against = [tables.routers(tables.one(known, "ds_mbnet", "DS-Net-L", s), tables.one(known, "ds_mbnet", "IEB", s))
           for s in chapter.all_seeds]
rows = pd.concat([each.reset_index().rename(columns={"router": "arm"}).assign(seed=s)
                  for s, each in zip(chapter.all_seeds, against, strict=True)])
claim = CLAIMS["gate-gain-known"]
print(chapter.claim(claim, *paired(rows, claim), [judge.run_id, base.run_id]))
print(*tables.collapses(known), sep="\n")
table = sum(against) / len(against)
table.assign(macs=table["macs"] / 1e6).rename(columns={"macs": "M MACs", "top1": "top-1, %"}).round(2)

# %%
tried = tables.accuracies(known).query("net == 'ds_mbnet' and arm in @everything")
tried = tried.assign(setting=tried["arm"].map(everything))
labels = tried[tried["arm"] == ("SGS, try best" if "SGS, try best" in set(tried["arm"]) else "DS-Net-L")]
cost, reached = labels["macs"].mean(), labels["top1"].mean()
title = f"{labels['setting'].iloc[0]}: {reached:.1f} % at {cost / 1e6:.2f} M MACs, static {tables.static_at(base, cost):.1f} %"
chapter.save(ds_net_figures.loss_ablation(tried[["setting", "macs", "top1", "seed"]], title, tables.static_paths(base)),
             "losses-known")
tried = tried.assign(static=[tables.static_at(base, macs) for macs in tried["macs"]], macs=tried["macs"] / 1e6)
tried.groupby("setting", sort=False)[["macs", "top1", "static"]].mean().round(2)

# %% [markdown]
# Knowing what is hard is not enough. Paths between the ends may buy nearly all of the accuracy for a fraction of the
# widest path's cost, and Try Best never asks for them: its labels are the narrowest and the widest width, nothing else.
# Where the static line bends early, a gate that follows its labels perfectly loses to one path in the middle. At `small`
# (seed 0) gates that learn from SGS's labels are as much as 3.6 points below the line. The one above it, by .9, is the
# scalar head, which between its two labels comes upon the paths in the middle. Target alone, which on CIFAR-100 sends
# everything to the widest width, here sends everything to the narrowest.
#
# ## Is it faster?
#
# The released code masks at full width while it learns, and its dynamic mode takes one image at a time. Ours groups
# rows by path. Below are the last gate's own decisions on generated images, at equal logits: grouped, masked, always
# the widest path, and the static path that costs at least what the gate spends.

# %%
batches = [size for size in (1, 16, 64, 256) if size <= largest_batch]
measured = tables.throughput(judge, base, generated, store, batches=batches, rounds=throughput_rounds,
                              device=chapter.device)
rows = pd.DataFrame(measured["rows"])
at = rows[rows["batch"] == batches[-1]].set_index("mode")["ratio"]
title = f"At a batch of {batches[-1]}: grouped {at['Grouped']:.2f}, masked {at['Masked']:.2f} times the widest path's speed"
chapter.save(ds_net_figures.throughput(rows[rows["mode"] != "Widest"], title), "throughput")
print(f"{measured['about']['device']}, {measured['about']['threads']} thread; logits differ by {measured['difference']:.0e};",
      f"a group costs {measured['overhead']:.0f} images",
      "(measured with an earlier version of the code)" * measured.get("stale_code", False))
rows.pivot_table("ms", "mode", "batch", sort=False).round(2)

# %% [markdown]
# Grouping wins where groups are large: many images, few paths. At `small` (this CPU) it takes .90 of the widest path's
# time for 64 images and .64 for 256, and .59 and .44 of the masks'. This net is so small that calls cost more than sums.
# *Sliced* is the same on the supernet's own weights, which are cut and reordered at every call. The static path that
# costs no less than the gate spends is the fastest at every size: against it routing must pay with accuracy.
#
# On the full DS-MBNet, with choices given, the benchmark table (`data/benchmarks-dynamic.json`) has grouping at .53 of
# the time of masks and .77 of the widest path's for 64 images on two paths, and at .79 and .95 for 64 images on 14
# paths: there groups of four or five images are merged.
#
# ## Other data: Table 3
#
# The supernet is trained further on other images. Then gates are trained on it anew, or go on from those of the old
# data.

# %%
name = ds_net.TRANSFER[chapter.scale]
other = load(name, ds_net.moved_to(chapter.scale, store), **({"seed": 1} if name == "synthetic" else {}))
moved = study(ds_net.transfer_stages(results, images.name), chapter.scale, chapter.all_seeds, other, store,
              device=chapter.device, quiet=True)
there = tables.accuracies(moved)
there = there[there["name"].isin(["routed", "widest"]) | (there["macs"] == there.groupby("run_id")["macs"].transform("max"))]
for r in moved:
    if r.recipe.arm == "IEB":
        print("static paths:", ", ".join(f"{row.top1:.1f} % at {row.macs / 1e6:.2f} M" for row in
                                         tables.static_paths(r).itertuples()))
claim = CLAIMS["gate-transfer"]
if there["arm"].eq(claim.arms[0]).any():
    print(chapter.claim(claim, *paired(there, claim), ids(*claim.arms, among=there)))
print(f"from {images.name} to {other.name}, {len(other.train):,} training images" if hasattr(other, "notes") else other)
there.assign(macs=there["macs"] / 1e6).groupby(["arm", "name"], sort=False)[["macs", "top1"]].mean().round(2)

# %% [markdown]
# At smoke *other data* are generated images of another seed: a test of the machinery, no more. The paper moves from
# ImageNet to CIFAR-10 and finds that transferred gates gain 0.4 points. At `small` (seed 0; 20,000 of CIFAR-10's 50,000
# training images, 2,000 of them for validation) they gain .2. With ten classes the slimmest path is right on 38 %, and
# here gates do route: at 60 % of the widest path's MACs, on the static line again.
#
# ## Detection: Table 4
#
# FSSD fuses three feature maps of a backbone and predicts boxes from a pyramid on top. A slimmable backbone fits at
# once: the layers that project the maps to one width read as many channels as there are. First the arithmetic, at 300
# pixels.

# %%
with torch.device("meta"):
    at_full = [(recipe, recipe.build(20)) for recipe in recipes.recipes("full")]
counted = {f"{recipe.arm}, {name}": detector.detector_macs(net, subnet) / 1e9
           for recipe, net in at_full for name, subnet in recipe.named(net).items()}
table_4 = literature[literature["table"] == "4"].set_index("method")
print(chapter.claim(CLAIMS["ds-detection-macs"], list(counted.values()), table_4["macs_m"] / 1e3))
pd.DataFrame({"traced, G": counted.values(), "printed, G": table_4["macs_m"].to_numpy() / 1e3,
              "printed mAP": table_4["map"].to_numpy()}, index=list(counted)).round(2)

# %% [markdown]
# With static paths 1, 7 and 13 DS-MBNet's three rows come out exactly, a second sign that the paper's S, M and L are
# static. MobileNetV1's does not: with the same detector it has 3.2 billion, not 4.3, and the claimed savings of 1.59
# and 1.34 times shrink to 1.2 and none. Then the training, on generated scenes (VOC at `full`), each detector on all
# its paths:

# %%
scenes = recipes.load_scenes(chapter.scale, chapter.data_root)
detectors = [run(recipe, scenes, store, device=chapter.device, quiet=True)
             for s in chapter.all_seeds for recipe in recipes.recipes(chapter.scale, s)]
boxes = pd.DataFrame([{"detector": r.recipe.arm, "path": row["name"], "M MACs": row["macs"] / 1e6, "mAP .5": row["map_50"],
                       "mAP .5, 11 points": row["map_voc"], "mAP .5 to .95": row["map"]} for r in detectors for row in r.rows])
shown = scenes.test.images[:4].cpu()
truth = [pd.DataFrame(scenes.test.boxes[i][scenes.test.labels[i] >= 0].tolist(), columns=["x0", "y0", "x1", "y1"]).assign(
    label=[scenes.class_names[k] for k in scenes.test.labels[i].tolist() if k >= 0], score=np.nan) for i in range(4)]
chapter.save(ds_net_figures.detections(shown, truth, "Generated scenes and their boxes"), "scenes")
boxes.groupby(["detector", "path"], sort=False).mean().round(1)

# %% [markdown]
# mAP is pycocotools'; the paper's is VOC's 2007 measure, 11 points of recall. Scenes hold one to three of chapter 00's
# objects. At `small` (seed 0) DS-MBNet's narrowest path detects as well as its widest at a third of the cost.
# MobileNetV1 is 18 points behind both, which is no verdict on width: it has no attention and another activation, and it
# is trained in one pass a step, where DS-MBNet's three paths add up three gradients.
#
# ## DS-EffNet: Table 8
#
# The gate of an inverted-residual net sits where squeeze-and-excitation is: the attention head *is*
# squeeze-and-excitation, and one of them chooses. We count its paths; it trains at `full` only. The paper's 270 and
# 400 M are none of them: these may be true averages.

# %%
effnet = nets["DS-EffNet-B0"]  # convention A: attention without its pools
costs = CostTable.macs(effnet, effnet.path_space).predict(np.array([path.widths for path in effnet.paths])) / 1e6
print("M MACs of the 20 paths:", *costs.round().astype(int))
literature[literature["table"] == "8"][["method", "variant", "macs_m", "top1"]]

# %% [markdown]
# ## What surprised us

# %%
print("gate less static, at equal MACs:", ", ".join(f"{arm} {gain:+.2f}" for arm, gain in gains.items()), "points")
gate, blind = (by_router[spaces[-1]][0].loc[name, "top1"] for name in ("Gate", "Blind router"))
print(f"{spaces[-1]} less a blind router: {gate - blind:+.2f} points; oracle less gate:",
      f"{by_router[spaces[-1]][0].loc['Oracle', 'top1'] - gate:+.2f}")
share = np.mean([tables.agreement(tables.one(results, "ds_mbnet", spaces[-1], s),
                                   tables.one(results, "ds_mbnet", "IEB", s))["share_easy"] for s in chapter.all_seeds])
print(f"easy test images, by the slimmest path of DS-MBNet: {share:.0%}")

# %% [markdown]
# - Try Best splits images in two, and what lies between the ends of the grid is never a label. The more accurate the
#   middle of the static line, the less there is to win.
# - SGS's labels are as unbalanced as the slimmest path is right or wrong. Where it is mostly wrong (CIFAR-100) gates tend
#   to send everything to the widest path, where it is mostly right (generated images) most to the narrowest.
# - Temperature 4 hurts both ends at `small` (seed 0), the slimmest by 2.7 points and, against the paper, the widest by
#   2.9.
# - Table 4's and Table 2's MACs of "dynamic" nets are those of static paths, to the digit.
# - Left open by the paper: DS-ResNet's stem, its groups, where attention acts in a block, hidden widths; the grids'
#   ends.
# - **Not the paper's here**: nets, images and epochs are small; gates learn at a rate of 1 (generated images: 4) in two
#   to four epochs, where the paper takes .05 over ten epochs of ImageNet; a gate has at least 32 hidden features.
#
# ## Summary
#
# - A gate turns a slimmable net into one that picks a width for every image; in training masks, in use slices.
# - Stage I learns from an average of itself: slower to start than from its widest path, and better in the end.
# - Whether gates beat the best static path depends on that path: measure it, and a blind router, before believing a
#   gain.
#
# ## Exercises
#
# 1. *Recall.* Why must statistics before the gate be the same for every path?
# 2. *By hand.* A gate sends 60 % of images down a path of 100 M MACs and the rest down one of 500 M. What is the
#    complexity loss, per image and of the mean?
# 3. *By hand.* What does an ensemble of $n = 2$ weigh the target's widest path with?
# 4. *Code.* How many groups can DS-ResNet-50 run at most in the first block of its last stage, and in the block after?
# 5. *Ablation.* Train gates with `losses=(0, 0, 1)` and labels from a middle path. What changes?
# 6. *Open.* How would you teach a gate to use the middle of the grid?
#
# The cells below hold checkable answers.

# %% tags=["hide-cell"]
print("1. The gate has not decided yet when those layers run, so no path's own statistics can be chosen.")
per_image, of_mean = 0.6 * (100 / 500) ** 2 + 0.4, ((0.6 * 100 + 0.4 * 500) / 500) ** 2
print(f"2. {per_image:.3f} per image, {of_mean:.3f} of the mean: squaring first punishes the spread")
print("3. a third")

# %% tags=["hide-cell"]
print("4. 4 x 4 = 16: they differ in this stage's choice and in the input's width; then 4, for groups are joined again")
print("5. replace(recipe, ...) has no field for it: SandwichGateSparsification.targets is where to start")
print("6. E.g. the cheapest right path as label: the oracle's choice, known for every training image with one gate.")
assert np.isclose(per_image, 0.424)

# %% [markdown]
# ## References
#
# - C. Li, G. Wang, B. Wang, X. Liang, Z. Li, X. Chang. *Dynamic Slimmable Network*. CVPR 2021. Sections 3.1 (supernet),
#   3.2 (gate), 4 and appendices A to C.
# - J. Yu, T. Huang. *Universally Slimmable Networks and Improved Training Techniques*. ICCV 2019.
# - E. Jang, S. Gu, B. Poole. *Categorical Reparameterization with Gumbel-Softmax*. ICLR 2017.
# - Z. Li, F. Zhou. *FSSD: Feature Fusion Single Shot Multibox Detector*. 2017.
# - Library: `slimnb/nn/gate.py`, `slimnb/nets/gated.py`, `slimnb/papers/ds_net/dynamic.py`, `slimnb/papers/ds_net/method.py`,
#   `slimnb/papers/ds_net/tables.py`, `slimnb/papers/ds_net/detection/detector.py`; tests in `tests/`.

# %%
chapter.end()
