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
# # Platforms
#
# > Which widths for which market?
#
# | | |
# |---|---|
# | Paper | Wang and Blaschko, *Optimizing Slimmable Networks for Multiple Target Platforms* (Multi-platform) |
# | Regenerated | Tables 1, 2 and 3; Figures 1, 2 and 3 |
# | Not reproduced | the vendors' bars of Figure 1, whose numbers the paper does not print; the accuracies, which need scale `full`: it holds the recipe and has not been run here |
# | Cost | `smoke`: about a minute on two CPU cores. `small`, `full`: not measured |
#
# One network is to run on seven platforms, from a watch to a desktop. Chapter 01 gave each of them the same
# multiplier in all layers. Nothing says that a watch should starve every layer alike, or that all platforms matter
# alike. This chapter *searches* the widths of each platform, and trains for a market.

# %% tags=["parameters"]
scale = "smoke"  # "smoke" | "small" | "full": data and recipes, see slimnb/studies/platforms.py
seed = 0  # first seed
seeds = 1  # number of seeds; the paper reports one run each
device = "auto"  # "auto" | "cpu" | "cuda"
data = "auto"  # synthetic at smoke, CIFAR-100 above; or a data set's name or folder
out = ""  # folder for figures; "" is build/ at smoke and figures/ above
realisations = 20_000  # of the restaurant process; the paper shows one per market
random_subnets = 300  # drawn behind the search's front; none in the paper
latency_subnets = 160  # timed on this device; the paper uses MACs instead
latency_rounds = 5  # timings of each of them

# %%
import inspect
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
from IPython.display import Markdown

from slimnb import crp, figures, markets, search
from slimnb.chapter import Chapter
from slimnb.claims import Claim
from slimnb.crp import chinese_restaurant_process, expected, expected_shares, market, seating
from slimnb.data import load_or_absent
from slimnb.experiment import build, once, study
from slimnb.latency_model import fit_latency, time_random
from slimnb.methods.platforms import PlatformSandwich, WidthSearch, plan, platform_subnets
from slimnb.parameters import Int
from slimnb.results import results_frame
from slimnb.runs import RunStore, code_fingerprint
from slimnb.search import Trellis, best_under, exact_under, marginals, viterbi
from slimnb.studies import platforms
from slimnb.studies.platforms import problem, unary_of
from slimnb.train import rng_at

chapter = Chapter.begin("03_platforms", globals(), realisations=Int(1000), random_subnets=Int(1),
                        latency_subnets=Int(120), latency_rounds=Int())
WEIGHTS, MULTS, PLATFORMS = crp.WEIGHTS, platforms.MULTS, platforms.PLATFORMS

# %% [markdown]
# ## The market
#
# How are customers spread over brands? In the *Chinese restaurant process* guests come in one by one. With $t$
# guests seated at $B$ tables, the next one joins a table of size $n_b$, or opens a new one, with probabilities
#
# $$P(\text{join } b) = \frac{n_b - \alpha}{t + \theta}, \qquad
# P(\text{open}) = \frac{\theta + \alpha B}{t + \theta} .$$
#
# Large tables grow. The paper (section 3.1) calls $\alpha$ the strength and $\theta$ the discount. By its own formula
# it is the other way round: $\alpha$ is taken off each table, a **discount** with $0 \le \alpha < 1$, and $\theta$ is
# the **strength**. We seat three guests by hand, at the paper's $\alpha = .3$ and $\theta = .15$.

# %%
alpha, theta = Fraction(3, 10), Fraction(3, 20)
join, opens = seating([1], alpha, theta)
after_join, after_open = seating([2], alpha, theta), seating([1, 1], alpha, theta)
plans = {"3": join * after_join[0],
         "2 + 1": join * after_join[1] + opens * (after_open[0] + after_open[1]),
         "1 + 1 + 1": opens * after_open[2]}
for sizes, chance in plans.items():
    print(f"tables of {sizes:9}: {str(chance):>7} = {float(chance):.3f}")
assert sum(plans.values()) == 1

# %% [markdown]
# Now a hundred guests. Row S of Table 1 has, between its two ends of .25, the weights .005 to .31. Doubled, they are
# whole hundredths: 62, 26, 9, 2 and 1. So S is a hundred guests who happen to sit at five tables, sorted and halved,
# and L arises the same way with $\alpha = .15$. We keep the realisations with five tables.

# %%
rng = rng_at(chapter.seed, "markets", 0)
five, drawn_from = {}, {"S": 0.3, "L": 0.15}
for row, discount in drawn_from.items():
    sizes = chinese_restaurant_process(100, discount, 0.15, rng, realisations)
    five[row] = np.sort(sizes[(sizes > 0).sum(1) == 5], axis=1)[:, :-6:-1]  # (n, 5)
    kept, exact = len(five[row]), expected_shares(100, discount, 0.15, 5, given=5)
    print(f"{row}: five tables in {kept / realisations:.3f} of the realisations;",
          "mean shares", (100 * five[row].mean(0)).round(-1) / 100, "exactly", 100 * exact.round(3))
print("another S:", market(0.3, 0.15, rng))

# %%
def hundredths(row):
    """Platforms #2 to #6 of a row of Table 1, the largest first, in percent of their sum."""
    return 200 * np.sort(WEIGHTS[row][1:6])[::-1]


row_s = pd.DataFrame({"source": "Table 1, row S", "rank": range(1, 6), "share": hundredths("S")})
axes = figures.market_shares(five["S"], "Row S: one large table, one middling, three small", row_s)
chapter.save(axes, "market")

# %% [markdown]
# Figure 1 of the paper sets such a realisation beside the shares of phone vendors. It prints no numbers for the
# vendors, so the grey bars are row S. We ask whether S and L are usual realisations: does each of their five shares
# lie where nine of ten lie?

# %%
rows_usual = Claim(
    "crp-rows-usual", chapter.name, "Rows S and L lie where 90 % of realisations lie",
    "Multi-platform, Table 1 and Figure 1", "share", "exact", ("outside", "none"), delta=0,
    seeds=1, paper_value=0, unit="of 5 ranks")
outside = [np.sum((hundredths(row) < low - 1e-9) | (hundredths(row) > high + 1e-9))
           for row in five for low, high in [np.quantile(five[row], [0.05, 0.95], axis=0)]]
chapter.claim(rows_usual, outside, np.zeros(2))

# %% [markdown]
# R reverses a row, U is uniform and M peaks in the middle. The last column is what a request costs on average in that
# market, if every platform runs the uniform subnet of its width.

# %%
paper_net = problem("full", 100)
table_1 = pd.DataFrame(WEIGHTS, index=PLATFORMS).T
table_1["M MACs per request"] = [
    round(expected(shares, paper_net.budgets) / 1e6, 1) for shares in WEIGHTS.values()]
table_1

# %%
rows_sum = Claim(
    "market-weights-sum", chapter.name, "Each row of Table 1 sums to 1", "Multi-platform, Table 1",
    "share", "exact", ("rows", "1"), delta=1e-9, seeds=1, paper_value=1, unit="of the market")
chapter.claim(rows_sum, table_1[list(PLATFORMS)].sum(axis=1), np.ones(6))

# %% [markdown]
# ## The targets
#
# A platform's **budget** is the cost of the uniform MobileNetV1 at its width, for images of 32 pixels. Traced from
# the real forward pass, the printed figures come out to the last digit.

# %%
widths_found = Claim(
    "platform-targets", chapter.name, "The seven targets are MACs of uniform MobileNetV1",
    "Multi-platform, Table 1", "macs", "exact", ("slimnb", "paper"), delta=0, seeds=1, unit="M")
printed = [3.35, 7.34, 12.21, 19.02, 26.58, 36.20, 46.45]
print([f"{mult}x {macs / 1e6:.3f}" for mult, macs in zip(MULTS, paper_net.budgets, strict=True)])
chapter.claim(widths_found, np.round(np.array(paper_net.budgets) / 1e6, 2), printed)

# %%
images = load_or_absent(chapter.data_name, chapter.data_root, chapter.device,
                        chapter.root / "data/cache")
asked = problem(chapter.scale, images.num_classes)
space, trellis, budgets = asked.space, asked.trellis, np.array(asked.budgets)
print(f"the paper's space: {paper_net.space.size:.3g} subnets,",
      f"{paper_net.trellis.cheapest / 1e6:.2f} to {paper_net.trellis.dearest / 1e6:.2f} M MACs")
print(f"ours at this scale: {space.size:.3g} subnets; choices per unit {trellis.counts};",
      f"budgets {(budgets / 1e6).round(2)} M MACs")

# %% [markdown]
# Each unit chooses among the widths from 0.2 to 1.5, so that a platform may be wide in one layer and pay for it in
# another. Nobody tries them all. We need an idea.
#
# ## The idea on three layers
#
# Three layers with three widths each make 27 subnets. A choice has a *score* (how little it hurts), and each pair of
# neighbours a *cost*. We may try all 27, and we also ask the library, at three budgets.

# %%
toy_widths = [[8, 16, 24]] * 3
toy_scores = np.array([[-.30, -.14, -.08], [-.25, -.12, -.06], [-.40, -.20, -.10]])
toy_costs = [np.outer([1, 2, 3], [1, 2, 3])] * 2
toy, every = Trellis.of(toy_costs), np.array(list(product(range(3), repeat=3)))
score = toy_scores[np.arange(3), every].sum(1)
for budget in (6, 10, 12):
    best = score[toy.cost(every) <= budget].max()
    found = best_under(toy_scores, toy, budget)
    print(f"budget {budget:2}: best of 27 {best:.2f}; found {found.score:.2f} at cost {found.cost:g},",
          f"multiplier {found.multiplier:.3f}, gap {found.gap:.3f}")

# %%
found = best_under(toy_scores, toy, 12)
title = "A narrow waist in the middle saves cost on both sides"
axes = figures.trellis(toy_scores, toy_costs, found.index, toy_widths, title)
chapter.save(axes, "trellis")

# %% [markdown]
# At budgets 6 and 12 the search finds the best subnet and *knows* it: the gap is zero. At 10 it does not find the
# best one, and it says how much it may have missed. That certificate needs some mathematics.
#
# ## The mathematics
#
# Platform $k$ has a weight $\mu_k$ (its share of the market) and a budget $R_k$. We want weights $w$ of one network
# and a configuration $\mathbf c_k$ for each platform (paper, eq. 1):
#
# $$\min_w \sum_{k=1}^{m} \mu_k \min_{\mathbf c_k} \mathcal L(\mathbf c_k, w)
# \quad\text{s.t.}\quad \mathcal R(\mathbf c_k) \le R_k . \tag{1}$$
#
# Two assumptions make the inner minimum easy. The loss is a sum over units, and the cost one over neighbours:
#
# $$\mathcal L(\mathbf c, w) = \sum_{i=1}^{n} \mathcal L_i(c_i, w), \tag{2}$$
# $$\mathcal R(\mathbf c) = \sum_{i=1}^{n-1} \mathcal R_i(c_i, c_{i+1}). \tag{3}$$
#
# The paper's eq. 2 stops at $n-1$, which would leave the last unit without a loss; its eq. 4 counts the neighbours
# from $\mathcal R_1(c_0, c_1)$ to $n$, though there is no $c_0$. For MACs, eq. 3 is exact; eq. 2 is a bet. A multiplier
# $\gamma_k \ge 0$ moves the budget into the sum:
#
# $$\min_{\mathbf c_k}\ \mu_k \sum_{i=1}^{n} \mathcal L_i(c_{k,i}, w)
#   + \gamma_k \Big( \sum_{i=1}^{n-1} \mathcal R_i(c_{k,i}, c_{k,i+1}) - R_k \Big). \tag{4}$$
#
# (Drawing platform $k$ with probability $\nu_k$ divides both terms by it. With $\nu_k = \mu_k$ the weights cancel.)
# A larger $\gamma_k$ gives a cheaper subnet, so that one searches for the multiplier that just fits. In code,
# `unary` holds scores $-\mathcal L_i$, `trellis` the $\mathcal R_i$.
#
# **The certificate.** A subnet within the budget loses nothing by the second term. So for *every* $\gamma \ge 0$
#
# $$\text{bound}(\gamma) = \max_{\mathbf c}\ \big[\text{score}(\mathbf c) - \gamma\,(\mathcal R(\mathbf c) - R_k)\big]
# \ \ge \max_{\mathcal R(\mathbf c) \le R_k} \text{score}(\mathbf c),$$
#
# and the least bound minus the score we found, the **duality gap**, is the most we can have missed.
#
# ## The smallest code
#
# For one $\gamma$, Viterbi's algorithm goes back through the trellis and keeps, for each choice, the best
# that may follow. Then it walks forward. Here are the library's two functions, for many multipliers at once.

# %%
def source(*things):
    """Library code, as it runs."""
    code = "\n\n".join(inspect.cleandoc(inspect.getsource(thing)) for thing in things)
    return Markdown(f"```python\n{code}\n```")


source(search._to_go, search._walk)

# %%
rng = rng_at(chapter.seed, "chains", 0)
for _ in range(200):
    chain = [rng.integers(1, 50, (3, 3)) for _ in range(3)]  # four units of three choices
    scores, small, gamma = rng.normal(size=(4, 3)), Trellis.of(chain), rng.random(8)
    every = np.array(list(product(range(3), repeat=4)))
    value = scores[np.arange(4), every].sum(1) - gamma[:, None] * small.cost(every)
    assert (every[value.argmax(1)] == viterbi(scores, small, gamma)).all()
print("Viterbi agrees with brute force on 200 chains at 8 multipliers each")

# %% [markdown]
# ## Claims, and the runs
#
# The claims come before the runs; deltas are in points of accuracy. "In all markets" is judged in the market where
# the claim is worst off.

# %%
def ahead(name, says, arms, delta, paper, source="Multi-platform, Table 2"):
    """A claim that the first arm is ahead of the second."""
    return Claim(name, chapter.name, says, source, "top1", "superiority", arms, delta,
                 paper_value=paper)


rows_of_w = ["S", "M", "L", "RL"]
in_all = [
    (ahead("ows-beats-slim", "OWS-U beats Slim-U in all markets", ("OWS-U", "Slim-U"), 0.5, 1.45), list(WEIGHTS)),
    (ahead("ows-u-beats-w", "OWS is best retrained uniformly", ("OWS-U", "OWS-W"), 0, 0.02), list(WEIGHTS)),
    (ahead("aows-w-beats-u", "AOWS is best retrained by weight", ("AOWS-W", "AOWS-U"), 0, 0.14), list(WEIGHTS)),
    (ahead("slim-w-beats-u", "Slim is best by weight but in RS", ("Slim-W", "Slim-U"), 0, 0.62), rows_of_w),
    (ahead("aows-beats-ows", "AOWS wins S, RS and L", ("best AOWS", "best OWS"), 0, 0.01), ["S", "RS", "L"]),
]

# %%
together = ahead("ows-gains-together", "OWS gains more in one network than in stand-alone nets",
                 ("joint", "alone"), 0.25, 0.67, "Multi-platform, Tables 2 and 3")
not_random = ahead("ows-beats-random", "OWS beats random widths of the same MACs in market U",
                   ("OWS-U", "Random-U"), 0.5, None, "ours; no such arm in the paper")
forecast_matters = ahead("forecast-matters", "Retraining for the wrong market costs accuracy",
                         ("right", "wrong"), 0.25, None, "ours; not in the paper")
shares_units = Claim(
    "ows-shares-units", chapter.name, "OWS gives #6 and #7 more units of equal width",
    "Multi-platform, section 4.3", "units", "superiority", ("OWS", "Original"), 1, paper_value=7, unit="units")
deep_wide = Claim(
    "aows-wide-deep", chapter.name, "RS-AOWS is wider than OWS in the last two layers (#6, #7)",
    "Multi-platform, section 4.4", "mult", "superiority", ("RS-AOWS", "OWS"), 0.05, unit="of full width")

# %%
store = RunStore(chapter.root / "data/runs", chapter.root / "data/results")
results = study(platforms.STAGES, chapter.scale, chapter.all_seeds, images, store, device=chapter.device)
frame = results_frame(results)
run_ids = [result.run_id for result in results]
searched = {(r.recipe.arm, r.recipe.seed): r for r in results if "unary" in r.found}
print(f"{len(results)} runs, {sum(r.seconds for r in results) / 60:.1f} minutes of training;",
      f"searches: {', '.join(dict.fromkeys(arm for arm, _ in searched))}")

# %% [markdown]
# ## OWS: one search for all platforms
#
# Where do the losses $\mathcal L_i$ come from? OWS trains the wide network with the sandwich rule, its one random
# subnet having random widths *for every image* (by masks, as in chapter 00). What those widths add to the image's
# loss is shared among the units, and enters a moving mean of each choice that was made:

# %%
source(WidthSearch.observe)

# %%
ows = searched["OWS search", chapter.seed]
unary, full = unary_of(ows), asked.uniform[-1]
subnets, found = platform_subnets(unary, space, trellis, budgets)
paths = markets.platform_widths({"OWS": dict(zip(PLATFORMS, subnets, strict=True))}, full)
title = "What each width loses in each unit, and the seven paths that one search gives"
axes = figures.unary(markets.choice_scores(unary, space, full), paths, title)
chapter.save(axes, "search")

# %%
exact = exact_under(unary, trellis, budgets)
answers = pd.DataFrame({
    "budget (M)": budgets / 1e6, "cost (M)": [f.cost / 1e6 for f in found],
    "score": [f.score for f in found], "gap": [f.gap for f in found],
    "exact score": [f.score for f in exact]}, index=PLATFORMS)
answers.round(4)

# %% [markdown]
# All rows come from the same search; only the multiplier changes. A look at the second column corrects the paper,
# which says that searched and original subnets have "the same number of FLOPs" (section 4.1). The searched ones have
# *at most* that number. Where the gap is positive, a dynamic programme over all budgets (`exact_under`) tells what
# was missed.

# %%
many = np.linspace(trellis.cheapest, trellis.dearest, 40)
every = space.sample_widths(rng, random_subnets)
index = np.stack([np.searchsorted(c, w) for c, w in zip(space.widths, every.T, strict=True)], 1)
rows = [("random", np.nan, cost, unary[np.arange(trellis.units), path].sum(), np.nan)
        for path, cost in zip(index, trellis.cost(index), strict=True)]
answer = {"lagrangian": best_under(unary, trellis, many), "exact": exact_under(unary, trellis, many)}
rows += [(kind, f.budget, f.cost, f.score, f.bound) for kind, of_it in answer.items() for f in of_it]
front = pd.DataFrame(rows, columns=["kind", "budget", "macs", "score", "bound"])
missed = np.subtract(*([f.score for f in answer[kind]] for kind in ("exact", "lagrangian")))
title = f"The Lagrangian misses the best subnet at {(missed > 1e-9).sum()} of {len(many)} budgets"
chapter.save(figures.duality(front, title), "duality")

# %%
same_cost = Claim(
    "ows-spends-budget", chapter.name, "Searched and original subnets have the same MACs",
    "Multi-platform, section 4.1", "macs", "exact", ("OWS", "original"), delta=1, seeds=1, unit="%")
chapter.claim(same_cost, 100 * answers["cost (M)"] / answers["budget (M)"], np.full(7, 100), [ows.run_id])

# %% [markdown]
# ## AOWS: search where it will be needed
#
# OWS trains all widths alike, also those that no platform will want. AOWS draws the widths from a *smoothed* Viterbi:
# $\min$ becomes a soft minimum at temperature $T$ (eq. 5),
#
# $$m_{i+1}(c') = -T \log \sum_{c} \exp\!\Big(\!-\frac{m_i(c) + \frac{\gamma_k}{\nu_k} \mathcal R_i(c, c')}{T}\Big)
#   + \frac{\mu_k}{\nu_k} \mathcal L_{i+1}(c'). \tag{5}$$
#
# The paper's eq. 5 lacks the outer $-T$. Without it the message changes its sign and its unit at every layer. With
# it, $T \to 0$ gives Viterbi, which `marginals` must show; and the probabilities of a unit sum to one.

# %%
gamma = 0.9 * found[3].multiplier  # of platform #4; at the multiplier itself two paths are equally good
cold = marginals(unary, trellis, gamma, 1e-9)
assert (cold.argmax(1) == viterbi(unary, trellis, gamma)[0]).all() and np.allclose(cold.max(1), 1)
assert np.allclose(marginals(unary, trellis, gamma, 1e-3).sum(1), 1)

# %% [markdown]
# Each step draws a platform by its weight, then widths from its marginals. The temperature falls along fractions of
# the run: $T = 1$ for a fifth of it (the warm-up), .01 at .24, .001 at the half, .0005 at the end. The code of AOWS
# has its breakpoints at fixed epochs, one of which falls on the end of the 10 epochs of warm-up here, and the paper
# gives no values.

# %%
recipe = next(r.recipe for r in results if r.recipe.arm == "RS-AOWS search")
net = build(recipe, images.num_classes)
sampler, _ = plan(recipe, net, 100)  # the schedule of a run of 100 steps
parts = []
for step in range(101):
    temperature = sampler.temperature(step)
    p = marginals(unary, trellis, found[3].multiplier, temperature)
    parts.append(markets.choice_scores(p, space, full).rename(columns={"score": "probability"})
                 .assign(epoch=step * recipe.epochs / 100, temperature=temperature))
schedule = pd.concat(parts)
shown = schedule[schedule["unit"].isin([1, 1 + trellis.units // 2, trellis.units])]
title = "The search begins everywhere and ends near the subnet of platform #4"
chapter.save(figures.marginals(shown, title), "marginals")

# %% [markdown]
# The figure takes the finished OWS scores through the schedule. Temperatures are in nats per unit, like the scores,
# and choices differ by thousandths of a nat: nearly all of the sharpening happens below $T = .01$.
#
# ## Retraining: Table 2
#
# The seven subnets found become the seven switches of one new network, each with its own batch norm. Every step runs
# #7 (with dropout .6 at scale `full`), #1, and one of #2 to #6. The paper says "#2 – #5" (section 4.1); then #6,
# with the largest weight of S and L, would never be trained. The suffix -U draws it uniformly, -W by the market's
# weights:

# %%
source(PlatformSandwich.plan)

# %%
literature = pd.read_csv(chapter.root / "data/literature/platforms.csv")
of_paper = literature[literature["table"] == "2"].rename(columns={"row": "market", "value": "top1"})
accuracy = markets.weighted(frame)
beside = {name: rows.pivot_table("top1", "market", "arm", sort=False).reindex(WEIGHTS)
          for name, rows in (("here", accuracy), ("paper, Table 2", of_paper))}
pd.concat(beside, axis=1).round(2).fillna("")

# %% [markdown]
# Empty cells were not trained at this scale (AOWS needs a search of its own for each market). In market U, -W is the
# same net as -U.

# %%
title = "Do searched widths beat uniform ones in every market?"
axes = figures.weighted_accuracy(accuracy, title, of_paper)
chapter.save(axes, "weighted-accuracy")

# %%
judged_by = pd.concat([accuracy, *(markets.best_of(accuracy, each) for each in ("OWS", "AOWS"))])
verdicts = [chapter.claim(claim, *markets.worst_market(judged_by, claim.arms, rows), run_ids)
            for claim, rows in in_all]
print(*verdicts, sep="\n")
verdicts[0]

# %% [markdown]
# Mind what *best AOWS* means: the better of two arms, picked by the numbers that are then compared. The paper's
# advantage in L is .01 points.
#
# ## Stand-alone nets: Table 3
#
# Is a searched subnet better by itself, or a better companion of the others? The paper trains seven separate nets of
# each kind. OWS gains .85 points there (Table 3) and 1.52 in one network (Table 2, row U). We ask the same.

# %%
alone = markets.stand_alone(frame).pivot_table("top1", "seed", "arm")
in_u = accuracy[accuracy["market"] == "U"].pivot_table("top1", "seed", "arm")
gains = pd.DataFrame({"one network": in_u["OWS-U"] - in_u["Slim-U"],
                      "stand-alone": alone["OWS"] - alone["Slim"]})
chapter.claim(together, gains["one network"], gains["stand-alone"], run_ids)

# %%
in_paper = literature[literature["table"] == "3"].set_index("arm")["value"]
pd.DataFrame({"here": alone.mean(), "paper, Table 3": in_paper}).round(2)

# %% [markdown]
# ## Which widths? Figures 2 and 3
#
# The paper's explanation is *correlation*: OWS gives #6 and #7 the same width in 8 of 14 units, so that the two
# subnets share more than a corner. The original widths coincide in one unit only, the stem, where .875 of 32 rounds
# up to 32.

# %%
print("units shared by #6 and #7 in the paper's net at uniform widths:",
      markets.shared_units(*paper_net.uniform[5:]), "of", paper_net.trellis.units)
chosen = {key: platform_subnets(unary_of(r), space, trellis, budgets)[0] for key, r in searched.items()}
here = {"Original": asked.uniform, "OWS": subnets, "RS-AOWS": chosen["RS-AOWS search", chapter.seed]}
widths = markets.platform_widths(
    {name: dict(zip(PLATFORMS[5:], of_it[5:], strict=True)) for name, of_it in here.items()}, full)
shared = {name: markets.shared_units(*of_it[5:]) for name, of_it in here.items()}
title = f"OWS shares {shared['OWS']} of {trellis.units} units between #6 and #7, uniform widths {shared['Original']}"
axes = figures.channels(widths[widths["source"].isin(["Original", "OWS"])], title)
chapter.save(axes, "widths-ows")

# %%
of_ows = [of_it for (arm, _), of_it in chosen.items() if arm == "OWS search"]
equal = [[markets.shared_units(*of_it[5:])] for of_it in of_ows]
chapter.claim(shares_units, np.ravel(equal), np.full(len(equal), shared["Original"]), [ows.run_id])

# %%
title = "Where OWS and AOWS, searching for market RS, disagree"
axes = figures.channels(widths[widths["source"].isin(["OWS", "RS-AOWS"])], title)
chapter.save(axes, "widths-aows")

# %%
def deep(arm):
    """(seeds,) mean multiplier of #6 and #7 in the last two units."""
    return [np.mean([np.divide(subnet.widths, full.widths)[-2:] for subnet in of_it[5:]])
            for (name, _), of_it in chosen.items() if name == arm]


chapter.claim(deep_wide, deep("RS-AOWS search"), deep("OWS search"), run_ids)

# %% [markdown]
# ## Which part pays?
#
# Beyond the paper. A search may look good because *any* non-uniform widths would. So we retrain random widths, drawn
# evenly from all subnets that cost 98 to 100 % of each budget (arm Random-U). And a mean over a market may hide a
# platform that suffers. The figure shows each platform by itself.

# %%
arms = ["Slim-U", "OWS-U", "Random-U"]
per_platform = frame[frame["arm"].isin(arms)].assign(platform=frame["name"])
axes = figures.accuracy(per_platform, "Are searched widths better than random ones, platform by platform?")
chapter.save(axes, "platforms")

# %%
chapter.claim(not_random, *markets.worst_market(accuracy, not_random.arms, ["U"]), run_ids)

# %% [markdown]
# The **regret** of an arm on a platform is what it loses against the arm that is best there. No market appears in
# it: it is what a single customer pays for our average.

# %%
lost = markets.regret(frame)
lost.assign(worst=lost.max(axis=1)).sort_values("worst").round(2)

# %% [markdown]
# ## A wrong forecast
#
# We train for the market we expect and sell in the market we get. Each row is an OWS net retrained for one market,
# each column the market it meets. The diagonal is zero by definition; a negative cell is a net that beats the one
# meant for that market.

# %%
costs = markets.forecast(frame)
off = costs[costs["trained"] != costs["used"]]
title = f"Forecasts that were wrong cost {off['regret'].mean():.2f} points on average"
chapter.save(figures.forecast(costs, title), "forecast")

# %%
per_seed = off.groupby("seed")["regret"].mean()
chapter.claim(forecast_matters, per_seed, np.zeros(len(per_seed)), run_ids)

# %% [markdown]
# ## Milliseconds in place of MACs
#
# A customer waits for milliseconds. AOWS learns them from the device as a black box: time random subnets
# end to end, then fit tables of pairs (eq. 3) whose sums explain the times. We do so on this device and hold
# every fifth of the subnets out once, beside a straight line through their MACs.

# %%
settings = {"paper": "platforms", "arm": "latency model", "scale": chapter.scale, "device": chapter.device,
            "subnets": latency_subnets, "rounds": latency_rounds, "classes": images.num_classes}
code = code_fingerprint(["slimnb.latency_model", "slimnb.nets.mobilenet_v1"])
timed = once(store, settings, code, lambda: time_random(
    net.to(chapter.device), space, latency_subnets, rounds=latency_rounds))
tried, ms, about = np.array(timed["widths"]), np.array(timed["ms"]), timed["about"]
print(f"{about['device']}, {about['threads']} thread(s), batch {about['batch']}:",
      f"{ms.min():.2f} to {ms.max():.2f} ms")

# %%
index = np.stack([np.searchsorted(c, w) for c, w in zip(space.widths, tried.T, strict=True)], 1)
macs, n, parts = trellis.cost(index), len(ms), []
for fold in range(5):
    order = np.roll(np.arange(n), fold * (n // 5))
    fitted, out_of = np.split(order, [n - n // 5])
    table = fit_latency(net, space, tried[order], ms[order])  # holds the last fifth out
    line = np.polynomial.Polynomial.fit(macs[fitted], ms[fitted], 1)
    predicted = {"pairs of widths": table.predict(tried[out_of]), "MACs alone": line(macs[out_of])}
    parts += [pd.DataFrame({"measured": ms[out_of], "predicted": values, "model": model, "fold": fold})
              for model, values in predicted.items()]
held_out = pd.concat(parts)

# %%
error = 100 * (held_out["predicted"] / held_out["measured"] - 1).abs()
mape = error.groupby([held_out["fold"], held_out["model"]]).mean().unstack()
means = mape.mean()
title = f"Held out, pairs of widths err by {means['pairs of widths']:.1f} %, MACs by {means['MACs alone']:.1f} %"
chapter.save(figures.latency_fit(held_out, title), "latency-model")

# %%
pairs_needed = Claim(
    "latency-needs-pairs", chapter.name, "Tables of pairs predict latency better than MACs",
    "AOWS, as used by Multi-platform, section 3.2", "mape", "superiority", ("pairs of widths", "MACs alone"),
    delta=0, direction="less", unit="%")
chapter.claim(pairs_needed, mape["pairs of widths"], mape["MACs alone"], [timed["run_id"]])

# %% [markdown]
# Now the same search takes milliseconds for its budget: each platform gets the predicted time of its subnet of the
# table above, which was searched by MACs. By construction nothing can be lost, but for the rounding of a prediction.
# How much is gained?

# %%
table = fit_latency(net, space, tried, ms, about)
within = np.array([table.of(subnet) for subnet in subnets])
by_ms, faster = platform_subnets(unary, space, Trellis.of(table.chain()), within, exact_under)
pd.DataFrame({
    "ms": within, "M MACs, searched by MACs": [f.cost / 1e6 for f in found],
    "M MACs, searched by ms": [trellis.cost(f.index) / 1e6 for f in faster],
    "gain in score": [by_time.score - f.score for by_time, f in zip(faster, found, strict=True)],
    "units that differ": [trellis.units - markets.shared_units(*pair)
                          for pair in zip(subnets, by_ms, strict=True)]}, index=PLATFORMS).round(4)

# %% [markdown]
# ## What surprised us

# %%
spread = accuracy[accuracy["arm"] == "OWS-U"].groupby("market")["top1"].mean()
doubled = [arm for (arm, _), of_it in chosen.items() if len(set(of_it)) < len(of_it)]
print(f"OWS-U over Slim-U in market U: {gains['one network'].mean():+.2f} points;",
      f"over Random-U: {in_u['OWS-U'].mean() - in_u['Random-U'].mean():+.2f}")
print(f"OWS-U over the six markets: {np.ptp(spread):.2f} points from worst to best")
print(f"wrong forecasts: {off['regret'].min():+.2f} to {off['regret'].max():+.2f} points;",
      f"{(off['regret'] < 0).sum()} of {len(off)} do better than the right one")
print("searches in which two platforms get one subnet:", ", ".join(doubled) or "none")

# %% [markdown]
# - Read the first line before praising a search. What random widths do at the same MACs is the yardstick, and no table
#   of the paper has it.
# - Markets differ in which platforms count, and yet one and the same net differs between markets by as much as methods
#   do. Accuracies of different rows of Table 2 must not be compared.
# - A wrong forecast that does better than the right one is noise, and it tells how large the noise is. The paper's
#   advantage of AOWS over OWS, .12 points at the most, comes from one run each.
# - Two platforms may receive one subnet: the Lagrangian jumps over what lies between two corners of the front.
# - Dividing the added loss evenly among all units is a crude way to find the guilty one. The mean over many images
#   saves it, and with few images per choice the scores are mostly the other units' noise.
#
# ## Summary
#
# - A search over pairwise costs is exact but for its duality gap, and the gap comes with the answer.
# - One run of OWS serves all budgets and markets, and milliseconds as well as MACs. AOWS wants a run per market.
# - A market is a set of weights on platforms: it changes the average, the sampling and the forecast's risk, and hides
#   the regret of the single customer.
#
# ## Exercises
#
# 1. *Recall.* In the restaurant, what do $\alpha \to 1$ and $\theta \to \infty$ do?
# 2. *By hand.* Guests 1 and 2 share a table ($\alpha = .3$, $\theta = .15$). How likely does guest 3 open another?
# 3. *By hand.* What do the widths 16, 16, 24 cost in the toy of three layers, and what do they score? Why
#    does no multiplier find them?
# 4. *Code.* How many multipliers give all the subnets that the Lagrangian can find in the search above?
# 5. *Code.* At which budget of the toy is the gap largest?
# 6. *Ablation.* The scores of OWS are means over all images. Search with the scores' ranks within each unit in their
#    place. Which platforms change?
#
# The cells below hold checkable answers.

# %% tags=["hide-cell"]
for discount, strength in ((0.99, 0.15), (0.3, 1e6)):
    sizes = chinese_restaurant_process(100, discount, strength, rng)
    print(f"1. alpha {discount}, theta {strength:g}: {len(sizes)} tables for 100 guests")

# %% tags=["hide-cell"]
print(f"2. (.15 + .3) / (2 + .15) = {seating([2], alpha, theta)[1]},",
      f"about {float(seating([2], alpha, theta)[1]):.3f}")

# %% tags=["hide-cell"]
path = np.array([1, 1, 2])
print(f"3. cost {toy.cost(path):g}, score {toy_scores[range(3), path].sum():.2f}: at any multiplier",
      "8, 16, 24 at less or 24, 16, 24 at more is worth at least as much")
asked_at = viterbi(toy_scores, toy, np.linspace(0, 1, 10_001))
assert not (asked_at == path).all(1).any()

# %% tags=["hide-cell"]
every = np.geomspace(1e-3, 1e3, 20_001) * found[0].multiplier
print(f"4. {len(np.unique(viterbi(unary, trellis, every), axis=0))} subnets, found by",
      "as many multipliers, one between every two corners of the front")

# %% tags=["hide-cell"]
at = np.linspace(toy.cheapest, toy.dearest, 1601)
gaps = [f.gap for f in best_under(toy_scores, toy, at)]
print(f"5. just below {at[np.argmax(gaps)]:.2f}: the next subnet fits at 12")

# %% tags=["hide-cell"]
ranks = np.where(trellis.exists, unary.argsort(1).argsort(1) / trellis.choices, -np.inf)
ranked, _ = platform_subnets(ranks, space, trellis, budgets)
same = [markets.shared_units(*pair) for pair in zip(subnets, ranked, strict=True)]
print(f"6. units that stay, of {trellis.units}:", dict(zip(PLATFORMS, same, strict=True)))

# %% [markdown]
# ## References
#
# - Z. Wang, M. B. Blaschko. *Optimizing Slimmable Networks for Multiple Target Platforms*. Market: section 3.1,
#   Table 1; search: section 3.2; recipe: section 4.1; Tables 2 and 3: sections 4.2 and 4.3.
# - M. Berman et al. *AOWS: Adaptive and Optimal Network Width Search with Latency Constraints*. CVPR 2020.
# - D. Aldous. *Exchangeability and related topics*. 1985: the Chinese restaurant process.
# - A. Mensch, M. Blondel. *Differentiable dynamic programming for structured prediction and attention*. ICML 2018.
# - G. Handler, I. Zang. *A dual algorithm for the constrained shortest path problem*. 1980.
# - Library: `slimnb/crp.py`, `slimnb/search.py`, `slimnb/methods/platforms.py`, `slimnb/latency_model.py`,
#   `slimnb/markets.py`; each has its test in `tests/`.

# %%
chapter.end()
