"""The metrics of answers, by name."""

from fusion_workbench.modules.answers.metrics import anls, box, chart, text, vqa, yes_no  # noqa: F401  (each registers its metrics)
from fusion_workbench.modules.answers.metrics.base import METRICS, AnswerMetric, find_metric, register_metric

__all__ = ["METRICS", "AnswerMetric", "find_metric", "register_metric"]
