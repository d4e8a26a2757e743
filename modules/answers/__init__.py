"""How an answer in words is judged: the metrics of the benchmarks, and tasks made of them."""

from modules.answers.metrics import METRICS, AnswerMetric, find_metric
from modules.answers.task import AnswerTask

__all__ = ["METRICS", "AnswerMetric", "AnswerTask", "find_metric"]
