"""Stages of an encoder: neighbouring layers that are alike.

Layers are cut into runs so that as much similarity as possible stays inside: of all ways to cut n layers into k runs,
the one with the largest ``Σ over runs (sum of similarities in the run) / (its length)``, found by dynamic programming.
With CKA as the kernel this is the kernel change-point problem (Arlot, Celisse and Harchaoui, JMLR 20, 2019, eq. 2.2).

How many runs: the fewest with which the layers of every run are :data:`ALIKE` on average, over its pairs. A layer that
is like none of its neighbours is a run of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from fusion_workbench.reports.statistics.example_scores import Floats

ALIKE = 0.8  # mean similarity of the pairs in a stage


@dataclass(frozen=True)
class Stage:
    """Positions ``start`` to ``end`` (not included) among the layers, and the mean similarity of their pairs."""

    start: int
    end: int
    within: float  # 1 for a single layer


def stages(similarity: ArrayLike, alike: float = ALIKE) -> tuple[Stage, ...]:
    """The fewest contiguous stages whose pairs are ``alike`` on average.

    Args:
        similarity: ``[n, n]``, symmetric, 1 on the diagonal; what is not known (nan) counts as nothing in common.
    """
    matrix = np.nan_to_num(np.asarray(similarity, dtype=float), nan=0.0)
    np.fill_diagonal(matrix, 1.0)
    best = _segmentations(matrix)
    for cuts in best:
        found = tuple(Stage(a, b, _within(matrix[a:b, a:b])) for a, b in pairwise(cuts))
        if all(stage.within >= alike for stage in found):
            return found
    return ()  # of no layers; n stages of one layer are always alike


def _segmentations(matrix: Floats) -> list[tuple[int, ...]]:
    """For 1, 2, … n runs the best cuts: where each run starts, and n."""
    n = len(matrix)
    summed = np.zeros((n + 1, n + 1))
    summed[1:, 1:] = matrix.cumsum(0).cumsum(1)
    corner = summed.diagonal()
    total = corner[None, :] + corner[:, None] - 2 * summed  # [a, b]: the sum over layers a to b
    length = np.arange(n + 1)[None, :] - np.arange(n + 1)[:, None]
    gain = np.where(length > 0, total / np.maximum(length, 1), -np.inf)
    value = gain[0]  # the best of the layers up to each, in one run
    back: list[list[int]] = []
    out: list[tuple[int, ...]] = [(0, n)] if n else []
    for runs in range(2, n + 1):
        reached = value[:, None] + gain  # [where the last run starts, where it ends]
        back.append(reached.argmax(0).tolist())
        value = reached.max(0)
        cuts = [n]
        for step in reversed(back):
            cuts.append(step[cuts[-1]])
        out.append((0, *reversed(cuts)))
        assert len(out[-1]) == runs + 1
    return out


def _within(block: Floats) -> float:
    n = len(block)
    return 1.0 if n < 2 else float((block.sum() - np.trace(block)) / (n * (n - 1)))
