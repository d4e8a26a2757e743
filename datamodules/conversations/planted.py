"""Questions about planted images: does a language model read the layers that a signal was planted in?

The images of :mod:`.sources.planted` carry two letters. The first, one of a, b, c, is planted in one layer of the
encoder, the second, one of x, y, z, in another. Each letter is a kind of question of its own, so a model that reads one
of the two layers alone answers one kind and is at chance on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fusion_workbench.datamodules.conversations.base import (
    ASSISTANT,
    IMAGE,
    USER,
    Conversation,
    ConversationSource,
    Turn,
)
from fusion_workbench.datamodules.sources.base import Array, register_source
from fusion_workbench.datamodules.sources.planted import Planted, PlantedOptions

WORDS = {"first": "abc", "second": "xyz"}


@register_source("planted_questions")
class PlantedQuestions(Planted, ConversationSource):
    """In training one conversation per image, one turn per letter; else one question per image and letter."""

    options = PlantedOptions

    def __init__(self, options: PlantedOptions | None = None, folders: Mapping[str, Path] | None = None) -> None:
        super().__init__(options, folders)
        self._asked: dict[str, list[Conversation]] = {}

    def metrics(self) -> Mapping[str, str]:
        return dict.fromkeys(WORDS, "exact_match")

    def targets(self, split: str) -> dict[str, Array]:
        return {}

    def classes(self) -> dict[str, list[str]]:
        return {}

    def conversations(self, split: str) -> Sequence[Conversation]:
        if split not in self._asked:
            make = self._training_conversation if split == "train" else self._questions
            labels = Planted.targets(self, split)["digit.label"]
            names = self.identity(split)["example_id"]
            self._asked[split] = [
                conversation
                for row, (name, label) in enumerate(zip(names, labels.tolist(), strict=True))
                for conversation in make(row, str(name), label)
            ]
        return self._asked[split]

    def _training_conversation(self, row: int, name: str, label: int) -> list[Conversation]:
        kinds = list(WORDS)
        if np.random.RandomState([self.seed, row]).randint(2):
            kinds.reverse()
        turns = [turn for kind in kinds for turn in _turns(kind, label)]
        turns[0] = Turn(USER, f"{IMAGE}\n{turns[0].text}")
        return [Conversation(name, tuple(turns), (row,), name)]

    def _questions(self, row: int, name: str, label: int) -> list[Conversation]:
        questions = []
        for kind in WORDS:
            question, answer = _turns(kind, label)
            shown = Turn(USER, f"{IMAGE}\n{question.text}")
            questions.append(Conversation(name, (shown, answer), (row,), name, kind, (answer.text,)))
        return questions


def _turns(kind: str, label: int) -> tuple[Turn, Turn]:
    digits = {"first": label // 3, "second": label % 3}
    return Turn(USER, f"The {kind} letter?"), Turn(ASSISTANT, WORDS[kind][digits[kind]])
