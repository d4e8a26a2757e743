"""The batches of an ablation: features and targets, in an order that all variants share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from fusion_workbench.datamodules.conversations.base import ConversationSource
from fusion_workbench.datamodules.conversations.batches import ConversationBatches
from fusion_workbench.datamodules.features import Features, Fetch
from fusion_workbench.datamodules.loader import Batch, Resumption, TrainingLoader, keep_batch
from fusion_workbench.datamodules.order import (
    EpochBatches,
    EpochOrder,
    LengthGroupedOrder,
    ModalityLengthOrder,
    Order,
    check_batch,
)

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.datamodules.sources.base import Source


WORKERS = 4  # of live images, as LLaVA's dataloader_num_workers


class SplitBatches(Dataset[Batch]):
    """One split, fetched a whole batch at a time: with features from the store, or images to be encoded."""

    def __init__(self, source: Source, split: str, fetch: Fetch) -> None:
        self.source = source
        self.split = split
        self.fetch = fetch
        self.targets = {name: torch.from_numpy(values) for name, values in source.targets(split).items()}

    def __len__(self) -> int:
        return self.source.size(self.split)

    def __getitems__(self, examples: list[int]) -> Batch:
        index = torch.tensor(examples)
        return self.fetch(index) | {"index": index} | {name: values[index] for name, values in self.targets.items()}


class AblationDataModule(L.LightningDataModule):
    """Batches ``{"features": [layers, B, tokens, dim], "index": int64 [B], **targets}``.

    Features come from the store, or live from the encoder once the batch is on the module's device (then the
    loaders themselves yield ``"images"``, uint8 ``[B, H, W, 3]``, instead of ``"features"``).

    With a ``chat`` the examples are the conversations of the source, and batches are::

        input_ids       int64 [B, L]                  IMAGE_ID where an image stands; padded on the right
        labels          int64 [B, L]                  the id where loss is taken, IGNORE elsewhere
        attention_mask  bool [B, L]
        features        [layers, N, tokens, dim]      of the N images of the batch, in the order in which they stand
        index           int64 [B]                     numbers of the conversations in source.conversations(split)

    with ``images`` for ``features`` as above, and N = 0 in a batch of text alone.

    Training batches come in an order that depends on ``order_seed`` and the epoch alone (and on the lengths, when
    grouped by length), the last incomplete one left out; validation and test are complete and in the source's
    order. The place in the training epoch is part of Lightning's checkpoints (:class:`TrainingLoader`). Where several
    processes train, each takes its share of the batches (:class:`EpochBatches`): give the trainer
    ``use_distributed_sampler=False``, so that every process evaluates everything, each example once.

    Args:
        features: of the source whose examples are batched: :class:`StoreFeatures` or :class:`LiveFeatures`.
        layers: the order of the first axis of the features.
        batch_size: of training, in each process.
        order_seed: decides the order of training.
        eval_batch_size: of validation and test; ``batch_size`` by default.
        num_workers: processes that fetch batches, in each process that trains; they change no batch. None: for live
            images on a GPU, which would wait for them, :data:`WORKERS` or as many as there are CPUs to spare; none for
            the store, whose rows are mapped memory, and none where the CPU itself trains.
        chat: makes ids of conversations; the source is then a :class:`ConversationSource`.
        tokens: folder where the ids of conversations are kept for the next process; None: nowhere.
        group_by: what the conversations of a training batch have in common: ``none``, ``length``
            (:class:`LengthGroupedOrder`) or ``modality_length`` (:class:`ModalityLengthOrder`).
        accumulate: batches a step, which ``modality_length`` puts together as one.

    Raises:
        WorkbenchError: (from ``train_dataloader``) the training split holds less than one batch; (from any loader)
            a conversation cannot be made ids of, as :class:`Chat`.
    """

    def __init__(
        self,
        features: Features,
        layers: Sequence[int],
        batch_size: int,
        order_seed: int,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        chat: Chat | None = None,
        tokens: Path | None = None,
        group_by: str = "none",
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        if group_by != "none" and chat is None:
            raise ValueError("only conversations can be grouped by length")
        self.features = features
        self.source = features.source
        self.layers = tuple(layers)
        self.batch_size = batch_size
        self.order_seed = order_seed
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.chat = chat
        self.tokens = tokens
        self.group_by, self.accumulate = group_by, accumulate
        self._splits: dict[str, SplitBatches | ConversationBatches] = {}
        self._training: TrainingLoader | None = None
        self._resumption = Resumption()

    def train_dataloader(self) -> TrainingLoader:
        examples = self._split("train")
        processes = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        size = len(examples)
        check_batch(size, self.batch_size, processes, len(self.left_out) if self.chat is not None else 0)
        batches = EpochBatches(self._order(size, processes), self.batch_size, rank, processes)
        self._training = TrainingLoader(examples, batches, self._workers(), self._resumption)
        return self._training

    def _order(self, size: int, processes: int) -> Order:
        if self.group_by == "none":
            return EpochOrder(size, self.order_seed)
        spoken = self._conversations("train")
        if self.group_by == "length":
            return LengthGroupedOrder(spoken.lengths, spoken.text_only, self.batch_size * processes, self.order_seed)
        turns = [spoken.conversations[number].turns for number in spoken.numbers]
        words = [sum(len(turn.text.split()) for turn in conversation) for conversation in turns]
        devices, accumulate = processes, self.accumulate
        return ModalityLengthOrder(words, spoken.text_only, self.batch_size, self.order_seed, devices, accumulate)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test", self.eval_batch_size)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """The place in the order of training, for Lightning's checkpoints; nothing before training."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Where the next training begins; testing a checkpoint resumes nothing."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumption.state = state_dict

    # --- conversations ------------------------------------------------------------------------------------------

    @property
    def left_out(self) -> list[int]:
        """Numbers of the training conversations that are too long to be learned from."""
        return self._conversations("train").left_out

    @property
    def truncated(self) -> int:
        """How many training conversations lose their end to ``chat.max_length``."""
        return self._conversations("train").truncated

    # --- inside -------------------------------------------------------------------------------------------------

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Encodes live batches, on the device where they now are."""
        return self.features.complete(batch, self.layers)

    def _loader(self, split: str, batch_size: int) -> DataLoader[Batch]:
        return DataLoader(self._split(split), batch_size=batch_size, num_workers=self._workers(), collate_fn=keep_batch)

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if self.features.store is not None or self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return 0
        return max(0, min(WORKERS, (os.cpu_count() or 1) // self.trainer.world_size - 1))

    def _split(self, split: str) -> SplitBatches | ConversationBatches:
        if split not in self._splits:
            part, trainer = self.features.split(split, self.layers), self.trainer
            fetch = part.fetch if trainer is None or self._workers() else part.fetch_for(trainer.strategy.root_device)
            if self.chat is None:
                self._splits[split] = SplitBatches(self.source, split, fetch)
            else:
                if not isinstance(self.source, ConversationSource):
                    raise ValueError("a chat needs a source of conversations")
                truncated = split == "train"
                self._splits[split] = ConversationBatches(self.source, split, self.chat, fetch, truncated, self.tokens)
        return self._splits[split]

    def _conversations(self, split: str) -> ConversationBatches:
        batches = self._split(split)
        if not isinstance(batches, ConversationBatches):
            raise ValueError("without a chat there are no conversations")
        return batches
