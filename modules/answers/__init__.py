"""How an answer in words is judged: the metrics of the benchmarks, and tasks made of them."""

from fusion_workbench.modules.answers.metrics import METRICS, AnswerMetric, find_metric, register_metric
from fusion_workbench.modules.answers.task import AnswerTask

__all__ = ["METRICS", "AnswerMetric", "AnswerTask", "find_metric", "register_metric"]
