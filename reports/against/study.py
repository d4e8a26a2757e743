"""What changed between two studies, or two states of one: cells, verdicts, recommendation, environment.

``now`` is the study of the report, ``before`` the one that it is held against. Differences are now minus before, on
test. All of them are corrected together: inside each family of the present study's plan by Holm, at the family's share
of the plan's level. So one level bounds the chance that two studies of equals hold any false better or worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_workbench.reports.against.environment import Change, changes
from fusion_workbench.reports.against.sides import Side, of_analysis
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.statistics.intervals import Estimate, holm
from fusion_workbench.reports.statistics.unpaired import Difference, of_estimates, of_example_scores
from fusion_workbench.reports.statistics.verdicts import Judged, equivalence, verdict
from fusion_workbench.schema.names import RunStatus
from fusion_workbench.schema.plan import FEWEST, FEWEST_EXAMPLES
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class CellChange:
    """One cell on one measure: ``now`` minus ``before``."""

    measure: str
    now: Cell
    before: Cell
    difference: Difference
    p: float
    p_equivalent: float
    verdict: str
    notes: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate:
        return self.difference.estimate

    @property
    def same_cell(self) -> bool:
        return same(self.now, self.before)


@dataclass(frozen=True)
class Against:
    """Everything that the section, the JSON and ``--fail-on`` say."""

    before: Side
    rows: tuple[CellChange, ...]  # cells that both have
    recommended: tuple[CellChange, ...]  # what is recommended now against what was; empty where one has none
    now_cell: Cell | None
    only_now: tuple[Cell, ...]
    only_before: tuple[Cell, ...]
    lost: tuple[Cell, ...]  # planned now, and had numbers before, and has none now
    environment: tuple[Change, ...]
    left_out: tuple[str, ...]  # measures that cannot be compared, and why
    primary: str  # the measure that decides

    @property
    def changed(self) -> bool:
        """Whether another cell is recommended."""
        now, before = self.now_cell, self.before.recommended
        return not (same(now, before) if now and before else now is before)

    @property
    def all(self) -> tuple[CellChange, ...]:
        """Every comparison once."""
        return (*self.rows, *(r for r in self.recommended if r not in self.rows))


def same(one: Cell, other: Cell) -> bool:
    """The same id; or, as ids also hash defaults that came later, the same strategy, layers and name."""
    key = (one.strategy, one.levels, one.query, one.label, one.alias)
    return one.id == other.id or key == (other.strategy, other.levels, other.query, other.label, other.alias)


def compare(analysis: Analysis, said: Answer, before: Side) -> Against:
    """Hold a study against an earlier one."""
    now = of_analysis(analysis, said)
    partner = {c.id: mate for c in now.cells if (mate := _partner(c, before.cells))}
    taken = {c.id for c in partner.values()}
    measures = [m.name for m in analysis.measures if now.kinds[m.name] == before.kinds.get(m.name)]
    wanted = [(m, c, partner[c.id]) for m in measures for c in now.cells if c.id in partner]
    winners = [(m, now.recommended, before.recommended) for m in measures if now.recommended and before.recommended]
    found: dict[tuple[str, str, str], tuple[str, Cell, Cell, Difference]] = {}
    for measure, one, other in [*wanted, *winners]:
        difference = _difference(now, before, measure, one, other)
        if difference is not None:
            found[measure, one.id, other.id] = (measure, one, other, difference)
    judged = _judge(analysis, found)
    rows = {key: _row(analysis, *what, judged.get(key)) for key, what in found.items()}
    return Against(
        before=before,
        rows=tuple(rows[key] for m, c, b in wanted if (key := (m, c.id, b.id)) in rows),
        recommended=tuple(rows[key] for m, c, b in winners if (key := (m, c.id, b.id)) in rows),
        now_cell=now.recommended,
        only_now=tuple(c for c in now.cells if c.id not in partner),
        only_before=tuple(c for c in before.cells if c.id not in taken),
        lost=()
        if analysis.record.status == RunStatus.RUNNING
        else tuple(c for c in now.cells if c.id in partner and _has(before, partner[c.id]) and not _has(now, c)),
        environment=changes(before.environment, now.environment),
        primary=analysis.objective.name,
        left_out=tuple(_why(m.name, before.kinds) for m in analysis.measures if m.name not in measures),
    )


def _difference(now: Side, before: Side, measure: str, one: Cell, other: Cell) -> Difference | None:
    """Paired as far as both sides allow; None where one has no numbers."""
    if now.example_scores and before.example_scores and now.images and now.images == before.images:
        scored = now.example_scores(one.id, measure), before.example_scores(other.id, measure)
        if scored[0] is not None and scored[1] is not None:
            paired = of_example_scores(scored[0], scored[1])
            if paired is not None:
                return paired
    mean, past = now.means.get((one.id, measure)), before.means.get((other.id, measure))
    return None if mean is None or past is None else of_estimates(mean, past)


def _judge(
    analysis: Analysis, found: Mapping[tuple[str, str, str], tuple[str, Cell, Cell, Difference]]
) -> dict[tuple[str, str, str], Judged]:
    """Corrected p values; none where fewer than five replicates, or three examples, were compared."""
    out = {}
    for family in analysis.plan.families:
        own = {
            key: difference
            for key, (measure, _, _, difference) in found.items()
            if measure in family.measures
            and difference.replicates >= FEWEST
            and difference.estimate.examples >= FEWEST_EXAMPLES
        }
        margins = {m: analysis.margin(analysis.measure(m)) for m in {key[0] for key in own}}
        p = holm([float(d.noise.p()) for d in own.values()]) / family.share
        close = [_equivalence(d, margins[key[0]]) for key, d in own.items()]
        alike = holm(close) / family.share
        for (key, d), different, same_p in zip(own.items(), p, alike, strict=True):
            out[key] = Judged(float(np.minimum(different, 1)), float(np.minimum(same_p, 1)), d.replicates)
    return out


def _equivalence(difference: Difference, margin: float | None) -> float:
    return float(equivalence(difference.noise, math.nan if margin is None else margin))


def _row(
    analysis: Analysis, measure: str, now: Cell, before: Cell, difference: Difference, judged: Judged | None
) -> CellChange:
    word = verdict(difference.mean, judged, analysis.plan.level, analysis.measure(measure).sign)
    p, alike = (judged.p, judged.p_equivalent) if judged else (math.nan, math.nan)
    notes = []
    if same(now, before):
        if now.chosen_lr != before.chosen_lr:
            notes.append(f"learning rate {_rate(before)} → {_rate(now)}")
        if now.id != before.id:
            notes.append("matched by name: its full options differ")
    if difference.identical:
        notes.append("every score is the same")
    return CellChange(measure, now, before, difference, p, alike, word, tuple(notes))


def _rate(cell: Cell) -> str:
    return "?" if cell.chosen_lr is None else f"{cell.chosen_lr:g}"


def _partner(cell: Cell, cells: Iterable[Cell]) -> Cell | None:
    known = [c for c in cells if same(cell, c)]
    return next((c for c in known if c.id == cell.id), known[0] if len(known) == 1 else None)


def _has(side: Side, cell: Cell) -> bool:
    return any(found == cell.id for found, _ in side.means)


def _why(measure: str, known: Mapping[str, Any]) -> str:
    return f"{measure}: it was {'measured otherwise' if measure in known else 'not measured'} before"
