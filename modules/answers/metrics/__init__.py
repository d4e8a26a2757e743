"""The metrics of answers, by name."""

from __future__ import annotations

from modules.answers.metrics.anls import Anls
from modules.answers.metrics.base import AnswerMetric
from modules.answers.metrics.box import BoxIoU50
from modules.answers.metrics.chart import RelaxedAccuracy
from modules.answers.metrics.text import Containment, ExactMatch, FormulaContainment
from modules.answers.metrics.vqa import VqaAccuracy
from modules.answers.metrics.yes_no import YesNoF1
from workbench.errors import WorkbenchError, nearest

METRICS: dict[str, AnswerMetric] = {
    metric.name: metric
    for metric in (
        ExactMatch(),
        VqaAccuracy(),
        Anls(),
        Containment(),
        FormulaContainment(),
        YesNoF1(),
        BoxIoU50(),
        RelaxedAccuracy(),
    )
}


def find_metric(name: str) -> AnswerMetric:
    """The metric of this name.

    Raises:
        WorkbenchError: there is none.
    """
    if name not in METRICS:
        raise WorkbenchError(f"unknown answer metric '{name}'.{nearest(name, METRICS)}")
    return METRICS[name]


__all__ = ["METRICS", "AnswerMetric", "find_metric"]
