"""The cheapest cell that validation cannot tell from the recommended one."""

from __future__ import annotations

from dataclasses import dataclass

from fusion_workbench.reports.analysis.comparison import Analysis, includes_zero
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.schema.names import CostMetric
from fusion_workbench.schema.plan import FEWEST
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class Cheaper:
    """The cheapest cell that validation cannot tell from the recommended one."""

    cell: Cell
    flops: float  # as a share of the recommended cell's
    validation: Estimate  # cheaper minus recommended, on the objective
    test: tuple[tuple[str, Estimate], ...]  # a measure each


def find_cheaper(analysis: Analysis, cell: Cell) -> Cheaper | None:
    measure = analysis.objective.name
    flops = {
        c.id: f for c in analysis.eligible if (f := analysis.record.mean_metric(c.id, CostMetric.FLOPS)) is not None
    }
    if cell.id not in flops:
        return None

    def price(c: Cell) -> tuple[float, int]:  # the same FLOPs with fewer layers to keep is cheaper too
        return flops[c.id], len(c.selection.layers)

    open_ = []
    for other in analysis.eligible:
        if other.id not in flops or not price(other) < price(cell):
            continue
        difference = analysis.difference(other.id, cell.id, measure, "val")
        if difference is not None and difference.replicates >= FEWEST and includes_zero(difference):
            value = analysis.validation.get((other.id, measure), float("-inf"))
            open_.append((price(other), -analysis.objective.sign * value, other.id, other, difference))
    if not open_:
        return None
    *_, other, difference = min(open_, key=lambda entry: entry[:3])
    test = [(m.name, analysis.difference(other.id, cell.id, m.name)) for m in analysis.measures]
    known = tuple((name, d) for name, d in test if d is not None)
    return Cheaper(other, flops[other.id] / flops[cell.id], difference, known)


def cheaper_words(analysis: Analysis, cheaper: Cheaper, cell: Cell) -> str:
    test = dict(cheaper.test).get(analysis.objective.name)
    unit, judged = analysis.objective.unit, ""
    if test is not None:
        sign = analysis.objective.sign
        known = not includes_zero(test)
        word = "is not distinguishable" if not known else "is better" if sign * test.mean > 0 else "is worse"
        judged = f" On test it {word} ({unit.effect(test)})."
    share = cheaper.flops * 100
    fewer, more = len(cheaper.cell.selection.layers), len(cell.selection.layers)
    cost = (
        f"at {share:.0f} % of the FLOPs"
        if share < 99.5
        else f"with {fewer} layer{'s' * (fewer > 1)} to read instead of {more}"
    )
    return (
        f"As good on validation and cheaper: {cheaper.cell.name}, {cost}, is not distinguishable from {cell.name} "
        f"there ({unit.size(cheaper.validation)}).{judged}"
    )


def none_cheaper(analysis: Analysis, cell: Cell) -> str:
    """Said only where cheaper cells were tried, with replicates enough to tell."""
    flops = {c.id: analysis.record.mean_metric(c.id, CostMetric.FLOPS) for c in analysis.eligible}
    own = flops.get(cell.id)
    tried = own is not None and any(value is not None and value < own for value in flops.values())
    return "No cheaper cell is as good on validation." if tried and len(analysis.core) >= FEWEST else ""
