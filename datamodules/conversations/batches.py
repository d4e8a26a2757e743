"""Batches of conversations: token ids, labels, and the features of the images that they show."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.loader import Batch

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import ConversationSource
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.datamodules.features import Fetch


class ConversationBatches(Dataset[Batch]):
    """One split of conversations, tokenised once, fetched a whole batch at a time.

    The ids lie side by side in flat arrays, five bytes per token. In training what is longer than ``chat.max_length``
    is truncated, and what cannot be (:meth:`Chat.fit`) is left out; validation and test are never truncated.

    Attributes:
        numbers: of the conversations that are kept, in the source's order.
        lengths: of those, in positions of the language model.
        text_only: which of those show no image.
        left_out: numbers of the conversations that are not trained on.
        truncated: how many of the kept are.
    """

    def __init__(self, source: ConversationSource, split: str, chat: Chat, fetch: Fetch, truncated: bool) -> None:
        self.chat = chat
        self.fetch = fetch
        self.conversations = source.conversations(split)
        self.left_out: list[int] = []
        self.numbers: list[int] = []
        self.lengths: list[int] = []
        self.text_only: list[bool] = []
        self.truncated = 0
        ids, in_loss, ends, prompts = array("i"), array("b"), array("q", [0]), array("q")
        for number, conversation in enumerate(self.conversations):
            encoded = chat.encode(conversation)
            fitted = chat.fit(encoded) if truncated else encoded
            if fitted is None:
                self.left_out.append(number)
                continue
            ids.extend(fitted.input_ids)
            in_loss.extend(label != IGNORE for label in fitted.labels)
            ends.append(len(ids))
            prompts.append(fitted.prompt)
            self.truncated += fitted is not encoded
            self.numbers.append(number)
            self.lengths.append(chat.length(fitted))
            self.text_only.append(not fitted.images)
        self._ids, self._in_loss = np.array(ids, np.int32), np.array(in_loss, np.bool_)
        self._ends, self._prompts = ends, prompts
        self._places = {number: place for place, number in enumerate(self.numbers)}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitems__(self, places: list[int]) -> Batch:
        """The batch of teacher forcing, padded on the right; ``places`` count the kept conversations."""
        rows = [self._row(place) for place in places]
        labels = [torch.where(in_loss, ids, IGNORE) for ids, in_loss in rows]
        return {
            "input_ids": _padded([ids for ids, _ in rows], self.chat.pad_id),
            "labels": _padded(labels, IGNORE),
            "attention_mask": _padded([torch.ones_like(in_loss) for _, in_loss in rows], False),
        } | self._shown(places, [ids for ids, _ in rows])

    def prompts(self, numbers: Sequence[int]) -> Batch:
        """What an answer is generated from, padded on the left: ``input_ids``, ``attention_mask``, ``index``, images.

        Args:
            numbers: of conversations of the split.
        """
        places = [self._places[number] for number in numbers]
        rows = [self._row(place)[0][: self._prompts[place]] for place in places]
        return padded_prompts(rows, self.chat.pad_id) | self._shown(places, rows)

    def _row(self, place: int) -> tuple[Tensor, Tensor]:
        """Ids, and where loss is taken."""
        part = slice(self._ends[place], self._ends[place + 1])
        return torch.from_numpy(self._ids[part]).long(), torch.from_numpy(self._in_loss[part])

    def _shown(self, places: Sequence[int], rows: Sequence[Tensor]) -> Batch:
        """The images that stand in ``rows``: their features, or themselves where they are encoded later."""
        numbers = [self.numbers[place] for place in places]
        images = [
            image
            for number, ids in zip(numbers, rows, strict=True)
            for image in self.conversations[number].images[: int((ids == IMAGE_ID).sum())]
        ]
        return self.fetch(torch.tensor(images, dtype=torch.int64)) | {"index": torch.tensor(numbers)}


def padded_prompts(prompts: Sequence[Tensor], pad_id: int) -> Batch:
    """``input_ids`` and ``attention_mask`` of prompts, int64 ``[L]`` each, padded on the left: answers follow."""
    return {
        "input_ids": _padded(prompts, pad_id, side="left"),
        "attention_mask": _padded([torch.ones_like(ids, dtype=torch.bool) for ids in prompts], False, side="left"),
    }


def _padded(rows: Sequence[Tensor], value: int | bool, side: str = "right") -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
