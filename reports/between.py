"""The difference between two means of two studies, which may share their noise in part.

Nothing to pair is assumed that was not seen. Three cases:

- *replicates and images*: the same test images, and replicates of the same names. A replicate's name seeds the order of
  the data, and with the variant the initialisation. Whether that makes two studies alike or not, differences taken
  replicate by replicate are drawn alike, so the paired interval holds either way; where the studies have nothing in
  common it only costs degrees of freedom.
- *images*: the same test images, too few replicates of the same names. Each study's replicates are a part of their own;
  images are compared by their mean over replicates. The interaction is counted twice, which errs on the wide side.
- *nothing*: other images, or only the summary numbers of an earlier report. Each study's two parts add up. Where the
  images were the same after all, this is wider than it need be.

Every part of the variance has a Student's t of its own, as in :mod:`reports.statistics` (Howe, JASA 69, 1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from reports.comparison import codes
from reports.records import Floats, Outcomes
from reports.statistics import FEW_GROUPS, Estimate, noise
from workbench.analysis_plan import FEWEST

BOTH, IMAGES, NOTHING = "replicates and images", "images", "nothing"
_SMALLEST = 1e-15  # p values are not told apart below it


@dataclass(frozen=True)
class Difference:
    """Of two means, first minus second.

    Attributes:
        parts: variances that add up to the mean's, each with its degrees of freedom.
        replicates: of the study that has fewer, or of both where they are paired.
        shares: what both have in common and is taken pairwise.
        identical: every score of both is the same: one and the same training.
    """

    mean: float
    parts: tuple[tuple[float, int], ...]
    replicates: int
    examples: int
    shares: str
    identical: bool = False

    def half(self, level: float = 0.95) -> float:
        """Half the width of the two-sided interval."""
        return float(np.sqrt(self._reach(1 - level)))

    def p(self, value: float = 0.0) -> float:
        """Two-sided p of the mean against ``value``: the level at which the interval just reaches it."""
        distance = (self.mean - value) ** 2
        if distance <= 1e-24:
            return 1.0
        far = self._reach(_SMALLEST)
        if not np.isfinite(far):
            return float("nan")
        if far <= distance:
            return 0.0
        found = optimize.brentq(lambda x: self._reach(float(np.exp(x))) - distance, np.log(_SMALLEST), 0.0)
        return float(np.exp(found))

    def p_equivalent(self, margin: float | None) -> float:
        """p of two one-sided tests (Schuirmann, 1987) that the mean lies within ± ``margin``."""
        if margin is None:
            return float("nan")
        p = max(self.p(margin), self.p(-margin)) / 2
        return p if abs(self.mean) < margin else 1 - p

    @property
    def estimate(self) -> Estimate:
        """The same as the report writes differences."""
        half, half90 = self.half(), self.half(0.90)
        return Estimate(
            mean=self.mean,
            low=self.mean - half,
            high=self.mean + half,
            low90=self.mean - half90,
            high90=self.mean + half90,
            se=sum(variance for variance, _ in self.parts) ** 0.5,
            se_seeds=float("nan"),
            se_sampling=float("nan"),
            p=self.p(),
            replicates=self.replicates,
            examples=self.examples,
        )

    def _reach(self, p: float) -> float:
        return float(sum(stats.t.isf(p / 2, df) ** 2 * variance for variance, df in self.parts if df > 0))


def from_outcomes(one: Outcomes, other: Outcomes) -> Difference | None:
    """Of two cells scored on the same test images: ``[R, N]`` each. None where they share no image."""
    images = tuple(sorted({*one.examples} & {*other.examples}))
    shared = tuple(r for r in one.replicates if r in other.replicates)
    if not images or not one.replicates or not other.replicates:
        return None
    group = dict(zip(one.examples, one.groups, strict=False))
    groups = codes(tuple(group[e] for e in images)) if group else None
    if len(shared) >= min(FEWEST, len(one.replicates), len(other.replicates)):
        scores = _cut(one, shared, images) - _cut(other, shared, images)
        found = noise(scores, groups)
        parts = ((float(found.seeds), found.df_seeds), (float(found.sampling), found.df_sampling))
        return Difference(float(found.mean), parts, len(shared), len(images), BOTH, not scores.any())
    first, second = _cut(one, one.replicates, images), _cut(other, other.replicates, images)
    seeds = [noise(scores, groups) for scores in (first, second)]
    sampling = noise((first.mean(0) - second.mean(0))[None], groups)
    return Difference(
        float(sampling.mean),
        (*((float(n.seeds), n.df_seeds) for n in seeds), (float(sampling.sampling), sampling.df_sampling)),
        min(len(first), len(second)),
        len(images),
        IMAGES,
    )


def from_estimates(one: Estimate, other: Estimate) -> Difference:
    """Of two means with their intervals, drawn independently of each other."""
    return Difference(
        one.mean - other.mean,
        tuple(part for e in (one, other) for part in _parts(e)),
        min(one.replicates, other.replicates),
        min(one.examples, other.examples),
        NOTHING,
    )


def _parts(e: Estimate) -> tuple[tuple[float, int], tuple[float, int]]:
    """Var(seeds) and Var(sampling) of a mean; degrees of freedom as :func:`reports.statistics.noise` counts them."""
    inside = e.examples - max(e.groups, 1)
    df = e.groups - 1 if e.groups >= FEW_GROUPS else inside if inside >= 1 else e.examples - 1
    return (e.se_seeds**2, e.replicates - 1), (e.se_sampling**2, max(df, 1))


def _cut(outcomes: Outcomes, replicates: tuple[str, ...], examples: tuple[str, ...]) -> Floats:
    """``[R, N]`` scores of some replicates and examples, in that order."""
    rows = {name: i for i, name in enumerate(outcomes.replicates)}
    columns = {name: i for i, name in enumerate(outcomes.examples)}
    return outcomes.scores[np.ix_([rows[r] for r in replicates], [columns[e] for e in examples])]
