"""Conversations as token ids, with a label wherever the model has to say the token itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.conversations.base import ASSISTANT, IMAGE, USER, Conversation, Turn
from fusion_workbench.datamodules.conversations.chat_template import CLOSE, OPEN, ChatTemplate, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PICTURE = f"{OPEN}image{CLOSE}"
_LITERAL = re.compile(f"{OPEN}literal(\\d+){CLOSE}")
_ANY_ANSWER = Turn("assistant", "answer")


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids.

    Attributes:
        input_ids: :data:`IMAGE_ID` where an image stands.
        labels: as long; the id where loss is taken, :data:`IGNORE` elsewhere. Not shifted.
        prompt: how many of the first ids come before the last answer; all of them where that was truncated.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt: int

    @property
    def images(self) -> int:
        return self.input_ids.count(IMAGE_ID)


class Chat:
    """Turns conversations into ids by a tokenizer and its chat template (:class:`ChatTemplate`).

    Loss is taken on the assistant's words and on the special token that ends them, with the space that may stand
    between; on nothing else. The turns' words are stripped. The text is tokenised as a whole, as the language
    model knows it from its own training, but for one rule that holds for any tokenizer: what comes before an answer
    has the ids that it has alone. Where the tokenizer would merge across that border (``\\n\\n`` + ``\\n5``), the two
    sides are tokenised apart. So the ids of :meth:`prompt` are always the first of :meth:`encode`: the model is
    evaluated exactly as it was trained.

    Words are words: text of a special token inside a turn (``<|im_end|>`` typed by a user) is tokenised as the
    characters it is made of, and so is ``<image>`` in an answer or in a conversation without images.

    Args:
        tokenizer: of the language model; a copy is worked with.
        max_length: positions that a training example may take, an image counted as ``tokens_per_image``.
        tokens_per_image: positions of an image.
        system: see :class:`ChatTemplate`.

    Raises:
        WorkbenchError: as :class:`ChatTemplate`; (from ``encode`` and ``prompt``) the conversation has another
            number of ``<image>`` words than images.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        tokens_per_image: int,
        system: str | None = None,
    ) -> None:
        from tokenizers import AddedToken

        self.max_length = max_length
        self.tokens_per_image = tokens_per_image
        self._tokenizer = copy.deepcopy(tokenizer)
        # An image is a token of its own to the tokenizer, as in transformers' LLaVA: the text on both sides is split
        # there, and otherwise tokenised as ever.
        self._tokenizer.add_tokens([AddedToken(_PICTURE, special=True, normalized=False)], special_tokens=True)
        self._picture = self._tokenizer.convert_tokens_to_ids(_PICTURE)
        self.template = ChatTemplate(self._tokenizer, system)
        self._controls = re.compile(f"{self.template.special.pattern}|[{OPEN}{CLOSE}]")

    # --- conversations to ids -----------------------------------------------------------------------------------

    def encode(self, conversation: Conversation) -> Encoded:
        """The whole conversation, however long."""
        literal: list[str] = []
        pieces = self._pieces(conversation, conversation.turns, literal)
        ids: list[int] = []
        labels: list[int] = []
        prompt = 0
        for stop, piece in zip(self._ids_up_to(pieces, literal), pieces, strict=True):
            prompt = len(ids) if piece.in_loss else prompt
            ids = stop
            labels += ids[len(labels) :] if piece.in_loss else [IGNORE] * (len(ids) - len(labels))
        return Encoded(tuple(ids), tuple(labels), prompt)

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids of everything before the last answer, which is not looked at and may be missing."""
        turns = conversation.turns
        turns = (*(turns[:-1] if turns[-1].role == ASSISTANT else turns), _ANY_ANSWER)
        literal: list[str] = []
        pieces = self._pieces(conversation, turns, literal)
        last = max(number for number, piece in enumerate(pieces) if piece.in_loss)
        return self._ids_up_to(pieces[:last], literal)[-1]

    def fit(self, encoded: Encoded) -> Encoded | None:
        """``encoded`` truncated on the right to ``max_length`` positions; None if that leaves nothing to learn.

        An image is kept whole or dropped with all that follows it. None also where the images alone fill
        ``max_length``. Nothing changes in an example that fits.
        """
        if encoded.images * self.tokens_per_image >= self.max_length:
            return None
        ends = accumulate(self.tokens_per_image if i == IMAGE_ID else 1 for i in encoded.input_ids)
        kept = sum(1 for end in ends if end <= self.max_length)
        if kept == len(encoded.input_ids):
            return encoded
        labels = encoded.labels[:kept]
        if all(label == IGNORE for label in labels):
            return None
        return Encoded(encoded.input_ids[:kept], labels, min(encoded.prompt, kept))

    def length(self, encoded: Encoded) -> int:
        """Positions that the language model sees."""
        return len(encoded.input_ids) + encoded.images * (self.tokens_per_image - 1)

    # --- ids to words -------------------------------------------------------------------------------------------

    @property
    def pad_id(self) -> int:
        """What pads a batch; masked, so any id would do."""
        candidates = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return int(next(i for i in candidates if i is not None))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the template's, and the tokenizer's own end."""
        ended = self._tokenizer.convert_tokens_to_ids(self.template.end())
        return tuple(dict.fromkeys(i for i in (ended, self._tokenizer.eos_token_id) if isinstance(i, int)))

    def decode(self, ids: Sequence[int]) -> str:
        """The words of an answer, up to the first id that ends it."""
        stops = set(self.stop_ids)
        end = next((place for place, i in enumerate(ids) if i in stops), len(ids))
        words = self._tokenizer.decode([i for i in ids[:end] if i >= 0], skip_special_tokens=True)
        assert isinstance(words, str)
        return words.strip()

    # --- inside -------------------------------------------------------------------------------------------------

    def _pieces(self, conversation: Conversation, turns: Sequence[Turn], literal: list[str]) -> list[Piece]:
        where = conversation.origin or f"conversation '{conversation.id}'"
        shown = sum(turn.text.count(IMAGE) for turn in turns if turn.role == USER)
        if conversation.images and shown != len(conversation.images):
            raise WorkbenchError(f"{where}: {shown} times '{IMAGE}' for {len(conversation.images)} images.")

        def kept(match: re.Match[str]) -> str:
            literal.append(match.group())
            return f"{OPEN}literal{len(literal) - 1}{CLOSE}"

        words = []
        for turn in turns:
            shows = turn.role == USER and conversation.images
            parts = turn.text.strip().split(IMAGE) if shows else [turn.text.strip()]
            words.append(_PICTURE.join(self._controls.sub(kept, part) for part in parts))
        return self.template.pieces([turn.role for turn in turns], words, where)

    def _ids_up_to(self, pieces: Sequence[Piece], literal: Sequence[str]) -> list[list[int]]:
        """The ids of the text up to the end of each piece; each list begins with the one before it."""
        stops: list[list[int]] = [[]]
        for piece, text in zip(pieces, accumulate(piece.text for piece in pieces), strict=True):
            before, ids = stops[-1], self._ids(text, literal)
            stops.append(ids if ids[: len(before)] == before else before + self._ids(piece.text, literal))
        return stops[1:]

    def _ids(self, text: str, literal: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(_LITERAL.split(text)):  # text, number of a literal, text, …
            if number % 2:
                part = literal[int(part)]
            if part:
                encoded = self._tokenizer(part, add_special_tokens=False, split_special_tokens=bool(number % 2))
                ids += [IMAGE_ID if i == self._picture else i for i in encoded["input_ids"]]
        return ids
