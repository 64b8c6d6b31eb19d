"""Claims written down before they are run, the verdicts that the seeds allow, and the ledger of all verdicts.

Arms share their seeds, so every test is paired: d_i = A_i - B_i, shown with that sign, judged in the claim's
direction. What one claim's seeds say depends on the chapter's others twice: their variances tell how seeds scatter
(`slimnb.book.moderated`), and Holm's correction counts them. A verdict is always one at a scale.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Interval
from filelock import FileLock
from scipy import stats

from slimnb.book.moderated import Prior, holm, quantile, two_sided
from slimnb.book.parameters import refuse
from slimnb.errors import ParameterError, StoreError
from slimnb.rules import Amount, checked
from slimnb.runs.files import Damaged, Failpoint, make_folder, read_file, write_file

SEEDS = {"primary": 5, "secondary": 3, "timing": 5, "check": 3}
"""The families and the seeds (for a timing: repeats) that each plans at least; an exact claim needs one. Verdicts are
corrected within a family of a chapter. A check is of our own code, and outside the count of what papers claim."""
ALPHA = 0.05  # a claim is decided at p <= ALPHA after Holm; intervals cover 1 - ALPHA, two-sided
TEXT = ["claim", "scale", "verdict", "alone", "chapter", "family", "kind", "metric", "unit", "arms", "direction",
        "statement", "source", "runs"]
NUMBERS = ["seeds_run", "seeds_planned", "mean", "sd", "low", "high", "p", "p_holm", "detectable",
           "margin", "a_mean", "b_mean", "paper_value"]
SETTLED = ["verdict", "alone", "low", "high", "p", "p_holm", "detectable"]  # what depends on other claims
EDGE = {"holds": "#009E73", "contradicted": "#D55E00", "inconclusive": "#E69F00", "estimate only": "#56B4E9",
        "not run": "#888888"}


@dataclass(frozen=True, slots=True)
@checked
class Claim:
    """One statement of a paper with all that decides it, fixed before anything is run.

    `margin` is the smallest effect of interest in `unit`s: what superiority must reach, the margin of an
    equivalence or a quantity, the tolerance of an exact claim, the least Kendall tau of an ordering.
    Raises ParameterError for a claim that is not one, and for a plan that could never reach a verdict.
    """

    id: str
    chapter: str
    statement: str
    source: str  # paper and table or figure: "US-Net, Table 2"; "ours"
    metric: str  # a column of the results: "top1", "ms", "macs"
    arms: tuple[str, str]
    margin: Amount
    kind: Literal["exact", "superiority", "equivalence", "ordering", "quantity"] = "superiority"
    direction: Literal["greater", "less"] = "greater"  # the claim says A > B, or A < B
    family: Literal["primary", "secondary", "timing", "check"] = "secondary"
    seeds: Annotated[int, Interval(ge=0, le=1000)] = 0  # planned: none dropped, none added; 0: as its family
    paper_value: float | None = None  # the paper's A - B (or its tau, its quantity) in `unit`s
    unit: str = "points"
    where: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what narrows the rows: {"net": "resnet"}

    def __post_init__(self):
        for f in fields(self):
            for value in (self.arms if f.name == "arms" else [getattr(self, f.name)]):
                _check_cell(f"Claim.{f.name}", value)
        least = 1 if self.kind == "exact" else SEEDS[self.family]
        object.__setattr__(self, "seeds", self.seeds or least)
        object.__setattr__(self, "arms", tuple(self.arms))
        undecided = self.kind in ("equivalence", "quantity")
        rules = [
            ("id", re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", self.id), "1 to 80 of a-z 0-9 . _ -"),
            ("seeds", self.seeds >= least, f"at least {least}, or the claim can never be decided"),
            ("margin", self.margin > 0 or not undecided, f"above 0, or {self.kind} can never be shown"),
            ("margin", self.margin <= 1 or self.kind != "ordering", "a Kendall tau of at most 1"),
            ("paper_value", self.paper_value is not None or self.kind != "quantity", "there for a quantity")]
        for name, ok, rule in rules:
            if not ok:
                raise refuse(f"Claim.{name}", getattr(self, name), f"must be {rule}", "Correct the claim.")

    @property
    def rule(self) -> str:
        """When it holds, in words: "top1: A above B by at least 0.5 points"."""
        a, b = self.arms
        side = "above" if self.direction == "greater" else "below"
        rules = {"superiority": f"{a} {side} {b} by at least {self.margin:g} {self.unit}",
                 "ordering": f"{a} ordered as {b}, Kendall tau at least {self.margin:g}"}
        return f"{self.metric}: " + rules.get(self.kind, f"{a} equal to {b} within {self.margin:g} {self.unit}")

    @property
    def cited(self) -> str:
        """Its source, with the paper's value where there is one: "DepS, Table 2 (paper: 2 points)"."""
        return self.source + ("" if self.paper_value is None else f" (paper: {self.paper_value:,.7g} {self.unit})")


def _check_cell(name: str, value: Any) -> None:
    # Spreadsheets run a cell that starts so, and the ledger is a CSV file; a tab or a line's end begins a cell, too.
    if isinstance(value, str) and (re.match(r"\s*[=+@-]", value) or not value.isprintable()):
        raise refuse(name, value, "a cell of the ledger has no leading = + - @, tab or line's end", "Correct the text.")


def overview(claims: Iterable[Claim]) -> Any:
    """What claims say and when they hold, as a table for a chapter (Markdown)."""
    from IPython.display import Markdown

    rows = [("id", "claim", "holds if", "family", "seeds", "source"), ("---",) * 6]
    rows += [(f"`{c.id}`", c.statement, c.rule, c.family, str(c.seeds), c.cited) for c in claims]
    return Markdown("\n".join("| " + " | ".join(row) + " |" for row in rows))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the seeds say about a claim at a scale; shows itself as a card in a notebook.

    `verdict` is "holds", "contradicted", "inconclusive", "estimate only" (fewer seeds than planned) or "not run";
    `alone` is that before Holm's correction. `mean`, `sd`, `low` and `high` are of A - B, in units.
    """

    claim: Claim
    scale: str
    alone: str
    verdict: str
    n: int = 0
    mean: float = np.nan
    sd: float = np.nan
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
        """The ledger row, flat: the fields of the claim and of the verdict, numbers as the file has them."""
        row = asdict(self.claim) | asdict(self) | {"seeds_run": self.n, "seeds_planned": self.claim.seeds}
        row |= {"claim": self.claim.id, "arms": " / ".join(self.claim.arms), "runs": " ".join(self.runs)}
        numbers = {name: np.nan if row[name] is None else float(f"{row[name]:.6g}") for name in NUMBERS}
        return {name: row[name] for name in TEXT} | numbers

    def __str__(self) -> str:
        return f"{self.claim.id}: {self.headline}"

    @property
    def headline(self) -> str:
        """The verdict in one line: "holds at small: A - B = +1.2 points, 95% interval +0.4 to +2.0, 5 seeds"."""
        unit = "" if self.claim.kind == "ordering" else f" {self.claim.unit}"
        line = f"{self.verdict} at {self.scale}"
        if self.n == 0:
            return line
        if self.claim.kind == "exact":
            return f"{line}: largest difference {self.mean:,.7g}{unit}"
        what, of = ("tau" if self.claim.kind == "ordering" else "A - B"), f"{self.n}"
        if self.n < self.claim.seeds:
            of += f" of {self.claim.seeds}"
        elif self.verdict == "estimate only":
            line += ", a quantity is judged at full scale only"
        line += f": {what} = {self.mean:+.3g}{unit}"
        if self.n > 1:
            line += f", 95% interval {self.low:+.3g} to {self.high:+.3g}"
        line += f", {of} {'repeats' if self.claim.family == 'timing' else 'seed' + 's' * (of != '1')}"
        if self.verdict == "inconclusive":
            line += f", which could have shown {self.detectable:.2g}{unit}"
        return line + (f" ({self.alone} before Holm's correction)" if self.verdict != self.alone else "")

    def lines(self) -> list[tuple[str, str]]:
        """The card as (label, text) pairs."""
        c = self.claim
        out = [("Claim", c.statement), ("Source", c.cited),
               ("Rule", c.rule), ("Family", f"{c.family}, of {c.chapter}"), ("Verdict", self.headline)]
        if not np.isnan(self.p):
            holm = "" if np.isnan(self.p_holm) else f" ({self.p_holm:.3g} after Holm's correction)"
            effect = f"smallest detectable effect {self.detectable:.2g} {c.unit}"
            out.append(("Evidence", f"p = {self.p:.3g}{holm}, {effect}"))
        return out

    def _repr_html_(self) -> str:
        left = "text-align:left;vertical-align:top"
        rows = "".join(f'<tr><th scope="row" style="{left};padding:.15em 1em">{label}</th>'
                       f'<td style="{left}">{html.escape(text)}</td></tr>' for label, text in self.lines())
        edge = f"border-left:5px solid {EDGE[self.verdict]};margin:.6em 0"
        return f'<table class="slimnb-verdict" style="{edge}">{rows}</table>'


def judge(claim: Claim, a, b=None, *, scale: str, runs: Iterable[str] = ()) -> Verdict:
    """The verdict on `claim` from arm A `a` and arm B `b` at `scale`, as if it were the only one of its chapter.

    Shapes: (seeds,), paired; an ordering takes `a` (seeds, subnets) and the order to find in `b`, which
    broadcasts; an exact claim any. `b` defaults to the paper's value. An empty `a` is "not run". Seeds beyond
    the planned ones, which another claim on the same arms may have, are not looked at.
    """
    if np.size(a) == 0:
        return Verdict(claim, scale, "not run", "not run", runs=tuple(runs))
    a, b = _checked(claim, a, claim.paper_value if b is None else b)
    numbers = {"runs": tuple(runs), "n": len(a), "a_mean": float(a.mean()), "b_mean": float(b.mean())}
    if claim.kind == "exact":
        worst = float(np.abs(a - b).max())
        word = "holds" if worst <= claim.margin else "contradicted"
        return Verdict(claim, scale, word, word, mean=worst, **numbers)
    d = _differences(claim, a, b)
    alike = np.ptp(d) <= 1e-12 * np.abs(d).max()  # a spread of rounding errors is none
    sd = np.nan if len(d) < 2 else 0.0 if alike else float(d.std(ddof=1))
    verdict = Verdict(claim, scale, "", "", mean=float(d.mean()), sd=sd, **numbers)
    return _with(verdict, settle([verdict.row()])[0])


def paired(frame: pd.DataFrame, claim: Claim, **where) -> tuple[np.ndarray, np.ndarray]:
    """Both arms' `claim.metric` (seeds,), by ascending seed, from rows with columns arm and seed.

    `claim.where` and `where` narrow the rows: net="resnet"; "smallest" and "largest" are of a column's numbers in these
    arms' rows. A seed that one arm lacks is left out. Raises ParameterError for an unknown column, and for several rows
    of an arm and a seed.
    """
    narrow = dict(claim.where) | where
    if unknown := sorted(set(narrow) - set(frame.columns)):
        raise ParameterError(f"claim {claim.id}: where {unknown[0]!r}", f"columns are {', '.join(frame.columns)}"[:120],
                             "Correct the claim's where.")
    frame = frame[frame["arm"].isin(claim.arms)]
    for column, value in sorted(narrow.items(), key=lambda pair: pair[1] in ("smallest", "largest")):
        ends = {"smallest": frame[column].min, "largest": frame[column].max}
        frame = frame[frame[column] == (ends[value]() if isinstance(value, str) and value in ends else value)]
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
    free = claim.kind == "exact"
    rules = [(np.isfinite(a).all() and np.isfinite(b).all(), "a value is missing or not finite",
              "a diverged seed is a result", "Give the accuracy it reached; without b, a paper_value."),
             (free or a.ndim == dims, f"shape {a.shape}", f"{dims} axes are needed, seeds first", "Reshape.")]
    for ok, what, why, fix in rules:
        if not ok:
            raise ParameterError(f"claim {claim.id}: {what}", why, fix)
    planned = slice(None) if free else slice(claim.seeds)
    return np.atleast_1d(a)[planned], np.atleast_1d(b)[planned]


def _differences(claim: Claim, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    d = a - b
    if claim.kind == "ordering":  # tau is NaN where all subnets tie: no order was found
        d = np.nan_to_num([stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])
    return d


def _with(verdict: Verdict, row: Mapping[str, Any]) -> Verdict:
    return replace(verdict, **{name: row[name] for name in SETTLED})


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
    """Put the verdicts into the ledger at `path`; they come back as all the ledger's claims settle them.

    A row of the same claim and scale is replaced. Rows are sorted, the file is written whole or not at
    all, and two chapters that record at the same time wait for each other.
    """
    path, verdicts = Path(path), [verdicts] if isinstance(verdicts, Verdict) else list(verdicts)
    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = {(r["claim"], r["scale"]): r for r in ledger_frame(path).to_dict("records")}
        rows |= {(v.claim.id, v.scale): v.row() for v in verdicts}
        ledger = settle(rows[key] for key in sorted(rows))
        frame = pd.DataFrame(ledger, columns=TEXT + NUMBERS)
        text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_file(path, text.encode(), Failpoint(), "ledger")
    settled = {(row["claim"], row["scale"]): row for row in ledger}
    return [_with(v, settled[v.claim.id, v.scale]) for v in verdicts]


def settle(rows: Iterable[Mapping[str, Any]]) -> list[dict]:
    """Rows of a ledger with `SETTLED` anew, each from all the rows; those of exact claims stay as they are.

    The variances of a chapter's claims on one metric at one scale give the prior of the moderated t. Holm's
    correction is over a family of the chapter, in which a claim that is not decided yet counts as one.
    """
    rows = [dict(row) for row in rows]
    tested = [row for row in rows if row["kind"] != "exact"]
    family, metric = (lambda row, name=name: (row["scale"], row["chapter"], row[name]) for name in ("family", "metric"))
    sizes = Counter(map(family, tested))
    for _, group in groupby(sorted(tested, key=metric), metric):
        group = list(group)
        sd, n = np.array([(row["sd"], row["seeds_run"]) for row in group if row["seeds_run"] > 1]).reshape(-1, 2).T
        prior = Prior.of(sd**2, n - 1)
        for row in group:
            row |= _alone(row, prior, sizes[family(row)])
    for _, group in groupby(sorted(tested, key=family), family):
        group = list(group)
        p = np.array([row["p"] for row in group])
        for row, p_holm in zip(group, holm(np.nan_to_num(p, nan=1.0)), strict=True):
            if not np.isnan(row["p"]):
                row |= {"p_holm": p_holm, "verdict": row["alone"] if p_holm <= ALPHA else "inconclusive"}
    return rows


def _alone(row: Mapping[str, Any], prior: Prior, tests: int) -> dict:
    """`SETTLED` of a row before Holm's correction over so many `tests`.

    The mean decides what is tested: that the effect is above 0 where it reaches the margin, else that it stays
    below the margin; of an equivalence, that it is within the margin, else that it is outside.
    """
    n, mean, margin = int(row["seeds_run"]), row["mean"], row["margin"]
    out = dict.fromkeys(SETTLED, np.nan)
    if n > 1:
        error, df = prior.error(row["sd"], n)
        half = quantile(df, 1 - ALPHA / 2) * error
        shown = quantile(df, 1 - ALPHA / (2 * tests)) + quantile(df, 0.8)  # with 80 % power, at Holm's first step
        out |= {"low": mean - half, "high": mean + half, "detectable": shown * error}
    if n < row["seeds_planned"] or (row["kind"] == "quantity" and row["scale"] != "full"):
        return out | dict.fromkeys(["verdict", "alone"], "estimate only" if n else "not run")
    effect = -mean if row["direction"] == "less" else mean
    if row["kind"] in ("equivalence", "quantity"):
        for_it, gap = abs(mean) <= margin, abs(abs(mean) - margin)
    else:
        for_it = effect >= margin
        gap = effect if for_it else margin - effect
    out["p"] = two_sided(gap, error, df)
    word = "inconclusive" if out["p"] > ALPHA else "holds" if for_it else "contradicted"
    return out | {"verdict": word, "alone": word}


def tally(ledger: pd.DataFrame) -> str:
    """How many claims have each verdict, and apart from them how many checks of ours, in one line."""
    def count(rows: pd.DataFrame) -> str:
        return ", ".join(f"{rows['verdict'].eq(word).sum()} {word}" for word in EDGE if rows["verdict"].eq(word).any())

    ours = ledger["family"].eq("check")
    return f"{(~ours).sum()} claims: {count(ledger[~ours])}; {ours.sum()} checks of ours: {count(ledger[ours])}"
