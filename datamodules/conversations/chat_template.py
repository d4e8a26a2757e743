"""What a chat template puts round the turns of a conversation, and which of it the model has to say itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.conversations.base import ASSISTANT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# By this name of `system`: LLaVA-1.5's words and form, whatever template a tokenizer has.
VICUNA_V1 = "vicuna_v1"
VICUNA_V1_WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# For tokenizers without a template of their own, in the form of LLaVA's "v1": the end token closes each answer. The
# beginning token is no part of the text: some tokenizers (SentencePiece with `legacy: false`) would read what follows
# it as the middle of a text.
V1 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% elif message['content'] %}{{ message['content'] + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Private-use characters bracket what must survive the template untouched: the places of the turns, and (in chat.py)
# images and literal words. A user's own private-use characters are made literal words first.
OPEN, CLOSE = "\ue000", "\ue001"


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered text: with loss (an answer and what ends it), or without."""

    text: str
    in_loss: bool


class ChatTemplate:
    """The tokenizer's own chat template, or :data:`V1` where it has none.

    The template is rendered once for each shape of conversation, with marks instead of the turns' words: what
    stands between the marks is the template's. So no marker string is ever searched for, and templates that treat
    the last turn differently (Qwen3's empty thinking) come out as they are. Every conversation is then rendered
    as it is and compared: a template that looks into the words is detected, not assumed.

    Args:
        tokenizer: fast or slow.
        system: None: what the template says by itself; words: a system turn with them; "": an empty system turn,
            or none where the template takes none; :data:`VICUNA_V1`: LLaVA-1.5's words, in the form of :data:`V1`.

    Attributes:
        text: the template.
        v1: whether that is :data:`V1`.
        beginning: id that stands before the rendered text and is no part of it; None: there is none, or the template
            writes it.

    Raises:
        WorkbenchError: no template, or :data:`VICUNA_V1`, and no end token; (from ``pieces``) the template refuses the
            conversation, changes its words, or ends an answer with no special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        self.v1 = system == VICUNA_V1 or not tokenizer.chat_template
        if self.v1 and tokenizer.eos_token is None:
            lacks = "no end token, which system: vicuna_v1 ends answers with" if tokenizer.chat_template else ""
            raise WorkbenchError(
                f"the tokenizer {self.name} has {lacks or 'neither a chat template nor an end token'}; give it one."
            )
        self.text = V1 if self.v1 else str(tokenizer.get_chat_template())
        self.beginning = beginning_id(tokenizer) if self.v1 else None
        self.special = special_pattern(tokenizer)
        words = VICUNA_V1_WORDS if system == VICUNA_V1 else system
        self.system: tuple[str, ...] = () if words is None else (words,)
        if system == "" and not self._takes_system():
            self.system = ()
        self._frames: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}

    def pieces(self, roles: Sequence[str], words: Sequence[str], origin: str) -> list[Piece]:
        """The rendered conversation, cut where an answer begins and where its end token stands.

        Spaces between the template's text and an answer belong to the answer (``ASSISTANT:`` + `` yes``), as
        tokenizers put a space at the head of a word. ``words`` are stripped, without :data:`OPEN` but for marks.
        """
        between, end = self._frame(tuple(roles))
        if self._render(roles, words) != _filled(between, words):
            raise WorkbenchError(
                f"{origin}: the chat template of {self.name} changes the words of this conversation, "
                "so it cannot be told what of it is the answer; mend the words, or take a template that keeps them."
            )
        pieces: list[Piece] = []
        given = ended = ""  # the text since the last answer; what of it belongs to that answer's loss
        for number, (role, text) in enumerate(zip(roles, words, strict=True)):
            given += between[number].removeprefix(ended)
            ended = ""
            if role != ASSISTANT:
                given += text
                continue
            prompt = given.rstrip(" ")
            ended = end if between[number + 1].startswith(end) else ""
            pieces += [Piece(prompt, False), Piece(given[len(prompt) :] + text + ended, True)]
            given = ""
        given += between[-1].removeprefix(ended)
        return [*pieces, Piece(given, False)] if given else pieces

    def end(self) -> str:
        """The special token that ends an answer."""
        match = self.special.search(self._frame(("user", ASSISTANT))[1])
        assert match is not None
        return match.group()

    def _frame(self, roles: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
        """The text before, between and after the turns; and what of it ends an answer."""
        if roles in self._frames:
            return self._frames[roles]
        marks = [f"{OPEN}{number}{CLOSE}" for number in range(len(roles))]
        remaining = self._render(roles, marks)
        between: list[str] = []
        for mark in marks:
            before, separator, remaining = remaining.partition(mark)
            if not separator or mark in remaining:
                raise WorkbenchError(
                    f"the chat template of {self.name} leaves out, repeats or reorders turns of {', '.join(roles)}."
                )
            between.append(before)
        ended = self.special.search(remaining)
        if ended is None:
            raise WorkbenchError(
                f"the chat template of {self.name} ends an answer with no special token, so a model would never "
                "learn to stop; take a template that does."
            )
        self._frames[roles] = (*between, remaining), remaining[: ended.end()]
        return self._frames[roles]

    def _takes_system(self) -> bool:
        try:
            self._render(("user", ASSISTANT), ("a", "b"))
        except WorkbenchError:
            return False
        return True

    def _render(self, roles: Sequence[str], words: Sequence[str]) -> str:
        from jinja2 import TemplateError

        messages = [{"role": "system", "content": text} for text in self.system]
        messages += [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]
        try:
            rendered = self.tokenizer.apply_chat_template(messages, chat_template=self.text, tokenize=False)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            message = " ".join(str(error).split())
            raise WorkbenchError(
                f"the chat template of {self.name} refuses turns of {', '.join(m['role'] for m in messages)}: {message}"
            ) from error
        assert isinstance(rendered, str)
        return rendered


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every special token's text, the longest first."""
    added: Mapping[int, object] = tokenizer.added_tokens_decoder
    special_tokens = {str(token) for token in added.values() if getattr(token, "special", False)}
    special_tokens |= set(tokenizer.all_special_tokens)
    return re.compile(
        "|".join(re.escape(text) for text in sorted(special_tokens - {""}, key=len, reverse=True)) or r"(?!)"
    )


def _filled(between: Sequence[str], words: Sequence[str]) -> str:
    return "".join(part for pair in zip(between, [*words, ""], strict=True) for part in pair)


def beginning_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The beginning token's id, if the tokenizer would put it before any text."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[0] if tokenizer.bos_token_id in ids[:1] else None
