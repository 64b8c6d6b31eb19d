"""Claims written down before they are run, the verdict the seeds allow, and the ledger of all verdicts.

Arms share their seeds, so every test is paired: d_i = s (A_i - B_i), s = -1 where less is better. Fewer
seeds than planned decide nothing, fewer than five never can; a verdict is always one at a scale.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Interval
from filelock import FileLock
from scipy import stats

from slimnb.book.parameters import refuse
from slimnb.errors import ParameterError, StoreError
from slimnb.rules import Amount, checked
from slimnb.runs.files import Damaged, Failpoint, make_folder, read_file, write_file

KINDS = ("exact", "superiority", "equivalence", "ordering", "quantity")
ALPHA = 0.05  # a claim holds at p <= ALPHA after Holm; intervals cover 1 - ALPHA, two-sided
MIN_SEEDS = 5  # an exact sign-flip test of n pairs cannot go below p = 2**-n: four seeds give .0625
MAX_SEEDS = 16  # 65,536 sign flips: the test stays exact
TEXT = ["claim", "scale", "verdict", "alone", "chapter", "kind", "metric", "unit", "arms",
        "statement", "source", "runs"]
NUMBERS = ["seeds_run", "seeds_planned", "mean", "low", "high", "p", "p_holm", "detectable",
           "delta", "a_mean", "b_mean", "paper_value"]
EDGE = {"holds": "#009E73", "contradicted": "#D55E00", "inconclusive": "#E69F00", "not run": "#888888"}


@dataclass(frozen=True, slots=True)
@checked
class Claim:
    """One statement of a paper with all that decides it, fixed before anything is run.

    `delta` is the smallest effect of interest in `unit`s: what superiority must reach, the margin of an
    equivalence or a quantity, the tolerance of an exact claim, the least Kendall tau of an ordering.
    """

    id: str
    chapter: str
    statement: str
    source: str  # paper and table or figure: "US-Net, Table 2"
    metric: str  # a column of the results: "top1", "ms", "macs"
    kind: str  # one of KINDS
    arms: tuple[str, str]
    delta: Amount
    direction: str = "greater"  # the claim says A > B; "less": A < B
    seeds: Annotated[int, Interval(ge=1, le=MAX_SEEDS)] = MIN_SEEDS  # planned: none dropped, none added
    paper_value: float | None = None  # the paper's A - B (or its tau, its quantity) in `unit`s
    unit: str = "points"

    def __post_init__(self):
        rules = [
            ("id", re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", self.id), "1 to 80 of a-z 0-9 . _ -"),
            ("kind", self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            ("direction", self.direction in ("greater", "less"), "'greater' or 'less'"),
            ("delta", np.isfinite(self.delta) and self.delta >= 0, "a finite number >= 0"),
            ("seeds", 1 <= self.seeds <= MAX_SEEDS, f"1 to {MAX_SEEDS}"),
        ]
        for name, ok, rule in rules:
            if not ok:
                raise refuse(f"Claim.{name}", getattr(self, name), f"must be {rule}", "Correct the claim.")
        for f in fields(self):
            for value in (self.arms if f.name == "arms" else [getattr(self, f.name)]):
                _check_cell(f"Claim.{f.name}", value)

    @property
    def rule(self) -> str:
        """When it holds, in words: "top1: A above B by at least 0.5 points"."""
        a, b = self.arms
        side = "above" if self.direction == "greater" else "below"
        rules = {"superiority": f"{a} {side} {b} by at least {self.delta:g} {self.unit}",
                 "ordering": f"{a} ordered as {b}, Kendall tau at least {self.delta:g}"}
        return f"{self.metric}: " + rules.get(self.kind, f"{a} equal to {b} within {self.delta:g} {self.unit}")

    @property
    def cited(self) -> str:
        """Its source, with the paper's value where there is one: "DepS, Table 2 (paper: 2 points)"."""
        return self.source + ("" if self.paper_value is None else f" (paper: {self.paper_value:,.7g} {self.unit})")


def _check_cell(name: str, value: Any) -> None:
    # Spreadsheets run a cell that starts so, and the ledger is a CSV file; a tab or a line's end begins a cell, too.
    if isinstance(value, str) and (re.match(r"\s*[=+@-]", value) or not value.isprintable()):
        raise refuse(name, value, "a cell of the ledger has no leading = + - @, tab or line's end", "Correct the text.")


def by_id(claims: Iterable[Claim]) -> dict[str, Claim]:
    """Claims under their ids, in their order. Raises ParameterError for an id that two of them have."""
    table: dict[str, Claim] = {}
    for claim in claims:
        if claim.id in table:
            raise ParameterError(f"Claim.id = {claim.id!r}", "two claims have it", "Rename one.")
        table[claim.id] = claim
    return table


def overview(claims: Iterable[Claim]) -> Any:
    """What claims say and when they hold, as a table for a chapter (Markdown)."""
    from IPython.display import Markdown

    rows = [("id", "claim", "holds if", "seeds", "source"), ("---",) * 5]
    rows += [(f"`{c.id}`", c.statement, c.rule, str(c.seeds), c.cited) for c in claims]
    return Markdown("\n".join("| " + " | ".join(row) + " |" for row in rows))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the seeds say about a claim at a scale; shows itself as a card in a notebook.

    `alone` judges the claim on its own; `verdict` is the same until the ledger corrects for all the claims
    of the scale (`p_holm`). `mean`, `low`, `high`, `detectable` are in units, in the claim's direction.
    """

    claim: Claim
    scale: str
    alone: str  # "holds" | "contradicted" | "inconclusive" | "not run"
    verdict: str
    n: int = 0
    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    detectable: float = np.nan
    a_mean: float = np.nan
    b_mean: float = np.nan
    runs: tuple[str, ...] = ()
    p_holm: float = np.nan

    def __post_init__(self):
        for text in (self.scale, *self.runs):
            _check_cell("Verdict", text)

    def row(self) -> dict:
        """The ledger row, flat: the fields of the claim and of the verdict."""
        row = asdict(self.claim) | asdict(self) | {"seeds_run": self.n, "seeds_planned": self.claim.seeds}
        row |= {"claim": self.claim.id, "arms": " / ".join(self.claim.arms), "runs": " ".join(self.runs)}
        return {name: row[name] for name in TEXT + NUMBERS}

    def __str__(self) -> str:
        return f"{self.claim.id}: {self.headline}"

    @property
    def headline(self) -> str:
        """The verdict in one line: "holds at small: observed +1.2 points, 95% interval +0.4 to +2.0"."""
        unit = "" if self.claim.kind == "ordering" else f" {self.claim.unit}"
        line = f"{self.verdict} at {self.scale}"
        if self.n == 0:
            return line
        if self.claim.kind == "exact":
            return f"{line}: largest difference {self.mean:,.7g}{unit}"
        if self.n < self.claim.seeds:
            line += f" with the planned seeds ({self.n} of {self.claim.seeds})"
        elif self.verdict == "not run":
            line += ", a quantity is judged at full scale only"
        line += f": observed {self.mean:+.3g}{unit}"
        if self.n > 1:
            line += f", 95% interval {self.low:+.3g} to {self.high:+.3g}, {self.n} seeds"
        return line + (f" ({self.alone} before Holm's correction)" if self.verdict != self.alone else "")

    def lines(self) -> list[tuple[str, str]]:
        """The card as (label, text) pairs."""
        c = self.claim
        out = [("Claim", c.statement), ("Source", c.cited),
               ("Rule", c.rule),
               ("Verdict", self.headline)]
        if not np.isnan(self.p):
            holm = "" if np.isnan(self.p_holm) else f" ({self.p_holm:.3g} after Holm's correction)"
            effect = f"smallest detectable effect {self.detectable:.2g}"
            out.append(("Evidence", f"p = {self.p:.3g}{holm}, {effect}"))
        return out

    def _repr_html_(self) -> str:
        left = "text-align:left;vertical-align:top"
        rows = "".join(f'<tr><th scope="row" style="{left};padding:.15em 1em">{label}</th>'
                       f'<td style="{left}">{html.escape(text)}</td></tr>' for label, text in self.lines())
        edge = f"border-left:5px solid {EDGE[self.verdict]};margin:.6em 0"
        return f'<table class="slimnb-verdict" style="{edge}">{rows}</table>'


def sign_flip(d: np.ndarray) -> float:
    """Exact one-sided p of mean(d) > 0 over all 2^n sign flips of d (n,); NaN for one seed."""
    if len(d) < 2:
        return np.nan
    return float(stats.permutation_test((d,), np.mean, permutation_type="samples", alternative="greater",
                                        n_resamples=2**MAX_SEEDS, vectorized=True).pvalue)


def interval(d: np.ndarray) -> tuple[float, float]:
    """Two-sided 95 % paired-t interval of the mean of d (n,); NaN for one seed, a point without spread."""
    if len(d) < 2:
        return np.nan, np.nan
    if _constant(d):
        return float(d.mean()), float(d.mean())
    low, high = stats.ttest_1samp(d, 0.0).confidence_interval(1 - ALPHA)
    return float(low), float(high)


def tost(d: np.ndarray, delta: float) -> float:
    """p of two one-sided paired-t tests that |mean(d)| < delta (Schuirmann 1987); NaN for one seed."""
    if len(d) < 2:
        return np.nan
    if _constant(d):
        return float(abs(d.mean()) > delta)
    return float(max(stats.ttest_1samp(d, -delta, alternative="greater").pvalue,
                     stats.ttest_1samp(d, delta, alternative="less").pvalue))


def detectable(d: np.ndarray) -> float:
    """The smallest true effect that n pairs with this spread show with 80 % power; NaN for one seed."""
    if len(d) < 2:
        return np.nan
    level, power = stats.t.ppf([1 - ALPHA / 2, 0.8], len(d) - 1)
    return float((level + power) * stats.sem(d))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's p values of p (m,): the k-th smallest times m - k + 1, made monotone, at most 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind="stable")]


def _constant(d: np.ndarray) -> bool:
    return bool(np.ptp(d) <= 1e-12 * np.abs(d).max())  # scipy would divide by a spread of rounding errors


def judge(claim: Claim, a, b=None, *, scale: str, runs: Iterable[str] = ()) -> Verdict:
    """The verdict on `claim` from arm A `a` and arm B `b` at `scale`.

    Shapes: (seeds,), paired; an ordering takes `a` (seeds, subnets) and the order to find in `b`, which
    broadcasts; an exact claim any. `b` defaults to the paper's value. An empty `a` is "not run".
    """
    if np.size(a) == 0:
        return Verdict(claim, scale, "not run", "not run", runs=tuple(runs))
    a, b = _checked(claim, a, claim.paper_value if b is None else b)
    numbers = {"runs": tuple(runs), "n": len(a), "a_mean": float(a.mean()), "b_mean": float(b.mean())}
    if claim.kind == "exact":
        worst = float(np.abs(a - b).max())
        word, numbers["mean"] = "holds" if worst <= claim.delta else "contradicted", worst
        return Verdict(claim, scale, word, word, **numbers)
    d = _differences(claim, a, b)
    low, high = interval(d)
    numbers |= {"mean": float(d.mean()), "low": low, "high": high, "detectable": detectable(d)}
    if len(d) < claim.seeds or (claim.kind == "quantity" and scale != "full"):
        return Verdict(claim, scale, "not run", "not run", **numbers)
    if claim.kind in ("equivalence", "quantity"):
        p = tost(d, claim.delta)
        holds, contradicted = p <= ALPHA, low > claim.delta or high < -claim.delta
    else:
        p = sign_flip(d)
        holds, contradicted = p <= ALPHA and low > 0 and d.mean() >= claim.delta, high < claim.delta
    word = "holds" if holds else "contradicted" if contradicted else "inconclusive"
    word = word if len(d) >= MIN_SEEDS else "inconclusive"
    return Verdict(claim, scale, word, word, p=p, **numbers)


def paired(frame: pd.DataFrame, claim: Claim, **where) -> tuple[np.ndarray, np.ndarray]:
    """Both arms' `claim.metric` (seeds,), by ascending seed, from rows with columns arm and seed.

    `where` narrows the rows (mult=0.25). A seed that one arm lacks is left out: the claim is "not run".
    """
    for column, value in where.items():
        frame = frame[frame[column] == value]
    frame = frame[frame["arm"].isin(claim.arms)]
    if frame.duplicated(["arm", "seed"]).any():
        raise ParameterError(f"claim {claim.id}: several rows per arm and seed",
                             "one value each is compared", "Narrow the rows: paired(frame, claim, mult=0.25).")
    a, b = (frame[frame["arm"] == arm].set_index("seed")[claim.metric] for arm in claim.arms)
    seeds = sorted(set(a.index) & set(b.index))
    return a.loc[seeds].to_numpy(float), b.loc[seeds].to_numpy(float)


def _checked(claim: Claim, a, b) -> tuple[np.ndarray, np.ndarray]:
    try:
        a, b = np.asarray(a, float), np.asarray(np.nan if b is None else b, float)
        a, b = np.broadcast_arrays(a, b) if claim.kind == "exact" else (a, np.broadcast_to(b, a.shape))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"claim {claim.id}: {str(error)[:60]}", "arms are numbers, paired by seed",
                             "Use claims.paired.") from None
    dims = 2 if claim.kind == "ordering" else 1
    n, free = len(np.atleast_1d(a)), claim.kind == "exact"
    rules = [(np.isfinite(a).all() and np.isfinite(b).all(), "a value is missing or not finite",
              "a diverged seed is a result", "Give the accuracy it reached; without b, a paper_value."),
             (free or a.ndim == dims, f"shape {a.shape}", f"{dims} axes are needed, seeds first", "Reshape."),
             (free or n <= claim.seeds, f"{n} seeds, {claim.seeds} planned", "none is added after the plan",
              "Give the planned seeds.")]
    for ok, what, why, fix in rules:
        if not ok:
            raise ParameterError(f"claim {claim.id}: {what}", why, fix)
    return np.atleast_1d(a), np.atleast_1d(b)


def _differences(claim: Claim, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    d = a - b
    if claim.kind == "ordering":  # tau is NaN where all subnets tie: no order was found
        d = np.nan_to_num([stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])
    return -d if claim.direction == "less" else d


def ledger_frame(path: str | Path) -> pd.DataFrame:
    """Read the ledger at `path` (CSV) as one row per claim and scale; it is empty where there is no file yet.

    Raises StoreError for a file that is not a whole ledger.
    """
    path = Path(path)
    columns, rows = TEXT + NUMBERS, []
    if path.exists():
        try:
            head, *rows = csv.reader(io.StringIO(read_file(path).decode(), newline=""), strict=True)
            wrong = "columns" if head != columns else "rows" if any(len(row) != len(columns) for row in rows) else ""
            wrong = wrong or "a claim twice" * (len({tuple(row[:2]) for row in rows}) < len(rows))
            wrong = wrong or "verdicts" * (not {word for row in rows for word in row[2:4]} <= EDGE.keys())
        except (ValueError, csv.Error, Damaged):
            wrong = "no CSV text"
        if wrong:
            raise _not_a_ledger(path, wrong)
    frame = pd.DataFrame(rows, columns=columns, dtype=str)
    try:
        return frame.assign(**{c: pd.to_numeric(frame[c].mask(frame[c] == "")) for c in NUMBERS})
    except ValueError:
        raise _not_a_ledger(path, "numbers") from None


def _not_a_ledger(path: Path, what: str) -> StoreError:
    fix = "Restore it (git checkout), or move it away and record the claims again."
    return StoreError(f"{path.name[:60]}: {what}", "must be a whole ledger of this version", fix, "Kept as it is.")


def record(path: str | Path, verdicts: Verdict | Iterable[Verdict]) -> list[Verdict]:
    """Put the verdicts into the ledger at `path`; they come back with Holm's correction at their scale.

    A row of the same claim and scale is replaced. Rows are sorted, the file is written whole or not at
    all, and two chapters that record at the same time wait for each other.
    """
    path, verdicts = Path(path), [verdicts] if isinstance(verdicts, Verdict) else list(verdicts)
    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = {(r["claim"], r["scale"]): r for r in ledger_frame(path).to_dict("records")}
        rows |= {(v.claim.id, v.scale): v.row() for v in verdicts}
        ledger = settle(pd.DataFrame([rows[key] for key in sorted(rows)], columns=TEXT + NUMBERS))
        text = ledger.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_file(path, text.encode(), Failpoint(), "ledger")
    rows = ledger.set_index(["claim", "scale"])[["verdict", "p_holm"]].to_dict("index")
    return [replace(v, **rows[v.claim.id, v.scale]) for v in verdicts]


def settle(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger with `p_holm` over the claims of each scale and the verdicts that survive it."""
    ledger = ledger.astype(dict.fromkeys(NUMBERS, float))
    ledger["p_holm"] = np.nan
    for _, tested in ledger[ledger["p"].notna()].groupby("scale"):
        ledger.loc[tested.index, "p_holm"] = holm(tested["p"].to_numpy())
    fails = (ledger["alone"] == "holds") & (ledger["p_holm"] > ALPHA)
    return ledger.assign(verdict=ledger["alone"].where(~fails, "inconclusive"))
