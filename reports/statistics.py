"""Intervals and tests under two crossed sources of noise: replicates (seeds) and test examples.

A score is modelled as ``mean + replicate + example + interaction``, all but the mean random. The mean squares of the
three give the variance of the grand mean, Satterthwaite its degrees of freedom. Every function takes any number of
leading axes, so that a thousand simulated studies are one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from reports.records import Floats

LEVEL = 0.95
ALPHA = 1 - LEVEL
FEWEST = 3  # replicates for a verdict
FIRM = 5  # replicates from which on a verdict is no longer provisional

BETTER, WORSE, SAME, NONE = "better", "worse", "not distinguishable", "no verdict"


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    ``p`` is two-sided against 0. With one replicate the interval is over examples alone: it leaves seeds out.
    """

    mean: float
    low: float
    high: float
    se: float
    df: float
    p: float
    replicates: int
    examples: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Crossed:
    """Of ``[..., R, N]`` scores, the leading axes kept: mean, standard error, degrees of freedom."""

    mean: Floats
    se: Floats
    df: Floats


def mean_squares(scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Two-way layout, one score a crossing: ``[..., R, N]`` → MS of replicates, examples, interaction (R, N ≥ 2)."""
    replicates, examples = scores.shape[-2:]
    by_replicate = scores.mean(-1, keepdims=True)
    by_example = scores.mean(-2, keepdims=True)
    grand = by_replicate.mean(-2, keepdims=True)
    rest = scores - by_replicate - by_example + grand
    ms_replicate = examples * ((by_replicate - grand) ** 2).sum((-2, -1)) / (replicates - 1)
    ms_example = replicates * ((by_example - grand) ** 2).sum((-2, -1)) / (examples - 1)
    ms_rest = (rest**2).sum((-2, -1)) / ((replicates - 1) * (examples - 1))
    return ms_replicate, ms_example, ms_rest


def crossed(scores: ArrayLike) -> Crossed:
    """Random-effects standard error of the grand mean of ``[..., R, N]`` scores.

    ``Var(mean) = (MS_rep + MS_ex - MS_inter) / (R·N)``. A component that comes out negative counts as zero, which
    only widens: the sum never falls below any of the three mean squares. The degrees of freedom keep all three, so
    that a replicate spread that came out small by luck still costs what few replicates cost.
    """
    x = np.asarray(scores, dtype=float)
    replicates, examples = x.shape[-2:]
    mean = x.mean((-2, -1))
    if replicates < 2 or examples < 2:  # one source of noise at most can be seen
        flat = x.reshape(*x.shape[:-2], -1)
        count = flat.shape[-1]
        se = flat.std(-1, ddof=1) / np.sqrt(count) if count > 1 else np.full(mean.shape, np.nan)
        return Crossed(mean, se, np.full(mean.shape, max(count - 1, 1), dtype=float))
    ms_rep, ms_ex, ms_rest = mean_squares(x)
    total = np.maximum(ms_rep - ms_rest, 0) + np.maximum(ms_ex - ms_rest, 0) + ms_rest
    spread = ms_rep**2 / (replicates - 1) + ms_ex**2 / (examples - 1) + ms_rest**2 / ((replicates - 1) * (examples - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, total**2 / spread, 1.0)
    return Crossed(mean, np.sqrt(total / (replicates * examples)), np.maximum(df, 1.0))


def half_width(noise: Crossed, level: float = LEVEL) -> Floats:
    """Half the width of the t interval."""
    return np.asarray(stats.t.ppf((1 + level) / 2, noise.df) * noise.se, dtype=float)


def estimate(scores: ArrayLike, level: float = LEVEL) -> Estimate:
    """Mean and interval of ``[R, N]`` scores, or of paired differences of scores."""
    x = np.asarray(scores, dtype=float)
    noise = crossed(x)
    mean, se, df = float(noise.mean), float(noise.se), float(noise.df)
    half = float(half_width(noise, level))
    if abs(mean) < 1e-12 and not se > 1e-12:
        p = 1.0  # identical scores
    elif not se > 0:
        p = 0.0 if se == 0 else float("nan")
    else:
        p = float(2 * stats.t.sf(abs(mean) / se, df))
    return Estimate(mean, mean - half, mean + half, se, df, p, x.shape[0], x.shape[1])


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values, in the order given. NaNs stay NaN and are not counted."""
    raw = np.asarray(p, dtype=float)
    adjusted = np.full(raw.shape, np.nan)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    steps = raw[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def verdict(difference: Estimate, adjusted_p: float, sign: int = 1) -> str:
    """better, worse, not distinguishable or no verdict.

    Args:
        difference: cell minus baseline, paired.
        adjusted_p: Holm-corrected within the family.
        sign: +1 where more is better.
    """
    if difference.replicates < FEWEST or np.isnan(adjusted_p):
        return NONE
    if adjusted_p >= ALPHA:
        return SAME
    return BETTER if sign * difference.mean > 0 else WORSE


def provisional(replicates: int) -> bool:
    """Whether a verdict from so many replicates is marked provisional."""
    return FEWEST <= replicates < FIRM
