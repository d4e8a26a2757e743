"""Evaluation of a trained model: predictions for the questions of a split, and the score of each.

The no-image baselines evaluate the test questions again without the image that they are about: once with a *blank*
image, a grey square, and once with a *shuffled* one, the image of another question. A model that scores as well
without its images does not depend on them. Questions without an image stay as they are, so that the score and its
baseline are of the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_workbench.core.batching import by_length
from fusion_workbench.core.errors import code_of
from fusion_workbench.datamodules.conversations.batches import padded_prompts
from fusion_workbench.modules.encoders.description import height_width
from fusion_workbench.schema.names import NoImage, statistic_column, task_metric
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import parquet

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import Conversation
    from fusion_workbench.datamodules.features import SplitFeatures
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.language.vlm import VisionLanguageModel

REAL = "real"
_GREY = 127


@dataclass
class SplitPredictions:
    """The predictions of a model for the questions of a split.

    Attributes:
        questions: in the order of the source.
        predictions: the model's answer to each.
        scores: of each, in the metric of its task.
        statistics: of each, what a metric that is a quotient of sums needs.
    """

    questions: list[Conversation]
    predictions: list[str]
    scores: list[float]
    statistics: list[dict[str, float]] = field(default_factory=list)

    def metrics(self, tasks: Sequence[AnswerTask]) -> dict[str, float]:
        """``"read/exact_match"`` → value, of every task that has questions."""
        values = {}
        for task in tasks:
            own = [place for place, question in enumerate(self.questions) if question.task == task.name]
            if own:
                names = self.statistics[own[0]]
                sums = {name: [self.statistics[place][name] for place in own] for name in names}
                values[task_metric(task.name, task.metric_name)] = task.metric.value(
                    [self.scores[p] for p in own], sums
                )
        return values

    def scores_parquet(self) -> bytes:
        """Per-example scores as Parquet, as for probes: a row per example and task, and ``stat.…`` columns."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for question, score, statistics in zip(self.questions, self.scores, self.statistics, strict=True):
            row = rows.setdefault(
                (question.id, question.task),
                {"example_id": question.id, "group": question.group, "task": question.task, "score": 0.0, "items": 0},
            )
            row["score"] = (row["score"] * row["items"] + score) / (row["items"] + 1)
            row["items"] += 1
            for name, value in statistics.items():
                row[statistic_column(name)] = row.get(statistic_column(name), 0.0) + value
        return _parquet(list(rows.values()), {"score": "float32", "items": "int32"})

    def predictions_parquet(self) -> bytes:
        """Questions, reference answers and predictions as Parquet."""
        return _parquet(
            [
                {
                    "example_id": question.id,
                    "task": question.task,
                    "question": question.question,
                    "prediction": prediction,
                    "answers": list(question.references),
                    "score": score,
                }
                for question, prediction, score in zip(self.questions, self.predictions, self.scores, strict=True)
            ],
            {},
        )


class Evaluator:
    """Evaluates one model.

    Args:
        parts: the prepared study.
        model: with everything where it shall run.
        layers: what the first axis of its features holds.
    """

    def __init__(self, parts: Parts, model: VisionLanguageModel, layers: tuple[int, ...]) -> None:
        assert parts.language is not None
        self.parts, self.model, self.layers = parts, model, layers
        self.language = parts.language
        self.metrics = {task.name: task.metric for task in self.language.tasks}

    def evaluate(self, split: str, images: str = REAL) -> SplitPredictions:
        """Predictions for the questions of ``split``, with their own images or with those of a no-image baseline."""
        self.model.eval()
        source = self.parts.conversations
        listed = source.conversations(split)
        questions = [listed[n] for n in self.language.questions(source, split)]
        shown = _IMAGES[images](self, split, questions)
        features = self.parts.features.split(split, self.layers)
        predictions = [""] * len(questions)
        prompts = [self.language.chat.prompt(question) for question in questions]
        size = self.language.config.eval_batch_size
        for places in by_length(range(len(prompts)), lambda place: len(prompts[place]), size):
            rows = [row for place in places for row in shown[place]]
            batch = self._batch([prompts[place] for place in places], self._features(features, rows))
            answers = self.model.generate(batch, self.language.config.max_new_tokens)
            for place, answer in zip(places, answers, strict=True):
                predictions[place] = answer
        return self._scored(questions, predictions)

    def _scored(self, questions: list[Conversation], predictions: list[str]) -> SplitPredictions:
        scores, statistics = [], []
        for question, prediction in zip(questions, predictions, strict=True):
            metric = self.metrics[question.task]
            kind = f"{type(metric).__module__}.{type(metric).__name__}"
            with code_of(f"the metric of '{question.task}' ({kind}), on example {question.id},"):
                scores.append(metric.score(prediction, question.references))
                statistics.append(dict(metric.statistics(prediction, question.references)))
        return SplitPredictions(questions, predictions, scores, statistics)

    def _batch(self, prompts: Sequence[Sequence[int]], features: Tensor) -> Mapping[str, Tensor]:
        padded = padded_prompts([torch.tensor(prompt) for prompt in prompts], self.language.chat.pad_id)
        device = self.model.decoder.device
        return {name: value.to(device) for name, value in (padded | {"features": features}).items()}

    # --- images -------------------------------------------------------------------------------------------------

    def _own(self, split: str, questions: Sequence[Conversation]) -> list[tuple[int, ...]]:
        return [question.images for question in questions]

    def _blank(self, split: str, questions: Sequence[Conversation]) -> list[tuple[int, ...]]:
        return [tuple(-1 for _ in question.images) for question in questions]

    def _shuffled(self, split: str, questions: Sequence[Conversation]) -> list[tuple[int, ...]]:
        """Every image replaced by another, the same for all variants."""
        rows = sorted({row for question in questions for row in question.images})
        generator = torch.Generator().manual_seed(seed_of("shuffled", self.parts.source.fingerprint(split)))
        order = [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
        other = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle: no image stays
        return [tuple(other[row] for row in question.images) for question in questions]

    def _features(self, features: SplitFeatures, rows: Sequence[int]) -> Tensor:
        """``[layers, N, T, dim]``; row -1 is the blank image."""
        encoder = self.parts.encoder
        real = sorted({row for row in rows if row >= 0})
        place = {row: number for number, row in enumerate(real)}
        states = [features.rows(torch.tensor(real))] if real else []
        if len(real) < len(set(rows)) or not rows:
            height, width = height_width(encoder.image_size)
            blank = encoder.encode(np.full((1, height, width, 3), _GREY, np.uint8), self.layers)
            place[-1] = len(real)
            states.append(blank.to(states[0].dtype).cpu() if states else blank)
        joined = torch.cat([s.cpu() for s in states], dim=1)
        return joined[:, [place[row] for row in rows]]


_IMAGES = {REAL: Evaluator._own, NoImage.BLANK: Evaluator._blank, NoImage.SHUFFLED: Evaluator._shuffled}


def _parquet(rows: list[dict[str, Any]], dtypes: Mapping[str, str]) -> bytes:
    import pandas as pd

    return parquet(pd.DataFrame(rows).astype(dict(dtypes)))
