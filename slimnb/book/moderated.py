"""The moderated t (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3): few seeds learn from many claims how seeds scatter.

Five seeds tell little of a variance, but all claims of a chapter on one metric tell much. Smyth takes the true
variances for draws of a scaled inverse chi-square with `df` degrees of freedom about `var`, and shrinks each sample's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True, slots=True)
class Prior:
    """What variances have in common: d0 (`df`) and s0 squared (`var`). Without degrees of freedom, t is Student's."""

    df: float = 0.0
    var: float = 0.0
    most: float = np.inf  # degrees of freedom of all the variances together: a t has no more

    @classmethod
    def of(cls, var: np.ndarray, df: np.ndarray) -> Prior:
        """Estimate it from sample variances (claims,) and their degrees of freedom (claims,) by moments of the logs.

        This is Smyth's section 6.2. A variance of 0 has no logarithm and is left out; fewer than two variances have
        nothing in common.
        """
        var, df = (np.asarray(x, float)[np.asarray(var) > 0] for x in (var, df))
        if len(var) < 2:
            return cls()
        e = np.log(var) - special.digamma(df / 2) + np.log(df / 2)
        spread = np.mean((e - e.mean()) ** 2 * len(e) / (len(e) - 1) - special.polygamma(1, df / 2))
        if spread <= 0:  # the variances differ by no more than those of equal truths
            return cls(np.inf, float(np.exp(e.mean())), float(df.sum()))
        half = inverse_trigamma(spread)
        return cls(2 * half, float(np.exp(e.mean() + special.digamma(half) - np.log(half))), float(df.sum()))

    def error(self, sd: float, n: int) -> tuple[float, float]:
        """The moderated standard error of a mean of n values with this sd, and the degrees of freedom of its t."""
        weight = 1.0 if np.isinf(self.df) else self.df / (self.df + n - 1)
        var = weight * self.var + (1 - weight) * sd**2
        return float(np.sqrt(var / n)), float(min(self.df + n - 1, max(self.most, n - 1)))


def inverse_trigamma(x: float) -> float:
    """The y > 0 with trigamma(y) = x > 0, by Newton's method on 1 / trigamma, which is convex (Smyth's appendix)."""
    y, step = 0.5 + 1 / x, 1.0
    while abs(step) > 1e-12 * y:
        value = special.polygamma(1, y)
        step = value * (1 - value / x) / special.polygamma(2, y)
        y += step
    return float(y)


def two_sided(gap: float, error: float, df: float) -> float:
    """The p of a mean that lies `gap` >= 0 from what it is tested against; without an error, any gap is certain."""
    if error == 0:
        return float(gap == 0)
    return float(2 * special.stdtr(df, -gap / error))


def quantile(df: float, p: float) -> float:
    """The p-quantile of Student's t."""
    return float(special.stdtrit(df, p))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's p values of p (m,): the k-th smallest times m - k + 1, made monotone, at most 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind="stable")]
