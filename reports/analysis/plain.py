"""Cells and comparisons as plain values, as report.schema.json has them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fusion_workbench.reports.analysis.comparison import Comparison, includes_zero
from fusion_workbench.reports.words.wording import pvalue
from fusion_workbench.schema.names import Verdict
from fusion_workbench.schema.records import Cell


def cell_json(cell: Cell | None) -> dict[str, Any]:
    """A cell; empty where there is none."""
    if cell is None:
        return {}
    more = {"alias": cell.alias, "lr": cell.chosen_lr, "baselines": list(cell.baselines)}
    return {"cell": cell.id, "label": cell.label} | cell.core() | more


def comparison_json(c: Comparison) -> dict[str, Any]:
    """A comparison with its verdict."""
    return {
        "measure": c.measure,
        "baseline": c.baseline,
        "against": c.against,
        "cell": c.cell,
        "difference": asdict(c.difference) if c.difference else None,
        "p": c.p,
        "p_equivalent": c.p_equivalent,
        "verdict": c.verdict,
    }


def correction(c: Comparison) -> str:
    """Why a verdict and the interval beside it seem to disagree: p before and after correction. Else empty."""
    if c.difference is None or c.verdict != Verdict.SAME or includes_zero(c.difference):
        return ""
    return f"p {pvalue(c.difference.p)} alone, {pvalue(c.p)} corrected"


def correction_sentence(c: Comparison) -> str:
    """The same as a sentence, with the space before it."""
    said = correction(c)
    return f" Alone the difference would count, but every cell is compared at once ({said})." if said else ""
