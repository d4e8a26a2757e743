"""Questions about FineScenes: questions and answers in words on the scenes of :mod:`datamodules.sources.finescenes`.

Four kinds of question about each scene, exact because the scenes are drawn from a layout: which printed character
stands at a named place, how many characters there are, in which quarter the handwritten digit lies, and which digit it
is. Words are drawn from a seed for each scene and kind alone, so a question does not depend on which others there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.datamodules.conversations.base import (
    ASSISTANT,
    IMAGE,
    USER,
    Conversation,
    ConversationSource,
    Turn,
)
from fusion_workbench.datamodules.sources.base import Array, register_source
from fusion_workbench.datamodules.sources.drawn import frozen_stream
from fusion_workbench.datamodules.sources.finescenes import FineScenes, FineScenesOptions, Layout, PlacedGlyph
from fusion_workbench.datamodules.sources.finescenes_parts import CLASSES

if TYPE_CHECKING:
    import pandas as pd

WORDS = "finescenes_questions/1"  # a new number whenever any question or answer would change
# The response-format prompt of LLaVA-1.5 (arXiv 2310.03744, section 3.2): it makes a tuned model answer in a word.
SHORTLY = "Answer the question using a single word or phrase."
MARGIN = 0.04  # of the image's side: the first glyph in an order is this far ahead of the second, where any is


class GlyphOrder(NamedTuple):
    """Which glyph a question means: the one with the smallest ``key``; ``words`` name it."""

    words: str
    key: Callable[[PlacedGlyph, PlacedGlyph], float]  # glyph, digit → pixels


PLACES = (
    GlyphOrder("furthest to the left", lambda glyph, digit: _centre(glyph)[0]),
    GlyphOrder("furthest to the right", lambda glyph, digit: -_centre(glyph)[0]),
    GlyphOrder("nearest to the top edge", lambda glyph, digit: _centre(glyph)[1]),
    GlyphOrder("nearest to the bottom edge", lambda glyph, digit: -_centre(glyph)[1]),
    GlyphOrder("closest to the handwritten digit", lambda glyph, digit: _distance(glyph, digit)),
    GlyphOrder("furthest from the handwritten digit", lambda glyph, digit: -_distance(glyph, digit)),
)


@dataclass(frozen=True)
class QuestionKind:
    """A kind of question: its wordings, with ``{place}`` where one is named, and how a layout answers it."""

    wordings: tuple[str, ...]
    answer: Callable[[Layout, int, np.random.RandomState], tuple[str, str]]  # layout, side → place, answer


def _read(scene: Layout, size: int, draw: np.random.RandomState) -> tuple[str, str]:
    """A glyph that a place names without doubt; where no place does, the place that does so best."""
    candidates = [(place, *_first(place, scene)) for place in PLACES]
    clear = [entry for entry in candidates if entry[2] >= MARGIN * size] or [
        max(candidates, key=lambda entry: entry[2])
    ]
    place, glyph, _ = clear[int(draw.randint(len(clear)))]
    return place.words, CLASSES[glyph.label]


def _position(scene: Layout, size: int, draw: np.random.RandomState) -> tuple[str, str]:
    """The quarter that holds the centre of the digit's box."""
    x, y = _centre(scene.digit)
    return "", f"{'top' if y < size / 2 else 'bottom'} {'left' if x < size / 2 else 'right'}"


KINDS: Mapping[str, QuestionKind] = {
    "read": QuestionKind(
        (
            "Which printed character is {place}?",
            "What is the printed character that stands {place}?",
            "Read the printed character {place}.",
            "Look at the printed characters. Which one is {place}?",
            "Name the printed letter or number {place}.",
        ),
        _read,
    ),
    "count": QuestionKind(
        (
            "How many printed characters are there?",
            "How many printed characters does the image show?",
            "What is the number of printed characters in this image?",
            "Count the printed characters, without the handwritten digit. How many are there?",
            "How many small printed letters and numbers can be seen?",
        ),
        lambda scene, size, draw: ("", str(len(scene.glyphs))),
    ),
    "position": QuestionKind(
        (
            "Where is the handwritten digit: top left, top right, bottom left or bottom right?",
            "In which quarter of the image is the handwritten digit: top left, top right, bottom left or bottom right?",
            "Is the handwritten digit at the top left, top right, bottom left or bottom right?",
            "Top left, top right, bottom left or bottom right: which quarter holds the handwritten digit's centre?",
        ),
        _position,
    ),
    "digit": QuestionKind(
        (
            "Which digit is handwritten?",
            "What is the handwritten digit?",
            "Which digit was written by hand in this image?",
            "Read the large handwritten digit. Which one is it?",
            "One digit is handwritten. Which?",
        ),
        lambda scene, size, draw: ("", str(scene.digit.label)),
    ),
}


@dataclass(frozen=True)
class QuestionsOptions(FineScenesOptions):
    """Those of FineScenes, and those of the questions."""

    fewest: int = 2  # so that there is something to count
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    instruct: bool = True  # every question ends with how to answer it; a system prompt may say so once instead


@register_source("finescenes_questions")
class FineScenesQuestions(ConversationSource):
    """The source ``finescenes_questions``.

    Training: one conversation per scene, with every kind as a turn, in an order that is drawn. Validation and test: one
    question per scene and kind, with the scene's ``example_id`` as its id and the kind as its task. Images, identity
    and fingerprint are those of FineScenes with the same options, so stored features serve probes and language models.

    Raises:
        WorkbenchError: options that no scene can meet; an unknown, repeated or missing kind.
    """

    options = QuestionsOptions
    version = FineScenes.version  # of the images; of the words: WORDS
    group_name = FineScenes.group_name

    def __init__(self, options: QuestionsOptions | None = None, folders: Mapping[str, Path] | None = None) -> None:
        chosen = options or QuestionsOptions()
        _check(chosen.kinds)
        self.instruct = chosen.instruct
        self.kinds = tuple(kind for kind in KINDS if kind in chosen.kinds)
        self.scenes = FineScenes(
            FineScenesOptions(**{f.name: getattr(chosen, f.name) for f in fields(FineScenesOptions)}), folders
        )
        self._conversations: dict[str, list[Conversation]] = {}

    # --- the images are those of FineScenes -------------------------------------------------------------------

    @property
    def image_size(self) -> int:
        return self.scenes.image_size

    def size(self, split: str) -> int:
        return self.scenes.size(split)

    def fingerprint(self, split: str) -> str:
        return self.scenes.fingerprint(split)

    def content(self, split: str) -> str:
        return self.scenes.content(split)

    def image(self, split: str, index: int) -> Array:
        return self.scenes.image(split, index)

    def identity(self, split: str) -> pd.DataFrame:
        return self.scenes.identity(split)

    # --- the words --------------------------------------------------------------------------------------------

    def metrics(self) -> Mapping[str, str]:
        return dict.fromkeys(self.kinds, "exact_match")

    def conversations(self, split: str) -> Sequence[Conversation]:
        if split not in self._conversations:
            make = self._training_conversation if split == "train" else self._questions
            rows = self.identity(split)
            named = zip(rows["example_id"], rows["group"], strict=True)
            self._conversations[split] = [
                c for row, (id_, group) in enumerate(named) for c in make(split, row, id_, group)
            ]
        return self._conversations[split]

    def _training_conversation(self, split: str, row: int, id_: str, group: str) -> list[Conversation]:
        order = self._stream(split, row, "order").permutation(len(KINDS))
        kinds = [kind for kind in np.array(list(KINDS))[order].tolist() if kind in self.kinds]
        turns: list[Turn] = []
        for kind in kinds:
            question, answer = self.question_and_answer(split, row, kind)
            turns += _turns(question, answer, shown=not turns)
        return [Conversation(id_, tuple(turns), (row,), group, origin=f"{WORDS} {id_}")]

    def _questions(self, split: str, row: int, id_: str, group: str) -> list[Conversation]:
        questions = [(kind, *self.question_and_answer(split, row, kind)) for kind in self.kinds]
        return [
            Conversation(id_, _turns(question, answer, True), (row,), group, kind, (answer,), f"{WORDS} {id_} {kind}")
            for kind, question, answer in questions
        ]

    def question_and_answer(self, split: str, index: int, kind: str) -> tuple[str, str]:
        """Question and answer of a kind about scene ``index``."""
        draw = self._stream(split, index, kind)
        wordings = KINDS[kind].wordings
        wording = wordings[int(draw.randint(len(wordings)))]
        place, answer = KINDS[kind].answer(self.scenes.layouts(split)[index], self.image_size, draw)
        question = wording.format(place=place)
        return f"{question}\n{SHORTLY}" if self.instruct else question, answer

    def _stream(self, split: str, index: int, purpose: str) -> np.random.RandomState:
        return frozen_stream(WORDS, self.scenes.chosen.seed, split, index, purpose)


def _turns(question: str, answer: str, shown: bool) -> tuple[Turn, Turn]:
    return Turn(USER, f"{IMAGE}\n{question}" if shown else question), Turn(ASSISTANT, answer)


def _first(place: GlyphOrder, scene: Layout) -> tuple[PlacedGlyph, float]:
    """The glyph that a place means, and by how many pixels it is ahead of the next."""
    order = sorted(scene.glyphs, key=lambda glyph: place.key(glyph, scene.digit))
    keys = [place.key(glyph, scene.digit) for glyph in order[:2]]
    return order[0], keys[1] - keys[0] if len(keys) == 2 else float("inf")


def _centre(placed: PlacedGlyph) -> tuple[float, float]:
    return placed.left + placed.width / 2, placed.top + placed.height / 2


def _distance(one: PlacedGlyph, other: PlacedGlyph) -> float:
    """Pixels between the centres of two boxes."""
    (x1, y1), (x2, y2) = _centre(one), _centre(other)
    return float(np.sqrt((x1 - x2) ** 2 + (y1 - y2) ** 2))


def _check(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise WorkbenchError(f"source.options.kinds: unknown kind {kind!r}.{nearest(str(kind), KINDS)}")
    if not kinds or len(set(kinds)) != len(kinds):
        raise WorkbenchError(
            f"source.options.kinds is {list(kinds)}; name each kind once, at least one: {', '.join(KINDS)}."
        )
