"""The winner's curse: how much better than it is the best of many cells looks on validation.

The numbers are those of :mod:`reports.statistics.optimism`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.statistics.example_scores import codes
from fusion_workbench.reports.statistics.optimism import optimism
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class WinnersCurse:
    """What the best validation score owes to its being picked.

    Attributes:
        winner: the best cell on validation.
        score: its validation score.
        optimism: how much of it is the picking's, in the same unit; never below 0.
        winners: cells that were ever picked, with the share of draws in which they were, the most often first.
        candidates: cells to pick from.
    """

    winner: Cell
    score: float
    optimism: float
    winners: tuple[tuple[str, float], ...]
    candidates: int


def winners_curse(analysis: Analysis) -> WinnersCurse | None:
    """Of the pick on the primary measure; None below two replicates or two cells."""
    measure = analysis.objective
    ranked = analysis.ranked(measure.name)
    by_cell = {c.id: o for c in ranked if (o := analysis.example_scores(c.id, measure.name, "val")) is not None}
    if len(by_cell) < 2:
        return None
    shared = sorted(set.intersection(*(set(o.examples) for o in by_cell.values())))
    rows = sorted(set.intersection(*(set(o.replicates) for o in by_cell.values())))
    if len(rows) < 2 or len(shared) < 2:
        return None
    scores = np.stack([measure.sign * o.cut(rows, shared) for o in by_cell.values()])
    first = next(iter(by_cell.values()))
    group = dict(zip(first.examples, first.groups, strict=False))
    names = tuple(group[e] for e in shared) if group else ()
    gap, shares = optimism(scores, codes(names))
    order = np.argsort(-shares)
    winners = tuple((list(by_cell)[i], float(shares[i])) for i in order if shares[i] > 0)
    best = next(c for c in ranked if c.id in by_cell)
    return WinnersCurse(best, analysis.validation[best.id, measure.name], max(gap, 0.0), winners, len(by_cell))


def winners_curse_json(curse: WinnersCurse | None) -> dict[str, Any] | None:
    """Plain values; None where nothing was picked."""
    if curse is None:
        return None
    winners = [{"cell": cell, "share": share} for cell, share in curse.winners]
    plain = {"winner": curse.winner.id, "score": curse.score, "inflation": curse.optimism}
    return plain | {"winners": winners, "candidates": curse.candidates}
