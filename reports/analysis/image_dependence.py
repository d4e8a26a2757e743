"""Does a multimodal language model look at the image? Its score beside those on blank and on shuffled images.

A model that answers from the question alone scores as well without the image. So each trained model was asked the same
test questions with blank images and with the images of other examples. Differences are paired by replicate. Of the
controls only each replicate's score is known, so what the choice of questions adds to a difference is taken as if the
two had nothing in common: the variance of the real scores plus q(1 − q)/N for a control that scores q on N questions,
the most that scores in [0, 1] can have. Where the same questions are easy for both, that is too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.reading.records import Run
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS, Estimate, Noise, estimate, estimated, holm
from fusion_workbench.reports.statistics.verdicts import Judged, verdict
from fusion_workbench.reports.words.units import CHANCE_NORMALISED, SHARE
from fusion_workbench.schema.names import NO_IMAGE_KINDS, OVERALL, NoImage, Verdict, no_image_metric
from fusion_workbench.schema.records import Cell, Task

LEAST = 3  # replicates: what is asked is whether there is a gap at all, not which of two cells is better

LOOKS, SOME, NOT, UNKNOWN = "looks at the image", "not at this image", "not shown to look", "no verdict"
NO_BASELINES = "no controls"


@dataclass(frozen=True)
class NoImageBaseline:
    """One cell on one measure, without its images; ``difference`` is real minus no image, paired by replicate."""

    kind: str
    score: Estimate  # over replicates alone
    difference: Estimate
    p: float  # corrected for all cells and both controls of the measure; nan: not judged
    verdict: str


@dataclass(frozen=True)
class ImageDependence:
    """One cell on one measure with its images and without."""

    cell: Cell
    measure: Measure
    real: Estimate
    no_image_baselines: Mapping[str, NoImageBaseline]

    @property
    def word(self) -> str:
        """Whether it looks at the image: real ones must beat blank and shuffled ones."""
        verdicts = [self.no_image_baselines[kind].verdict for kind in NO_IMAGE_KINDS if kind in self.no_image_baselines]
        if not verdicts:
            return NO_BASELINES
        if Verdict.NONE in verdicts:
            return UNKNOWN
        if all(word == Verdict.BETTER for word in verdicts):
            return LOOKS
        blank = self.no_image_baselines.get(NoImage.BLANK)
        return SOME if blank is not None and blank.verdict == Verdict.BETTER else NOT


def image_dependence(analysis: Analysis) -> dict[tuple[str, str], ImageDependence]:
    """(cell, measure) → what it shows; empty for a study of probes, or one without controls."""
    if analysis.record.language is None:
        return {}
    out: dict[tuple[str, str], ImageDependence] = {}
    for measure in analysis.measures:
        own = {
            cell.id: found for cell in analysis.record.cells if (found := _image_dependence(analysis, cell, measure))
        }
        raw = [(cell, kind) for cell, dependence in own.items() for kind in dependence.no_image_baselines]
        counted = [
            c.difference.p if (c := own[cell].no_image_baselines[kind]).difference.replicates >= LEAST else np.nan
            for cell, kind in raw
        ]
        for (cell, kind), p in zip(raw, holm(counted).tolist(), strict=True):
            no_image = own[cell].no_image_baselines[kind]
            word = verdict(no_image.difference.mean, Judged(p, np.nan, 0), analysis.plan.level, measure.sign)
            judged = dict(own[cell].no_image_baselines) | {kind: replace(no_image, p=p, verdict=word)}
            own[cell] = replace(own[cell], no_image_baselines=judged)
        out |= {(cell, measure.name): dependence for cell, dependence in own.items()}
    return out


def _image_dependence(analysis: Analysis, cell: Cell, measure: Measure) -> ImageDependence | None:
    """Not judged yet. None where the cell has no score, or no control."""
    real = analysis.means.get((cell.id, measure.name))
    by_task = [_task_means(analysis, cell, task) for task in _tasks(analysis, measure)]
    with_images = _combined(analysis, measure, by_task)
    if real is None and with_images:
        real = _over_replicates(with_images)
    if real is None:
        return None
    runs = analysis.record.finals(cell.id)
    no_image_baselines: dict[str, NoImageBaseline] = {}
    for kind in NO_IMAGE_KINDS:
        scores = _combined(
            analysis, measure, [_tracked(runs, no_image_metric(kind, t.name)) for t in _tasks(analysis, measure)]
        )
        if shared := [r for r in scores if r in with_images]:
            values = np.asarray([scores[r] for r in shared])
            gaps = np.asarray([with_images[r] for r in shared]) - values
            difference = _difference(gaps, float(values.mean()), real, measure)
            no_image_baselines[kind] = NoImageBaseline(
                kind, _over_replicates(scores), difference, float("nan"), Verdict.NONE
            )
    return ImageDependence(cell, measure, real, no_image_baselines) if no_image_baselines else None


def _tasks(analysis: Analysis, measure: Measure) -> list[Task]:
    """The task, or for the mean of the tasks all of them."""
    tasks = analysis.record.tasks
    return [t for t in tasks if t.name == measure.name] or (list(tasks) if measure.name == OVERALL else [])


def _task_means(analysis: Analysis, cell: Cell, task: Task) -> dict[str, float]:
    o = analysis.record.example_scores.get((cell.id, task.name, "test"))
    return dict(zip(o.replicates, o.scores.mean(-1).tolist(), strict=True)) if o and o.examples else {}


def _tracked(runs: tuple[Run, ...], metric: str) -> dict[str, float]:
    return {r.replicate: v for r in runs if (v := r.metrics.get(metric)) is not None and np.isfinite(v)}


def _combined(analysis: Analysis, measure: Measure, by_task: list[dict[str, float]]) -> dict[str, float]:
    """Replicate → score on the measure: the task's own, or the mean over tasks as the study takes it."""
    tasks = _tasks(analysis, measure)
    if not by_task:
        return {}
    if len(tasks) == 1 and tasks[0].name == measure.name:
        return by_task[0]
    normalised: Callable[[Task, float], float] = (
        (lambda task, v: float(task.chance_normalised(np.asarray(v))))
        if measure.unit is CHANCE_NORMALISED
        else (lambda task, v: task.sign * v)
    )
    shared = [r for r in by_task[0] if all(r in own for own in by_task)]
    return {r: float(np.mean([normalised(t, own[r]) for t, own in zip(tasks, by_task, strict=True)])) for r in shared}


def _over_replicates(scores: Mapping[str, float]) -> Estimate:
    return estimate(np.asarray(list(scores.values()))[:, None])


def _difference(gaps: Floats, no_image: float, real: Estimate, measure: Measure) -> Estimate:
    """Mean of ``[R]`` paired differences, with what the choice of questions is taken to add to its variance."""
    replicates = len(gaps)
    seeds = gaps.var(ddof=1) / replicates if replicates > 1 else 0.0
    share = min(max(no_image, 0.0), 1.0)
    bound = share * (1 - share) / real.examples if measure.unit in (SHARE, CHANCE_NORMALISED) else 0.0
    sampled = real.groups >= FEW_GROUPS
    df = real.groups - 1 if sampled else real.examples - max(real.groups, 1)
    own = 0.0 if np.isnan(real.se_sampling) else real.se_sampling**2
    found = Noise(gaps.mean(), np.asarray(float(seeds)), np.asarray(own + bound), max(replicates - 1, 0), max(df, 1))
    return estimated(found, replicates, real.examples, real.groups)


def blank_caveat(analysis: Analysis, cell: Cell | None) -> str:
    """What to mind where the recommended cell is not shown to need its images; empty where it is, or was not asked."""
    if analysis.record.language is None or cell is None:
        return ""
    dependence = image_dependence(analysis).get((cell.id, analysis.objective.name))
    if dependence is None or (blank := dependence.no_image_baselines.get(NoImage.BLANK)) is None:
        asked = "has no control on blank images"
        return f"Whether {cell.name} looks at the image is not known: the study {asked}."
    unit = analysis.objective.unit
    size = f"{unit.size(blank.difference)} between real and blank images"
    if blank.verdict == Verdict.BETTER:
        other = dependence.no_image_baselines.get(NoImage.SHUFFLED)
        if other is None or other.verdict == Verdict.BETTER:
            return ""
        return (
            f"{cell.name} does better with an image than with a blank one, but not with the right image rather than "
            f"another example's: {unit.size(other.difference)}."
        )
    if blank.verdict == Verdict.NONE:
        return (
            f"Whether {cell.name} looks at the image cannot be judged yet: {size}; a verdict takes {LEAST} replicates."
        )
    how = (
        "does worse with real images than with blank ones"
        if blank.verdict == Verdict.WORSE
        else "is not shown to look at it"
    )
    return (
        f"Mind what this compares: {cell.name} {how} ({size}), so what tells these models apart may be how they answer "
        "from the question alone."
    )


def image_dependence_sentence(analysis: Analysis, cell: Cell | None) -> str:
    """For the first screen: by how much real images beat both controls; empty where they do not."""
    dependence = image_dependence(analysis).get((cell.id, analysis.objective.name)) if cell is not None else None
    if dependence is None or dependence.word != LOOKS:
        return ""
    unit = analysis.objective.unit
    parts = [f"{unit.size(c.difference)} against {kind} images" for kind, c in dependence.no_image_baselines.items()]
    return f"Does it look at the image? {dependence.cell.name} does: {' and '.join(parts)}."


def image_dependence_json(analysis: Analysis) -> list[dict[str, Any]]:
    """Plain values."""
    return [
        {
            "cell": dependence.cell.id,
            "measure": dependence.measure.name,
            "real": asdict(dependence.real),
            "guess": dependence.measure.chance,
            "controls": {
                kind: {
                    "score": asdict(c.score),
                    "difference": asdict(c.difference),
                    "p": c.p,
                    "verdict": c.verdict,
                }
                for kind, c in dependence.no_image_baselines.items()
            },
            "word": dependence.word,
        }
        for dependence in image_dependence(analysis).values()
    ]
