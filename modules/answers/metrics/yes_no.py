"""POPE: is it in the picture, yes or no?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion_workbench.modules.answers.metrics.base import AnswerMetric, register_metric

_NO = frozenset(("No", "no", "not"))


def says_yes(text: str) -> bool:
    """What an answer means: no, if a word of its first sentence is "No", "no" or "not"; otherwise yes.

    Source: llava/eval/eval_pope.py of haotian-liu/LLaVA, after POPE's evaluate.py; there words part at spaces alone.
    """
    words = text.split(".")[0].replace(",", "").split()
    return _NO.isdisjoint(words)


@register_metric("yes_no_f1")
class YesNoF1(AnswerMetric):
    """F1 of "yes": 2TP / (2TP + FP + FN), each a sum over questions, so that it can be resampled.

    A question's score says whether it was answered right: the mean score is POPE's accuracy. torchmetrics'
    BinaryF1Score is the same number over a whole split.
    """

    title = "F1 of yes"
    source = "POPE (Li et al., EMNLP 2023, arXiv 2305.10355), section 5"
    ratio = ("twice_hits", "hits_and_calls")

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return float(bool(answers) and says_yes(prediction) == says_yes(answers[0]))

    def statistics(self, prediction: str, answers: Sequence[str]) -> dict[str, float]:
        """Of the first answer: 2TP, 2TP + FP + FN, and whether the model and the truth say yes."""
        predicted, true = says_yes(prediction), bool(answers) and says_yes(answers[0])
        return {
            "twice_hits": 2.0 * (predicted and true),
            "hits_and_calls": float(predicted + true),
            "said_yes": float(predicted),
            "true_yes": float(true),
        }

    def details(self, scores: Sequence[float], statistics: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """POPE's other columns; 0 where a denominator is."""
        count = len(scores)
        hits = sum(map(float, statistics["twice_hits"])) / 2
        predicted, true = (sum(map(float, statistics[name])) for name in ("said_yes", "true_yes"))
        return {
            "accuracy": sum(map(float, scores)) / count if count else 0.0,
            "precision": hits / predicted if predicted else 0.0,
            "recall": hits / true if true else 0.0,
            "yes_share": predicted / count if count else 0.0,
        }
