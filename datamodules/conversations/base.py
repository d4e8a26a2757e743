"""What a language model is trained and evaluated on: turns of text about images."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fusion_workbench.core.tokens import IMAGE as IMAGE  # of its words; for whoever writes or reads them
from fusion_workbench.datamodules.sources.base import Array, Source

USER: Final = "user"
ASSISTANT: Final = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says; the user's words hold :data:`IMAGE` once for each image shown."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, user and assistant in alternation, about zero or more images.

    Attributes:
        id: of the example in the per-example scores; with ``task`` unique within a split.
        turns: the assistant's are trained on; of a question (validation, test) the last is the answer, which the model
            is not shown.
        images: rows of the split's images, in the order of the :data:`IMAGE` words; empty for text alone.
        group: what a split must not cut through: photograph, document.
        task: the kind of question; names the measure in the report.
        answers: all right answers to the last turn; empty: the assistant's words alone.
        origin: file and line, for errors.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[int, ...] = ()
    group: str = ""
    task: str = "answer"
    answers: tuple[str, ...] = ()
    origin: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """All right answers to the last turn."""
        return self.answers or (self.turns[-1].text,)

    @property
    def question(self) -> str:
        """The last words of the user, without images."""
        return next(t.text for t in reversed(self.turns) if t.role == USER).replace(IMAGE, "").strip()


class ConversationSource(Source):
    """A source whose samples are images, and which has conversations about them.

    Encoder and feature store see the images alone, one row each, so whatever holds for any source holds here.
    """

    @abstractmethod
    def conversations(self, split: str) -> Sequence[Conversation]:
        """What a split is trained (train) or evaluated (val, test) on."""

    @abstractmethod
    def metrics(self) -> Mapping[str, str]:
        """Task → name of the answer metric that judges it, such as ``{"read": "exact_match"}``."""

    def text_fingerprint(self, split: str) -> str:
        """sha256 over the conversations of a split; the images are in :meth:`fingerprint`."""
        sha = hashlib.sha256()
        for c in self.conversations(split):
            turns = [[turn.role, turn.text] for turn in c.turns]
            sha.update(json.dumps([c.id, c.task, c.group, c.images, c.answers, turns]).encode() + b"\n")
        return sha.hexdigest()

    def targets(self, split: str) -> dict[str, Array]:
        """None: the targets are words."""
        return {}

    def classes(self) -> dict[str, list[str]]:
        return {}
