"""The best cell of each task by itself: what to use when that task is all. Picked on validation, judged on test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusion_workbench.reports.analysis.comparison import Analysis, Comparison
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.names import Baseline, Verdict
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class TaskPick:
    """``comparison`` holds it against the task's best single layer; None where the study has none."""

    measure: str
    cell: Cell
    comparison: Comparison | None


def task_picks(analysis: Analysis) -> tuple[TaskPick, ...]:
    """One a task, in the study's order; none for a study of one task, whose answer it is already."""
    if len(analysis.record.tasks) < 2:
        return ()
    return tuple(
        TaskPick(task.name, ranked[0], analysis.comparisons.get((task.name, Baseline.BEST_SINGLE, ranked[0].id)))
        for task in analysis.record.tasks
        if (ranked := analysis.ranked(task.name))
    )


def task_words(analysis: Analysis, picks: Sequence[TaskPick]) -> str:
    """The picks in a sentence."""
    parts = [f"{pick.cell.name} for {pick.measure}{_judged(analysis, pick.comparison)}" for pick in picks]
    return f"Were one task all that matters, validation would pick {listed(parts)}." if parts else ""


def _judged(analysis: Analysis, found: Comparison | None) -> str:
    if found is None:
        return ""
    if found.difference is None:
        return " (the best single layer)"
    against = analysis.record.cell(found.against).name
    words: dict[str, str] = {
        Verdict.NONE: f"no verdict yet against {against}",
        Verdict.SAME: f"not distinguishable from {against}",
        Verdict.EQUIVALENT: f"equivalent to {against}",
    }
    word = words.get(found.verdict, f"{found.verdict} than {against}")
    unit = analysis.measure(found.measure).unit
    return f" ({word} on test: {unit.effect(found.difference)})"
