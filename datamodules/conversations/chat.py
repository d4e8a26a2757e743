"""Conversations as token ids, with a label wherever the model has to say the token itself."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.conversations.base import ASSISTANT, IMAGE, USER, Conversation, Turn
from fusion_workbench.datamodules.conversations.chat_template import (
    CLOSE,
    OPEN,
    ChatTemplate,
    Piece,
    beginning_id,
)
from fusion_workbench.system.checksums import sha256_of

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_PICTURE = f"{OPEN}image{CLOSE}"
_LITERAL = re.compile(f"{OPEN}literal(\\d+){CLOSE}")
_ANY_ANSWER = Turn("assistant", "answer")
CHAT, PLAIN = "chat", "plain"
_TOGETHER = 1024  # conversations that are tokenised at once


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


class _Border(NamedTuple):
    """The end of a piece of the rendered text, within one of the chunks that are tokenised one by one.

    ``special``: where the last special token before it begins in the chunk, 0 where there is none; ``stretch``: the
    text from there on; ``last``: whether it is the chunk's own end.
    """

    chunk: int
    special: int
    stretch: str
    last: bool


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

    In LLaVA's forms (``form="plain"``, and templates of the form ``v1``) the texts on both sides of an image are
    tokenised apart, as LLaVA's ``tokenizer_image_token`` does: SentencePiece begins each with the mark of a word's
    beginning. Everywhere else an image is a token within the text, as it is to transformers' ``LlavaProcessor``. With
    most tokenizers that is the same.

    Args:
        tokenizer: of the language model; a copy is worked with.
        max_length: positions that a training example may take, an image counted as ``tokens_per_image``.
        tokens_per_image: positions of an image.
        system: see :class:`ChatTemplate`.
        form: ``chat``; or ``plain``, LLaVA's form for captions (arXiv 2304.08485, section 4.2): the image alone is the
            prompt, the answer and a line break are taught, the words of the question are dropped.
        images_apart: whether texts on both sides of an image are tokenised apart; None: as above.

    Raises:
        WorkbenchError: as :class:`ChatTemplate`; (from ``encode`` and ``prompt``) the conversation has another
            number of ``<image>`` words than images, or in the plain form more than one image and one exchange.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        tokens_per_image: int,
        system: str | None = None,
        form: str = CHAT,
        images_apart: bool | None = None,
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
        self._beginning = beginning_id(self._tokenizer)
        self._apart = images_apart
        self.form = form
        self._specials = {i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._controls = re.compile(f"{self.template.special.pattern}|[{OPEN}{CLOSE}]")

    def adapted(self, *, form: str | None = None, tokens_per_image: int | None = None) -> Chat:
        """The same with another form, or another number of tokens an image."""
        other = copy.copy(self)
        other.form = form or self.form
        other.tokens_per_image = tokens_per_image or self.tokens_per_image
        return other

    def fingerprint(self) -> str:
        """sha256 over all that the ids of a conversation depend on, but for its words."""
        tokenizer = self._tokenizer
        fast = tokenizer.is_fast
        made_of = tokenizer.backend_tokenizer.to_str() if fast else [tokenizer.get_vocab(), str(tokenizer.init_kwargs)]
        versions = [version(name) for name in ("transformers", "tokenizers")]
        form = [self.form, self.images_apart, self._head, self.template.text, self.template.system]
        return sha256_of(json.dumps([type(tokenizer).__name__, made_of, tokenizer.special_tokens_map, form, versions]))

    @property
    def images_apart(self) -> bool:
        """Whether the texts on both sides of an image are tokenised apart."""
        return (self.form == PLAIN or self.template.v1) if self._apart is None else self._apart

    # --- conversations to ids -----------------------------------------------------------------------------------

    def encode(self, conversation: Conversation) -> Encoded:
        """The whole conversation, however long."""
        literal: list[str] = []
        pieces = self._pieces(conversation, conversation.turns, literal)
        return _encoded(pieces, self._ids_up_to(pieces, literal))

    def encode_all(self, conversations: Iterable[Conversation]) -> Iterator[Encoded]:
        """:meth:`encode` of each, many at a time and each text tokenised once.

        ``encode`` tokenises what comes before each border anew. Here the whole is tokenised, and of what comes before a
        border only the stretch since the last special token: tokenizers split there before anything else, so what
        is before it has the ids that it has in the whole. Where the stretch alone has other ids than within the whole,
        and where words are special tokens' texts, ``encode`` does the conversation.
        """
        together = iter(conversations)
        while some := list(islice(together, _TOGETHER)):
            yield from self._encode_some(some)

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

    # --- inside -------------------------------------------------------------------------------------------------

    def _encode_some(self, conversations: Sequence[Conversation]) -> Iterator[Encoded]:
        rendered: list[tuple[list[Piece], list[_Border], list[str]] | None] = []
        for conversation in conversations:
            literal: list[str] = []
            pieces = self._pieces(conversation, conversation.turns, literal)
            simple = not literal and self._tokenizer.is_fast
            rendered.append((pieces, *self._borders(pieces)) if simple else None)
        chunks = [chunk for each in rendered if each is not None for chunk in each[2] if chunk]
        stretches = {b.stretch for each in rendered if each is not None for b in each[1] if b.stretch}
        whole = iter(self._together(chunks))
        alone = {text: ids.ids for text, ids in zip(stretches, self._together(list(stretches)), strict=True)}
        for conversation, each in zip(conversations, rendered, strict=True):
            stops = None
            if each is not None:
                stops = self._stops(each[1], [next(whole) if chunk else None for chunk in each[2]], alone)
            yield self.encode(conversation) if each is None or stops is None else _encoded(each[0], stops)

    def _together(self, texts: list[str]) -> list[Encoding]:
        if not texts:
            return []
        tokenised = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        assert tokenised.encodings is not None  # a fast tokenizer's
        return list(tokenised.encodings)

    def _borders(self, pieces: Sequence[Piece]) -> tuple[list[_Border], list[str]]:
        """Where each piece ends, and the chunks that are tokenised one by one."""
        chunks = self._chunks("".join(piece.text for piece in pieces))
        gap = len(_PICTURE) if self.images_apart else 0
        starts = [0, *accumulate(len(chunk) + gap for chunk in chunks)][:-1]
        borders, end, number = [], 0, 0
        for piece in pieces:
            end += len(piece.text)
            while number + 1 < len(chunks) and starts[number + 1] <= end:
                number += 1
            within = chunks[number][: end - starts[number]]
            special = max((match.start() for match in self.template.special.finditer(within)), default=0)
            borders.append(_Border(number, special, within[special:], len(within) == len(chunks[number])))
        return borders, chunks

    def _stops(
        self, borders: Sequence[_Border], chunks: Sequence[Encoding | None], alone: Mapping[str, list[int]]
    ) -> list[list[int]] | None:
        """What :meth:`_ids_up_to` gives; None where the ids before a border are not those that they are alone."""
        whole: list[int] = [] if self._head is None else [self._head]
        begins: list[int] = []
        for number, chunk in enumerate(chunks):
            whole += [IMAGE_ID] * bool(number)
            begins.append(len(whole))
            whole += [IMAGE_ID if i == self._picture else i for i in chunk.ids] if chunk is not None else []
        stops = []
        for border in borders:
            chunk, stop = chunks[border.chunk], begins[border.chunk]
            if border.last and chunk is not None:
                stop += len(chunk.ids)
            elif border.stretch:
                at = chunk.char_to_token(border.special) if chunk is not None and border.special else 0
                own = alone[border.stretch]
                if at is None or chunk is None or chunk.ids[at : at + len(own)] != own:
                    return None
                if border.special and own[0] not in self._specials:  # nothing is split there
                    return None
                stop += at + len(own)
            stops.append(whole[:stop])
        return stops

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
        if self.form == PLAIN:
            if len(conversation.images) != 1 or [turn.role for turn in turns] != [USER, ASSISTANT]:
                raise WorkbenchError(
                    f"{where}: template: plain is for one image and one exchange, and here are "
                    f"{len(conversation.images)} images and {len(turns)} turns; use template: chat."
                )
            return [Piece(_PICTURE, False), Piece(f"{words[1]}\n", True)]
        return self.template.pieces([turn.role for turn in turns], words, where)

    def _ids_up_to(self, pieces: Sequence[Piece], literal: Sequence[str]) -> list[list[int]]:
        """The ids of the text up to the end of each piece; each list begins with the one before it."""
        head = [] if self._head is None else [self._head]
        stops: list[list[int]] = [[]]
        for piece, text in zip(pieces, accumulate(piece.text for piece in pieces), strict=True):
            before, ids = stops[-1], self._ids(text, literal)
            stops.append(ids if ids[: len(before)] == before else before + self._ids(piece.text, literal))
        return [head + ids for ids in stops[1:]]

    @property
    def _head(self) -> int | None:
        """What stands before the text and is no part of it."""
        return self._beginning if self.form == PLAIN else self.template.beginning

    def _ids(self, text: str, literal: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for number, chunk in enumerate(self._chunks(text)):
            ids += [IMAGE_ID] * bool(number)
            for place, part in enumerate(_LITERAL.split(chunk)):  # text, number of a literal, text, …
                if place % 2:
                    part = literal[int(part)]
                if part:
                    encoded = self._tokenizer(part, add_special_tokens=False, split_special_tokens=bool(place % 2))
                    ids += [IMAGE_ID if i == self._picture else i for i in encoded["input_ids"]]
        return ids

    def _chunks(self, text: str) -> list[str]:
        """What is tokenised as a text of its own."""
        return text.split(_PICTURE) if self.images_apart else [text]


def _encoded(pieces: Sequence[Piece], stops: Sequence[list[int]]) -> Encoded:
    """Ids and labels by the ids up to the end of each piece."""
    ids: list[int] = []
    labels: list[int] = []
    prompt = 0
    for stop, piece in zip(stops, pieces, strict=True):
        prompt = len(ids) if piece.in_loss else prompt
        ids = stop
        labels += ids[len(labels) :] if piece.in_loss else [IGNORE] * (len(ids) - len(labels))
    return Encoded(tuple(ids), tuple(labels), prompt)
