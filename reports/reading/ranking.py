"""What "the best on validation" means: the one definition that report, token maps and fresh replicates go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.reports.words.units import CHANCE_NORMALISED, SHARE, Unit, common, unit_of
from fusion_workbench.schema.names import OBJECTIVE, OVERALL, on_validation, task_metric
from fusion_workbench.schema.records import Cell

_ACRONYMS = {"iou": "IoU", "mae": "MAE", "anls": "ANLS", "vqa_accuracy": "VQA accuracy", "ocrbench": "OCRBench"}


@dataclass(frozen=True)
class Measure:
    """A task, or the mean of all of them."""

    name: str
    title: str
    metric: str
    sign: int
    chance: float | None  # of the chance baseline, which uses no image: fitted to the training images, scored on test
    unit: Unit = SHARE

    @property
    def shown(self) -> str:
        """The metric as people write it."""
        return _ACRONYMS.get(self.metric, self.metric.replace("_", " "))

    @property
    def minimised(self) -> bool:
        return self.sign < 0

    @property
    def tracked(self) -> str:
        """MLflow's metric of it on validation."""
        return OBJECTIVE if self.name == OVERALL else on_validation(task_metric(self.name, self.metric))


def measures_of(record: StudyRecord) -> tuple[Measure, ...]:
    """The tasks in the study's order; with several, their mean comes last."""
    tasks = tuple(
        Measure(t.name, t.title or t.name, t.metric, t.sign, t.chance_baseline, unit_of(t.unit)) for t in record.tasks
    )
    if len(tasks) < 2:
        return tasks or (Measure(OVERALL, "the validation objective", "objective", 1, None),)
    if len({(t.unit, t.direction) for t in record.tasks}) > 1 and all(t.normalisable for t in record.tasks):
        title = "mean over the tasks of the gain over chance (0: chance, 100: perfect)"
        chance_baseline = float(np.mean([t.chance_normalised(np.asarray(t.chance_baseline)) for t in record.tasks]))
        return (*tasks, Measure(OVERALL, title, "gain over chance", 1, chance_baseline, CHANCE_NORMALISED))
    chances = [t.sign * t.chance for t in tasks if t.chance is not None]
    chance = sum(chances) / len(tasks) if len(chances) == len(tasks) else None
    signed = " (less is better counts as negative)" if any(m.minimised for m in tasks) else ""
    unit = common(m.unit for m in tasks)
    return (*tasks, Measure(OVERALL, f"mean of the tasks{signed}", "objective", 1, chance, unit))


def objective_of(record: StudyRecord, measures: Sequence[Measure]) -> Measure:
    """What the recommended cell is picked by: the plan's primary measure; without a plan, the last."""
    primary = record.plan.primary if record.plan else ""
    return next((m for m in measures if m.name == primary), measures[-1])


def measured(record: StudyRecord, cell: str, measure: Measure, split: str) -> ExampleScores | None:
    """A task's outcomes, or the mean over the tasks of those examples that all of them scored."""
    if measure.name != OVERALL or len(record.tasks) < 2:
        return record.example_scores.get((cell, measure.name, split))
    parts = [record.example_scores.get((cell, task.name, split)) for task in record.tasks]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    examples = tuple(sorted(set.intersection(*(set(o.examples) for o in known))))
    replicates = tuple(r for r in known[0].replicates if all(r in o.replicates for o in known))
    if not examples or not replicates:
        return None
    normalised = measure.unit is CHANCE_NORMALISED
    signed = [
        task.chance_normalised(scores) if normalised else task.sign * scores
        for task, o in zip(record.tasks, known, strict=True)
        for scores in (o.cut(replicates, examples),)
    ]
    groups = dict(zip(known[0].examples, known[0].groups, strict=False))
    mean = np.asarray(np.mean(signed, axis=0), dtype=float)
    return ExampleScores(replicates, examples, mean, tuple(groups[e] for e in examples) if groups else ())


class Ranking:
    """A study's cells by their validation.

    Args:
        record: the study.
        measures: as :func:`measures_of` gives them; None: made here.
        scores: (cell, measure) → its outcomes on validation, where they are at hand; None: of the record.

    Attributes:
        objective: the measure that the recommended cell is picked by.
        core: replicates that at least half of the cells have; cells are ranked that have them all, on them alone, so
            that a study that is not complete still compares like with like.
        eligible: those cells.
        values: (cell, measure) → validation mean over the core replicates.
    """

    def __init__(
        self,
        record: StudyRecord,
        measures: Sequence[Measure] | None = None,
        scores: Callable[[str, Measure], ExampleScores | None] | None = None,
    ) -> None:
        self.record = record
        self.measures = tuple(measures or measures_of(record))
        self.objective = objective_of(record, self.measures)
        self._scores = scores or (lambda cell, measure: measured(record, cell, measure, "val"))
        self.core = self._core()
        self.eligible = tuple(c for c in record.cells if self.core and self.core <= self._trained(c.id))
        self.values = self._values()

    def ranked(self, measure: str | None = None, cells: Sequence[Cell] | None = None) -> list[Cell]:
        """Cells by their validation mean, the best first; those without one are left out.

        Args:
            measure: by which; None: the :attr:`objective`.
            cells: of which; None: the :attr:`eligible` ones.
        """
        by = next(m for m in self.measures if m.name == measure) if measure is not None else self.objective
        known = [c for c in (self.eligible if cells is None else cells) if (c.id, by.name) in self.values]
        return sorted(known, key=lambda c: (-by.sign * self.values[c.id, by.name], len(c.levels), c.query, c.id))

    def ordered(self) -> list[Cell]:
        """Every cell: those that are ranked, the best first, then the others in the study's order."""
        first = self.ranked()
        ids = {cell.id for cell in first}
        return first + [cell for cell in self.record.cells if cell.id not in ids]

    def _trained(self, cell: str) -> frozenset[str]:
        return frozenset(run.replicate for run in self.record.finals(cell))

    def _core(self) -> frozenset[str]:
        have = [trained for cell in self.record.cells if (trained := self._trained(cell.id))]
        return frozenset(r for r in self.record.replicates if sum(r in t for t in have) * 2 >= len(have) > 0)

    def _values(self) -> dict[tuple[str, str], float]:
        """Of the eligible cells: the tracked metric, or, where a run has none, the mean of its outcomes."""
        out: dict[tuple[str, str], float] = {}
        for cell in self.eligible:
            for measure in self.measures:
                value = self.record.mean_metric(cell.id, measure.tracked, self.core)
                if value is None and (o := self._scores(cell.id, measure)) is not None and o.scores.size:
                    value = float(o.scores.mean())
                if value is not None and np.isfinite(value):
                    out[cell.id, measure.name] = value
        return out
