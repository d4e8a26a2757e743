"""The metrics of answers, by name."""

from __future__ import annotations

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.modules.answers.metrics.anls import Anls
from fusion_workbench.modules.answers.metrics.base import AnswerMetric
from fusion_workbench.modules.answers.metrics.box import BoxIoU50
from fusion_workbench.modules.answers.metrics.chart import RelaxedAccuracy
from fusion_workbench.modules.answers.metrics.text import Containment, ExactMatch, FormulaContainment
from fusion_workbench.modules.answers.metrics.vqa import VqaAccuracy
from fusion_workbench.modules.answers.metrics.yes_no import YesNoF1

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
