"""Answers that a prediction must equal, or must contain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fusion_workbench.modules.answers.metrics.base import AnswerMetric, register_metric

_OPENING = " \"'`“”‘’«»([{"
_CLOSING = " \"'`“”‘’«»)]}.,;:!?…"


@lru_cache(2**14)  # the same answers are judged again for every constant answer and every variant
def normalise_text(text: str) -> str:
    """``text`` in one case, white space as single spaces, without quotes and brackets around it and without what ends a
    sentence.

    Nothing within is touched, nor a sign, a currency or a decimal point in front: ``-5``, ``$5`` and ``.5`` stay apart
    from ``5``. What consists of such marks alone is kept.
    """
    words = " ".join(text.casefold().split())
    return words.lstrip(_OPENING).rstrip(_CLOSING) or words


@register_metric("exact_match")
class ExactMatch(AnswerMetric):
    """Whether the answer, as :func:`normalise_text` text, is one of the right ones."""

    title = "exact match"
    source = "ours; GQA's accuracy (Hudson and Manning, CVPR 2019) on plain text"

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        predicted = normalise_text(prediction)
        return float(any(predicted == normalise_text(answer) for answer in answers))


@register_metric("ocrbench")
class Containment(AnswerMetric):
    """OCRBench: whether a right answer is part of the prediction, in lower case, line breaks being spaces.

    An empty answer would be part of everything: it counts only where the prediction is empty.
    """

    title = "contains the answer (OCRBench)"
    source = "OCRBench (Liu et al., arXiv 2305.07895), OCRBench/example.py in Yuliang-Liu/MultimodalOCR"

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        predicted = self.fold(prediction)
        return float(any(folded in predicted if (folded := self.fold(answer)) else not predicted for answer in answers))

    def fold(self, text: str) -> str:
        return text.lower().strip().replace("\n", " ")


@register_metric("ocrbench_formula")
class FormulaContainment(Containment):
    """OCRBench's rule for handwritten formulas (its subset HME100k): case counts, spaces do not."""

    title = "contains the formula (OCRBench)"

    def fold(self, text: str) -> str:
        return text.strip().replace("\n", " ").replace(" ", "")
