"""From intervals to verdicts: better, worse, equivalent or not distinguishable, under a plan that was made beforehand.

A plan's families share its level out among them, and inside a family Holm corrects for every comparison in it. So one
level, 5 % unless planned otherwise, bounds the chance that a study of nothing but equals holds *any* false better or
worse. Equivalence (two one-sided tests against a margin) has families of its own, at the same level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import Noise, holm, noise
from fusion_workbench.schema.names import Verdict
from fusion_workbench.schema.plan import FEWEST, FEWEST_EXAMPLES, Plan

_AT_ONCE = 1 << 21  # scores that are judged in one piece: 16 MiB, and as much again a few times while they are


@dataclass(frozen=True)
class PairedScores:
    """Two systems on one measure.

    Attributes:
        scores: ``[R, N]`` differences, first minus second, same replicate, same example.
        replicates: of each row, its place among the planned replicates.
        margin: of equivalence on this measure, in the unit of the scores; None: not judged.
        groups: what each example is part of, as in :func:`reports.statistics.intervals.noise`.
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
    """p of two one-sided tests (Schuirmann, 1987) that the mean lies within ± ``margin``; NaN where that is NaN."""
    bound = np.asarray(margin, dtype=float)
    inside = np.abs(found.mean) < bound
    p = np.maximum(found.p(bound), found.p(-bound)) / 2
    return np.asarray(np.where(np.isnan(bound), np.nan, np.where(inside, p, 1.0 - p)), dtype=float)


def judge(pairs: Sequence[PairedScores], plan: Plan, reached: int) -> Mapping[tuple[str, str, str], Judged]:
    """Corrected p values of all pairs.

    At every look that is reached, each family is corrected by Holm at that look's share of the family's share of the
    level; a pair keeps its smallest value over the looks. All of them sum to the level (Bonferroni over looks and
    families, Holm within), so any one false verdict has at most that chance.

    Args:
        pairs: every comparison once, whatever baselines it serves.
        reached: how many replicates of every cell have ended; looks beyond it are not read.
    """
    out = {(p.measure, *p.key): Judged(np.nan, np.nan, 0) for p in pairs}
    for look, spent in zip(plan.looks, plan.spent(), strict=True):
        if look > reached:
            break
        rows = [tuple(i for i, r in enumerate(p.replicates) if r < look) for p in pairs]
        raw, close = _p_values(pairs, rows)
        for family in plan.families:
            own = [
                i
                for i, p in enumerate(pairs)
                if p.measure in family.measures
                and len(rows[i]) >= FEWEST
                and p.scores.shape[1] >= FEWEST_EXAMPLES  # from fewer, what others would change cannot be told
            ]
            share = family.share * spent
            corrected = holm(raw[own]) / share, holm(close[own]) / share
            for i, different, alike in zip(own, *np.minimum(corrected, 1.0), strict=True):
                key = (pairs[i].measure, *pairs[i].key)
                p, p_equivalent = np.fmin(out[key].p, different), np.fmin(out[key].p_equivalent, alike)
                out[key] = Judged(float(p), float(p_equivalent), len(rows[i]))
    return {key: judged for key, judged in out.items() if judged.replicates}


def _p_values(pairs: Sequence[PairedScores], rows: Sequence[tuple[int, ...]]) -> tuple[Floats, Floats]:
    """``[P]`` each: raw p of a difference and of equivalence, on some rows of each pair; NaN where rows are too few.

    Pairs of one shape and one set of groups are judged together: a report holds hundreds, a simulation millions.
    """
    raw, close = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    alike: dict[tuple[tuple[int, ...], int, bytes], list[int]] = defaultdict(list)
    for i, (pair, chosen) in enumerate(zip(pairs, rows, strict=True)):
        if len(chosen) >= FEWEST:
            groups = b"" if pair.groups is None else np.asarray(pair.groups).tobytes()
            alike[chosen, pair.scores.shape[1], groups].append(i)
    for (chosen, examples, _), members in alike.items():
        step = max(_AT_ONCE // (len(chosen) * examples), 1)
        for part in (members[start : start + step] for start in range(0, len(members), step)):
            found = noise(np.stack([pairs[i].scores[list(chosen)] for i in part]), pairs[part[0]].groups)
            raw[part] = found.p()
            close[part] = equivalence(found, [np.nan if (m := pairs[i].margin) is None else m for i in part])
    return raw, close


def verdict(mean: float, judged: Judged | None, level: float, sign: int = 1) -> Verdict:
    """One of the five words. A difference that is shown counts before one that is shown to be small.

    Args:
        mean: cell minus baseline.
        sign: +1 where more is better.
    """
    if judged is None or np.isnan(judged.p):
        return Verdict.NONE
    if judged.p < level:
        return Verdict.BETTER if sign * mean > 0 else Verdict.WORSE
    return Verdict.EQUIVALENT if judged.p_equivalent < level else Verdict.SAME
