"""Intervals and tests under two crossed sources of noise: replicates (seeds) and test examples.

A score is modelled as ``mean + replicate + example + interaction``, all but the mean random. Examples of one group (a
photograph, a document, a speaker) are alike, so with groups enough the group is what was sampled; with few, the groups
are taken as given and only what is inside them as sampled.

The variance of the mean has two parts, each with its own degrees of freedom: what replicates show of it, and what the
sampling of examples adds. They meet as in Howe (JASA 69, 1974, 789–794): the half width is the root of
``t²(seeds) · Var(seeds) + t²(sampling) · Var(sampling)``. Satterthwaite's single t, tried first, is wrong too often far
out in the tail, where corrections for many comparisons look.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fusion_workbench.reports.statistics.example_scores import Floats

LEVEL = 0.95
ALPHA = 0.05
FEW_GROUPS = 10  # below it, verdicts are conditional on the groups at hand
_SMALLEST = 1e-15  # p values are not distinguished below it


@dataclass(frozen=True)
class Noise:
    """Of ``[..., R, N]`` scores, the leading axes kept: the mean and the two parts of its variance.

    ``df_seeds`` is 0 with one replicate: then ``seeds`` is 0, and nothing is known of it.
    """

    mean: Floats
    seeds: Floats
    sampling: Floats
    df_seeds: int
    df_sampling: int

    @property
    def se(self) -> Floats:
        return np.asarray(np.sqrt(self.seeds + self.sampling), dtype=float)

    def half(self, level: float = LEVEL) -> Floats:
        """Half the width of the two-sided interval."""
        seeds, sampling = _reach(level, self.df_seeds, self.df_sampling)
        return np.asarray(np.sqrt(seeds * self.seeds + sampling * self.sampling), dtype=float)

    def p(self, value: ArrayLike = 0.0) -> Floats:
        """Two-sided p value of the mean against ``value``: the level at which the interval just reaches it."""
        distance = (np.asarray(self.mean) - np.asarray(value, dtype=float)) ** 2
        ladder, squares = _ladder(self.df_seeds, self.df_sampling)
        seeds, sampling, distance = np.broadcast_arrays(self.seeds, self.sampling, distance)
        low, high = np.zeros(distance.shape, dtype=int), np.full(distance.shape, len(ladder) - 1)

        def reach(at: NDArray[Any]) -> Floats:
            return np.asarray(squares[0, at] * seeds + squares[1, at] * sampling, dtype=float)

        for _ in range(len(ladder).bit_length()):  # the ladder falls: find the rung that reaches as far
            middle = (low + high) // 2
            below = reach(middle) < distance
            low, high = np.where(below, np.minimum(middle + 1, high), low), np.where(below, high, middle)
        near, far = reach(np.maximum(low - 1, 0)), reach(low)
        short, step = np.sqrt(distance) - np.sqrt(near), np.sqrt(far) - np.sqrt(near)
        share = np.clip(np.divide(short, step, out=np.ones_like(step), where=step > 0), 0, 1)
        found = np.exp((1 - share) * np.log(ladder[np.maximum(low - 1, 0)]) + share * np.log(ladder[low]))
        found = np.where(distance > far, 0.0, found)
        return np.asarray(np.where(distance <= 1e-24, 1.0, np.where(np.isnan(far), np.nan, found)), dtype=float)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    ``p`` is two-sided against 0. With one replicate the interval is over examples alone: it leaves seeds out.
    ``low90`` and ``high90`` are the 90 % interval, which equivalence is judged by.
    """

    mean: float
    low: float
    high: float
    low90: float
    high90: float
    se: float
    se_seeds: float
    se_sampling: float
    p: float
    replicates: int
    examples: int
    groups: int = 0

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def mean_squares(scores: Floats, groups: ArrayLike | None = None) -> tuple[Floats, Floats, Floats]:
    """Two-way layout, one score a crossing: ``[..., R, N]`` → MS of replicates, examples, interaction (R, N ≥ 2).

    With groups, examples and interaction are those inside the groups.
    """
    codes = np.zeros(scores.shape[-1], dtype=int)
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    return _mean_squares(scores, codes)


def noise(scores: ArrayLike, groups: ArrayLike | None = None) -> Noise:
    """Mean of ``[..., R, N]`` scores and the variance of that mean.

    Var(seeds) is ``MS_replicates / (R·N)``: the spread of the replicates' means, which holds the interaction too.
    Var(sampling) is ``(MS_examples − MS_interaction) / (R·N)``, never below 0: what examples add to it.

    Args:
        scores: one an example and replicate, or differences of two cells' scores.
        groups: ``[N]``, what each example is part of. From :data:`FEW_GROUPS` on groups are what is sampled (their
            sums are, about the mean: groups may differ in size); fewer are taken as given.
    """
    x = np.asarray(scores, dtype=float)
    codes = np.zeros(x.shape[-1], dtype=int)
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        if codes.max(initial=0) + 1 >= FEW_GROUPS:
            x, codes = _by_group(x, codes), np.zeros(codes.max() + 1, dtype=int)
        elif len(codes) - (codes.max(initial=0) + 1) < 1:
            codes = np.zeros_like(codes)
    replicates, examples = x.shape[-2:]
    mean = x.mean((-2, -1))
    zero, size = np.zeros_like(mean), replicates * examples
    df_sampling = examples - (codes.max(initial=0) + 1)
    if replicates < 2:
        if examples < 2:
            return Noise(mean, zero, np.full_like(mean, np.nan), 0, 1)
        return Noise(mean, zero, _within(x.mean(-2), codes) / examples, 0, df_sampling)
    if examples < 2:
        return Noise(mean, x.mean(-1).var(-1, ddof=1) / replicates, zero, replicates - 1, 1)
    ms_replicate, ms_example, ms_rest = _mean_squares(x, codes)
    return Noise(mean, ms_replicate / size, np.maximum(ms_example - ms_rest, 0) / size, replicates - 1, df_sampling)


def estimate(scores: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Mean and interval of ``[R, N]`` scores, or of paired differences of scores; ``groups`` as in :func:`noise`."""
    x = np.asarray(scores, dtype=float)
    known = 0 if groups is None else len(np.unique(np.asarray(groups)))
    return estimated(noise(x, groups), x.shape[0], x.shape[1], known)


def estimated(found: Noise, replicates: int, examples: int, groups: int = 0) -> Estimate:
    """What :func:`estimate` gives, of a noise that is known already."""
    mean, half, half90 = float(found.mean), float(found.half()), float(found.half(0.90))
    return Estimate(
        mean=mean,
        low=mean - half,
        high=mean + half,
        low90=mean - half90,
        high90=mean + half90,
        se=float(found.se),
        se_seeds=float(np.sqrt(found.seeds)),
        se_sampling=float(np.sqrt(found.sampling)),
        p=float(found.p()),
        replicates=replicates,
        examples=examples,
        groups=groups,
    )


def quotient_shares(above: ArrayLike, below: ArrayLike) -> Floats:
    """Each example's share of a quotient of sums: q + (a − q·b) / mean(b), whose mean is q = sum(a) / sum(b).

    That is the quotient's infinitesimal jackknife (Efron, 1982, chapter 6): intervals of a mean then hold for it.

    Args:
        above: ``[..., N]``, a of each example.
        below: the same of b; their sums must be above 0.
    """
    a, b = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    quotient = a.sum(-1, keepdims=True) / b.sum(-1, keepdims=True)
    return np.asarray(quotient + (a - quotient * b) / b.mean(-1, keepdims=True), dtype=float)


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values over the last axis, in the order given. NaNs stay NaN and are not counted."""
    raw = np.asarray(p, dtype=float)
    order = np.argsort(np.where(np.isnan(raw), np.inf, raw), axis=-1, kind="stable")
    ranked = np.take_along_axis(raw, order, -1)
    known = (~np.isnan(raw)).sum(-1, keepdims=True)
    steps = np.where(np.isnan(ranked), 1.0, ranked) * np.maximum(known - np.arange(raw.shape[-1]), 1)
    adjusted = np.empty_like(raw)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1.0), -1)
    return np.where(np.isnan(raw), np.nan, adjusted)


def _mean_squares(x: Floats, codes: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """As :func:`mean_squares`; examples and interaction inside their groups."""
    replicates, examples = x.shape[-2:]
    by_replicate = x.mean(-1)
    ms_replicate = examples * by_replicate.var(-1, ddof=1)
    by_example = x.mean(-2)
    ms_example = replicates * _within(by_example, codes)
    rest = _centred(x - by_example[..., None, :], codes)
    df_rest = (replicates - 1) * (examples - codes.max(initial=0) - 1)
    return ms_replicate, ms_example, (rest**2).sum((-2, -1)) / df_rest


def _within(values: Floats, codes: NDArray[Any]) -> Floats:
    """Mean square of ``[..., N]`` values about their groups' means."""
    return np.asarray((_centred(values, codes) ** 2).sum(-1) / (len(codes) - codes.max() - 1), dtype=float)


def _centred(values: Floats, codes: NDArray[Any]) -> Floats:
    if not codes.any():
        return np.asarray(values - values.mean(-1, keepdims=True), dtype=float)
    member = np.eye(codes.max() + 1)[codes]  # [N, G]
    means = values @ (member / member.sum(0))
    return np.asarray(values - means @ member.T, dtype=float)


def _by_group(x: Floats, codes: NDArray[Any]) -> Floats:
    """``[..., R, G]`` whose mean is that of ``x``: each group's sum about the grand mean, at the mean group size."""
    grand = x.mean((-2, -1), keepdims=True)
    member = np.eye(codes.max() + 1)[codes]
    return np.asarray(grand + ((x - grand) @ member) * (member.shape[1] / len(codes)), dtype=float)


def _squares(p: Floats, df_seeds: int, df_sampling: int) -> Floats:
    """``[2, ...]``: t² of both parts at two-sided levels ``p``; 0 where a part is not known."""
    parts = [stats.t.isf(p / 2, df) ** 2 if df > 0 else np.zeros_like(p) for df in (df_seeds, df_sampling)]
    return np.asarray(parts, dtype=float)


@lru_cache(maxsize=1024)
def _reach(level: float, df_seeds: int, df_sampling: int) -> tuple[float, float]:
    """t² of both parts at one level."""
    seeds, sampling = _squares(np.asarray([1 - level]), df_seeds, df_sampling)
    return float(seeds[0]), float(sampling[0])


@lru_cache(maxsize=256)
def _ladder(df_seeds: int, df_sampling: int) -> tuple[Floats, Floats]:
    """Levels that fall from 1, and t² of both parts there."""
    exact = [0.2, 0.1, 0.05, 0.025, 0.01, 0.005, 0.001]  # so that p and interval never disagree at them
    rungs = np.unique(np.concatenate([np.logspace(np.log10(_SMALLEST), 0, 1200), exact]))[::-1]
    return rungs, _squares(rungs, df_seeds, df_sampling)
