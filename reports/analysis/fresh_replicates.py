"""The winner on fresh replicates: picked on validation, trained again on fresh replicates, judged on those alone.

The best of many looks better than it is, as luck took part in the picking. Fresh replicates had no part in it, so what
they show of winner and baselines needs no discount. With them come the budget-matched controls of the best fusion (one
layer with its parameters, or its FLOPs) and the best fusion without each of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from fusion_workbench.reports.analysis.comparison import Analysis, Comparison
from fusion_workbench.reports.analysis.plain import cell_json, comparison_json
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.schema.names import BASELINES, MATCHED_CONTROLS, MATCHED_STRATEGY, OVERALL, Budget, Role
from fusion_workbench.schema.records import Cell, Contender


@dataclass(frozen=True)
class Picks:
    """What validation points to, before fresh replicates are trained.

    Attributes:
        winner: the best cell on the plan's primary measure.
        fusion: the best that reads several layers; None where the study holds none.
        baselines: (measure, baseline) → cell.
    """

    winner: Cell
    fusion: Cell | None
    baselines: Mapping[tuple[str, str], Cell]


def picks(analysis: Analysis) -> Picks | None:
    """None where no cell has a validation objective."""
    ranked = analysis.ranked(analysis.objective.name)
    if not ranked:
        return None
    fused = [cell for cell in ranked if not cell.single and cell.strategy != MATCHED_STRATEGY]
    baselines = {key: analysis.record.cell(cell) for key, cell in analysis.baselines.items()}
    return Picks(ranked[0], fused[0] if fused else None, baselines)


@dataclass(frozen=True)
class LeftOut:
    """What a layer contributes to the best fusion: the whole minus the one trained without it, on test."""

    layer: int
    measure: str
    contribution: Estimate


class FreshReplicates:
    """What the fresh replicates show.

    Args:
        record: the whole study.
        fresh: its fresh replicates alone.

    Attributes:
        contenders: what was trained again, and why.
        analysis: winner and best fusion against every baseline, and the best fusion against its controls.
        winner: picked on validation, before there were fresh replicates.
        fusion: the best fusion, likewise; may be the winner.
        left_out: what each of the best fusion's layers is worth to it.
    """

    def __init__(self, record: StudyRecord, fresh: StudyRecord) -> None:
        def role(word: str) -> Cell | None:
            return next((c.cell for c in record.contenders if word in c.roles), None)

        self.contenders = record.contenders
        self.winner = role(Role.WINNER)
        self.fusion = role(Role.FUSION)
        measures = [task.name for task in record.tasks] + [OVERALL]
        baselines = {key: c.cell.id for c in record.contenders for key in c.stands_for}
        controls = {
            (m, Budget(b).control_name): c.cell.id for c in record.contenders for b in c.controls for m in measures
        }
        judged: set[tuple[str, str]] = {(cell.id, b) for cell in (self.winner, self.fusion) if cell for b in BASELINES}
        judged |= {(self.fusion.id, b) for b in MATCHED_CONTROLS if self.fusion}
        self.analysis = Analysis(fresh, baselines | controls, judged)
        self.left_out = tuple(self._left_out())

    @property
    def replicates(self) -> int:
        """Fresh replicates that every contender has ended."""
        return self.analysis.reached

    def compared(self, cell: Cell) -> tuple[Comparison, ...]:
        """A cell against every baseline and control, measure by measure."""
        comparisons = self.analysis.comparisons
        return tuple(
            c
            for m in self.analysis.measures
            for b in BASELINES + MATCHED_CONTROLS
            if (c := comparisons.get((m.name, b, cell.id)))
        )

    def _left_out(self) -> Iterator[LeftOut]:
        for contender in self.contenders:
            if contender.without is None or self.fusion is None:
                continue
            for measure in self.analysis.measures:
                contribution = self.analysis.difference(self.fusion.id, contender.cell.id, measure.name)
                if contribution is not None:
                    yield LeftOut(contender.without, measure.name, contribution)


@lru_cache(maxsize=8)
def judge_fresh_replicates(analysis: Analysis) -> FreshReplicates | None:
    """None where no fresh replicate was started."""
    fresh = analysis.record.fresh()
    return None if fresh is None else FreshReplicates(analysis.record, fresh)


def fresh_replicates_json(fresh: FreshReplicates | None) -> dict[str, Any]:
    """Plain values; of a study without fresh replicates, empty ones."""
    judged = {c.id: c for c in (fresh.winner, fresh.fusion) if c} if fresh else {}
    return {
        "fresh_replicates": list(fresh.analysis.record.replicates) if fresh else [],
        "ended": fresh.replicates if fresh else 0,
        "winner": fresh.winner.id if fresh and fresh.winner else None,
        "fusion": fresh.fusion.id if fresh and fresh.fusion else None,
        "contenders": [_contender_json(c) for c in fresh.contenders] if fresh else [],
        "comparisons": [comparison_json(c) for cell in judged.values() for c in fresh.compared(cell)] if fresh else [],
        "left_out": [asdict(left) for left in fresh.left_out] if fresh else [],
    }


def _contender_json(c: Contender) -> dict[str, Any]:
    return cell_json(c.cell) | {
        "roles": list(c.roles),
        "stands_for": [{"measure": measure, "baseline": baseline} for measure, baseline in c.stands_for],
        "controls": list(c.controls),
        "without": c.without,
    }
