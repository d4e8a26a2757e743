"""One row of a LLaVA file, from JSON to turns: what it must hold, and what is wrong where it does not.

The format is that of LLaVA-Pretrain (558 k captions) and of the LLaVA-1.5 instruction mix (665 k): ``id``, ``image`` (a
path, several in a list, or none), ``conversations`` of ``{"from": "human" | "gpt", "value": …}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from fusion_workbench.datamodules.conversations.base import ASSISTANT, IMAGE, USER, Turn

Role = Literal["user", "assistant"]
ROLES: Final[Mapping[str, Role]] = {"human": USER, "gpt": ASSISTANT, "user": USER, "assistant": ASSISTANT}
KEYS: Final = (("from", "value"), ("role", "content"))  # LLaVA's names of a turn's parts, and those of chat messages
READ: Final = frozenset(
    ["id", "question_id", "image", "conversations", "answers", "task", "category", "metric", "group"]
)  # keys of a row
# A picture's kin that cannot be shown: at the head of a line, or at the end, of words that do not speak of HTML.
_OTHER_MEDIA = re.compile(r"(?m)^\s*<(video|audio|speech)>|<(video|audio|speech)>\s*\Z")


class BadRow(Exception):
    """A row that cannot be used: ``reason`` is its kind, to be counted; ``detail`` what is wrong in it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class WrittenNumber(float):
    """A number and the characters that it was written in, such as ``1.50`` or ``1e3``."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """A row whose words are in order. Its images are names, not yet files.

    Attributes:
        id: its own, or empty.
        images: in the order of the ``<image>`` words.
        turns: user and assistant in alternation; the last is the assistant's.
        answers: all right answers, where the row lists them.
        task: the kind of question.
        metric: that judges it; empty: the source's.
        group: what a split must not cut through besides the image; empty: nothing else.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    answers: tuple[str, ...] = ()
    task: str = "answer"
    metric: str = ""
    group: str = ""


def parse_row(record: object, image_first: bool = True) -> ConversationRow:
    """A row as it stands in the file → turns.

    Args:
        found: the parsed JSON.
        image_first: a turn with one ``<image>`` begins with it, wherever it stood, as LLaVA-1.5 trains; else it stays.

    A row with images and no ``<image>`` at all shows them before the first words. A first turn of the assistant is left
    out, as LLaVA does. A row that ends with the user's words and lists ``answers`` is a question: its first answer is
    the assistant's turn.

    Raises:
        BadRow: no object, no turns, roles out of turn, an empty turn, as many images as ``<image>`` words it has not.
    """
    if not isinstance(record, dict):
        raise BadRow("not an object", f"the row is {_short(record)}; it must be an object with 'conversations'")
    answers = _answers(record)
    images = _images(record.get("image"))
    turns = place_images(_turns(record.get("conversations"), answers), len(images), image_first)
    return ConversationRow(
        id=_word(record, "id", "question_id"),
        images=images,
        turns=tuple(turns),
        answers=answers,
        task=_word(record, "task", "category") or "answer",
        metric=_word(record, "metric"),
        group=_word(record, "group"),
    )


def place_images(turns: Sequence[Turn], images: int, image_first: bool) -> list[Turn]:
    """Turns in which ``<image>`` stands once for each image, by the rules of :func:`parse_row`.

    Raises:
        BadRow: another number of them, or one in the assistant's words; a ``<video>`` to be shown.
    """
    if any(IMAGE in turn.text for turn in turns if turn.role == ASSISTANT):
        raise BadRow("<image> in an answer", "the assistant's words hold <image>; only the user shows images")
    for turn in turns:
        other = _OTHER_MEDIA.search(turn.text) if "<" in turn.text and turn.role == USER else None
        if other is not None and f"</{other[1] or other[2]}>" not in turn.text:
            raise BadRow("video or sound", f"the words show {other[0].strip()}; only images are shown, by {IMAGE}")
    words = sum(turn.text.count(IMAGE) for turn in turns)
    if images and not words:
        return [Turn(USER, f"{IMAGE}\n" * images + turns[0].text), *turns[1:]]
    if words != images:
        raise BadRow("images and <image> differ", f"{images} images and {words} <image> words")
    if not image_first:
        return list(turns)
    return [_first(turn) if turn.text.count(IMAGE) == 1 else turn for turn in turns]


def _first(turn: Turn) -> Turn:
    return Turn(turn.role, f"{IMAGE}\n{turn.text.replace(IMAGE, '').strip()}".rstrip())


def _turns(turns_read: object, answers: Sequence[str]) -> list[Turn]:
    if not isinstance(turns_read, list) or not turns_read:
        raise BadRow("no conversations", f"'conversations' is {_short(turns_read)}; it must be a list of turns")
    turns = [_turn(turn, number) for number, turn in enumerate(turns_read, 1)]
    if turns[0].role == ASSISTANT:
        turns = turns[1:]
    if turns and turns[-1].role == USER and answers:
        turns.append(Turn(ASSISTANT, answers[0]))
    if not turns:
        raise BadRow("roles", "the assistant's words alone; a conversation begins with the user's")
    for number, turn in enumerate(turns):
        if turn.role != (USER, ASSISTANT)[number % 2]:
            raise BadRow("roles", f"two turns of the {turn.role} in a row; they must alternate")
    if turns[-1].role == USER:
        raise BadRow("no answer", "the last words are the user's, and there are no 'answers'")
    return turns


def _turn(record: object, number: int) -> Turn:
    keys = next((keys for keys in KEYS if keys[0] in record), None) if isinstance(record, dict) else None
    if not isinstance(record, dict) or keys is None:
        raise BadRow("no conversations", f"turn {number} is {_short(record)}; it must have 'from' and 'value'")
    role, text = record[keys[0]], text_of(record.get(keys[1]))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("roles", f"turn {number} is from {_short(role)}; it must be 'human' or 'gpt'")
    if not isinstance(text, str) or not text.strip():
        raise BadRow("empty turn", f"turn {number} says {_short(text)}")
    return Turn(ROLES[role], _whole(text, "turn", number))


def _images(images: object) -> tuple[str, ...]:
    names = [] if images is None else images if isinstance(images, list) else [images]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise BadRow("image path", f"'image' is {_short(images)}; it must be a path, or a list of paths")
    return tuple(names)


def _answers(record: Mapping[str, Any]) -> tuple[str, ...]:
    listed = record.get("answers")
    if listed is None:
        return ()
    read = [text_of(answer) for answer in listed] if isinstance(listed, list) else []
    words = [word for word in read if isinstance(word, str) and word.strip()]
    if not words or len(words) != len(read):
        raise BadRow("answers", f"'answers' is {_short(listed)}; it must be a list of words")
    return tuple(_whole(word, "an answer") for word in words)


def _word(record: Mapping[str, Any], *keys: str) -> str:
    """The first of ``keys`` that is there; numbers as words."""
    for key in keys:
        value = record.get(key)
        if value is None:
            continue
        text = text_of(value)
        if not isinstance(text, str) or isinstance(value, bool):
            raise BadRow(key, f"'{key}' is {_short(value)}; it must be a word or a number")
        return _whole(text, f"'{key}'")
    return ""


def text_of(value: object) -> object:
    """A number or boolean as the text that stands in the file; NaN, which is no number, and all else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | WrittenNumber | Decimal) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return value


def _whole(text: str, *where: object) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and no tokenizer can read
        raise BadRow("broken text", f"{' '.join(map(str, where))} holds half a character (a lone surrogate)") from None
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
