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
# | Not reproduced | the vendors' bars of Figure 1, whose numbers are not printed; the accuracies: scale `full` holds the recipe, and it has not been run here |
# | Cost | `smoke`: about a minute on two CPU cores. `small`, `full`: not measured |
#
# One network is to run on seven platforms, from a watch to a desktop. Chapter 01 gave each one multiplier for all
# layers. Nothing says that a watch should starve every layer alike, or that all platforms matter alike. Here we
# *search* the widths of each platform, and train for a market.

# %% tags=["parameters"]
scale = "smoke"  # "smoke" | "small" | "full": data and recipes, see slimnb/studies/platforms.py
seed = 0  # first seed
seeds = 1  # number of seeds; the paper reports one run each
device = "auto"  # "auto" | "cpu" | "cuda"
data = "auto"  # synthetic at smoke, CIFAR-100 above; or a data set's name or folder
out = ""  # folder for figures; "" is build/ at smoke and figures/ above
realisations = 10_000  # of the restaurant process; the paper shows one per market
random_subnets = 300  # drawn behind the search's front; none in the paper
latency_subnets = 160  # timed on the device; the paper counts MACs instead
latency_rounds = 5  # timings of each of them

# %%
import inspect
from fractions import Fraction

import numpy as np
import pandas as pd
from IPython.display import Markdown

from slimnb import CostTable, crp, figures, markets, search
from slimnb.chapter import Chapter
from slimnb.claims import Claim
from slimnb.data import load_or_absent
from slimnb.experiment import build, once, study
from slimnb.latency_model import fit_latency, time_random
from slimnb.methods.platforms import PlatformSandwich, WidthSearch, plan, platform_subnets
from slimnb.parameters import Int
from slimnb.runs import RunStore, code_fingerprint, results_frame
from slimnb.search import Trellis, best_under, exact_under, marginals, viterbi
from slimnb.studies import platforms
from slimnb.train import rng_at

chapter = Chapter.begin("03_platforms", globals(), realisations=Int(1000), random_subnets=Int(1),
                        latency_subnets=Int(120), latency_rounds=Int())
WEIGHTS, MULTS, PLATFORMS = crp.WEIGHTS, platforms.MULTS, platforms.PLATFORMS

# %% [markdown]
# ## The market
#
# How do customers spread over brands? In the *Chinese restaurant process* guests come in one by one. With $t$
# guests seated at $B$ tables, the next one joins a table of $n_b$ guests, or opens a new one, with probabilities
#
# $$P(\text{join } b) = \frac{n_b - \alpha}{t + \theta}, \qquad
# P(\text{open}) = \frac{\theta + \alpha B}{t + \theta} .$$
#
# Large tables grow. The paper (section 3.1) calls $\alpha$ the strength and $\theta$ the discount. By its own formula
# it is the other way round: $\alpha$ is taken off each table, a **discount** with $0 \le \alpha < 1$, and $\theta$ is
# the **strength**. We seat three guests by hand, at the paper's $\alpha = .3$ and $\theta = .15$.

# %%
alpha, theta = Fraction(3, 10), Fraction(3, 20)
join, opens = crp.seating([1], alpha, theta)
after_join, after_open = crp.seating([2], alpha, theta), crp.seating([1, 1], alpha, theta)
plans = {"3": join * after_join[0],
         "2 + 1": join * after_join[1] + opens * (after_open[0] + after_open[1]),
         "1 + 1 + 1": opens * after_open[2]}
for sizes, chance in plans.items():
    print(f"tables of {sizes:9}: {chance!s:>7} = {float(chance):.3f}")
assert sum(plans.values()) == 1

# %% [markdown]
# Now a hundred guests. Row S of Table 1 has, between its two ends of .25, the weights .005 to .31. Doubled, they are
# whole hundredths: 62, 26, 9, 2 and 1. So S is a hundred guests who happen to sit at five tables, sorted and halved.
# L arises the same way, with $\alpha = .15$. We keep the realisations with five tables.

# %%
rng = rng_at(chapter.seed, "markets", 0)
five = {}  # row: (n, 5) shares in percent, the largest first
for row, discount in {"S": 0.3, "L": 0.15}.items():
    sizes = crp.chinese_restaurant_process(100, discount, 0.15, rng, realisations)
    five[row] = np.sort(sizes[(sizes > 0).sum(1) == 5], axis=1)[:, :-6:-1]
    exact = 100 * crp.expected_shares(100, discount, 0.15, 5, given=5)
    print(f"{row}: five tables in {len(five[row]) / realisations:.3f} of the realisations;",
          "mean shares in %:")
    print("   ", five[row].mean(0).round(1), "exactly", exact.round(1))
print("another S:", crp.market(0.3, 0.15, rng))

# %% [markdown]
# Figure 1 of the paper sets such a realisation beside the shares of phone vendors, without numbers; our grey bars are
# row S. Are S and L usual realisations? We ask of each of their five shares whether it lies where nine of ten lie.

# %%
rows_usual = Claim(
    "crp-rows-usual", chapter.name, "Rows S and L lie where 90 % of realisations lie",
    "Multi-platform, Table 1 and Figure 1", "share", "exact", ("ranks outside", "none"),
    delta=0, seeds=1, unit="of 5 ranks")
rows = {row: 200 * np.sort(WEIGHTS[row][1:6])[::-1] for row in five}  # percent
outside = []
for row, shares in rows.items():
    low, high = np.quantile(five[row], [0.05, 0.95], axis=0)
    outside.append(np.sum((shares < low - 1e-9) | (shares > high + 1e-9)))
bars = pd.DataFrame({"source": "Table 1, row S", "rank": range(1, 6), "share": rows["S"]})
title = "Row S: one large table, one middling, three small"
chapter.save(figures.market_shares(five["S"], title, bars), "market")
chapter.claim(rows_usual, outside, np.zeros(2))

# %% [markdown]
# R reverses a row, U is uniform and M peaks in the middle. The last column is what a request costs on average in that
# market, if every platform runs the uniform subnet of its width.

# %%
rows_sum = Claim(
    "market-weights-sum", chapter.name, "Each row of Table 1 sums to 1", "Multi-platform, Table 1",
    "share", "exact", ("rows", "1"), delta=1e-9, seeds=1, unit="of the market")
paper_net = platforms.problem("full", 100)
table_1 = pd.DataFrame(WEIGHTS, index=PLATFORMS).T
print(chapter.claim(rows_sum, table_1.sum(axis=1), np.ones(6)))
table_1["M MACs per request"] = [
    round(crp.expected(shares, paper_net.budgets) / 1e6, 1) for shares in WEIGHTS.values()]
table_1

# %% [markdown]
# ## The targets
#
# A platform's **budget** is the cost of the uniform MobileNetV1 at its width, for images of 32 pixels. Traced from
# the real forward pass, the printed figures come out to the last digit.

# %%
targets = Claim(
    "platform-targets", chapter.name, "The seven targets are MACs of uniform MobileNetV1",
    "Multi-platform, Table 1", "macs", "exact", ("slimnb", "paper"), delta=0, seeds=1, unit="M")
printed = [3.35, 7.34, 12.21, 19.02, 26.58, 36.20, 46.45]
exact = np.array(paper_net.budgets) / 1e6
print(*(f"{mult}x {macs:.3f}" for mult, macs in zip(MULTS, exact, strict=True)), sep=", ")
chapter.claim(targets, exact.round(2), printed)

# %%
images = load_or_absent(chapter.data_name, chapter.data_root, chapter.device,
                        chapter.root / "data/cache")
asked = platforms.problem(chapter.scale, images.num_classes)
space, trellis, budgets = asked.space, asked.trellis, np.array(asked.budgets)
ends = paper_net.trellis.cheapest / 1e6, paper_net.trellis.dearest / 1e6
print(f"the paper's space: {paper_net.space.size:.3g} subnets,",
      f"{ends[0]:.2f} to {ends[1]:.2f} M MACs")
print(f"ours here: {space.size:.3g} subnets; choices per unit {trellis.counts}")
print(f"budgets {(budgets / 1e6).round(2)} M MACs")

# %% [markdown]
# Each unit chooses among widths from 0.2 to 1.5: a platform may be wide in one layer and pay for it in another.
#
# ## The idea on three layers
#
# Three layers with three widths each make 27 subnets. A choice has a *score* (how little it hurts), and a pair of
# neighbours a *cost*. We try all 27, and ask the library as well.

# %%
toy_widths, toy_costs = [[8, 16, 24]] * 3, [np.outer([1, 2, 3], [1, 2, 3])] * 2
toy_scores = np.array([[-.30, -.14, -.08], [-.25, -.12, -.06], [-.40, -.20, -.10]])
toy, every = Trellis.of(toy_costs), np.array(list(np.ndindex(3, 3, 3)))
score = toy_scores[np.arange(3), every].sum(1)
for budget in (6, 10, 12):
    best = score[toy.cost(every) <= budget].max()
    found = best_under(toy_scores, toy, budget)
    print(f"budget {budget:2}: best of 27 {best:.2f}; found {found.score:.2f} at cost",
          f"{found.cost:g}, multiplier {found.multiplier:.3f}, gap {found.gap:.3f}")
title = "A narrow waist in the middle saves cost on both sides"
axes = figures.trellis(toy_scores, toy_costs, found.index, toy_widths, title)
chapter.save(axes, "trellis")

# %% [markdown]
# At budgets 6 and 12 the search finds the best subnet and *knows* it: the gap is zero. At 10 it misses the best one,
# and says how much it may have missed.
#
# ## The mathematics
#
# Platform $k$ has a weight $\mu_k$, its share of the market, and a budget $R_k$. We want weights $w$ of one network
# and a configuration $\mathbf c_k$ for each platform (eq. 1):
#
# $$\min_w \sum_{k=1}^{m} \mu_k \min_{\mathbf c_k} \mathcal L(\mathbf c_k, w)
# \quad\text{s.t.}\quad \mathcal R(\mathbf c_k) \le R_k . \tag{1}$$
#
# Two assumptions make the inner minimum easy. The loss is a sum over units, and the cost one over neighbours:
#
# $$\mathcal L(\mathbf c, w) = \sum_{i=1}^{n} \mathcal L_i(c_i, w), \tag{2}$$
#
# $$\mathcal R(\mathbf c) = \sum_{i=1}^{n-1} \mathcal R_i(c_i, c_{i+1}). \tag{3}$$
#
# The paper's eq. 2 stops at $n-1$, which leaves the last unit without a loss; its eq. 4 runs over pairs
# $(c_{i-1}, c_i)$ from $i = 1$, though there is no $c_0$. For MACs eq. 3 is exact; eq. 2 is a bet. A multiplier
# $\gamma_k \ge 0$ moves the budget into the sum:
#
# $$\min_{\mathbf c_k}\ \mu_k \sum_{i=1}^{n} \mathcal L_i(c_{k,i}, w)
#   + \gamma_k \Big( \sum_{i=1}^{n-1} \mathcal R_i(c_{k,i}, c_{k,i+1}) - R_k \Big). \tag{4}$$
#
# Drawing platform $k$ with probability $\nu_k$ divides both terms by it; with $\nu_k = \mu_k$ the weights cancel.
# A larger $\gamma_k$ makes the subnet cheaper: we look for the one that just fits. In code, `unary` holds scores
# $-\mathcal L_i$ and `trellis` the $\mathcal R_i$.
#
# **The certificate.** A subnet within the budget loses nothing by the second term. So for *every* $\gamma \ge 0$
#
# $$\text{bound}(\gamma) = \max_{\mathbf c}\ \big[\text{score}(\mathbf c) - \gamma\,(\mathcal R(\mathbf c) - R_k)\big]
# \ \ge \max_{\mathcal R(\mathbf c) \le R_k} \text{score}(\mathbf c),$$
#
# and the least bound minus our score, the **duality gap**, is the most we can have missed.
#
# ## The smallest code
#
# For one $\gamma$, Viterbi's algorithm goes back through the trellis and keeps, for each choice, the best that may
# follow; then it walks forward. Below are the library's two functions, for many multipliers at once. First we hold
# them against brute force.

# %%
def source(*things):
    """Library code, as it runs."""
    code = "\n\n".join(inspect.cleandoc("\n" + inspect.getsource(thing)) for thing in things)
    return Markdown(f"```python\n{code}\n```")


rng, every = rng_at(chapter.seed, "chains", 0), np.array(list(np.ndindex(3, 3, 3, 3)))
for _ in range(200):
    small = Trellis.of([rng.integers(1, 50, (3, 3)) for _ in range(3)])
    scores, gamma = rng.normal(size=(4, 3)), rng.random(8)
    value = scores[np.arange(4), every].sum(1) - gamma[:, None] * small.cost(every)
    assert (every[value.argmax(1)] == viterbi(scores, small, gamma)).all()
print("Viterbi agrees with brute force on 200 chains, at 8 multipliers each")
source(search._to_go, search._walk)

# %% [markdown]
# ## Claims, and the runs
#
# The claims come before the runs; thresholds are in points of accuracy. A claim on several markets is judged by the mean
# over those trained at this scale. (Their minimum would turn noise against it.) The paper's own margins are means over
# its Table 2.

# %%
literature = pd.read_csv(chapter.root / "data/literature/platforms.csv")
of_paper = literature[literature["table"] == "2"].assign(seed=0)
of_paper = of_paper.rename(columns={"row": "market", "value": "top1"})
of_paper = of_paper[(of_paper["market"] != "U") | of_paper["arm"].str.endswith("-U")]


def with_best(frame):
    """Also the better one of -U and -W of the two searches."""
    return pd.concat([frame, markets.best_of(frame, "OWS"), markets.best_of(frame, "AOWS")])


def ahead(name, says, arms, delta, rows=tuple(WEIGHTS)):
    """The claim that one arm is ahead of another over the markets `rows`, and these."""
    a, b = markets.over_markets(with_best(of_paper), arms, rows)
    return Claim(name, chapter.name, says, "Multi-platform, Table 2", "top1", "superiority",
                 arms, delta, paper_value=round((a - b).item(), 2)), rows

# %%
in_table_2 = [
    ahead("ows-beats-slim", "OWS-U beats Slim-U, mean over markets", ("OWS-U", "Slim-U"), 0.5),
    ahead("ows-u-beats-w", "OWS is better retrained uniformly", ("OWS-U", "OWS-W"), 0),
    ahead("aows-w-beats-u", "AOWS is better retrained by weight", ("AOWS-W", "AOWS-U"), 0),
    ahead("slim-w-beats-u", "Slim is better retrained by weight, but in RS",
          ("Slim-W", "Slim-U"), 0, ("S", "M", "L", "RL")),
    ahead("aows-beats-ows", "The best AOWS beats the best OWS in S, RS and L",
          ("best AOWS", "best OWS"), 0, ("S", "RS", "L"))]
together = Claim(
    "ows-gains-together", chapter.name, "OWS gains more in one network than in stand-alone nets",
    "Multi-platform, Tables 2 and 3", "top1", "superiority", ("joint", "alone"), 0.25,
    paper_value=0.67)
not_random = Claim(
    "ows-beats-random", chapter.name, "OWS beats random widths of the same MACs in market U",
    "ours", "top1", "superiority", ("OWS-U", "Random-U"), 0.5)
forecast_matters = Claim(
    "forecast-matters", chapter.name, "Retraining for the wrong market costs accuracy",
    "ours", "top1", "superiority", ("right", "wrong"), 0.25)

# %%
in_common = literature.loc[literature["row"] == "#6 = #7", "value"].item()  # 8 of 14
shares_units = Claim(
    "ows-shares-units", chapter.name, "OWS gives #6 and #7 more units of equal width",
    "Multi-platform, section 4.3", "units", "superiority", ("OWS", "Original"), 1,
    paper_value=in_common - markets.shared_units(*paper_net.uniform[5:]), unit="units")
wide_early = Claim(
    "ows-wide-early", chapter.name, "OWS's #7 is wider in its first half than in its second",
    "Multi-platform, Figure 2", "mult", "superiority", ("first half", "second half"), 0.1,
    unit="of full width")
wide_late = Claim(
    "aows-wide-late", chapter.name, "RS-AOWS is wider than OWS in the last two layers (#6, #7)",
    "Multi-platform, Figure 3", "mult", "superiority", ("RS-AOWS", "OWS"), 0.05,
    unit="of full width")

# %%
store = RunStore(chapter.root / "data/runs", chapter.root / "data/results")
results = study(platforms.STAGES, chapter.scale, chapter.all_seeds, images, store,
                device=chapter.device)
frame = results_frame(results)
searched = {(r.recipe.arm, r.recipe.seed): r for r in results if "unary" in r.found}
print(f"{len(results)} runs, {sum(r.seconds for r in results) / 60:.1f} minutes of training;",
      f"searches: {', '.join(dict.fromkeys(arm for arm, _ in searched))}")


def ids(method, *arms):
    """Runs of a method, of the sources that the arms are named after."""
    sources = [arm.removeprefix("best ").partition("-")[0] for arm in arms]
    return frame.loc[(frame["method"] == method) & frame["source"].isin(sources), "run_id"].unique()

# %% [markdown]
# ## OWS: one search for all platforms
#
# Where do the losses $\mathcal L_i$ come from? OWS trains the wide network with the sandwich rule, its one random
# subnet having random widths *for every image* (by masks, as in chapter 00). What those widths add to the image's
# loss is shared among the units and enters a moving mean of each choice that was made:

# %%
source(WidthSearch.observe)

# %%
ows = searched["OWS search", chapter.seed]
unary, full = platforms.unary_of(ows), asked.uniform[-1]
subnets, found = platform_subnets(unary, space, trellis, budgets)
paths = markets.platform_widths({"OWS": dict(zip(PLATFORMS, subnets, strict=True))}, full)
title = "What each width loses in each unit, and the seven paths of one search"
axes = figures.unary(markets.choice_scores(unary, space, full), paths, title)
chapter.save(axes, "search")
exact = exact_under(unary, trellis, budgets)
answers = pd.DataFrame({
    "budget (M)": budgets / 1e6, "cost (M)": [f.cost / 1e6 for f in found],
    "score": [f.score for f in found], "gap": [f.gap for f in found],
    "exact score": [f.score for f in exact]}, index=PLATFORMS)
answers.round(4)

# %% [markdown]
# All rows come from one search; only the multiplier changes. The paper says that searched and original subnets have
# "the same number of FLOPs" (section 4.1). By the second column they have *at most* that number. Where the gap is
# positive, a dynamic programme over all budgets (`exact_under`) tells what was missed.

# %%
same_cost = Claim(
    "ows-spends-budget", chapter.name, "Searched and original subnets have the same MACs",
    "Multi-platform, section 4.1", "macs", "exact", ("OWS", "original"), 1, seeds=1, unit="%")
many = np.linspace(trellis.cheapest, trellis.dearest, 40)
dual, exact = best_under(unary, trellis, many), exact_under(unary, trellis, many)
rows = [(kind, f.budget, f.cost, f.score, f.bound)
        for kind, of_it in {"lagrangian": dual, "exact": exact}.items() for f in of_it]
drawn = rng.integers(trellis.counts, size=(random_subnets, trellis.units))
rows += [("random", np.nan, cost, unary[np.arange(trellis.units), path].sum(), np.nan)
         for path, cost in zip(drawn, trellis.cost(drawn), strict=True)]
front = pd.DataFrame(rows, columns=["kind", "budget", "macs", "score", "bound"])
missed = sum(e.score - f.score > 1e-9 for e, f in zip(exact, dual, strict=True))
title = f"The Lagrangian misses the best subnet at {missed} of {len(many)} budgets"
chapter.save(figures.duality(front, title), "duality")
share = 100 * answers["cost (M)"] / answers["budget (M)"]
chapter.claim(same_cost, share, np.full(7, 100), [ows.run_id])

# %% [markdown]
# ## AOWS: search where it will be needed
#
# OWS trains all widths alike, also those that no platform will want. AOWS draws them from a *smoothed* Viterbi, whose
# minimum is soft at a temperature $T$ (eq. 5):
#
# $$m_{i+1}(c') = -T \log \sum_{c} \exp\!\Big(\!-\frac{m_i(c) + \frac{\gamma_k}{\nu_k} \mathcal R_i(c, c')}{T}\Big)
#   + \frac{\mu_k}{\nu_k} \mathcal L_{i+1}(c'). \tag{5}$$
#
# The paper's eq. 5 lacks the outer $-T$. Without it the message changes sign and unit at every layer. With it,
# $T \to 0$ gives Viterbi, which the cell asserts of `marginals`.
#
# Each step draws a platform by its weight, then widths from its marginals. $T$ falls along fractions of the run: 1 for
# a fifth of it (the warm-up), .01 at .24, .001 at the half, .0005 at the end. AOWS's code counts in epochs, and one of
# its breakpoints falls on the end of the warm-up here; the paper gives none. The figure takes the finished OWS scores
# through this schedule.

# %%
gamma = found[3].multiplier  # of platform #4; two paths are equally good there, but not at .9 of it
cold = marginals(unary, trellis, 0.9 * gamma, 1e-9)
path = viterbi(unary, trellis, 0.9 * gamma)[0]
assert np.allclose(cold.max(1), 1) and (cold.argmax(1) == path).all()
recipe = next(r.recipe for r in results if r.recipe.arm == "RS-AOWS search")
net = build(recipe, images.num_classes)
sampler, _ = plan(recipe, net, 100)  # knows the schedule of a run of 100 steps
parts = []
for step in range(101):
    temperature = sampler.temperature(step)
    p = markets.choice_scores(marginals(unary, trellis, gamma, temperature), space, full)
    parts.append(p.rename(columns={"score": "probability"}).assign(
        epoch=step * recipe.epochs / 100, temperature=temperature))
schedule = pd.concat(parts)
shown = schedule[schedule["unit"].isin([1, 1 + trellis.units // 2, trellis.units])]
title = "The search narrows towards the two best paths of platform #4"
chapter.save(figures.marginals(shown, title), "marginals")

# %% [markdown]
# Temperatures are in nats per unit, like the scores, and choices differ by thousandths of a nat: nearly all of the
# sharpening happens below $T = .01$. At the multiplier of the least bound two paths are equally good, one that fits the
# budget and a dearer one. Both keep a share.
#
# ## Retraining: Table 2
#
# The seven subnets become the seven switches of one new network. A step runs the largest (with dropout .6 at scale
# `full`), the smallest, and one of #2 to #6, drawn uniformly (suffix -U) or by the market's weights (-W). The paper says
# "#2 - #5" (section 4.1); then #6, which has the largest weight in S and L, would never be trained. Where the paper
# is silent (augmentation, batch norm, distillation) we do as S-Net does in chapter 01, except that statistics are taken
# anew after training: those of a platform that is rarely drawn would be stale.

# %%
source(PlatformSandwich.plan)

# %%
accuracy = markets.weighted(frame)
arms = [*of_paper["arm"].unique(), "Random-U"]
beside = {name: rows.pivot_table("top1", "market", "arm").reindex(WEIGHTS, columns=arms)
          for name, rows in (("here", accuracy), ("paper, Table 2", of_paper))}
beside = pd.concat(beside, axis=1).dropna(axis=1, how="all")
beside.map("{:.2f}".format, na_action="ignore").fillna("")

# %% [markdown]
# Empty cells were not trained at this scale: AOWS needs a search of its own for each market. In market U, -W would be
# the same net as -U.

# %%
title = "Do searched widths beat uniform ones in every market?"
chapter.save(figures.weighted_accuracy(accuracy, title, of_paper), "weighted-accuracy")
all_arms = with_best(accuracy)
verdicts = [chapter.claim(claim, *markets.over_markets(all_arms, claim.arms, rows),
                          ids("platforms", *claim.arms)) for claim, rows in in_table_2]
print(*verdicts, sep="\n")
verdicts[0]

# %% [markdown]
# Mind what *best AOWS* means: the better of two arms, picked by the numbers that are then compared. The paper's
# advantage in L is .01 points (Table 2).
#
# ## Stand-alone nets: Table 3
#
# Is a searched subnet better by itself, or a better companion of the others? The paper trains seven separate nets of
# each kind. OWS gains .85 points there (Table 3) and 1.52 in one network (Table 2, row U).

# %%
alone = markets.stand_alone(frame).pivot_table("top1", "seed", "arm")
in_u = accuracy[accuracy["market"] == "U"].pivot_table("top1", "seed", "arm")
gains = in_u["OWS-U"] - in_u["Slim-U"], alone["OWS"] - alone["Slim"]
print(chapter.claim(together, *gains, ids("alone", "Slim", "OWS")))
in_paper = literature[literature["table"] == "3"].set_index("arm")["value"]
pd.DataFrame({"here": alone.mean(), "paper, Table 3": in_paper}).round(2)

# %% [markdown]
# ## Which widths? Figures 2 and 3
#
# The paper's explanation is *correlation*: OWS gives #6 and #7 the same width in 8 of 14 units (section 4.3). Uniform
# widths coincide in one, the stem, where .875 of 32 rounds up to 32. It also finds OWS wide in the first layers and
# thin in the last.

# %%
chosen = {key: platform_subnets(platforms.unary_of(r), space, trellis, budgets)[0]
          for key, r in searched.items()}
here = {"Original": asked.uniform, "OWS": subnets,
        "RS-AOWS": chosen["RS-AOWS search", chapter.seed]}
widths = markets.platform_widths(
    {name: dict(zip(PLATFORMS[5:], of_it[5:], strict=True)) for name, of_it in here.items()}, full)
both = {name: markets.shared_units(*of_it[5:]) for name, of_it in here.items()}
title = (f"#6 and #7 share {both['OWS']} of {trellis.units} units by OWS, "
         f"{both['Original']} originally")
chapter.save(figures.channels(widths[widths["source"] != "RS-AOWS"], title), "widths-ows")
equal = [markets.shared_units(*of_it[5:])
         for (arm, _), of_it in chosen.items() if arm == "OWS search"]
chapter.claim(shares_units, equal, np.full(len(equal), both["Original"]), ids("ows", "OWS"))

# %%
def mean_mult(arm, of_platforms, of_units):
    """(seeds,) mean width multiplier of some platforms in some units."""
    mults = [np.array([s.widths for s in of_it]) / full.widths
             for (name, _), of_it in chosen.items() if name == arm]
    return [mult[of_platforms, of_units].mean() for mult in mults]


half, last, late = trellis.units // 2, slice(6, None), (slice(5, None), slice(-2, None))
halves = [mean_mult("OWS search", last, units) for units in (slice(half), slice(half, None))]
print(chapter.claim(wide_early, *halves, ids("ows", "OWS")))
title = "Where OWS and AOWS, searching for market RS, agree and disagree"
chapter.save(figures.channels(widths[widths["source"] != "Original"], title), "widths-aows")
deep = [mean_mult(arm, *late) for arm in ("RS-AOWS search", "OWS search")]
chapter.claim(wide_late, *deep, ids("aows", "AOWS"))

# %% [markdown]
# ## Which part pays?
#
# Beyond the paper. Would *any* non-uniform widths do? We retrain random ones, drawn evenly from all subnets that cost
# 98 to 100 % of each budget (arm Random-U). And as a mean over a market may hide a platform that suffers, the figure
# shows each by itself.

# %%
shown = frame[frame["arm"].isin(["Slim-U", "OWS-U", "Random-U"])]
title = "Are searched widths better than random ones, platform by platform?"
chapter.save(figures.accuracy(shown.assign(platform=shown["name"]), title), "platforms")
a, b = markets.over_markets(accuracy, not_random.arms, ["U"])
chapter.claim(not_random, a, b, ids("platforms", *not_random.arms))

# %% [markdown]
# The **regret** of an arm on a platform is what it loses against the best arm there. No market enters: it is what
# a single customer pays for our average.

# %%
lost = markets.regret(frame)
lost.assign(worst=lost.max(axis=1)).sort_values("worst").round(2)

# %% [markdown]
# ## A wrong forecast
#
# We train for the market we expect and sell in the one we get. Each row is an OWS net retrained for one market, each
# column the market it meets. The diagonal is zero by definition; in a negative cell a net beats the one meant for that
# market.

# %%
costs = markets.forecast(frame)
wrong = costs[costs["trained"] != costs["used"]]
title = f"Wrong forecasts cost {wrong['regret'].mean():.2f} points on average"
chapter.save(figures.forecast(costs, title), "forecast")
per_seed = wrong.groupby("seed")["regret"].mean()
chapter.claim(forecast_matters, per_seed, np.zeros(len(per_seed)), ids("platforms", "OWS"))

# %% [markdown]
# ## Milliseconds in place of MACs
#
# A customer waits for milliseconds. AOWS learns them as from a black box: time random subnets end to end, then fit
# tables of pairs (eq. 3) whose sums explain the times. We do so on the device that the cell names, hold out each fifth
# of the subnets in turn (folds that stand in for seeds), and compare with a straight line through MACs. On the tiny net
# of `smoke` nearly all of the time is overhead that no width changes.

# %%
settings = {"paper": "platforms", "arm": "latency model", "scale": chapter.scale,
            "device": chapter.device.partition(":")[0], "classes": images.num_classes,
            "subnets": latency_subnets, "rounds": latency_rounds}
code = code_fingerprint(["slimnb.latency_model", "slimnb.nets.mobilenet_v1"])
timed = once(store, settings, code, lambda: time_random(
    net.to(chapter.device), space, latency_subnets, rounds=latency_rounds))
tried, ms, about = np.array(timed["widths"]), np.array(timed["ms"]), timed["about"]
macs = CostTable.macs(net, space).predict(tried)
print(f"{about['device']}, batch {about['batch']}, {len(ms)} subnets:",
      f"{ms.min():.3g} to {ms.max():.3g} ms")

# %%
parts, n = [], len(ms)
for fold in range(5):
    order = np.roll(np.arange(n), fold * (n // 5))  # fit_latency holds its last fifth out
    fitted, out_of = np.split(order, [n - n // 5])
    table = fit_latency(net, space, tried[order], ms[order])
    line = np.polynomial.Polynomial.fit(macs[fitted], ms[fitted], 1)
    predicted = {"pairs of widths": table.predict(tried[out_of]), "MACs alone": line(macs[out_of])}
    parts += [pd.DataFrame({"measured": ms[out_of], "predicted": values,
                            "model": model, "fold": fold}) for model, values in predicted.items()]
held_out = pd.concat(parts, ignore_index=True)

# %%
needs_pairs = Claim(
    "latency-needs-pairs", chapter.name, "Tables of pairs predict latency better than MACs",
    "AOWS, as told in Multi-platform, section 3.2", "mape", "superiority",
    ("pairs of widths", "MACs alone"), 0, direction="less", unit="%")
held_out["mape"] = 100 * (held_out["predicted"] / held_out["measured"] - 1).abs()
mape = held_out.pivot_table("mape", "fold", "model")
pairs, straight = mape["pairs of widths"], mape["MACs alone"]
title = f"Held out: pairs of widths err by {pairs.mean():.1f} %, MACs by {straight.mean():.1f} %"
chapter.save(figures.latency_fit(held_out, title), "latency-model")
chapter.claim(needs_pairs, pairs, straight, [timed["run_id"]])

# %% [markdown]
# Now the search takes milliseconds for its budget: each platform gets the predicted time of its subnet that was
# searched by MACs. By construction nothing is lost. What is gained?

# %%
table = fit_latency(net, space, tried, ms, about)
within = np.array([table.of(subnet) for subnet in subnets])
by_ms, faster = platform_subnets(unary, space, Trellis.of(table.chain()), within, exact_under)
pd.DataFrame({
    "ms": within, "M MACs, by MACs": [f.cost / 1e6 for f in found],
    "M MACs, by ms": [trellis.cost(f.index) / 1e6 for f in faster],
    "gain in score": [g.score - f.score for g, f in zip(faster, found, strict=True)],
    "units that differ": [trellis.units - markets.shared_units(*pair)
                          for pair in zip(subnets, by_ms, strict=True)]}, index=PLATFORMS).round(4)

# %% [markdown]
# ## What surprised us

# %%
spread = accuracy[accuracy["arm"] == "OWS-U"].groupby("market")["top1"].mean()
doubled = [arm for (arm, _), of_it in chosen.items() if len(set(of_it)) < len(of_it)]
over = {arm: (in_u["OWS-U"] - in_u[arm]).mean() for arm in ("Slim-U", "Random-U")}
over = ", ".join(f"{gain:+.2f} points over {arm}" for arm, gain in over.items())
print("OWS-U in market U:", over)
print(f"OWS-U over the six markets: {np.ptp(spread):.2f} points from worst to best")
print(f"wrong forecasts: {wrong['regret'].min():+.2f} to {wrong['regret'].max():+.2f} points;",
      f"{(wrong['regret'] < 0).sum()} of {len(wrong)} (pairs, seeds) beat the right one")
print("searches in which two platforms get one subnet:", ", ".join(doubled) or "none")

# %% [markdown]
# - Read the first line before praising a search: random widths at the same MACs are the yardstick, and the paper has
#   none.
# - One and the same net differs between markets, so rows of Table 2 must not be compared.
# - Where a wrong forecast beats the right one, that is noise, and tells how large noise is. The paper's lead of AOWS
#   over OWS is .12 points at the most (Table 2, row S), from one run each.
# - Two platforms may receive one subnet: the Lagrangian jumps over all that lies between two corners of the front.
#
# ## Summary
#
# - A search over pairwise costs is exact but for its duality gap, and the gap comes with the answer.
# - One run of OWS serves all budgets and markets, in MACs or milliseconds. AOWS wants a run per market.
# - A market is a set of weights. It changes the average, the sampling and the risk of a wrong forecast, and it hides
#   the regret of a single customer.
#
# ## Exercises
#
# 1. *Recall.* In the restaurant, what do $\alpha \to 1$ and $\theta \to \infty$ do?
# 2. *By hand.* Two guests share a table ($\alpha = .3$, $\theta = .15$). How likely does the third open another?
# 3. *By hand.* What do the widths 16, 16, 24 cost in the toy, and what do they score? Why does no multiplier find them?
# 4. *Code.* At which whole budget of the toy is the gap largest?
# 5. *Code.* How many different subnets can the Lagrangian find in the OWS search, at any budget?
# 6. *Ablation.* Search with the *ranks* of the scores within each unit in their place. Which platforms change?
#
# The cells below hold checkable answers.

# %% tags=["hide-cell"]
for discount, strength in ((0.99, 0.15), (0.3, 1e6)):
    sizes = crp.chinese_restaurant_process(100, discount, strength, rng)
    print(f"1. alpha {discount}, theta {strength:g}: {len(sizes)} tables for 100 guests")
third = crp.seating([2], alpha, theta)[1]
print(f"2. (.15 + .3) / (2 + .15) = {third}, about {float(third):.3f}")

# %% tags=["hide-cell"]
path = np.array([1, 1, 2])
assert not (viterbi(toy_scores, toy, np.linspace(0, 1, 10_001)) == path).all(1).any()
corners = best_under(toy_scores, toy, [6, 12])
line = np.interp(10, *np.array([(f.cost, f.score) for f in corners]).T)
print(f"3. cost {toy.cost(path):g}, score {toy_scores[range(3), path].sum():.2f}, which is below",
      f"the line through the answers at 6 and 12: {line:.3f} at 10")
gaps = [found.gap for found in best_under(toy_scores, toy, np.arange(2, 19))]
print(f"4. {2 + np.argmax(gaps)}, with a gap of {max(gaps):.3f}")

# %% tags=["hide-cell"]
steep = np.abs(unary[trellis.exists]).max() * trellis.units / np.abs(trellis.tables[0]).max()
every = np.append(0, np.geomspace(1e-6, 1e3, 50_001) * steep)
print("5.", len(np.unique(viterbi(unary, trellis, every), axis=0)), "corners of the front")

# %% tags=["hide-cell"]
ranks = np.where(trellis.exists, unary.argsort(1).argsort(1) / trellis.choices, -np.inf)
ranked, _ = platform_subnets(ranks, space, trellis, budgets)
stay = [markets.shared_units(*pair) for pair in zip(subnets, ranked, strict=True)]
print(f"6. units that stay, of {trellis.units}:", dict(zip(PLATFORMS, stay, strict=True)))

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
