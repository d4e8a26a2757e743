"""A kind of question as a task of a study: its metric and its chance baseline."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from fusion_workbench.modules.answers.metrics import AnswerMetric

CANDIDATES = 20  # so many of the most frequent answers are tried as the constant answer
FITTED = 300  # on at most so many of the training questions


class AnswerTask:
    """Questions of one kind, with what records, objectives and reports read of a task of probes
    (:class:`modules.tasks.Task`).

    Args:
        name: the kind of question.
        metric: judges its answers.
        title: what the report calls it.
        taught: the right answers of every training question, from which the chance level is taken.

    Attributes:
        chance: the metric, on the training questions, of the best answer that is always the same.
    """

    def __init__(
        self, name: str, metric: AnswerMetric, title: str, training_answers: Sequence[Sequence[str]] = ()
    ) -> None:
        self.name, self.metric, self.title = name, metric, title
        self.metric_name = metric.name
        self.direction = metric.direction
        self.unit = metric.unit
        self.perfect = metric.perfect
        self.ratio = metric.ratio
        self.chance = self.chance_baseline(training_answers)

    def chance_baseline(
        self, training_answers: Sequence[Sequence[str]], scored: Sequence[Sequence[str]] | None = None
    ) -> float:
        """The metric, on ``scored`` or on the same, of the constant answer that does best on ``training_answers``.

        Tried are the most frequent answers, on a fixed draw of the questions where there are very many; of equals the
        more frequent wins. 0 where there are no training answers or nothing is scored.
        """
        counts = Counter(answer for answers in training_answers for answer in answers)
        candidates = sorted(counts, key=lambda answer: (-counts[answer], answer))[:CANDIDATES]
        fitted = (
            training_answers if len(training_answers) <= FITTED else random.Random(0).sample(training_answers, FITTED)
        )
        evaluated = training_answers if scored is None else scored
        if not candidates or not evaluated:
            return 0.0
        best = (
            max(candidates, key=lambda answer: self._score_of_constant(answer, fitted))
            if candidates[1:]
            else candidates[0]
        )
        return self._score_of_constant(best, evaluated)

    def _score_of_constant(self, answer: str, evaluated: Sequence[Sequence[str]]) -> float:
        """The metric of always answering so; each distinct question is judged once."""
        kinds = Counter(tuple(answers) for answers in evaluated)
        scores: list[float] = []
        statistics: dict[str, list[float]] = {}
        for answers, count in kinds.items():
            scores += [self.metric.score(answer, answers)] * count
            for key, value in self.metric.statistics(answer, answers).items():
                statistics.setdefault(key, []).extend([value] * count)
        return self.metric.value(scores, statistics)

    def chance_normalised(self, value: float) -> float:
        """Where ``value`` of the metric lies between chance (0) and perfect (1)."""
        span = self.perfect - self.chance
        return (value - self.chance) / span if span else 0.0

    def value(self, scores: Tensor, items: Tensor, statistics: Mapping[str, Tensor]) -> float:
        """The metric of any examples from their scores, items and statistics, ``[N]`` each; nan for no items."""
        if self.ratio is None:
            return float((scores.double() * items).sum() / items.sum())
        return self.metric.value(scores.tolist(), {key: values.tolist() for key, values in statistics.items()})
