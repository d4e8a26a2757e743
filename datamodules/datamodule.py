"""The batches of an ablation: features and targets, in an order that all variants share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.encoding import EncoderLike, draw
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from datamodules.feature_store import FeatureStore
    from datamodules.shards import StoredFeatures
    from datamodules.sources import Source

Batch = dict[str, Tensor]


class EpochOrder(Sampler[int]):
    """A permutation of the examples that depends on seed and epoch and on nothing else.

    Lightning calls :meth:`set_epoch` before every training epoch.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        digest = hashlib.sha256(f"{self.seed}|{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        return iter(order)


class SplitBatches(Dataset[Batch]):
    """One split, fetched a whole batch at a time: with features from the store, or images to be encoded."""

    def __init__(self, source: Source, split: str, features: StoredFeatures | None) -> None:
        self.source = source
        self.split = split
        self.features = features
        self.targets = {name: torch.from_numpy(values) for name, values in source.targets(split).items()}

    def __len__(self) -> int:
        return self.source.size(self.split)

    def __getitems__(self, examples: list[int]) -> Batch:
        index = torch.tensor(examples)
        batch = {"index": index} | {name: values[index] for name, values in self.targets.items()}
        if self.features is not None:
            return {"features": self.features.rows(index)} | batch
        return {"images": torch.from_numpy(draw(self.source, self.split, examples))} | batch


class AblationDataModule(L.LightningDataModule):
    """Batches ``{"features": [layers, B, tokens, dim], "index": int64 [B], **targets}``.

    Features come from the store, or live from the encoder once the batch is on the module's device (then the
    loaders themselves yield ``"images"``, uint8 ``[B, H, W, 3]``, in the place of ``"features"``).

    Training batches come in an order that depends on ``order_seed`` and the epoch alone, the last incomplete
    one left out; validation and test are complete and in the source's order.

    Args:
        source: what the examples are.
        features: the store to read, or None for live features.
        encoder: the encoder of live features, or None to read the store.
        layers: the order of the first axis of the features.
        batch_size: of training.
        order_seed: decides the order of training.
        eval_batch_size: of validation and test; ``batch_size`` by default.
        num_workers: processes that fetch batches. The store needs none; live images may gain.

    Raises:
        WorkbenchError: (from ``train_dataloader``) the training split holds less than one batch.
    """

    def __init__(
        self,
        source: Source,
        features: FeatureStore | None,
        encoder: EncoderLike | None,
        layers: Sequence[int],
        batch_size: int,
        order_seed: int,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if (features is None) == (encoder is None):
            raise ValueError("features come from the store or live from the encoder: give one of the two")
        self.source = source
        self.store = features
        self.encoder = encoder
        self.layers = tuple(layers)
        self.batch_size = batch_size
        self.order_seed = order_seed
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self._splits: dict[str, SplitBatches] = {}

    def train_dataloader(self) -> DataLoader[Batch]:
        size = self.source.size("train")
        if size < self.batch_size:
            raise WorkbenchError(f"training.batch_size is {self.batch_size}, and there are {size} training examples.")
        order = EpochOrder(size, self.order_seed)
        return self._loader("train", self.batch_size, sampler=order, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test", self.eval_batch_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Encodes live batches, on the device where they now are."""
        if self.encoder is None:
            return batch
        images = batch.pop("images")
        if isinstance(self.encoder, nn.Module):
            self.encoder.to(images.device)
        features = self.encoder.encode(images, self.layers)
        if features.is_inference() and not torch.is_inference_mode_enabled():
            features = features.clone()  # autograd may not keep a tensor that was made in inference mode
        return {"features": features, **batch}

    def _loader(
        self, split: str, batch_size: int, sampler: EpochOrder | None = None, drop_last: bool = False
    ) -> DataLoader[Batch]:
        return DataLoader(
            self._split(split),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=_whole,
        )

    def _split(self, split: str) -> SplitBatches:
        if split not in self._splits:
            features = None if self.store is None else self.store.features(split, self.layers)
            self._splits[split] = SplitBatches(self.source, split, features)
        return self._splits[split]


def _whole(batch: Any) -> Any:
    """``__getitems__`` has made the batch."""
    return batch
