"""Cells and comparisons as plain values, as report.schema.json has them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fusion_workbench.reports.analysis.comparison import Comparison
from fusion_workbench.schema.study import Cell


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
