"""The optimism of a choice: how much the best of many noisy scores owes to its being picked, by the bootstrap.

Whoever picks the largest of many noisy scores picks luck along with merit. The bootstrap repeats the picking:
replicates and examples (or their groups, where these were sampled) are drawn with replacement, the best cell of a draw
is picked and scored on what the draw left out. The mean distance between the two scores is the optimism of Efron and
Tibshirani (1993, chapter 17), of a choice among cells.

A draw repeats some replicates and examples and lacks others, so it is noisier than the whole study and picks more luck:
the variance that seeds and examples bring is about twice as large, that of their interaction four times. Luck grows
with the standard deviation of the noise; so the distance is divided by the root of that ratio, which the variance
components of the cells' differences give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS, mean_squares

_DRAWS = 400


def optimism(
    scores: Floats, groups: ArrayLike | None = None, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, Floats]:
    """What the best of the cells' mean scores owes to its being picked, and how often a draw picks each cell.

    The mean of in-bag minus out-of-bag score of the cells picked, at the noise of all scores and not of a draw.

    Args:
        scores: ``[C, R, N]``, more is better.
        groups: ``[N]`` as in :func:`reports.statistics.intervals.noise`: from ten on they are drawn, else examples are.
        draws: how many.
        seed: of the draws.
    """
    cells, replicates, examples = scores.shape
    clusters = np.arange(examples)
    if groups is not None:
        group_codes = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        clusters = group_codes if group_codes.max(initial=0) + 1 >= FEW_GROUPS else clusters
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
    gap = float(np.mean(gaps)) if gaps else 0.0
    return gap / np.sqrt(_excess(sums / sizes)), picked / max(len(gaps), 1)


def _excess(means: Floats) -> float:
    """Variance of the differences of ``[C, R, K]`` cells' means in a draw, over that in all scores; 1 without noise."""
    _, replicates, clusters = means.shape
    squares = mean_squares(means - means.mean(0))
    by_replicate, by_cluster, rest = (float(ms.mean()) for ms in squares)
    parts = np.array([max(by_replicate - rest, 0.0), max(by_cluster - rest, 0.0), rest])  # each times R·K
    repeats = 2 - 1 / replicates, 2 - 1 / clusters  # mean square of how often one is drawn
    total = float(parts.sum())
    return float(parts @ [*repeats, repeats[0] * repeats[1]]) / total if total > 0 else 1.0
