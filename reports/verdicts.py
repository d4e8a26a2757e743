"""From intervals to verdicts: better, worse, equivalent or not distinguishable, under a plan that was made beforehand.

A plan's families share its level out among them, and inside a family Holm corrects for every comparison in it. So one
level, 5 % unless planned otherwise, bounds the chance that a study of nothing but equals holds *any* false better or
worse. Equivalence (two one-sided tests against a margin) has families of its own, at the same level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from reports.records import Floats, Plan
from reports.statistics import Noise, holm, noise
from workbench.analysis_plan import FEWEST

BETTER, WORSE, EQUIVALENT, SAME, NONE = "better", "worse", "equivalent", "not distinguishable", "no verdict"


@dataclass(frozen=True)
class Pair:
    """Two systems on one measure.

    Attributes:
        scores: ``[R, N]`` differences, first minus second, same replicate, same example.
        replicates: of each row, its place among the planned replicates.
        margin: of equivalence on this measure, in the unit of the scores; None: not judged.
        groups: what each example is part of, as in :func:`reports.statistics.noise`.
    """

    measure: str
    key: tuple[str, str]
    scores: Floats
    replicates: tuple[int, ...]
    margin: float | None = None
    groups: ArrayLike | None = None


@dataclass(frozen=True)
class Judged:
    """p values corrected for the family and for the looks, to be held against the study's level."""

    p: float
    p_equivalent: float
    replicates: int  # that the verdict rests on


def equivalence(found: Noise, margin: ArrayLike) -> Floats:
    """p of two one-sided tests (Schuirmann, 1987) that the mean lies within ± ``margin``."""
    bound = np.asarray(margin, dtype=float)
    inside = np.abs(found.mean) < bound
    p = np.maximum(found.p(bound), found.p(-bound)) / 2
    return np.asarray(np.where(inside, p, 1.0 - p / 2), dtype=float)


def judge(pairs: Sequence[Pair], plan: Plan, reached: int) -> Mapping[tuple[str, str, str], Judged]:
    """Corrected p values of all pairs.

    At every look that is reached, each family is corrected by Holm at that look's share of the family's share of the
    level; a pair keeps its smallest value over the looks. All of them sum to the level (Bonferroni over looks and
    families, Holm within), so any one false verdict has at most that chance.

    Args:
        pairs: every comparison once, whatever baselines it serves.
        reached: how many replicates of every cell have ended; looks beyond it are not read.
    """
    out: dict[tuple[str, str, str], Judged] = {}
    looks = [n for n in plan.looks if n <= reached]
    for family in plan.families:
        own = [p for p in pairs if p.measure in family.measures]
        for look, spent in zip(looks, plan.spent(), strict=False):
            rows = [[i for i, r in enumerate(p.replicates) if r < look] for p in own]
            seen = [noise(p.scores[r], p.groups) if len(r) >= FEWEST else None for p, r in zip(own, rows, strict=True)]
            raw = [float(s.p()) if s else np.nan for s in seen]
            close = [
                float(equivalence(s, p.margin)) if s and p.margin is not None else np.nan
                for s, p in zip(seen, own, strict=True)
            ]
            share = family.share * spent
            for p, r, different, alike in zip(own, rows, holm(raw) / share, holm(close) / share, strict=True):
                key = (p.measure, *p.key)
                before = out.get(key, Judged(np.nan, np.nan, 0))
                if len(r) >= FEWEST:
                    out[key] = Judged(
                        float(np.fmin(before.p, min(different, 1.0))),
                        float(np.fmin(before.p_equivalent, np.minimum(alike, 1.0))),
                        len(r),
                    )
    return out


def verdict(mean: float, judged: Judged | None, level: float, sign: int = 1) -> str:
    """One of the five words. A difference that is shown counts before one that is shown to be small.

    Args:
        mean: cell minus baseline.
        sign: +1 where more is better.
    """
    if judged is None or np.isnan(judged.p):
        return NONE
    if judged.p < level:
        return BETTER if sign * mean > 0 else WORSE
    return EQUIVALENT if judged.p_equivalent < level else SAME
