"""Batches of conversations: token ids, labels, and the features of the images that they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.conversations.tokenised import tokenised_split
from fusion_workbench.datamodules.loader import Batch

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import ConversationSource
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.datamodules.features import Fetch


class ConversationBatches(Dataset[Batch]):
    """One split of conversations, tokenised once, fetched a whole batch at a time.

    In training what is longer than ``chat.max_length`` is truncated, and what cannot be (:meth:`Chat.fit`) is left out;
    validation and test are never truncated.

    Args:
        folder: where the ids are kept for the next process (:func:`tokenised_split`); None: nowhere.

    Attributes:
        numbers: of the conversations that are kept, in the source's order.
        lengths: of those, in positions of the language model.
        text_only: which of those show no image.
        left_out: numbers of the conversations that are not trained on.
        truncated: how many of the kept are.
    """

    def __init__(
        self,
        source: ConversationSource,
        split: str,
        chat: Chat,
        fetch: Fetch,
        truncated: bool,
        folder: Path | None = None,
    ) -> None:
        self.chat = chat
        self.fetch = fetch
        self.conversations = source.conversations(split)
        self._tokens = tokenised_split(source, split, chat, folder)
        fitted = self._tokens.fitted(chat.max_length if truncated else 2**62, chat.tokens_per_image)
        self._kept = fitted.kept
        there = fitted.kept > 0
        self.numbers: list[int] = there.nonzero()[0].tolist()
        self.left_out: list[int] = (~there).nonzero()[0].tolist()
        self.lengths: list[int] = fitted.lengths[there].tolist()
        self.text_only: list[bool] = [
            not (self._tokens.ids[self._part(number)] == IMAGE_ID).any() for number in self.numbers
        ]
        self.truncated = fitted.cut

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitems__(self, places: list[int]) -> Batch:
        """The batch of teacher forcing, padded on the right; ``places`` count the kept conversations."""
        rows = [self._row(self.numbers[place]) for place in places]
        labels = [torch.where(in_loss, ids, IGNORE) for ids, in_loss in rows]
        return {
            "input_ids": _padded([ids for ids, _ in rows], self.chat.pad_id),
            "labels": _padded(labels, IGNORE),
            "attention_mask": _padded([torch.ones_like(in_loss) for _, in_loss in rows], False),
        } | self._shown([self.numbers[place] for place in places], [ids for ids, _ in rows])

    def _part(self, number: int) -> slice:
        start = self._tokens.part(number).start
        return slice(start, start + int(self._kept[number]))

    def _row(self, number: int) -> tuple[Tensor, Tensor]:
        """Ids, and where loss is taken."""
        part = self._part(number)
        return torch.from_numpy(self._tokens.ids[part]).long(), torch.from_numpy(self._tokens.in_loss[part])

    def _shown(self, numbers: Sequence[int], rows: Sequence[Tensor]) -> Batch:
        """The images that stand in ``rows``: their features, or themselves where they are encoded later."""
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
