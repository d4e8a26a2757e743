"""What is compared with what: baselines, paired differences, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.records import Cell, Floats, Outcomes, StudyRecord
from reports.statistics import ALPHA, NONE, Estimate, estimate, holm, provisional, verdict
from reports.units import GAIN, SHARE, Unit, common, unit_of

OVERALL = "overall"  # the mean of the tasks, each turned so that more is better: what validation picks by
DEEPEST, PENULTIMATE, BEST_SINGLE, MIDDLE = "deepest layer", "penultimate layer", "best single layer", "middle concat"
BASELINES = (DEEPEST, PENULTIMATE, BEST_SINGLE, MIDDLE)
ITSELF = "the baseline itself"
FEW_GROUPS = 10


_ACRONYMS = {"iou": "IoU", "mae": "MAE"}


@dataclass(frozen=True)
class Measure:
    """A task, or the mean of all of them."""

    name: str
    title: str
    metric: str
    sign: int
    chance: float | None  # of a guess that looks at no image: fitted to the training images, scored on test
    unit: Unit = SHARE

    @property
    def shown(self) -> str:
        """The metric as people write it."""
        return _ACRONYMS.get(self.metric, self.metric)

    @property
    def minimised(self) -> bool:
        return self.sign < 0


@dataclass(frozen=True)
class Comparison:
    """A cell against a baseline on one measure: ``difference`` is cell minus baseline, paired."""

    measure: str
    baseline: str
    against: str  # the baseline's cell
    cell: str
    difference: Estimate | None  # None: the cell is the baseline
    p: float  # Holm-corrected within the family: this measure, this baseline, every cell
    verdict: str

    @property
    def provisional(self) -> bool:
        return self.difference is not None and self.verdict != NONE and provisional(self.difference.replicates)


class Analysis:
    """Means, baselines and comparisons of a study. Everything picked is picked on validation.

    Args:
        record: the study.

    Attributes:
        core: replicates that at least half of the cells have; picks are made among cells that have them all, on them
            alone, so that a study that is not complete still compares like with like.
        means: (cell, measure) → test mean with its interval.
        validation: (cell, measure) → validation mean over the core replicates.
        baselines: (measure, baseline) → cell.
        comparisons: (measure, baseline, cell) → comparison on test.
    """

    def __init__(self, record: StudyRecord) -> None:
        self.record = record
        self.measures = _measures(record)
        self._scores = {
            (cell.id, measure.name, split): scores
            for cell in record.cells
            for measure in self.measures
            for split in ("val", "test")
            if (scores := self._measured(cell.id, measure, split)) is not None
        }
        self.core = self._core()
        self.eligible = tuple(c for c in record.cells if self.core and self.core <= self._trained(c.id))
        self.means = {
            (cell, measure): estimate(o.scores)
            for (cell, measure, split), o in self._scores.items()
            if split == "test" and o.scores.size
        }
        self.validation = self._validation()
        self.baselines = self._baselines()
        self.comparisons: dict[tuple[str, str, str], Comparison] = {}
        for (measure, baseline), against in self.baselines.items():
            for comparison in self.family(measure, baseline, against):
                self.comparisons[measure, baseline, comparison.cell] = comparison

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def objective(self) -> Measure:
        """What the recommended cell is picked by."""
        return self.measures[-1]

    @property
    def conditional(self) -> bool:
        """Whether the groups of the test images are too few to speak for others."""
        return 0 < len(self.record.groups) < FEW_GROUPS

    def measure(self, name: str) -> Measure:
        return next(m for m in self.measures if m.name == name)

    def outcomes(self, cell: str, measure: str, split: str = "test") -> Outcomes | None:
        return self._scores.get((cell, measure, split))

    def ranked(self, measure: str, cells: Sequence[Cell] | None = None) -> list[Cell]:
        """Cells by their validation mean, the best first; those without one are left out."""
        sign = self.measure(measure).sign
        known = [c for c in (self.eligible if cells is None else cells) if (c.id, measure) in self.validation]
        return sorted(known, key=lambda c: (-sign * self.validation[c.id, measure], len(c.levels), c.query, c.id))

    def difference(self, cell: str, against: str, measure: str, split: str = "test") -> Estimate | None:
        """Cell minus baseline, same replicate, same example; None where they share none."""
        paired = _paired(self.outcomes(cell, measure, split), self.outcomes(against, measure, split))
        return None if paired is None else estimate(paired)

    def family(self, measure: str, baseline: str, against: str) -> list[Comparison]:
        """Every cell against one baseline on one measure, verdicts corrected together."""
        sign = self.measure(measure).sign
        cells = [c.id for c in self.record.cells if (c.id, measure) in self.means and c.id != against]
        found = [(cell, d) for cell in cells if (d := self.difference(cell, against, measure)) is not None]
        raw = [d.p if verdict(d, 0.0) != NONE else float("nan") for _, d in found]
        out = [Comparison(measure, baseline, against, against, None, float("nan"), ITSELF)]
        for (cell, d), p in zip(found, holm(raw), strict=True):
            out.append(Comparison(measure, baseline, against, cell, d, float(p), verdict(d, float(p), sign)))
        return out

    # --- building -----------------------------------------------------------------------------------------------

    def _measured(self, cell: str, measure: Measure, split: str) -> Outcomes | None:
        """A task's outcomes, or the mean over the tasks of those examples that all of them scored."""
        if measure.name != OVERALL or len(self.record.tasks) < 2:
            return self.record.outcomes.get((cell, measure.name, split))
        parts = [self.record.outcomes.get((cell, task.name, split)) for task in self.record.tasks]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        examples = tuple(sorted(set.intersection(*(set(o.examples) for o in known))))
        replicates = tuple(r for r in known[0].replicates if all(r in o.replicates for o in known))
        if not examples or not replicates:
            return None
        gains = measure.unit is GAIN
        signed = [
            task.gain(scores) if gains else task.sign * scores
            for task, o in zip(self.record.tasks, known, strict=True)
            for scores in (_cut(o, replicates, examples),)
        ]
        return Outcomes(replicates, examples, np.asarray(np.mean(signed, axis=0), dtype=float))

    def _trained(self, cell: str) -> frozenset[str]:
        return frozenset(run.replicate for run in self.record.finals(cell))

    def _core(self) -> frozenset[str]:
        have = [trained for cell in self.record.cells if (trained := self._trained(cell.id))]
        return frozenset(r for r in self.record.replicates if sum(r in t for t in have) * 2 >= len(have) > 0)

    def _validation(self) -> dict[tuple[str, str], float]:
        """Of the eligible cells: the tracked metric, or, where a run has none, the mean of its outcomes."""
        out: dict[tuple[str, str], float] = {}
        for cell in self.eligible:
            for measure in self.measures:
                tracked = "val/objective" if measure.name == OVERALL else f"val/{measure.name}/{measure.metric}"
                value = self.record.mean_metric(cell.id, tracked, self.core)
                if value is None and (o := self.outcomes(cell.id, measure.name, "val")) is not None and o.scores.size:
                    value = float(o.scores.mean())
                if value is not None and np.isfinite(value):
                    out[cell.id, measure.name] = value
        return out

    def _baselines(self) -> dict[tuple[str, str], str]:
        """The baselines' cells. The best single layer is each measure's own, picked on its validation mean."""
        found: dict[tuple[str, str], str] = {}
        for measure in self.measures:
            for baseline in BASELINES:
                wanted = "single layer" if baseline == BEST_SINGLE else baseline
                tagged = [c for c in self.record.cells if wanted in c.baselines]
                eligible = self.ranked(measure.name, [c for c in tagged if c in self.eligible])
                choice = eligible or [c for c in tagged if (c.id, measure.name) in self.means]
                if choice and (choice[0].id, measure.name) in self.means:
                    found[measure.name, baseline] = choice[0].id
        return found


def _measures(record: StudyRecord) -> tuple[Measure, ...]:
    """The tasks in the study's order; with several, their mean comes last."""
    tasks = tuple(Measure(t.name, t.title or t.name, t.metric, t.sign, t.blind, unit_of(t.unit)) for t in record.tasks)
    if len(tasks) < 2:
        return tasks or (Measure(OVERALL, "the validation objective", "objective", 1, None),)
    if len({(t.unit, t.direction) for t in record.tasks}) > 1 and all(t.spans for t in record.tasks):
        title = "mean over the tasks of the gain over chance (0: chance, 100: perfect)"
        blind = float(np.mean([t.gain(np.asarray(t.blind)) for t in record.tasks]))
        return (*tasks, Measure(OVERALL, title, "gain over chance", 1, blind, GAIN))
    chances = [t.sign * t.chance for t in tasks if t.chance is not None]
    chance = sum(chances) / len(tasks) if len(chances) == len(tasks) else None
    signed = " (less is better counts as negative)" if any(m.minimised for m in tasks) else ""
    unit = common(m.unit for m in tasks)
    return (*tasks, Measure(OVERALL, f"mean of the tasks{signed}", "objective", 1, chance, unit))


def _cut(outcomes: Outcomes, replicates: Sequence[str], examples: Sequence[str]) -> Floats:
    """``[R, N]`` scores of some replicates and examples, in that order."""
    if tuple(replicates) == outcomes.replicates and tuple(examples) == outcomes.examples:
        return outcomes.scores
    rows = {name: i for i, name in enumerate(outcomes.replicates)}
    columns = {name: i for i, name in enumerate(outcomes.examples)}
    chosen = outcomes.scores[np.ix_([rows[r] for r in replicates], [columns[e] for e in examples])]
    return np.asarray(chosen, dtype=float)


def _paired(one: Outcomes | None, other: Outcomes | None) -> Floats | None:
    """``[R, N]`` differences over the replicates and examples that both have."""
    if one is None or other is None:
        return None
    replicates = tuple(r for r in one.replicates if r in other.replicates)
    common = one.examples if one.examples == other.examples else tuple(sorted({*one.examples} & {*other.examples}))
    if not replicates or not common:
        return None
    return _cut(one, replicates, common) - _cut(other, replicates, common)


def holds_zero(difference: Estimate) -> bool:
    """Whether the uncorrected interval leaves 'no difference' open."""
    return difference.p >= ALPHA
