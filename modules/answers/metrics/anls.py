"""ANLS: how much of an answer was read right, letter by letter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fusion_workbench.modules.answers.metrics.base import AnswerMetric, register_metric

THRESHOLD = 0.5  # below it the wrong text was read, not the right one badly


def similarity(prediction: str, answer: str) -> float:
    """1 − edit distance / length of the longer text, in lower case with single spaces; 0 below :data:`THRESHOLD`.

    The edit distance is Levenshtein's, by torchmetrics.
    """
    predicted, right = (" ".join(text.lower().split()) for text in (prediction, answer))
    if predicted == right:
        return 1.0
    longest = max(len(predicted), len(right))
    if (Counter(predicted) & Counter(right)).total() < THRESHOLD * longest:  # no more letters than these can stay
        return 0.0
    from torchmetrics.functional.text import edit_distance

    value = 1 - float(edit_distance([predicted], [right])) / longest
    return value if value >= THRESHOLD else 0.0


@register_metric("anls")
class Anls(AnswerMetric):
    """The best :func:`similarity` to a right answer; its mean over questions is the average normalised Levenshtein
    similarity.

    Half right counts 0.5, as in the published programs; the paper's equation 1 has it count nothing.
    """

    title = "ANLS"
    source = "ST-VQA (Biten et al., ICCV 2019, arXiv 1905.13648), equation 1; DocVQA (arXiv 2007.00398)"

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return max((similarity(prediction, answer) for answer in answers), default=0.0)
