"""Numbers read off a chart: right within five per cent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusion_workbench.modules.answers.metrics.base import AnswerMetric, register_metric

TOLERANCE = 0.05  # relative


def number(text: str) -> float | None:
    """The number that a whole text is, 12% being 0.12; None where it is no number."""
    text = text.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@register_metric("relaxed_accuracy")
class RelaxedAccuracy(AnswerMetric):
    """A number within 5 % of a right one, or, where either is none or the right one is 0, the same text in any case."""

    title = "relaxed accuracy, 5 %"
    source = "ChartQA (Masry et al., ACL Findings 2022, arXiv 2203.10244), section 5.1; PlotQA (WACV 2020)"

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return float(any(_close(prediction, answer) for answer in answers))


def _close(prediction: str, answer: str) -> bool:
    predicted, right = number(prediction), number(answer)
    if predicted is not None and right:
        return abs(predicted - right) <= TOLERANCE * abs(right)
    return prediction.strip().lower() == answer.strip().lower()
