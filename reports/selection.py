"""How much better than it is the best of many looks on validation.

Whoever picks the largest of many noisy scores picks luck along with merit. The bootstrap repeats the picking:
replicates and examples (or their groups, where these were sampled) are drawn with replacement, the best cell of a draw
is picked and scored on what the draw left out. The mean distance between the two scores is the inflation: the optimism
of Efron and Tibshirani (1993, chapter 17), of a choice among cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from reports.comparison import Analysis, codes
from reports.records import Floats
from reports.statistics import FEW_GROUPS

_DRAWS = 400


@dataclass(frozen=True)
class Inflation:
    """The luck of the pick.

    Attributes:
        score: the winner's validation score.
        inflation: how much of it is the picking's, in the same unit; never below 0.
        winners: cells that were ever picked, with the share of draws in which they were, the most often first.
        candidates: cells to pick from.
    """

    score: float
    inflation: float
    winners: tuple[tuple[str, float], ...]
    candidates: int


def inflation(analysis: Analysis) -> Inflation | None:
    """Of the pick on the primary measure; None below two replicates or two cells."""
    measure = analysis.objective
    cells = [c.id for c in analysis.ranked(measure.name)]
    found = {c: o for c in cells if (o := analysis.outcomes(c, measure.name, "val")) is not None}
    if len(found) < 2:
        return None
    shared = sorted(set.intersection(*(set(o.examples) for o in found.values())))
    rows = sorted(set.intersection(*(set(o.replicates) for o in found.values())))
    if len(rows) < 2 or len(shared) < 2:
        return None
    scores = np.stack([measure.sign * o.cut(rows, shared) for o in found.values()])
    first = next(iter(found.values()))
    group = dict(zip(first.examples, first.groups, strict=False))
    names = tuple(group[e] for e in shared) if group else ()
    gap, shares = optimism(scores, codes(names))
    order = np.argsort(-shares)
    winners = tuple((list(found)[i], float(shares[i])) for i in order if shares[i] > 0)
    best = cells[0]
    return Inflation(analysis.validation[best, measure.name], max(gap, 0.0), winners, len(found))


def optimism(
    scores: Floats, groups: ArrayLike | None = None, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, Floats]:
    """Mean of in-bag minus out-of-bag score of the cell that each draw picks, and how often each was picked.

    Args:
        scores: ``[C, R, N]``, more is better.
        groups: ``[N]`` as in :func:`reports.statistics.noise`: from ten on they are drawn, else examples are.
        draws: how many.
        seed: of the draws.
    """
    cells, replicates, examples = scores.shape
    clusters = np.arange(examples)
    if groups is not None:
        known = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        clusters = known if known.max(initial=0) + 1 >= FEW_GROUPS else clusters
    number = int(clusters.max()) + 1
    member = np.zeros((examples, number))
    member[np.arange(examples), clusters] = 1
    sums = scores @ member  # [C, R, K]
    sizes = member.sum(0)
    generator = np.random.default_rng(seed)
    gaps, picked = [], np.zeros(cells)
    for _ in range(draws):
        rows = np.bincount(generator.integers(0, replicates, replicates), minlength=replicates).astype(float)
        columns = np.bincount(generator.integers(0, number, number), minlength=number).astype(float)
        out_rows, out_columns = (rows == 0).astype(float), (columns == 0).astype(float)
        if not out_rows.any() or not (out_columns * sizes).any():
            continue  # nothing is left to score on
        inside = np.einsum("crk,r,k->c", sums, rows, columns) / (rows.sum() * (columns @ sizes))
        best = int(inside.argmax())
        outside = float(out_rows @ sums[best] @ out_columns) / (out_rows.sum() * (out_columns @ sizes))
        gaps.append(inside[best] - outside)
        picked[best] += 1
    return (float(np.mean(gaps)) if gaps else 0.0), picked / max(len(gaps), 1)
