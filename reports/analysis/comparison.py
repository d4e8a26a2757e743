"""What is compared with what: baselines, paired differences, verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fusion_workbench.reports.reading.ranking import Measure, Ranking, measured, measures_of
from fusion_workbench.reports.reading.records import ENDED, StudyRecord
from fusion_workbench.reports.statistics.example_scores import ExampleScores, codes
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS, Estimate, estimate
from fusion_workbench.reports.statistics.verdicts import PairedScores, judge, verdict
from fusion_workbench.reports.words.units import CHANCE_NORMALISED, SHARE
from fusion_workbench.schema.names import BASELINES, SINGLE_LAYER, Baseline, Verdict
from fusion_workbench.schema.plan import ComparisonFamily, Plan
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class Comparison:
    """A cell against a baseline on one measure: ``difference`` is cell minus baseline, paired."""

    measure: str
    baseline: str
    against: str  # the baseline's cell
    cell: str
    difference: Estimate | None  # None: the cell is the baseline
    p: float  # corrected for the family and the looks, to be held against the plan's level; nan: not judged
    p_equivalent: float  # the same of the difference lying within the margin
    verdict: str


class Analysis:
    """Means, baselines and comparisons of a study. Everything picked is picked on validation.

    Args:
        record: the study.
        baselines: (measure, baseline) → cell, where they were picked elsewhere; None: on this record's validation.
        judged: the (cell, baseline) to compare; None: every cell with every baseline.

    Attributes:
        plan: the study's, its part that is for comparing all cells; of one from before there were plans, the default,
            without equivalence.
        ranking: the cells by their validation, with ``core`` and ``eligible``.
        means: (cell, measure) → test mean with its interval.
        validation: (cell, measure) → validation mean over the core replicates.
        baselines: (measure, baseline) → cell.
        comparisons: (measure, baseline, cell) → comparison on test.
    """

    def __init__(
        self,
        record: StudyRecord,
        baselines: Mapping[tuple[str, str], str] | None = None,
        judged: Collection[tuple[str, str]] | None = None,
    ) -> None:
        self.record = record
        self.measures = measures_of(record)
        self.plan = record.plan.exploring() if record.plan else _unplanned(record, self.measures)
        self._judged = judged
        self._scores = {
            (cell.id, measure.name, split): scores
            for cell in record.cells
            for measure in self.measures
            for split in ("val", "test")
            if (scores := measured(record, cell.id, measure, split)) is not None
        }
        self.ranking = Ranking(record, self.measures, lambda cell, m: self._scores.get((cell, m.name, "val")))
        self.core, self.eligible, self.validation = self.ranking.core, self.ranking.eligible, self.ranking.values
        self.means = {
            (cell, measure): estimate(o.scores, codes(o.groups))
            for (cell, measure, split), o in self._scores.items()
            if split == "test" and o.scores.size
        }
        self.baselines = self._baselines() if baselines is None else dict(baselines)
        self.comparisons = self._compare()

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def objective(self) -> Measure:
        """What the recommended cell is picked by: the plan's primary measure."""
        return self.ranking.objective

    @property
    def reached(self) -> int:
        """Replicates that every cell has ended, one way or another, from the first on."""
        for number, replicate in enumerate(self.record.replicates):
            if any(self.record.state(c.id, replicate) not in ENDED for c in self.record.cells):
                return number
        return len(self.record.replicates)

    @property
    def conditional_on_groups(self) -> bool:
        """Whether the groups of the test images are too few to speak for others."""
        return 0 < len(self.record.groups) < FEW_GROUPS

    def measure(self, name: str) -> Measure:
        return next(m for m in self.measures if m.name == name)

    def example_scores(self, cell: str, measure: str, split: str = "test") -> ExampleScores | None:
        return self._scores.get((cell, measure, split))

    def ranked(self, measure: str, cells: Sequence[Cell] | None = None) -> list[Cell]:
        """Cells by their validation mean, the best first; those without one are left out."""
        return self.ranking.ranked(measure, cells)

    def paired(self, cell: str, against: str, measure: str, split: str = "test") -> ExampleScores | None:
        """Differences, cell minus baseline, of the replicates and examples that both have; None where none are."""
        return _paired(self.example_scores(cell, measure, split), self.example_scores(against, measure, split))

    def difference(self, cell: str, against: str, measure: str, split: str = "test") -> Estimate | None:
        """Cell minus baseline, same replicate, same example; None where they share none."""
        paired = self.paired(cell, against, measure, split)
        return None if paired is None else estimate(paired.scores, codes(paired.groups))

    def margin(self, measure: Measure) -> float | None:
        """What is as good as no difference, in the measure's own unit."""
        if self.plan.margin is None or measure.unit in (SHARE, CHANCE_NORMALISED):
            return self.plan.margin
        task = next((t for t in self.record.tasks if t.name == measure.name), None)
        if task is None or not task.normalisable:
            return None
        assert task.perfect is not None
        assert task.chance is not None
        return self.plan.margin * abs(task.perfect - task.chance)

    # --- building -----------------------------------------------------------------------------------------------

    def _compare(self) -> dict[tuple[str, str, str], Comparison]:
        """Every cell against every baseline, judged together. A pair that meets twice is corrected for once."""
        wanted = {
            (measure, baseline, cell.id): against
            for (measure, baseline), against in self.baselines.items()
            for cell in self.record.cells
            if (cell.id, measure) in self.means and (self._judged is None or (cell.id, baseline) in self._judged)
        }
        place = {replicate: number for number, replicate in enumerate(self.record.replicates)}
        pairs: dict[tuple[str, str, str], PairedScores] = {}
        for (measure, _, cell), against in wanted.items():
            one, other = sorted((cell, against))
            if one == other or (measure, one, other) in pairs:
                continue
            found = self.paired(one, other, measure)
            if found is not None:
                rows = tuple(place[replicate] for replicate in found.replicates)
                margin, groups = self.margin(self.measure(measure)), codes(found.groups)
                pairs[measure, one, other] = PairedScores(measure, (one, other), found.scores, rows, margin, groups)
        judged = judge(list(pairs.values()), self.plan, self.reached)
        out: dict[tuple[str, str, str], Comparison] = {}
        estimates: dict[tuple[str, str, str], Estimate | None] = {}
        for key, against in wanted.items():
            measure, baseline, cell = key
            if cell == against:
                nan = float("nan")
                out[key] = Comparison(measure, baseline, against, cell, None, nan, nan, Verdict.ITSELF)
                continue
            if (measure, cell, against) not in estimates:
                estimates[measure, cell, against] = self.difference(cell, against, measure)
            d = estimates[measure, cell, against]
            if d is not None:
                j = judged.get((measure, min(cell, against), max(cell, against)))
                word = verdict(d.mean, j, self.plan.level, self.measure(measure).sign)
                p, alike = (j.p, j.p_equivalent) if j else (float("nan"), float("nan"))
                out[key] = Comparison(measure, baseline, against, cell, d, p, alike, word)
        return out

    def _baselines(self) -> dict[tuple[str, str], str]:
        """The baselines' cells. The best single layer is each measure's own, picked on its validation mean."""
        found: dict[tuple[str, str], str] = {}
        for measure in self.measures:
            for baseline in BASELINES:
                wanted = SINGLE_LAYER if baseline == Baseline.BEST_SINGLE else baseline
                tagged = [c for c in self.record.cells if wanted in c.baselines]
                eligible = self.ranked(measure.name, [c for c in tagged if c in self.eligible])
                choice = eligible or [c for c in tagged if (c.id, measure.name) in self.means]
                if choice and (choice[0].id, measure.name) in self.means:
                    found[measure.name, baseline] = choice[0].id
        return found


def _unplanned(record: StudyRecord, measures: Sequence[Measure]) -> Plan:
    """Of a study from before there were plans: the default families, read once, and no margin."""
    primary, others = measures[-1].name, tuple(m.name for m in measures[:-1])
    families = (
        ComparisonFamily((primary,), 0.8 if others else 1.0),
        *([ComparisonFamily(others, 0.2)] if others else []),
    )
    return Plan(primary, families, 0.05, None, (max(len(record.replicates), 1),))


def _paired(one: ExampleScores | None, other: ExampleScores | None) -> ExampleScores | None:
    """Differences over the replicates and examples that both have."""
    if one is None or other is None:
        return None
    replicates = tuple(r for r in one.replicates if r in other.replicates)
    same = one.examples == other.examples
    common = one.examples if same else tuple(sorted({*one.examples} & {*other.examples}))
    if not replicates or not common:
        return None
    group = dict(zip(one.examples, one.groups, strict=False))
    groups = one.groups if same or not group else tuple(group[e] for e in common)
    return ExampleScores(replicates, common, one.cut(replicates, common) - other.cut(replicates, common), groups)


def includes_zero(difference: Estimate) -> bool:
    """Whether the uncorrected interval leaves 'no difference' open."""
    return difference.low <= 0 <= difference.high
