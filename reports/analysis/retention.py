"""Retention: what fusing costs the task that the deepest layer does best.

A one-sided test of non-inferiority: the recommended cell is no worse than the deepest layer by more than the plan's
margin. It is one question, a family of its own at the plan's level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.example_scores import codes
from fusion_workbench.reports.statistics.intervals import Estimate, noise
from fusion_workbench.schema.names import Baseline, Verdict
from fusion_workbench.schema.plan import FEWEST
from fusion_workbench.schema.records import Cell

RETAINED, LOST, OPEN, UNJUDGED = "retained", "lost", "not shown", "not judged"


@dataclass(frozen=True)
class Retention:
    """What became of the deepest layer's own task.

    Attributes:
        measure: the deepest layer's own task.
        against: the deepest layer.
        difference: the recommended cell minus it, on test.
        p: one-sided, of a loss larger than the margin; nan without a margin or with too few replicates.
        word: retained, lost, not shown or not judged.
    """

    measure: Measure
    against: Cell
    difference: Estimate
    p: float
    word: str


def own_task(analysis: Analysis) -> Measure | None:
    """The task that the deepest layer does best: where it has most of what the best single layer has, on validation.

    Scores count as gains over chance where chance and perfect are known, so that tasks of different units compare.
    """
    shares: list[tuple[float, Measure]] = []
    for task in analysis.record.tasks:
        measure = analysis.measure(task.name)
        cells = [analysis.baselines.get((task.name, b)) for b in (Baseline.DEEPEST, Baseline.BEST_SINGLE)]
        deep, best = (analysis.validation.get((c, task.name)) if c else None for c in cells)
        if deep is None or best is None:
            continue
        if task.normalisable:
            deep, best = (float(task.chance_normalised(np.asarray(v))) for v in (deep, best))
        elif task.sign < 0:
            deep, best = best, deep  # of an error the smaller is the better
        shares.append((deep / best if best > 0 else deep - best, measure))
    return max(shares, key=lambda pair: pair[0])[1] if shares else None


def retention(analysis: Analysis, judged: Analysis, cell: Cell) -> Retention | None:
    """None where there is no deepest layer to compare with, or it is the cell itself.

    Args:
        analysis: of all cells, where the task is picked.
        judged: where the cell is judged: of the fresh replicates if there are any.
    """
    measure = own_task(analysis)
    deepest = measure and judged.baselines.get((measure.name, Baseline.DEEPEST))
    if measure is None or not deepest or deepest == cell.id:
        return None
    paired = judged.paired(cell.id, deepest, measure.name)
    difference = judged.difference(cell.id, deepest, measure.name)
    if paired is None or difference is None:
        return None
    margin, p, word = judged.margin(measure), float("nan"), UNJUDGED
    known = judged.comparisons.get((measure.name, Baseline.DEEPEST, cell.id))
    if margin is not None and difference.replicates >= FEWEST:
        found = noise(measure.sign * paired.scores, codes(paired.groups))
        two_sided = float(found.p(-margin))
        p = two_sided / 2 if float(found.mean) > -margin else 1 - two_sided / 2
        word = RETAINED if p < analysis.plan.level else OPEN
    if known is not None and known.verdict == Verdict.WORSE and word != RETAINED:
        word = LOST
    return Retention(measure, analysis.record.cell(deepest), difference, p, word)


def retention_words(found: Retention | None, cell: Cell, margin: str) -> str:
    """The finding in a sentence; empty where there is none."""
    if found is None:
        return ""
    unit = found.measure.unit
    size = f"{unit.size(found.difference)} against {found.against.name}"
    said = {
        RETAINED: f"is retained: {cell.name} makes {size}, no worse by more than {margin}",
        LOST: f"is not retained: {cell.name} makes {size}",
        OPEN: f"is not shown to be retained within {margin}: {cell.name} makes {size}",
        UNJUDGED: f"cannot be judged yet: {cell.name} makes {size}",
    }[found.word]
    return f"What the deepest layer does best, {found.measure.name}, {said}."


def retention_json(found: Retention | None) -> dict[str, Any] | None:
    """Plain values; None where there is nothing to compare."""
    if found is None:
        return None
    plain = {"measure": found.measure.name, "against": found.against.id, "difference": asdict(found.difference)}
    return plain | {"p": found.p, "word": found.word}
