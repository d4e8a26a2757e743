"""Conversations about the noise images of ``tiny_source``: with none, one or two images, of many lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tiny_chat import CHATML, CHATML_TOKENS, by_bytes
from tiny_source import TinySource

from fusion_workbench.datamodules.conversations.base import Conversation, ConversationSource, Turn
from fusion_workbench.datamodules.conversations.chat import Chat

PER_IMAGE = 16  # tokens of an image of tiny_source to the tiny encoders of conftest


def tiny_chat(max_length: int = 500, **changed: Any) -> Chat:
    text = "what is it a cat a dog how many are there assistant system user be nice\n\n"
    return Chat(by_bytes(CHATML, text, **CHATML_TOKENS), max_length, PER_IMAGE, **changed)


class TalkSource(TinySource, ConversationSource):
    """Conversation n of a split: of n % 3 images, the last words ``n`` times."""

    version = "talk/1"

    def conversations(self, split: str) -> Sequence[Conversation]:
        return [self._conversation(number, self.size(split)) for number in range(self.size(split) + 5)]

    def metrics(self) -> dict[str, str]:
        return {"answer": "exact_match"}

    def targets(self, split: str) -> dict[str, np.ndarray[Any, Any]]:
        return {}

    def _conversation(self, number: int, size: int) -> Conversation:
        images = tuple((number * 2 + k) % size for k in range(number % 3))
        words = "<image>\n" * len(images) + f"what is it {number}"
        turns = [Turn("user", words), Turn("assistant", "a cat" + " and a dog" * (number % 7))]
        if number % 2:
            turns += [Turn("user", "how many?"), Turn("assistant", str(number))]
        return Conversation(f"c{number}", tuple(turns), images)
